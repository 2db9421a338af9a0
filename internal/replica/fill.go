package replica

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"scstore"
	"scstore/fs/block"
	"scstore/propagate/quicnet"
)

const (
	fillWindow = 64 << 20 / scstore.BlockSize // how much is looked at at a time
	fillAtOnce = 8                            // MiBs, while nobody waits for all of it
	fillRetry  = 2 * time.Second              // after nobody had what is missing
)

// fill brings what a copy lacks, in the background: the end of a tether. Guarded by
// Replica.mu.
type fill struct {
	begun   time.Duration
	missing uint64 // blocks, at most, when it began
	filled  uint64
}

// fillDue reports whether there is something to be brought. A hand-off to here comes first:
// its messages would wait in the same queues. mu is held.
func (r *Replica) fillDue() bool {
	return r.target == nil && r.facts.Partial != (scstore.Position{}) && r.table != nil && r.fill == nil && r.jump == nil && r.set.now() >= r.retryAt
}

// startFill brings what is missing, in the background.
func (s *Set) startFill(r *Replica) {
	s.take(s.fillers, func(ctx context.Context) {
		r.mu.Lock()
		if !r.fillDue() {
			r.mu.Unlock()
			return
		}
		t, at := r.table, r.facts.Partial
		r.fill = &fill{begun: s.now(), missing: t.RemoteBlocks()}
		r.mu.Unlock()
		err := s.fillAll(ctx, r, t, at)
		r.mu.Lock()
		r.fill = nil
		if err == nil {
			err = r.filled(t, at)
		}
		if err != nil && ctx.Err() == nil {
			r.failures++
			r.retryAt = s.now() + fillRetry
			s.log.Warn("what is missing of a volume did not come", "volume", r.id, "position", at.String(), "err", err)
		}
		r.mu.Unlock()
		s.wakeUp()
	})
}

// fillAll goes through the table once.
func (s *Set) fillAll(ctx context.Context, r *Replica, t *block.Table, at scstore.Position) error {
	for window := range parts(blocksOf(t), fillWindow) {
		if t.RemoteBlocks() == 0 {
			break
		}
		spans, lacking, err := spansLacking(t, at, window)
		if err != nil {
			return err
		}
		if err := s.fillSpans(ctx, r, at, spans); err != nil {
			return err
		}
		r.mu.Lock()
		r.fill.filled += lacking
		r.mu.Unlock()
	}
	return nil
}

// fillSpans brings MiBs, some of them at a time: one that has come makes room for the next,
// so that the link does not wait for the slowest.
func (s *Set) fillSpans(ctx context.Context, r *Replica, at scstore.Position, spans []uint64) error {
	r.mu.Lock()
	hurry := r.hurry > 0
	r.mu.Unlock()
	class, n := quicnet.ClassAsync, fillAtOnce
	if hurry {
		class, n = quicnet.ClassHot, fetchAtOnce
	}
	flights, ctx := errgroup.WithContext(ctx)
	flights.SetLimit(n)
	for _, span := range spans {
		if ctx.Err() != nil {
			break
		}
		flights.Go(func() error { return r.bring(ctx, at, []uint64{span}, class) })
	}
	return flights.Wait()
}

// spansLacking returns which MiBs of a window lack something, and how many blocks.
func spansLacking(t *block.Table, at scstore.Position, window scstore.Extent) (spans []uint64, blocks uint64, err error) {
	pin, err := t.At(sealedTag(at))
	if err != nil {
		return nil, 0, err
	}
	defer pin.Release()
	missing, err := remoteOf(pin, window)
	if err != nil {
		return nil, 0, err
	}
	return spansOf(missing), countBlocks(missing), nil
}

// filled says that nothing is missing any more: what the position shows, and all that was
// marked since, is complete here. mu is held.
func (r *Replica) filled(t *block.Table, at scstore.Position) error {
	if r.table != t || r.facts.Partial != at || !r.baseComplete() {
		return nil // looked at again
	}
	if err := t.Sync(context.Background()); err != nil {
		return err
	}
	r.holdMarked(at)
	for i := range r.facts.Pending {
		r.facts.Pending[i].Complete = true
	}
	r.facts.Partial = scstore.Position{}
	r.failures = 0
	if err := r.save(); err != nil {
		return err
	}
	r.set.log.Info("volume is complete here", "volume", r.id, "position", at.String())
	r.ring()
	return nil
}

// holdMarked enters as complete a position, and what was sealed after it and lacks nothing
// either: a later map may. A mark beyond the head is of a seal that has not ended, and may
// come to show more. mu is held.
func (r *Replica) holdMarked(first scstore.Position) {
	found := first == scstore.Position{}
	for _, p := range r.marks() {
		found = found || p == first
		if found && p != (scstore.Position{}) && (p == first || p.Compare(r.facts.Head) <= 0 && r.lacksNothing(p)) {
			r.facts.hold(p)
		}
	}
}

// lacksNothing reports whether no block is remote behind a mark. mu is held.
func (r *Replica) lacksNothing(at scstore.Position) bool {
	if r.table.RemoteBlocks() == 0 {
		return true
	}
	for window := range parts(blocksOf(r.table), fillWindow) {
		if _, n, err := spansLacking(r.table, at, window); err != nil || n > 0 {
			return false
		}
	}
	return true
}

// catchUp makes what was sealed while the base was not complete here complete, once it is.
// mu is held.
func (r *Replica) catchUp() {
	f := &r.facts
	if f.Fence == 0 || f.Partial != (scstore.Position{}) || f.Head == (scstore.Position{}) || f.holds(f.Head) || !r.baseComplete() {
		return
	}
	r.holdMarked(scstore.Position{})
	for i := range f.Pending {
		f.Pending[i].Complete = true
	}
	_ = r.save() // tried again with the next
}

// baseComplete reports whether what the volume is based on is. mu is held.
func (r *Replica) baseComplete() bool {
	return r.set.hasBase(r.facts.Base, r.facts.BasePosition)
}

// hasBase reports whether a base is complete here at a position, or there is none to have.
// The mutex of what is based on it may be held.
func (s *Set) hasBase(id scstore.VolumeID, at scstore.Position) bool {
	if id.IsZero() {
		return true
	}
	base, ok := s.lookup(id)
	if !ok {
		return false
	}
	base.mu.Lock()
	defer base.mu.Unlock()
	return base.facts.holds(at)
}

// complete returns how many bytes a volume lacks here, its bases included; of bases it may
// be less. 0 is exact.
func (s *Set) complete(r *Replica) (missingBytes int64) {
	r.mu.Lock()
	t, base := r.table, r.facts.Base
	whole := r.facts.Partial == (scstore.Position{})
	r.mu.Unlock()
	if t == nil {
		return 0
	}
	if !whole {
		missingBytes = int64(t.RemoteBlocks()) * scstore.BlockSize
		list, err := remoteIn(s.ctx, t, blocksOf(t))
		if err == nil {
			missingBytes = max(int64(countBlocks(list)), 1) * scstore.BlockSize // what only older marks lack counts as one block
		}
	}
	if next, ok := s.lookup(base); ok && !base.IsZero() {
		missingBytes += s.complete(next)
	}
	return missingBytes
}

// waitComplete has what is missing brought as fast as it can be, and waits for it. progress
// may be nil.
func (s *Set) waitComplete(ctx context.Context, r *Replica, progress func(done, total int64)) error {
	r.mu.Lock()
	r.hurry++
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.hurry--
	}()
	total := s.complete(r)
	for missing := total; missing > 0; missing = s.complete(r) {
		if progress != nil {
			progress(max(total-missing, 0), total)
		}
		s.wakeUp()
		pause(ctx, tickInterval)
		if ctx.Err() != nil {
			return fmt.Errorf("volume %s lacks %d bytes: %w", r.id, missing, context.Cause(ctx))
		}
		if s.ctx.Err() != nil {
			return errClosing
		}
	}
	return nil
}
