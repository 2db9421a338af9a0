package consensus_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"scstore"
	"scstore/consensus"
	"scstore/consensus/consensustest"
	"scstore/consensus/meta"
)

// openReal opens a cluster of one on a real disk, in real time.
func openReal(t *testing.T, dir string, change func(*consensus.ClusterOptions)) (*consensus.Cluster, error) {
	t.Helper()
	disk := consensus.DiskID{0: 0xd0, 15: 1}
	o := consensus.ClusterOptions{
		Cluster: theCluster, Disk: disk, Transport: consensustest.New(1, 0), BallastBytes: 1 << 20, ReserveBytes: 1 << 20,
		Groups: []consensus.Group{{ID: theGroup, Replica: 1, Alone: true, Members: map[consensus.ReplicaID]consensus.DiskID{1: disk}}},
	}
	if change != nil {
		change(&o)
	}
	return consensus.OpenCluster(t.Context(), dir, o)
}

func TestCluster_RealDiskIsReopenedAndMoved(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "raft")
	for round := range 3 {
		registry := prometheus.NewRegistry()
		c, err := openReal(t, dir, func(o *consensus.ClusterOptions) { o.Registerer = registry })
		if err != nil {
			t.Fatal(err)
		}
		for {
			if l, err := c.Leader(theGroup); err != nil || l.Here {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		if _, err := c.Propose(t.Context(), theGroup, createVolume(round)); err != nil {
			t.Fatal(err)
		}
		found := 0
		if err := c.Read(t.Context(), theGroup, func(s *meta.State) { found = len(s.Records()) }); err != nil {
			t.Fatal(err)
		}
		if found != round+1 {
			t.Errorf("start %d: %d volumes", round, found)
		}
		families, err := registry.Gather()
		if err != nil || len(families) < 6 {
			t.Errorf("%d metrics: %v", len(families), err)
		}
		var text bytes.Buffer
		if consensus.WriteRaftMetrics(&text); !strings.Contains(text.String(), "raft") {
			t.Errorf("the library's metrics: %q", text.String())
		}
		if info, err := os.Stat(filepath.Join(dir, "ballast")); err != nil || info.Size() != 1<<20 {
			t.Errorf("ballast: %v, %v", info, err)
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		if families, err := registry.Gather(); err != nil || len(families) != 0 {
			t.Errorf("metrics after Close: %v, %v", families, err)
		}
		// The folder is moved, and the host gets another name.
		moved := filepath.Join(t.TempDir(), "moved")
		if err := os.Rename(dir, moved); err != nil {
			t.Fatal(err)
		}
		dir = moved
		hostname, err := os.Hostname()
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(dir, hostname), filepath.Join(dir, "former-name")); err != nil {
			t.Fatal(err)
		}
	}
	_, err := openReal(t, dir, func(o *consensus.ClusterOptions) { o.Disk[0]++; o.Groups = nil })
	wantErr(t, "another disk's folder", err, scstore.ErrInvalid)
	_, err = openReal(t, dir, func(o *consensus.ClusterOptions) { o.Cluster[0]++; o.Groups = nil })
	wantErr(t, "another cluster's folder", err, scstore.ErrInvalid)
	if err := os.Remove(filepath.Join(dir, "member")); err != nil {
		t.Fatal(err)
	}
	_, err = openReal(t, dir, nil)
	wantErr(t, "a log without its member file", err, scstore.ErrCorrupt)
}

func TestOpenCluster_RefusesSettingsOfTheLibraryInTheCurrentFolder(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := os.WriteFile("dragonboat-soft-settings.json", []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := openReal(t, t.TempDir(), nil)
	wantErr(t, "open", err, scstore.ErrInvalid)
}

func TestOpenCluster_RefusesOptionsThatCannotWork(t *testing.T) {
	for what, change := range map[string]func(*consensus.ClusterOptions){
		"no cluster":      func(o *consensus.ClusterOptions) { o.Cluster = consensus.ClusterID{} },
		"no disk":         func(o *consensus.ClusterOptions) { o.Disk = consensus.DiskID{} },
		"no transport":    func(o *consensus.ClusterOptions) { o.Transport = nil },
		"half a tick":     func(o *consensus.ClusterOptions) { o.TickInterval = time.Microsecond },
		"hasty elections": func(o *consensus.ClusterOptions) { o.ElectionTicks = 2 },
		"no time":         func(o *consensus.ClusterOptions) { o.Timeout = time.Millisecond },
		"group 0":         func(o *consensus.ClusterOptions) { o.Groups[0].ID = 0 },
		"join and begin":  func(o *consensus.ClusterOptions) { o.Groups[0].Join = true },
		"not a member":    func(o *consensus.ClusterOptions) { o.Groups[0].Replica = 2 },
	} {
		_, err := openReal(t, t.TempDir(), change)
		wantErr(t, what, err, scstore.ErrInvalid)
	}
}
