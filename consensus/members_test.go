package consensus_test

import (
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/lni/vfs"

	"scstore"
	"scstore/consensus"
	"scstore/consensus/meta"
)

func TestCluster_LeaderMovesWhereItIsWanted(t *testing.T) {
	inWorld(t, 3, func(t *testing.T, w *world) {
		w.begin()
		w.leader()
		for _, from := range w.hosts {
			for _, to := range w.hosts {
				start := time.Now()
				if err := from.c.TransferLeader(t.Context(), theGroup, to.disk); err != nil {
					t.Fatalf("asked at %d, to %d: %v", from.replica, to.replica, err)
				}
				if took := time.Since(start); took > 3*time.Second {
					t.Errorf("asked at %d, to %d: %v", from.replica, to.replica, took)
				}
				if l, err := from.c.Leader(theGroup); err != nil || l.Disk != to.disk {
					t.Errorf("leader %v, want %v: %v", l, to.disk, err)
				}
			}
		}
		wantErr(t, "to a stranger", w.hosts[0].c.TransferLeader(t.Context(), theGroup, consensus.DiskID{1}), scstore.ErrNotFound)
	})
}

func TestCluster_PreferredDiskTakesTheLeadWhenItIsFit(t *testing.T) {
	inWorld(t, 3, func(t *testing.T, w *world) {
		w.begin()
		first := w.leader()
		wanted := w.hosts[int(first.replica)%3]
		prefer := func(h *host) {
			for _, other := range w.hosts {
				if err := other.c.Prefer(theGroup, h.disk); err != nil {
					t.Fatal(err)
				}
			}
		}
		leads := func(h *host) func() bool {
			return func() bool {
				l, err := h.c.Leader(theGroup)
				return err == nil && l.Here
			}
		}
		prefer(wanted)
		w.eventually("the preferred disk leads", leads(wanted))
		// A preferred disk that is out of reach never disturbs the leader.
		w.net.Cut(first.disk)
		prefer(first)
		for range 60 {
			time.Sleep(time.Second)
			if _, err := wanted.c.Propose(within(t, time.Second), theGroup, openFence(1)); !errors.Is(err, scstore.ErrNotFound) {
				t.Fatalf("the leader was disturbed: %v", err)
			}
		}
		w.net.Heal()
		w.eventually("the preferred disk leads again", leads(first))
	})
}

func TestCluster_FourthMemberCatchesUpFromASnapshot(t *testing.T) {
	inWorld(t, 3, func(t *testing.T, w *world) {
		w.change = func(o *consensus.ClusterOptions) { o.SnapshotEntries, o.TrailingEntries = 20, 5 }
		w.begin()
		w.leader()
		want := map[int]bool{}
		for i := range 100 {
			w.propose(w.hosts[0], createVolume(i))
			want[i] = true
		}
		first := w.hosts[0].c
		fourth := w.add()
		if err := first.AddNonVoting(t.Context(), theGroup, fourth.replica, fourth.disk); err != nil {
			t.Fatal(err)
		}
		w.open(fourth, consensus.Group{Join: true, NonVoting: true})
		w.agree(want)
		if err := fourth.c.Read(t.Context(), theGroup, func(*meta.State) {}); err != nil {
			t.Errorf("read at a non-voting member: %v", err)
		}
		w.propose(fourth, createVolume(200))
		want[200] = true
		if err := first.Promote(t.Context(), theGroup, fourth.replica); err != nil {
			t.Fatal(err)
		}
		m, err := fourth.c.Members(t.Context(), theGroup)
		if err != nil || len(m.Voters) != 4 || len(m.NonVoting) != 0 || m.Voters[4] != fourth.disk {
			t.Errorf("members %+v: %v", m, err)
		}
		w.cutPower(fourth)
		w.open(fourth, consensus.Group{NonVoting: true})
		w.agree(want)
		w.leader()
		if err := fourth.c.Read(t.Context(), theGroup, func(*meta.State) {}); err != nil { // and so its promotion is seen
			t.Fatal(err)
		}
		if err := fourth.c.TransferLeader(t.Context(), theGroup, fourth.disk); err != nil {
			t.Errorf("lead as the fourth: %v", err)
		}
	})
}

func TestCluster_MovedFolderAndRenamedHostServeSnapshots(t *testing.T) {
	inWorld(t, 3, func(t *testing.T, w *world) {
		w.change = func(o *consensus.ClusterOptions) {
			o.SnapshotEntries, o.TrailingEntries = 20, 5
			o.PreferInterval = 5 * time.Second // the new member asks before the hosts have looked after their snapshots
		}
		w.begin()
		w.leader()
		want := map[int]bool{}
		for i := range 70 {
			w.propose(w.hosts[0], createVolume(i))
			want[i] = true
		}
		w.agree(want)
		name, err := os.Hostname()
		if err != nil {
			t.Fatal(err)
		}
		for _, h := range w.hosts {
			w.stop(h)
			old := h.folder
			h.folder = "/srv/moved"
			if err := errors.Join(h.fs.Rename(old, h.folder), h.fs.Rename(h.folder+"/"+name, h.folder+"/former-name")); err != nil {
				t.Fatal(err)
			}
		}
		for _, h := range w.hosts {
			w.open(h, consensus.Group{})
		}
		w.leader()
		fourth := w.add()
		if err := w.hosts[0].c.AddVoter(t.Context(), theGroup, fourth.replica, fourth.disk); err != nil {
			t.Fatal(err)
		}
		w.open(fourth, consensus.Group{Join: true})
		w.agree(want)
	})
}

func TestCluster_ReplacedDiskComesBackUnderANewID(t *testing.T) {
	inWorld(t, 3, func(t *testing.T, w *world) {
		w.begin()
		w.leader()
		w.propose(w.hosts[0], createVolume(1))
		lost := w.hosts[2]
		w.stop(lost)

		// Its disk was wiped: it must not start as if it were new, and vote again.
		wiped := &host{disk: lost.disk, replica: lost.replica, fs: vfs.NewStrictMem(), folder: lost.folder}
		err := w.tryOpen(wiped, consensus.Group{})
		wantErr(t, "start a replica whose log is gone", err, scstore.ErrNotFound)

		w.hosts = w.hosts[:2]
		w.leader()
		first := w.hosts[0].c
		fresh := w.add()
		fresh.disk, fresh.replica = consensus.DiskID{0: 0xdd}, 4
		wantErr(t, "add a disk under an id in use", first.AddVoter(t.Context(), theGroup, 3, fresh.disk), scstore.ErrInvalid)
		wantErr(t, "add a disk that is a member", first.AddVoter(t.Context(), theGroup, 9, lost.disk), scstore.ErrExists)
		if err := first.RemoveMember(t.Context(), theGroup, lost.replica); err != nil {
			t.Fatal(err)
		}
		wantErr(t, "remove it again", first.RemoveMember(t.Context(), theGroup, lost.replica), scstore.ErrNotFound)
		wantErr(t, "add a disk under a former id", first.AddVoter(t.Context(), theGroup, 3, fresh.disk), scstore.ErrInvalid)
		if err := first.AddVoter(t.Context(), theGroup, fresh.replica, fresh.disk); err != nil {
			t.Fatal(err)
		}
		w.open(fresh, consensus.Group{Join: true})
		w.agree(map[int]bool{1: true})
		// The new member counts: with it and one other there is a majority.
		w.net.Cut(w.hosts[1].disk)
		w.propose(fresh, createVolume(2))
		w.net.Heal()
		w.agree(map[int]bool{1: true, 2: true})
	})
}

func TestCluster_OneVoterGrowsToThree(t *testing.T) {
	inWorld(t, 1, func(t *testing.T, w *world) {
		first := w.hosts[0]
		w.open(first, consensus.Group{Members: w.members, Alone: true})
		w.leader()
		watcher, err := first.c.Watch(theGroup)
		if err != nil {
			t.Fatal(err)
		}
		w.propose(first, createVolume(1))
		wantErr(t, "remove the last voter", first.c.RemoveMember(t.Context(), theGroup, 1), scstore.ErrInvalid)
		for range 2 {
			h := w.add()
			w.eventually("a voter is added", func() bool {
				err := first.c.AddVoter(t.Context(), theGroup, h.replica, h.disk)
				if err != nil && !errors.Is(err, scstore.ErrNoMajority) && !errors.Is(err, scstore.ErrIndeterminate) && !errors.Is(err, scstore.ErrExists) {
					t.Fatal(err)
				}
				return err == nil || errors.Is(err, scstore.ErrExists)
			})
			w.open(h, consensus.Group{Join: true})
			w.leader()
		}
		w.propose(w.hosts[2], createVolume(2))
		w.agree(map[int]bool{1: true, 2: true})
		w.cutPower(first)
		w.open(first, consensus.Group{})
		w.agree(map[int]bool{1: true, 2: true})
		for want := uint64(1); want <= 2; want++ { // each command once, whatever was restarted
			if e, err := watcher.Next(t.Context()); err != nil || e.Applied != want || e.Gap {
				t.Errorf("event %+v, want command %d: %v", e, want, err)
			}
		}
		_, err = watcher.Next(t.Context())
		wantErr(t, "watch a cluster that was closed", err, scstore.ErrClosed)
	})
}

func TestCluster_SeveralGroupsStartAndStop(t *testing.T) {
	inWorld(t, 1, func(t *testing.T, w *world) {
		h := w.hosts[0]
		w.open(h, consensus.Group{Members: w.members, Alone: true})
		w.leader()
		other := consensus.Group{ID: 8, Replica: 5, Members: map[consensus.ReplicaID]consensus.DiskID{5: h.disk}, Alone: true}
		if err := h.c.Start(t.Context(), other); err != nil {
			t.Fatal(err)
		}
		wantErr(t, "start it again", h.c.Start(t.Context(), other), scstore.ErrExists)
		w.eventually("a volume in the other group", func() bool {
			_, err := h.c.Propose(t.Context(), other.ID, createVolume(1))
			return err == nil
		})
		w.agree(map[int]bool{1: false})
		if err := h.c.Stop(other.ID); err != nil {
			t.Fatal(err)
		}
		wantErr(t, "stop it again", h.c.Stop(other.ID), scstore.ErrNotFound)
		other.Members = nil
		w.eventually("it starts again", func() bool { return h.c.Start(t.Context(), other) == nil })
		w.eventually("its volume is there", func() bool {
			found := false
			err := h.c.View(other.ID, func(s *meta.State) { _, found = s.Get(volumeID(1)) })
			return err == nil && found
		})
		if got := fmt.Sprint(len(h.c.Statuses())); got != "2" {
			t.Errorf("%s groups, want 2", got)
		}
	})
}
