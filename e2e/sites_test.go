package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"scstore"
	"scstore/e2e"
	"scstore/internal/api"
	"scstore/internal/bench"
)

// sitesPatience bounds each wait for a cluster.
const sitesPatience = 90 * time.Second

// startSites starts three sites. A host that runs at the end of the test is killed.
func startSites(t testing.TB, rtt time.Duration, bitsPerSecond int64) *e2e.Sites {
	t.Helper()
	return openSites(t, e2e.SitesOptions{Binary: program, RTT: rtt, BitsPerSecond: bitsPerSecond})
}

// openSites is startSites with more to say.
func openSites(t testing.TB, o e2e.SitesOptions) *e2e.Sites {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), sitesPatience)
	defer cancel()
	o.Dir, o.Names = t.TempDir(), []string{"a", "b", "c"}
	s, err := e2e.OpenSites(ctx, o)
	check(t, err)
	t.Cleanup(func() {
		if t.Failed() {
			for _, site := range s.Names() {
				if host := s.Host(site); host != nil {
					lines := strings.Split(host.Said(), "\n")
					t.Logf("the host of site %s said:\n%s", site, strings.Join(lines[max(0, len(lines)-maxLogged):], "\n"))
				}
			}
		}
		check(t, s.Close())
	})
	return s
}

// at runs a client command at a site that must succeed.
func at(t testing.TB, s *e2e.Sites, site string, args ...string) string {
	t.Helper()
	out, err := s.Run(t.Context(), site, args...)
	check(t, err)
	return out
}

// waitCurrent waits until the sites hold all that the owner has.
func waitCurrent(t testing.TB, s *e2e.Sites, owner, volume string, sites ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), sitesPatience)
	defer cancel()
	check(t, s.WaitCurrent(ctx, owner, volume, sites...))
}

// waitVolume waits until what a site says of a volume is as wanted.
func waitVolume(t testing.TB, s *e2e.Sites, site, volume string, wanted func(api.Where) bool) api.Where {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), sitesPatience)
	defer cancel()
	w, err := s.WaitVolume(ctx, site, volume, wanted)
	check(t, err)
	return w
}

// move hands a volume over.
func move(t testing.TB, s *e2e.Sites, from, volume, to string, flags ...string) api.MoveReport {
	t.Helper()
	r, err := s.Move(t.Context(), from, volume, to, flags...)
	check(t, err)
	return r
}

// promote gives a volume to a site without its owner.
func promote(t testing.TB, s *e2e.Sites, volume, to string, flags ...string) api.PromoteReport {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), sitesPatience)
	defer cancel()
	r, err := s.Promote(ctx, volume, to, flags...)
	check(t, err)
	return r
}

func TestSites_ReplicasBecomeEqual(t *testing.T) {
	s := startSites(t, 20*time.Millisecond, 0)
	file := filepath.Join(t.TempDir(), "disk.raw")
	diskFile(t, file, 64*mib)
	at(t, s, "a", "image", "import", file, "base")
	at(t, s, "a", "volume", "create", "disk", "--from", "base")
	at(t, s, "a", "placement", "set", "disk", "--replicas", "b,c")
	tool(t, "qemu-io", "-f", "raw", "-c", "write -P 1 0 4k", "-c", "flush", s.Host("a").URL("disk")) // what is placed is what was written
	waitCurrent(t, s, "a", "disk", "b", "c")
	compare := func() {
		t.Helper()
		for _, site := range []string{"b", "c"} {
			tool(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", s.Host("a").URL("disk"), s.Host(site).URL("disk"))
		}
	}
	compare()
	tool(t, "qemu-io", "-f", "raw", "-c", "write -P 1 0 4k", file)
	tool(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", file, s.Host("c").URL("disk"))

	// What changes later follows: data, zeros, holes.
	tool(t, "qemu-io", "-f", "raw", "-d", "unmap", "-c", "write -P 9 5M 7M", "-c", "write -z 20M 3M", "-c", "discard 30M 2M",
		"-c", "write -P 8 1000 3333", "-c", "flush", s.Host("a").URL("disk"))
	waitCurrent(t, s, "a", "disk", "b", "c")
	compare()
	copied := filepath.Join(t.TempDir(), "copy.raw")
	tool(t, "nbdcopy", s.Host("b").URL("disk"), copied)
	tool(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", copied, s.Host("a").URL("disk"))

	// A replica is for reading.
	if _, err := toolError(t, "qemu-io", "-f", "raw", "-c", "write 0 4k", s.Host("b").URL("disk")); err == nil {
		t.Error("a replica could be written to")
	}

	// All hosts end at once, and come back by themselves.
	for _, site := range s.Names() {
		check(t, s.Kill(site))
	}
	for _, site := range s.Names() {
		check(t, s.Start(t.Context(), site))
	}
	for _, site := range s.Names() {
		check(t, s.WaitReady(t.Context(), site))
	}
	tool(t, "qemu-io", "-f", "raw", "-c", "write -P 7 40M 1M", "-c", "flush", s.Host("a").URL("disk"))
	waitCurrent(t, s, "a", "disk", "b", "c")
	compare()
	for _, site := range s.Names() {
		check(t, s.Stop(site))
	}
}

// errCutOff says that a load ended as it was meant to: with its connections.
var errCutOff = errors.New("cut off")

// loadUntilCutOff loads an export until its connections end.
func loadUntilCutOff(ctx context.Context, url string, seed uint64, journal *bench.Journal) error {
	result, err := bench.Load(ctx, bench.LoadOptions{
		URL: url, Connections: 2, QueueDepth: 8, ReadPercent: 30, ZeroPercent: 10, FlushEvery: 40,
		Duration: sitesPatience, Seed: seed, Journal: journal,
	})
	if err == nil {
		return fmt.Errorf("load: it ended by itself: %+v", result)
	}
	if errors.Is(err, scstore.ErrCorrupt) || result.Writes == 0 || result.Flushes == 0 {
		return fmt.Errorf("load: %+v: %w", result, err)
	}
	return errCutOff
}

func TestSites_EveryAcknowledgedWriteIsThereAfterAMove(t *testing.T) {
	const seed, set = 21, 16 * mib
	s := startSites(t, 20*time.Millisecond, 0)
	at(t, s, "a", "volume", "create", "disk", "--size", "16M")
	at(t, s, "a", "placement", "set", "disk", "--replicas", "b")
	journal, err := bench.NewJournal(seed, set/scstore.BlockSize)
	check(t, err)
	owner := "a"
	for round, to := range []string{"b", "c", "a", "b"} {
		ended := make(chan error, 1)
		url := s.Host(owner).URL("disk")
		go func() { ended <- loadUntilCutOff(t.Context(), url, uint64(round), journal) }()
		time.Sleep(500 * time.Millisecond) // of load
		r := move(t, s, owner, "disk", to)
		if err := <-ended; !errors.Is(err, errCutOff) {
			t.Fatalf("round %d: the load ended with %v, want that its connections ended", round, err)
		}
		report, err := bench.Verify(t.Context(), bench.VerifyOptions{URL: s.Host(to).URL("disk"), Journal: journal})
		check(t, err)
		if err := report.AfterKill(); err != nil || report.Written == 0 {
			t.Fatalf("round %d, %s to %s: %d blocks written, %v", round, owner, to, report.Written, err)
		}
		t.Logf("%s to %s: pause %.0f ms of %.0f, round trip %.0f ms, %d KiB missing, read in %.1f s", owner, to, r.PauseMs, r.TotalMs, r.RTTMs, r.MissingBytes/kib, report.Seconds)
		if _, err := toolError(t, "qemu-io", "-f", "raw", "-c", "write 0 4k", s.Host(owner).URL("disk")); err == nil {
			t.Errorf("round %d: the old owner takes writes", round)
		}
		owner = to
	}
	waitVolume(t, s, owner, "disk", func(w api.Where) bool { return w.Tether == nil })
}

func TestSites_APromoteSaysWhatItLeavesOutAndKeepsIt(t *testing.T) {
	s := startSites(t, 20*time.Millisecond, 0)
	at(t, s, "a", "volume", "create", "disk", "--size", "4M")
	at(t, s, "a", "placement", "set", "disk", "--replicas", "c")
	before := &chain{blocks: 512}
	before.writeAll(t, s.Host("a").URL("disk"), 700)
	waitCurrent(t, s, "a", "disk", "c")
	common := before.acked

	// While the owner answers, it is not passed over.
	if _, err := s.Promote(t.Context(), "disk", "c"); exitCode(err) != 8 {
		t.Errorf("promote while the owner answers: %v, want exit code 8", err)
	}

	check(t, s.Cut("a"))
	client := dial(t, s.Host("a").URL("disk"))
	for range 300 {
		check(t, before.write(t.Context(), client))
	}
	check(t, client.Flush(t.Context()))
	plan := promote(t, s, "disk", "c", "--dry-run")
	if w := waitVolume(t, s, "c", "disk", func(api.Where) bool { return true }); !plan.DryRun || w.Owner != e2e.HostName("a") {
		t.Errorf("after the dry run %+v the owner is %q", plan, w.Owner)
	}
	report := promote(t, s, "disk", "c")
	for _, r := range []api.PromoteReport{plan, report} {
		if !strings.Contains(r.Owner, e2e.HostName("a")) || !strings.Contains(strings.Join(r.Silent, " "), e2e.HostName("a")) || r.Unknown == "" {
			t.Errorf("promote: got %+v, want a report that names the owner as silent and says what is not known", r)
		}
	}
	after := &chain{blocks: 512, acked: common}
	after.expect(t, s.Host("c").URL("disk"), common, common)
	after.writeAll(t, s.Host("c").URL("disk"), 100)

	// The old owner does not know it yet, and goes on. When it does, it stops, and
	// keeps what it has.
	check(t, before.write(t.Context(), client))
	check(t, s.Heal("a"))
	ctx, cancel := context.WithTimeout(t.Context(), sitesPatience)
	defer cancel()
	if err := before.writeUntilEnd(ctx, client); ctx.Err() != nil {
		t.Fatalf("the old owner goes on writing: %v", err)
	}
	w := waitVolume(t, s, "c", "disk", func(w api.Where) bool { return len(w.Branches) == 1 })
	branch := w.Branches[0]
	if !strings.HasPrefix(branch, "disk@diverged-") {
		t.Errorf("the branch is called %q", branch)
	}
	for site, command := range map[string]string{"b": "ls", "c": "info disk"} { // b may learn of it later
		eventually(t, sitesPatience, "the branch "+branch+" is not listed at "+site, func() bool {
			return strings.Contains(at(t, s, site, append([]string{"volume"}, strings.Fields(command)...)...), branch)
		})
	}
	before.expect(t, s.Host("a").URL(branch), before.acked, before.acked+1)
	after.expect(t, s.Host("c").URL("disk"), after.acked, after.acked)
	if slices.Contains(w.Branches, "disk") || w.Owner != e2e.HostName("c") {
		t.Errorf("after the return: %+v", w)
	}
}
