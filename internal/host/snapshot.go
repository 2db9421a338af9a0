package host

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"scstore"
	"scstore/consensus/meta"
	"scstore/fs/block"
	"scstore/fs/volume"
	"scstore/internal/api"
)

// place is what a name means: a volume or image as it is now, or a volume at one of
// its snapshots.
type place struct {
	meta.Record
	snap *meta.Snap
}

// slotKey names a slot: an id, and the position of a snapshot, which is zero for what
// is as it is now.
type slotKey struct {
	id scstore.VolumeID
	at scstore.Position
}

func (p place) key() slotKey {
	if p.snap == nil {
		return slotKey{id: p.ID}
	}
	return slotKey{p.ID, p.snap.Position}
}

// name is what a person calls it.
func (p place) name() string {
	if p.snap == nil {
		return p.Name
	}
	return p.Name + "@" + p.snap.Name
}

// kind is how the API calls it.
func (p place) kind() api.Kind {
	if p.snap != nil {
		return api.KindSnapshot
	}
	return kindOf(p.Kind)
}

// readOnly reports whether it can't be written.
func (p place) readOnly() bool { return p.kind() != api.KindVolume }

// snapshotTag is the tag of the mark that keeps a snapshot's content.
func snapshotTag(at scstore.Position) scstore.Tag {
	return scstore.PositionTag(scstore.TagSnapshot, at)
}

// find returns what a name means, a snapshot's VOL@SNAP included. Errors: as for
// lookup.
func (h *Host) find(kind api.Kind, name string) (place, error) {
	vol, snap, isSnapshot := strings.Cut(name, "@")
	if !isSnapshot {
		r, err := h.lookup(kind, name)
		return place{Record: r}, err
	}
	r, err := h.lookup(api.KindVolume, vol)
	if err != nil {
		return place{}, err
	}
	for _, s := range h.snapshots(r.ID) {
		if s.Name == snap {
			return place{r, &s}, nil
		}
	}
	return place{}, scstore.Hint(fmt.Errorf("snapshot %q: %w", name, scstore.ErrNotFound), "list them with scstore volume info %s", vol)
}

// snapshots returns a volume's snapshots, by name.
func (h *Host) snapshots(id scstore.VolumeID) (list []meta.Snap) {
	h.meta.View(func(s *meta.State) { list = s.Snapshots(id) })
	return list
}

// CreateSnapshot ends the open epoch of a volume and names it, VOL@SNAP.
func (h *Host) CreateSnapshot(ctx context.Context, name string, progress func(done, total int64)) (api.Volume, error) {
	vol, snap, ok := strings.Cut(name, "@")
	if !ok || snap == "" {
		return api.Volume{}, scstore.Hint(fmt.Errorf("snapshot %q: %w", name, scstore.ErrInvalid), "write VOLUME@SNAPSHOT, like web1@before-update")
	}
	r, err := h.lookup(api.KindVolume, vol)
	if err != nil {
		return api.Volume{}, fmt.Errorf("snapshot %q: %w", name, err)
	}
	op := meta.Snapshot{ID: r.ID, Name: snap, Position: scstore.Position{Epoch: 1}, CreatedAtMs: time.Now().UnixMilli()}
	if err := (meta.Command{Op: op}).Validate(); err != nil { // before the work, not after it
		return api.Volume{}, fmt.Errorf("snapshot %q: %w", name, err)
	}
	if _, err := h.find(api.KindVolume, name); err == nil {
		return api.Volume{}, scstore.Hint(fmt.Errorf("snapshot %q: %w", name, scstore.ErrExists), "choose another name, or remove it first: scstore volume rm %s", name)
	}
	u, err := h.use(ctx, place{Record: r}, false)
	if err != nil {
		return api.Volume{}, fmt.Errorf("snapshot %q: %w", name, err)
	}
	err = errors.Join(h.seal(ctx, u.v, op, progress), u.release())
	if err != nil {
		return api.Volume{}, fmt.Errorf("snapshot %q: %w", name, err)
	}
	h.log.Info("snapshot made", "volume", vol, "snapshot", snap)
	return h.Get(ctx, api.KindVolume, name)
}

// seal makes an epoch of what is open, commits it and gives it a snapshot's name. The
// mark is durable before the name: what a crash leaves without one is swept (I2).
func (h *Host) seal(ctx context.Context, v *volume.Volume, op meta.Snapshot, progress func(done, total int64)) error {
	m, err := v.Seal(ctx, progress)
	if err != nil {
		return err
	}
	t, err := h.blocks.Table(op.ID)
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
		if _, err := h.meta.Propose(ctx, meta.Command{Op: o}); err != nil {
			if !errors.Is(err, scstore.ErrPoisoned) && !errors.Is(err, scstore.ErrIndeterminate) {
				err = errors.Join(err, t.Unmark(snapshotTag(m.Position)))
			}
			return err
		}
	}
	return v.Committed(m.Position)
}

// removeSnapshot takes a snapshot's name and what only it kept.
func (h *Host) removeSnapshot(ctx context.Context, p place, o api.RemoveOptions) (api.Removal, error) {
	all := h.records()
	v := h.describe(p, all)
	if len(v.Clones) > 0 {
		return api.Removal{}, inUse(v)
	}
	if v.Connections > 0 && !o.Force {
		return api.Removal{}, connected(v)
	}
	out := api.Removal{Volume: v, DryRun: o.DryRun, ClosedConns: v.Connections}
	if o.DryRun {
		return out, nil
	}
	s := h.slot(p.key())
	s.mu.Lock()
	defer s.mu.Unlock()
	closed, err := h.drain(ctx, s, o.Force)
	if err != nil {
		return api.Removal{}, err
	}
	out.ClosedConns = closed
	h.catalog.Lock() // no clone is made of it meanwhile
	defer h.catalog.Unlock()
	if _, err := h.meta.Propose(ctx, meta.Command{Op: meta.DeleteSnapshot{ID: p.ID, Name: p.snap.Name}}); err != nil {
		return api.Removal{}, err
	}
	h.log.Info("snapshot removed", "volume", p.Name, "snapshot", p.snap.Name)
	s.removed = true
	h.dropSlot(p.key())
	if err := s.close(); err != nil {
		h.log.Warn("removed snapshot did not close", "volume", p.name(), "err", err)
	}
	t, err := h.blocks.Table(p.ID)
	if err != nil {
		return api.Removal{}, err
	}
	return out, t.Unmark(snapshotTag(p.snap.Position))
}

// Rollback makes a volume what it was at a snapshot. What was written since is gone,
// and must not be in a later snapshot: those are to be removed first, so that nobody
// loses one unawares.
func (h *Host) Rollback(ctx context.Context, name string, o api.RemoveOptions, progress func(done, total int64)) (api.Rollback, error) {
	out, err := h.rollback(ctx, name, o, progress)
	if err != nil {
		return out, fmt.Errorf("roll back to %q: %w", name, err)
	}
	return out, nil
}

func (h *Host) rollback(ctx context.Context, name string, o api.RemoveOptions, progress func(done, total int64)) (api.Rollback, error) {
	p, err := h.find(api.KindVolume, name)
	if err == nil && p.snap == nil {
		err = scstore.Hint(fmt.Errorf("it names no snapshot: %w", scstore.ErrInvalid), "list them with scstore volume info %s", name)
	}
	if err != nil {
		return api.Rollback{}, err
	}
	whole := place{Record: p.Record}
	v := h.describe(whole, nil)
	out := api.Rollback{Snapshot: name, DryRun: o.DryRun, ClosedConns: v.Connections}
	var later []string
	for _, s := range v.Snapshots {
		if s.Position.Compare(p.snap.Position) > 0 {
			later = append(later, p.Name+"@"+s.Name)
		}
	}
	t, err := h.blocks.Table(p.ID)
	switch {
	case err != nil:
		return out, err
	case len(later) > 0:
		return out, scstore.Hint(fmt.Errorf("%d snapshots are later: %w", len(later), scstore.ErrBusy), "remove them first: %s", some(later))
	case v.Connections > 0 && !o.Force:
		return out, connected(v)
	}
	if out.LostBytes, err = writtenSince(ctx, t, snapshotTag(p.snap.Position)); err != nil || o.DryRun {
		return out, err
	}
	s := h.slot(whole.key())
	s.mu.Lock()
	defer s.mu.Unlock()
	if out.ClosedConns, err = h.drain(ctx, s, o.Force); err != nil {
		return out, err
	}
	if s.v == nil {
		if err := h.openVolume(ctx, s, whole); err != nil {
			return out, err
		}
	}
	if err := t.Rollback(snapshotTag(p.snap.Position)); err != nil {
		return out, err
	}
	h.log.Info("volume rolled back", "volume", p.Name, "snapshot", p.snap.Name, "bytes", out.LostBytes)
	// The content is as it was. A crash before the epoch is committed leaves it to the
	// next seal, which names the whole volume.
	return out, h.commitRollback(ctx, s.v, p, progress)
}

// commitRollback makes an epoch of the snapshot's content.
func (h *Host) commitRollback(ctx context.Context, v *volume.Volume, p place, progress func(done, total int64)) error {
	m, err := v.Seal(ctx, progress)
	if err != nil {
		return err
	}
	_, err = h.meta.Propose(ctx, meta.Command{Op: meta.Rollback{
		ID: p.ID, Snapshot: p.snap.Name, Fence: m.Position.Fence, Parent: m.Parent, Epoch: m.Position.Epoch, Digest: m.Root,
	}})
	if err != nil {
		return err
	}
	return v.Committed(m.Position)
}

// writtenSince counts the bytes of blocks that were written since a mark.
func writtenSince(ctx context.Context, t *block.Table, since scstore.Tag) (bytes int64, err error) {
	const batch = 4096
	for start := scstore.BlockIndex(0); ; {
		list, err := t.Changed(ctx, since, scstore.Tag{}, start, batch)
		if err != nil {
			return 0, err
		}
		for _, e := range list {
			bytes += int64(e.Count) * scstore.BlockSize
		}
		if len(list) < batch {
			return bytes, nil
		}
		start = list[len(list)-1].End()
	}
}

// sweepMarks takes back the marks of snapshots that have no name, for a crash came
// between, or took it away (I2).
func (h *Host) sweepMarks() error {
	for _, info := range h.blocks.Tables() {
		t, err := h.blocks.Table(info.ID)
		if err != nil {
			return err
		}
		named := map[scstore.Tag]bool{}
		for _, s := range h.snapshots(info.ID) {
			named[snapshotTag(s.Position)] = true
		}
		for _, tag := range t.Marks() {
			if tag.Kind == scstore.TagSnapshot && !named[tag] {
				if err := t.Unmark(tag); err != nil {
					return fmt.Errorf("sweep volume %s: %w", info.ID, err)
				}
			}
		}
		for tag := range named {
			if !t.Marked(tag) {
				return scstore.Hint(fmt.Errorf("the data of snapshot %s of volume %s are gone: %w", tag.Position(), info.ID, scstore.ErrCorrupt),
					"put back segments/ and meta/ of the same moment; nothing was changed")
			}
		}
	}
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
