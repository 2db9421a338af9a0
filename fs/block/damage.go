package block

import (
	"context"
	"errors"
	"fmt"

	"scstore"
)

// DamageKind says what failed to verify.
type DamageKind string

// The kinds of damage.
const (
	DamageData   DamageKind = "data"           // a block of a volume; reads of it fail with ErrCorrupt
	DamageTable  DamageKind = "checksum table" // the group's header vouched for the block
	DamageHeader DamageKind = "group header"
	DamageMap    DamageKind = "map page" // reads of the blocks it maps fail with ErrCorrupt
	DamageRoot   DamageKind = "checkpoint page"
	DamageLog    DamageKind = "log" // durable records are lost; the volumes that may have had them are not served
)

// MaxDamage bounds how many findings are kept.
const MaxDamage = 10000

// Damage is one place that failed to verify.
type Damage struct {
	Kind    DamageKind
	Segment uint64
	Slot    int
	Volume  scstore.VolumeID // if known
	Block   uint64           // of Volume
	Healed  bool             // nothing was lost: there was a second copy
	Err     error
}

// report notes damage, once a place.
func (s *Store) report(d Damage) {
	s.damageMu.Lock()
	defer s.damageMu.Unlock()
	for _, old := range s.damage {
		if old.Segment == d.Segment && old.Slot == d.Slot && old.Kind == d.Kind {
			return
		}
	}
	s.metrics.damage.WithLabelValues(string(d.Kind)).Inc()
	if len(s.damage) < MaxDamage {
		s.damage = append(s.damage, d)
	}
	s.logger.Error("stored bytes failed to verify", "kind", d.Kind, "segment", segmentName(d.Segment), "slot", d.Slot,
		"volume", d.Volume, "block", d.Block, "healed", d.Healed, "err", d.Err)
}

// Damage returns what was found damaged since the store was opened.
func (s *Store) Damage() []Damage {
	s.damageMu.Lock()
	defer s.damageMu.Unlock()
	return append([]Damage(nil), s.damage...)
}

// Recovery says what opening the store found.
func (s *Store) Recovery() RecoveryReport { return s.recovery }

// Report is the outcome of Verify.
type Report struct {
	Blocks  uint64 // checked
	Corrupt uint64 // of them unreadable
}

// verifyBlocks is how many blocks are read at a time.
const verifyBlocks = 1024

// Verify reads every block of every volume, at its head and at its marks, and checks it; what fails is in Damage
// afterwards. progress is called now and then with bytes done and in all. It goes
// on after corruption and stops at other errors or when ctx ends.
func (s *Store) Verify(ctx context.Context, progress func(done, total int64)) (Report, error) {
	var rep Report
	tables := s.Tables()
	var done, total int64
	for _, info := range tables {
		total += info.SizeBytes
	}
	for _, info := range tables {
		t, err := s.Table(info.ID)
		if errors.Is(err, scstore.ErrNotFound) {
			continue
		}
		if err != nil {
			return rep, err
		}
		if info.Quarantined {
			rep.Corrupt += uint64(info.SizeBytes) / scstore.BlockSize
			continue
		}
		if err := t.verify(ctx, &rep, func(bytes int64) { done += bytes; progress(done, total) }); err != nil {
			return rep, err
		}
	}
	return rep, nil
}

// verify reads the table's blocks, those that only marks show included.
func (t *Table) verify(ctx context.Context, rep *Report, progress func(int64)) error {
	buf := make([]byte, verifyBlocks*scstore.BlockSize)
	blocks := uint64(t.SizeBytes()) / scstore.BlockSize
	head := &View{table: t, gen: headGen}
	for at := uint64(0); at < blocks; {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("verify volume %s: %w", t.id, err)
		}
		n := min(blocks-at, resolveBlocks)
		if err := head.verifyPieces(scstore.Extent{First: scstore.BlockIndex(at), Count: n}, buf, rep); err != nil {
			return err
		}
		at += n
		progress(int64(n) * scstore.BlockSize)
	}
	for _, tag := range t.Marks() {
		if err := t.verifyMark(ctx, tag, buf, rep); err != nil && !errors.Is(err, scstore.ErrNotFound) {
			return err
		}
	}
	return nil
}

// verifyMark reads what a mark shows and the head does not. Errors: ErrNotFound if
// it is taken back meanwhile.
func (t *Table) verifyMark(ctx context.Context, tag scstore.Tag, buf []byte, rep *Report) error {
	pin, err := t.At(tag)
	if err != nil {
		return err
	}
	defer pin.Release()
	for start := scstore.BlockIndex(0); ; {
		extents, err := t.Changed(ctx, tag, scstore.Tag{}, start, verifyBlocks)
		if errors.Is(err, scstore.ErrCorrupt) {
			return nil // the map is unreadable there, which the head's turn has counted
		}
		if err != nil {
			return err
		}
		for _, e := range extents {
			if err := pin.verifyPieces(e, buf, rep); err != nil {
				return err
			}
		}
		if len(extents) < verifyBlocks {
			return nil
		}
		start = extents[len(extents)-1].End()
	}
}

// verifyPieces reads the data of an extent. Where the map is unreadable it is all
// taken for data.
func (v *View) verifyPieces(e scstore.Extent, buf []byte, rep *Report) error {
	pieces, err := v.Status(e, nil)
	if errors.Is(err, scstore.ErrCorrupt) {
		pieces, err = []scstore.Piece{{Extent: e, State: scstore.PieceData}}, nil
	}
	if err != nil {
		return err
	}
	for _, piece := range pieces {
		if piece.State == scstore.PieceData {
			if err := v.verifyExtent(piece.Extent, buf, rep); err != nil {
				return err
			}
		}
	}
	return nil
}

// verifyExtent reads an extent and, if that fails, each of its blocks alone.
func (v *View) verifyExtent(e scstore.Extent, buf []byte, rep *Report) error {
	for e.Count > 0 {
		n := min(e.Count, uint64(len(buf)/scstore.BlockSize))
		_, _, err := v.ReadBlocks(e.First, buf[:n*scstore.BlockSize], nil, false)
		for i := uint64(0); errors.Is(err, scstore.ErrCorrupt) && i < n; i++ {
			if _, _, one := v.ReadBlocks(e.First+scstore.BlockIndex(i), buf[:scstore.BlockSize], nil, false); one != nil {
				if !errors.Is(one, scstore.ErrCorrupt) {
					return one
				}
				rep.Corrupt++
			}
		}
		if err != nil && !errors.Is(err, scstore.ErrCorrupt) {
			return err
		}
		rep.Blocks += n
		e.First, e.Count = e.First+scstore.BlockIndex(n), e.Count-n
	}
	return nil
}
