package block

import "slices"

// The limits that the packed forms of locations and entries give.
const (
	maxSegmentID   = 1<<40 - 1
	maxSlots       = 1 << 14 // slots in a segment: 64 MiB
	maxEntryBlocks = 1<<24 - 1
)

// loc is where a run of blocks is stored: segment (40 bits), slot (14 bits),
// flags (10 bits). Consecutive blocks of a run are in consecutive slots.
type loc uint64

// The flags of a loc.
const (
	locHole   loc = 1 << 0 // no stored bytes: reads as zeros, hides what lies below
	locKept   loc = 1 << 1 // a version that only a pin shows; the head never reads it
	locRemote loc = 1 << 2 // the bytes are at another host; hides what lies below

	locFlags loc = 1<<10 - 1
)

func makeLoc(segment uint64, slot int) loc { return loc(segment<<24 | uint64(slot)<<10) }

func (l loc) segment() uint64 { return uint64(l >> 24) }
func (l loc) slot() int       { return int(l>>10) & (maxSlots - 1) }
func (l loc) isHole() bool    { return l&locHole != 0 }
func (l loc) isKept() bool    { return l&locKept != 0 }
func (l loc) isRemote() bool  { return l&locRemote != 0 }

// stored reports whether the location is a slot of a segment.
func (l loc) stored() bool { return l > locFlags && l&(locHole|locRemote) == 0 }

// plus returns the location n blocks into the run that starts at l.
func (l loc) plus(n uint64) loc {
	if !l.stored() {
		return l
	}
	return l + loc(n<<10)
}

// follows reports whether next continues the run of n blocks that starts at l.
func (l loc) follows(n uint64, next loc) bool { return l.plus(n) == next }

// entry maps a run of blocks of one table, as they were written in one
// generation, to where they are.
type entry struct {
	table uint32
	gen   uint32
	first uint64 // block
	count uint64 // blocks, 1..maxEntryBlocks
	loc   loc
}

func (e entry) end() uint64 { return e.first + e.count }

// clip returns the part of e within [first, end), which must overlap it.
func (e entry) clip(first, end uint64) entry {
	if first > e.first {
		e.loc = e.loc.plus(first - e.first)
		e.count -= first - e.first
		e.first = first
	}
	if e.end() > end {
		e.count = end - e.first
	}
	return e
}

const (
	// headGen is the view of a table's head: every generation is visible.
	headGen = ^uint32(0)
	// lastGen is the same, looked up as a pinned view is.
	lastGen = headGen - 1
	// maxGen is the last generation that a table can be in.
	maxGen = lastGen - 1
)

// genRange is the generations (after, upTo].
type genRange struct {
	after, upTo uint32
}

// genRanges is a few of them, ascending. It is never changed in place.
type genRanges []genRange

func (r genRanges) has(gen uint32) bool {
	for _, x := range r {
		if gen > x.after && gen <= x.upTo {
			return true
		}
	}
	return false
}

// kill returns r with all generations after after, up to upTo, which is the newest.
func (r genRanges) kill(after, upTo uint32) genRanges {
	out := make(genRanges, 0, len(r)+1)
	for _, x := range r {
		if x.upTo <= after {
			out = append(out, x)
		}
	}
	return append(out, genRange{after, upTo})
}

// without returns r without those of gone; nil if none is left.
func (r genRanges) without(gone genRanges) genRanges {
	var out genRanges
	for _, x := range r {
		if !slices.Contains(gone, x) {
			out = append(out, x)
		}
	}
	return out
}
