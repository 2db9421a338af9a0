package replica

import (
	"slices"

	"scstore"
	"scstore/consensus/meta"
)

// judge goes through the log and compares it with a ledger.
type judge struct {
	l       *ledger
	st      *meta.State
	begin   map[scstore.Fence]maybe // what the volume shows when a fence begins
	kept    map[scstore.Fence]bool  // the fence went on from the one before at the same host
	history []scstore.Position
	forks   map[scstore.Fence]fork
	counts  counts
}

// fork is where a promote left a fence.
type fork struct {
	owner, to meta.DiskID
	at, head  scstore.Position
	epochs    uint64 // that were committed, and left out
	left      maybe  // what the owner's guests had written
}

// counts says what a history was made of.
type counts struct{ writes, moves, promotes, losses, branches, positions int }

func (c *counts) add(o counts) {
	c.writes, c.moves, c.promotes = c.writes+o.writes, c.moves+o.moves, c.promotes+o.promotes
	c.losses, c.branches, c.positions = c.losses+o.losses, c.branches+o.branches, c.positions+o.positions
}

// judge compares what guests were told and hosts showed with the log. Nobody writes any
// more.
func (l *ledger) judge() *judge {
	j := &judge{
		l: l, st: meta.NewGroup(moveGroup), begin: map[scstore.Fence]maybe{1: {}}, kept: map[scstore.Fence]bool{},
		forks: map[scstore.Fence]fork{},
	}
	l.w.mu.Lock()
	entries := slices.Clone(l.w.entries[moveGroup])
	l.w.mu.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range entries {
		j.apply(c)
	}
	for f := range j.begin {
		j.tenancy(f)
	}
	for _, r := range l.reports {
		j.report(r)
	}
	return j
}

func (j *judge) errorf(format string, args ...any) {
	j.l.w.t.Helper()
	j.l.w.t.Errorf(format, args...)
}

// apply follows the log by one entry.
func (j *judge) apply(c meta.Command) {
	rec, _ := j.st.Get(vol)
	was, _ := j.st.Holder(vol)
	j.st.Apply(c)
	now, _ := j.st.Holder(vol)
	head, _ := j.st.Get(vol)
	if was.Phase == meta.PhaseRevoked && now.Phase != meta.PhaseRevoked {
		j.promoted(rec.Head, head.Head, now, c.Op.(meta.Promote))
		return
	}
	for _, p := range j.st.History(vol) {
		if p.Line == 0 && p.Position.Compare(rec.Head) > 0 {
			j.history = append(j.history, p.Position)
		}
	}
	if now.Fence == was.Fence || was.Fence == 0 {
		return
	}
	if now.Fence != was.Fence+1 {
		j.errorf("%T: fence %d follows %d", c.Op, now.Fence, was.Fence)
	}
	if now.Phase == meta.PhaseRevoked {
		j.forks[was.Fence] = fork{owner: was.Holder, head: head.Head, left: j.left(was.Fence)}
		return
	}
	// Handed over, or given again: not one acknowledged write is missing.
	j.begin[now.Fence] = j.l.under[was.Fence].all(j.begin[was.Fence])
	j.kept[now.Fence] = now.Holder == was.Holder
	if now.Holder != was.Holder {
		j.counts.moves++
	}
}

// left returns what was written up to the end of a fence by who served under it.
func (j *judge) left(f scstore.Fence) maybe { return j.l.under[f].all(j.begin[f]) }

// served reports whether the owner of a fence served under it, or under one that it went
// on from.
func (j *judge) served(f scstore.Fence) bool {
	for j.l.under[f] == nil && j.kept[f] {
		f--
	}
	return j.l.under[f] != nil
}

// promoted follows a forced promote: it tells the truth about what it leaves out.
func (j *judge) promoted(head, at scstore.Position, now meta.Tenure, op meta.Promote) {
	n := 0
	if at != (scstore.Position{}) {
		if n = slices.Index(j.history, at) + 1; n == 0 {
			j.errorf("the history goes on from %s, which is not in it", at)
		}
	}
	f := j.forks[now.Fence-1]
	f.to, f.at, f.epochs = now.Holder, at, uint64(len(j.history)-n)
	j.forks[now.Fence-1] = f
	if f.head != head || op.Loss.Epochs != f.epochs {
		j.errorf("the promote to fence %d says that %d epochs are lost, it is %d", now.Fence, op.Loss.Epochs, f.epochs)
	}
	j.history = j.history[:n]
	j.begin[now.Fence] = j.at(at)
	j.counts.promotes++
	if f.epochs > 0 {
		j.counts.losses++
	}
}

// at returns what the volume shows at a position.
func (j *judge) at(at scstore.Position) maybe {
	if at == (scstore.Position{}) {
		return maybe{}
	}
	p, ok := j.l.shown[at]
	if !ok { // nobody has looked
		for i := range p {
			p[i] = unread
		}
	}
	return exactly(p)
}

// tenancy compares what was shown of a fence with what its guests wrote: at its beginning,
// and at each position, which is some moment in the order of its writes.
func (j *judge) tenancy(f scstore.Fence) {
	t, begin := j.l.under[f], j.begin[f]
	if t != nil {
		j.counts.writes += len(t.writes)
		if t.begin != nil {
			if i := begin.differs(*t.begin); i >= 0 {
				j.errorf("%s began fence %d with %d in block %d, want one of %d", t.host.site, f, t.begin[i], i, begin[i])
			}
		}
	}
	n := 0
	for _, at := range j.l.positions(f) {
		if n = t.prefix(begin, n, j.l.shown[at]); n < 0 {
			j.errorf("%s shows what was never there between two writes under fence %d: %v", at, f, j.l.shown[at])
			n = 0
		}
		j.counts.positions++
	}
}

// report compares what a promote said with what it did.
func (j *judge) report(r PromoteReport) {
	f := j.forks[r.Fence-1]
	if r.Position != f.at || r.Head != f.head || r.Epochs != f.epochs || r.Owner != f.owner || r.To != f.to {
		j.errorf("a promote reports %+v, and it is %+v", r, fork{owner: f.owner, to: f.to, at: f.at, head: f.head, epochs: f.epochs})
	}
	at, head := j.at(r.Position), j.l.shown[r.Head]
	if _, seen := j.l.shown[r.Head]; !seen || r.Bytes == nil {
		return
	}
	changed := int64(0)
	for i, n := range head {
		if !at.allows(i, n) {
			changed += scstore.BlockSize
		}
	}
	if *r.Bytes < changed {
		j.errorf("a promote from %s back to %s reports %d lost bytes, it is at least %d", r.Head, r.Position, *r.Bytes, changed)
	}
}

// branches compares each fork with the branch that its owner made of what was left out.
func (j *judge) branches() {
	for f, o := range j.forks {
		rec, there := branchOf(j.st, f)
		if !there {
			if j.served(f) && apart(o.left, j.at(o.at)) {
				j.errorf("nothing is kept of what was written under fence %d beyond %s", f, o.at)
			}
			continue
		}
		j.counts.branches++
		shown := j.showsBranch(rec, o)
		if i := o.left.differs(shown); i >= 0 {
			j.errorf("the branch of fence %d shows %d in block %d, want one of %d", f, shown[i], i, o.left[i])
		}
		for i, n := range shown {
			if n == unread && j.wrote(rec.Head.Fence, i) {
				j.errorf("the branch of fence %d lacks block %d, which its owner wrote", f, i)
			}
		}
	}
}

// apart reports whether a block differs for certain.
func apart(a, b maybe) bool {
	for i := range a {
		x, y := a[i], b[i]
		if len(x) == 0 {
			x = []uint64{0}
		}
		if !slices.ContainsFunc(x, func(n uint64) bool { return b.allows(i, n) }) && !slices.ContainsFunc(y, func(n uint64) bool { return a.allows(i, n) }) {
			return true
		}
	}
	return false
}

// wrote reports whether a write of a block was acknowledged under a fence.
func (j *judge) wrote(f scstore.Fence, block int) bool {
	t := j.l.under[f]
	return t != nil && slices.ContainsFunc(t.writes, func(p written) bool { return p.sure && p.block == block })
}

// showsBranch returns what a branch shows at its owner.
func (j *judge) showsBranch(rec meta.Record, o fork) (shown picture) {
	h := j.l.w.hostOf(o.owner)
	door, err := h.set.OpenAt(j.l.w.t.Context(), rec.ID, rec.Head)
	if err != nil {
		j.errorf("the branch of fence %d: %v", rec.Fence, err)
		return shown
	}
	defer door.Release()
	return look(h, door.(*device).v.Load())
}
