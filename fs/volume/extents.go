package volume

import "scstore"

// MaxManifestExtents bounds the extents of one manifest (16 MiB of memory). Where an
// epoch changed more, neighbours are named as one with what lies between them.
const MaxManifestExtents = 1 << 20

// extentSet collects ascending extents, in no more than limit of them: beyond it, the
// grain to which they are rounded grows.
type extentSet struct {
	list   []scstore.Extent
	blocks uint64 // of the volume
	grain  uint64 // blocks
	limit  int
}

// add appends an extent that begins after all before it.
func (s *extentSet) add(e scstore.Extent) {
	s.join(e)
	for len(s.list) > s.limit && s.grain < s.blocks {
		s.grain = max(SpanBlocks, 2*s.grain)
		old := s.list
		s.list = s.list[:0] // never longer than what was read of old
		for _, e := range old {
			s.join(e)
		}
	}
}

// join appends an extent, rounded to the grain, or extends the last one by it.
func (s *extentSet) join(e scstore.Extent) {
	first := uint64(e.First) / s.grain * s.grain
	end := min((uint64(e.End())+s.grain-1)/s.grain*s.grain, s.blocks)
	if last := len(s.list) - 1; last >= 0 && uint64(s.list[last].End()) >= first {
		s.list[last].Count = max(end, uint64(s.list[last].End())) - uint64(s.list[last].First)
		return
	}
	if first < end {
		s.list = append(s.list, scstore.Extent{First: scstore.BlockIndex(first), Count: end - first})
	}
}
