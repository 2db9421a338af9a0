package replica

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"scstore"
	"scstore/consensus/handoff"
	"scstore/consensus/meta"
	"scstore/internal/failpoint"
	"scstore/propagate/quicnet"
)

// source is a hand-off away from this host. Its loop, one goroutine, drives the core
// and does what it asks for, in order; what takes long, or has to go on meanwhile, is
// sent from goroutines of its own, and only what was applied moves a hand-off on that is
// in doubt.
type source struct {
	set     *Set
	id      meta.HandOffID
	group   meta.GroupID
	to      meta.DiskID
	volumes []*Replica // by rising id
	rtt     time.Duration
	core    *handoff.Source // the loop's alone

	// The loop's; what is written before begin, all may read.
	fences  []scstore.Fence // of the volumes, under which the hand-off is
	at      []scstore.Position
	finals  []Point
	release []byte        // RELEASE, once it is sealed
	led     chan struct{} // closed when the leader is near, or does not come
	frozen  time.Duration // the last acknowledgement was before

	early context.Context // ends when the hand-off is to be taken back, as far as it can be
	stop  context.CancelCauseFunc
	doubt chan struct{} // closed when it is in doubt
	done  chan struct{} // closed when it has ended

	preparing, proposing, cancelling, sending atomic.Int32 // under way

	mu   sync.Mutex // a leaf
	news sourceNews
	why  error // what kept the last attempt of something
	wake chan struct{}
}

// sourceNews is what a loop is told.
type sourceNews struct {
	intended  bool
	ready     []scstore.Position // by volume, once the target is
	failed    bool
	forgotten bool // the log says that it knows of no such hand-off
	decision  handoff.Decision
	finals    []handoff.Final // of the decision
	at        time.Duration   // when it was applied here
}

func (s *Set) newSource(id meta.HandOffID, g meta.GroupID, to meta.DiskID, volumes []*Replica) *source {
	src := &source{
		set: s, id: id, group: g, to: to, volumes: volumes, rtt: s.rtt(to),
		led: make(chan struct{}), doubt: make(chan struct{}), done: make(chan struct{}), wake: make(chan struct{}, 1),
	}
	src.early, src.stop = context.WithCancelCause(s.moves.ctx)
	return src
}

// begin starts the loop. It reports false if the Set is closing.
func (s *source) begin(core *handoff.Source, todo []handoff.Action) bool {
	s.core = core
	m := &s.set.moves
	m.mu.Lock()
	m.sources[s.id] = s
	m.mu.Unlock()
	if m.start(func(ctx context.Context) { s.run(ctx, todo) }) {
		return true
	}
	s.end()
	return false
}

// named returns the positions of a volume that the hand-off goes on from.
func (s *source) named(id scstore.VolumeID) (list []scstore.Position) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, r := range s.volumes {
		if r.id != id {
			continue
		}
		if i < len(s.at) {
			list = append(list, s.at[i])
		}
		if i < len(s.news.ready) {
			list = append(list, s.news.ready[i])
		}
	}
	return list
}

// patience is how long one proposal of the intent is waited for: then another is made.
func (s *source) patience() time.Duration { return max(4*s.rtt, handoff.MinCancelAfter) }

// ids returns the volumes' ids.
func (s *source) ids() (list []scstore.VolumeID) {
	for _, r := range s.volumes {
		list = append(list, r.id)
	}
	return list
}

// coreFinals returns the finals in the core's words.
func (s *source) coreFinals() (list []handoff.Final) {
	for i, f := range s.finals {
		list = append(list, handoff.Final{Volume: s.volumes[i].id, Parent: f.Parent, Position: f.Position, Digest: f.Digest})
	}
	return list
}

// note takes what the applied state says. It is called under View, and does not wait.
func (s *source) note(st *meta.State, intended []meta.Move) {
	d, finals := decision(st, s.id)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.news.decision != handoff.Undecided {
		return
	}
	pending := slices.ContainsFunc(intended, func(m meta.Move) bool { return m.ID == s.id })
	if d == handoff.Undecided && !pending && (s.news.intended || s.news.forgotten) {
		d, finals = forgotten(st, s.ids(), s.fences, s.set.o.Disk, s.to)
	}
	s.news.intended = s.news.intended || pending
	if d != handoff.Undecided {
		s.news.decision, s.news.finals, s.news.at = d, finals, s.set.now()
	}
	s.ring()
}

// look takes what the state says now, without waiting for the review.
func (s *source) look() {
	if err := s.set.o.Log.View(s.group, func(st *meta.State) { s.note(st, st.Moves()) }); err != nil {
		s.blame(err)
	}
}

func (s *source) ring() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// blame remembers why the hand-off does not get on.
func (s *source) blame(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.why = err
}

// fail asks for the hand-off to be taken back, which in doubt it can't be.
func (s *source) fail(err error) {
	s.mu.Lock()
	if !s.news.failed {
		s.news.failed, s.why = true, err
	}
	s.mu.Unlock()
	s.stop(err)
	s.ring()
}

// run is the loop.
func (s *source) run(ctx context.Context, todo []handoff.Action) {
	defer s.end()
	for {
		for len(todo) > 0 && ctx.Err() == nil {
			action := todo[0]
			s.set.log.Debug("hand-off", "hand_off", s.id, "action", action.String())
			todo = append(todo[1:], s.do(action)...)
		}
		if s.core.Ended() || ctx.Err() != nil {
			return
		}
		todo = s.await(ctx)
	}
}

// await returns what to do after something happened.
func (s *source) await(ctx context.Context) []handoff.Action {
	var tick <-chan time.Time
	if due := s.core.Due(); due != 0 {
		timer := time.NewTimer(max(due-s.set.now(), 0))
		defer timer.Stop()
		tick = timer.C
	}
	select {
	case <-ctx.Done():
		return nil
	case <-tick:
		return s.core.Tick(s.set.now())
	case <-s.wake:
	}
	s.mu.Lock()
	n := s.news
	s.mu.Unlock()
	now := s.set.now()
	if n.decision != handoff.Undecided {
		return s.core.Applied(n.decision, now)
	}
	var todo []handoff.Action
	if n.intended {
		todo = append(todo, s.core.Intended()...)
	}
	if n.ready != nil {
		todo = append(todo, s.core.TargetReady(now)...)
	}
	if n.failed {
		todo = append(todo, s.core.Failed(now)...)
	}
	return todo
}

// do does one action and returns what follows from it.
func (s *source) do(a handoff.Action) []handoff.Action {
	switch a {
	case handoff.ProposeIntent:
		s.proposeIntent()
	case handoff.AskToPrepare:
		s.askToPrepare()
	case handoff.SealRound:
		return s.round()
	case handoff.Drain:
		return s.drain()
	case handoff.SealFinal:
		return s.sealFinal()
	case handoff.SendRelease:
		s.sendRelease()
	case handoff.ProposeHandOff:
		s.propose(&s.proposing, s.entry())
	case handoff.ProposeCancel:
		s.propose(&s.cancelling, meta.Cancel{ID: s.id})
	case handoff.ProposeDrop:
		s.set.ask("drop"+s.id.String(), s.group, meta.DropIntent{ID: s.id})
	case handoff.Resume:
		s.resume()
	case handoff.ServeNext:
		s.serveNext()
	case handoff.GiveUp:
		s.giveUp()
	case handoff.Prepare, handoff.SendReady, handoff.Own, handoff.OwnBlind, handoff.LetGo: // the target's
	}
	return nil
}

// failed takes a step that can't be done.
func (s *source) failed(err error) []handoff.Action {
	if cause := context.Cause(s.early); cause != nil {
		err = cause
	}
	s.blame(err)
	return s.core.Failed(s.set.now())
}

// proposeIntent announces the hand-off. What the state refuses it refuses for good.
func (s *source) proposeIntent() {
	s.set.moves.some(&s.proposing, maxProposals, func(ctx context.Context) {
		ctx, cancel := context.WithTimeout(ctx, s.patience())
		defer cancel()
		now := time.Now().UnixMilli()
		move := meta.Move{ID: s.id, From: s.set.o.Disk, To: s.to, Volumes: s.ids(), DeadlineMs: now + intentLease.Milliseconds()}
		result, err := s.set.o.Log.Propose(ctx, s.group, meta.Intent{Move: move, NowMs: now})
		switch {
		case err == nil:
			s.look()
		case result.Code > meta.CodeOK || !retryable(err):
			s.fail(err)
		default:
			s.blame(err)
		}
	})
}

// askToPrepare sends PREPARE, and has the leader come to one of the two hosts: an entry
// that a third site leads takes twice as long, while the guest waits.
func (s *source) askToPrepare() {
	if s.at == nil && !s.nameStart() {
		return // asked again
	}
	s.set.moves.some(&s.preparing, 1, func(context.Context) {
		m := prepareMsg{ID: s.id, Group: s.group}
		for i, r := range s.volumes {
			r.mu.Lock()
			m.Volumes = append(m.Volumes, preparedVolume{ID: r.id, SizeBytes: r.size(), Fence: s.fences[i], At: s.at[i]})
			r.mu.Unlock()
		}
		b, err := s.set.o.Net.Request(s.early, s.to, quicnet.ClassRaft, KindPrepare, m.AppendTo(nil))
		var answer readyMsg
		if err == nil {
			answer, err = parseReady(b)
		}
		switch {
		case err == nil && s.takeReady(answer):
		case err == nil:
			s.fail(fmt.Errorf("host %s prepared other volumes: %w", s.set.o.HostName(s.to), scstore.ErrInvalid))
		case retryable(err):
			s.blame(fmt.Errorf("prepare host %s: %w", s.set.o.HostName(s.to), err))
		default:
			s.fail(fmt.Errorf("prepare host %s: %w", s.set.o.HostName(s.to), err))
		}
	})
}

// nameStart picks the positions whose maps the target is to have: the heads, which are
// kept while the hand-off is intended.
func (s *source) nameStart() bool {
	var at []scstore.Position
	if err := s.set.o.Log.View(s.group, func(st *meta.State) {
		for _, r := range s.volumes {
			rec, _ := st.Get(r.id)
			at = append(at, rec.Head)
		}
	}); err != nil {
		s.blame(err)
		return false
	}
	s.mu.Lock()
	s.at = at
	s.mu.Unlock()
	return s.set.moves.start(func(ctx context.Context) {
		defer close(s.led)
		ctx, cancel := context.WithTimeout(ctx, leadPatience)
		defer cancel()
		if err := s.set.o.Log.Lead(ctx, s.group, s.set.o.Disk, s.to); err != nil {
			s.set.log.Info("the leader stays where it is: the move takes longer", "group", uint64(s.group), "err", err)
		}
	})
}

// takeReady takes READY.
func (s *source) takeReady(m readyMsg) bool {
	if m.ID != s.id || len(m.Volumes) != len(s.volumes) {
		return false
	}
	var at []scstore.Position
	for i, v := range m.Volumes {
		if v.ID != s.volumes[i].id {
			return false
		}
		at = append(at, v.At)
	}
	s.mu.Lock()
	s.news.ready = at
	s.mu.Unlock()
	s.ring()
	return true
}

// propose has the log decide. What it answers decides nothing here: the state does that
// was applied.
func (s *source) propose(busy *atomic.Int32, op meta.Op) {
	s.set.moves.some(busy, maxProposals, func(ctx context.Context) {
		if busy == &s.proposing {
			failpoint.Hit("source:propose") // RELEASE may have left; Cancel is not held
		}
		ctx, cancel := context.WithTimeout(ctx, entryPatience(s.rtt))
		defer cancel()
		result, err := s.set.o.Log.Propose(ctx, s.group, op)
		switch {
		case result.Code == meta.CodeNoIntent:
			s.mu.Lock()
			s.news.forgotten = true
			s.mu.Unlock()
		case err != nil && result.Outcome == 0: // else it was decided
			s.blame(err)
		}
		s.look()
	})
}

// sendRelease sends RELEASE. The target says that it came, which decides nothing.
func (s *source) sendRelease() {
	s.set.moves.some(&s.sending, maxSends, func(ctx context.Context) {
		ctx, cancel := context.WithTimeout(ctx, sendPatience)
		defer cancel()
		if _, err := s.set.o.Net.Request(ctx, s.to, quicnet.ClassRaft, KindRelease, s.release); err != nil {
			s.blame(fmt.Errorf("release to host %s: %w", s.set.o.HostName(s.to), err))
			return
		}
		failpoint.Hit("source:released") // the target has RELEASE; the entry may have left
	})
}

// end forgets the hand-off. Taken back before the freeze, it has to let the owner seal
// again.
func (s *source) end() {
	m := &s.set.moves
	m.mu.Lock()
	delete(m.sources, s.id)
	m.mu.Unlock()
	for _, r := range s.volumes {
		r.mu.Lock()
		if r.source == s {
			r.source = nil
			r.seals = r.v != nil && r.facts.Draining == nil
		}
		r.mu.Unlock()
	}
	s.stop(errors.New("the hand-off has ended"))
	close(s.done)
	if s.set.moves.ctx.Err() == nil {
		s.set.review(s.group, s.ids()) // what was left to it
	}
}

// result waits for the end.
func (s *source) result(ctx context.Context) (MoveReport, error) {
	report := MoveReport{From: s.set.o.Disk, To: s.to, RTT: s.set.o.Net.RTT(s.to)}
	select {
	case <-s.done:
	case <-ctx.Done():
		s.fail(context.Cause(ctx))
		select {
		case <-s.done:
		case <-s.doubt:
			return report, scstore.Hint(fmt.Errorf("in doubt, %s: %w", context.Cause(ctx).Error(), scstore.ErrIndeterminate),
				"the volume waits until the log has decided, which it does by itself; see volume info")
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	why := s.why
	if why == nil {
		why = scstore.ErrBusy
	}
	switch s.core.Phase() {
	case handoff.Gone:
		report.Position, report.Pause = s.news.finals[0].Position, s.news.at-s.frozen
		report.Fence = s.fences[0] + 1
		return report, nil
	case handoff.Kept, handoff.Aborted:
		return report, scstore.Hint(fmt.Errorf("taken back: %w", why), "the volume is written here as before; try again once the cause is gone")
	case handoff.Preparing, handoff.Shrinking, handoff.Draining, handoff.Sealing, handoff.Doubt:
	}
	if s.core.Phase() == handoff.Doubt {
		return report, fmt.Errorf("this host is closing, in doubt: %w", scstore.ErrIndeterminate)
	}
	return report, fmt.Errorf("this host is closing: %w", scstore.ErrClosed)
}
