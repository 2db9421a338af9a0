package meta_test

import (
	"errors"
	"fmt"
	"testing"

	"scstore"
	"scstore/consensus/meta"
)

func addHost(disk meta.DiskID, name string, site meta.SiteID) meta.AddHost {
	return meta.AddHost{Disk: disk, Name: name, Site: site, Fingerprint: meta.Fingerprint{7}, Addresses: []string{name + ".example:7400"}}
}

// namespace returns the state of a namespace group with a site and a host.
func namespace(t *testing.T) *meta.State {
	t.Helper()
	s := meta.NewGroup(meta.GroupNamespace)
	apply(t, s, meta.SetCluster{Cluster: meta.Cluster{ID: meta.ClusterID{1}, Incarnation: 1}}, meta.CodeOK)
	apply(t, s, meta.SetSite{Site: meta.Site{Name: siteA}}, meta.CodeOK)
	apply(t, s, addHost(diskA, "alpha", siteA), meta.CodeOK)
	return s
}

func TestCluster_IncarnationOnlyRises(t *testing.T) {
	s := namespace(t)
	apply(t, s, meta.SetCluster{Cluster: meta.Cluster{ID: meta.ClusterID{2}, Incarnation: 2}}, meta.CodeOtherCluster)
	apply(t, s, meta.SetCluster{Cluster: meta.Cluster{ID: meta.ClusterID{1}, Incarnation: 3}}, meta.CodeOK)
	apply(t, s, meta.SetCluster{Cluster: meta.Cluster{ID: meta.ClusterID{1}, Incarnation: 2}}, meta.CodeOtherCluster)
	if got := s.Cluster(); got.Incarnation != 3 {
		t.Errorf("cluster: %+v", got)
	}
}

func TestSites_AreOfHostsAndVotersAreTheirHosts(t *testing.T) {
	s := namespace(t)
	apply(t, s, addHost(diskB, "beta", siteB), meta.CodeNoSite)
	apply(t, s, meta.SetSite{Site: meta.Site{Name: siteB, Voters: []meta.DiskID{diskA}}}, meta.CodeNoHost)
	apply(t, s, meta.SetSite{Site: meta.Site{Name: siteA, Voters: []meta.DiskID{diskA}}}, meta.CodeOK)
	apply(t, s, meta.RemoveSite{Name: siteA}, meta.CodeSiteInUse)
	apply(t, s, meta.RemoveDisk{Disk: diskA}, meta.CodeOK)
	if got := s.Sites(); len(got) != 1 || len(got[0].Voters) != 0 {
		t.Errorf("sites after its voter was removed: %+v", got)
	}
	apply(t, s, meta.RemoveSite{Name: siteA}, meta.CodeOK)
	apply(t, s, meta.RemoveSite{Name: siteA}, meta.CodeOK)
	reopen(t, s)
}

func TestHosts_NameAndDiskAreTakenOnceAndADiskNeverComesBack(t *testing.T) {
	s := namespace(t)
	apply(t, s, addHost(diskA, "alpha", siteA), meta.CodeOK)
	apply(t, s, addHost(diskA, "other", siteA), meta.CodeHostTaken)
	apply(t, s, addHost(diskB, "alpha", siteA), meta.CodeHostTaken)
	apply(t, s, meta.UpdateHost{Disk: diskB}, meta.CodeNoHost)
	apply(t, s, meta.UpdateHost{Disk: diskA, Active: true, Addresses: []string{"10.0.0.1:7400"}}, meta.CodeOK)
	if h, _ := s.Host(diskA); h.State != meta.HostActive || h.Addresses[0] != "10.0.0.1:7400" {
		t.Errorf("host: %+v", h)
	}
	apply(t, s, meta.RemoveDisk{Disk: diskA}, meta.CodeOK)
	apply(t, s, meta.RemoveDisk{Disk: diskA}, meta.CodeOK)
	r := apply(t, s, addHost(diskA, "alpha", siteA), meta.CodeDiskRemoved)
	var hint *scstore.HintError
	if !errors.As(r.Err(), &hint) || !errors.Is(r.Err(), scstore.ErrFenced) {
		t.Errorf("a removed disk joins: %v, want ErrFenced with a hint", r.Err())
	}
	apply(t, s, addHost(diskB, "alpha", siteA), meta.CodeOK) // its name is free
	reopen(t, s)
}

func TestBoot_ACopiedMachineIsRefused(t *testing.T) {
	s := namespace(t)
	first := meta.Boot{Disk: diskA, N: 1, Nonce: [16]byte{1}}
	apply(t, s, first, meta.CodeOK)
	apply(t, s, first, meta.CodeOK) // the same proposal again
	apply(t, s, meta.Boot{Disk: diskA, N: 2, Nonce: [16]byte{2}}, meta.CodeOK)
	copied := meta.Boot{Disk: diskA, N: 2, Nonce: [16]byte{3}}
	if r := apply(t, s, copied, meta.CodeStaleBoot); !errors.Is(r.Err(), scstore.ErrFenced) || r.Number != 2 {
		t.Errorf("a copy starts: %v, number %d", r.Err(), r.Number)
	}
	apply(t, s, first, meta.CodeStaleBoot)
	apply(t, s, meta.Boot{Disk: diskX, N: 1}, meta.CodeNoHost)
}

func TestToken_AdmitsOneDiskUntilItExpires(t *testing.T) {
	s := namespace(t)
	token := meta.AddToken{Hash: meta.TokenHash{1}, Site: siteA, ExpiresAtMs: 5_000, NowMs: 1_000}
	apply(t, s, token, meta.CodeOK)
	apply(t, s, token, meta.CodeOK)
	apply(t, s, meta.AddToken{Hash: meta.TokenHash{2}, Site: siteB, ExpiresAtMs: 5_000}, meta.CodeNoSite)
	apply(t, s, meta.AddToken{Hash: meta.TokenHash{2}, Site: siteA, ExpiresAtMs: 500, NowMs: 400}, meta.CodeTokenExpired) // the clock stands at 1000
	apply(t, s, meta.AddToken{Hash: meta.TokenHash{3}, Site: siteA, ExpiresAtMs: 9_000, NowMs: 1_000}, meta.CodeOK)
	if ms, ok := s.NextDeadline(); !ok || ms != 5_000 {
		t.Errorf("next deadline %d, %v", ms, ok)
	}
	use := func(hash byte, disk meta.DiskID, now int64) meta.UseToken {
		return meta.UseToken{Hash: meta.TokenHash{hash}, Disk: disk, NowMs: now}
	}
	apply(t, s, use(9, diskB, 2_000), meta.CodeNoToken)
	apply(t, s, use(1, diskB, 2_000), meta.CodeOK)
	apply(t, s, use(1, diskB, 9_000), meta.CodeOK) // asked again, late
	apply(t, s, use(1, diskC, 2_000), meta.CodeTokenUsed)
	if r := apply(t, s, use(3, diskC, 2_000), meta.CodeTokenExpired); !errors.Is(r.Err(), scstore.ErrInvalid) {
		t.Errorf("expired token: %v", r.Err()) // the clock stood at 9000 before
	}
	if r := apply(t, s, meta.Expire{NowMs: 6_000}, meta.CodeOK); r.Number != 2 || s.ClockMs() != 9_000 || len(s.Tokens()) != 0 {
		t.Errorf("%d ended, clock %d, tokens %v", r.Number, s.ClockMs(), s.Tokens())
	}
	if ms, ok := s.NextDeadline(); ok {
		t.Errorf("next deadline %d, and nothing is left", ms)
	}
	reopen(t, s)
}

func TestReplicaIDs_AreNeverGivenTwice(t *testing.T) {
	s := namespace(t)
	apply(t, s, addHost(diskB, "beta", siteA), meta.CodeOK)
	alloc := func(g meta.GroupID, disk meta.DiskID) uint64 {
		return apply(t, s, meta.AllocReplica{Group: g, Disk: disk}, meta.CodeOK).Number
	}
	if got := []uint64{alloc(2, diskA), alloc(2, diskB), alloc(2, diskA), alloc(3, diskB)}; fmt.Sprint(got) != "[1 2 1 1]" {
		t.Errorf("replica ids: %v", got)
	}
	apply(t, s, meta.FreeReplica{Group: 2, Disk: diskA}, meta.CodeOK)
	apply(t, s, meta.FreeReplica{Group: 9, Disk: diskA}, meta.CodeOK)
	s = reopen(t, s)
	if got := alloc(2, diskA); got != 3 {
		t.Errorf("a disk that comes back to the group: replica id %d, want 3", got)
	}
	apply(t, s, meta.RemoveDisk{Disk: diskA}, meta.CodeOK)
	apply(t, s, meta.AllocReplica{Group: 2, Disk: diskA}, meta.CodeDiskRemoved)
	apply(t, s, meta.AllocReplica{Group: 2, Disk: diskX}, meta.CodeNoHost)
	if got := s.Members(2); len(got) != 1 || got[0].Disk != diskB {
		t.Errorf("members: %+v", got)
	}
}

func TestScope_ACommandOfAnotherKindOfGroupIsRefused(t *testing.T) {
	names, volumes, all := namespace(t), volumeGroup(t), meta.New()
	apply(t, names, volume(9, ""), meta.CodeWrongGroup)
	apply(t, volumes, volume(9, "a/name"), meta.CodeWrongGroup)
	apply(t, volumes, meta.Link{Name: "a", ID: volumeID(1), Group: 2}, meta.CodeWrongGroup)
	apply(t, volumes, meta.SetSite{Site: meta.Site{Name: siteA}}, meta.CodeWrongGroup)
	apply(t, names, meta.Batch{Ops: []meta.Op{commit(1, 1, pos(0, 0), 1)}}, meta.CodeWrongGroup)
	apply(t, all, meta.SetSite{Site: meta.Site{Name: siteA}}, meta.CodeOK)
	apply(t, all, addHost(diskA, "alpha", siteA), meta.CodeOK)
	apply(t, all, meta.AdmitDisk{Disk: diskA, Site: siteB}, meta.CodeHostTaken) // AddHost admitted it
	apply(t, all, volume(9, "a/name"), meta.CodeOK)
	reopen(t, all)
}

func TestLink_AcrossGroups(t *testing.T) {
	s := namespace(t)
	link := meta.Link{Name: "prod/web1", ID: volumeID(1), Group: 2}
	apply(t, s, link, meta.CodeOK)
	apply(t, s, link, meta.CodeOK)
	apply(t, s, meta.Link{Name: "prod/web2", ID: volumeID(1), Group: 2}, meta.CodeLinked)
	apply(t, s, meta.Link{Name: "prod/web1", ID: volumeID(2), Group: 2}, meta.CodeNameTaken)
	apply(t, s, meta.Link{Name: "prod", ID: volumeID(2), Group: 2}, meta.CodeNameIsFolder)
	apply(t, s, meta.Link{Name: "x", ID: volumeID(2), Group: meta.GroupAll}, meta.CodeWrongGroup)
	apply(t, s, meta.Rename{From: "prod/web1", To: "web1"}, meta.CodeOK)
	if e, ok := s.Resolve("web1"); !ok || e.ID != volumeID(1) || e.Group != 2 {
		t.Errorf("resolve: %+v, %v", e, ok)
	}
	apply(t, s, meta.Unlink{Name: "web1", ID: volumeID(2)}, meta.CodeNoName) // a late retry for another volume
	apply(t, s, meta.Unlink{Name: "web1", ID: volumeID(1)}, meta.CodeOK)
	if got := s.Entries(""); len(got) != 0 {
		t.Errorf("names: %+v", got)
	}
	reopen(t, s)
}

func TestLink_WithVolumesInTheSameState(t *testing.T) {
	s := meta.New()
	apply(t, s, meta.Link{Name: "a", ID: volumeID(1)}, meta.CodeNoVolume)
	apply(t, s, volume(1, ""), meta.CodeOK)
	if len(s.List("")) != 0 || len(s.Records()) != 1 {
		t.Errorf("a volume without a name: listed %+v, records %+v", s.List(""), s.Records())
	}
	apply(t, s, meta.Link{Name: "a", ID: volumeID(1)}, meta.CodeOK)
	apply(t, s, meta.Link{Name: "b", ID: volumeID(1), Group: 2}, meta.CodeWrongGroup)
	if r, ok := s.Lookup("a"); !ok || r.Name != "a" {
		t.Errorf("lookup: %+v, %v", r, ok)
	}
	apply(t, s, meta.Remove{ID: volumeID(1)}, meta.CodeOK)
	if _, ok := s.Resolve("a"); ok {
		t.Error("a removed volume has a name")
	}
}

func TestOrphans_AreWhatACrashBetweenGroupsLeft(t *testing.T) {
	names, volumes := namespace(t), meta.NewGroup(2)
	base := image(1, "")
	base.CreatedAtMs = 100
	apply(t, volumes, base, meta.CodeOK)
	apply(t, names, meta.Link{Name: "images/debian", ID: base.ID, Group: 2}, meta.CodeOK)
	unnamed := volume(2, "")
	unnamed.CreatedAtMs = 100
	apply(t, volumes, unnamed, meta.CodeOK)
	apply(t, volumes, meta.AddRef{Base: base.ID, Ref: meta.Ref{Clone: volumeID(8), Position: base.Position, Group: 3, AddedAtMs: 100}}, meta.CodeOK)
	apply(t, volumes, meta.AddRef{Base: base.ID, Ref: meta.Ref{Clone: volumeID(9), Position: base.Position, Group: 3, AddedAtMs: 900}}, meta.CodeOK)
	others := map[meta.GroupID]*meta.State{3: meta.NewGroup(3)}
	got := meta.Orphans(names, volumes, others, 500)
	want := []meta.Orphan{{ID: base.ID, Clone: volumeID(8)}, {ID: unnamed.ID}}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("orphans: got %v, want %v", got, want)
	}
	if got := meta.Orphans(names, volumes, nil, 500); len(got) != 1 || got[0].ID != unnamed.ID {
		t.Errorf("orphans without the clones' group: %v", got)
	}
	inOther := volume(8, "")
	inOther.Base, inOther.BasePosition = base.ID, base.Position
	apply(t, others[3], inOther, meta.CodeOK)
	if got := meta.Orphans(names, volumes, others, 500); len(got) != 1 {
		t.Errorf("orphans once the clone exists: %v", got)
	}
	apply(t, volumes, meta.Remove{ID: base.ID}, meta.CodeInUse)
	for n := byte(8); n < 10; n++ {
		apply(t, volumes, meta.DropRef{Base: base.ID, Clone: volumeID(n)}, meta.CodeOK)
		apply(t, volumes, meta.DropRef{Base: base.ID, Clone: volumeID(n)}, meta.CodeOK)
	}
	apply(t, volumes, meta.Remove{ID: base.ID}, meta.CodeOK)
}
