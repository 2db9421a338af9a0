package propagate

import (
	"math/bits"

	"scstore"
)

// SpanBlocks is the unit of digests, in blocks: fs/volume's.
const SpanBlocks = 256

// bitmap says which blocks of a span.
type bitmap [SpanBlocks / 64]uint64

func (m *bitmap) set(first, count int) {
	for b := first; b < first+count; b++ {
		m[b/64] |= 1 << (b % 64)
	}
}

func (m *bitmap) unset(first, count int) {
	for b := first; b < first+count; b++ {
		m[b/64] &^= 1 << (b % 64)
	}
}

// all reports whether every block of the run is in the map.
func (m *bitmap) all(first, count int) bool {
	for b := first; b < first+count; b++ {
		if m[b/64]&(1<<(b%64)) == 0 {
			return false
		}
	}
	return true
}

// within reports whether every block of the map is in o, which may be nil.
func (m *bitmap) within(o *bitmap) bool {
	for i, word := range m {
		if word != 0 && (o == nil || word&^o[i] != 0) {
			return false
		}
	}
	return true
}

func (m *bitmap) count() (n int) {
	for _, word := range m {
		n += bits.OnesCount64(word)
	}
	return n
}

// appendExtents appends the runs of the map, for a span that begins at block start.
// A run that continues the last extent joins it.
func (m *bitmap) appendExtents(dst []scstore.Extent, start scstore.BlockIndex) []scstore.Extent {
	for b := range SpanBlocks {
		if m[b/64]&(1<<(b%64)) == 0 {
			continue
		}
		at := start + scstore.BlockIndex(b)
		if n := len(dst); n > 0 && dst[n-1].End() == at {
			dst[n-1].Count++
		} else {
			dst = append(dst, scstore.Extent{First: at, Count: 1})
		}
	}
	return dst
}

// spanState says how far a span is.
type spanState uint8

const (
	spanWaiting   spanState = iota // blocks are missing, and nobody is asked for them
	spanAsked                      // a request for them is open
	spanStaged                     // all are here; to be read back
	spanVerifying                  // being read back
	spanVerified
)

// span is one touched span of a jump.
type span struct {
	number  uint64
	changed bitmap // by the manifest
	missing bitmap // of those to be fetched
	digest  scstore.Digest
	lacking uint64 // sources that have not got all of it, a bit each
	state   spanState
	tries   uint8
}

func (s *span) start() scstore.BlockIndex { return scstore.BlockIndex(s.number * SpanBlocks) }

// raw reports whether the base is no longer trusted.
func (s *span) raw() bool { return s.tries > 0 }

// eachSpan calls f with the parts of e that lie in one span each: the span's number,
// and the blocks within it.
func eachSpan(e scstore.Extent, f func(number uint64, first, count int)) {
	for at, end := uint64(e.First), uint64(e.End()); at < end; {
		number := at / SpanBlocks
		stop := min(end, (number+1)*SpanBlocks)
		f(number, int(at%SpanBlocks), int(stop-at))
		at = stop
	}
}
