package replica

import (
	"fmt"
	"slices"

	"scstore"
	"scstore/consensus/meta"
)

// reports is what this host has told a group; guarded by Set.mu.
type reports struct {
	sent []reported // that may still be on their way
}

// reported is one item of a report.
type reported struct {
	seq uint64
	id  scstore.VolumeID
	at  scstore.Position
}

// maxReported bounds what is remembered of reports that may be under way; with more, no
// report is made.
const maxReported = 16 * meta.MaxAcks

// underWay returns the positions of a volume that reports on their way name, and forgets
// those up to the latest that was applied.
func (s *Set) underWay(g meta.GroupID, id scstore.VolumeID, latest uint64) (list []scstore.Position) {
	s.mu.Lock()
	defer s.mu.Unlock()
	known := s.reports[g]
	if known == nil {
		return nil
	}
	known.sent = slices.DeleteFunc(known.sent, func(o reported) bool { return o.seq <= latest })
	for _, o := range known.sent {
		if o.id == id {
			list = append(list, o.at)
		}
	}
	return list
}

// unreported returns what this disk holds of a volume and is not said to: the newest, and
// roots. mu is held.
func (r *Replica) unreported(st *meta.State) (items []meta.AckItem) {
	if _, live := st.Holder(r.id); !live || len(r.facts.Holds) == 0 {
		return nil
	}
	var mine meta.Replica
	for _, m := range st.Replicas(r.id) {
		if m.Disk == r.set.o.Disk {
			mine = m
		}
	}
	history, roots := st.History(r.id), st.Roots(r.id)
	newest := r.newestOf(history)
	for _, at := range r.facts.Holds {
		_, known := pointAt(history, at)
		root := slices.ContainsFunc(roots, func(o meta.Root) bool { return o.Position == at })
		if known && (at == newest || root) && !slices.Contains(mine.Holds, at) {
			items = append(items, meta.AckItem{ID: r.id, Position: at, Complete: true})
		}
	}
	return items
}

// report says what this disk holds and a group does not know of: steps W8 and W9. A start's
// first report says that there is one, if nothing else: before it nothing is dropped. It
// is called under View.
func (s *Set) report(g meta.GroupID, st *meta.State, list []*Replica) {
	var items []meta.AckItem
	for _, r := range list {
		r.mu.Lock()
		if !r.unsaved {
			items = append(items, r.unreported(st)...)
		}
		r.mu.Unlock()
		if len(items) >= meta.MaxAcks {
			items = items[:meta.MaxAcks]
			break
		}
	}
	if len(items) == 0 && st.Reported(s.o.Disk)>>32 == s.o.Boot {
		return
	}
	key := fmt.Sprint("report", uint64(g))
	s.mu.Lock()
	known := s.reports[g]
	known.sent = slices.DeleteFunc(known.sent, func(o reported) bool { return o.seq <= st.Reported(s.o.Disk) })
	if at, ok := s.asked[key]; ok && s.now()-at < askInterval || len(known.sent)+len(items) > maxReported {
		s.mu.Unlock()
		return
	}
	s.seq++
	seq := s.o.Boot<<32 | s.seq
	for _, item := range items {
		known.sent = append(known.sent, reported{seq, item.ID, item.Position})
	}
	s.mu.Unlock()
	s.ask(key, g, meta.Ack{Disk: s.o.Disk, Seq: seq, Items: items})
}
