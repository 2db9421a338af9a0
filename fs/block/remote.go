package block

import (
	"context"
	"errors"
	"fmt"

	"scstore"
)

// A remote block is one whose newest content is at another host: the map has an
// entry without a slot for it, of the generation in which that became known. As any
// entry it hides what lies below, is hidden by what is written later, and is kept
// while a pin shows it.
//
// The rule of filling: content is fetched for a view of the table. Where that view
// shows a remote entry, the content takes the entry's place, in its generation;
// anywhere else it is dropped. So it reaches every view that shows that entry, the
// head and older marks alike, and no view that shows anything else: what was written
// meanwhile stays, and what was marked remote anew waits for its own content. If the
// head does not show the entry any more, the copy carries the mark of what only pins
// show, for it comes into a newer source than what hides it.

// maxZeroFill is how many blocks of zeros are written at a time: 1 MiB.
const maxZeroFill = 256

// MarkRemote says that the extents' content is at another host, in one record an
// extent, and then gives that state the tag, unless it is zero.
//
// Durability: as for Mark; a crash that leaves the tag leaves all extents. One that
// does not may leave some of them at the head: roll back to an older mark.
// Errors: as for WriteBlocks and Mark.
func (t *Table) MarkRemote(extents []scstore.Extent, tag scstore.Tag) error {
	for _, e := range extents {
		if err := t.check(e.First, e.Count); err != nil {
			return fmt.Errorf("mark remote: %w", err)
		}
	}
	for _, e := range extents {
		r := record{kind: recordRemote, table: t.no, first: uint64(e.First), count: e.Count}
		if err := t.store.appendLog(t, r, nil, reserveCleaner); err != nil {
			return fmt.Errorf("mark remote: %w", err)
		}
	}
	if tag.IsZero() {
		return nil
	}
	return t.Mark(tag)
}

// Remote returns the blocks that are remote at the head, ascending, none before
// start, in at most limit extents; if as many are returned, the rest begins at the
// last one's End. Errors: ErrInvalid, ErrCorrupt if the map is unreadable.
func (t *Table) Remote(ctx context.Context, start scstore.BlockIndex, limit int) ([]scstore.Extent, error) {
	if t.remote.Load() == 0 {
		return nil, nil
	}
	remote := func(_ uint32, at loc) bool { return at.isRemote() }
	sel := selection{table: t, view: headGen, after: allGens, want: remote, shown: remote}
	out, err := sel.extents(ctx, start, limit)
	if err != nil {
		return nil, fmt.Errorf("list missing blocks of volume %s: %w", t.id, err)
	}
	return out, nil
}

// RemoteBlocks returns how many remote blocks the table has, at the head and in what
// marks show, at most: overwritten ones, and after a restart filled ones, may be
// among them. 0 is exact.
func (t *Table) RemoteBlocks() uint64 { return uint64(max(t.remote.Load(), 0)) }

// Fill stores fetched content, whole blocks from first on, in place of what the view
// of the mark at shows as remote there, and drops the rest of it. It returns how
// many blocks it stored. With the zero tag the view is the head's; then the caller
// must know that nothing was marked remote since the content was asked for.
//
// Durability: as for WriteBlocks.
// Errors: ErrNotFound if there is no such mark any more, ErrBusy (retry), and as for
// WriteBlocks.
func (t *Table) Fill(at scstore.Tag, first scstore.BlockIndex, p []byte) (filled uint64, err error) {
	if len(p)%scstore.BlockSize != 0 {
		return 0, fmt.Errorf("fill volume %s with %d bytes: %w", t.id, len(p), scstore.ErrInvalid)
	}
	return t.fill(at, scstore.Extent{First: first, Count: uint64(len(p)) / scstore.BlockSize}, p)
}

// FillZeros is Fill with zeros, which take no space but where only marks show them.
func (t *Table) FillZeros(at scstore.Tag, e scstore.Extent) (filled uint64, err error) {
	return t.fill(at, e, nil)
}

// fill stores p, or zeros if it is nil.
func (t *Table) fill(at scstore.Tag, e scstore.Extent, p []byte) (filled uint64, err error) {
	if err := t.check(e.First, e.Count); err != nil {
		return 0, fmt.Errorf("fill: %w", err)
	}
	view := headGen
	if !at.IsZero() {
		pin, err := t.At(at)
		if err != nil {
			return 0, fmt.Errorf("fill: %w", err)
		}
		defer pin.Release()
		view = pin.gen
	}
	if t.remote.Load() == 0 {
		return 0, nil
	}
	shown, head := scratches.Get().(*scratch), scratches.Get().(*scratch)
	defer scratches.Put(shown)
	defer scratches.Put(head)
	for done := uint64(0); done < e.Count; {
		n := min(e.Count-done, resolveBlocks)
		part := p
		if p != nil {
			part = p[done*scstore.BlockSize : (done+n)*scstore.BlockSize]
		}
		got, err := t.fillPart(view, uint64(e.First)+done, int(n), part, shown, head)
		filled += got
		if err != nil {
			return filled, fmt.Errorf("fill volume %s: %w", t.id, err)
		}
		done += n
	}
	return filled, nil
}

// fillPart fills up to resolveBlocks blocks, with zeros if p is nil. What it finds out
// about them without the log's lock holds under it if the memtable is still the same and
// has nothing newer for them: all that happened since is in there. Otherwise it looks
// again.
func (t *Table) fillPart(view uint32, first uint64, n int, p []byte, shown, head *scratch) (filled uint64, err error) {
	s := t.store
	for range MaxMoves {
		s.mapMu.RLock()
		mem := s.mem
		s.mapMu.RUnlock()
		if err := s.resolveAll(t, view, first, shown.locs[:n], shown.gens[:n]); err != nil {
			return filled, err
		}
		if err := s.resolveAll(t, headGen, first, head.locs[:n], head.gens[:n]); err != nil {
			return filled, err
		}
		for i := 0; i < n && err == nil; {
			run, kept := fillRun(shown, head, i, n)
			if shown.locs[i].isRemote() {
				var data []byte
				r := record{kind: recordData, gen: shown.gens[i], table: t.no, first: first + uint64(i)}
				switch {
				case p != nil:
					data = p[i*scstore.BlockSize : (i+run)*scstore.BlockSize]
				case kept: // there are no zeros that only pins show
					run = min(run, maxZeroFill)
					data = make([]byte, run*scstore.BlockSize)
				default:
					r.kind = recordZero
				}
				if kept {
					r.kind = recordKept
				}
				r.count = uint64(run)
				var got uint64
				got, err = t.fillLocked(r, data, mem)
				filled += got
			}
			i += run
		}
		if !errors.Is(err, errSuperseded) {
			return filled, err
		}
		err = nil
	}
	return filled, fmt.Errorf("blocks %d+%d change too fast: %w", first, n, scstore.ErrBusy)
}

// fillRun returns how many blocks from i on are alike: not remote, or remote in one
// generation, and hidden from the head or not.
func fillRun(shown, head *scratch, i, n int) (run int, kept bool) {
	hidden := func(j int) bool { return !head.locs[j].isRemote() || head.gens[j] != shown.gens[j] }
	kept = hidden(i)
	for run = 1; i+run < n; run++ {
		j := i + run
		if shown.locs[j].isRemote() != shown.locs[i].isRemote() || shown.locs[i].isRemote() && (shown.gens[j] != shown.gens[i] || hidden(j) != kept) {
			break
		}
	}
	return run, kept
}

// fillLocked appends content for remote entries of one generation, found while mem
// was the memtable, and returns how many blocks it appended. Errors: errSuperseded
// if that may not be so any more.
func (t *Table) fillLocked(r record, p []byte, mem *memtable) (filled uint64, err error) {
	s := t.store
	s.logMu.Lock()
	defer s.logMu.Unlock()
	next := r.first
	err = s.appendLocked(r, p, reserveDiscards, func(r *record) error {
		next = r.first
		if err := s.throttle(r); err != nil {
			return err
		}
		s.mapMu.RLock()
		defer s.mapMu.RUnlock()
		switch {
		case t.deleted.Load():
			return scstore.ErrNotFound
		case t.quarantined.Load():
			return t.quarantineError()
		case s.opts.plant == plantBlindFill:
			if r.kind == recordKept {
				r.kind = recordData
			}
			return nil
		case s.mem != mem, t.dead.has(r.gen), !mem.fillable(r, t.dead):
			return errSuperseded
		}
		return nil
	})
	if filled = next - r.first; err == nil {
		filled = r.count
	}
	t.remote.Add(-int64(filled))
	return filled, err
}

// fillable reports whether the memtable leaves it at that: the blocks of r are remote
// in r's generation and, unless r is kept for pins alone, nothing newer hides them.
func (m *memtable) fillable(r *record, dead genRanges) bool {
	for _, gen := range m.gens[r.table] {
		if gen < r.gen {
			break
		}
		if dead.has(gen) || gen > r.gen && r.kind == recordKept {
			continue
		}
		good := true
		m.layers[layerKey{r.table, gen}].scan(r.first, r.first+r.count, func(_, _ uint64, at loc) bool {
			good = gen == r.gen && at.isRemote()
			return good
		})
		if !good {
			return false
		}
	}
	return true
}
