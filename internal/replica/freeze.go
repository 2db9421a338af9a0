package replica

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"scstore"
	"scstore/consensus/handoff"
	"scstore/consensus/meta"
	"scstore/internal/failpoint"
)

// round seals what was written and waits until it is committed: so that the last epoch
// is small, and follows the head.
func (s *source) round() []handoff.Action {
	select {
	case <-s.led:
	case <-s.early.Done():
	}
	open := int64(0)
	for _, r := range s.volumes {
		r.mu.Lock()
		r.seals = false // from here on only rounds do
		r.mu.Unlock()
		if _, _, err := r.seal(s.early); err != nil {
			return s.failed(err)
		}
		committed := func() bool {
			r.mu.Lock()
			defer r.mu.Unlock()
			return len(r.facts.Pending) == 0
		}
		if !wait(s.early, commitPatience, committed) {
			return s.failed(fmt.Errorf("volume %s: its epochs are not committed: %w", r.id, scstore.ErrNoMajority))
		}
		n, err := r.openBytes(s.early, 2*handoff.FreezeBytes)
		if err != nil {
			return s.failed(err)
		}
		open += n
	}
	return s.core.Rounded(open, s.set.now())
}

// drain is the freeze: no further request is read, and what was read is answered.
func (s *source) drain() []handoff.Action {
	ctx, cancel := context.WithTimeout(s.early, handoff.FreezeTimeout)
	defer cancel()
	for _, r := range s.volumes {
		r.mu.Lock()
		gate, device := r.gate, r.device
		r.mu.Unlock()
		if device == nil {
			return s.failed(fmt.Errorf("volume %s is not written here any more: %w", r.id, scstore.ErrFenced))
		}
		if err := gate.Pause(ctx); err != nil {
			return s.failed(fmt.Errorf("volume %s: requests do not end: %v: %w", r.id, err, scstore.ErrBusy))
		}
		device.bind(nil) // whoever does not wait at the gate is refused
	}
	s.frozen = s.set.now()
	return s.core.Drained(s.frozen)
}

// sealFinal makes the last epochs durable, and then the marks that say so. From here on
// RELEASE and the entry may leave.
func (s *source) sealFinal() []handoff.Action {
	ctx, cancel := context.WithTimeout(s.early, max(s.core.Due()-s.set.now(), time.Millisecond))
	defer cancel()
	var finals []Point
	m := releaseMsg{ID: s.id, Group: s.group}
	s.mu.Lock()
	ready := s.news.ready
	s.mu.Unlock()
	for i, r := range s.volumes {
		final, err := s.lastOf(ctx, r)
		if err != nil {
			return s.failed(err)
		}
		v := releaseVolume{ID: r.id, Fence: s.fences[i], Final: final, From: ready[i]}
		v.Final.Complete = false
		r.mu.Lock()
		v.SizeBytes = r.size()
		r.mu.Unlock()
		blocks := uint64(v.SizeBytes) / scstore.BlockSize
		if ready[i] != final.Position {
			v.Changed, err = r.changed(ctx, ready[i], final.Position)
			if errors.Is(err, scstore.ErrNotFound) { // of another host, and not known here any more
				v.Changed, err = []scstore.Extent{{Count: blocks}}, nil
			}
			if err != nil {
				return s.failed(err)
			}
		}
		v.Changed = coarsen(v.Changed, blocks, MaxReleaseExtents/len(s.volumes))
		m.Volumes = append(m.Volumes, v)
		finals = append(finals, final)
	}
	s.finals, s.release = finals, m.AppendTo(nil)
	if err := handoff.CheckFinals(s.ids(), s.coreFinals()); err != nil {
		return s.failed(err)
	}
	for i, r := range s.volumes {
		if err := s.mark(i, r); err != nil {
			return s.failed(err)
		}
	}
	failpoint.Hit("source:draining") // what says so is durable, and nothing has left
	todo := s.core.Sealed(s.coreFinals(), s.set.now())
	close(s.doubt)
	return todo
}

// lastOf seals what is left of a volume and returns where its history under this host
// ends.
func (s *source) lastOf(ctx context.Context, r *Replica) (Point, error) {
	if _, _, err := r.seal(ctx); err != nil {
		return Point{}, err
	}
	r.mu.Lock()
	head, pending := r.facts.Head, slices.Clone(r.facts.Pending)
	r.mu.Unlock()
	if n := len(pending); n > 0 {
		return pending[n-1], nil
	}
	var rec meta.Record
	if err := s.set.o.Log.View(s.group, func(st *meta.State) { rec, _ = st.Get(r.id) }); err != nil {
		return Point{}, err
	}
	if rec.Head != head {
		return Point{}, fmt.Errorf("volume %s ends at %s here and at %s in the log: %w", r.id, head, rec.Head, scstore.ErrFenced)
	}
	return Point{Position: head, Parent: rec.Parent, Digest: rec.Digest}, nil
}

// mark writes down that a volume's hand-off may have left.
func (s *source) mark(i int, r *Replica) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.facts.Fence != s.fences[i] || r.facts.Fence <= r.facts.Floor {
		return fmt.Errorf("volume %s is not written under fence %d any more: %w", r.id, s.fences[i], scstore.ErrFenced)
	}
	r.facts.Draining = &Draining{ID: s.id, To: s.to, Volumes: s.ids(), Final: s.finals[i], Fence: s.fences[i]}
	if err := r.save(); err != nil {
		r.facts.Draining = nil
		return err
	}
	return nil
}

// entry is what is proposed, always the same.
func (s *source) entry() meta.HandOff {
	op := meta.HandOff{ID: s.id, To: s.to}
	for i, f := range s.finals {
		op.Volumes = append(op.Volumes, meta.Handed{ID: s.volumes[i].id, Fence: s.fences[i], Parent: f.Parent, Final: f.Position, Digest: f.Digest})
	}
	return op
}

// resume goes on under the old fence, after the marks are gone. If the fence went
// meanwhile, that is seen to at once: nobody may be answered.
func (s *source) resume() {
	s.each(func(r *Replica, now tenureNow) error {
		r.source, r.facts.Draining = nil, nil
		err := r.save() // a mark that stays is decided again after a restart, the same way
		switch {
		case r.facts.Fence == 0:
		case !now.ok || now.Fence > r.facts.Fence:
			r.lose(now.forks, now.Tenure)
		case r.v == nil: // after a restart
			v, dirty, openErr := r.openVolume()
			if openErr == nil {
				r.serve(v, dirty)
			}
			return errors.Join(err, openErr)
		default:
			r.seals = true
			r.device.bind(r.v)
			r.gate.Resume()
		}
		return err
	})
}

// serveNext goes on after Cancel, under the fence that it gave. What was sealed under
// the old one and is not in the history goes into the next epoch: nobody saw it.
func (s *source) serveNext() {
	s.each(func(r *Replica, now tenureNow) error {
		r.source, r.facts.Draining = nil, nil
		if !now.ok || now.Holder != s.set.o.Disk || now.Phase == meta.PhaseRevoked || r.facts.Fence == 0 || r.facts.Fence >= now.Fence || r.waiting(now.forks) {
			return r.save() // the review sees to it
		}
		return r.adopt(now.Fence, now.start)
	})
}

// giveUp ends the right to write. The last position stays complete here, and is served
// for reading and to other hosts.
func (s *source) giveUp() {
	s.each(func(r *Replica, _ tenureNow) error {
		r.source = nil
		if i := slices.Index(s.volumes, r); r.facts.Fence != 0 && r.facts.Fence <= s.fences[i] {
			cause := fmt.Errorf("volume %s was moved to host %s: %w", r.id, s.set.o.HostName(s.to), scstore.ErrFenced)
			r.endTenure(scstore.Hint(cause, "connect to the host that has it now"))
			return nil
		}
		r.facts.Draining = nil
		return r.save()
	})
}

// tenureNow is what the applied state says of the right to write a volume.
type tenureNow struct {
	meta.Tenure
	ok    bool             // there is such a volume
	start scstore.Position // of its fence
	forks []meta.Fork
}

func tenureIn(st *meta.State, id scstore.VolumeID) (now tenureNow) {
	now.Tenure, now.ok = st.Holder(id)
	now.start, now.forks = startOf(st, id, now.Fence), st.Forks(id)
	return now
}

// each acts on each volume, with Replica.mu held. What fails the review tries again,
// which goes by the same state.
func (s *source) each(f func(r *Replica, now tenureNow) error) {
	for _, r := range s.volumes {
		var now tenureNow
		err := s.set.o.Log.View(s.group, func(st *meta.State) { now = tenureIn(st, r.id) })
		if err == nil {
			r.mu.Lock()
			err = f(r, now)
			r.mu.Unlock()
		}
		if err != nil {
			s.blame(err)
			s.set.log.Error("hand-off: a volume stays as it is", "volume", r.id, "hand_off", s.id, "err", err)
		}
	}
}
