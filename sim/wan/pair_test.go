package wan

import (
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// log is an exit that notes what leaves, and when.
type log struct {
	clock clock
	mu    sync.Mutex
	list  []arrival
	fail  bool
}

func (l *log) deliver(p []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fail {
		return errors.New("planted failure")
	}
	l.list = append(l.list, arrival{int(p[0]), l.clock.now()})
	return nil
}

func (l *log) taken() []arrival {
	l.mu.Lock()
	defer l.mu.Unlock()
	list := l.list
	l.list = nil
	return list
}

// runPair starts a pair in a bubble of virtual time and returns how to send a
// packet of 100 bytes.
func runPair(t *testing.T, link Link) (p *pair, l *log, send func(ids ...int)) {
	t.Helper()
	c := newClock()
	l = &log{clock: c}
	p = newPair(c, &packets{}, link, rand.New(rand.NewPCG(1, 2)))
	done := make(chan struct{})
	var running sync.WaitGroup
	running.Go(func() { p.run(done) })
	t.Cleanup(func() {
		close(done)
		running.Wait()
	})
	send = func(ids ...int) {
		var list []*packet
		for _, id := range ids {
			pk := p.pool.get()
			pk.bytes, pk.size, pk.exit = append(pk.room[:0], byte(id)), 100, l
			list = append(list, pk)
		}
		p.send(list...)
	}
	return p, l, send
}

func TestPair_DeliversWhenItIsDue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, l, send := runPair(t, Link{Delay: 40 * ms})
		send(0, 1)
		time.Sleep(10 * ms)
		send(2)
		time.Sleep(time.Second)
		send(3)
		time.Sleep(40 * ms)
		synctest.Wait()
		checkArrivals(t, l.taken(), []arrival{{0, 40 * ms}, {1, 40 * ms}, {2, 50 * ms}, {3, 1050 * ms}})
		checkStats(t, p.stats(), Stats{Sent: 4, SentBytes: 400, Delivered: 4, DeliveredBytes: 400})
	})
}

func TestPair_WakesForAnEarlierPacket(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, l, send := runPair(t, Link{Delay: time.Minute, Jitter: 1})
		send(0)
		time.Sleep(time.Second)
		p.set(func(link Link) Link {
			link.Delay = ms // jitter allows the next one to overtake
			return link
		})
		send(1)
		time.Sleep(2 * ms)
		synctest.Wait()
		if got := l.taken(); len(got) != 1 || got[0].id != 1 {
			t.Errorf("got %v, want packet 1 alone", got)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := l.taken(); len(got) != 1 || got[0].id != 0 {
			t.Errorf("got %v, want packet 0 alone", got)
		}
	})
}

func TestPair_ManyPacketsAtOnceKeepTheirOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, l, send := runPair(t, Link{Delay: ms})
		var want []arrival
		for i := range 3*maxDeliveries + 1 {
			send(i % 256)
			want = append(want, arrival{i % 256, ms})
		}
		time.Sleep(ms)
		synctest.Wait()
		checkArrivals(t, l.taken(), want)
	})
}

func TestPair_WhatIsRefusedIsCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, l, send := runPair(t, Link{Delay: ms})
		l.fail = true
		send(0, 1)
		time.Sleep(ms)
		synctest.Wait()
		checkStats(t, p.stats(), Stats{Sent: 2, SentBytes: 200, Refused: 2})
	})
}

// TestPair_NothingArrivesAfterItWasCut cuts the link while another goroutine sends
// without a pause: what set returned after is all that there is (I4).
func TestPair_NothingArrivesAfterItWasCut(t *testing.T) {
	p, l, send := runPair(t, Link{})
	stop := make(chan struct{})
	var sending sync.WaitGroup
	sending.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				send(1)
			}
		}
	})
	for range 100 {
		before := p.stats().Delivered
		waitFor(t, "a packet to arrive", func() bool { return p.stats().Delivered > before })
		p.set(func(link Link) Link { link.Down = true; return link })
		l.taken()
		cut := p.stats().Cut
		waitFor(t, "a packet to be dropped", func() bool { return p.stats().Cut > cut })
		if got := l.taken(); got != nil {
			t.Fatalf("%d packets arrived after the link was cut", len(got))
		}
		p.set(func(link Link) Link { link.Down = false; return link })
	}
	close(stop)
	sending.Wait()
	checkSum(t, p.stats())
}

func TestRing_IsAQueue(t *testing.T) {
	var r ring[int]
	var want []int
	rng := rand.New(rand.NewPCG(3, 4))
	for i := range 10_000 {
		if rng.IntN(5) < 3 || len(want) == 0 {
			r.push(i)
			want = append(want, i)
		} else if got := r.pop(); got != want[0] {
			t.Fatalf("got %d, want %d", got, want[0])
		} else {
			want = want[1:]
		}
	}
	var got []int
	for i := range r.len() {
		got = append(got, *r.at(i))
	}
	if !slices.Equal(got, want) || len(want) < 2*minRingSlots {
		t.Errorf("got %d elements, want %d", len(got), len(want))
	}
}
