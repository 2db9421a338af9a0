package consensus_test

import (
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/lni/dragonboat/v4/config"
	"github.com/lni/dragonboat/v4/raftio"
	"github.com/lni/dragonboat/v4/raftpb"

	"scstore"
	"scstore/consensus"
	"scstore/consensus/meta"
)

func TestCluster_OneVoterLeadsWithinASecond(t *testing.T) {
	const look = 10 * time.Millisecond
	inWorld(t, 1, func(t *testing.T, w *world) {
		h := w.hosts[0]
		for round := range 5 {
			g := consensus.Group{Alone: true}
			if round == 0 {
				g.Members = w.members
			}
			start := time.Now()
			w.open(h, g)
			for {
				if l, err := h.c.Leader(theGroup); err != nil || l.Known() {
					break
				}
				time.Sleep(look)
			}
			if took := time.Since(start); took > time.Second+look {
				t.Errorf("start %d: a leader after %v", round, took)
			}
			if _, err := h.c.Propose(t.Context(), theGroup, createVolume(round)); err != nil {
				t.Fatal(err)
			}
			want := map[int]bool{}
			for n := range 5 {
				want[n] = n <= round
			}
			w.agree(want)
			w.cutPower(h)
		}
	})
}

func TestCluster_AnswersAndAgrees(t *testing.T) {
	inWorld(t, 3, func(t *testing.T, w *world) {
		w.begin()
		w.leader()
		want := map[int]bool{}
		for i, h := range w.hosts {
			if _, err := h.c.Propose(t.Context(), theGroup, createVolume(i)); err != nil {
				t.Fatal(err)
			}
			want[i] = true
		}
		w.agree(want)
		_, err := w.hosts[1].c.Propose(t.Context(), theGroup, createVolume(0))
		wantErr(t, "an id that is taken", err, scstore.ErrExists)
		_, err = w.hosts[1].c.Propose(t.Context(), theGroup, meta.Command{})
		wantErr(t, "a command that is none", err, scstore.ErrInvalid)
		_, err = w.hosts[1].c.Propose(t.Context(), 99, createVolume(5))
		wantErr(t, "a group that is not here", err, scstore.ErrNotFound)
	})
}

func TestCluster_ReadSeesWhatWasAnsweredElsewhere(t *testing.T) {
	inWorld(t, 3, func(t *testing.T, w *world) {
		w.begin()
		w.leader()
		for i := range 20 {
			if _, err := w.hosts[i%3].c.Propose(t.Context(), theGroup, createVolume(i)); err != nil {
				t.Fatal(err)
			}
			found := false
			err := w.hosts[(i+1)%3].c.Read(t.Context(), theGroup, func(s *meta.State) { _, found = s.Get(volumeID(i)) })
			if err != nil || !found {
				t.Fatalf("volume %d, answered at %d, is not read at %d: %v", i, i%3, (i+1)%3, err)
			}
		}
	})
}

func TestCluster_CutLeaderLosesNothingThatWasAnswered(t *testing.T) {
	inWorld(t, 3, func(t *testing.T, w *world) {
		w.begin()
		old := w.leader()
		var others []*host
		for _, h := range w.hosts {
			if h != old {
				others = append(others, h)
			}
		}
		if _, err := old.c.Propose(t.Context(), theGroup, createVolume(1)); err != nil {
			t.Fatal(err)
		}
		w.net.Cut(old.disk)
		_, err := old.c.Propose(within(t, time.Second), theGroup, createVolume(2))
		wantErr(t, "propose at the leader that was cut off", err, scstore.ErrIndeterminate)
		err = old.c.Read(within(t, time.Second), theGroup, func(*meta.State) { t.Error("read without a majority") })
		if err == nil {
			t.Error("read at the leader that was cut off: no error")
		}
		w.leader(others...)
		w.propose(others[0], createVolume(3))
		w.propose(others[1], createVolume(4))
		w.eventually("the cut leader steps down", func() bool {
			l, err := old.c.Leader(theGroup)
			return err == nil && !l.Known()
		})
		_, err = old.c.Propose(t.Context(), theGroup, createVolume(5))
		wantErr(t, "propose without a leader", err, scstore.ErrNoMajority)
		w.net.Heal()
		w.leader()
		w.agree(map[int]bool{1: true, 2: false, 3: true, 4: true, 5: false})
	})
}

func TestCluster_PowerLossOfAllKeepsWhatWasAnswered(t *testing.T) {
	inWorld(t, 3, func(t *testing.T, w *world) {
		w.change = func(o *consensus.ClusterOptions) { o.SnapshotEntries, o.TrailingEntries = 15, 5 }
		want := map[int]bool{}
		next := 0
		for round := range 4 {
			for _, h := range w.hosts {
				g := consensus.Group{Members: w.members}
				if round > 0 {
					g.Members = nil
				}
				w.open(h, g)
			}
			w.leader()
			w.agree(want)
			var mu sync.Mutex
			dead := false // what is answered from then on need not be kept
			var wait sync.WaitGroup
			for i, h := range w.hosts {
				wait.Go(func() {
					for n := next + i; ; n += len(w.hosts) {
						if _, err := h.c.Propose(t.Context(), theGroup, createVolume(n)); err != nil {
							return
						}
						mu.Lock()
						if !dead {
							want[n] = true
						}
						mu.Unlock()
					}
				})
			}
			time.Sleep(time.Duration(1500+313*round) * time.Millisecond)
			for _, h := range w.hosts {
				h.fs.SetIgnoreSyncs(true) // from here on nothing is kept
			}
			mu.Lock()
			dead = true
			answered := len(want)
			mu.Unlock()
			for _, h := range w.hosts {
				if err := h.c.Close(); err != nil {
					t.Errorf("close: %v", err)
				}
			}
			wait.Wait()
			if answered == 0 {
				t.Fatal("nothing was answered")
			}
			next = 1000 * (round + 1)
			for _, h := range w.hosts {
				h.c = nil
				h.fs.ResetToSyncedState()
				h.fs.SetIgnoreSyncs(false)
			}
		}
	})
}

func TestCluster_LazyCommandsShareEntries(t *testing.T) {
	inWorld(t, 3, func(t *testing.T, w *world) {
		w.begin()
		leader := w.leader()
		watcher, err := leader.c.Watch(theGroup)
		if err != nil {
			t.Fatal(err)
		}
		var wait sync.WaitGroup
		start := time.Now()
		const lazy = 200
		for i := range lazy {
			wait.Go(func() {
				if r, err := leader.c.ProposeSoon(t.Context(), theGroup, createVolume(i)); err != nil || r.ID != volumeID(i) {
					t.Errorf("command %d: %+v, %v", i, r, err)
				}
			})
		}
		wait.Wait()
		if took := time.Since(start); took < 25*time.Millisecond || took > 200*time.Millisecond {
			t.Errorf("lazy commands took %v, want 25 ms and a round trip", took)
		}
		entries := map[uint64]int{}
		for range lazy {
			e, err := watcher.Next(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			entries[e.Index]++
		}
		if len(entries) > 2 {
			t.Errorf("%d entries for %d commands", len(entries), lazy)
		}
		// An urgent one takes along who waits, and waits for nobody.
		start = time.Now()
		wait.Go(func() { _, _ = leader.c.ProposeSoon(t.Context(), theGroup, createVolume(500)) })
		time.Sleep(time.Millisecond)
		if _, err := leader.c.Propose(t.Context(), theGroup, createVolume(501)); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took > 82*time.Millisecond {
			t.Errorf("an urgent command took %v, want a round trip of 80 ms", took)
		}
		wait.Wait()
		one, err1 := watcher.Next(t.Context())
		two, err2 := watcher.Next(t.Context())
		if err := errors.Join(err1, err2); err != nil || one.Result.ID != volumeID(500) || two.Result.ID != volumeID(501) || one.Index != two.Index {
			t.Errorf("events %+v and %+v: %v", one, two, err)
		}
	})
}

func TestCluster_CancelledBeforeItWasSentIsNotSent(t *testing.T) {
	inWorld(t, 1, func(t *testing.T, w *world) {
		w.change = func(o *consensus.ClusterOptions) { o.BatchDelay = time.Second }
		h := w.hosts[0]
		w.open(h, consensus.Group{Members: w.members, Alone: true})
		w.leader()
		_, err := h.c.ProposeSoon(within(t, 100*time.Millisecond), theGroup, createVolume(1))
		if err == nil || errors.Is(err, scstore.ErrIndeterminate) {
			t.Errorf("got %v, want the context's end", err)
		}
		time.Sleep(5 * time.Second)
		w.agree(map[int]bool{1: false})
	})
}

func TestCluster_WatcherThatFallsBehindGetsAGap(t *testing.T) {
	inWorld(t, 1, func(t *testing.T, w *world) {
		h := w.hosts[0]
		w.open(h, consensus.Group{Members: w.members, Alone: true})
		w.leader()
		w.propose(h, createVolume(0))
		watcher, err := h.c.Watch(theGroup)
		if err != nil {
			t.Fatal(err)
		}
		const total = consensus.MaxWatchEvents + 100
		for begin := 0; begin < total; begin += 200 {
			var wait sync.WaitGroup
			for range min(200, total-begin) {
				wait.Go(func() {
					if _, err := h.c.ProposeSoon(t.Context(), theGroup, openFence(0)); err != nil {
						t.Error(err)
					}
				})
			}
			wait.Wait()
		}
		const first = 1 + consensus.MaxWatchEvents + 1 // after the volume, and those that were dropped
		for want := uint64(first); want <= 1+total; want++ {
			e, err := watcher.Next(t.Context())
			if err != nil || e.Applied != want || e.Gap != (want == first) {
				t.Fatalf("event %+v, want command %d: %v", e, want, err)
			}
		}
		watcher.Close()
		_, err = watcher.Next(t.Context())
		wantErr(t, "after Close", err, scstore.ErrClosed)
	})
}

func TestCluster_NewerEntryStopsTheHostAndNothingElse(t *testing.T) {
	inWorld(t, 3, func(t *testing.T, w *world) {
		w.change = func(o *consensus.ClusterOptions) { o.SnapshotEntries, o.TrailingEntries = 10, 2 }
		w.begin()
		w.leader()
		w.propose(w.hosts[0], createVolume(1))
		w.agree(map[int]bool{1: true})
		if err := w.hosts[0].c.ProposeBytes(t.Context(), theGroup, consensus.NewerEntry(theCluster, theGroup, createVolume(2))); err != nil {
			t.Fatal(err)
		}
		check := func(h *host) {
			t.Helper()
			w.failed(h)
			wantErr(t, "Failure", h.c.Failure(), scstore.ErrVersion)
			_, err := h.c.Propose(t.Context(), theGroup, createVolume(3))
			wantErr(t, "Propose", err, scstore.ErrVersion)
			wantErr(t, "View", h.c.View(theGroup, func(*meta.State) {}), scstore.ErrVersion)
			if s, err := h.c.Status(theGroup); err != nil || !errors.Is(s.Halted, scstore.ErrVersion) || s.Applied != 1 {
				t.Errorf("status %+v: %v", s, err)
			}
		}
		for _, h := range w.hosts {
			check(h)
		}
		// The log goes on, far enough for snapshots that must not be taken: each start
		// must meet the entry again.
		for i := range 30 {
			if err := w.hosts[1].c.ProposeBytes(t.Context(), theGroup, consensus.PlainEntry(theCluster, theGroup, createVolume(10+i))); err != nil {
				t.Fatal(err)
			}
		}
		for _, h := range w.hosts {
			w.cutPower(h)
		}
		for _, h := range w.hosts {
			w.open(h, consensus.Group{})
		}
		for _, h := range w.hosts {
			check(h)
		}
	})
}

func TestCluster_FullDiskRefusesThenLeaves(t *testing.T) {
	inWorld(t, 3, func(t *testing.T, w *world) {
		const reserve = 256 << 20
		tight := w.hosts[0]
		tight.free.Store(2 * reserve)
		w.begin()
		w.leader()
		w.propose(tight, createVolume(1))
		tight.free.Store(reserve / 2)
		time.Sleep(2 * time.Second)
		_, err := tight.c.Propose(t.Context(), theGroup, createVolume(2))
		wantErr(t, "propose on a disk that is nearly full", err, scstore.ErrNoSpace)
		w.propose(w.hosts[1], createVolume(3)) // others go on
		tight.free.Store(2 * reserve)
		time.Sleep(2 * time.Second)
		w.propose(tight, createVolume(4))
		tight.free.Store(reserve / 8)
		w.failed(tight)
		wantErr(t, "Failure", tight.c.Failure(), scstore.ErrNoSpace)
		w.eventually("the replica is stopped", func() bool { return len(tight.c.Statuses()) == 0 })
		w.leader(w.hosts[1:]...)
		w.propose(w.hosts[2], createVolume(5))
		w.stop(tight)
		wantErr(t, "open on a full disk", w.tryOpen(tight, consensus.Group{}), scstore.ErrNoSpace)
		tight.free.Store(2 * reserve)
		w.open(tight, consensus.Group{})
		w.agree(map[int]bool{1: true, 2: false, 3: true, 4: true, 5: true})
	})
}

func TestCluster_CloseAnswersWhoWaits(t *testing.T) {
	inWorld(t, 3, func(t *testing.T, w *world) {
		w.begin()
		h := w.leader()
		c := h.c
		w.net.Cut(h.disk)
		sent, queued, read := make(chan error, 1), make(chan error, 1), make(chan error, 1)
		go func() { _, err := c.Propose(t.Context(), theGroup, createVolume(1)); sent <- err }()
		time.Sleep(time.Millisecond)
		go func() { _, err := c.ProposeSoon(t.Context(), theGroup, createVolume(2)); queued <- err }()
		go func() { read <- c.Read(t.Context(), theGroup, func(*meta.State) {}) }()
		time.Sleep(time.Millisecond)
		w.stop(h)
		wantErr(t, "a proposal that was sent", <-sent, scstore.ErrIndeterminate)
		wantErr(t, "one that was not", <-queued, scstore.ErrClosed)
		if err := <-read; err == nil {
			t.Error("a read that waited: no error")
		}
		if err := c.Close(); err != nil {
			t.Errorf("close again: %v", err)
		}
		_, err := c.Propose(t.Context(), theGroup, createVolume(3))
		wantErr(t, "propose", err, scstore.ErrClosed)
		wantErr(t, "view", c.View(theGroup, func(*meta.State) {}), scstore.ErrClosed)
		wantErr(t, "start", c.Start(t.Context(), consensus.Group{ID: 9, Replica: 1, Members: map[consensus.ReplicaID]consensus.DiskID{1: h.disk}}), scstore.ErrClosed)
	})
}

// beats notes when heart-beats arrive at a host.
type beats struct {
	config.TransportFactory
	mu sync.Mutex
	at []time.Time
}

// Create makes a transport whose messages are looked at.
func (b *beats) Create(c config.NodeHostConfig, messages raftio.MessageHandler, chunks raftio.ChunkHandler) raftio.ITransport {
	return b.TransportFactory.Create(c, func(batch raftpb.MessageBatch) {
		b.mu.Lock()
		for _, m := range batch.Requests {
			if m.Type == raftpb.Heartbeat {
				b.at = append(b.at, time.Now())
			}
		}
		b.mu.Unlock()
		messages(batch)
	}, chunks)
}

// TestCluster_HeartBeatsOfAllGroupsLeaveAtOnce: each moment at which some leave wakes both
// hosts, and costs a packet and its answer.
func TestCluster_HeartBeatsOfAllGroupsLeaveAtOnce(t *testing.T) {
	inWorld(t, 3, func(t *testing.T, w *world) {
		seen := map[consensus.DiskID]*beats{}
		w.change = func(o *consensus.ClusterOptions) {
			seen[o.Disk] = &beats{TransportFactory: o.Transport}
			o.Transport = seen[o.Disk]
		}
		w.begin()
		w.leader()
		const groups = 5
		ids := []consensus.GroupID{theGroup}
		for id := consensus.GroupID(10); len(ids) < groups; id++ {
			for _, h := range w.hosts {
				if err := h.c.Start(t.Context(), consensus.Group{ID: id, Replica: h.replica, Members: w.members}); err != nil {
					t.Fatal(err)
				}
			}
			ids = append(ids, id)
		}
		leader, follower := w.hosts[0], w.hosts[1]
		for _, id := range ids {
			w.eventually("the first host leads", func() bool { return leader.c.TransferLeader(t.Context(), id, leader.disk) == nil })
			time.Sleep(70 * time.Millisecond) // so that their clocks do not begin together
		}
		time.Sleep(time.Second)
		b := seen[follower.disk]
		b.mu.Lock()
		b.at = nil
		b.mu.Unlock()
		const seconds = 10
		time.Sleep(seconds * time.Second)
		b.mu.Lock()
		defer b.mu.Unlock()
		moments := len(slices.Compact(slices.Clone(b.at)))
		if moments == 0 || moments > 5*seconds+1 || len(b.at) < groups*(moments-1) {
			t.Errorf("%d heart-beats of %d groups came at %d moments in %d s, want at most 5 moments a second", len(b.at), groups, moments, seconds)
		}
	})
}
