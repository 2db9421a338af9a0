package block

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"scstore"
)

// RecoveryReport says what opening the store found.
type RecoveryReport struct {
	Clean           bool          // the last process closed the store
	Checkpoint      uint64        // number of the checkpoint in force
	ReplayedRecords int           // records of the log applied over it
	ReplayedBytes   int64         // their data
	CutRecords      int           // records of the unsynced end that had not reached the disk whole
	HealedHeaders   int           // headers of which one copy was bad
	LostRecords     uint64        // records that were durable and can't be read any more
	Took            time.Duration // until ready to serve
}

// foundSegment is a segment file as recovery found it.
type foundSegment struct {
	*segment
	first *groupHeader // at slot 1; nil if there is none
	// suspect: slot 1 holds neither zeros nor any store's header: the segment may
	// have been in use.
	suspect bool
}

// recovery is the state of one opening.
type recovery struct {
	store *Store
	found map[uint64]*foundSegment
	root  *root
	used  map[uint64]bool // segments that must outlive the next checkpoint
}

// recover reads the newest checkpoint, replays the log, and sorts the files into
// the store's segments and free ones.
func (s *Store) recover() error {
	r := &recovery{store: s, found: map[uint64]*foundSegment{}, used: map[uint64]bool{}}
	err := r.openSegments()
	if err == nil {
		err = r.findRoot()
	}
	if err == nil && r.root != nil {
		err = r.load()
	}
	if err == nil && r.root != nil {
		err = r.replay()
	}
	r.handOver()
	return err
}

// openSegments opens every segment file and reads its first two headers.
func (r *recovery) openSegments() error {
	s := r.store
	names, err := s.opts.FS.List()
	if err != nil {
		return fmt.Errorf("recover: %w", err)
	}
	page := make([]byte, scstore.BlockSize)
	for _, name := range names {
		id, ok := parseSegmentName(name)
		if !ok {
			continue
		}
		s.pool.nextID = max(s.pool.nextID, id+1)
		f, err := s.opts.FS.Open(name)
		if err != nil {
			return fmt.Errorf("recover: %w", err)
		}
		size, err := f.Size()
		if err != nil {
			return errors.Join(fmt.Errorf("recover: segment %s: %w", name, err), f.Close())
		}
		if size < int64(s.slots)*scstore.BlockSize {
			// Its making was cut short: it never held anything.
			if err := s.pool.unlink(f, name); err != nil {
				return err
			}
			continue
		}
		err = readFull(f, page, 0)
		var h segmentHeader
		if err == nil {
			h, err = parseSegmentHeader(page, s.id)
		}
		if errors.Is(err, scstore.ErrVersion) {
			return errors.Join(fmt.Errorf("recover: segment %s: %w", name, err), f.Close())
		}
		g := newSegment(s.id, id, s.slots, f)
		if err != nil || h.id != id {
			// Slot 0 only says whose file it is; the groups say it too. A segment
			// whose first header is rotten is still read by its groups.
			s.logger.Warn("segment header is unreadable", "segment", name, "err", err)
		}
		found := &foundSegment{segment: g}
		if first, _, err := g.readHeader(s.id, page, 1); err == nil {
			first.body = slices.Clone(first.body)
			found.first, g.stream = &first, first.stream
		} else {
			_, _, err := parseGroupHeader(page, s.id)
			found.suspect = err != nil && !isZero(page)
		}
		r.found[id] = found
	}
	return nil
}

// findRoot picks the newest checkpoint that was completely written. The index
// names the one in force; the segments may have a newer one, of which the commit
// was cut short, or an index that was rotten has forgotten.
func (r *recovery) findRoot() error {
	s := r.store
	pages := map[uint64]map[uint32][]loc{} // checkpoint → page → copies
	for _, g := range r.found {
		if g.first != nil && g.first.stream == streamMap {
			r.collectRoots(g.segment, pages)
		}
	}
	var named rootPointer
	if err := r.openIndex(); err != nil {
		return err
	}
	if !s.opts.Rebuild {
		var err error
		named, err = s.index.root()
		if errors.Is(err, scstore.ErrNotFound) && len(pages) > 0 && s.incarnation > 2 {
			s.logger.Warn("the index names no checkpoint; taking the newest of the segments")
		} else if err != nil && !errors.Is(err, scstore.ErrNotFound) {
			return err
		}
		for _, x := range named.places {
			for i := range x.count {
				copies := pages[named.checkpoint]
				if copies == nil {
					copies = map[uint32][]loc{}
					pages[named.checkpoint] = copies
				}
				copies[x.first+i] = append(copies[x.first+i], x.at.plus(uint64(i)))
			}
		}
	}
	numbers := make([]uint64, 0, len(pages))
	for n := range pages {
		numbers = append(numbers, n)
	}
	slices.Sort(numbers)
	for _, n := range slices.Backward(numbers) {
		root, err := r.readRoot(pages[n])
		if err == nil && root.checkpoint == n {
			r.root = root
			for _, copies := range pages[n] {
				for _, at := range copies {
					r.used[at.segment()] = true
				}
			}
			return nil
		}
		if n <= named.checkpoint {
			return fmt.Errorf("recover: checkpoint %d: %w", n, errors.Join(err, scstore.ErrCorrupt))
		}
	}
	return nil
}

func (r *recovery) openIndex() error {
	s := r.store
	if s.opts.index != nil {
		s.index = s.opts.index
		return nil
	}
	open := openIndex
	if s.opts.Rebuild {
		open = renewIndex
	}
	x, err := open(s.opts.IndexDir)
	if err != nil {
		return err
	}
	s.index = x
	return nil
}

// collectRoots notes where the pages of checkpoints are in a map segment.
func (r *recovery) collectRoots(g *segment, pages map[uint64]map[uint32][]loc) {
	page := make([]byte, scstore.BlockSize)
	for at := 1; at < g.tableSlot; {
		h, _, err := g.readHeader(r.store.id, page, at)
		if err != nil {
			return
		}
		records, err := h.decode()
		if err != nil {
			return
		}
		slot := at + 1
		for _, rec := range records {
			if rec.kind == recordRootPage {
				if pages[rec.seq] == nil {
					pages[rec.seq] = map[uint32][]loc{}
				}
				for i := range rec.count {
					index := uint32(rec.first + i)
					pages[rec.seq][index] = append(pages[rec.seq][index], makeLoc(g.id, slot+int(i)))
				}
			}
			slot += int(rec.count)
		}
		at += 1 + h.dataSlots
	}
}

// readRoot reads a checkpoint, each page from whichever copy verifies.
func (r *recovery) readRoot(copies map[uint32][]loc) (*root, error) {
	body := make([]byte, 0, len(copies)*scstore.BlockSize)
	page := make([]byte, scstore.BlockSize)
	for index := range uint32(len(copies)) {
		good := false
		for _, at := range copies[index] {
			g := r.found[at.segment()]
			if g == nil || readFull(g.file, page, int64(at.slot())*scstore.BlockSize) != nil {
				continue
			}
			if rootPageIs(r.store.id, page, index, uint32(len(copies))) {
				good = true
				break
			}
			r.store.report(Damage{Kind: DamageRoot, Segment: at.segment(), Slot: at.slot(), Healed: true})
		}
		if !good {
			return nil, fmt.Errorf("checkpoint page %d: no good copy: %w", index, scstore.ErrCorrupt)
		}
		body = append(body, page...)
	}
	return parseRootPages(r.store.id, body)
}

// load makes the checkpoint the store's state.
func (r *recovery) load() error {
	s, root := r.store, r.root
	s.checkpoint, s.runs = root.checkpoint, root.runs
	s.nextTable, s.nextRun = root.nextTable, root.nextRun
	s.pool.nextID = max(s.pool.nextID, root.nextSegment)
	for _, t := range root.tables {
		s.addTable(t)
	}
	s.recovery.Checkpoint, s.recovery.Clean = root.checkpoint, root.clean
	for _, rs := range root.segments {
		g := r.found[rs.id]
		if g == nil {
			return scstore.Hint(fmt.Errorf("recover: segment %s of checkpoint %d is missing: %w", segmentName(rs.id), root.checkpoint, scstore.ErrCorrupt),
				"restore the file, or the store from another site or a backup")
		}
		g.next, g.stream = rs.next, rs.stream
		g.live.Store(rs.live)
		g.damaged.Store(rs.damaged)
		r.take(g.segment)
	}
	for _, g := range r.found {
		if g.first != nil && g.first.stream == streamLog && g.first.incarnation > root.incarnation {
			return scstore.Hint(fmt.Errorf("recover: checkpoint %d is older than the log in segment %s: %w", root.checkpoint, g.name, scstore.ErrCorrupt),
				"run scstore doctor --rebuild-index")
		}
	}
	for _, n := range root.runs {
		for _, x := range n.places {
			if s.segments[x.at.segment()] == nil {
				return fmt.Errorf("recover: run %d names segment %x: %w", n.id, x.at.segment(), scstore.ErrCorrupt)
			}
		}
	}
	return nil
}

// take makes a found segment one of the store's, closed to appends.
func (r *recovery) take(g *segment) {
	g.retired.Store(true)
	g.visible.Store(int32(g.slots))
	r.store.segments[g.id] = g
	r.used[g.id] = true
}

// handOver gives the files that nothing names to the pool, and keeps those of the
// checkpoint's own pages until the next one is in force.
func (r *recovery) handOver() {
	s := r.store
	var free []*segment
	for id, g := range r.found {
		switch {
		case s.segments[id] != nil:
		case r.used[id]:
			g.retired.Store(true)
			g.stream = streamMap
			s.segments[id] = g.segment
		default:
			free = append(free, g.segment)
		}
	}
	s.pool.give(free)
}

func isZero(p []byte) bool {
	for _, b := range p {
		if b != 0 {
			return false
		}
	}
	return true
}
