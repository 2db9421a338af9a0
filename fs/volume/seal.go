package volume

import (
	"context"
	"fmt"
	"math"

	"scstore"
)

// Manifest says what one epoch changed.
type Manifest struct {
	Volume    scstore.VolumeID
	Position  scstore.Position // of the sealed epoch
	Parent    scstore.Position // of the one before it
	SizeBytes int64
	Extents   []scstore.Extent // changed blocks, ascending; may name unchanged ones
	Root      scstore.Digest   // over the spans that Extents touch, as they are at Position
}

// Seal ends the open epoch: step W5. Writes go on at once in the next one; what
// the sealed one holds is hashed from a view of it, and made durable, before Seal
// returns. A seal without changes still gives a new position. It may run for
// long: progress, if not nil, is called with the bytes hashed so far and in all.
//
// Errors: ErrFenced, ErrReadOnly, ErrCorrupt, ErrPoisoned; the epoch is sealed
// then, but has no manifest: the next Seal's Parent tells, and its Extents cover
// both.
func (v *Volume) Seal(ctx context.Context, progress func(done, total int64)) (Manifest, error) {
	if progress == nil {
		progress = func(int64, int64) {}
	}
	view, m, sealed, err := v.endEpoch()
	if err != nil {
		return Manifest{}, fmt.Errorf("seal %s: %w", v.id, err)
	}
	defer view.Release()
	m.Root, err = digestExtents(ctx, append([]Reader{view}, v.base...), m.SizeBytes, m.Extents, progress)
	if err == nil {
		err = v.Flush(ctx)
	}
	if err != nil {
		v.dirty.merge(sealed)
		return Manifest{}, fmt.Errorf("seal %s@%s: %w", v.id, m.Position, err)
	}
	return m, nil
}

// endEpoch is the instant of a seal.
func (v *Volume) endEpoch() (View, Manifest, *dirtySet, error) {
	v.seal.Lock()
	defer v.seal.Unlock()
	if err := v.writable(); err != nil {
		return nil, Manifest{}, nil, err
	}
	if v.head.Epoch == math.MaxUint64 {
		return nil, Manifest{}, nil, fmt.Errorf("no epoch after %s: %w", v.head, scstore.ErrInvalid)
	}
	view, err := v.table.Pin()
	if err != nil {
		return nil, Manifest{}, nil, err
	}
	m := Manifest{Volume: v.id, Parent: v.head, SizeBytes: v.Size()}
	m.Position = scstore.Position{Fence: v.fence, Epoch: v.head.Epoch + 1}
	m.Extents = v.dirty.extents(uint64(m.SizeBytes) / scstore.BlockSize)
	sealed := v.dirty.take()
	v.head = m.Position
	return view, m, sealed, nil
}

// Digest returns the root over all spans of the volume that hold data, as the
// manifest of an epoch that wrote just those would have it. It is what an image is
// known by. Errors: ErrCorrupt, ErrClosed.
func (v *Volume) Digest(ctx context.Context, progress func(done, total int64)) (scstore.Digest, error) {
	if progress == nil {
		progress = func(int64, int64) {}
	}
	chain := append([]Reader{v.table}, v.base...)
	var extents []scstore.Extent
	whole := scstore.Extent{Count: uint64(v.Size()) / scstore.BlockSize}
	if err := chainStatus(chain, whole, func(p scstore.Piece) {
		if p.State == scstore.PieceData {
			extents = append(extents, p.Extent)
		}
	}); err != nil {
		return scstore.Digest{}, fmt.Errorf("digest %s: %w", v.id, err)
	}
	d, err := digestExtents(ctx, chain, v.Size(), extents, progress)
	if err != nil {
		return scstore.Digest{}, fmt.Errorf("digest %s: %w", v.id, err)
	}
	return d, nil
}

// digestExtents hashes the spans that the extents touch. A span that holds only
// zeros is left out, so that the root does not depend on how zeros are stored.
func digestExtents(ctx context.Context, chain []Reader, sizeBytes int64, extents []scstore.Extent, progress func(done, total int64)) (scstore.Digest, error) {
	blocks := uint64(sizeBytes) / scstore.BlockSize
	root := newRootHash(sizeBytes)
	buf := make([]byte, SpanBlocks*scstore.BlockSize)
	var total, done int64
	for _, e := range extents {
		total += int64(e.Count) * scstore.BlockSize
	}
	next := uint64(0) // the first span not yet hashed
	for _, e := range extents {
		for span := max(next, uint64(e.First)/SpanBlocks); span*SpanBlocks < uint64(e.End()); span++ {
			if err := ctx.Err(); err != nil {
				return scstore.Digest{}, err
			}
			first := span * SpanBlocks
			part := buf[:min(SpanBlocks, blocks-first)*scstore.BlockSize]
			at := scstore.Extent{First: scstore.BlockIndex(first), Count: uint64(len(part)) / scstore.BlockSize}
			if _, _, err := readChain(chain, at, part, nil, false); err != nil {
				return scstore.Digest{}, err
			}
			if d := SpanDigest(part); d != HoleSpanDigest() {
				root.add(span, d)
			}
			next = span + 1
		}
		done += int64(e.Count) * scstore.BlockSize
		progress(done, total)
	}
	return root.sum(), nil
}
