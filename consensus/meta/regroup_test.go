package meta_test

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"scstore"
	"scstore/consensus/meta"
)

// exported returns volume 1 of a volume group on its way from group 2 to group 3.
func exported(t testing.TB) meta.Import {
	s := volumeGroup(t)
	acked(t, s, diskB, 1, pos(1, 1), true, meta.CodeOK)
	apply(t, s, meta.Snapshot{ID: volumeID(1), Name: "s", Position: pos(1, 1)}, meta.CodeOK)
	apply(t, s, meta.Freeze{ID: volumeID(1), To: 3, N: 1}, meta.CodeOK)
	record, ok := s.Export(volumeID(1))
	if !ok {
		t.Fatal("a frozen volume is not exported")
	}
	return meta.Import{From: 2, N: 1, Record: record}
}

// thirdGroup returns an empty volume group with the same disks.
func thirdGroup(t testing.TB) *meta.State {
	s := meta.NewGroup(3)
	for disk, site := range map[meta.DiskID]meta.SiteID{diskA: siteA, diskB: siteB} {
		apply(t, s, meta.AdmitDisk{Disk: disk, Site: site}, meta.CodeOK)
	}
	return s
}

func TestRegroup_MovesARecordAndEveryStepMayBeRepeated(t *testing.T) {
	names, from, to := namespace(t), volumeGroup(t), thirdGroup(t)
	id := volumeID(1)
	apply(t, names, meta.Link{Name: "web1", ID: id, Group: 2}, meta.CodeOK)
	apply(t, from, meta.Snapshot{ID: id, Name: "s", Position: pos(1, 1)}, meta.CodeOK)
	clone := volume(2, "")
	clone.Base, clone.BasePosition = id, pos(1, 1)
	apply(t, from, clone, meta.CodeOK) // it stays
	before, _ := from.Get(id)
	twice := func(s *meta.State, op meta.Op) {
		t.Helper()
		first := apply(t, s, op, meta.CodeOK)
		if again := apply(t, s, op, meta.CodeOK); !again.Equal(first) {
			t.Errorf("%T again: got %+v, want %+v", op, again, first)
		}
	}
	twice(from, meta.Freeze{ID: id, To: 3, N: 1})
	for _, op := range []meta.Op{
		commit(1, 1, pos(1, 1), 2), meta.Revoke{ID: id, Fence: 1}, intent(1, diskA, diskB, 1), meta.Remove{ID: id},
		meta.DeleteSnapshot{ID: id, Name: "s"}, meta.DropRef{Base: id, Clone: volumeID(9)},
	} {
		if r := apply(t, from, op, meta.CodeFrozen); !errors.Is(r.Err(), scstore.ErrBusy) {
			t.Errorf("%T of a frozen volume: %v, want ErrBusy", op, r.Err())
		}
	}
	record, ok := from.Export(id)
	if !ok {
		t.Fatal("not exported")
	}
	twice(to, meta.Import{From: 2, N: 1, Record: record})
	apply(t, to, commit(1, 1, pos(1, 1), 2), meta.CodeFrozen)
	if _, ok := to.Export(id); ok {
		t.Error("what arrives is exported")
	}
	from, to = reopen(t, from), reopen(t, to)
	twice(from, meta.Forward{ID: id, N: 1})
	if r := apply(t, from, commit(1, 1, pos(1, 1), 2), meta.CodeForwarded); r.Number != 3 {
		t.Errorf("commit in the old group: %+v", r)
	}
	apply(t, from, volume(1, ""), meta.CodeIDTaken)
	twice(to, meta.Activate{ID: id, N: 1})
	twice(names, meta.Relink{ID: id, From: 2, To: 3})
	if e, _ := names.Resolve("web1"); e.Group != 3 {
		t.Errorf("name: %+v", e)
	}
	if after, _ := to.Get(id); after != before {
		t.Errorf("record: got %+v, want %+v", after, before)
	}
	if got := fmt.Sprint(to.CompleteHolders(id, pos(1, 1)), to.Snapshots(id)[0].Name, to.Clones(id)); got != "[disk-a]s1" {
		t.Errorf("facts: %s", got)
	}
	apply(t, to, commit(1, 1, pos(1, 1), 2), meta.CodeOK)
	apply(t, to, meta.Import{From: 2, N: 1, Record: record}, meta.CodeOK) // late, and nothing changes
	if got, _ := to.Get(id); got.Head != pos(1, 2) {
		t.Errorf("head after a late import: %v", got.Head)
	}
	if group, ok := from.Forwarded(id); !ok || group != 3 {
		t.Errorf("forwarded to %d, %v", group, ok)
	}
	if got := meta.Orphans(names, to, map[meta.GroupID]*meta.State{2: from}, 1<<60); len(got) != 0 {
		t.Errorf("orphans: %+v", got)
	}
	twice(from, meta.DropForward{ID: id})
	apply(t, from, meta.Remove{ID: clone.ID}, meta.CodeOK)
	apply(t, from, meta.Forget{ID: clone.ID}, meta.CodeOK)
	reopen(t, from)
	reopen(t, to)
}

func TestRegroup_ThereAndBack(t *testing.T) {
	from, to := volumeGroup(t), thirdGroup(t)
	id := volumeID(1)
	pass := func(a, b *meta.State, n uint64) string {
		t.Helper()
		apply(t, a, meta.Freeze{ID: id, To: b.Group(), N: n}, meta.CodeOK)
		record, _ := a.Export(id)
		apply(t, b, meta.Import{From: a.Group(), N: n, Record: record}, meta.CodeOK)
		apply(t, a, meta.Forward{ID: id, N: n}, meta.CodeOK)
		apply(t, b, meta.Activate{ID: id, N: n}, meta.CodeOK)
		return record
	}
	first := pass(from, to, 1)
	apply(t, to, commit(1, 1, pos(1, 1), 2), meta.CodeOK)
	apply(t, to, meta.Freeze{ID: id, To: 2, N: 1}, meta.CodeStale)
	pass(to, from, 2)
	if got := head(t, from, 1); got != pos(1, 2) {
		t.Errorf("head: %v", got)
	}
	apply(t, to, meta.Import{From: 2, N: 1, Record: first}, meta.CodeStale) // it was there and went on
	apply(t, to, meta.Forward{ID: id, N: 1}, meta.CodeForwarded)
	reopen(t, from)
	reopen(t, to)
}

func TestRegroup_GivenUpBeforeForward(t *testing.T) {
	from, to := volumeGroup(t), thirdGroup(t)
	id := volumeID(1)
	apply(t, from, meta.Freeze{ID: id, To: 3, N: 1}, meta.CodeOK)
	record, _ := from.Export(id)
	apply(t, to, meta.Import{From: 2, N: 1, Record: record}, meta.CodeOK)
	apply(t, from, meta.Unfreeze{ID: id, N: 2}, meta.CodeBadMove)
	apply(t, from, meta.Unfreeze{ID: id, N: 1}, meta.CodeOK)
	apply(t, from, meta.Unfreeze{ID: id, N: 1}, meta.CodeOK)
	apply(t, from, meta.Forward{ID: id, N: 1}, meta.CodeBadMove) // another coordinator is late
	apply(t, from, commit(1, 1, pos(1, 1), 2), meta.CodeOK)
	apply(t, from, meta.Freeze{ID: id, To: 3, N: 2}, meta.CodeOK)
	record, _ = from.Export(id)
	apply(t, to, meta.Import{From: 2, N: 2, Record: record}, meta.CodeOK) // takes the old one's place
	apply(t, to, meta.Activate{ID: id, N: 1}, meta.CodeBadMove)
	apply(t, from, meta.Forward{ID: id, N: 2}, meta.CodeOK)
	apply(t, to, meta.Activate{ID: id, N: 2}, meta.CodeOK)
	apply(t, to, meta.DropImport{ID: id, N: 2}, meta.CodeBadMove)
	if got := head(t, to, 1); got != pos(1, 2) {
		t.Errorf("head: %v", got)
	}
	apply(t, to, meta.DropImport{ID: volumeID(9), N: 1}, meta.CodeOK)
}

func TestRegroup_RefusesWhatCannotMove(t *testing.T) {
	id := volumeID(1)
	freeze := meta.Freeze{ID: id, To: 3, N: 1}
	s := promoted(t)
	apply(t, s, freeze, meta.CodeStays) // an old owner has not reported
	apply(t, s, branch(8, pos(1, 2), pos(1, 6)), meta.CodeOK)
	apply(t, s, freeze, meta.CodeStays) // a branch shows its blocks
	s = volumeGroup(t)
	apply(t, s, meta.Freeze{ID: id, To: 2, N: 1}, meta.CodeWrongGroup)
	apply(t, s, intent(1, diskA, diskB, 1), meta.CodeOK)
	apply(t, s, freeze, meta.CodeMoving)
	apply(t, s, meta.DropIntent{ID: moveID(1)}, meta.CodeOK)
	apply(t, s, meta.Revoke{ID: id, Fence: 1}, meta.CodeOK)
	apply(t, s, freeze, meta.CodeRevoked)
	all := meta.New()
	apply(t, all, volume(1, "a"), meta.CodeOK)
	apply(t, all, freeze, meta.CodeWrongGroup)
}

func TestImport_TakesOnlyWhatAnotherGroupExported(t *testing.T) {
	good := exported(t)
	s := thirdGroup(t)
	for name, change := range map[string]func(*meta.Import){
		"another number": func(o *meta.Import) { o.N = 2 },
		"itself":         func(o *meta.Import) { o.From = 3 },
		"cut":            func(o *meta.Import) { o.Record = o.Record[:len(o.Record)-1] },
		"longer":         func(o *meta.Import) { o.Record += "x" },
		"no record":      func(o *meta.Import) { o.Record = "" },
	} {
		bad := good
		change(&bad)
		before := s.AppendTo(nil)
		apply(t, s, bad, meta.CodeInvalid)
		if after := s.AppendTo(nil); !bytes.Equal(before[16:], after[16:]) {
			t.Errorf("%s: the state changed", name)
		}
	}
	apply(t, meta.NewGroup(4), good, meta.CodeInvalid) // sent to group 3
	apply(t, meta.New(), good, meta.CodeWrongGroup)
	apply(t, s, meta.RemoveDisk{Disk: diskB}, meta.CodeOK)
	apply(t, s, good, meta.CodeOK)
	apply(t, s, meta.Activate{ID: volumeID(1), N: 1}, meta.CodeOK)
	if got := holders(s, pos(1, 1)); got != "[disk-a]" {
		t.Errorf("holders: %s; one of them was removed", got)
	}
	reopen(t, s)
}
