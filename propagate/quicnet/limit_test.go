package quicnet

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/quic-go/quic-go"

	"scstore"
)

func TestDoor_SkewIsReported(t *testing.T) {
	w := newWorld(t)
	var mu sync.Mutex
	seen := map[string]time.Duration{}
	a := w.host(t, 1, func(o *Options) {
		o.Skew = func(p Peer, skew time.Duration) {
			mu.Lock()
			defer mu.Unlock()
			seen[p.Host] = skew
		}
	})
	r := newRaw(t)
	conn, err := r.dial(a, protocolPeer, w.keys(t, 2).Certificate())
	if err != nil {
		t.Fatal(err)
	}
	ahead := hello{min: WireMin, max: WireMax, cluster: w.cluster, incarnation: 1, disk: disk(2), boot: 1, clock: time.Now().Add(24 * time.Hour), host: "host-2"}
	if _, err := r.say(conn, ahead.encode()); err != nil {
		t.Fatal(err)
	}
	w.host(t, 3, nil)
	mustEcho(t, a, 3, ClassRaft)
	mu.Lock()
	defer mu.Unlock()
	if got := seen["host-2"]; got < 23*time.Hour || got > 25*time.Hour {
		t.Errorf("a clock that is a day ahead is reported as %v", got)
	}
	if got, met := seen["host-3"]; !met || got < -time.Hour || got > time.Hour {
		t.Errorf("our own clock is reported as %v", got)
	}
}

func TestMetrics_AreWellFormedAndCount(t *testing.T) {
	w := newWorld(t)
	registry := prometheus.NewPedanticRegistry()
	a := w.host(t, 1, func(o *Options) { o.Registerer = registry })
	w.host(t, 2, nil)
	mustEcho(t, a, 2, ClassDemand)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]float64{}
	for _, f := range families {
		if !strings.HasPrefix(f.GetName(), "scstore_quicnet_") || f.GetHelp() == "" {
			t.Errorf("metric %q: %q", f.GetName(), f.GetHelp())
		}
		for _, m := range f.GetMetric() {
			names[f.GetName()] += m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	for _, name := range []string{"links", "streams_total", "sent_bytes_total", "received_bytes_total", "dials_total", "rtt_seconds", "link_sent_bytes_total", "certificate_expiry_timestamp_seconds"} {
		if names["scstore_quicnet_"+name] <= 0 {
			t.Errorf("%s is %v", name, names["scstore_quicnet_"+name])
		}
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	w.host(t, 1, func(o *Options) { o.Registerer = registry }) // as a restart in one process would
}

func TestWindows_AllPeersShareOneBudget(t *testing.T) {
	w := newWorld(t)
	a := w.host(t, 1, nil)
	r := newRaw(t)
	var conns []*quic.Conn
	for range 2 {
		conn, err := r.dial(a, protocolJoin, nil)
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, conn)
	}
	win := newWindows()
	if !win.allow(conns[0], MaxWindowBytes-10) || win.allow(conns[1], 11) || !win.allow(conns[1], 10) || win.bytes() != MaxWindowBytes {
		t.Errorf("%d bytes granted", win.bytes())
	}
	win.release(conns[0])
	if win.bytes() != 10 || !win.allow(conns[1], 100) {
		t.Errorf("%d bytes granted after a release", win.bytes())
	}
	_ = conns[1].CloseWithError(0, "")
	if win.allow(conns[1], 1) {
		t.Error("a closed connection was granted a window that nobody gives back")
	}
	_ = conns[0].CloseWithError(0, "")
}

func TestRequest_BytesOfOnePeerAreLimited(t *testing.T) {
	w := newWorld(t)
	a, b := w.host(t, 1, nil), w.open(t, 2, nil)
	held, leave := make(chan struct{}, 100), make(chan struct{})
	b.Answer(kindBlock, func(context.Context, Peer, []byte) ([]byte, error) {
		held <- struct{}{}
		<-leave
		return nil, nil
	})
	if err := b.Start(); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	payload := make([]byte, MaxFrameBytes)
	for range MaxRequestBytesPerPeer / MaxFrameBytes {
		wg.Go(func() {
			if _, err := a.Request(t.Context(), disk(2), ClassAsync, kindBlock, payload); err != nil {
				t.Error(err)
			}
		})
	}
	for range MaxRequestBytesPerPeer / MaxFrameBytes {
		<-held
	}
	if _, err := a.Request(t.Context(), disk(2), ClassAsync, kindBlock, payload); !errors.Is(err, scstore.ErrBusy) {
		t.Errorf("one more: %v", err)
	}
	close(leave)
	wg.Wait()
	if _, err := a.Request(t.Context(), disk(2), ClassAsync, kindBlock, payload); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

// TestSim_StrangersAtTheDoorAreLimited has as many connections as may wait say
// nothing.
func TestSim_StrangersAtTheDoorAreLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, wan := newWorld(t), newWAN(5*time.Millisecond, 0)
		a := w.host(t, 1, wan.on(1, nil))
		w.host(t, 3, wan.on(3, nil))
		r := wan.raw(t, 2)
		certificate := w.keys(t, 2).Certificate()
		for range MaxHandshakes {
			if _, err := r.dial(a, protocolPeer, certificate); err != nil {
				t.Fatal(err)
			}
		}
		conn, err := r.dial(a, protocolPeer, certificate)
		if err != nil {
			t.Fatal(err)
		}
		<-conn.Context().Done()
		var closed *quic.ApplicationError
		if cause := context.Cause(conn.Context()); !errors.As(cause, &closed) || !errors.Is(wireCode(uint64(closed.ErrorCode)).sentinel(), scstore.ErrBusy) {
			t.Errorf("one more was closed with %v", cause)
		}
		if refusals(a, reasonLimit) != 1 {
			t.Errorf("%v refusals", refusals(a, reasonLimit))
		}
		time.Sleep(HelloTimeout + time.Second)
		mustEcho(t, a, 3, ClassRaft)
		if refusals(a, reasonTimeout) != MaxHandshakes {
			t.Errorf("%v ran out of time", refusals(a, reasonTimeout))
		}
	})
}

// TestSim_RequestUnderWayToAClosingConnectionIsSentAgain has the far end close a
// quiet connection while a request is on its way to it.
func TestSim_RequestUnderWayToAClosingConnectionIsSentAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, wan := newWorld(t), newWAN(40*time.Millisecond, 0)
		one := func(o *Options) { o.Bulk = 1 }
		a, b := w.host(t, 1, wan.on(1, one)), w.open(t, 2, wan.on(2, one))
		served := 0
		b.Answer(kindEcho, func(_ context.Context, from Peer, request []byte) ([]byte, error) {
			served++
			return append([]byte(from.Host+":"), request...), nil
		})
		if err := b.Start(); err != nil {
			t.Fatal(err)
		}
		mustEcho(t, b, 1, ClassAsync) // b dials, so b closes
		time.Sleep(time.Second)
		p, err := b.peer(disk(1))
		if err != nil {
			t.Fatal(err)
		}
		answer := make(chan error, 1)
		go func() { answer <- echo(t.Context(), a, 2, ClassAsync) }()
		time.Sleep(20 * time.Millisecond) // halfway
		if links(a) != 1 || links(b) != 1 {
			t.Fatalf("%d and %d connections", links(a), links(b))
		}
		p.sweep(time.Now().Add(2 * BulkIdle))
		if err := <-answer; err != nil {
			t.Errorf("got %v", err)
		}
		if served != 1 {
			t.Errorf("served %d times", served)
		}
	})
}

func TestLink_ServesNothingOnceItIsClosing(t *testing.T) {
	w := newWorld(t)
	p := newPeer(w.host(t, 1, nil), disk(2))
	l := &link{n: p.n, peer: p, closing: true}
	if err := l.enter(); !errors.Is(err, scstore.ErrClosed) || l.active != 0 || p.accepted != 0 {
		t.Errorf("got %v, %d streams", err, l.active)
	}
	if l.idleLocked(time.Now().Add(time.Hour)) {
		t.Error("it is closed once more")
	}
}

// TestDoor_HostRemovedWhileItShookHandsIsCutOff: the removal, and the Disconnect that
// follows it, come between the look at the hello and the link.
func TestDoor_HostRemovedWhileItShookHandsIsCutOff(t *testing.T) {
	w := newWorld(t)
	var looks atomic.Int32
	a := w.host(t, 1, func(o *Options) {
		o.Allowed = func(Peer) error {
			if looks.Add(1) == 1 {
				return nil
			}
			return scstore.ErrFenced
		}
	})
	b := w.host(t, 2, nil)
	if err := echo(t.Context(), b, 1, ClassRaft); err == nil {
		t.Log("one request came through before the cut")
	}
	eventually(t, "the connection is closed", func() bool { return looks.Load() > 1 && links(a) == 0 })
	if err := echo(t.Context(), b, 1, ClassRaft); !errors.Is(err, scstore.ErrFenced) && !errors.Is(err, scstore.ErrIndeterminate) {
		t.Errorf("got %v", err)
	}
}
