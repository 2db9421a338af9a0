package volume

import (
	"sync/atomic"

	"scstore"
)

// MaxLeafSpans bounds the spans whose leaves are remembered, of all volumes together: 8 KiB
// each, so 64 MiB, for 8 GiB of volumes.
const MaxLeafSpans = 1 << 13

// leafSpans counts them.
var leafSpans atomic.Int64

// leafCache remembers the leaves of spans as the last seal saw them. A seal then reads and
// hashes the blocks that changed since, not the MiBs around them. It is used by one
// goroutine at a time; nil remembers nothing.
type leafCache struct {
	spans map[uint64]*spanLeaves
}

// get returns what is remembered of a span, to be changed in place; nil for nothing.
func (c *leafCache) get(span uint64) *spanLeaves {
	if c == nil {
		return nil
	}
	return c.spans[span]
}

// put remembers a span. Where there is no room another one of this volume goes.
func (c *leafCache) put(span uint64, l *spanLeaves) {
	if c == nil {
		return
	}
	if leafSpans.Add(1) > MaxLeafSpans {
		leafSpans.Add(-1)
		if len(c.spans) == 0 {
			return
		}
		for other := range c.spans { // any
			delete(c.spans, other)
			break
		}
	}
	if c.spans == nil {
		c.spans = map[uint64]*spanLeaves{}
	}
	c.spans[span] = l
}

// forget forgets all. After that what was remembered of a seal that failed can do no harm.
func (c *leafCache) forget() {
	leafSpans.Add(-int64(len(c.spans)))
	c.spans = nil
}

// partsOf returns the parts of ascending extents that lie in a span, and the extents
// from the one on in which the next span may begin.
func partsOf(span uint64, extents []scstore.Extent) (parts, rest []scstore.Extent) {
	whole := scstore.Extent{First: scstore.BlockIndex(span * SpanBlocks), Count: SpanBlocks}
	for len(extents) > 0 && extents[0].First < whole.End() {
		if part := extents[0].Clamp(whole); part.Count > 0 {
			parts = append(parts, part)
		}
		if extents[0].End() > whole.End() {
			break
		}
		extents = extents[1:]
	}
	return parts, extents
}
