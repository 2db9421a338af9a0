package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"scstore"
)

// Defaults of a run, and those of a quick one.
const (
	DefaultRounds          = 5
	DefaultWriteTime       = 60 * time.Second
	DefaultReadTime        = 5 * time.Second
	DefaultWorkingSetBytes = 8 << 30
	DefaultReadSetBytes    = 1 << 30

	QuickWriteTime       = 5 * time.Second
	QuickReadTime        = 3 * time.Second
	QuickWorkingSetBytes = 1 << 30
	QuickReadSetBytes    = 256 << 20

	// cachedTime is the length of the short write that is published beside the long
	// one: most of it ends in memory.
	cachedTime = 3 * time.Second
	// setTime is the length of writes other than the first figure's: with a working
	// set larger than any cache they need not be longer.
	setTime = 20 * time.Second
	// fioTime bounds fio's own run of a load: a second opinion, not the figure.
	fioTime = 10 * time.Second
	// fillUnit is what the sizes are rounded up to, in bytes.
	fillUnit = 1 << 20
	// spaceFactor is how much room the store gets, as a multiple of the volume: a
	// log needs some to clean.
	spaceFactor = 2
)

// Options says what to measure. Zero values mean the defaults above.
type Options struct {
	Dir    string   // an existing folder on the file system to measure; what is put there is removed
	Binary string   // the scstore program; empty: measure the peers alone
	Peers  []string // default DefaultPeers; see KnownPeers
	// BareCommand starts a program that calls ServeBare; a socket's path and a size
	// in bytes are appended to it. Empty: the bare loop runs in this process and
	// competes with the load for its scheduler.
	BareCommand []string
	NoBare      bool // leave the bare loop out
	NoFio       bool // leave fio's own figures out

	Rounds          int
	WriteTime       time.Duration // of random writes; of other writes setTime at most
	ReadTime        time.Duration // of each figure that reads
	WorkingSetBytes int64         // of the writes
	ReadSetBytes    int64         // of the reads; warm, so less than the memory
	Metrics         []string      // default all; see MetricNames
	Quick           bool          // the quick defaults: a look, not a figure to publish
	Seed            uint64

	Progress func(Progress) // called from one goroutine; may be nil
}

// Progress says how far a run is.
type Progress struct {
	Step   string // what is being done now
	Done   int    // measurements
	Total  int
	Took   time.Duration
	Remain time.Duration // an estimate
}

func (o Options) withDefaults() Options {
	writeTime, readTime, set, readSet := DefaultWriteTime, DefaultReadTime, int64(DefaultWorkingSetBytes), int64(DefaultReadSetBytes)
	if o.Quick {
		writeTime, readTime, set, readSet = QuickWriteTime, QuickReadTime, QuickWorkingSetBytes, QuickReadSetBytes
	}
	if o.Peers == nil {
		o.Peers = DefaultPeers()
	}
	if o.Rounds == 0 {
		o.Rounds = DefaultRounds
	}
	if o.WriteTime == 0 {
		o.WriteTime = writeTime
	}
	if o.ReadTime == 0 {
		o.ReadTime = readTime
	}
	if o.WorkingSetBytes == 0 {
		o.WorkingSetBytes = set
	}
	if o.ReadSetBytes == 0 {
		o.ReadSetBytes = readSet
	}
	o.WorkingSetBytes = (o.WorkingSetBytes + fillUnit - 1) / fillUnit * fillUnit
	o.ReadSetBytes = (o.ReadSetBytes + fillUnit - 1) / fillUnit * fillUnit
	if len(o.Metrics) == 0 {
		o.Metrics = MetricNames()
	}
	return o
}

// Validate reports what is wrong with the options. Errors: ErrInvalid.
func (o Options) Validate() error {
	o = o.withDefaults()
	switch {
	case o.Dir == "":
		return fmt.Errorf("check the benchmark's options: no folder: %w", scstore.ErrInvalid)
	case o.Rounds < 0 || o.WriteTime < 0 || o.ReadTime < 0 || o.WorkingSetBytes < 0 || o.ReadSetBytes < 0:
		return fmt.Errorf("check the benchmark's options: a negative count, time or size: %w", scstore.ErrInvalid)
	}
	for _, name := range o.Peers {
		if !slices.Contains(KnownPeers(), name) {
			return fmt.Errorf("check the benchmark's options: peer %q, want some of %q: %w", name, KnownPeers(), scstore.ErrInvalid)
		}
	}
	for _, name := range o.Metrics {
		if !slices.Contains(MetricNames(), name) {
			return fmt.Errorf("check the benchmark's options: metric %q, want some of %q: %w", name, MetricNames(), scstore.ErrInvalid)
		}
	}
	return nil
}

// metric is one load that all targets get.
type metric struct {
	name  string
	unit  string // "ops/s" or "MB/s"
	load  LoadOptions
	once  bool // ends when the working set was written once, if that is sooner
	aged  bool // reads what the writes left instead of the read set
	short bool // cachedTime long
	long  bool // WriteTime long, not setTime
	noFio bool
}

// metrics returns what is measured, in this order within a round: reads of data
// that nothing has overwritten, then writes, then reads of what they left.
func metrics() []metric {
	const mib = 1 << 20
	return []metric{
		{name: "randread-4k-qd32", unit: "ops/s", load: LoadOptions{ReadPercent: 100, QueueDepth: 32}},
		{name: "randread-4k-qd1", unit: "ops/s", load: LoadOptions{ReadPercent: 100, QueueDepth: 1}},
		{name: "seqread-1m-qd8", unit: "MB/s", load: LoadOptions{ReadPercent: 100, QueueDepth: 8, BlockBytes: mib, Sequential: true}},
		{name: "randwrite-4k-qd32", unit: "ops/s", load: LoadOptions{QueueDepth: 32}, long: true},
		{name: "randwrite-4k-qd32-3s", unit: "ops/s", load: LoadOptions{QueueDepth: 32}, short: true, noFio: true},
		{name: "randwrite-4k-qd32-flush32", unit: "ops/s", load: LoadOptions{QueueDepth: 32, FlushEvery: 32}, noFio: true},
		{name: "randwrite-4k-qd1-flush1", unit: "ops/s", load: LoadOptions{QueueDepth: 1, FlushEvery: 1, FlushBarrier: true}, short: true, noFio: true},
		{name: "seqwrite-1m-qd8", unit: "MB/s", load: LoadOptions{QueueDepth: 8, BlockBytes: mib, Sequential: true}, once: true},
		{name: "seqread-1m-qd8-aged", unit: "MB/s", load: LoadOptions{ReadPercent: 100, QueueDepth: 8, BlockBytes: mib, Sequential: true}, aged: true, noFio: true},
	}
}

// MetricNames returns the names of what a run can measure.
func MetricNames() []string {
	var names []string
	for _, m := range metrics() {
		names = append(names, m.name)
	}
	return names
}

// options returns the load that one target gets for the metric.
func (m metric) options(o Options, t *target, round int) LoadOptions {
	l := m.load
	l.URL = t.url
	l.Seed = o.Seed + uint64(round)
	l.Duration = o.WriteTime
	l.OffsetBytes, l.WorkingSetBytes = o.ReadSetBytes, o.WorkingSetBytes
	if l.ReadPercent == 100 {
		l.Duration = o.ReadTime
	}
	if !m.long {
		l.Duration = min(l.Duration, setTime)
	}
	if m.short {
		l.Duration = min(l.Duration, cachedTime)
	}
	if t.Kind == KindLimit { // memory: it is as fast at once as it ever will be
		l.Duration = min(l.Duration, o.ReadTime)
	}
	if l.ReadPercent == 100 && !m.aged || t.Kind == KindLimit {
		l.OffsetBytes, l.WorkingSetBytes = 0, o.ReadSetBytes
	}
	if m.once && t.Kind != KindLimit {
		l.Ops = l.WorkingSetBytes / int64(l.BlockBytes)
	}
	return l.withDefaults()
}

// applies reports whether a target is measured by the metric: there is nothing to
// learn from how fast memory is flushed, or ages.
func (m metric) applies(t *target) bool {
	return t.Kind != KindLimit || m.load.FlushEvery == 0 && !m.aged && !m.short
}

// run is one run of Run.
type run struct {
	o       Options
	metrics []metric
	targets []*target
	report  *Report
	start   time.Time
	done    int
	total   int
}

// Run starts the targets, fills them, and measures: in each round every metric,
// for every metric every target in turn, beginning with another one each round. All
// servers run all the time; one that is not being measured has nothing to do.
//
// Errors: ErrInvalid for the options, ErrNoSpace if the folder is too small, what
// keeps a server from starting, and what a load ended with. The report holds what
// was measured before an error.
func Run(ctx context.Context, o Options) (Report, error) {
	if err := o.Validate(); err != nil {
		return Report{}, err
	}
	o = o.withDefaults()
	m, err := machine(o.Dir)
	if err != nil {
		return Report{}, err
	}
	if !o.NoFio {
		if m.Fio, err = fioVersion(ctx); err != nil {
			return Report{}, err
		}
	}
	if err := checkSpace(o, m); err != nil {
		return Report{}, err
	}
	r := &run{o: o, start: time.Now(), report: newReport(o, m)}
	for _, m := range metrics() {
		if slices.Contains(o.Metrics, m.name) {
			r.metrics = append(r.metrics, m)
		}
	}
	err = r.measure(ctx)
	r.report.Seconds = time.Since(r.start).Seconds()
	r.report.finish()
	return *r.report, err
}

// checkSpace refuses to begin what would fill the file system.
func checkSpace(o Options, m Machine) error {
	volume := o.ReadSetBytes + o.WorkingSetBytes
	need := volume * int64(len(o.Peers))
	if o.Binary != "" {
		need += volume * spaceFactor
	}
	if uint64(need) > m.FreeBytes {
		return scstore.Hint(fmt.Errorf("measure in %q: %d bytes free, %d needed: %w", o.Dir, m.FreeBytes, need, scstore.ErrNoSpace),
			"name a smaller working set, fewer peers or another folder")
	}
	return nil
}

func (r *run) measure(ctx context.Context) (err error) {
	dir, err := os.MkdirTemp(r.o.Dir, "scstore-bench-")
	if err != nil {
		return fmt.Errorf("make a folder to measure in: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	runDir, err := os.MkdirTemp("", "scb") // a socket's path may have 107 bytes
	if err != nil {
		return fmt.Errorf("make a folder for the sockets: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(runDir)) }()
	defer func() {
		for _, t := range r.targets {
			err = errors.Join(err, t.stop())
		}
	}()
	if dir, err = filepath.Abs(dir); err != nil {
		return err
	}
	if err := r.startAll(ctx, dir, runDir); err != nil {
		return err
	}
	for _, m := range r.metrics {
		for _, t := range r.targets {
			if m.applies(t) {
				r.total += r.o.Rounds
			}
		}
	}
	for _, t := range r.targets {
		if err := r.fill(ctx, t); err != nil {
			return err
		}
	}
	for round := range r.o.Rounds {
		if err := r.round(ctx, round); err != nil {
			return err
		}
	}
	return nil
}

func (r *run) startAll(ctx context.Context, dir, runDir string) error {
	size := r.o.ReadSetBytes + r.o.WorkingSetBytes
	add := func(t *target, err error) error {
		if err == nil {
			r.targets = append(r.targets, t)
			r.report.Targets = append(r.report.Targets, t.Target)
		}
		return err
	}
	if r.o.Binary != "" {
		if err := add(startStore(ctx, r.o.Binary, dir, runDir, size)); err != nil {
			return err
		}
	}
	for _, name := range r.o.Peers {
		if err := add(startPeer(ctx, name, dir, runDir, size)); err != nil {
			return err
		}
	}
	if r.o.NoBare {
		return nil
	}
	return add(startBare(ctx, r.o.BareCommand, runDir, r.o.ReadSetBytes))
}

func (r *run) fill(ctx context.Context, t *target) error {
	r.say("fill " + t.Name)
	size := r.o.ReadSetBytes + r.o.WorkingSetBytes
	if t.Kind == KindLimit {
		size = r.o.ReadSetBytes
	}
	took, err := fill(ctx, t, size, r.o.Seed)
	if err == nil {
		r.report.Fills = append(r.report.Fills, Fill{Target: t.Name, Bytes: size, Seconds: took.Seconds()})
	}
	return err
}

func (r *run) round(ctx context.Context, round int) error {
	for _, m := range r.metrics {
		for i := range r.targets {
			t := r.targets[(i+round)%len(r.targets)]
			if !m.applies(t) {
				continue
			}
			r.say(fmt.Sprintf("round %d of %d: %s: %s", round+1, r.o.Rounds, m.name, t.Name))
			if err := r.one(ctx, m, t, round); err != nil {
				return fmt.Errorf("measure %s of %s: %w", m.name, t.Name, err)
			}
			r.done++
		}
	}
	return nil
}

// one measures one target by one metric, with our load and with fio.
func (r *run) one(ctx context.Context, m metric, t *target, round int) error {
	o := m.options(r.o, t, round)
	if o.ReadPercent == 100 {
		if err := warm(ctx, o); err != nil {
			return err
		}
	}
	before, flushes := t.usage(), deviceFlushes(r.o.Dir)
	result, err := Load(ctx, o)
	if err != nil {
		return err
	}
	after := t.usage()
	s := Sample{
		Round: round + 1, Value: result.OpsPerSecond, Load: &result,
		ServerCPUSeconds: after.cpuSeconds - before.cpuSeconds, ServerRSSBytes: after.rssBytes,
		DeviceFlushes: deviceFlushes(r.o.Dir) - flushes,
	}
	s.P99 = max(result.Read.P99, result.Write.P99)
	if m.unit == "MB/s" {
		s.Value = result.BytesPerSecond / 1e6
	}
	r.report.add(m, t, ToolLoad, s)
	if r.o.NoFio || m.noFio {
		return nil
	}
	o.Duration = min(o.Duration, fioTime)
	f, err := runFio(ctx, o)
	if err != nil {
		return err
	}
	s = Sample{Round: round + 1, Value: f.opsPerSecond, P99: f.p99}
	if m.unit == "MB/s" {
		s.Value = f.bytesPerSecond / 1e6
	}
	r.report.add(m, t, ToolFio, s)
	return nil
}

// warm reads the working set once, so that a read figure is one of memory for
// every target.
func warm(ctx context.Context, o LoadOptions) error {
	const step = 1 << 20
	_, err := Load(ctx, LoadOptions{
		URL: o.URL, ReadPercent: 100, BlockBytes: step, Sequential: true, QueueDepth: 4,
		OffsetBytes: o.OffsetBytes, WorkingSetBytes: o.WorkingSetBytes, Ops: o.WorkingSetBytes / step,
	})
	return err
}

func (r *run) say(step string) {
	if r.o.Progress == nil {
		return
	}
	p := Progress{Step: step, Done: r.done, Total: r.total, Took: time.Since(r.start)}
	if r.done > 0 {
		p.Remain = p.Took / time.Duration(r.done) * time.Duration(r.total-r.done)
	}
	r.o.Progress(p)
}
