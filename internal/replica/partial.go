package replica

import (
	"context"
	"errors"
	"fmt"

	"scstore"
	"scstore/consensus/meta"
	"scstore/fs/block"
	"scstore/fs/volume"
	"scstore/propagate"
	"scstore/propagate/quicnet"
	"scstore/propagate/wire"
)

// partial has a complete map of a volume here at a position: what is not here is known to
// be at another host. A jump under way is stopped, and what it staged is kept: the map is
// that of its target first. It returns the position whose mark is there: at, or the
// jump's target if from knows no way from there to at. mu is not held.
func (r *Replica) partial(ctx context.Context, at scstore.Position, from meta.DiskID) (scstore.Position, error) {
	got, err := r.makePartial(ctx, at, from, 0)
	if err != nil {
		return got, fmt.Errorf("map of volume %s at %s: %w", r.id, at, err)
	}
	return got, nil
}

// maxChain bounds how far bases are followed.
const maxChain = 64

func (r *Replica) makePartial(ctx context.Context, at scstore.Position, from meta.DiskID, depth int) (scstore.Position, error) {
	rec, history, err := r.record()
	if err != nil {
		return scstore.Position{}, err
	}
	if depth > maxChain {
		return scstore.Position{}, fmt.Errorf("more than %d bases: %w", maxChain, scstore.ErrInvalid)
	}
	if !rec.Base.IsZero() && !r.hasTable() {
		base := r.set.replica(rec.Base)
		r.set.join(rec.Base, r.groupID())
		if got, err := base.makePartial(ctx, rec.BasePosition, from, depth+1); err != nil || got != rec.BasePosition {
			return scstore.Position{}, errors.Join(fmt.Errorf("base %s at %s: %w", rec.Base, rec.BasePosition, scstore.ErrAbsent), err)
		}
	}
	j, ctx, way, err := r.beginMap(ctx, at, rec, history)
	if err != nil || j == nil {
		return at, err
	}
	defer func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.endJump(j)
	}()
	for i := 1; i < len(way); i++ {
		if err := r.mapTo(ctx, j, way[i-1], way[i], from); err != nil {
			if i > 1 && ctx.Err() == nil {
				return way[i-1], nil
			}
			return scstore.Position{}, err
		}
	}
	return at, nil
}

// record returns what the state says of the volume.
func (r *Replica) record() (rec meta.Record, history []meta.Point, err error) {
	g := r.groupID()
	if g == 0 {
		if g, err = r.set.groupOf(r.id); err != nil {
			return rec, nil, err
		}
		r.set.join(r.id, g)
	}
	ok := false
	err = r.set.o.Log.View(g, func(st *meta.State) {
		rec, ok = st.Get(r.id)
		history = st.History(r.id)
	})
	if err == nil && (!ok || rec.Life == meta.Tombstone) {
		err = fmt.Errorf("volume %s: %w", r.id, scstore.ErrNotFound)
	}
	return rec, history, err
}

func (r *Replica) hasTable() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.table != nil
}

// beginMap gets the table ready and returns the positions to go through, the first of which
// is at the head; no jump if the map is here already.
func (r *Replica) beginMap(ctx context.Context, at scstore.Position, rec meta.Record, history []meta.Point) (*jump, context.Context, []scstore.Position, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stopJump()
	if r.facts.Fence != 0 {
		return nil, ctx, nil, fmt.Errorf("volume %s is written here: %w", r.id, scstore.ErrBusy)
	}
	if r.table != nil && r.table.Marked(sealedTag(at)) && at != (scstore.Position{}) {
		if r.headAt(at) {
			return nil, ctx, nil, nil
		}
		return nil, ctx, nil, r.settle(at) // what follows is written above it
	}
	if err := r.makeTable(rec.SizeBytes, rec.Base, rec.BasePosition); err != nil {
		return nil, ctx, nil, err
	}
	if at == (scstore.Position{}) {
		return nil, ctx, nil, nil
	}
	way := []scstore.Position{r.newestOf(history)}
	if staged := r.facts.Jump; staged != nil && staged.To != (scstore.Position{}) && !staged.Map && inHistory(history, staged.To) {
		way = []scstore.Position{staged.From}
		if staged.To != at {
			way = append(way, staged.To)
		}
	} else if r.facts.Jump == nil && r.facts.Partial != (scstore.Position{}) && inHistory(history, r.facts.Partial) && r.headAt(r.facts.Partial) {
		way[0] = r.facts.Partial
	} else if err := r.settle(way[0]); err != nil {
		return nil, ctx, nil, err
	}
	way = append(way, at)
	j, ctx := r.beginJump(ctx, way[0], at)
	return j, ctx, way, nil
}

// mapTo marks the head as the volume at a position: what changed since from, and is not
// staged, is at another host, but for MiBs of zeros.
func (r *Replica) mapTo(ctx context.Context, j *jump, from, to scstore.Position, disk meta.DiskID) error {
	r.mu.Lock()
	t, staged := r.table, r.facts.Jump
	if r.jump != j {
		r.mu.Unlock()
		return errStopped
	}
	if staged != nil && (staged.From != from || staged.To != to) { // of a crash within this
		if err := r.settle(from); err != nil {
			r.mu.Unlock()
			return err
		}
		staged = nil
	}
	r.facts.Jump = &JumpFacts{From: from, To: to, Map: true}
	err := r.save()
	r.mu.Unlock()
	if err != nil {
		return err
	}
	for window := range parts(blocksOf(t), wire.MaxWindowBlocks) {
		if err := r.mapWindow(ctx, j, t, from, to, window, disk, staged != nil); err != nil {
			return err
		}
	}
	return r.mapped(j, to)
}

func (r *Replica) mapWindow(ctx context.Context, j *jump, t *block.Table, from, to scstore.Position, window scstore.Extent, disk meta.DiskID, staged bool) error {
	core, err := propagate.NewJump(propagate.JumpOptions{Volume: r.id, From: from, To: to, Window: window, Root: root})
	if err != nil {
		return err
	}
	if err := manifest(ctx, peer{r.set, disk, quicnet.ClassManifest}, core); err != nil {
		return err
	}
	zeros := core.Zeros(volume.HoleSpanDigest())
	list := subtract(core.Changed(), zeros)
	if staged {
		here, err := r.stagedIn(ctx, t, from, window)
		if err != nil {
			return err
		}
		list = subtract(list, here)
	}
	return j.do(func() error {
		for _, e := range zeros {
			if err := t.ZeroBlocks(e, false); err != nil {
				return err
			}
		}
		return t.MarkRemote(list, scstore.Tag{})
	})
}

// mapped makes the head the map of a position.
func (r *Replica) mapped(j *jump, to scstore.Position) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.jump != j {
		return errStopped
	}
	if err := r.table.Mark(sealedTag(to)); err != nil {
		return err
	}
	if err := r.unmarkJumps(); err != nil {
		return err
	}
	if err := r.table.Sync(context.Background()); err != nil {
		return err
	}
	r.facts.Jump, r.facts.Partial = nil, to
	if err := r.save(); err != nil {
		return err
	}
	r.ring()
	r.set.wakeUp()
	return nil
}

// manifest asks one source for what a jump changes.
func manifest(ctx context.Context, p peer, core *propagate.Jump) error {
	stream, err := p.Open(ctx)
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { _ = stream.Close() })()
	_, err = stream.Write(core.ManifestRequest().AppendTo(nil))
	if err == nil {
		err = stream.CloseWrite()
	}
	if err == nil {
		err = (&propagate.Receiver{Jump: core}).Manifest(stream)
	}
	return errors.Join(err, stream.Close())
}
