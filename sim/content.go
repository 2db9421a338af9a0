package sim

import (
	"crypto/sha256"
	"encoding/binary"
	"slices"

	"scstore"
	"scstore/propagate"
)

// The volumes of a world. Only some of their blocks are ever written, spread over
// all spans; what a block holds is the number of the write that it comes from.
const (
	Blocks      = 12
	blockStride = 43
	sizeBlocks  = 2 * propagate.SpanBlocks
	sizeBytes   = sizeBlocks * scstore.BlockSize
)

// content is what a volume's blocks hold, by write numbers; 0 is a hole.
type content [Blocks]uint32

// mask says which blocks.
type mask uint16

const every mask = 1<<Blocks - 1

// image is content of which some blocks are not here: those are asked of a host that
// is complete at base.
type image struct {
	data    content
	missing mask
	base    scstore.Position
}

func (m *image) write(block int, number uint32) {
	m.data[block] = number
	if m.missing &^= 1 << block; m.missing == 0 {
		m.base = scstore.Position{}
	}
}

// fill brings what was missing.
func (m *image) fill(base scstore.Position, c content) {
	if m.missing == 0 || m.base != base {
		return
	}
	for b := range c {
		if m.missing&(1<<b) != 0 {
			m.data[b] = c[b]
		}
	}
	m.missing, m.base = 0, scstore.Position{}
}

// version is a position that a disk keeps.
type version struct {
	at scstore.Position
	image
}

func compareVersion(v version, at scstore.Position) int { return v.at.Compare(at) }

func blockOf(i int) scstore.BlockIndex { return scstore.BlockIndex(i * blockStride) }

// digest names a version: as a manifest's root it is only ever compared.
func (v version) digest() scstore.Digest {
	b := binary.BigEndian.AppendUint64(nil, uint64(v.at.Fence))
	b = binary.BigEndian.AppendUint64(b, uint64(v.at.Epoch))
	for _, n := range v.data {
		b = binary.BigEndian.AppendUint32(b, n)
	}
	return sha256.Sum256(b)
}

func (c content) span(number uint64) scstore.Digest {
	b := binary.BigEndian.AppendUint64(nil, number)
	for i, n := range c {
		if uint64(blockOf(i))/propagate.SpanBlocks == number {
			b = binary.BigEndian.AppendUint32(b, n)
		}
	}
	return sha256.Sum256(b)
}

func root(size int64, spans []propagate.SpanDigest) scstore.Digest {
	b := binary.BigEndian.AppendUint64(nil, uint64(size))
	for _, s := range spans {
		b = binary.BigEndian.AppendUint64(b, s.Number)
		b = append(b, s.Digest[:]...)
	}
	return sha256.Sum256(b)
}

// changed returns the blocks that differ between two contents.
func changed(from, to content) []scstore.Extent {
	var list []scstore.Extent
	for i := range to {
		if from[i] != to[i] {
			list = append(list, scstore.Extent{First: blockOf(i), Count: 1})
		}
	}
	return list
}

// all names every block that is ever written.
func all() []scstore.Extent {
	list := make([]scstore.Extent, Blocks)
	for i := range list {
		list[i] = scstore.Extent{First: blockOf(i), Count: 1}
	}
	return list
}

// ReadBlocks shows content as bytes.
func (c *content) ReadBlocks(first scstore.BlockIndex, p []byte) ([]scstore.Extent, error) {
	clear(p)
	for i, n := range c {
		if at := blockOf(i); n != 0 && at >= first && at < first+scstore.BlockIndex(len(p)/scstore.BlockSize) {
			binary.BigEndian.PutUint32(p[(at-first).Offset():], n)
		}
	}
	return nil, nil
}

// stage is what a jump has brought so far, over what was there.
type stage struct {
	content
	have  mask
	wrong func(c content) // planted: shows what is half there
}

// WriteBlocks takes what came.
func (s *stage) WriteBlocks(first scstore.BlockIndex, p []byte) error {
	for i := range s.content {
		if at := blockOf(i); at >= first && at < first+scstore.BlockIndex(len(p)/scstore.BlockSize) {
			s.content[i] = binary.BigEndian.Uint32(p[(at - first).Offset():])
			s.have |= 1 << i
		}
	}
	if s.wrong != nil {
		s.wrong(s.content)
	}
	return nil
}

// ZeroBlocks takes holes.
func (s *stage) ZeroBlocks(e scstore.Extent) error {
	return s.WriteBlocks(e.First, make([]byte, e.Count*scstore.BlockSize))
}

// staged returns which of the extents are here.
func (s *stage) staged() []scstore.Extent {
	return slices.DeleteFunc(all(), func(e scstore.Extent) bool { return s.have&(1<<(int(e.First)/blockStride)) == 0 })
}
