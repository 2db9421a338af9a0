package host

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"path/filepath"
	"sync"

	"scstore"
	"scstore/consensus"
	"scstore/consensus/meta"
	"scstore/fs/block"
	"scstore/internal/api"
)

// local is a host that is in no cluster: names and records are in one state, and all
// data are here.
type local struct {
	h    *Host
	meta *consensus.Local

	// catalog is held while names and tables change together: a name is looked at,
	// a table is made or deleted, a command is proposed. Not while data move.
	catalog sync.Mutex
}

var (
	_ agreement = (*local)(nil)
	_ opener    = (*local)(nil)
)

// resolve returns what a name names.
func (l *local) resolve(name string) (e entry, ok bool, err error) {
	l.meta.View(func(s *meta.State) {
		if r, found := s.Lookup(name); found {
			e, ok = entryOf(s, meta.GroupAll, r.ID, name)
		}
	})
	return e, ok, nil
}

// entries returns all that have a name.
func (l *local) entries() (all []entry, err error) {
	l.meta.View(func(s *meta.State) { all = collect(s, meta.GroupAll, nil) })
	return byName(all), nil
}

// view calls f with the state.
func (l *local) view(_ meta.GroupID, f func(*meta.State)) error {
	l.meta.View(f)
	return nil
}

// propose decides an operation.
func (l *local) propose(ctx context.Context, _ meta.GroupID, op meta.Op) (meta.Result, error) {
	return l.meta.Propose(ctx, meta.Command{Op: op})
}

// close closes the log.
func (l *local) close() error { return l.meta.Close() }

// exclude takes the catalog.
func (l *local) exclude() (end func()) {
	l.catalog.Lock()
	return l.catalog.Unlock
}

// create makes a table, then its name.
func (l *local) create(ctx context.Context, name string, base place, op meta.CreateVolume) error {
	op.Name = name
	var mark scstore.Tag
	if base.snap != nil {
		mark = snapshotTag(base.snap.Position)
	}
	if _, err := l.h.blocks.Create(block.CreateOptions{ID: op.ID, SizeBytes: op.SizeBytes, Base: op.Base, BaseMark: mark}); err != nil {
		return err
	}
	// If the names refuse it, the table goes.
	_, err := l.propose(ctx, meta.GroupAll, op)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, scstore.ErrPoisoned), errors.Is(err, scstore.ErrIndeterminate):
		return err // it may have its name: the next start looks
	}
	return errors.Join(err, l.h.blocks.Delete(op.ID))
}

// reserve needs no note: the next start deletes a table without a name (I2).
func (l *local) reserve(scstore.VolumeID, int64) (meta.GroupID, error) { return meta.GroupAll, nil }

// abandon deletes the table of an image, if it was made.
func (l *local) abandon(id scstore.VolumeID) error {
	if err := l.h.blocks.Delete(id); err != nil && !errors.Is(err, scstore.ErrNotFound) {
		return err
	}
	return nil
}

// adopt freezes an image and names it.
func (l *local) adopt(ctx context.Context, name string, _ meta.GroupID, t *block.Table, op meta.CreateImage) error {
	op.Name = name
	if err := t.Freeze(); err != nil {
		return err
	}
	defer l.exclude()()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	_, err := l.propose(ctx, meta.GroupAll, op)
	return err
}

// remove takes the name, then the data. A crash in between leaves the rest to the next
// start.
func (l *local) remove(ctx context.Context, p place, s *slot) error {
	var op meta.Op = meta.Remove{ID: p.ID} // by id: the name may be another's by now
	if p.snap != nil {
		op = meta.DeleteSnapshot{ID: p.ID, Name: p.snap.Name}
	}
	if _, err := l.propose(ctx, meta.GroupAll, op); err != nil {
		return err
	}
	s.removed = true
	l.h.dropSlot(p.key())
	if err := s.close(); err != nil {
		l.h.log.Warn("what was removed did not close", "volume", p.name(), "err", err)
	}
	if p.snap != nil {
		t, err := l.h.blocks.Table(p.ID)
		if err != nil {
			return err
		}
		return t.Unmark(snapshotTag(p.snap.Position))
	}
	if err := l.h.blocks.Delete(p.ID); err != nil {
		return err
	}
	_, err := l.propose(context.WithoutCancel(ctx), meta.GroupAll, meta.Forget{ID: p.ID})
	return err
}

// where is for clusters.
func (l *local) where(context.Context, entry, bool) (*api.Where, error) { return nil, nil }

// reconcile makes tables and names agree again after a crash (I2).
func (l *local) reconcile(ctx context.Context) error {
	var applied uint64
	named := map[scstore.VolumeID]bool{}
	var tombstones []meta.Record
	l.meta.View(func(s *meta.State) {
		applied = s.Applied()
		for _, r := range s.Records() { // a branch has no name of its own
			named[r.ID] = true
		}
		tombstones = s.Tombstones()
	})
	tables := l.h.blocks.Tables()
	if applied == 0 {
		if len(tables) > 0 {
			return scstore.Hint(fmt.Errorf("folder %q holds %d volumes, but their names are gone: %w", l.h.o.Dir, len(tables), scstore.ErrCorrupt),
				"restore %s from a backup; nothing was changed", filepath.Join(l.h.o.Dir, metaName))
		}
		// From here on the names are never empty, so that losing them shows.
		var client meta.ClientID
		rand.Read(client[:])
		_, err := l.meta.Propose(ctx, meta.Command{ID: meta.CommandID{Client: client}, Op: meta.OpenSession{}})
		if err != nil {
			return fmt.Errorf("make the store: %w", err)
		}
	}
	removed := map[scstore.VolumeID]bool{}
	for _, r := range tombstones {
		removed[r.ID] = true
	}
	if err := l.checkUnnamed(ctx, tables, named, removed); err != nil {
		return err
	}
	if err := l.h.deleteTables(tables, named); err != nil {
		return err
	}
	for _, r := range tombstones {
		if _, err := l.propose(ctx, meta.GroupAll, meta.Forget{ID: r.ID}); err != nil {
			return fmt.Errorf("forget removed volume %s: %w", r.ID, err)
		}
	}
	return l.sweepMarks()
}

// checkUnnamed refuses a store that holds data without a name which no crash leaves:
// names of an earlier moment were put back, and what was made since would be deleted.
// An unfinished import has its mark; a volume that has no name yet holds nothing.
func (l *local) checkUnnamed(ctx context.Context, tables []block.TableInfo, named, removed map[scstore.VolumeID]bool) error {
	lost := 0
	for _, info := range tables {
		t, err := l.h.blocks.Table(info.ID)
		if err != nil {
			return err
		}
		if named[info.ID] {
			if t.Marked(unfinished) { // the crash came after the name
				err = t.Unmark(unfinished)
			}
			if err != nil {
				return fmt.Errorf("finish the import of %s: %w", info.ID, err)
			}
			continue
		}
		if removed[info.ID] || t.Marked(unfinished) {
			continue
		}
		written, err := t.Changed(ctx, scstore.Tag{}, scstore.Tag{}, 0, 1)
		if err != nil {
			return fmt.Errorf("look into volume %s, which has no name: %w", info.ID, err)
		}
		if len(written) > 0 {
			lost++
		}
	}
	if lost > 0 {
		return scstore.Hint(fmt.Errorf("folder %q holds data of %d volumes that %s does not know: it is older than %s: %w",
			l.h.o.Dir, lost, metaName, segmentsName, scstore.ErrCorrupt), "put back files of the same moment; nothing was changed")
	}
	return nil
}

// sweepMarks takes back the marks of snapshots that have no name, for a crash came
// between, or took it away (I2).
func (l *local) sweepMarks() error {
	for _, info := range l.h.blocks.Tables() {
		t, err := l.h.blocks.Table(info.ID)
		if err != nil {
			return err
		}
		named := map[scstore.Tag]bool{}
		l.meta.View(func(s *meta.State) {
			for _, snap := range s.Snapshots(info.ID) {
				named[snapshotTag(snap.Position)] = true
			}
		})
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

// deleteTables deletes the tables that are not known, clones before their bases.
func (h *Host) deleteTables(tables []block.TableInfo, known map[scstore.VolumeID]bool) error {
	var left []scstore.VolumeID
	for _, t := range tables {
		if !known[t.ID] {
			left = append(left, t.ID)
		}
	}
	for len(left) > 0 {
		var busy []scstore.VolumeID
		for _, id := range left {
			err := h.blocks.Delete(id)
			switch {
			case errors.Is(err, scstore.ErrBusy):
				busy = append(busy, id)
			case err != nil:
				return fmt.Errorf("delete volume %s, which has no name: %w", id, err)
			default:
				h.log.Info("deleted what an unfinished command left", "volume", id.String())
			}
		}
		if len(busy) == len(left) {
			return fmt.Errorf("delete %d volumes without a name: %w", len(busy), scstore.ErrBusy)
		}
		left = busy
	}
	return nil
}
