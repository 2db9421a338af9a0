package bench

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// The tools that made a row.
const (
	ToolLoad = "load" // Load, of this package
	ToolFio  = "fio"  // fio with its nbd engine, the final flush outside its time
)

// Report is what a run measured.
type Report struct {
	Started time.Time `json:"started"`
	Seconds float64   `json:"seconds"`
	Quick   bool      `json:"quick"`
	Setup   Setup     `json:"setup"`
	Machine Machine   `json:"machine"`
	Targets []Target  `json:"targets"`
	Fills   []Fill    `json:"fills"`
	Rows    []Row     `json:"rows"`
	Figures []Figure  `json:"figures"`
	Notes   []string  `json:"notes"`
}

// Setup is what a run was told.
type Setup struct {
	Rounds          int     `json:"rounds"`
	WriteSeconds    float64 `json:"write_seconds"`
	ReadSeconds     float64 `json:"read_seconds"`
	WorkingSetBytes int64   `json:"working_set_bytes"`
	ReadSetBytes    int64   `json:"read_set_bytes"`
	Seed            uint64  `json:"seed"`
}

// Fill is the first write of a target's export, in order and flushed.
type Fill struct {
	Target  string  `json:"target"`
	Bytes   int64   `json:"bytes"`
	Seconds float64 `json:"seconds"`
}

// Row is one metric of one target by one tool.
type Row struct {
	Metric  string   `json:"metric"`
	Target  string   `json:"target"`
	Kind    Kind     `json:"kind"`
	Tool    string   `json:"tool"`
	Unit    string   `json:"unit"`
	Median  float64  `json:"median"`
	Min     float64  `json:"min"`
	Max     float64  `json:"max"`
	P99     float64  `json:"p99_us"` // median of the samples' 99th percentiles
	Samples []Sample `json:"samples"`
}

// Sample is one measurement.
type Sample struct {
	Round            int         `json:"round"`
	Value            float64     `json:"value"`
	P99              float64     `json:"p99_us"`
	ServerCPUSeconds float64     `json:"server_cpu_seconds,omitempty"`
	ServerRSSBytes   int64       `json:"server_rss_bytes,omitempty"`
	DeviceFlushes    int64       `json:"device_flushes,omitempty"` // of the whole device
	Load             *LoadResult `json:"load,omitempty"`
}

// Figure is one promised figure: the ratio of scstore's median to another's, by
// one tool. Those by our load count; those by fio, whose own cost is larger and so
// draws ratios towards 1, are shown beside them.
type Figure struct {
	ID      string  `json:"id"` // of DESIGN.md: P1 to P4
	Metric  string  `json:"metric"`
	Tool    string  `json:"tool"`
	Against string  `json:"against"`
	Ratio   float64 `json:"ratio"`
	Low     float64 `json:"low"` // the smallest and largest ratio within one round
	High    float64 `json:"high"`
	Must    float64 `json:"must"`
	OK      bool    `json:"ok"`
}

func newReport(o Options, m Machine) *Report {
	return &Report{
		Started: time.Now().UTC().Truncate(time.Second), Quick: o.Quick, Machine: m,
		Setup: Setup{
			Rounds: o.Rounds, WriteSeconds: o.WriteTime.Seconds(), ReadSeconds: o.ReadTime.Seconds(),
			WorkingSetBytes: o.WorkingSetBytes, ReadSetBytes: o.ReadSetBytes, Seed: o.Seed,
		},
		Notes: []string{
			"Each write figure has a final flush inside its time. The peers write back through the page cache, as the store does.",
			"A median is over the rounds; the targets took turns within each. Reads are warm: each read set was read once before.",
			"fio leaves the final flush out of its time, and its own cost is larger than our load's: its rows stand beside ours.",
		},
	}
}

// add records a sample.
func (r *Report) add(m metric, t *target, tool string, s Sample) {
	i := slices.IndexFunc(r.Rows, func(row Row) bool { return row.Metric == m.name && row.Target == t.Name && row.Tool == tool })
	if i < 0 {
		i = len(r.Rows)
		r.Rows = append(r.Rows, Row{Metric: m.name, Target: t.Name, Kind: t.Kind, Tool: tool, Unit: m.unit})
	}
	r.Rows[i].Samples = append(r.Rows[i].Samples, s)
}

// finish computes the medians and the figures.
func (r *Report) finish() {
	for i := range r.Rows {
		row := &r.Rows[i]
		var values, p99 []float64
		for _, s := range row.Samples {
			values = append(values, s.Value)
			p99 = append(p99, s.P99)
		}
		row.Median, row.P99 = median(values), median(p99)
		row.Min, row.Max = slices.Min(values), slices.Max(values)
	}
	r.figures()
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	switch {
	case n == 0:
		return 0
	case n%2 == 1:
		return sorted[n/2]
	}
	return (sorted[n/2-1] + sorted[n/2]) / 2
}

// figures compares the store with the best peer, and for reads with the bare loop.
func (r *Report) figures() {
	for _, f := range []Figure{
		{ID: "P1", Metric: "randwrite-4k-qd32", Must: 1.5},
		{ID: "P2", Metric: "randwrite-4k-qd32-flush32", Must: 2},
		{ID: "P3", Metric: "randread-4k-qd32", Must: 1.1},
		{ID: "P3", Metric: "randread-4k-qd32", Must: 0.8, Against: BareName},
		{ID: "P3", Metric: "randread-4k-qd1", Must: 0.9},
		{ID: "P4", Metric: "seqread-1m-qd8", Must: 1},
		{ID: "P4", Metric: "seqwrite-1m-qd8", Must: 1},
	} {
		for _, f.Tool = range []string{ToolLoad, ToolFio} {
			r.figure(f)
		}
	}
}

func (r *Report) figure(f Figure) {
	store, other := r.row(f.Metric, StoreName, f.Tool), r.row(f.Metric, f.Against, f.Tool)
	if f.Against == "" {
		other = r.best(f.Metric, f.Tool)
	}
	if store == nil || other == nil || other.Median == 0 {
		return
	}
	f.Against = other.Target
	f.Ratio = store.Median / other.Median
	f.OK = f.Ratio >= f.Must
	f.Low, f.High = spread(store.Samples, other.Samples)
	r.Figures = append(r.Figures, f)
}

// spread returns the smallest and the largest ratio within a round.
func spread(a, b []Sample) (low, high float64) {
	for i := range min(len(a), len(b)) {
		ratio := 0.0
		if b[i].Value > 0 {
			ratio = a[i].Value / b[i].Value
		}
		if i == 0 {
			low, high = ratio, ratio
		}
		low, high = min(low, ratio), max(high, ratio)
	}
	return low, high
}

func (r *Report) row(metric, target, tool string) *Row {
	for i := range r.Rows {
		if row := &r.Rows[i]; row.Metric == metric && row.Target == target && row.Tool == tool {
			return row
		}
	}
	return nil
}

// best returns the row of the fastest peer.
func (r *Report) best(metric, tool string) (best *Row) {
	for i := range r.Rows {
		row := &r.Rows[i]
		if row.Metric == metric && row.Kind == KindPeer && row.Tool == tool && (best == nil || row.Median > best.Median) {
			best = row
		}
	}
	return best
}

// WriteText writes the report for people.
func (r Report) WriteText(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	m := r.Machine
	line := func(format string, args ...any) { fmt.Fprintf(tw, format+"\n", args...) }
	line("machine\t%s, %d CPUs, %.1f GiB, load %s", m.CPU, m.CPUs, float64(m.MemoryBytes)/(1<<30), m.LoadAverage)
	line("kernel\t%s, %s", m.Kernel, m.Go)
	line("disk\t%s on %s, write cache %q, %s", m.FileSystem, m.Device, m.WriteCache, rotation(m.Rotational))
	line("setup\t%d rounds, writes %gs over %s, reads %gs over %s, started %s, took %s", r.Setup.Rounds,
		r.Setup.WriteSeconds, gib(r.Setup.WorkingSetBytes), r.Setup.ReadSeconds, gib(r.Setup.ReadSetBytes),
		r.Started.Format(time.RFC3339), (time.Duration(r.Seconds) * time.Second).String())
	for _, t := range r.Targets {
		line("%s\t%s", t.Name, t.Version)
	}
	if m.Fio != "" {
		line("fio\t%s", m.Fio)
	}
	line("")
	line("METRIC\tTARGET\tTOOL\tMEDIAN\tMIN\tMAX\tUNIT\tP99 µs\tFLUSHES\tDEVICE FLUSHES\tSERVER CPU s\tRSS MiB")
	last := ""
	for _, row := range r.sorted() {
		name := row.Metric
		if name == last {
			name = ""
		}
		last = row.Metric
		line("%s\t%s\t%s\t%.0f\t%.0f\t%.0f\t%s\t%.0f\t%s", name, row.Target, row.Tool, row.Median, row.Min, row.Max, row.Unit, row.P99, row.costs())
	}
	if len(r.Figures) > 0 {
		line("")
		line("FIGURE\tMETRIC\tTOOL\tAGAINST\tRATIO\tMUST\t\tWITHIN A ROUND")
		for _, f := range r.Figures {
			line("%s\t%s\t%s\t%s\t%.2f\t≥ %.2f\t%s\t%.2f to %.2f", f.ID, f.Metric, f.Tool, f.Against, f.Ratio, f.Must, verdict(f.OK), f.Low, f.High)
		}
	}
	line("")
	if r.Quick {
		line("A quick run: times and working sets are too small for a figure to be published.")
	}
	line("%s", strings.Join(r.Notes, "\n"))
	return tw.Flush()
}

// sorted returns the rows by metric in the order of MetricNames, ours first.
func (r Report) sorted() []Row {
	rows := slices.Clone(r.Rows)
	names := MetricNames()
	slices.SortStableFunc(rows, func(a, b Row) int {
		if d := slices.Index(names, a.Metric) - slices.Index(names, b.Metric); d != 0 {
			return d
		}
		return strings.Compare(b.Tool, a.Tool)
	})
	return rows
}

// costs returns the medians of what a row took, as cells.
func (r Row) costs() string {
	if r.Tool != ToolLoad {
		return "\t\t\t"
	}
	var flushes, device, cpu, rss []float64
	for _, s := range r.Samples {
		flushes = append(flushes, float64(s.Load.Flushes))
		device = append(device, float64(s.DeviceFlushes))
		cpu = append(cpu, s.ServerCPUSeconds)
		rss = append(rss, float64(s.ServerRSSBytes)/(1<<20))
	}
	return fmt.Sprintf("%.0f\t%.0f\t%.1f\t%.0f", median(flushes), median(device), median(cpu), median(rss))
}

func verdict(ok bool) string {
	if ok {
		return "met"
	}
	return "NOT MET"
}

func rotation(rotational bool) string {
	if rotational {
		return "rotational"
	}
	return "not rotational"
}

func gib(bytes int64) string { return fmt.Sprintf("%.2g GiB", float64(bytes)/(1<<30)) }
