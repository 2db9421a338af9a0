package meta_test

import (
	"errors"
	"fmt"
	"testing"

	"scstore"
	"scstore/consensus/meta"
)

// lagging returns a group in which disk a writes up to 1.4 and disk b is complete
// at 1.2.
func lagging(t *testing.T) *meta.State {
	t.Helper()
	s := volumeGroup(t)
	apply(t, s, commit(1, 1, pos(1, 1), 2), meta.CodeOK)
	acked(t, s, diskB, 1, pos(1, 2), true, meta.CodeOK)
	apply(t, s, commit(1, 1, pos(1, 2), 3), meta.CodeOK)
	apply(t, s, commit(1, 1, pos(1, 3), 4), meta.CodeOK)
	return s
}

// promoted returns lagging after disk a was lost and disk b took over at 1.2.
func promoted(t *testing.T) *meta.State {
	t.Helper()
	s := lagging(t)
	apply(t, s, meta.Revoke{ID: volumeID(1), Fence: 1}, meta.CodeOK)
	apply(t, s, meta.Promote{ID: volumeID(1), Fence: 2, Position: pos(1, 2), Holder: diskB, Loss: meta.Loss{Epochs: 2, Bytes: 8192, Extents: 2, Seconds: 3}}, meta.CodeOK)
	return s
}

func branch(n byte, fork, head scstore.Position) meta.RegisterBranch {
	return meta.RegisterBranch{
		ID: volumeID(1), Branch: volumeID(n), Fence: 1, Fork: fork, Head: head, Digest: scstore.Digest{n}, Bytes: 8192, Disk: diskA, CreatedAtMs: 5_000,
	}
}

func TestRevoke_EndsCommitsUnderTheFence(t *testing.T) {
	s := lagging(t)
	apply(t, s, intent(1, diskA, diskB, 1), meta.CodeOK)
	apply(t, s, meta.Revoke{ID: volumeID(1), Fence: 2}, meta.CodeNotGranted)
	first := apply(t, s, meta.Revoke{ID: volumeID(1), Fence: 1}, meta.CodeOK)
	wantTenure(t, s, 1, "", 2, meta.PhaseRevoked)
	if again := apply(t, s, meta.Revoke{ID: volumeID(1), Fence: 1}, meta.CodeOK); !again.Equal(first) {
		t.Errorf("proposed again: got %+v, want %+v", again, first)
	}
	if d, _ := s.Decided(moveID(1)); d.Outcome != meta.OutcomeDropped {
		t.Errorf("the move: %+v", d)
	}
	for _, op := range []meta.Op{commit(1, 1, pos(1, 4), 5), meta.Rollback{ID: volumeID(1), Snapshot: "s", Fence: 1, Parent: pos(1, 4), Epoch: 5}} {
		r := s.Apply(meta.Command{Op: op})
		if _, commits := op.(meta.CommitEpoch); commits && !errors.Is(r.Err(), scstore.ErrFenced) || r.Code == meta.CodeOK {
			t.Errorf("%T under the revoked fence: %v", op, r.Err())
		}
	}
	apply(t, s, commit(1, 2, pos(1, 4), 1), meta.CodeRevoked) // nobody holds fence 2
	apply(t, s, meta.OpenFence{ID: volumeID(1), Holder: diskA}, meta.CodeRevoked)
	apply(t, s, intent(2, diskA, diskB, 1), meta.CodeRevoked)
	apply(t, s, meta.Revoke{ID: volumeID(1), Fence: 2}, meta.CodeRevoked)
	apply(t, s, commit(1, 1, pos(1, 3), 4), meta.CodeOK) // what was committed before stays so
}

func TestPromote_GoesOnFromWhatSomebodyHolds(t *testing.T) {
	s := lagging(t)
	promote := func(at scstore.Position, holder meta.DiskID) meta.Promote {
		return meta.Promote{ID: volumeID(1), Fence: 2, Position: at, Holder: holder}
	}
	apply(t, s, promote(pos(1, 2), diskB), meta.CodeNotGranted)
	apply(t, s, meta.Promote{ID: volumeID(1), Fence: 1, Position: pos(1, 2), Holder: diskB}, meta.CodeNotRevoked)
	got := s.PromoteCandidates(volumeID(1), []meta.DiskID{diskB, diskC})
	if len(got) != 1 || got[0].Position != pos(1, 2) || got[0].Digest != commit(1, 1, pos(1, 1), 2).Digest {
		t.Errorf("candidates: %+v", got)
	}
	apply(t, s, meta.Revoke{ID: volumeID(1), Fence: 1}, meta.CodeOK)
	apply(t, s, promote(pos(1, 9), diskB), meta.CodeUnknownPosition)
	apply(t, s, promote(pos(1, 3), diskB), meta.CodeIncomplete)
	apply(t, s, promote(pos(0, 0), diskB), meta.CodeUnknownPosition)
	apply(t, s, promote(pos(1, 2), diskX), meta.CodeNoDisk)
	first := apply(t, s, promote(pos(1, 2), diskB), meta.CodeOK)
	if again := apply(t, s, promote(pos(1, 2), diskB), meta.CodeOK); !again.Equal(first) {
		t.Errorf("proposed again: got %+v, want %+v", again, first)
	}
	wantTenure(t, s, 1, diskB, 2, meta.PhaseNormal)
	if got := head(t, s, 1); got != pos(1, 2) {
		t.Errorf("head: %v", got)
	}
	apply(t, s, meta.Revoke{ID: volumeID(1), Fence: 1}, meta.CodeFenced) // a late duplicate
	acked(t, s, diskC, 1, pos(1, 4), true, meta.CodeUnknownPosition)     // left out, and kept by nothing
	apply(t, s, commit(1, 2, pos(1, 2), 1), meta.CodeOK)
	if r, _ := s.Get(volumeID(1)); r.Head != pos(2, 1) || r.Parent != pos(1, 2) {
		t.Errorf("record: %+v", r)
	}
	grants := s.Grants(volumeID(1))
	if last := grants[len(grants)-1]; last.Start != pos(1, 2) || last.Holder != diskB {
		t.Errorf("last grant: %+v", last)
	}
	reopen(t, s)
}

func TestPromote_TethersAHolderThatLacksData(t *testing.T) {
	s := lagging(t)
	apply(t, s, meta.Revoke{ID: volumeID(1), Fence: 1}, meta.CodeOK)
	apply(t, s, meta.Promote{ID: volumeID(1), Fence: 2, Position: pos(1, 2), Holder: diskC}, meta.CodeOK)
	wantTenure(t, s, 1, diskC, 2, meta.PhaseTethered)
	acked(t, s, diskC, 1, pos(1, 2), true, meta.CodeOK)
	wantTenure(t, s, 1, diskC, 2, meta.PhaseNormal)
}

func TestPromote_OfAnEmptyVolume(t *testing.T) {
	s := volumeGroup(t)
	apply(t, s, volume(3, ""), meta.CodeOK)
	apply(t, s, meta.OpenFence{ID: volumeID(3), Holder: diskA}, meta.CodeOK)
	apply(t, s, meta.Revoke{ID: volumeID(3), Fence: 1}, meta.CodeOK)
	apply(t, s, meta.Promote{ID: volumeID(3), Fence: 2, Holder: diskB}, meta.CodeOK)
	apply(t, s, commit(3, 2, pos(0, 0), 1), meta.CodeOK)
	o := branch(8, pos(0, 0), pos(1, 1))
	o.ID = volumeID(3)
	apply(t, s, o, meta.CodeOK) // the old owner had written before its first commit
	s = reopen(t, s)
	if got := s.Branches(volumeID(3)); len(got) != 1 || got[0].Head != pos(1, 1) {
		t.Errorf("branches: %+v", got)
	}
}

func TestFork_IsKeptUntilTheOldOwnerReports(t *testing.T) {
	forked := func(s *meta.State) bool {
		for _, r := range s.Roots(volumeID(1)) {
			if r.Kind == meta.RootFork {
				return r.Position == pos(1, 2) && r.Disk == diskA
			}
		}
		return false
	}
	write := func(s *meta.State) {
		parent := pos(1, 2)
		for e := range uint64(2 * meta.MaxRecent) {
			apply(t, s, commit(1, 2, parent, e+1), meta.CodeOK)
			parent = pos(2, e+1)
		}
	}
	for name, report := range map[string]meta.Op{
		"branch":       branch(8, pos(1, 2), pos(1, 6)),
		"nothing":      meta.ReportNoBranch{ID: volumeID(1), Fence: 1, Disk: diskA},
		"disk removed": meta.RemoveDisk{Disk: diskA},
	} {
		t.Run(name, func(t *testing.T) {
			s := promoted(t)
			write(s)
			s = reopen(t, s)
			if !forked(s) {
				t.Fatalf("roots before the report: %+v", s.Roots(volumeID(1)))
			}
			if f := s.Forks(volumeID(1)); len(f) != 1 || f[0].Loss.Epochs != 2 || f[0].Left != pos(1, 4) {
				t.Errorf("forks: %+v", f)
			}
			apply(t, s, meta.ReportNoBranch{ID: volumeID(1), Fence: 1, Disk: diskC}, meta.CodeOK) // not its to say
			if !forked(s) {
				t.Fatal("another disk's report ended the wait")
			}
			apply(t, s, report, meta.CodeOK)
			apply(t, s, report, meta.CodeOK)
			if forked(s) {
				t.Errorf("roots after the report: %+v", s.Roots(volumeID(1)))
			}
			reopen(t, s)
		})
	}
}

func TestBranch_IsKeptWithItsFork(t *testing.T) {
	s := promoted(t)
	apply(t, s, branch(8, pos(1, 1), pos(1, 6)), meta.CodeNoFork)
	early := branch(8, pos(1, 2), pos(1, 6))
	early.Disk = diskC
	apply(t, s, early, meta.CodeNoFork)
	apply(t, s, branch(1, pos(1, 2), pos(1, 6)), meta.CodeInvalid)
	apply(t, s, branch(8, pos(1, 2), pos(1, 6)), meta.CodeOK)
	apply(t, s, branch(8, pos(1, 2), pos(1, 7)), meta.CodeIDTaken)
	got := s.Branches(volumeID(1))
	if len(got) != 1 || got[0].Life != meta.Live || got[0].Base != volumeID(1) || got[0].BasePosition != pos(1, 2) || got[0].DeltaBytes != 8192 {
		t.Fatalf("branches: %+v", got)
	}
	if name := "web1" + meta.BranchSuffix(got[0].Fence); name != "web1@diverged-1" {
		t.Errorf("name: %q", name)
	}
	if holders := fmt.Sprint(s.CompleteHolders(volumeID(8), pos(1, 6))); holders != "[disk-a]" {
		t.Errorf("holders: %s", holders)
	}
	apply(t, s, commit(8, 1, pos(1, 6), 7), meta.CodeImage)
	apply(t, s, meta.Remove{ID: volumeID(1)}, meta.CodeInUse)
	apply(t, s, meta.Remove{ID: volumeID(8)}, meta.CodeOK)
	apply(t, s, meta.Forget{ID: volumeID(8)}, meta.CodeOK)
	apply(t, s, meta.Remove{ID: volumeID(1)}, meta.CodeOK)
	apply(t, s, meta.Forget{ID: volumeID(1)}, meta.CodeOK)
	reopen(t, s)
}

func TestBranch_OfARemovedVolumeIsInTheTrash(t *testing.T) {
	s := promoted(t)
	apply(t, s, meta.Remove{ID: volumeID(1)}, meta.CodeOK)
	apply(t, s, meta.Forget{ID: volumeID(1)}, meta.CodeInUse) // the old owner has not reported
	apply(t, s, branch(8, pos(1, 2), pos(1, 6)), meta.CodeOK)
	if r, _ := s.Get(volumeID(8)); r.Life != meta.Trash {
		t.Errorf("branch: %+v", r)
	}
	apply(t, s, meta.Forget{ID: volumeID(1)}, meta.CodeInUse) // the branch shows its blocks
	s = reopen(t, s)
	apply(t, s, meta.Remove{ID: volumeID(8)}, meta.CodeOK)
	apply(t, s, meta.Forget{ID: volumeID(8)}, meta.CodeOK)
	apply(t, s, meta.Forget{ID: volumeID(1)}, meta.CodeOK)
}

func TestBranch_OfAVolumeThatWasRemovedBeforePromote(t *testing.T) {
	s := lagging(t)
	apply(t, s, meta.Revoke{ID: volumeID(1), Fence: 1}, meta.CodeOK)
	apply(t, s, meta.Remove{ID: volumeID(1)}, meta.CodeOK)
	apply(t, s, meta.Promote{ID: volumeID(1), Fence: 2, Position: pos(1, 2), Holder: diskB}, meta.CodeNoVolume)
	apply(t, s, branch(8, pos(1, 4), pos(1, 6)), meta.CodeOK) // it ended at its head
	reopen(t, s)
}

func TestPromote_ReportIsRefusedBeforeTheForkIsKnown(t *testing.T) {
	s := lagging(t)
	apply(t, s, meta.Revoke{ID: volumeID(1), Fence: 1}, meta.CodeOK)
	apply(t, s, branch(8, pos(1, 4), pos(1, 6)), meta.CodeNoFork)
	apply(t, s, meta.ReportNoBranch{ID: volumeID(1), Fence: 1, Disk: diskA}, meta.CodeNoFork)
}

func TestPromote_WhatWasLeftOutIsNoAncestor(t *testing.T) {
	s := lagging(t)
	apply(t, s, meta.Snapshot{ID: volumeID(1), Name: "last", Position: pos(1, 4)}, meta.CodeOK)
	apply(t, s, meta.Revoke{ID: volumeID(1), Fence: 1}, meta.CodeOK)
	apply(t, s, meta.Promote{ID: volumeID(1), Fence: 2, Position: pos(1, 2), Holder: diskB}, meta.CodeOK)
	apply(t, s, commit(1, 2, pos(1, 2), 1), meta.CodeOK)
	s = reopen(t, s)
	for _, c := range []struct {
		p, q       scstore.Position
		yes, known bool
	}{
		{pos(1, 1), pos(2, 1), true, true},
		{pos(1, 2), pos(2, 1), true, true},
		{pos(2, 1), pos(1, 2), false, true},
		{pos(1, 4), pos(2, 1), false, true}, // kept by the snapshot, on a line of its own
		{pos(1, 2), pos(1, 4), true, true},
		{pos(2, 1), pos(1, 4), false, true},
		{pos(1, 3), pos(2, 1), false, false}, // forgotten
		{pos(0, 0), pos(2, 1), true, true},
	} {
		if yes, known := s.IsAncestor(volumeID(1), c.p, c.q); yes != c.yes || known != c.known {
			t.Errorf("%v ancestor of %v: got %v, known %v; want %v, %v", c.p, c.q, yes, known, c.yes, c.known)
		}
	}
	if got := fmt.Sprint(s.CompleteHolders(volumeID(1), pos(1, 4))); got != "[disk-a]" {
		t.Errorf("holders of the snapshot: %s", got)
	}
	acked(t, s, diskC, 1, pos(1, 4), true, meta.CodeOK) // a copy of the snapshot
	acked(t, s, diskC, 2, pos(1, 4), false, meta.CodeLeftOut)
	apply(t, s, meta.DeleteSnapshot{ID: volumeID(1), Name: "last"}, meta.CodeOK)
	reopen(t, s)
}

func TestTakeOver_NeedsALapsedSessionAndALeave(t *testing.T) {
	s := lagging(t)
	apply(t, s, meta.Renew{Disk: diskX, N: 1}, meta.CodeNoDisk)
	apply(t, s, meta.Renew{Disk: diskA, N: 1}, meta.CodeOK)
	apply(t, s, meta.Renew{Disk: diskA, N: 2}, meta.CodeOK)
	apply(t, s, meta.Renew{Disk: diskA, N: 2}, meta.CodeStale)
	take := meta.TakeOver{ID: volumeID(1), Fence: 1, N: 2}
	apply(t, s, take, meta.CodeNotAuto)
	apply(t, s, meta.SetPlacement{ID: volumeID(1), Placement: meta.Placement{Sites: []meta.SiteID{siteA, siteB}, Mode: meta.ModeSync, Failover: meta.FailoverAuto}}, meta.CodeOK)
	apply(t, s, meta.Renew{Disk: diskA, N: 3}, meta.CodeOK)
	if r := apply(t, s, take, meta.CodeRenewed); r.Number != 3 {
		t.Errorf("result: %+v", r)
	}
	take.N = s.Session(diskA)
	apply(t, s, take, meta.CodeOK)
	apply(t, s, take, meta.CodeOK)
	wantTenure(t, s, 1, "", 2, meta.PhaseRevoked)
	reopen(t, s)
}
