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
)

// target is a hand-off to this host. Its loop, one goroutine, drives the core.
type target struct {
	set     *Set
	id      meta.HandOffID
	group   meta.GroupID
	from    meta.DiskID
	volumes []preparedVolume // as PREPARE has them
	here    []*Replica       // those volumes
	rtt     time.Duration
	core    *handoff.Target // the loop's alone

	at []scstore.Position // whose maps are here; the loop's, all may read once prepared is closed

	early    context.Context // ends when it is decided, so that nothing is prepared any more
	stop     context.CancelCauseFunc
	prepared chan struct{} // closed when it is
	done     chan struct{} // closed when the hand-off has ended here

	proposing atomic.Int32

	mu      sync.Mutex // a leaf
	news    targetNews
	why     error // why it ended
	wake    chan struct{}
	landing chan struct{} // closed when RELEASE is here
}

// targetNews is what a loop is told.
type targetNews struct {
	release  *releaseMsg
	decision handoff.Decision
	finals   []handoff.Final
}

// answerPrepare is PREPARE at the target. It answers once everything is prepared, and
// again whenever it is asked again.
func (s *Set) answerPrepare(ctx context.Context, from meta.DiskID, request []byte) ([]byte, error) {
	m, err := parsePrepare(request)
	if err != nil {
		return nil, err
	}
	t, err := s.targetFor(ctx, from, m)
	if err != nil {
		return nil, fmt.Errorf("prepare hand-off %s: %w", m.ID, err)
	}
	select {
	case <-t.prepared:
	case <-t.done:
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.why == nil {
			return nil, fmt.Errorf("hand-off %s is decided: %w", m.ID, scstore.ErrFenced)
		}
		return nil, fmt.Errorf("prepare hand-off %s: %w", m.ID, t.why)
	case <-ctx.Done():
		return nil, fmt.Errorf("prepare hand-off %s: not yet ready: %w", m.ID, scstore.ErrBusy)
	}
	answer := readyMsg{ID: m.ID}
	for i, v := range t.volumes {
		answer.Volumes = append(answer.Volumes, readyVolume{v.ID, t.at[i]})
	}
	return answer.AppendTo(nil), nil
}

// targetFor returns the hand-off that a PREPARE is of, and begins it if it is new. The
// state says whether it is intended: a read that goes through the log has this host
// apply all up to now.
func (s *Set) targetFor(ctx context.Context, from meta.DiskID, m prepareMsg) (*target, error) {
	if !slices.Contains(s.o.Groups, m.Group) {
		return nil, fmt.Errorf("group %d: %w", m.Group, scstore.ErrNotFound)
	}
	var ids []scstore.VolumeID
	for _, v := range m.Volumes {
		ids = append(ids, v.ID)
	}
	s.moves.mu.Lock()
	t := s.moves.targets[m.ID]
	s.moves.mu.Unlock()
	if t == nil {
		intended := false
		if err := s.o.Log.Read(ctx, m.Group, func(st *meta.State) {
			intended = slices.ContainsFunc(st.Moves(), func(o meta.Move) bool {
				return o.ID == m.ID && o.From == from && o.To == s.o.Disk && slices.Equal(o.Volumes, ids)
			})
		}); err != nil {
			return nil, err
		}
		if !intended {
			return nil, fmt.Errorf("nobody intends it: %w", scstore.ErrFenced)
		}
		if s.o.Blocks.Stats().Full {
			return nil, scstore.Hint(fmt.Errorf("host %s: %w", s.o.HostName(s.o.Disk), scstore.ErrNoSpace), "free space there, or move to another host")
		}
		var err error
		if t, err = s.newTarget(from, m); err != nil {
			return nil, err
		}
	}
	if t.from != from || !slices.Equal(t.volumes, m.Volumes) {
		return nil, fmt.Errorf("it was asked for otherwise: %w", scstore.ErrInvalid)
	}
	return t, nil
}

// newTarget begins a hand-off to this host.
func (s *Set) newTarget(from meta.DiskID, m prepareMsg) (*target, error) {
	t := &target{
		set: s, id: m.ID, group: m.Group, from: from, volumes: m.Volumes, rtt: s.rtt(from),
		prepared: make(chan struct{}), done: make(chan struct{}), wake: make(chan struct{}, 1), landing: make(chan struct{}),
	}
	for _, v := range m.Volumes {
		t.here = append(t.here, s.replica(v.ID))
	}
	s.moves.mu.Lock()
	if other := s.moves.targets[m.ID]; other != nil { // of a PREPARE that came at the same time
		s.moves.mu.Unlock()
		return other, nil
	}
	t.early, t.stop = context.WithCancelCause(s.moves.ctx)
	s.moves.targets[m.ID] = t
	s.moves.mu.Unlock()
	core, todo := handoff.NewTarget(handoff.ID(m.ID), t.rtt)
	t.core = core
	err := t.claim()
	if err == nil && !s.moves.start(func(ctx context.Context) { t.run(ctx, todo) }) {
		err = fmt.Errorf("host %s is closing: %w", s.o.HostName(s.o.Disk), scstore.ErrBusy)
	}
	if err != nil {
		t.end(err)
		return nil, err
	}
	return t, nil
}

// claim makes this the hand-off of its volumes: no jump moves them from here on.
func (t *target) claim() error {
	for i, r := range t.here {
		r.mu.Lock()
		var err error
		switch {
		case r.target != nil || r.source != nil || r.facts.Draining != nil:
			err = fmt.Errorf("volume %s: another move is under way: %w", r.id, scstore.ErrBusy)
		case r.facts.Fence != 0:
			err = fmt.Errorf("volume %s is written under fence %d at host %s, which has yet to give it up: %w", r.id, r.facts.Fence, t.set.o.HostName(t.set.o.Disk), scstore.ErrBusy)
		case len(r.facts.Left) > 0:
			err = fmt.Errorf("volume %s: host %s first makes a branch of what it wrote before: %w", r.id, t.set.o.HostName(t.set.o.Disk), scstore.ErrBusy)
		case t.volumes[i].Fence < r.facts.Floor:
			err = fmt.Errorf("volume %s: fence %d: %w", r.id, t.volumes[i].Fence, scstore.ErrFenced)
		default:
			r.target = t
			r.group = t.group
			if r.facts.SizeBytes < t.volumes[i].SizeBytes {
				r.facts.SizeBytes = t.volumes[i].SizeBytes
			}
		}
		r.mu.Unlock()
		if err != nil {
			return err
		}
	}
	return nil
}

// named returns the positions of a volume that the hand-off goes on from.
func (t *target) named(id scstore.VolumeID) (list []scstore.Position) {
	for i, v := range t.volumes {
		if v.ID != id {
			continue
		}
		list = append(list, v.At)
		select {
		case <-t.prepared:
			list = append(list, t.at[i])
		default:
		}
	}
	return list
}

// answerRelease is RELEASE at the target: it is taken, and the answer says no more.
func (s *Set) answerRelease(_ context.Context, from meta.DiskID, request []byte) ([]byte, error) {
	m, err := parseRelease(request)
	if err != nil {
		return nil, err
	}
	s.moves.mu.Lock()
	t := s.moves.targets[m.ID]
	s.moves.mu.Unlock()
	if t == nil {
		return nil, nil // decided, or from before a restart: the log says the rest
	}
	if !t.fits(from, m) {
		return nil, fmt.Errorf("release of hand-off %s does not fit what was prepared: %w", m.ID, scstore.ErrInvalid)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.news.release == nil {
		t.news.release = &m
		close(t.landing)
		t.ring()
	}
	return nil, nil
}

// fits reports whether a RELEASE is of what was prepared.
func (t *target) fits(from meta.DiskID, m releaseMsg) bool {
	if from != t.from || m.Group != t.group || len(m.Volumes) != len(t.volumes) {
		return false
	}
	for i, v := range m.Volumes {
		if p := t.volumes[i]; v.ID != p.ID || v.SizeBytes != p.SizeBytes || v.Fence != p.Fence {
			return false
		}
	}
	return true
}

// note takes what the applied state says. It is called under View, and does not wait.
func (t *target) note(st *meta.State, intended []meta.Move) {
	d, finals := decision(st, t.id)
	if d == handoff.Undecided {
		if slices.ContainsFunc(intended, func(m meta.Move) bool { return m.ID == t.id }) {
			return
		}
		var ids []scstore.VolumeID
		var fences []scstore.Fence
		for _, v := range t.volumes {
			ids, fences = append(ids, v.ID), append(fences, v.Fence)
		}
		d, finals = forgotten(st, ids, fences, t.from, t.set.o.Disk)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.news.decision == handoff.Undecided {
		t.news.decision, t.news.finals = d, finals
		t.stop(fmt.Errorf("the hand-off is decided: %w", scstore.ErrFenced))
		t.ring()
	}
}

func (t *target) ring() {
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// run is the loop.
func (t *target) run(ctx context.Context, todo []handoff.Action) {
	defer t.end(nil)
	for {
		for len(todo) > 0 && ctx.Err() == nil {
			action := todo[0]
			t.set.log.Debug("hand-off", "hand_off", t.id, "action", action.String())
			todo = append(todo[1:], t.do(ctx, action)...)
		}
		if t.core.Phase() >= handoff.Owner || ctx.Err() != nil {
			return
		}
		todo = t.await(ctx)
	}
}

// await returns what to do after something happened.
func (t *target) await(ctx context.Context) []handoff.Action {
	var tick <-chan time.Time
	if due := t.core.Due(); due != 0 {
		timer := time.NewTimer(max(due-t.set.now(), 0))
		defer timer.Stop()
		tick = timer.C
	}
	select {
	case <-ctx.Done():
		return nil
	case <-tick:
		return t.core.Tick(t.set.now())
	case <-t.wake:
	}
	t.mu.Lock()
	n := t.news
	t.mu.Unlock()
	var todo []handoff.Action
	if n.release != nil && t.core.Phase() == handoff.Held && t.land(*n.release) {
		failpoint.Hit("target:released") // and is durable here; nothing was proposed
		todo = t.core.Release(n.release.finals(), t.set.now())
	}
	if n.decision != handoff.Undecided {
		todo = t.core.Applied(n.decision, n.finals) // instead of a proposal
	}
	return todo
}

// finals returns RELEASE's ends in the core's words.
func (m *releaseMsg) finals() (list []handoff.Final) {
	for _, v := range m.Volumes {
		list = append(list, handoff.Final{Volume: v.ID, Parent: v.Final.Parent, Position: v.Final.Position, Digest: v.Final.Digest})
	}
	return list
}

// do does one action and returns what follows from it.
func (t *target) do(ctx context.Context, a handoff.Action) []handoff.Action {
	switch a {
	case handoff.Prepare:
		if err := t.prepare(); err != nil {
			t.mu.Lock()
			t.why = err
			t.mu.Unlock()
			return t.core.Failed()
		}
		return t.core.Prepared()
	case handoff.SendReady:
		close(t.prepared) // whoever asks is answered
	case handoff.ProposeHandOff:
		t.propose()
	case handoff.Own:
		t.own()
	case handoff.OwnBlind:
		t.awaitRelease(ctx)
		t.own()
	case handoff.LetGo:
		t.letGo()
	case handoff.ProposeIntent, handoff.AskToPrepare, handoff.SealRound, handoff.Drain, handoff.SealFinal, handoff.SendRelease,
		handoff.ProposeCancel, handoff.ProposeDrop, handoff.Resume, handoff.ServeNext, handoff.GiveUp: // the source's
	}
	return nil
}

// prepare brings the maps of the positions that the source named, and opens the doors:
// their requests wait.
func (t *target) prepare() error {
	ctx, cancel := context.WithTimeout(t.early, handoff.PrepareTimeout)
	defer cancel()
	var at []scstore.Position
	for i, r := range t.here {
		p, err := r.partial(ctx, t.volumes[i].At, t.from)
		if err != nil {
			return err
		}
		at = append(at, p)
	}
	for i, r := range t.here {
		r.mu.Lock()
		size := r.size()
		if size == t.volumes[i].SizeBytes {
			r.hold()
		}
		r.mu.Unlock()
		if size != t.volumes[i].SizeBytes {
			return fmt.Errorf("volume %s has %d bytes here and %d at host %s: %w", r.id, size, t.volumes[i].SizeBytes, t.set.o.HostName(t.from), scstore.ErrBusy)
		}
	}
	t.at = at
	return nil
}

// land makes the last epochs of RELEASE part of the maps: what they changed is at the
// source. It reports whether the maps now show the ends. A map that is not where READY
// said is of no use: then the entry, once applied, finds this host without RELEASE.
func (t *target) land(m releaseMsg) bool {
	for i, v := range m.Volumes {
		if err := t.here[i].land(v, t.at[i]); err != nil {
			t.set.log.Warn("hand-off: RELEASE is of no use", "volume", v.ID, "hand_off", t.id, "err", err)
			return false
		}
	}
	return true
}

// land marks what RELEASE says as changed.
func (r *Replica) land(v releaseVolume, at scstore.Position) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	final := v.Final.Position
	switch {
	case v.From != at:
		return fmt.Errorf("it follows %s, and %s is here: %w", v.From, at, scstore.ErrInvalid)
	case r.table == nil || r.facts.Fence != 0 || r.jump != nil:
		return fmt.Errorf("the table changed meanwhile: %w", scstore.ErrBusy)
	case final == at || r.table.Marked(sealedTag(final)):
		return nil
	case !r.headAt(at):
		return fmt.Errorf("the map of %s is not at the head any more: %w", at, scstore.ErrNotFound)
	}
	r.facts.Jump = &JumpFacts{From: at, To: final, Map: true} // what a crash leaves of it has to go
	if err := r.save(); err != nil {
		return err
	}
	if err := r.table.MarkRemote(v.Changed, sealedTag(final)); err != nil {
		return err
	}
	if err := r.table.Sync(context.Background()); err != nil {
		return err
	}
	r.facts.Jump, r.facts.Partial = nil, final
	return r.save()
}

// awaitRelease gives a RELEASE that is on its way a moment: with it the map is here at
// once, without it the source is asked for it.
func (t *target) awaitRelease(ctx context.Context) {
	t.mu.Lock()
	finals := t.news.finals
	t.mu.Unlock()
	if t.at == nil {
		return // not even prepared
	}
	timer := time.NewTimer(max(2*t.rtt, handoff.MinProposeInterval))
	defer timer.Stop()
	select {
	case <-t.landing:
	case <-timer.C:
		return
	case <-ctx.Done():
		return
	}
	t.mu.Lock()
	m := *t.news.release
	t.mu.Unlock()
	if slices.Equal(m.finals(), finals) {
		t.land(m)
	}
}

// propose has the log decide, with RELEASE's ends: the same entry as the source's.
func (t *target) propose() {
	t.mu.Lock()
	m := *t.news.release
	t.mu.Unlock()
	op := meta.HandOff{ID: t.id, To: t.set.o.Disk}
	for _, v := range m.Volumes {
		op.Volumes = append(op.Volumes, meta.Handed{ID: v.ID, Fence: v.Fence, Parent: v.Final.Parent, Final: v.Final.Position, Digest: v.Final.Digest})
	}
	t.set.moves.some(&t.proposing, maxProposals, func(ctx context.Context) {
		ctx, cancel := context.WithTimeout(ctx, entryPatience(t.rtt))
		defer cancel()
		if _, err := t.set.o.Log.Propose(ctx, t.group, op); err != nil {
			t.set.log.Debug("hand-off: the entry was not taken", "hand_off", t.id, "err", err)
		}
		err := t.set.o.Log.View(t.group, func(st *meta.State) { t.note(st, st.Moves()) })
		if err != nil {
			t.set.log.Debug("hand-off: the state can't be read", "hand_off", t.id, "err", err)
		}
	})
}

// own begins to serve what the state says is this host's, where the map is here; of the
// rest the map is fetched first.
func (t *target) own() {
	failpoint.Hit("target:applied") // the entry, and nothing was done about it
	for _, r := range t.here {
		var now tenureNow
		err := t.set.o.Log.View(t.group, func(st *meta.State) { now = tenureIn(st, r.id) })
		r.mu.Lock()
		r.target = nil
		switch {
		case err != nil, !r.mayOwn(now):
			r.unhold(fmt.Errorf("volume %s went on to another host: %w", r.id, scstore.ErrFenced))
		case r.shows(now.start):
			err = r.adopt(now.Fence, now.start)
		default:
			r.ownBlind(now.Fence, now.start)
		}
		r.mu.Unlock()
		if err != nil {
			t.set.log.Error("hand-off: a volume is not served yet", "volume", r.id, "hand_off", t.id, "err", err)
		}
	}
}

// mayOwn reports whether the state says that this host writes the volume, under a fence
// that it does not refuse. What it wrote before and lost has to be a branch first.
// Precondition: mu is held.
func (r *Replica) mayOwn(now tenureNow) bool {
	return now.ok && now.Holder == r.set.o.Disk && now.Phase != meta.PhaseRevoked && r.facts.Fence == 0 &&
		now.Fence > r.facts.Floor && len(r.facts.Left) == 0
}

// shows reports whether the table has a map of the position. Precondition: mu is held.
func (r *Replica) shows(at scstore.Position) bool {
	return r.table != nil && (at == scstore.Position{} || r.table.Marked(sealedTag(at)))
}

// letGo gives back what was held: the table goes back to the newest position that is
// complete here, and what was made for the hand-off alone is removed.
func (t *target) letGo() {
	for _, r := range t.here {
		r.mu.Lock()
		if r.target == t {
			r.target = nil
			r.unhold(fmt.Errorf("volume %s stays at host %s: %w", r.id, t.set.o.HostName(t.from), scstore.ErrFenced))
			if err := r.takeBack(); err != nil {
				t.set.log.Warn("hand-off: what was prepared is still there", "volume", r.id, "hand_off", t.id, "err", err)
			}
		}
		r.mu.Unlock()
	}
}

// takeBack makes the newest complete position the table's head. Precondition: mu is
// held.
func (r *Replica) takeBack() error {
	if r.table == nil || r.facts.Fence != 0 || r.jump != nil || len(r.facts.Left) > 0 {
		return nil
	}
	for _, at := range slices.Backward(r.marks()) {
		if r.facts.holds(at) {
			return r.settle(at)
		}
	}
	return r.dropTable()
}

// dropTable removes what is here of a volume, none of which is complete. Precondition: mu
// is held.
func (r *Replica) dropTable() error {
	if err := r.set.o.Blocks.Delete(r.id); err != nil && !errors.Is(err, scstore.ErrNotFound) {
		return err
	}
	r.table = nil
	r.facts.Jump, r.facts.Partial, r.facts.Holds = nil, scstore.Position{}, nil
	return r.save()
}

// end forgets the hand-off.
func (t *target) end(err error) {
	m := &t.set.moves
	m.mu.Lock()
	delete(m.targets, t.id)
	m.mu.Unlock()
	for _, r := range t.here {
		r.mu.Lock()
		if r.target == t {
			r.target = nil
			r.unhold(fmt.Errorf("the hand-off of volume %s has ended: %w", r.id, scstore.ErrFenced))
		}
		r.mu.Unlock()
	}
	t.mu.Lock()
	if t.why == nil {
		t.why = err
	}
	t.mu.Unlock()
	t.stop(errors.New("the hand-off has ended"))
	close(t.done)
	if m.ctx.Err() != nil {
		return
	}
	var ids []scstore.VolumeID
	for _, v := range t.volumes {
		ids = append(ids, v.ID)
	}
	t.set.review(t.group, ids) // what was left to it
}
