package replica

import (
	"slices"

	"scstore"
	"scstore/consensus/meta"
)

// caughtUp reports whether a state is not older than what was acted on before a restart: a
// report of this start was applied to it.
func (s *Set) caughtUp(st *meta.State) bool { return st.Reported(s.o.Disk)>>32 == s.o.Boot }

// needless returns the positions that this host keeps and nobody needs: no root shows
// them, this disk is not said to hold them nor may come to be said so by a report on its
// way, no other copy is brought on from them, and they are not on their way into the
// history. After a restart it returns none until a report of this start was applied: the
// state may be older than what was acted on before (I6). It is called under View; mu is
// held.
func (s *Set) needless(r *Replica, g meta.GroupID, st *meta.State) (list []scstore.Position) {
	marks := r.marks()
	if len(marks) < 2 || !s.caughtUp(st) {
		return nil
	}
	need := r.need(st)
	need = append(need, s.underWay(g, r.id, st.Reported(s.o.Disk))...)
	rec, _ := st.Get(r.id)
	for _, at := range marks {
		old := at.Compare(rec.Head) <= 0 || r.facts.Fence == 0 || at.Fence < r.facts.Fence
		if old && at != (scstore.Position{}) && !slices.Contains(need, at) {
			list = append(list, at)
		}
	}
	return list
}

// need returns what has to stay, as far as the state and the facts say. mu is held.
func (r *Replica) need(st *meta.State) []scstore.Position {
	need := append(r.local(), r.newest(st))
	for _, root := range st.Roots(r.id) {
		need = append(need, root.Position)
	}
	for _, other := range st.Replicas(r.id) {
		need = append(need, other.Complete)
		if other.Disk == r.set.o.Disk {
			need = append(append(need, other.Partial), other.Holds...)
		}
	}
	for _, f := range st.Forks(r.id) {
		if f.Waiting {
			need = append(need, f.Position)
		}
	}
	return need
}

// local returns what has to stay because of what this host is doing. mu is held.
func (r *Replica) local() []scstore.Position {
	need := append(r.keptByMoves(), r.facts.Head, r.facts.Partial)
	for _, p := range r.facts.Pending {
		need = append(need, p.Position)
	}
	if j := r.facts.Jump; j != nil {
		need = append(need, j.From, j.To)
	}
	if r.jump != nil {
		need = append(need, r.jump.from, r.jump.to)
	}
	if d := r.facts.Draining; d != nil {
		need = append(need, d.Final.Position)
	}
	for _, l := range r.facts.Left {
		need = append(need, l.Head)
	}
	return need
}

// drop takes back the marks of positions that nobody needs, unless one of them came to be
// needed here since. The newest mark stays, whatever its position: it says what the head
// shows (I7), and without it that would seem to be what the mark below shows. mu is held.
func (r *Replica) drop(list []scstore.Position) {
	marks := r.marks()
	if len(list) == 0 || len(marks) == 0 {
		return
	}
	need := append(r.local(), marks[len(marks)-1])
	need = append(need, r.set.underWay(r.group, r.id, 0)...)
	for _, at := range list {
		if slices.Contains(need, at) || !r.table.Marked(sealedTag(at)) {
			continue
		}
		held := r.facts.holds(at)
		r.facts.drop(at)
		if err := r.table.Unmark(sealedTag(at)); err != nil { // ErrBusy: a clone here is based on it
			if held {
				r.facts.hold(at)
			}
			r.set.log.Debug("a position is kept", "volume", r.id, "position", at.String(), "err", err)
		}
	}
}
