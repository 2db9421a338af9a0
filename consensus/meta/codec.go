package meta

import (
	"encoding/binary"

	"scstore"
	"scstore/internal/invariant"
)

// codecMode says what a codec does with the fields that it walks.
type codecMode uint8

const (
	writing  codecMode = iota // appends them to b
	reading                   // takes them from the front of b
	counting                  // adds up their lengths
)

// codec walks a value's fields in their order on the wire. One function for each
// format serves all directions, so that what is written and what is read can't
// drift apart. Only in mode reading does it change the value.
type codec struct {
	mode  codecMode
	b     []byte
	count int // counting: bytes so far

	// After the first field that is not there, or not as it must be, failed is set
	// and every field reads as zero. newer is set with it where the reason is a
	// newer release.
	failed, newer bool
}

// fixed walks a field of a fixed length.
func (c *codec) fixed(field []byte) {
	switch c.mode {
	case writing:
		c.b = append(c.b, field...)
	case counting:
		c.count += len(field)
	case reading:
		if c.failed || len(field) > len(c.b) {
			c.failed = true
			clear(field)
			return
		}
		copy(field, c.b)
		c.b = c.b[len(field):]
	}
}

// number walks 8 bytes.
func number[T ~uint64 | ~int64](c *codec, p *T) {
	var field [8]byte
	binary.BigEndian.PutUint64(field[:], uint64(*p))
	c.fixed(field[:])
	if c.mode == reading {
		*p = T(binary.BigEndian.Uint64(field[:]))
	}
}

// octet walks 1 byte.
func octet[T ~uint8](c *codec, p *T) {
	field := [1]byte{byte(*p)}
	c.fixed(field[:])
	if c.mode == reading {
		*p = T(field[0])
	}
}

// flag walks 1 byte that is 0 or 1.
func (c *codec) flag(p *bool) {
	var v uint8
	if *p {
		v = 1
	}
	octet(c, &v)
	if c.mode == reading {
		*p = v == 1
		c.failed = c.failed || v > 1
	}
}

// zeros walks n bytes that are zero.
func (c *codec) zeros(n int) {
	for range n {
		var v uint8
		octet(c, &v)
		c.failed = c.failed || v != 0
	}
}

// absent walks the length and version of a field of a later release, 3 bytes that
// are zero now.
func (c *codec) absent() {
	for range 3 {
		var v uint8
		octet(c, &v)
		if v != 0 {
			c.failed, c.newer = true, true
		}
	}
}

func (c *codec) position(p *scstore.Position) {
	number(c, &p.Fence)
	number(c, &p.Epoch)
}

// length walks the length of what follows: 2 bytes, or 4 where more fit.
func (c *codec) length(n, limit int) int {
	invariant.Check(c.mode == reading || n <= limit, "%d items, limit %d", n, limit)
	var field [4]byte
	binary.BigEndian.PutUint32(field[:], uint32(n))
	used := field[2:]
	if limit >= 1<<16 {
		used = field[:]
	}
	c.fixed(used)
	if c.mode != reading {
		return n
	}
	if n = int(binary.BigEndian.Uint32(field[:])); n > limit {
		c.failed = true
	}
	if c.failed {
		return 0
	}
	return n
}

// text walks a string of at most limit bytes.
func text[T ~string](c *codec, p *T, limit int) {
	n := c.length(len(*p), limit)
	switch c.mode {
	case writing:
		c.b = append(c.b, *p...)
	case counting:
		c.count += n
	case reading:
		if n > len(c.b) {
			c.failed, n = true, 0
		}
		*p = T(c.b[:n])
		c.b = c.b[n:]
	}
}

// list walks at most limit items, each of at least one byte. An empty list reads as
// nil.
func list[T any](c *codec, p *[]T, limit int, each func(*codec, *T)) {
	n := c.length(len(*p), limit)
	if c.mode != reading {
		for i := range *p {
			each(c, &(*p)[i])
		}
		return
	}
	*p = nil
	for range n {
		var item T
		if each(c, &item); c.failed {
			return
		}
		*p = append(*p, item)
	}
}

// table walks a map's values by rising key; limit bounds their number. Reading, the
// keys must rise and the map is filled.
func table[K comparable, V any](c *codec, m map[K]*V, limit int, compare func(a, b K) int, key func(*V) K, each func(*codec, *V)) {
	n := c.length(len(m), limit)
	if c.mode != reading {
		for _, k := range sortedBy(m, compare) {
			each(c, m[k])
		}
		return
	}
	var last K
	for i := range n {
		v := new(V)
		if each(c, v); c.failed {
			return
		}
		if k := key(v); i > 0 && compare(k, last) <= 0 {
			c.failed = true
			return
		}
		last = key(v)
		m[last] = v
	}
}

// Walkers of the types that occur in lists.

func wirePosition(c *codec, p *scstore.Position) { c.position(p) }

func wireVolumeID(c *codec, id *scstore.VolumeID) { c.fixed(id[:]) }

func wireDisk(c *codec, d *DiskID) { text(c, d, MaxDiskIDBytes) }

func wireSite(c *codec, s *SiteID) { text(c, s, MaxSegmentBytes) }

func wireAddress(c *codec, s *string) { text(c, s, MaxAddressBytes) }
