package volume

import (
	"maps"
	"math/bits"
	"slices"
	"sync"

	"scstore"
)

const (
	// SpanBlocks is the unit of digests: 1 MiB.
	SpanBlocks = 256
	// MaxExactSpans bounds the spans of which single changed blocks are known
	// (about 4 MiB of memory); beyond it a touched span counts as changed whole.
	MaxExactSpans = 32 << 10
)

// dirtySet is which blocks the open epoch changed. It may name a block that was
// not changed after all, never miss one that was.
type dirtySet struct {
	mu    sync.Mutex
	exact map[uint64]*[SpanBlocks / 64]uint64
	// whole has a bit a span; it grows to 1 bit a MiB of volume.
	whole []uint64
}

func newDirtySet() *dirtySet { return &dirtySet{exact: map[uint64]*[SpanBlocks / 64]uint64{}} }

// mark adds the extent.
func (d *dirtySet) mark(e scstore.Extent) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for first, end := uint64(e.First), uint64(e.End()); first < end; {
		span := first / SpanBlocks
		stop := min(end, (span+1)*SpanBlocks)
		d.markSpan(span, int(first%SpanBlocks), int(stop-first))
		first = stop
	}
}

func (d *dirtySet) markSpan(span uint64, first, count int) {
	if d.isWhole(span) {
		return
	}
	m := d.exact[span]
	if count == SpanBlocks || m == nil && len(d.exact) >= MaxExactSpans {
		for uint64(len(d.whole)) <= span/64 {
			d.whole = append(d.whole, 0)
		}
		d.whole[span/64] |= 1 << (span % 64)
		delete(d.exact, span)
		return
	}
	if m == nil {
		m = new([SpanBlocks / 64]uint64)
		d.exact[span] = m
	}
	for b := first; b < first+count; b++ {
		m[b/64] |= 1 << (b % 64)
	}
}

func (d *dirtySet) isWhole(span uint64) bool {
	return span/64 < uint64(len(d.whole)) && d.whole[span/64]&(1<<(span%64)) != 0
}

// extents returns the changed blocks of a volume of blocks blocks, in order.
func (d *dirtySet) extents(blocks uint64) []scstore.Extent {
	var out []scstore.Extent
	add := func(first, count uint64) {
		count = min(count, blocks-min(blocks, first))
		if n := len(out); n > 0 && uint64(out[n-1].End()) == first {
			out[n-1].Count += count
		} else if count > 0 {
			out = append(out, scstore.Extent{First: scstore.BlockIndex(first), Count: count})
		}
	}
	spans := slices.Collect(maps.Keys(d.exact))
	for i, word := range d.whole {
		for ; word != 0; word &= word - 1 {
			spans = append(spans, uint64(i*64+bits.TrailingZeros64(word)))
		}
	}
	slices.Sort(spans)
	for _, span := range spans {
		if d.isWhole(span) {
			add(span*SpanBlocks, SpanBlocks)
			continue
		}
		for i, word := range d.exact[span] {
			for ; word != 0; word &= word - 1 {
				add(span*SpanBlocks+uint64(i*64+bits.TrailingZeros64(word)), 1)
			}
		}
	}
	return out
}

// take empties the set and returns what it held.
func (d *dirtySet) take() *dirtySet {
	d.mu.Lock()
	defer d.mu.Unlock()
	old := &dirtySet{exact: d.exact, whole: d.whole}
	d.exact, d.whole = map[uint64]*[SpanBlocks / 64]uint64{}, nil
	return old
}

// merge adds what another set holds.
func (d *dirtySet) merge(o *dirtySet) {
	for _, e := range o.extents(1 << 63) {
		d.mark(e)
	}
}
