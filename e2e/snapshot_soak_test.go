//go:build soak

package e2e_test

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"scstore/e2e"
	"scstore/internal/api"
	"scstore/nbd"
)

const (
	// soakSnapshots is how many are made under each load, one after the other.
	soakSnapshots = 20
	snapshotEvery = 500 * time.Millisecond

	snappedBytes = 4 << 30
	// chainBytes is where the chain is; the load writes behind it.
	chainBytes = mib
	// afterSnapshot is how long after one a slow request may still be its doing.
	afterSnapshot = 200 * time.Millisecond
	// caughtUpTime bounds the wait until the other site has all of it.
	caughtUpTime = 10 * time.Minute
	// mostPause is how long a snapshot may keep a request waiting.
	mostPause = 50 * time.Millisecond
)

// snapshots makes snapshots of one volume under load.
type snapshots struct {
	s     *e2e.Sites
	c     *chain
	acked atomic.Uint64 // of the chain
	list  []snapshot
}

// snapshot is one of them.
type snapshot struct {
	name        string
	least, most uint64 // what the chain may be at there
	began, end  time.Time
	command     bool // made by the command line; else by a client that is connected
}

// TestSites_SnapshotUnderLoad prints how long snapshots of a volume of 4 GiB take while
// it is written to, and how long requests take meanwhile. Then each snapshot is read at
// both sites, and one is cloned and written to at the site that did not make it.
func TestSites_SnapshotUnderLoad(t *testing.T) {
	n := &snapshots{s: startSites(t, soakRTT, 0), c: &chain{blocks: chainBytes / (4 * kib)}}
	at(t, n.s, "a", "volume", "create", "disk", "--size", fmt.Sprint(snappedBytes))
	at(t, n.s, "a", "placement", "set", "disk", "--replicas", "a,b")
	n.fill(t)
	n.caughtUp(t)
	for _, l := range []load{{name: "1,000 writes a second", depth: 8, perSecond: 1000}, {name: "full speed, QD 8", depth: 8}} {
		check(t, n.s.SetLinks(soakRTT, soakRate))
		time.Sleep(settleTime)
		began := len(n.list)
		requests := n.under(t, l)
		n.report(t, l, n.list[began:], requests)
		n.caughtUp(t)
	}
	for i, p := range n.list {
		n.compare(t, p, i%(soakSnapshots/2) == 0)
	}
	n.clone(t, n.list[len(n.list)-1])
	n.c.expect(t, n.s.Host("a").URL("disk"), n.c.acked, n.c.acked)
}

// fill writes all of the volume but the chain.
func (n *snapshots) fill(t *testing.T) {
	t.Helper()
	client := dial(t, n.s.Host("a").URL("disk"))
	for off := int64(chainBytes); off < snappedBytes; off += mib {
		check(t, client.WriteAt(t.Context(), random(mib, uint64(off)), off, 0))
	}
	check(t, client.Flush(t.Context()))
	check(t, client.Close())
}

// caughtUp waits until b has all that a has. The network is fast meanwhile.
func (n *snapshots) caughtUp(t *testing.T) {
	t.Helper()
	check(t, n.s.SetLinks(fastRTT, 0))
	client := n.s.Client("a")
	defer client.Close()
	eventually(t, caughtUpTime, "b has all that a has", func() bool {
		time.Sleep(200 * time.Millisecond) // the answer costs a walk through the map
		v, err := client.Get(t.Context(), api.KindVolume, "disk")
		check(t, err)
		current := slices.ContainsFunc(v.Where.Copies, func(c api.CopyInfo) bool { return c.Site == "b" && c.Current })
		return current && v.Where.OnlyBytes == 0
	})
}

// under makes snapshots under a load, every second one by the command line.
func (n *snapshots) under(t *testing.T, l load) []request {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var writers errgroup.Group
	var requests []request
	writers.Go(func() (err error) {
		requests, err = l.run(ctx, n.s.Host("a").URL("disk"))
		return err
	})
	writers.Go(func() error { return n.writeChain(ctx) })
	client := n.s.Client("a")
	defer client.Close()
	for i := range soakSnapshots {
		time.Sleep(snapshotEvery)
		p := snapshot{name: fmt.Sprint("disk@", len(n.list)), command: i%2 == 1, least: n.acked.Load(), began: time.Now()}
		if p.command {
			at(t, n.s, "a", "volume", "snapshot", p.name)
		} else {
			_, err := client.CreateSnapshot(t.Context(), p.name, nil)
			check(t, err)
		}
		p.end, p.most = time.Now(), n.acked.Load()+1 // one more was on its way
		n.list = append(n.list, p)
	}
	time.Sleep(snapshotEvery)
	stop()
	check(t, writers.Wait())
	return requests
}

// writeChain writes the chain on until ctx ends, a few hundred blocks a second.
func (n *snapshots) writeChain(ctx context.Context) error {
	client, err := nbd.Dial(ctx, n.s.Host("a").URL("disk"), nbd.DialOptions{})
	if err != nil {
		return err
	}
	defer func() { _ = client.Close() }() // what counts was acknowledged
	for ctx.Err() == nil {
		if err := n.c.write(context.WithoutCancel(ctx), client); err != nil {
			return err
		}
		n.acked.Store(n.c.acked)
		time.Sleep(2 * time.Millisecond)
	}
	return nil
}

// report prints how long the snapshots took, and the requests beside them and else.
func (n *snapshots) report(t *testing.T, l load, list []snapshot, requests []request) {
	t.Helper()
	var commands, calls []snapshot
	for _, p := range list {
		if p.command {
			commands = append(commands, p)
		} else {
			calls = append(calls, p)
		}
	}
	took := func(p snapshot) time.Duration { return p.end.Sub(p.began) }
	t.Logf("%s: RTT %s, 4 GiB: a snapshot by a connected client %s; by the command line %s", l.name, soakRTT, quantiles(calls, took), quantiles(commands, took))
	var beside, others []request
	longest := make([]request, len(list))
	for _, r := range requests {
		i := during(list, r)
		if i < 0 {
			others = append(others, r)
			continue
		}
		beside = append(beside, r)
		if r.took() > longest[i].took() {
			longest[i] = r
		}
	}
	pauses := quantiles(longest, request.took)
	t.Logf("%s: requests beside a snapshot %s; all others %s; the longest of each snapshot %s",
		l.name, quantiles(beside, request.took), quantiles(others, request.took), pauses)
	if pauses.p50 > mostPause {
		t.Errorf("%s: half of the snapshots keep a request waiting for %s, want at most %s", l.name, pauses.p50, mostPause)
	}
}

// during returns the snapshot beside which a request was, or -1.
func during(list []snapshot, r request) int {
	for i, p := range list {
		if r.end.After(p.began) && r.due.Before(p.end.Add(afterSnapshot)) {
			return i
		}
	}
	return -1
}

// compare expects a snapshot to be one moment of the time in which it was made, and the
// same one at both sites; with whole all of it is compared.
func (n *snapshots) compare(t *testing.T, p snapshot, whole bool) {
	t.Helper()
	here, there := n.s.Host("a").URL(p.name), n.s.Host("b").URL(p.name)
	at := n.c.expect(t, here, p.least, p.most)
	n.c.expect(t, there, at, at)
	if whole {
		tool(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", here, there)
	}
}

// clone makes a volume of a snapshot at the site that has a copy, and writes to it there.
func (n *snapshots) clone(t *testing.T, p snapshot) {
	t.Helper()
	at(t, n.s, "b", "volume", "clone", p.name, "copy")
	copied, original := n.s.Host("b").URL("copy"), n.s.Host("b").URL(p.name)
	tool(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", copied, original)
	before := n.c.expect(t, original, p.least, p.most)
	c := &chain{blocks: n.c.blocks, acked: before}
	c.writeAll(t, copied, 100)
	c.expect(t, copied, before+100, before+100)
	n.compare(t, p, false)
	tool(t, "qemu-io", "-f", "raw", "-c", "write -P 7 1G 1M", "-c", "flush", "-c", "read -P 7 1G 1M", copied)
	if _, err := toolError(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", copied, original); exitCode(err) != 1 {
		t.Errorf("the clone that was written to and its snapshot: %v, want that they differ", err)
	}
}
