//go:build soak

package e2e_test

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"scstore"
	"scstore/e2e"
	"scstore/internal/api"
	"scstore/internal/cluster"
	"scstore/nbd"
)

const (
	// idleVolumes is how many volumes there are, and idleTime how long nothing happens.
	idleVolumes = 1000
	idleTime    = time.Minute
	// atOnce is how many clients make them.
	atOnce = 32
	// placedTime bounds the wait until all of them are at both of their sites.
	placedTime = 20 * time.Minute
	// clockTicks is the unit of processor time in /proc, 100 a second on Linux.
	clockTicks = 100
)

// usage is what the hosts and the network have used so far.
type usage struct {
	at    time.Time
	cpu   map[string]time.Duration // by site
	rss   map[string]int64
	bytes map[[2]string]uint64 // by the two ends of a link
}

// TestSites_IdleWithAThousandVolumes prints what three hosts use while nobody uses them:
// without volumes, then with 1,000 of them, each at two sites.
func TestSites_IdleWithAThousandVolumes(t *testing.T) {
	s := startSites(t, soakRTT, soakRate)
	idle(t, s, "no volumes")
	began := time.Now()
	makeVolumes(t, s)
	t.Logf("%d volumes made, placed and written to in %s", idleVolumes, time.Since(began).Round(time.Second))
	waitPlaced(t, s)
	t.Logf("all of them at two sites after %s", time.Since(began).Round(time.Second))
	idle(t, s, fmt.Sprint(idleVolumes, " volumes"))
}

// volumeSites returns the name of a volume, where it is written, and its other site.
func volumeSites(s *e2e.Sites, i int) (name, site, other string) {
	sites := s.Names()
	return fmt.Sprintf("disk%04d", i), sites[i%len(sites)], sites[(i+1)%len(sites)]
}

// makeVolumes makes the volumes, each with one block, at two sites.
func makeVolumes(t *testing.T, s *e2e.Sites) {
	t.Helper()
	clients := map[string]*api.Client{}
	for _, site := range s.Names() {
		clients[site] = s.Client(site)
		defer clients[site].Close()
	}
	var makers errgroup.Group
	makers.SetLimit(atOnce)
	for i := range idleVolumes {
		makers.Go(func() error {
			name, site, other := volumeSites(s, i)
			if _, err := clients[site].CreateVolume(t.Context(), api.CreateVolume{Name: name, SizeBytes: 4 * mib}); err != nil {
				return err
			}
			if _, err := clients[site].SetPlacement(t.Context(), name, api.Placement{Sites: []string{site, other}}); err != nil {
				return err
			}
			client, err := nbd.Dial(t.Context(), s.Host(site).URL(name), nbd.DialOptions{})
			if err != nil {
				return err
			}
			defer func() { _ = client.Close() }() // what counts was acknowledged
			return client.WriteAt(t.Context(), random(scstore.BlockSize, uint64(i)), 0, 0)
		})
	}
	check(t, makers.Wait())
}

// waitPlaced waits until each volume is complete at both of its sites.
func waitPlaced(t *testing.T, s *e2e.Sites) {
	t.Helper()
	client := s.Client("a")
	defer client.Close()
	eventually(t, placedTime, "all volumes are at two sites", func() bool {
		time.Sleep(time.Second) // the answer is long
		list, err := client.List(t.Context(), api.KindVolume)
		check(t, err)
		current := 0
		for _, v := range list {
			for _, c := range v.Where.Copies {
				if c.Current {
					current++
				}
			}
		}
		return current == 2*idleVolumes
	})
}

// idle prints what is used while nothing happens, after a while in which that comes to be.
func idle(t *testing.T, s *e2e.Sites, what string) {
	t.Helper()
	time.Sleep(idleTime / 4)
	before := used(t, s)
	time.Sleep(idleTime)
	after := used(t, s)
	seconds := after.at.Sub(before.at).Seconds()
	for _, site := range s.Names() {
		cpu := (after.cpu[site] - before.cpu[site]).Seconds() / seconds
		t.Logf("idle, %s: host %s: %.1f %% of a core, %d MiB resident", what, e2e.HostName(site), 100*cpu, after.rss[site]/mib)
		if cpu > 1 {
			t.Errorf("host %s is not idle", e2e.HostName(site))
		}
	}
	groups := 1 + len(cluster.VolumeGroupIDs())
	for link, n := range after.bytes {
		rate := float64(n-before.bytes[link]) / seconds
		t.Logf("idle, %s: from %s to %s: %.0f bytes/s, %.0f for each of %d groups", what, link[0], link[1], rate, rate/float64(groups), groups)
	}
}

// used reads what was used so far.
func used(t *testing.T, s *e2e.Sites) usage {
	t.Helper()
	u := usage{at: time.Now(), cpu: map[string]time.Duration{}, rss: map[string]int64{}, bytes: map[[2]string]uint64{}}
	for _, site := range s.Names() {
		u.cpu[site], u.rss[site] = processUsage(t, s.Host(site).PID())
		for _, other := range s.Names() {
			if other != site {
				u.bytes[[2]string{site, other}] = s.Bytes(site, other)
			}
		}
	}
	return u
}

// processUsage reads the processor time and the resident memory of a process.
func processUsage(t *testing.T, pid int) (cpu time.Duration, rss int64) {
	t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	check(t, err)
	_, rest, _ := bytes.Cut(stat, []byte(") ")) // the name may hold anything
	fields := strings.Fields(string(rest))
	if len(fields) < 22 {
		t.Fatalf("/proc/%d/stat says %q", pid, stat)
	}
	number := func(i int) int64 {
		n, err := strconv.ParseInt(fields[i], 10, 64)
		check(t, err)
		return n
	}
	return time.Duration(number(11)+number(12)) * time.Second / clockTicks, number(21) * int64(os.Getpagesize())
}
