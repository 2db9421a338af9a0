package sim

import (
	"slices"
	"time"

	"scstore"
	"scstore/consensus/handoff"
	"scstore/consensus/meta"
)

const (
	askInterval = 400 * time.Millisecond // between two proposals of the same
	maxPending  = 4                      // epochs that are sealed and not in the history
)

// host is one host: its disk, which survives a crash, and the rest, which does not.
// What it does around the cores is what a real host has to do.
type host struct {
	w       *World
	n       int
	disk    meta.DiskID
	site    meta.SiteID
	witness bool // a voter without volumes
	up      bool
	lost    bool // for good

	// The disk.
	boot    uint64
	saved   []byte // a state snapshot
	savedAt int
	copies  []*replica
	marks   []*mark

	// What a crash loses.
	state      *meta.State
	applied    int
	known      int // entries of the log that it has
	applying   bool
	asked      map[string]time.Duration
	reports    uint64
	reported   []reported // that may still be on the way
	sources    []*source
	targets    []*target
	release    *release
	promotions []*promotion
}

// replica is what a disk has of a volume.
type replica struct {
	id       scstore.VolumeID
	fence    scstore.Fence // under which this host serves writes; 0 for none
	floor    scstore.Fence // data under it or a lower one are refused
	head     scstore.Position
	open     image
	synced   image // what of open is on stable storage
	unsynced []put
	pending  []meta.Point // sealed, and not in the history yet
	versions []version    // rising
	left     []leftover
	branches []branch
	staged   *staged

	jump *jump // lost in a crash
}

// put is one acknowledged write.
type put struct {
	block  int
	number uint32
}

// after has a host do something later, unless it restarts meanwhile.
func (h *host) after(d time.Duration, do func()) {
	boot := h.boot
	h.w.after(d, func() {
		if h.up && h.boot == boot {
			do()
		}
	})
}

// crash loses what is not durable; of writes without a flush a prefix stays.
func (h *host) crash() {
	h.w.say("%s crashes", h.disk)
	h.up = false
	h.w.count.Crashes++
	for _, c := range h.copies {
		keep := 0
		if len(c.unsynced) > 0 {
			keep = h.w.rng.IntN(len(c.unsynced) + 1)
		}
		for _, p := range c.unsynced[:keep] {
			c.synced.write(p.block, p.number)
		}
		c.unsynced = nil
		if c.fence != 0 || len(c.left) == 0 {
			c.open = c.synced
		}
		if c.jump != nil {
			h.w.count.JumpsInterrupted++
		}
		c.jump = nil
		h.w.check.crashed(h, c)
	}
}

// start is the first thing after a crash: what is durable is read back.
func (h *host) start() {
	h.up = true
	h.boot++
	h.reports = 0
	h.state, h.applied = h.w.newState(), 0
	if h.saved != nil {
		state, err := meta.ParseState(h.saved)
		if err != nil {
			h.w.fail("%s reads its state back: %v", h.disk, err)
			return
		}
		h.state, h.applied = state, h.savedAt
		h.w.plant(h.state)
	}
	h.known, h.applying, h.reported = h.applied, false, nil
	h.asked = map[string]time.Duration{}
	h.sources, h.targets, h.release, h.promotions = nil, nil, nil, nil
	h.w.say("%s starts at entry %d, %d marks", h.disk, h.applied, len(h.marks))
	if h.w.o.Bug == BugForgetMark {
		h.marks = nil
	}
	for _, m := range h.marks {
		h.w.count.RestartsInDoubt++
		s := &source{id: m.op.ID, to: h.w.hostOf(m.op.To), mark: m, frozen: true, since: h.w.now}
		for _, v := range m.op.Volumes {
			s.volumes = append(s.volumes, v.ID)
		}
		s.core, s.todo = handoff.Restarted(handoff.ID(s.id), m.finals, 2*h.w.delay, h.w.now)
		h.sources = append(h.sources, s)
		h.pumpSource(s)
	}
	for _, c := range h.copies {
		if h.w.o.Bug == BugReusedEpoch && c.fence != 0 {
			if r, ok := h.state.Get(c.id); ok && len(c.pending) > 0 {
				c.head, c.pending = r.Head, nil
			}
		}
	}
	h.review()
	h.after(h.w.between(time.Millisecond, 200*time.Millisecond), h.tick)
}

func (h *host) copyOf(id scstore.VolumeID) *replica {
	for _, c := range h.copies {
		if c.id == id {
			return c
		}
	}
	c := &replica{id: id}
	h.copies = append(h.copies, c)
	return c
}

func (c *replica) version(at scstore.Position) *version {
	if i, found := slices.BinarySearchFunc(c.versions, at, compareVersion); found {
		return &c.versions[i]
	}
	return nil
}

// complete returns a version that lacks nothing.
func (c *replica) complete(at scstore.Position) *version {
	if v := c.version(at); v != nil && v.missing == 0 {
		return v
	}
	return nil
}

func (c *replica) keep(v version) {
	i, found := slices.BinarySearchFunc(c.versions, v.at, compareVersion)
	if found {
		if v.missing == 0 {
			c.versions[i] = v
		}
		return
	}
	c.versions = slices.Insert(c.versions, i, v)
}

// learn says how long the log is.
func (h *host) learn(n int) {
	h.known = max(h.known, n)
	if !h.applying && h.applied < h.known {
		h.applying = true
		h.after(h.w.between(0, 40*time.Millisecond), h.applySome)
	}
}

// applySome applies entries of the log, or takes a state snapshot instead.
func (h *host) applySome() {
	h.applying = false
	if h.known-h.applied > 20 && h.w.one(3) {
		h.w.say("%s takes a state snapshot", h.disk)
		state, err := meta.ParseState(h.w.check.ref.AppendTo(nil))
		if err != nil {
			h.w.fail("%s reads a state snapshot: %v", h.disk, err)
			return
		}
		h.w.plant(state)
		h.state, h.applied = state, len(h.w.log.entries)
		h.known, h.release = h.applied, nil
		h.review()
		return
	}
	for range 1 + h.w.rng.IntN(6) {
		if h.applied == h.known {
			break
		}
		h.apply(h.w.log.entries[h.applied])
	}
	if h.w.one(8) {
		h.saved, h.savedAt = h.state.AppendTo(nil), h.applied
	}
	h.learn(h.known)
}

func (h *host) apply(c meta.Command) {
	r := h.state.Apply(c)
	h.applied++
	if o, ok := c.Op.(meta.Release); ok && o.Disk == h.disk {
		h.released(o, r)
	}
	h.review()
}

// review looks at what the applied state means for this host: nothing else makes it
// act on what was agreed.
func (h *host) review() {
	h.reviewMoves()
	if h.witness {
		return
	}
	for _, id := range h.w.volumes {
		if t, ok := h.state.Holder(id); ok {
			h.reviewVolume(h.copyOf(id), t)
		} else if r, ok := h.state.Get(id); ok && r.Life == meta.Tombstone {
			c := h.copyOf(id)
			c.floor = max(c.floor, r.Fence)
			c.fence, c.pending, c.jump = 0, nil, nil
			h.prune(c)
		}
	}
}

func (h *host) reviewVolume(c *replica, t meta.Tenure) {
	if t.Fence > 0 && t.Fence-1 > c.floor {
		c.floor = t.Fence - 1
	}
	if c.fence != 0 && c.fence < t.Fence && h.sourceOf(c.id) == nil {
		h.lose(c)
	}
	// After a restart the applied state may be older than what this host has acted on
	// before: the floor, on disk, tells.
	if t.Holder == h.disk && t.Phase != meta.PhaseRevoked && c.fence == 0 && t.Fence > c.floor && h.targetOf(c.id) == nil {
		h.adopt(c, t.Fence, h.startOf(c.id, t.Fence), nil)
	}
	if r, _ := h.state.Get(c.id); len(c.pending) > 0 {
		c.pending = slices.DeleteFunc(c.pending, func(p meta.Point) bool { return p.Position.Compare(r.Head) <= 0 && r.Head.Fence >= p.Position.Fence })
	}
	h.reviewForks(c, t)
	h.prune(c)
}

// startOf returns where a fence begins.
func (h *host) startOf(id scstore.VolumeID, f scstore.Fence) scstore.Position {
	for _, g := range h.state.Grants(id) {
		if g.Fence == f {
			return g.Start
		}
	}
	return scstore.Position{}
}

// acknowledges reports whether requests for a volume are answered here.
func (h *host) acknowledges(c *replica) bool {
	if !h.up || h.lost || c.fence == 0 || c.fence <= c.floor && h.w.o.Bug != BugRevokedAccepts {
		return false
	}
	s := h.sourceOf(c.id)
	if s == nil {
		return true
	}
	if h.w.o.Bug == BugIgnoreDoubt && s.core.Phase() == handoff.Doubt && h.w.now-s.since > handoff.MinCancelAfter {
		return true
	}
	return !s.frozen && s.core.Acknowledges()
}

// adopt begins to serve writes under a fence, from a position on. With a map the
// blocks that are here already are known; without one, none is.
func (h *host) adopt(c *replica, f scstore.Fence, start scstore.Position, blocks *content) {
	c.fence, c.head, c.pending, c.unsynced, c.jump = f, start, nil, nil, nil
	c.open = image{}
	switch v := c.version(start); {
	case v != nil:
		c.open = v.image
	case start == scstore.Position{}:
		c.open.data = h.baseOf(c.id)
	case blocks != nil:
		c.open = image{data: *blocks, missing: every, base: start}
		if newest := h.newest(c); newest != nil {
			for b := range blocks {
				if newest.data[b] == blocks[b] {
					c.open.missing &^= 1 << b
				}
			}
		}
		if c.open.missing == 0 {
			c.open.base = scstore.Position{}
		}
		c.keep(version{start, c.open})
	default:
		h.w.count.Blind++
		c.open = image{missing: every, base: start}
		c.keep(version{start, c.open})
	}
	c.synced = c.open
	h.w.say("%s owns %x under %d from %s, missing %x", h.disk, c.id[0], f, start, c.open.missing)
	h.w.check.adopted(h, c)
}

// baseOf is what a clone begins with.
func (h *host) baseOf(id scstore.VolumeID) content {
	if r, ok := h.state.Get(id); ok && !r.Base.IsZero() {
		if v := h.copyOf(r.Base).complete(r.BasePosition); v != nil {
			return v.data
		}
		h.w.fail("%s opens the clone %x without its base", h.disk, id[0])
	}
	return content{}
}

// write acknowledges a write.
func (h *host) write(c *replica, p put) {
	c.open.write(p.block, p.number)
	c.unsynced = append(c.unsynced, p)
	h.w.check.acknowledged(h, c, p)
}

// sync is fdatasync.
func (c *replica) sync() { c.synced, c.unsynced = c.open, nil }

// flush answers a FLUSH if the fence is still good once the data are durable.
func (h *host) flush(c *replica) {
	fence, writes := c.fence, h.w.check.writes(c)
	took := h.w.between(time.Millisecond, 30*time.Millisecond)
	if h.w.one(5) { // a slow disk
		took *= 20
	}
	h.after(took, func() {
		if h.w.o.Bug != BugFlushUnchecked && (c.fence != fence || !h.acknowledges(c)) {
			return
		}
		c.sync()
		h.w.check.flushed(h, tenure{c.id, fence}, writes)
	})
}

// dirty reports whether a seal would change anything.
func (c *replica) dirty() bool {
	v := c.version(c.head)
	return v == nil && c.open.data != content{} || v != nil && v.data != c.open.data
}

// seal ends the open epoch, durably.
func (h *host) seal(c *replica) {
	c.sync()
	v := version{scstore.Position{Fence: c.fence, Epoch: c.head.Epoch + 1}, c.open}
	c.pending = append(c.pending, meta.Point{Position: v.at, Parent: c.head, Digest: v.digest()})
	c.head = v.at
	c.keep(v)
	h.w.say("%s seals %x@%s %v", h.disk, c.id[0], v.at, v.data)
	h.w.check.sealed(h, c, v)
}

// ask proposes something again and again, but not too often.
func (h *host) ask(key string, op meta.Op) {
	if at, ok := h.asked[key]; ok && h.w.now-at < askInterval {
		return
	}
	h.asked[key] = h.w.now
	h.w.propose(h, meta.Command{Op: op})
}

// tick is done a few times a second.
func (h *host) tick() {
	h.after(h.w.between(150*time.Millisecond, 350*time.Millisecond), h.tick)
	if h.w.log.leader == h && h.w.one(8) {
		h.w.propose(h, meta.Command{Op: meta.Expire{NowMs: h.w.nowMs()}})
	}
	h.tickMoves()
	h.tickPromotions()
	if h.witness {
		return
	}
	h.review()
	for _, c := range h.copies {
		if h.acknowledges(c) && c.dirty() && len(c.pending) < maxPending && h.w.one(2) {
			h.seal(c)
		}
		h.commitPending(c)
		h.tickForks(c)
		h.tickJump(c)
	}
	h.report()
}

// commitPending proposes what was sealed. The last epoch of a hand-off goes in with
// the hand-off.
func (h *host) commitPending(c *replica) {
	if c.fence == 0 {
		return
	}
	pending := c.pending
	if s := h.sourceOf(c.id); s != nil && s.mark != nil && len(pending) > 0 {
		pending = pending[:len(pending)-1]
	}
	var ops []meta.Op
	for _, p := range pending {
		ops = append(ops, meta.CommitEpoch{ID: c.id, Fence: p.Position.Fence, Parent: p.Parent, Epoch: p.Position.Epoch, Digest: p.Digest})
	}
	if len(ops) == 1 {
		h.ask("commit"+c.id.String(), ops[0])
	} else if len(ops) > 1 {
		h.ask("commit"+c.id.String(), meta.Batch{Ops: ops})
	}
}
