package sim

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"scstore"
	"scstore/consensus/meta"
	"scstore/propagate"
)

// How long a world runs, by its own clock.
const (
	chaosMin, chaosMax = 8 * time.Second, 25 * time.Second
	// SettleTime is how long it may take from the end of all faults until everything
	// is quiet.
	SettleTime = 120 * time.Second
)

// Bug is a rule that a world breaks on purpose, to see that the checkers notice.
type Bug int

// The bugs.
const (
	NoBug             Bug = iota
	BugIgnoreDoubt        // a source answers clients again when its patience is over
	BugForgetMark         // a restarted source does not look for the draining mark
	BugTrustProposal      // a target owns when it has proposed the hand-off
	BugLastCounts         // of HandOff and Cancel the last counts (meta)
	BugReusedEpoch        // a restarted owner numbers on from the committed head
	BugDroppedRoot        // a host drops versions that a root shows
	BugDroppedPin         // a pin is confirmed and not kept (meta)
	BugReleaseEarly       // a host deletes when it has asked to
	BugRevokedAccepts     // a fence that was revoked still accepts data
	BugFlushUnchecked     // the fence is not looked at after fdatasync
	BugHalfJump           // a replica shows a jump that is not complete
	BugUnderReport        // a forced promote reports less than is lost
)

// Options says which world to run.
type Options struct {
	Seed  uint64 // draws everything
	Bug   Bug
	Trace bool // keep a line an event
}

// Count says what a world exercised.
type Count struct {
	Writes, Flushes, Reads                                          int
	Moves, HandedOff, Cancelled, Dropped, DroppedInDoubt            int
	TetheredMoves                                                   int // by an owner that lacks blocks
	Blind                                                           int // owners that began without a map
	Crashes, RestartsInDoubt, Lost                                  int
	Promotes, PromotesWithLoss, Branches                            int
	SplitWrites                                                     int // acknowledged under a fence that was revoked
	SplitSteps                                                      int // at which two hosts acknowledged
	Jumps, JumpsDone, JumpsInterrupted, Releases, Snapshots, Clones int
	Stranded                                                        int // volumes whose copies were all on the host that is lost
	Settled                                                         int // worlds
}

// World is hosts, links, a log and clients, driven by one seed.
type World struct {
	o      Options
	rng    *rand.Rand
	now    time.Duration
	seq    uint64
	events queue
	trace  []string
	err    error
	count  Count

	hosts    []*host
	lostHost *host
	cut      [][]bool // by sender and receiver
	delay    time.Duration
	lossIn   int
	losing   bool // whether anything is still lost and anybody still crashes

	log      groupLog
	volumes  []scstore.VolumeID // ever made
	check    *checker
	answerer *propagate.Answerer
	receiver *propagate.Receiver
	puts     uint32
	ids      int
	weights  [actions]int
}

// Report is how a world ended.
type Report struct {
	Count Count
	Trace []string // with Options.Trace
	Took  time.Duration
}

// Run runs one world to its end. The error is the first promise that was broken.
func Run(o Options) (Report, error) {
	w := &World{o: o, rng: rand.New(rand.NewPCG(o.Seed, 11)), answerer: &propagate.Answerer{}, receiver: &propagate.Receiver{}}
	w.check = newChecker(w)
	w.build()
	w.losing = true
	w.lead()
	w.act()
	w.clients()
	end := w.between(chaosMin, chaosMax)
	for n := 0; w.now < end && w.err == nil; n++ {
		w.stepChecked(n)
	}
	w.heal()
	for n := 0; w.err == nil && !w.settled(); n++ {
		if w.now > end+SettleTime {
			w.fail("not settled: %w", w.unsettled())
			break
		}
		for range 16 {
			w.stepChecked(n)
		}
	}
	if w.err == nil {
		w.check.ended()
		w.count.Settled++
		for _, id := range w.volumes {
			if w.stranded(id) {
				w.count.Stranded++
			}
		}
	}
	return Report{Count: w.count, Trace: w.trace, Took: w.now}, w.err
}

func (w *World) stepChecked(n int) {
	if w.err != nil {
		return
	}
	w.step()
	w.check.owners()
	if n%32 == 0 {
		w.check.disks()
	}
}

// newState returns the empty state of the group, with the bug in it that is its part.
func (w *World) newState() *meta.State {
	s := meta.NewGroup(meta.FirstVolumes)
	w.plant(s)
	return s
}

func (w *World) plant(s *meta.State) {
	switch w.o.Bug {
	case BugLastCounts:
		s.Plant(meta.BugBothWin)
	case BugDroppedPin:
		s.Plant(meta.BugDroppedPin)
	default:
	}
}

// build makes hosts and volumes.
func (w *World) build() {
	w.delay = w.between(time.Millisecond, 90*time.Millisecond)
	w.lossIn = 8 + w.rng.IntN(40)
	for i := range w.weights {
		w.weights[i] = 1 + w.rng.IntN(8)
		if w.one(6) {
			w.weights[i] = 0
		}
	}
	n := 3
	if w.one(4) {
		n = 4
	}
	w.cut = make([][]bool, n)
	for i := range n {
		w.cut[i] = make([]bool, n)
		h := &host{w: w, n: i, disk: meta.DiskID(fmt.Sprintf("disk-%c", 'a'+i)), site: meta.SiteID(fmt.Sprintf("site-%c", 'a'+i)), witness: i == 3}
		w.hosts = append(w.hosts, h)
		h.start()
	}
	w.log.leader = w.hosts[0]
	for _, h := range w.data() {
		w.commit(meta.Command{Op: meta.AdmitDisk{Disk: h.disk, Site: h.site}})
	}
	for range 2 + w.rng.IntN(3) {
		id := w.newVolume()
		w.commit(meta.Command{Op: meta.CreateVolume{ID: id, SizeBytes: sizeBytes}})
		w.place(id)
		w.commit(meta.Command{Op: meta.OpenFence{ID: id, Holder: w.anyData().disk}})
	}
}

func (w *World) newVolume() scstore.VolumeID {
	id := scstore.VolumeID{0: byte(len(w.volumes) + 1)}
	w.volumes = append(w.volumes, id)
	return id
}

// place draws a placement.
func (w *World) place(id scstore.VolumeID) {
	p := meta.Placement{Mode: meta.ModeAsync, Failover: meta.FailoverManual}
	for _, h := range w.data() {
		if !w.one(4) {
			p.Sites = append(p.Sites, h.site)
		}
	}
	if w.one(6) {
		p.Mode = meta.ModeLazy
	}
	w.commit(meta.Command{Op: meta.SetPlacement{ID: id, Placement: p}})
}

// data returns the hosts that have volumes.
func (w *World) data() []*host { return w.hosts[:3] }

func (w *World) anyData() *host { return w.hosts[w.rng.IntN(3)] }

func (w *World) anyVolume() scstore.VolumeID { return w.volumes[w.rng.IntN(len(w.volumes))] }

func (w *World) hostOf(d meta.DiskID) *host {
	i := slices.IndexFunc(w.hosts, func(h *host) bool { return h.disk == d })
	return w.hosts[max(i, 0)]
}

func (w *World) nowMs() int64 { return 1_000_000 + w.now.Milliseconds() }

// heal ends all faults; what is lost for good stays lost.
func (w *World) heal() {
	w.say("from here on nothing fails")
	w.losing = false
	for i := range w.cut {
		clear(w.cut[i])
	}
	for _, h := range w.hosts {
		if !h.up && !h.lost {
			h.start()
		}
	}
	w.operate()
}

// operate is the person who repairs what only a person may.
func (w *World) operate() {
	w.after(time.Second, w.operate)
	if w.log.leader == nil {
		return
	}
	h := w.log.leader
	if l := w.lostHost; l != nil && !w.check.removed {
		h.ask("remove"+string(l.disk), meta.RemoveDisk{Disk: l.disk})
	}
	for _, id := range w.volumes {
		t, ok := h.state.Holder(id)
		switch {
		case !ok, w.stranded(id):
		case t.Phase == meta.PhaseRevoked, t.Holder != "" && w.hostOf(t.Holder).lost, w.sourceLost(id):
			h.promote(id)
		case t.Holder == "" && t.Fence == 0:
			w.openFence(h, id)
		}
	}
}

// openFence has somebody own a volume that was never owned.
func (w *World) openFence(h *host, id scstore.VolumeID) {
	r, _ := h.state.Get(id)
	for _, o := range w.data() {
		if o.up && (r.Base.IsZero() || o.copyOf(r.Base).complete(r.BasePosition) != nil) {
			h.ask("open"+id.String(), meta.OpenFence{ID: id, Holder: o.disk})
			return
		}
	}
}

// settled reports whether everything has come to rest.
func (w *World) settled() bool { return w.unsettled() == nil }

var errBusy = errors.New("entries are being applied")

func (w *World) unsettled() error {
	for _, h := range w.hosts {
		if h.lost {
			continue
		}
		if h.applied != len(w.log.entries) {
			return errBusy
		}
		busy := slices.ContainsFunc(h.promotions, func(p *promotion) bool { return !w.stranded(p.id) })
		if len(h.sources)+len(h.targets)+len(h.marks) > 0 || busy || h.release != nil {
			return fmt.Errorf("%s has %d sources, %d targets, %d marks, %d promotions", h.disk, len(h.sources), len(h.targets), len(h.marks), len(h.promotions))
		}
	}
	for _, id := range w.volumes {
		if err := w.unsettledVolume(id); err != nil {
			return err
		}
	}
	return nil
}

// sourceLost reports whether a tethered owner waits for blocks that nobody has any more:
// only a promote to an older position helps.
func (w *World) sourceLost(id scstore.VolumeID) bool {
	r, ok := w.check.ref.Get(id)
	return ok && w.lostHost != nil && !w.check.held(spot{id, r.Head}, 8)
}

// stranded reports whether all copies of the history were on the host that is lost.
func (w *World) stranded(id scstore.VolumeID) bool {
	if w.lostHost == nil {
		return false
	}
	r, _ := w.check.ref.Get(id)
	if r.Head == (scstore.Position{}) {
		return !r.Base.IsZero()
	}
	var alive []meta.DiskID
	for _, h := range w.data() {
		if !h.lost {
			alive = append(alive, h.disk)
		}
	}
	return len(w.check.ref.PromoteCandidates(id, alive)) == 0
}

func (w *World) unsettledVolume(id scstore.VolumeID) error {
	ref := w.check.ref
	t, ok := ref.Holder(id)
	if !ok {
		return nil
	}
	for _, f := range ref.Forks(id) {
		if f.Waiting && t.Phase != meta.PhaseRevoked && !w.hostOf(f.Owner).lost {
			return fmt.Errorf("%x waits for what %s has under %d", id[0], f.Owner, f.Fence)
		}
	}
	if w.stranded(id) {
		return nil
	}
	if t.Holder == "" || t.Phase != meta.PhaseNormal {
		return fmt.Errorf("%x is held by %q, %s", id[0], t.Holder, t.Phase)
	}
	owner := w.hostOf(t.Holder)
	c := owner.copyOf(id)
	r, _ := ref.Get(id)
	if !owner.acknowledges(c) || c.fence != t.Fence || len(c.pending) > 0 || c.open.missing != 0 || c.dirty() {
		return fmt.Errorf("%s owns %x under %d: serves %v under %d, %d epochs pending, missing %x",
			owner.disk, id[0], t.Fence, owner.acknowledges(c), c.fence, len(c.pending), c.open.missing)
	}
	p, _ := ref.PlacementOf(id)
	for _, h := range w.data() {
		placed := slices.Contains(p.Sites, h.site) && p.Mode != meta.ModeLazy && !h.lost && h != owner && r.Head != (scstore.Position{})
		if placed && !slices.Contains(ref.CompleteHolders(id, r.Head), h.disk) {
			return fmt.Errorf("%s does not have %x@%s", h.disk, id[0], r.Head)
		}
	}
	for _, f := range ref.Forks(id) {
		if f.Waiting {
			return fmt.Errorf("%x waits for what %s has under %d", id[0], f.Owner, f.Fence)
		}
	}
	return nil
}
