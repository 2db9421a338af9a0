package bench

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"scstore"
)

// A stamped block is 4096 bytes, integers big-endian:
//
//	 0  8 magic "scbench1"
//	 8  8 seed of the load
//	16  8 block index
//	24  4 generation: the how manieth write to this block, from 1
//	28  4 zero
//	32    words of a generator seeded with the three
//
// Every byte follows from the first 32, so a torn, stale or misplaced block shows.
const (
	stampMagic     = "scbench1"
	stampHeaderLen = 32
)

// Stamp is what a stamped block says of itself.
type Stamp struct {
	Seed       uint64
	Block      scstore.BlockIndex
	Generation uint32 // from 1
}

// AppendTo appends the stamped block, scstore.BlockSize bytes, to b.
func (s Stamp) AppendTo(b []byte) []byte {
	start := len(b)
	b = append(b, stampMagic...)
	b = binary.BigEndian.AppendUint64(b, s.Seed)
	b = binary.BigEndian.AppendUint64(b, uint64(s.Block))
	b = binary.BigEndian.AppendUint32(b, s.Generation)
	b = binary.BigEndian.AppendUint32(b, 0)
	state := s.state()
	for len(b)-start < scstore.BlockSize {
		state = step(state)
		b = binary.BigEndian.AppendUint64(b, state)
	}
	return b
}

func (s Stamp) state() uint64 {
	return step(step(step(s.Seed)^uint64(s.Block))^uint64(s.Generation)) | 1
}

// step is one step of a 64-bit xorshift with a multiplication, enough to make
// every word depend on the seed.
func step(x uint64) uint64 {
	x ^= x >> 30
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 27
	return x + 0x9e3779b97f4a7c15
}

// ParseStamp reads a stamped block and checks every byte of it.
// Errors: ErrInvalid if p is no stamped block; ErrCorrupt if it is one in part.
func ParseStamp(p []byte) (Stamp, error) {
	if len(p) != scstore.BlockSize || string(p[:8]) != stampMagic {
		return Stamp{}, fmt.Errorf("parse stamp: no magic: %w", scstore.ErrInvalid)
	}
	s := Stamp{
		Seed:       binary.BigEndian.Uint64(p[8:]),
		Block:      scstore.BlockIndex(binary.BigEndian.Uint64(p[16:])),
		Generation: binary.BigEndian.Uint32(p[24:]),
	}
	if s.Generation == 0 || binary.BigEndian.Uint32(p[28:]) != 0 {
		return Stamp{}, fmt.Errorf("parse stamp of block %d: generation %d: %w", s.Block, s.Generation, scstore.ErrCorrupt)
	}
	state := s.state()
	for off := stampHeaderLen; off < len(p); off += 8 {
		state = step(state)
		if binary.BigEndian.Uint64(p[off:]) != state {
			return Stamp{}, fmt.Errorf("parse stamp of block %d, generation %d: torn at byte %d: %w", s.Block, s.Generation, off, scstore.ErrCorrupt)
		}
	}
	return s, nil
}

var zeroBlock [scstore.BlockSize]byte

func isZero(block []byte) bool { return bytes.Equal(block, zeroBlock[:]) }
