package replica

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"slices"
	"time"

	"scstore"
	"scstore/consensus/meta"
)

const (
	pinLease   = 60 * time.Second // of a jump's target; renewed after a third of it
	jumpRetry  = 500 * time.Millisecond
	maxRetry   = 30 * time.Second
	jumpEvents = 64 // that jumps may fail in a row before the pause stops growing
)

// plan is a jump to be made.
type plan struct {
	from, to scstore.Position
	size     int64 // of the volume, in bytes
	base     scstore.VolumeID
	baseAt   scstore.Position
	holders  []meta.DiskID // complete at to, the best first
}

// tick does what is due in a group, by time. Replicas at rest are passed over, unless it is
// a whole one, or one that is awake needs more of its base.
func (s *Set) tick(g meta.GroupID, awake []*Replica, whole bool) {
	type start struct {
		r *Replica
		p plan
	}
	var starts []start
	var seals, fills []*Replica
	err := s.o.Log.View(g, func(st *meta.State) {
		list := s.present(g, st, awake)
		if whole || len(list) > 0 {
			list = s.present(g, st, s.all())
		}
		wants := s.wantedBases(st, list)
		if !whole {
			list = slices.DeleteFunc(list, func(r *Replica) bool { return r.rests.Load() && r.satisfied(wants[r.id]) })
		}
		s.report(g, st, list)
		for _, r := range list {
			r.mu.Lock()
			r.rests.Store(true) // what happens from here on takes it back
			r.commitPending()
			r.catchUp()
			r.exposed = r.onlySince(st)
			if r.sealDue(st) {
				seals = append(seals, r)
			}
			if p, ok := s.plan(r, st, wants[r.id]); ok {
				starts = append(starts, start{r, p})
			}
			if r.fillDue() {
				fills = append(fills, r)
			}
			if !s.settled(r, st, wants[r.id]) {
				r.rests.Store(false)
			}
			r.mu.Unlock()
		}
	})
	if err != nil {
		return
	}
	for _, r := range seals {
		r.sealByTime()
	}
	for _, b := range starts {
		s.startJump(b.r, b.p)
	}
	for _, r := range fills {
		s.startFill(r)
	}
}

// present returns the replicas here of a group's volumes that are not tombstones.
func (s *Set) present(g meta.GroupID, st *meta.State, all []*Replica) (list []*Replica) {
	for _, r := range all {
		r.mu.Lock()
		known := r.group
		r.mu.Unlock()
		if known == g {
			if _, live := st.Holder(r.id); live {
				list = append(list, r)
			}
		}
	}
	return list
}

// satisfied reports whether all that clones here want of a replica is complete.
func (r *Replica) satisfied(wants []scstore.Position) bool {
	if len(wants) == 0 {
		return true
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.holdsAll(wants)
}

// holdsAll reports whether all of some positions are complete here. mu is held.
func (r *Replica) holdsAll(list []scstore.Position) bool {
	return !slices.ContainsFunc(list, func(at scstore.Position) bool { return !r.facts.holds(at) })
}

// settled reports whether there is nothing to do for a replica and nothing to wait for:
// then only an event of the log or something on this host changes that. It is called
// under View; mu is held.
func (s *Set) settled(r *Replica, st *meta.State, wants []scstore.Position) bool {
	f := &r.facts
	busy := r.unsaved || r.jump != nil || r.fill != nil || r.source != nil || r.target != nil || r.moving.reports
	if busy || len(f.Pending) > 0 || f.Draining != nil || f.Jump != nil || len(f.Left) > 0 || f.Partial != (scstore.Position{}) {
		return false
	}
	pinned := slices.ContainsFunc(st.Pins(r.id), func(p meta.Pin) bool { return p.Disk == s.o.Disk })
	if pinned || !r.holdsAll(wants) || len(r.unreported(st)) > 0 {
		return false
	}
	if f.Fence != 0 { // its owner
		due := r.device == nil || r.device.written.Load() != 0 && s.followed(r, st)
		return !due && (f.Head == scstore.Position{} || f.holds(f.Head))
	}
	rec, _ := st.Get(r.id)
	return rec.Head == (scstore.Position{}) || f.holds(rec.Head) || !s.placed(r, st)
}

// wantedBases returns the positions of bases that volumes here need, by base: what this
// site's placement wants here, and what this host has or is given.
func (s *Set) wantedBases(st *meta.State, list []*Replica) map[scstore.VolumeID][]scstore.Position {
	wants := map[scstore.VolumeID][]scstore.Position{}
	want := func(id scstore.VolumeID) {
		for range 64 { // the longest chain that is looked at
			rec, ok := st.Get(id)
			if !ok || rec.Base.IsZero() || rec.Kind == meta.KindBranch {
				return
			}
			if !slices.Contains(wants[rec.Base], rec.BasePosition) {
				wants[rec.Base] = append(wants[rec.Base], rec.BasePosition)
				if _, here := st.Get(rec.Base); here {
					s.join(rec.Base, st.Group())
				}
			}
			id = rec.Base
		}
	}
	for _, r := range list {
		if rec, ok := st.Get(r.id); !ok || rec.Base.IsZero() {
			continue
		}
		r.mu.Lock()
		wanted := r.table != nil || r.target != nil || r.facts.Fence != 0 || s.placed(r, st)
		r.mu.Unlock()
		if wanted {
			want(r.id)
		}
	}
	return wants
}

// join has a volume's replica known, in its group.
func (s *Set) join(id scstore.VolumeID, g meta.GroupID) {
	r := s.replica(id)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.group == 0 {
		r.group = g
	}
}

// placed reports whether the placement wants a copy on this host: one host of a site has
// it, the others leave it at that. mu is held.
func (s *Set) placed(r *Replica, st *meta.State) bool {
	p, _ := st.PlacementOf(r.id)
	if p.Mode != meta.ModeAsync && p.Mode != meta.ModeSync || !slices.Contains(p.Sites, s.o.Site) {
		return false
	}
	if len(r.facts.Holds) > 0 {
		return true
	}
	t, _ := st.Holder(r.id)
	for _, other := range st.Replicas(r.id) {
		near := other.Site == s.o.Site && other.Disk != s.o.Disk
		if near && (other.Disk == t.Holder || other.Complete != scstore.Position{}) {
			return false
		}
	}
	return true
}

// plan says whether a replica is to jump now, and where to. It puts a lease on the target
// first, and gives up those that are not needed any more. It is called under View; mu is
// held.
func (s *Set) plan(r *Replica, st *meta.State, wants []scstore.Position) (plan, bool) {
	rec, ok := st.Get(r.id)
	if !ok || rec.Life != meta.Live || rec.Head == (scstore.Position{}) || !s.caughtUp(st) { // or it would go back
		return plan{}, false
	}
	if r.facts.Fence != 0 || r.source != nil || r.target != nil || r.facts.Draining != nil || len(r.facts.Left) > 0 || r.v != nil || r.device != nil {
		return plan{}, false
	}
	t, _ := st.Holder(r.id)
	if t.Holder == s.o.Disk && t.Phase != meta.PhaseRevoked {
		return plan{}, false // the review sees to it
	}
	if r.jump != nil {
		s.keepLease(r, st)
		return plan{}, false
	}
	history := st.History(r.id)
	p := plan{from: r.newestOf(history), size: rec.SizeBytes, base: rec.Base, baseAt: rec.BasePosition}
	p.to = s.pinned(r, st, history, p.from, wants)
	if p.to == (scstore.Position{}) {
		p.to = r.nextTarget(st, history, p.from, s.placed(r, st), wants)
	}
	if p.to == (scstore.Position{}) || s.now() < r.retryAt {
		return plan{}, false
	}
	if at := r.facts.Partial; at != (scstore.Position{}) && (at == p.to || len(s.holders(st, r.id, at)) > 0 && r.failures == 0) {
		return plan{}, false // what is here in part is brought first
	}
	if r.table != nil && r.table.Marked(sealedTag(p.to)) {
		r.facts.Partial = p.to // what it lacks is filled in where it is: a branch may be based on it
		_ = r.save()           // tried again with the next
		return plan{}, false
	}
	if p.holders = s.holders(st, r.id, p.to); len(p.holders) == 0 {
		return plan{}, false
	}
	if !s.leased(r, st, p.to) {
		return plan{}, false
	}
	return p, s.hasBase(rec.Base, rec.BasePosition)
}

// nextTarget returns where a replica goes next, zero for nowhere: what clones here need of
// it; then the oldest snapshot, or base of a clone, after what it shows; then the head. mu
// is held.
func (r *Replica) nextTarget(st *meta.State, history []meta.Point, served scstore.Position, placed bool, wants []scstore.Position) scstore.Position {
	slices.SortFunc(wants, scstore.Position.Compare)
	for _, at := range wants {
		if _, known := pointAt(history, at); known && !r.facts.holds(at) {
			return at
		}
	}
	if !placed {
		return scstore.Position{}
	}
	for _, root := range st.Roots(r.id) { // rising
		keeps := root.Kind == meta.RootSnapshot || root.Kind == meta.RootClone
		if keeps && root.Position.Compare(served) > 0 && inHistory(history, root.Position) && !r.facts.holds(root.Position) {
			return root.Position
		}
	}
	if rec, _ := st.Get(r.id); !r.facts.holds(rec.Head) {
		return rec.Head
	}
	return scstore.Position{}
}

// pinID names this disk's lease on a position.
func (s *Set) pinID(id scstore.VolumeID, at scstore.Position) (pin meta.PinID) {
	h := sha256.New()
	h.Write(id[:])
	h.Write([]byte(s.o.Disk))
	h.Write(binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, uint64(at.Fence)), uint64(at.Epoch)))
	copy(pin[:], h.Sum(nil))
	return pin
}

// pinned returns the target that this disk has a lease on, and gives up leases on what is
// here already, or older than what is served here and wanted by no clone. mu is held.
func (s *Set) pinned(r *Replica, st *meta.State, history []meta.Point, served scstore.Position, wants []scstore.Position) (to scstore.Position) {
	for _, pin := range st.Pins(r.id) {
		switch {
		case pin.Kind != meta.PinJump || pin.Disk != s.o.Disk:
		case r.facts.holds(pin.Position) && inHistory(history, pin.Position) && !s.claimed(st, r.id, pin.Position):
			// The lease stays until the log knows: else others drop the position first, and can't say what changed since.
		case r.facts.holds(pin.Position) || !inHistory(history, pin.Position),
			pin.Position.Compare(served) < 0 && !slices.Contains(wants, pin.Position):
			s.ask("unpin"+r.id.String(), r.group, meta.DropPin{ID: r.id, Pin: pin.ID})
		default:
			to = pin.Position
		}
	}
	return to
}

// claimed reports whether the log knows that this disk has a position, or a later one.
func (s *Set) claimed(st *meta.State, id scstore.VolumeID, at scstore.Position) bool {
	return slices.ContainsFunc(st.Replicas(id), func(m meta.Replica) bool {
		return m.Disk == s.o.Disk && m.Complete.Compare(at) >= 0
	})
}

// leased reports whether the target stays while it is jumped to, and asks for a lease
// otherwise. A snapshot, an image and the base of a clone stay without. mu is held.
func (s *Set) leased(r *Replica, st *meta.State, to scstore.Position) bool {
	rec, _ := st.Get(r.id)
	stays := rec.Kind != meta.KindVolume
	for _, root := range st.Roots(r.id) {
		mine := root.Kind == meta.RootJump && root.Disk == s.o.Disk
		if root.Position == to && (mine || root.Kind == meta.RootSnapshot || root.Kind == meta.RootClone) {
			stays = true
		}
	}
	if !stays {
		s.putPin(r, to)
	}
	return stays
}

func (s *Set) putPin(r *Replica, at scstore.Position) {
	now := time.Now().UnixMilli()
	s.ask("pin"+r.id.String(), r.group, meta.PutPin{ID: r.id, NowMs: now, Pin: meta.Pin{
		ID: s.pinID(r.id, at), Kind: meta.PinJump, Position: at, Disk: s.o.Disk, DeadlineMs: now + pinLease.Milliseconds(),
	}})
}

// keepLease renews the lease on the target of the jump under way. mu is held.
func (s *Set) keepLease(r *Replica, st *meta.State) {
	now := time.Now().UnixMilli()
	for _, pin := range st.Pins(r.id) {
		if pin.Kind == meta.PinJump && pin.Disk == s.o.Disk && pin.Position == r.jump.to && pin.DeadlineMs-now < 2*pinLease.Milliseconds()/3 {
			s.putPin(r, pin.Position)
		}
	}
}

// holders returns who else has a position, the best to ask first: the complete ones of
// this site, the owner, the rest by distance.
func (s *Set) holders(st *meta.State, id scstore.VolumeID, at scstore.Position) []meta.DiskID {
	t, _ := st.Holder(id)
	rank := map[meta.DiskID]int{}
	for _, m := range st.Replicas(id) {
		switch {
		case m.Disk == s.o.Disk:
		case !slices.Contains(m.Holds, at):
			continue
		case m.Site == s.o.Site:
			rank[m.Disk] = 0
		case m.Disk == t.Holder:
			rank[m.Disk] = 1
		default:
			rank[m.Disk] = 2
		}
	}
	delete(rank, s.o.Disk)
	list := make([]meta.DiskID, 0, len(rank))
	for disk := range rank {
		list = append(list, disk)
	}
	slices.SortFunc(list, func(a, b meta.DiskID) int {
		return cmp.Or(cmp.Compare(rank[a], rank[b]), cmp.Compare(s.rtt(a), s.rtt(b)), cmp.Compare(a, b))
	})
	return list
}

// failed puts the next attempt off. mu is held.
func (r *Replica) failed() {
	r.failures = min(r.failures+1, jumpEvents)
	r.retryAt = r.set.now() + min(jumpRetry<<min(r.failures, 10), maxRetry)
}
