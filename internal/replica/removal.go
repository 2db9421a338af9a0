package replica

import (
	"context"
	"errors"
	"fmt"

	"scstore"
	"scstore/consensus/meta"
)

// bury removes what is here of a removed volume, then says so. mu is held.
func (s *Set) bury(v sight) {
	r := v.r
	gone, err := r.buried, error(nil)
	if !gone {
		gone, err = r.forget()
		r.buried = gone && err == nil
	}
	if err != nil {
		if !errors.Is(err, scstore.ErrBusy) { // a clone is here
			s.log.Warn("a removed volume is still here", "volume", r.id, "err", err)
		}
		return
	}
	switch {
	case !gone:
	case len(v.claims) > 0:
		s.tellReleased(r, v.claims)
	case v.forget:
		s.ask("forget"+r.id.String(), r.group, meta.Forget{ID: r.id})
	}
}

// tellReleased says of a tombstone that nothing of it is here any more. mu is held.
func (s *Set) tellReleased(r *Replica, claims []scstore.Position) {
	s.mu.Lock()
	s.seq++
	seq := s.o.Boot<<32 | s.seq
	s.mu.Unlock()
	s.ask("release"+r.id.String(), r.group, meta.Release{Disk: s.o.Disk, Seq: seq, ID: r.id, Position: claims[0]})
}

// Remove waits until what this host had of a removed volume is gone. Precondition: the
// removal was applied. Errors: ctx's, ErrBusy while something here is based on it.
func (s *Set) Remove(ctx context.Context, id scstore.VolumeID) error {
	r, ok := s.lookup(id)
	if !ok {
		return nil
	}
	g, err := s.groupOf(id)
	if err != nil {
		return err
	}
	s.review(g, []scstore.VolumeID{id})
	err = r.wait(ctx, func() (bool, error) { return r.table == nil && r.facts.Fence == 0, nil })
	if err != nil {
		return fmt.Errorf("remove what is here of volume %s: %w", id, err)
	}
	return nil
}

// forget removes what is here of a volume that was removed. It reports whether nothing
// is left. mu is held.
func (r *Replica) forget() (bool, error) {
	if r.v != nil || r.device != nil {
		r.endTenure(fmt.Errorf("volume %s was removed: %w", r.id, scstore.ErrNotFound))
	}
	r.stopJump()
	r.endReaders(fmt.Errorf("volume %s was removed: %w", r.id, scstore.ErrNotFound))
	if len(r.facts.Left) > 0 {
		return false, nil
	}
	if r.table != nil {
		if err := r.set.o.Blocks.Delete(r.id); err != nil && !errors.Is(err, scstore.ErrNotFound) {
			return false, err // ErrBusy: a clone is here
		}
		r.table = nil
	}
	r.facts.Holds, r.facts.Jump, r.facts.Partial = nil, nil, scstore.Position{}
	r.refused = 0
	r.ring()
	return true, removeFacts(r.set.o.Dir, r.id)
}
