package meta_test

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"scstore"
	"scstore/consensus/meta"
)

func TestHandOff_IsOneEntryForAllVolumes(t *testing.T) {
	s := volumeGroup(t)
	addVolume(t, s, 2)
	apply(t, s, intent(1, diskA, diskB, 1, 2), meta.CodeOK)
	wantTenure(t, s, 1, diskA, 1, meta.PhaseMoving)
	apply(t, s, commit(1, 1, pos(1, 1), 2), meta.CodeOK) // the guest writes on
	o := meta.HandOff{ID: moveID(1), To: diskB, Volumes: []meta.Handed{handed(1, 1, pos(1, 2), 3), handed(2, 1, pos(1, 9), 10)}}
	apply(t, s, o, meta.CodeBadParent) // volume 2 does not follow its head: nothing changes
	wantTenure(t, s, 1, diskA, 1, meta.PhaseMoving)
	if got := head(t, s, 1); got != pos(1, 2) {
		t.Errorf("head after a refused hand-off: %v", got)
	}
	o.Volumes[1] = handed(2, 1, pos(1, 1), 2)
	r := apply(t, s, o, meta.CodeOK)
	if r.Outcome != meta.OutcomeHandedOff || r.Fence != 2 || r.Position != pos(1, 3) {
		t.Errorf("result: %+v", r)
	}
	for n := byte(1); n <= 2; n++ {
		wantTenure(t, s, n, diskB, 2, meta.PhaseTethered)
	}
	apply(t, s, commit(1, 1, pos(1, 3), 4), meta.CodeFenced)
	s = reopen(t, s)
	if again := apply(t, s, o, meta.CodeOK); !again.Equal(r) {
		t.Errorf("proposed again: got %+v, want %+v", again, r)
	}
	apply(t, s, commit(1, 2, pos(1, 3), 1), meta.CodeOK)
	if d, ok := s.Decided(moveID(1)); !ok || d.Outcome != meta.OutcomeHandedOff || len(d.Volumes) != 2 || d.Volumes[1].Start != pos(1, 2) {
		t.Errorf("decision: %+v, %v", d, ok)
	}
}

func TestWriters_CountsWhatADiskMayWrite(t *testing.T) {
	s := volumeGroup(t)
	addVolume(t, s, 2)
	apply(t, s, volume(3, ""), meta.CodeOK)
	if got := s.Writers(); len(got) != 1 || got[diskA] != 2 {
		t.Errorf("got %v, want two of disk a", got)
	}
	apply(t, s, meta.Remove{ID: volumeID(2)}, meta.CodeOK)
	if got := s.Writers(); got[diskA] != 1 {
		t.Errorf("after a removal: %v", got)
	}
}

func TestHandOff_TheFirstInTheLogWins(t *testing.T) {
	handOff := meta.HandOff{ID: moveID(1), To: diskB, Volumes: []meta.Handed{handed(1, 1, pos(1, 1), 2)}}
	cancel := meta.Cancel{ID: moveID(1)}
	drop := meta.DropIntent{ID: moveID(1)}
	later := meta.Expire{NowMs: 100_000}
	for _, c := range []struct {
		name    string
		first   meta.Op
		outcome meta.Outcome
		holder  meta.DiskID
		fence   scstore.Fence
		phase   meta.Phase
		after   map[meta.Op]meta.Code
	}{
		{"hand-off", nil, meta.OutcomeHandedOff, diskB, 2, meta.PhaseTethered, map[meta.Op]meta.Code{cancel: meta.CodeHandedOff, drop: meta.CodeHandedOff}},
		{"cancel", cancel, meta.OutcomeCancelled, diskA, 2, meta.PhaseNormal, map[meta.Op]meta.Code{cancel: meta.CodeOK, drop: meta.CodeCancelled}},
		{"drop", drop, meta.OutcomeDropped, diskA, 1, meta.PhaseNormal, map[meta.Op]meta.Code{cancel: meta.CodeDropped, drop: meta.CodeOK}},
		{"expiry", later, meta.OutcomeDropped, diskA, 1, meta.PhaseNormal, map[meta.Op]meta.Code{cancel: meta.CodeDropped, drop: meta.CodeOK}},
		{"removal of the target", meta.RemoveDisk{Disk: diskB}, meta.OutcomeDropped, diskA, 1, meta.PhaseNormal, map[meta.Op]meta.Code{cancel: meta.CodeDropped, drop: meta.CodeOK}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := volumeGroup(t)
			apply(t, s, intent(1, diskA, diskB, 1), meta.CodeOK)
			if c.first == nil {
				apply(t, s, handOff, meta.CodeOK)
			} else {
				apply(t, s, c.first, meta.CodeOK)
			}
			code := map[meta.Outcome]meta.Code{meta.OutcomeHandedOff: meta.CodeOK, meta.OutcomeCancelled: meta.CodeCancelled, meta.OutcomeDropped: meta.CodeDropped}[c.outcome]
			if r := apply(t, s, handOff, code); r.Outcome != c.outcome {
				t.Errorf("hand-off after it: %+v", r)
			}
			for op, want := range c.after {
				if r := apply(t, s, op, want); r.Outcome != c.outcome {
					t.Errorf("%T after it: %+v", op, r)
				}
			}
			if r := s.Apply(meta.Command{Op: intent(1, diskA, diskB, 1)}); r.Outcome != c.outcome || r.Code == meta.CodeOK {
				t.Errorf("the same intent anew: %+v", r)
			}
			wantTenure(t, s, 1, c.holder, c.fence, c.phase)
			if len(s.Moves()) != 0 {
				t.Errorf("moves: %+v", s.Moves())
			}
		})
	}
}

func TestIntent_BarsWhatWouldDisturbTheMove(t *testing.T) {
	s := volumeGroup(t)
	addVolume(t, s, 2)
	apply(t, s, image(9, ""), meta.CodeOK)
	apply(t, s, intent(1, diskA, diskB, 1), meta.CodeOK)
	apply(t, s, intent(1, diskA, diskB, 1), meta.CodeOK)
	apply(t, s, intent(1, diskA, diskC, 1), meta.CodeIDTaken)
	for _, op := range []meta.Op{
		intent(2, diskA, diskC, 1, 2),
		meta.Resize{ID: volumeID(1), SizeBytes: 64 * scstore.BlockSize},
		meta.Snapshot{ID: volumeID(1), Name: "s", Position: pos(1, 1)},
		meta.Remove{ID: volumeID(1)},
		meta.OpenFence{ID: volumeID(1), Holder: diskA},
	} {
		if r := apply(t, s, op, meta.CodeMoving); !errors.Is(r.Err(), scstore.ErrBusy) {
			t.Errorf("%T: %v, want ErrBusy", op, r.Err())
		}
	}
	wantTenure(t, s, 2, diskA, 1, meta.PhaseNormal) // the second intent took none of its volumes
	apply(t, s, intent(3, diskB, diskC, 2), meta.CodeHeld)
	apply(t, s, intent(3, diskA, diskX, 2), meta.CodeNoDisk)
	apply(t, s, intent(3, diskA, diskB, 9), meta.CodeImage)
	apply(t, s, intent(3, diskA, diskB, 8), meta.CodeNoVolume)
	late := intent(4, diskA, diskB, 2)
	apply(t, s, meta.Expire{NowMs: 70_000}, meta.CodeOK)
	apply(t, s, late, meta.CodeExpired) // a duplicate from the past
	wantTenure(t, s, 1, diskA, 1, meta.PhaseNormal)
}

func TestHandOff_MustFitTheIntent(t *testing.T) {
	s := volumeGroup(t)
	addVolume(t, s, 2)
	one := []meta.Handed{handed(1, 1, pos(1, 1), 2)}
	apply(t, s, meta.HandOff{ID: moveID(1), To: diskB, Volumes: one}, meta.CodeNoIntent)
	apply(t, s, meta.Cancel{ID: moveID(1)}, meta.CodeNoIntent)
	apply(t, s, meta.DropIntent{ID: moveID(1)}, meta.CodeNoIntent)
	apply(t, s, intent(1, diskA, diskB, 1, 2), meta.CodeOK)
	apply(t, s, meta.HandOff{ID: moveID(1), To: diskB, Volumes: one}, meta.CodeBadMove)
	both := append(one, handed(2, 1, pos(1, 1), 2))
	apply(t, s, meta.HandOff{ID: moveID(1), To: diskC, Volumes: both}, meta.CodeBadMove)
	wrongFence := append(one, handed(2, 2, pos(1, 1), 2))
	apply(t, s, meta.HandOff{ID: moveID(1), To: diskB, Volumes: wrongFence}, meta.CodeNotGranted)
	apply(t, s, meta.HandOff{ID: moveID(1), To: diskB, Volumes: both}, meta.CodeOK)
}

func TestHandOff_WithoutANewEpochEndsAtTheHead(t *testing.T) {
	s := volumeGroup(t)
	acked(t, s, diskB, 1, pos(1, 1), true, meta.CodeOK)
	apply(t, s, intent(1, diskA, diskB, 1), meta.CodeOK)
	c := commit(1, 1, pos(0, 0), 1)
	at := meta.Handed{ID: c.ID, Fence: 1, Parent: c.Parent, Final: pos(1, 1), Digest: scstore.Digest{99}}
	apply(t, s, meta.HandOff{ID: moveID(1), To: diskB, Volumes: []meta.Handed{at}}, meta.CodeBadParent) // another content
	at.Digest = c.Digest
	apply(t, s, meta.HandOff{ID: moveID(1), To: diskB, Volumes: []meta.Handed{at}}, meta.CodeOK)
	wantTenure(t, s, 1, diskB, 2, meta.PhaseNormal) // it had everything
	empty := volume(3, "")
	apply(t, s, empty, meta.CodeOK)
	apply(t, s, meta.OpenFence{ID: empty.ID, Holder: diskA}, meta.CodeOK)
	apply(t, s, intent(2, diskA, diskC, 3), meta.CodeOK)
	apply(t, s, meta.HandOff{ID: moveID(2), To: diskC, Volumes: []meta.Handed{{ID: empty.ID, Fence: 1}}}, meta.CodeOK)
	wantTenure(t, s, 3, diskC, 2, meta.PhaseNormal)
	reopen(t, s)
}

func TestTether_EndsWhenTheHolderIsComplete(t *testing.T) {
	s := volumeGroup(t)
	apply(t, s, intent(1, diskA, diskB, 1), meta.CodeOK)
	apply(t, s, meta.HandOff{ID: moveID(1), To: diskB, Volumes: []meta.Handed{handed(1, 1, pos(1, 1), 2)}}, meta.CodeOK)
	apply(t, s, commit(1, 2, pos(1, 2), 1), meta.CodeOK)
	if got := s.CompleteHolders(volumeID(1), pos(2, 1)); len(got) != 0 {
		t.Errorf("complete at the head while tethered: %v", got)
	}
	if got := fmt.Sprint(s.CompleteHolders(volumeID(1), pos(1, 2)), s.Tethers(volumeID(1))); got != "[disk-a] [1.2]" {
		t.Errorf("holders and tether of the hand-off's position: %s", got)
	}
	r := apply(t, s, meta.Release{Disk: diskA, Seq: 1, ID: volumeID(1), Position: pos(1, 2)}, meta.CodeLastCopy)
	if !errors.Is(r.Err(), scstore.ErrBusy) {
		t.Errorf("the source drops the only copy: %v", r.Err())
	}
	acked(t, s, diskC, 1, pos(1, 2), true, meta.CodeOK) // another's completeness does not end it
	wantTenure(t, s, 1, diskB, 2, meta.PhaseTethered)
	apply(t, s, meta.Complete{Disk: diskB, Seq: 1, ID: volumeID(1), Position: pos(1, 1)}, meta.CodeOK) // an earlier position neither
	wantTenure(t, s, 1, diskB, 2, meta.PhaseTethered)
	apply(t, s, meta.Complete{Disk: diskB, Seq: 2, ID: volumeID(1), Position: pos(1, 2)}, meta.CodeOK)
	wantTenure(t, s, 1, diskB, 2, meta.PhaseNormal)
	if got := fmt.Sprint(s.CompleteHolders(volumeID(1), pos(2, 1))); got != "[disk-b]" {
		t.Errorf("complete at the head after the tether: %s", got)
	}
	apply(t, s, meta.Release{Disk: diskA, Seq: 2, ID: volumeID(1), Position: pos(1, 2)}, meta.CodeOK)
	apply(t, s, meta.Release{Disk: diskA, Seq: 3, ID: volumeID(1), Position: pos(1, 2)}, meta.CodeOK)
	reopen(t, s)
}

func TestTether_AMoveBackKeepsWhatNobodyHasWhole(t *testing.T) {
	s := volumeGroup(t)
	apply(t, s, intent(1, diskA, diskB, 1), meta.CodeOK)
	apply(t, s, meta.HandOff{ID: moveID(1), To: diskB, Volumes: []meta.Handed{handed(1, 1, pos(1, 1), 2)}}, meta.CodeOK)
	apply(t, s, intent(2, diskB, diskA, 1), meta.CodeOK)
	apply(t, s, meta.HandOff{ID: moveID(2), To: diskA, Volumes: []meta.Handed{handed(1, 2, pos(1, 2), 1)}}, meta.CodeOK)
	wantTenure(t, s, 1, diskA, 3, meta.PhaseTethered)
	if got := fmt.Sprint(s.Tethers(volumeID(1))); got != "[1.2 2.1]" {
		t.Errorf("tethers: %s", got)
	}
	apply(t, s, commit(1, 3, pos(2, 1), 1), meta.CodeOK)
	apply(t, s, meta.Complete{Disk: diskA, Seq: 1, ID: volumeID(1), Position: pos(2, 1)}, meta.CodeOK)
	wantTenure(t, s, 1, diskA, 3, meta.PhaseNormal)
	reopen(t, s)
}

func TestDecided_TheOldestIsForgottenAndThenChangesNothing(t *testing.T) {
	s := volumeGroup(t)
	id := func(n int) meta.HandOffID {
		return meta.HandOffID{0: 1, 13: byte(n >> 16), 14: byte(n >> 8), 15: byte(n)}
	}
	run := func(op meta.Op, want meta.Code) {
		t.Helper()
		if r := s.Apply(meta.Command{Op: op}); r.Code != want {
			t.Fatalf("%T: got %q, want %q", op, r.Code, want)
		}
	}
	for n := range meta.MaxDecided + 1 {
		o := intent(0, diskA, diskB, 1)
		o.ID = id(n)
		run(o, meta.CodeOK)
		run(meta.DropIntent{ID: o.ID}, meta.CodeOK)
	}
	if _, ok := s.Decided(id(0)); ok {
		t.Error("the oldest decision is remembered")
	}
	before := s.AppendTo(nil)
	run(meta.Cancel{ID: id(0)}, meta.CodeNoIntent)
	run(meta.Cancel{ID: id(1)}, meta.CodeDropped)
	after := s.AppendTo(nil)
	if !bytes.Equal(before[16:], after[16:]) { // but for the number of commands
		t.Error("a late duplicate changed the state")
	}
	if err := s.Verify(); err != nil {
		t.Error(err)
	}
}
