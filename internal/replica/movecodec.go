package replica

import (
	"encoding/binary"
	"fmt"

	"scstore"
	"scstore/consensus/meta"
)

// moveCodec walks a message's fields in their order on the wire: it appends them to b, or,
// reading, takes them from the front of b. One function for each message serves both, so
// that what is written and what is read can't drift apart. Only reading changes, and
// checks, the value.
type moveCodec struct {
	b       []byte
	reading bool
	failed  bool // a field was not there, or not as it must be; further ones read as zero
}

// appendMessage appends a message, whose fields wire walks.
func appendMessage(b []byte, magic string, wire func(*moveCodec)) []byte {
	c := &moveCodec{b: append(append(b, magic...), moveVersion, 0, 0, 0)}
	wire(c)
	return c.b
}

// parseMessage reads a message, whose fields wire walks. Errors: ErrVersion, ErrCorrupt.
func parseMessage(magic string, b []byte, wire func(*moveCodec)) error {
	if len(b) < 8 || string(b[:4]) != magic {
		return fmt.Errorf("parse %s: no such message: %w", magic, scstore.ErrCorrupt)
	}
	if b[4] != moveVersion {
		return fmt.Errorf("parse %s: version %d, this host knows %d: %w", magic, b[4], moveVersion, scstore.ErrVersion)
	}
	c := &moveCodec{b: b[8:], reading: true, failed: b[5] != 0 || b[6] != 0 || b[7] != 0}
	wire(c)
	if c.failed || len(c.b) > 0 {
		return fmt.Errorf("parse %s: malformed, or %d bytes too many: %w", magic, len(c.b), scstore.ErrCorrupt)
	}
	return nil
}

// require has reading fail unless ok.
func (c *moveCodec) require(ok bool) { c.failed = c.failed || c.reading && !ok }

// fixed walks a field of a fixed length.
func (c *moveCodec) fixed(field []byte) {
	switch {
	case !c.reading:
		c.b = append(c.b, field...)
	case c.failed || len(field) > len(c.b):
		c.failed = true
		clear(field)
	default:
		copy(field, c.b)
		c.b = c.b[len(field):]
	}
}

// number walks 8 bytes.
func number[T ~uint64 | ~int64](c *moveCodec, p *T) {
	var field [8]byte
	binary.BigEndian.PutUint64(field[:], uint64(*p))
	c.fixed(field[:])
	if c.reading {
		*p = T(binary.BigEndian.Uint64(field[:]))
	}
}

// count walks the length of a list, 2 bytes, and requires it to be within the limits.
func (c *moveCodec) count(n, least, most int) int {
	var field [2]byte
	binary.BigEndian.PutUint16(field[:], uint16(n))
	c.fixed(field[:])
	n = int(binary.BigEndian.Uint16(field[:]))
	if c.require(n >= least && n <= most); c.failed {
		return 0
	}
	return n
}

// flag walks 1 byte that is 0 or 1.
func (c *moveCodec) flag(p *bool) {
	var field [1]byte
	if *p {
		field[0] = 1
	}
	c.fixed(field[:])
	if c.require(field[0] <= 1); c.reading {
		*p = field[0] == 1
	}
}

// bytes walks a count of bytes.
func (c *moveCodec) bytes(p *int64) {
	number(c, p)
	if c.require(*p >= 0 && *p <= scstore.MaxVolumeBytes); c.failed {
		*p = 0
	}
}

// size walks the size of a volume.
func (c *moveCodec) size(p *int64) {
	c.bytes(p)
	c.require(*p != 0 && *p%scstore.BlockSize == 0)
}

func (c *moveCodec) handOff(id *meta.HandOffID) {
	c.fixed(id[:])
	c.require(!id.IsZero())
}

func (c *moveCodec) volume(id *scstore.VolumeID) {
	c.fixed(id[:])
	c.require(!id.IsZero())
}

func (c *moveCodec) position(p *scstore.Position) {
	number(c, &p.Fence)
	number(c, &p.Epoch)
}

// positions walks positions that rise.
func (c *moveCodec) positions(list *[]scstore.Position, most int) {
	n := c.count(len(*list), 0, most)
	if !c.reading {
		for _, p := range *list {
			c.position(&p)
		}
		return
	}
	for i := range n {
		var p scstore.Position
		c.position(&p)
		if c.require(i == 0 || p.Compare((*list)[i-1]) > 0); c.failed {
			return
		}
		*list = append(*list, p)
	}
}

// volumes walks the volumes of a message, which rise by the id that each returns.
func volumes[V any](c *moveCodec, list *[]V, each func(*V) scstore.VolumeID) {
	n := c.count(len(*list), 1, meta.MaxMoveVolumes)
	if !c.reading {
		for i := range *list {
			each(&(*list)[i])
		}
		return
	}
	var last scstore.VolumeID
	for range n {
		var v V
		id := each(&v)
		if c.require(string(id[:]) > string(last[:])); c.failed {
			return
		}
		*list, last = append(*list, v), id
	}
}

// uvarint walks an uvarint in its shortest form.
func (c *moveCodec) uvarint(p *uint64) {
	if !c.reading {
		c.b = binary.AppendUvarint(c.b, *p)
		return
	}
	v, n := binary.Uvarint(c.b)
	if c.require(n > 0 && (n == 1 || c.b[n-1] != 0)); c.failed {
		*p = 0
		return
	}
	*p, c.b = v, c.b[n:]
}

// extents walks extents that ascend and do not touch, of a volume of that many blocks.
func (c *moveCodec) extents(list *[]scstore.Extent, blocks uint64) {
	var field [4]byte
	binary.BigEndian.PutUint32(field[:], uint32(len(*list)))
	c.fixed(field[:])
	n, at := int(binary.BigEndian.Uint32(field[:])), uint64(0)
	if !c.reading {
		for _, e := range *list {
			gap := uint64(e.First) - at
			c.uvarint(&gap)
			c.uvarint(&e.Count)
			at = uint64(e.End())
		}
		return
	}
	if c.require(n <= MaxReleaseExtents && 2*n <= len(c.b)); c.failed || n == 0 {
		return
	}
	out := make([]scstore.Extent, 0, n)
	for i := range n {
		var gap, count uint64
		c.uvarint(&gap)
		c.uvarint(&count)
		c.require(count != 0 && (gap != 0 || i == 0) && gap <= maxVolumeBlocks && count <= maxVolumeBlocks && at+gap+count <= blocks)
		if c.failed {
			return
		}
		out = append(out, scstore.Extent{First: scstore.BlockIndex(at + gap), Count: count})
		at += gap + count
	}
	*list = out
}
