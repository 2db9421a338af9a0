package quicnet

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/quic-go/quic-go"

	"scstore"
	"scstore/propagate/quicnet/authority"
)

// lines is a log that a test reads.
type lines struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) into(o *Options) { o.Logger = slog.New(slog.NewTextHandler(l, nil)) }

// with returns the lines that have all of the words.
func (l *lines) with(words ...string) (found []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range strings.SplitSeq(l.text.String(), "\n") {
		has := true
		for _, w := range words {
			has = has && strings.Contains(line, w)
		}
		if has {
			found = append(found, line)
		}
	}
	return found
}

// streamsRefused returns how many streams a host refused for a reason.
func streamsRefused(h *Net, r reason) float64 { return testutil.ToFloat64(h.door.streams[r].count) }

func TestSeldom_LetsABurstThroughAndCountsTheRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSeldom()
		var got []int
		for range logBurst + 100 {
			s.do(func(leftOut int) { got = append(got, leftOut) })
		}
		if len(got) != logBurst {
			t.Errorf("%d lines of a burst, want %d", len(got), logBurst)
		}
		time.Sleep(logEvery)
		for range 2 {
			s.do(func(leftOut int) { got = append(got, leftOut) })
		}
		if len(got) != logBurst+1 || got[logBurst] != 100 {
			t.Errorf("left out before each line: %v, want one more line after 100", got)
		}
	})
}

// answering is a Joiner that has one answer.
type answering struct{ err atomic.Pointer[error] }

func (a *answering) Join(context.Context, JoinRequest) (JoinReply, error) {
	return JoinReply{}, *a.err.Load()
}

func TestJoin_RefusalsAreCountedByTheirReason(t *testing.T) {
	w, log, joiner := newWorld(t), &lines{}, &answering{}
	a := w.host(t, 1, func(o *Options) {
		o.Joiner = joiner
		log.into(o)
	})
	token, err := authority.NewToken(w.first.Authority(), time.Now().Add(time.Hour), []string{a.Addr().String()})
	if err != nil {
		t.Fatal(err)
	}
	for sentinel, r := range map[error]reason{
		scstore.ErrInvalid: reasonToken, scstore.ErrExists: reasonName, scstore.ErrFenced: reasonDenied, scstore.ErrVersion: reasonVersion,
		scstore.ErrBusy: reasonJoin,
	} {
		before := refusals(a, r)
		answer := fmt.Errorf("because of %s: %w", r, sentinel)
		joiner.err.Store(&answer)
		if _, err := Join(t.Context(), ask(token, t.TempDir(), 2)); !errors.Is(err, sentinel) {
			t.Errorf("%s: got %v", r, err)
		}
		if got := refusals(a, r) - before; got != 1 {
			t.Errorf("%s: counted %v times", r, got)
		}
		if len(log.with("peer refused", "reason="+string(r), "host=host-2", "because of "+string(r))) != 1 {
			t.Errorf("%s: not logged with its reason", r)
		}
	}
	// A request of a newer format.
	r := newRaw(t)
	conn, err := r.dial(a, protocolJoin, nil)
	if err != nil {
		t.Fatal(err)
	}
	request := joinRequest{disk: disk(2), clock: time.Now(), host: "host-2"}.encode()
	request[4+4]++
	before := refusals(a, reasonVersion)
	if _, err := r.say(conn, request); err != nil {
		t.Errorf("no answer: %v", err)
	}
	if got := refusals(a, reasonVersion) - before; got != 1 {
		t.Errorf("a newer format: counted %v times", got)
	}
}

// TestDoor_HandshakesThatAreBrokenOffAreCounted has the other end give up before it
// has said who it is.
func TestDoor_HandshakesThatAreBrokenOffAreCounted(t *testing.T) {
	w, log := newWorld(t), &lines{}
	a := w.host(t, 1, log.into)
	r := newRaw(t)
	strict := &tls.Config{
		InsecureSkipVerify: true, NextProtos: []string{protocolPeer}, MinVersion: tls.VersionTLS13,
		VerifyConnection: func(tls.ConnectionState) error { return errors.New("of another cluster") },
	}
	if _, err := r.transport.Dial(t.Context(), a.Addr(), strict, &quic.Config{}); err == nil {
		t.Fatal("the other end did not give up")
	}
	eventually(t, "a certificate that the other end refuses is counted", func() bool { return refusals(a, reasonCertificate) == 1 })
	if _, err := r.dial(a, "http/0.9", nil); err == nil {
		t.Fatal("another protocol is spoken")
	}
	eventually(t, "another protocol is counted", func() bool { return refusals(a, reasonHandshake) == 1 })
	eventually(t, "both are logged", func() bool {
		return len(log.with("reason=certificate", "no handshake")) == 1 && len(log.with("reason=handshake", "no handshake")) == 1
	})
	if n := allRefusals(a); n != 2 {
		t.Errorf("%v refusals", n)
	}
	mustServe(t, w, a)
}

// TestDoor_WhoDialsCountsToo puts a host of another cluster where a peer should be, and
// has a peer turn this host away.
func TestDoor_WhoDialsCountsToo(t *testing.T) {
	w, log := newWorld(t), &lines{}
	a := w.host(t, 1, log.into)
	other := w.identity(2)
	other.Cluster[7]++
	keys, err := authority.Create(filepath.Join(t.TempDir(), "k"), other, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	w.host(t, 2, func(o *Options) { o.Keys = keys })
	if err := echo(t.Context(), a, 2, ClassRaft); !errors.Is(err, scstore.ErrInvalid) {
		t.Errorf("a host of another cluster: %v", err)
	}
	if refusals(a, reasonCertificate) != 1 || len(log.with("peer refused", "reason=certificate")) != 1 {
		t.Errorf("counted %v times", refusals(a, reasonCertificate))
	}
	b := w.host(t, 3, func(o *Options) {
		o.Allowed = func(Peer) error { return fmt.Errorf("host-1 was removed: %w", scstore.ErrFenced) }
	})
	if err := echo(t.Context(), a, 3, ClassRaft); !errors.Is(err, scstore.ErrFenced) {
		t.Errorf("a peer that refuses this host: %v", err)
	}
	if testutil.ToFloat64(a.metrics.turnedAway) != 1 || len(log.with("this host is refused", "host-1 was removed")) != 1 {
		t.Errorf("turned away %v times", testutil.ToFloat64(a.metrics.turnedAway))
	}
	eventually(t, "the peer counts it", func() bool { return refusals(b, reasonDenied) == 1 })
}

func TestDoor_StrayPacketsAreCountedAndLoggedNowAndThen(t *testing.T) {
	w, log := newWorld(t), &lines{}
	a := w.host(t, 1, log.into)
	conn, err := net.Dial("udp", a.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	// Of a packet that is not QUIC it is known where it came from. The library drops those
	// that come before anybody asks for them.
	eventually(t, "the sender is logged", func() bool {
		if _, err := conn.Write(make([]byte, 40)); err != nil {
			t.Fatal(err)
		}
		return len(log.with("stray packet", "from="+conn.LocalAddr().String())) > 0
	})
	rng := rand.New(rand.NewChaCha8([32]byte{3}))
	const sent = 2000
	for i := range sent {
		b := make([]byte, 40+rng.IntN(1000))
		for at := range b {
			b[at] = byte(rng.Uint32())
		}
		if b[0] &^= 0xc0; i%2 == 1 { // not QUIC, or of a version that is none
			b[0] |= 0xc0
		}
		if _, err := conn.Write(b); err != nil {
			t.Fatal(err)
		}
		if i%20 == 19 {
			time.Sleep(time.Millisecond) // a socket's buffer holds so many
		}
	}
	eventually(t, "the packets are counted", func() bool { return testutil.ToFloat64(a.metrics.strays) > sent/2 })
	mustServe(t, w, a)
	logged := log.with("stray packet")
	if len(logged) == 0 || len(logged) > 2*logBurst {
		t.Errorf("%d lines for %d packets", len(logged), sent)
	}
}

func TestDoor_StreamsThatMeanNothingAreCounted(t *testing.T) {
	w, log := newWorld(t), &lines{}
	a := w.open(t, 1, log.into)
	a.Handle(kindPipe, func(context.Context, Peer, *Stream) error {
		return fmt.Errorf("read a call: %w", scstore.ErrVersion)
	})
	a.Handle(kindDrain, func(_ context.Context, _ Peer, s *Stream) error {
		s.Refuse(fmt.Errorf("no call: %w", scstore.ErrInvalid))
		return nil
	})
	if err := a.Start(); err != nil {
		t.Fatal(err)
	}
	r := newRaw(t)
	conn, err := r.dial(a, protocolPeer, w.keys(t, 2).Certificate())
	if err != nil {
		t.Fatal(err)
	}
	greeting := hello{min: WireMin, max: WireMax, cluster: w.cluster, incarnation: 1, disk: disk(2), boot: 1, clock: time.Now(), host: "host-2"}
	if _, err := r.say(conn, greeting.encode()); err != nil {
		t.Fatal(err)
	}
	request := func(k Kind) []byte { return header{kind: k, class: ClassRaft, request: true}.appendTo(nil) }
	fail := append(request(kindFail), 0, 0, 0, 1, 0)
	for i, sentinel := range scstore.Sentinels() {
		if errors.Is(sentinel, scstore.ErrCorrupt) {
			fail[len(fail)-1] = byte(i)
		}
	}
	for _, c := range []struct {
		name   string
		say    []byte
		reason reason
	}{
		{"a header of nothing", []byte{0, 0, 0, 4, 0, 10, 200, 9}, reasonMalformed},
		{"half a header", []byte{0, 0, 0, 4, 0}, reasonMalformed},
		{"a stream that is too long for a header", []byte{9, 0, 0, 0}, reasonMalformed},
		{"a stream of no kind", header{kind: 77, class: ClassRaft}.appendTo(nil), reasonKind},
		{"a request of no kind", request(77), reasonKind},
		{"a stream whose handler refuses it", header{kind: kindPipe, class: ClassRaft}.appendTo(nil), reasonVersion},
		{"a stream whose handler answers that it refuses it", header{kind: kindDrain, class: ClassRaft}.appendTo(nil), reasonMalformed},
		{"a request that is too long", append(request(kindEcho), 0xff, 0xff, 0xff, 0xff), reasonMalformed},
		{"a request that is corrupt", fail, reasonCorrupt},
	} {
		before := streamsRefused(a, c.reason)
		_, _ = r.say(conn, c.say) // some are answered, some reset
		eventually(t, c.name+" is counted", func() bool { return streamsRefused(a, c.reason) == before+1 })
	}
	if len(log.with("stream refused", "peer=host-2", "reason=kind", "no streams of kind 77")) != 1 {
		t.Error("not logged with its reason")
	}
	total := 0.0
	for _, r := range streamReasons {
		total += streamsRefused(a, r)
	}
	good := append(request(kindEcho), 0, 0, 0, 1, 'x')
	if got, err := r.say(conn, good); err != nil || !strings.HasSuffix(string(got), "host-2:x") {
		t.Errorf("a good request: %q, %v", got, err)
	}
	if total != 9 || allRefusals(a) != 0 {
		t.Errorf("%v streams and %v connections are counted", total, allRefusals(a))
	}
	_ = conn.CloseWithError(0, "")
}
