package propagate

import (
	"context"
	"errors"
	"fmt"
	"io"
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
	Jump    JumpOptions
	Sources []Source // the best first; at most MaxSources
	Stage   Stage    // safe for concurrent use
	Base    Reader   // the replica at Jump.From, safe for concurrent use; nil for none
	// Digest reads a span back from what is staged. Safe for concurrent use.
	Digest func(number uint64) (scstore.Digest, error)
	// Staged returns which of the extents are staged already; nil: none.
	Staged   func(changed []scstore.Extent) []scstore.Extent
	Streams  int            // for each source; default DefaultStreams
	Progress func(Progress) // called now and then, from one goroutine at a time; may be nil
}

// fetch is one Fetch. mu guards jump, and the jump's methods are called through the
// wrappers below.
type fetch struct {
	o FetchOptions

	mu     sync.Mutex
	cond   sync.Cond
	jump   *Jump
	health []health // of each source
}

// Fetch brings what a jump needs to the stage and verifies it. It asks all sources at
// once, and goes on with the others when one fails. What it staged before an error is
// of use to the next Fetch of the same jump.
//
// Errors: ErrNotFound if no source has all of it; ErrCorrupt if what they have does
// not verify; the last source's error when none is left to be asked; those of the
// stage; ctx's.
func Fetch(ctx context.Context, o FetchOptions) (Progress, error) {
	j, err := NewJump(o.Jump)
	if err != nil {
		return Progress{}, err
	}
	if len(o.Sources) == 0 || len(o.Sources) > MaxSources {
		return Progress{}, fmt.Errorf("fetch %s at %s: %d sources: %w", o.Jump.Volume, o.Jump.To, len(o.Sources), scstore.ErrNotFound)
	}
	if o.Streams == 0 {
		o.Streams = DefaultStreams
	}
	f := &fetch{o: o, jump: j, health: make([]health, len(o.Sources))}
	f.cond.L = &f.mu
	if err := f.manifest(ctx); err != nil {
		return Progress{}, err
	}
	if o.Staged != nil {
		f.jump.Have(o.Staged(f.jump.Changed()))
	}
	err = f.blocks(ctx)
	f.mu.Lock()
	defer f.mu.Unlock()
	if err == nil && !f.jump.Done() {
		err = f.stuck()
	}
	return f.jump.Progress(), err
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

// manifest asks the sources in turn. A jump that was told half a manifest is begun
// anew.
func (f *fetch) manifest(ctx context.Context) error {
	var errs []error
	for _, s := range f.o.Sources {
		j, err := NewJump(f.o.Jump)
		if err != nil {
			return err
		}
		v := &Receiver{Jump: j}
		err = ask(ctx, s, j.ManifestRequest().AppendTo(nil), v.Manifest)
		if err == nil {
			f.jump = j
			return nil
		}
		errs = append(errs, err)
		if ctx.Err() != nil {
			errs = []error{context.Cause(ctx)}
			break
		}
	}
	return fmt.Errorf("fetch manifest of %s at %s: %w", f.o.Jump.Volume, f.o.Jump.To, errors.Join(errs...))
}

// blocks runs until the jump is done, stuck or broken.
func (f *fetch) blocks(ctx context.Context) error {
	g, running := errgroup.WithContext(ctx)
	running, stop := context.WithCancel(running) // ends who waits to try again
	defer stop()
	defer context.AfterFunc(running, f.cond.Broadcast)()
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

// over reports whether nothing is left to do. f.mu is held.
func (f *fetch) over(ctx context.Context) bool {
	return ctx.Err() != nil || f.jump.Done() || f.jump.Stuck(len(f.o.Sources))
}

// health is how one source has done; guarded by fetch.mu.
type health struct {
	failures int // in a row
	err      error
}

// stream asks one source for one request after the other.
func (f *fetch) stream(ctx context.Context, source int, s Source) error {
	var v *Receiver
	for {
		f.mu.Lock()
		id, m, ok := f.jump.Next(source)
		for ; !ok && !f.over(ctx) && f.health[source].failures < MaxFailures; id, m, ok = f.jump.Next(source) {
			f.cond.Wait()
		}
		f.mu.Unlock()
		if !ok {
			return nil
		}
		if v == nil { // its memory is for those that have something to do
			v = &Receiver{Jump: shared{f}, Stage: f.o.Stage, Base: f.o.Base}
		}
		err := ask(ctx, s, m.AppendTo(nil), func(r io.Reader) error { return v.Blocks(id, r) })
		shared{f}.Close(id, false) // if the answer never began
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
		f.o.Progress(f.jump.Progress())
	}
	h := &f.health[source]
	if h.err = err; err == nil {
		h.failures = 0
		return 0
	}
	if h.failures++; h.failures == MaxFailures {
		f.jump.Drop(source)
	}
	return min(retryMin<<h.failures, retryMax)
}

// verify reads back what is complete.
func (f *fetch) verify(ctx context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for {
		number, ok := f.jump.Verify()
		for ; !ok; number, ok = f.jump.Verify() {
			if f.over(ctx) {
				return nil
			}
			f.cond.Wait()
		}
		f.mu.Unlock()
		d, err := f.o.Digest(number)
		f.mu.Lock()
		if err == nil {
			err = f.jump.Verified(number, d)
		}
		f.cond.Broadcast()
		if err != nil {
			return err
		}
	}
}

// shared is a fetch's jump, for several receivers at a time.
type shared struct{ f *fetch }

func (s shared) lock() *Jump {
	s.f.mu.Lock()
	return s.f.jump
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
