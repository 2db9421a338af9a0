package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lni/vfs"
	"github.com/quic-go/quic-go/testutils/simnet"
	"go.uber.org/goleak"

	"scstore"
	"scstore/consensus"
	"scstore/consensus/meta"
)

func TestMain(m *testing.M) {
	log.SetOutput(io.Discard) // the log's store complains that a disk in memory has no size
	goleak.VerifyTestMain(m)
}

// wan carries packets in virtual time, 10 ms in each direction, in order.
type wan struct {
	wg sync.WaitGroup

	mu    sync.Mutex
	nodes map[string]chan arrival
	cut   map[string]bool // addresses that nothing reaches or leaves
}

// arrival is a packet on its way.
type arrival struct {
	packet simnet.Packet
	at     time.Time
}

// AddNode takes the place of who had the address before.
func (w *wan) AddNode(addr net.Addr, r simnet.PacketReceiver) {
	way := make(chan arrival, 1<<14)
	w.mu.Lock()
	defer w.mu.Unlock()
	if old := w.nodes[addr.String()]; old != nil {
		close(old)
	}
	w.nodes[addr.String()] = way
	w.wg.Go(func() {
		for a := range way {
			time.Sleep(time.Until(a.at))
			r.RecvPacket(a.packet)
		}
	})
}

func (w *wan) SendPacket(p simnet.Packet) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	way := w.nodes[p.To.String()]
	if way == nil || w.cut[p.To.String()] || w.cut[p.From.String()] {
		return nil
	}
	select {
	case way <- arrival{packet: p, at: time.Now().Add(10 * time.Millisecond)}:
	default:
	}
	return nil
}

// close ends the network, after the hosts.
func (w *wan) close() {
	w.mu.Lock()
	for _, way := range w.nodes {
		close(way)
	}
	w.nodes = map[string]chan arrival{}
	w.mu.Unlock()
	w.wg.Wait()
}

func (w *wan) setCut(cut bool, hosts ...*host) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, h := range hosts {
		w.cut[h.addr().String()] = cut
	}
}

// host is one host with its folder and the disk of its log; it survives its Cluster.
type host struct {
	n    byte
	port int
	dir  string
	fs   *vfs.MemFS
	c    *Cluster
}

func (h *host) disk() scstore.StoreID { return scstore.StoreID{0: 0xd1, 15: h.n} }

func (h *host) id() meta.DiskID { return meta.DiskID(h.disk().String()) }

func (h *host) name() string { return fmt.Sprintf("host-%d", h.n) }

func (h *host) addr() *net.UDPAddr {
	return &net.UDPAddr{IP: net.IPv4(10, 0, 0, h.n), Port: h.port}
}

// world is hosts in virtual time.
type world struct {
	t     *testing.T
	wan   *wan
	hosts []*host
}

func inWorld(t *testing.T, f func(*testing.T, *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, wan: &wan{nodes: map[string]chan arrival{}, cut: map[string]bool{}}}
		defer func() {
			for _, h := range w.hosts {
				w.stop(h)
			}
			w.wan.close()
		}()
		f(t, w)
	})
}

// add makes a host with an empty disk.
func (w *world) add() *host {
	w.t.Helper()
	h := &host{n: byte(len(w.hosts) + 1), port: DefaultPort, dir: w.t.TempDir(), fs: vfs.NewStrictMem()}
	w.hosts = append(w.hosts, h)
	return h
}

// DefaultPort is where the hosts of the tests listen.
const DefaultPort = 7400

// try opens and starts a host; change may be nil.
func (w *world) try(h *host, change func(*Options)) error {
	w.t.Helper()
	o := Options{
		Dir: h.dir, Disk: h.disk(), Host: h.name(), Conn: simnet.NewBlockingSimConn(h.addr(), w.wan),
		tune: func(o *consensus.ClusterOptions) { o.FS = h.fs },
	}
	if change != nil {
		change(&o)
	}
	c, err := Open(w.t.Context(), o)
	if err != nil {
		return err
	}
	h.c = c
	return c.Start(w.t.Context())
}

func (w *world) open(h *host, change func(*Options)) {
	w.t.Helper()
	if err := w.try(h, change); err != nil {
		w.t.Fatalf("open %s: %v", h.name(), err)
	}
}

// begin makes a cluster of one host in site "a".
func (w *world) begin() *host {
	w.t.Helper()
	h := w.add()
	w.open(h, func(o *Options) { o.Site = "a" })
	return h
}

func (w *world) stop(h *host) {
	w.t.Helper()
	if h.c == nil {
		return
	}
	c := h.c
	h.c = nil
	if err := c.Close(); err != nil {
		w.t.Errorf("close %s: %v", h.name(), err)
	}
}

// token makes one at a host, waiting for a majority.
func (w *world) token(h *host, site meta.SiteID, ttl time.Duration) string {
	w.t.Helper()
	text := ""
	w.eventually("a token", func() bool {
		var err error
		text, err = h.c.NewToken(w.t.Context(), site, ttl)
		if err != nil && !transient(err) {
			w.t.Fatal(err)
		}
		return err == nil
	})
	return text
}

func joining(token string) func(*Options) { return func(o *Options) { o.Join = token } }

// join makes a host join a site through another host.
func (w *world) join(through *host, site meta.SiteID) *host {
	w.t.Helper()
	h := w.add()
	w.open(h, joining(w.token(through, site, 0)))
	return h
}

// three makes a cluster of three sites in which all hosts vote.
func (w *world) three() (a, b, c *host) {
	w.t.Helper()
	a = w.begin()
	b, c = w.join(a, "b"), w.join(a, "c")
	w.voters(a, b, c)
	return a, b, c
}

// eventually waits for a condition, two minutes at most.
func (w *world) eventually(what string, condition func() bool) {
	w.t.Helper()
	for range 1200 {
		if condition() {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	for _, h := range w.hosts {
		if h.c != nil {
			w.t.Logf("%s: %+v failure %v", h.name(), h.c.Status().Groups, h.c.Failure())
		}
	}
	w.t.Fatalf("never: %s", what)
}

// voters waits until these hosts, and no others, vote in every group, and all are active
// in their eyes.
func (w *world) voters(hosts ...*host) {
	w.t.Helper()
	var want []meta.DiskID
	for _, h := range hosts {
		want = append(want, h.id())
	}
	slices.Sort(want)
	w.eventually("the voters are what they should be", func() bool {
		return !slices.ContainsFunc(hosts, func(h *host) bool {
			s := h.c.Status()
			return slices.ContainsFunc(s.Groups, func(g GroupStatus) bool { return !g.Majority || !slices.Equal(g.Voters, want) }) ||
				slices.ContainsFunc(s.Hosts, func(h HostStatus) bool { return h.State == meta.HostJoining })
		})
	})
}

// active waits until a host says of itself that it is an active member.
func (w *world) active(h *host) {
	w.t.Helper()
	w.eventually(h.name()+" is active", func() bool {
		return slices.ContainsFunc(h.c.Status().Hosts, func(s HostStatus) bool { return s.Here && s.State == meta.HostActive })
	})
}

// decided proposes until it is decided.
func (w *world) decided(h *host, g meta.GroupID, op meta.Op) meta.Result {
	w.t.Helper()
	var result meta.Result
	w.eventually(fmt.Sprintf("%T is decided", op), func() bool {
		var err error
		result, err = h.c.Propose(w.t.Context(), g, op)
		if err != nil && (result.Code != 0 || !transient(err)) {
			w.t.Fatalf("%T: %v", op, err)
		}
		return err == nil
	})
	return result
}

func volumeID(n int) scstore.VolumeID { return scstore.VolumeID{0: 0xc0, 15: byte(n)} }

func createVolume(n int) meta.Op {
	return meta.CreateVolume{ID: volumeID(n), SizeBytes: 8 * scstore.BlockSize}
}

// has reports whether a host's state has a volume.
func (w *world) has(h *host, g meta.GroupID, n int) bool {
	w.t.Helper()
	found := false
	if err := h.c.View(g, func(s *meta.State) { _, found = s.Get(volumeID(n)) }); err != nil {
		w.t.Fatal(err)
	}
	return found
}

func (w *world) failed(h *host) error {
	w.t.Helper()
	select {
	case <-h.c.Failed():
	case <-time.After(2 * time.Minute):
		for _, p := range h.c.Status().Hosts {
			w.t.Logf("%s: reachable %v, %v", p.Name, p.Reachable, p.LastErr)
		}
		w.t.Fatalf("%s goes on: %+v", h.name(), h.c.Status().Groups)
	}
	return h.c.Failure()
}

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func wantErr(t *testing.T, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: got %v, want %v", what, err, want)
	}
}

func (h *host) placeFile() string { return filepath.Join(h.dir, placeName) }
