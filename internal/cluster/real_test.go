package cluster

import (
	"slices"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"scstore"
	"scstore/consensus"
	"scstore/consensus/meta"
)

// TestCluster_RealSocketsAndDisks joins two hosts over loopback, in real time.
func TestCluster_RealSocketsAndDisks(t *testing.T) {
	open := func(n byte, o Options) *Cluster {
		t.Helper()
		o.Dir, o.Disk, o.Listen, o.Registerer = t.TempDir(), scstore.StoreID{n}, "127.0.0.1:0", prometheus.NewRegistry()
		o.tune = func(o *consensus.ClusterOptions) { o.BallastBytes, o.ReserveBytes = 1<<20, 1<<20 }
		c, err := Open(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		})
		if err := c.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		return c
	}
	a := open(1, Options{Site: "a", Host: "first"})
	token, err := a.NewToken(t.Context(), "b", 0)
	if err != nil {
		t.Fatal(err)
	}
	b := open(2, Options{Host: "second", Join: token})
	for !slices.ContainsFunc(a.Status().Hosts, func(h HostStatus) bool {
		return h.Name == "second" && h.State == meta.HostActive && h.Reachable
	}) {
		time.Sleep(20 * time.Millisecond)
	}
	if _, err := b.Propose(t.Context(), 2, createVolume(1)); err != nil {
		t.Fatal(err)
	}
	found := false
	if err := a.Read(t.Context(), 2, func(s *meta.State) { _, found = s.Get(volumeID(1)) }); err != nil || !found {
		t.Errorf("found %v, %v", found, err)
	}
	if b.Site() != "b" || b.Addr().String() == a.Addr().String() {
		t.Errorf("site %s at %s", b.Site(), b.Addr())
	}
}
