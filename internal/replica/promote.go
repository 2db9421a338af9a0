package replica

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"scstore"
	"scstore/consensus/meta"
	"scstore/propagate/quicnet"
)

const (
	// promotePatience is how long who promotes waits for answers before it goes on with
	// those it has.
	promotePatience = 3 * time.Second
	// reportPatience is how long it waits until the log knows what it was told.
	reportPatience = 10 * time.Second
	// proposeInterval is between two proposals of a step of a promote.
	proposeInterval = 200 * time.Millisecond
)

// PromoteReport says what a forced promote did, or would do.
type PromoteReport struct {
	DryRun    bool
	Owner, To meta.DiskID      // who lost it, if that is known, and who has it
	Position  scstore.Position // where the history goes on
	Head      scstore.Position // the newest that was committed
	Fence     scstore.Fence    // the new one; of a dry run, the one to be revoked
	Complete  bool             // To holds all of Position; else it fetches what it lacks
	Epochs    uint64           // committed, and lost
	Bytes     *int64           // of them; nil where no host that answers knows
	Extents   *uint64          // the same
	Seconds   *float64         // between the commits of Position and Head; nil if this host did not see both
	Reachable []meta.DiskID    // that answered, this host included
	Silent    []meta.DiskID    // that did not
	Unknown   string           // what nobody here can know
}

// promotion is a forced promote, driven from here.
type promotion struct {
	set    *Set
	id     scstore.VolumeID
	group  meta.GroupID
	dry    bool
	owner  meta.DiskID
	fence  scstore.Fence // to be revoked
	begun  bool          // it was revoked before
	stuck  bool          // the owner lacks blocks that nobody has any more
	others []meta.DiskID // to be asked

	mu      sync.Mutex
	answers map[meta.DiskID]holdsMsg
}

// Promote gives a volume to a host without its owner: to the one named, or to the best.
// What was committed and is at no host that answers leaves the history; the report says
// what. The old owner, when it returns, keeps what it has beyond that as a branch. A dry
// run only asks; its figures age.
//
// A promote that was cut off can be repeated, from any host. Errors: ErrBusy if the owner
// answers; ErrNotFound; ErrInvalid; ErrNoMajority; ErrUnreachable if nobody who answers
// has a copy; ErrIndeterminate: repeat it.
func (s *Set) Promote(ctx context.Context, id scstore.VolumeID, to meta.DiskID, dryRun bool) (PromoteReport, error) {
	p := &promotion{set: s, id: id, dry: dryRun, answers: map[meta.DiskID]holdsMsg{}}
	return p.run(ctx, to)
}

func (p *promotion) run(ctx context.Context, to meta.DiskID) (PromoteReport, error) {
	report := PromoteReport{DryRun: p.dry}
	if err := p.look(ctx); err != nil {
		return report, err
	}
	if err := p.checkTarget(to); err != nil {
		return report, err
	}
	report.Owner = p.owner
	if err := p.tryOwner(ctx); err != nil {
		return report, err
	}
	if !p.dry && !p.begun {
		if err := p.propose(ctx, meta.Revoke{ID: p.id, Fence: p.fence}); err != nil {
			return report, fmt.Errorf("revoke fence %d: %w", p.fence, err)
		}
		p.set.log.Warn("the right to write was revoked", "volume", p.id, "fence", uint64(p.fence), "owner", p.owner)
	}
	if err := p.ask(ctx); err != nil {
		return report, err
	}
	if err := p.choose(ctx, to, &report); err != nil {
		return report, err
	}
	report.Fence = p.fence
	if p.dry {
		return report, nil
	}
	report.Fence = p.fence + 1
	op := meta.Promote{ID: p.id, Fence: report.Fence, Position: report.Position, Holder: report.To, Loss: report.loss()}
	if err := p.propose(ctx, op); err != nil {
		return report, scstore.Hint(fmt.Errorf("its fence is revoked, and nobody has the next: %w", err), "repeat the promote")
	}
	p.set.log.Warn("volume promoted", "volume", p.id, "to", report.To, "position", report.Position.String(), "lost_epochs", report.Epochs)
	return report, nil
}

// look reads who has the right, after all that the log has decided.
func (p *promotion) look(ctx context.Context) error {
	for _, g := range p.set.o.Groups {
		var now tenureNow
		var rec meta.Record
		var known []meta.DiskID
		if err := p.set.o.Log.Read(ctx, g, func(st *meta.State) {
			if now = tenureIn(st, p.id); now.ok {
				rec, _ = st.Get(p.id)
				p.stuck = stranded(st, p.id)
				for _, r := range st.Replicas(p.id) {
					known = append(known, r.Disk)
				}
			}
		}); err != nil {
			return err
		}
		if !now.ok {
			continue
		}
		p.group, p.owner, p.fence = g, now.Holder, now.Fence
		switch {
		case rec.Kind != meta.KindVolume:
			return fmt.Errorf("a %s: %w", rec.Kind, scstore.ErrReadOnly)
		case now.Fence == 0:
			return scstore.Hint(fmt.Errorf("it was never written: %w", scstore.ErrInvalid), "create it anew where it is needed")
		case now.Phase == meta.PhaseRevoked:
			p.begun, p.fence = true, now.Fence-1
			for _, f := range now.forks {
				if f.Fence == p.fence {
					p.owner = f.Owner
				}
			}
		}
		p.others = p.hosts(known)
		return nil
	}
	return scstore.ErrNotFound
}

// stranded reports whether a tethered owner waits for blocks that no host has any more:
// only a promote to an older position helps.
func stranded(st *meta.State, id scstore.VolumeID) bool {
	return slices.ContainsFunc(st.Tethers(id), func(at scstore.Position) bool { return len(st.CompleteHolders(id, at)) == 0 })
}

// hosts returns who is asked: all active hosts but this one, and those that are known to
// hold something. An owner that was found silent is not asked again.
func (p *promotion) hosts(known []meta.DiskID) []meta.DiskID {
	var removed []meta.DiskID
	if err := p.set.o.Log.View(meta.GroupNamespace, func(st *meta.State) {
		for _, h := range st.Hosts() {
			switch {
			case h.State == meta.HostRemoved || h.Witness:
				removed = append(removed, h.Disk)
			case h.State == meta.HostActive:
				known = append(known, h.Disk)
			}
		}
	}); err != nil {
		p.set.log.Debug("promote: the hosts are not known here", "err", err)
	}
	slices.Sort(known)
	return slices.DeleteFunc(slices.Compact(known), func(d meta.DiskID) bool {
		return d == p.set.o.Disk || slices.Contains(removed, d) || d == p.owner && !p.begun && !p.stuck
	})
}

// checkTarget refuses a target that is none.
func (p *promotion) checkTarget(to meta.DiskID) error {
	switch {
	case to == "" || to == p.set.o.Disk || slices.Contains(p.others, to):
		return nil
	case to == p.owner:
		return scstore.Hint(fmt.Errorf("host %s has it: %w", p.set.o.HostName(to), scstore.ErrInvalid), "name another host, or none")
	}
	return fmt.Errorf("host %s: %w", p.set.o.HostName(to), scstore.ErrNotFound)
}

// tryOwner refuses to go on while the owner answers. Errors: ErrBusy.
func (p *promotion) tryOwner(ctx context.Context) error {
	if p.begun || p.stuck {
		return nil
	}
	var err error
	if p.owner != p.set.o.Disk {
		_, err = p.set.alive(ctx, p.owner, p.id)
	}
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err == nil:
		return scstore.Hint(fmt.Errorf("its owner, host %s, answers: %w", p.set.o.HostName(p.owner), scstore.ErrBusy), "use volume move: it loses nothing")
	case errors.Is(err, scstore.ErrUnreachable) || errors.Is(err, scstore.ErrIndeterminate) || errors.Is(err, context.DeadlineExceeded):
		return nil
	}
	return scstore.Hint(fmt.Errorf("its owner, host %s, answers: %v: %w", p.set.o.HostName(p.owner), err, scstore.ErrBusy), "use volume move: it loses nothing")
}

// propose has the log decide a step, which may be proposed again.
func (p *promotion) propose(ctx context.Context, op meta.Op) error {
	for {
		result, err := p.set.o.Log.Propose(ctx, p.group, op)
		again := result.Code == 0 && (errors.Is(err, scstore.ErrIndeterminate) || errors.Is(err, scstore.ErrBusy))
		if !again || ctx.Err() != nil {
			return err
		}
		pause(ctx, proposeInterval)
	}
}

// ask asks all hosts what they hold, this one too, and waits for all answers or until
// patience ends. Who answers refuses data under the fence from then on.
func (p *promotion) ask(ctx context.Context) error {
	q := holdsAsk{Volume: p.id, Group: p.group}
	if !p.dry {
		q.Fence = p.fence
	}
	m, err := p.set.holds(ctx, q)
	if err != nil {
		return err
	}
	p.answers[p.set.o.Disk] = m
	ctx, cancel := context.WithTimeout(ctx, promotePatience)
	defer cancel()
	var wg sync.WaitGroup
	for _, disk := range p.others {
		wg.Go(func() {
			b, err := p.set.o.Net.Request(ctx, disk, quicnet.ClassRaft, KindHolds, q.AppendTo(nil))
			var m holdsMsg
			if err == nil {
				m, err = parseHolds(b)
			}
			if err != nil {
				p.set.log.Info("promote: a host does not say what it holds", "volume", p.id, "disk", disk, "err", err)
				return
			}
			p.mu.Lock()
			defer p.mu.Unlock()
			p.answers[disk] = m
		})
	}
	wg.Wait()
	return nil
}

// choose picks the newest position that those who answered have completely, and who goes
// on from it. What was told may be on its way into the log.
func (p *promotion) choose(ctx context.Context, to meta.DiskID, report *PromoteReport) error {
	for disk := range p.answers {
		report.Reachable = append(report.Reachable, disk)
	}
	slices.Sort(report.Reachable)
	for _, disk := range p.others {
		if _, ok := p.answers[disk]; !ok {
			report.Silent = append(report.Silent, disk)
		}
	}
	if p.owner != "" && p.owner != p.set.o.Disk && !slices.Contains(p.others, p.owner) {
		report.Silent = append(report.Silent, p.owner)
	}
	if to != "" && !slices.Contains(report.Reachable, to) {
		return scstore.Hint(fmt.Errorf("host %s does not answer: %w", p.set.o.HostName(to), scstore.ErrUnreachable), "name another host, or none")
	}
	var c choice
	var err error
	settled := func() bool {
		err = p.set.o.Log.View(p.group, func(st *meta.State) { c = p.candidate(st, report.Reachable) })
		return err != nil || c.at.Compare(c.told) >= 0
	}
	if !wait(ctx, reportPatience, settled) && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	switch {
	case err != nil:
		return err
	case c.over && !p.dry:
		return scstore.Hint(fmt.Errorf("it was promoted meanwhile: %w", scstore.ErrBusy), "see volume info for the host that has it")
	case len(c.disks) == 0 && c.head != (scstore.Position{}):
		return scstore.Hint(fmt.Errorf("no host that answers has a complete copy: %w", scstore.ErrUnreachable), "bring a host back that has one; see volume info")
	case len(c.disks) == 0: // nothing was ever committed
		c.disks = report.Reachable
	}
	report.To, report.Position, report.Head = to, c.at, c.head
	if to == "" {
		report.To = c.disks[0]
		if slices.Contains(c.disks, p.set.o.Disk) {
			report.To = p.set.o.Disk
		}
	}
	report.Complete = slices.Contains(c.disks, report.To)
	p.lossOf(report)
	return nil
}

// choice is where a promote can go on.
type choice struct {
	at    scstore.Position
	disks []meta.DiskID // that have all of it, by the log
	told  scstore.Position
	head  scstore.Position
	over  bool // another promote has ended this one: what it left out is not in the history any more
}

// candidate returns the newest position by the log, and the newest that was told and is
// part of the history.
func (p *promotion) candidate(st *meta.State, reachable []meta.DiskID) (c choice) {
	rec, _ := st.Get(p.id)
	c.head, c.over = rec.Head, rec.Holder != "" || rec.Fence != p.fence+1
	if list := st.PromoteCandidates(p.id, reachable); len(list) > 0 {
		c.at, c.disks = list[0].Position, list[0].Disks
	}
	history := st.History(p.id)
	for _, m := range p.answers {
		for _, at := range m.Complete {
			if at.Compare(c.told) > 0 && inHistory(history, at) {
				c.told = at
			}
		}
	}
	return c
}

// lossOf fills in what would be lost. Epochs are counted without gaps, so their number
// is exact; how much they wrote is known only where somebody has their map.
func (p *promotion) lossOf(report *PromoteReport) {
	report.Epochs = uint64(report.Head.Epoch - report.Position.Epoch)
	report.Unknown = fmt.Sprintf("what its owner wrote after %s and did not commit", report.Head)
	if report.Epochs == 0 {
		report.Bytes, report.Extents, report.Seconds = new(int64), new(uint64), new(float64)
		return
	}
	for _, m := range p.answers {
		if n := len(m.Complete); m.Mapped == report.Head && n > 0 && m.Complete[n-1] == report.Position {
			bytes, extents := int64(m.Blocks)*scstore.BlockSize, m.Extents
			report.Bytes, report.Extents = &bytes, &extents
		}
	}
	r, ok := p.set.lookup(p.id)
	if !ok {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	kept, head := r.headTime(report.Position), r.headTime(report.Head)
	if kept != nil && head != nil {
		seconds := (*head - *kept).Seconds()
		report.Seconds = &seconds
	}
}

// headTime returns when a head was applied here, nil if that is not known.
// Precondition: mu is held.
func (r *Replica) headTime(at scstore.Position) *time.Duration {
	for i := range r.moving.heads {
		if h := &r.moving.heads[i]; h.position == at && !h.earlier {
			return &h.at
		}
	}
	return nil
}

// loss is the report as the log keeps it.
func (r *PromoteReport) loss() meta.Loss {
	l := meta.Loss{Epochs: r.Epochs}
	if r.Bytes != nil {
		l.Bytes, l.Extents = *r.Bytes, *r.Extents
	}
	if r.Seconds != nil {
		l.Seconds = int64(*r.Seconds)
	}
	return l
}
