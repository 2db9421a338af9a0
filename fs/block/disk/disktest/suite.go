package disktest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"scstore"
	"scstore/fs/block/disk"
)

// Run runs the suite; open returns a new, empty folder with at least 64 MiB free.
func Run(t *testing.T, open func(t *testing.T) disk.FS) {
	t.Helper()
	tests := []struct {
		name string
		run  func(t *testing.T, fsys disk.FS)
	}{
		{"Names", testNames},
		{"NamesThatLeaveTheFolderAreRefused", testBadNames},
		{"RenameReplaces", testRename},
		{"RemovedFileLivesWhileOpen", testRemoveOpen},
		{"ReadsEndAtTheEnd", testEOF},
		{"WritePastTheEndLeavesZeros", testSparse},
		{"WriteVecEqualsOneWrite", testWriteVec},
		{"AllocateExtendsWithZeros", testAllocate},
		{"TruncateForgets", testTruncate},
		{"SyncsSucceed", testSyncs},
		{"UsageSeesAllocation", testUsage},
		{"ClosedFileIsRefused", testClosed},
		{"BadOffsetsAreRefused", testBadOffsets},
		{"RandomOperationsEqualAByteSlice", testModel},
		{"ConcurrentUse", testConcurrent},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { tt.run(t, open(t)) })
	}
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func create(t testing.TB, fsys disk.FS, name string) disk.File {
	t.Helper()
	f, err := fsys.Create(name)
	check(t, err)
	t.Cleanup(func() {
		if err := f.Close(); err != nil && !errors.Is(err, fs.ErrClosed) {
			t.Error(err)
		}
	})
	return f
}

func write(t testing.TB, f disk.File, p []byte, off int64) {
	t.Helper()
	n, err := f.WriteAt(p, off)
	check(t, err)
	if n != len(p) {
		t.Fatalf("wrote %d bytes, want %d", n, len(p))
	}
}

// content reads the whole file, by ReadAt and, where it does not wait, by ReadNowAt.
func content(t testing.TB, f disk.File) []byte {
	t.Helper()
	size, err := f.Size()
	check(t, err)
	got := make([]byte, size)
	if n, err := f.ReadAt(got, 0); err != nil || n != len(got) {
		t.Fatalf("read %d of %d bytes: %v", n, len(got), err)
	}
	now := make([]byte, size)
	ok, err := f.ReadNowAt(now, 0)
	check(t, err)
	if ok && !bytes.Equal(got, now) {
		t.Fatal("ReadNowAt and ReadAt differ")
	}
	return got
}

func list(t testing.TB, fsys disk.FS, want ...string) {
	t.Helper()
	got, err := fsys.List()
	check(t, err)
	if !slices.Equal(got, want) {
		t.Fatalf("names %q, want %q", got, want)
	}
}

func wantErr(t testing.TB, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: %v, want %v", what, err, want)
	}
}

func testNames(t *testing.T, fsys disk.FS) {
	list(t, fsys)
	write(t, create(t, fsys, "b"), []byte("bee"), 0)
	create(t, fsys, "a")
	list(t, fsys, "a", "b")
	_, err := fsys.Create("b")
	wantErr(t, "create twice", err, fs.ErrExist)
	_, err = fsys.Open("c")
	wantErr(t, "open what is not there", err, fs.ErrNotExist)
	wantErr(t, "remove what is not there", fsys.Remove("c"), fs.ErrNotExist)
	wantErr(t, "rename what is not there", fsys.Rename("c", "d"), fs.ErrNotExist)
	f, err := fsys.Open("b")
	check(t, err)
	if got := content(t, f); string(got) != "bee" {
		t.Errorf("content %q, want bee", got)
	}
	check(t, f.Close())
	check(t, fsys.Remove("b"))
	list(t, fsys, "a")
	create(t, fsys, "b")
	check(t, fsys.SyncDir())
	list(t, fsys, "a", "b")
}

func testBadNames(t *testing.T, fsys disk.FS) {
	for _, name := range []string{"", ".", "..", "../x", "a/b", "/x", "a\x00", strings.Repeat("x", disk.MaxNameBytes+1)} {
		_, err := fsys.Create(name)
		wantErr(t, fmt.Sprintf("create %.10q", name), err, scstore.ErrInvalid)
		_, err = fsys.Open(name)
		wantErr(t, fmt.Sprintf("open %.10q", name), err, scstore.ErrInvalid)
		wantErr(t, fmt.Sprintf("remove %.10q", name), fsys.Remove(name), scstore.ErrInvalid)
		wantErr(t, fmt.Sprintf("rename to %.10q", name), fsys.Rename("x", name), scstore.ErrInvalid)
		wantErr(t, fmt.Sprintf("rename from %.10q", name), fsys.Rename(name, "x"), scstore.ErrInvalid)
	}
	create(t, fsys, strings.Repeat("x", disk.MaxNameBytes))
}

func testRename(t *testing.T, fsys disk.FS) {
	a := create(t, fsys, "a")
	write(t, a, []byte("new"), 0)
	b := create(t, fsys, "b")
	write(t, b, []byte("the old one"), 0)
	check(t, fsys.Rename("a", "b"))
	list(t, fsys, "b")
	f, err := fsys.Open("b")
	check(t, err)
	defer func() { check(t, f.Close()) }()
	if got := content(t, f); string(got) != "new" {
		t.Errorf("renamed content %q, want new", got)
	}
	if got := content(t, b); string(got) != "the old one" {
		t.Errorf("replaced file, still open, reads %q", got)
	}
	write(t, a, []byte("W"), 2)
	if got := content(t, f); string(got) != "neW" {
		t.Errorf("written through the old handle: %q, want neW", got)
	}
	check(t, fsys.Rename("b", "b"))
	list(t, fsys, "b")
}

func testRemoveOpen(t *testing.T, fsys disk.FS) {
	f := create(t, fsys, "x")
	write(t, f, []byte("still here"), 0)
	check(t, fsys.Remove("x"))
	list(t, fsys)
	write(t, f, []byte("S"), 0)
	if got := content(t, f); string(got) != "Still here" {
		t.Errorf("content %q", got)
	}
	g := create(t, fsys, "x")
	if got := content(t, g); len(got) != 0 {
		t.Errorf("a new file under the old name holds %q", got)
	}
}

func testEOF(t *testing.T, fsys disk.FS) {
	f := create(t, fsys, "x")
	write(t, f, []byte("0123456789"), 0)
	for _, tt := range []struct {
		off  int64
		size int
		want string
		err  error
	}{
		{0, 10, "0123456789", nil},
		{5, 10, "56789", io.EOF},
		{10, 1, "", io.EOF},
		{1 << 20, 1, "", io.EOF},
		{9, 1, "9", nil},
		{3, 0, "", nil},
	} {
		p := make([]byte, tt.size)
		n, err := f.ReadAt(p, tt.off)
		if string(p[:n]) != tt.want || err != tt.err { //nolint:errorlint // io.EOF is bare by contract
			t.Errorf("read %d at %d: %q, %v; want %q, %v", tt.size, tt.off, p[:n], err, tt.want, tt.err)
		}
		if ok, err := f.ReadNowAt(p, tt.off); err != nil || ok && tt.err != nil {
			t.Errorf("read now %d at %d: %t, %v", tt.size, tt.off, ok, err)
		}
	}
}

func testSparse(t *testing.T, fsys disk.FS) {
	f := create(t, fsys, "x")
	write(t, f, []byte("end"), 1<<20+7)
	want := append(make([]byte, 1<<20+7), "end"...)
	if got := content(t, f); !bytes.Equal(got, want) {
		t.Error("a hole does not read as zeros")
	}
	write(t, f, nil, 1<<21)
	if size, err := f.Size(); err != nil || size != 1<<20+10 {
		t.Errorf("an empty write changed the length to %d, %v", size, err)
	}
}

func testWriteVec(t *testing.T, fsys disk.FS) {
	f := create(t, fsys, "x")
	rng := rand.New(rand.NewPCG(1, 2))
	var want []byte
	off := int64(777)
	for _, count := range []int{0, 1, 2, 7, 64, 65, 130, 1500, 2100} {
		var bufs [][]byte
		var flat []byte
		for range count {
			b := randomBytes(rng, rng.IntN(3)*rng.IntN(3000))
			bufs = append(bufs, b)
			flat = append(flat, b...)
		}
		check(t, f.WriteVec(bufs, off))
		if end := int(off) + len(flat); count > 0 && end > len(want) && len(flat) > 0 {
			want = append(want, make([]byte, end-len(want))...)
		}
		copy(want[min(len(want), int(off)):], flat)
		off += int64(len(flat)) / 2
	}
	if got := content(t, f); !bytes.Equal(got, want) {
		t.Errorf("content differs from the concatenation at byte %d", firstDifference(got, want))
	}
}

func testAllocate(t *testing.T, fsys disk.FS) {
	f := create(t, fsys, "x")
	write(t, f, []byte("head"), 0)
	check(t, f.Allocate(100_000))
	want := append([]byte("head"), make([]byte, 100_000-4)...)
	if got := content(t, f); !bytes.Equal(got, want) {
		t.Error("an allocated file does not read as its old content and zeros")
	}
	check(t, f.Allocate(10))
	if size, err := f.Size(); err != nil || size != 100_000 {
		t.Errorf("a smaller allocation changed the length to %d, %v", size, err)
	}
	wantErr(t, "allocate nothing", f.Allocate(0), scstore.ErrInvalid)
}

func testTruncate(t *testing.T, fsys disk.FS) {
	f := create(t, fsys, "x")
	write(t, f, bytes.Repeat([]byte{7}, 20_000), 0)
	check(t, f.Truncate(5_000))
	check(t, f.Truncate(30_000))
	want := append(bytes.Repeat([]byte{7}, 5_000), make([]byte, 25_000)...)
	if got := content(t, f); !bytes.Equal(got, want) {
		t.Errorf("content differs at byte %d", firstDifference(got, want))
	}
}

func testSyncs(t *testing.T, fsys disk.FS) {
	f := create(t, fsys, "x")
	write(t, f, bytes.Repeat([]byte{7}, 20_000), 0)
	check(t, f.WriteBack(0, 20_000))
	check(t, f.WriteBack(4096, 0))
	check(t, f.WriteBack(1<<20, 4096))
	check(t, f.Datasync())
	check(t, f.Datasync())
	check(t, fsys.SyncDir())
	if got := content(t, f); !bytes.Equal(got, bytes.Repeat([]byte{7}, 20_000)) {
		t.Error("a sync changed the content")
	}
}

func testUsage(t *testing.T, fsys disk.FS) {
	before, err := fsys.Usage()
	check(t, err)
	if before.TotalBytes == 0 || before.FreeBytes > before.TotalBytes {
		t.Fatalf("usage %+v", before)
	}
	f := create(t, fsys, "x")
	check(t, f.Allocate(32<<20))
	after, err := fsys.Usage()
	check(t, err)
	// Others may use the same disk; they will not free 24 MiB just now.
	if after.FreeBytes+24<<20 > before.FreeBytes {
		t.Errorf("free before %d, after an allocation of 32 MiB %d", before.FreeBytes, after.FreeBytes)
	}
}

func testClosed(t *testing.T, fsys disk.FS) {
	f := create(t, fsys, "x")
	write(t, f, []byte("x"), 0)
	check(t, f.Close())
	p := make([]byte, 1)
	_, err := f.ReadAt(p, 0)
	wantErr(t, "read", err, fs.ErrClosed)
	_, err = f.ReadNowAt(p, 0)
	wantErr(t, "read now", err, fs.ErrClosed)
	_, err = f.WriteAt(p, 0)
	wantErr(t, "write", err, fs.ErrClosed)
	wantErr(t, "write vector", f.WriteVec([][]byte{p}, 0), fs.ErrClosed)
	wantErr(t, "sync", f.Datasync(), fs.ErrClosed)
	wantErr(t, "write back", f.WriteBack(0, 1), fs.ErrClosed)
	wantErr(t, "allocate", f.Allocate(1), fs.ErrClosed)
	wantErr(t, "truncate", f.Truncate(0), fs.ErrClosed)
	_, err = f.Size()
	wantErr(t, "size", err, fs.ErrClosed)
	wantErr(t, "close", f.Close(), fs.ErrClosed)
}

func testBadOffsets(t *testing.T, fsys disk.FS) {
	f := create(t, fsys, "x")
	p := make([]byte, 1)
	_, err := f.ReadAt(p, -1)
	wantErr(t, "read", err, scstore.ErrInvalid)
	_, err = f.ReadNowAt(p, -1)
	wantErr(t, "read now", err, scstore.ErrInvalid)
	_, err = f.WriteAt(p, -1)
	wantErr(t, "write", err, scstore.ErrInvalid)
	wantErr(t, "write vector", f.WriteVec([][]byte{p, p}, -1), scstore.ErrInvalid)
	wantErr(t, "truncate", f.Truncate(-1), scstore.ErrInvalid)
	wantErr(t, "allocate", f.Allocate(-1), scstore.ErrInvalid)
}

// testModel compares random operations with the same on a slice of bytes.
func testModel(t *testing.T, fsys disk.FS) {
	const limit = 300_000
	rng := rand.New(rand.NewPCG(3, 4))
	f := create(t, fsys, "x")
	var model []byte
	put := func(p []byte, off int) {
		if end := off + len(p); len(p) > 0 && end > len(model) {
			model = append(model, make([]byte, end-len(model))...)
		}
		if len(p) > 0 {
			copy(model[off:], p)
		}
	}
	for step := range 600 {
		off := rng.IntN(limit)
		if rng.IntN(2) == 0 {
			off -= off % disk.PageSize
		}
		switch rng.IntN(8) {
		case 0, 1, 2:
			p := randomBytes(rng, rng.IntN(3*disk.PageSize))
			write(t, f, p, int64(off))
			put(p, off)
		case 3:
			var bufs [][]byte
			for range rng.IntN(5) {
				bufs = append(bufs, randomBytes(rng, rng.IntN(2*disk.PageSize)))
			}
			check(t, f.WriteVec(bufs, int64(off)))
			put(slices.Concat(bufs...), off)
		case 4:
			check(t, f.Truncate(int64(off)))
			model = append(make([]byte, 0, limit*2), model[:min(off, len(model))]...)
			model = append(model, make([]byte, off-len(model))...)
		case 5:
			check(t, f.Allocate(int64(off)+1))
			if off+1 > len(model) {
				model = append(model, make([]byte, off+1-len(model))...)
			}
		case 6:
			check(t, f.Datasync())
		default:
			check(t, f.WriteBack(int64(off), 64<<10))
		}
		if got := content(t, f); !bytes.Equal(got, model) {
			t.Fatalf("step %d: %d bytes, want %d; first difference at %d", step, len(got), len(model), firstDifference(got, model))
		}
	}
}

// testConcurrent lets writers own a region each while readers read all of it.
func testConcurrent(t *testing.T, fsys disk.FS) {
	const actors, region, rounds = 4, 64 << 10, 60
	f := create(t, fsys, "x")
	check(t, f.Allocate(actors*region))
	var wg sync.WaitGroup
	var reads, syncs atomic.Int64
	done := make(chan struct{})
	for a := range actors {
		wg.Go(func() {
			for r := range rounds {
				p := bytes.Repeat([]byte{byte(a*rounds + r)}, region)
				if _, err := f.WriteAt(p, int64(a*region)); err != nil {
					t.Error(err)
				}
				got := make([]byte, region)
				if _, err := f.ReadAt(got, int64(a*region)); err != nil || !bytes.Equal(got, p) {
					t.Errorf("actor %d, round %d: read back something else, %v", a, r, err)
				}
			}
		})
	}
	var others sync.WaitGroup
	for _, actor := range []func(i int) error{
		func(int) error {
			_, err := f.ReadAt(make([]byte, actors*region), 0)
			reads.Add(1)
			return err
		},
		func(i int) error {
			name := fmt.Sprint("other", i)
			g, err := fsys.Create(name)
			if err != nil {
				return err
			}
			syncs.Add(1)
			return errors.Join(g.Close(), f.Datasync(), fsys.SyncDir(), fsys.Remove(name))
		},
	} {
		others.Go(func() {
			for i := 0; ; i++ {
				if err := actor(i); err != nil {
					t.Error(err)
					return
				}
				select {
				case <-done:
					return
				default:
				}
			}
		})
	}
	wg.Wait()
	close(done)
	others.Wait()
	if reads.Load() == 0 || syncs.Load() == 0 {
		t.Errorf("reads %d, syncs %d: an actor did nothing", reads.Load(), syncs.Load())
	}
}

// randomBytes returns bytes of which whole stretches are zeros now and then.
func randomBytes(rng *rand.Rand, n int) []byte {
	p := make([]byte, n)
	if rng.IntN(4) == 0 {
		return p
	}
	for i := range p {
		p[i] = byte(rng.Uint32())
	}
	return p
}

func firstDifference(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}
