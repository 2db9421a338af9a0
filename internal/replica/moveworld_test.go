package replica

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

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

// errLost, of refuse, has a proposal get lost on its way: nobody says so.
var errLost = errors.New("it got lost")

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
	deaf     bool            // applies nothing, and can't propose
	behind   bool            // reads the log again, and is as far as upTo
	upTo     int             // how many entries of the volumes' group are applied then
	life     context.Context // ends with stop, before the replicas close
	end      context.CancelFunc
	inside   sync.WaitGroup // who uses the host
	states   map[meta.GroupID]*meta.State
	results  map[meta.GroupID][]meta.Result // of all that was applied
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
				states: map[meta.GroupID]*meta.State{}, results: map[meta.GroupID][]meta.Result{},
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

// hostOf returns the host with a disk.
func (w *moveWorld) hostOf(disk meta.DiskID) *moveHost {
	for _, h := range w.hosts {
		if h.disk == disk {
			return h
		}
	}
	w.t.Fatalf("there is no host %q", disk)
	return nil
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
	h.life, h.end = context.WithCancel(t.Context())
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

// startBehind is start with a state that is as the log had it some time ago: so many of its
// entries are applied at first, and the others once readOn is called.
func (h *moveHost) startBehind(entries int) {
	h.w.t.Helper()
	h.w.mu.Lock()
	log := slices.Clone(h.w.entries[moveGroup][:entries])
	h.w.mu.Unlock()
	st, results := meta.NewGroup(moveGroup), []meta.Result(nil)
	for _, c := range log {
		results = append(results, st.Apply(c))
	}
	h.mu.Lock()
	h.states[moveGroup], h.results[moveGroup] = st, results
	h.behind, h.upTo = true, entries
	h.mu.Unlock()
	h.start()
}

// readEntry has a host that is behind apply one more entry. It reports false if that is
// all, and the host is behind no more.
func (h *moveHost) readEntry() bool {
	h.w.mu.Lock()
	all := len(h.w.entries[moveGroup])
	h.w.mu.Unlock()
	h.mu.Lock()
	h.upTo++
	h.behind = h.upTo < all
	more := h.behind
	h.mu.Unlock()
	h.catchUp()
	return more
}

func (h *moveHost) readOn() {
	h.mu.Lock()
	h.behind = false
	h.mu.Unlock()
	h.catchUp()
}

// stop ends a host. What it did not write down is lost.
func (h *moveHost) stop() {
	h.mu.Lock()
	up, end := h.up, h.end
	h.up = false
	h.mu.Unlock()
	if !up {
		return
	}
	end()
	h.inside.Wait()
	if err := h.set.Close(); err != nil {
		h.w.t.Errorf("close the replicas of %s: %v", h.site, err)
	}
	if err := h.store.Close(); err != nil {
		h.w.t.Errorf("close the store of %s: %v", h.site, err)
	}
}

// enter counts who uses a host until leave is called: stop waits for that. The context ends
// when it should come. ok is false if the host is down.
func (h *moveHost) enter() (life context.Context, leave func(), ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.up {
		h.inside.Add(1)
	}
	return h.life, h.inside.Done, h.up
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

// errAnswerLost, of a hook, has a proposal be taken and its answer be lost.
var errAnswerLost = errors.New("the answer is lost")

// refusing sets which proposals fail.
func (w *moveWorld) refusing(f func(from meta.DiskID, op meta.Op) error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.refuse = f
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
	for _, h := range w.hosts {
		h.dump()
	}
	w.t.Fatalf("after two minutes: %s", what)
}

// dump says what a host has, and what it knows.
func (h *moveHost) dump() {
	for _, r := range h.set.all() {
		r.mu.Lock()
		h.w.t.Logf("%s: volume %s: %+v, jump %+v, draining %+v, marks %v, source %v, target %v, moving %+v",
			h.site, r.id, r.facts, r.facts.Jump, r.facts.Draining, r.marks(), r.source != nil, r.target != nil, r.moving)
		r.mu.Unlock()
		_ = h.View(moveGroup, func(st *meta.State) {
			rec, _ := st.Get(r.id)
			h.w.t.Logf("%s: record %+v, replicas %+v, roots %+v, forks %+v, moves %+v", h.site, rec, st.Replicas(r.id), st.Roots(r.id), st.Forks(r.id), st.Moves())
		})
	}
}
