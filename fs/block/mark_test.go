package block

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"scstore"
	"scstore/fs/block/disk/crashdisk"
)

func testTag(n byte) scstore.Tag { return scstore.Tag{Kind: scstore.TagSnapshot, ID: [16]byte{15: n}} }

// mustMark marks and fails the test on an error.
func mustMark(t testing.TB, tab *Table, tag scstore.Tag) {
	t.Helper()
	if err := tab.Mark(tag); err != nil {
		t.Fatal(err)
	}
}

// rollLog writes a version of a block until the log is in another segment, so that
// the cleaner may have those before.
func rollLog(t *testing.T, tab *Table, block, version uint64) {
	t.Helper()
	for range 2 * testSlots {
		writeVersion(t, tab, block, version)
	}
}

func wantContentAt(t testing.TB, tab *Table, tag scstore.Tag, want []byte) {
	t.Helper()
	pin, err := tab.At(tag)
	if err != nil {
		t.Fatal(err)
	}
	defer pin.Release()
	if !bytes.Equal(readAll(t, pin), want) {
		t.Fatalf("view %s: content differs", tag)
	}
}

// newMarked makes a store with one table of 64 blocks.
func newMarked(t testing.TB) (*Store, *Table, *crashdisk.Disk, *memoryIndex) {
	t.Helper()
	d, index := crashdisk.New(crashdisk.Options{Seed: 1}), &memoryIndex{}
	s := openTest(t, d, index)
	return s, mustCreate(t, s, CreateOptions{ID: testID(1), SizeBytes: 64 * scstore.BlockSize}), d, index
}

func TestMark_OutlivesRestartsCheckpointsAndTheCleaner(t *testing.T) {
	s, tab, d, index := newMarked(t)
	var want [][]byte
	for v := range byte(4) {
		for b := uint64(v); b < 64; b += uint64(v) + 1 {
			writeVersion(t, tab, b, uint64(v)+1)
		}
		if v == 2 {
			if err := tab.ZeroBlocks(scstore.Extent{First: 10, Count: 20}, true); err != nil {
				t.Fatal(err)
			}
		}
		want = append(want, readAll(t, tab))
		mustMark(t, tab, testTag(v))
	}
	rollLog(t, tab, 5, 99)
	for round := range 5 {
		switch round {
		case 1:
			cleanAll(t, s)
		case 2: // the process dies
			if err := s.Publish(); err != nil {
				t.Fatal(err)
			}
			s.abandon()
			d = d.Kill()
			s, tab = reopen(t, d, index)
		case 3:
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			s, tab = reopen(t, d, index)
			cleanAll(t, s)
		case 4: // what one mark kept goes, the others stay
			if err := tab.Unmark(testTag(1)); err != nil {
				t.Fatal(err)
			}
			cleanAll(t, s)
		}
		for v := range byte(4) {
			if round == 4 && v == 1 {
				if _, err := tab.At(testTag(v)); !errors.Is(err, scstore.ErrNotFound) {
					t.Fatalf("view of a mark that was taken back: got %v, want ErrNotFound", err)
				}
				continue
			}
			wantContentAt(t, tab, testTag(v), want[v])
		}
		wantVersion(t, tab, 5, 99)
	}
	if got := tab.Marks(); !slices.Equal(got, []scstore.Tag{testTag(0), testTag(2), testTag(3)}) {
		t.Fatalf("marks: got %v", got)
	}
}

// What was written after a mark and is zeros again has changed since that mark, also when
// nothing shows what was written, and the map was merged.
func TestMark_WhatIsZerosAgainHasChanged(t *testing.T) {
	s, tab, _, _ := newMarked(t)
	defer s.Close()
	mustMark(t, tab, testTag(1))
	writeVersion(t, tab, 5, 1)
	mustMark(t, tab, testTag(2))
	if err := tab.ZeroBlocks(scstore.Extent{First: 5, Count: 1}, false); err != nil {
		t.Fatal(err)
	}
	mustMark(t, tab, testTag(3))
	if err := tab.Unmark(testTag(2)); err != nil {
		t.Fatal(err)
	}
	entries := func(from scstore.Tag) int {
		t.Helper()
		if err := s.checkpointMode(true, false); err != nil {
			t.Fatal(err)
		}
		list, err := tab.Changed(t.Context(), from, testTag(3), 0, 10)
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	for range 2 {
		if n := entries(testTag(1)); n != 1 {
			t.Errorf("%d extents changed since the first mark, want 1", n)
		}
	}
	if err := tab.Unmark(testTag(1)); err != nil {
		t.Fatal(err)
	}
	if n := entries(scstore.Tag{}); n != 0 {
		t.Errorf("the map has %d extents of a hole that nothing needs", n)
	}
}

func TestMark_RefusesWhatItCannotKeep(t *testing.T) {
	s, tab, _, _ := newMarked(t)
	defer s.Close()
	mustMark(t, tab, testTag(0))
	for name, c := range map[string]struct {
		err, want error
	}{
		"mark again":           {tab.Mark(testTag(0)), scstore.ErrExists},
		"no tag":               {tab.Mark(scstore.Tag{}), scstore.ErrInvalid},
		"unmark what is not":   {tab.Unmark(testTag(9)), scstore.ErrNotFound},
		"advance what is not":  {tab.Advance(testTag(9), testTag(8)), scstore.ErrNotFound},
		"roll back to nothing": {tab.Rollback(testTag(9)), scstore.ErrNotFound},
		"alias of nothing":     {tab.Alias(testTag(9), testTag(8)), scstore.ErrNotFound},
	} {
		if !errors.Is(c.err, c.want) {
			t.Errorf("%s: got %v, want %v", name, c.err, c.want)
		}
	}
	for n := byte(1); n < MaxPins; n++ {
		mustMark(t, tab, testTag(n))
	}
	if err := tab.Mark(testTag(200)); !errors.Is(err, scstore.ErrBusy) {
		t.Fatalf("mark beyond MaxPins: got %v, want ErrBusy", err)
	}
	if _, err := tab.Pin(); !errors.Is(err, scstore.ErrBusy) {
		t.Fatalf("pin beyond MaxPins: got %v, want ErrBusy", err)
	}
	if err := tab.Alias(testTag(3), testTag(200)); err != nil {
		t.Fatalf("second tag of a generation that is held: %v", err)
	}
	if err := tab.Advance(testTag(5), testTag(201)); err != nil {
		t.Fatalf("advance at MaxPins: %v", err)
	}
}

func TestRollback_RestoresWhatTheCleanerMoved(t *testing.T) {
	s, tab, d, index := newMarked(t)
	for b := range uint64(64) {
		writeVersion(t, tab, b, 1)
	}
	mustMark(t, tab, testTag(1))
	want := readAll(t, tab)
	for b := range uint64(40) {
		writeVersion(t, tab, b, 2)
	}
	rollLog(t, tab, 39, 2)
	mustMark(t, tab, testTag(2))
	cleanAll(t, s)
	var at [1]loc
	if _, err := s.resolve(tab, 0, 3, at[:], make([]uint32, 1), false); err != nil || !at[0].isKept() {
		t.Fatalf("the cleaner has not moved what the mark keeps: %x, %v", at, err)
	}
	pin, err := tab.At(testTag(2))
	if err != nil {
		t.Fatal(err)
	}
	if err := tab.Rollback(testTag(1)); !errors.Is(err, scstore.ErrBusy) {
		t.Fatalf("roll back under a view: got %v, want ErrBusy", err)
	}
	pin.Release()
	if err := tab.Rollback(testTag(1)); err != nil {
		t.Fatal(err)
	}
	if got := tab.Marks(); !slices.Equal(got, []scstore.Tag{testTag(1)}) {
		t.Fatalf("marks after a rollback: got %v", got)
	}
	// A cleaner that found a block before the rollback must not bring it back.
	late := record{kind: recordData, gen: 1, table: tab.no, first: 3, count: 1, seq: 9}
	if err := s.moveLocked(late, make([]byte, scstore.BlockSize), makeLoc(1, 1)); !errors.Is(err, errSuperseded) {
		t.Fatalf("move of a dead block: got %v, want errSuperseded", err)
	}
	if err := tab.Unmark(testTag(1)); err != nil { // nothing but the head keeps version 1 now
		t.Fatal(err)
	}
	if err := s.Publish(); err != nil {
		t.Fatal(err)
	}
	for round := range 4 {
		if got := readAll(t, tab); !bytes.Equal(got, want) {
			t.Fatalf("round %d: content differs from the mark's", round)
		}
		switch round {
		case 0: // the end of the log, replayed
			s.abandon()
			d = d.Kill()
			s, tab = reopen(t, d, index)
		case 1:
			cleanAll(t, s)
			if tab.dead != nil {
				t.Fatalf("dead generations after a merge of the whole map: %v", tab.dead)
			}
		case 2:
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			s, tab = reopen(t, d, index)
		}
	}
	writeVersion(t, tab, 3, 7)
	wantVersion(t, tab, 3, 7)
	wantVersion(t, tab, 4, 1)
}

func TestRollback_ManyAreMergedAway(t *testing.T) {
	s, tab, _, _ := newMarked(t)
	defer s.Close()
	for n := range byte(MaxRollbacks + 10) {
		mustMark(t, tab, testTag(n))
		writeVersion(t, tab, uint64(n), 2)
		if err := tab.Rollback(testTag(n)); err != nil {
			t.Fatal(err)
		}
		writeVersion(t, tab, 63, uint64(n)+1)
	}
	if n := len(tab.dead); n > MaxRollbacks {
		t.Fatalf("%d runs of dead generations", n)
	}
	wantVersion(t, tab, 63, MaxRollbacks+10)
	for n := range uint64(MaxRollbacks + 10) {
		wantVersion(t, tab, n, 0)
	}
}

// fillVersion fetches a version of one block.
func fillVersion(t testing.TB, tab *Table, at scstore.Tag, block, version uint64, want uint64) {
	t.Helper()
	p := make([]byte, scstore.BlockSize)
	fillBlock(p, block, version)
	got, err := tab.Fill(at, scstore.BlockIndex(block), p)
	if err != nil {
		t.Fatal(err)
	}
	if got != want {
		t.Fatalf("fill block %d at %s: %d blocks were stored, want %d", block, at, got, want)
	}
}

func TestFill_TakesThePlaceOfTheRemoteBlockOnly(t *testing.T) {
	s, tab, d, index := newMarked(t)
	writeVersion(t, tab, 1, 1)
	mustMark(t, tab, testTag(1)) // block 1 is version 1, the others are holes
	if err := tab.MarkRemote([]scstore.Extent{{First: 1, Count: 4}}, testTag(2)); err != nil {
		t.Fatal(err)
	}
	rollLog(t, tab, 1, 3)
	if err := tab.ZeroBlocks(scstore.Extent{First: 2, Count: 1}, true); err != nil {
		t.Fatal(err)
	}
	if err := tab.MarkRemote([]scstore.Extent{{First: 3, Count: 1}}, testTag(3)); err != nil {
		t.Fatal(err)
	}
	if n := tab.RemoteBlocks(); n < 4 {
		t.Fatalf("remote blocks: got %d, want 4 at least", n)
	}
	p := make([]byte, 4*scstore.BlockSize)
	gaps, _, err := tab.ReadBlocks(1, p, nil, false)
	if err != nil || len(gaps) != 2 || gaps[0].State != scstore.PieceHole || gaps[1].State != scstore.PieceRemote || gaps[1].Count != 2 {
		t.Fatalf("read: %+v, %v", gaps, err)
	}
	fillVersion(t, tab, testTag(1), 1, 9, 0) // not remote in that view
	fillVersion(t, tab, testTag(2), 1, 2, 1) // overwritten: for the mark alone
	fillVersion(t, tab, testTag(2), 2, 2, 1) // zeroed: likewise
	fillVersion(t, tab, testTag(2), 3, 2, 1) // remote anew: the head still waits
	fillVersion(t, tab, testTag(2), 3, 9, 0) // a second fetch of the same
	fillVersion(t, tab, testTag(2), 4, 2, 1) // the head's too
	for round := range 3 {
		wantVersion(t, tab, 1, 3)
		wantVersion(t, tab, 2, 0)
		wantVersion(t, tab, 4, 2)
		if missing, err := tab.Remote(t.Context(), 0, 10); err != nil || !slices.Equal(missing, []scstore.Extent{{First: 3, Count: 1}}) {
			t.Fatalf("missing: got %v, %v, want block 3", missing, err)
		}
		want := make([]byte, 64*scstore.BlockSize)
		for b := uint64(1); b < 5; b++ {
			fillBlock(want[b*scstore.BlockSize:(b+1)*scstore.BlockSize], b, 2)
		}
		wantContentAt(t, tab, testTag(2), want)
		switch round {
		case 0:
			cleanAll(t, s)
		case 1:
			if err := s.Publish(); err != nil {
				t.Fatal(err)
			}
			s.abandon()
			d = d.Kill()
			s, tab = reopen(t, d, index)
		}
	}
	fillVersion(t, tab, testTag(3), 3, 4, 1)
	wantVersion(t, tab, 3, 4)
	if err := tab.Rollback(testTag(2)); err != nil { // the head is what the mark shows
		t.Fatal(err)
	}
	for b := uint64(1); b < 5; b++ {
		wantVersion(t, tab, b, 2)
	}
}

func TestStore_CloneReadsItsBaseAtAMark(t *testing.T) {
	s, base, d, index := newMarked(t)
	for b := range uint64(64) {
		writeVersion(t, base, b, 1)
	}
	mustMark(t, base, testTag(1))
	want := readAll(t, base)
	for b := range uint64(30) {
		writeVersion(t, base, b, 2)
	}
	rollLog(t, base, 3, 2)
	if _, err := s.Create(CreateOptions{ID: testID(2), SizeBytes: 64 * scstore.BlockSize, Base: testID(1), BaseMark: testTag(9)}); !errors.Is(err, scstore.ErrNotFound) {
		t.Fatalf("clone of a mark that is not: got %v, want ErrNotFound", err)
	}
	clone := mustCreate(t, s, CreateOptions{ID: testID(2), SizeBytes: 64 * scstore.BlockSize, Base: testID(1), BaseMark: testTag(1)})
	for round := range 3 {
		if got := readAll(t, clone.BaseView()); !bytes.Equal(got, want) {
			t.Fatalf("round %d: the base at the mark differs", round)
		}
		if err := base.Unmark(testTag(1)); !errors.Is(err, scstore.ErrBusy) {
			t.Fatalf("unmark under a clone: got %v, want ErrBusy", err)
		}
		if err := s.Delete(testID(1)); !errors.Is(err, scstore.ErrBusy) {
			t.Fatalf("delete under a clone: got %v, want ErrBusy", err)
		}
		switch round {
		case 0:
			s.abandon()
			d = d.Kill()
			s, base = reopen(t, d, index)
		case 1:
			cleanAll(t, s)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			s, base = reopen(t, d, index)
			cleanAll(t, s)
		}
		var err error
		if clone, err = s.Table(testID(2)); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Delete(testID(2)); err != nil {
		t.Fatal(err)
	}
	if err := base.Unmark(testTag(1)); err != nil {
		t.Fatal(err)
	}
	cleanAll(t, s)
	if pins := base.pinned(); len(pins) > 0 {
		t.Fatalf("generations held by nobody: %v", pins)
	}
	wantVersion(t, base, 3, 2)
	wantVersion(t, base, 40, 1)
}

// TestMerge_GoesByWhatIsDurable has a checkpoint fail, a mark taken back meanwhile,
// and the checkpoint tried again: what the mark showed must be there after a crash
// that loses the taking back.
func TestMerge_GoesByWhatIsDurable(t *testing.T) {
	s, tab, _, _ := newMarked(t)
	defer s.Close()
	writeVersion(t, tab, 1, 1)
	mustMark(t, tab, testTag(1))
	writeVersion(t, tab, 1, 2)
	if err := s.captureState(true); err != nil {
		t.Fatal(err)
	}
	if err := tab.Unmark(testTag(1)); err != nil {
		t.Fatal(err)
	}
	if keep := s.retained()(tab.no); !keep.exists || len(keep.pins) != 1 {
		t.Fatalf("a merge under the old capture keeps %+v", keep)
	}
	if err := s.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	if err := s.captureState(true); err != nil {
		t.Fatal(err)
	}
	if keep := s.retained()(tab.no); len(keep.pins) != 0 {
		t.Fatalf("a merge under the new capture keeps %+v", keep)
	}
}

// TestFill_RacesWithWritesTheCleanerAndCheckpoints fills every block of a mark while
// a guest overwrites every other one at the head.
func TestFill_RacesWithWritesTheCleanerAndCheckpoints(t *testing.T) {
	d, index := crashdisk.New(crashdisk.Options{Seed: 1}), &memoryIndex{}
	s := openTest(t, d, index)
	defer s.Close()
	const blocks = 2048
	tab := mustCreate(t, s, CreateOptions{ID: testID(1), SizeBytes: blocks * scstore.BlockSize})
	if err := tab.MarkRemote([]scstore.Extent{{Count: blocks}}, testTag(1)); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var filled, cleaned, served atomic.Uint64
	var busy atomic.Int64
	work := func(fn func(rng *rand.Rand) error) {
		busy.Add(1)
		wg.Go(func() {
			defer busy.Add(-1)
			if err := fn(rand.New(rand.NewPCG(uint64(busy.Load()), 1))); err != nil {
				t.Error(err)
			}
		})
	}
	work(func(rng *rand.Rand) error { // the guest
		p := make([]byte, scstore.BlockSize)
		for _, b := range rng.Perm(blocks / 2) {
			fillBlock(p, uint64(2*b), 2)
			if err := tab.WriteBlocks(scstore.BlockIndex(2*b), p); err != nil {
				return err
			}
		}
		return nil
	})
	for range 2 { // fetchers, who fetch much twice
		work(func(rng *rand.Rand) error {
			p := make([]byte, 8*scstore.BlockSize)
			for _, b := range rng.Perm(blocks / 8) {
				for i := range uint64(8) {
					fillBlock(p[i*scstore.BlockSize:(i+1)*scstore.BlockSize], uint64(8*b)+i, 1)
				}
				n, err := tab.Fill(testTag(1), scstore.BlockIndex(8*b), p)
				if err != nil {
					return err
				}
				filled.Add(n)
			}
			return nil
		})
	}
	var others sync.WaitGroup
	others.Go(func() {
		for busy.Load() > 0 {
			cleanAll(t, s)
			cleaned.Add(1)
		}
	})
	others.Go(func() { // a reader never sees anything but missing, 1 or 2
		rng := rand.New(rand.NewPCG(9, 9))
		p := make([]byte, scstore.BlockSize)
		for busy.Load() > 0 {
			b := rng.Uint64N(blocks)
			gaps, _, err := tab.ReadBlocks(scstore.BlockIndex(b), p, nil, false)
			got := binary.BigEndian.Uint64(p[8:])
			if err != nil || len(gaps) == 0 && (binary.BigEndian.Uint64(p) != b || got != 1 && got != 2) {
				t.Errorf("block %d reads %d, %v", b, got, err)
				return
			}
			served.Add(1)
		}
	})
	wg.Wait()
	others.Wait()
	if filled.Load() != blocks || cleaned.Load() == 0 || served.Load() == 0 {
		t.Fatalf("%d of %d blocks were filled, %d times cleaned, %d reads", filled.Load(), blocks, cleaned.Load(), served.Load())
	}
	if n := tab.RemoteBlocks(); n != 0 {
		t.Fatalf("%d remote blocks are left", n)
	}
	want := make([]byte, blocks*scstore.BlockSize)
	for b := range uint64(blocks) {
		fillBlock(want[b*scstore.BlockSize:(b+1)*scstore.BlockSize], b, 1)
	}
	wantContentAt(t, tab, testTag(1), want)
	for b := range uint64(blocks) {
		wantVersion(t, tab, b, 2-b%2)
	}
}
