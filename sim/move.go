package sim

import (
	"slices"
	"time"

	"scstore"
	"scstore/consensus/handoff"
	"scstore/consensus/meta"
)

// mark says on disk that a host is draining: what left it, or may have.
type mark struct {
	op     meta.HandOff
	finals []handoff.Final
	maps   []content // of the finals, by block
}

// source is a hand-off away from this host.
type source struct {
	id      meta.HandOffID
	to      *host
	volumes []scstore.VolumeID
	core    *handoff.Source
	todo    []handoff.Action
	busy    bool
	frozen  bool // no request is read
	mark    *mark
	since   time.Duration // of the doubt
}

// target is a hand-off to this host.
type target struct {
	id      meta.HandOffID
	from    *host
	volumes []scstore.VolumeID
	core    *handoff.Target
	todo    []handoff.Action
	busy    bool
	release *mark // what RELEASE said
}

func (h *host) sourceOf(id scstore.VolumeID) *source {
	for _, s := range h.sources {
		if slices.Contains(s.volumes, id) {
			return s
		}
	}
	return nil
}

func (h *host) targetOf(id scstore.VolumeID) *target {
	for _, t := range h.targets {
		if slices.Contains(t.volumes, id) {
			return t
		}
	}
	return nil
}

// move begins a hand-off of volumes that this host owns.
func (h *host) move(to *host, volumes []scstore.VolumeID) {
	h.w.ids++
	s := &source{id: meta.HandOffID{0: 1, 14: byte(h.w.ids >> 8), 15: byte(h.w.ids)}, to: to, volumes: volumes}
	s.core, s.todo = handoff.NewSource(handoff.ID(s.id), 2*h.w.delay, h.w.now)
	h.sources = append(h.sources, s)
	h.w.say("%s moves %d volumes to %s: %x", h.disk, len(volumes), to.disk, s.id[14:])
	h.w.count.Moves++
	h.pumpSource(s)
}

func (h *host) pumpSource(s *source) {
	if s.busy || len(s.todo) == 0 {
		return
	}
	s.busy = true
	h.after(h.w.between(0, 15*time.Millisecond), func() {
		s.busy = false
		a := s.todo[0]
		s.todo = s.todo[1:]
		h.w.say("%s %x: %s", h.disk, s.id[14:], a)
		h.doSource(s, a)
		h.pumpSource(s)
	})
}

func (h *host) doSource(s *source, a handoff.Action) {
	switch a {
	case handoff.ProposeIntent:
		lease := int64(2000 + h.w.rng.IntN(60_000))
		h.w.propose(h, meta.Command{Op: meta.Intent{
			Move: meta.Move{ID: s.id, From: h.disk, To: s.to.disk, Volumes: s.volumes, DeadlineMs: h.w.nowMs() + lease}, NowMs: h.w.nowMs(),
		}})
	case handoff.AskToPrepare:
		id, volumes := s.id, s.volumes
		h.w.send(h, s.to, func() { s.to.prepare(h, id, volumes) })
	case handoff.SealRound:
		for _, id := range s.volumes {
			if c := h.copyOf(id); c.fence > c.floor && c.dirty() && len(c.pending) < maxPending {
				h.seal(c)
			}
		}
		s.todo = append(s.todo, s.core.Rounded(h.w.rng.Int64N(2*handoff.FreezeBytes), h.w.now)...)
	case handoff.Drain:
		for _, id := range s.volumes { // what was read is finished
			if c := h.copyOf(id); h.acknowledgesDraining(c) && h.w.one(2) {
				h.write(c, h.w.nextPut())
			}
		}
		s.frozen = true
		s.todo = append(s.todo, s.core.Drained(h.w.now)...)
	case handoff.SealFinal:
		if !h.sealFinal(s) || h.w.losing && h.w.one(15) {
			s.todo = append(s.todo, s.core.Failed(h.w.now)...)
			return
		}
		h.marks = append(h.marks, s.mark)
		s.since = h.w.now
		s.todo = append(s.todo, s.core.Sealed(s.mark.finals, h.w.now)...)
	case handoff.SendRelease:
		m := s.mark
		h.w.send(h, s.to, func() { s.to.takeRelease(m) })
	case handoff.ProposeHandOff:
		h.w.propose(h, meta.Command{Op: s.mark.op})
	case handoff.ProposeCancel:
		h.w.propose(h, meta.Command{Op: meta.Cancel{ID: s.id}})
	case handoff.ProposeDrop:
		h.w.propose(h, meta.Command{Op: meta.DropIntent{ID: s.id}})
		h.endSource(s)
	case handoff.Resume:
		h.unmark(s)
		s.frozen = false
		if s.core.Phase() == handoff.Aborted && len(s.todo) == 0 {
			h.endSource(s)
		}
	case handoff.ServeNext:
		h.serveNext(s)
	case handoff.GiveUp:
		h.giveUp(s)
	default:
		h.w.fail("an action of the other side: %s", a)
	}
}

// acknowledgesDraining is acknowledges for requests that were read before the freeze.
func (h *host) acknowledgesDraining(c *replica) bool { return c.fence > c.floor }

// sealFinal makes the last epochs of the volumes durable, and says so on disk. It
// reports false if the right to write is gone.
func (h *host) sealFinal(s *source) bool {
	m := &mark{op: meta.HandOff{ID: s.id, To: s.to.disk}}
	for _, id := range s.volumes {
		c := h.copyOf(id)
		if c.fence == 0 || c.fence <= c.floor {
			return false
		}
		r, _ := h.state.Get(id)
		handed := meta.Handed{ID: id, Fence: c.fence, Parent: r.Parent, Final: r.Head, Digest: r.Digest}
		if c.dirty() || len(c.pending) > 0 || r.Head != c.head {
			h.seal(c)
			last := c.pending[len(c.pending)-1]
			handed.Parent, handed.Final, handed.Digest = last.Parent, last.Position, last.Digest
		}
		m.op.Volumes = append(m.op.Volumes, handed)
		m.finals = append(m.finals, handoff.Final{Volume: id, Parent: handed.Parent, Position: handed.Final, Digest: handed.Digest})
		m.maps = append(m.maps, c.open.data)
		if c.open.missing != 0 {
			h.w.count.TetheredMoves++
			m.maps = nil // a map with holes is no map
		}
	}
	if len(m.maps) != len(m.finals) {
		m.maps = nil
	}
	if err := handoff.CheckFinals(s.volumes, m.finals); err != nil {
		h.w.fail("%s: %v", h.disk, err)
	}
	s.mark = m
	return true
}

func (h *host) unmark(s *source) {
	h.marks = slices.DeleteFunc(h.marks, func(m *mark) bool { return m.op.ID == s.id })
	s.mark = nil
}

func (h *host) endSource(s *source) {
	h.sources = slices.DeleteFunc(h.sources, func(o *source) bool { return o == s })
}

// serveNext goes on after Cancel, under the fence that it gave. What was sealed under
// the old one and is not in the history goes into the next epoch.
func (h *host) serveNext(s *source) {
	h.unmark(s)
	h.endSource(s)
	for _, id := range s.volumes {
		c := h.copyOf(id)
		t, ok := h.state.Holder(id)
		if !ok || t.Holder != h.disk || t.Phase == meta.PhaseRevoked || h.forkOf(c) != nil {
			continue // review sees to it
		}
		if c.fence != 0 && c.fence < t.Fence {
			c.fence, c.head, c.pending = t.Fence, h.startOf(id, t.Fence), nil
			h.w.say("%s serves %x under %d from %s on", h.disk, id[0], c.fence, c.head)
			h.w.check.adopted(h, c)
		}
	}
	h.review()
}

// giveUp ends the right to write.
func (h *host) giveUp(s *source) {
	d, _ := h.state.Decided(s.id)
	for _, v := range d.Volumes {
		if c := h.copyOf(v.ID); c.fence < v.Fence {
			c.fence, c.pending = 0, nil
		}
	}
	h.unmark(s)
	h.endSource(s)
	h.review()
}

// prepare is PREPARE at the target.
func (h *host) prepare(from *host, id meta.HandOffID, volumes []scstore.VolumeID) {
	if _, decided := h.state.Decided(id); decided || h.witness {
		return
	}
	for _, t := range h.targets {
		if t.id == id {
			t.todo = append(t.todo, t.core.Prepared()...)
			h.pumpTarget(t)
			return
		}
	}
	if slices.ContainsFunc(volumes, func(v scstore.VolumeID) bool { return h.targetOf(v) != nil }) {
		return
	}
	t := &target{id: id, from: from, volumes: volumes}
	t.core, t.todo = handoff.NewTarget(handoff.ID(id), 2*h.w.delay)
	h.targets = append(h.targets, t)
	h.pumpTarget(t)
}

// takeRelease is RELEASE at the target.
func (h *host) takeRelease(m *mark) {
	for _, t := range h.targets {
		if t.id == m.op.ID {
			t.release = m
			t.todo = append(t.todo, t.core.Release(m.finals, h.w.now)...)
			h.pumpTarget(t)
		}
	}
}

func (h *host) pumpTarget(t *target) {
	if t.busy || len(t.todo) == 0 {
		return
	}
	t.busy = true
	h.after(h.w.between(0, 15*time.Millisecond), func() {
		t.busy = false
		a := t.todo[0]
		t.todo = t.todo[1:]
		h.w.say("%s %x: %s", h.disk, t.id[14:], a)
		h.doTarget(t, a)
		h.pumpTarget(t)
	})
}

func (h *host) doTarget(t *target, a handoff.Action) {
	switch a {
	case handoff.Prepare:
		if h.w.losing && h.w.one(20) {
			t.todo = append(t.todo, t.core.Failed()...)
			return
		}
		t.todo = append(t.todo, t.core.Prepared()...)
	case handoff.SendReady:
		id := t.id
		h.w.send(h, t.from, func() { t.from.ready(id) })
	case handoff.ProposeHandOff:
		h.w.propose(h, meta.Command{Op: t.release.op})
		if h.w.o.Bug == BugTrustProposal {
			for _, v := range t.release.op.Volumes {
				if c := h.copyOf(v.ID); c.fence == 0 {
					h.adopt(c, v.Fence+1, v.Final, nil)
				}
			}
		}
	case handoff.Own, handoff.OwnBlind:
		h.endTarget(t)
		for i, id := range t.volumes {
			c := h.copyOf(id)
			tenure, ok := h.state.Holder(id)
			if !ok || tenure.Holder != h.disk || tenure.Phase == meta.PhaseRevoked || c.fence != 0 || tenure.Fence <= c.floor {
				continue
			}
			var blocks *content
			start := h.startOf(id, tenure.Fence)
			if a == handoff.Own && t.release != nil && t.release.maps != nil && t.release.finals[i].Position == start {
				blocks = &t.release.maps[i]
			}
			h.adopt(c, tenure.Fence, start, blocks)
		}
	case handoff.LetGo:
		h.endTarget(t)
		h.review()
	default:
		h.w.fail("an action of the other side: %s", a)
	}
}

func (h *host) endTarget(t *target) {
	h.targets = slices.DeleteFunc(h.targets, func(o *target) bool { return o == t })
}

func (h *host) ready(id meta.HandOffID) {
	for _, s := range h.sources {
		if s.id == id {
			s.todo = append(s.todo, s.core.TargetReady(h.w.now)...)
			h.pumpSource(s)
		}
	}
}

// decision is what the applied state says of a hand-off, in the core's words.
func (h *host) decision(id meta.HandOffID) (handoff.Decision, []handoff.Final) {
	d, ok := h.state.Decided(id)
	if !ok {
		return handoff.Undecided, nil
	}
	switch d.Outcome {
	case meta.OutcomeCancelled:
		return handoff.Cancelled, nil
	case meta.OutcomeDropped:
		return handoff.Dropped, nil
	case meta.OutcomeHandedOff:
	}
	var finals []handoff.Final
	for _, v := range d.Volumes {
		f := handoff.Final{Volume: v.ID, Position: v.Start}
		for _, p := range h.state.History(v.ID) {
			if p.Position == v.Start {
				f.Parent, f.Digest = p.Parent, p.Digest
			}
		}
		finals = append(finals, f)
	}
	return handoff.HandedOff, finals
}

// reviewMoves tells the cores what was applied.
func (h *host) reviewMoves() {
	moves := h.state.Moves()
	for _, s := range slices.Clone(h.sources) {
		if d, _ := h.decision(s.id); d != handoff.Undecided {
			if d == handoff.Dropped && !s.core.Ended() {
				h.w.count.Dropped++
				if s.core.Phase() == handoff.Doubt {
					h.w.count.DroppedInDoubt++
				}
			}
			s.todo = append(s.todo, s.core.Applied(d, h.w.now)...)
			if s.core.Phase() == handoff.Aborted && len(s.todo) == 0 {
				h.endSource(s)
			}
		} else if slices.ContainsFunc(moves, func(m meta.Move) bool { return m.ID == s.id }) {
			s.todo = append(s.todo, s.core.Intended()...)
		}
		h.pumpSource(s)
	}
	for _, t := range h.targets {
		if d, finals := h.decision(t.id); d != handoff.Undecided {
			t.todo = append(t.todo, t.core.Applied(d, finals)...)
			h.pumpTarget(t)
		}
	}
}

func (h *host) tickMoves() {
	for _, s := range slices.Clone(h.sources) {
		if due := s.core.Due(); due != 0 && h.w.now >= due {
			s.todo = append(s.todo, s.core.Tick(h.w.now)...)
			h.pumpSource(s)
		}
	}
	for _, t := range h.targets {
		if due := t.core.Due(); due != 0 && h.w.now >= due {
			t.todo = append(t.todo, t.core.Tick(h.w.now)...)
			h.pumpTarget(t)
		}
	}
	for _, m := range h.state.Moves() { // announced before a restart
		if m.From == h.disk && !slices.ContainsFunc(h.sources, func(s *source) bool { return s.id == m.ID }) {
			h.ask("drop"+m.ID.String(), meta.DropIntent{ID: m.ID})
		}
	}
}
