package consensus_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lni/vfs"

	"scstore"
	"scstore/consensus"
	"scstore/consensus/consensustest"
	"scstore/consensus/meta"
)

const theGroup = consensus.GroupID(3)

var theCluster = consensus.ClusterID{0: 0xc1, 15: 1}

// host is one member; it survives its Cluster.
type host struct {
	disk    consensus.DiskID
	replica consensus.ReplicaID
	fs      *vfs.MemFS
	folder  string
	free    atomic.Int64 // bytes; 0 means that nobody looks
	c       *consensus.Cluster

	mu sync.Mutex // guards c where clients run while it is replaced
}

// cluster returns the host's Cluster, nil while there is none.
func (h *host) cluster() *consensus.Cluster {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.c
}

func (h *host) setCluster(c *consensus.Cluster) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.c = c
}

// world is a cluster in virtual time.
type world struct {
	t       *testing.T
	net     *consensustest.Network
	hosts   []*host
	members map[consensus.ReplicaID]consensus.DiskID
	change  func(*consensus.ClusterOptions) // of every Cluster
}

// inWorld runs a test with so many members, 40 ms apart.
func inWorld(t *testing.T, members int, f func(*testing.T, *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, net: consensustest.New(1, 40*time.Millisecond), members: map[consensus.ReplicaID]consensus.DiskID{}}
		for range members {
			h := w.add()
			w.members[h.replica] = h.disk
		}
		defer func() {
			for _, h := range w.hosts {
				w.stop(h)
			}
		}()
		f(t, w)
	})
}

// add makes a host with an empty disk.
func (w *world) add() *host {
	n := byte(len(w.hosts) + 1)
	h := &host{disk: consensus.DiskID{0: 0xd0, 15: n}, replica: consensus.ReplicaID(n), fs: vfs.NewStrictMem(), folder: "/srv/raft"}
	w.hosts = append(w.hosts, h)
	return h
}

func (w *world) options(h *host, groups ...consensus.Group) consensus.ClusterOptions {
	o := consensus.ClusterOptions{Cluster: theCluster, Disk: h.disk, Groups: groups, Transport: w.net, FS: h.fs}
	if h.free.Load() > 0 {
		o.FreeBytes = func() (int64, error) { return h.free.Load(), nil }
	}
	if w.change != nil {
		w.change(&o)
	}
	return o
}

func (w *world) open(h *host, g consensus.Group) {
	w.t.Helper()
	if err := w.tryOpen(h, g); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) tryOpen(h *host, g consensus.Group) error {
	g.ID, g.Replica = theGroup, h.replica
	c, err := consensus.OpenCluster(w.t.Context(), h.folder, w.options(h, g))
	h.setCluster(c)
	return err
}

// begin opens all hosts as the first members.
func (w *world) begin() {
	w.t.Helper()
	for _, h := range w.hosts {
		w.open(h, consensus.Group{Members: w.members})
	}
}

func (w *world) stop(h *host) {
	w.t.Helper()
	c := h.cluster()
	if c == nil {
		return
	}
	h.setCluster(nil)
	if err := c.Close(); err != nil {
		w.t.Errorf("close host %d: %v", h.replica, err)
	}
}

// cutPower stops a host and takes what it had not synced. Nothing that it says in its
// last moments, when its disk keeps nothing any more, reaches the others.
func (w *world) cutPower(h *host) {
	w.t.Helper()
	w.net.Cut(h.disk)
	defer w.net.Heal()
	h.fs.SetIgnoreSyncs(true)
	w.stop(h)
	h.fs.ResetToSyncedState()
	h.fs.SetIgnoreSyncs(false)
}

// eventually waits for a condition, half a minute at most.
func (w *world) eventually(what string, condition func() bool) {
	w.t.Helper()
	for range 600 {
		if condition() {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	w.t.Fatalf("never: %s", what)
}

// failed waits until a host says that it must not go on.
func (w *world) failed(h *host) {
	w.t.Helper()
	select {
	case <-h.c.Failed():
	case <-time.After(time.Minute):
		w.t.Fatalf("host %d goes on", h.replica)
	}
}

// leader waits until all of the hosts agree on one of them.
func (w *world) leader(among ...*host) *host {
	w.t.Helper()
	if len(among) == 0 {
		among = w.hosts
	}
	var leader *host
	w.eventually("a leader", func() bool {
		var seen consensus.Leader
		for i, h := range among {
			l, err := h.c.Leader(theGroup)
			if err != nil {
				w.t.Fatal(err)
			}
			l.Here = false
			if !l.Known() || i > 0 && l != seen {
				return false
			}
			seen = l
		}
		i := slices.IndexFunc(among, func(h *host) bool { return h.disk == seen.Disk })
		if i < 0 {
			return false
		}
		leader = among[i]
		return true
	})
	return leader
}

func volumeID(n int) scstore.VolumeID {
	return scstore.VolumeID{0: 0xc0, 14: byte(n >> 8), 15: byte(n)}
}

func createVolume(n int) meta.Command {
	return meta.Command{Op: meta.CreateVolume{ID: volumeID(n), SizeBytes: 8 * scstore.BlockSize}}
}

func openFence(n int) meta.Command {
	return meta.Command{Op: meta.OpenFence{ID: volumeID(n), Holder: "somebody"}}
}

// propose proposes until it is decided; only for commands that may be repeated.
func (w *world) propose(h *host, c meta.Command) meta.Result {
	w.t.Helper()
	var result meta.Result
	w.eventually(fmt.Sprintf("%T is decided", c.Op), func() bool {
		var err error
		result, err = h.c.Propose(w.t.Context(), theGroup, c)
		if err != nil && !errors.Is(err, scstore.ErrNoMajority) && !errors.Is(err, scstore.ErrIndeterminate) && !errors.Is(err, scstore.ErrExists) {
			w.t.Fatal(err)
		}
		return err == nil || errors.Is(err, scstore.ErrExists)
	})
	return result
}

// state is a host's state, encoded.
func (w *world) state(h *host) (b []byte) {
	w.t.Helper()
	if err := h.c.View(theGroup, func(s *meta.State) { b = s.AppendTo(nil) }); err != nil {
		w.t.Fatal(err)
	}
	return b
}

// agree waits until all of the hosts have the same state, which has these volumes.
func (w *world) agree(volumes map[int]bool, among ...*host) {
	w.t.Helper()
	if len(among) == 0 {
		among = w.hosts
	}
	w.eventually("equal states", func() bool {
		first := w.state(among[0])
		return !slices.ContainsFunc(among, func(h *host) bool { return !bytes.Equal(w.state(h), first) })
	})
	for _, h := range among {
		if err := h.c.View(theGroup, func(s *meta.State) {
			for _, n := range slices.Sorted(maps.Keys(volumes)) {
				if _, ok := s.Get(volumeID(n)); ok != volumes[n] {
					w.t.Errorf("host %d: volume %d: %v, want %v", h.replica, n, ok, volumes[n])
				}
			}
		}); err != nil {
			w.t.Fatal(err)
		}
	}
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
