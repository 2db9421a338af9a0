package volume

import (
	"fmt"

	"scstore"
)

// ReadBlocks fills p with whole blocks from first on and returns those of them, in
// order, that are not here: at another host, or beyond the volume's end. p is
// undefined there. Errors: ErrInvalid, ErrCorrupt, ErrClosed.
func (v *Volume) ReadBlocks(first scstore.BlockIndex, p []byte) (absent []scstore.Extent, err error) {
	if len(p)%scstore.BlockSize != 0 {
		return nil, fmt.Errorf("volume %s: %d bytes of blocks: %w", v.id, len(p), scstore.ErrInvalid)
	}
	if v.closed.Load() {
		return nil, fmt.Errorf("volume %s: %w", v.id, scstore.ErrClosed)
	}
	e := scstore.Extent{First: first, Count: uint64(len(p)) / scstore.BlockSize}
	in := e.Clamp(scstore.Extent{Count: uint64(v.Size()) / scstore.BlockSize})
	if in.Count == 0 {
		return []scstore.Extent{e}, nil
	}
	pieces, _, err := v.readBlocks(in.First, p[:in.Count*scstore.BlockSize], nil, false)
	if err != nil {
		return nil, fmt.Errorf("read: %w", err)
	}
	for _, piece := range pieces {
		if piece.State == scstore.PieceRemote {
			absent = appendExtent(absent, piece.Extent)
		}
	}
	if in.End() < e.End() {
		absent = appendExtent(absent, scstore.Extent{First: in.End(), Count: uint64(e.End() - in.End())})
	}
	return absent, nil
}

// appendExtent appends e, joined to the last extent if it continues it.
func appendExtent(list []scstore.Extent, e scstore.Extent) []scstore.Extent {
	if n := len(list); n > 0 && list[n-1].End() == e.First {
		list[n-1].Count += e.Count
		return list
	}
	return append(list, e)
}

// DigestSpan returns the digest of one span. Errors: those of ReadAt.
func (v *Volume) DigestSpan(number uint64) (scstore.Digest, error) {
	nodes := holeNodes()
	if err := v.hashGroups(&nodes, number, allGroups); err != nil {
		return scstore.Digest{}, err
	}
	return foldNodes(nodes, 4), nil
}

// allGroups are all groups of a span, by bit.
const allGroups = 1<<(SpanBlocks/groupLeaves) - 1

// hashGroups sets the nodes of some groups of a span, by bit, to what the volume holds.
func (v *Volume) hashGroups(nodes *spanNodes, number uint64, groups uint) error {
	first, size := scstore.BlockIndex(number*SpanBlocks), uint64(v.Size())/scstore.BlockSize
	if number >= uint64(scstore.MaxVolumeBytes)/(SpanBlocks*scstore.BlockSize) || uint64(first) >= size {
		return fmt.Errorf("volume %s: span %d: %w", v.id, number, scstore.ErrInvalid)
	}
	var parts []scstore.Extent
	for g := range scstore.BlockIndex(len(nodes)) {
		e := scstore.Extent{First: first + g*groupLeaves, Count: groupLeaves}.Clamp(scstore.Extent{Count: size})
		if groups&(1<<g) != 0 && e.Count > 0 {
			parts = appendExtent(parts, e)
		}
	}
	for _, e := range parts {
		p := make([]byte, e.Count*scstore.BlockSize)
		if _, err := v.ReadAt(p, e.First.Offset(), nil); err != nil {
			return err
		}
		nodes.set(int(e.First-first), p)
	}
	return nil
}
