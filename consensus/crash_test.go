package consensus_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"syscall"
	"testing"

	"scstore"
	"scstore/consensus"
	"scstore/fs/block/disk"
	"scstore/fs/block/disk/crashdisk"
)

// written returns the files after n commands, and where in the journal each ends.
func written(t *testing.T, n int) (state, journal []byte, ends []int) {
	t.Helper()
	d := crashdisk.New(crashdisk.Options{})
	l := mustOpen(t, d)
	end := frameBytes
	ends = append(ends, end)
	for i := range n {
		propose(t, l, create(i))
		journal = readFile(t, d, "journal")
		for slices.ContainsFunc(journal[end:end+frameBytes], func(b byte) bool { return b != 0 }) {
			end += frameBytes
		}
		ends = append(ends, end)
	}
	return readFile(t, d, "state"), journal, ends
}

func TestCrash_JournalCutAtEveryByte(t *testing.T) {
	const commands = 6
	state, journal, ends := written(t, commands)
	want := prefixes(commands)
	for cut := range ends[commands] + frameBytes {
		d := diskWith(t, map[string][]byte{"state": state, "journal": journal[:cut]})
		l, err := openOn(t, d)
		if cut < frameBytes {
			if !errors.Is(err, scstore.ErrCorrupt) {
				t.Fatalf("cut at %d, within the header: %v, want ErrCorrupt", cut, err)
			}
			continue
		}
		if err != nil {
			t.Fatalf("cut at %d: %v", cut, err)
		}
		whole := 0
		for whole < commands && ends[whole+1] <= cut {
			whole++
		}
		if bytesOf(l) != want[whole] {
			t.Fatalf("cut at %d: not the state after %d commands", cut, whole)
		}
		// It goes on from there, and keeps what it writes.
		for i := whole; i < commands; i++ {
			propose(t, l, create(i))
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		if got := bytesOf(mustOpen(t, d)); got != want[commands] {
			t.Fatalf("cut at %d: another state after going on", cut)
		}
	}
}

func TestCrash_AnyFlippedBitIsAnErrorNeverAnotherState(t *testing.T) {
	const commands = 6
	state, journal, ends := written(t, commands)
	rng := rand.New(rand.NewPCG(1, 2))
	flip := func(name string, length int) {
		for off := range length {
			files := map[string][]byte{"state": slices.Clone(state), "journal": slices.Clone(journal)}
			files[name][off] ^= 1 << rng.IntN(8)
			_, err := openOn(t, diskWith(t, files))
			if !errors.Is(err, scstore.ErrCorrupt) || !strings.Contains(err.Error(), `"`+name+`": byte `) {
				t.Fatalf("byte %d of %s flipped: %v, want ErrCorrupt with file and offset", off, name, err)
			}
		}
	}
	flip("journal", ends[commands]+2*frameBytes)
	flip("state", len(state))
}

func TestCrash_ALostSectorInTheMiddleIsAnError(t *testing.T) {
	const commands = 6
	state, journal, ends := written(t, commands)
	for off := frameBytes; off < ends[commands-1]; off += frameBytes {
		damaged := slices.Clone(journal)
		clear(damaged[off : off+frameBytes])
		_, err := openOn(t, diskWith(t, map[string][]byte{"state": state, "journal": damaged}))
		if !errors.Is(err, scstore.ErrCorrupt) {
			t.Errorf("sector at %d zeroed: %v, want ErrCorrupt", off, err)
		}
	}
}

func TestCrash_AFullSnapshotWithOneFlippedBit(t *testing.T) {
	d := crashdisk.New(crashdisk.Options{})
	l, err := consensus.OpenLocal(t.Context(), "x", consensus.Options{StoreID: store, FS: d, CompactBytes: 2 * frameBytes})
	if err != nil {
		t.Fatal(err)
	}
	for n := range 4 {
		propose(t, l, create(n))
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	state, journal := readFile(t, d, "state"), readFile(t, d, "journal")
	if _, err := openOn(t, diskWith(t, map[string][]byte{"state": state})); !errors.Is(err, scstore.ErrCorrupt) {
		t.Errorf("without its journal: %v, want ErrCorrupt", err)
	}
	for off := range state {
		damaged := slices.Clone(state)
		damaged[off] ^= 0x10
		if _, err := openOn(t, diskWith(t, map[string][]byte{"state": damaged, "journal": journal})); !errors.Is(err, scstore.ErrCorrupt) {
			t.Fatalf("byte %d: %v, want ErrCorrupt", off, err)
		}
	}
}

// TestCrash_AtEveryOperation crashes a run before each of its file operations,
// several ways each, then goes on and crashes again. What was answered is there;
// what was not is there as a whole, in order, or not at all.
func TestCrash_AtEveryOperation(t *testing.T) {
	const commands = 24
	rng := rand.New(rand.NewPCG(7, 7))
	want := prefixes(commands)
	crashes := 0
	var runAndCrash func(d *crashdisk.Disk, answered, depth int)
	check := func(d *crashdisk.Disk, answered, depth int) {
		crashes++
		l, err := openSmall(t, d)
		if err != nil {
			t.Fatalf("crash after %d answers: %v", answered, err)
		}
		found := slices.Index(want, bytesOf(l))
		if found < answered || found > answered+1 {
			t.Fatalf("crash after %d answers: the state after %d commands", answered, found)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		if depth > 0 {
			runAndCrash(d, found, depth-1)
		}
	}
	runAndCrash = func(d *crashdisk.Disk, answered, depth int) {
		ways := 1 + 3*depth
		next := max(1, rng.IntN(12))
		inHook := false
		d.Fail(func(crashdisk.Op) error {
			next--
			if inHook || depth == 0 && next != 0 { // the second run crashes once, somewhere
				return nil
			}
			inHook = true
			for range ways {
				check(d.Crash(rng), answered, depth)
			}
			inHook = false
			return nil
		})
		l, err := openSmall(t, d)
		if err != nil {
			t.Fatal(err)
		}
		for n := answered; n < commands; n++ {
			propose(t, l, create(n))
			answered++
		}
		d.Fail(nil)
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	runAndCrash(crashdisk.New(crashdisk.Options{Seed: 3}), 0, 1)
	if crashes < 500 {
		t.Errorf("only %d crashes were tried", crashes)
	}
}

func openSmall(t testing.TB, fs disk.FS) (*consensus.Local, error) {
	t.Helper()
	return consensus.OpenLocal(t.Context(), "x", consensus.Options{StoreID: store, FS: fs, CompactBytes: 8 * frameBytes})
}

func TestFault_SyncErrorPoisonsUntilRestart(t *testing.T) {
	rng := rand.New(rand.NewPCG(4, 4))
	want := prefixes(3)
	for range 50 {
		d := crashdisk.New(crashdisk.Options{Seed: rng.Uint64()})
		l := mustOpen(t, d)
		propose(t, l, create(0))
		d.Fail(func(op crashdisk.Op) error {
			if op.Kind == crashdisk.Sync {
				return syscall.EIO
			}
			return nil
		})
		if _, err := l.Propose(t.Context(), create(1)); !errors.Is(err, scstore.ErrPoisoned) {
			t.Fatalf("failed sync: %v, want ErrPoisoned", err)
		}
		d.Fail(nil)
		if _, err := l.Propose(t.Context(), create(2)); !errors.Is(err, scstore.ErrPoisoned) {
			t.Fatalf("after it: %v, want ErrPoisoned", err)
		}
		if bytesOf(l) != want[1] {
			t.Fatal("the view changed")
		}
		again, err := openOn(t, d.Crash(rng))
		if err != nil {
			t.Fatal(err)
		}
		if got := bytesOf(again); got != want[1] && got != want[2] {
			t.Fatal("after the restart: neither with nor without the command")
		}
	}
}

func TestFault_FullDiskAppliesNothingAndHeals(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 5))
	want := prefixes(8)
	for range 30 {
		d := crashdisk.New(crashdisk.Options{Seed: rng.Uint64()})
		l := mustOpen(t, d)
		propose(t, l, create(0))
		full := true
		d.Fail(func(op crashdisk.Op) error {
			if full && op.Kind == crashdisk.Write {
				return syscall.ENOSPC
			}
			return nil
		})
		if _, err := l.Propose(t.Context(), create(6)); !errors.Is(err, scstore.ErrNoSpace) {
			t.Fatalf("full disk: %v, want ErrNoSpace", err)
		}
		if bytesOf(l) != want[1] {
			t.Fatal("a refused command was applied")
		}
		if got := bytesOf(mustOpen(t, d.Crash(rng))); got != want[1] {
			t.Fatal("a refused command was found after a crash")
		}
		full = false
		for n := 1; n < 8; n++ {
			propose(t, l, create(n))
		}
		if got := bytesOf(mustOpen(t, d.Crash(rng))); got != want[8] {
			t.Fatal("another state once there was space again")
		}
	}
}

// TestFault_FullDiskStillTakesCommands: the journal's space is reserved, so that
// a volume can be removed to make room.
func TestFault_FullDiskStillTakesCommands(t *testing.T) {
	const capacity = 512 << 10
	d := crashdisk.New(crashdisk.Options{CapacityBytes: capacity})
	o := consensus.Options{StoreID: store, FS: d, CompactBytes: 128 << 10}
	l, err := consensus.OpenLocal(t.Context(), "x", o)
	if err != nil {
		t.Fatal(err)
	}
	hog, err := d.Create("hog")
	if err != nil {
		t.Fatal(err)
	}
	usage, err := d.Usage()
	if err != nil {
		t.Fatal(err)
	}
	if err := hog.Allocate(int64(usage.FreeBytes)); err != nil {
		t.Fatal(err)
	}
	accepted := 0
	for n := 0; ; n++ {
		_, err := l.Propose(context.Background(), create(n))
		if errors.Is(err, scstore.ErrNoSpace) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		accepted++
	}
	if accepted < 100 {
		t.Errorf("%d commands on a full disk, want at least 100", accepted)
	}
	d.SetCapacity(capacity + 1<<20)
	for n := accepted; n < accepted+400; n++ {
		propose(t, l, create(n))
	}
	want := bytesOf(l)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l, err = consensus.OpenLocal(t.Context(), "x", o)
	if err != nil {
		t.Fatal(err)
	}
	if bytesOf(l) != want {
		t.Error("another state after reopening")
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestCrash_RemainsOfATornCommandAreGoneForGood: a long command loses one of its
// sectors in a crash; a short one takes its place, and what is left of the long
// one must not follow it.
func TestCrash_RemainsOfATornCommandAreGoneForGood(t *testing.T) {
	const long = 3 // its number; several frames
	state, journal, ends := written(t, long+1)
	frames := (ends[long+1] - ends[long]) / frameBytes
	if frames < 2 {
		t.Fatalf("command %d takes %d frames, want several", long, frames)
	}
	for lost := range frames {
		torn := slices.Clone(journal)
		clear(torn[ends[long]+lost*frameBytes:][:frameBytes])
		d := diskWith(t, map[string][]byte{"state": state, "journal": torn})
		l, err := openOn(t, d)
		if err != nil {
			t.Fatal(err)
		}
		propose(t, l, create(long+1))
		want := bytesOf(l)
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		if got := bytesOf(mustOpen(t, d)); got != want {
			t.Errorf("sector %d lost: another state after going on", lost)
		}
	}
}
