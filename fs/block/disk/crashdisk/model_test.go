package crashdisk_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"scstore/fs/block/disk"
	"scstore/fs/block/disk/crashdisk"
)

// modelFile is the dumb model of one file: everything that it held since its last
// sync, whole.
type modelFile struct {
	data   []byte
	states [][]byte // since the last sync, the synced one first, the live one last
}

func (m *modelFile) changed() { m.states = append(m.states, bytes.Clone(m.data)) }

func (m *modelFile) put(p []byte, off int) {
	if end := off + len(p); end > len(m.data) {
		m.data = append(m.data, make([]byte, end-len(m.data))...)
	}
	copy(m.data[off:], p)
	m.changed()
}

// allows reports whether a crash may leave got: a length that the file had, and in
// each sector the content of some state. The page's own rule, that only few tear,
// is checked by TestCrash_LosesAndReordersWhatWasNotSynced.
func (m *modelFile) allows(got []byte) error {
	lengths := make(map[int]bool)
	for _, s := range m.states {
		lengths[len(s)] = true
	}
	if !lengths[len(got)] {
		return fmt.Errorf("length %d, want one of %v", len(got), slices.Sorted(maps.Keys(lengths)))
	}
	for off := 0; off < len(got); off += 512 {
		end := min(off+512, len(got))
		if !slices.ContainsFunc(m.states, func(s []byte) bool { return sameSector(s, got[off:end], off) }) {
			return fmt.Errorf("bytes %d to %d were never so", off, end)
		}
	}
	return nil
}

// sameSector compares part of a state, zeros past its end, with want.
func sameSector(state, want []byte, off int) bool {
	have := make([]byte, len(want))
	if off < len(state) {
		copy(have, state[off:])
	}
	return bytes.Equal(have, want)
}

type model struct {
	t       *testing.T
	rng     *rand.Rand
	disk    *crashdisk.Disk
	files   map[string]*modelFile
	durable map[string]*modelFile
	since   map[string][]*modelFile // what each name led to since the last SyncDir; nil: nothing
}

func newModel(t *testing.T, seed uint64) *model {
	return &model{
		t:       t,
		rng:     rand.New(rand.NewPCG(seed, 77)),
		disk:    crashdisk.New(crashdisk.Options{Seed: seed, ColdShare: 0.3}),
		files:   make(map[string]*modelFile),
		durable: make(map[string]*modelFile),
		since:   make(map[string][]*modelFile),
	}
}

func (m *model) named(name string) { m.since[name] = append(m.since[name], m.files[name]) }

// step makes one random operation on both.
func (m *model) step() {
	name := string(rune('a' + m.rng.IntN(4)))
	f := m.files[name]
	if f == nil {
		m.files[name] = &modelFile{states: [][]byte{{}}}
		m.named(name)
		check(m.t, create(m.t, m.disk, name).Close())
		return
	}
	switch m.rng.IntN(20) {
	case 0:
		other := string(rune('a' + m.rng.IntN(4)))
		check(m.t, m.disk.Rename(name, other))
		if other != name {
			delete(m.files, name)
			m.files[other] = f
			m.named(name)
			m.named(other)
		}
	case 1:
		check(m.t, m.disk.Remove(name))
		delete(m.files, name)
		m.named(name)
	case 2, 3:
		check(m.t, m.disk.SyncDir())
		m.durable = maps.Clone(m.files)
		clear(m.since)
	default:
		h, err := m.disk.Open(name)
		check(m.t, err)
		m.change(f, h)
		check(m.t, h.Close())
	}
}

// change makes one random operation on an open file.
func (m *model) change(f *modelFile, h disk.File) {
	const limit = 12 * pageSize
	off := m.rng.IntN(limit)
	if m.rng.IntN(2) == 0 {
		off -= off % pageSize
	}
	p := bytes.Repeat([]byte{byte(m.rng.IntN(256))}, 1+m.rng.IntN(3*pageSize))
	switch m.rng.IntN(12) {
	case 0:
		check(m.t, h.Truncate(int64(off)))
		cut := min(off, len(f.data))
		f.data = append(bytes.Clone(f.data[:cut]), make([]byte, off-cut)...)
		f.changed()
	case 1:
		check(m.t, h.Allocate(int64(off)+1))
		if off >= len(f.data) {
			f.put(nil, off+1)
		}
	case 2, 3, 4:
		check(m.t, h.Datasync())
		f.states = [][]byte{bytes.Clone(f.data)}
	case 5:
		check(m.t, h.WriteBack(int64(off), limit))
	case 6, 7:
		cut := m.rng.IntN(len(p))
		check(m.t, h.WriteVec([][]byte{p[:cut], nil, p[cut:]}, int64(off)))
		f.put(p, off)
	default:
		write(m.t, h, p, int64(off))
		f.put(p, off)
	}
	m.compare(f, h)
}

func (m *model) compare(f *modelFile, h disk.File) {
	m.t.Helper()
	got := make([]byte, len(f.data)+1)
	n, err := h.ReadAt(got, 0)
	if !errors.Is(err, io.EOF) || !bytes.Equal(got[:n], f.data) {
		m.t.Fatalf("%d bytes, want %d: %v", n, len(f.data), err)
	}
}

// crash checks one crash, and whether it lost anything.
func (m *model) crash(d *crashdisk.Disk) (lost bool) {
	m.t.Helper()
	for name, f := range m.durable {
		if got := read(m.t, d, name); m.since[name] == nil && got == nil {
			m.t.Fatalf("the durable name %s is gone", name)
		} else if got != nil && m.since[name] == nil {
			if err := f.allows(got); err != nil {
				m.t.Fatalf("%s: %v", name, err)
			}
			lost = lost || !bytes.Equal(got, f.data)
		}
	}
	names, err := d.List()
	check(m.t, err)
	for _, name := range names {
		got := read(m.t, d, name)
		may := m.since[name]
		if f := m.durable[name]; f != nil {
			may = append(slices.Clone(may), f)
		}
		if !slices.ContainsFunc(may, func(f *modelFile) bool { return f != nil && f.allows(got) == nil }) {
			m.t.Fatalf("%s holds what none of its %d files could", name, len(may))
		}
	}
	return lost || len(names) != len(m.files)
}

func (m *model) killed(d *crashdisk.Disk) {
	m.t.Helper()
	names, err := d.List()
	check(m.t, err)
	if !slices.Equal(names, slices.Sorted(maps.Keys(m.files))) {
		m.t.Fatalf("a kill left the names %q", names)
	}
	for name, f := range m.files {
		if got := read(m.t, d, name); !bytes.Equal(got, f.data) {
			m.t.Fatalf("a kill changed %s", name)
		}
	}
}

// TestDisk_EqualsTheModel runs random operations on a Disk and on a model that
// keeps every state whole, and crashes and kills both after each step.
func TestDisk_EqualsTheModel(t *testing.T) {
	lost, crashes := 0, 0
	for seed := range uint64(40) {
		m := newModel(t, seed)
		for range 60 {
			m.step()
			for _, d := range []*crashdisk.Disk{m.disk.Crash(m.rng), m.disk.Kill().Crash(m.rng)} {
				crashes++
				if m.crash(d) {
					lost++
				}
			}
			m.killed(m.disk.Kill())
		}
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
	if lost < crashes/10 || lost > crashes*9/10 {
		t.Errorf("%d of %d crashes lost something: the model was not put to the test", lost, crashes)
	}
}

// TestModel_CatchesALie plants what no crash may do.
func TestModel_CatchesALie(t *testing.T) {
	f := &modelFile{states: [][]byte{{}}}
	f.put(fill('a', 2), 0)
	f.states = [][]byte{bytes.Clone(f.data)}
	f.put(fill('b', 1), 0)
	for name, lie := range map[string][]byte{
		"lost a synced page": append(fill('b', 1), fill(0, 1)...),
		"cut a synced page":  fill('b', 1),
		"made a page up":     append(fill('c', 1), fill('a', 1)...),
	} {
		if f.allows(lie) == nil {
			t.Errorf("the model allows a crash that %s", name)
		}
	}
	for _, truth := range [][]byte{f.data, fill('a', 2)} {
		if err := f.allows(truth); err != nil {
			t.Error(err)
		}
	}
}
