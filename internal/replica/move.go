package replica

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"scstore"
	"scstore/consensus/handoff"
	"scstore/consensus/meta"
	"scstore/propagate/quicnet"
)

const (
	// intentLease is how long an intent stands: longer than any step before the freeze
	// may take. A host that is gone for good is followed by a promote, not by its end.
	intentLease = 10 * time.Minute
	// commitPatience is how long a round of a move waits for its epoch to be committed:
	// if the log does not get on, nothing is frozen.
	commitPatience = 5 * time.Second
	// confirmPatience is how long Move waits for the new owner to say that it owns.
	confirmPatience = 10 * time.Second
	// leadPatience is how long a move waits for the group's leader to come nearer.
	leadPatience = 5 * time.Second
	// sendPatience bounds one RELEASE: one that is lost is sent again.
	sendPatience = 10 * time.Second
	// pollInterval is between two looks at what no event tells of.
	pollInterval = 20 * time.Millisecond
	// maxProposals and maxSends bound what one hand-off has under way of one kind.
	maxProposals = 4
	maxSends     = 2
	// maxHeads bounds the times of commits that are remembered of a volume.
	maxHeads = 64
)

// MoveOptions says how to move.
type MoveOptions struct {
	WaitComplete bool // until the target has all data but the last; its site must be in the placement
}

// MoveReport says how a hand-off went.
type MoveReport struct {
	From, To     meta.DiskID
	Position     scstore.Position // the last one under the old fence
	Fence        scstore.Fence    // the new one
	Pause        time.Duration    // from the last acknowledgement to the entry's apply, here
	RTT          time.Duration    // between the two hosts
	Total        time.Duration    // since Move was called
	Confirmed    bool             // the new owner has said that it owns; else only the log has
	MissingBytes int64            // not yet at the new owner, as far as it has said
}

// moves is what a Set has of hand-offs, promotes and forks.
type moves struct {
	ctx    context.Context
	cancel context.CancelFunc

	mu      sync.Mutex
	closed  bool
	wg      sync.WaitGroup
	sources map[meta.HandOffID]*source
	targets map[meta.HandOffID]*target
}

// moving is what a Replica has of them; guarded by Replica.mu.
type moving struct {
	heads    []headAt      // the latest heads, as they were applied here
	blind    scstore.Fence // for which a map is being fetched; 0 for none
	reports  bool          // somebody waits for what this host has beyond a fork
	settling bool          // and it is being seen to
	retryAt  time.Duration // not before

	digestOf scstore.Position // a leftover's head, and the root of its branch
	digest   scstore.Digest
}

// headAt is when a head was applied here.
type headAt struct {
	position scstore.Position
	at       time.Duration
	earlier  bool // it was so before at
}

// start runs f in a goroutine that closeMoves joins, unless it was called.
func (m *moves) start(f func(ctx context.Context)) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return false
	}
	m.wg.Go(func() { f(m.ctx) })
	return true
}

// some runs f as start does, unless limit calls with this counter are under way.
func (m *moves) some(busy *atomic.Int32, limit int32, f func(ctx context.Context)) {
	if busy.Add(1) > limit || !m.start(func(ctx context.Context) {
		defer busy.Add(-1)
		f(ctx)
	}) {
		busy.Add(-1)
	}
}

// entryPatience is how long one proposal of an entry that decides is waited for. They are
// made at an interval, with so many under way at most: so one that went to a leader that
// died gives its place up in time for the next, and the first one that reaches the new
// leader is not later than an interval. Its answer would decide nothing.
func entryPatience(rtt time.Duration) time.Duration {
	return maxProposals * max(2*rtt, handoff.MinProposeInterval)
}

// wait returns true once done does, false if ctx ends or the time is over before.
func wait(ctx context.Context, d time.Duration, done func() bool) bool {
	end := time.NewTimer(d)
	defer end.Stop()
	again := time.NewTicker(pollInterval)
	defer again.Stop()
	for !done() {
		select {
		case <-ctx.Done():
			return false
		case <-end.C:
			return done()
		case <-again.C:
		}
	}
	return true
}

// resumeMoves registers what other hosts ask of hand-offs and promotes, and goes on
// with the hand-offs that this host's last process left in doubt: their volumes are
// served for reading until the log has decided. Precondition: the facts are read, the
// network is not started.
func (s *Set) resumeMoves() error {
	m := &s.moves
	m.ctx, m.cancel = context.WithCancel(context.Background())
	m.sources, m.targets = map[meta.HandOffID]*source{}, map[meta.HandOffID]*target{}
	s.o.Net.Answer(KindPrepare, s.answerPrepare)
	s.o.Net.Answer(KindRelease, s.answerRelease)
	s.o.Net.Answer(KindHolds, s.answerHolds)
	s.o.Net.Answer(KindAlive, s.answerAlive)

	found := map[meta.HandOffID][]*Replica{}
	for _, r := range s.all() {
		if d := r.facts.Draining; d != nil {
			found[d.ID] = append(found[d.ID], r)
		}
	}
	for id, list := range found {
		if err := s.resume(id, list); err != nil {
			return err
		}
	}
	return nil
}

// resume goes on with one hand-off, of the volumes that are marked as draining. Not all
// of its volumes need to be: then nothing has left this host, and Cancel is as right.
func (s *Set) resume(id meta.HandOffID, list []*Replica) error {
	slices.SortFunc(list, func(a, b *Replica) int { return slices.Compare(a.id[:], b.id[:]) })
	first := list[0].facts.Draining
	src := s.newSource(id, list[0].group, first.To, list)
	for _, r := range list {
		d := r.facts.Draining
		if d.To != first.To || r.group != src.group {
			return fmt.Errorf("volume %s: hand-off %s to %s and to %s: %w", r.id, id, first.To, d.To, scstore.ErrCorrupt)
		}
		src.finals = append(src.finals, d.Final)
		src.fences = append(src.fences, d.Fence)
		r.seals, r.source = false, src
	}
	core, todo := handoff.Restarted(handoff.ID(id), src.coreFinals(), src.rtt, s.now())
	src.begin(core, todo)
	s.log.Warn("hand-off in doubt after a restart", "hand_off", id, "to", first.To, "volumes", len(list))
	return nil
}

// closeMoves ends what is under way and waits for it. What is in doubt stays so: the
// facts say it.
func (s *Set) closeMoves() {
	m := &s.moves
	m.mu.Lock()
	m.closed = true
	m.mu.Unlock()
	m.cancel()
	m.wg.Wait()
}

// reviewMoves tells the hand-offs of a group what was applied, and takes back intents of
// this host that a restart left without a source. It is called under View and does not
// wait for anything.
func (s *Set) reviewMoves(g meta.GroupID, st *meta.State) {
	intended := st.Moves()
	m := &s.moves
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, src := range m.sources {
		if src.group == g {
			src.note(st, intended)
		}
	}
	for _, t := range m.targets {
		if t.group == g {
			t.note(st, intended)
		}
	}
	for _, move := range intended {
		if move.From == s.o.Disk && m.sources[move.ID] == nil {
			s.ask("drop"+move.ID.String(), g, meta.DropIntent{ID: move.ID})
		}
	}
}

// decision is what the applied state says of a hand-off.
func decision(st *meta.State, id meta.HandOffID) (handoff.Decision, []handoff.Final) {
	d, ok := st.Decided(id)
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
		finals = append(finals, finalAt(st, v.ID, v.Start))
	}
	return handoff.HandedOff, finals
}

// finalAt returns a position of a history as the end of a fence.
func finalAt(st *meta.State, id scstore.VolumeID, at scstore.Position) handoff.Final {
	f := handoff.Final{Volume: id, Position: at}
	for _, p := range st.History(id) {
		if p.Position == at {
			f.Parent, f.Digest = p.Parent, p.Digest
		}
	}
	return f
}

// forgotten is what the grants say of a hand-off under a fence that is neither intended
// nor remembered any more: so many followed it.
func forgotten(st *meta.State, volumes []scstore.VolumeID, fences []scstore.Fence, from, to meta.DiskID) (handoff.Decision, []handoff.Final) {
	var finals []handoff.Final
	for i, id := range volumes {
		grants := st.Grants(id)
		n := slices.IndexFunc(grants, func(g meta.Grant) bool { return g.Fence == fences[i]+1 })
		switch {
		case n < 0 || grants[n].Holder != from && grants[n].Holder != to:
			return handoff.Dropped, nil
		case grants[n].Holder == from:
			return handoff.Cancelled, nil
		}
		finals = append(finals, finalAt(st, id, grants[n].Start))
	}
	return handoff.HandedOff, finals
}

// startOf returns where a fence begins, zero for a volume that nothing was committed of.
func startOf(st *meta.State, id scstore.VolumeID, f scstore.Fence) scstore.Position {
	for _, g := range st.Grants(id) {
		if g.Fence == f {
			return g.Start
		}
	}
	return scstore.Position{}
}

// keptByMoves returns the positions that a hand-off needs and no root shows: those that
// PREPARE and READY named, at both ends. Precondition: mu is held.
func (r *Replica) keptByMoves() (list []scstore.Position) {
	if r.source != nil {
		list = append(list, r.source.named(r.id)...)
	}
	if r.target != nil {
		list = append(list, r.target.named(r.id)...)
	}
	return list
}

func (r *Replica) groupID() meta.GroupID {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.group
}

// noteHead remembers when a head was applied here. What is applied again after a restart
// was so earlier, and so was what is seen first. Precondition: mu is held.
func (r *Replica) noteHead(head scstore.Position, again bool) {
	heads := r.moving.heads
	n := len(heads)
	switch {
	case again:
		heads = nil
	case n > 0 && heads[n-1].position == head:
		return
	case n >= maxHeads:
		heads = slices.Delete(heads, 0, 1)
	}
	r.moving.heads = append(heads, headAt{head, r.set.now(), again || n == 0 && head != scstore.Position{}})
}

// openBytes returns how many bytes were written after the last sealed position, as far
// as limit. Precondition: mu is not held.
func (r *Replica) openBytes(ctx context.Context, limit int64) (int64, error) {
	r.mu.Lock()
	table, head := r.table, r.facts.Head
	r.mu.Unlock()
	if table == nil {
		return 0, nil
	}
	var from scstore.Tag
	if head != (scstore.Position{}) {
		from = scstore.PositionTag(scstore.TagSealed, head)
	}
	const batch = 1024
	open := int64(0)
	for start := scstore.BlockIndex(0); ; {
		part, err := table.Changed(ctx, from, scstore.Tag{}, start, batch)
		if err != nil {
			return 0, fmt.Errorf("volume %s: what is open: %w", r.id, err)
		}
		for _, e := range part {
			open += int64(e.Count) * scstore.BlockSize
		}
		if len(part) < batch || open >= limit {
			return open, nil
		}
		start = part[len(part)-1].End()
	}
}

// Move hands a volume that this host owns to another host, exactly: the new owner sees
// the last acknowledged write, and nobody acknowledges at the same time. Before, it waits
// until everything is here that was written elsewhere; progress, in bytes, meanwhile.
//
// It returns once this host has applied the entry that decides, and the new owner has
// said that it owns, or did not answer for a while. Errors: ErrNotFound; ErrInvalid;
// ErrBusy, ErrUnreachable, ErrNoMajority and others if it was taken back, with what
// kept it: the volume is as before; ErrIndeterminate if ctx ended while it was in doubt:
// the log decides, with nobody's help; ctx's cause if it ended before.
func (s *Set) Move(ctx context.Context, id scstore.VolumeID, to meta.DiskID, o MoveOptions, progress func(done, total int64)) (MoveReport, error) {
	begun := s.now()
	if progress == nil {
		progress = func(int64, int64) {}
	}
	r, ok := s.lookup(id)
	if !ok {
		return MoveReport{}, fmt.Errorf("move %s: %w", id, scstore.ErrNotFound)
	}
	if to == s.o.Disk {
		return MoveReport{}, fmt.Errorf("move %s: it is at %s already: %w", id, s.o.HostName(to), scstore.ErrInvalid)
	}
	if err := s.owns(r); err != nil {
		return MoveReport{}, fmt.Errorf("move %s: %w", id, err)
	}
	if _, err := s.alive(ctx, to, id); err != nil {
		return MoveReport{}, fmt.Errorf("move %s: host %s: %w", id, s.o.HostName(to), err)
	}
	if err := s.waitComplete(ctx, r, progress); err != nil {
		return MoveReport{}, fmt.Errorf("move %s: wait until all of it is here: %w", id, err)
	}
	if o.WaitComplete {
		if err := s.waitThere(ctx, r, to); err != nil {
			return MoveReport{}, fmt.Errorf("move %s: wait until it is at %s: %w", id, s.o.HostName(to), err)
		}
	}
	s.commitOpen(ctx, r)
	src, err := s.newMove(r, to)
	if err != nil {
		return MoveReport{}, fmt.Errorf("move %s: %w", id, err)
	}
	report, err := src.result(ctx)
	if err != nil {
		return report, fmt.Errorf("move %s to %s: %w", id, s.o.HostName(to), err)
	}
	s.confirm(ctx, id, &report)
	report.Total = s.now() - begun
	return report, nil
}

// commitOpen puts what was written so far into the history, if the log gets on: its map then
// goes ahead of the hand-off, with digests, and not in RELEASE.
func (s *Set) commitOpen(ctx context.Context, r *Replica) {
	p, sealed, err := r.seal(ctx)
	if sealed && err == nil {
		s.wakeUp()
		ctx, cancel := context.WithTimeout(ctx, commitPatience)
		defer cancel()
		err = r.waitCommitted(ctx, p.Position)
	}
	if err != nil {
		s.log.Info("a move takes all that was written since the last commit along", "volume", r.id, "err", err)
	}
}

// owns says why this host can't move a volume. Errors: ErrBusy.
func (s *Set) owns(r *Replica) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.facts.Fence == 0 || r.facts.Fence <= r.facts.Floor:
		return scstore.Hint(fmt.Errorf("this host does not write it: %w", scstore.ErrBusy), "see volume info for the host that does")
	case r.source != nil || r.target != nil || r.facts.Draining != nil:
		return scstore.Hint(fmt.Errorf("another move is under way: %w", scstore.ErrBusy), "wait for it to end")
	case r.jump != nil:
		return scstore.Hint(fmt.Errorf("it is being rolled back: %w", scstore.ErrBusy), "wait for it to end")
	case r.v == nil:
		return fmt.Errorf("it is not open for writing: %w", scstore.ErrBusy)
	}
	return nil
}

// newMove announces a hand-off and begins it.
func (s *Set) newMove(r *Replica, to meta.DiskID) (*source, error) {
	var id meta.HandOffID
	if _, err := rand.Read(id[:]); err != nil {
		return nil, fmt.Errorf("draw an id: %w", err)
	}
	if err := s.owns(r); err != nil {
		return nil, err
	}
	src := s.newSource(id, r.groupID(), to, []*Replica{r})
	r.mu.Lock()
	if r.source != nil || r.target != nil || r.jump != nil || r.facts.Fence == 0 {
		r.mu.Unlock()
		return nil, fmt.Errorf("another move or a rollback is under way: %w", scstore.ErrBusy)
	}
	r.source = src
	src.fences = []scstore.Fence{r.facts.Fence}
	r.mu.Unlock()
	core, todo := handoff.NewSource(handoff.ID(id), src.rtt, s.now())
	if !src.begin(core, todo) {
		return nil, fmt.Errorf("this host is closing: %w", scstore.ErrClosed)
	}
	return src, nil
}

// waitThere waits until the target has all data up to what is sealed now: the rest is
// what the guest writes from here on.
func (s *Set) waitThere(ctx context.Context, r *Replica, to meta.DiskID) error {
	if err := s.brought(r, to); err != nil {
		return err
	}
	if _, _, err := r.seal(ctx); err != nil {
		return err
	}
	r.mu.Lock()
	want := r.facts.Head
	r.mu.Unlock()
	g := r.groupID()
	there := func() (ok bool) {
		err := s.o.Log.View(g, func(st *meta.State) {
			for _, held := range st.Replicas(r.id) {
				ok = ok || held.Disk == to && held.Complete.Compare(want) >= 0
			}
		})
		return ok && err == nil
	}
	for !wait(ctx, time.Minute, there) {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	return nil
}

// brought reports whether the placement brings a volume to a host by itself. Errors:
// ErrInvalid.
func (s *Set) brought(r *Replica, to meta.DiskID) error {
	var site meta.SiteID
	if err := s.o.Log.View(meta.GroupNamespace, func(st *meta.State) {
		if h, ok := st.Host(to); ok {
			site = h.Site
		}
	}); err != nil || site == "" {
		return nil // not known here: ctx bounds the wait
	}
	var p meta.Placement
	if err := s.o.Log.View(r.groupID(), func(st *meta.State) { p, _ = st.PlacementOf(r.id) }); err != nil {
		return err
	}
	if p.Mode == meta.ModeLazy || !slices.Contains(p.Sites, site) {
		return scstore.Hint(fmt.Errorf("nothing brings it to site %s: %w", site, scstore.ErrInvalid), "add the site with scstore placement set, or move without --wait-complete")
	}
	return nil
}

// confirm asks the new owner until it says that it owns, or patience ends: the log has
// decided in any case.
func (s *Set) confirm(ctx context.Context, id scstore.VolumeID, report *MoveReport) {
	ctx, cancel := context.WithTimeout(ctx, confirmPatience)
	defer cancel()
	wait(ctx, confirmPatience, func() bool {
		answer, err := s.alive(ctx, report.To, id)
		if err == nil && answer.Owns && answer.Fence >= report.Fence {
			report.Confirmed, report.MissingBytes = true, answer.MissingBytes
		}
		return report.Confirmed
	})
}

// alive asks a host whether it owns a volume. Errors: ErrUnreachable and others of the
// network.
func (s *Set) alive(ctx context.Context, disk meta.DiskID, id scstore.VolumeID) (aliveMsg, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second+4*s.rtt(disk))
	defer cancel()
	b, err := s.o.Net.Request(ctx, disk, quicnet.ClassRaft, KindAlive, aliveAsk{id}.AppendTo(nil))
	if err != nil {
		return aliveMsg{}, err
	}
	return parseAlive(b)
}

// answerAlive answers who asks whether this host owns a volume.
func (s *Set) answerAlive(ctx context.Context, _ meta.DiskID, request []byte) ([]byte, error) {
	q, err := parseAliveAsk(request)
	if err != nil {
		return nil, err
	}
	var a aliveMsg
	if r, ok := s.lookup(q.Volume); ok {
		r.mu.Lock()
		a.Fence, a.Head = r.facts.Fence, r.facts.Head
		a.Owns = a.Fence != 0 && a.Fence > r.facts.Floor && r.v != nil
		r.mu.Unlock()
		if a.Owns {
			a.MissingBytes = s.complete(r)
			if a.OpenBytes, err = r.openBytes(ctx, handoff.FreezeBytes); err != nil {
				return nil, err
			}
		}
	}
	return a.AppendTo(nil), nil
}

// retryable reports whether a request or proposal may succeed when it is made again.
func retryable(err error) bool {
	return errors.Is(err, scstore.ErrUnreachable) || errors.Is(err, scstore.ErrBusy) || errors.Is(err, scstore.ErrIndeterminate) ||
		errors.Is(err, scstore.ErrNoMajority) || errors.Is(err, context.DeadlineExceeded)
}
