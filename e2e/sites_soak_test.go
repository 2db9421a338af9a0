//go:build soak

package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"scstore/internal/api"
)

const (
	// soakMoves and soakPromotes are how often a volume changes its owner.
	soakMoves    = 100
	soakPromotes = 50
)

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
	c.writeAll(t, s.Host("a").URL("disk"), 50)
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
			for _, site := range []string{sites[next], sites[owner]} {
				waitVolume(t, s, site, "disk", func(w api.Where) bool { return slices.Contains(w.Branches, branch) })
			}
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
