package bench

import (
	"bytes"
	"encoding/json"
	"errors"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"scstore"
)

// bareEnv makes the test's program a bare server, as a child of TestRun.
const bareEnv = "SCSTORE_BENCH_TEST_BARE"

func TestBareChild(t *testing.T) {
	if os.Getenv(bareEnv) == "" {
		return // not the child: TestRun_MeasuresPeers starts it
	}
	args := os.Args[len(os.Args)-2:]
	size, err := strconv.ParseInt(args[1], 10, 64)
	check(t, err)
	l, err := net.Listen("unix", args[0])
	check(t, err)
	check(t, ServeBare(t.Context(), l, size))
}

func TestRun_MeasuresPeers(t *testing.T) {
	t.Setenv(bareEnv, "1")
	self, err := os.Executable()
	check(t, err)
	dir := t.TempDir()
	steps := 0
	report, err := Run(t.Context(), Options{
		Dir: dir, Peers: KnownPeers(), BareCommand: []string{self, "-test.run=^TestBareChild$"},
		Rounds: 1, WriteTime: 150 * time.Millisecond, ReadTime: 100 * time.Millisecond, NoFio: true,
		WorkingSetBytes: 16 << 20, ReadSetBytes: 8 << 20, Progress: func(Progress) { steps++ },
	})
	check(t, err)
	for _, m := range metrics() {
		for _, name := range append(KnownPeers(), BareName) {
			row := report.row(m.name, name, ToolLoad)
			if name == BareName && (m.load.FlushEvery > 0 || m.aged || m.short) {
				continue
			}
			if row == nil || row.Median <= 0 || len(row.Samples) != 1 {
				t.Errorf("%s of %s: %+v", m.name, name, row)
				continue
			}
			l := row.Samples[0].Load
			if every := int64(m.load.FlushEvery); every > 0 && (l.Flushes < l.Writes/every || l.Flushes > l.Writes/every+1) {
				t.Errorf("%s of %s: %d flushes for %d writes", m.name, name, l.Flushes, l.Writes)
			}
			if m.load.ReadPercent == 100 && l.Writes > 0 || m.load.ReadPercent == 0 && l.Flushes == 0 {
				t.Errorf("%s of %s: %+v", m.name, name, l)
			}
		}
	}
	if len(report.Targets) != len(KnownPeers())+1 || len(report.Fills) != len(report.Targets) || steps == 0 {
		t.Errorf("%d targets, %d fills, %d steps", len(report.Targets), len(report.Fills), steps)
	}
	for _, target := range report.Targets {
		if target.Version == "" {
			t.Errorf("%s has no version", target.Name)
		}
	}
	if m := report.Machine; m.CPUs == 0 || m.Kernel == "" || m.FileSystem == "" || m.MemoryBytes == 0 {
		t.Errorf("machine %+v", m)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left %v behind, %v", left, err)
	}
	var text bytes.Buffer
	check(t, report.WriteText(&text))
	for _, want := range append(KnownPeers(), MetricNames()...) {
		if !strings.Contains(text.String(), want) {
			t.Errorf("the text does not name %s", want)
		}
	}
	if _, err := json.Marshal(report); err != nil {
		t.Error(err)
	}
}

func TestRun_ShowsFioBesideOurs(t *testing.T) {
	report, err := Run(t.Context(), Options{
		Dir: t.TempDir(), Peers: []string{"nbdkit"}, Metrics: []string{"randread-4k-qd32", "seqwrite-1m-qd8"}, Rounds: 1,
		WriteTime: time.Second, ReadTime: time.Second, WorkingSetBytes: 32 << 20, ReadSetBytes: 8 << 20, NoBare: true,
	})
	check(t, err)
	for _, row := range report.Rows {
		ours := report.row(row.Metric, row.Target, ToolLoad)
		if row.Median < ours.Median/20 || row.Median > ours.Median*20 {
			t.Errorf("%s by %s: %.0f %s, ours %.0f", row.Metric, row.Tool, row.Median, row.Unit, ours.Median)
		}
	}
	if len(report.Rows) != 4 {
		t.Errorf("%d rows, want 4", len(report.Rows))
	}
}

func TestRun_RefusesBadOptions(t *testing.T) {
	dir := t.TempDir()
	for name, o := range map[string]Options{
		"no folder":  {},
		"a peer":     {Dir: dir, Peers: []string{"ftpd"}},
		"a metric":   {Dir: dir, Metrics: []string{"beauty"}},
		"a negative": {Dir: dir, Rounds: -1},
	} {
		if _, err := Run(t.Context(), o); !errors.Is(err, scstore.ErrInvalid) {
			t.Errorf("%s: %v, want %v", name, err, scstore.ErrInvalid)
		}
	}
	if _, err := Run(t.Context(), Options{Dir: dir, WorkingSetBytes: 1 << 50, NoFio: true}); !errors.Is(err, scstore.ErrNoSpace) {
		t.Errorf("a working set of a PiB: %v, want %v", err, scstore.ErrNoSpace)
	}
	_, err := Run(t.Context(), Options{
		Dir: dir, Binary: "/nonexistent/scstore", Peers: []string{}, NoBare: true, NoFio: true,
		WorkingSetBytes: 1 << 20, ReadSetBytes: 1 << 20,
	})
	if err == nil {
		t.Error("a program that does not exist was measured")
	}
}

func TestReport_Figures(t *testing.T) {
	r := newReport(Options{Rounds: 3}, Machine{})
	add := func(name string, kind Kind, values ...float64) {
		for i, v := range values {
			r.add(metric{name: "randread-4k-qd32", unit: "ops/s"}, &target{Target: Target{Name: name, Kind: kind}}, ToolLoad,
				Sample{Round: i + 1, Value: v, Load: &LoadResult{}})
		}
	}
	add(StoreName, KindStore, 100, 300, 120)
	add("slow", KindPeer, 50, 50, 50)
	add("fast", KindPeer, 80, 100, 90)
	add(BareName, KindLimit, 200, 160, 150)
	r.finish()
	if len(r.Figures) != 2 {
		t.Fatalf("figures %+v", r.Figures)
	}
	best, bare := r.Figures[0], r.Figures[1]
	if best.Against != "fast" || best.Ratio != 120.0/90 || !best.OK || best.Low != 100.0/80 || best.High != 3 {
		t.Errorf("against the best peer: %+v", best)
	}
	if bare.Against != BareName || bare.Ratio != 0.75 || bare.OK {
		t.Errorf("against the bare loop: %+v", bare)
	}
	if got := median([]float64{4, 1, 3, 2}); got != 2.5 {
		t.Errorf("median %v, want 2.5", got)
	}
	var text bytes.Buffer
	check(t, r.WriteText(&text))
	if !strings.Contains(text.String(), "NOT MET") {
		t.Errorf("the text hides that a figure is not met:\n%s", text.String())
	}
}

func TestParseFio(t *testing.T) {
	good := `fio: connected to NBD server
{"jobs":[{"error":0,"read":{"iops":0,"bw_bytes":0},"write":{"iops":12.5,"bw_bytes":51200,"clat_ns":{"percentile":{"99.000000":5000}}}}]}`
	got, err := parseFio([]byte(good))
	if err != nil || got != (fioResult{12.5, 51200, 5}) {
		t.Errorf("got %+v, %v", got, err)
	}
	for _, bad := range []string{"", "no json", `{"jobs":[]}`, `{"jobs":[{"error":5}]}`} {
		if _, err := parseFio([]byte(bad)); !errors.Is(err, scstore.ErrInvalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func FuzzParseFio(f *testing.F) {
	f.Add([]byte(`x{"jobs":[{"read":{"iops":1}}]}`))
	f.Fuzz(func(_ *testing.T, p []byte) {
		_, _ = parseFio(p) // it must not panic
	})
}

func TestKill_APeerKeepsWhatItAcknowledged(t *testing.T) {
	report, err := Kill(t.Context(), KillOptions{Dir: t.TempDir(), Peer: "nbdkit", Rounds: 3, SetBytes: 16 << 20, Seed: 4})
	check(t, err)
	if len(report.Rounds) != 3 {
		t.Fatalf("%d rounds", len(report.Rounds))
	}
	for _, r := range report.Rounds {
		if r.Load.Writes == 0 || r.Load.Flushes == 0 || r.Verify.Written == 0 || r.RestartSeconds <= 0 {
			t.Errorf("round %+v", r)
		}
	}
	if _, err := Kill(t.Context(), KillOptions{Dir: t.TempDir()}); !errors.Is(err, scstore.ErrInvalid) {
		t.Errorf("kill nothing: %v", err)
	}
}
