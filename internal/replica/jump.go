package replica

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"scstore"
	"scstore/consensus/meta"
	"scstore/fs/block"
	"scstore/fs/volume"
	"scstore/internal/invariant"
	"scstore/propagate"
	"scstore/propagate/quicnet"
)

// copySpan is how many blocks are copied at a time within a table: 1 MiB.
const copySpan = volume.SpanBlocks

// errStopped ends a jump that something else takes the place of.
var errStopped = fmt.Errorf("the jump was stopped: %w", scstore.ErrBusy)

// jump is the right to change a table's head for a replica: on its way from one position
// to another, or while a map is made. Replica.jump is the one that has it.
type jump struct {
	from, to scstore.Position
	cancel   context.CancelCauseFunc
	verified *volume.Verified // of the copy as it becomes; nil for a map

	mu    sync.RWMutex // held shared over each change of the table, alone to end them; after Replica.mu
	ended bool

	progress propagate.Progress // guarded by Replica.mu
}

// beginJump takes the right. mu is held, and nobody has it.
func (r *Replica) beginJump(ctx context.Context, from, to scstore.Position) (*jump, context.Context) {
	j := &jump{from: from, to: to}
	ctx, j.cancel = context.WithCancelCause(ctx)
	r.jump = j
	return j, ctx
}

// stopJump takes the right away. What is staged stays, and is of use to the next jump with
// the same ends. mu is held.
func (r *Replica) stopJump() {
	j := r.jump
	if j == nil {
		return
	}
	j.cancel(errStopped)
	j.mu.Lock()
	j.ended = true
	j.mu.Unlock()
	r.jump = nil
	r.ring()
}

// endJump gives the right back, if it still is this one's. mu is held.
func (r *Replica) endJump(j *jump) {
	if r.jump == j {
		r.stopJump()
	}
}

// do changes the table, unless the jump has ended.
func (j *jump) do(f func() error) error {
	j.mu.RLock()
	defer j.mu.RUnlock()
	if j.ended {
		return errStopped
	}
	return f()
}

// staging is where a jump puts what came: the table's head.
type staging struct {
	j *jump
	t *block.Table
}

func (g staging) WriteBlocks(first scstore.BlockIndex, p []byte) error {
	return g.j.do(func() error { return g.t.WriteBlocks(first, p) })
}

func (g staging) ZeroBlocks(e scstore.Extent) error {
	return g.j.do(func() error { return g.t.ZeroBlocks(e, false) })
}

// settle makes the table's head what a mark shows, when something is above it: by one
// record, or, if a mark above it is still needed, by copying what differs. mu is held.
func (r *Replica) settle(at scstore.Position) error {
	err := r.rollBack(at)
	if errors.Is(err, errRevert) {
		err = r.revertTo(r.set.ctx, r.table, at, func(f func() error) error { return f() })
	}
	return err
}

// settleToWrite is settle for an owner, who writes from there on: once the facts are
// written without a jump, a restart takes what is above the mark for its own. If the head
// went back by copying, that is durable before, and the next epoch has it, too. mu is held.
func (r *Replica) settleToWrite(at scstore.Position) error {
	if err := r.settle(at); err != nil || r.facts.Jump == nil {
		return err
	}
	if err := r.unmarkJumps(); err != nil {
		return err
	}
	return r.table.Sync(context.Background())
}

// headAt reports whether the table's head is what the mark of a position shows: what
// settle leaves. mu is held.
func (r *Replica) headAt(at scstore.Position) bool {
	if j := r.facts.Jump; j != nil {
		if j.From != at || j.To != (scstore.Position{}) || !r.table.Marked(jumpTag(at)) {
			return false
		}
		above, err := r.above(jumpTag(at))
		return !above && err == nil // a mark that a crash brought back has what was staged since above it
	}
	marks := r.marks()
	n := len(marks)
	ok := n == 0 && at == scstore.Position{} || n > 0 && marks[n-1] == at
	if invariant.Enabled && ok && n > 0 {
		above, err := r.above(sealedTag(at))
		invariant.Check(!above || err != nil, "volume %s: the head is not what the newest mark, of %s, shows (I7): %+v, marks %v", r.id, at, r.facts, marks)
	}
	return ok
}

// above reports whether the table's head holds more than a mark shows. The zero tag is the
// table's beginning. mu is held.
func (r *Replica) above(tag scstore.Tag) (bool, error) {
	list, err := r.table.Changed(r.set.ctx, tag, scstore.Tag{}, 0, 1)
	return len(list) > 0, err
}

// errRevert says that the head goes back by copying alone.
var errRevert = errors.New("what is above is still needed")

// rollBack is settle without the copying, which takes long. mu is held.
func (r *Replica) rollBack(at scstore.Position) error {
	marks := r.marks()
	if r.facts.Jump == nil && r.headAt(at) {
		return nil
	}
	i := slices.Index(marks, at)
	if i < 0 {
		return fmt.Errorf("volume %s: position %s: %w", r.id, at, scstore.ErrNotFound)
	}
	needed := slices.ContainsFunc(marks[i+1:], func(p scstore.Position) bool {
		left := slices.ContainsFunc(r.facts.Left, func(l Leftover) bool { return l.Head == p })
		return left || r.facts.holds(p)
	})
	if r.unsaved || r.facts.Jump == nil || r.facts.Jump.To != (scstore.Position{}) || r.facts.Jump.From != at {
		r.facts.Jump = &JumpFacts{From: at}
		if err := r.save(); err != nil {
			return err
		}
	}
	if slices.Contains(marks[i+1:], r.facts.Partial) {
		r.facts.Partial = scstore.Position{}
	}
	if err := r.unmarkJumps(); err != nil {
		return err
	}
	err := scstore.ErrBusy
	if !needed {
		err = r.table.Rollback(sealedTag(at))
	}
	switch {
	case errors.Is(err, scstore.ErrBusy): // also if it is read, or a clone's base
		return errRevert // the facts say that the head is not that of the newest mark
	case err != nil:
		return err
	}
	r.facts.Jump = nil
	return r.save()
}

// jumpTag is of the mark after which what is staged begins, where that is not right
// after the mark of the position that a jump begins at.
func jumpTag(from scstore.Position) scstore.Tag { return scstore.PositionTag(scstore.TagJump, from) }

// unmarkJumps takes those marks back. mu is held.
func (r *Replica) unmarkJumps() error {
	for _, tag := range r.table.Marks() {
		if tag.Kind == scstore.TagJump {
			if err := r.table.Unmark(tag); err != nil {
				return err
			}
		}
	}
	return nil
}

// revertTo makes the head what the mark of a position shows, by copying, and says so with a
// mark. As for revert.
func (r *Replica) revertTo(ctx context.Context, t *block.Table, at scstore.Position, do func(func() error) error) error {
	if err := r.revert(ctx, t, at, do, nil); err != nil {
		return err
	}
	return do(func() error { return t.Mark(jumpTag(at)) })
}

// revert writes what a mark shows over what was written since, each step by do. progress,
// if not nil, is told the bytes. mu is held, or the jump whose do it is has the table.
func (r *Replica) revert(ctx context.Context, t *block.Table, at scstore.Position, do func(func() error) error, progress func(done, total int64)) error {
	pin, err := t.At(sealedTag(at))
	if err != nil {
		return err
	}
	defer pin.Release()
	v, err := volume.Open(volume.Options{ID: r.id, View: pin, Base: baseChain(t)})
	if err != nil {
		return err
	}
	list, err := volume.Changed(ctx, t, sealedTag(at), scstore.Tag{}, blocksOf(t))
	if err != nil {
		return err
	}
	done, total := int64(0), int64(countBlocks(list))*scstore.BlockSize
	buf := make([]byte, copySpan*scstore.BlockSize)
	for _, e := range list {
		for part := range parts(e, copySpan) {
			err := context.Cause(ctx)
			if err == nil {
				err = do(func() error { return copyBack(t, v, part, buf[:part.Count*scstore.BlockSize]) })
			}
			if err != nil {
				return fmt.Errorf("volume %s back to %s: %w", r.id, at, err)
			}
			if done += int64(part.Count) * scstore.BlockSize; progress != nil {
				progress(done, total)
			}
		}
	}
	return nil
}

// copyBack writes a part of a volume to a table's head; what holds no data there holds
// none here.
func copyBack(t *block.Table, v *volume.Volume, part scstore.Extent, buf []byte) error {
	off := part.First.Offset()
	holes, err := v.ReadAt(buf, off, nil)
	if err != nil {
		return err
	}
	at := off
	for _, hole := range append(holes, scstore.Range{Offset: off + int64(len(buf))}) {
		if hole.Offset > at {
			if err := t.WriteBlocks(scstore.BlockIndex(at/scstore.BlockSize), buf[at-off:hole.Offset-off]); err != nil {
				return err
			}
		}
		if at = hole.Offset + hole.Length; hole.Length > 0 {
			e := scstore.Extent{First: scstore.BlockIndex(hole.Offset / scstore.BlockSize), Count: uint64(hole.Length) / scstore.BlockSize}
			if err := t.ZeroBlocks(e, false); err != nil {
				return err
			}
		}
	}
	return nil
}

// makeTable makes what a volume's blocks go to, if it is not here. Its base is here. mu
// is held.
func (r *Replica) makeTable(size int64, base scstore.VolumeID, baseAt scstore.Position) error {
	if r.table != nil {
		if size > r.table.SizeBytes() {
			if err := r.table.Resize(size); err != nil {
				return err
			}
		}
		return nil
	}
	r.facts.SizeBytes, r.facts.Base, r.facts.BasePosition = size, base, baseAt
	r.facts.Holds, r.facts.Jump, r.facts.Partial = nil, nil, scstore.Position{}
	if err := r.save(); err != nil {
		return err
	}
	o := block.CreateOptions{ID: r.id, SizeBytes: size, Base: base}
	if !base.IsZero() {
		o.BaseMark = sealedTag(baseAt)
	}
	t, err := r.set.o.Blocks.Create(o)
	if errors.Is(err, scstore.ErrExists) { // of an attempt that did not end
		t, err = r.set.o.Blocks.Table(r.id)
	}
	if err == nil {
		err = markBeginning(t)
	}
	if err != nil {
		return err
	}
	if err := t.Sync(context.Background()); err != nil {
		return err
	}
	r.table = t
	return nil
}

// markBeginning marks where an empty table begins, the zero position: what a jump from
// nothing goes back to.
func markBeginning(t *block.Table) error {
	if len(t.Marks()) > 0 {
		return nil
	}
	return t.Mark(sealedTag(scstore.Position{}))
}

// startJump jumps in the background.
func (s *Set) startJump(r *Replica, p plan) {
	s.take(s.jumps, func(ctx context.Context) {
		r.mu.Lock()
		idle := r.jump == nil && r.facts.Fence == 0 && r.target == nil && r.device == nil && len(r.facts.Left) == 0
		var j *jump
		jumping := ctx
		if idle {
			j, jumping = r.beginJump(ctx, p.from, p.to)
		}
		r.mu.Unlock()
		if !idle {
			return
		}
		err := s.runJump(jumping, r, j, p)
		r.mu.Lock()
		stopped := r.jump != j
		r.endJump(j)
		if err == nil {
			r.failures, r.retryAt = 0, 0
		} else if !stopped && ctx.Err() == nil {
			if errors.Is(err, scstore.ErrCorrupt) && r.facts.Jump != nil {
				r.facts.Jump.To = scstore.Position{} // what is staged is not trusted
				_ = r.save()                         // tried again with the next
			}
			r.failed()
			s.log.Warn("a copy did not get to the next position", "volume", r.id, "from", p.from.String(), "to", p.to.String(), "err", err)
		}
		r.mu.Unlock()
		if err == nil {
			s.metrics.jumps.Inc()
			s.log.Debug("a copy is at the next position", "volume", r.id, "position", p.to.String())
		} else if !stopped {
			s.metrics.failed.Inc()
		}
		s.wakeUp()
	})
}

// runJump brings a replica from one position to another: steps W8 and W9.
func (s *Set) runJump(ctx context.Context, r *Replica, j *jump, p plan) error {
	base, head, done, err := r.stage(j, p)
	if err != nil {
		return err
	}
	defer done()
	t := head.table
	o := propagate.FetchOptions{
		Jump:  propagate.JumpOptions{Volume: r.id, From: p.from, To: p.to, Window: blocksOf(t), Root: root},
		Stage: staging{j, t}, Base: base, Digest: head.digest, Hole: volume.HoleSpanDigest(),
		Staged: func(window scstore.Extent) ([]scstore.Extent, error) { return r.stagedIn(ctx, t, p.from, window) },
		Progress: func(got propagate.Progress) {
			r.mu.Lock()
			defer r.mu.Unlock()
			j.progress = got
		},
	}
	for _, disk := range p.holders[:min(len(p.holders), propagate.MaxSources)] {
		o.Sources = append(o.Sources, peer{s, disk, quicnet.ClassAsync})
	}
	if _, err := propagate.Fetch(ctx, o); err != nil {
		return err
	}
	return r.arrive(j, p.to)
}

// stagedTable is a table's head with what shows through below, to be verified.
type stagedTable struct {
	*volume.Volume
	table *block.Table
	jump  *jump
}

// digest reads a span back, of which so much is staged.
func (s stagedTable) digest(number uint64, changed []scstore.Extent) (scstore.Digest, error) {
	d, err := s.jump.verified.DigestSpan(s.Volume, number, s.jump.to, changed)
	if invariant.Enabled && err == nil {
		_ = s.jump.do(func() error { // nobody else changes the head
			whole, err := s.DigestSpan(number)
			invariant.Check(err != nil || d == whole, "volume %s: span %d on the way to %s is not what its parts say", s.ID(), number, s.jump.to)
			return nil
		})
	}
	return d, err
}

// stage gets the table ready for a jump. base is what is shown at p.from, nil for nothing.
func (r *Replica) stage(j *jump, p plan) (base propagate.Reader, head stagedTable, done func(), err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.jump != j {
		return nil, head, nil, errStopped
	}
	if err := r.makeTable(p.size, p.base, p.baseAt); err != nil {
		return nil, head, nil, err
	}
	if r.table.Marked(sealedTag(p.to)) { // by a map, meanwhile
		return nil, head, nil, errStopped
	}
	resumed := r.facts.Jump != nil && *r.facts.Jump == JumpFacts{From: p.from, To: p.to}
	if !resumed {
		err := r.rollBack(p.from)
		if errors.Is(err, errRevert) { // it takes long: the review goes on meanwhile
			t := r.table
			r.mu.Unlock()
			if err = r.revertTo(r.set.ctx, t, p.from, j.do); err == nil {
				err = t.Sync(context.Background()) // the facts are about to say that only what is staged is above
			}
			r.mu.Lock()
		}
		if err == nil && r.jump != j {
			err = errStopped
		}
		if err != nil {
			return nil, head, nil, err
		}
		r.facts.Jump = &JumpFacts{From: p.from, To: p.to}
	}
	if !resumed || r.unsaved {
		if err := r.save(); err != nil {
			return nil, head, nil, err
		}
	}
	chain := baseChain(r.table)
	v, err := volume.Open(volume.Options{ID: r.id, View: r.table, Base: chain})
	if err != nil {
		return nil, head, nil, err
	}
	if j.verified = r.verified.spans; j.verified == nil || r.verified.at != p.from {
		j.verified = volume.NewVerified()
	}
	r.verified.spans = nil // until the jump arrives
	head = stagedTable{v, r.table, j}
	if p.from == (scstore.Position{}) {
		return nil, head, func() {}, nil
	}
	pin, err := r.table.At(sealedTag(p.from))
	if err != nil {
		return nil, head, nil, err
	}
	old, err := volume.Open(volume.Options{ID: r.id, View: pin, Base: chain})
	if err != nil {
		pin.Release()
		return nil, head, nil, err
	}
	return old, head, pin.Release, nil
}

// stagedIn returns what is above the mark of a position at the head, without what is
// remote there.
func (r *Replica) stagedIn(ctx context.Context, t *block.Table, from scstore.Position, window scstore.Extent) ([]scstore.Extent, error) {
	after := sealedTag(from)
	if tag := jumpTag(from); t.Marked(tag) {
		after = tag
	}
	list, err := volume.Changed(ctx, t, after, scstore.Tag{}, window)
	if err != nil || len(list) == 0 {
		return nil, err
	}
	remote, err := remoteIn(ctx, t, window)
	if err != nil {
		return nil, err
	}
	return subtract(list, remote), nil
}

// arrive makes what is staged and verified the replica's next position.
func (r *Replica) arrive(j *jump, to scstore.Position) error {
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
	r.verified.at, r.verified.spans = to, j.verified
	r.facts.hold(to)
	r.facts.Jump = nil
	if r.facts.Partial == to {
		r.facts.Partial = scstore.Position{}
	}
	if err := r.save(); err != nil {
		return err
	}
	r.ring()
	return nil
}

// root is the root over the digests of a manifest.
func root(sizeBytes int64, spans []propagate.SpanDigest) scstore.Digest {
	return volume.RootOf(sizeBytes, func(yield func(uint64, scstore.Digest) bool) {
		for _, s := range spans {
			if !yield(s.Number, s.Digest) {
				return
			}
		}
	})
}

// peer is another host as a source of blocks.
type peer struct {
	s     *Set
	disk  meta.DiskID
	class quicnet.Class
}

// Open opens a stream to it.
func (p peer) Open(ctx context.Context) (propagate.Stream, error) {
	stream, err := p.s.o.Net.OpenStream(ctx, p.disk, p.class, KindVolumes)
	if err != nil {
		return nil, err
	}
	return &countedStream{Stream: stream, read: p.s.metrics.received}, nil
}
