package block

import (
	"cmp"
	"fmt"
	"slices"

	"scstore"
)

const (
	// mergeAllPages: below so many pages in all, a checkpoint merges every run into
	// one; rewriting 16 MiB costs less than looking in several places.
	mergeAllPages = 4096
	// mergeFanIn is how many runs of like size are merged at a time.
	mergeFanIn = 4
	// indexWriteBytes must be free for the index to be written: badger dies of
	// SIGBUS on a full disk.
	indexWriteBytes = 32 << 20
)

// capture is the moment that a checkpoint describes. It is kept until the
// checkpoint is in force, so that one that failed is tried again as it was.
type capture struct {
	replay      replayPoint
	tables      []rootTable
	nextTable   uint32
	logBytes    int64
	mergeAll    bool // the space of overwritten blocks is wanted back
	merged      bool // the whole map was: no dead generation is left in it
	nextSegment uint64
}

// Checkpoint writes the map's changes and the state of all tables to the map
// stream and puts them in force, so that a restart replays only what comes later:
//
//	K1 the log's group is closed; its end is where replay will begin
//	K2 the log is synced up to there: nothing durable names what is not
//	K3 the changes, merged with some older runs, become a new run
//	K4 the map stream is synced; the root is written, twice, and synced
//	K5 the index commits the root, synced: the checkpoint is in force
//	K6 only now are segments that it does not name given to be recycled
//
// Errors: ErrNoSpace (tried again later), ErrPoisoned, ErrCorrupt if a run that
// had to be merged is unreadable.
func (s *Store) Checkpoint() error { return s.checkpointMode(false, false) }

func (s *Store) checkpointMode(mergeAll, clean bool) error {
	s.ckptMu.Lock()
	defer s.ckptMu.Unlock()
	if err := s.captureState(mergeAll); err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}
	if err := s.Sync(); err != nil { // step K2
		return fmt.Errorf("checkpoint: %w", err)
	}
	runs, dead, err := s.writeRun() // step K3
	if err != nil {
		return fmt.Errorf("checkpoint: write map: %w", err)
	}
	doomed, err := s.commitRoot(runs, clean)
	if err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}
	s.install(runs, dead, doomed)
	return nil
}

// captureState is step K1. A capture that failed to come into force stays.
func (s *Store) captureState(mergeAll bool) error {
	s.logMu.Lock()
	defer s.logMu.Unlock()
	if s.capture != nil {
		s.capture.mergeAll = s.capture.mergeAll || mergeAll
		return nil
	}
	if s.poison != nil {
		return s.poison
	}
	if err := s.log.closeGroup(); err != nil {
		return s.poisonLocked(err)
	}
	c := &capture{logBytes: s.logBytes, mergeAll: mergeAll, nextSegment: s.pool.peekID()}
	c.replay = replayPoint{seq: s.log.seq, chain: s.log.chain}
	if s.log.seg != nil {
		c.replay.segment, c.replay.slot = s.log.seg.id, s.log.seg.next
	}
	s.mapMu.Lock()
	defer s.mapMu.Unlock()
	c.nextTable = s.nextTable
	for _, t := range s.tables {
		c.tables = append(c.tables, t.capture())
	}
	slices.SortFunc(c.tables, func(a, b rootTable) int { return cmp.Compare(a.no, b.no) })
	s.frozen, s.mem = s.mem, newMemtable()
	s.capture = c
	return nil
}

// capture returns what a root says of the table. logMu and mapMu are held.
func (t *Table) capture() rootTable {
	t.pinMu.Lock()
	defer t.pinMu.Unlock()
	return rootTable{
		no: t.no, id: t.id, sizeBytes: t.SizeBytes(), gen: t.gen.Load(), frozen: t.Frozen(),
		quarantined: t.quarantined.Load(), base: t.base, baseGen: t.baseGen,
		remote: t.remote.Load(), marks: t.sortedMarks(), dead: t.dead,
	}
}

// pickRuns returns how many of the newest runs to merge with the frozen memtable.
func (s *Store) pickRuns(runs []*run) int {
	total := 0
	for _, r := range runs {
		total += len(r.pages)
	}
	if s.opts.pick != nil && !s.capture.mergeAll {
		return s.opts.pick(len(runs))
	}
	if s.capture.mergeAll || total <= mergeAllPages {
		return len(runs)
	}
	n, pages := 0, s.frozen.runs()/entriesPerPage+1
	for n < len(runs) && len(runs[n].pages) <= 2*pages {
		pages += len(runs[n].pages)
		n++
	}
	if n+1 < mergeFanIn {
		return 0
	}
	return n
}

// writeRun merges the frozen memtable and some of the newest runs into one, and
// returns the runs as they will be, with the slots that died of it by segment.
func (s *Store) writeRun() ([]*run, map[uint64]int64, error) {
	old := s.runs // changed only under ckptMu
	n := s.pickRuns(old)
	dead := map[uint64]int64{}
	s.capture.merged = false
	if s.frozen.runs() == 0 && (n < 2 && !s.capture.mergeAll || n == 0) {
		return old, dead, nil
	}
	m := &merger{cursors: s.frozen.sources()}
	slices.Reverse(m.cursors)
	for _, r := range old[:n] {
		c, err := s.newRunCursor(r)
		if err != nil {
			return nil, nil, err
		}
		m.cursors = append(m.cursors, c)
	}
	keep := &retention{
		table:  s.retained(),
		bottom: n == len(old),
		dead: func(at loc, count uint64) {
			if at.stored() {
				dead[at.segment()] += int64(count)
			}
		},
	}
	b := s.newRunBuilder(s.nextRun)
	s.nextRun++
	if err := mergeInto(b, m, keep); err != nil {
		return nil, nil, err
	}
	made, err := b.finish()
	if err != nil {
		return nil, nil, err
	}
	s.metrics.mapBytes.Add(float64(b.written) * scstore.BlockSize)
	s.capture.merged = keep.bottom
	runs := make([]*run, 0, len(old)-n+1)
	if made != nil {
		runs = append(runs, made)
	}
	return append(runs, old[n:]...), dead, nil
}

// retained returns what a merge has to know of each table. What tables, marks,
// clones and rollbacks say is taken from the capture, which step K2 made durable: a
// mark that was taken back since may be there again after a crash, and a rollback
// undone. Pins do not outlive the process; they are taken as they are.
func (s *Store) retained() func(uint32) tableKeep {
	captured := make(map[uint32]*rootTable, len(s.capture.tables))
	clones := map[uint32][]uint32{} // of captured tables: base → generations
	for i := range s.capture.tables {
		rt := &s.capture.tables[i]
		captured[rt.no] = rt
		if rt.base != 0 && rt.baseGen != headGen {
			clones[rt.base] = append(clones[rt.base], rt.baseGen)
		}
	}
	known := map[uint32]tableKeep{}
	return func(no uint32) tableKeep {
		st, ok := known[no]
		if ok {
			return st
		}
		if rt := captured[no]; rt != nil {
			st = tableKeep{exists: true, based: rt.base != 0, dead: rt.dead, pins: clones[no]}
			for _, m := range rt.marks {
				st.pins = append(st.pins, m.gen)
			}
			s.mapMu.RLock()
			t := s.tables[no]
			s.mapMu.RUnlock()
			if t != nil {
				st.pins = append(st.pins, t.pinned()...)
			}
			slices.Sort(st.pins)
			st.pins = slices.Compact(st.pins)
		}
		known[no] = st
		return st
	}
}

// mergeInto writes what keep leaves of m, joining neighbours that continue each
// other.
func mergeInto(b *runBuilder, m *merger, keep *retention) error {
	var held []entry
	for {
		versions, err := m.next()
		if err != nil {
			return err
		}
		if len(versions) == 0 {
			break
		}
		kept := keep.keep(versions)
		if joins(held, kept) {
			for i := range held {
				held[i].count += kept[i].count
			}
			continue
		}
		if len(held) > 0 {
			if err := b.add(held); err != nil {
				return err
			}
		}
		held = append(held[:0], kept...)
	}
	if len(held) > 0 {
		return b.add(held)
	}
	return nil
}

// joins reports whether each version of next continues the same one of held.
func joins(held, next []entry) bool {
	if len(held) == 0 || len(held) != len(next) {
		return false
	}
	for i, h := range held {
		n := next[i]
		if h.table != n.table || h.gen != n.gen || h.end() != n.first || h.count+n.count > maxEntryBlocks || !h.loc.follows(h.count, n.loc) {
			return false
		}
	}
	return true
}

// commitRoot is steps K4 and K5. It returns the segments that the root does not
// name.
func (s *Store) commitRoot(runs []*run, clean bool) (doomed map[uint64]bool, err error) {
	c := s.capture
	doomed = s.doomed(runs)
	r := &root{
		version: rootVersion, checkpoint: s.checkpoint + 1, incarnation: s.incarnation, clean: clean, replay: c.replay,
		nextTable: c.nextTable, nextRun: s.nextRun, nextSegment: c.nextSegment, tables: c.tables, runs: runs,
		segments: s.rootSegments(doomed),
	}
	// A root that is on disk whole must be true, in force or not: what it names
	// comes first.
	if err := s.mapLog.sync(); err != nil {
		return nil, err
	}
	pages := rootPages(s.id, r.encode())
	var places []pageExtent
	for range 2 { // twice, so that rot in one copy costs nothing
		if places, err = s.writeRootPages(r.checkpoint, pages); err != nil {
			return nil, fmt.Errorf("write root: %w", err)
		}
	}
	if err := s.mapLog.sync(); err != nil {
		return nil, err
	}
	if err := s.spaceForIndex(); err != nil {
		return nil, err
	}
	if err := s.index.commit(rootPointer{r.checkpoint, places}); err != nil {
		return nil, err
	}
	s.checkpoint = r.checkpoint
	return doomed, nil
}

// rootSegments lists the segments in use, by id.
func (s *Store) rootSegments(doomed map[uint64]bool) []rootSegment {
	s.logMu.Lock()
	defer s.logMu.Unlock()
	s.mapMu.RLock()
	defer s.mapMu.RUnlock()
	var out []rootSegment
	for _, g := range s.segments {
		if !doomed[g.id] {
			out = append(out, rootSegment{g.id, g.next, g.live.Load(), g.stream, g.damaged.Load()})
		}
	}
	slices.SortFunc(out, func(a, b rootSegment) int { return cmp.Compare(a.id, b.id) })
	return out
}

func (s *Store) writeRootPages(checkpoint uint64, pages []byte) ([]pageExtent, error) {
	var places []pageExtent
	for done := 0; done < len(pages)/scstore.BlockSize; {
		n := min(len(pages)/scstore.BlockSize-done, maxGroupBlocks)
		rec := record{kind: recordRootPage, first: uint64(done), count: uint64(n), seq: checkpoint}
		took, at, err := s.appendMap(rec, pages[done*scstore.BlockSize:(done+n)*scstore.BlockSize])
		if err != nil {
			return nil, err
		}
		places = append(places, pageExtent{uint32(done), uint32(took), at})
		done += took
	}
	return places, nil
}

// spaceForIndex ends the process by way of Fatal rather than let badger meet a
// full disk. The log has everything; a restart with space replays it.
func (s *Store) spaceForIndex() error {
	if s.opts.index != nil {
		return nil // in memory
	}
	u, err := s.opts.FS.Usage()
	if err != nil {
		return fmt.Errorf("commit checkpoint: %w", err)
	}
	if u.FreeBytes >= indexWriteBytes {
		return nil
	}
	err = scstore.Hint(fmt.Errorf("commit checkpoint: %d bytes free on the store's file system: %w", u.FreeBytes, scstore.ErrNoSpace),
		"free space there and start scstore again: nothing is lost")
	select {
	case s.fatal <- err:
	default:
	}
	return err
}

// doomed returns the segments that the next root does not name: map segments
// without a page of its runs, and those that the cleaner emptied.
func (s *Store) doomed(runs []*run) map[uint64]bool {
	used := map[uint64]bool{}
	for _, r := range runs {
		for _, x := range r.places {
			used[x.at.segment()] = true
		}
	}
	if s.mapLog.seg != nil {
		used[s.mapLog.seg.id] = true
	}
	doomed := map[uint64]bool{}
	s.mapMu.RLock()
	defer s.mapMu.RUnlock()
	for id, g := range s.segments {
		if g.stream == streamMap && !used[id] {
			doomed[id] = true
		}
	}
	for _, g := range s.emptied {
		doomed[g.id] = true
	}
	return doomed
}

// install is step K6: lookups go by the new runs, and what the checkpoint does not
// name is given away.
func (s *Store) install(runs []*run, dead map[uint64]int64, doomed map[uint64]bool) {
	c := s.capture
	s.logMu.Lock()
	s.logBytes -= c.logBytes
	s.capture = nil

	var given []*segment
	s.mapMu.Lock()
	for _, rt := range c.tables {
		if t := s.tables[rt.no]; t != nil && c.merged && len(rt.dead) > 0 {
			t.dead = t.dead.without(rt.dead)
		}
	}
	for id, n := range dead {
		if g := s.segments[id]; g != nil {
			g.live.Add(-n)
		}
	}
	s.runs, s.frozen = runs, nil
	for id := range doomed {
		given = append(given, s.segments[id])
		delete(s.segments, id)
	}
	s.mapMu.Unlock()
	s.logMu.Unlock()
	s.emptied = slices.DeleteFunc(s.emptied, func(g *segment) bool { return doomed[g.id] })
	s.pool.give(given)
	s.metrics.checkpoints.Inc()
}
