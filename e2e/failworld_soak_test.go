//go:build soak

package e2e_test

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"scstore"
	"scstore/e2e"
	"scstore/internal/api"
	"scstore/nbd"
)

const (
	// fillBytes are written before each move, so that the target lacks something.
	fillBytes = 4 * mib
	// writePause is between two writes of a client, claimPause between two attempts to
	// write at the target.
	writePause = time.Millisecond
	claimPause = 10 * time.Millisecond
	// claimAt is where a client writes at the target: behind the chain and the filling.
	claimAt = 32 * mib
)

// forced is the program with fail points, built once.
var forced = sync.OnceValues(func() (string, error) {
	path := program + "-failpoints"
	return path, build(path, "-tags=failpoints")
})

// failures is one cluster on which a row of the table of failures is forced, again and
// again: the volume "disk" moves between a and b, and c is the third of the majority.
type failures struct {
	t      *testing.T
	s      *e2e.Sites
	points string            // the fail points' folders, by site
	url    map[string]string // of the volume, by site
	c      *chain
	group  uint64 // that the volume's record is in
	owner  string // the site that writes

	weights []string // volumes at a, see weigh

	outcomes map[string]int
	worst    time.Duration // that no write was acknowledged after a failure
}

// startFailures starts the cluster, with a volume at a.
func startFailures(t *testing.T) *failures {
	t.Helper()
	binary, err := forced()
	check(t, err)
	f := &failures{t: t, points: t.TempDir(), url: map[string]string{}, c: &chain{blocks: 64}, owner: "a", outcomes: map[string]int{}}
	f.s = openSites(t, e2e.SitesOptions{
		Binary: binary, RTT: 80 * time.Millisecond, BitsPerSecond: 200e6,
		Env: func(site string) []string {
			check(t, os.MkdirAll(filepath.Join(f.points, site), 0o700))
			return []string{"SCSTORE_FAILPOINTS=" + filepath.Join(f.points, site)}
		},
	})
	for _, site := range f.s.Names() {
		f.url[site] = f.s.Host(site).URL("disk")
	}
	at(t, f.s, "a", "volume", "create", "disk", "--size", "64M")
	f.group = f.groupOf("disk")
	f.c.writeAll(t, f.url["a"], 1)
	return f
}

// groupOf returns the group that the record of a volume made at a is in: no command
// says so, but the file of what a must not forget of the volume does.
func (f *failures) groupOf(name string) uint64 {
	f.t.Helper()
	v, err := f.s.Volume(f.t.Context(), "a", name)
	check(f.t, err)
	b, err := os.ReadFile(filepath.Join(f.s.Folder("a"), "replicas", v.ID.String()+".json"))
	check(f.t, err)
	var facts struct {
		Group uint64 `json:"group"`
	}
	check(f.t, json.Unmarshal(b, &facts))
	return facts.Group
}

// leader returns the site whose host leads the volume's group, as a site sees it; empty
// for none.
func (f *failures) leader(asked string) string {
	f.t.Helper()
	c, err := f.s.Cluster(f.t.Context(), asked)
	check(f.t, err)
	for _, g := range c.Groups {
		if g.Number == f.group {
			return strings.TrimSuffix(g.Leader, "1") // see e2e.HostName
		}
	}
	f.t.Fatalf("site %s knows no group %d", asked, f.group)
	return ""
}

// weigh makes two more volumes of the volume's group that are written at a: so the
// group is best led from there, wherever the volume is. It returns their names.
func (f *failures) weigh() (names []string) {
	f.t.Helper()
	for i := 0; len(names) < 2; i++ {
		name := fmt.Sprintf("weight%d", i)
		at(f.t, f.s, "a", "volume", "create", name, "--size", "4M")
		if f.groupOf(name) == f.group {
			names = append(names, name)
		}
		if i > 8 {
			f.t.Fatalf("of %d volumes %d are in group %d", i+1, len(names), f.group)
		}
	}
	return names
}

// awaitLeader waits until the site leads the volume's group.
func (f *failures) awaitLeader(site string) {
	f.t.Helper()
	eventually(f.t, sitesPatience, "site "+site+" does not lead", func() bool { return f.leader(f.owner) == site })
}

// put asks for something at a fail point of a site's host.
func (f *failures) put(site, point, what string) {
	f.t.Helper()
	file := filepath.Join(f.points, site, point)
	check(f.t, os.WriteFile(file+".new", []byte(what), 0o600))
	check(f.t, os.Rename(file+".new", file))
}

// met waits until a fail point was met.
func (f *failures) met(site, point string) {
	f.t.Helper()
	eventually(f.t, sitesPatience, "the host of site "+site+" does not come to "+point, func() bool {
		_, err := os.Stat(filepath.Join(f.points, site, point+".hit"))
		return err == nil
	})
}

// letGo lets go on who is held at a fail point.
func (f *failures) letGo(site, point string) {
	f.t.Helper()
	check(f.t, os.Remove(filepath.Join(f.points, site, point+".hit")))
}

// killed waits until a site's host was killed at a fail point.
func (f *failures) killed(site, point string) {
	f.t.Helper()
	f.met(site, point)
	<-f.s.Host(site).Exited()
	if code := f.s.Host(site).ExitCode(); code != -1 {
		f.t.Fatalf("the host of site %s ended with code %d, want a signal", site, code)
	}
	check(f.t, f.s.Kill(site)) // so that it can be started again
	f.letGo(site, point)
}

// restart starts a host that was killed.
func (f *failures) restart(site string) {
	f.t.Helper()
	check(f.t, f.s.Start(f.t.Context(), site))
}

// other returns the site that the volume can be moved to.
func (f *failures) other() string {
	if f.owner == "a" {
		return "b"
	}
	return "a"
}

// turn moves the volume without a failure.
func (f *failures) turn() {
	f.t.Helper()
	f.whole()
	move(f.t, f.s, f.owner, "disk", f.other())
	f.owner = f.other()
	f.c.expect(f.t, f.url[f.owner], f.c.acked, f.c.acked)
}

// whole waits until the owner has all of the volume, and returns its fence.
func (f *failures) whole() scstore.Fence {
	f.t.Helper()
	return waitVolume(f.t, f.s, f.owner, "disk", func(w api.Where) bool {
		return w.Tether == nil && w.Phase == "normal" && w.Site == f.owner
	}).Fence
}

// attempt is a move that is to fail, with a client that writes at the source and one that
// tries to at the target.
type attempt struct {
	from, to string
	fence    scstore.Fence // before
	client   *writer
	claim    *claimer
	began    time.Time
	failed   time.Time  // when the failure was in place, and nobody was held any more
	moved    chan error // what the command said
	died     bool       // the source's host was killed
}

// begin begins one.
func (f *failures) begin() *attempt {
	f.t.Helper()
	a := &attempt{from: f.owner, to: f.other(), moved: make(chan error, 1)}
	a.fence = f.whole()
	f.fill()
	a.client, a.claim = f.write(a.from), f.claim(a.to)
	time.Sleep(200 * time.Millisecond) // of writing
	a.began = time.Now()
	go func() {
		_, err := f.s.Move(f.t.Context(), a.from, "disk", a.to)
		a.moved <- err
	}()
	return a
}

// fill changes what the target of the next move may have.
func (f *failures) fill() {
	f.t.Helper()
	to := dial(f.t, f.url[f.owner])
	for off := int64(0); off < fillBytes; off += mib {
		check(f.t, to.WriteAt(f.t.Context(), random(mib, f.c.acked<<8|uint64(off/mib)), 8*mib+off, 0))
	}
	check(f.t, to.Flush(f.t.Context()))
	check(f.t, to.Close())
}

// decided waits until sites say who writes after a move, and that it is one and the same,
// under the next fence: that of one decision.
func (f *failures) decided(a *attempt, sites ...string) (owner string) {
	f.t.Helper()
	for _, site := range sites {
		w := waitVolume(f.t, f.s, site, "disk", func(w api.Where) bool {
			return w.Fence > a.fence && (w.Phase == "normal" || w.Phase == "tethered")
		})
		if w.Fence != a.fence+1 || owner != "" && w.Site != owner {
			f.t.Fatalf("a move under fence %d: site %s says that site %q writes under fence %d, another one said %q", a.fence, site, w.Site, w.Fence, owner)
		}
		owner = w.Site
	}
	return owner
}

// expectOwner is decided with the owner that the table states.
func (f *failures) expectOwner(a *attempt, want string, sites ...string) {
	f.t.Helper()
	if got := f.decided(a, sites...); got != want {
		f.t.Fatalf("site %s writes after the move from %s to %s, want %s", got, a.from, a.to, want)
	}
}

// finish checks what is promised however a move ended: all hosts run and are connected.
func (f *failures) finish(a *attempt, outcome string) {
	f.t.Helper()
	winner := f.decided(a, f.s.Names()...)
	said := <-a.moved
	if said == nil && winner != a.to {
		f.t.Fatalf("the move says that it is done, and site %s writes", winner)
	}
	pause := f.endClients(a, winner)
	f.owner = winner
	f.c.acked = f.c.expect(f.t, f.url[winner], f.c.acked, f.c.acked+1)
	f.refused(winner)
	f.c.writeAll(f.t, f.url[winner], 20)
	f.record(fmt.Sprintf("%s: %s", outcome, map[bool]string{true: "handed off", false: "cancelled"}[winner == a.to]), pause)
}

// endClients ends the clients of a move: that of the loser acknowledged nothing beside the
// winner's. It returns how long no write was acknowledged since the failure.
func (f *failures) endClients(a *attempt, winner string) time.Duration {
	f.t.Helper()
	switch {
	case winner == a.to:
		at := a.claim.await(f.t)
		if err := a.client.await(f.t); err == nil || at.Before(f.c.ackAt) {
			f.t.Fatalf("the old owner acknowledged a write at %s, the new one at %s; its client ended with %v", f.c.ackAt, at, err)
		}
		return a.pause(f.c.ackAt, at)
	case a.died:
		a.claim.none(f.t)
		if err := a.client.await(f.t); err == nil {
			f.t.Fatal("the client of a host that was killed did not notice")
		}
		return a.pause(f.c.ackAt, f.claim(winner).await(f.t))
	}
	a.claim.none(f.t)
	a.client.goesOn(f.t)
	if err := a.client.end(f.t); err != nil {
		f.t.Fatalf("the client of the owner that kept the volume ended: %v", err)
	}
	return a.pause(a.client.gap[0], a.client.gap[1])
}

// pause returns the part of a time that is after the failure.
func (a *attempt) pause(from, to time.Time) time.Duration {
	if from.Before(a.failed) {
		from = a.failed
	}
	return to.Sub(from)
}

// refused expects every site but one to refuse writes.
func (f *failures) refused(winner string) {
	f.t.Helper()
	for _, site := range f.s.Names() {
		ctx, cancel := context.WithTimeout(f.t.Context(), sitesPatience)
		client, _ := firstWrite(ctx, f.url[site], claimAt)
		if client != nil {
			check(f.t, client.Close())
		}
		if client != nil && site != winner {
			f.t.Errorf("site %s takes writes, and so does site %s", site, winner)
		}
		cancel()
	}
}

// record counts an outcome.
func (f *failures) record(outcome string, pause time.Duration) {
	f.t.Helper()
	f.outcomes[outcome]++
	f.worst = max(f.worst, pause)
	f.t.Logf("%s, no write for %s after the failure", outcome, pause.Round(time.Millisecond))
}

// report prints what was met.
func (f *failures) report(rounds int) {
	f.t.Helper()
	var list []string
	for _, outcome := range slices.Sorted(maps.Keys(f.outcomes)) {
		list = append(list, fmt.Sprintf("%d %s", f.outcomes[outcome], outcome))
	}
	f.t.Logf("%d rounds, %d writes: %s; longest without a write after the failure %s", rounds, f.c.acked, strings.Join(list, "; "), f.worst.Round(time.Millisecond))
}

// writer writes the chain on at one site until its connection ends or it is told to stop.
type writer struct {
	acked atomic.Uint64 // the last number
	stop  chan struct{}
	ended chan error   // nil if it was told to
	gap   [2]time.Time // the longest time between two acknowledgements
}

func (f *failures) write(site string) *writer {
	f.t.Helper()
	w := &writer{stop: make(chan struct{}), ended: make(chan error, 1)}
	client := dial(f.t, f.url[site])
	w.acked.Store(f.c.acked)
	go func() {
		defer func() { _ = client.Close() }() // what counts was acknowledged
		w.ended <- w.run(f.t.Context(), f.c, client)
	}()
	return w
}

func (w *writer) run(ctx context.Context, c *chain, to *nbd.Client) error {
	last := time.Now()
	for {
		select {
		case <-w.stop:
			return nil
		case <-time.After(writePause):
		}
		if err := c.write(ctx, to); err != nil {
			return err
		}
		if c.ackAt.Sub(last) > w.gap[1].Sub(w.gap[0]) {
			w.gap = [2]time.Time{last, c.ackAt}
		}
		last = c.ackAt
		w.acked.Store(c.acked)
		if c.acked%64 == 0 {
			if err := to.Flush(ctx); err != nil {
				return err
			}
		}
	}
}

// goesOn waits until it has written more, or has ended.
func (w *writer) goesOn(t testing.TB) {
	t.Helper()
	n := w.acked.Load()
	eventually(t, sitesPatience, "the client of the owner does not go on", func() bool { return w.acked.Load() > n+10 || len(w.ended) > 0 })
}

// end has it stop.
func (w *writer) end(t testing.TB) error {
	t.Helper()
	close(w.stop)
	return w.await(t)
}

// await waits until it has ended.
func (w *writer) await(t testing.TB) error {
	t.Helper()
	select {
	case err := <-w.ended:
		return err
	case <-time.After(sitesPatience):
		t.Fatal("a client's connection does not end, and nothing is answered")
		return nil
	}
}

// claimer writes a block at one site as soon as that is taken.
type claimer struct {
	cancel context.CancelFunc
	failed atomic.Int32  // writes that were refused
	done   chan struct{} // closed when it has ended
	at     time.Time     // when it was acknowledged; zero if it was not
}

func (f *failures) claim(site string) *claimer {
	f.t.Helper()
	ctx, cancel := context.WithCancel(f.t.Context())
	c := &claimer{cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(c.done)
		for ctx.Err() == nil && c.at.IsZero() {
			c.try(ctx, f.url[site])
			time.Sleep(claimPause)
		}
	}()
	return c
}

// try writes once, if the export is there and for writing.
func (c *claimer) try(ctx context.Context, url string) {
	client, err := nbd.Dial(ctx, url, nbd.DialOptions{})
	if err != nil {
		return
	}
	defer func() { _ = client.Close() }() // what counts was acknowledged
	if client.ReadOnly() {
		return
	}
	if err := client.WriteAt(ctx, random(scstore.BlockSize, 1), claimAt, 0); err != nil {
		c.failed.Add(1)
		return
	}
	c.at = time.Now()
}

// await waits until it was acknowledged.
func (c *claimer) await(t testing.TB) time.Time {
	t.Helper()
	select {
	case <-c.done:
	case <-time.After(sitesPatience):
		t.Fatal("the new owner acknowledges no write")
	}
	c.cancel()
	return c.at
}

// none ends it, and expects that it was never acknowledged.
func (c *claimer) none(t testing.TB) {
	t.Helper()
	c.cancel()
	<-c.done
	if !c.at.IsZero() {
		t.Fatalf("a site that does not own the volume acknowledged a write at %s", c.at)
	}
}

// waits expects that it has not been answered.
func (c *claimer) waits(t testing.TB) {
	t.Helper()
	select {
	case <-c.done:
		t.Fatalf("the target acknowledged a write at %s, before it can know that it owns", c.at)
	default:
	}
}
