package replica

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"scstore"
	"scstore/consensus/meta"
	"scstore/fs/block"
	"scstore/fs/volume"
	"scstore/nbd"
	"scstore/propagate/quicnet"
)

const (
	fetchPatience = 30 * time.Second // for a missing block that no holder brings; then the request fails
	fetchPause    = 200 * time.Millisecond
)

// Device is what a door gets of a volume.
type Device interface {
	nbd.Device
	// Gate stops its requests during a hand-off; all doors of a volume share it. nil is
	// always open.
	Gate() *nbd.Gate
	// Revoked ends when the device is not to be used any more.
	Revoked() context.Context
	// Release ends the use. It is idempotent.
	Release()
}

var _ Device = (*device)(nil)

// device is the volume of an owner, which is bound to it when it comes to own it, or a
// view of one position.
type device struct {
	r       *Replica
	size    int64
	at      scstore.Position // of a view
	gate    *nbd.Gate
	revoked context.Context
	v       atomic.Pointer[volume.Volume]
	ended   atomic.Pointer[error] // why

	pin     *block.Pin // of a view
	release sync.Once
	mu      sync.RWMutex // of a view: held shared by its requests, alone by Release

	// written counts bytes that were written since the last seal; a write that a seal
	// takes may be counted after it. first is when the first of them was counted, now().
	written atomic.Int64
	first   atomic.Int64
}

func (d *device) bind(v *volume.Volume) { d.v.Store(v) }

// Size returns the volume's size in bytes; a view's is that when it was opened.
func (d *device) Size() int64 {
	if v := d.v.Load(); v != nil && d.pin == nil {
		return v.Size()
	}
	return d.size
}

// ReadOnly reports whether writes are refused.
func (d *device) ReadOnly() bool { return d.pin != nil }

// Gate returns the gate that the volume's doors share.
func (d *device) Gate() *nbd.Gate { return d.gate }

// Revoked returns what ends with the use.
func (d *device) Revoked() context.Context { return d.revoked }

// Release gives a view up. An owner's device is all doors'.
func (d *device) Release() {
	if d.pin == nil {
		return
	}
	d.release.Do(func() {
		d.r.mu.Lock()
		if end := d.r.readers[d]; end != nil {
			delete(d.r.readers, d)
			end()
		}
		d.r.mu.Unlock()
		d.mu.Lock()
		defer d.mu.Unlock()
		_ = d.v.Load().Close() // it has nothing that could fail
		d.pin.Release()
	})
}

// use returns the volume behind, held until done.
func (d *device) use() (v *volume.Volume, done func(), err error) {
	done = func() {}
	if d.pin != nil {
		d.mu.RLock()
		done = d.mu.RUnlock
	}
	why := d.ended.Load()
	if v = d.v.Load(); v != nil && why == nil {
		return v, done, nil
	}
	done()
	if why != nil {
		return nil, nil, *why
	}
	return nil, nil, fmt.Errorf("volume %s is on its way to another owner: %w", d.r.id, scstore.ErrBusy)
}

// note counts written bytes.
func (d *device) note(n int64) {
	if d.written.Add(n) == n {
		d.first.Store(int64(d.r.set.now()))
		d.r.rests.Store(false)
	}
}

// bringer brings what an operation lacked.
type bringer func(ctx context.Context, m *volume.MissingError) error

// with runs a request, and again after what it lacked was brought.
//
// step R5
func (d *device) with(op func(v *volume.Volume) error, bring bringer) error {
	patience := time.Duration(0) // the end of it; 0: nothing was missing yet
	for {
		v, done, err := d.use()
		if err != nil {
			return err
		}
		err = op(v)
		done()
		var m *volume.MissingError
		if !errors.As(err, &m) {
			return err
		}
		now := d.r.set.now()
		if patience == 0 {
			patience = now + fetchPatience
		}
		if failed := d.fetch(m, patience-now, bring); failed != nil {
			if d.r.set.now() >= patience {
				return fmt.Errorf("volume %s: %v: %w", d.r.id, failed, scstore.ErrAbsent)
			}
			pause(d.revoked, fetchPause)
		}
		if d.revoked.Err() != nil || d.r.set.ctx.Err() != nil {
			return fmt.Errorf("volume %s: %w", d.r.id, scstore.ErrClosed)
		}
	}
}

func (d *device) fetch(m *volume.MissingError, patience time.Duration, bring bringer) error {
	ctx, cancel := context.WithTimeout(d.revoked, patience)
	defer cancel()
	return bring(ctx, m)
}

// ReadAt reads, and waits for what is at another host.
func (d *device) ReadAt(p []byte, off int64, holes []scstore.Range) ([]scstore.Range, error) {
	have := len(holes)
	err := d.with(func(v *volume.Volume) (err error) {
		holes, err = v.ReadAt(p, off, holes[:have])
		return err
	}, d.r.bringDemanded)
	return holes, err
}

// ReadNowAt reads what is at hand.
func (d *device) ReadNowAt(p []byte, off int64, holes []scstore.Range) ([]scstore.Range, bool, error) {
	v, done, err := d.use()
	if err != nil {
		return holes, false, err
	}
	defer done()
	return v.ReadNowAt(p, off, holes)
}

// WriteAt writes. A block that is changed in part is fetched first.
func (d *device) WriteAt(p []byte, off int64) error {
	return d.counted(int64(len(p)), func(v *volume.Volume) error { return v.WriteAt(p, off) })
}

// Zero makes the bytes zeros.
func (d *device) Zero(off, length int64, keep bool) error {
	return d.counted(length, func(v *volume.Volume) error { return v.Zero(off, length, keep) })
}

// Discard gives whole blocks back.
func (d *device) Discard(off, length int64) error {
	return d.counted(length, func(v *volume.Volume) error { return v.Discard(off, length) })
}

// counted counts what a request writes once it was done, also in part: a seal that comes
// between takes it, and the next one finds nothing.
func (d *device) counted(n int64, op func(v *volume.Volume) error) error {
	err := d.with(op, func(ctx context.Context, m *volume.MissingError) error {
		return d.r.bringMissing(ctx, m, quicnet.ClassDemand)
	})
	if n > 0 && d.pin == nil {
		d.note(n)
	}
	return err
}

// Publish makes what was written survive this process.
func (d *device) Publish() error {
	v, done, err := d.use()
	if err != nil {
		return err
	}
	defer done()
	return v.Publish()
}

// Flush makes what was written durable.
func (d *device) Flush(ctx context.Context) error {
	v, done, err := d.use()
	if err != nil {
		return err
	}
	defer done()
	return v.Flush(ctx)
}

// Status describes the bytes; what is not here yet counts as data.
func (d *device) Status(off, length int64, dst []scstore.Range) ([]scstore.Range, error) {
	v, done, err := d.use()
	if err != nil {
		return dst, err
	}
	defer done()
	return v.Status(off, length, dst)
}

// Open opens a volume for a door: the owner's for reading and writing; that of a target
// of a hand-off, whose requests wait; else the newest complete position here, to be read.
// Errors: ErrNotFound; ErrAbsent if nothing complete of it is here.
func (s *Set) Open(ctx context.Context, id scstore.VolumeID) (Device, error) {
	g, err := s.groupOf(id)
	if err != nil {
		return nil, fmt.Errorf("open: %w", err)
	}
	if d, err := s.open(g, id); d != nil || err != nil {
		return d, err
	}
	// Nobody writes it: this host may.
	r := s.replica(id)
	if err := r.lockSealing(ctx); err != nil { // one at a time: each would get a fence of its own
		return nil, err
	}
	defer r.unlockSealing()
	if d, err := s.open(g, id); d != nil || err != nil {
		return d, err
	}
	if _, err := s.o.Log.Propose(ctx, g, meta.OpenFence{ID: id, Holder: s.o.Disk}); err != nil {
		return nil, fmt.Errorf("open volume %s: take the right to write: %w", id, err)
	}
	s.review(g, []scstore.VolumeID{id})
	if err := r.wait(ctx, func() (bool, error) { return r.device != nil, nil }); err != nil {
		return nil, fmt.Errorf("open volume %s: %w", id, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.device == nil {
		return nil, fmt.Errorf("open volume %s: %w", id, scstore.ErrBusy)
	}
	return r.device, nil
}

// open opens what is here. It returns neither a device nor an error for a volume that
// nobody writes and that this host could.
func (s *Set) open(g meta.GroupID, id scstore.VolumeID) (Device, error) {
	var d *device
	var free bool
	var failed error
	err := s.o.Log.View(g, func(st *meta.State) {
		rec, ok := st.Get(id)
		t, live := st.Holder(id)
		r, here := s.lookup(id)
		if ok && !live || !ok && !here {
			failed = fmt.Errorf("open volume %s: %w", id, scstore.ErrNotFound)
			return
		}
		if !here {
			r = s.replica(id)
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		if !ok && r.device == nil {
			failed = fmt.Errorf("open volume %s: %w", id, scstore.ErrNotFound)
			return
		} // an owner serves under its durable fence, however far the log was read
		at := r.newest(st)
		if r.device == nil && rec.Head == at && t.Holder == "" && t.Phase != meta.PhaseRevoked && rec.Kind == meta.KindVolume && r.table != nil {
			free = true
			return
		}
		switch {
		case r.device != nil:
			d = r.device
		case r.facts.Draining != nil && r.table != nil: // after a restart, undecided
			d, failed = r.openAt(r.facts.Draining.Final.Position)
		case at == (scstore.Position{}):
			failed = scstore.Hint(fmt.Errorf("open volume %s: %w", id, scstore.ErrAbsent),
				"use it at the host that has it, or place it at this site: scstore volume info says where it is")
		default:
			d, failed = r.openAt(at)
		}
	})
	if err = errors.Join(err, failed); err != nil || free {
		return nil, err
	}
	return d, nil
}

// OpenAt opens a volume at a position, to be read: a snapshot, an image. Errors: ErrAbsent
// if that is not complete here.
func (s *Set) OpenAt(_ context.Context, id scstore.VolumeID, at scstore.Position) (Device, error) {
	r, ok := s.lookup(id)
	if !ok {
		return nil, fmt.Errorf("open volume %s at %s: %w", id, at, scstore.ErrNotFound)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.facts.holds(at) || r.table == nil {
		return nil, scstore.Hint(fmt.Errorf("open volume %s at %s: %w", id, at, scstore.ErrAbsent), "read it at a host that has it: see scstore volume info")
	}
	d, err := r.openAt(at)
	if err != nil {
		return nil, err
	}
	return d, nil
}

// openAt makes a device of a mark. mu is held.
func (r *Replica) openAt(at scstore.Position) (*device, error) {
	pin, err := r.table.At(sealedTag(at))
	if err != nil {
		return nil, err
	}
	v, err := volume.Open(volume.Options{ID: r.id, View: pin, Base: baseChain(r.table)})
	if err != nil {
		pin.Release()
		return nil, err
	}
	d := &device{r: r, size: r.table.SizeBytes(), at: at, pin: pin}
	var end context.CancelFunc
	d.revoked, end = context.WithCancel(context.Background())
	d.bind(v)
	r.readers[d] = end
	return d, nil
}
