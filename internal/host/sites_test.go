package host

import (
	"errors"
	"strings"
	"testing"
	"time"

	"scstore"
	"scstore/consensus/meta"
	"scstore/internal/api"
	"scstore/internal/cluster"
)

// somewhere is three sites: ams with hosts a and b, fra with c, which has not joined yet,
// and lon with d, which was removed.
func somewhere() hostMap {
	m := hostMap{}
	for _, h := range []meta.Host{
		{Disk: "1", Name: "a", Site: "ams", State: meta.HostActive},
		{Disk: "2", Name: "b", Site: "ams", State: meta.HostActive},
		{Disk: "3", Name: "w", Site: "ams", State: meta.HostActive, Witness: true},
		{Disk: "4", Name: "c", Site: "fra", State: meta.HostJoining},
		{Disk: "5", Name: "d", Site: "lon", State: meta.HostRemoved},
	} {
		m[h.Disk] = h
	}
	return m
}

func TestTarget_IsTheNewestCopyOfTheSiteOrTheHostThatWasNamed(t *testing.T) {
	at := func(epoch scstore.Epoch) scstore.Position { return scstore.Position{Fence: 1, Epoch: epoch} }
	held := &facts{replicas: []meta.Replica{{Disk: "1", Complete: at(3)}, {Disk: "2", Complete: at(4)}, {Disk: "3", Complete: at(5)}}}
	for _, test := range []struct {
		to   string
		f    *facts
		want meta.DiskID
		err  error
	}{
		{"ams", &facts{}, "1", nil},
		{"ams", held, "2", nil},
		{"ams/a", held, "1", nil},
		{"ams/w", held, "", scstore.ErrNotFound},
		{"ams/c", held, "", scstore.ErrNotFound},
		{"fra", held, "", scstore.ErrNotFound},
		{"lon", held, "", scstore.ErrNotFound},
		{"", held, "", scstore.ErrNotFound},
	} {
		got, err := target(test.to, somewhere(), test.f)
		if got != test.want || !errors.Is(err, test.err) {
			t.Errorf("%q: got %q, %v, want %q, %v", test.to, got, err, test.want, test.err)
		}
		if _, ok := errors.AsType[*scstore.HintError](err); err != nil && !ok {
			t.Errorf("%q: %v has no hint", test.to, err)
		}
	}
}

func TestReasons_SayWhyASiteMustStay(t *testing.T) {
	f := &facts{
		tenure: meta.Tenure{Holder: "1"},
		exposed: map[meta.SiteID][]meta.Exposure{
			"ams": {{Writer: true, Root: meta.Root{Kind: meta.RootHead}}},
			"fra": {{LastCopy: true, Root: meta.Root{Kind: meta.RootSnapshot, Name: "s1"}}, {LastCopy: true, Root: meta.Root{Kind: meta.RootHead}}},
			"lon": nil,
		},
	}
	w := &api.Where{Owner: "a", OnlyBytes: 5, Unknown: "nobody knows"}
	for site, want := range map[meta.SiteID]string{
		"ams": "host a writes it: move it first; 5 bytes that were written are at host a alone; nobody knows",
		"fra": "the only complete copy of snapshot s1 is there; the only complete copy of its newest epoch is there",
		"lon": "",
	} {
		if got := strings.Join(f.reasons(site, somewhere(), w), "; "); got != want {
			t.Errorf("%s: got %q, want %q", site, got, want)
		}
	}
	f.old = "it may be old"
	if got := f.reasons("lon", somewhere(), w); len(got) != 1 || got[0] != f.old {
		t.Errorf("of a state that may be old: %q", got)
	}
	f.old = ""
	// Every kind of root has a reason.
	for kind := meta.RootHead; kind <= meta.RootFork; kind++ {
		f.exposed["lon"] = []meta.Exposure{{LastCopy: true, Root: meta.Root{Kind: kind}}}
		if len(f.reasons("lon", somewhere(), w)) != 1 {
			t.Errorf("%s: no reason", kind)
		}
	}
}

func TestFacts_SayWhatAHostHas(t *testing.T) {
	p := scstore.Position{Fence: 1, Epoch: 2}
	f := &facts{tenure: meta.Tenure{Holder: "1"}, head: p, replicas: []meta.Replica{
		{Disk: "2", Site: "ams", Complete: scstore.Position{Fence: 1, Epoch: 1}}, {Disk: "3", Site: "ams", Partial: p}, {Disk: "5", Site: "lon", Complete: p},
	}}
	for disk, want := range map[meta.DiskID]string{"1": "owner", "2": "replica", "3": "partial", "4": "none"} {
		if got := f.here(disk); got != want {
			t.Errorf("disk %s: got %q, want %q", disk, got, want)
		}
	}
	list := f.copies(somewhere())
	if len(list) != 4 || list[0].Host != "a" || !list[0].Owner || list[1].Current || list[2].Host != "d" || !list[2].Current {
		t.Errorf("got %+v", list)
	}
}

func TestLosses_RememberWhenAMajorityWasLost(t *testing.T) {
	l := losses{since: map[meta.GroupID]time.Time{}}
	t0 := time.Unix(1000, 0)
	groups := func(first, second bool) []cluster.GroupStatus {
		return []cluster.GroupStatus{{Group: 1, Majority: first}, {Group: 2, Majority: second}}
	}
	if lost := l.see(groups(true, true), t0); len(lost) != 0 {
		t.Errorf("got %v", lost)
	}
	l.see(groups(true, false), t0.Add(time.Second))
	if lost := l.see(groups(false, false), t0.Add(time.Minute)); lost[2] != t0.Add(time.Second) || lost[1] != t0.Add(time.Minute) {
		t.Errorf("got %v", lost)
	}
	l.see(groups(true, true), t0.Add(2*time.Minute))
	if lost := l.see(groups(true, false), t0.Add(3*time.Minute)); lost[2] != t0.Add(3*time.Minute) {
		t.Errorf("got %v", lost)
	}
}

func TestHostProblems_NameHostsThatDoNotAnswer(t *testing.T) {
	st := cluster.Status{Hosts: []cluster.HostStatus{
		{Host: meta.Host{Name: "a", State: meta.HostActive}, Here: true},
		{Host: meta.Host{Name: "b", Site: "fra", State: meta.HostActive}, LastErr: scstore.ErrUnreachable},
		{Host: meta.Host{Name: "c", State: meta.HostActive}, Reachable: true, Skew: -3 * time.Second},
		{Host: meta.Host{Name: "d", State: meta.HostRemoved}, LastErr: scstore.ErrUnreachable},
		{Host: meta.Host{Name: "e", State: meta.HostActive}}, // nobody needed a connection
		{Host: meta.Host{Name: "f", State: meta.HostJoining}, Reachable: true},
	}}
	got := strings.Join(hostProblems(st), "; ")
	want := "host b of site fra is not reachable: unreachable; the clock of host c is off by -3s; host f of site  is still joining"
	if got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
