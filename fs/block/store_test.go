package block

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"scstore"
	"scstore/fs/block/disk/crashdisk"
)

// memoryIndex is a rootIndex whose commits are atomic and durable, as badger's
// with SyncWrites are.
type memoryIndex struct{ pointer *rootPointer }

func (m *memoryIndex) root() (rootPointer, error) {
	if m.pointer == nil {
		return rootPointer{}, fmt.Errorf("index: %w", scstore.ErrNotFound)
	}
	return *m.pointer, nil
}
func (m *memoryIndex) commit(p rootPointer) error { m.pointer = &p; return nil }
func (m *memoryIndex) close() error               { return nil }

const testSlots = minSlots

// openTest opens a store on a simulated disk.
func openTest(t testing.TB, d *crashdisk.Disk, index *memoryIndex) *Store {
	t.Helper()
	s, err := Open(t.Context(), Options{FS: d, SegmentSlots: testSlots, ReserveBytes: 1 << 20, MapMemoryBytes: 1 << 20, index: index})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// abandon stops the store's goroutines as the death of the process would.
func (s *Store) abandon() {
	_ = s.stop()
}

func testID(n uint64) (id scstore.VolumeID) {
	binary.BigEndian.PutUint64(id[8:], n)
	return id
}

func mustCreate(t testing.TB, s *Store, o CreateOptions) *Table {
	t.Helper()
	tab, err := s.Create(o)
	if err != nil {
		t.Fatal(err)
	}
	return tab
}

// fillBlock makes a block that names what it is.
func fillBlock(p []byte, block, version uint64) {
	for i := 0; i < len(p); i += 16 {
		binary.BigEndian.PutUint64(p[i:], block)
		binary.BigEndian.PutUint64(p[i+8:], version)
	}
}

// readAll reads a reader's blocks, absent ones as zeros.
func readAll(t testing.TB, r interface {
	ReadBlocks(scstore.BlockIndex, []byte, []scstore.Piece, bool) ([]scstore.Piece, bool, error)
	SizeBytes() int64
}) []byte {
	t.Helper()
	p := make([]byte, r.SizeBytes())
	gaps, _, err := r.ReadBlocks(0, p, nil, false)
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range gaps {
		clear(p[g.First.Offset():g.End().Offset()])
	}
	return p
}

func TestStore_ReadsWhatWasWrittenAcrossReopen(t *testing.T) {
	d, index := crashdisk.New(crashdisk.Options{Seed: 1}), &memoryIndex{}
	rng := rand.New(rand.NewPCG(1, 2))
	s := openTest(t, d, index)
	const blocks = 600
	tab := mustCreate(t, s, CreateOptions{ID: testID(1), SizeBytes: blocks * scstore.BlockSize})
	model := make([]byte, blocks*scstore.BlockSize)
	for step := range 4000 {
		first := rng.Uint64N(blocks)
		n := min(1+rng.Uint64N(1+rng.Uint64N(40)), blocks-first)
		part := model[first*scstore.BlockSize : (first+n)*scstore.BlockSize]
		e := scstore.Extent{First: scstore.BlockIndex(first), Count: n}
		switch rng.IntN(20) {
		case 0:
			clear(part)
			if err := tab.ZeroBlocks(e, rng.IntN(2) == 0); err != nil {
				t.Fatal(err)
			}
		case 1:
			if err := s.Sync(); err != nil {
				t.Fatal(err)
			}
		case 2:
			got := make([]byte, len(part))
			gaps, _, err := tab.ReadBlocks(e.First, got, nil, false)
			if err != nil {
				t.Fatal(err)
			}
			for _, g := range gaps {
				clear(got[(uint64(g.First)-first)*scstore.BlockSize:][:g.Count*scstore.BlockSize])
			}
			if !bytes.Equal(got, part) {
				t.Fatalf("step %d: blocks %d+%d differ", step, first, n)
			}
		default:
			for i := range n {
				fillBlock(part[i*scstore.BlockSize:(i+1)*scstore.BlockSize], first+i, uint64(step))
			}
			if err := tab.WriteBlocks(e.First, part); err != nil {
				t.Fatal(err)
			}
		}
		if step%500 == 250 {
			if err := s.Checkpoint(); err != nil {
				t.Fatal(err)
			}
		}
		if step%1000 == 999 {
			if rng.IntN(2) == 0 {
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
			} else {
				if err := s.Publish(); err != nil {
					t.Fatal(err)
				}
				s.abandon()
				d = d.Kill()
			}
			s = openTest(t, d, index)
			var err error
			if tab, err = s.Table(testID(1)); err != nil {
				t.Fatal(err)
			}
			if got := readAll(t, tab); !bytes.Equal(got, model) {
				t.Fatalf("step %d: content differs after reopen", step)
			}
			if n := len(s.Damage()); n > 0 {
				t.Fatalf("step %d: damage: %+v", step, s.Damage())
			}
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestStore_PinShowsThePast(t *testing.T) {
	d, index := crashdisk.New(crashdisk.Options{Seed: 1}), &memoryIndex{}
	s := openTest(t, d, index)
	defer s.Close()
	rng := rand.New(rand.NewPCG(3, 4))
	const blocks = 300
	tab := mustCreate(t, s, CreateOptions{ID: testID(1), SizeBytes: blocks * scstore.BlockSize})
	model := make([]byte, blocks*scstore.BlockSize)
	type view struct {
		pin  *Pin
		want []byte
	}
	var views []view
	for step := range 3000 {
		first := rng.Uint64N(blocks)
		n := min(1+rng.Uint64N(8), blocks-first)
		part := model[first*scstore.BlockSize : (first+n)*scstore.BlockSize]
		if rng.IntN(10) == 0 {
			clear(part)
			if err := tab.ZeroBlocks(scstore.Extent{First: scstore.BlockIndex(first), Count: n}, true); err != nil {
				t.Fatal(err)
			}
		} else {
			for i := range n {
				fillBlock(part[i*scstore.BlockSize:(i+1)*scstore.BlockSize], first+i, uint64(step))
			}
			if err := tab.WriteBlocks(scstore.BlockIndex(first), part); err != nil {
				t.Fatal(err)
			}
		}
		switch rng.IntN(60) {
		case 0:
			if len(views) < 6 {
				pin, err := tab.Pin()
				if err != nil {
					t.Fatal(err)
				}
				views = append(views, view{pin, bytes.Clone(model)})
			}
		case 1:
			if len(views) > 0 {
				i := rng.IntN(len(views))
				views[i].pin.Release()
				views = append(views[:i], views[i+1:]...)
			}
		case 2:
			if err := s.Checkpoint(); err != nil {
				t.Fatal(err)
			}
		case 3:
			cleanAll(t, s)
		}
		if step%100 == 99 {
			if got := readAll(t, tab); !bytes.Equal(got, model) {
				t.Fatalf("step %d: head differs", step)
			}
			for i, v := range views {
				if got := readAll(t, v.pin); !bytes.Equal(got, v.want) {
					t.Fatalf("step %d: view %d of generation %d differs", step, i, v.pin.gen)
				}
			}
		}
	}
	if s.metrics == nil || len(s.Damage()) > 0 {
		t.Fatalf("damage: %+v", s.Damage())
	}
}

// cleanAll cleans every segment that may be cleaned, however full.
func cleanAll(t testing.TB, s *Store) {
	t.Helper()
	if err := s.checkpointMode(true, false); err != nil {
		t.Fatal(err)
	}
	for _, g := range s.victims(true) {
		if _, err := s.cleanSegment(t.Context(), unlimited(), g); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Checkpoint(); err != nil {
		t.Fatal(err)
	}
}

func TestStore_CloneReadsItsBase(t *testing.T) {
	d, index := crashdisk.New(crashdisk.Options{Seed: 1}), &memoryIndex{}
	s := openTest(t, d, index)
	defer s.Close()
	base := mustCreate(t, s, CreateOptions{ID: testID(1), SizeBytes: 8 * scstore.BlockSize})
	p := make([]byte, scstore.BlockSize)
	fillBlock(p, 3, 1)
	if err := base.WriteBlocks(3, p); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Create(CreateOptions{ID: testID(2), SizeBytes: 8 * scstore.BlockSize, Base: testID(1)}); !errors.Is(err, scstore.ErrInvalid) {
		t.Fatalf("create over a base that is written to: got %v, want ErrInvalid", err)
	}
	if err := base.Freeze(); err != nil {
		t.Fatal(err)
	}
	if err := base.WriteBlocks(0, p); !errors.Is(err, scstore.ErrReadOnly) {
		t.Fatalf("write to a frozen table: got %v, want ErrReadOnly", err)
	}
	clone := mustCreate(t, s, CreateOptions{ID: testID(2), SizeBytes: 8 * scstore.BlockSize, Base: testID(1)})
	if clone.Base() != base {
		t.Fatalf("base: got %v", clone.Base())
	}
	if err := s.Delete(testID(1)); !errors.Is(err, scstore.ErrBusy) {
		t.Fatalf("delete a base: got %v, want ErrBusy", err)
	}
	if err := s.Delete(testID(2)); err != nil {
		t.Fatal(err)
	}
	if err := s.Delete(testID(1)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Table(testID(1)); !errors.Is(err, scstore.ErrNotFound) {
		t.Fatalf("table after delete: got %v", err)
	}
}
