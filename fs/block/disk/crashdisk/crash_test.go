package crashdisk_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"syscall"
	"testing"

	"scstore"
	"scstore/fs/block/disk"
	"scstore/fs/block/disk/crashdisk"
	"scstore/fs/block/disk/disktest"
)

const pageSize = disk.PageSize

func TestDisk_Conformance(t *testing.T) {
	disktest.Run(t, func(*testing.T) disk.FS { return crashdisk.New(crashdisk.Options{Seed: 1}) })
}

func TestDisk_ConformanceOfACrashedDisk(t *testing.T) {
	disktest.Run(t, func(*testing.T) disk.FS {
		return crashdisk.New(crashdisk.Options{ColdShare: 0.5}).Kill().Crash(rand.New(rand.NewPCG(1, 1)))
	})
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func create(t testing.TB, d *crashdisk.Disk, name string) disk.File {
	t.Helper()
	f, err := d.Create(name)
	check(t, err)
	return f
}

func write(t testing.TB, f disk.File, p []byte, off int64) {
	t.Helper()
	_, err := f.WriteAt(p, off)
	check(t, err)
}

func fill(b byte, pages int) []byte { return bytes.Repeat([]byte{b}, pages*pageSize) }

// read returns a file's content, nil if there is no such file.
func read(t testing.TB, d *crashdisk.Disk, name string) []byte {
	t.Helper()
	names, err := d.List()
	check(t, err)
	if !slices.Contains(names, name) {
		return nil
	}
	f, err := d.Open(name)
	check(t, err)
	size, err := f.Size()
	check(t, err)
	p := make([]byte, size)
	if _, err := f.ReadAt(p, 0); err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	check(t, f.Close())
	return p
}

// synced makes a disk with one synced file of n pages of 'a'.
func synced(t testing.TB, n int) (*crashdisk.Disk, disk.File) {
	t.Helper()
	d := crashdisk.New(crashdisk.Options{Seed: 9})
	f := create(t, d, "x")
	write(t, f, fill('a', n), 0)
	check(t, f.Datasync())
	check(t, d.SyncDir())
	return d, f
}

func TestCrash_LosesAndReordersWhatWasNotSynced(t *testing.T) {
	d, f := synced(t, 4)
	for _, b := range []byte("bcd") {
		write(t, f, fill(b, 4), 0)
	}
	rng := rand.New(rand.NewPCG(5, 6))
	const crashes = 4000
	states := make(map[string]int)
	torn := 0
	for range crashes {
		got := read(t, d.Crash(rng), "x")
		var state strings.Builder
		for p := range slices.Chunk(got, pageSize) {
			state.WriteByte(p[0])
			for sector := range slices.Chunk(p, 512) {
				if !bytes.Equal(sector, bytes.Repeat(sector[:1], 512)) || !strings.ContainsRune("abcd", rune(sector[0])) {
					t.Fatal("a sector holds what nobody wrote")
				}
				if sector[0] != p[0] {
					torn++
					break
				}
			}
		}
		states[state.String()]++
	}
	for _, want := range []string{"aaaa", "dddd", "addd", "ddda", "adda", "dada", "bddd", "dddc"} {
		if states[want] == 0 {
			t.Errorf("no crash left %s", want)
		}
	}
	if len(states) < 150 || torn < crashes/20 {
		t.Errorf("%d states, %d torn pages in %d crashes", len(states), torn, crashes)
	}
}

func TestCrash_KeepsWhatWasSynced(t *testing.T) {
	d, f := synced(t, 8)
	write(t, f, fill('b', 1), 3*pageSize)
	check(t, f.Datasync())
	write(t, f, fill('c', 1), 5*pageSize)
	rng := rand.New(rand.NewPCG(7, 8))
	for range 500 {
		got := read(t, d.Crash(rng), "x")
		want := append(append(fill('a', 3), fill('b', 1)...), fill('a', 4)...)
		copy(want[5*pageSize:6*pageSize], got[5*pageSize:])
		if !bytes.Equal(got, want) {
			t.Fatal("synced pages changed")
		}
	}
}

func TestCrash_LengthsAndNewFiles(t *testing.T) {
	d, f := synced(t, 1)
	write(t, f, fill('b', 1), pageSize)
	write(t, f, fill('c', 1), 2*pageSize)
	rng := rand.New(rand.NewPCG(7, 8))
	sizes, zeros := make(map[int]int), 0
	for range 500 {
		got := read(t, d.Crash(rng), "x")
		sizes[len(got)/pageSize]++
		if len(got) == 3*pageSize && bytes.Equal(got[pageSize:2*pageSize], fill(0, 1)) {
			zeros++
		}
	}
	if sizes[1] == 0 || sizes[2] == 0 || sizes[3] == 0 || len(sizes) != 3 || zeros == 0 {
		t.Errorf("lengths in pages %v, holes %d", sizes, zeros)
	}
	check(t, f.Datasync())
	check(t, f.Truncate(100))
	sizes = make(map[int]int)
	for range 200 {
		sizes[len(read(t, d.Crash(rng), "x"))]++
	}
	if sizes[100] == 0 || sizes[3*pageSize] == 0 || len(sizes) != 2 {
		t.Errorf("lengths after a truncation %v", sizes)
	}
}

// TestCrash_Names walks through all states of a file that is made under a
// temporary name, renamed over an older one, and of its names later.
func TestCrash_Names(t *testing.T) {
	d := crashdisk.New(crashdisk.Options{})
	put := func(name string, b byte) {
		f := create(t, d, name)
		write(t, f, fill(b, 1), 0)
		check(t, f.Datasync())
		check(t, f.Close())
	}
	put("final", 'o')
	check(t, d.SyncDir())
	put("tmp", 'n')
	check(t, d.Rename("tmp", "final"))
	put("tmp", '2')
	rng := rand.New(rand.NewPCG(1, 8))
	states := make(map[string]int)
	for range 1000 {
		c := d.Crash(rng)
		var state strings.Builder
		names, err := c.List()
		check(t, err)
		for _, name := range names {
			fmt.Fprintf(&state, "%s=%c ", name, read(t, c, name)[0])
		}
		states[state.String()]++
	}
	want := []string{"final=o ", "final=o tmp=n ", "final=n ", "final=n tmp=2 "}
	for _, s := range want {
		if states[s] == 0 {
			t.Errorf("no crash left %s", s)
		}
	}
	if len(states) != len(want) {
		t.Errorf("states %v, want %q", states, want)
	}
	check(t, d.SyncDir())
	check(t, d.Remove("tmp"))
	there := 0
	for range 200 {
		if read(t, d.Crash(rng), "tmp") != nil {
			there++
		}
	}
	if there == 0 || there == 200 {
		t.Errorf("a removed name was there after %d of 200 crashes", there)
	}
}

func TestKill_LosesNothingAndACrashAfterItDoes(t *testing.T) {
	d, f := synced(t, 2)
	write(t, f, fill('b', 2), 0)
	write(t, create(t, d, "y"), fill('y', 1), 0)
	k := d.Kill()
	write(t, f, fill('c', 2), 0)
	check(t, d.Remove("y"))
	if got := read(t, k, "x"); !bytes.Equal(got, fill('b', 2)) {
		t.Error("a kill lost a write, or saw a later one")
	}
	if got := read(t, k, "y"); !bytes.Equal(got, fill('y', 1)) {
		t.Error("a kill lost a file, or saw its later removal")
	}
	rng := rand.New(rand.NewPCG(3, 3))
	seen := make(map[byte]int)
	files := 0
	for range 300 {
		c := k.Crash(rng)
		seen[read(t, c, "x")[0]]++
		if read(t, c, "y") != nil {
			files++
		}
	}
	if seen['a'] == 0 || seen['b'] == 0 || len(seen) != 2 || files == 0 || files == 300 {
		t.Errorf("after kill and crash: %v, new file %d times", seen, files)
	}
}

func TestWriteBack_MakesSomePagesDurable(t *testing.T) {
	d, f := synced(t, 64)
	write(t, f, fill('b', 64), 0)
	check(t, f.WriteBack(0, 32*pageSize))
	rng := rand.New(rand.NewPCG(3, 3))
	always := 0
	lost := make([]bool, 64)
	for range 200 {
		for i, p := range slices.Collect(slices.Chunk(read(t, d.Crash(rng), "x"), pageSize)) {
			lost[i] = lost[i] || p[0] == 'a'
		}
	}
	for i, l := range lost {
		if !l {
			always++
			if i >= 32 {
				t.Errorf("page %d is durable and was not written back", i)
			}
		}
	}
	if always < 4 || always > 28 {
		t.Errorf("%d of 32 pages became durable", always)
	}
}

func TestFail_SyncDropsPages(t *testing.T) {
	d, f := synced(t, 300)
	write(t, f, fill('b', 300), 0)
	d.Fail(func(op crashdisk.Op) error {
		if op.Kind == crashdisk.Sync {
			return syscall.EIO
		}
		return nil
	})
	if err := f.Datasync(); !errors.Is(err, syscall.EIO) {
		t.Fatalf("sync: %v", err)
	}
	d.Fail(nil)
	shown := read(t, d, "x")
	if old := bytes.Count(shown, []byte("a")) / pageSize; old < 60 || old > 140 {
		t.Errorf("%d of 300 pages read old, want about 100", old)
	}
	kept := bytes.Count(read(t, d.Crash(rand.New(rand.NewPCG(1, 1))), "x"), []byte("b")) / pageSize
	check(t, f.Datasync()) // covers what was not tried, and heals nothing
	if now := bytes.Count(shown, []byte("b")) / pageSize; kept < 60 || kept >= now {
		t.Errorf("%d pages read new and %d would have survived a crash", now, kept)
	}
	if got := read(t, d.Crash(rand.New(rand.NewPCG(1, 2))), "x"); !bytes.Equal(got, shown) {
		t.Error("what read well before a good sync is not durable after it")
	}
	write(t, f, fill('c', 300), 0)
	check(t, f.Datasync())
	if got := read(t, d.Crash(rand.New(rand.NewPCG(1, 2))), "x"); !bytes.Equal(got, fill('c', 300)) {
		t.Error("pages written and synced again are not durable")
	}
}

func TestFail_EveryKindByNumber(t *testing.T) {
	run := func(d *crashdisk.Disk) error {
		f, err := d.Create("x")
		if err != nil {
			return err
		}
		p := make([]byte, 10)
		_, werr := f.WriteAt([]byte("0123456789"), 0)
		_, rerr := f.ReadAt(p[:0], 0)
		_, uerr := d.Usage()
		_, lerr := d.List()
		return errors.Join(werr, rerr, uerr, lerr, f.Allocate(4096), f.Truncate(4096), f.WriteBack(0, 4096),
			f.Datasync(), f.Close(), d.Rename("x", "y"), d.SyncDir(), d.Remove("y"))
	}
	clean := crashdisk.New(crashdisk.Options{})
	check(t, run(clean))
	if clean.Ops() < 11 {
		t.Fatalf("%d operations counted", clean.Ops())
	}
	for n := uint64(1); n <= clean.Ops(); n++ {
		d := crashdisk.New(crashdisk.Options{})
		var failed crashdisk.Op
		d.Fail(func(op crashdisk.Op) error {
			if op.N == n {
				failed = op
				return syscall.ENOSPC
			}
			return nil
		})
		if err := run(d); !errors.Is(err, scstore.ErrNoSpace) || !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), string(failed.Kind)) {
			t.Errorf("operation %d, %s, failed with %v", n, failed, err)
		}
	}
}

func TestCapacity(t *testing.T) {
	d := crashdisk.New(crashdisk.Options{CapacityBytes: 10 * pageSize})
	f := create(t, d, "x")
	check(t, f.Allocate(4*pageSize))
	n, err := f.WriteAt(fill('a', 12), 0)
	if n != 10*pageSize || !errors.Is(err, scstore.ErrNoSpace) {
		t.Fatalf("wrote %d, %v", n, err)
	}
	g := create(t, d, "y")
	if err := g.Allocate(1); !errors.Is(err, scstore.ErrNoSpace) {
		t.Fatalf("allocate on a full disk: %v", err)
	}
	write(t, f, fill('b', 10), 0) // overwriting takes none
	free := func(want uint64) {
		t.Helper()
		u, err := d.Usage()
		check(t, err)
		if u.FreeBytes != want*pageSize || u.TotalBytes != 10*pageSize {
			t.Errorf("usage %+v, want %d pages free", u, want)
		}
	}
	free(0)
	check(t, f.Truncate(3*pageSize))
	free(7)
	check(t, d.Remove("x"))
	free(7)
	check(t, f.Close())
	free(10)
	check(t, g.Allocate(10*pageSize))
	free(0)
	u, err := d.Kill().Usage()
	check(t, err)
	if u.FreeBytes != 0 {
		t.Errorf("a kill freed %d bytes", u.FreeBytes)
	}
}

func TestFlipBit(t *testing.T) {
	d, f := synced(t, 2)
	write(t, f, fill('a', 1), 0)
	check(t, d.FlipBit("x", 5000, 1))
	check(t, d.FlipBit("x", 5, 1))
	want := fill('a', 2)
	want[5000] ^= 2
	want[5] ^= 2
	for i, got := range [][]byte{read(t, d, "x"), read(t, d.Crash(rand.New(rand.NewPCG(1, 2))), "x")} {
		if !bytes.Equal(got, want) {
			t.Errorf("disk %d: not just the two bits are flipped", i)
		}
	}
	if err := d.FlipBit("x", 2*pageSize, 0); !errors.Is(err, scstore.ErrInvalid) {
		t.Errorf("flip past the end: %v", err)
	}
}

func TestTrace(t *testing.T) {
	d := crashdisk.New(crashdisk.Options{CapacityBytes: 8 * pageSize})
	d.Trace()
	f := create(t, d, "x")
	check(t, f.Allocate(pageSize))
	check(t, f.WriteVec([][]byte{fill('a', 1), fill('b', 1)}, 512))
	check(t, f.WriteBack(0, 8192))
	check(t, f.Datasync())
	check(t, d.Rename("x", "y"))
	check(t, d.SyncDir())
	check(t, f.Truncate(1))
	if err := f.Allocate(1 << 20); err == nil {
		t.Error("allocated more than the disk")
	}
	check(t, d.Remove("y"))
	want := `create x
allocate x 4096
write x 512 8192
writeback x 0 8192
sync x
rename x y
syncdir
truncate x 1
allocate x 1048576 failed
remove y`
	if got := strings.Join(d.TakeTrace(), "\n"); got != want {
		t.Errorf("trace:\n%s\nwant:\n%s", got, want)
	}
	if got := d.TakeTrace(); len(got) != 0 {
		t.Errorf("taken twice: %q", got)
	}
}

func TestDisk_SameSeedSameCrash(t *testing.T) {
	run := func() []byte {
		d := crashdisk.New(crashdisk.Options{Seed: 42})
		f := create(t, d, "x")
		for i := range 50 {
			write(t, f, fill(byte(i), 3), int64(i)*1000)
		}
		check(t, f.WriteBack(0, 1<<20))
		check(t, d.SyncDir())
		return read(t, d.Crash(rand.New(rand.NewPCG(4, 2))), "x")
	}
	first := run()
	for range 5 {
		if !bytes.Equal(run(), first) {
			t.Fatal("the same seed gave another disk")
		}
	}
}

// BenchmarkCrash is one crash point of a store: four segments of 64 MiB, two full
// of zeros, 8 MiB of unsynced data.
func BenchmarkCrash(b *testing.B) {
	d := crashdisk.New(crashdisk.Options{})
	zeros := make([]byte, 1<<20)
	var f disk.File
	for i := range 4 {
		f = create(b, d, fmt.Sprint("segment", i))
		for off := int64(0); off < 64<<20; off += 1 << 20 {
			write(b, f, zeros, off)
		}
		check(b, f.Datasync())
	}
	check(b, d.SyncDir())
	for off := int64(0); off < 8<<20; off += pageSize {
		write(b, f, fill('x', 1), off)
	}
	rng := rand.New(rand.NewPCG(1, 1))
	b.ReportAllocs()
	for b.Loop() {
		d.Crash(rng)
	}
}

// BenchmarkZeroSegment is the making of one segment full of zeros.
func BenchmarkZeroSegment(b *testing.B) {
	d := crashdisk.New(crashdisk.Options{})
	zeros := make([]byte, 1<<20)
	b.ReportAllocs()
	b.SetBytes(64 << 20)
	for i := 0; b.Loop(); i++ {
		f := create(b, d, fmt.Sprint("segment", i))
		for off := int64(0); off < 64<<20; off += 1 << 20 {
			write(b, f, zeros, off)
		}
		check(b, f.Datasync())
	}
}
