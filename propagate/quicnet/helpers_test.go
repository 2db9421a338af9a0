package quicnet

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/quic-go/quic-go"
	"go.uber.org/goleak"

	"scstore"
	"scstore/propagate/quicnet/authority"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	kindEcho  Kind = 10 // request: answers what it is asked, with the asker's name
	kindBlock Kind = 11 // request: waits for its context
	kindFail  Kind = 12 // request: fails with the sentinel whose number it is asked with
	kindPipe  Kind = 13 // stream: sends back what it reads
	kindDrain Kind = 14 // stream: reads to the end and says how much it was
)

// world is a cluster under test.
type world struct {
	cluster authority.ClusterID
	first   *authority.Keys // of the host that made the cluster

	mu      sync.Mutex
	where   map[scstore.StoreID]string
	removed map[scstore.StoreID]error
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{cluster: authority.ClusterID{0: 0xc1, 15: 1}, where: map[scstore.StoreID]string{}, removed: map[scstore.StoreID]error{}}
	keys, err := authority.Create(filepath.Join(t.TempDir(), "keys"), w.identity(1), time.Now().Add(-24*time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	w.first = keys
	return w
}

func disk(n byte) scstore.StoreID { return scstore.StoreID{0: 0xd1, 15: n} }

func (w *world) identity(n byte) authority.Identity {
	return authority.Identity{Cluster: w.cluster, Disk: disk(n), Host: fmt.Sprintf("host-%d", n)}
}

// keys returns the keys of host n, as a join would have left them; host 1 made the
// cluster.
func (w *world) keys(t *testing.T, n byte) *authority.Keys {
	t.Helper()
	if n == 1 {
		return w.first
	}
	return w.issue(t, w.identity(n), time.Now(), authority.DefaultLifetime)
}

// issue returns keys for an identity with a certificate issued at the time at.
func (w *world) issue(t *testing.T, id authority.Identity, at time.Time, lifetime time.Duration) *authority.Keys {
	t.Helper()
	admission, err := authority.NewAdmission(t.TempDir(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	der, err := w.first.Authority().Issue(admission.Request(), id, at, lifetime)
	if err != nil {
		t.Fatal(err)
	}
	pinned, err := authority.Parse(w.first.Authority().Certificate())
	if err != nil {
		t.Fatal(err)
	}
	keys, err := admission.Install(pinned, id, der, at)
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

func (w *world) resolve(_ context.Context, d scstore.StoreID) ([]string, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	address, ok := w.where[d]
	if !ok {
		return nil, fmt.Errorf("disk %s: %w", d, scstore.ErrNotFound)
	}
	return []string{address}, nil
}

func (w *world) allowed(p Peer) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.removed[p.Disk]
}

func (w *world) remove(n byte, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.removed[disk(n)] = err
}

func (w *world) place(n byte, address string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.where[disk(n)] = address
}

// host starts host n with the handlers of the tests; change may be nil.
func (w *world) host(t *testing.T, n byte, change func(*Options)) *Net {
	t.Helper()
	h := w.open(t, n, change)
	if err := h.Start(); err != nil {
		t.Fatal(err)
	}
	return h
}

func (w *world) open(t *testing.T, n byte, change func(*Options)) *Net {
	t.Helper()
	o := Options{
		Keys: w.keys(t, n), Listen: "127.0.0.1:0", Incarnation: 1, Boot: 1, Resolve: w.resolve, Allowed: w.allowed,
		Registerer: prometheus.NewPedanticRegistry(),
	}
	if change != nil {
		change(&o)
	}
	h, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Errorf("close host %d: %v", n, err)
		}
	})
	w.place(n, h.Addr().String())
	h.Answer(kindEcho, func(_ context.Context, from Peer, b []byte) ([]byte, error) {
		return append([]byte(from.Host+":"), b...), nil
	})
	h.Answer(kindBlock, func(ctx context.Context, _ Peer, _ []byte) ([]byte, error) {
		<-ctx.Done()
		return nil, fmt.Errorf("gave up: %w", scstore.ErrBusy)
	})
	h.Answer(kindFail, func(_ context.Context, _ Peer, b []byte) ([]byte, error) {
		return nil, fmt.Errorf("as asked: %w", scstore.Sentinels()[b[0]])
	})
	return h
}

// mustEcho has from ask to and checks that it is known there by its own name.
func mustEcho(t *testing.T, from *Net, to byte, class Class) {
	t.Helper()
	if err := echo(t.Context(), from, to, class); err != nil {
		t.Fatal(err)
	}
}

func echo(ctx context.Context, from *Net, to byte, class Class) error {
	got, err := from.Request(ctx, disk(to), class, kindEcho, []byte("hi"))
	if err != nil {
		return err
	}
	if want := from.o.Keys.Identity().Host + ":hi"; string(got) != want {
		return fmt.Errorf("got %q, want %q", got, want)
	}
	return nil
}

// refusals returns how often a host refused for a reason.
func refusals(h *Net, r reason) float64 { return testutil.ToFloat64(h.door.conns[r].count) }

// allRefusals returns how often a host refused at all.
func allRefusals(h *Net) (n float64) {
	for _, r := range reasons {
		n += refusals(h, r)
	}
	return n
}

// eventually waits for a condition that another goroutine brings about; the test's
// own time limit is the only one.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for !cond() {
		if t.Context().Err() != nil {
			t.Fatalf("never: %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

// raw is a host that says what a test has it say.
type raw struct {
	t         *testing.T
	transport *quic.Transport
}

func newRaw(t *testing.T) *raw {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return rawOn(t, conn)
}

func rawOn(t *testing.T, conn net.PacketConn) *raw {
	t.Helper()
	r := &raw{t: t, transport: &quic.Transport{Conn: conn}}
	t.Cleanup(func() {
		if err := errors.Join(r.transport.Close(), conn.Close()); err != nil {
			t.Error(err)
		}
	})
	return r
}

// dial connects with a certificate, or none, and without a look at the other end's.
func (r *raw) dial(to *Net, protocol string, certificate *tls.Certificate) (*quic.Conn, error) {
	config := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{protocol}, MinVersion: tls.VersionTLS13}
	if certificate != nil {
		config.Certificates = []tls.Certificate{*certificate}
	}
	return r.transport.Dial(r.t.Context(), to.Addr(), config, &quic.Config{MaxIncomingStreams: 10})
}

// say sends bytes on a new stream, ends it, and returns what comes back.
func (r *raw) say(conn *quic.Conn, b []byte) ([]byte, error) {
	s, err := conn.OpenStreamSync(r.t.Context())
	if err != nil {
		return nil, err
	}
	defer s.CancelRead(0)
	if _, err := s.Write(b); err != nil {
		return nil, err
	}
	_ = s.Close() // a host that was quick may have closed it
	return ReadFrame(s, MaxFrameBytes)
}
