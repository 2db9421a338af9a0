package wan

import (
	"math"
	"math/rand/v2"
	"sync"
	"time"
)

const (
	// MTU is the largest IP packet between two sites, in bytes.
	MTU = 1500
	// maxDeliveries is how many packets leave between two looks at the clock.
	maxDeliveries = 64
	never         = time.Duration(math.MaxInt64)
)

// packet is what a pair carries: bytes, and where they leave.
type packet struct {
	bytes []byte // in room, or of their own if they do not fit there
	size  int    // that counts: the IP packet's
	exit  exit
	room  [MTU]byte
}

// exit is where packets leave. Safe for concurrent use.
type exit interface {
	// deliver hands over a packet's bytes and does not keep them. It waits for nobody
	// outside of this machine's kernel.
	deliver(p []byte) error
}

// packets recycles them.
type packets struct{ pool sync.Pool }

func (ps *packets) get() *packet {
	if p, ok := ps.pool.Get().(*packet); ok {
		return p
	}
	return new(packet)
}

func (ps *packets) put(p *packet) {
	p.bytes, p.exit = nil, nil
	ps.pool.Put(p)
}

// clock tells the time since the network was opened.
type clock struct{ opened time.Time }

func newClock() clock { return clock{opened: time.Now()} }

func (c clock) now() time.Duration { return time.Since(c.opened) }

// pair is the model of one directed pair of sites under the clock, with the
// goroutine that delivers. Safe for concurrent use.
type pair struct {
	clock clock
	pool  *packets
	kick  chan struct{} // the next delivery is earlier than run waits for

	// delivering is held from the moment when packets are taken from the model until
	// they have left, so that set can say that none is on its way (I4).
	delivering sync.Mutex
	batch      [maxDeliveries]*packet

	mu    sync.Mutex
	model *model[*packet]
	alarm time.Duration // until when run waits
}

func newPair(c clock, pool *packets, link Link, rng *rand.Rand) *pair {
	return &pair{clock: c, pool: pool, kick: make(chan struct{}, 1), model: newModel[*packet](link, rng), alarm: never}
}

// send gives packets to the link, all at this moment, and owns them from then on.
func (p *pair) send(ps ...*packet) {
	p.mu.Lock()
	now := p.clock.now() // under mu, so that the model's time never goes back
	for _, pk := range ps {
		if !p.model.send(now, pk.size, pk) {
			p.pool.put(pk)
		}
	}
	early := p.earlierLocked()
	p.mu.Unlock()
	p.wake(early)
}

// earlierLocked reports whether run waits for too long.
func (p *pair) earlierLocked() bool {
	due, ok := p.model.next()
	return ok && due < p.alarm
}

func (p *pair) wake(early bool) {
	if !early {
		return
	}
	select {
	case p.kick <- struct{}{}:
	default: // it is awake already
	}
}

// set changes the link by a function of what it is, which is called under mu.
func (p *pair) set(change func(Link) Link) {
	p.delivering.Lock()
	defer p.delivering.Unlock()
	p.mu.Lock()
	p.model.set(p.clock.now(), change(p.model.link))
	early := p.earlierLocked()
	p.mu.Unlock()
	p.wake(early)
}

func (p *pair) link() Link {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.model.link
}

func (p *pair) stats() Stats {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.model.stats
}

// run delivers packets when they are due until done is closed.
func (p *pair) run(done <-chan struct{}) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-done:
			return
		case <-p.kick:
		case <-timer.C:
		}
		wait := time.Duration(0)
		for wait <= 0 {
			select {
			case <-done:
				return
			default:
			}
			wait = p.deliver()
		}
		if wait < never {
			timer.Reset(wait)
		}
	}
}

// deliver lets packets leave that are due, at most maxDeliveries, and returns how
// long to wait for the next one.
func (p *pair) deliver() (wait time.Duration) {
	p.delivering.Lock()
	defer p.delivering.Unlock()
	n := 0
	p.mu.Lock()
	now := p.clock.now()
	for n < len(p.batch) {
		pk, ok := p.model.take(now)
		if !ok {
			break
		}
		p.batch[n] = pk
		n++
	}
	p.alarm = never
	if due, ok := p.model.next(); ok {
		p.alarm = due
	}
	alarm := p.alarm
	p.mu.Unlock()
	for i, pk := range p.batch[:n] {
		if err := pk.exit.deliver(pk.bytes); err != nil {
			p.mu.Lock()
			p.model.refuse(pk.size)
			p.mu.Unlock()
		}
		p.pool.put(pk)
		p.batch[i] = nil
	}
	if alarm == never {
		return never
	}
	return alarm - p.clock.now()
}
