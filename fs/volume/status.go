package volume

import (
	"fmt"

	"scstore"
)

// Status appends ranges that cover exactly the bytes [off, off+length), in order;
// neighbours differ in state. What is not here yet counts as data. Errors as for
// ReadAt, but nothing is missing for it.
func (v *Volume) Status(off, length int64, dst []scstore.Range) ([]scstore.Range, error) {
	if err := v.check(off, length); err != nil || length == 0 {
		return dst, err
	}
	if v.closed.Load() {
		return dst, fmt.Errorf("volume %s: %w", v.id, scstore.ErrClosed)
	}
	from := len(dst)
	err := chainStatus(v.chain, cover(off, length), func(p scstore.Piece) {
		state := scstore.RangeData
		if p.State == scstore.PieceHole {
			state = scstore.RangeHole
		}
		start, end := max(p.First.Offset(), off), min(p.End().Offset(), off+length)
		r := scstore.Range{Offset: start, Length: end - start, State: state}
		if len(dst) > from {
			dst = appendRange(dst, r)
		} else {
			dst = append(dst, r)
		}
	})
	return dst, err
}

// chainStatus calls emit with pieces, data, remote or hole, that cover the extent.
func chainStatus(chain []Reader, e scstore.Extent, emit func(scstore.Piece)) error {
	in := scstore.Extent{First: e.First}
	if len(chain) > 0 {
		in = e.Clamp(scstore.Extent{Count: uint64(chain[0].SizeBytes()) / scstore.BlockSize})
	}
	if in.Count > 0 {
		pieces, err := chain[0].Status(in, nil)
		if err != nil {
			return err
		}
		for _, piece := range pieces {
			if piece.State != scstore.PieceAbsent {
				emit(piece)
			} else if err := chainStatus(chain[1:], piece.Extent, emit); err != nil {
				return err
			}
		}
	}
	if rest := e.Count - in.Count; rest > 0 {
		emit(scstore.Piece{Extent: scstore.Extent{First: e.First + scstore.BlockIndex(in.Count), Count: rest}, State: scstore.PieceHole})
	}
	return nil
}
