package block

import (
	"fmt"
	"sort"
	"sync"

	"scstore"
)

// run is one immutable sorted piece of the extent map: a B+tree of map pages in
// the map stream. Runs are ordered by age; what a newer one says hides what an
// older one says.
type run struct {
	id      uint32
	entries uint64
	pages   []pageRef // those in memory hang here; page len-1 is the tree's root
	places  []pageExtent

	// newest is the newest generation that the run has of a table. For a run that a
	// root named, it is found out when it is first asked for.
	newestMu sync.Mutex
	newest   map[uint32]uint32
	complete bool // newest has all tables of the run
}

// pageExtent says where pages [first, first+count) of a run are.
type pageExtent struct {
	first, count uint32
	at           loc
}

// locate returns where page index is stored.
func (r *run) locate(index uint32) loc {
	i := sort.Search(len(r.places), func(i int) bool { return r.places[i].first > index }) - 1
	return r.places[i].at.plus(uint64(index - r.places[i].first))
}

// page returns page index, from memory or disk; ok is false if now is set and the
// device would have to be waited for. Errors: ErrCorrupt.
func (s *Store) page(r *run, index uint32, now bool) (page mapPage, ok bool, err error) {
	ref := &r.pages[index]
	if p := s.cache.get(ref); p != nil {
		return p.data[:], true, nil
	}
	at := r.locate(index)
	g := s.segment(at.segment())
	if g == nil {
		return nil, false, errMoved
	}
	p := newCachedPage()
	off := int64(at.slot()) * scstore.BlockSize
	if now {
		if ok, err := g.file.ReadNowAt(p.data[:], off); err != nil || !ok {
			return nil, false, s.movedOr(g, err)
		}
	} else if err := readFull(g.file, p.data[:], off); err != nil {
		return nil, false, s.movedOr(g, fmt.Errorf("read map page %d of run %d: %w", index, r.id, err))
	}
	if _, err := parseMapPage(p.data[:], s.id, r.id, index); err != nil {
		if g.gone.Load() {
			return nil, false, errMoved
		}
		s.report(Damage{Kind: DamageMap, Segment: g.id, Slot: at.slot(), Err: err})
		return nil, false, err
	}
	return s.cache.add(ref, p).data[:], true, nil
}

// leaf descends to the leaf where a scan from (table, first) begins.
func (s *Store) leaf(r *run, table uint32, first uint64, now bool) (index uint32, page mapPage, ok bool, err error) {
	index = uint32(len(r.pages) - 1)
	for {
		page, ok, err = s.page(r, index, now)
		if err != nil || !ok || page.level() == 0 {
			return index, page, ok, err
		}
		at := max(page.search(table, first)-1, 0)
		index = uint32(page.entry(at).loc)
	}
}

// scan calls fn for each entry of the table that overlaps [first, end), in order,
// the newest generation first, until fn returns false. ok is false if now is set
// and the device would have to be waited for.
func (s *Store) scan(r *run, table uint32, first, end uint64, now bool, fn func(entry) bool) (ok bool, err error) {
	index, page, ok, err := s.leaf(r, table, first, now)
	if err != nil || !ok {
		return ok, err
	}
	at := max(page.search(table, first)-1, 0)
	for at > 0 && page.entry(at-1).first == page.entry(at).first && page.entry(at-1).table == page.entry(at).table {
		at--
	}
	for {
		for ; at < page.count(); at++ {
			e := page.entry(at)
			if e.table > table || e.table == table && e.first >= end {
				return true, nil
			}
			if e.table == table && e.end() > first && !fn(e) {
				return true, nil
			}
		}
		for at = 0; ; {
			if index++; int(index) >= len(r.pages) {
				return true, nil
			}
			if page, ok, err = s.page(r, index, now); err != nil || !ok {
				return ok, err
			}
			if page.level() == 0 {
				break
			}
		}
	}
}

// newerThan reports whether the run has, of the table, anything of a generation
// after gen.
func (s *Store) newerThan(r *run, table uint32, gen int64) (bool, error) {
	r.newestMu.Lock()
	newest, ok := r.newest[table]
	known := ok || r.complete
	r.newestMu.Unlock()
	if known {
		return ok && int64(newest) > gen, nil
	}
	// A run is never changed: what is found out once stays true.
	found := int64(-1)
	if _, err := s.scan(r, table, 0, maxBlock, false, func(e entry) bool {
		found = max(found, int64(e.gen))
		return true
	}); err != nil {
		return false, err
	}
	if found >= 0 {
		r.newestMu.Lock()
		defer r.newestMu.Unlock()
		if r.newest == nil {
			r.newest = map[uint32]uint32{}
		}
		r.newest[table] = uint32(found)
	}
	return found > gen, nil
}

// runBuilder writes a run, in order, to the map stream. Store.ckptMu is held.
type runBuilder struct {
	store   *Store
	run     *run
	levels  []*pageBuilder
	pending []byte // finished pages not yet appended
	written uint32 // pages appended

	table, gen uint32 // of the last interval added: its table, and newest generation so far
}

func (s *Store) newRunBuilder(id uint32) *runBuilder {
	r := &run{id: id, newest: map[uint32]uint32{}, complete: true}
	return &runBuilder{store: s, run: r, levels: []*pageBuilder{{}}}
}

// add appends the versions of one interval, newest first; they stay on one page.
func (b *runBuilder) add(versions []entry) error {
	if b.levels[0].count+len(versions) > entriesPerPage {
		if err := b.finishPage(0); err != nil {
			return err
		}
	}
	for _, e := range versions {
		b.levels[0].add(e)
	}
	b.run.entries += uint64(len(versions))
	if e := versions[0]; b.run.entries == uint64(len(versions)) || e.table != b.table || e.gen > b.gen {
		b.table, b.gen = e.table, e.gen
		b.run.newest[e.table] = e.gen
	}
	return nil
}

// finishPage completes the page of a level and enters it in the level above.
func (b *runBuilder) finishPage(level int) error {
	builder := b.levels[level]
	first := mapPage(builder.page[:]).entry(0)
	index := b.written + uint32(len(b.pending)/scstore.BlockSize)
	b.pending = append(b.pending, builder.finish(b.store.id, b.run.id, index, level)...)
	if level+1 == len(b.levels) {
		b.levels = append(b.levels, &pageBuilder{})
	}
	above := b.levels[level+1]
	if above.full() {
		if err := b.finishPage(level + 1); err != nil {
			return err
		}
	}
	above.add(entry{table: first.table, gen: first.gen, first: first.first, count: 1, loc: loc(index)})
	if len(b.pending) < maxGroupBlocks*scstore.BlockSize {
		return nil
	}
	return b.flush()
}

// flush appends the finished pages.
func (b *runBuilder) flush() error {
	for len(b.pending) > 0 {
		n := min(len(b.pending)/scstore.BlockSize, maxGroupBlocks)
		r := record{kind: recordMapPage, table: b.run.id, first: uint64(b.written), count: uint64(n)}
		took, at, err := b.store.appendMap(r, b.pending[:n*scstore.BlockSize])
		if err != nil {
			return err
		}
		b.run.places = append(b.run.places, pageExtent{b.written, uint32(took), at})
		b.written += uint32(took)
		b.pending = b.pending[took*scstore.BlockSize:]
	}
	return nil
}

// finish writes what is left, the tree's root last, and returns the run; nil if
// nothing was added.
func (b *runBuilder) finish() (*run, error) {
	if b.run.entries == 0 {
		return nil, nil
	}
	for level := 0; level < len(b.levels); level++ {
		top := level == len(b.levels)-1
		if top && b.levels[level].count == 1 && level > 0 {
			break // the page below is the root
		}
		if b.levels[level].count > 0 {
			if err := b.finishPage(level); err != nil {
				return nil, err
			}
		}
		if top {
			break
		}
	}
	if err := b.flush(); err != nil {
		return nil, err
	}
	b.run.pages = make([]pageRef, b.written)
	return b.run, nil
}
