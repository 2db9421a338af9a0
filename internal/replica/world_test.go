package replica

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"scstore"
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
func (h *testHost) open() { h.openAt(0) }

// openAt is open with only so many entries of the test group applied at first; 0: all.
func (h *testHost) openAt(upTo int) {
	h.w.t.Helper()
	h.boot++
	h.log = newTestLog(h)
	h.log.hold(upTo)
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
	h.set.wholeTick = time.Hour // so that what wakes a replica at rest is enough
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

// killAt restarts the host with what kill -9 leaves of it now: files as they are, without
// what its store has yet to put into them. It has then applied so many entries; 0: all.
func (h *testHost) killAt(upTo int) {
	h.w.t.Helper()
	left := h.w.t.TempDir()
	if err := os.CopyFS(left, os.DirFS(h.dir)); err != nil {
		h.w.t.Fatal(err)
	}
	h.close()
	h.dir = left
	h.openAt(upTo)
}

// failFacts has the host's attempts to write down what it knows of a volume fail, until
// mend is called.
func (h *testHost) failFacts(id scstore.VolumeID) (mend func()) {
	h.w.t.Helper()
	inTheWay := filepath.Join(h.dir, "replicas", id.String()+factsSuffix+".new")
	if err := os.Mkdir(inTheWay, 0o700); err != nil {
		h.w.t.Fatal(err)
	}
	return func() { _ = os.Remove(inTheWay) }
}

// restartAt restarts the host, which has then applied the log up to where the state was
// first like this.
func (h *testHost) restartAt(was func(st *meta.State) bool) {
	h.w.t.Helper()
	h.close()
	st := meta.NewGroup(testGroup)
	log := h.w.logs[testGroup]
	log.mu.Lock()
	entries := slices.Clone(log.entries)
	log.mu.Unlock()
	for n, c := range entries {
		st.Apply(c)
		if was(st) {
			h.openAt(n + 1)
			return
		}
	}
	h.w.t.Fatal("the state was never like this")
}

// view looks at the host's state.
func (h *testHost) view(f func(st *meta.State)) {
	h.w.t.Helper()
	if err := h.log.View(testGroup, f); err != nil {
		h.w.t.Fatal(err)
	}
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
