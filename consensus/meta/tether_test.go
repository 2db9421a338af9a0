package meta_test

import (
	"testing"

	"scstore"
	"scstore/consensus/meta"
)

// TestTether_NothingIsKeptThatNobodyHolds: B takes a volume over and writes; what it
// lacks is kept for the hand-off's position alone, so its own positions can't be.
func TestTether_NothingIsKeptThatNobodyHolds(t *testing.T) {
	s := meta.NewGroup(meta.FirstVolumes)
	id, h := volumeID(1), meta.HandOffID{1}
	apply(t, s, meta.AdmitDisk{Disk: "a", Site: "x"}, meta.CodeOK)
	apply(t, s, meta.AdmitDisk{Disk: "b", Site: "y"}, meta.CodeOK)
	apply(t, s, meta.CreateVolume{ID: id, SizeBytes: 8 * scstore.BlockSize}, meta.CodeOK)
	apply(t, s, meta.OpenFence{ID: id, Holder: "a"}, meta.CodeOK)
	apply(t, s, meta.CommitEpoch{ID: id, Fence: 1, Epoch: 1}, meta.CodeOK)
	apply(t, s, meta.Intent{Move: meta.Move{ID: h, From: "a", To: "b", Volumes: []scstore.VolumeID{id}, DeadlineMs: 9}, NowMs: 1}, meta.CodeOK)
	apply(t, s, meta.HandOff{ID: h, To: "b", Volumes: []meta.Handed{{ID: id, Fence: 1, Parent: pos(1, 1), Final: pos(1, 2)}}}, meta.CodeOK)
	apply(t, s, meta.CommitEpoch{ID: id, Fence: 2, Parent: pos(1, 2), Epoch: 3}, meta.CodeOK)

	pin := meta.PutPin{ID: id, NowMs: 1, Pin: meta.Pin{ID: meta.PinID{1}, Kind: meta.PinRead, Position: pos(2, 3), Disk: "b", DeadlineMs: 9}}
	snapshot := meta.Snapshot{ID: id, Name: "s", Position: pos(2, 3)}
	apply(t, s, pin, meta.CodeIncomplete)
	apply(t, s, snapshot, meta.CodeIncomplete)
	below := snapshot
	below.Position = pos(1, 2) // a has all of it
	apply(t, s, below, meta.CodeOK)

	apply(t, s, meta.Complete{Disk: "b", Seq: 1, ID: id, Position: pos(1, 2)}, meta.CodeOK)
	apply(t, s, pin, meta.CodeOK)
	snapshot.Name = "t"
	apply(t, s, snapshot, meta.CodeOK)
}

func TestReported_IsTheLatestNumber(t *testing.T) {
	s := meta.NewGroup(meta.FirstVolumes)
	apply(t, s, meta.AdmitDisk{Disk: "a", Site: "x"}, meta.CodeOK)
	apply(t, s, meta.Ack{Disk: "a", Seq: 7}, meta.CodeOK)
	apply(t, s, meta.Ack{Disk: "a", Seq: 5}, meta.CodeStale)
	if got := s.Reported("a"); got != 7 {
		t.Errorf("got %d, want 7", got)
	}
	if got := s.Reported("b"); got != 0 {
		t.Errorf("disk that is not known: got %d, want 0", got)
	}
}
