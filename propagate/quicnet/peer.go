package quicnet

import (
	"context"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"
	"golang.org/x/time/rate"

	"scstore"
)

// minBandwidthBytes is the lowest cap that lets a frame pass in good time.
const minBandwidthBytes = 16 << 10

// peer is what this host has to do with another one.
type peer struct {
	n        *Net
	disk     scstore.StoreID
	limiter  *rate.Limiter // nil: no cap
	requests *semaphore.Weighted

	mu       sync.Mutex // guards everything that follows; nothing waits under it
	links    map[*link]struct{}
	slots    [MaxBulk + 1]*link
	attempts [MaxBulk + 1]*attempt
	accepted int // streams of the peer that are served
	failures int // attempts in a row that failed
	nextDial time.Time
	lastErr  error
	who      Peer      // of the newest link
	past     LinkStats // of links that are gone
	recent   traffic   // of the pool, since it was last judged
}

// attempt is a connection being made; done is closed when err is final.
type attempt struct {
	done chan struct{}
	err  error
}

func newPeer(n *Net, disk scstore.StoreID) *peer {
	p := &peer{n: n, disk: disk, requests: semaphore.NewWeighted(MaxRequestBytesPerPeer), links: map[*link]struct{}{}}
	if b := n.o.BandwidthBytes; b > 0 {
		p.limiter = rate.NewLimiter(rate.Limit(b), int(max(writeStep, b/20)))
	}
	return p
}

// maxRounds bounds how often a link is looked for: one that is lost at once each
// time is none. Who finds all crowded waits for as many as the pool has by default.
const maxRounds = DefaultBulk + 2

// link returns a link for the class with one stream counted on it, and makes one if
// there is none.
func (p *peer) link(ctx context.Context, class Class) (*link, error) {
	for round := range maxRounds {
		p.mu.Lock()
		l, wanted, wait := p.pickLocked(class)
		var a *attempt
		var err error
		if wanted >= 0 {
			a, err = p.dialLocked(wanted)
		}
		if l != nil && (!wait || a == nil || round == maxRounds-1) {
			l.enterLocked(false)
			p.mu.Unlock()
			return l, nil
		}
		p.mu.Unlock()
		if err != nil {
			return nil, err
		}
		select {
		case <-a.done:
			if a.err != nil && l == nil {
				return nil, a.err
			}
		case <-ctx.Done():
			return nil, notSent(fmt.Errorf("connect to %s: %w", p.name(), context.Cause(ctx)))
		}
	}
	return nil, fmt.Errorf("connect to %s: connections do not last: %w", p.name(), scstore.ErrUnreachable)
}

// name is what people call the peer, once it has said so.
func (p *peer) name() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.who.Host != "" {
		return "host " + p.who.Host
	}
	return "disk " + p.disk.String()
}

// crowdedStreams is how many streams a link has on which one that nobody waits for rather
// waits until another link is made: it would stay there until it ends, however slow
// the link becomes.
const crowdedStreams = 4

// pickLocked returns the best link for the class, or nil, the slot that should be
// dialed, or -1, and whether to wait for that one all the same. What is urgent and small
// takes the control connection rather than wait for one of the pool.
func (p *peer) pickLocked(class Class) (best *link, wanted int, wait bool) {
	if class == ClassRaft {
		if l := p.slots[0]; l != nil {
			return l, -1, false
		}
		return nil, 0, true
	}
	wanted, coming := -1, -1 // of those that are being made the last: most are ready by then
	for slot := 1; slot <= MaxBulk; slot++ {
		switch l := p.slots[slot]; {
		case l != nil && (best == nil || l.active < best.active):
			best = l
		case l != nil:
		case p.attempts[slot] != nil:
			coming = slot
		case wanted < 0 && slot <= p.n.o.Bulk:
			wanted = slot
		}
	}
	switch {
	case best != nil && best.active == 0:
		return best, -1, false
	case best != nil && best.active >= crowdedStreams && class >= ClassAsync:
		if wanted < 0 {
			wanted = coming
		}
		return best, wanted, true
	case best != nil:
		return best, wanted, false
	case p.slots[0] != nil && (class == ClassDemand || class == ClassManifest):
		return p.slots[0], wanted, false
	}
	return nil, 1, true
}

// dialLocked begins to make the link of a slot, unless that is under way, or the
// last attempt failed a moment ago.
func (p *peer) dialLocked(slot int) (*attempt, error) {
	if a := p.attempts[slot]; a != nil {
		return a, nil
	}
	if time.Now().Before(p.nextDial) {
		return nil, p.lastErr
	}
	a := &attempt{done: make(chan struct{})}
	if !p.n.spawn(func() { p.dial(slot, a) }) {
		return nil, errClosed()
	}
	p.attempts[slot] = a
	return a, nil
}

// dial makes the link of a slot.
func (p *peer) dial(slot int, a *attempt) {
	l, err := p.n.dial(p, slot)
	if err == nil && !p.add(l) {
		err = errClosed()
	}
	p.mu.Lock()
	p.attempts[slot] = nil
	if err != nil {
		p.failedLocked(err)
	}
	p.mu.Unlock()
	p.n.metrics.dialed(err)
	a.err = err
	close(a.done)
}

// failedLocked puts off the next attempt, longer each time.
func (p *peer) failedLocked(err error) {
	p.lastErr = err
	p.nextDial = time.Now().Add(min(maxBackoff, minBackoff<<min(p.failures, 10)))
	p.failures++
}

// add puts a link into its slot and begins to serve it; false if the Net is closed.
// Of two links for a slot that were dialed from both sides at once, the one that the
// lower disk id dialed stays; both ends see both and decide alike. Of two that one
// side dialed the newer stays: that side gave the older one up. What goes is retired:
// its streams go on, unless its other end is gone, because it dialed again or was
// started again.
func (p *peer) add(l *link) bool {
	p.mu.Lock()
	l.idleSince = time.Now()
	p.links[l], p.who = struct{}{}, l.who
	p.failures, p.nextDial, p.lastErr = 0, time.Time{}, nil
	var dead *link
	switch old := p.slots[l.slot]; {
	case old == nil:
		p.slots[l.slot] = l
	case old.who.Boot != l.who.Boot, old.dialed == l.dialed:
		old.retired = true
		if !l.dialed {
			dead = old
		}
		p.slots[l.slot] = l
	case l.dialed == p.lower():
		old.retired = true
		p.slots[l.slot] = l
	default:
		l.retired = true
	}
	p.mu.Unlock()
	p.n.metrics.links.Inc()
	if dead != nil {
		dead.close(codeDuplicate, "dialed again")
	}
	if !p.n.spawn(l.serve) {
		l.close(codeClosing, "host stops")
		p.remove(l, errClosed())
		return false
	}
	if err := p.n.o.Allowed(l.who); err != nil { // it was removed while it shook hands
		l.close(codeOf(err), reasonText(err))
	}
	return true
}

// lower reports whether this host's disk id is lower than the peer's.
func (p *peer) lower() bool {
	own := p.n.o.Keys.Identity().Disk
	return string(own[:]) < string(p.disk[:])
}

// remove forgets a link whose connection ended with err.
func (p *peer) remove(l *link, err error) {
	stats := linkStats(l.conn)
	p.mu.Lock()
	l.closing = true
	delete(p.links, l)
	if p.slots[l.slot] == l {
		p.slots[l.slot] = nil
	}
	p.past.add(stats)
	if denied(err) {
		p.failedLocked(err)
	}
	p.mu.Unlock()
	p.n.windows.release(l.conn)
	p.n.metrics.links.Dec()
	p.n.log.Debug("connection ended", "peer", l.who.Host, "slot", l.slot, "err", err)
}

// lose takes a link whose connection has ended out of its slot, before its own
// goroutine does.
func (p *peer) lose(l *link) {
	p.mu.Lock()
	defer p.mu.Unlock()
	l.closing = true
	if p.slots[l.slot] == l {
		p.slots[l.slot] = nil
	}
}

// sweep closes links that nobody needs.
func (p *peer) sweep(now time.Time) {
	var idle []*link
	p.mu.Lock()
	for l := range p.links {
		if l.idleLocked(now) {
			l.closing = true
			if p.slots[l.slot] == l {
				p.slots[l.slot] = nil
			}
			idle = append(idle, l)
		}
	}
	p.mu.Unlock()
	for _, l := range idle {
		l.close(codeNone, "idle")
	}
}

// disconnect closes all links.
func (p *peer) disconnect(c code, text string) int {
	p.mu.Lock()
	var all []*link
	for l := range p.links {
		all = append(all, l)
		if p.slots[l.slot] == l {
			p.slots[l.slot] = nil
		}
	}
	p.mu.Unlock()
	for _, l := range all {
		l.close(c, text)
	}
	return len(all)
}
