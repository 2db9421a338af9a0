package volume

import (
	"slices"
	"sync"
	"sync/atomic"

	"scstore"
)

const (
	// MaxLeafSpans bounds the spans whose trees are remembered, of all volumes together: 10
	// KiB of memory each, so 80 MiB, for 8 GiB of volumes.
	MaxLeafSpans = 1 << 13
	// maxSums bounds the epochs of which the digest of one span is remembered: whoever
	// copies one snapshot after the other asks for those before the last.
	maxSums = 16
)

// leafSpans counts them.
var leafSpans atomic.Int64

// leafCache remembers the trees of spans as the last seal saw them. A seal then reads and
// hashes the blocks that changed since, not the MiBs around them. It is used by one
// goroutine at a time, but for digest, which any may call; nil remembers nothing.
type leafCache struct {
	mu    sync.Mutex // guards spans, and what they say beside their leaves
	spans map[uint64]*knownSpan
}

// knownSpan is what is remembered of a span.
type knownSpan struct {
	tree spanTree // of who seals
	sums []sumAt  // of the last epochs that changed it, ascending
}

// sumAt is the digest of a span from an epoch on.
type sumAt struct {
	at  scstore.Position
	sum scstore.Digest
}

// get returns what is remembered of a span, whose leaves are to be changed in place; nil
// for nothing.
func (c *leafCache) get(span uint64) *knownSpan {
	if c == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.spans[span]
}

// note says what the digest of a span is from an epoch on, and remembers the span if it is
// fresh. Where there is no room another one of this volume goes.
func (c *leafCache) note(span uint64, k *knownSpan, fresh bool, at scstore.Position, sum scstore.Digest) {
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(k.sums) == maxSums {
		k.sums = slices.Delete(k.sums, 0, 1)
	}
	k.sums = append(k.sums, sumAt{at, sum})
	if !fresh {
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
		c.spans = map[uint64]*knownSpan{}
	}
	c.spans[span] = k
}

// digest returns the digest of a span at a position that a seal which succeeded has given:
// what the last epoch up to there left that changed the span, if that is remembered.
func (c *leafCache) digest(span uint64, at scstore.Position) (scstore.Digest, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if k := c.spans[span]; k != nil {
		for _, s := range slices.Backward(k.sums) {
			if s.at.Compare(at) <= 0 {
				return s.sum, true
			}
		}
	}
	return scstore.Digest{}, false
}

// forget forgets all. After that what was remembered of a seal that failed can do no harm.
func (c *leafCache) forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
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
