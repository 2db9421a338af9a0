package replica

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"scstore"
	"scstore/consensus"
	"scstore/consensus/meta"
	"scstore/fs/block"
	"scstore/fs/block/disk"
	"scstore/propagate"
	"scstore/propagate/quicnet"
)

const (
	moveGroup  = meta.GroupID(2)
	moveBlocks = 1024 // of a volume: 4 MiB
)

// moveWorld is a few hosts with real stores, in virtual time. Their log and their network
// are in memory, and can be cut.
type moveWorld struct {
	t     *testing.T
	hosts []*moveHost

	hooks   sync.Mutex // held while lose or refuse run
	mu      sync.Mutex
	entries map[meta.GroupID][]meta.Command
	cuts    map[[2]meta.DiskID]bool
	lose    func(from, to meta.DiskID, kind quicnet.Kind) bool // of requests
	refuse  func(from meta.DiskID, op meta.Op) error           // of proposals
}

// moveHost is one of them.
type moveHost struct {
	w     *moveWorld
	disk  meta.DiskID
	site  meta.SiteID
	dir   string
	boot  uint64
	store *block.Store
	set   *Set

	mu       sync.Mutex
	up       bool
	deaf     bool // applies nothing, and can't propose
	states   map[meta.GroupID]*meta.State
	applied  map[meta.GroupID]int
	watchers map[meta.GroupID][]*moveWatcher
	answers  map[quicnet.Kind]func(context.Context, meta.DiskID, []byte) ([]byte, error)
	handlers map[quicnet.Kind]func(context.Context, meta.DiskID, propagate.Stream) error
}

// inMoveWorld runs a test in a world of n hosts, each of a site of its own.
func inMoveWorld(t *testing.T, n int, test func(t *testing.T, w *moveWorld)) {
	t.Helper()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		w := &moveWorld{t: t, entries: map[meta.GroupID][]meta.Command{}, cuts: map[[2]meta.DiskID]bool{}}
		for i := range n {
			h := &moveHost{
				w: w, disk: meta.DiskID(fmt.Sprintf("%032x", i+1)), site: meta.SiteID(rune('a' + i)), dir: filepath.Join(dir, fmt.Sprint(i)),
				states: map[meta.GroupID]*meta.State{}, applied: map[meta.GroupID]int{},
			}
			for _, g := range []meta.GroupID{meta.GroupNamespace, moveGroup} {
				h.states[g] = meta.NewGroup(g)
			}
			w.hosts = append(w.hosts, h)
		}
		for _, h := range w.hosts {
			h.start()
		}
		defer func() {
			for _, h := range w.hosts {
				h.stop()
			}
		}()
		first := w.hosts[0]
		for _, h := range w.hosts {
			w.must(first.Propose(t.Context(), meta.GroupNamespace, meta.SetSite{Site: meta.Site{Name: h.site}}))
			w.must(first.Propose(t.Context(), meta.GroupNamespace, meta.AddHost{Disk: h.disk, Name: "host-" + string(h.site), Site: h.site}))
			w.must(first.Propose(t.Context(), meta.GroupNamespace, meta.UpdateHost{Disk: h.disk, Active: true}))
			w.must(first.Propose(t.Context(), moveGroup, meta.AdmitDisk{Disk: h.disk, Site: h.site}))
		}
		test(t, w)
	})
}

func (w *moveWorld) must(_ meta.Result, err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// start opens a host's store and its replicas.
func (h *moveHost) start() {
	t := h.w.t
	t.Helper()
	if err := os.MkdirAll(filepath.Join(h.dir, "segments"), 0o700); err != nil {
		t.Fatal(err)
	}
	segments, err := disk.OpenDir(filepath.Join(h.dir, "segments"))
	if err != nil {
		t.Fatal(err)
	}
	h.store, err = block.Open(t.Context(), block.Options{
		FS: segments, IndexDir: filepath.Join(h.dir, "index"), SegmentSlots: 1024, ReserveBytes: 1 << 20, MapMemoryBytes: 1 << 20,
	})
	if err != nil {
		t.Fatal(err)
	}
	h.boot++
	h.mu.Lock()
	h.watchers = map[meta.GroupID][]*moveWatcher{}
	h.answers = map[quicnet.Kind]func(context.Context, meta.DiskID, []byte) ([]byte, error){}
	h.handlers = map[quicnet.Kind]func(context.Context, meta.DiskID, propagate.Stream) error{}
	h.mu.Unlock()
	h.set, err = Open(t.Context(), Options{
		Disk: h.disk, Site: h.site, Boot: h.boot, Dir: filepath.Join(h.dir, "replicas"), Groups: []meta.GroupID{moveGroup},
		Blocks: h.store, Log: h, Net: moveNet{h},
	})
	if err != nil {
		_ = h.store.Close()
		t.Fatal(err)
	}
	h.mu.Lock()
	h.up = true
	h.mu.Unlock()
	if err := h.set.Start(); err != nil {
		t.Fatal(err)
	}
	h.catchUp()
}

// stop ends a host. What it did not write down is lost.
func (h *moveHost) stop() {
	h.mu.Lock()
	up := h.up
	h.up = false
	h.mu.Unlock()
	if !up {
		return
	}
	if err := h.set.Close(); err != nil {
		h.w.t.Errorf("close the replicas of %s: %v", h.site, err)
	}
	if err := h.store.Close(); err != nil {
		h.w.t.Errorf("close the store of %s: %v", h.site, err)
	}
}

// hear has a host apply nothing more, or again all that was decided.
func (h *moveHost) hear(on bool) {
	h.mu.Lock()
	h.deaf = !on
	h.mu.Unlock()
	h.catchUp()
}

// cut ends or mends the connection between two hosts.
func (w *moveWorld) cut(a, b *moveHost, cut bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cuts[[2]meta.DiskID{a.disk, b.disk}], w.cuts[[2]meta.DiskID{b.disk, a.disk}] = cut, cut
}

// isolate cuts a host off from all others and from the log, or mends that.
func (w *moveWorld) isolate(h *moveHost, off bool) {
	for _, o := range w.hosts {
		if o != h {
			w.cut(h, o, off)
		}
	}
	h.hear(!off)
}

// losing sets which requests are lost.
func (w *moveWorld) losing(f func(from, to meta.DiskID, kind quicnet.Kind) bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lose = f
}

// refusing sets which proposals fail.
func (w *moveWorld) refusing(f func(from meta.DiskID, op meta.Op) error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.refuse = f
}

func (h *moveHost) catchUp() { h.apply(moveGroup); h.apply(meta.GroupNamespace) }

// apply applies what was decided, and returns the last result.
func (h *moveHost) apply(g meta.GroupID) (last meta.Result) {
	h.w.mu.Lock()
	entries := slices.Clone(h.w.entries[g])
	h.w.mu.Unlock()
	h.mu.Lock()
	defer h.mu.Unlock()
	for !h.deaf && h.applied[g] < len(entries) {
		c := entries[h.applied[g]]
		h.applied[g]++
		last = h.states[g].Apply(c)
		for _, w := range h.watchers[g] {
			w.push(consensus.Event{Index: uint64(h.applied[g]), Applied: h.states[g].Applied(), Command: c, Result: last})
		}
	}
	return last
}

// Propose has the log take an operation: all hosts apply it that are not deaf.
func (h *moveHost) Propose(ctx context.Context, g meta.GroupID, op meta.Op) (meta.Result, error) {
	if err := ctx.Err(); err != nil {
		return meta.Result{}, err
	}
	h.w.mu.Lock()
	refuse := h.w.refuse
	h.w.mu.Unlock()
	if refuse != nil {
		h.w.hooks.Lock()
		err := refuse(h.disk, op)
		h.w.hooks.Unlock()
		if err != nil {
			return meta.Result{}, err
		}
	}
	h.mu.Lock()
	deaf := h.deaf
	h.mu.Unlock()
	if deaf {
		return meta.Result{}, scstore.ErrNoMajority
	}
	time.Sleep(10 * time.Millisecond) // to a majority
	h.w.mu.Lock()
	h.w.entries[g] = append(h.w.entries[g], meta.Command{Op: op})
	n := len(h.w.entries[g])
	h.w.mu.Unlock()
	for _, o := range h.w.hosts {
		o.apply(g)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.applied[g] < n {
		return meta.Result{}, scstore.ErrIndeterminate
	}
	// What the state answered at that place in the log.
	replay := meta.NewGroup(g)
	var result meta.Result
	h.w.mu.Lock()
	entries := slices.Clone(h.w.entries[g][:n])
	h.w.mu.Unlock()
	for _, c := range entries {
		result = replay.Apply(c)
	}
	return result, result.Err()
}

// ProposeSoon is Propose.
func (h *moveHost) ProposeSoon(ctx context.Context, g meta.GroupID, op meta.Op) (meta.Result, error) {
	return h.Propose(ctx, g, op)
}

// View shows what was applied.
func (h *moveHost) View(g meta.GroupID, f func(*meta.State)) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	f(h.states[g])
	return nil
}

// Read shows all that was decided.
func (h *moveHost) Read(_ context.Context, g meta.GroupID, f func(*meta.State)) error {
	h.mu.Lock()
	deaf := h.deaf
	h.mu.Unlock()
	if deaf {
		return scstore.ErrNoMajority
	}
	h.apply(g)
	return h.View(g, f)
}

// Lead does nothing: nobody leads here.
func (h *moveHost) Lead(context.Context, meta.GroupID, ...meta.DiskID) error { return nil }

// Watch delivers what is applied from now on.
func (h *moveHost) Watch(g meta.GroupID) (Watcher, error) {
	w := &moveWatcher{more: make(chan struct{}, 1), closed: make(chan struct{})}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.watchers[g] = append(h.watchers[g], w)
	return w, nil
}

type moveWatcher struct {
	mu     sync.Mutex
	events []consensus.Event
	more   chan struct{}
	closed chan struct{}
	once   sync.Once
}

func (w *moveWatcher) push(e consensus.Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.events = append(w.events, e)
	select {
	case w.more <- struct{}{}:
	default:
	}
}

// Next returns the next event.
func (w *moveWatcher) Next(ctx context.Context) (consensus.Event, error) {
	for {
		w.mu.Lock()
		if len(w.events) > 0 {
			e := w.events[0]
			w.events = w.events[1:]
			w.mu.Unlock()
			return e, nil
		}
		w.mu.Unlock()
		select {
		case <-w.more:
		case <-w.closed:
			return consensus.Event{}, scstore.ErrClosed
		case <-ctx.Done():
			return consensus.Event{}, ctx.Err()
		}
	}
}

// Close ends the delivery.
func (w *moveWatcher) Close() { w.once.Do(func() { close(w.closed) }) }

// moveNet is a host's network.
type moveNet struct{ h *moveHost }

func (n moveNet) reach(to meta.DiskID, kind quicnet.Kind) (*moveHost, error) {
	w := n.h.w
	w.mu.Lock()
	lost, lose := w.cuts[[2]meta.DiskID{n.h.disk, to}], w.lose
	w.mu.Unlock()
	if lose != nil {
		w.hooks.Lock()
		lost = lose(n.h.disk, to, kind) || lost
		w.hooks.Unlock()
	}
	time.Sleep(5 * time.Millisecond)
	for _, h := range w.hosts {
		if h.disk == to && !lost {
			h.mu.Lock()
			up := h.up
			h.mu.Unlock()
			if up {
				return h, nil
			}
		}
	}
	return nil, fmt.Errorf("host %s: %w", to, scstore.ErrUnreachable)
}

// Request asks another host.
func (n moveNet) Request(ctx context.Context, to meta.DiskID, _ quicnet.Class, kind quicnet.Kind, payload []byte) ([]byte, error) {
	h, err := n.reach(to, kind)
	if err != nil {
		return nil, err
	}
	h.mu.Lock()
	f := h.answers[kind]
	h.mu.Unlock()
	answer, err := f(ctx, n.h.disk, slices.Clone(payload))
	if _, lost := n.reach(to, kind); lost != nil {
		return nil, fmt.Errorf("host %s: %w", to, scstore.ErrIndeterminate)
	}
	return answer, err
}

// OpenStream opens a stream to another host.
func (n moveNet) OpenStream(ctx context.Context, to meta.DiskID, _ quicnet.Class, kind quicnet.Kind) (propagate.Stream, error) {
	h, err := n.reach(to, kind)
	if err != nil {
		return nil, err
	}
	r1, w1 := io.Pipe()
	r2, w2 := io.Pipe()
	h.mu.Lock()
	f := h.handlers[kind]
	h.mu.Unlock()
	go func() {
		err := f(ctx, n.h.disk, moveStream{r1, w2})
		_ = w2.CloseWithError(err)
		_ = r1.CloseWithError(err)
	}()
	return moveStream{r2, w1}, nil
}

// RTT is the same for all.
func (moveNet) RTT(meta.DiskID) time.Duration { return 10 * time.Millisecond }

// Answer registers who answers a kind of requests.
func (n moveNet) Answer(kind quicnet.Kind, f func(context.Context, meta.DiskID, []byte) ([]byte, error)) {
	n.h.mu.Lock()
	defer n.h.mu.Unlock()
	n.h.answers[kind] = f
}

// Handle registers who serves a kind of streams.
func (n moveNet) Handle(kind quicnet.Kind, f func(context.Context, meta.DiskID, propagate.Stream) error) {
	n.h.mu.Lock()
	defer n.h.mu.Unlock()
	n.h.handlers[kind] = f
}

type moveStream struct {
	r *io.PipeReader
	w *io.PipeWriter
}

func (s moveStream) Read(p []byte) (int, error)  { return s.r.Read(p) }
func (s moveStream) Write(p []byte) (int, error) { return s.w.Write(p) }
func (s moveStream) CloseWrite() error           { return s.w.Close() }
func (s moveStream) Close() error {
	_ = s.r.Close()
	return s.w.Close()
}

// create makes a volume at a host, placed at some.
func (w *moveWorld) create(id scstore.VolumeID, at *moveHost, placed ...*moveHost) {
	w.t.Helper()
	op := meta.CreateVolume{ID: id, SizeBytes: moveBlocks * scstore.BlockSize, CreatedAtMs: 1}
	if err := at.set.Create(w.t.Context(), moveGroup, op); err != nil {
		w.t.Fatal(err)
	}
	if len(placed) > 0 {
		p := meta.Placement{Mode: meta.ModeAsync, Failover: meta.FailoverManual}
		for _, h := range placed {
			p.Sites = append(p.Sites, h.site)
		}
		w.must(at.Propose(w.t.Context(), moveGroup, meta.SetPlacement{ID: id, Placement: p}))
	}
}

// content is what a block with a number holds.
func content(n uint64) []byte {
	b := make([]byte, scstore.BlockSize)
	if n != 0 {
		for i := 0; i < len(b); i += 8 {
			binary.BigEndian.PutUint64(b[i:], n*1_000_003+uint64(i))
		}
	}
	return b
}

// put writes numbers to blocks through a door.
func (h *moveHost) put(id scstore.VolumeID, blocks map[uint64]uint64) error {
	d, err := h.set.Open(h.w.t.Context(), id)
	if err != nil {
		return err
	}
	defer d.Release()
	for at, n := range blocks {
		if err := d.WriteAt(content(n), int64(at)*scstore.BlockSize); err != nil {
			return err
		}
	}
	return d.Flush(h.w.t.Context())
}

// write is put that has to succeed.
func (h *moveHost) write(id scstore.VolumeID, blocks map[uint64]uint64) {
	h.w.t.Helper()
	if err := h.put(id, blocks); err != nil {
		h.w.t.Fatalf("write at %s: %v", h.site, err)
	}
}

// shows compares a volume with what is expected of some blocks.
func (h *moveHost) shows(id scstore.VolumeID, blocks map[uint64]uint64) {
	h.w.t.Helper()
	d, err := h.set.Open(h.w.t.Context(), id)
	if err != nil {
		h.w.t.Fatalf("open at %s: %v", h.site, err)
	}
	defer d.Release()
	h.same(d, blocks)
}

func (h *moveHost) same(d Device, blocks map[uint64]uint64) {
	h.w.t.Helper()
	got := make([]byte, scstore.BlockSize)
	for at, n := range blocks {
		if _, err := d.ReadAt(got, int64(at)*scstore.BlockSize, nil); err != nil {
			h.w.t.Fatalf("read block %d at %s: %v", at, h.site, err)
		}
		if !bytes.Equal(got, content(n)) {
			h.w.t.Errorf("block %d at %s does not hold %d", at, h.site, n)
		}
	}
}

// eventually waits until a condition holds.
func (w *moveWorld) eventually(what string, done func() bool) {
	w.t.Helper()
	for range 1200 {
		if done() {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	w.t.Fatalf("after two minutes: %s", what)
}

// owner returns what a host's state says of a volume's right.
func (h *moveHost) tenure(id scstore.VolumeID) (t meta.Tenure) {
	_ = h.View(moveGroup, func(st *meta.State) { t, _ = st.Holder(id) })
	return t
}

// copyAt returns where a disk has a complete copy, by the log.
func (h *moveHost) copyAt(id scstore.VolumeID, disk meta.DiskID) (at, head scstore.Position) {
	_ = h.View(moveGroup, func(st *meta.State) {
		rec, _ := st.Get(id)
		head = rec.Head
		for _, r := range st.Replicas(id) {
			if r.Disk == disk {
				at = r.Complete
			}
		}
	})
	return at, head
}

// merged returns what is there after all of these writes.
func merged(list ...map[uint64]uint64) map[uint64]uint64 {
	all := map[uint64]uint64{}
	for _, m := range list {
		maps.Copy(all, m)
	}
	return all
}
