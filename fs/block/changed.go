package block

import (
	"context"
	"errors"
	"fmt"

	"scstore"
)

// allGens, as the generation to look behind, leaves none out.
const allGens = int64(-1)

// selection is a set of blocks of a view of a table, found by walking the map.
type selection struct {
	table *Table
	view  uint32
	// after: only generations after it can matter; runs without one are not read.
	after int64
	// want says whether a version makes a block a candidate, whichever view shows it.
	// A block that is in the set has such a version.
	want func(gen uint32, at loc) bool
	// shown says whether a block is in the set, by the version that the view shows.
	shown func(gen uint32, at loc) bool
}

// Changed returns the blocks that were written, zeroed, discarded or marked remote
// after the mark from and up to the mark to, ascending, none before start: what
// makes the content at to of that at from. The zero from is the table's beginning,
// the zero to its head. At most limit extents are returned; if as many are, the
// rest begins at the last one's End. Memory is bounded whatever the volume's size.
//
// The answer is exact: it comes from the map, so it survives whatever the map does. A
// block that was written and made zeros again is in it, for as long as from is marked: who
// has a position in between lacks the zeros. Only from the table's beginning on such
// blocks may be left out, where it has no base.
//
// Errors: ErrNotFound for a mark, ErrInvalid, ErrCorrupt if the map is unreadable.
func (t *Table) Changed(ctx context.Context, from, to scstore.Tag, start scstore.BlockIndex, limit int) ([]scstore.Extent, error) {
	after, view := allGens, headGen
	// Both marks are held, so that no merge drops what tells the two apart.
	if !from.IsZero() {
		pin, err := t.At(from)
		if err != nil {
			return nil, fmt.Errorf("list changes: %w", err)
		}
		defer pin.Release()
		after = int64(pin.gen)
	}
	if !to.IsZero() {
		pin, err := t.At(to)
		if err != nil {
			return nil, fmt.Errorf("list changes: %w", err)
		}
		defer pin.Release()
		view = pin.gen
	}
	newer := func(gen uint32, at loc) bool { return at != 0 && int64(gen) > after }
	sel := selection{table: t, view: view, after: after, want: newer, shown: newer}
	out, err := sel.extents(ctx, start, limit)
	if err != nil {
		return nil, fmt.Errorf("list changes of volume %s: %w", t.id, err)
	}
	return out, nil
}

// extents returns up to limit extents of the selection, ascending from start on. The
// last one goes on as far as the set does.
func (sel *selection) extents(ctx context.Context, start scstore.BlockIndex, limit int) ([]scstore.Extent, error) {
	t := sel.table
	end := uint64(t.SizeBytes()) / scstore.BlockSize
	switch {
	case limit <= 0:
		return nil, fmt.Errorf("%d extents: %w", limit, scstore.ErrInvalid)
	case t.quarantined.Load():
		return nil, t.quarantineError()
	}
	sc := scratches.Get().(*scratch)
	defer scratches.Put(sc)
	var out []scstore.Extent
	for at := uint64(start); at < end; {
		first, found, err := sel.next(ctx, at, end)
		if err != nil || !found {
			return out, err
		}
		n := min(end-first, resolveBlocks)
		locs, gens := sc.locs[:n], sc.gens[:n]
		if err := t.store.resolveAll(t, sel.view, first, locs, gens); err != nil {
			return nil, err
		}
		for i, where := range locs {
			b := scstore.BlockIndex(first) + scstore.BlockIndex(i)
			switch last := len(out) - 1; {
			case !sel.shown(gens[i], where):
			case last >= 0 && out[last].End() == b:
				out[last].Count++
			case len(out) == limit:
				return out, nil
			default:
				out = append(out, scstore.Extent{First: b, Count: 1})
			}
		}
		at = first + n
	}
	return out, nil
}

// next returns the first candidate of [first, end). Where the cleaner gave away a
// page meanwhile, it looks again.
func (sel *selection) next(ctx context.Context, first, end uint64) (block uint64, found bool, err error) {
	for range MaxMoves {
		if block, found, err = sel.look(ctx, first, end); !errors.Is(err, errMoved) {
			break
		}
	}
	return block, found, err
}

func (sel *selection) look(ctx context.Context, first, end uint64) (block uint64, found bool, err error) {
	s, t := sel.table.store, sel.table
	s.mapMu.RLock()
	dead := t.dead
	for _, m := range [2]*memtable{s.mem, s.frozen} {
		if m == nil {
			continue
		}
		for _, gen := range m.gens[t.no] {
			if int64(gen) <= sel.after || dead.has(gen) {
				continue
			}
			m.layers[layerKey{t.no, gen}].scan(first, end, func(from, _ uint64, at loc) bool {
				if sel.want(gen, at) {
					end, found = from, true
				}
				return !found || from < end
			})
		}
	}
	runs := s.runs
	s.mapMu.RUnlock()
	for _, r := range runs {
		newer, err := s.newerThan(r, t.no, sel.after)
		if err != nil || !newer {
			if err != nil {
				return 0, false, err
			}
			continue
		}
		n := 0
		_, err = s.scan(r, t.no, first, end, false, func(e entry) bool {
			if n++; n%entriesPerPage == 0 && ctx.Err() != nil {
				return false
			}
			if dead.has(e.gen) || !sel.want(e.gen, e.loc) {
				return true
			}
			end, found = max(e.first, first), true
			return false
		})
		if err = errors.Join(err, ctx.Err()); err != nil {
			return 0, false, err
		}
	}
	return end, found, nil
}

// resolveAll is resolve that waits, and that looks again where pages were moved.
func (s *Store) resolveAll(t *Table, view uint32, first uint64, locs []loc, gens []uint32) (err error) {
	for range MaxMoves {
		if _, err = s.resolve(t, view, first, locs, gens, false); !errors.Is(err, errMoved) {
			break
		}
	}
	return err
}
