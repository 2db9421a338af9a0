package replica

import (
	"context"
	"fmt"
	"slices"
	"time"

	"scstore"
	"scstore/consensus/meta"
)

// answerHolds answers who promotes.
func (s *Set) answerHolds(ctx context.Context, _ meta.DiskID, request []byte) ([]byte, error) {
	q, err := parseHoldsAsk(request)
	if err != nil {
		return nil, err
	}
	m, err := s.holds(ctx, q)
	if err != nil {
		return nil, fmt.Errorf("what is held of %s: %w", q.Volume, err)
	}
	return m.AppendTo(nil), nil
}

// holds says what this host has of a volume. With a fence it first waits until it has
// applied that the fence was revoked, and refuses data under it durably: nothing that
// comes later under that fence can make the answer wrong.
func (s *Set) holds(ctx context.Context, q holdsAsk) (holdsMsg, error) {
	if !slices.Contains(s.o.Groups, q.Group) {
		return holdsMsg{}, fmt.Errorf("group %d: %w", q.Group, scstore.ErrNotFound)
	}
	if q.Fence != 0 {
		applied := func() (ok bool) {
			err := s.o.Log.View(q.Group, func(st *meta.State) {
				t, known := st.Holder(q.Volume)
				ok = known && t.Fence > q.Fence
			})
			return ok && err == nil
		}
		if !wait(ctx, time.Minute, applied) {
			return holdsMsg{}, fmt.Errorf("fence %d is not revoked here: %w", q.Fence, scstore.ErrBusy)
		}
		if err := s.replica(q.Volume).refuse(q.Group, q.Fence); err != nil {
			return holdsMsg{}, err
		}
	}
	r, ok := s.lookup(q.Volume)
	if !ok {
		return holdsMsg{}, nil
	}
	var history []meta.Point
	if err := s.o.Log.View(q.Group, func(st *meta.State) { history = st.History(q.Volume) }); err != nil {
		return holdsMsg{}, err
	}
	return r.held(ctx, history)
}

// refuse raises the floor, durably.
func (r *Replica) refuse(g meta.GroupID, f scstore.Fence) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.group = g
	if r.refused >= f {
		return nil
	}
	if r.v != nil {
		r.v.Revoke(f + 1)
	}
	r.facts.Floor = max(r.facts.Floor, f)
	return r.save()
}

// held describes what is here.
func (r *Replica) held(ctx context.Context, history []meta.Point) (holdsMsg, error) {
	r.mu.Lock()
	m := holdsMsg{Complete: slices.Clone(r.facts.Holds)}
	newest := r.newestOf(history)
	for _, at := range r.marks() {
		if newest != (scstore.Position{}) && at.Compare(newest) > 0 && at.Compare(m.Mapped) > 0 && inHistory(history, at) {
			m.Mapped = at
		}
	}
	r.mu.Unlock()
	m.Complete = slices.DeleteFunc(m.Complete, func(at scstore.Position) bool { return !inHistory(history, at) })
	if n := len(m.Complete); n > MaxHeldPositions {
		m.Complete = m.Complete[n-MaxHeldPositions:]
	}
	if m.Mapped == (scstore.Position{}) {
		return m, nil
	}
	extents, err := r.changed(ctx, newest, m.Mapped)
	if err != nil {
		return holdsMsg{}, err
	}
	m.Blocks, m.Extents = countBlocks(extents), uint64(len(extents))
	return m, nil
}
