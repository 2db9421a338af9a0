package replica

import (
	"context"
	"errors"
	"fmt"

	"scstore"
	"scstore/consensus/handoff"
	"scstore/fs/volume"
)

// WrittenSince returns how many bytes of a volume that this host writes were written since
// a position: what going back to it would lose. Errors: those of RollBack, but for a move.
func (s *Set) WrittenSince(ctx context.Context, id scstore.VolumeID, at scstore.Position) (int64, error) {
	r, err := s.known(id)
	if err != nil {
		return 0, err
	}
	r.mu.Lock()
	err = r.mayGoBack(at)
	t := r.table
	r.mu.Unlock()
	if err != nil {
		return 0, err
	}
	return volume.ChangedBytes(ctx, t, sealedTag(at), scstore.Tag{})
}

// RollBack makes a volume what it was at a position that is complete here. What changed
// since is copied back into an epoch of its own, which is in the history when RollBack
// returns, and which other copies follow like any other; positions in between stay what
// they are. Until then the volume's requests wait, or fail with ErrBusy. A crash or an
// error before the epoch is sealed leaves the volume as it was before. progress is told
// the bytes copied so far and in all.
//
// Errors: ErrNotFound; ErrReadOnly where the volume is not written; ErrAbsent if the
// position, and ErrBusy if the volume, is not all here; ErrBusy during a move; ErrFenced.
func (s *Set) RollBack(ctx context.Context, id scstore.VolumeID, at scstore.Position, progress func(done, total int64)) error {
	r, err := s.known(id)
	if err != nil {
		return err
	}
	if err := r.lockSealing(ctx); err != nil { // no other epoch until this one is committed
		return err
	}
	defer r.unlockSealing()
	sealed, err := r.goBack(ctx, at, progress)
	s.review(r.groupID(), []scstore.VolumeID{id}) // what came up meanwhile waited
	if err == nil {
		err = r.waitCommitted(ctx, sealed)
	}
	if err != nil {
		return fmt.Errorf("back to position %s: %w", at, err)
	}
	return nil
}

// known returns a volume's replica. Errors: ErrNotFound.
func (s *Set) known(id scstore.VolumeID) (*Replica, error) {
	r, ok := s.lookup(id)
	if !ok {
		return nil, fmt.Errorf("volume %s: %w", id, scstore.ErrNotFound)
	}
	return r, nil
}

// mayGoBack says why this host can't roll the volume back. mu is held.
func (r *Replica) mayGoBack(at scstore.Position) error {
	switch {
	case !r.acknowledges() || r.device == nil:
		return fmt.Errorf("it is not written here: %w", scstore.ErrReadOnly)
	case r.source != nil || r.jump != nil:
		return scstore.Hint(fmt.Errorf("a move or another rollback is under way: %w", scstore.ErrBusy), "wait for it to end")
	case r.facts.Partial != (scstore.Position{}) || !r.baseComplete():
		return scstore.Hint(fmt.Errorf("not all of it is here: %w", scstore.ErrBusy), "wait until volume info shows nothing as missing")
	case !r.facts.holds(at) || !r.table.Marked(sealedTag(at)):
		return scstore.Hint(fmt.Errorf("position %s is not here: %w", at, scstore.ErrAbsent), "move the volume to a host that has it: see volume info")
	}
	return nil
}

// goBack returns the position of the epoch that is like the one at the given position. The
// token of sealing is held.
func (r *Replica) goBack(ctx context.Context, at scstore.Position, progress func(done, total int64)) (scstore.Position, error) {
	d, err := r.stopRequests(ctx, at)
	if err != nil {
		return scstore.Position{}, err
	}
	defer r.resumeRequests(d)
	// What was written so far is an epoch of its own: what a failure goes back to.
	head, _, err := r.sealLocked(ctx, true, nil)
	if err != nil {
		return scstore.Position{}, err
	}
	j, ctx, err := r.beginRollBack(ctx, head.Position, at)
	if err != nil {
		return scstore.Position{}, err
	}
	var sealed Point
	err = r.revert(ctx, r.table, at, j.do, progress)
	if err == nil {
		sealed, _, err = r.sealLocked(ctx, true, nil)
	}
	return sealed.Position, r.endRollBack(j, head.Position, err)
}

// stopRequests has the volume's requests wait at the gate, and refuses those that don't.
func (r *Replica) stopRequests(ctx context.Context, at scstore.Position) (*device, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.mayGoBack(at); err != nil {
		return nil, err
	}
	gate, d := r.gate, r.device
	r.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, handoff.FreezeTimeout)
	err := gate.Pause(ctx)
	cancel()
	r.mu.Lock()
	if err == nil {
		err = r.mayGoBack(at)
	}
	if err != nil {
		gate.Resume()
		return nil, err
	}
	d.bind(nil)
	return d, nil
}

// resumeRequests ends what stopRequests began, if the tenure goes on.
func (r *Replica) resumeRequests(d *device) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.device == d && r.v != nil {
		d.bind(r.v)
		r.gate.Resume()
	}
}

// beginRollBack takes the right to change the table's head. From here until the next epoch
// is sealed the facts say that what is above the mark of head has to go.
func (r *Replica) beginRollBack(ctx context.Context, head, at scstore.Position) (*jump, context.Context, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.mayGoBack(at); err != nil {
		return nil, nil, err
	}
	r.facts.Jump = &JumpFacts{From: head}
	if err := r.save(); err != nil {
		r.facts.Jump = nil
		return nil, nil, err
	}
	j, ctx := r.beginJump(ctx, head, at)
	return j, ctx, nil
}

// endRollBack gives the right back. Unless the epoch was sealed, the table's head goes back
// to where it was; if that fails the volume can't be written to until a restart, which does
// it first.
func (r *Replica) endRollBack(j *jump, head scstore.Position, err error) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.endJump(j)
	if err == nil || r.facts.Head != head || r.facts.Jump == nil || r.facts.Fence == 0 {
		return err
	}
	if failed := r.undoRollBack(); failed != nil {
		err = scstore.Hint(errors.Join(err, failed), "restart this host: the volume is then as it was before the rollback")
		r.set.log.Error("a rollback failed, and the volume is not served until a restart", "volume", r.id, "err", err)
		r.dropDevice(err)
	}
	return err
}

// undoRollBack has the table's head go back to where a rollback began. The facts say so
// before anything is written above it: else the next start would take that back, too. mu is
// held.
func (r *Replica) undoRollBack() error {
	if err := r.settleToWrite(r.facts.Head); err != nil {
		return err
	}
	r.facts.Jump = nil
	return r.save()
}
