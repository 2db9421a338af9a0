package quicnet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/quic-go/quic-go/testutils/simnet"
	"golang.org/x/sync/errgroup"

	"scstore"
)

// wan carries packets in virtual time: each host has an up-link of its own.
type wan struct {
	oneWay         time.Duration
	bytesPerSecond int // of each up-link; 0: no limit
	loss           float64

	mu    sync.Mutex
	rng   *rand.Rand
	nodes map[string]simnet.PacketReceiver
	free  map[string]time.Time // when a host's up-link has sent what it was given
	cut   bool                 // nothing passes
}

func newWAN(oneWay time.Duration, bytesPerSecond int) *wan {
	return &wan{oneWay: oneWay, bytesPerSecond: bytesPerSecond, nodes: map[string]simnet.PacketReceiver{}, free: map[string]time.Time{}, rng: rand.New(rand.NewPCG(1, 1))}
}

// maxQueue is what an up-link holds back, in time; more is dropped.
const maxQueue = 300 * time.Millisecond

func (w *wan) AddNode(addr net.Addr, r simnet.PacketReceiver) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.nodes[addr.String()] = r
}

func (w *wan) SendPacket(p simnet.Packet) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	to, from, now := w.nodes[p.To.String()], p.From.String(), time.Now()
	if to == nil || w.cut {
		return nil
	}
	leave := now
	if w.bytesPerSecond > 0 {
		if w.free[from].After(now) {
			leave = w.free[from]
		}
		if leave.Sub(now) > maxQueue {
			return nil
		}
		leave = leave.Add(time.Duration(len(p.Data)) * time.Second / time.Duration(w.bytesPerSecond))
		w.free[from] = leave
	}
	if w.loss > 0 && w.rng.Float64() < w.loss {
		return nil
	}
	time.AfterFunc(leave.Sub(now)+w.oneWay, func() { to.RecvPacket(p) })
	return nil
}

func (w *wan) setCut(cut bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cut = cut
}

func (w *wan) port(n byte) net.PacketConn {
	return simnet.NewBlockingSimConn(&net.UDPAddr{IP: net.IPv4(10, 0, 0, n), Port: 7400}, w)
}

// raw puts one on the network that says what a test has it say.
func (w *wan) raw(t *testing.T, n byte) *raw {
	t.Helper()
	return rawOn(t, w.port(n))
}

// on puts a host on the network.
func (w *wan) on(n byte, change func(*Options)) func(*Options) {
	return func(o *Options) {
		o.Conn = w.port(n)
		if change != nil {
			change(o)
		}
	}
}

// links returns how many connections a host has with its one peer.
func links(h *Net) (n int) {
	for _, st := range h.Status() {
		n += st.Links
	}
	return n
}

func TestSim_OfTwoConnectionsDialedAtOnceOneStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, wan := newWorld(t), newWAN(40*time.Millisecond, 0)
		a, b := w.host(t, 1, wan.on(1, nil)), w.host(t, 2, wan.on(2, nil))
		var wg sync.WaitGroup
		for range 5 {
			wg.Go(func() { mustEcho(t, a, 2, ClassRaft) })
			wg.Go(func() { mustEcho(t, b, 1, ClassRaft) })
		}
		wg.Wait()
		if links(a) != 2 || links(b) != 2 {
			t.Errorf("%d and %d connections: they were not dialed at once", links(a), links(b))
		}
		for range 20 {
			time.Sleep(time.Second)
			mustEcho(t, a, 2, ClassRaft)
			mustEcho(t, b, 1, ClassRaft)
		}
		if links(a) != 1 || links(b) != 1 {
			t.Errorf("%d and %d connections stay", links(a), links(b))
		}
	})
}

func TestSim_QuietPoolIsClosedAndControlIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, wan := newWorld(t), newWAN(40*time.Millisecond, 0)
		a, b := w.host(t, 1, wan.on(1, nil)), w.host(t, 2, wan.on(2, nil))
		mustEcho(t, a, 2, ClassRaft)
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() { mustEcho(t, a, 2, ClassAsync) })
		}
		wg.Wait()
		if links(a) < 2 {
			t.Errorf("%d connections", links(a))
		}
		time.Sleep(BulkIdle + 2*sweepPeriod)
		if links(a) != 1 || links(b) != 1 {
			t.Errorf("%d and %d connections after a quiet minute", links(a), links(b))
		}
		time.Sleep(time.Hour)
		if links(a) != 1 || links(b) != 1 {
			t.Errorf("%d and %d connections after a quiet hour", links(a), links(b))
		}
		mustEcho(t, b, 1, ClassAsync)
	})
}

// TestSim_FirstDemandReadTakesOneRoundTrip: it does not wait for the pool.
func TestSim_FirstDemandReadTakesOneRoundTrip(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, wan := newWorld(t), newWAN(40*time.Millisecond, 0)
		a := w.host(t, 1, wan.on(1, nil))
		w.host(t, 2, wan.on(2, nil))
		mustEcho(t, a, 2, ClassRaft)
		time.Sleep(time.Second)
		begin := time.Now()
		mustEcho(t, a, 2, ClassDemand)
		if took := time.Since(begin); took > 85*time.Millisecond {
			t.Errorf("took %v with a round trip of 80 ms", took)
		}
	})
}

func TestSim_PartitionIsNoticedAndHeals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, wan := newWorld(t), newWAN(40*time.Millisecond, 0)
		a := w.host(t, 1, wan.on(1, nil))
		b := w.host(t, 2, wan.on(2, nil))
		mustEcho(t, a, 2, ClassRaft)
		wan.setCut(true)
		begin := time.Now()
		if err := echo(t.Context(), a, 2, ClassRaft); !errors.Is(err, scstore.ErrIndeterminate) {
			t.Errorf("a request into the partition: %v", err)
		}
		if took := time.Since(begin); took > IdleTimeout+KeepAlive {
			t.Errorf("noticed after %v", took)
		}
		if err := echo(t.Context(), a, 2, ClassRaft); !errors.Is(err, scstore.ErrUnreachable) {
			t.Errorf("the next request: %v", err)
		}
		time.Sleep(time.Minute)
		wan.setCut(false)
		time.Sleep(maxBackoff)
		mustEcho(t, a, 2, ClassRaft)
		mustEcho(t, b, 1, ClassRaft)
	})
}

// TestSim_RestartedHostIsReachedAtOnce: a host that lost its connections without a
// word, as after kill -9, tells its peers when they next ask.
func TestSim_RestartedHostIsReachedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, wan := newWorld(t), newWAN(40*time.Millisecond, 0)
		a := w.host(t, 1, wan.on(1, nil))
		keys := w.keys(t, 2)
		old := w.host(t, 2, wan.on(2, func(o *Options) { o.Keys = keys }))
		mustEcho(t, a, 2, ClassRaft)
		wan.setCut(true) // so that the old one's farewell is lost
		if err := old.Close(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		w.host(t, 2, wan.on(2, func(o *Options) { o.Keys, o.Boot = keys, 2 }))
		wan.setCut(false)
		begin := time.Now()
		for echo(t.Context(), a, 2, ClassRaft) != nil {
			time.Sleep(10 * time.Millisecond)
		}
		if took := time.Since(begin); took > time.Second {
			t.Errorf("reached after %v", took)
		}
	})
}

func TestSim_CapHoldsBulkBackAndNothingElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const perSecond = 256 << 10
		w, wan := newWorld(t), newWAN(10*time.Millisecond, 0)
		a := w.host(t, 1, wan.on(1, func(o *Options) { o.BandwidthBytes = perSecond }))
		b := w.open(t, 2, wan.on(2, nil))
		b.Handle(kindDrain, drain)
		if err := b.Start(); err != nil {
			t.Fatal(err)
		}
		mustEcho(t, a, 2, ClassRaft)
		for _, c := range []struct {
			class    Class
			min, max time.Duration
		}{
			{ClassAsync, 3500 * time.Millisecond, 5 * time.Second},
			{ClassDemand, 0, time.Second},
		} {
			begin := time.Now()
			if err := send(t.Context(), a, 2, c.class, 4*perSecond); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(begin); took < c.min || took > c.max {
				t.Errorf("%s: took %v, want %v to %v", c.class, took, c.min, c.max)
			}
		}
		// What demand took, bulk waits for.
		begin := time.Now()
		if err := send(t.Context(), a, 2, ClassAsync, perSecond); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begin); took < 3*time.Second {
			t.Errorf("bulk after demand took %v", took)
		}
	})
}

// drain reads a stream to its end and answers with how much it was.
func drain(_ context.Context, _ Peer, s *Stream) error {
	n, err := io.Copy(io.Discard, s)
	if err != nil {
		return err
	}
	_, err = fmt.Fprint(s, n)
	return err
}

// send sends n bytes and waits until they were read.
func send(ctx context.Context, from *Net, to byte, class Class, n int) error {
	s, err := from.OpenStream(ctx, disk(to), class, kindDrain)
	if err != nil {
		return err
	}
	defer s.Cancel(scstore.ErrClosed)
	if _, err := s.Write(make([]byte, n)); err != nil {
		return err
	}
	if err := s.CloseWrite(); err != nil {
		return err
	}
	got, err := io.ReadAll(s)
	if err == nil && string(got) != fmt.Sprint(n) {
		err = fmt.Errorf("%s of %d bytes arrived", got, n)
	}
	return err
}

// TestSim_UrgentStreamsOvertake fills a slow link with repair and then sends demand
// over the same connection: it must arrive as if it were alone.
func TestSim_UrgentStreamsOvertake(t *testing.T) {
	const perSecond, size = 1 << 20, 2 << 20
	took := map[Class]time.Duration{}
	for _, class := range []Class{ClassDemand, ClassRepair} {
		synctest.Test(t, func(t *testing.T) {
			w, wan := newWorld(t), newWAN(10*time.Millisecond, perSecond)
			one := func(o *Options) { o.Bulk = 1 }
			a, b := w.host(t, 1, wan.on(1, one)), w.open(t, 2, wan.on(2, one))
			b.Handle(kindDrain, drain)
			if err := b.Start(); err != nil {
				t.Fatal(err)
			}
			mustEcho(t, a, 2, ClassAsync) // the one connection of the pool
			bulk := make(chan error, 1)
			go func() { bulk <- send(t.Context(), a, 2, ClassRepair, 4*size) }()
			time.Sleep(time.Second)
			begin := time.Now()
			if err := send(t.Context(), a, 2, class, size); err != nil {
				t.Fatal(err)
			}
			took[class] = time.Since(begin)
			if err := <-bulk; err != nil {
				t.Fatal(err)
			}
		})
	}
	if alone := size * time.Second / perSecond; took[ClassDemand] > alone*5/4 || took[ClassRepair] < alone*3/2 {
		t.Errorf("2 MiB took %v as demand and %v as repair; alone %v", took[ClassDemand], took[ClassRepair], alone)
	}
}

// TestSim_StreamsThatBeginTogetherShareThePool opens many when there is no connection yet.
// What can wait is spread over the pool; a sync goes at once.
func TestSim_StreamsThatBeginTogetherShareThePool(t *testing.T) {
	for class, spread := range map[Class]bool{ClassSync: false, ClassAsync: true, ClassRepair: true} {
		synctest.Test(t, func(t *testing.T) {
			w, wan := newWorld(t), newWAN(40*time.Millisecond, 0)
			a, b := w.host(t, 1, wan.on(1, nil)), w.open(t, 2, wan.on(2, nil))
			b.Handle(kindDrain, drain)
			if err := b.Start(); err != nil {
				t.Fatal(err)
			}
			var wg sync.WaitGroup
			for range DefaultBulk * crowdedStreams {
				wg.Go(func() {
					s, err := a.OpenStream(t.Context(), disk(2), class, kindDrain)
					if err != nil {
						t.Error(err)
						return
					}
					defer s.Cancel(scstore.ErrClosed)
					time.Sleep(time.Minute)
				})
			}
			time.Sleep(time.Second)
			p, most := a.all()[0], 0
			p.mu.Lock()
			for l := range p.links {
				most = max(most, l.active)
			}
			p.mu.Unlock()
			if spread != (most <= 2*crowdedStreams) {
				t.Errorf("%s: a connection has %d of %d streams", class, most, DefaultBulk*crowdedStreams)
			}
			wg.Wait()
		})
	}
}

// TestSim_LossWithoutAQueueWidensThePool sends bulk over a link that loses packets, and
// over one that is full.
func TestSim_LossWithoutAQueueWidensThePool(t *testing.T) {
	const perSecond = 5 << 20
	for name, c := range map[string]struct {
		loss  float64
		wider bool
	}{
		"lossy": {0.005, true},
		"full":  {0, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, wan := newWorld(t), newWAN(50*time.Millisecond, perSecond)
				wan.loss = c.loss
				a, b := w.host(t, 1, wan.on(1, nil)), w.open(t, 2, wan.on(2, nil))
				b.Handle(kindDrain, drain)
				if err := b.Start(); err != nil {
					t.Fatal(err)
				}
				end := time.Now().Add(8 * time.Second)
				var senders errgroup.Group
				for range MaxBulk {
					senders.Go(func() error {
						for time.Now().Before(end) {
							if err := send(t.Context(), a, 2, ClassAsync, 256<<10); err != nil {
								return err
							}
						}
						return nil
					})
				}
				if err := senders.Wait(); err != nil {
					t.Fatal(err)
				}
				if got := links(a) - 1; c.wider != (got > DefaultBulk) { // one is for control
					t.Errorf("the pool has %d connections, %d by default", got, DefaultBulk)
				}
				time.Sleep(BulkIdle + 2*sweepPeriod)
				if got := links(a); got > 1 {
					t.Errorf("%d connections after a quiet minute", got)
				}
			})
		})
	}
}

func TestSim_CertificatesRenewThemselves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, wan := newWorld(t), newWAN(40*time.Millisecond, 0)
		holders := func() []scstore.StoreID { return []scstore.StoreID{disk(1)} }
		a := w.host(t, 1, wan.on(1, func(o *Options) { o.Lifetime = time.Hour }))
		b := w.host(t, 2, wan.on(2, func(o *Options) {
			o.Keys, o.KeyHolders = w.issue(t, w.identity(2), time.Now(), time.Hour), holders
		}))
		first := b.o.Keys.Certificate().Leaf.NotAfter
		for range 6 {
			time.Sleep(30 * time.Minute)
			mustEcho(t, a, 2, ClassAsync) // the pool is new each time, and so are its certificates
			mustEcho(t, b, 1, ClassAsync)
		}
		if last := b.o.Keys.Certificate().Leaf.NotAfter; !last.After(first.Add(2 * time.Hour)) {
			t.Errorf("after three hours the certificate ends at %v, the first one at %v", last, first)
		}
	})
}

func TestSim_LapsedCertificateIsRefusedUntilAPersonActs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, wan := newWorld(t), newWAN(40*time.Millisecond, 0)
		a := w.host(t, 1, wan.on(1, nil))
		b := w.host(t, 2, wan.on(2, func(o *Options) {
			o.Keys = w.issue(t, w.identity(2), time.Now(), time.Hour) // and nobody to renew it
		}))
		mustEcho(t, b, 1, ClassAsync)
		time.Sleep(2 * time.Hour)
		if err := echo(t.Context(), b, 1, ClassAsync); err == nil {
			t.Error("an expired certificate was taken")
		}
		if err := echo(t.Context(), a, 2, ClassAsync); !errors.Is(err, scstore.ErrInvalid) {
			t.Errorf("the host with the expired certificate was dialed: %v", err)
		}
		if refusals(a, reasonCertificate) == 0 {
			t.Error("not counted")
		}
	})
}

// TestSim_SilenceIsLimited dials and says nothing, too little, or half a header.
func TestSim_SilenceIsLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, wan := newWorld(t), newWAN(40*time.Millisecond, 0)
		a := w.host(t, 1, wan.on(1, nil))
		r := wan.raw(t, 2)
		greeting := hello{min: WireMin, max: WireMax, cluster: w.cluster, incarnation: 1, disk: disk(2), boot: 1, clock: time.Now(), host: "host-2"}.encode()
		for n, first := range [][]byte{nil, greeting[:10]} {
			conn, err := r.dial(a, protocolPeer, w.keys(t, 2).Certificate())
			if err != nil {
				t.Fatal(err)
			}
			if first != nil {
				s, err := conn.OpenStreamSync(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				if _, err := s.Write(first); err != nil {
					t.Fatal(err)
				}
			}
			<-conn.Context().Done()
			if got := refusals(a, reasonTimeout); got != float64(n+1) {
				t.Errorf("%d bytes said: %v refusals", len(first), got)
			}
		}
		conn, err := r.dial(a, protocolPeer, w.keys(t, 2).Certificate())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.say(conn, greeting); err != nil {
			t.Fatal(err)
		}
		s, err := conn.OpenStreamSync(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Write([]byte{0, 0}); err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		if _, err := s.Read(make([]byte, 1)); err == nil {
			t.Error("half a header was answered")
		}
		if took := time.Since(begin); took > HeaderTimeout+time.Second {
			t.Errorf("given up after %v", took)
		}
		_ = conn.CloseWithError(0, "")
	})
}

// TestSim_JoinIsAllThatAJoiningConnectionCanDo tries to be served without a
// certificate.
func TestSim_JoinIsAllThatAJoiningConnectionCanDo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, g, wan := newWorld(t), newGate(), newWAN(40*time.Millisecond, 0)
		a := w.host(t, 1, wan.on(1, func(o *Options) { o.Joiner = g }))
		greeting := hello{min: WireMin, max: WireMax, cluster: w.cluster, incarnation: 1, disk: disk(2), boot: 1, clock: time.Now(), host: "host-2"}
		r := wan.raw(t, 2)
		conn, err := r.dial(a, protocolJoin, nil)
		if err != nil {
			t.Fatal(err)
		}
		b, err := r.say(conn, greeting.encode())
		if err != nil {
			t.Fatal(err)
		}
		if _, remote, err := parseReply(b); err != nil || !errors.Is(remote, scstore.ErrInvalid) {
			t.Errorf("a hello is answered with %v, %v", remote, err)
		}
		if got, err := r.say(conn, append(header{kind: kindEcho, request: true}.appendTo(nil), 0, 0, 0, 0)); err == nil {
			t.Errorf("a request on a joining connection is answered: %x", got)
		}
		if len(a.Status()) != 0 || refusals(a, reasonMalformed) != 1 || len(g.calls()) != 0 {
			t.Errorf("peers %v, %v refusals, %d joins", a.Status(), refusals(a, reasonMalformed), len(g.calls()))
		}
	})
}
