package replica

import (
	"context"

	"scstore"
	"scstore/consensus/meta"
	"scstore/fs/block"
)

// copyBranch makes the branch's table, which never changes again, and what this host
// knows of it. Blocks that are not here are named, and stay where they are.
func (r *Replica) copyBranch(ctx context.Context, g meta.GroupID, l Leftover, from scstore.Position, extents []scstore.Extent) error {
	r.mu.Lock()
	table, base, baseAt := r.table, r.facts.Base, r.facts.BasePosition
	r.mu.Unlock()
	if from != (scstore.Position{}) {
		base, baseAt = r.id, from
	}
	if old, err := r.set.o.Blocks.Table(l.Branch); err == nil {
		if old.Frozen() {
			return r.keepBranch(g, l, old, base, baseAt)
		}
		if err := r.set.o.Blocks.Delete(l.Branch); err != nil { // of an attempt that did not end
			return err
		}
	}
	o := block.CreateOptions{ID: l.Branch, SizeBytes: table.SizeBytes(), Base: base}
	if !base.IsZero() {
		o.BaseMark = sealedTag(baseAt)
	}
	branch, err := r.set.o.Blocks.Create(o)
	if err != nil {
		return err
	}
	view, err := table.At(sealedTag(l.Head))
	if err != nil {
		return err
	}
	defer view.Release()
	if err := copyExtents(ctx, branch, view, extents); err != nil {
		return err
	}
	if err := branch.Mark(sealedTag(l.Head)); err != nil {
		return err
	}
	if err := branch.Freeze(); err != nil {
		return err
	}
	return r.keepBranch(g, l, branch, base, baseAt)
}

// copyExtents copies what a view shows of the extents.
func copyExtents(ctx context.Context, to *block.Table, from *block.Pin, extents []scstore.Extent) error {
	buf := make([]byte, copySpan*scstore.BlockSize)
	for _, e := range extents {
		for part := range parts(e, copySpan) {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := copyPart(to, from, part, buf[:part.Count*scstore.BlockSize]); err != nil {
				return err
			}
		}
	}
	return nil
}

func copyPart(to *block.Table, from *block.Pin, part scstore.Extent, buf []byte) error {
	gaps, _, err := from.ReadBlocks(part.First, buf, nil, false)
	if err != nil {
		return err
	}
	data := func(first, end scstore.BlockIndex) error {
		if first == end {
			return nil
		}
		return to.WriteBlocks(first, buf[(first-part.First).Offset():(end-part.First).Offset()])
	}
	at := part.First
	for _, gap := range gaps {
		if err := data(at, gap.First); err != nil {
			return err
		}
		switch gap.State {
		case scstore.PieceHole:
			err = to.ZeroBlocks(gap.Extent, true)
		case scstore.PieceRemote:
			err = to.MarkRemote([]scstore.Extent{gap.Extent}, scstore.Tag{})
		case scstore.PieceAbsent, scstore.PieceData: // what shows through is the base's
		}
		if err != nil {
			return err
		}
		at = gap.End()
	}
	return data(at, part.End())
}

// keepBranch writes down what this host has of the branch.
func (r *Replica) keepBranch(g meta.GroupID, l Leftover, table *block.Table, base scstore.VolumeID, baseAt scstore.Position) error {
	b := r.set.replica(l.Branch)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.group, b.table = g, table
	b.facts.SizeBytes, b.facts.Base, b.facts.BasePosition = table.SizeBytes(), base, baseAt
	b.facts.hold(l.Head)
	return b.save()
}

// dropBranch deletes the data of a branch that nobody waits for.
func (r *Replica) dropBranch(l Leftover) error {
	table, err := r.set.o.Blocks.Table(l.Branch)
	if err != nil {
		return nil // it was not begun
	}
	b := r.set.replica(l.Branch)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.table = table
	_, err = b.forget()
	return err
}
