package block

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"strings"
	"syscall"
	"testing"
	"time"

	"scstore"
	"scstore/fs/block/disk/crashdisk"
)

// eventually tries until fn holds; the store's own goroutines need a moment.
func eventually(t *testing.T, what string, fn func() bool) {
	t.Helper()
	for range 1000 {
		if fn() {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatalf("%s: not within 5 s", what)
}

func TestSpace_FullDiskRefusesWritesUntilSpaceIsFreed(t *testing.T) {
	d, index := crashdisk.New(crashdisk.Options{Seed: 1, CapacityBytes: 24 << 20}), &memoryIndex{}
	s := openTest(t, d, index)
	const blocks = 8192 // 32 MiB on a disk of 24
	tab := mustCreate(t, s, CreateOptions{ID: testID(1), SizeBytes: blocks * scstore.BlockSize})
	other := mustCreate(t, s, CreateOptions{ID: testID(2), SizeBytes: 64 * scstore.BlockSize})
	written := uint64(0)
	p := make([]byte, scstore.BlockSize)
	var full error
	for b := range uint64(blocks) {
		fillBlock(p, b, b+1)
		if full = tab.WriteBlocks(scstore.BlockIndex(b), p); full != nil {
			break
		}
		written++
	}
	if !errors.Is(full, scstore.ErrNoSpace) {
		t.Fatalf("writing 32 MiB to a disk of 24: got %v, want ErrNoSpace", full)
	}
	if written < 2000 {
		t.Fatalf("only %d blocks fitted on a disk of 24 MiB", written)
	}
	if err := s.Sync(); err != nil {
		t.Fatalf("flush on a full disk: %v", err)
	}
	for b := range written {
		wantVersion(t, tab, b, b+1)
	}
	if err := s.Checkpoint(); err != nil {
		t.Fatalf("checkpoint on a full disk: %v", err)
	}
	// The guest discards half: the cleaner makes room of it, without a restart.
	if err := tab.ZeroBlocks(scstore.Extent{Count: written / 2}, true); err != nil {
		t.Fatalf("discard on a full disk: %v", err)
	}
	eventually(t, "writes after a discard", func() bool {
		fillBlock(p, 3, 7)
		err := other.WriteBlocks(3, p)
		if err != nil && !errors.Is(err, scstore.ErrNoSpace) {
			t.Fatal(err)
		}
		return err == nil
	})
	wantVersion(t, other, 3, 7)
	wantVersion(t, tab, written-1, written)
	wantVersion(t, tab, 0, 0)
	// Deleting the volume frees the rest.
	if err := s.Delete(testID(1)); err != nil {
		t.Fatal(err)
	}
	third := mustCreateSoon(t, s, CreateOptions{ID: testID(3), SizeBytes: 1500 * scstore.BlockSize})
	for b := range uint64(1500) {
		fillBlock(p, b, b+9)
		eventually(t, "write after a delete", func() bool { return third.WriteBlocks(scstore.BlockIndex(b), p) == nil })
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openTest(t, d, index)
	defer s.Close()
	third, err := s.Table(testID(3))
	if err != nil {
		t.Fatal(err)
	}
	for b := range uint64(1500) {
		wantVersion(t, third, b, b+9)
	}
}

func mustCreateSoon(t *testing.T, s *Store, o CreateOptions) (tab *Table) {
	t.Helper()
	eventually(t, "create", func() bool {
		var err error
		tab, err = s.Create(o)
		return err == nil
	})
	return tab
}

func TestSpace_OverwritingForEverNeedsNoMoreThanTheVolume(t *testing.T) {
	d, index := crashdisk.New(crashdisk.Options{Seed: 1, CapacityBytes: 24 << 20}), &memoryIndex{}
	s := openTest(t, d, index)
	defer s.Close()
	tab := mustCreate(t, s, CreateOptions{ID: testID(1), SizeBytes: 1024 * scstore.BlockSize})
	p := make([]byte, 16*scstore.BlockSize)
	for v := range uint64(60) { // 240 MiB into 4 MiB
		for b := uint64(0); b < 1024; b += 16 {
			for i := range uint64(16) {
				fillBlock(p[i*scstore.BlockSize:(i+1)*scstore.BlockSize], b+i, v+1)
			}
			eventually(t, "overwrite", func() bool {
				err := tab.WriteBlocks(scstore.BlockIndex(b), p)
				if err != nil && !errors.Is(err, scstore.ErrNoSpace) {
					t.Fatal(err)
				}
				return err == nil
			})
		}
	}
	for b := range uint64(1024) {
		wantVersion(t, tab, b, 60)
	}
}

func TestPoison_AFailedSyncIsNeverTakenBack(t *testing.T) {
	d, index := crashdisk.New(crashdisk.Options{Seed: 1}), &memoryIndex{}
	s := openTest(t, d, index)
	tab := mustCreate(t, s, CreateOptions{ID: testID(1), SizeBytes: 64 * scstore.BlockSize})
	writeVersion(t, tab, 1, 1)
	if err := s.Sync(); err != nil {
		t.Fatal(err)
	}
	writeVersion(t, tab, 2, 2)
	active := s.log.seg.name
	d.Fail(func(op crashdisk.Op) error {
		if op.Kind == crashdisk.Sync && op.Name == active {
			return syscall.EIO
		}
		return nil
	})
	if err := s.Sync(); !errors.Is(err, scstore.ErrPoisoned) {
		t.Fatalf("flush over a failing device: got %v, want ErrPoisoned", err)
	}
	d.Fail(nil) // the device is well again; what was lost stays lost
	if err := s.Sync(); !errors.Is(err, scstore.ErrPoisoned) {
		t.Fatalf("second flush: got %v, want ErrPoisoned", err)
	}
	if err := tab.WriteBlocks(3, make([]byte, scstore.BlockSize)); !errors.Is(err, scstore.ErrPoisoned) {
		t.Fatalf("write: got %v, want ErrPoisoned", err)
	}
	if err := s.Checkpoint(); !errors.Is(err, scstore.ErrPoisoned) {
		t.Fatalf("checkpoint: got %v, want ErrPoisoned", err)
	}
	wantVersion(t, tab, 1, 1) // what was flushed is still served
	s.abandon()
	_, tab = reopen(t, d.Kill(), index)
	wantVersion(t, tab, 1, 1)
}

// TestPoison_ARestartShowsWhatTheDeviceHas has a sync fail, the process die and the
// device work again: whatever the next process shows and flushes, a power loss
// afterwards must not take back.
func TestPoison_ARestartShowsWhatTheDeviceHas(t *testing.T) {
	const blocks = 40
	for seed := range uint64(60) {
		d, index := crashdisk.New(crashdisk.Options{Seed: seed}), &memoryIndex{}
		s := openTest(t, d, index)
		tab := mustCreate(t, s, CreateOptions{ID: testID(1), SizeBytes: blocks * scstore.BlockSize})
		for b := range uint64(blocks) {
			writeVersion(t, tab, b, 1)
		}
		if err := s.Sync(); err != nil {
			t.Fatal(err)
		}
		for b := range uint64(blocks) {
			writeVersion(t, tab, b, 2)
			if b%8 == 7 {
				s.logMu.Lock()
				err := s.log.closeGroup()
				s.logMu.Unlock()
				if err != nil {
					t.Fatal(err)
				}
			}
		}
		d.Fail(func(op crashdisk.Op) error {
			if op.Kind == crashdisk.Sync {
				return syscall.EIO
			}
			return nil
		})
		if err := s.Sync(); !errors.Is(err, scstore.ErrPoisoned) {
			t.Fatalf("flush over a failing device: got %v, want ErrPoisoned", err)
		}
		d.Fail(nil)
		s.abandon()
		d = d.Kill()
		s, tab = reopen(t, d, index)
		var shown [blocks]uint64
		for b := range uint64(blocks) {
			shown[b] = versionOf(t, tab, b)
		}
		if err := s.Sync(); err != nil {
			t.Fatal(err)
		}
		s.abandon()
		_, tab = reopen(t, d.Crash(rand.New(rand.NewPCG(seed, 1))), index)
		for b, v := range shown {
			wantVersion(t, tab, uint64(b), v)
		}
	}
}

// TestOpen_OrderOfFileOperations is the order in which a new store reaches the
// disk: a sync that goes missing shows here.
func TestOpen_OrderOfFileOperations(t *testing.T) {
	d := crashdisk.New(crashdisk.Options{Seed: 1})
	d.Trace()
	if _, err := openSuperblock(d, scstore.StoreID{}, testSlots); err != nil {
		t.Fatal(err)
	}
	want := []string{"remove store.new failed", "create store.new", "write store.new 0 4096", "sync store.new", "rename store.new store", "syncdir"}
	if got := d.TakeTrace(); !bytes.Equal([]byte(strings.Join(got, "\n")), []byte(strings.Join(want, "\n"))) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestSpace_ScatteredBlocksFillTheDiskAndNoMore(t *testing.T) {
	d, index := crashdisk.New(crashdisk.Options{Seed: 1, CapacityBytes: 48 << 20}), &memoryIndex{}
	s := openTest(t, d, index)
	defer s.Close()
	tab := mustCreate(t, s, CreateOptions{ID: testID(1), SizeBytes: 1 << 30})
	p := make([]byte, scstore.BlockSize)
	n := uint64(0)
	for ; ; n++ {
		fillBlock(p, 2*n, n+1)
		err := tab.WriteBlocks(scstore.BlockIndex(2*n), p)
		if errors.Is(err, scstore.ErrNoSpace) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if n < 5000 {
		t.Fatalf("full after %d blocks", n)
	}
	for b := range n {
		wantVersion(t, tab, 2*b, b+1)
	}
}
