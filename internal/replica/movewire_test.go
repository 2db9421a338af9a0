package replica

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"

	"scstore"
	"scstore/consensus/meta"
)

var rewrite = flag.Bool("rewrite", false, "write the golden files anew")

// moveMessage is a message as the tests see it.
type moveMessage struct {
	value any
	bytes []byte
	parse func([]byte) (any, error)
}

func parsed[T any](f func([]byte) (T, error)) func([]byte) (any, error) {
	return func(b []byte) (any, error) { return f(b) }
}

func at(f scstore.Fence, e scstore.Epoch) scstore.Position {
	return scstore.Position{Fence: f, Epoch: e}
}

func moveMessages() map[string]moveMessage {
	id, one, two := meta.HandOffID{1, 2, 3}, scstore.VolumeID{1}, scstore.VolumeID{2, 7}
	p := prepareMsg{ID: id, Group: 3, Volumes: []preparedVolume{{one, 1 << 30, 5, at(5, 77)}, {two, 4096, 1, at(0, 0)}}}
	y := readyMsg{ID: id, Volumes: []readyVolume{{one, at(5, 76)}, {two, at(0, 0)}}}
	l := releaseMsg{ID: id, Group: 3, Volumes: []releaseVolume{
		{one, 1 << 30, 5, Point{Position: at(5, 79), Parent: at(5, 78), Digest: scstore.Digest{9, 8}}, at(5, 76), []scstore.Extent{{First: 0, Count: 1}, {First: 300, Count: 70_000}}},
		{ID: two, SizeBytes: 4096, Fence: 1},
	}}
	hq := holdsAsk{Volume: one, Group: 4, Fence: 5}
	h := holdsMsg{Complete: []scstore.Position{at(1, 2), at(3, 3)}, Mapped: at(3, 9), Blocks: 12, Extents: 3}
	aq := aliveAsk{one}
	a := aliveMsg{Owns: true, Fence: 6, Head: at(5, 79), MissingBytes: 1 << 20, OpenBytes: 8192}
	return map[string]moveMessage{
		"prepare":   {p, p.AppendTo(nil), parsed(parsePrepare)},
		"ready":     {y, y.AppendTo(nil), parsed(parseReady)},
		"release":   {l, l.AppendTo(nil), parsed(parseRelease)},
		"holds_ask": {hq, hq.AppendTo(nil), parsed(parseHoldsAsk)},
		"holds":     {h, h.AppendTo(nil), parsed(parseHolds)},
		"alive_ask": {aq, aq.AppendTo(nil), parsed(parseAliveAsk)},
		"alive":     {a, a.AppendTo(nil), parsed(parseAlive)},
	}
}

func TestMoveWire_GoldenFiles(t *testing.T) {
	for name, m := range moveMessages() {
		path := filepath.Join("testdata", "golden", "v1", name+".hex")
		got := []byte(hex.EncodeToString(m.bytes) + "\n")
		if *rewrite {
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, got, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s: got %s, want %s", name, got, want)
		}
		value, err := m.parse(m.bytes)
		if err != nil || !reflect.DeepEqual(value, m.value) {
			t.Errorf("%s is read back as %+v, %v; want %+v", name, value, err, m.value)
		}
	}
}

func TestMoveWire_RefusesWhatIsCutChangedOrNewer(t *testing.T) {
	for name, m := range moveMessages() {
		for n := range m.bytes {
			if _, err := m.parse(m.bytes[:n]); !errors.Is(err, scstore.ErrCorrupt) {
				t.Errorf("%s cut to %d of %d bytes: got %v, want ErrCorrupt", name, n, len(m.bytes), err)
			}
		}
		if _, err := m.parse(append(slices.Clone(m.bytes), 0)); !errors.Is(err, scstore.ErrCorrupt) {
			t.Errorf("%s with a byte more: got %v, want ErrCorrupt", name, err)
		}
		newer := slices.Clone(m.bytes)
		newer[4]++
		if _, err := m.parse(newer); !errors.Is(err, scstore.ErrVersion) {
			t.Errorf("%s of another version: got %v, want ErrVersion", name, err)
		}
		for i := 5; i < 8; i++ {
			odd := slices.Clone(m.bytes)
			odd[i] = 1
			if _, err := m.parse(odd); !errors.Is(err, scstore.ErrCorrupt) {
				t.Errorf("%s with byte %d set: got %v, want ErrCorrupt", name, i, err)
			}
		}
	}
}

func TestMoveWire_RefusesExtentsOutOfTheVolume(t *testing.T) {
	m := releaseMsg{ID: meta.HandOffID{1}, Volumes: []releaseVolume{{ID: scstore.VolumeID{1}, SizeBytes: 8192, Changed: []scstore.Extent{{First: 1, Count: 1}}}}}
	if _, err := parseRelease(m.AppendTo(nil)); err != nil {
		t.Fatal(err)
	}
	m.Volumes[0].Changed[0].Count = 2
	if _, err := parseRelease(m.AppendTo(nil)); !errors.Is(err, scstore.ErrCorrupt) {
		t.Errorf("an extent beyond the end: got %v, want ErrCorrupt", err)
	}
}

func TestCoarsen_NamesEveryBlockWithinTheLimit(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		blocks := 1 + rng.Uint64N(5000)
		changed := make([]bool, blocks)
		var list []scstore.Extent
		for b := rng.Uint64N(4); b < blocks; {
			e := scstore.Extent{First: scstore.BlockIndex(b), Count: min(1+rng.Uint64N(5), blocks-b)}
			list = append(list, e)
			for i := e.First; i < e.End(); i++ {
				changed[i] = true
			}
			b = uint64(e.End()) + 1 + rng.Uint64N(6)
		}
		limit := 1 + rng.IntN(50)
		got := coarsen(list, blocks, limit)
		if len(got) > limit {
			t.Fatalf("got %d extents, want at most %d", len(got), limit)
		}
		named := make([]bool, blocks)
		for i, e := range got {
			if i > 0 && e.First <= got[i-1].End() || uint64(e.End()) > blocks {
				t.Fatalf("extents %v of %d blocks touch or leave the volume", got, blocks)
			}
			for b := e.First; b < e.End(); b++ {
				named[b] = true
			}
		}
		for b := range changed {
			if changed[b] && !named[b] {
				t.Fatalf("block %d of %v is not named by %v", b, list, got)
			}
		}
	}
}

func FuzzMoveWire(f *testing.F) {
	for _, m := range moveMessages() {
		f.Add(m.bytes)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		check := func(name string, m interface{ AppendTo([]byte) []byte }, err error) {
			if err == nil && !bytes.Equal(m.AppendTo(nil), b) {
				t.Errorf("%s: %x is read as %+v, which is %x", name, b, m, m.AppendTo(nil))
			}
		}
		p, err := parsePrepare(b)
		check("prepare", p, err)
		y, err := parseReady(b)
		check("ready", y, err)
		l, err := parseRelease(b)
		check("release", l, err)
		hq, err := parseHoldsAsk(b)
		check("holds?", hq, err)
		h, err := parseHolds(b)
		check("holds", h, err)
		aq, err := parseAliveAsk(b)
		check("alive?", aq, err)
		a, err := parseAlive(b)
		check("alive", a, err)
	})
}
