package host

import (
	"context"
	"fmt"
	"sync"

	"scstore"
	"scstore/consensus/meta"
	"scstore/fs/block"
	"scstore/fs/volume"
	"scstore/internal/api"
	"scstore/nbd"
)

// opener is what is done with the bytes of volumes: a host alone has all of them
// (local), one of a cluster has replicas (clustered).
type opener interface {
	// exclude keeps other callers of it out until what it returns is called, where names
	// and tables must change together.
	exclude() (end func())
	// create makes a volume with its name, durably. Precondition: exclude.
	create(ctx context.Context, name string, base place, op meta.CreateVolume) error
	// reserve notes that a table for an image is about to be made, and says which group
	// its record will be in. adopt or abandon follows.
	reserve(id scstore.VolumeID, sizeBytes int64) (meta.GroupID, error)
	// adopt names an image whose table is complete and sealed, durably, unless ctx has
	// ended: a client that is gone does not learn that the image exists.
	adopt(ctx context.Context, name string, g meta.GroupID, t *block.Table, op meta.CreateImage) error
	// abandon removes the table of an image that was not adopted.
	abandon(id scstore.VolumeID) error
	// open opens what a name means for one use.
	open(ctx context.Context, p place, conn bool) (*use, error)
	// source opens a view of one moment, which keeps the use.
	source(ctx context.Context, p place, u *use) (api.Source, error)
	// seal ends the open epoch, commits it and names it, durably.
	seal(ctx context.Context, p place, op meta.Snapshot, progress func(done, total int64)) error
	// writtenSince counts the bytes of blocks that were written since p's snapshot.
	writtenSince(ctx context.Context, p place) (int64, error)
	// rollback makes a volume what it was at p's snapshot, durably. Precondition: s, of the
	// volume itself, is held and drained.
	rollback(ctx context.Context, p place, s *slot, progress func(done, total int64)) error
	// remove takes a name that nobody uses, and then the data. Precondition: s.mu is
	// held, and s is drained.
	remove(ctx context.Context, p place, s *slot) error
	// where says what a volume's bytes hang on, or nil. With ask, other hosts are asked what
	// they alone know.
	where(ctx context.Context, e entry, ask bool) (*api.Where, error)
	// closeVolumes makes durable what is open and closes it.
	closeVolumes(ctx context.Context) error
}

// slot is the place of one volume in this process: open or not.
type slot struct {
	// mu is held while the volume is opened, drained and removed.
	mu      sync.Mutex
	v       *volume.Volume // nil until it is first used, and in a cluster
	view    volume.View    // that v shows, if it is a snapshot
	removed bool

	// Guarded by Host.mu.
	users   int             // uses that were not released
	conns   int             // those of them that are NBD connections
	revoked context.Context // its end ends the connections
	revoke  context.CancelFunc
	idle    chan struct{} // closed when users comes to 0; nil if nobody waits
}

// use is one use of an open volume.
type use struct {
	h       *Host
	s       *slot
	device  nbd.Device
	v       *volume.Volume // the same, on a host that is alone
	gate    *nbd.Gate      // nil is always open
	conn    bool
	revoked context.Context
	end     func() // of the device, or nil
	once    sync.Once
}

// slot returns the slot of an id.
func (h *Host) slot(id slotKey) *slot {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.slots[id]
	if s == nil {
		s = &slot{}
		s.revoked, s.revoke = context.WithCancel(context.Background())
		h.slots[id] = s
	}
	return s
}

// dropSlot forgets a removed volume's slot.
func (h *Host) dropSlot(id slotKey) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.slots, id)
}

// join counts a use, which ends with release. Precondition: s.mu is held.
func (h *Host) join(s *slot, conn bool) *use {
	h.mu.Lock()
	defer h.mu.Unlock()
	s.users++
	if conn {
		s.conns++
	}
	return &use{h: h, s: s, conn: conn, revoked: s.revoked}
}

// release ends the use. Safe to call again.
func (u *use) release() error {
	u.once.Do(func() {
		if u.end != nil {
			u.end()
		}
		u.h.mu.Lock()
		defer u.h.mu.Unlock()
		u.s.users--
		if u.conn {
			u.s.conns--
		}
		if u.s.users == 0 && u.s.idle != nil {
			close(u.s.idle)
			u.s.idle = nil
		}
	})
	return nil
}

// drain waits until nobody uses the slot; with force it ends the connections
// first, and returns how many. Precondition: s.mu is held, so nobody joins.
func (h *Host) drain(ctx context.Context, s *slot, force bool) (closed int, err error) {
	h.mu.Lock()
	closed = s.conns
	if closed > 0 && !force {
		h.mu.Unlock()
		return 0, scstore.Hint(fmt.Errorf("%d NBD connections: %w", closed, scstore.ErrBusy), "disconnect its users, or close the connections with --force")
	}
	if s.users == 0 {
		h.mu.Unlock()
		return 0, nil
	}
	if s.users > s.conns {
		h.mu.Unlock()
		return 0, scstore.Hint(fmt.Errorf("it is being exported: %w", scstore.ErrBusy), "wait for the export to end")
	}
	s.revoke()
	s.revoked, s.revoke = context.WithCancel(context.Background())
	idle := make(chan struct{})
	s.idle = idle
	h.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, drainTimeout)
	defer cancel()
	select {
	case <-idle:
		return closed, nil
	case <-ctx.Done():
		return 0, fmt.Errorf("connections did not end within %s: %w", drainTimeout, scstore.ErrBusy)
	}
}

// table is a table of the store as package volume wants it.
type table struct{ *block.Table }

// At returns a view of what a mark kept.
func (t table) At(tag scstore.Tag) (volume.View, error) {
	pin, err := t.Table.At(tag)
	if err != nil {
		return nil, err
	}
	return pin, nil
}

// baseChain returns what shows through, nearest first.
func baseChain(t *block.Table) (chain []volume.Reader) {
	for ; t.Base() != nil; t = t.Base() {
		chain = append(chain, t.BaseView())
	}
	return chain
}
