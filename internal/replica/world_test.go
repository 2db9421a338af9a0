package replica

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"scstore"
	"scstore/consensus"
	"scstore/consensus/meta"
	"scstore/fs/block"
	"scstore/fs/block/disk"
	"scstore/propagate"
	"scstore/propagate/quicnet"
)

// testGroup is the group that the volumes of a world are in.
const testGroup meta.GroupID = 2

// world is a few hosts in one process: each with a Set on a store of its own, all on one
// log and one network in memory.
type world struct {
	t     *testing.T
	logs  map[meta.GroupID]*groupLog
	hosts map[meta.DiskID]*testHost

	mu      sync.Mutex
	cuts    map[[2]meta.DiskID]bool // both directions are entered
	streams map[*testStream][2]meta.DiskID
	opened  map[[2]meta.DiskID]int   // streams of KindVolumes, by who asked whom
	bytes   map[[2]meta.DiskID]int64 // that went, by sender and receiver
	limits  map[[2]meta.DiskID]int64 // after so many bytes the link is cut
}

// newWorld makes hosts, each at the site named like it in lower case, and opens them.
func newWorld(t *testing.T, disks ...meta.DiskID) *world {
	t.Helper()
	w := &world{
		t: t, hosts: map[meta.DiskID]*testHost{}, cuts: map[[2]meta.DiskID]bool{}, streams: map[*testStream][2]meta.DiskID{},
		opened: map[[2]meta.DiskID]int{}, bytes: map[[2]meta.DiskID]int64{}, limits: map[[2]meta.DiskID]int64{},
		logs: map[meta.GroupID]*groupLog{meta.GroupNamespace: newGroupLog(), testGroup: newGroupLog()},
	}
	for _, d := range disks {
		site := siteOf(d)
		w.append(meta.GroupNamespace, meta.SetSite{Site: meta.Site{Name: site}})
		w.append(meta.GroupNamespace, meta.AddHost{Disk: d, Name: "host-" + string(site), Site: site, Fingerprint: meta.Fingerprint{1}, Addresses: []string{"127.0.0.1:1"}})
		w.append(testGroup, meta.AdmitDisk{Disk: d, Site: site})
		w.hosts[d] = newTestHost(w, d)
	}
	for _, d := range disks {
		w.hosts[d].open()
	}
	t.Cleanup(func() {
		for _, h := range w.hosts {
			h.close()
		}
	})
	return w
}

func siteOf(d meta.DiskID) meta.SiteID { return meta.SiteID(strings.ToLower(string(d))) }

// groupLog is a log that never fails; hosts may be cut off from it.
type groupLog struct {
	mu      sync.Mutex
	entries []meta.Command
	grown   chan struct{}
}

func newGroupLog() *groupLog { return &groupLog{grown: make(chan struct{})} }

func (w *world) append(g meta.GroupID, op meta.Op) int { return w.appendAll(g, op) }

// appendAll appends operations with nothing between them.
func (w *world) appendAll(g meta.GroupID, ops ...meta.Op) int {
	l := w.logs[g]
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, op := range ops {
		l.entries = append(l.entries, meta.Command{Op: op})
	}
	close(l.grown)
	l.grown = make(chan struct{})
	return len(l.entries)
}

// must appends an operation and waits until every host that is up has applied it. It
// fails the test if it is refused.
func (w *world) must(g meta.GroupID, op meta.Op) meta.Result {
	w.t.Helper()
	n := w.append(g, op)
	var result meta.Result
	for _, h := range w.hosts {
		if h.set == nil || h.log.cut() {
			continue
		}
		r, err := h.log.groups[g].await(w.t.Context(), n)
		if err != nil {
			w.t.Fatalf("%T at %s: %v", op, h.disk, err)
		}
		if err := r.Err(); err != nil {
			w.t.Fatalf("%T is refused: %v", op, err)
		}
		result = r
	}
	return result
}

// testHost is one host.
type testHost struct {
	w      *world
	disk   meta.DiskID
	dir    string
	boot   uint64
	log    *testLog
	net    *testNet
	blocks *block.Store
	set    *Set
	slow   time.Duration // before each entry is applied
}

func newTestHost(w *world, d meta.DiskID) *testHost {
	h := &testHost{w: w, disk: d, dir: w.t.TempDir()}
	h.net = &testNet{
		h: h, answers: map[quicnet.Kind]func(context.Context, meta.DiskID, []byte) ([]byte, error){},
		handlers: map[quicnet.Kind]func(context.Context, meta.DiskID, propagate.Stream) error{},
	}
	return h
}

// open starts the host: its state is empty, and follows the log from the beginning.
func (h *testHost) open() {
	h.w.t.Helper()
	h.boot++
	h.log = newTestLog(h)
	for _, name := range []string{"data", "index"} {
		if err := os.MkdirAll(filepath.Join(h.dir, name), 0o700); err != nil {
			h.w.t.Fatal(err)
		}
	}
	fs, err := disk.OpenDir(filepath.Join(h.dir, "data"))
	if err != nil {
		h.w.t.Fatal(err)
	}
	h.blocks, err = block.Open(context.Background(), block.Options{FS: fs, IndexDir: filepath.Join(h.dir, "index"), SegmentSlots: 1024, ReserveBytes: 1 << 20})
	if err != nil {
		h.w.t.Fatal(err)
	}
	h.set, err = Open(context.Background(), Options{
		Disk: h.disk, Site: siteOf(h.disk), Boot: h.boot, Dir: filepath.Join(h.dir, "replicas"), Groups: []meta.GroupID{meta.GroupNamespace, testGroup},
		Blocks: h.blocks, Log: h.log, Net: h.net, SealInterval: 20 * time.Millisecond, Logger: testLogger(h),
	})
	if err != nil {
		h.w.t.Fatal(err)
	}
	h.net.up(true)
	h.log.start()
	if err := h.set.Start(); err != nil {
		h.w.t.Fatal(err)
	}
}

// testLogger logs what a host does if the environment asks for it.
func testLogger(h *testHost) *slog.Logger {
	if os.Getenv("REPLICA_LOG") == "" {
		return nil
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})).With("host", h.disk)
}

// close ends the host, if it is open.
func (h *testHost) close() {
	h.w.t.Helper()
	if h.set == nil {
		return
	}
	h.net.up(false)
	h.w.cutStreams(h.disk)
	if err := h.set.Close(); err != nil {
		h.w.t.Errorf("close %s: %v", h.disk, err)
	}
	h.net.wg.Wait()
	h.log.close()
	if err := h.blocks.Close(); err != nil {
		h.w.t.Errorf("close the store of %s: %v", h.disk, err)
	}
	h.set = nil
}

func (h *testHost) restart() {
	h.w.t.Helper()
	h.close()
	h.open()
}

// view looks at the host's state.
func (h *testHost) view(f func(st *meta.State)) {
	h.w.t.Helper()
	if err := h.log.View(testGroup, f); err != nil {
		h.w.t.Fatal(err)
	}
}

// testLog is one host's part of the logs.
type testLog struct {
	h      *testHost
	groups map[meta.GroupID]*hostGroup
	cancel context.CancelFunc
	ctx    context.Context
	wg     sync.WaitGroup

	mu  sync.Mutex
	off bool // no majority is reached
}

// hostGroup is a host's state of a group.
type hostGroup struct {
	log *groupLog

	mu       sync.Mutex
	state    *meta.State
	results  []meta.Result
	applied  chan struct{} // closed and replaced with each entry
	watchers map[*testWatcher]bool
}

func newTestLog(h *testHost) *testLog {
	l := &testLog{h: h, groups: map[meta.GroupID]*hostGroup{}}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	for g, log := range h.w.logs {
		l.groups[g] = &hostGroup{log: log, state: meta.NewGroup(g), applied: make(chan struct{}), watchers: map[*testWatcher]bool{}}
	}
	return l
}

func (l *testLog) start() {
	for _, g := range l.groups {
		l.wg.Go(func() { l.follow(g) })
	}
}

func (l *testLog) close() {
	l.cancel()
	l.wg.Wait()
}

// disconnect cuts the host off from the log, or connects it again.
func (l *testLog) disconnect(off bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.off = off
}

func (l *testLog) cut() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.off
}

// follow applies a group's entries.
func (l *testLog) follow(g *hostGroup) {
	for n := 0; ; n++ {
		for {
			g.log.mu.Lock()
			there, grown := len(g.log.entries) > n, g.log.grown
			g.log.mu.Unlock()
			if there && !l.cut() {
				break
			}
			select {
			case <-grown:
			case <-time.After(5 * time.Millisecond):
			case <-l.ctx.Done():
				return
			}
		}
		if l.h.slow > 0 {
			pause(l.ctx, l.h.slow)
		}
		if l.ctx.Err() != nil {
			return
		}
		g.log.mu.Lock()
		c := g.log.entries[n]
		g.log.mu.Unlock()
		g.apply(c)
	}
}

func (g *hostGroup) apply(c meta.Command) {
	g.mu.Lock()
	defer g.mu.Unlock()
	r := g.state.Apply(c)
	g.results = append(g.results, r)
	close(g.applied)
	g.applied = make(chan struct{})
	for w := range g.watchers {
		w.publish(consensus.Event{Index: uint64(len(g.results)), Applied: g.state.Applied(), Command: c, Result: r})
	}
}

// await waits until the n-th entry is applied.
func (g *hostGroup) await(ctx context.Context, n int) (meta.Result, error) {
	for {
		g.mu.Lock()
		done, applied := len(g.results) >= n, g.applied
		var r meta.Result
		if done {
			r = g.results[n-1]
		}
		g.mu.Unlock()
		if done {
			return r, nil
		}
		select {
		case <-applied:
		case <-ctx.Done():
			return r, fmt.Errorf("%w: %w", scstore.ErrIndeterminate, context.Cause(ctx))
		}
	}
}

// Propose appends an operation and waits until it is applied here.
func (l *testLog) Propose(ctx context.Context, g meta.GroupID, op meta.Op) (meta.Result, error) {
	if err := (meta.Command{Op: op}).Validate(); err != nil {
		return meta.Result{}, err
	}
	if l.cut() {
		return meta.Result{}, scstore.ErrNoMajority
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(l.ctx, cancel)()
	n := l.h.w.append(g, op)
	r, err := l.groups[g].await(ctx, n)
	if err != nil {
		return r, err
	}
	return r, r.Err()
}

// ProposeSoon is Propose.
func (l *testLog) ProposeSoon(ctx context.Context, g meta.GroupID, op meta.Op) (meta.Result, error) {
	return l.Propose(ctx, g, op)
}

// View looks at the state.
func (l *testLog) View(g meta.GroupID, f func(*meta.State)) error {
	group := l.groups[g]
	group.mu.Lock()
	defer group.mu.Unlock()
	f(group.state)
	return nil
}

// Read is View of all that was appended before.
func (l *testLog) Read(ctx context.Context, g meta.GroupID, f func(*meta.State)) error {
	if l.cut() {
		return scstore.ErrNoMajority
	}
	group := l.groups[g]
	group.log.mu.Lock()
	n := len(group.log.entries)
	group.log.mu.Unlock()
	if n > 0 {
		if _, err := group.await(ctx, n); err != nil {
			return err
		}
	}
	return l.View(g, f)
}

// Lead has nothing to do: every host is as near to the log.
func (l *testLog) Lead(context.Context, meta.GroupID, ...meta.DiskID) error { return nil }

// Watch delivers events.
func (l *testLog) Watch(g meta.GroupID) (Watcher, error) {
	group := l.groups[g]
	w := &testWatcher{group: group, wake: make(chan struct{}, 1)}
	group.mu.Lock()
	defer group.mu.Unlock()
	group.watchers[w] = true
	return w, nil
}

type testWatcher struct {
	group *hostGroup
	wake  chan struct{}

	mu     sync.Mutex
	events []consensus.Event
	closed bool
}

func (w *testWatcher) publish(e consensus.Event) {
	w.mu.Lock()
	w.events = append(w.events, e)
	w.mu.Unlock()
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

func (w *testWatcher) Next(ctx context.Context) (consensus.Event, error) {
	for {
		w.mu.Lock()
		if len(w.events) > 0 {
			e := w.events[0]
			w.events = w.events[1:]
			w.mu.Unlock()
			return e, nil
		}
		closed := w.closed
		w.mu.Unlock()
		if closed {
			return consensus.Event{}, scstore.ErrClosed
		}
		select {
		case <-w.wake:
		case <-ctx.Done():
			return consensus.Event{}, context.Cause(ctx)
		}
	}
}

func (w *testWatcher) Close() {
	w.group.mu.Lock()
	delete(w.group.watchers, w)
	w.group.mu.Unlock()
	w.mu.Lock()
	w.closed = true
	w.mu.Unlock()
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// testNet is one host's end of the network.
type testNet struct {
	h        *testHost
	answers  map[quicnet.Kind]func(context.Context, meta.DiskID, []byte) ([]byte, error)
	handlers map[quicnet.Kind]func(context.Context, meta.DiskID, propagate.Stream) error
	wg       sync.WaitGroup

	mu   sync.Mutex
	open bool
}

func (n *testNet) up(yes bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.open = yes
}

// enter counts a handler, unless the host is down.
func (n *testNet) enter() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.open {
		n.wg.Add(1)
	}
	return n.open
}

// reach returns the other end. It has to be left (wg.Done).
func (n *testNet) reach(to meta.DiskID) (*testNet, error) {
	other := n.h.w.hosts[to]
	if other == nil || n.h.w.isCut(n.h.disk, to) || !other.net.enter() {
		return nil, fmt.Errorf("host %s: %w", to, scstore.ErrUnreachable)
	}
	return other.net, nil
}

func (n *testNet) Request(ctx context.Context, to meta.DiskID, _ quicnet.Class, kind quicnet.Kind, payload []byte) ([]byte, error) {
	other, err := n.reach(to)
	if err != nil {
		return nil, err
	}
	defer other.wg.Done()
	f := other.answers[kind]
	if f == nil {
		return nil, scstore.ErrVersion
	}
	b, err := f(ctx, n.h.disk, payload)
	if n.h.w.isCut(n.h.disk, to) {
		return nil, fmt.Errorf("host %s: %w", to, scstore.ErrUnreachable)
	}
	return b, err
}

func (n *testNet) OpenStream(_ context.Context, to meta.DiskID, _ quicnet.Class, kind quicnet.Kind) (propagate.Stream, error) {
	other, err := n.reach(to)
	if err != nil {
		return nil, err
	}
	f := other.handlers[kind]
	if f == nil {
		other.wg.Done()
		return nil, scstore.ErrVersion
	}
	w := n.h.w
	upR, upW := io.Pipe()
	downR, downW := io.Pipe()
	near := &testStream{w: w, r: downR, wr: upW, link: [2]meta.DiskID{n.h.disk, to}}
	far := &testStream{w: w, r: upR, wr: downW, link: [2]meta.DiskID{to, n.h.disk}}
	w.mu.Lock()
	w.streams[near], w.streams[far] = near.link, far.link
	w.opened[near.link]++
	w.mu.Unlock()
	go func() {
		defer other.wg.Done()
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		if err := f(ctx, n.h.disk, far); err != nil {
			_ = downW.CloseWithError(err)
		}
		_ = far.Close()
	}()
	return near, nil
}

// RTT is not known.
func (n *testNet) RTT(meta.DiskID) time.Duration { return time.Millisecond }

func (n *testNet) Answer(kind quicnet.Kind, f func(ctx context.Context, from meta.DiskID, request []byte) ([]byte, error)) {
	n.answers[kind] = f
}

func (n *testNet) Handle(kind quicnet.Kind, f func(ctx context.Context, from meta.DiskID, s propagate.Stream) error) {
	n.handlers[kind] = f
}

// testStream is one end of a stream.
type testStream struct {
	w    *world
	r    *io.PipeReader
	wr   *io.PipeWriter
	link [2]meta.DiskID // this end's host, the other's
}

var errCut = errors.New("the link is cut")

func (s *testStream) Read(p []byte) (int, error) { return s.r.Read(p) }

func (s *testStream) Write(p []byte) (int, error) {
	if !s.w.carry(s.link, len(p)) {
		s.w.cut(s.link[0], s.link[1])
		return 0, errCut
	}
	return s.wr.Write(p)
}

func (s *testStream) CloseWrite() error { return s.wr.Close() }

func (s *testStream) Close() error {
	s.w.mu.Lock()
	delete(s.w.streams, s)
	s.w.mu.Unlock()
	_ = s.r.CloseWithError(io.ErrClosedPipe)
	return s.wr.Close()
}

// carry counts bytes and reports whether the link still takes them.
func (w *world) carry(link [2]meta.DiskID, n int) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.bytes[link] += int64(n)
	limit, limited := w.limits[link]
	return !limited || w.bytes[link] <= limit
}

// cut cuts the link between two hosts, in both directions, and ends its streams.
func (w *world) cut(a, b meta.DiskID) {
	w.mu.Lock()
	w.cuts[[2]meta.DiskID{a, b}], w.cuts[[2]meta.DiskID{b, a}] = true, true
	var gone []*testStream
	for s, link := range w.streams {
		if link == [2]meta.DiskID{a, b} || link == [2]meta.DiskID{b, a} {
			gone = append(gone, s)
		}
	}
	w.mu.Unlock()
	for _, s := range gone {
		_ = s.r.CloseWithError(errCut)
		_ = s.wr.CloseWithError(errCut)
	}
}

// cutStreams ends the streams of a host.
func (w *world) cutStreams(d meta.DiskID) {
	w.mu.Lock()
	var gone []*testStream
	for s, link := range w.streams {
		if link[0] == d || link[1] == d {
			gone = append(gone, s)
		}
	}
	w.mu.Unlock()
	for _, s := range gone {
		_ = s.r.CloseWithError(errCut)
		_ = s.wr.CloseWithError(errCut)
	}
}

// heal mends a link, and forgets its limits.
func (w *world) heal(a, b meta.DiskID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, link := range [][2]meta.DiskID{{a, b}, {b, a}} {
		delete(w.cuts, link)
		delete(w.limits, link)
	}
}

func (w *world) isCut(a, b meta.DiskID) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.cuts[[2]meta.DiskID{a, b}]
}

// sent returns how many bytes a host has sent to another.
func (w *world) sent(from, to meta.DiskID) int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.bytes[[2]meta.DiskID{from, to}]
}

// limit cuts the link between two hosts after so many more bytes from one to the other.
func (w *world) limit(from, to meta.DiskID, bytes int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	link := [2]meta.DiskID{from, to}
	w.limits[link] = w.bytes[link] + bytes
}

// eventually waits until cond holds. It gives up when the test is about to be ended.
func (w *world) eventually(what string, cond func() bool) {
	w.t.Helper()
	end := time.Now().Add(time.Minute)
	for !cond() {
		if time.Now().After(end) {
			for _, h := range w.hosts {
				if h.set != nil {
					h.dump()
				}
			}
			w.t.Fatalf("it never came to this: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// dump says what a host has.
func (h *testHost) dump() {
	for _, r := range h.set.all() {
		r.mu.Lock()
		h.w.t.Logf("%s: volume %s: %+v, jump %+v, draining %+v, marks %v", h.disk, r.id, r.facts, r.facts.Jump, r.facts.Draining, r.marks())
		r.mu.Unlock()
		h.view(func(st *meta.State) {
			rec, _ := st.Get(r.id)
			h.w.t.Logf("%s: record %+v, replicas %+v, roots %+v, history %+v, reported %x", h.disk, rec, st.Replicas(r.id), st.Roots(r.id), st.History(r.id), st.Reported(h.disk))
		})
	}
}

// newID draws a volume's id.
func newID() (id scstore.VolumeID) {
	binary.BigEndian.PutUint64(id[:], rand.Uint64())
	binary.BigEndian.PutUint64(id[8:], rand.Uint64())
	return id
}

// create makes a volume at a host, and places it at the sites of hosts, if any are named.
func (w *world) create(at meta.DiskID, size int64, placed ...meta.DiskID) scstore.VolumeID {
	w.t.Helper()
	return w.createOn(at, meta.CreateVolume{ID: newID(), SizeBytes: size, CreatedAtMs: 1}, placed...)
}

func (w *world) createOn(at meta.DiskID, op meta.CreateVolume, placed ...meta.DiskID) scstore.VolumeID {
	w.t.Helper()
	if err := w.hosts[at].set.Create(w.t.Context(), testGroup, op); err != nil {
		w.t.Fatal(err)
	}
	if len(placed) > 0 {
		w.place(op.ID, placed...)
	}
	return op.ID
}

// place has a volume at the sites of hosts.
func (w *world) place(id scstore.VolumeID, hosts ...meta.DiskID) {
	w.t.Helper()
	p := meta.Placement{Mode: meta.ModeAsync, Failover: meta.FailoverManual}
	for _, d := range hosts {
		p.Sites = append(p.Sites, siteOf(d))
	}
	w.must(testGroup, meta.SetPlacement{ID: id, Placement: p})
}

// device opens a volume at a host.
func (h *testHost) device(id scstore.VolumeID) Device {
	h.w.t.Helper()
	d, err := h.set.Open(h.w.t.Context(), id)
	if err != nil {
		h.w.t.Fatalf("open at %s: %v", h.disk, err)
	}
	return d
}

// fill writes random bytes to a volume, whole, and returns them.
func (h *testHost) fill(id scstore.VolumeID, seed uint64) []byte {
	h.w.t.Helper()
	d := h.device(id)
	p := randomBytes(int(d.Size()), seed)
	for off := 0; off < len(p); off += 1 << 20 {
		if err := d.WriteAt(p[off:min(off+1<<20, len(p))], int64(off)); err != nil {
			h.w.t.Fatal(err)
		}
	}
	return p
}

func randomBytes(n int, seed uint64) []byte {
	p := make([]byte, n)
	var key [32]byte
	binary.BigEndian.PutUint64(key[:], seed)
	_, _ = rand.NewChaCha8(key).Read(p)
	return p
}

// read returns a volume's bytes as a host shows them.
func (h *testHost) read(id scstore.VolumeID) []byte {
	h.w.t.Helper()
	d := h.device(id)
	defer d.Release()
	return readDevice(h.w.t, d)
}

func readDevice(t *testing.T, d Device) []byte {
	t.Helper()
	p := make([]byte, d.Size())
	for off := 0; off < len(p); off += 1 << 20 {
		if _, err := d.ReadAt(p[off:min(off+1<<20, len(p))], int64(off), nil); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

// seal ends a volume's epoch at its owner and waits until it is in the history.
func (h *testHost) seal(id scstore.VolumeID) scstore.Position {
	h.w.t.Helper()
	r, _ := h.set.lookup(id)
	p, _, err := r.seal(h.w.t.Context())
	if err != nil {
		h.w.t.Fatal(err)
	}
	h.set.wakeUp()
	h.w.eventually("the epoch is committed", func() bool {
		var rec meta.Record
		h.view(func(st *meta.State) { rec, _ = st.Get(id) })
		return rec.Head.Compare(p.Position) >= 0
	})
	return p.Position
}

// holds reports whether a host has all of a volume at a position.
func (h *testHost) holds(id scstore.VolumeID, at scstore.Position) bool {
	r, ok := h.set.lookup(id)
	if !ok {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.facts.holds(at)
}

// claims reports whether the log knows that a host has a volume at a position.
func (h *testHost) claims(id scstore.VolumeID, at scstore.Position) (yes bool) {
	h.view(func(st *meta.State) {
		for _, d := range st.CompleteHolders(id, at) {
			yes = yes || d == h.disk
		}
	})
	return yes
}
