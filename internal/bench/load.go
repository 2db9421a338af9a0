package bench

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"scstore"
	"scstore/nbd"
)

// Limits and defaults of a load.
const (
	MaxConnections   = 64
	MaxQueueDepth    = 1024     // requests in flight on one connection
	MaxRequestBytes  = 32 << 20 // of one request; what common servers take
	MaxInFlightBytes = 1 << 30  // depth x request x connections

	DefaultQueueDepth = 32
	DefaultBlockBytes = 4096
	DefaultDuration   = 10 * time.Second
)

// LoadOptions says what to do to one export. Zero values mean the defaults.
type LoadOptions struct {
	URL         string // nbd+unix:///NAME?socket=PATH or nbd://HOST:PORT/NAME
	Connections int    // default 1
	QueueDepth  int    // requests in flight on each connection; default DefaultQueueDepth
	BlockBytes  int    // of each request; default DefaultBlockBytes
	ReadPercent int    // share of reads, 0 to 100
	ZeroPercent int    // share of WRITE_ZEROES among the writes, 0 to 100
	Sequential  bool   // one cursor for all connections, round and round; else uniformly random

	OffsetBytes     int64 // where the working set begins; a multiple of 4096
	WorkingSetBytes int64 // default: to the end of the export

	FlushEvery   int  // on each connection one FLUSH after that many writes; 0: only at the end
	FlushBarrier bool // a FLUSH waits for the writes before it and holds back those after it
	NoFinalFlush bool // leave out the FLUSH at the end, which is part of the time

	Duration time.Duration // until no more is sent; default DefaultDuration, or none if Ops is set
	Ops      int64         // reads and writes of all connections; 0: as many as the time allows
	Seed     uint64        // of the sequence of requests and of the data

	// Journal makes the load a verified one: each block carries a stamp, each read
	// is checked, and the journal knows what must survive. The working set is at
	// most what the journal covers, and BlockBytes a multiple of 4096. With several
	// connections the server must announce MULTI_CONN.
	Journal *Journal
}

func (o LoadOptions) withDefaults() LoadOptions {
	if o.Connections == 0 {
		o.Connections = 1
	}
	if o.QueueDepth == 0 {
		o.QueueDepth = DefaultQueueDepth
	}
	if o.BlockBytes == 0 {
		o.BlockBytes = DefaultBlockBytes
	}
	if o.Duration == 0 && o.Ops == 0 {
		o.Duration = DefaultDuration
	}
	return o
}

// Validate reports what is wrong with the options. Errors: ErrInvalid.
func (o LoadOptions) Validate() error {
	o = o.withDefaults()
	inFlight := int64(o.Connections) * int64(o.QueueDepth) * int64(o.BlockBytes)
	for _, c := range []struct {
		bad  bool
		what string
	}{
		{o.Connections < 0 || o.Connections > MaxConnections, fmt.Sprintf("connections: %d, want 1 to %d", o.Connections, MaxConnections)},
		{o.QueueDepth < 0 || o.QueueDepth > MaxQueueDepth, fmt.Sprintf("queue depth: %d, want 1 to %d", o.QueueDepth, MaxQueueDepth)},
		{o.BlockBytes < 512 || o.BlockBytes > MaxRequestBytes || o.BlockBytes%512 != 0, fmt.Sprintf("block size: %d, want a multiple of 512 up to %d", o.BlockBytes, MaxRequestBytes)},
		{inFlight > MaxInFlightBytes, fmt.Sprintf("bytes in flight: %d, want at most %d", inFlight, MaxInFlightBytes)},
		{o.ReadPercent < 0 || o.ReadPercent > 100, fmt.Sprintf("share of reads: %d, want 0 to 100", o.ReadPercent)},
		{o.ZeroPercent < 0 || o.ZeroPercent > 100, fmt.Sprintf("share of zeroes: %d, want 0 to 100", o.ZeroPercent)},
		{o.OffsetBytes < 0 || o.OffsetBytes%scstore.BlockSize != 0, fmt.Sprintf("offset: %d, want a multiple of %d", o.OffsetBytes, scstore.BlockSize)},
		{o.OffsetBytes > 0 && o.Journal != nil, "a verified load begins at offset 0"},
		{o.FlushEvery < 0 || o.Ops < 0 || o.Duration < 0 || o.WorkingSetBytes < 0, "negative count, duration or size"},
		{o.Journal != nil && o.BlockBytes%scstore.BlockSize != 0, fmt.Sprintf("block size: %d, a verified load wants a multiple of %d", o.BlockBytes, scstore.BlockSize)},
	} {
		if c.bad {
			return fmt.Errorf("check the load's options: %s: %w", c.what, scstore.ErrInvalid)
		}
	}
	return nil
}

// LoadResult is what a load did and how long it took.
type LoadResult struct {
	Reads   int64   `json:"reads"`
	Writes  int64   `json:"writes"`  // WRITE_ZEROES among them
	Flushes int64   `json:"flushes"` // answered FLUSH requests, the final ones among them
	Bytes   int64   `json:"bytes"`   // read and written
	Seconds float64 `json:"seconds"` // first request to the reply of the last, the final flush among them

	OpsPerSecond      float64 `json:"ops_per_second"` // reads and writes
	BytesPerSecond    float64 `json:"bytes_per_second"`
	FinalFlushSeconds float64 `json:"final_flush_seconds"` // the longest of the connections

	Read  Latency `json:"read_latency"`
	Write Latency `json:"write_latency"`
	Flush Latency `json:"flush_latency"`
}

// load is one run of Load.
type load struct {
	o         LoadOptions
	blocks    int64 // requests that fit in the working set
	cursor    atomic.Int64
	remaining atomic.Int64 // of o.Ops
	payload   []byte       // random bytes that plain writes are cut from
}

// Load drives an export until its time or its count of operations is over, or ctx
// is done. What was done so far is returned beside an error.
//
// Errors: ErrInvalid for the options or a server that lacks what they ask;
// ErrUnreachable if the connection fails; ErrCorrupt if a verified read returned
// what it may not; else what the server answered (syscall.Errno).
func Load(ctx context.Context, o LoadOptions) (LoadResult, error) {
	if err := o.Validate(); err != nil {
		return LoadResult{}, err
	}
	o = o.withDefaults()
	conns, err := dialAll(ctx, o)
	if err != nil {
		return LoadResult{}, err
	}
	l, err := newLoad(o, conns[0].Size())
	if err != nil {
		return LoadResult{}, errors.Join(err, closeAll(conns))
	}
	workers := make([]*worker, len(conns))
	for i, c := range conns {
		if workers[i], err = newWorker(ctx, l, c, i); err != nil {
			return LoadResult{}, errors.Join(err, closeAll(conns), abort(workers[:i]))
		}
	}
	errs := make([]error, len(conns))
	start, runCtx := time.Now(), ctx
	if o.Duration > 0 {
		var cancel context.CancelFunc
		runCtx, cancel = context.WithTimeout(ctx, o.Duration)
		defer cancel()
	}
	var wg sync.WaitGroup
	for i, w := range workers {
		wg.Go(func() { errs[i] = w.run(runCtx, ctx) })
	}
	wg.Wait()
	result := l.result(workers, time.Since(start))
	return result, errors.Join(append(errs, ctx.Err())...)
}

func dialAll(ctx context.Context, o LoadOptions) ([]*nbd.Client, error) {
	var conns []*nbd.Client
	for range o.Connections {
		c, err := dial(ctx, o.URL, o.QueueDepth)
		if err == nil {
			conns = append(conns, c)
			err = checkExport(c, o)
		}
		if err != nil {
			return nil, errors.Join(err, closeAll(conns))
		}
	}
	return conns, nil
}

// checkExport reports whether the export can do what the load asks of it.
func checkExport(c *nbd.Client, o LoadOptions) error {
	writes := o.ReadPercent < 100
	switch {
	case writes && c.ReadOnly():
		return fmt.Errorf("load %s: %w", o.URL, scstore.ErrReadOnly)
	case c.Flags()&nbd.FlagSendFlush == 0 && writes && (o.FlushEvery > 0 || !o.NoFinalFlush):
		return fmt.Errorf("load %s: the server knows no FLUSH: %w", o.URL, scstore.ErrInvalid)
	case c.Flags()&nbd.FlagSendWriteZeroes == 0 && writes && o.ZeroPercent > 0:
		return fmt.Errorf("load %s: the server knows no WRITE_ZEROES: %w", o.URL, scstore.ErrInvalid)
	case c.Flags()&nbd.FlagCanMultiConn == 0 && o.Journal != nil && o.Connections > 1:
		return fmt.Errorf("verify %s over %d connections: the server announces no MULTI_CONN: %w", o.URL, o.Connections, scstore.ErrInvalid)
	}
	return nil
}

// dial connects with room for a load's requests. Structured replies would only
// cost headers: a load wants the data, not the holes.
func dial(ctx context.Context, url string, depth int) (*nbd.Client, error) {
	return nbd.Dial(ctx, url, nbd.DialOptions{MaxInFlight: depth, SimpleReplies: true})
}

func closeAll(conns []*nbd.Client) (err error) {
	for _, c := range conns {
		err = errors.Join(err, c.Close())
	}
	return err
}

func newLoad(o LoadOptions, size int64) (*load, error) {
	set := size - o.OffsetBytes
	if o.WorkingSetBytes > 0 {
		set = min(set, o.WorkingSetBytes)
	}
	if o.Journal != nil {
		set = min(set, o.Journal.BlockCount()*scstore.BlockSize)
	}
	l := &load{o: o, blocks: set / int64(o.BlockBytes)}
	if l.blocks <= 0 {
		return nil, fmt.Errorf("load %s: no block of %d bytes in %d bytes: %w", o.URL, o.BlockBytes, set, scstore.ErrInvalid)
	}
	if o.Journal != nil && l.blocks < int64(o.Connections)*int64(o.QueueDepth)*2 {
		return nil, fmt.Errorf("verify %s: %d blocks are too few for %d requests in flight: %w",
			o.URL, l.blocks, o.Connections*o.QueueDepth, scstore.ErrInvalid)
	}
	l.remaining.Store(o.Ops)
	if o.Journal == nil {
		l.payload = randomPayload(o.Seed, 2*o.BlockBytes+1<<20)
	}
	return l, nil
}

// randomPayload returns bytes that do not compress and hold no zero block.
func randomPayload(seed uint64, n int) []byte {
	var key [32]byte
	for i := range key {
		key[i] = byte(seed >> (8 * (i % 8)))
	}
	p := make([]byte, n)
	rand.NewChaCha8(key).Read(p)
	return p
}

// worker drives one connection.
type worker struct {
	l          *load
	engine     engine
	rng        *rand.Rand
	sinceFlush int
	stats      stats // of the receiving goroutine
	finalStart time.Time
	final      time.Duration
}

// engine keeps requests in flight on one connection: a pipeline or an inline.
type engine interface {
	run(ctx, abandon context.Context, last func(r *request) bool) error
	close() error // instead of run
}

// newWorker gives the connection to a pipeline, or closes it and makes an inline
// one of its own.
func newWorker(ctx context.Context, l *load, c *nbd.Client, index int) (*worker, error) {
	w := &worker{l: l, rng: rand.New(rand.NewPCG(l.o.Seed, uint64(index))), stats: newStats()}
	if !inlineSuits(l.o) {
		p := newPipeline(c, l.o.QueueDepth, l.o.BlockBytes)
		p.next, p.sending, p.done = w.next, w.sending, w.done
		w.engine = p
		return w, nil
	}
	if err := c.Close(); err != nil {
		return nil, err
	}
	p, err := dialInline(ctx, l.o.URL, l.o.QueueDepth, l.o.BlockBytes)
	if err != nil {
		return nil, err
	}
	p.next, p.done = w.next, w.done
	w.engine = p
	return w, nil
}

// abort closes the workers that will not run.
func abort(workers []*worker) (err error) {
	for _, w := range workers {
		err = errors.Join(err, w.engine.close())
	}
	return err
}

func (w *worker) run(ctx, abandon context.Context) error {
	last := func(r *request) bool {
		w.finalStart = time.Now()
		r.Cmd, r.Offset, r.length = nbd.CmdFlush, 0, 0
		return true
	}
	if w.l.o.NoFinalFlush || w.l.o.ReadPercent == 100 {
		last = nil
	}
	err := w.engine.run(ctx, abandon, last)
	if last != nil && err == nil && !w.finalStart.IsZero() {
		w.final = time.Since(w.finalStart)
	}
	if err != nil {
		return fmt.Errorf("load %s: %w", w.l.o.URL, err)
	}
	return nil
}

// sending notes what a FLUSH covers: what was acknowledged by now.
func (w *worker) sending(r *request) {
	if j := w.l.o.Journal; j != nil && r.Cmd == nbd.CmdFlush {
		r.mark = j.beginFlush()
	}
}

// next chooses the next request.
func (w *worker) next(r *request) bool {
	o := &w.l.o
	if o.FlushEvery > 0 && w.sinceFlush >= o.FlushEvery {
		w.sinceFlush = 0
		r.Cmd, r.Offset, r.length, r.alone = nbd.CmdFlush, 0, 0, o.FlushBarrier
		return true
	}
	if o.Ops > 0 && w.l.remaining.Add(-1) < 0 {
		return false
	}
	r.length = o.BlockBytes
	if o.ReadPercent > 0 && w.rng.IntN(100) < o.ReadPercent {
		r.Cmd = nbd.CmdRead
		r.Data = r.buf[:r.length]
		r.Offset = w.l.place(w.rng)
		if o.Journal != nil {
			r.floors = o.Journal.beginRead(r.floors[:0], r.Offset/scstore.BlockSize, int64(r.length)/scstore.BlockSize)
		}
		return true
	}
	w.sinceFlush++
	r.Cmd = nbd.CmdWrite
	if o.ZeroPercent > 0 && w.rng.IntN(100) < o.ZeroPercent {
		r.Cmd = nbd.CmdWriteZeroes
	}
	w.place(r)
	return true
}

// place gives a write its offset and its payload.
func (w *worker) place(r *request) {
	o := &w.l.o
	count := int64(r.length) / scstore.BlockSize
	for r.Offset = w.l.place(w.rng); o.Journal != nil; r.Offset = w.l.place(w.rng) {
		if o.Journal.beginWrite(r.Offset/scstore.BlockSize, count, r.Cmd == nbd.CmdWriteZeroes) {
			break
		}
	}
	switch {
	case r.Cmd == nbd.CmdWriteZeroes:
		r.Length = uint32(r.length)
	case o.Journal != nil:
		r.Data = o.Journal.appendPayload(r.buf[:0], r.Offset/scstore.BlockSize, count)
	default:
		at := w.rng.IntN(len(w.l.payload) - r.length)
		r.Data = w.l.payload[at : at+r.length]
	}
}

// place returns the offset of the next request.
func (l *load) place(rng *rand.Rand) int64 {
	block := int64(0)
	if l.o.Sequential {
		block = (l.cursor.Add(1) - 1) % l.blocks
	} else {
		block = rng.Int64N(l.blocks)
	}
	return l.o.OffsetBytes + block*int64(l.o.BlockBytes)
}

// done records an answered request.
func (w *worker) done(r *request, took time.Duration) error {
	w.stats.record(r, took)
	j := w.l.o.Journal
	if j == nil {
		return nil
	}
	first, count := r.Offset/scstore.BlockSize, int64(r.length)/scstore.BlockSize
	switch r.Cmd {
	case nbd.CmdRead:
		return j.endRead(r.floors, first, r.buf[:r.length])
	case nbd.CmdFlush:
		j.endFlush(r.mark)
		return nil
	default:
		return j.endWrite(first, count)
	}
}

func (l *load) result(workers []*worker, took time.Duration) LoadResult {
	all := newStats()
	var final time.Duration
	for _, w := range workers {
		all.merge(w.stats)
		final = max(final, w.final)
	}
	r := LoadResult{
		Reads:             all.read.TotalCount(),
		Writes:            all.write.TotalCount(),
		Flushes:           all.flush.TotalCount(),
		Seconds:           took.Seconds(),
		FinalFlushSeconds: final.Seconds(),
		Read:              latencyOf(all.read),
		Write:             latencyOf(all.write),
		Flush:             latencyOf(all.flush),
	}
	r.Bytes = (r.Reads + r.Writes) * int64(l.o.BlockBytes)
	r.OpsPerSecond = float64(r.Reads+r.Writes) / r.Seconds
	r.BytesPerSecond = float64(r.Bytes) / r.Seconds
	return r
}
