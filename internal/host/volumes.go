package host

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"scstore"
	"scstore/consensus/meta"
	"scstore/fs/block"
	"scstore/fs/volume"
)

// slot is the place of one volume in this process: open or not.
type slot struct {
	// mu is held while the volume is opened, drained and removed.
	mu      sync.Mutex
	v       *volume.Volume // nil until it is first used
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
	v       *volume.Volume
	conn    bool
	revoked context.Context
	once    sync.Once
}

// slot returns the slot of an id.
func (h *Host) slot(id scstore.VolumeID) *slot {
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
func (h *Host) dropSlot(id scstore.VolumeID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.slots, id)
}

// use opens a volume, unless it is open, and counts the use. It ends with release.
func (h *Host) use(ctx context.Context, r meta.Record, conn bool) (*use, error) {
	s := h.slot(r.ID)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.removed {
		return nil, fmt.Errorf("%q: %w", r.Name, scstore.ErrNotFound)
	}
	if s.v == nil {
		if err := h.openVolume(ctx, s, r); err != nil {
			return nil, err
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	s.users++
	if conn {
		s.conns++
	}
	return &use{h: h, s: s, v: s.v, conn: conn, revoked: s.revoked}, nil
}

// release ends the use. Safe to call again.
func (u *use) release() error {
	u.once.Do(func() {
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

// openVolume opens a slot's volume: a volume under a new fence, an image for
// reading. Precondition: s.mu is held.
func (h *Host) openVolume(ctx context.Context, s *slot, r meta.Record) error {
	t, err := h.blocks.Table(r.ID)
	if err != nil {
		return scstore.Hint(fmt.Errorf("the data of %q: %w", r.Name, err), "see scstore doctor")
	}
	o := volume.Options{ID: r.ID, Table: table{t}, Base: baseChain(t), Head: r.Head, ReadOnly: r.Kind == meta.KindImage}
	if !o.ReadOnly {
		result, err := h.meta.Propose(ctx, meta.Command{Op: meta.OpenFence{ID: r.ID, Holder: meta.DiskID(h.folder.id.String())}})
		if err != nil {
			return fmt.Errorf("take the right to write: %w", err)
		}
		o.Head = scstore.Position{Fence: result.Fence, Epoch: result.Position.Epoch}
	}
	if s.v, err = volume.Open(o); err != nil {
		return err
	}
	h.log.Info("volume opened", "volume", r.Name, "fence", uint64(o.Head.Fence), "read_only", o.ReadOnly)
	return nil
}

// closeVolumes makes every open volume durable and closes it. Precondition: the
// doors are closed. A volume that lives on this host alone is not sealed: its
// epochs begin when somebody needs one.
func (h *Host) closeVolumes(ctx context.Context) error {
	h.mu.Lock()
	slots := h.slots
	h.slots = map[scstore.VolumeID]*slot{}
	h.mu.Unlock()
	var errs []error
	for id, s := range slots {
		s.mu.Lock()
		if s.v != nil {
			if err := errors.Join(s.v.Flush(ctx), s.v.Close()); err != nil {
				errs = append(errs, fmt.Errorf("close volume %s: %w", id, err))
			}
			s.v = nil
		}
		s.revoke()
		s.mu.Unlock()
	}
	return errors.Join(errs...)
}

// table is a table of the store as package volume wants it.
type table struct{ *block.Table }

// Pin returns a view of the table as it is now.
func (t table) Pin() (volume.View, error) { return t.Table.Pin() }

// baseChain returns the tables that show through, nearest first.
func baseChain(t *block.Table) (chain []volume.Reader) {
	for b := t.Base(); b != nil; b = b.Base() {
		chain = append(chain, b)
	}
	return chain
}
