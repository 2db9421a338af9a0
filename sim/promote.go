package sim

import (
	"slices"
	"time"

	"scstore"
	"scstore/consensus/meta"
)

// How long who promotes waits for answers before it goes on with those it has.
const promotePatience = 1500 * time.Millisecond

// leftover is what an owner wrote under a fence that it lost to a forced promote.
type leftover struct {
	fence scstore.Fence
	version
}

// branch is a leftover that was registered.
type branch struct {
	id scstore.VolumeID
	version
}

// promotion is a forced promote, driven from this host.
type promotion struct {
	id       scstore.VolumeID
	revoke   scstore.Fence // the fence to be revoked
	begun    time.Duration
	asked    time.Duration // when the revoke was applied here; 0 before
	answered map[meta.DiskID]scstore.Position
}

// lose is what an owner does that finds its fence gone without having handed it over.
func (h *host) lose(c *replica) {
	if h.forkOf(c) != nil {
		h.surrender(c)
		return
	}
	h.w.say("%s gives %x up, fence %d is gone", h.disk, c.id[0], c.fence)
	c.fence, c.pending, c.unsynced = 0, nil, nil
}

// forkOf returns the fork that waits for what this host has of a volume, if its fence
// is behind it.
func (h *host) forkOf(c *replica) *meta.Fork {
	for _, f := range h.state.Forks(c.id) {
		if f.Waiting && f.Owner == h.disk && f.Fence >= c.fence {
			return &f
		}
	}
	return nil
}

// surrender keeps what was written under a fence that was revoked.
func (h *host) surrender(c *replica) {
	if c.dirty() {
		h.seal(c)
	}
	c.sync()
	if c.head != (scstore.Position{}) {
		c.left = append(c.left, leftover{c.fence, version{c.head, c.open}})
	}
	h.w.say("%s surrenders %x, fence %d, at %s", h.disk, c.id[0], c.fence, c.head)
	h.w.check.surrendered(h, c)
	c.fence, c.pending = 0, nil
}

// reviewForks forgets what was registered.
func (h *host) reviewForks(c *replica, t meta.Tenure) {
	c.left = slices.DeleteFunc(c.left, func(l leftover) bool {
		id := branchID(c.id, l.fence, h)
		if _, ok := h.state.Get(id); ok && !slices.ContainsFunc(c.branches, func(b branch) bool { return b.id == id }) {
			c.branches = append(c.branches, branch{id, l.version})
			h.w.say("%s keeps the branch %x of %x", h.disk, id[:3], c.id[0])
			return true
		}
		waits := slices.ContainsFunc(h.state.Forks(c.id), func(f meta.Fork) bool { return f.Owner == h.disk && f.Waiting && f.Fence >= l.fence })
		return !waits && t.Phase != meta.PhaseRevoked && t.Fence > l.fence
	})
}

func branchID(id scstore.VolumeID, f scstore.Fence, h *host) scstore.VolumeID {
	return scstore.VolumeID{0: 0xb0, 1: id[0], 2: byte(f), 3: byte(h.n)}
}

// tickForks answers who waits for what an old owner has.
func (h *host) tickForks(c *replica) {
	t, ok := h.state.Holder(c.id)
	if !ok || t.Phase == meta.PhaseRevoked {
		return
	}
	for _, f := range h.state.Forks(c.id) {
		if !f.Waiting || f.Owner != h.disk || c.fence != 0 && c.fence <= f.Fence {
			continue
		}
		var l *leftover
		for i := range c.left {
			if c.left[i].fence <= f.Fence {
				l = &c.left[i]
			}
		}
		key := "branch" + c.id.String()
		if l == nil || l.at.Compare(f.Position) <= 0 {
			h.ask(key, meta.ReportNoBranch{ID: c.id, Fence: f.Fence, Disk: h.disk})
			return
		}
		h.ask(key, meta.RegisterBranch{
			ID: c.id, Branch: branchID(c.id, l.fence, h), Fence: f.Fence, Fork: f.Position, Head: l.at,
			Digest: l.digest(), Bytes: scstore.BlockSize, Disk: h.disk, CreatedAtMs: h.w.nowMs(),
		})
		return
	}
}

// promote begins a forced promote, unless the owner answers: then it is a move.
func (h *host) promote(id scstore.VolumeID) {
	t, ok := h.state.Holder(id)
	if !ok || t.Fence == 0 || slices.ContainsFunc(h.promotions, func(p *promotion) bool { return p.id == id }) {
		return
	}
	revoke := t.Fence
	if t.Phase == meta.PhaseRevoked {
		revoke--
	} else if owner := h.w.hostOf(t.Holder); h.w.linked(h, owner) && h.w.linked(owner, h) && !h.w.sourceLost(id) {
		return
	}
	h.w.say("%s promotes %x, fence %d", h.disk, id[0], revoke)
	h.promotions = append(h.promotions, &promotion{id: id, revoke: revoke, begun: h.w.now, answered: map[meta.DiskID]scstore.Position{}})
}

func (h *host) tickPromotions() {
	h.promotions = slices.DeleteFunc(h.promotions, func(p *promotion) bool {
		t, ok := h.state.Holder(p.id)
		switch {
		case !ok, t.Fence > p.revoke+1, t.Fence == p.revoke+1 && t.Phase != meta.PhaseRevoked:
			return true // done, by whomever
		case t.Fence <= p.revoke:
			h.ask("revoke"+p.id.String(), meta.Revoke{ID: p.id, Fence: p.revoke})
			return h.w.now-p.begun > 10*time.Second
		}
		if p.asked == 0 {
			p.asked = h.w.now
		}
		for _, other := range h.w.hosts {
			if _, ok := p.answered[other.disk]; !ok && !other.witness {
				h.w.send(h, other, func() { other.reportTo(h, p) })
			}
		}
		if h.w.now-p.asked > promotePatience {
			h.finishPromotion(p, t)
		}
		return h.w.now-p.asked > 20*time.Second
	})
}

// reportTo answers who promotes, once this host has applied the revoke and refuses
// data under the fence, durably.
func (h *host) reportTo(to *host, p *promotion) {
	c := h.copyOf(p.id)
	if c.floor < p.revoke {
		return
	}
	var at scstore.Position
	if newest := h.newest(c); newest != nil {
		at = newest.at
	}
	h.w.check.promised(h, c.id, p.revoke)
	h.w.send(h, to, func() { p.answered[h.disk] = at })
}

// finishPromotion picks the newest position that those who answered have completely.
func (h *host) finishPromotion(p *promotion, t meta.Tenure) {
	var reachable []meta.DiskID
	var best scstore.Position
	for _, other := range h.w.hosts {
		if at, ok := p.answered[other.disk]; ok {
			reachable = append(reachable, other.disk)
			if at.Compare(best) > 0 {
				best = at
			}
		}
	}
	r, _ := h.state.Get(p.id)
	at, disks := scstore.Position{}, reachable
	if candidates := h.state.PromoteCandidates(p.id, reachable); len(candidates) > 0 {
		at, disks = candidates[0].Position, candidates[0].Disks
	} else if (r.Head != scstore.Position{}) {
		return // nobody here can go on
	}
	if len(disks) == 0 || at.Compare(best) < 0 { // what was reported to us is on its way into the log
		return
	}
	if h.w.one(4) {
		disks = reachable
	}
	loss := meta.Loss{Epochs: uint64(r.Head.Epoch - at.Epoch)}
	if h.w.o.Bug == BugUnderReport && loss.Epochs > 0 {
		loss.Epochs--
	}
	h.ask("promote"+p.id.String(), meta.Promote{
		ID: p.id, Fence: t.Fence, Position: at, Holder: disks[h.w.rng.IntN(len(disks))], Loss: loss,
	})
}
