package volume

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"

	"scstore"
)

// MaxRequestBytes bounds one read or write.
const MaxRequestBytes = 32 << 20

// Reader is a table, or a view of one, as it can be read. *block.Table, *block.View
// and *block.Pin are.
type Reader interface {
	// ReadBlocks fills p with whole blocks from first on and appends the runs
	// without data to gaps: holes, of which p is zero, and absent and remote blocks,
	// of which p is undefined. ok is false if now is set and the device would be waited for.
	ReadBlocks(first scstore.BlockIndex, p []byte, gaps []scstore.Piece, now bool) (_ []scstore.Piece, ok bool, err error)
	// Status appends pieces that cover the extent, in order.
	Status(e scstore.Extent, dst []scstore.Piece) ([]scstore.Piece, error)
	// SizeBytes returns the size; blocks beyond it are absent.
	SizeBytes() int64
}

// View is a Reader of one moment, held until Release.
type View interface {
	Reader
	Release()
}

// Table is where a volume's own blocks are; see *block.Table, which lacks only that
// its At returns a type of its own.
type Table interface {
	Reader
	WriteBlocks(first scstore.BlockIndex, p []byte) error
	ZeroBlocks(e scstore.Extent, discard bool) error
	Publish() error
	Sync(ctx context.Context) error

	// Mark keeps the present content under a tag; durable with the next Sync.
	Mark(tag scstore.Tag) error
	// Unmark takes a tag back.
	Unmark(tag scstore.Tag) error
	// Marks returns the tags, oldest first.
	Marks() []scstore.Tag
	// At returns a view of what a mark kept.
	At(tag scstore.Tag) (View, error)
	// Changed returns what was written between two marks, ascending from start on,
	// in at most limit extents; the zero tag is the beginning, or the head.
	Changed(ctx context.Context, from, to scstore.Tag, start scstore.BlockIndex, limit int) ([]scstore.Extent, error)
}

// Options says what to open.
type Options struct {
	ID scstore.VolumeID
	// Table holds the volume's own blocks, if it is to be written; View shows them if
	// it is only to be read. One of the two.
	Table Table
	View  Reader
	// Base are the readers that show through where the volume's own is absent,
	// nearest first: tables, or views of them at a mark.
	Base []Reader
	// Fence is what the volume is written under. The next epoch that is sealed has
	// it for its position.
	Fence scstore.Fence
	// Head is the position of the last committed epoch, under whatever fence that
	// was: the parent of the next one. Zero if there is none.
	Head scstore.Position
}

// FencedError says by whom a writer was fenced out. It wraps ErrFenced.
type FencedError struct {
	Held, Current scstore.Fence
}

// Error names both fences.
func (e *FencedError) Error() string {
	return fmt.Sprintf("fence %d was superseded by %d: %v", e.Held, e.Current, scstore.ErrFenced)
}

// Unwrap returns ErrFenced.
func (e *FencedError) Unwrap() error { return scstore.ErrFenced }

// MissingError says that an operation needs blocks whose newest content is at
// another host: fetch them into the table that lacks them, and try again. It wraps
// ErrAbsent.
type MissingError struct {
	Level   int              // 0: the volume's own table; n: its n-th base
	Extents []scstore.Extent // of that level, ascending; other levels may lack more
}

// Error says how many blocks are missing, and where the first is.
func (e *MissingError) Error() string {
	n := uint64(0)
	for _, x := range e.Extents {
		n += x.Count
	}
	return fmt.Sprintf("%d blocks from block %d on, level %d: %v", n, e.Extents[0].First, e.Level, scstore.ErrAbsent)
}

// Unwrap returns ErrAbsent.
func (e *MissingError) Unwrap() error { return scstore.ErrAbsent }

// Volume is an open volume. All methods are safe for concurrent use.
type Volume struct {
	id      scstore.VolumeID
	table   Table    // nil: read-only
	chain   []Reader // the volume's own blocks, then its bases
	fence   scstore.Fence
	current atomic.Uint64 // the highest fence known; above fence: fenced out
	closed  atomic.Bool

	// sealing holds a token while no Seal is under way; leaves is its holder's.
	sealing chan struct{}
	leaves  leafCache
	// seal is held by writers shared, and by Seal alone while it ends the epoch.
	seal sync.RWMutex
	head scstore.Position // of the last manifest; guarded by seal

	// ragged is held shared by writes of whole blocks, alone by those that read a
	// block to change a part of it.
	ragged sync.RWMutex
}

// Open returns the volume. Errors: ErrInvalid.
func Open(o Options) (*Volume, error) {
	if (o.Table == nil) == (o.View == nil) || o.ID.IsZero() {
		return nil, fmt.Errorf("open volume %s: no table: %w", o.ID, scstore.ErrInvalid)
	}
	if o.Table != nil && o.Fence < o.Head.Fence {
		return nil, fmt.Errorf("open volume %s under fence %d: its head is %s: %w", o.ID, o.Fence, o.Head, scstore.ErrInvalid)
	}
	v := &Volume{id: o.ID, table: o.Table, fence: o.Fence, head: o.Head, sealing: make(chan struct{}, 1)}
	v.chain = append(v.chain, o.View)
	if o.Table != nil {
		v.chain[0] = o.Table
	}
	v.chain = append(v.chain, o.Base...)
	v.sealing <- struct{}{}
	v.current.Store(uint64(v.fence))
	return v, nil
}

// ID returns the volume's id.
func (v *Volume) ID() scstore.VolumeID { return v.id }

// Size returns the size in bytes, a multiple of 4096.
func (v *Volume) Size() int64 { return v.chain[0].SizeBytes() }

// ReadOnly reports whether writes are refused.
func (v *Volume) ReadOnly() bool { return v.table == nil }

// Fence returns the fence that the volume is written under.
func (v *Volume) Fence() scstore.Fence { return v.fence }

// Head returns the position of the last epoch that has a manifest.
func (v *Volume) Head() scstore.Position {
	v.seal.RLock()
	defer v.seal.RUnlock()
	return v.head
}

// Revoke makes known that fence was granted. If it is higher than the volume's,
// no write and no flush succeeds from here on.
func (v *Volume) Revoke(fence scstore.Fence) {
	for {
		old := v.current.Load()
		if uint64(fence) <= old || v.current.CompareAndSwap(old, uint64(fence)) {
			return
		}
	}
}

// Close ends the use of the volume; what was written stays as durable as it was.
func (v *Volume) Close() error {
	v.closed.Store(true)
	v.forgetLeaves()
	return nil
}

// forgetLeaves gives the memory of a closed volume's leaves back.
func (v *Volume) forgetLeaves() {
	select {
	case <-v.sealing:
		v.leaves.forget()
		v.sealing <- struct{}{}
	default: // who seals does, afterwards
	}
}

// writable is step W2's check.
func (v *Volume) writable() error {
	switch {
	case v.closed.Load():
		return fmt.Errorf("volume %s: %w", v.id, scstore.ErrClosed)
	case v.table == nil:
		return fmt.Errorf("volume %s: %w", v.id, scstore.ErrReadOnly)
	case v.current.Load() != uint64(v.fence):
		return fmt.Errorf("volume %s: %w", v.id, &FencedError{v.fence, scstore.Fence(v.current.Load())})
	}
	return nil
}

// check bounds a request.
func (v *Volume) check(off, length int64) error {
	if off < 0 || length < 0 || off > v.Size() || length > v.Size()-off {
		return fmt.Errorf("volume %s: bytes %d+%d of %d: %w", v.id, off, length, v.Size(), scstore.ErrInvalid)
	}
	return nil
}

func aligned(off, length int64) bool { return (off|length)%scstore.BlockSize == 0 }

// cover returns the blocks that the bytes touch.
func cover(off, length int64) scstore.Extent {
	first := off / scstore.BlockSize
	end := (off + length + scstore.BlockSize - 1) / scstore.BlockSize
	return scstore.Extent{First: scstore.BlockIndex(first), Count: uint64(end - first)}
}

// within returns the whole blocks that the bytes hold.
func within(off, length int64) scstore.Extent {
	first := (off + scstore.BlockSize - 1) / scstore.BlockSize
	end := (off + length) / scstore.BlockSize
	return scstore.Extent{First: scstore.BlockIndex(first), Count: uint64(max(end-first, 0))}
}

// WriteAt writes p at byte off: steps W2 and W3. It is visible to reads when the
// call returns.
//
// Durability: it survives the death of this process after Publish, a power loss
// after Flush.
// Errors: ErrInvalid, ErrReadOnly, ErrFenced, ErrNoSpace (parts may have been
// written; the same write may be tried again), ErrPoisoned, ErrCorrupt; a
// *MissingError if a block is to be changed in part that is not here yet: fetch it
// and try again.
func (v *Volume) WriteAt(p []byte, off int64) error {
	if err := v.check(off, int64(len(p))); err != nil || len(p) == 0 {
		return err
	}
	v.seal.RLock()
	defer v.seal.RUnlock()
	if err := v.writable(); err != nil {
		return err
	}
	if aligned(off, int64(len(p))) {
		v.ragged.RLock()
		defer v.ragged.RUnlock()
		return v.writeBlocks(scstore.BlockIndex(off/scstore.BlockSize), p)
	}
	v.ragged.Lock()
	defer v.ragged.Unlock()
	return v.writeRagged(p, off)
}

// writeBlocks writes whole blocks.
func (v *Volume) writeBlocks(first scstore.BlockIndex, p []byte) error {
	if err := v.table.WriteBlocks(first, p); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	return nil
}

// writeRagged reads the blocks at the ends of [off, off+len(p)), and writes all
// that p touches. ragged is held.
func (v *Volume) writeRagged(p []byte, off int64) error {
	e := cover(off, int64(len(p)))
	buf := make([]byte, e.Count*scstore.BlockSize)
	last := e.End() - 1
	ends := []scstore.BlockIndex{e.First}
	if last != e.First {
		ends = append(ends, last)
	}
	var few [1]scstore.Piece
	for _, block := range ends {
		part := buf[(block - e.First).Offset():][:scstore.BlockSize]
		pieces, _, err := v.readBlocks(block, part, few[:0], false)
		if err == nil {
			err = v.missing(pieces)
		}
		if err != nil {
			return fmt.Errorf("write: %w", err)
		}
	}
	copy(buf[off-e.First.Offset():], p)
	return v.writeBlocks(e.First, buf)
}

// Zero makes the bytes read as zeros. Whole blocks cost no space: with keep, the
// guest asked that a later write there cannot run out of space, which a
// log-structured store grants no range, stored or not, so keep changes nothing.
// Durability and errors as for WriteAt.
func (v *Volume) Zero(off, length int64, keep bool) error {
	_ = keep
	return v.zero(off, length, false)
}

// Discard gives the whole blocks within the bytes back; they read as zeros.
// Durability and errors as for WriteAt.
func (v *Volume) Discard(off, length int64) error { return v.zero(off, length, true) }

func (v *Volume) zero(off, length int64, discard bool) error {
	if err := v.check(off, length); err != nil || length == 0 {
		return err
	}
	v.seal.RLock()
	defer v.seal.RUnlock()
	if err := v.writable(); err != nil {
		return err
	}
	whole := within(off, length)
	if !discard && !aligned(off, length) {
		v.ragged.Lock()
		defer v.ragged.Unlock()
		if err := v.zeroEnds(off, length, whole); err != nil {
			return err
		}
	} else {
		v.ragged.RLock()
		defer v.ragged.RUnlock()
	}
	if whole.Count == 0 {
		return nil
	}
	if err := v.table.ZeroBlocks(whole, discard); err != nil {
		return fmt.Errorf("zero: %w", err)
	}
	return nil
}

// zeroEnds writes zeros to the parts of [off, off+length) outside of whole.
func (v *Volume) zeroEnds(off, length int64, whole scstore.Extent) error {
	end := off + length
	if whole.Count == 0 {
		return v.writeRagged(make([]byte, length), off)
	}
	if head := whole.First.Offset(); off < head {
		if err := v.writeRagged(make([]byte, head-off), off); err != nil {
			return err
		}
	}
	if tail := whole.End().Offset(); tail < end {
		return v.writeRagged(make([]byte, end-tail), tail)
	}
	return nil
}

// Publish makes what was written survive the death of this process. Call it
// before acknowledging a write: guarantee G2 (a).
func (v *Volume) Publish() error {
	if v.table == nil {
		return nil
	}
	return v.table.Publish()
}

// Flush makes every write that returned before the call durable: step W4,
// guarantee G2 (b). Errors: ErrFenced, ErrPoisoned (nothing may be assumed then).
func (v *Volume) Flush(ctx context.Context) error {
	if v.table == nil {
		return nil
	}
	if err := v.writable(); err != nil {
		return err
	}
	if err := v.table.Sync(ctx); err != nil {
		return fmt.Errorf("flush: %w", err)
	}
	return v.writable()
}

// ReadAt fills p from byte off and appends to holes the ranges of it that hold no
// data, clipped to the request, in order: steps R2 to R6. Errors: ErrInvalid,
// ErrCorrupt for bytes that fail to verify, ErrClosed, a *MissingError for blocks
// that are not here yet.
func (v *Volume) ReadAt(p []byte, off int64, holes []scstore.Range) ([]scstore.Range, error) {
	holes, _, err := v.read(p, off, holes, false)
	return holes, err
}

// ReadNowAt reads like ReadAt if that takes no wait, for the device or for another
// host; otherwise ok is false and p undefined.
func (v *Volume) ReadNowAt(p []byte, off int64, holes []scstore.Range) (_ []scstore.Range, ok bool, err error) {
	return v.read(p, off, holes, true)
}

func (v *Volume) read(p []byte, off int64, holes []scstore.Range, now bool) ([]scstore.Range, bool, error) {
	if err := v.check(off, int64(len(p))); err != nil || len(p) == 0 {
		return holes, err == nil, err
	}
	if v.closed.Load() {
		return holes, false, fmt.Errorf("volume %s: %w", v.id, scstore.ErrClosed)
	}
	e, buf := cover(off, int64(len(p))), p
	if !aligned(off, int64(len(p))) {
		buf = make([]byte, e.Count*scstore.BlockSize)
	}
	var few [8]scstore.Piece
	pieces, ok, err := v.readBlocks(e.First, buf, few[:0], now)
	if err != nil || !ok {
		return holes, ok, err
	}
	if len(pieces) > 0 {
		if err := v.missing(pieces); err != nil {
			if now {
				return holes, false, nil
			}
			return holes, false, fmt.Errorf("read: %w", err)
		}
	}
	if !aligned(off, int64(len(p))) {
		copy(p, buf[off-e.First.Offset():])
	}
	for _, piece := range pieces {
		from, to := max(piece.First.Offset(), off), min(piece.End().Offset(), off+int64(len(p)))
		holes = appendRange(holes, scstore.Range{Offset: from, Length: to - from, State: scstore.RangeHole})
	}
	return holes, true, nil
}

// appendRange appends r, joined to the last range if it continues it.
func appendRange(dst []scstore.Range, r scstore.Range) []scstore.Range {
	if n := len(dst); n > 0 && dst[n-1].State == r.State && dst[n-1].Offset+dst[n-1].Length == r.Offset {
		dst[n-1].Length += r.Length
		return dst
	}
	return append(dst, r)
}

// readBlocks reads whole blocks through the base chain: step R3. The pieces it
// appends are the runs without data anywhere, of which p is zero, and those that are
// remote at some level, of which p is undefined, in order.
func (v *Volume) readBlocks(first scstore.BlockIndex, p []byte, pieces []scstore.Piece, now bool) ([]scstore.Piece, bool, error) {
	pieces, ok, err := v.chain[0].ReadBlocks(first, p, pieces, now)
	if err != nil || !ok {
		return pieces, ok, err
	}
	absent := false
	for _, piece := range pieces {
		absent = absent || piece.State == scstore.PieceAbsent
	}
	if !absent {
		return pieces, true, nil
	}
	var out []scstore.Piece
	for _, piece := range pieces {
		if piece.State != scstore.PieceAbsent {
			out = append(out, piece)
			continue
		}
		part := p[(piece.First - first).Offset():][:piece.Count*scstore.BlockSize]
		if out, ok, err = readChain(v.chain[1:], piece.Extent, part, out, now); err != nil || !ok {
			return out, ok, err
		}
	}
	return out, true, nil
}

// readChain reads an extent from the first table of a chain that knows it.
func readChain(chain []Reader, e scstore.Extent, p []byte, out []scstore.Piece, now bool) ([]scstore.Piece, bool, error) {
	if len(chain) == 0 {
		clear(p)
		return append(out, scstore.Piece{Extent: e, State: scstore.PieceHole}), true, nil
	}
	size := scstore.Extent{Count: uint64(chain[0].SizeBytes()) / scstore.BlockSize}
	in := e.Clamp(size)
	inside := p[:in.Count*scstore.BlockSize]
	if in.Count > 0 {
		pieces, ok, err := chain[0].ReadBlocks(in.First, inside, nil, now)
		if err != nil || !ok {
			return out, ok, err
		}
		for _, piece := range pieces {
			if piece.State != scstore.PieceAbsent {
				out = append(out, piece)
				continue
			}
			part := inside[(piece.First - in.First).Offset():][:piece.Count*scstore.BlockSize]
			if out, ok, err = readChain(chain[1:], piece.Extent, part, out, now); err != nil || !ok {
				return out, ok, err
			}
		}
	}
	if rest := e.Count - in.Count; rest > 0 {
		clear(p[len(inside):])
		out = append(out, scstore.Piece{Extent: scstore.Extent{First: e.First + scstore.BlockIndex(in.Count), Count: rest}, State: scstore.PieceHole})
	}
	return out, true, nil
}

// missing returns a *MissingError if one of the pieces is remote.
func (v *Volume) missing(pieces []scstore.Piece) error { return missing(v.chain, pieces) }

// missing names the remote ones of pieces, which a read through the chain returned,
// by the level that they are remote at: the first level at which any is.
func missing(chain []Reader, pieces []scstore.Piece) error {
	var remote []scstore.Extent
	for _, p := range pieces {
		if p.State == scstore.PieceRemote {
			remote = append(remote, p.Extent)
		}
	}
	for level := 0; level < len(chain) && len(remote) > 0; level++ {
		e := &MissingError{Level: level}
		blocks := scstore.Extent{Count: uint64(chain[level].SizeBytes()) / scstore.BlockSize}
		var found []scstore.Piece
		for _, x := range remote {
			if x = x.Clamp(blocks); x.Count == 0 {
				continue
			}
			var err error
			if found, err = chain[level].Status(x, found[:0]); err != nil {
				return err
			}
			for _, p := range found {
				if p.State == scstore.PieceRemote {
					e.Extents = append(e.Extents, p.Extent)
				}
			}
		}
		if len(e.Extents) > 0 {
			return e
		}
	}
	if len(remote) > 0 { // filled meanwhile
		return &MissingError{Extents: remote}
	}
	return nil
}
