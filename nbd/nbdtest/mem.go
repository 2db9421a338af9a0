package nbdtest

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"

	"scstore"
)

const (
	stripeBytes = 1 << 20 // unit of locking
	stripeCount = 64
	bs          = scstore.BlockSize
)

// Hooks are called at the start of the operations of the same name, on whatever
// goroutine calls the device; an error is returned to the caller and nothing is
// done. They may block. nil hooks cost nothing.
type Hooks struct {
	ReadNow func(off int64, n int) (ok bool) // false: ReadNowAt declines
	Read    func(off int64, n int) error     // ReadAt only
	Write   func(off int64, n int) error
	Zero    func(off, length int64, keep bool) error
	Discard func(off, length int64) error
	Publish func() error
	Flush   func(ctx context.Context) error
}

// MemDevice is a sparse device in memory. It is safe for concurrent use.
type MemDevice struct {
	data     []byte
	present  []atomic.Bool // by block; guarded by its stripe for multi-step changes
	readOnly bool
	hooks    Hooks
	locks    [stripeCount]sync.RWMutex

	// Counts of calls that succeeded.
	Writes, Publishes, Flushes atomic.Int64
}

// NewMemDevice makes a device of sizeBytes, all holes. Memory is used as it is
// written. Precondition: sizeBytes is a multiple of scstore.BlockSize.
func NewMemDevice(sizeBytes int64, readOnly bool, hooks Hooks) *MemDevice {
	if sizeBytes < 0 || sizeBytes%bs != 0 {
		panic(fmt.Sprintf("size %d is not a multiple of %d", sizeBytes, bs))
	}
	return &MemDevice{data: make([]byte, sizeBytes), present: make([]atomic.Bool, sizeBytes/bs), readOnly: readOnly, hooks: hooks}
}

// Size is the device's size in bytes.
func (d *MemDevice) Size() int64 { return int64(len(d.data)) }

// ReadOnly reports whether writes are refused.
func (d *MemDevice) ReadOnly() bool { return d.readOnly }

// stripes calls f for each part of [off, off+length) that lies within one stripe.
func (d *MemDevice) stripes(off, length int64, f func(mu *sync.RWMutex, off, length int64)) {
	for length > 0 {
		n := min(length, stripeBytes-off%stripeBytes)
		f(&d.locks[off/stripeBytes%stripeCount], off, n)
		off, length = off+n, length-n
	}
}

func (d *MemDevice) check(op string, off, length int64, write bool) error {
	if off < 0 || length < 0 || off > d.Size() || length > d.Size()-off {
		return fmt.Errorf("%s %d bytes at %d of %d: %w", op, length, off, d.Size(), scstore.ErrInvalid)
	}
	if write && d.readOnly {
		return fmt.Errorf("%s: %w", op, scstore.ErrReadOnly)
	}
	return nil
}

// appendRange appends [off, off+n), merged with its neighbour if the state agrees.
func appendRange(dst []scstore.Range, off, n int64, s scstore.RangeState) []scstore.Range {
	if k := len(dst) - 1; k >= 0 && dst[k].State == s && dst[k].Offset+dst[k].Length == off {
		dst[k].Length += n
		return dst
	}
	return append(dst, scstore.Range{Offset: off, Length: n, State: s})
}

// ReadAt fills p and appends the holes.
func (d *MemDevice) ReadAt(p []byte, off int64, holes []scstore.Range) ([]scstore.Range, error) {
	if d.hooks.Read != nil {
		if err := d.hooks.Read(off, len(p)); err != nil {
			return holes, err
		}
	}
	return d.read(p, off, holes)
}

// ReadNowAt is ReadAt, unless the hook declines.
func (d *MemDevice) ReadNowAt(p []byte, off int64, holes []scstore.Range) (h []scstore.Range, ok bool, err error) {
	if d.hooks.ReadNow != nil && !d.hooks.ReadNow(off, len(p)) {
		return holes, false, nil
	}
	h, err = d.read(p, off, holes)
	return h, true, err
}

func (d *MemDevice) read(p []byte, off int64, holes []scstore.Range) ([]scstore.Range, error) {
	if err := d.check("read", off, int64(len(p)), false); err != nil {
		return holes, err
	}
	end := off + int64(len(p))
	for off < end {
		stripe := min(end, off-off%stripeBytes+stripeBytes)
		mu := &d.locks[off/stripeBytes%stripeCount]
		mu.RLock()
		for off < stripe {
			// A run of blocks of one state.
			from, has := off, d.present[off/bs].Load()
			for off = off - off%bs + bs; off < stripe && d.present[off/bs].Load() == has; off += bs {
			}
			off = min(off, stripe)
			n := off - from
			if has {
				copy(p, d.data[from:off])
			} else {
				clear(p[:n])
				holes = appendRange(holes, from, n, scstore.RangeHole)
			}
			p = p[n:]
		}
		mu.RUnlock()
	}
	return holes, nil
}

// WriteAt writes p.
func (d *MemDevice) WriteAt(p []byte, off int64) error {
	if d.hooks.Write != nil {
		if err := d.hooks.Write(off, len(p)); err != nil {
			return err
		}
	}
	if err := d.check("write", off, int64(len(p)), true); err != nil {
		return err
	}
	d.stripes(off, int64(len(p)), func(mu *sync.RWMutex, off, n int64) {
		mu.Lock()
		defer mu.Unlock()
		for b := off / bs; b*bs < off+n; b++ {
			if !d.present[b].Load() {
				if off > b*bs || off+n < (b+1)*bs {
					clear(d.data[b*bs : (b+1)*bs])
				}
				d.present[b].Store(true)
			}
		}
		copy(d.data[off:], p[:n])
		p = p[n:]
	})
	d.Writes.Add(1)
	return nil
}

// Zero makes the range read as zeroes; whole blocks become holes.
func (d *MemDevice) Zero(off, length int64, keep bool) error {
	if d.hooks.Zero != nil {
		if err := d.hooks.Zero(off, length, keep); err != nil {
			return err
		}
	}
	if err := d.check("zero", off, length, true); err != nil {
		return err
	}
	d.stripes(off, length, func(mu *sync.RWMutex, off, n int64) {
		mu.Lock()
		defer mu.Unlock()
		for end := off + n; off < end; {
			next := min(end, off-off%bs+bs)
			if next-off == bs {
				d.present[off/bs].Store(false)
			} else {
				clear(d.data[off:next])
			}
			off = next
		}
	})
	d.Writes.Add(1)
	return nil
}

// Discard turns the whole blocks within the range into holes.
func (d *MemDevice) Discard(off, length int64) error {
	if d.hooks.Discard != nil {
		if err := d.hooks.Discard(off, length); err != nil {
			return err
		}
	}
	if err := d.check("discard", off, length, true); err != nil {
		return err
	}
	first, end := (off+bs-1)/bs*bs, (off+length)/bs*bs
	if end > first {
		d.stripes(first, end-first, func(mu *sync.RWMutex, off, n int64) {
			mu.Lock()
			defer mu.Unlock()
			for b := off / bs; b*bs < off+n; b++ {
				d.present[b].Store(false)
			}
		})
	}
	d.Writes.Add(1)
	return nil
}

// Publish does nothing but call its hook: memory is visible at once.
func (d *MemDevice) Publish() error {
	if d.hooks.Publish != nil {
		if err := d.hooks.Publish(); err != nil {
			return err
		}
	}
	d.Publishes.Add(1)
	return nil
}

// Flush does nothing but call its hook.
func (d *MemDevice) Flush(ctx context.Context) error {
	if d.hooks.Flush != nil {
		if err := d.hooks.Flush(ctx); err != nil {
			return err
		}
	}
	d.Flushes.Add(1)
	return nil
}

// Status appends consecutive ranges that cover exactly the range asked for.
func (d *MemDevice) Status(off, length int64, dst []scstore.Range) ([]scstore.Range, error) {
	if err := d.check("status", off, length, false); err != nil {
		return dst, err
	}
	d.stripes(off, length, func(mu *sync.RWMutex, off, n int64) {
		mu.RLock()
		defer mu.RUnlock()
		for end := off + n; off < end; {
			next := min(end, off-off%bs+bs)
			state := scstore.RangeHole
			if d.present[off/bs].Load() {
				state = scstore.RangeData
			}
			dst = appendRange(dst, off, next-off, state)
			off = next
		}
	})
	return dst, nil
}
