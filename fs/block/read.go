package block

import (
	"errors"
	"fmt"
	"sync"

	"scstore"
)

const (
	// resolveBlocks is how many blocks are looked up at a time (32 MiB).
	resolveBlocks = 8192
	// MaxMoves bounds how often a read starts over because the cleaner moved what
	// it was about to read.
	MaxMoves = 100
)

// errMoved says that a segment was given away between lookup and read: look the
// block up again.
var errMoved = errors.New("the block was moved")

// scratch is what a lookup of many blocks needs.
type scratch struct {
	locs [resolveBlocks]loc
	gens [resolveBlocks]uint32
}

var scratches = sync.Pool{New: func() any { return new(scratch) }}

// read fills p with whole blocks of the view from first on and appends to gaps
// the runs that hold no data here: holes, which read as zeros, and absent and
// remote blocks, of which p is left as it is. Every block is verified: steps R2 to R4. ok is
// false if now is set and the device would have to be waited for; p is then
// undefined.
//
// Errors: ErrCorrupt for blocks that fail to verify, ErrInvalid, ErrNotFound once
// the volume was deleted.
func (t *Table) read(view uint32, first scstore.BlockIndex, p []byte, gaps []scstore.Piece, now bool) (_ []scstore.Piece, ok bool, err error) {
	count := uint64(len(p)) / scstore.BlockSize
	if len(p)%scstore.BlockSize != 0 {
		return gaps, false, fmt.Errorf("volume %s: read of %d bytes: %w", t.id, len(p), scstore.ErrInvalid)
	}
	if err := t.check(first, count); err != nil {
		return gaps, false, err
	}
	if t.quarantined.Load() {
		return gaps, false, t.quarantineError()
	}
	if count == 1 {
		var locs [1]loc
		var gens [1]uint32
		return t.readRun(view, uint64(first), p, gaps, now, locs[:], gens[:])
	}
	sc := scratches.Get().(*scratch)
	defer scratches.Put(sc)
	for done := uint64(0); done < count; {
		n := min(count-done, resolveBlocks)
		part := p[done*scstore.BlockSize : (done+n)*scstore.BlockSize]
		gaps, ok, err = t.readRun(view, uint64(first)+done, part, gaps, now, sc.locs[:n], sc.gens[:n])
		if err != nil || !ok {
			return gaps, ok, err
		}
		done += n
	}
	return gaps, true, nil
}

// readRun reads up to resolveBlocks blocks.
func (t *Table) readRun(view uint32, first uint64, p []byte, gaps []scstore.Piece, now bool, locs []loc, gens []uint32) ([]scstore.Piece, bool, error) {
	have := len(gaps)
	for range MaxMoves {
		gaps = gaps[:have]
		ok, err := t.store.resolve(t, view, first, locs, gens, now)
		for i := 0; err == nil && ok && i < len(locs); {
			n := sameRun(locs[i:])
			part := p[i*scstore.BlockSize : (i+n)*scstore.BlockSize]
			extent := scstore.Extent{First: scstore.BlockIndex(first) + scstore.BlockIndex(i), Count: uint64(n)}
			switch {
			case locs[i] == 0:
				gaps = append(gaps, scstore.Piece{Extent: extent, State: scstore.PieceAbsent})
			case locs[i].isHole():
				clear(part)
				gaps = append(gaps, scstore.Piece{Extent: extent, State: scstore.PieceHole})
			case locs[i].isRemote():
				gaps = append(gaps, scstore.Piece{Extent: extent, State: scstore.PieceRemote})
			default:
				ok, err = t.store.readData(t, extent, locs[i], part, now)
			}
			i += n
		}
		switch {
		case errors.Is(err, errMoved):
			continue
		case t.deleted.Load():
			return gaps, false, fmt.Errorf("read volume %s: %w", t.id, scstore.ErrNotFound)
		}
		return gaps, ok, err
	}
	return gaps, false, fmt.Errorf("read volume %s at block %d: moved %d times: %w", t.id, first, MaxMoves, scstore.ErrBusy)
}

// sameRun returns how many of locs continue the first.
func sameRun(locs []loc) int {
	n := 1
	if !locs[0].stored() {
		for n < len(locs) && locs[n] == locs[0] {
			n++
		}
		return n
	}
	for n < len(locs) && locs[n].stored() && locs[0].plus(uint64(n))&^locFlags == locs[n]&^locFlags {
		n++
	}
	return n
}

// resolve looks up the blocks [first, first+len(locs)) of a table in a view: step
// R2. A zero loc means that the table does not know the block. gens is scratch of
// the same length. At the head the newest source that knows a block is right,
// since what only pins show is marked; a pinned view takes the newest generation
// that it may see, wherever it is. So does the head of a table that was rolled
// back, of which no view sees the dead generations, until a merge has taken them
// out of the map. gens then holds the generations in which the blocks were written.
func (s *Store) resolve(t *Table, asked uint32, first uint64, locs []loc, gens []uint32, now bool) (ok bool, err error) {
	clear(locs)
	table, end, missing := t.no, first+uint64(len(locs)), len(locs)
	s.mapMu.RLock()
	dead := t.dead
	view := viewOf(asked, dead)
	fill := func(gen uint32, from, count uint64, at loc) {
		for i := from; i < from+count; i++ {
			old := &locs[i-first]
			switch {
			case *old == 0:
				missing--
			case view == headGen || gen <= gens[i-first]:
				continue
			}
			*old, gens[i-first] = at.plus(i-from), gen
		}
	}
	for _, m := range [2]*memtable{s.mem, s.frozen} {
		if m == nil || missing == 0 && view == headGen {
			continue
		}
		for _, gen := range m.gens[table] {
			if gen > view || dead.has(gen) {
				continue
			}
			m.layers[layerKey{table, gen}].scan(first, end, func(from, count uint64, at loc) bool {
				if view != headGen || !at.isKept() {
					fill(gen, from, count, at)
				}
				return true
			})
		}
	}
	runs := s.runs
	s.mapMu.RUnlock()

	for _, r := range runs {
		if missing == 0 && view == headGen {
			break
		}
		ok, err := s.scan(r, table, first, end, now, func(e entry) bool {
			if e.gen > view || view == headGen && e.loc.isKept() || dead.has(e.gen) {
				return true
			}
			e = e.clip(first, end)
			fill(e.gen, e.first, e.count, e.loc)
			return missing > 0 || view != headGen
		})
		if err != nil || !ok {
			return ok, err
		}
	}
	return true, nil
}

// viewOf returns how a view of a table with dead generations is looked up.
func viewOf(view uint32, dead genRanges) uint32 {
	if view == headGen && dead != nil {
		return lastGen
	}
	return view
}

// readData reads and verifies the run of blocks stored at at: steps R3 and R4.
func (s *Store) readData(t *Table, e scstore.Extent, at loc, p []byte, now bool) (ok bool, err error) {
	g := s.segment(at.segment())
	if g == nil {
		return false, errMoved
	}
	if at.slot()+int(e.Count) > int(g.visible.Load()) {
		if err := s.Publish(); err != nil {
			return false, err
		}
	}
	if now {
		if ok, err = g.file.ReadNowAt(p, int64(at.slot())*scstore.BlockSize); err != nil || !ok {
			return false, s.movedOr(g, err)
		}
	} else if err := readFull(g.file, p, int64(at.slot())*scstore.BlockSize); err != nil {
		return false, s.movedOr(g, fmt.Errorf("read segment %x: %w", g.id, err))
	}
	for i := range int(e.Count) {
		slot := at.slot() + i
		sums, ok, err := g.sumPage(s.cache, slot, now)
		if err != nil || !ok {
			return false, s.movedOr(g, err)
		}
		block := p[i*scstore.BlockSize : (i+1)*scstore.BlockSize]
		if got := g.seed.sum(block, slot); got != sums.sum(slot) {
			if err := s.verifyAgain(t, g, slot, uint64(e.First)+uint64(i), got); err != nil {
				return false, err
			}
		}
	}
	if g.gone.Load() {
		return false, errMoved
	}
	return true, nil
}

// movedOr turns an error of a segment that was given away meanwhile into errMoved.
func (s *Store) movedOr(g *segment, err error) error {
	if g.gone.Load() {
		return errMoved
	}
	return err
}

// verifyAgain asks the group's header for its opinion of a block whose checksum
// got differs from the table's: the data may be good and the table bad.
func (s *Store) verifyAgain(t *Table, g *segment, slot int, block uint64, got uint32) error {
	want, err := g.headerSum(s.id, slot)
	switch {
	case g.gone.Load():
		return errMoved
	case err == nil && got == want:
		s.report(Damage{Kind: DamageTable, Segment: g.id, Slot: slot, Volume: t.id, Block: block, Healed: true})
		return nil
	}
	err = fmt.Errorf("read volume %s, block %d (segment %x, slot %d): checksum: %w", t.id, block, g.id, slot, scstore.ErrCorrupt)
	s.report(Damage{Kind: DamageData, Segment: g.id, Slot: slot, Volume: t.id, Block: block, Err: err})
	return err
}

// status appends to dst pieces that cover exactly the extent, in order, as the
// view has it. Neighbouring pieces differ in state.
func (t *Table) status(view uint32, e scstore.Extent, dst []scstore.Piece) ([]scstore.Piece, error) {
	if err := t.check(e.First, e.Count); err != nil {
		return dst, err
	}
	if t.quarantined.Load() {
		return dst, t.quarantineError()
	}
	sc := scratches.Get().(*scratch)
	defer scratches.Put(sc)
	from := len(dst)
	for done := uint64(0); done < e.Count; {
		n := min(e.Count-done, resolveBlocks)
		locs := sc.locs[:n]
		var err error
		for range MaxMoves {
			if _, err = t.store.resolve(t, view, uint64(e.First)+done, locs, sc.gens[:n], false); !errors.Is(err, errMoved) {
				break
			}
		}
		if err != nil {
			return dst, err
		}
		for i, at := range locs {
			state := scstore.PieceData
			switch {
			case at == 0:
				state = scstore.PieceAbsent
			case at.isHole():
				state = scstore.PieceHole
			case at.isRemote():
				state = scstore.PieceRemote
			}
			if last := len(dst) - 1; last >= from && dst[last].State == state {
				dst[last].Count++
				continue
			}
			dst = append(dst, scstore.Piece{Extent: scstore.Extent{First: e.First + scstore.BlockIndex(done) + scstore.BlockIndex(i), Count: 1}, State: state})
		}
		done += n
	}
	return dst, nil
}
