package block

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"scstore"
)

// replayGroup is a group of the log's tail.
type replayGroup struct {
	seg     *foundSegment
	header  groupHeader
	records []record
	lost    uint64 // durable records before this group that can't be read
}

// replay applies the log that follows the checkpoint. It reads along the chain:
// each header names the one before it by checksum. What stands between the end of
// the chain and a header that proves that it had been synced is rot; what comes
// after the last proof is checked block by block and cut, as one prefix of the
// whole log, at the first that is not there.
func (r *recovery) replay() error {
	s := r.store
	groups, synced, err := r.readChain()
	if err != nil {
		return err
	}
	s.log.seq, s.log.chain = r.root.replay.seq, r.root.replay.chain
	touched := map[uint64]*segment{}
	if g := r.found[r.root.replay.segment]; g != nil {
		g.next = r.root.replay.slot
		touched[g.id] = g.segment
	}
	for i, group := range groups {
		if group.lost > 0 {
			r.loseRecords(&group)
		}
		kept := len(group.records)
		if group.header.seq+uint64(kept) > synced && s.opts.plant != plantTrustTail {
			kept = r.wholeRecords(&group, synced)
		}
		r.applyGroup(&group, kept)
		touched[group.seg.id] = group.seg.segment
		s.log.seq = group.header.seq + uint64(kept)
		s.log.chain = chainSum(group.header.sum, kept)
		if kept < len(group.records) {
			for _, rest := range groups[i:] {
				s.recovery.CutRecords += len(rest.records)
			}
			s.recovery.CutRecords -= kept
			break
		}
	}
	if s.recovery.CutRecords > 0 {
		s.logger.Warn("the end of the log was cut: it had not reached the disk whole", "records", s.recovery.CutRecords)
	}
	for _, g := range touched {
		if err := r.finishSegment(g); err != nil {
			return err
		}
	}
	return nil
}

// readChain reads the groups after the checkpoint, and the highest seq that one of
// them proves synced.
func (r *recovery) readChain() (groups []replayGroup, synced uint64, err error) {
	at, synced := r.root.replay, r.root.replay.seq
	page := make([]byte, scstore.BlockSize)
	for {
		g, h, healed := r.follow(at, page)
		lost := uint64(0)
		if g == nil {
			gap, seg := r.proof(at)
			if gap == nil {
				return groups, synced, nil
			}
			g, h, lost = seg, *gap, gap.seq-at.seq
		}
		if healed {
			r.store.recovery.HealedHeaders++
			r.store.report(Damage{Kind: DamageHeader, Segment: g.id, Slot: h.slot, Healed: true})
		}
		h.body = slices.Clone(h.body)
		records, err := h.decode()
		if err != nil {
			return nil, 0, fmt.Errorf("replay group %x/%d: %w", g.id, h.slot, err)
		}
		groups = append(groups, replayGroup{g, h, records, lost})
		synced = max(synced, h.synced)
		at = replayPoint{g.id, h.slot + 1 + h.dataSlots, h.seq + uint64(h.records), chainSum(h.sum, h.records)}
	}
}

// follow returns the group that continues the chain at at: the next one of the
// same segment, or the first one of another.
func (r *recovery) follow(at replayPoint, page []byte) (*foundSegment, groupHeader, bool) {
	continues := func(h *groupHeader) bool {
		if r.store.opts.plant == plantIgnoreIncarnation {
			return h.stream == streamLog && h.seq == at.seq
		}
		return h.stream == streamLog && h.incarnation == r.root.incarnation && h.seq == at.seq && h.chain == at.chain
	}
	if g := r.found[at.segment]; g != nil {
		if h, healed, err := g.readHeader(r.store.id, page, at.slot); err == nil && continues(&h) {
			return g, h, healed
		}
	}
	for _, g := range r.found {
		if g.id != at.segment && g.first != nil && continues(g.first) {
			return g, *g.first, false
		}
	}
	return nil, groupHeader{}, false
}

// proof looks behind a broken chain for the first group that shows that what is
// missing had been synced: that is rot, not a torn end.
func (r *recovery) proof(at replayPoint) (*groupHeader, *foundSegment) {
	var best *groupHeader
	var where *foundSegment
	page := make([]byte, scstore.BlockSize)
	consider := func(g *foundSegment, from int) {
		for slot := from; slot < g.tableSlot; slot++ {
			h, _, err := g.readHeader(r.store.id, page, slot)
			if err != nil || h.stream != streamLog || h.incarnation != r.root.incarnation || h.seq <= at.seq {
				continue
			}
			if h.synced > at.seq && (best == nil || h.seq < best.seq) {
				h.body = slices.Clone(h.body)
				best, where = &h, g
			}
			if best != nil && where == g {
				return
			}
			slot += h.dataSlots
		}
	}
	if g := r.found[at.segment]; g != nil {
		consider(g, at.slot)
	}
	for _, g := range r.found {
		later := g.first != nil && g.first.stream == streamLog && g.first.incarnation == r.root.incarnation && g.first.seq > at.seq
		if g.id != at.segment && (later || g.suspect) {
			consider(g, 1)
		}
	}
	return best, where
}

// loseRecords notes that durable records before next can't be read: any volume
// that could be written to then may have lost some, so none of those is served.
func (r *recovery) loseRecords(next *replayGroup) {
	s := r.store
	s.recovery.LostRecords += next.lost
	s.report(Damage{
		Kind: DamageLog, Segment: next.seg.id, Slot: next.header.slot,
		Err: fmt.Errorf("replay: %d synced records before this group are unreadable: %w", next.lost, scstore.ErrCorrupt),
	})
	for _, t := range s.tables {
		if !t.Frozen() {
			t.quarantined.Store(true)
		}
	}
}

// wholeRecords returns how many of a group's records are whole, counting those
// below synced as whole: rot in them is for the reader to find.
func (r *recovery) wholeRecords(group *replayGroup, synced uint64) int {
	g, slot := group.seg, group.header.slot+1
	buf := make([]byte, group.header.dataSlots*scstore.BlockSize)
	if err := readFull(g.file, buf, int64(slot)*scstore.BlockSize); err != nil {
		return 0
	}
	for i, rec := range group.records {
		if !rec.kind.hasSlots() {
			continue
		}
		for n := range int(rec.count) {
			want := binary.BigEndian.Uint32(rec.sums[n*4:])
			if group.header.seq+uint64(i) >= synced && g.seed.sum(buf[:scstore.BlockSize], slot) != want {
				return i
			}
			slot, buf = slot+1, buf[scstore.BlockSize:]
		}
	}
	return len(group.records)
}

// applyGroup applies the first kept records of a group.
func (r *recovery) applyGroup(group *replayGroup, kept int) {
	s, g := r.store, group.seg
	if s.segments[g.id] == nil {
		r.take(g.segment)
	}
	slot := group.header.slot + 1
	for i := range group.records[:kept] {
		rec := &group.records[i]
		forgotten := rec.kind == recordRollback && s.opts.plant == plantForgetRollback
		if (rec.kind == recordCreate || s.tables[rec.table] != nil) && !forgotten {
			s.apply(rec, makeLoc(g.id, slot))
		}
		if rec.kind.hasSlots() {
			slot += int(rec.count)
			g.live.Add(int64(rec.count))
			s.recovery.ReplayedBytes += int64(rec.count) * scstore.BlockSize
		}
	}
	g.next = max(g.next, slot)
	s.recovery.ReplayedRecords += kept
}

// finishSegment writes the checksum table of a segment that the log was in when
// the process died, and has it synced before anything is served from it.
func (r *recovery) finishSegment(g *segment) error {
	s := r.store
	if s.segments[g.id] == nil {
		r.take(g)
	}
	g.begin(streamLog)
	page := make([]byte, scstore.BlockSize)
	for at := 1; at < g.next; {
		h, _, err := g.readHeader(s.id, page, at)
		if err != nil {
			if !errors.Is(err, scstore.ErrCorrupt) {
				return err
			}
			g.damaged.Store(true)
			at++
			continue
		}
		records, err := h.decode()
		if err != nil {
			return fmt.Errorf("replay group %x/%d: %w", g.id, at, err)
		}
		slot := at + 1
		for _, rec := range records {
			for n := 0; n < len(rec.sums)/4 && slot < g.tableSlot; n++ {
				g.setSum(slot, binary.BigEndian.Uint32(rec.sums[n*4:]))
				slot++
			}
		}
		at += 1 + h.dataSlots
	}
	g.retired.Store(false)
	s.log.unsynced = append(s.log.unsynced, g)
	return g.retire(s.cache)
}
