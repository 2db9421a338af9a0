package block

import (
	"slices"

	"github.com/tidwall/btree"
)

// cursor walks one source of the map in order. peek returns the versions of the
// current interval (the same table, first and count; newest generation first),
// or nothing at the end; they are valid until next.
type cursor interface {
	peek() []entry
	next() error
}

// memCursor walks the layers of one generation of a frozen memtable.
type memCursor struct {
	m    *memtable
	keys []layerKey // by table
	iter *btree.MapIter[uint64, memValue]
	cur  [1]entry
	done bool
}

func (c *memCursor) peek() []entry {
	if c.iter == nil && !c.done {
		_ = c.next()
	}
	if c.done {
		return nil
	}
	return c.cur[:]
}

func (c *memCursor) next() error {
	for !c.done {
		if c.iter == nil {
			it := c.m.layers[c.keys[0]].Iter()
			c.iter = &it
			if !c.iter.First() {
				c.skip()
				continue
			}
		} else if !c.iter.Next() {
			c.skip()
			continue
		}
		v := c.iter.Value()
		c.cur[0] = entry{c.keys[0].table, c.keys[0].gen, c.iter.Key(), v.count, v.loc}
		return nil
	}
	return nil
}

// skip goes on to the next layer.
func (c *memCursor) skip() {
	c.iter = nil
	c.keys = c.keys[1:]
	c.done = len(c.keys) == 0
}

// runCursor walks the leaves of a run.
type runCursor struct {
	store *Store
	run   *run
	page  mapPage
	index uint32
	at    int
	cur   []entry
}

// newRunCursor stands on the first interval of r.
func (s *Store) newRunCursor(r *run) (*runCursor, error) {
	c := &runCursor{store: s, run: r}
	page, _, err := s.page(r, 0, false) // page 0 is always a leaf
	if err != nil {
		return nil, err
	}
	c.page = page
	return c, c.next()
}

func (c *runCursor) peek() []entry { return c.cur }

func (c *runCursor) next() error {
	c.cur = c.cur[:0]
	for c.at >= c.page.count() || c.page.level() > 0 {
		if c.index++; int(c.index) >= len(c.run.pages) {
			return nil
		}
		page, _, err := c.store.page(c.run, c.index, false)
		if err != nil {
			return err
		}
		c.page, c.at = page, 0
	}
	for ; c.at < c.page.count(); c.at++ {
		e := c.page.entry(c.at)
		if len(c.cur) > 0 && (e.first != c.cur[0].first || e.table != c.cur[0].table) {
			return nil
		}
		c.cur = append(c.cur, e)
	}
	return nil
}

// merger walks several cursors, newest source first, as one: it cuts their
// entries at each other's ends and returns all versions of each interval.
type merger struct {
	cursors  []cursor
	table    uint32 // everything before (table, block) was returned
	block    uint64
	versions []entry // newest generation first; of one generation, the newest source first
}

// next returns the versions of the next interval, valid until the next call;
// none at the end.
func (m *merger) next() ([]entry, error) {
	m.versions = m.versions[:0]
	table, first, end, found := m.interval()
	if !found {
		return nil, nil
	}
	for _, c := range m.cursors {
		cur := c.peek()
		if len(cur) == 0 || cur[0].table != table || cur[0].first > first {
			continue
		}
		for _, e := range cur {
			m.versions = append(m.versions, e.clip(first, end))
		}
		if cur[0].end() <= end {
			if err := c.next(); err != nil {
				return nil, err
			}
		}
	}
	m.table, m.block = table, end
	slices.SortStableFunc(m.versions, func(a, b entry) int {
		switch {
		case a.gen > b.gen:
			return -1
		case a.gen < b.gen:
			return 1
		}
		return 0
	})
	return m.versions, nil
}

// interval finds the first run of blocks not yet returned over which no source
// changes.
func (m *merger) interval() (table uint32, first, end uint64, found bool) {
	for _, c := range m.cursors {
		cur := c.peek()
		if len(cur) == 0 {
			continue
		}
		start, stop := cur[0].first, cur[0].end()
		if cur[0].table == m.table {
			start = max(start, m.block)
		}
		switch {
		case !found || cur[0].table < table || cur[0].table == table && start < first:
			if found && cur[0].table == table {
				stop = min(stop, first)
			}
			table, first, end, found = cur[0].table, start, stop, true
		case cur[0].table > table:
		case start == first:
			end = min(end, stop)
		default:
			end = min(end, start)
		}
	}
	return table, first, end, found
}

// tableKeep is what decides which versions of a table's blocks a merge keeps.
type tableKeep struct {
	exists bool      // not deleted
	based  bool      // it has a base, which a hole hides
	pins   []uint32  // held generations, ascending
	dead   genRanges // dropped by rollbacks
}

// retention decides which versions of a block a merge keeps.
type retention struct {
	table  func(no uint32) tableKeep
	bottom bool // no older run exists
	dead   func(at loc, count uint64)
}

// keep reduces versions (all of one interval, as merger returns them) to those
// that the head or a pin still shows, in place. In a table with dead generations a
// version that was marked as a pin's may be the head's again: there the newest that
// is not dead stays, and loses the mark once all versions are at hand.
func (k *retention) keep(versions []entry) []entry {
	const none = uint64(1) << 33
	st := k.table(versions[0].table)
	out := versions[:0]
	newer := none // the generation that overwrote the version at hand
	for _, e := range versions {
		switch {
		case !st.exists, uint64(e.gen) == newer, st.dead.has(e.gen):
			k.dead(e.loc, e.count)
			continue
		case newer == none && len(st.dead) > 0:
			if k.bottom {
				e.loc &^= locKept
			}
			out = append(out, e)
		case newer == none && !e.loc.isKept():
			out = append(out, e)
		case pinned(st.pins, e.gen, newer):
			out = append(out, e)
		default:
			k.dead(e.loc, e.count)
		}
		newer = uint64(e.gen)
	}
	// A hole without a base says nothing where there is nothing older, unless a mark is: what
	// was written after the mark and is gone has changed since (Changed).
	if n := len(out); k.bottom && !st.based && n > 0 && out[n-1].loc.isHole() && !heldBefore(st.pins, out[n-1].gen) {
		out = out[:n-1]
	}
	return out
}

// heldBefore reports whether a generation before gen is held.
func heldBefore(pins []uint32, gen uint32) bool { return len(pins) > 0 && pins[0] < gen }

// pinned reports whether a pin shows a version written in generation gen and
// overwritten in generation newer.
func pinned(pins []uint32, gen uint32, newer uint64) bool {
	i, _ := slices.BinarySearch(pins, gen)
	return i < len(pins) && uint64(pins[i]) < newer
}
