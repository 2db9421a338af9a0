package replica

import (
	"encoding/json"
	"errors"
	"reflect"
	"testing"

	"scstore"
	"scstore/consensus/meta"
)

func someFacts() Facts {
	at := scstore.Position{Fence: 2, Epoch: 7}
	p := Point{Position: at, Parent: scstore.Position{Fence: 2, Epoch: 6}, Digest: scstore.Digest{1}, Complete: true}
	return Facts{
		Format: factsFormat, ID: scstore.VolumeID{1}, Group: 2, SizeBytes: 8192, Base: scstore.VolumeID{2}, BasePosition: scstore.Position{Fence: 1, Epoch: 1},
		Creating: true, Floor: 1, Fence: 2, Head: at, Pending: []Point{p}, Holds: []scstore.Position{p.Parent, at}, Partial: p.Parent,
		Jump:     &JumpFacts{From: p.Parent, To: at, Map: true},
		Draining: &Draining{ID: meta.HandOffID{3}, To: "B", Volumes: []scstore.VolumeID{{1}}, Final: p, Fence: 2},
		Left:     []Leftover{{Fence: 1, Head: p.Parent, Branch: scstore.VolumeID{4}}},
	}
}

func TestFacts_AreReadAsTheyWereWritten(t *testing.T) {
	dir := t.TempDir()
	want := someFacts()
	for range 2 {
		if err := writeFacts(dir, want); err != nil {
			t.Fatal(err)
		}
	}
	got, err := readFacts(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 1 || !reflect.DeepEqual(got[0], want) {
		t.Errorf("read %+v, want %+v", got, want)
	}
	if err := removeFacts(dir, want.ID); err != nil {
		t.Fatal(err)
	}
	if got, err := readFacts(dir); err != nil || len(got) != 0 {
		t.Errorf("removed, and read %+v, %v", got, err)
	}
}

func TestFacts_OfANewerReleaseAndDamagedOnesAreRefused(t *testing.T) {
	for text, want := range map[string]error{
		`{"format":2,"later":1}`: scstore.ErrVersion,
		`{"format":1,"id":"01000000000000000000000000000000","unknown":1}`: scstore.ErrCorrupt,
		`{"format":1`: scstore.ErrCorrupt,
		`{"format":1,"id":"00000000000000000000000000000000"}`:                                                       scstore.ErrCorrupt,
		`{"format":1,"id":"01000000000000000000000000000000","fence":1,"head":{"fence":2,"epoch":1}}`:                scstore.ErrCorrupt,
		`{"format":1,"id":"01000000000000000000000000000000","holds":[{"fence":2,"epoch":1},{"fence":1,"epoch":1}]}`: scstore.ErrCorrupt,
	} {
		if _, err := parseFacts([]byte(text)); !errors.Is(err, want) {
			t.Errorf("%s: got %v, want %v", text, err, want)
		}
	}
}

func FuzzParseFacts(f *testing.F) {
	b, err := json.Marshal(someFacts())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"format":1}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := parseFacts(b)
		if err != nil {
			return
		}
		again, err := json.Marshal(got)
		if err != nil {
			t.Fatal(err)
		}
		if back, err := parseFacts(again); err != nil || !reflect.DeepEqual(back, got) {
			t.Fatalf("%s\nis written as %s\nand read as %+v, %v", b, again, back, err)
		}
	})
}

func TestExtents_IntersectAndSubtract(t *testing.T) {
	e := func(list ...uint64) (out []scstore.Extent) {
		for i := 0; i < len(list); i += 2 {
			out = append(out, scstore.Extent{First: scstore.BlockIndex(list[i]), Count: list[i+1]})
		}
		return out
	}
	a, b := e(0, 10, 20, 10, 40, 1), e(2, 3, 8, 14, 25, 1, 40, 5)
	if got, want := intersect(a, b), e(2, 3, 8, 2, 20, 2, 25, 1, 40, 1); !reflect.DeepEqual(got, want) {
		t.Errorf("intersect: %v, want %v", got, want)
	}
	if got, want := subtract(a, b), e(0, 2, 5, 3, 22, 3, 26, 4); !reflect.DeepEqual(got, want) {
		t.Errorf("subtract: %v, want %v", got, want)
	}
	if got := countBlocks(a); got != 21 {
		t.Errorf("count: %d, want 21", got)
	}
}
