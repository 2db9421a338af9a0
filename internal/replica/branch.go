package replica

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"time"

	"scstore"
	"scstore/consensus/meta"
	"scstore/fs/volume"
)

const branchRetry = 5 * time.Second // after a branch could not be made

// waiting reports whether somebody waits for what this host has beyond a fork, of the
// fence it writes under or a later one. Precondition: mu is held.
func (r *Replica) waiting(forks []meta.Fork) bool {
	return slices.ContainsFunc(forks, func(f meta.Fork) bool {
		return f.Waiting && f.Owner == r.set.o.Disk && f.Fence >= r.facts.Fence
	})
}

// lost ends a tenure whose fence is gone without a hand-off of ours: with what was
// written kept, if a promote took it. Precondition: mu is held.
func (r *Replica) lost(st *meta.State, t meta.Tenure) { r.lose(st.Forks(r.id), t) }

func (r *Replica) lose(forks []meta.Fork, t meta.Tenure) {
	cause := scstore.Hint(fmt.Errorf("volume %s: %w", r.id, &volume.FencedError{Held: r.facts.Fence, Current: t.Fence}),
		"connect to the host that has it now; what was not taken over stays here as a branch")
	if r.v != nil {
		r.v.Revoke(max(t.Fence, r.facts.Fence+1)) // from here on nothing is acknowledged
	}
	var err error
	if r.facts.Jump != nil { // a rollback is under way: what it has copied so far goes
		r.stopJump()
		err = r.settle(r.facts.Head)
	}
	if err == nil && r.waiting(forks) {
		err = r.surrender()
	}
	if err != nil { // the review tries again
		r.set.log.Error("what was written under a lost fence can't be kept yet", "volume", r.id, "fence", uint64(r.facts.Fence), "err", err)
		return
	}
	r.endTenure(cause)
}

// surrender keeps what was written under a fence that was revoked: what is open becomes
// an epoch that nobody will commit. Precondition: mu is held, and the volume is revoked.
func (r *Replica) surrender() error {
	fence, head := r.facts.Fence, r.facts.Head
	if r.v != nil {
		// A seal takes the turn of every write that is under way, and fails at the fence:
		// after it the table has all that was acknowledged.
		if _, err := r.v.Seal(context.Background(), nil); err != nil && !errors.Is(err, scstore.ErrFenced) {
			return err
		}
		if at := r.v.Head(); at.Compare(head) > 0 {
			head = at
		}
	}
	if r.table == nil {
		return nil // nothing was ever here
	}
	left := Leftover{Fence: fence, Head: scstore.Position{Fence: fence, Epoch: head.Epoch + 1}}
	tag := sealedTag(left.Head)
	if r.table.Marked(tag) { // of an attempt that failed
		if err := r.table.Unmark(tag); err != nil {
			return err
		}
	}
	if err := r.table.Mark(tag); err != nil {
		return err
	}
	if err := r.table.Sync(context.Background()); err != nil {
		return err
	}
	if _, err := rand.Read(left.Branch[:]); err != nil {
		return err
	}
	old := r.facts
	r.facts.Left = append(slices.Clone(r.facts.Left), left)
	r.facts.Head = left.Head
	if err := r.save(); err != nil {
		r.facts = old
		return err
	}
	r.set.log.Warn("the right to write was lost to a promote: what was written here is kept", "volume", r.id, "fence", uint64(fence), "at", left.Head.String())
	return nil
}

// reviewForks notes what has to be seen to about forks, and when heads were applied. It is
// called under View and does not wait. Precondition: mu is held.
func (r *Replica) reviewForks(st *meta.State, _ meta.Tenure) {
	rec, ok := st.Get(r.id)
	if !ok {
		return
	}
	r.noteHead(rec.Head, !r.set.caughtUp(st))
	r.moving.reports = rec.Phase != meta.PhaseRevoked && (len(r.facts.Left) > 0 || slices.ContainsFunc(st.Forks(r.id), func(f meta.Fork) bool {
		return f.Waiting && f.Owner == r.set.o.Disk && (r.facts.Fence == 0 || r.facts.Fence > f.Fence)
	}))
}

// tickForks answers who waits for what this host has beyond a fork, one volume at a time
// in the background: a branch has to be copied first.
func (s *Set) tickForks(all []*Replica) {
	for _, r := range all {
		r.mu.Lock()
		due := r.moving.reports && !r.moving.settling && s.now() >= r.moving.retryAt
		g := r.group
		if due {
			r.moving.settling = s.moves.start(func(ctx context.Context) { r.settleForks(ctx, g) })
		}
		r.mu.Unlock()
	}
}

// settleForks reports what there is to be reported, once.
func (r *Replica) settleForks(ctx context.Context, g meta.GroupID) {
	defer func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.moving.settling = false
	}()
	var f forks
	current := false
	if err := r.set.o.Log.View(g, func(st *meta.State) { f, current = forksIn(st, r.id), r.set.caughtUp(st) }); err != nil {
		return
	}
	if !current || f.rec.Phase == meta.PhaseRevoked { // an older state knows of no fork: nobody would seem to wait
		return
	}
	r.mu.Lock()
	left, fence := slices.Clone(r.facts.Left), r.facts.Fence
	r.mu.Unlock()
	for _, l := range left {
		if err := r.settleLeft(ctx, g, l, f); err != nil && ctx.Err() == nil {
			r.set.log.Error("what was written under a lost fence is not a branch yet", "volume", r.id, "fence", uint64(l.Fence), "err", err)
			r.mu.Lock()
			r.moving.retryAt = r.set.now() + branchRetry
			r.mu.Unlock()
			return
		}
	}
	r.mu.Lock()
	settled := len(left) > 0 && len(r.facts.Left) == 0
	r.mu.Unlock()
	if settled { // what waited for it goes on: no entry need follow that would have it looked at
		r.set.review(g, []scstore.VolumeID{r.id})
	}
	for _, o := range f.list {
		mine := slices.ContainsFunc(left, func(l Leftover) bool { return f.of(l, r.set.o.Disk) == o })
		if o.Waiting && o.Owner == r.set.o.Disk && (fence == 0 || fence > o.Fence) && !mine {
			if err := r.refuse(g, o.Fence); err != nil { // else a restart might write under it, and nobody would wait for that
				return
			}
			r.set.ask(fmt.Sprint("branch", r.id, o.Fence), g, meta.ReportNoBranch{ID: r.id, Fence: o.Fence, Disk: r.set.o.Disk})
		}
	}
}

// forks is what the applied state says of them.
type forks struct {
	rec      meta.Record
	list     []meta.Fork
	history  []meta.Point
	roots    []scstore.Position
	branches []scstore.VolumeID
}

func forksIn(st *meta.State, id scstore.VolumeID) (f forks) {
	f.rec, _ = st.Get(id)
	f.list, f.history = st.Forks(id), st.History(id)
	for _, o := range st.Roots(id) {
		f.roots = append(f.roots, o.Position)
	}
	for _, b := range st.Branches(id) {
		f.branches = append(f.branches, b.ID)
	}
	return f
}

// of returns the fork that waits for a leftover, zero for none.
func (f *forks) of(l Leftover, disk meta.DiskID) meta.Fork {
	for _, o := range f.list {
		if o.Waiting && o.Owner == disk && o.Fence >= l.Fence {
			return o
		}
	}
	return meta.Fork{}
}

// settleLeft makes a branch of a leftover, or forgets it: because it is one now, because
// it holds nothing beyond the fork, or because nobody waits for it any more.
func (r *Replica) settleLeft(ctx context.Context, g meta.GroupID, l Leftover, f forks) error {
	fork := f.of(l, r.set.o.Disk)
	switch {
	case slices.Contains(f.branches, l.Branch):
		return r.forgetLeft(l, f)
	case fork == (meta.Fork{}):
		if err := r.dropBranch(l); err != nil {
			return err
		}
		return r.forgetLeft(l, f)
	}
	from := r.before(f.history, fork.Position, l.Head)
	extents, err := r.changed(ctx, from, l.Head)
	if err != nil {
		return err
	}
	if len(extents) == 0 || l.Head.Compare(fork.Position) <= 0 {
		r.set.ask(fmt.Sprint("branch", r.id, fork.Fence), g, meta.ReportNoBranch{ID: r.id, Fence: fork.Fence, Disk: r.set.o.Disk})
		return nil // forgotten once that is applied
	}
	digest, err := r.branchDigest(ctx, from, l.Head)
	if err == nil {
		err = r.copyBranch(ctx, g, l, from, extents)
	}
	if err != nil {
		return fmt.Errorf("branch %s: %w", l.Branch, err)
	}
	r.set.ask(fmt.Sprint("branch", r.id, fork.Fence), g, meta.RegisterBranch{
		ID: r.id, Branch: l.Branch, Fence: fork.Fence, Fork: fork.Position, Head: l.Head,
		Digest: digest, Bytes: int64(countBlocks(extents)) * scstore.BlockSize, Disk: r.set.o.Disk, CreatedAtMs: time.Now().UnixMilli(),
	})
	return nil
}

// before returns the newest position of the history up to the fork whose mark is here and
// older than the leftover's, zero for the table's beginning.
func (r *Replica) before(history []meta.Point, fork, head scstore.Position) (from scstore.Position) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, at := range r.marks() {
		if at == head {
			break
		}
		if inHistory(history, at) && at.Compare(fork) <= 0 {
			from = at
		}
	}
	return from
}

// branchDigest returns the root over what changed between two marks; zero if some of it
// is not here. It is worked out once.
func (r *Replica) branchDigest(ctx context.Context, from, to scstore.Position) (scstore.Digest, error) {
	r.mu.Lock()
	known, digest := r.moving.digestOf == to, r.moving.digest
	r.mu.Unlock()
	if known {
		return digest, nil
	}
	digest, err := r.digest(ctx, from, to)
	if errors.Is(err, scstore.ErrAbsent) {
		digest, err = scstore.Digest{}, nil
	}
	if err != nil {
		return scstore.Digest{}, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.moving.digestOf, r.moving.digest = to, digest
	return digest, nil
}

// forgetLeft ends what surrender began: the table goes back to the newest position of the
// history that it has a mark of, so that it can be a replica again.
func (r *Replica) forgetLeft(l Leftover, f forks) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	left := r.facts.Left
	r.facts.Left = slices.DeleteFunc(slices.Clone(left), func(o Leftover) bool { return o == l })
	if len(r.facts.Left) == 0 && r.facts.Fence == 0 && r.table != nil {
		if err := r.rewind(f); err != nil {
			r.facts.Left = left
			return err
		}
	}
	r.moving.reports = len(r.facts.Left) > 0
	r.ring()
	if err := r.save(); err != nil {
		return err
	}
	r.set.wakeUp()
	return nil
}

// rewind makes the newest mark of the history the table's head. What was left out stays
// where something still shows it. Precondition: mu is held.
func (r *Replica) rewind(f forks) error {
	r.facts.Holds = slices.DeleteFunc(r.facts.Holds, func(at scstore.Position) bool {
		return !inHistory(f.history, at) && !slices.Contains(f.roots, at)
	})
	for _, at := range slices.Backward(r.marks()) {
		if !inHistory(f.history, at) {
			continue
		}
		if err := r.settle(at); err != nil {
			return err
		}
		if !r.facts.holds(at) {
			r.facts.Partial = at
		}
		return nil
	}
	return r.dropTable()
}
