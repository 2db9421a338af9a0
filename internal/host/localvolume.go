package host

import (
	"context"
	"errors"
	"fmt"

	"scstore"
	"scstore/consensus/meta"
	"scstore/fs/block"
	"scstore/fs/volume"
	"scstore/internal/api"
)

// snapshotTag is the tag of the mark that keeps a snapshot's content on a host that is
// alone.
func snapshotTag(at scstore.Position) scstore.Tag {
	return scstore.PositionTag(scstore.TagSnapshot, at)
}

// open opens a volume, unless it is open, and counts the use.
func (l *local) open(ctx context.Context, p place, conn bool) (*use, error) {
	s := l.h.slot(p.key())
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.removed {
		return nil, fmt.Errorf("%q: %w", p.name(), scstore.ErrNotFound)
	}
	if s.v == nil {
		if err := l.openVolume(ctx, s, p); err != nil {
			return nil, err
		}
	}
	u := l.h.join(s, conn)
	u.device, u.v = s.v, s.v
	return u, nil
}

// openVolume opens a slot's volume: a volume under a new fence, an image or a
// snapshot for reading. Precondition: s.mu is held.
func (l *local) openVolume(ctx context.Context, s *slot, p place) error {
	t, err := l.h.blocks.Table(p.ID)
	if err != nil {
		return scstore.Hint(fmt.Errorf("the data of %q: %w", p.Name, err), "see scstore doctor")
	}
	if p.snap != nil {
		return s.openSnapshot(t, p)
	}
	o := volume.Options{ID: p.ID, Base: baseChain(t), Head: p.Head}
	if p.Kind == meta.KindImage {
		o.View = t
	} else {
		result, err := l.propose(ctx, meta.GroupAll, meta.OpenFence{ID: p.ID, Holder: l.h.disk()})
		if err != nil {
			return fmt.Errorf("take the right to write: %w", err)
		}
		o.Table, o.Fence, o.Head = table{t}, result.Fence, result.Position
	}
	if s.v, err = volume.Open(o); err != nil {
		return err
	}
	l.h.log.Info("volume opened", "volume", p.Name, "fence", uint64(o.Fence), "read_only", o.Table == nil)
	return nil
}

// openSnapshot opens a slot's snapshot. Precondition: s.mu is held.
func (s *slot) openSnapshot(t *block.Table, p place) error {
	pin, err := t.At(snapshotTag(p.snap.Position))
	if err != nil {
		return err
	}
	s.v, err = volume.Open(volume.Options{ID: p.ID, View: pin, Base: baseChain(t), Head: p.snap.Position})
	if err != nil {
		pin.Release()
		return err
	}
	s.view = pin
	return nil
}

// close closes what the slot has open. Precondition: s.mu is held.
func (s *slot) close() error {
	s.revoke()
	if s.v == nil {
		return nil
	}
	err := s.v.Close()
	s.v = nil
	if s.view != nil {
		s.view.Release()
		s.view = nil
	}
	return err
}

// closeVolumes makes every open volume durable and closes it. A volume that lives on this host
// alone is not sealed: its epochs begin when somebody needs one.
func (l *local) closeVolumes(ctx context.Context) error {
	l.h.mu.Lock()
	slots := l.h.slots
	l.h.slots = map[slotKey]*slot{}
	l.h.mu.Unlock()
	var errs []error
	for key, s := range slots {
		s.mu.Lock()
		var err error
		if s.v != nil {
			err = s.v.Flush(ctx)
		}
		if err = errors.Join(err, s.close()); err != nil {
			errs = append(errs, fmt.Errorf("close volume %s: %w", key.id, err))
		}
		s.mu.Unlock()
	}
	return errors.Join(errs...)
}

// source opens a view of one moment.
func (l *local) source(_ context.Context, p place, u *use) (api.Source, error) {
	t, err := l.h.blocks.Table(p.ID)
	if err != nil {
		return nil, err
	}
	open := t.Pin
	if p.snap != nil {
		open = func() (*block.Pin, error) { return t.At(snapshotTag(p.snap.Position)) }
	}
	pin, err := open()
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

// seal makes an epoch of what is open, commits it and gives it a snapshot's name. The
// mark is durable before the name: what a crash leaves without one is swept (I2).
func (l *local) seal(ctx context.Context, p place, op meta.Snapshot, progress func(done, total int64)) error {
	u, err := l.open(ctx, p, false)
	if err != nil {
		return err
	}
	return errors.Join(l.sealVolume(ctx, u.v, op, progress), u.release())
}

func (l *local) sealVolume(ctx context.Context, v *volume.Volume, op meta.Snapshot, progress func(done, total int64)) error {
	m, err := v.Seal(ctx, progress)
	if err != nil {
		return err
	}
	t, err := l.h.blocks.Table(op.ID)
	if err != nil {
		return err
	}
	op.Position = m.Position
	if err := t.Alias(m.Tag(), snapshotTag(m.Position)); err != nil {
		return err
	}
	if err := v.Flush(ctx); err != nil {
		return err
	}
	commit := meta.CommitEpoch{ID: op.ID, Fence: m.Position.Fence, Parent: m.Parent, Epoch: m.Position.Epoch, Digest: m.Root}
	for _, o := range []meta.Op{commit, op} {
		if _, err := l.propose(ctx, meta.GroupAll, o); err != nil {
			if !errors.Is(err, scstore.ErrPoisoned) && !errors.Is(err, scstore.ErrIndeterminate) {
				err = errors.Join(err, t.Unmark(snapshotTag(m.Position)))
			}
			return err
		}
	}
	return v.Committed(m.Position)
}

// rollback makes a volume what it was at p's snapshot.
func (l *local) rollback(ctx context.Context, p place, s *slot, progress func(done, total int64)) error {
	t, err := l.h.blocks.Table(p.ID)
	if err != nil {
		return err
	}
	if s.v == nil {
		if err := l.openVolume(ctx, s, place{entry: p.entry}); err != nil {
			return err
		}
	}
	if err := t.Rollback(snapshotTag(p.snap.Position)); err != nil {
		return err
	}
	// The content is as it was. A crash before the epoch is committed leaves it to the
	// next seal, which names the whole volume.
	return l.commitRollback(ctx, s.v, p, progress)
}

// commitRollback makes an epoch of the snapshot's content.
func (l *local) commitRollback(ctx context.Context, v *volume.Volume, p place, progress func(done, total int64)) error {
	m, err := v.Seal(ctx, progress)
	if err != nil {
		return err
	}
	_, err = l.propose(ctx, meta.GroupAll, meta.Rollback{
		ID: p.ID, Snapshot: p.snap.Name, Fence: m.Position.Fence, Parent: m.Parent, Epoch: m.Position.Epoch, Digest: m.Root,
	})
	if err != nil {
		return err
	}
	return v.Committed(m.Position)
}

// writtenSince counts the bytes of blocks that were written since p's snapshot.
func (l *local) writtenSince(ctx context.Context, p place) (int64, error) {
	t, err := l.h.blocks.Table(p.ID)
	if err != nil {
		return 0, err
	}
	return volume.ChangedBytes(ctx, t, snapshotTag(p.snap.Position), scstore.Tag{})
}
