package disk

import (
	"fmt"
	"io"
	"sync"

	"golang.org/x/sys/unix"

	"scstore"
)

// dirFile is an open file of a Dir. It calls the kernel directly: reads and
// writes cost no allocation and no copy.
type dirFile struct {
	dir  *Dir
	name string // as opened; only for messages

	mu sync.RWMutex // held shared by every call on fd, so that Close cannot hand fd to another file
	fd int          // -1 once closed
}

// enter holds fd open until mu.RUnlock.
func (f *dirFile) enter(verb string) error {
	f.mu.RLock()
	if f.fd < 0 {
		f.mu.RUnlock()
		return closedError(verb, f.name)
	}
	return nil
}

func (f *dirFile) offsetError(verb string, off int64) error {
	return fmt.Errorf("%s %q: offset %d: %w", verb, f.name, off, scstore.ErrInvalid)
}

// ReadAt fills p, or returns io.EOF with what there is.
func (f *dirFile) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, f.offsetError("read", off)
	}
	if err := f.enter("read"); err != nil {
		return 0, err
	}
	defer f.mu.RUnlock()
	done := 0
	for done < len(p) {
		n, err := unix.Pread(f.fd, p[done:], off+int64(done))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return done, osError("read", f.name, err)
		}
		if n == 0 {
			return done, io.EOF
		}
		done += n
	}
	return done, nil
}

// ReadNowAt reads with RWF_NOWAIT. A file system that does not know it is asked
// once; the answer is then a plain read, with ok true.
func (f *dirFile) ReadNowAt(p []byte, off int64) (ok bool, err error) {
	if off < 0 {
		return false, f.offsetError("read", off)
	}
	if err := f.enter("read"); err != nil {
		return false, err
	}
	defer f.mu.RUnlock()
	flags := unix.RWF_NOWAIT
	if f.dir.noNowait.Load() {
		flags = 0
	}
	for {
		n, err := preadv2(f.fd, p, off, flags)
		switch err {
		case nil:
			return n == len(p), nil
		case unix.EAGAIN: //nolint:errorlint // a bare errno, on the hot path
			return false, nil
		case unix.EINTR:
		case unix.EOPNOTSUPP, unix.ENOSYS:
			if flags == 0 {
				return false, osError("read", f.name, err)
			}
			f.dir.noNowait.Store(true)
			n, err := unix.Pread(f.fd, p, off)
			return err == nil && n == len(p), nil
		default:
			return false, osError("read", f.name, err)
		}
	}
}

// WriteAt writes all of p.
func (f *dirFile) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, f.offsetError("write", off)
	}
	if err := f.enter("write"); err != nil {
		return 0, err
	}
	defer f.mu.RUnlock()
	return f.writeLocked(p, off)
}

// Precondition: f.mu held shared.
func (f *dirFile) writeLocked(p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) {
		n, err := unix.Pwrite(f.fd, p[done:], off+int64(done))
		if err == unix.EINTR {
			continue
		}
		if err == nil && n == 0 {
			err = io.ErrShortWrite
		}
		if err != nil {
			return done, osError("write", f.name, err)
		}
		done += n
	}
	return done, nil
}

// WriteVec writes the buffers in turn, MaxVecBuffers of them in each system call.
// It keeps no reference to bufs or to what they hold.
func (f *dirFile) WriteVec(bufs [][]byte, off int64) error {
	if off < 0 {
		return f.offsetError("write", off)
	}
	if err := f.enter("write"); err != nil {
		return err
	}
	defer f.mu.RUnlock()
	for len(bufs) > 0 {
		group := bufs[:min(len(bufs), MaxVecBuffers)]
		if err := f.writeGroupLocked(group, off); err != nil {
			return err
		}
		for _, b := range group {
			off += int64(len(b))
		}
		bufs = bufs[len(group):]
	}
	return nil
}

// writeGroupLocked writes one group; what a short write left over goes buffer by
// buffer, which is rare enough not to matter.
// Precondition: f.mu held shared; len(bufs) <= MaxVecBuffers.
func (f *dirFile) writeGroupLocked(bufs [][]byte, off int64) error {
	written := 0
	if len(bufs) > 1 {
		for {
			n, err := pwritev(f.fd, bufs, off)
			if err == unix.EINTR { //nolint:errorlint // a bare errno, on the hot path
				continue
			}
			if err != nil {
				return osError("write", f.name, err)
			}
			written = n
			break
		}
	}
	for _, b := range bufs {
		skip := min(written, len(b))
		written -= skip
		if skip < len(b) {
			if _, err := f.writeLocked(b[skip:], off+int64(skip)); err != nil {
				return err
			}
		}
		off += int64(len(b))
	}
	return nil
}

// Allocate reserves the first length bytes with fallocate. After an error the
// file may be longer than before and hold part of the space.
func (f *dirFile) Allocate(length int64) error {
	if length <= 0 {
		return f.offsetError("allocate", length)
	}
	return f.call("allocate", func(fd int) error { return unix.Fallocate(fd, 0, 0, length) })
}

// Truncate sets the file's length.
func (f *dirFile) Truncate(length int64) error {
	if length < 0 {
		return f.offsetError("truncate", length)
	}
	return f.call("truncate", func(fd int) error { return unix.Ftruncate(fd, length) })
}

// Datasync is fdatasync. A call that a signal interrupted is made again; any
// other error is final, because the kernel reports it once and counts the pages as
// clean: they are dropped, or this process and the next would read, and take for
// durable, what no disk has. (Rebello et al., Can Applications Recover from fsync
// Failures?, USENIX ATC 2020.)
func (f *dirFile) Datasync() error {
	err := f.call("sync", unix.Fdatasync)
	if err != nil {
		_ = f.call("drop", func(fd int) error { return unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED) })
	}
	return err
}

// WriteBack starts the write-out with sync_file_range and, where the file system
// has none, does nothing.
func (f *dirFile) WriteBack(off, length int64) error {
	if off < 0 || length <= 0 {
		return nil
	}
	err := f.enter("write back")
	if err != nil {
		return err
	}
	defer f.mu.RUnlock()
	switch err := unix.SyncFileRange(f.fd, off, length, unix.SYNC_FILE_RANGE_WRITE); err {
	case nil, unix.ENOSYS, unix.EOPNOTSUPP, unix.EINTR:
		return nil
	default:
		return osError("write back", f.name, err)
	}
}

// Size returns the file's length.
func (f *dirFile) Size() (int64, error) {
	var st unix.Stat_t
	err := f.call("stat", func(fd int) error { return unix.Fstat(fd, &st) })
	return st.Size, err
}

// Close waits for the calls that run. Closing twice is an error.
func (f *dirFile) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fd < 0 {
		return closedError("close", f.name)
	}
	fd := f.fd
	f.fd = -1
	// Linux frees the descriptor even when it reports EINTR: never twice.
	if err := unix.Close(fd); err != nil && err != unix.EINTR {
		return osError("close", f.name, err)
	}
	return nil
}

func (f *dirFile) call(verb string, fn func(fd int) error) error {
	if err := f.enter(verb); err != nil {
		return err
	}
	defer f.mu.RUnlock()
	return osError(verb, f.name, retry(func() error { return fn(f.fd) }))
}
