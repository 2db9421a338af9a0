package meta_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"scstore"
	"scstore/consensus/meta"
)

// holders returns who is complete at a position of volume 1, as text.
func holders(s *meta.State, at scstore.Position) string {
	return fmt.Sprint(s.CompleteHolders(volumeID(1), at))
}

func place(mode meta.Mode, sites ...meta.SiteID) meta.SetPlacement {
	return meta.SetPlacement{ID: volumeID(1), Placement: meta.Placement{Sites: sites, Mode: mode, Failover: meta.FailoverManual}}
}

func TestAck_SaysWhatADiskHolds(t *testing.T) {
	s := volumeGroup(t)
	apply(t, s, commit(1, 1, pos(1, 1), 2), meta.CodeOK)
	acked(t, s, diskB, 1, pos(1, 1), true, meta.CodeOK)
	acked(t, s, diskB, 2, pos(1, 2), false, meta.CodeOK)
	acked(t, s, diskB, 3, pos(7, 7), true, meta.CodeUnknownPosition)
	want := meta.Replica{Disk: diskB, Site: siteB, Complete: pos(1, 1), Partial: pos(1, 2), AckedAt: pos(1, 2), Holds: []scstore.Position{pos(1, 1)}}
	if got := s.Replicas(volumeID(1)); len(got) != 2 || fmt.Sprint(got[1]) != fmt.Sprint(want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	acked(t, s, diskB, 4, pos(1, 2), true, meta.CodeOK)
	if got := s.Replicas(volumeID(1))[1]; got.Complete != pos(1, 2) || got.Partial != pos(0, 0) || len(got.Holds) != 1 {
		t.Errorf("complete: %+v", got)
	}
	apply(t, s, ack(diskX, 1, pos(1, 2), true), meta.CodeNoDisk)
	many := meta.Ack{Disk: diskC, Seq: 1, Items: []meta.AckItem{
		{ID: volumeID(1), Position: pos(1, 2), Complete: true}, {ID: volumeID(9), Position: pos(1, 2), Complete: true},
	}}
	if r := apply(t, s, many, meta.CodeOK); r.Each[0].Code != meta.CodeOK || r.Each[1].Code != meta.CodeNoVolume {
		t.Errorf("results: %+v", r.Each)
	}
	if got := holders(s, pos(1, 2)); got != "[disk-a disk-b disk-c]" {
		t.Errorf("holders: %s", got)
	}
}

func TestAck_ALateReportSaysNothing(t *testing.T) {
	s := volumeGroup(t)
	old := ack(diskB, 1, pos(1, 1), true)
	apply(t, s, old, meta.CodeOK)
	apply(t, s, meta.Release{Disk: diskB, Seq: 2, ID: volumeID(1), Position: pos(1, 1)}, meta.CodeOK)
	if got := holders(s, pos(1, 1)); got != "[disk-a]" {
		t.Errorf("holders after the release: %s", got)
	}
	apply(t, s, old, meta.CodeStale) // would say that the deleted copy is there
	apply(t, s, meta.Complete{Disk: diskB, Seq: 2, ID: volumeID(1), Position: pos(1, 1)}, meta.CodeStale)
	if got := holders(s, pos(1, 1)); got != "[disk-a]" {
		t.Errorf("holders after a late report: %s", got)
	}
	apply(t, s, meta.RemoveDisk{Disk: diskB}, meta.CodeOK)
	apply(t, s, ack(diskB, 9, pos(1, 1), true), meta.CodeDiskRemoved)
	apply(t, s, meta.AdmitDisk{Disk: diskB, Site: siteB}, meta.CodeDiskRemoved)
	reopen(t, s)
}

func TestRelease_KeepsAsManyCopiesAsThePlacementAsks(t *testing.T) {
	release := func(disk meta.DiskID, seq uint64) meta.Release {
		return meta.Release{Disk: disk, Seq: seq, ID: volumeID(1), Position: pos(1, 1)}
	}
	s := volumeGroup(t)
	acked(t, s, diskB, 1, pos(1, 1), true, meta.CodeOK)
	apply(t, s, place(meta.ModeAsync, siteA, siteB), meta.CodeOK)
	apply(t, s, release(diskA, 1), meta.CodeHolder)
	apply(t, s, release(diskB, 2), meta.CodeLastCopy) // its site would have none
	acked(t, s, diskC, 1, pos(1, 1), true, meta.CodeOK)
	apply(t, s, release(diskB, 3), meta.CodeLastCopy)
	apply(t, s, release(diskC, 2), meta.CodeOK)
	apply(t, s, place(meta.ModeLazy, siteA, siteB), meta.CodeOK)
	apply(t, s, release(diskB, 4), meta.CodeOK)
	if got := holders(s, pos(1, 1)); got != "[disk-a]" {
		t.Errorf("holders: %s", got)
	}
	apply(t, s, meta.Release{Disk: diskB, Seq: 5, ID: volumeID(9), Position: pos(1, 1)}, meta.CodeNoVolume)
}

func TestRelease_OfAnOldVersionThatASnapshotKeeps(t *testing.T) {
	s := volumeGroup(t)
	apply(t, s, meta.Snapshot{ID: volumeID(1), Name: "s", Position: pos(1, 1)}, meta.CodeOK)
	apply(t, s, commit(1, 1, pos(1, 1), 2), meta.CodeOK)
	acked(t, s, diskB, 1, pos(1, 2), true, meta.CodeOK) // jumped over the snapshot
	if got := holders(s, pos(1, 1)); got != "[disk-a]" {
		t.Errorf("holders of the snapshot: %s", got)
	}
	r := meta.Release{Disk: diskA, Seq: 1, ID: volumeID(1), Position: pos(1, 1)}
	apply(t, s, r, meta.CodeLastCopy)
	acked(t, s, diskB, 2, pos(1, 1), true, meta.CodeOK) // fetched it
	r.Seq = 2
	apply(t, s, r, meta.CodeOK)
	if got := holders(s, pos(1, 1)); got != "[disk-b]" {
		t.Errorf("holders of the snapshot: %s", got)
	}
	if got := s.Replicas(volumeID(1))[1]; got.Complete != pos(1, 2) || len(got.Holds) != 2 {
		t.Errorf("replica: %+v", got)
	}
	apply(t, s, meta.DeleteSnapshot{ID: volumeID(1), Name: "s"}, meta.CodeOK)
	if got := s.Replicas(volumeID(1))[1]; len(got.Holds) != 1 {
		t.Errorf("replica after the snapshot is gone: %+v", got)
	}
}

func TestReplicas_TheWriterHasAPlaceAmongThem(t *testing.T) {
	s := meta.NewGroup(2)
	apply(t, s, volume(2, ""), meta.CodeOK)
	apply(t, s, meta.OpenFence{ID: volumeID(2), Holder: diskB}, meta.CodeOK)
	apply(t, s, commit(2, 1, pos(0, 0), 1), meta.CodeOK)
	img := image(3, "")
	apply(t, s, img, meta.CodeOK)
	disk := func(n int) meta.DiskID { return meta.DiskID(fmt.Sprintf("disk-%03d", n)) }
	for n := range meta.MaxReplicas + 1 {
		apply(t, s, meta.AdmitDisk{Disk: disk(n), Site: siteA}, meta.CodeOK)
		for i, at := range []scstore.Position{2: pos(1, 1), 3: img.Position} {
			if at == zero {
				continue
			}
			want := meta.CodeOK
			if i == 3 && n >= meta.MaxReplicas || i == 2 && n >= meta.MaxReplicas-1 {
				want = meta.CodeLimit
			}
			o := meta.Complete{Disk: disk(n), Seq: uint64(i), ID: volumeID(byte(i)), Position: at}
			apply(t, s, o, want)
		}
	}
	apply(t, s, commit(2, 1, pos(1, 1), 2), meta.CodeOK)
	reopen(t, s)
}

func TestHistory_KeepsTheLatestAndWhatIsReferredTo(t *testing.T) {
	s := volumeGroup(t)
	acked(t, s, diskB, 1, pos(1, 1), true, meta.CodeOK)
	n := uint64(1)
	for range 3 * meta.MaxRecent {
		apply(t, s, commit(1, 1, pos(1, n), n+1), meta.CodeOK)
		n++
	}
	if got := len(s.History(volumeID(1))); got != meta.MaxRecent+1 {
		t.Errorf("%d positions are kept, want %d", got, meta.MaxRecent+1)
	}
	if yes, known := s.IsAncestor(volumeID(1), pos(1, 1), pos(1, n)); !yes || !known {
		t.Error("the position of a replica that is far behind is not known")
	}
	if _, known := s.IsAncestor(volumeID(1), pos(1, 2), pos(1, n)); known {
		t.Error("a position that nothing refers to is known")
	}
	acked(t, s, diskB, 2, pos(1, n), true, meta.CodeOK)
	if got := len(s.History(volumeID(1))); got != meta.MaxRecent {
		t.Errorf("%d positions are kept, want %d", got, meta.MaxRecent)
	}
	reopen(t, s)
}

func TestPin_KeepsAPositionUntilItsDeadline(t *testing.T) {
	s := volumeGroup(t)
	put := func(id byte, at scstore.Position, deadline, now int64) meta.PutPin {
		return meta.PutPin{ID: volumeID(1), NowMs: now, Pin: meta.Pin{ID: meta.PinID{id}, Kind: meta.PinRead, Position: at, Disk: diskB, DeadlineMs: deadline}}
	}
	apply(t, s, put(1, pos(1, 1), 2_000, 1_000), meta.CodeOK)
	n := uint64(1)
	for range 2 * meta.MaxRecent {
		apply(t, s, commit(1, 1, pos(1, n), n+1), meta.CodeOK)
		n++
	}
	apply(t, s, put(2, pos(1, n-1), 2_000, 1_000), meta.CodeNotKept) // recent, but nothing keeps it
	apply(t, s, put(2, pos(1, 1), 3_000, 1_000), meta.CodeOK)        // shared
	apply(t, s, put(1, pos(1, n), 9_000, 1_000), meta.CodeIDTaken)
	apply(t, s, put(1, pos(1, 1), 5_000, 1_500), meta.CodeOK) // renewed
	apply(t, s, put(1, pos(1, 1), 2_000, 1_000), meta.CodeOK) // a late duplicate shortens nothing
	if ms, ok := s.NextDeadline(); !ok || ms != 3_000 {
		t.Errorf("next deadline %d, %v, want that of the second pin", ms, ok)
	}
	if r := apply(t, s, meta.Expire{NowMs: 4_000}, meta.CodeOK); r.Number != 1 {
		t.Errorf("%d pins ended, want 1", r.Number)
	}
	apply(t, s, put(2, pos(1, 1), 3_000, 1_000), meta.CodeExpired)
	s = reopen(t, s)
	if got := s.Pins(volumeID(1)); len(got) != 1 || got[0].DeadlineMs != 5_000 {
		t.Errorf("pins: %+v", got)
	}
	if got := s.Roots(volumeID(1)); len(got) != 2 || got[0].Kind != meta.RootRead || got[0].Position != pos(1, 1) || got[1].Kind != meta.RootHead {
		t.Errorf("roots: %+v", got)
	}
	apply(t, s, meta.DropPin{ID: volumeID(1), Pin: meta.PinID{1}}, meta.CodeOK)
	apply(t, s, meta.DropPin{ID: volumeID(1), Pin: meta.PinID{1}}, meta.CodeOK)
	if got := s.History(volumeID(1)); len(got) != meta.MaxRecent {
		t.Errorf("%d positions are kept, want %d", len(got), meta.MaxRecent)
	}
}

func TestInSync_JoinsCompleteAndLeavesByEntry(t *testing.T) {
	s := volumeGroup(t)
	join := meta.JoinInSync{ID: volumeID(1), Fence: 1, Site: siteB}
	apply(t, s, join, meta.CodeNotPlaced)
	apply(t, s, place(meta.ModeSync, siteA, siteB), meta.CodeOK)
	apply(t, s, join, meta.CodeIncomplete)
	acked(t, s, diskB, 1, pos(1, 1), true, meta.CodeOK)
	apply(t, s, join, meta.CodeOK)
	apply(t, s, join, meta.CodeOK)
	apply(t, s, commit(1, 1, pos(1, 1), 2), meta.CodeOK)
	inSync := func() string {
		_, set := s.PlacementOf(volumeID(1))
		return fmt.Sprint(set)
	}
	if got := inSync(); got != "[ber]" {
		t.Errorf("in sync: %s", got)
	}
	leave := meta.LeaveInSync{ID: volumeID(1), Fence: 1, Site: siteB}
	apply(t, s, leave, meta.CodeOK)
	apply(t, s, leave, meta.CodeOK)
	apply(t, s, join, meta.CodeIncomplete)
	acked(t, s, diskB, 2, pos(1, 2), true, meta.CodeOK)
	apply(t, s, join, meta.CodeOK)
	apply(t, s, meta.LeaveInSync{ID: volumeID(1), Fence: 2, Site: siteB}, meta.CodeNotGranted)
	s = reopen(t, s)
	apply(t, s, place(meta.ModeAsync, siteA, siteB), meta.CodeOK)
	if got := inSync(); got != "[]" {
		t.Errorf("in sync after the mode changed: %s", got)
	}
	apply(t, s, place(meta.ModeSync, siteB), meta.CodeOK)
	apply(t, s, join, meta.CodeOK)
	apply(t, s, meta.RemoveDisk{Disk: diskB}, meta.CodeOK)
	if got := inSync(); got != "[]" {
		t.Errorf("in sync after its only disk was removed: %s", got)
	}
}

func TestInSync_APromoteKeepsTheSitesThatHaveThePosition(t *testing.T) {
	s := volumeGroup(t)
	apply(t, s, place(meta.ModeSync, siteA, siteB, siteC), meta.CodeOK)
	for disk, site := range map[meta.DiskID]meta.SiteID{diskB: siteB, diskC: siteC} {
		acked(t, s, disk, 1, pos(1, 1), true, meta.CodeOK)
		apply(t, s, meta.JoinInSync{ID: volumeID(1), Fence: 1, Site: site}, meta.CodeOK)
	}
	apply(t, s, commit(1, 1, pos(1, 1), 2), meta.CodeOK)
	acked(t, s, diskC, 2, pos(1, 2), true, meta.CodeOK)
	apply(t, s, meta.Revoke{ID: volumeID(1), Fence: 1}, meta.CodeOK)
	apply(t, s, meta.Promote{ID: volumeID(1), Fence: 2, Position: pos(1, 2), Holder: diskC}, meta.CodeOK)
	if _, set := s.PlacementOf(volumeID(1)); !slices.Equal(set, []meta.SiteID{siteC}) {
		t.Errorf("in sync: %v", set)
	}
}

func TestMissingAt_ListsWhatThePlacementWants(t *testing.T) {
	s := volumeGroup(t)
	if got := s.MissingAt(siteB); len(got) != 0 {
		t.Errorf("without a placement: %+v", got)
	}
	apply(t, s, place(meta.ModeAsync, siteA, siteB), meta.CodeOK)
	acked(t, s, diskB, 1, pos(1, 1), true, meta.CodeOK)
	apply(t, s, commit(1, 1, pos(1, 1), 2), meta.CodeOK)
	if got := s.MissingAt(siteB); len(got) != 1 || got[0].Head != pos(1, 2) || got[0].Newest != pos(1, 1) {
		t.Errorf("behind: %+v", got)
	}
	if got := s.MissingAt(siteA); len(got) != 0 {
		t.Errorf("at the writer's site: %+v", got)
	}
	acked(t, s, diskB, 2, pos(1, 2), true, meta.CodeOK)
	if got := s.MissingAt(siteB); len(got) != 0 {
		t.Errorf("complete: %+v", got)
	}
}

func TestCanSwitchOff_SaysWhatDependsOnADisk(t *testing.T) {
	s := volumeGroup(t)
	apply(t, s, meta.Snapshot{ID: volumeID(1), Name: "s", Position: pos(1, 1)}, meta.CodeOK)
	apply(t, s, commit(1, 1, pos(1, 1), 2), meta.CodeOK)
	acked(t, s, diskB, 1, pos(1, 2), true, meta.CodeOK)
	got := s.CanSwitchOff(diskA)
	if len(got) != 2 || got[0].Root.Kind != meta.RootSnapshot || !got[0].LastCopy || got[0].Writer ||
		got[1].Root.Kind != meta.RootHead || got[1].LastCopy || !got[1].Writer {
		t.Errorf("disk a: %+v", got)
	}
	if got := s.CanSwitchOff(diskB); len(got) != 0 {
		t.Errorf("disk b: %+v", got)
	}
	if got := s.CanSwitchOff(diskA, diskB); len(got) != 2 || !got[1].LastCopy {
		t.Errorf("both: %+v", got)
	}
	if got := s.CanSwitchOffSite(siteC); len(got) != 0 {
		t.Errorf("site c: %+v", got)
	}
	apply(t, s, intent(1, diskA, diskB, 1), meta.CodeOK)
	apply(t, s, meta.HandOff{ID: moveID(1), To: diskB, Volumes: []meta.Handed{handed(1, 1, pos(1, 2), 3)}}, meta.CodeOK)
	apply(t, s, commit(1, 2, pos(1, 3), 1), meta.CodeOK)
	if got := s.CanSwitchOff(diskA); len(got) != 2 || got[1].Root.Kind != meta.RootTether || !got[1].LastCopy {
		t.Errorf("the source of a tethered volume: %+v", got)
	}
	if got := s.CanSwitchOffSite(siteB); len(got) != 1 || !got[0].Writer || !got[0].LastCopy {
		t.Errorf("the tethered writer: %+v", got)
	}
}

func TestSnapshot_NamesAPositionForGood(t *testing.T) {
	s := volumeGroup(t)
	snap := meta.Snapshot{ID: volumeID(1), Name: "before-upgrade", Position: pos(1, 1), CreatedAtMs: 7}
	apply(t, s, snap, meta.CodeOK)
	apply(t, s, snap, meta.CodeOK)
	apply(t, s, commit(1, 1, pos(1, 1), 2), meta.CodeOK)
	other := snap
	other.Position = pos(1, 2)
	apply(t, s, other, meta.CodeSnapshotTaken)
	other.Name, other.Position = "gone", pos(1, 9)
	apply(t, s, other, meta.CodeNotKept)
	other.Name = "diverged-3"
	apply(t, s, other, meta.CodeInvalid)
	other.Name = "a/b"
	apply(t, s, other, meta.CodeInvalid)
	apply(t, s, meta.Resize{ID: volumeID(1), SizeBytes: 64 * scstore.BlockSize}, meta.CodeOK)
	if got := s.Snapshots(volumeID(1)); len(got) != 1 || got[0].SizeBytes != 8*scstore.BlockSize {
		t.Errorf("snapshots: %+v", got)
	}
	apply(t, s, meta.DeleteSnapshot{ID: volumeID(1), Name: "other"}, meta.CodeNoSnapshot)
	reopen(t, s)
}

func TestClone_KeepsItsSnapshot(t *testing.T) {
	s := volumeGroup(t)
	c := volume(2, "")
	c.Base, c.BasePosition = volumeID(1), pos(1, 1)
	apply(t, s, c, meta.CodeBadBase) // the head is no snapshot
	apply(t, s, meta.AddRef{Base: volumeID(1), Ref: meta.Ref{Clone: c.ID, Position: pos(1, 1), Group: 2}}, meta.CodeBadBase)
	apply(t, s, meta.Snapshot{ID: volumeID(1), Name: "s", Position: pos(1, 1)}, meta.CodeOK)
	ref := meta.AddRef{Base: volumeID(1), Ref: meta.Ref{Clone: c.ID, Position: pos(1, 1), Group: 2, AddedAtMs: 5}}
	apply(t, s, ref, meta.CodeOK)
	apply(t, s, ref, meta.CodeOK)
	apply(t, s, c, meta.CodeOK)
	if n := s.Clones(volumeID(1)); n != 1 {
		t.Errorf("%d clones, want 1", n)
	}
	r := apply(t, s, meta.DeleteSnapshot{ID: volumeID(1), Name: "s"}, meta.CodeInUse)
	if !errors.Is(r.Err(), scstore.ErrBusy) {
		t.Errorf("delete the base of a clone: %v", r.Err())
	}
	apply(t, s, meta.DropRef{Base: volumeID(1), Clone: c.ID}, meta.CodeInUse)
	apply(t, s, meta.Remove{ID: volumeID(1)}, meta.CodeInUse)
	s = reopen(t, s)
	apply(t, s, meta.Remove{ID: c.ID}, meta.CodeOK)
	apply(t, s, meta.DeleteSnapshot{ID: volumeID(1), Name: "s"}, meta.CodeInUse) // the clone's data are not gone yet
	apply(t, s, meta.Forget{ID: c.ID}, meta.CodeOK)
	apply(t, s, meta.DeleteSnapshot{ID: volumeID(1), Name: "s"}, meta.CodeOK)
	apply(t, s, meta.Remove{ID: volumeID(1)}, meta.CodeOK)
}

func TestClone_OfABaseInAnotherGroup(t *testing.T) {
	s := meta.NewGroup(3)
	c := volume(2, "")
	c.Base, c.BasePosition = volumeID(1), pos(1, 1)
	apply(t, s, c, meta.CodeOK)
	apply(t, s, image(1, ""), meta.CodeIDTaken) // the base is elsewhere: two records of one id
	s = reopen(t, s)
	apply(t, s, meta.Remove{ID: c.ID}, meta.CodeOK)
	apply(t, s, meta.Forget{ID: c.ID}, meta.CodeOK)
	apply(t, s, image(1, ""), meta.CodeOK)
}

func TestRollback_IsAnEpochWithTheSnapshotsContent(t *testing.T) {
	s := volumeGroup(t)
	apply(t, s, meta.Snapshot{ID: volumeID(1), Name: "s", Position: pos(1, 1)}, meta.CodeOK)
	apply(t, s, commit(1, 1, pos(1, 1), 2), meta.CodeOK)
	acked(t, s, diskB, 1, pos(1, 2), true, meta.CodeOK)
	back := meta.Rollback{ID: volumeID(1), Snapshot: "s", Fence: 1, Parent: pos(1, 2), Epoch: 3, Digest: scstore.Digest{3}}
	wrong := back
	wrong.Snapshot = "t"
	apply(t, s, wrong, meta.CodeNoSnapshot)
	wrong = back
	wrong.Parent = pos(1, 1)
	apply(t, s, wrong, meta.CodeBadParent)
	first := apply(t, s, back, meta.CodeOK)
	apply(t, s, meta.DeleteSnapshot{ID: volumeID(1), Name: "s"}, meta.CodeOK)
	if again := apply(t, s, back, meta.CodeOK); !again.Equal(first) {
		t.Errorf("proposed again: got %+v, want %+v", again, first)
	}
	points := s.History(volumeID(1))
	if last := points[len(points)-1]; last.Position != pos(1, 3) || last.Parent != pos(1, 2) || last.Content != pos(1, 1) {
		t.Errorf("position: %+v", last)
	}
	if got := holders(s, pos(1, 3)); got != "[disk-a]" { // others report when they have applied it
		t.Errorf("holders: %s", got)
	}
	apply(t, s, commit(1, 1, pos(1, 2), 3), meta.CodeBadParent)
	apply(t, s, commit(1, 1, pos(1, 3), 4), meta.CodeOK)
	reopen(t, s)
}

func TestBatch_EachPartHasItsOwnResultAndMayComeTwice(t *testing.T) {
	s := volumeGroup(t)
	addVolume(t, s, 2)
	b := meta.Batch{Ops: []meta.Op{
		commit(1, 1, pos(1, 1), 2),
		commit(2, 1, pos(1, 5), 6),
		ack(diskB, 1, pos(1, 2), true),
		meta.Snapshot{ID: volumeID(1), Name: "s", Position: pos(1, 2)},
	}}
	want := []meta.Code{meta.CodeOK, meta.CodeBadParent, meta.CodeOK, meta.CodeOK}
	r := apply(t, s, b, meta.CodeOK)
	for i, each := range r.Each {
		if each.Code != want[i] {
			t.Errorf("part %d: got %q, want %q", i, each.Code, want[i])
		}
	}
	before, _ := s.Get(volumeID(1))
	again := apply(t, s, b, meta.CodeOK)
	if after, _ := s.Get(volumeID(1)); after != before || again.Each[0].Code != meta.CodeOK || again.Each[2].Code != meta.CodeStale {
		t.Errorf("proposed again: record %+v, results %+v", after, again.Each)
	}
	for name, bad := range map[string]meta.Command{
		"empty":      {Op: meta.Batch{}},
		"nested":     {Op: meta.Batch{Ops: []meta.Op{b}}},
		"unsafe":     {Op: meta.Batch{Ops: []meta.Op{meta.OpenFence{ID: volumeID(1), Holder: diskA}}}},
		"nil":        {Op: meta.Batch{Ops: []meta.Op{nil}}},
		"malformed":  {Op: meta.Batch{Ops: []meta.Op{meta.CommitEpoch{}}}},
		"in session": {ID: meta.CommandID{Client: clientID(1), Seq: 1}, Op: b},
		"too long":   {Op: meta.Batch{Ops: slices.Repeat([]meta.Op{commit(1, 1, pos(1, 1), 2)}, meta.MaxBatchOps+1)}},
	} {
		if err := bad.Validate(); !errors.Is(err, scstore.ErrInvalid) {
			t.Errorf("%s: got %v, want ErrInvalid", name, err)
		}
	}
	full := meta.Command{Op: meta.Batch{Ops: slices.Repeat([]meta.Op{commit(1, 1, pos(1, 1), 2)}, meta.MaxBatchOps)}}
	if err := full.Validate(); err != nil {
		t.Errorf("a full batch of commits: %v", err)
	}
	acks := meta.Ack{Disk: diskB, Seq: 9, Items: make([]meta.AckItem, meta.MaxAcks)}
	for i := range acks.Items {
		acks.Items[i] = meta.AckItem{ID: volumeID(1), Position: pos(1, 1)}
	}
	huge := meta.Command{Op: meta.Batch{Ops: slices.Repeat([]meta.Op{acks}, 16)}}
	if err := huge.Validate(); !errors.Is(err, scstore.ErrInvalid) {
		t.Errorf("a batch beyond MaxCommandBytes: %v", err)
	}
}
