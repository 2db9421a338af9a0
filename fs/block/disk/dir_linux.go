package disk

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"scstore"
)

// Dir is a real folder on Linux. It holds no open file of its own, so that it
// needs no Close, and it does not lock the folder.
//
// Concurrency: all methods are safe for concurrent use.
type Dir struct {
	path string // absolute
	// noNowait is set once the file system has refused RWF_NOWAIT; every file of
	// the folder then answers ReadNowAt with a plain read.
	noNowait atomic.Bool
}

var (
	_ FS   = (*Dir)(nil)
	_ File = (*dirFile)(nil)
)

// OpenDir returns the folder at path, which must exist.
// Errors: fs.ErrNotExist; scstore.ErrInvalid if path is not a folder.
func OpenDir(path string) (*Dir, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("open folder %q: %w", path, err)
	}
	info, err := os.Stat(abs)
	if err != nil {
		return nil, fmt.Errorf("open folder %q: %w", path, err)
	}
	if !info.IsDir() {
		return nil, fmt.Errorf("open folder %q: not a folder: %w", path, scstore.ErrInvalid)
	}
	return &Dir{path: abs}, nil
}

// Path returns the folder's absolute path.
func (d *Dir) Path() string { return d.path }

// Create makes and opens the file name with mode 0600.
func (d *Dir) Create(name string) (File, error) {
	return d.open("create", name, unix.O_CREAT|unix.O_EXCL)
}

// Open opens an existing file.
func (d *Dir) Open(name string) (File, error) { return d.open("open", name, 0) }

func (d *Dir) open(verb, name string, flags int) (File, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	path := filepath.Join(d.path, name)
	var fd int
	err := retry(func() (err error) {
		fd, err = unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOFOLLOW|flags, 0o600)
		return err
	})
	if err != nil {
		return nil, osError(verb, name, err)
	}
	return &dirFile{dir: d, name: name, fd: fd}, nil
}

// Rename replaces newName by oldName.
func (d *Dir) Rename(oldName, newName string) error {
	if err := errors.Join(CheckName(oldName), CheckName(newName)); err != nil {
		return err
	}
	err := retry(func() error {
		return unix.Rename(filepath.Join(d.path, oldName), filepath.Join(d.path, newName))
	})
	return osError("rename", oldName, err)
}

// Remove unlinks a file; it never removes a folder.
func (d *Dir) Remove(name string) error {
	if err := CheckName(name); err != nil {
		return err
	}
	return osError("remove", name, retry(func() error { return unix.Unlink(filepath.Join(d.path, name)) }))
}

// List returns the names of the regular files, sorted.
func (d *Dir) List() ([]string, error) {
	entries, err := os.ReadDir(d.path)
	if err != nil {
		return nil, fmt.Errorf("list folder %q: %w", d.path, err)
	}
	names := make([]string, 0, len(entries))
	for _, e := range entries {
		if e.Type().IsRegular() {
			names = append(names, e.Name())
		}
	}
	slices.Sort(names)
	return names, nil
}

// SyncDir makes all earlier name changes durable.
func (d *Dir) SyncDir() error {
	f, err := os.Open(d.path)
	if err != nil {
		return fmt.Errorf("sync folder %q: %w", d.path, err)
	}
	err = osError("sync folder", d.path, f.Sync())
	return errors.Join(err, f.Close())
}

// Usage returns the space of the folder's file system.
func (d *Dir) Usage() (Usage, error) {
	var st unix.Statfs_t
	if err := retry(func() error { return unix.Statfs(d.path, &st) }); err != nil {
		return Usage{}, osError("measure folder", d.path, err)
	}
	unit := uint64(st.Frsize)
	if unit == 0 {
		unit = uint64(st.Bsize)
	}
	return Usage{TotalBytes: st.Blocks * unit, FreeBytes: st.Bavail * unit}, nil
}

// retry calls f again for as long as a signal interrupts it.
func retry(f func() error) error {
	for {
		err := f()
		if err != unix.EINTR { //nolint:errorlint // a bare errno, on the hot path
			return err
		}
	}
}

// osError says which call on which file failed, and gives a full disk and an
// exhausted quota the store's own error. It keeps the cause, so that fs.ErrExist
// and fs.ErrNotExist are found by errors.Is.
func osError(verb, name string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return fmt.Errorf("%s %q: %w: %w", verb, name, scstore.ErrNoSpace, err)
	case errors.Is(err, unix.ELOOP):
		return fmt.Errorf("%s %q: a symbolic link: %w", verb, name, scstore.ErrInvalid)
	default:
		return fmt.Errorf("%s %q: %w", verb, name, err)
	}
}

func closedError(verb, name string) error { return fmt.Errorf("%s %q: %w", verb, name, fs.ErrClosed) }
