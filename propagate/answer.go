package propagate

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"scstore"
	"scstore/propagate/codec"
	"scstore/propagate/wire"
)

// Reader is a volume's content at one position, its bases included.
type Reader interface {
	// ReadBlocks fills p with the blocks from first on and returns those of them, in
	// order, that this host has not got: p is undefined there. What lies beyond the
	// volume's end is absent.
	ReadBlocks(first scstore.BlockIndex, p []byte) (absent []scstore.Extent, err error)
}

// BaseSum is the digest by which a delta names its base: 8 bytes of SHA-256, never 0.
func BaseSum(base []byte) uint64 {
	d := sha256.Sum256(base)
	return max(binary.BigEndian.Uint64(d[:]), 1)
}

// Answerer answers requests for blocks, one at a time; it holds the memory for it.
type Answerer struct {
	encoder   codec.Encoder
	run, base [codec.MaxRunBytes]byte
	frame     []byte
	end       wire.End
}

// Answer writes the frames that answer a request, the last one included: runs of up
// to codec.MaxRunBlocks blocks, none of which crosses a multiple of that, and what is
// absent. base, the asker's version of the volume, may be nil. It returns what it
// sent.
//
// Errors: of w; of at: then nothing that could be taken for the end was written.
func (a *Answerer) Answer(w io.Writer, m wire.BlocksRequest, at, base Reader) (wire.End, error) {
	a.end = wire.End{}
	for _, e := range m.Extents {
		for first, end := e.First, e.End(); first < end; {
			stop := min(end, (first/codec.MaxRunBlocks+1)*codec.MaxRunBlocks)
			if err := a.piece(w, first, int(stop-first), at, base); err != nil {
				return a.end, fmt.Errorf("answer for %s at %s: %w", m.Volume, m.Position, err)
			}
			first = stop
		}
	}
	return a.end, a.write(w, a.end.AppendTo(a.frame[:0]))
}

func (a *Answerer) write(w io.Writer, frame []byte) error {
	a.frame = frame
	_, err := w.Write(frame)
	return err
}

// piece answers for up to one run's blocks.
func (a *Answerer) piece(w io.Writer, first scstore.BlockIndex, blocks int, at, base Reader) error {
	p := a.run[:blocks*scstore.BlockSize]
	absent, err := at.ReadBlocks(first, p)
	if err != nil {
		return err
	}
	var old []byte
	if base != nil {
		old = a.base[:len(p)]
		// A base that can't be read, or not whole, only costs bytes.
		if gone, err := base.ReadBlocks(first, old); err != nil || len(gone) > 0 {
			old = nil
		}
	}
	for done := 0; done < blocks; {
		stop, skip := blocks, blocks
		if len(absent) > 0 {
			stop, skip = int(absent[0].First-first), int(absent[0].End()-first)
		}
		if stop > done {
			if err := a.writeRun(w, first+scstore.BlockIndex(done), p[done*scstore.BlockSize:stop*scstore.BlockSize], part(old, done, stop)); err != nil {
				return err
			}
		}
		if len(absent) > 0 {
			if err := a.write(w, wire.AppendExtents(a.frame[:0], wire.KindAbsent, absent[:1])); err != nil {
				return err
			}
			absent = absent[1:]
		}
		done = skip
	}
	return nil
}

// part returns blocks [from, to) of p, nil of nil.
func part(p []byte, from, to int) []byte {
	if p == nil {
		return nil
	}
	return p[from*scstore.BlockSize : to*scstore.BlockSize]
}

func (a *Answerer) writeRun(w io.Writer, first scstore.BlockIndex, run, base []byte) error {
	c, payload := a.encoder.Encode(run, base)
	m := wire.Run{First: first, Blocks: len(run) / scstore.BlockSize, Codec: c, Payload: payload}
	if c.NeedsBase() {
		m.BaseSum = BaseSum(base)
	}
	a.end.Blocks += uint64(m.Blocks)
	a.end.Bytes += uint64(len(payload))
	return a.write(w, m.AppendTo(a.frame[:0]))
}

// errBadBase says that a delta was made against another base than the one held.
var errBadBase = errors.New("delta against another base")

// decode writes the run into p. base is read only if it is needed. Errors:
// errBadBase; ErrCorrupt, ErrVersion.
func decode(m wire.Run, p []byte, base Reader, scratch []byte) error {
	var old []byte
	if m.Codec.NeedsBase() {
		if base == nil {
			return errBadBase
		}
		old = scratch[:len(p)]
		gone, err := base.ReadBlocks(m.First, old)
		if err != nil || len(gone) > 0 || BaseSum(old) != m.BaseSum {
			return errBadBase
		}
	}
	return codec.Decode(m.Codec, m.Payload, old, p)
}
