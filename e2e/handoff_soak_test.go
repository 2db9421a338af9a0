//go:build soak

package e2e_test

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"scstore"
	"scstore/consensus/meta"
	"scstore/e2e"
	"scstore/internal/api"
	"scstore/nbd"
)

const (
	// soakPauses is how often a volume is handed over in each direction.
	soakPauses = 25

	// What is measured over: the round trip and the rate between any two sites.
	soakRTT  = 80 * time.Millisecond
	soakRate = 200e6

	// The parts of the volume: the chain is at its beginning, then comes where the new
	// owner writes first, what is changed before each hand-off, and what never is.
	handedBytes = 4 << 30
	firstAt     = 32 * mib
	changedAt   = 64 * mib
	constantAt  = 3 << 30

	// While nothing is measured the network is fast. Then the hosts get a while in which
	// they learn how slow it is.
	fastRTT    = 4 * time.Millisecond
	settleTime = 4 * time.Second
	// wholeTime bounds the wait until all of the volume is at its owner.
	wholeTime = 10 * time.Minute
)

// handOffs hands a volume of three sites to and fro between a and b.
type handOffs struct {
	s             *e2e.Sites
	c             *chain
	owner, other  string
	seed, changed uint64 // of the last MiB that was written, and where that is
}

// handOff is what the clients saw of one.
type handOff struct {
	pause time.Duration // from the last acknowledged write at the old owner to the first at the new one
	arrival
	report api.MoveReport
}

// arrival is what a client does at the new owner.
type arrival struct {
	at               time.Time     // of its first write's acknowledgement
	missing, present time.Duration // how long it then reads a block that is not there yet, and one that is
}

// TestSites_HandOffPauses prints how long writes pause for a client while a volume of
// 4 GiB changes its site and a part of it is not there yet, and how long the first read of
// a block takes that is not. The leader of the volume's group stays at b, so it is at the
// old owner's end in one direction and at the new one's in the other.
func TestSites_HandOffPauses(t *testing.T) {
	h := &handOffs{s: startSites(t, soakRTT, soakRate), c: &chain{blocks: 64}, owner: "a", other: "b"}
	at(t, h.s, "a", "volume", "create", "disk", "--size", fmt.Sprint(handedBytes))
	began := time.Now()
	h.write(t, changedAt, handedBytes-changedAt)
	t.Logf("%d MiB written in %s", (handedBytes-changedAt)/mib, time.Since(began).Round(time.Second))
	h.leadAt(t, "b")
	o := h.once(t)
	t.Logf("all of it missing, once: %s, %d MiB missing", o, o.report.MissingBytes/mib)
	for _, missing := range []int64{40 * mib, 512 * mib} {
		t.Run(fmt.Sprintf("%dMiB", missing/mib), func(t *testing.T) { h.measure(t, missing) })
	}
	h.c.expect(t, h.s.Host(h.owner).URL("disk"), h.c.acked, h.c.acked)
}

// leadAt has the group of the volume led at one site, whoever writes it: that of the other
// volumes there that are in the group.
func (h *handOffs) leadAt(t *testing.T, site string) {
	t.Helper()
	for i := range 2 {
		name := fmt.Sprint("other", i)
		at(t, h.s, h.owner, "volume", "create", name, "--size", "4M")
		move(t, h.s, h.owner, name, site)
	}
	h.waitLed(t, site)
}

// waitLed waits until one group of volumes is led at a site, the one whose volumes are
// written there: others are where there is nothing to write.
func (h *handOffs) waitLed(t *testing.T, site string) {
	t.Helper()
	client := h.s.Client("c")
	defer client.Close()
	eventually(t, sitesPatience, "one group is led at "+site, func() bool {
		c, err := client.Cluster(t.Context())
		check(t, err)
		led := 0
		for _, g := range c.Groups {
			if g.Number != uint64(meta.GroupNamespace) && g.Preferred == e2e.HostName(site) && g.Leader == e2e.HostName(site) {
				led++
			}
		}
		return led == 1
	})
}

// measure hands the volume over, each time with so much of it missing.
func (h *handOffs) measure(t *testing.T, missing int64) {
	ends := map[string][]handOff{}
	short := 0
	for round := range 2 * soakPauses {
		end := "the new owner's"
		if h.owner == "b" {
			end = "the old owner's"
		}
		h.whole(t)
		h.write(t, changedAt, missing)
		o := h.once(t)
		ends[end] = append(ends[end], o)
		if o.report.MissingBytes < missing*9/10 || o.missing < soakRTT {
			short++
		}
		t.Logf("%2d: %s to %s, the leader at %s end: %s, %d MiB missing", round, o.report.From, o.report.To, end, o, o.report.MissingBytes/mib)
	}
	for _, end := range []string{"the old owner's", "the new owner's"} {
		list := ends[end]
		pause := quantiles(list, func(o handOff) time.Duration { return o.pause })
		lacking := quantiles(list, func(o handOff) time.Duration { return o.missing })
		here := quantiles(list, func(o handOff) time.Duration { return o.present })
		t.Logf("RTT %s, 4 GiB, %d MiB missing, leader at %s end: pause %s; read of a missing block %s, of another one %s", soakRTT, missing/mib, end, pause, lacking, here)
		if most := soakRTT*3/2 + 100*time.Millisecond; pause.p50 > most {
			t.Errorf("leader at %s end: writes pause %s at p50, want at most %s", end, pause.p50, most)
		}
		if more, most := lacking.p50-here.p50, soakRTT*3/2; more > most {
			t.Errorf("leader at %s end: a missing block takes %s more at p50, want a round trip, at most %s", end, more, most)
		}
	}
	if short > soakPauses/5 {
		t.Errorf("in %d of %d hand-offs less than %d MiB was missing, or the block that is read: this measures something else", short, 2*soakPauses, missing/mib)
	}
}

// String says it in short.
func (o handOff) String() string {
	return fmt.Sprintf("%s for the client, %.0f ms at the source; a missing block %s, another one %s",
		rounded(o.pause), o.report.PauseMs, rounded(o.missing), rounded(o.present))
}

// whole waits until all of the volume is at its owner. The network is fast meanwhile.
func (h *handOffs) whole(t *testing.T) {
	t.Helper()
	check(t, h.s.SetLinks(fastRTT, 0))
	client := h.s.Client(h.owner)
	defer client.Close()
	eventually(t, wholeTime, "all of the volume is at "+h.owner, func() bool {
		time.Sleep(100 * time.Millisecond) // the answer costs a walk through the map
		v, err := client.Get(t.Context(), api.KindVolume, "disk")
		check(t, err)
		return v.Where.Tether == nil
	})
	check(t, h.s.SetLinks(soakRTT, soakRate))
}

// write writes a part of the volume anew at its owner.
func (h *handOffs) write(t *testing.T, from, count int64) {
	t.Helper()
	client := dial(t, h.s.Host(h.owner).URL("disk"))
	for off := from; off < from+count; off += mib {
		h.seed++
		check(t, client.WriteAt(t.Context(), random(mib, h.seed), off, 0))
	}
	h.changed = uint64(from + count - mib)
	check(t, client.Flush(t.Context()))
	check(t, client.Close())
}

// once hands the volume over while one client writes at the old owner and one tries to at
// the new one.
func (h *handOffs) once(t *testing.T) (o handOff) {
	t.Helper()
	h.waitLed(t, "b")
	time.Sleep(settleTime)
	ctx, cancel := context.WithTimeout(t.Context(), sitesPatience)
	defer cancel()
	old := dial(t, h.s.Host(h.owner).URL("disk"))
	before := h.c.acked
	var clients sync.WaitGroup
	var failed error
	clients.Go(func() { _ = h.c.writeUntilEnd(ctx, old) }) // it ends with the connection
	clients.Go(func() { o.arrival, failed = h.arrive(ctx) })
	time.Sleep(300 * time.Millisecond) // of writing
	o.report = move(t, h.s, h.owner, "disk", h.other)
	clients.Wait()
	check(t, failed)
	if h.c.acked == before {
		t.Fatal("the client at the old owner wrote nothing")
	}
	o.pause = o.at.Sub(h.c.ackAt)
	h.owner, h.other = h.other, h.owner
	h.c.acked = h.c.expect(t, h.s.Host(h.owner).URL("disk"), h.c.acked, h.c.acked+1)
	return o
}

// arrive writes a block behind the chain as soon as the new owner takes it, and then
// reads.
func (h *handOffs) arrive(ctx context.Context) (arrival, error) {
	url := h.s.Host(h.other).URL("disk")
	for {
		client, at := firstWrite(ctx, url, firstAt)
		if client != nil {
			a, err := h.read(ctx, client)
			a.at = at
			return a, err
		}
		select {
		case <-ctx.Done():
			return arrival{}, context.Cause(ctx)
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// firstWrite tries to write, and returns the client that did and when that was
// acknowledged.
func firstWrite(ctx context.Context, url string, off int64) (*nbd.Client, time.Time) {
	client, err := nbd.Dial(ctx, url, nbd.DialOptions{})
	if err != nil {
		return nil, time.Time{}
	}
	if !client.ReadOnly() {
		if err := client.WriteAt(ctx, random(scstore.BlockSize, 1), off, 0); err == nil {
			return client, time.Now()
		}
	}
	_ = client.Close() // nothing of it was acknowledged
	return nil, time.Time{}
}

// read reads the last block that was written before the hand-off, which comes last of
// all, and one that was there before.
func (h *handOffs) read(ctx context.Context, client *nbd.Client) (a arrival, err error) {
	defer func() { _ = client.Close() }() // what was written is acknowledged
	p := make([]byte, scstore.BlockSize)
	last := random(mib, h.seed)[mib-scstore.BlockSize:]
	began := time.Now()
	if err := client.ReadAt(ctx, p, int64(h.changed)+mib-scstore.BlockSize); err != nil {
		return a, err
	}
	a.missing = time.Since(began)
	if !bytes.Equal(p, last) {
		return a, fmt.Errorf("the last block that was written at the old owner differs at the new one: %w", scstore.ErrCorrupt)
	}
	began = time.Now()
	err = client.ReadAt(ctx, p, constantAt)
	a.present = time.Since(began)
	return a, err
}
