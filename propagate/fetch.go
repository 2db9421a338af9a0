package propagate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"scstore"
	"scstore/propagate/wire"
)

// The limits of a fetch.
const (
	// DefaultStreams is how many requests one source answers at a time: one on each of the
	// connections that a lossy path gets.
	DefaultStreams = 32
	// MaxFailures in a row are taken from a source before it is asked no more.
	MaxFailures = 5
	// DefaultWindowBlocks is how much the first manifest is about: 256 MiB. The next is
	// about windowGrowth times as much, and so on up to wire.MaxWindowBlocks.
	DefaultWindowBlocks = 64 << 10

	windowGrowth = 4
	maxWindows   = 2 // whose manifests are here at a time

	retryMin = 50 * time.Millisecond
	retryMax = 2 * time.Second
)

// Stream is one request and its answer.
type Stream interface {
	io.ReadWriter
	// CloseWrite ends the request.
	CloseWrite() error
	// Close ends the stream, whether or not all was read. Reads and writes that are
	// waiting end with an error.
	Close() error
}

// Source is a host that has a volume, or a part of it.
type Source interface {
	// Open opens a stream to it. The stream ends when ctx does.
	Open(ctx context.Context) (Stream, error)
}

// FetchOptions says what to fetch from whom.
type FetchOptions struct {
	// Jump says what to bring. Its window may be larger than a manifest's: it is brought in
	// parts.
	Jump    JumpOptions
	Sources []Source // the best first; at most MaxSources
	Stage   Stage    // safe for concurrent use
	Base    Reader   // the replica at Jump.From, safe for concurrent use; nil for none
	// Digest reads a span back from what is staged, of which so much changes with the jump;
	// if it is asked again all of it may have. Safe for concurrent use.
	Digest func(number uint64, changed []scstore.Extent) (scstore.Digest, error)
	// Staged returns which blocks of a window are staged already; nil: none.
	Staged func(window scstore.Extent) ([]scstore.Extent, error)
	// Hole is the digest of a span of zeros: those are staged and not asked for; the zero
	// value for none.
	Hole         scstore.Digest
	WindowBlocks int            // of the first part, whole spans; default DefaultWindowBlocks
	Streams      int            // for each source; default DefaultStreams
	Progress     func(Progress) // called now and then, from one goroutine at a time; may be nil
}

// fetch is one Fetch. mu guards what follows it, and the jumps' methods are called through
// the wrappers below.
type fetch struct {
	o FetchOptions

	mu     sync.Mutex
	cond   sync.Cond
	jumps  []*Jump  // of the windows under way, in order; their manifests are here
	whole  bool     // no window comes after those
	ended  bool     // they were all stuck
	past   Progress // of the windows that are done
	health []health // of each source
}

// Fetch brings what a jump needs to the stage and verifies it. It asks all sources at
// once, and goes on with the others when one fails. What it staged before an error is
// of use to the next Fetch of the same jump.
//
// It goes from window to window. The manifest of one is asked for while the blocks of the
// one before come: the source hashes all that a manifest is about before it answers. So
// that the first answer is not waited for long, the windows grow.
//
// Errors: ErrNotFound if no source has all of it; ErrCorrupt if what they have does
// not verify; the last source's error when none is left to be asked; those of the
// stage; ctx's.
func Fetch(ctx context.Context, o FetchOptions) (Progress, error) {
	if len(o.Sources) == 0 || len(o.Sources) > MaxSources {
		return Progress{}, fmt.Errorf("fetch %s at %s: %d sources: %w", o.Jump.Volume, o.Jump.To, len(o.Sources), scstore.ErrNotFound)
	}
	if o.Streams == 0 {
		o.Streams = DefaultStreams
	}
	if o.WindowBlocks == 0 {
		o.WindowBlocks = DefaultWindowBlocks
	}
	f := &fetch{o: o, health: make([]health, len(o.Sources))}
	f.cond.L = &f.mu
	err := f.run(ctx)
	f.mu.Lock()
	defer f.mu.Unlock()
	if err == nil && !f.done() {
		err = f.stuck()
	}
	return f.progress(), err
}

// progress adds the windows up. f.mu is held.
func (f *fetch) progress() Progress {
	p := f.past
	for _, j := range f.jumps {
		p = p.plus(j.Progress())
	}
	return p
}

// stuck says why nobody can be asked for what is left. f.mu is held.
func (f *fetch) stuck() error {
	var errs []error
	for _, h := range f.health {
		errs = append(errs, h.err)
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("fetch %s at %s: %w", f.o.Jump.Volume, f.o.Jump.To, err)
	}
	return fmt.Errorf("fetch %s at %s: no source has all blocks: %w", f.o.Jump.Volume, f.o.Jump.To, scstore.ErrNotFound)
}

// ask opens a stream, sends a request and has the answer read.
func ask(ctx context.Context, s Source, request []byte, answer func(io.Reader) error) error {
	stream, err := s.Open(ctx)
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { _ = stream.Close() })()
	_, err = stream.Write(request)
	if err == nil {
		err = stream.CloseWrite()
	}
	if err == nil {
		err = answer(stream)
	}
	return errors.Join(err, stream.Close())
}

// windows cuts an extent into those of manifests.
func windows(e scstore.Extent, first uint64) iter.Seq[scstore.Extent] {
	return func(yield func(scstore.Extent) bool) {
		for size := first; e.Count > 0; size = min(windowGrowth*size, wire.MaxWindowBlocks) {
			window := scstore.Extent{First: e.First, Count: min(e.Count, size)}
			if !yield(window) {
				return
			}
			e = scstore.Extent{First: window.End(), Count: e.Count - window.Count}
		}
	}
}

// manifests begins one window after the other, each while the one before it is brought.
func (f *fetch) manifests(ctx context.Context) error {
	for window := range windows(f.o.Jump.Window, uint64(f.o.WindowBlocks)) {
		f.mu.Lock()
		for len(f.jumps) >= maxWindows && !f.over(ctx) {
			f.cond.Wait()
		}
		over := f.over(ctx)
		f.mu.Unlock()
		if over {
			return nil
		}
		j, err := f.manifest(ctx, window)
		if err == nil {
			err = f.prepare(j, window)
		}
		if err != nil {
			if ctx.Err() != nil {
				return nil // something else ended it
			}
			return err
		}
		f.begin(j)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.whole = true
	f.cond.Broadcast()
	return nil
}

// prepare tells a jump what need not be asked for: zeros, and what is staged already.
func (f *fetch) prepare(j *Jump, window scstore.Extent) error {
	zeros := j.Zeros(f.o.Hole)
	for _, e := range zeros {
		if err := f.o.Stage.ZeroBlocks(e); err != nil {
			return err
		}
	}
	j.Have(zeros)
	if f.o.Staged == nil {
		return nil
	}
	staged, err := f.o.Staged(window)
	j.Have(staged)
	return err
}

// manifest asks the sources in turn for the manifest of a window. A jump that was told half
// a manifest is begun anew.
func (f *fetch) manifest(ctx context.Context, window scstore.Extent) (*Jump, error) {
	o := f.o.Jump
	o.Window = window
	var errs []error
	for _, s := range f.o.Sources {
		j, err := NewJump(o)
		if err != nil {
			return nil, err
		}
		v := &Receiver{Jump: j}
		if err = ask(ctx, s, j.ManifestRequest().AppendTo(nil), v.Manifest); err == nil {
			return j, nil
		}
		errs = append(errs, err)
		if ctx.Err() != nil {
			break
		}
	}
	return nil, fmt.Errorf("fetch manifest of %s at %s: %w", o.Volume, o.To, errors.Join(errs...))
}

// begin has the blocks of a window brought.
func (f *fetch) begin(j *Jump) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, h := range f.health {
		if h.gone {
			j.Drop(i)
		}
	}
	f.jumps = append(f.jumps, j)
	f.retire()
	f.cond.Broadcast()
}

// retire takes the windows away that are done. f.mu is held.
func (f *fetch) retire() {
	f.jumps = slices.DeleteFunc(f.jumps, func(j *Jump) bool {
		if !j.Done() {
			return false
		}
		f.past = f.past.plus(j.Progress())
		return true
	})
}

// run runs until the fetch is done, stuck or broken.
func (f *fetch) run(ctx context.Context) error {
	g, running := errgroup.WithContext(ctx)
	running, stop := context.WithCancel(running) // ends who waits to try again
	defer stop()
	defer context.AfterFunc(running, func() {
		f.mu.Lock() // nobody is between a look at running and his wait
		defer f.mu.Unlock()
		f.cond.Broadcast()
	})()
	g.Go(func() error { return f.manifests(running) })
	for i, s := range f.o.Sources {
		for range f.o.Streams {
			g.Go(func() error { return f.stream(running, i, s) })
		}
	}
	for range 2 {
		g.Go(func() error {
			defer stop()
			return f.verify(running)
		})
	}
	return errors.Join(g.Wait(), context.Cause(ctx))
}

// done reports whether everything is staged and verified. f.mu is held.
func (f *fetch) done() bool { return f.whole && len(f.jumps) == 0 }

// over reports whether nothing is left to do, or nothing can be done: a window that is stuck
// does not keep another one from what it can get. Once it is over it stays so, whatever
// manifest still comes: who has seen it is gone. f.mu is held.
func (f *fetch) over(ctx context.Context) bool {
	if len(f.jumps) > 0 && !slices.ContainsFunc(f.jumps, func(j *Jump) bool { return !j.Stuck(len(f.o.Sources)) }) {
		f.ended = true
	}
	return f.ended || f.done() || ctx.Err() != nil
}

// next returns what to ask a source for next, of the first window that lacks something. f.mu
// is held.
func (f *fetch) next(source int) (*Jump, RequestID, wire.BlocksRequest, bool) {
	for _, j := range f.jumps {
		if id, m, ok := j.Next(source); ok {
			return j, id, m, true
		}
	}
	return nil, 0, wire.BlocksRequest{}, false
}

// unverified returns a span to verify. f.mu is held.
func (f *fetch) unverified() (*Jump, uint64, bool) {
	for _, j := range f.jumps {
		if number, ok := j.Verify(); ok {
			return j, number, true
		}
	}
	return nil, 0, false
}

// health is how one source has done; guarded by fetch.mu.
type health struct {
	failures int // in a row
	gone     bool
	err      error
}

// stream asks one source for one request after the other.
func (f *fetch) stream(ctx context.Context, source int, s Source) error {
	var v *Receiver
	for {
		f.mu.Lock()
		j, id, m, ok := f.next(source)
		for ; !ok && !f.over(ctx) && !f.health[source].gone; j, id, m, ok = f.next(source) {
			f.cond.Wait()
		}
		f.mu.Unlock()
		if !ok {
			return nil
		}
		if v == nil { // its memory is for those that have something to do
			v = &Receiver{Stage: f.o.Stage, Base: f.o.Base}
		}
		v.Jump = shared{f, j}
		err := ask(ctx, s, m.AppendTo(nil), func(r io.Reader) error { return v.Blocks(id, r) })
		v.Jump.Close(id, false) // if the answer never began
		var broken *stageError
		if errors.As(err, &broken) {
			return err
		}
		if wait := f.judge(source, err); wait > 0 {
			select {
			case <-time.After(wait):
			case <-ctx.Done():
			}
		}
	}
}

// judge notes how a request ended and returns how long to leave the source alone.
func (f *fetch) judge(source int, err error) time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	defer f.cond.Broadcast()
	if f.o.Progress != nil {
		f.o.Progress(f.progress())
	}
	h := &f.health[source]
	if h.err = err; err == nil {
		h.failures = 0
		return 0
	}
	if h.failures++; h.failures == MaxFailures {
		h.gone = true
		for _, j := range f.jumps {
			j.Drop(source)
		}
	}
	return min(retryMin<<h.failures, retryMax)
}

// verify reads back what is complete.
func (f *fetch) verify(ctx context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for {
		j, number, ok := f.unverified()
		for ; !ok; j, number, ok = f.unverified() {
			if f.over(ctx) {
				return nil
			}
			f.cond.Wait()
		}
		changed := j.ChangedIn(number)
		f.mu.Unlock()
		d, err := f.o.Digest(number, changed)
		f.mu.Lock()
		if err == nil {
			err = j.Verified(number, d)
		}
		f.retire()
		f.cond.Broadcast()
		if err != nil {
			return err
		}
	}
}

// shared is one of a fetch's jumps, for several receivers at a time.
type shared struct {
	f *fetch
	j *Jump
}

func (s shared) lock() *Jump {
	s.f.mu.Lock()
	return s.j
}

func (s shared) unlock() {
	s.f.cond.Broadcast()
	s.f.mu.Unlock()
}

func (s shared) Manifest(m wire.Manifest) error {
	defer s.unlock()
	return s.lock().Manifest(m)
}

func (s shared) Extents(list []scstore.Extent) error {
	defer s.unlock()
	return s.lock().Extents(list)
}

func (s shared) Spans(m wire.Spans) error {
	defer s.unlock()
	return s.lock().Spans(m)
}

func (s shared) ManifestEnd() error {
	defer s.unlock()
	return s.lock().ManifestEnd()
}

func (s shared) Run(id RequestID, m wire.Run) (bool, error) {
	defer s.unlock()
	return s.lock().Run(id, m)
}

func (s shared) Staged(id RequestID, m wire.Run) {
	defer s.unlock()
	s.lock().Staged(id, m)
}

func (s shared) BadBase(m wire.Run) {
	defer s.unlock()
	s.lock().BadBase(m)
}

func (s shared) Absent(id RequestID, list []scstore.Extent) {
	defer s.unlock()
	s.lock().Absent(id, list)
}

func (s shared) Close(id RequestID, answered bool) {
	defer s.unlock()
	s.lock().Close(id, answered)
}
