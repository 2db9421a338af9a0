package e2e_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"scstore"
	"scstore/internal/bench"
)

// maxReady is how long a host may take to serve again after it was killed. The aim
// is 2 s; a busy machine gets more.
const maxReady = 10 * time.Second

func TestKill_NoAcknowledgedWriteIsLost(t *testing.T) {
	const seed, set = 11, 128 * mib
	t.Logf("seed %d, %d rounds", seed, killRounds)
	dir := t.TempDir()
	file := filepath.Join(t.TempDir(), "base.raw")
	diskFile(t, file, set)
	s := serve(t, dir)
	run(t, s, "volume", "create", "empty", "--size", "128M")
	journal, err := bench.NewJournal(seed, set/scstore.BlockSize)
	check(t, err)
	rng := rand.New(rand.NewPCG(seed, 1))
	var ready []time.Duration
	var flushes uint64
	idle := 0 // rounds without a flush: the kill came too early
	for round := range killRounds {
		after := 100*time.Millisecond + time.Duration(rng.Int64N(int64(900*time.Millisecond)))
		timer := time.AfterFunc(after, func() { _ = s.Kill() })
		result, err := bench.Load(t.Context(), bench.LoadOptions{
			URL: s.URL("empty"), Connections: 1 + round%4, QueueDepth: 16, BlockBytes: 4 * kib << (round % 3), ReadPercent: 20, ZeroPercent: 10,
			FlushEvery: 50, Duration: time.Minute, Seed: rng.Uint64(), Journal: journal,
		})
		if timer.Stop() || err == nil || errors.Is(err, scstore.ErrCorrupt) {
			t.Fatalf("round %d: load: %+v, %v", round, result, err)
		}
		check(t, s.Kill()) // until it is gone
		if result.Writes == 0 || journal.Flushes() == flushes {
			idle++
		}
		flushes = journal.Flushes()

		s = serve(t, dir)
		ready = append(ready, s.ReadyAfter())
		report, err := bench.Verify(t.Context(), bench.VerifyOptions{URL: s.URL("empty"), Journal: journal})
		check(t, err)
		if err := report.AfterKill(); err != nil {
			t.Fatalf("round %d, killed after %s: %v", round, after, err)
		}
		if report.Written == 0 {
			t.Errorf("round %d: nothing written", round)
		}
	}
	check(t, s.Stop())
	if idle > killRounds/5 {
		t.Errorf("in %d of %d rounds nothing was flushed: nothing to lose", idle, killRounds)
	}
	slices.Sort(ready)
	t.Logf("ready after: median %s, worst %s", ready[len(ready)/2], ready[len(ready)-1])
	if worst := ready[len(ready)-1]; worst > maxReady {
		t.Errorf("a host was ready only after %s, want %s", worst, maxReady)
	}
	if out, err := toolError(t, program, "doctor", "--dir", dir); err != nil {
		t.Errorf("doctor: %v\n%s", err, out)
	}
}

func TestKill_NothingIsLeftOfAnImportThatWasCutOff(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(t.TempDir(), "disk.raw")
	check(t, os.WriteFile(file, random(96*mib, 5), 0o600))
	rng := rand.New(rand.NewPCG(12, 1))
	for round := range 3 {
		s := serve(t, dir)
		before := metric(t, dir, "process_open_fds")
		ctx, cancel := context.WithCancel(t.Context())
		imported := make(chan error, 1)
		go func() {
			_, err := s.Run(ctx, "image", "import", file, "disk")
			imported <- err
		}()
		time.Sleep(30*time.Millisecond + time.Duration(rng.Int64N(int64(120*time.Millisecond))))
		check(t, s.Kill())
		err := <-imported
		cancel()
		if err == nil {
			t.Fatalf("round %d: the import was done before the kill", round)
		}
		if code := exitCode(err); code != 9 && code != 10 {
			t.Errorf("round %d: import ended with code %d, want 9 or 10: %v", round, code, err)
		}
		s = serve(t, dir)
		if list := run(t, s, "image", "ls"); strings.Contains(list, "disk") {
			t.Errorf("round %d: the image is there:\n%s", round, list)
		}
		if now := metric(t, dir, "process_open_fds"); now > before+50 {
			t.Errorf("round %d: %v open files, %v before", round, now, before)
		}
		check(t, s.Stop())
	}
	s := serve(t, dir)
	run(t, s, "image", "import", file, "disk")
	tool(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", file, s.URL("disk"))
}
