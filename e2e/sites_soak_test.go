//go:build soak

package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"scstore"
	"scstore/e2e"
	"scstore/internal/api"
	"scstore/nbd"
)

const (
	// soakMoves and soakPromotes are how often a volume changes its owner.
	soakMoves    = 100
	soakPauses   = 50
	soakPromotes = 50
)

// TestSites_HandOffPauses prints how long writes pause for a client while a volume of
// 512 MiB, 40 MiB of which are not there yet, changes its site: from the last
// acknowledged write at the old owner to the first at the new one.
func TestSites_HandOffPauses(t *testing.T) {
	const rtt, missing = 80 * time.Millisecond, 40 * mib
	s := startSites(t, rtt, 200e6)
	at(t, s, "a", "volume", "create", "disk", "--size", "512M")
	fill := dial(t, s.Host("a").URL("disk"))
	for off := int64(0); off < 512*mib; off += mib {
		check(t, fill.WriteAt(t.Context(), random(mib, uint64(off)), off, 0))
	}
	check(t, fill.Flush(t.Context()))
	check(t, fill.Close())
	c := &chain{blocks: 64}
	owner, other := "a", "b"
	var pauses []time.Duration
	var short int
	for round := range soakPauses {
		waitVolume(t, s, owner, "disk", func(w api.Where) bool { return w.Tether == nil })
		change := dial(t, s.Host(owner).URL("disk"))
		for i := range int64(missing / mib) {
			check(t, change.WriteAt(t.Context(), random(mib, uint64(round)<<32|uint64(i)), 64*mib+(int64(round)*missing+i*mib)%(256*mib), 0))
		}
		check(t, change.Flush(t.Context()))
		check(t, change.Close())
		pause, r := handOffUnderClients(t, s, c, owner, other)
		pauses = append(pauses, pause)
		if r.MissingBytes < missing*9/10 {
			short++
		}
		t.Logf("%2d: %s to %s: %s for the client, %.0f ms at the source, %d MiB missing", round, owner, other, pause.Round(time.Millisecond), r.PauseMs, r.MissingBytes/mib)
		owner, other = other, owner
	}
	slices.Sort(pauses)
	t.Logf("RTT %s, %d hand-offs of 512 MiB: pause p50 %s, p99 %s, worst %s", rtt, len(pauses),
		pauses[len(pauses)/2].Round(time.Millisecond), pauses[len(pauses)*99/100].Round(time.Millisecond), pauses[len(pauses)-1].Round(time.Millisecond))
	if short > len(pauses)/10 {
		t.Errorf("in %d of %d hand-offs less than %d MiB was missing: this measures something else", short, len(pauses), missing/mib)
	}
	c.expect(t, s.Host(owner).URL("disk"), c.acked, c.acked)
}

// handOffUnderClients moves the volume while one client writes at the old owner and
// one tries to at the new one.
func handOffUnderClients(t *testing.T, s *e2e.Sites, c *chain, from, to string) (time.Duration, api.MoveReport) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), sitesPatience)
	defer cancel()
	old := dial(t, s.Host(from).URL("disk"))
	before := c.acked
	var clients sync.WaitGroup
	var firstAt time.Time
	var firstErr error
	clients.Go(func() { _ = c.writeUntilEnd(ctx, old) }) // it ends with the connection
	clients.Go(func() { firstAt, firstErr = firstWrite(ctx, s.Host(to).URL("disk")) })
	time.Sleep(300 * time.Millisecond) // of writing
	r := move(t, s, from, "disk", to)
	clients.Wait()
	check(t, firstErr)
	if c.acked == before {
		t.Fatal("the client at the old owner wrote nothing")
	}
	c.acked = c.expect(t, s.Host(to).URL("disk"), c.acked, c.acked+1)
	return firstAt.Sub(c.ackAt), r
}

// firstWrite writes a block behind the chain as soon as an export takes it.
func firstWrite(ctx context.Context, url string) (time.Time, error) {
	for {
		if at, ok := tryWrite(ctx, url); ok {
			return at, nil
		}
		select {
		case <-ctx.Done():
			return time.Time{}, context.Cause(ctx)
		case <-time.After(2 * time.Millisecond):
		}
	}
}

func tryWrite(ctx context.Context, url string) (time.Time, bool) {
	client, err := nbd.Dial(ctx, url, nbd.DialOptions{})
	if err != nil {
		return time.Time{}, false
	}
	defer func() { _ = client.Close() }() // what counts was acknowledged
	if client.ReadOnly() {
		return time.Time{}, false
	}
	err = client.WriteAt(ctx, random(scstore.BlockSize, 1), 32*mib, 0)
	return time.Now(), err == nil
}

// TestSites_ManyMovesEndEqual moves a volume round and round under writes.
func TestSites_ManyMovesEndEqual(t *testing.T) {
	s := startSites(t, 20*time.Millisecond, 0)
	at(t, s, "a", "volume", "create", "disk", "--size", "64M")
	at(t, s, "a", "placement", "set", "disk", "--replicas", "a,b,c")
	c := &chain{blocks: 1024}
	sites := s.Names()
	for i := range soakMoves {
		owner, to := sites[i%len(sites)], sites[(i+1)%len(sites)]
		ctx, cancel := context.WithCancel(t.Context())
		client := dial(t, s.Host(owner).URL("disk"))
		before, ended := c.acked, make(chan error, 1)
		go func() { ended <- c.writeUntilEnd(ctx, client) }()
		time.Sleep(100 * time.Millisecond) // of writing
		move(t, s, owner, "disk", to)
		if err := <-ended; errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		cancel()
		check(t, client.Close())
		if c.acked == before {
			t.Fatalf("move %d: nothing was written before it", i)
		}
		c.acked = c.expect(t, s.Host(to).URL("disk"), c.acked, c.acked+1)
	}
	owner := sites[soakMoves%len(sites)]
	waitCurrent(t, s, owner, "disk", sites...)
	for _, site := range sites {
		tool(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", s.Host(owner).URL("disk"), s.Host(site).URL("disk"))
	}
	t.Logf("%d moves, %d writes, no one lost", soakMoves, c.acked)
}

// TestSites_PromotesAtRandomMoments cuts or kills the owner again and again.
func TestSites_PromotesAtRandomMoments(t *testing.T) {
	const seed = 31
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	s := startSites(t, 20*time.Millisecond, 0)
	at(t, s, "a", "volume", "create", "disk", "--size", "4M")
	at(t, s, "a", "placement", "set", "disk", "--replicas", "a,b,c")
	sites, owner := s.Names(), 0
	c := &chain{blocks: 512}
	branches := 0
	for round := range soakPromotes {
		waitCurrent(t, s, sites[owner], "disk", sites...)
		fence := waitVolume(t, s, sites[owner], "disk", func(api.Where) bool { return true }).Fence
		client := dial(t, s.Host(sites[owner]).URL("disk"))
		ctx, cancel := context.WithCancel(t.Context())
		old, ended := *c, make(chan error, 1)
		go func() { ended <- old.writeUntilEnd(ctx, client) }()
		time.Sleep(time.Duration(rng.Int64N(int64(3 * time.Second))))
		kill := rng.IntN(2) == 0
		if kill {
			check(t, s.Kill(sites[owner]))
		} else {
			check(t, s.Cut(sites[owner]))
		}
		next := (owner + 1 + rng.IntN(2)) % len(sites)
		r := promote(t, s, "disk", sites[next])
		c.acked = c.expect(t, s.Host(sites[next]).URL("disk"), c.acked, ^uint64(0)>>1)
		if kill {
			check(t, s.Start(t.Context(), sites[owner]))
		} else {
			check(t, s.Heal(sites[owner]))
		}
		if err := <-ended; err == nil {
			t.Fatal("the old owner's client ended by itself")
		}
		cancel()
		if c.acked > old.acked+1 {
			t.Fatalf("round %d: the new owner has write %d, the old one acknowledged %d", round, c.acked, old.acked)
		}
		t.Logf("%2d: %s lost the volume to %s at write %d of %d: %d epochs, kill %v", round, sites[owner], sites[next], c.acked, old.acked, r.Epochs, kill)
		if old.acked > c.acked {
			branches++
			branch := fmt.Sprintf("disk@diverged-%d", fence)
			waitVolume(t, s, sites[next], "disk", func(w api.Where) bool { return slices.Contains(w.Branches, branch) })
			old.expect(t, s.Host(sites[owner]).URL(branch), old.acked, old.acked+1)
		}
		c.writeAll(t, s.Host(sites[next]).URL("disk"), 50)
		owner = next
	}
	waitCurrent(t, s, sites[owner], "disk", sites...)
	for _, site := range sites {
		c.expect(t, s.Host(site).URL("disk"), c.acked, c.acked)
	}
	t.Logf("%d promotes, %d branches", soakPromotes, branches)
}
