package quicnet

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/quic-go/quic-go"

	"scstore"
	"scstore/propagate/quicnet/authority"
)

func TestDoor_HostsOfOneClusterTalkBothWays(t *testing.T) {
	w := newWorld(t)
	a, b := w.host(t, 1, nil), w.host(t, 2, nil)
	for class := range classCount {
		mustEcho(t, a, 2, class)
		mustEcho(t, b, 1, class)
	}
	for _, h := range []*Net{a, b} {
		if n := allRefusals(h); n != 0 {
			t.Errorf("%v refusals", n)
		}
		for _, st := range h.Status() {
			if st.Links == 0 || st.RTT <= 0 || st.SentBytes == 0 || st.Host == "" {
				t.Errorf("status %+v", st)
			}
		}
	}
}

// TestDoor_CertificatesThatAreNotOursAreRefused dials with certificates that TLS
// itself has no objection to.
func TestDoor_CertificatesThatAreNotOursAreRefused(t *testing.T) {
	w := newWorld(t)
	a := w.host(t, 1, nil)
	sameID, err := authority.Create(filepath.Join(t.TempDir(), "k"), w.identity(2), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	other := w.identity(2)
	other.Cluster[7]++
	otherID, err := authority.Create(filepath.Join(t.TempDir(), "k"), other, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for name, keys := range map[string]*authority.Keys{
		"another authority for the same cluster id": sameID,
		"another cluster": otherID,
		"expired":         w.issue(t, w.identity(2), time.Now().Add(-2*time.Hour), time.Hour),
		"not yet valid":   w.issue(t, w.identity(2), time.Now().Add(3*time.Hour), time.Hour),
	} {
		before := refusals(a, reasonCertificate)
		stranger := w.host(t, 2, func(o *Options) { o.Keys = keys })
		err := echo(t.Context(), stranger, 1, ClassRaft)
		if err == nil {
			t.Errorf("%s: served", name)
		}
		// This host does not talk to it either, whoever dials.
		if err := echo(t.Context(), a, 2, ClassRaft); !errors.Is(err, scstore.ErrInvalid) && !errors.Is(err, scstore.ErrUnreachable) {
			t.Errorf("%s: dialed: %v", name, err)
		}
		// The stranger may have turned away first; with its own eyes shut it is refused
		// here.
		r := newRaw(t)
		conn, err := r.dial(a, protocolPeer, keys.Certificate())
		if err == nil {
			_, err = r.say(conn, testHello().encode())
		}
		if err == nil {
			t.Errorf("%s: got a hello", name)
		}
		eventually(t, name+" is counted", func() bool { return refusals(a, reasonCertificate) > before })
		if err := stranger.Close(); err != nil {
			t.Error(err)
		}
		a.Disconnect(disk(2), scstore.ErrClosed)
	}
	r := newRaw(t)
	conn, err := r.dial(a, protocolPeer, nil)
	if err == nil {
		_, err = r.say(conn, testHello().encode())
	}
	if err == nil {
		t.Error("no certificate: got a hello")
	}
}

func TestDoor_DialedDiskMustAnswer(t *testing.T) {
	w := newWorld(t)
	a := w.host(t, 1, nil)
	w.host(t, 2, nil)
	third := w.host(t, 3, nil)
	w.place(2, third.Addr().String()) // whoever says where hosts are is wrong, or lies
	if err := echo(t.Context(), a, 2, ClassRaft); !errors.Is(err, scstore.ErrInvalid) {
		t.Errorf("got %v", err)
	}
	mustEcho(t, a, 3, ClassRaft)
}

// TestDoor_HelloThatLiesIsRefusedWithAReason has a host with a good certificate say
// what is not so.
func TestDoor_HelloThatLiesIsRefusedWithAReason(t *testing.T) {
	w := newWorld(t)
	var served atomic.Int32
	a := w.open(t, 1, nil)
	a.Answer(kindEcho, func(context.Context, Peer, []byte) ([]byte, error) { served.Add(1); return nil, nil })
	if err := a.Start(); err != nil {
		t.Fatal(err)
	}
	good := hello{min: WireMin, max: WireMax, cluster: w.cluster, incarnation: 1, disk: disk(2), boot: 1, clock: time.Now(), host: "host-2"}
	lie := func(f func(*hello)) []byte {
		h := good
		f(&h)
		return h.encode()
	}
	w.remove(4, scstore.ErrFenced)
	for _, c := range []struct {
		name   string
		from   byte
		say    []byte
		reason reason
		want   error
	}{
		{"another's disk", 2, lie(func(h *hello) { h.disk = disk(3) }), reasonIdentity, scstore.ErrInvalid},
		{"this host's disk", 2, lie(func(h *hello) { h.disk = disk(1) }), reasonIdentity, scstore.ErrInvalid},
		{"another's name", 2, lie(func(h *hello) { h.host = "host-3" }), reasonIdentity, scstore.ErrInvalid},
		{"another cluster", 2, lie(func(h *hello) { h.cluster[0]++ }), reasonCluster, scstore.ErrInvalid},
		{"an older incarnation", 2, lie(func(h *hello) { h.incarnation = 0 }), reasonIncarnation, scstore.ErrFenced},
		{"a newer incarnation", 2, lie(func(h *hello) { h.incarnation = 2 }), reasonIncarnation, scstore.ErrFenced},
		{"a newer format", 2, lie(func(h *hello) { h.min, h.max = WireMax+1, WireMax+1 }), reasonVersion, scstore.ErrVersion},
		{"an older format", 2, lie(func(h *hello) { h.min, h.max = 0, WireMin-1 }), reasonVersion, scstore.ErrVersion},
		{"a slot that is none", 2, lie(func(h *hello) { h.slot = MaxBulk + 1 }), reasonMalformed, scstore.ErrInvalid},
		{"a copy of this host", 1, lie(func(h *hello) { h.disk, h.host = disk(1), "host-1" }), reasonSelf, scstore.ErrInvalid},
		{"a removed host", 4, lie(func(h *hello) { h.disk, h.host = disk(4), "host-4" }), reasonDenied, scstore.ErrFenced},
		{"versions upside down", 2, lie(func(h *hello) { h.min, h.max = 2, 1 }), reasonMalformed, scstore.ErrInvalid},
		{"half a hello", 2, good.encode()[:20], reasonMalformed, scstore.ErrUnreachable},
		{"a frame too long", 2, []byte{0, 1, 0, 0}, reasonMalformed, scstore.ErrInvalid},
		{"a request at once", 2, header{kind: kindEcho, request: true}.appendTo(nil), reasonMalformed, scstore.ErrInvalid},
	} {
		before := refusals(a, c.reason)
		r := newRaw(t)
		conn, err := r.dial(a, protocolPeer, w.keys(t, c.from).Certificate())
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		_, err = r.say(conn, c.say)
		if err == nil {
			t.Errorf("%s: got a hello", c.name)
		}
		<-conn.Context().Done()
		var closed *quic.ApplicationError
		if cause := context.Cause(conn.Context()); !errors.As(cause, &closed) || !closed.Remote {
			t.Errorf("%s: closed with %v", c.name, cause)
		} else if got := wireCode(uint64(closed.ErrorCode)).sentinel(); !errors.Is(got, c.want) || closed.ErrorMessage == "" {
			t.Errorf("%s: closed with %v %q, want %v", c.name, got, closed.ErrorMessage, c.want)
		}
		if got := refusals(a, c.reason); got != before+1 {
			t.Errorf("%s: counted %v times as %s", c.name, got-before, c.reason)
		}
	}
	if served.Load() != 0 {
		t.Errorf("%d requests were served", served.Load())
	}
	mustServe(t, w, a)
}

// mustServe checks that a host still serves a good peer.
func mustServe(t *testing.T, w *world, a *Net) {
	t.Helper()
	good := w.host(t, 9, nil)
	if _, err := good.Request(t.Context(), a.o.Keys.Identity().Disk, ClassRaft, kindEcho, nil); err != nil {
		t.Errorf("a good host is refused: %v", err)
	}
}

func TestDoor_StreamsBeforeTheHelloAreNotServed(t *testing.T) {
	w := newWorld(t)
	var served atomic.Int32
	a := w.open(t, 1, nil)
	a.Answer(kindEcho, func(context.Context, Peer, []byte) ([]byte, error) { served.Add(1); return nil, nil })
	if err := a.Start(); err != nil {
		t.Fatal(err)
	}
	r := newRaw(t)
	conn, err := r.dial(a, protocolPeer, w.keys(t, 2).Certificate())
	if err != nil {
		t.Fatal(err)
	}
	control, err := conn.OpenStreamSync(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	request, err := conn.OpenStreamSync(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := request.Write(append(header{kind: kindEcho, request: true}.appendTo(nil), 0, 0, 0, 0)); err != nil {
		t.Fatal(err)
	}
	bad := hello{min: WireMin, max: WireMax, cluster: w.cluster, incarnation: 7, disk: disk(2), host: "host-2", clock: time.Now()}
	if _, err := control.Write(bad.encode()); err != nil {
		t.Fatal(err)
	}
	<-conn.Context().Done()
	if served.Load() != 0 {
		t.Error("a request was served before the hello")
	}
}

func TestDoor_NewerFormatIsRefusedOnBothSides(t *testing.T) {
	w := newWorld(t)
	a, b := w.host(t, 1, nil), w.open(t, 2, nil)
	b.wireMin, b.wireMax = WireMax+1, WireMax+2
	if err := b.Start(); err != nil {
		t.Fatal(err)
	}
	if err := echo(t.Context(), a, 2, ClassRaft); !errors.Is(err, scstore.ErrVersion) {
		t.Errorf("old dials new: %v", err)
	}
	if err := echo(t.Context(), b, 1, ClassRaft); !errors.Is(err, scstore.ErrVersion) {
		t.Errorf("new dials old: %v", err)
	}
	if refusals(a, reasonVersion) == 0 || refusals(b, reasonVersion) == 0 {
		t.Error("not counted on both sides")
	}
}

func TestDoor_OtherIncarnationIsRefused(t *testing.T) {
	w := newWorld(t)
	a, b := w.host(t, 1, nil), w.host(t, 2, func(o *Options) { o.Incarnation = 2 })
	for _, err := range []error{echo(t.Context(), a, 2, ClassRaft), echo(t.Context(), b, 1, ClassRaft)} {
		if !errors.Is(err, scstore.ErrFenced) {
			t.Errorf("got %v", err)
		}
	}
}

func TestDoor_RemovedHostIsCutOffAndStaysOut(t *testing.T) {
	w := newWorld(t)
	a, b := w.host(t, 1, nil), w.host(t, 2, nil)
	mustEcho(t, a, 2, ClassRaft)
	mustEcho(t, b, 1, ClassAsync)
	waiting := make(chan error, 1)
	go func() {
		_, err := b.Request(t.Context(), disk(1), ClassRaft, kindBlock, nil)
		waiting <- err
	}()
	eventually(t, "the request waits", func() bool {
		for _, st := range a.Status() {
			if st.Streams > 0 {
				return true
			}
		}
		return false
	})
	w.remove(2, scstore.ErrFenced)
	a.Disconnect(disk(2), scstore.ErrFenced)
	if err := <-waiting; !errors.Is(err, scstore.ErrIndeterminate) {
		t.Errorf("the request that waited: %v", err)
	}
	eventually(t, "no connection is left", func() bool {
		return len(a.Status()) == 1 && a.Status()[0].Links == 0
	})
	for _, class := range []Class{ClassRaft, ClassAsync} {
		if err := echo(t.Context(), b, 1, class); !errors.Is(err, scstore.ErrFenced) {
			t.Errorf("the removed host asks: %v", err)
		}
		if err := echo(t.Context(), a, 2, class); !errors.Is(err, scstore.ErrFenced) {
			t.Errorf("the removed host is asked: %v", err)
		}
	}
	if refusals(a, reasonDenied) == 0 {
		t.Error("not counted")
	}
}

// TestDoor_RandomDatagramsChangeNothing throws noise at the port, some of it in the
// shape of a first packet.
func TestDoor_RandomDatagramsChangeNothing(t *testing.T) {
	w := newWorld(t)
	a := w.host(t, 1, nil)
	conn, err := net.Dial("udp", a.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	rng := rand.New(rand.NewChaCha8([32]byte{1}))
	for i := range 3000 {
		b := make([]byte, 1+rng.IntN(1400))
		for at := range b {
			b[at] = byte(rng.Uint32())
		}
		switch i % 3 {
		case 1:
			b[0] |= 0xc0
			copy(b[1:], []byte{0, 0, 0, 1, 8}) // a long header of QUIC version 1
		case 2:
			b[0] = b[0]&0x3f | 0x40
		}
		if _, err := conn.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	mustServe(t, w, a)
}

// TestDoor_RandomFramesOfAMemberChangeNothing has a host that is in the cluster send
// noise on its streams.
func TestDoor_RandomFramesOfAMemberChangeNothing(t *testing.T) {
	w := newWorld(t)
	a := w.host(t, 1, nil)
	rng := rand.New(rand.NewChaCha8([32]byte{2}))
	greeting := hello{min: WireMin, max: WireMax, cluster: w.cluster, incarnation: 1, disk: disk(2), boot: 1, clock: time.Now(), host: "host-2"}.encode()
	frame := append(header{kind: kindEcho, class: ClassRaft, request: true}.appendTo(nil), 0, 0, 0, 3, 'a', 'b', 'c')
	for round := range 6 {
		r := newRaw(t)
		conn, err := r.dial(a, protocolPeer, w.keys(t, 2).Certificate())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.say(conn, greeting); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		answered := 0
		for range 100 {
			b := make([]byte, rng.IntN(64))
			for at := range b {
				b[at] = byte(rng.Uint32())
			}
			if rng.IntN(2) == 0 { // a good request with one byte changed
				b = append([]byte(nil), frame...)
				b[rng.IntN(len(b))] = byte(rng.Uint32())
			}
			if _, err := r.say(conn, b); err == nil {
				answered++
			}
		}
		if answered == 0 {
			t.Error("nothing was understood: the noise is no test")
		}
		if _, err := r.say(conn, frame); err != nil {
			t.Errorf("a good request after the noise: %v", err)
		}
		_ = conn.CloseWithError(0, "")
	}
	mustServe(t, w, a)
}
