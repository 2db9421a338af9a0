package replica

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"scstore"
	"scstore/consensus/meta"
	"scstore/fs/volume"
	"scstore/propagate/quicnet"
)

// maxPending bounds the epochs that were sealed by time and are not in the history.
const maxPending = 4

// seal ends the open epoch, if anything was written to it, and says so. The point is the
// head's. mu is not held.
func (r *Replica) seal(ctx context.Context) (Point, bool, error) {
	if err := r.lockSealing(ctx); err != nil {
		return Point{}, false, err
	}
	defer r.unlockSealing()
	return r.sealLocked(ctx, false, nil)
}

func (r *Replica) lockSealing(ctx context.Context) error {
	select {
	case <-r.sealing:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("seal volume %s: %w", r.id, context.Cause(ctx))
	}
}

func (r *Replica) unlockSealing() { r.sealing <- struct{}{} }

// sealLocked ends the open epoch: step W5. always has it do so even if nothing was
// written. The token of sealing is held, mu is not.
func (r *Replica) sealLocked(ctx context.Context, always bool, progress func(done, total int64)) (Point, bool, error) {
	r.mu.Lock()
	v, d, head := r.v, r.device, r.headPoint()
	missing := r.facts.Partial != (scstore.Position{}) || !r.baseComplete()
	unsaved := r.unsaved
	r.mu.Unlock()
	switch {
	case v == nil || d == nil:
		return Point{}, false, fmt.Errorf("seal volume %s: it is not written here: %w", r.id, scstore.ErrReadOnly)
	case d.written.Load() == 0 && !always:
		if unsaved {
			r.mu.Lock()
			defer r.mu.Unlock()
			return head, false, r.save()
		}
		return head, false, nil
	}
	n, first := d.written.Swap(0), time.Duration(d.first.Load())
	if n == 0 {
		first = r.set.now()
	}
	m, err := r.sealVolume(ctx, v, progress)
	if err != nil {
		if n > 0 {
			d.note(n)
			d.first.Store(int64(first))
		}
		return Point{}, false, err
	}
	p := Point{Position: m.Position, Parent: m.Parent, Digest: m.Root, Complete: !missing}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.v != v {
		return Point{}, false, fmt.Errorf("seal volume %s: %w", r.id, scstore.ErrFenced)
	}
	r.facts.Pending = append(r.facts.Pending, p)
	// What a rollback wrote stays.
	r.facts.Head, r.facts.Jump = p.Position, nil
	if missing && r.facts.Partial == (scstore.Position{}) && r.baseComplete() { // filled meanwhile: that took its mark along
		p.Complete = true
		r.facts.Pending[len(r.facts.Pending)-1].Complete = true
	}
	if p.Complete {
		r.facts.hold(p.Position)
	}
	r.sealed = r.set.now()
	if r.stamps = append(r.stamps, stamp{p.Position, first}); len(r.stamps) > maxStamps {
		r.stamps = slices.Delete(r.stamps, 0, len(r.stamps)-maxStamps)
	}
	r.set.metrics.seals.Inc()
	// Until the facts are written nothing of this is proposed (commitPending).
	return p, true, r.save()
}

// headPoint returns the point of the last sealed epoch; of one that is in the history,
// which says more of it, only the position. mu is held.
func (r *Replica) headPoint() Point {
	if n := len(r.facts.Pending); n > 0 {
		return r.facts.Pending[n-1]
	}
	return Point{Position: r.facts.Head, Complete: r.facts.Partial == scstore.Position{}}
}

// sealVolume seals, and brings what spans that were written to in part lack.
func (r *Replica) sealVolume(ctx context.Context, v *volume.Volume, progress func(done, total int64)) (volume.Manifest, error) {
	for {
		m, err := v.Seal(ctx, progress)
		var missing *volume.MissingError
		if !errors.As(err, &missing) {
			return m, err
		}
		if err := r.bringMissing(ctx, missing, quicnet.ClassHot); err != nil {
			return m, fmt.Errorf("seal volume %s: %w", r.id, err)
		}
	}
}

// sealDue reports whether an epoch is to be sealed for other sites' copies. mu is held.
func (r *Replica) sealDue(st *meta.State) bool {
	if !r.seals || r.source != nil || !r.acknowledges() || r.device == nil || r.device.written.Load() == 0 && !r.nameless() {
		return false
	}
	if len(r.facts.Pending) >= maxPending || r.set.now()-r.sealed < r.set.o.SealInterval {
		return false
	}
	return r.set.followed(r, st)
}

// followed reports whether the placement wants a copy at another site.
func (s *Set) followed(r *Replica, st *meta.State) bool {
	p, _ := st.PlacementOf(r.id)
	follows := p.Mode == meta.ModeAsync || p.Mode == meta.ModeSync
	return follows && slices.ContainsFunc(p.Sites, func(site meta.SiteID) bool { return site != s.o.Site })
}

// nameless reports whether the volume shows what its base does and has no position yet at
// which another host could have that: a clone that was never written. Without a base it
// shows zeros, which nobody has to keep. mu is held.
func (r *Replica) nameless() bool {
	return !r.facts.Base.IsZero() && r.facts.Head == scstore.Position{}
}

// sealByTime seals in the background.
func (r *Replica) sealByTime() {
	select {
	case <-r.sealing:
	default:
		return
	}
	if !r.set.take(r.set.sealers, func(ctx context.Context) {
		defer r.unlockSealing()
		r.mu.Lock()
		always := r.nameless()
		r.mu.Unlock()
		if _, _, err := r.sealLocked(ctx, always, nil); err != nil && ctx.Err() == nil {
			r.set.log.Warn("an epoch can't be sealed", "volume", r.id, "err", err)
			r.mu.Lock()
			r.sealed = r.set.now()
			r.mu.Unlock()
		}
		r.set.wakeUp()
	}) {
		r.unlockSealing()
	}
}

// commitPending proposes what was sealed, as it is, until it is in the history: step W6.
// The last epoch of a hand-off goes in with the hand-off. mu is held.
func (r *Replica) commitPending() {
	if r.facts.Fence == 0 || len(r.facts.Pending) == 0 || r.unsaved && r.save() != nil {
		return
	}
	ops := r.commits()
	// A key of its own for the newest: what was sealed since the last attempt does not
	// wait for the interval.
	key := fmt.Sprint("commit", r.id, r.facts.Pending[len(r.facts.Pending)-1].Position)
	switch {
	case len(ops) == 1:
		r.set.ask(key, r.group, ops[0])
	case len(ops) > 1:
		r.set.ask(key, r.group, meta.Batch{Ops: ops})
	}
}

// commits returns what puts the pending epochs into the history, but for that of a
// hand-off. mu is held.
func (r *Replica) commits() (ops []meta.Op) {
	for _, p := range r.facts.Pending {
		if d := r.facts.Draining; d != nil && d.Final.Position == p.Position {
			break
		}
		ops = append(ops, meta.CommitEpoch{ID: r.id, Fence: p.Position.Fence, Parent: p.Parent, Epoch: p.Position.Epoch, Digest: p.Digest})
	}
	return ops
}

// Snapshot names the volume as it is now, for good, and returns the position. progress is
// told the bytes hashed so far and in all. Errors: ErrReadOnly where the volume is not
// written; ErrExists; ErrBusy during a move; ErrNoMajority.
func (s *Set) Snapshot(ctx context.Context, id scstore.VolumeID, name string, progress func(done, total int64)) (scstore.Position, error) {
	at, err := s.snapshot(ctx, id, name, progress)
	if err != nil {
		return at, fmt.Errorf("snapshot %q of volume %s: %w", name, id, err)
	}
	return at, nil
}

func (s *Set) snapshot(ctx context.Context, id scstore.VolumeID, name string, progress func(done, total int64)) (scstore.Position, error) {
	op := meta.Snapshot{ID: id, Name: name, Position: scstore.Position{Epoch: 1}, CreatedAtMs: time.Now().UnixMilli()}
	if err := (meta.Command{Op: op}).Validate(); err != nil { // before the work, not after it
		return scstore.Position{}, err
	}
	r, ok := s.lookup(id)
	if !ok {
		return scstore.Position{}, scstore.ErrNotFound
	}
	if err := r.lockSealing(ctx); err != nil { // no further epoch before the name
		return scstore.Position{}, err
	}
	defer r.unlockSealing()
	r.mu.Lock()
	g, first := r.group, r.facts.Head == scstore.Position{}
	busy := r.facts.Draining != nil || r.source != nil
	r.mu.Unlock()
	if busy {
		return scstore.Position{}, fmt.Errorf("a move is under way: %w", scstore.ErrBusy)
	}
	p, _, err := r.sealLocked(ctx, first, progress)
	if err != nil {
		return scstore.Position{}, err
	}
	op.Position = p.Position
	return p.Position, r.commitNamed(ctx, g, op)
}

// commitNamed puts what was sealed into the history, and names the last of it, in one
// entry: a snapshot waits for one round trip. Both may be applied twice. mu is not held.
func (r *Replica) commitNamed(ctx context.Context, g meta.GroupID, name meta.Snapshot) error {
	for {
		r.mu.Lock()
		ops, fence := r.commits(), r.facts.Fence
		r.mu.Unlock()
		if fence == 0 {
			return scstore.ErrFenced
		}
		result, err := r.set.o.Log.Propose(ctx, g, meta.Batch{Ops: append(ops, name)})
		for _, each := range result.Each {
			if refused := each.Err(); err == nil && refused != nil {
				err = refused
			}
		}
		if len(result.Each) > 0 || !retryable(err) || ctx.Err() != nil {
			return err
		}
		pause(ctx, askInterval)
	}
}

// waitCommitted waits until a sealed epoch is in the history.
func (r *Replica) waitCommitted(ctx context.Context, at scstore.Position) error {
	return r.wait(ctx, func() (bool, error) {
		if r.facts.Fence == 0 {
			return false, scstore.ErrFenced
		}
		return !slices.ContainsFunc(r.facts.Pending, func(o Point) bool { return o.Position == at }), nil
	})
}
