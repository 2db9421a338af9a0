package block

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"golang.org/x/time/rate"

	"scstore"
)

const (
	// cleanBytesPerSecond is the pace of cleaning while space is not short.
	cleanBytesPerSecond = 64 << 20
	// cleanBatch is how many segments are emptied before a checkpoint frees them.
	cleanBatch = 4
	// maxStalledBatches end a pass that only moves blocks about: nearly full segments
	// give less than the copies take.
	maxStalledBatches = 4
	// garbageMinBytes of overwritten blocks are left lying at least.
	garbageMinBytes = 1 << 30
)

// errSuperseded says that a block was overwritten while it was being moved.
var errSuperseded = errors.New("overwritten meanwhile")

// passes counts what the cleaner does, for those who wait for space.
type passes struct {
	mu           sync.Mutex
	cond         sync.Cond
	begun, ended uint64
	closed       bool // no other will begin
}

// awaitSpace has the cleaner make space and waits until there is a segment for one
// who leaves reserve spares, or until a whole pass has made none. What checkpoints
// take and give back meanwhile is no space: only a spare at hand counts. The
// cleaner itself does not wait: it ends its pass, and what it has emptied is freed.
// logMu is held, and let go of meanwhile. Errors: ErrNoSpace.
func (s *Store) awaitSpace(reserve int) error {
	if reserve > reserveCheckpoint {
		s.logMu.Unlock()
		defer s.logMu.Lock()
		s.awaitPass(reserve)
		if s.pool.settle(reserve) {
			return nil
		}
	}
	return fmt.Errorf("append: %w", scstore.ErrNoSpace)
}

// awaitPass returns after a pass that began after the call, or once there is a
// spare for one who leaves reserve of them.
func (s *Store) awaitPass(reserve int) {
	c := &s.passes
	c.mu.Lock()
	defer c.mu.Unlock()
	s.requestSpace()
	for next := c.begun + 1; c.ended < next && !c.closed && !s.pool.canTake(reserve); {
		c.cond.Wait()
	}
}

// note changes the counters and wakes who waits.
func (c *passes) note(change func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	change()
	c.cond.Broadcast()
}

// clean is one pass of the cleaner.
func (s *Store) clean(ctx context.Context) {
	s.passes.note(func() { s.passes.begun++ })
	defer s.passes.note(func() { s.passes.ended = s.passes.begun })
	if err := s.checkpointMode(true, false); err != nil {
		s.logger.Warn("cleaning could not begin", "err", err)
		return
	}
	s.cleanSegments(ctx)
}

// cleanSegments gets space back: a checkpoint has merged the whole map, so that the
// segments' counts are true; it copies what still lives out of the emptiest
// segments, until space is not short and garbage is below half of what lives.
func (s *Store) cleanSegments(ctx context.Context) {
	pace := rate.NewLimiter(cleanBytesPerSecond, 2*maxGroupBlocks*scstore.BlockSize)
	fewest, stalled := s.segmentCount(), 0
	for ctx.Err() == nil && stalled < maxStalledBatches {
		short := s.pool.short()
		victims := s.victims(short)
		if len(victims) == 0 || !short && !s.wasteful() {
			return
		}
		if short {
			pace.SetLimit(rate.Inf)
		}
		freed := 0
		for _, g := range victims {
			ok, err := s.cleanSegment(ctx, pace, g)
			if errors.Is(err, scstore.ErrNoSpace) {
				break // until the checkpoint has freed what was emptied so far
			}
			if err != nil {
				s.logger.Warn("segment can't be cleaned", "segment", g.name, "err", err)
			}
			if ok {
				freed++
			}
			if freed == cleanBatch {
				break
			}
		}
		if err := s.Checkpoint(); err != nil || freed == 0 {
			return
		}
		s.metrics.cleaned.Add(float64(freed))
		s.pool.settle(reserveDiscards)
		s.passes.note(func() {})
		stalled++
		if n := s.segmentCount(); n < fewest {
			fewest, stalled = n, 0
		}
	}
}

func (s *Store) segmentCount() int {
	s.mapMu.RLock()
	defer s.mapMu.RUnlock()
	return len(s.segments)
}

// wasteful reports whether overwritten blocks take more space than they may.
func (s *Store) wasteful() bool {
	st := s.Stats()
	return st.LogBytes-st.LiveBytes > max(garbageMinBytes, st.LiveBytes/2)
}

// victims returns the segments worth cleaning, the emptiest first. Counters only
// choose; what frees a segment is the check of its slots.
func (s *Store) victims(short bool) []*segment {
	s.logMu.Lock()
	active := s.log.seg
	s.logMu.Unlock()
	s.mapMu.RLock()
	var out []*segment
	for _, g := range s.segments {
		if g == active || g.stream != streamLog || !g.retired.Load() || g.damaged.Load() {
			continue
		}
		if live := g.live.Load(); live*4 <= int64(g.slots)*2 || short && live*20 <= int64(g.slots)*19 {
			out = append(out, g)
		}
	}
	s.mapMu.RUnlock()
	slices.SortFunc(out, func(a, b *segment) int { return cmp.Compare(a.live.Load(), b.live.Load()) })
	return out
}

// cleanSegment moves what lives in g to the end of the log and, if then no slot of
// it is named any more, has the next checkpoint free it. ckptMu is held
// throughout, so the runs stand still and only memtables change.
func (s *Store) cleanSegment(ctx context.Context, pace *rate.Limiter, g *segment) (freed bool, err error) {
	s.ckptMu.Lock()
	defer s.ckptMu.Unlock()
	if s.segment(g.id) == nil || slices.Contains(s.emptied, g) {
		return false, nil
	}
	for _, move := range []bool{true, false} { // move, then check slot by slot
		live, err := s.walkLive(ctx, pace, g, move)
		if err != nil {
			return false, err
		}
		if !move && live == 0 {
			s.emptied = append(s.emptied, g)
			return true, nil
		}
	}
	return false, nil
}

// walkLive walks the groups of g and counts, or moves, the blocks that the map
// still names.
func (s *Store) walkLive(ctx context.Context, pace *rate.Limiter, g *segment, move bool) (live int, err error) {
	page := make([]byte, scstore.BlockSize)
	for at := 1; at < g.next && ctx.Err() == nil; {
		h, _, err := g.readHeader(s.id, page, at)
		if err != nil {
			g.damaged.Store(true)
			s.report(Damage{Kind: DamageHeader, Segment: g.id, Slot: at, Err: err})
			return 0, err
		}
		records, err := h.decode()
		if err != nil {
			return 0, err
		}
		slot := at + 1
		for i := range records {
			if !records[i].kind.hasSlots() {
				continue
			}
			n, err := s.walkRecord(g, &records[i], slot, move)
			if err != nil {
				return 0, err
			}
			if move && n > 0 {
				if err := pace.WaitN(ctx, n*scstore.BlockSize); err != nil {
					return 0, fmt.Errorf("clean: %w", err)
				}
			}
			live += n
			slot += int(records[i].count)
		}
		at += 1 + h.dataSlots
	}
	return live, ctx.Err()
}

// walkRecord counts, or moves, the blocks of one record that the map names at
// slot and after.
func (s *Store) walkRecord(g *segment, r *record, slot int, move bool) (live int, err error) {
	s.mapMu.RLock()
	t := s.tables[r.table]
	s.mapMu.RUnlock()
	if t == nil {
		return 0, nil
	}
	n := int(r.count)
	locs, gens, found := make([]loc, n), make([]uint32, n), make([]loc, n)
	for _, view := range append(t.pinned(), headGen) {
		if view < r.gen {
			continue
		}
		if _, err := s.resolve(t, view, r.first, locs, gens, false); err != nil {
			return 0, err
		}
		for i, at := range locs {
			if want := makeLoc(g.id, slot+i); at.stored() && at&^locFlags == want {
				found[i] = want
				if view != headGen {
					found[i] |= locKept
				}
			}
		}
	}
	for i := 0; i < n; {
		run := sameRun(found[i:])
		kept := found[i].isKept()
		for j := range run {
			if found[i+j].isKept() != kept {
				run = j
				break
			}
		}
		if found[i] != 0 {
			live += run
			if move {
				if err := s.moveRun(t, g, r, i, run, slot+i, kept); err != nil {
					return live, err
				}
			}
		}
		i += run
	}
	return live, nil
}

// moveRun copies run blocks of r, from its block i on, to the end of the log. A
// block that is overwritten meanwhile stays where it is.
func (s *Store) moveRun(t *Table, g *segment, r *record, i, run, slot int, kept bool) error {
	data := make([]byte, run*scstore.BlockSize)
	extent := scstore.Extent{First: scstore.BlockIndex(r.first) + scstore.BlockIndex(i), Count: uint64(run)}
	if _, err := s.readData(t, extent, makeLoc(g.id, slot), data, false); err != nil {
		if errors.Is(err, scstore.ErrCorrupt) {
			g.damaged.Store(true)
		}
		return err
	}
	copied := record{kind: recordData, gen: r.gen, table: r.table, first: uint64(extent.First), count: extent.Count, seq: r.seq}
	if kept {
		copied.kind = recordKept
	}
	from := makeLoc(g.id, slot)
	err := s.moveLocked(copied, data, from)
	if !errors.Is(err, errSuperseded) || run == 1 {
		if errors.Is(err, errSuperseded) {
			return nil
		}
		return err
	}
	for n := range uint64(run) {
		one := copied
		one.first, one.count = copied.first+n, 1
		err := s.moveLocked(one, data[n*scstore.BlockSize:(n+1)*scstore.BlockSize], from.plus(n))
		if err != nil && !errors.Is(err, errSuperseded) {
			return err
		}
	}
	return nil
}

// moveLocked appends a copy of blocks that were at from. A memtable's word is
// newer than the lookup that found them there: if it has another one for any
// block, nothing is appended. Replay needs no such check, for the log holds a
// copy only where it was right.
func (s *Store) moveLocked(r record, data []byte, from loc) error {
	s.logMu.Lock()
	defer s.logMu.Unlock()
	start := r.first
	return s.appendLocked(r, data, reserveCheckpoint, func(r *record) error {
		s.mapMu.RLock()
		defer s.mapMu.RUnlock()
		t := s.tables[r.table]
		if t == nil || t.dead.has(r.gen) {
			return errSuperseded
		}
		for _, m := range [2]*memtable{s.mem, s.frozen} {
			if m != nil && m.differs(r, from.plus(r.first-start), t.dead) {
				return errSuperseded
			}
		}
		return nil
	})
}

// differs reports whether the memtable has for any block of r, in r's generation
// or a newer one that is not dead, anything else than the run of slots at at.
func (m *memtable) differs(r *record, at loc, dead genRanges) bool {
	for _, gen := range m.gens[r.table] {
		if gen < r.gen {
			break
		}
		if dead.has(gen) {
			continue
		}
		different := false
		m.layers[layerKey{r.table, gen}].scan(r.first, r.first+r.count, func(first, _ uint64, here loc) bool {
			different = gen > r.gen && r.kind != recordKept ||
				gen == r.gen && (!here.stored() || here&^locFlags != at.plus(first-r.first)&^locFlags)
			return !different
		})
		if different {
			return true
		}
	}
	return false
}
