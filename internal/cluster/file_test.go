package cluster

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"scstore"
	"scstore/consensus/meta"
)

func testPlace() place {
	p := place{
		Format: placeFormat, Stage: stageMember, Cluster: id{1}, Incarnation: 1, Disk: id{2}, Site: "a", Host: "host-1", Listen: ":7400",
		Advertise: []string{"10.0.0.1:7400"}, Seen: "192.0.2.1", Boot: bootFacts{N: 7, Nonce: id{3}},
		Known: known{Applied: 9, Hosts: []knownHost{{Disk: "x", Name: "host-2", Site: "b", Removed: true, Boots: 3, Addresses: []string{"10.0.0.2:7400"}}}},
	}
	for _, g := range groupIDs() {
		p.Groups = append(p.Groups, groupFacts{Group: g, Replica: 4, NonVoting: true, Alone: true})
	}
	return p
}

func encoded(t testing.TB, p place) []byte {
	t.Helper()
	text, err := p.encode()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestPlace_ReadsWhatWasWritten(t *testing.T) {
	want := testPlace()
	got, err := parsePlace(encoded(t, want))
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
}

func TestPlace_TellsNewerFromDamaged(t *testing.T) {
	newer := testPlace()
	newer.Format, newer.Groups = placeFormat+1, nil
	_, err := parsePlace(encoded(t, newer))
	wantErr(t, "newer", err, scstore.ErrVersion)
	_, err = parsePlace([]byte(`{"format": 2, "stage": {}}`))
	wantErr(t, "newer, with other fields", err, scstore.ErrVersion)
	for what, damage := range map[string]func(*place){
		"no format":       func(p *place) { p.Format = 0 },
		"no stage":        func(p *place) { p.Stage = "" },
		"no cluster":      func(p *place) { p.Cluster = id{} },
		"no disk":         func(p *place) { p.Disk = id{} },
		"no incarnation":  func(p *place) { p.Incarnation = 0 },
		"no site":         func(p *place) { p.Site = "" },
		"no name":         func(p *place) { p.Host = "" },
		"a group less":    func(p *place) { p.Groups = p.Groups[1:] },
		"a group twice":   func(p *place) { p.Groups[1] = p.Groups[0] },
		"no replica id":   func(p *place) { p.Groups[2].Replica = 0 },
		"no place to be":  func(p *place) { p.Listen = "" },
		"a site of parts": func(p *place) { p.Site = "a/b" },
	} {
		p := testPlace()
		damage(&p)
		_, err := parsePlace(encoded(t, p))
		wantErr(t, what, err, scstore.ErrCorrupt)
	}
	text := encoded(t, testPlace())
	for i := range text[:len(text)-2] {
		if _, err := parsePlace(text[:i]); !errors.Is(err, scstore.ErrCorrupt) {
			t.Fatalf("cut at %d: %v", i, err)
		}
	}
}

func TestPlaceFile_IsReplacedWhole(t *testing.T) {
	dir := t.TempDir()
	f, err := openPlace(dir)
	if err != nil || f.exists() {
		t.Fatalf("an empty folder: %v, %v", f, err)
	}
	if err := f.change(func(p *place) { *p = testPlace() }); err != nil {
		t.Fatal(err)
	}
	if err := f.setAlone(2, true); err != nil || f.get().Groups[1].Alone != true { // it has NonVoting
		t.Errorf("setAlone: %v", err)
	}
	if err := f.change(func(p *place) {
		p.Groups = []groupFacts{{Group: 1, Replica: 1}, {Group: 2, Replica: 1}, {Group: 3, Replica: 1}, {Group: 4, Replica: 1}, {Group: 5, Replica: 1}}
	}); err != nil {
		t.Fatal(err)
	}
	was := f.get()
	if err := f.setAlone(3, true); err != nil {
		t.Fatal(err)
	}
	if was.Groups[2].Alone {
		t.Error("what was given out has changed")
	}
	again, err := openPlace(dir)
	if err != nil || !reflect.DeepEqual(again.get(), f.get()) || !again.get().Groups[2].Alone {
		t.Errorf("got %+v, %v, want %+v", again.get(), err, f.get())
	}
	// What cannot be written is not taken for written.
	if err := os.Mkdir(filepath.Join(dir, placeName+".new"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := f.change(func(p *place) { p.Boot.N = 99 }); err == nil || f.get().Boot.N == 99 {
		t.Errorf("a file that cannot be written: %v, %+v", err, f.get().Boot)
	}
	if info, err := os.Stat(f.path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
}

func FuzzParsePlace(f *testing.F) {
	f.Add(encoded(f, testPlace()))
	f.Add([]byte(`{"format":1}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		p, err := parsePlace(text)
		if err != nil {
			if !errors.Is(err, scstore.ErrCorrupt) && !errors.Is(err, scstore.ErrVersion) {
				t.Errorf("got %v", err)
			}
			return
		}
		if _, err := parsePlace(encoded(t, p)); err != nil {
			t.Errorf("what was written again: %v", err)
		}
	})
}

func FuzzParseAsk(f *testing.F) {
	f.Add([]byte(`{"format":1,"site":"a","addresses":["10.0.0.1:7400"],"port":"7400"}`))
	f.Add([]byte(`{"format":2}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := parseAsk(b)
		if err != nil {
			if !errors.Is(err, scstore.ErrInvalid) && !errors.Is(err, scstore.ErrVersion) {
				t.Errorf("got %v", err)
			}
			return
		}
		if len(a.Addresses) == 0 || len(a.Addresses) >= meta.MaxAddresses {
			t.Errorf("%d addresses", len(a.Addresses))
		}
	})
}

func FuzzParseMembership(f *testing.F) {
	p := testPlace()
	m := membership{Format: joinFormat, Site: "a", Seen: "192.0.2.1", Known: p.Known, Groups: p.Groups}
	text, err := json.Marshal(m)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte(`{"format":1,"site":"a"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parseMembership(b)
		if err != nil {
			if !errors.Is(err, scstore.ErrInvalid) && !errors.Is(err, scstore.ErrVersion) {
				t.Errorf("got %v", err)
			}
			return
		}
		p := testPlace()
		p.Site, p.Groups, p.Known = m.Site, m.Groups, m.Known
		if _, err := parsePlace(encoded(t, p)); err != nil {
			t.Errorf("what was taken in could not be kept: %v", err)
		}
	})
}

func FuzzParseLead(f *testing.F) {
	f.Add(make([]byte, leadBytes))
	f.Add([]byte(strings.Repeat("x", leadBytes)))
	f.Fuzz(func(t *testing.T, b []byte) {
		g, _, err := parseLead(b)
		if err != nil && !errors.Is(err, scstore.ErrInvalid) {
			t.Errorf("got %v", err)
		}
		if err == nil && g == 0 {
			t.Error("group 0")
		}
	})
}
