package volume

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"

	"golang.org/x/sync/errgroup"

	"scstore"
)

// changedBatch is how many extents are asked of the table at a time.
const changedBatch = 4096

// Manifest says what one epoch changed.
type Manifest struct {
	Volume    scstore.VolumeID
	Position  scstore.Position // of the sealed epoch
	Parent    scstore.Position // of the one before it, under its own fence
	SizeBytes int64
	Extents   []scstore.Extent // changed blocks, ascending; may name unchanged ones
	Root      scstore.Digest   // over the spans that Extents touch, as they are at Position
}

// Tag returns the tag of the mark that keeps the sealed epoch's content.
func (m Manifest) Tag() scstore.Tag { return scstore.PositionTag(scstore.TagSealed, m.Position) }

// Seal ends the open epoch: step W5. Writes go on at once in the next one; what
// the sealed one holds stays readable by its mark, is hashed, and is durable, mark
// included, before Seal returns. A seal without changes still gives a new position.
// It may run for long: progress, if not nil, is called with the bytes hashed so far
// and in all. Seals run one at a time.
//
// What changed is what the table's map has between the marks of the parent and of
// this epoch, so it is complete whatever happened to this process in between. If the
// parent's mark is gone, the manifest names the whole volume.
//
// Errors: ErrFenced, ErrReadOnly, ErrCorrupt, ErrPoisoned, ErrBusy (too many marks);
// a *MissingError if a span that was written to is not all here: fetch it and seal
// again. After an error the epoch is open as before: the next Seal has the same
// position and parent, and covers what this one would have.
func (v *Volume) Seal(ctx context.Context, progress func(done, total int64)) (Manifest, error) {
	if progress == nil {
		progress = func(int64, int64) {}
	}
	select {
	case <-v.sealing:
	case <-ctx.Done():
		return Manifest{}, fmt.Errorf("seal %s: %w", v.id, context.Cause(ctx))
	}
	defer func() {
		v.sealing <- struct{}{}
		if v.closed.Load() {
			v.forgetLeaves()
		}
	}()
	m, err := v.endEpoch()
	if err != nil {
		return Manifest{}, fmt.Errorf("seal %s: %w", v.id, err)
	}
	var both errgroup.Group // the disk is waited for while the processor hashes
	both.Go(func() error { return v.Flush(ctx) })
	both.Go(func() error { return v.describe(ctx, &m, progress) })
	if err = both.Wait(); err == nil {
		err = v.writable()
	}
	if err != nil {
		v.leaves.forget()
		return Manifest{}, fmt.Errorf("seal %s@%s: %w", v.id, m.Position, err)
	}
	v.seal.Lock()
	v.head = m.Position
	v.seal.Unlock()
	return m, nil
}

// Committed tells the volume that the epoch at p was committed: step W7. The marks
// of what was sealed before it are taken back; who needs one of those positions for
// longer has given it a tag of its own. Durable with the next Flush. Errors: those
// of the table.
func (v *Volume) Committed(p scstore.Position) error {
	if v.table == nil {
		return fmt.Errorf("volume %s: %w", v.id, scstore.ErrReadOnly)
	}
	for _, tag := range v.table.Marks() {
		if tag.Kind == scstore.TagSealed && tag.Position().Compare(p) < 0 {
			if err := v.table.Unmark(tag); err != nil {
				return fmt.Errorf("volume %s: %w", v.id, err)
			}
		}
	}
	return nil
}

// endEpoch is the instant of a seal.
func (v *Volume) endEpoch() (Manifest, error) {
	v.seal.Lock()
	defer v.seal.Unlock()
	if err := v.writable(); err != nil {
		return Manifest{}, err
	}
	if v.head.Epoch == math.MaxUint64 {
		return Manifest{}, fmt.Errorf("no epoch after %s: %w", v.head, scstore.ErrInvalid)
	}
	m := Manifest{Volume: v.id, Parent: v.head, SizeBytes: v.Size()}
	m.Position = scstore.Position{Fence: v.fence, Epoch: v.head.Epoch + 1}
	err := v.table.Mark(m.Tag())
	if errors.Is(err, scstore.ErrExists) { // of a Seal that failed
		if err = v.table.Unmark(m.Tag()); err == nil {
			err = v.table.Mark(m.Tag())
		}
	}
	return m, err
}

// describe completes the manifest of an epoch that has ended.
func (v *Volume) describe(ctx context.Context, m *Manifest, progress func(done, total int64)) error {
	view, err := v.table.At(m.Tag())
	if err != nil {
		return err
	}
	defer view.Release()
	if m.Extents, err = v.changed(ctx, m); err != nil {
		return err
	}
	chain := append([]Reader{view}, v.chain[1:]...)
	h := spanHasher{chain: chain, sizeBytes: m.SizeBytes, cache: &v.leaves, at: m.Position}
	m.Root, err = h.root(ctx, m.Extents, progress)
	return err
}

// changed lists what was written between the parent and the epoch.
func (v *Volume) changed(ctx context.Context, m *Manifest) ([]scstore.Extent, error) {
	whole := scstore.Extent{Count: uint64(m.SizeBytes) / scstore.BlockSize}
	var from scstore.Tag // the beginning, if nothing was ever sealed
	if m.Parent != (scstore.Position{}) {
		from = scstore.PositionTag(scstore.TagSealed, m.Parent)
		if !slices.Contains(v.table.Marks(), from) {
			return []scstore.Extent{whole}, nil
		}
	}
	return Changed(ctx, v.table, from, m.Tag(), whole)
}

// Changes is the part of a Table that knows what was written between two marks.
type Changes interface {
	Changed(ctx context.Context, from, to scstore.Tag, start scstore.BlockIndex, limit int) ([]scstore.Extent, error)
}

// Changed lists what was written within a window between two marks of a table, in at
// most MaxManifestExtents extents: beyond that, neighbours are named as one. The zero
// tag is the beginning, or the head. Errors: those of the table.
func Changed(ctx context.Context, t Changes, from, to scstore.Tag, window scstore.Extent) ([]scstore.Extent, error) {
	set := extentSet{blocks: uint64(window.End()), grain: 1, limit: MaxManifestExtents}
	for start := window.First; start < window.End(); {
		part, err := t.Changed(ctx, from, to, start, changedBatch)
		if err != nil {
			return nil, err
		}
		for _, e := range part {
			if e = e.Clamp(window); e.Count > 0 {
				set.add(e)
			}
		}
		if len(part) < changedBatch {
			break
		}
		start = part[len(part)-1].End()
	}
	if len(set.list) > 0 && set.list[0].First < window.First { // rounded to a grain
		set.list[0] = set.list[0].Clamp(window)
	}
	return set.list, nil
}

// ChangedBytes counts the bytes of the blocks that were written between two marks of a
// table, exactly. Tags and errors as for Changed.
func ChangedBytes(ctx context.Context, t Changes, from, to scstore.Tag) (bytes int64, err error) {
	for start := scstore.BlockIndex(0); ; {
		part, err := t.Changed(ctx, from, to, start, changedBatch)
		if err != nil {
			return 0, err
		}
		for _, e := range part {
			bytes += int64(e.Count) * scstore.BlockSize
		}
		if len(part) < changedBatch {
			return bytes, nil
		}
		start = part[len(part)-1].End()
	}
}

// DigestExtents returns the root over the spans that the extents touch, in the content
// that the chain shows, nearest first: what the manifest of an epoch that changed them
// would have. Errors: ErrCorrupt, a *MissingError.
func DigestExtents(ctx context.Context, chain []Reader, sizeBytes int64, extents []scstore.Extent) (scstore.Digest, error) {
	h := spanHasher{chain: chain, sizeBytes: sizeBytes}
	return h.root(ctx, extents, func(int64, int64) {})
}

// Digest returns the root over all spans of the volume that hold data, as the
// manifest of an epoch that wrote just those would have it. It is what an image is
// known by. Errors: ErrCorrupt, a *MissingError.
func (v *Volume) Digest(ctx context.Context, progress func(done, total int64)) (scstore.Digest, error) {
	if progress == nil {
		progress = func(int64, int64) {}
	}
	var extents []scstore.Extent
	whole := scstore.Extent{Count: uint64(v.Size()) / scstore.BlockSize}
	if err := chainStatus(v.chain, whole, func(p scstore.Piece) {
		if p.State != scstore.PieceHole {
			extents = append(extents, p.Extent)
		}
	}); err != nil {
		return scstore.Digest{}, fmt.Errorf("digest %s: %w", v.id, err)
	}
	h := spanHasher{chain: v.chain, sizeBytes: v.Size()}
	d, err := h.root(ctx, extents, progress)
	if err != nil {
		return scstore.Digest{}, fmt.Errorf("digest %s: %w", v.id, err)
	}
	return d, nil
}

// SealedDigest returns the digest of a span at a position that this Volume has sealed, if
// a seal that is remembered made it: then nobody has to read and hash the span again. It
// is what DigestSpan returns of a view of that position.
func (v *Volume) SealedDigest(number uint64, at scstore.Position) (scstore.Digest, bool) {
	if at.Compare(v.Head()) > 0 {
		return scstore.Digest{}, false // the seal is under way, and may fail
	}
	return v.leaves.digest(number, at)
}

// spanHasher hashes spans.
type spanHasher struct {
	chain     []Reader
	sizeBytes int64            // of the volume
	cache     *leafCache       // what it has is the content without what the extents name; nil for none
	at        scstore.Position // of the content, for the cache
	buf       []byte
}

// root hashes the spans that the extents touch. A span that holds only zeros is left out,
// so that the root does not depend on how zeros are stored.
func (h *spanHasher) root(ctx context.Context, extents []scstore.Extent, progress func(done, total int64)) (scstore.Digest, error) {
	h.buf = make([]byte, SpanBlocks*scstore.BlockSize)
	root := newRootHash(h.sizeBytes)
	var total, done int64
	for _, e := range extents {
		total += int64(e.Count) * scstore.BlockSize
	}
	var parts []scstore.Extent
	for span := uint64(0); len(extents) > 0; span++ {
		if err := ctx.Err(); err != nil {
			return scstore.Digest{}, err
		}
		span = max(span, uint64(extents[0].First)/SpanBlocks)
		parts, extents = partsOf(span, extents)
		if len(parts) == 0 {
			continue
		}
		d, err := h.digest(span, parts)
		if err != nil {
			return scstore.Digest{}, err
		}
		if d != HoleSpanDigest() {
			root.add(span, d)
		}
		for _, e := range parts {
			done += int64(e.Count) * scstore.BlockSize
		}
		progress(done, total)
	}
	return root.sum(), nil
}

// digest returns the digest of a span of which parts were written since the cache saw it.
func (h *spanHasher) digest(span uint64, parts []scstore.Extent) (scstore.Digest, error) {
	first := scstore.BlockIndex(span * SpanBlocks)
	known, fresh := h.cache.get(span), false
	if known == nil {
		known, fresh = &knownSpan{tree: holeTree()}, true
		parts = []scstore.Extent{{First: first, Count: SpanBlocks}}
	}
	for _, e := range parts {
		p, err := h.read(e)
		if err != nil {
			return scstore.Digest{}, err
		}
		known.tree.set(int(e.First-first), p)
	}
	sum := known.tree.fold()
	h.cache.note(span, known, fresh, h.at, sum)
	return sum, nil
}

// read reads blocks, as far as the volume goes.
func (h *spanHasher) read(e scstore.Extent) ([]byte, error) {
	e = e.Clamp(scstore.Extent{Count: uint64(h.sizeBytes) / scstore.BlockSize})
	p := h.buf[:e.Count*scstore.BlockSize]
	pieces, _, err := readChain(h.chain, e, p, nil, false)
	if err == nil {
		err = missing(h.chain, pieces)
	}
	return p, err
}
