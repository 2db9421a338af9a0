package block

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"scstore"
	"scstore/fs/block/disk/crashdisk"
)

// group locates the n-th group of the log from the end of the newest segment that
// the store wrote to.
func lastGroups(t *testing.T, s *Store) (g *segment, headers []groupHeader) {
	t.Helper()
	s.logMu.Lock()
	defer s.logMu.Unlock()
	g = s.log.seg
	page := make([]byte, scstore.BlockSize)
	for at := 1; at < g.next; {
		h, _, err := g.readHeader(s.id, page, at)
		if err != nil {
			t.Fatal(err)
		}
		h.body = slices.Clone(h.body)
		headers = append(headers, h)
		at += 1 + h.dataSlots
	}
	return g, headers
}

// rot flips a bit in both copies of a group's header.
func rot(t *testing.T, d *crashdisk.Disk, g *segment, h groupHeader) {
	t.Helper()
	for _, off := range []int64{70, groupCopySize + 70} {
		if err := d.FlipBit(g.name, int64(h.slot)*scstore.BlockSize+off, 3); err != nil {
			t.Fatal(err)
		}
	}
}

func writeVersion(t *testing.T, tab *Table, block, version uint64) {
	t.Helper()
	p := make([]byte, scstore.BlockSize)
	fillBlock(p, block, version)
	if err := tab.WriteBlocks(scstore.BlockIndex(block), p); err != nil {
		t.Fatal(err)
	}
}

// versionOf reads which version of a block is served.
func versionOf(t *testing.T, tab *Table, block uint64) uint64 {
	t.Helper()
	p := make([]byte, scstore.BlockSize)
	if _, _, err := tab.ReadBlocks(scstore.BlockIndex(block), p, nil, false); err != nil {
		t.Fatalf("block %d: %v", block, err)
	}
	return binary.BigEndian.Uint64(p[8:])
}

func wantVersion(t *testing.T, tab *Table, block, version uint64) {
	t.Helper()
	p, want := make([]byte, scstore.BlockSize), make([]byte, scstore.BlockSize)
	if version > 0 {
		fillBlock(want, block, version)
	}
	gaps, _, err := tab.ReadBlocks(scstore.BlockIndex(block), p, nil, false)
	if err != nil {
		t.Fatalf("block %d: %v", block, err)
	}
	if len(gaps) > 0 {
		clear(p)
	}
	if !bytes.Equal(p, want) {
		t.Fatalf("block %d: got version %d, want %d", block, p[15], version)
	}
}

func reopen(t *testing.T, d *crashdisk.Disk, index *memoryIndex) (*Store, *Table) {
	t.Helper()
	s := openTest(t, d, index)
	t.Cleanup(s.abandon)
	tab, err := s.Table(testID(1))
	if err != nil {
		t.Fatal(err)
	}
	return s, tab
}

func TestCrash_TornMiddleBatchTwice(t *testing.T) {
	d, index := crashdisk.New(crashdisk.Options{Seed: 1}), &memoryIndex{}
	s := openTest(t, d, index)
	tab := mustCreate(t, s, CreateOptions{ID: testID(1), SizeBytes: 64 * scstore.BlockSize})
	writeVersion(t, tab, 1, 1) // B1, flushed
	if err := s.Sync(); err != nil {
		t.Fatal(err)
	}
	writeVersion(t, tab, 2, 2) // B2, which will be torn
	s.logMu.Lock()
	err := s.log.closeGroup()
	s.logMu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	writeVersion(t, tab, 3, 3) // B3, whole on disk all the same
	if err := s.Publish(); err != nil {
		t.Fatal(err)
	}
	g, headers := lastGroups(t, s)
	s.abandon()
	d = d.Kill()
	rot(t, d, g, headers[len(headers)-2])

	s, tab = reopen(t, d, index)
	wantVersion(t, tab, 1, 1)
	wantVersion(t, tab, 2, 0)
	wantVersion(t, tab, 3, 0)
	writeVersion(t, tab, 2, 4) // B2 again, in the next life
	if err := s.Publish(); err != nil {
		t.Fatal(err)
	}
	s.abandon()
	_, tab = reopen(t, d.Kill(), index)
	wantVersion(t, tab, 1, 1)
	wantVersion(t, tab, 2, 4)
	wantVersion(t, tab, 3, 0) // the old B3 must not follow the new B2
}

// TestCrash_OldLogIsNotFollowed has a segment of the lost end of the log come back
// after the next life wrote its own: what a crash leaves of an unsynced recycling.
// Without the check of incarnation and chain, its group would follow.
func TestCrash_OldLogIsNotFollowed(t *testing.T) {
	for plant, want := range map[planted]uint64{plantNothing: 0, plantIgnoreIncarnation: 3} {
		d, index := crashdisk.New(crashdisk.Options{Seed: 1}), &memoryIndex{}
		s := openTest(t, d, index)
		tab := mustCreate(t, s, CreateOptions{ID: testID(1), SizeBytes: 64 * scstore.BlockSize})
		if err := s.Sync(); err != nil {
			t.Fatal(err)
		}
		writeVersion(t, tab, 2, 2) // B2, which will be torn
		s.logMu.Lock()
		if err := s.log.leave(); err != nil {
			t.Fatal(err)
		}
		s.logMu.Unlock()
		writeVersion(t, tab, 3, 3) // B3, the first group of the next segment
		if err := s.Publish(); err != nil {
			t.Fatal(err)
		}
		b3 := s.log.seg
		b2 := s.segment(b3.id - 1)
		for id := b3.id - 1; b2 == nil || b2.stream != streamLog; id-- {
			b2 = s.segment(id)
		}
		old := make([]byte, testSlots*scstore.BlockSize)
		if err := readFull(b3.file, old, 0); err != nil {
			t.Fatal(err)
		}
		page := make([]byte, scstore.BlockSize)
		last := groupHeader{}
		for at := 1; at < b2.next; at += 1 + last.dataSlots {
			var err error
			if last, _, err = b2.readHeader(s.id, page, at); err != nil {
				t.Fatal(err)
			}
		}
		s.abandon()
		d = d.Kill()
		rot(t, d, b2, last)
		s, tab = reopen(t, d, index)
		wantVersion(t, tab, 3, 0)
		writeVersion(t, tab, 2, 4) // B2 again
		if err := s.Sync(); err != nil {
			t.Fatal(err)
		}
		s.abandon()
		d = d.Kill()
		if err := d.Remove(b3.name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		f, err := d.Create(b3.name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt(old, 0); err != nil {
			t.Fatal(err)
		}
		s, err = Open(t.Context(), Options{FS: d, ReserveBytes: 1 << 20, index: index, plant: plant})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.abandon)
		if tab, err = s.Table(testID(1)); err != nil {
			t.Fatal(err)
		}
		wantVersion(t, tab, 2, 4)
		wantVersion(t, tab, 3, want)
	}
}

func TestCrash_BitFlipInSyncedBatch(t *testing.T) {
	prepare := func() (*crashdisk.Disk, *memoryIndex, *segment, []groupHeader) {
		d, index := crashdisk.New(crashdisk.Options{Seed: 1}), &memoryIndex{}
		s := openTest(t, d, index)
		tab := mustCreate(t, s, CreateOptions{ID: testID(1), SizeBytes: 64 * scstore.BlockSize})
		frozen := mustCreate(t, s, CreateOptions{ID: testID(2), SizeBytes: 64 * scstore.BlockSize})
		writeVersion(t, frozen, 5, 5)
		if err := frozen.Freeze(); err != nil {
			t.Fatal(err)
		}
		for b := uint64(1); b < 4; b++ {
			writeVersion(t, tab, b, b)
			if err := s.Sync(); err != nil {
				t.Fatal(err)
			}
		}
		g, headers := lastGroups(t, s)
		s.abandon()
		return d.Kill(), index, g, headers
	}
	t.Run("data", func(t *testing.T) {
		d, index, g, headers := prepare()
		h := headers[len(headers)-2]
		if err := d.FlipBit(g.name, int64(h.slot+1)*scstore.BlockSize+100, 0); err != nil {
			t.Fatal(err)
		}
		s, tab := reopen(t, d, index)
		wantVersion(t, tab, 1, 1)
		wantVersion(t, tab, 3, 3)
		p := make([]byte, scstore.BlockSize)
		if _, _, err := tab.ReadBlocks(2, p, nil, false); !errors.Is(err, scstore.ErrCorrupt) {
			t.Fatalf("read of the rotten block: got %v, want ErrCorrupt", err)
		}
		if n := len(s.Damage()); n != 1 {
			t.Fatalf("damage: %+v", s.Damage())
		}
	})
	t.Run("one copy of the header", func(t *testing.T) {
		d, index, g, headers := prepare()
		if err := d.FlipBit(g.name, int64(headers[len(headers)-2].slot)*scstore.BlockSize+70, 0); err != nil {
			t.Fatal(err)
		}
		s, tab := reopen(t, d, index)
		for b := uint64(1); b < 4; b++ {
			wantVersion(t, tab, b, b)
		}
		if dm := s.Damage(); len(dm) != 1 || !dm[0].Healed {
			t.Fatalf("damage: %+v", dm)
		}
	})
	t.Run("both copies of the header", func(t *testing.T) {
		d, index, g, headers := prepare()
		rot(t, d, g, headers[len(headers)-2])
		s, tab := reopen(t, d, index)
		p := make([]byte, scstore.BlockSize)
		if _, _, err := tab.ReadBlocks(1, p, nil, false); !errors.Is(err, scstore.ErrCorrupt) {
			t.Fatalf("read of a volume that may have lost writes: got %v, want ErrCorrupt", err)
		}
		if err := tab.WriteBlocks(1, p); !errors.Is(err, scstore.ErrCorrupt) {
			t.Fatalf("write to it: got %v, want ErrCorrupt", err)
		}
		if s.Recovery().LostRecords == 0 || len(s.Damage()) == 0 {
			t.Fatalf("not reported: %+v, %+v", s.Recovery(), s.Damage())
		}
		frozen, err := s.Table(testID(2))
		if err != nil {
			t.Fatal(err)
		}
		wantVersion(t, frozen, 5, 5) // nothing of it can be in what was lost
	})
}

func TestCrash_ReplayIntoRecycledSegment(t *testing.T) {
	d, index := crashdisk.New(crashdisk.Options{Seed: 1}), &memoryIndex{}
	s := openTest(t, d, index)
	tab := mustCreate(t, s, CreateOptions{ID: testID(1), SizeBytes: 64 * scstore.BlockSize})
	fresh := s.pool.peekID()
	for v := uint64(1); ; v++ {
		for b := range uint64(64) {
			writeVersion(t, tab, b, v)
		}
		if v%8 == 0 {
			cleanAll(t, s)
		}
		// A file that is in use under a far higher id than files exist was recycled.
		if s.log.seg.id > fresh+20 && s.log.seg.next > 40 && s.log.seg.next < testSlots/2 {
			if err := s.Sync(); err != nil {
				t.Fatal(err)
			}
			writeVersion(t, tab, 7, v+100)
			if err := s.Publish(); err != nil {
				t.Fatal(err)
			}
			names, err := d.List()
			if err != nil || uint64(len(names)) > s.log.seg.id {
				t.Fatalf("%d files, newest segment %d: nothing was recycled (%v)", len(names), s.log.seg.id, err)
			}
			s.abandon()
			_, tab = reopen(t, d.Kill(), index)
			for b := range uint64(64) {
				if b == 7 {
					wantVersion(t, tab, b, v+100)
					continue
				}
				wantVersion(t, tab, b, v)
			}
			return
		}
		if v > 1000 {
			t.Fatal("no segment was recycled in 1000 rounds")
		}
	}
}

func TestCrash_BetweenCheckpointAndRecycle(t *testing.T) {
	d, index := crashdisk.New(crashdisk.Options{Seed: 1}), &syncedIndex{}
	s, err := Open(t.Context(), Options{FS: d, SegmentSlots: testSlots, ReserveBytes: 1 << 20, index: index})
	if err != nil {
		t.Fatal(err)
	}
	tab := mustCreate(t, s, CreateOptions{ID: testID(1), SizeBytes: 64 * scstore.BlockSize})
	rng := rand.New(rand.NewPCG(1, 1))
	var points []crashPoint
	d.Fail(func(op crashdisk.Op) error { // a rename is a recycling
		if op.Kind == crashdisk.Rename && len(points) < 20 {
			points = append(points, crashPoint{d: d.Crash(rng), index: index.copy()})
		}
		return nil
	})
	for v := uint64(1); v <= 64; v++ {
		for b := range uint64(64) {
			writeVersion(t, tab, b, v)
		}
		if err := s.Sync(); err != nil {
			t.Fatal(err)
		}
		if v%8 == 0 {
			cleanAll(t, s)
		}
	}
	d.Fail(nil)
	s.abandon()
	if len(points) == 0 {
		t.Fatal("nothing was recycled")
	}
	for i, p := range points {
		s, err := Open(t.Context(), Options{FS: p.d, SegmentSlots: testSlots, ReserveBytes: 1 << 20, index: p.index})
		if err != nil {
			t.Fatalf("point %d: %v", i, err)
		}
		tab, err := s.Table(testID(1))
		if err != nil {
			t.Fatal(err)
		}
		content := readAll(t, tab)
		low, high := ^byte(0), byte(0)
		for b := range 64 {
			low, high = min(low, content[b*scstore.BlockSize+15]), max(high, content[b*scstore.BlockSize+15])
		}
		if low == 0 || high-low > 1 {
			t.Fatalf("point %d: versions %d to %d", i, low, high)
		}
		s.abandon()
	}
}

// TestDamage_FlippedBitsAreNeverServed flips bits all over a store's files, one at
// a time, and reads everything back: what is not reported must be right.
func TestDamage_FlippedBitsAreNeverServed(t *testing.T) {
	d, dir := crashdisk.New(crashdisk.Options{Seed: 1}), t.TempDir()
	s, err := Open(t.Context(), Options{FS: d, IndexDir: dir, SegmentSlots: testSlots, ReserveBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	const blocks = 700
	tab := mustCreate(t, s, CreateOptions{ID: testID(1), SizeBytes: blocks * scstore.BlockSize})
	rng := rand.New(rand.NewPCG(11, 12))
	want := map[uint64]uint64{}
	for v := uint64(1); v < 2500; v++ {
		b := rng.Uint64N(blocks)
		writeVersion(t, tab, b, v)
		want[b] = v
		if v%400 == 0 {
			if err := s.Checkpoint(); err != nil {
				t.Fatal(err)
			}
		}
		if v%50 == 0 {
			if err := s.Sync(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := s.Sync(); err != nil {
		t.Fatal(err)
	}
	// Rot in what no checkpoint has taken over yet and in what one has: the store
	// dies here with both.
	type target struct {
		name  string
		slots int
	}
	var targets []target
	s.logMu.Lock()
	s.mapMu.RLock()
	for _, g := range s.segments {
		targets = append(targets, target{g.name, g.slots})
	}
	s.mapMu.RUnlock()
	s.logMu.Unlock()
	slices.SortFunc(targets, func(a, b target) int { return bytes.Compare([]byte(a.name), []byte(b.name)) })
	pointer, err := s.index.root()
	if err != nil {
		t.Fatal(err)
	}
	s.abandon()
	_ = s.index.close()
	base := d.Kill()

	flips, silent, healed, refused, failed, cut := 600, 0, 0, 0, 0, 0
	for i := range flips {
		d := base.Kill()
		g := targets[rng.IntN(len(targets))]
		off := rng.Int64N(int64(g.slots) * scstore.BlockSize)
		if err := d.FlipBit(g.name, off, uint(rng.IntN(8))); err != nil {
			t.Fatal(err)
		}
		where := fmt.Sprintf("flip %d, %s at %d", i, g.name, off)
		s, err := Open(t.Context(), Options{FS: d, SegmentSlots: testSlots, ReserveBytes: 1 << 20, index: &memoryIndex{&pointer}})
		if err != nil {
			if !errors.Is(err, scstore.ErrCorrupt) {
				t.Fatalf("%s: open: %v", where, err)
			}
			refused++
			continue
		}
		tab, err := s.Table(testID(1))
		if err != nil {
			t.Fatalf("%s: %v", where, err)
		}
		bad := 0
		p, exp := make([]byte, scstore.BlockSize), make([]byte, scstore.BlockSize)
		for b := range uint64(blocks) {
			gaps, _, err := tab.ReadBlocks(scstore.BlockIndex(b), p, nil, false)
			if err != nil {
				if !errors.Is(err, scstore.ErrCorrupt) {
					t.Fatalf("%s: block %d: %v", where, b, err)
				}
				bad++
				continue
			}
			clear(exp)
			if want[b] > 0 {
				fillBlock(exp, b, want[b])
			}
			if len(gaps) > 0 {
				clear(p)
			}
			// The last flush has no later witness that it was one: rot in it looks
			// like a torn end, and is reported as a cut.
			if !bytes.Equal(p, exp) && s.Recovery().CutRecords == 0 {
				t.Fatalf("%s: block %d was served wrong", where, b)
			}
		}
		switch {
		case bad > 0 && len(s.Damage()) == 0:
			t.Fatalf("%s: %d blocks fail and nothing is reported", where, bad)
		case bad > 0:
			failed++
		case s.Recovery().CutRecords > 0:
			cut++
		case len(s.Damage()) > 0:
			healed++
		default:
			silent++ // the bit is in nothing that is read: overwritten or unused slots
		}
		s.abandon()
	}
	t.Logf("%d flips: %d reported as EIO, %d healed, %d refused at open, %d taken for a torn end, %d in bytes that nothing names", flips, failed, healed, refused, cut, silent)
	if failed == 0 || healed == 0 {
		t.Fatal("the flips missed what matters")
	}
}

// TestDamage_IndexIsRebuiltFromSegments ruins badger's files.
func TestDamage_IndexIsRebuiltFromSegments(t *testing.T) {
	d, dir := crashdisk.New(crashdisk.Options{Seed: 1}), t.TempDir()
	open := func(rebuild bool) (*Store, error) {
		return Open(t.Context(), Options{FS: d, IndexDir: filepath.Join(dir, "index"), SegmentSlots: testSlots, ReserveBytes: 1 << 20, Rebuild: rebuild})
	}
	s, err := open(false)
	if err != nil {
		t.Fatal(err)
	}
	tab := mustCreate(t, s, CreateOptions{ID: testID(1), SizeBytes: 300 * scstore.BlockSize})
	for b := range uint64(300) {
		writeVersion(t, tab, b, b+1)
	}
	want := readAll(t, tab)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(2, 2))
	files, err := filepath.Glob(filepath.Join(dir, "index", "*"))
	if err != nil || len(files) == 0 {
		t.Fatalf("index files: %v, %v", files, err)
	}
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for range 1 + len(b)/64 {
			if len(b) > 0 {
				b[rng.IntN(len(b))] ^= 1 << rng.IntN(8)
			}
		}
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err = open(false); err == nil {
		t.Fatal("a ruined index was opened without a word")
	}
	var hint *scstore.HintError
	if !errors.Is(err, scstore.ErrCorrupt) || !errors.As(err, &hint) {
		t.Fatalf("open with a ruined index: got %v, want ErrCorrupt with a hint", err)
	}
	if s, err = open(true); err != nil {
		t.Fatal(err)
	}
	if tab, err = s.Table(testID(1)); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(readAll(t, tab), want) {
		t.Fatal("content differs after the rebuild")
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}
