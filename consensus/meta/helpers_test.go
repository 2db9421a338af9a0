package meta_test

import (
	"bytes"
	"testing"

	"scstore"
	"scstore/consensus/meta"
)

func volumeID(n byte) scstore.VolumeID { return scstore.VolumeID{0: 0xc0, 15: n} }

func clientID(n byte) meta.ClientID { return meta.ClientID{0: 0xee, 15: n} }

func pos(fence, epoch uint64) scstore.Position {
	return scstore.Position{Fence: scstore.Fence(fence), Epoch: scstore.Epoch(epoch)}
}

// apply runs an unprotected command and wants this code.
func apply(t testing.TB, s *meta.State, op meta.Op, want meta.Code) meta.Result {
	t.Helper()
	got := s.Apply(meta.Command{Op: op})
	if got.Code != want {
		t.Fatalf("%T%+v: got %q, want %q", op, op, got.Code, want)
	}
	if err := s.Verify(); err != nil {
		t.Fatalf("state after %T%+v: %v", op, op, err)
	}
	return got
}

// reopen returns the state after a round trip through its encoding.
func reopen(t testing.TB, s *meta.State) *meta.State {
	t.Helper()
	b := s.AppendTo(nil)
	again, err := meta.ParseState(b)
	if err != nil {
		t.Fatalf("parse a state that was written: %v", err)
	}
	if !bytes.Equal(again.AppendTo(nil), b) {
		t.Fatal("a state that was read back has other bytes")
	}
	return again
}

func volume(n byte, name string) meta.CreateVolume {
	return meta.CreateVolume{ID: volumeID(n), Name: name, SizeBytes: 8 * scstore.BlockSize, CreatedAtMs: 1_800_000_000_000}
}

func image(n byte, name string) meta.CreateImage {
	return meta.CreateImage{
		ID: volumeID(n), Name: name, SizeBytes: 4 * scstore.BlockSize, Position: pos(0, 1),
		Digest: scstore.Digest{1, 2, 3}, CreatedAtMs: 1_800_000_000_001,
	}
}

func clone(n byte, name string, base meta.CreateImage) meta.CreateVolume {
	v := volume(n, name)
	v.Base, v.BasePosition = base.ID, base.Position
	return v
}

// The disks of a cluster of three sites; a and A are at site "ams", and so on.
const (
	diskA = meta.DiskID("disk-a")
	diskB = meta.DiskID("disk-b")
	diskC = meta.DiskID("disk-c")
	diskX = meta.DiskID("disk-x") // unknown

	siteA = meta.SiteID("ams")
	siteB = meta.SiteID("ber")
	siteC = meta.SiteID("cph")
)

// volumeGroup returns the state of a volume group with three disks and volume 1,
// which disk a writes under fence 1; its head is 1.1.
func volumeGroup(t testing.TB) *meta.State {
	t.Helper()
	s := meta.NewGroup(meta.FirstVolumes)
	for disk, site := range map[meta.DiskID]meta.SiteID{diskA: siteA, diskB: siteB, diskC: siteC} {
		apply(t, s, meta.AdmitDisk{Disk: disk, Site: site}, meta.CodeOK)
	}
	addVolume(t, s, 1)
	return s
}

// addVolume makes a volume that disk a writes, with head 1.1.
func addVolume(t testing.TB, s *meta.State, n byte) {
	t.Helper()
	v := volume(n, "")
	apply(t, s, v, meta.CodeOK)
	apply(t, s, meta.OpenFence{ID: v.ID, Holder: diskA}, meta.CodeOK)
	apply(t, s, commit(n, 1, pos(0, 0), 1), meta.CodeOK)
}

// commit is the epoch of volume n that follows parent; its digest tells it from
// others.
func commit(n byte, fence uint64, parent scstore.Position, epoch uint64) meta.CommitEpoch {
	return meta.CommitEpoch{
		ID: volumeID(n), Fence: scstore.Fence(fence), Parent: parent, Epoch: scstore.Epoch(epoch),
		Digest: scstore.Digest{n, byte(fence), byte(epoch)},
	}
}

// ack reports volume 1; seq makes it the disk's next report.
func ack(disk meta.DiskID, seq uint64, at scstore.Position, complete bool) meta.Ack {
	return meta.Ack{Disk: disk, Seq: seq, Items: []meta.AckItem{{ID: volumeID(1), Position: at, Complete: complete}}}
}

// acked applies a report of volume 1 and wants this code for it.
func acked(t testing.TB, s *meta.State, disk meta.DiskID, seq uint64, at scstore.Position, complete bool, want meta.Code) {
	t.Helper()
	if got := apply(t, s, ack(disk, seq, at, complete), meta.CodeOK).Each[0]; got.Code != want {
		t.Fatalf("report of %s at %v: got %q, want %q", disk, at, got.Code, want)
	}
}

func moveID(n byte) meta.HandOffID { return meta.HandOffID{0: 0xa0, 15: n} }

func intent(n byte, from, to meta.DiskID, volumes ...byte) meta.Intent {
	o := meta.Intent{Move: meta.Move{ID: moveID(n), From: from, To: to, DeadlineMs: 60_000}, NowMs: 1_000}
	for _, v := range volumes {
		o.Volumes = append(o.Volumes, volumeID(v))
	}
	return o
}

// handed is volume n's part of a hand-off with one more epoch.
func handed(n byte, fence uint64, parent scstore.Position, epoch uint64) meta.Handed {
	c := commit(n, fence, parent, epoch)
	return meta.Handed{ID: c.ID, Fence: c.Fence, Parent: parent, Final: pos(fence, epoch), Digest: c.Digest}
}

// wantTenure checks who may write volume n.
func wantTenure(t *testing.T, s *meta.State, n byte, holder meta.DiskID, fence scstore.Fence, phase meta.Phase) {
	t.Helper()
	got, ok := s.Holder(volumeID(n))
	if !ok || got.Holder != holder || got.Fence != fence || got.Phase != phase {
		t.Fatalf("volume %d: got %q under fence %d, %v; want %q, %d, %v", n, got.Holder, got.Fence, got.Phase, holder, fence, phase)
	}
}

// head returns volume n's head.
func head(t *testing.T, s *meta.State, n byte) scstore.Position {
	t.Helper()
	r, ok := s.Get(volumeID(n))
	if !ok {
		t.Fatalf("volume %d is not there", n)
	}
	return r.Head
}
