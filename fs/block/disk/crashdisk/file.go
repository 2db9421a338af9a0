package crashdisk

import (
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"sync/atomic"

	"scstore"
	"scstore/fs/block/disk"
)

// file is one open file.
type file struct {
	disk   *Disk
	name   string // as opened
	inode  *inode // its fields are guarded by disk.mu
	closed atomic.Bool
}

// check refuses what no disk would do, before the call is counted.
func (f *file) check(op Op, off, length int64) error {
	switch {
	case f.closed.Load():
		return opError(op, fs.ErrClosed)
	case off < 0, length < 0:
		return opError(op, fmt.Errorf("offset %d, length %d: %w", off, length, scstore.ErrInvalid))
	case off > MaxFileBytes-length:
		return opError(op, fmt.Errorf("end %d+%d over %d: %w", off, length, int64(MaxFileBytes), scstore.ErrInvalid))
	}
	return nil
}

// ReadAt fills p, or returns io.EOF with what there is.
func (f *file) ReadAt(p []byte, off int64) (int, error) {
	op := Op{Kind: Read, Name: f.name, Off: off, Len: int64(len(p))}
	if err := f.check(op, off, 0); err != nil {
		return 0, err
	}
	if err := f.disk.begin(op); err != nil {
		return 0, err
	}
	f.disk.mu.RLock()
	defer f.disk.mu.RUnlock()
	n := int(min(max(f.inode.size-off, 0), int64(len(p))))
	f.inode.read(p[:n], off)
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// ReadNowAt reads unless chance (Options.ColdShare) has it that it would wait.
func (f *file) ReadNowAt(p []byte, off int64) (ok bool, err error) {
	f.disk.mu.RLock()
	share := f.disk.options.ColdShare
	f.disk.mu.RUnlock()
	if f.disk.chance(share) {
		return false, f.check(Op{Kind: Read, Name: f.name}, off, 0)
	}
	_, err = f.ReadAt(p, off)
	if err == io.EOF { //nolint:errorlint // never wrapped
		return false, nil
	}
	return err == nil, err
}

// WriteAt writes all of p, or a part and returns an error.
func (f *file) WriteAt(p []byte, off int64) (int, error) {
	one := [1][]byte{p}
	return f.write(one[:], int64(len(p)), off)
}

// WriteVec writes the buffers one after another.
func (f *file) WriteVec(bufs [][]byte, off int64) error {
	total := int64(0)
	for _, b := range bufs {
		total += int64(len(b))
	}
	_, err := f.write(bufs, total, off)
	return err
}

func (f *file) write(bufs [][]byte, total, off int64) (int, error) {
	op := Op{Kind: Write, Name: f.name, Off: off, Len: total}
	if err := f.check(op, off, total); err != nil {
		return 0, err
	}
	err := f.disk.begin(op)
	d := f.disk
	d.mu.Lock()
	defer d.mu.Unlock()
	end := off + total
	if err != nil { // an injected error: the pages before a random one are written
		pages := (end+disk.PageSize-1)/disk.PageSize - off/disk.PageSize
		if stop := (off/disk.PageSize + int64(d.intN(int(pages)+1))) * disk.PageSize; stop < end {
			end = max(stop, off)
		}
	}
	if end > off {
		first, last := off/disk.PageSize, (end+disk.PageSize-1)/disk.PageSize
		taken, stop := f.inode.takeSpace(first, last, d.freePagesLocked())
		d.used += taken
		if stop < last {
			end = max(stop*disk.PageSize, off)
			if err == nil {
				err = opError(op, scstore.ErrNoSpace)
			}
		}
	}
	d.noteLocked(op, err)
	f.putLocked(bufs, off, end)
	if end > off && end > f.inode.size {
		f.inode.resize(end, d.intN)
	}
	return int(end - off), err
}

// putLocked lays the buffers over the pages of [off, end).
// Precondition: the disk's mu held.
func (f *file) putLocked(bufs [][]byte, off, end int64) {
	var span []byte // of a page that several buffers meet in
	for _, b := range bufs {
		for len(b) > 0 && off < end {
			in := int(off % disk.PageSize)
			count := int(min(int64(len(b)), disk.PageSize-int64(in), end-off))
			index := off / disk.PageSize
			switch {
			case len(span) == 0 && (in+count == disk.PageSize || off+int64(count) == end):
				f.inode.write(index, merge(f.inode.live(index), b[:count], in), f.disk.intN)
			default:
				span = append(span, b[:count]...)
				if in+count == disk.PageSize || off+int64(count) == end {
					f.inode.write(index, merge(f.inode.live(index), span, in+count-len(span)), f.disk.intN)
					span = span[:0]
				}
			}
			b = b[count:]
			off += int64(count)
		}
	}
}

// Allocate takes the space of the first length bytes, all or nothing.
func (f *file) Allocate(length int64) error {
	op := Op{Kind: Allocate, Name: f.name, Len: length}
	if err := f.check(op, 0, length); err != nil {
		return err
	}
	if length == 0 {
		return opError(op, scstore.ErrInvalid)
	}
	err := f.disk.begin(op)
	d := f.disk
	d.mu.Lock()
	defer d.mu.Unlock()
	if err == nil {
		before := append([]uint64(nil), f.inode.space...)
		last := (length + disk.PageSize - 1) / disk.PageSize
		taken, stop := f.inode.takeSpace(0, last, d.freePagesLocked())
		if stop < last {
			f.inode.space = before
			err = opError(op, scstore.ErrNoSpace)
		} else {
			d.used += taken
			f.inode.resize(max(f.inode.size, length), d.intN)
		}
	}
	d.noteLocked(op, err)
	return err
}

// Truncate sets the length; what is cut off reads as zeros if it comes back.
func (f *file) Truncate(length int64) error {
	op := Op{Kind: Truncate, Name: f.name, Len: length}
	if err := f.check(op, 0, length); err != nil {
		return err
	}
	err := f.disk.begin(op)
	d := f.disk
	d.mu.Lock()
	defer d.mu.Unlock()
	d.noteLocked(op, err)
	if err != nil {
		return err
	}
	if length < f.inode.size {
		f.inode.cut(length, func(index int64, p *page) { f.inode.write(index, p, d.intN) })
		d.used -= f.inode.dropSpace((length + disk.PageSize - 1) / disk.PageSize)
	}
	f.inode.resize(length, d.intN)
	return nil
}

// Datasync makes the content and the length durable; see Fail for a failed one.
func (f *file) Datasync() error {
	op := Op{Kind: Sync, Name: f.name}
	if err := f.check(op, 0, 0); err != nil {
		return err
	}
	err := f.disk.begin(op)
	d := f.disk
	d.mu.Lock()
	defer d.mu.Unlock()
	d.noteLocked(op, err)
	if err != nil {
		d.rngMu.Lock()
		rng := rand.New(rand.NewPCG(d.rng.Uint64(), 1))
		d.rngMu.Unlock()
		f.inode.syncFailed(rng)
		return err
	}
	f.inode.synced()
	return nil
}

// WriteBack makes each changed page of the range durable, or not, by chance.
func (f *file) WriteBack(off, length int64) error {
	op := Op{Kind: WriteBack, Name: f.name, Off: off, Len: length}
	if err := f.check(op, 0, 0); err != nil {
		return err
	}
	if off < 0 || length <= 0 {
		return nil
	}
	err := f.disk.begin(op)
	d := f.disk
	d.mu.Lock()
	defer d.mu.Unlock()
	d.noteLocked(op, err)
	if err != nil {
		return err
	}
	for _, index := range f.inode.dirtyPages() {
		if start := index * disk.PageSize; start >= off+length || start+disk.PageSize <= off {
			continue
		}
		if d.intN(2) == 0 {
			delete(f.inode.dirty, index)
		}
	}
	return nil
}

// Size returns the length.
func (f *file) Size() (int64, error) {
	if f.closed.Load() {
		return 0, opError(Op{Kind: "size", Name: f.name}, fs.ErrClosed)
	}
	f.disk.mu.RLock()
	defer f.disk.mu.RUnlock()
	return f.inode.size, nil
}

// Close ends the use of the file.
func (f *file) Close() error {
	if f.closed.Swap(true) {
		return opError(Op{Kind: "close", Name: f.name}, fs.ErrClosed)
	}
	f.disk.mu.Lock()
	defer f.disk.mu.Unlock()
	f.inode.opens--
	f.disk.releaseLocked(f.inode)
	return nil
}
