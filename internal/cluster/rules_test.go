package cluster

import (
	"context"
	"errors"
	"net"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"scstore"
	"scstore/consensus"
	"scstore/consensus/meta"
)

// testView is a view of hosts "a1", "a2", "b1" and so on, named for their sites, which
// joined in this order; each site's first one is its voter. A host whose name ends with
// '?' is joining, with '!' removed.
func testView(names ...string) *view {
	v := &view{hosts: map[meta.DiskID]meta.Host{}, members: map[meta.GroupID][]meta.Member{}}
	for i, name := range names {
		state := meta.HostActive
		switch name[len(name)-1] {
		case '?':
			state = meta.HostJoining
		case '!':
			state = meta.HostRemoved
		}
		d, site := meta.DiskID(name), meta.SiteID(name[:1])
		v.hosts[d] = meta.Host{Disk: d, Name: name, Site: site, State: state}
		v.members[meta.GroupNamespace] = append(v.members[meta.GroupNamespace], meta.Member{Disk: d, Replica: uint64(i + 1)})
		if !slices.ContainsFunc(v.sites, func(s meta.Site) bool { return s.Name == site }) {
			v.sites = append(v.sites, meta.Site{Name: site})
		}
	}
	for i := range v.sites {
		if d, ok := v.siteVoter(v.sites[i]); ok {
			v.sites[i].Voters = []meta.DiskID{d}
		}
	}
	return v
}

func TestView_WhoIsToVote(t *testing.T) {
	type disks = []meta.DiskID
	for _, c := range []struct {
		what           string
		hosts          []string
		voters, others disks
		want           disks
	}{
		{"one site", []string{"a1", "a2"}, disks{"a1"}, disks{"a2"}, nil},
		{"two sites", []string{"a1", "b1"}, disks{"a1"}, disks{"b1"}, nil},
		{"three sites", []string{"a1", "b1", "c1"}, disks{"a1"}, disks{"b1", "c1"}, disks{"b1", "c1"}},
		{"a third that is joining", []string{"a1", "b1", "c1?"}, disks{"a1"}, disks{"b1", "c1?"}, nil},
		{"a third that is no member yet", []string{"a1", "b1", "c1"}, disks{"a1"}, disks{"b1"}, nil},
		{"a promotion that was cut off", []string{"a1", "b1", "c1"}, disks{"a1", "b1"}, disks{"c1"}, disks{"c1"}},
		{"four sites", []string{"a1", "b1", "c1", "d1"}, disks{"a1"}, disks{"b1", "c1", "d1"}, disks{"b1", "c1"}},
		{"a fourth", []string{"a1", "b1", "c1", "d1"}, disks{"a1", "b1", "c1"}, disks{"d1"}, nil},
		{"a fifth", []string{"a1", "b1", "c1", "d1", "e1"}, disks{"a1", "b1", "c1"}, disks{"d1", "e1"}, disks{"d1", "e1"}},
		{"nine", []string{"a1", "b1", "c1", "d1", "e1", "f1", "g1", "h1", "i1"}, disks{"a1"},
			disks{"b1", "c1", "d1", "e1", "f1", "g1", "h1", "i1"}, disks{"b1", "c1", "d1", "e1", "f1", "g1"}},
		{"second hosts", []string{"a1", "a2", "b1", "b2", "c1"}, disks{"a1"}, disks{"a2", "b1", "b2", "c1"}, disks{"b1", "c1"}},
		{"a voter was removed", []string{"a1!", "a2", "b1", "c1"}, disks{"b1", "c1"}, disks{"a2"}, disks{"a2"}},
		{"and nobody is left there", []string{"a1!", "b1", "c1"}, disks{"b1", "c1"}, nil, nil},
	} {
		if got := testView(c.hosts...).toPromote(c.voters, c.others); !slices.Equal(got, c.want) {
			t.Errorf("%s: got %v, want %v", c.what, got, c.want)
		}
	}
}

func TestView_WhoLeadsVolumes(t *testing.T) {
	v := testView("a1", "b1", "c1", "c2")
	voters := []meta.DiskID{"a1", "b1", "c1"}
	for _, c := range []struct {
		writers map[meta.DiskID]int
		want    meta.DiskID
	}{
		{nil, "a1"},
		{map[meta.DiskID]int{"b1": 1}, "b1"},
		{map[meta.DiskID]int{"b1": 1, "c2": 2}, "c1"},
		{map[meta.DiskID]int{"b1": 2, "c1": 1, "c2": 1}, "b1"},
		{map[meta.DiskID]int{"stranger": 9}, "a1"},
	} {
		if got := v.siteThatWrites(voters, v.writersBySite(c.writers)); got != c.want {
			t.Errorf("%v: got %s, want %s", c.writers, got, c.want)
		}
	}
}

func TestAddresses(t *testing.T) {
	local := &net.UDPAddr{IP: net.IPv6zero, Port: 7401}
	if got := addresses("db1.example:7400", local, "192.0.2.1"); !slices.Equal(got, []string{"db1.example:7401"}) {
		t.Errorf("a name: %v", got)
	}
	for _, listen := range []string{":7400", "0.0.0.0:7400", "[::]:7400"} {
		got := addresses(listen, local, "192.0.2.1")
		if len(got) == 0 || len(got) > maxOwnAddresses+1 || got[len(got)-1] != "192.0.2.1:7401" || !anyHost(listen) {
			t.Errorf("%s: %v", listen, got)
		}
	}
	if got := compact([]string{"a", "b", "a"}); !slices.Equal(got, []string{"a", "b"}) {
		t.Errorf("compact: %v", got)
	}
}

func TestMachineName(t *testing.T) {
	if err := (Options{Disk: scstore.StoreID{1}, Host: machineName()}).validate(); err != nil {
		t.Error(err)
	}
}

// log is a group's log as a proposer sees it.
type fakeLog struct {
	state *meta.State
	lose  int // answers that are lost, the commands being applied
	drop  int // commands that are lost after that, nobody knows it
	seen  []meta.CommandID
}

func (l *fakeLog) propose(_ context.Context, _ consensus.GroupID, c meta.Command) (meta.Result, error) {
	l.seen = append(l.seen, c.ID)
	switch {
	case l.lose > 0:
		l.lose--
		l.state.Apply(c)
		return meta.Result{}, scstore.ErrIndeterminate
	case l.drop > 0:
		l.drop--
		return meta.Result{}, scstore.ErrNoMajority
	}
	r := l.state.Apply(c)
	return r, r.Err()
}

func newFake() (*Cluster, *session, *fakeLog) {
	c := &Cluster{sessions: map[meta.GroupID]*session{2: newSession()}}
	c.ctx, c.cancel = context.WithCancelCause(context.Background())
	l := &fakeLog{state: meta.NewGroup(2)}
	s := c.sessions[2]
	s.replace(meta.ClientID{}, meta.ClientID{1})
	l.state.Apply(meta.Command{ID: meta.CommandID{Client: meta.ClientID{1}}, Op: meta.OpenSession{}})
	return c, s, l
}

func TestPropose_OnceWhateverIsLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _, l := newFake()
		if _, err := c.propose(t.Context(), 2, createVolume(1), l.propose); err != nil {
			t.Fatal(err)
		}
		l.lose, l.drop = 2, 2
		r, err := c.propose(t.Context(), 2, meta.OpenFence{ID: volumeID(1), Holder: "d"}, l.propose)
		if err != nil || r.Fence != 1 {
			t.Errorf("fence %d, %v: applied more than once, or not", r.Fence, err)
		}
		if len(l.seen) != 6 || l.seen[1] != l.seen[5] || l.seen[0] == l.seen[1] {
			t.Errorf("ids %v", l.seen)
		}
		// What never left is not tried again; what may have is not called refused.
		l.seen, l.drop = nil, 1
		_, err = c.propose(t.Context(), 2, meta.OpenFence{ID: volumeID(1), Holder: "d"}, l.propose)
		if !errors.Is(err, scstore.ErrNoMajority) || len(l.seen) != 1 {
			t.Errorf("dropped: %v after %d tries", err, len(l.seen))
		}
		l.seen, l.lose, l.drop = nil, 1, 1000
		_, err = c.propose(within(t, time.Second), 2, meta.OpenFence{ID: volumeID(1), Holder: "d"}, l.propose)
		if !errors.Is(err, scstore.ErrIndeterminate) || len(l.seen) < 5 {
			t.Errorf("lost: %v after %d tries", err, len(l.seen))
		}
		// A command that may be applied twice is proposed once, without a session.
		l.seen, l.lose, l.drop = nil, 1, 0
		_, err = c.propose(t.Context(), 2, meta.Resize{ID: volumeID(1), SizeBytes: 16 * scstore.BlockSize}, l.propose)
		if !errors.Is(err, scstore.ErrIndeterminate) || len(l.seen) != 1 || !l.seen[0].IsZero() {
			t.Errorf("repeatable: %v, ids %v", err, l.seen)
		}
	})
}

func TestPropose_SessionThatExpired(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, s, l := newFake()
		s.replace(meta.ClientID{1}, meta.ClientID{2}) // one that the state does not know
		if _, err := c.propose(t.Context(), 2, createVolume(1), l.propose); err != nil {
			t.Errorf("its first command: %v", err)
		}
		if len(l.seen) != 3 || l.seen[1].Seq != 0 || l.seen[2].Client != l.seen[1].Client {
			t.Errorf("ids %v", l.seen)
		}
		// A command that may be applied already is not proposed under another id.
		l.seen, l.lose = nil, 1
		evict := func(ctx context.Context, g consensus.GroupID, command meta.Command) (meta.Result, error) {
			r, err := l.propose(ctx, g, command)
			if l.lose == 0 {
				l.state = meta.NewGroup(2)
			}
			return r, err
		}
		_, err := c.propose(t.Context(), 2, createVolume(2), evict)
		if !errors.Is(err, scstore.ErrIndeterminate) || len(l.seen) != 2 {
			t.Errorf("lost, and the session with it: %v, ids %v", err, l.seen)
		}
		if _, err := c.propose(t.Context(), 2, createVolume(3), l.propose); err != nil {
			t.Errorf("the next command: %v", err)
		}
	})
}

func TestSession_KeepsNoMoreInFlightThanIsRemembered(t *testing.T) {
	s := newSession()
	if _, wait, ok := s.take(); ok || wait != nil {
		t.Error("an id without a session")
	}
	s.replace(meta.ClientID{}, meta.ClientID{1})
	first, _, _ := s.take()
	for n := 1; n < meta.MaxSessionResults; n++ {
		id, _, ok := s.take()
		if !ok || id.Seq != uint64(n+1) {
			t.Fatalf("command %d: %v, %v", n, id, ok)
		}
		s.done(id)
	}
	_, wait, ok := s.take()
	if ok {
		t.Fatal("the first result may be forgotten, and a retry applied again")
	}
	s.done(first)
	<-wait
	if _, _, ok := s.take(); !ok {
		t.Error("nothing is in flight, and one must wait")
	}
	s.replace(meta.ClientID{2}, meta.ClientID{}) // another's
	if _, _, ok := s.take(); !ok {
		t.Error("the session is gone")
	}
	s.replace(meta.ClientID{1}, meta.ClientID{})
	s.done(first)
	if _, wait, ok := s.take(); ok || wait != nil {
		t.Error("an id of a session that expired")
	}
}
