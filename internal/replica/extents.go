package replica

import (
	"context"
	"iter"

	"scstore"
	"scstore/fs/block"
)

// blocksOf returns all blocks of a table.
func blocksOf(t *block.Table) scstore.Extent {
	return scstore.Extent{Count: uint64(t.SizeBytes()) / scstore.BlockSize}
}

// parts cuts an extent into parts of at most so many blocks, in order.
func parts(e scstore.Extent, most uint64) iter.Seq[scstore.Extent] {
	return func(yield func(scstore.Extent) bool) {
		for e.Count > 0 {
			part := scstore.Extent{First: e.First, Count: min(e.Count, most)}
			if !yield(part) {
				return
			}
			e.First, e.Count = part.End(), e.Count-part.Count
		}
	}
}

// listBatch is how many extents are asked of a table at a time.
const listBatch = 4096

// remoteIn returns the blocks of a window whose content is at another host, at the head.
func remoteIn(ctx context.Context, t *block.Table, window scstore.Extent) (list []scstore.Extent, err error) {
	if t.RemoteBlocks() == 0 {
		return nil, nil
	}
	for start := window.First; start < window.End(); {
		part, err := t.Remote(ctx, start, listBatch)
		if err != nil {
			return nil, err
		}
		for _, e := range part {
			if e = e.Clamp(window); e.Count > 0 {
				list = append(list, e)
			}
		}
		if len(part) < listBatch {
			break
		}
		start = part[len(part)-1].End()
	}
	return list, nil
}

// intersect returns what is in both lists, which ascend.
func intersect(a, b []scstore.Extent) (out []scstore.Extent) {
	for len(a) > 0 && len(b) > 0 {
		if both := a[0].Clamp(b[0]); both.Count > 0 {
			out = append(out, both)
		}
		if a[0].End() < b[0].End() {
			a = a[1:]
		} else {
			b = b[1:]
		}
	}
	return out
}

// subtract returns what is in a and not in b; both ascend.
func subtract(a, b []scstore.Extent) (out []scstore.Extent) {
	for _, e := range a {
		for len(b) > 0 && b[0].End() <= e.First {
			b = b[1:]
		}
		for _, hole := range b {
			if hole.First >= e.End() {
				break
			}
			if hole.First > e.First {
				out = append(out, scstore.Extent{First: e.First, Count: uint64(hole.First - e.First)})
			}
			if hole.End() >= e.End() {
				e.Count = 0
				break
			}
			e = scstore.Extent{First: hole.End(), Count: uint64(e.End() - hole.End())}
		}
		if e.Count > 0 {
			out = append(out, e)
		}
	}
	return out
}

// countBlocks returns how many blocks the extents have.
func countBlocks(list []scstore.Extent) (n uint64) {
	for _, e := range list {
		n += e.Count
	}
	return n
}
