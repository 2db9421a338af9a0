package disk_test

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"scstore"
	"scstore/fs/block/disk"
	"scstore/fs/block/disk/disktest"
)

func openDir(t testing.TB) *disk.Dir {
	t.Helper()
	d, err := disk.OpenDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestDir_Conformance(t *testing.T) {
	disktest.Run(t, func(t *testing.T) disk.FS { return openDir(t) })
}

func TestOpenDir_RefusesWhatIsNoFolder(t *testing.T) {
	dir := t.TempDir()
	if _, err := disk.OpenDir(filepath.Join(dir, "missing")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing folder: %v", err)
	}
	path := filepath.Join(dir, "file")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := disk.OpenDir(path); !errors.Is(err, scstore.ErrInvalid) {
		t.Errorf("a file: %v", err)
	}
}

func TestDir_ListsFilesOnlyAndFollowsNoLink(t *testing.T) {
	d := openDir(t)
	if err := os.Mkdir(filepath.Join(d.Path(), "sub"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/passwd", filepath.Join(d.Path(), "link")); err != nil {
		t.Fatal(err)
	}
	if names, err := d.List(); err != nil || len(names) != 0 {
		t.Errorf("names %q, %v", names, err)
	}
	if f, err := d.Open("link"); !errors.Is(err, scstore.ErrInvalid) {
		t.Errorf("opened a link: %v, %v", f, err)
	}
}

func TestDir_HotCallsDoNotAllocate(t *testing.T) {
	f, err := openDir(t).Create("x")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p := bytes.Repeat([]byte{1}, 1<<16)
	bufs := make([][]byte, disk.MaxVecBuffers)
	for i := range bufs {
		bufs[i] = p[:1024]
	}
	for name, call := range map[string]func() error{
		"ReadAt":    func() error { _, err := f.ReadAt(p, 0); return err },
		"ReadNowAt": func() error { _, err := f.ReadNowAt(p, 0); return err },
		"WriteVec":  func() error { return f.WriteVec(bufs, 0) },
		"WriteAt":   func() error { _, err := f.WriteAt(p, 0); return err },
	} {
		if _, err := f.WriteAt(p, 0); err != nil {
			t.Fatal(err)
		}
		var failed error
		if got := testing.AllocsPerRun(100, func() { failed = errors.Join(failed, call()) }); got != 0 || failed != nil {
			t.Errorf("%s: %v allocations, %v", name, got, failed)
		}
	}
}

func TestDir_CachedBytesAreReadNow(t *testing.T) {
	f, err := openDir(t).Create("x")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	want := bytes.Repeat([]byte{7}, 1<<16)
	if _, err := f.WriteAt(want, 0); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(want))
	if ok, err := f.ReadNowAt(got, 0); !ok || err != nil || !bytes.Equal(got, want) {
		t.Errorf("just written, and not read at once: %t, %v", ok, err)
	}
	if ok, err := f.ReadNowAt(got, 1); ok || err != nil {
		t.Errorf("a read over the end: %t, %v; want false", ok, err)
	}
}

func TestDir_FullDiskIsErrNoSpace(t *testing.T) {
	d, err := disk.OpenDir("/dev")
	if err != nil {
		t.Fatal(err)
	}
	f, err := d.Open("full") // answers every write with ENOSPC
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(make([]byte, 4096), 0); !errors.Is(err, scstore.ErrNoSpace) {
		t.Errorf("write: %v, want %v", err, scstore.ErrNoSpace)
	}
	if err := f.WriteVec([][]byte{make([]byte, 10), make([]byte, 10)}, 0); !errors.Is(err, scstore.ErrNoSpace) {
		t.Errorf("write vector: %v, want %v", err, scstore.ErrNoSpace)
	}
}
