package sim

import (
	"time"

	"scstore/consensus/meta"
)

const electionMin, electionMax = 1 * time.Second, 3 * time.Second

// groupLog is one replicated log, seen from outside: a leader needs a majority to
// commit, what was committed is never lost, and what was not may be, or not.
type groupLog struct {
	entries []meta.Command
	leader  *host // nil while none is
	term    int
	limbo   []meta.Command // of a leader that was lost before it knew
	voting  bool           // an election is under way
}

// quorum reports whether a host reaches a majority of the voters, itself included.
func (w *World) quorum(h *host) bool {
	n := 0
	for _, other := range w.hosts {
		if other == h && h.up || other != h && w.linked(h, other) && w.linked(other, h) {
			n++
		}
	}
	return 2*n > len(w.hosts)
}

// propose sends a command to the leader. Nobody is told what becomes of it but by
// the log.
func (w *World) propose(h *host, c meta.Command) {
	if w.log.leader == nil {
		return
	}
	leader, term := w.log.leader, w.log.term
	w.send(h, leader, func() {
		if w.log.leader != leader || w.log.term != term {
			return
		}
		w.after(w.between(w.delay/2, w.delay*2), func() {
			if w.log.leader == leader && w.log.term == term && leader.up && w.quorum(leader) {
				w.commit(c)
				return
			}
			w.log.limbo = append(w.log.limbo, c)
		})
	})
}

// commit appends an entry and tells who can be told.
func (w *World) commit(c meta.Command) {
	w.log.entries = append(w.log.entries, c)
	w.check.committed(c)
	w.tell()
}

// tell is the leader's heartbeat.
func (w *World) tell() {
	n := len(w.log.entries)
	if l := w.log.leader; l != nil && l.up {
		for _, h := range w.hosts {
			w.send(l, h, func() { h.learn(n) })
		}
	}
}

// lead watches the leader and replaces one that is lost.
func (w *World) lead() {
	w.after(300*time.Millisecond, w.lead)
	l := w.log.leader
	if l != nil && l.up && w.quorum(l) {
		w.tell()
		return
	}
	w.elect()
}

func (w *World) elect() {
	if w.log.voting {
		return
	}
	w.log.voting = true
	w.after(w.between(electionMin, electionMax), func() {
		w.log.voting = false
		w.log.leader = nil
		w.log.term++
		for _, i := range w.rng.Perm(len(w.hosts)) {
			if h := w.hosts[i]; h.up && w.quorum(h) {
				w.log.leader = h
				break
			}
		}
		if w.log.leader == nil {
			return
		}
		w.say("%s leads", w.log.leader.disk)
		limbo := w.log.limbo
		w.log.limbo = nil
		for _, c := range limbo {
			if w.one(2) {
				w.commit(c)
			}
		}
		w.tell()
	})
}
