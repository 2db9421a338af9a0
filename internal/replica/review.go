package replica

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"scstore"
	"scstore/consensus"
	"scstore/consensus/meta"
)

// follow reviews what each event of a group is about, once it was applied here.
func (s *Set) follow(ctx context.Context, g meta.GroupID, w Watcher) {
	s.review(g, nil)
	for {
		e, err := w.Next(ctx)
		if err != nil {
			if ctx.Err() == nil && !errors.Is(err, scstore.ErrClosed) {
				s.log.Error("the log is not followed any more", "group", uint64(g), "err", err)
			}
			return
		}
		if ids := concerned(e); ids == nil || len(ids) > 0 {
			s.review(g, ids)
		}
	}
}

// concerned returns the volumes that an event is about, nil for all.
func concerned(e consensus.Event) []scstore.VolumeID {
	if e.Gap {
		return nil
	}
	return volumesOf(e.Command.Op, []scstore.VolumeID{})
}

// volumesOf appends the volumes that an operation is about. It returns nil for one that
// may be about any.
func volumesOf(op meta.Op, ids []scstore.VolumeID) []scstore.VolumeID {
	switch o := op.(type) {
	case meta.Batch:
		for _, part := range o.Ops {
			if ids = volumesOf(part, ids); ids == nil {
				return nil
			}
		}
	case meta.CommitEpoch:
		ids = append(ids, o.ID)
	case meta.Ack:
		for _, item := range o.Items {
			ids = append(ids, item.ID)
		}
	case meta.Complete:
		ids = append(ids, o.ID)
	case meta.Release:
		ids = append(ids, o.ID)
	case meta.PutPin:
		ids = append(ids, o.ID)
	case meta.DropPin:
		ids = append(ids, o.ID)
	case meta.CreateVolume:
		ids = append(ids, o.ID)
	case meta.CreateImage:
		ids = append(ids, o.ID)
	case meta.OpenFence:
		ids = append(ids, o.ID)
	case meta.Snapshot:
		ids = append(ids, o.ID)
	case meta.SetPlacement:
		ids = append(ids, o.ID)
	case meta.Boot, meta.OpenSession, meta.Renew, meta.Link, meta.Unlink, meta.Rename: // of no volume's data
	default:
		return nil
	}
	return ids
}

// review has this host do what the applied state asks of it: nothing else makes it act
// on what was agreed. ids names the volumes to look at; nil stands for all.
func (s *Set) review(g meta.GroupID, ids []scstore.VolumeID) {
	var seen []sight
	err := s.o.Log.View(g, func(st *meta.State) {
		s.reviewMoves(g, st)
		for _, r := range s.inGroup(st, ids) {
			if v, ok := s.look(r, g, st); ok {
				seen = append(seen, v)
			}
		}
	})
	if err != nil {
		if !errors.Is(err, scstore.ErrClosed) {
			s.log.Error("the state can't be read", "group", uint64(g), "err", err)
		}
		return
	}
	for _, v := range seen {
		s.act(v)
	}
	if len(seen) > 0 {
		s.wakeUp()
	}
}

// inGroup returns the replicas here of those volumes of a group. A volume that is to be
// here and is not gets one.
func (s *Set) inGroup(st *meta.State, ids []scstore.VolumeID) (list []*Replica) {
	if ids == nil {
		for _, r := range s.all() {
			if _, ok := st.Get(r.id); ok {
				list = append(list, r)
			}
		}
		for _, m := range st.MissingAt(s.o.Site) {
			if r := s.replica(m.ID); !slices.Contains(list, r) {
				list = append(list, r)
			}
		}
		return list
	}
	for _, id := range ids {
		rec, ok := st.Get(id)
		if !ok {
			continue
		}
		p, _ := st.PlacementOf(id)
		r, known := s.lookup(id)
		if !known && (rec.Holder == s.o.Disk || rec.Life == meta.Live && slices.Contains(p.Sites, s.o.Site)) {
			r, known = s.replica(id), true
		}
		if known && !slices.Contains(list, r) {
			list = append(list, r)
		}
	}
	return list
}

// sight is what the state says of a volume, as far as this host has to act on it.
type sight struct {
	r       *Replica
	rec     meta.Record
	tenure  meta.Tenure
	start   scstore.Position // of the tenure
	drop    []scstore.Position
	forget  bool // nobody has anything of the tombstone any more
	claims  []scstore.Position
	renewed bool // this host got further fences in its own tenure
	waiting bool // the tombstone is waited for: somebody has yet to report what he wrote
}

// look notes what has to be done about a volume, and does at once what must not wait: the
// floor, and the end of a tenure. It is called under View.
func (s *Set) look(r *Replica, g meta.GroupID, st *meta.State) (sight, bool) {
	rec, _ := st.Get(r.id)
	r.mu.Lock()
	defer r.mu.Unlock()
	defer r.ring() // which ends its rest
	r.group = g
	v := sight{r: r, rec: rec}
	t, live := st.Holder(r.id)
	if !live {
		r.raiseFloor(rec.Fence)
		for _, m := range st.Replicas(r.id) {
			if m.Disk == s.o.Disk {
				v.claims = m.Holds
			}
		}
		v.waiting = slices.ContainsFunc(st.Forks(r.id), func(f meta.Fork) bool { return f.Waiting })
		held := slices.ContainsFunc(st.Replicas(r.id), func(m meta.Replica) bool { return len(m.Holds) > 0 })
		v.forget = !held && !v.waiting && st.Clones(r.id) == 0 && (rec.Holder == s.o.Disk || rec.Holder == "")
		r.reviewForks(st, meta.Tenure{Fence: rec.Fence})
		return v, true
	}
	v.tenure, v.start = t, startOf(st, r.id, t.Fence)
	if t.Fence > 0 {
		r.raiseFloor(t.Fence - 1)
	}
	if r.facts.Fence != 0 && r.facts.Fence < t.Fence && r.source == nil {
		if v.renewed = r.renewed(st, t); !v.renewed {
			r.lost(st, t)
		}
	}
	r.committed(rec)
	r.reviewForks(st, t)
	r.leaveOut(st)
	v.drop = s.needless(r, g, st)
	return v, true
}

// renewed reports whether all fences since the one that this host writes under are its own,
// given without anybody in between: then what it wrote stays. mu is held.
func (r *Replica) renewed(st *meta.State, t meta.Tenure) bool {
	if t.Holder != r.set.o.Disk || t.Phase == meta.PhaseRevoked || r.facts.Draining != nil {
		return false
	}
	for _, f := range st.Forks(r.id) {
		if f.Fence >= r.facts.Fence {
			return false
		}
	}
	n := scstore.Fence(0)
	for _, g := range st.Grants(r.id) {
		if g.Fence > r.facts.Fence && g.Holder == r.set.o.Disk {
			n++
		}
	}
	return n == t.Fence-r.facts.Fence
}

// raiseFloor has data under a fence and lower ones refused, durably. mu is held.
func (r *Replica) raiseFloor(f scstore.Fence) {
	if f <= r.facts.Floor {
		return
	}
	r.facts.Floor = f
	if r.v != nil {
		r.v.Revoke(f + 1)
	}
	if r.table != nil || r.facts.Fence != 0 {
		_ = r.save() // tried again with the next; until then nobody is told
	}
}

// committed forgets pending epochs that are in the history. mu is held.
func (r *Replica) committed(rec meta.Record) {
	n := len(r.facts.Pending)
	r.facts.Pending = slices.DeleteFunc(r.facts.Pending, func(p Point) bool {
		return p.Position.Compare(rec.Head) <= 0 && rec.Head.Fence >= p.Position.Fence
	})
	if len(r.facts.Pending) < n {
		r.set.wakeUp()
	}
}

// leaveOut ends readers of positions that a promote left out of the history. mu is held.
func (r *Replica) leaveOut(st *meta.State) {
	if len(r.readers) == 0 {
		return
	}
	history, roots := st.History(r.id), st.Roots(r.id)
	for d, end := range r.readers {
		p, known := pointAt(history, d.at)
		root := slices.ContainsFunc(roots, func(o meta.Root) bool { return o.Position == d.at })
		if known && p.Line != 0 && !root {
			cause := fmt.Errorf("position %s of volume %s was left out by a promote: %w", d.at, r.id, scstore.ErrFenced)
			d.ended.Store(&cause)
			end()
		}
	}
}

// act does what was seen, without the state's lock.
func (s *Set) act(v sight) {
	r := v.r
	r.mu.Lock()
	defer r.mu.Unlock()
	if v.rec.Life == meta.Tombstone {
		s.bury(v)
		return
	}
	t := v.tenure
	mine := t.Holder == s.o.Disk && t.Phase != meta.PhaseRevoked && t.Fence > r.facts.Floor &&
		(r.facts.Fence == 0 || v.renewed && r.facts.Fence < t.Fence)
	rolling := r.facts.Fence != 0 && r.jump != nil // its end has the review look again
	if mine && !rolling && r.source == nil && r.target == nil && len(r.facts.Left) == 0 && r.facts.Draining == nil {
		if r.table != nil && (v.start == scstore.Position{} || r.table.Marked(sealedTag(v.start))) {
			if err := r.adopt(t.Fence, v.start); err != nil {
				s.log.Error("a volume that this host writes is not served yet", "volume", r.id, "fence", uint64(t.Fence), "err", err)
			}
		} else if v.start != (scstore.Position{}) || !r.facts.Creating {
			r.ownBlind(t.Fence, v.start)
		}
	}
	if r.facts.Fence != 0 && r.table != nil && r.table.SizeBytes() < v.rec.SizeBytes {
		if err := r.table.Resize(v.rec.SizeBytes); err != nil {
			s.log.Error("a volume does not grow", "volume", r.id, "err", err)
		}
	}
	r.drop(v.drop)
}
