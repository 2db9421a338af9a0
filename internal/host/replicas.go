package host

import (
	"context"
	"errors"
	"fmt"
	"time"

	"scstore"
	"scstore/consensus/meta"
	"scstore/fs/block"
	"scstore/fs/volume"
	"scstore/internal/api"
	"scstore/internal/replica"
)

const (
	// linkTries is how often a name is proposed while nobody says what became of it.
	linkTries = 3
	// ownerPatience is how long who opens a volume waits for the right to write that this
	// host has by the log already.
	ownerPatience = 2 * time.Second
	ownerPeriod   = 10 * time.Millisecond
)

// create makes a volume that this host writes, and then its name: what a crash leaves in
// between has no name, and is swept.
func (c *clustered) create(ctx context.Context, name string, base place, op meta.CreateVolume) error {
	g := base.group // what refers to each other is in one group
	if op.Base.IsZero() {
		g = c.log.PickGroup()
	}
	// An attempt that failed leaves nothing, or a record that goes: the next has its own.
	if err := patiently(ctx, func() error {
		op.ID = newID()
		return c.replicas.Create(ctx, g, op)
	}); err != nil {
		return err
	}
	return c.link(ctx, name, op.ID, g)
}

// reserve notes that an image is being made here: a crash leaves nothing of it.
func (c *clustered) reserve(id scstore.VolumeID, sizeBytes int64) (meta.GroupID, error) {
	g := c.log.PickGroup()
	return g, c.replicas.Reserve(g, id, sizeBytes)
}

// abandon removes what was made of an image. One that has a record by now, or had one,
// goes with that.
func (c *clustered) abandon(id scstore.VolumeID) error {
	if err := c.replicas.Abandon(id); err != nil && !errors.Is(err, scstore.ErrInvalid) {
		return err
	}
	return nil
}

// adopt records an image that was imported here, then names it.
func (c *clustered) adopt(ctx context.Context, name string, g meta.GroupID, _ *block.Table, op meta.CreateImage) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err := c.replicas.Adopt(ctx, op, g); err != nil {
		return err
	}
	return c.link(ctx, name, op.ID, g)
}

// link names a new record; if the name is refused, the record goes.
func (c *clustered) link(ctx context.Context, name string, id scstore.VolumeID, g meta.GroupID) error {
	var err error
	for range linkTries { // what is not known to have been applied may be proposed again
		_, err = c.propose(ctx, meta.GroupNamespace, meta.Link{Name: name, ID: id, Group: g})
		if !errors.Is(err, scstore.ErrIndeterminate) || ctx.Err() != nil {
			break
		}
	}
	if err == nil || errors.Is(err, scstore.ErrIndeterminate) {
		return err
	}
	_, undone := c.propose(context.WithoutCancel(ctx), g, meta.Remove{ID: id})
	if undone != nil {
		c.h.log.Warn("a record without a name stays for the sweep", "volume", id.String(), "err", undone)
	}
	return err
}

// remove takes the name, then the record; every host drops its data once it has applied
// that. A record that is refused to go gets its name back.
func (c *clustered) remove(ctx context.Context, p place, s *slot) error {
	err := c.awaitClones(ctx, p.group, p.key().id)
	switch {
	case err != nil:
	case p.snap != nil:
		_, err = c.propose(ctx, p.group, meta.DeleteSnapshot{ID: p.ID, Name: p.snap.Name})
	case p.branch != nil:
		_, err = c.propose(ctx, p.group, meta.Remove{ID: p.branch.ID})
	default:
		err = c.unlink(ctx, p)
	}
	if err != nil {
		return err
	}
	s.removed = true
	c.h.dropSlot(p.key())
	s.revoke()
	return nil
}

// unlink removes a volume or an image.
func (c *clustered) unlink(ctx context.Context, p place) error {
	if _, err := c.propose(ctx, meta.GroupNamespace, meta.Unlink{Name: p.Name, ID: p.ID}); err != nil {
		return err
	}
	// It has no name any more: whether the client waits for the rest or not, it is done.
	ctx = context.WithoutCancel(ctx)
	_, err := c.propose(ctx, p.group, meta.Remove{ID: p.ID})
	switch {
	case err == nil, errors.Is(err, scstore.ErrNotFound):
		return nil
	case errors.Is(err, scstore.ErrIndeterminate):
		return err
	}
	_, undone := c.propose(ctx, meta.GroupNamespace, meta.Link{Name: p.Name, ID: p.ID, Group: p.group})
	return errors.Join(err, undone)
}

// open opens what a name means for one use.
func (c *clustered) open(ctx context.Context, p place, conn bool) (*use, error) {
	s := c.h.slot(p.key())
	s.mu.Lock()
	if s.removed {
		s.mu.Unlock()
		return nil, fmt.Errorf("%q: %w", p.name(), scstore.ErrNotFound)
	}
	u := c.h.join(s, conn)
	s.mu.Unlock()
	d, err := c.device(ctx, p)
	if err != nil {
		return nil, errors.Join(err, u.release())
	}
	u.device, u.gate = d, d.Gate()
	// A connection ends with its tenure, and when somebody removes the volume.
	revoked, cancel := context.WithCancel(d.Revoked())
	stop := context.AfterFunc(u.revoked, cancel)
	u.revoked = revoked
	u.end = func() {
		stop()
		cancel()
		d.Release()
	}
	return u, nil
}

// device opens what a name means: a volume as it is now, the others at their position.
func (c *clustered) device(ctx context.Context, p place) (replica.Device, error) {
	if p.branch == nil && p.snap == nil && p.Kind == meta.KindVolume {
		return c.live(ctx, p)
	}
	id, at := p.baseOf()
	d, err := c.replicas.OpenAt(ctx, id, at)
	if errors.Is(err, scstore.ErrNotFound) { // its name says that it is somewhere
		err = fmt.Errorf("%s %q is not at this host: %w", p.kind(), p.name(), scstore.ErrAbsent)
	}
	if errors.Is(err, scstore.ErrAbsent) {
		return nil, scstore.Hint(err, "use it at a host that has it (scstore volume info %s), or place it at this site: scstore placement set %s --replicas SITE,...", p.Name, p.Name)
	}
	return d, err
}

// live opens a volume as it is now. Where this host has just been given the right to
// write, it waits a moment until that is open: who connects would be thrown out by it.
func (c *clustered) live(ctx context.Context, p place) (replica.Device, error) {
	again := time.NewTicker(ownerPeriod)
	defer again.Stop()
	for until := time.Now().Add(ownerPatience); ; {
		d, err := c.replicas.Open(ctx, p.ID)
		if err != nil || !d.ReadOnly() || time.Now().After(until) {
			return d, err
		}
		var t meta.Tenure
		if err := c.view(p.group, func(s *meta.State) { t, _ = s.Holder(p.ID) }); err != nil || t.Holder != c.h.disk() || t.Phase == meta.PhaseRevoked {
			return d, nil // it is written elsewhere, as far as this host can tell
		}
		d.Release()
		select {
		case <-again.C:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// source opens a view of one moment: of a volume that this host writes as it is now, of
// the others at the position that they were opened at.
func (c *clustered) source(_ context.Context, p place, u *use) (api.Source, error) {
	if u.device.ReadOnly() {
		return deviceSource{u}, nil
	}
	t, err := c.h.blocks.Table(p.ID)
	if err != nil {
		return nil, err
	}
	if bytes, err := remoteBytes(t); err != nil || bytes > 0 {
		err = errors.Join(err, fmt.Errorf("%d bytes: %w", bytes, scstore.ErrAbsent))
		return nil, scstore.Hint(err, "wait until all of it is here (scstore volume info %s), or export a snapshot", p.Name)
	}
	pin, err := t.Pin()
	if err != nil {
		return nil, err
	}
	v, err := volume.Open(volume.Options{ID: p.ID, View: pin, Base: baseChain(t)})
	if err != nil {
		pin.Release()
		return nil, err
	}
	return &source{Volume: v, pin: pin, u: u}, nil
}

// remoteBytes counts what a table and its bases lack.
func remoteBytes(t *block.Table) (bytes int64, err error) {
	readers := append([]volume.Reader{t}, baseChain(t)...)
	var pieces []scstore.Piece
	for _, r := range readers {
		blocks := uint64(r.SizeBytes()) / scstore.BlockSize
		for at := uint64(0); at < blocks; at += statusStep / scstore.BlockSize {
			e := scstore.Extent{First: scstore.BlockIndex(at), Count: min(blocks-at, statusStep/scstore.BlockSize)}
			if pieces, err = r.Status(e, pieces[:0]); err != nil {
				return 0, err
			}
			for _, p := range pieces {
				if p.State == scstore.PieceRemote {
					bytes += int64(p.Count) * scstore.BlockSize
				}
			}
		}
	}
	return bytes, nil
}

// deviceSource is a device that shows one position.
type deviceSource struct{ u *use }

// Size returns the bytes of the volume.
func (s deviceSource) Size() int64 { return s.u.device.Size() }

// ReadAt fills p.
func (s deviceSource) ReadAt(p []byte, off int64, holes []scstore.Range) ([]scstore.Range, error) {
	return s.u.device.ReadAt(p, off, holes)
}

// Status appends the states of a range.
func (s deviceSource) Status(off, length int64, dst []scstore.Range) ([]scstore.Range, error) {
	return s.u.device.Status(off, length, dst)
}

// Close gives the device back.
func (s deviceSource) Close() error { return s.u.release() }

// seal names a volume as it is now.
func (c *clustered) seal(ctx context.Context, _ place, op meta.Snapshot, progress func(done, total int64)) error {
	_, err := c.replicas.Snapshot(ctx, op.ID, op.Name, progress)
	return err
}

// writtenSince counts the bytes of blocks that were written since p's snapshot.
func (c *clustered) writtenSince(ctx context.Context, p place) (int64, error) {
	return c.replicas.WrittenSince(ctx, p.ID, p.snap.Position)
}

// rollback makes a volume what it was at p's snapshot.
func (c *clustered) rollback(ctx context.Context, p place, _ *slot, progress func(done, total int64)) error {
	return c.replicas.RollBack(ctx, p.ID, p.snap.Position, progress)
}
