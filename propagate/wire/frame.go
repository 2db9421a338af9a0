package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"scstore"
	"scstore/propagate/codec"
)

// Limits.
const (
	// MaxBodyBytes is the longest body of a frame.
	MaxBodyBytes = 128 << 10
	// MaxExtents is how many extents one frame names: two uvarints of up to 6 bytes
	// each stay within MaxBodyBytes.
	MaxExtents = 8 << 10
	// MaxWindowBlocks is what one manifest covers at most: 64 GiB.
	MaxWindowBlocks = 16 << 20
	// MaxManifestExtents is how many extents one manifest names; a sender with more
	// joins neighbours, and so names blocks that did not change.
	MaxManifestExtents = 1 << 20
	// MaxSpans is how many digests one frame holds.
	MaxSpans = 2 << 10
	// MaxRefusalBytes is the longest reason.
	MaxRefusalBytes = 1 << 10

	headerBytes = 4
)

// Kind says what a frame is. The numbers are on the wire: never renumber.
type Kind uint8

// The kinds of frames.
const (
	KindManifestRequest Kind = 1
	KindManifest        Kind = 2
	KindExtents         Kind = 3
	KindSpans           Kind = 4
	KindBlocksRequest   Kind = 5
	KindRun             Kind = 6
	KindAbsent          Kind = 7
	KindEnd             Kind = 8
	KindRefusal         Kind = 9
)

// beginFrame appends a frame's header; endFrame, given where that is, fills in the
// length.
func beginFrame(b []byte, k Kind) (_ []byte, at int) {
	return append(b, byte(k), 0, 0, 0), len(b)
}

func endFrame(b []byte, at int) []byte {
	n := len(b) - at - headerBytes
	b[at+1], b[at+2], b[at+3] = byte(n>>16), byte(n>>8), byte(n)
	return b
}

// ReadFrame reads one frame. buf is used for its body and returned grown, as body's
// memory: the body is valid until the next call with it.
//
// Errors: io.EOF at the end between two frames; ErrCorrupt for an end within one,
// and for a length that no frame has; what r returned.
func ReadFrame(r io.Reader, buf []byte) (k Kind, body []byte, err error) {
	var h [headerBytes]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) {
			err = scstore.ErrCorrupt
		}
		return 0, buf, fmt.Errorf("read frame: %w", err)
	}
	n := int(h[1])<<16 | int(h[2])<<8 | int(h[3])
	if n > MaxBodyBytes {
		return 0, buf, fmt.Errorf("read frame: body of %d bytes, at most %d: %w", n, MaxBodyBytes, scstore.ErrCorrupt)
	}
	if cap(buf) < n {
		buf = make([]byte, n)
	}
	buf = buf[:n]
	if _, err := io.ReadFull(r, buf); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
			err = scstore.ErrCorrupt
		}
		return 0, buf, fmt.Errorf("read frame: %w", err)
	}
	return Kind(h[0]), buf, nil
}

// body reads fields off the front of a frame's body.
type body struct {
	b      []byte
	failed bool
}

func (r *body) take(n int) []byte {
	if r.failed || n > len(r.b) {
		r.failed = true
		return nil
	}
	field := r.b[:n:n]
	r.b = r.b[n:]
	return field
}

func (r *body) uint8() uint8 {
	if f := r.take(1); f != nil {
		return f[0]
	}
	return 0
}

func (r *body) uint64() uint64 {
	if f := r.take(8); f != nil {
		return binary.BigEndian.Uint64(f)
	}
	return 0
}

// uvarint reads an uvarint in its shortest form.
func (r *body) uvarint() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 || n > 1 && r.b[n-1] == 0 {
		r.failed = true
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *body) volume() (id scstore.VolumeID) {
	copy(id[:], r.take(len(id)))
	return id
}

func (r *body) position() scstore.Position {
	return scstore.Position{Fence: scstore.Fence(r.uint64()), Epoch: scstore.Epoch(r.uint64())}
}

func (r *body) extent() scstore.Extent {
	return scstore.Extent{First: scstore.BlockIndex(r.uint64()), Count: r.uint64()}
}

func (r *body) digest() (d scstore.Digest) {
	copy(d[:], r.take(len(d)))
	return d
}

// end reports what is wrong with a body of kind k, once all of it should have been
// read.
func (r *body) end(k Kind) error {
	switch {
	case r.failed:
		return fmt.Errorf("parse frame of kind %d: too short or malformed: %w", k, scstore.ErrCorrupt)
	case len(r.b) > 0:
		return fmt.Errorf("parse frame of kind %d: %d bytes too many: %w", k, len(r.b), scstore.ErrCorrupt)
	}
	return nil
}

func appendPosition(b []byte, p scstore.Position) []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(b, uint64(p.Fence)), uint64(p.Epoch))
}

func appendExtent(b []byte, e scstore.Extent) []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(b, uint64(e.First)), e.Count)
}

// maxBlocks is how many blocks the largest volume has.
const maxBlocks = scstore.MaxVolumeBytes / scstore.BlockSize

// appendExtents appends extents that ascend and do not touch.
func appendExtents(b []byte, extents []scstore.Extent) []byte {
	at := scstore.BlockIndex(0)
	for _, e := range extents {
		b = binary.AppendUvarint(b, uint64(e.First-at))
		b = binary.AppendUvarint(b, e.Count)
		at = e.End()
	}
	return b
}

// extents reads extents up to the end of the body.
func (r *body) extents() []scstore.Extent {
	var out []scstore.Extent
	at := uint64(0)
	for len(r.b) > 0 && !r.failed {
		gap, count := r.uvarint(), r.uvarint()
		switch {
		case len(out) == MaxExtents, count == 0, gap == 0 && len(out) > 0,
			gap > maxBlocks, count > maxBlocks, at+gap+count > maxBlocks:
			r.failed = true
			return nil
		}
		out = append(out, scstore.Extent{First: scstore.BlockIndex(at + gap), Count: count})
		at += gap + count
	}
	return out
}

// validWindow reports whether a manifest may cover e.
func validWindow(e scstore.Extent) bool {
	return e.Count >= 1 && e.Count <= MaxWindowBlocks && uint64(e.First) <= maxBlocks-e.Count
}

// validRun reports whether a run of that many blocks exists.
func validRun(first scstore.BlockIndex, blocks int) bool {
	return blocks >= 1 && blocks <= codec.MaxRunBlocks && uint64(first) <= maxBlocks-uint64(blocks)
}
