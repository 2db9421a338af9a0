package propagate_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"

	"go.uber.org/goleak"

	"scstore"
	"scstore/propagate"
	"scstore/propagate/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// library is a host with two positions of one volume.
type library struct {
	from, to *content
	changed  []scstore.Extent
	request  wire.ManifestRequest // that it can answer, for any window
	offered  func(window scstore.Extent) error
	opened   func() // both are called for each request, if set
}

func (l *library) Offer(_ context.Context, m wire.ManifestRequest) (propagate.Offer, func(), error) {
	if l.offered != nil {
		if err := l.offered(m.Window); err != nil {
			return propagate.Offer{}, nil, err
		}
	}
	want := l.request
	if want.Window = m.Window; m != want {
		return propagate.Offer{}, nil, fmt.Errorf("offer: %w", scstore.ErrNotFound)
	}
	var changed []scstore.Extent
	for _, e := range l.changed {
		if e = e.Clamp(m.Window); e.Count > 0 {
			changed = append(changed, e)
		}
	}
	digest := func(number uint64) (scstore.Digest, error) { return spanDigest(l.to.bytes, number), nil }
	return propagate.Offer{Request: m, SizeBytes: int64(len(l.to.bytes)), Changed: changed, Digest: digest, Root: root}, func() {}, nil
}

func (l *library) Open(_ context.Context, _ scstore.VolumeID, p scstore.Position) (propagate.Reader, func(), error) {
	if l.opened != nil {
		l.opened()
	}
	switch p {
	case l.request.From:
		return l.from, func() {}, nil
	case l.request.To:
		return l.to, func() {}, nil
	}
	return nil, nil, fmt.Errorf("open %s: %w", p, scstore.ErrNotFound)
}

// source serves a library over pipes, which break.
type source struct {
	t    *testing.T
	lib  *library
	link propagate.Link
	dead error // what Open says, if set
	cuts int   // of 100 streams, that many end after some bytes

	mu  sync.Mutex
	rng *rand.Rand
	wg  sync.WaitGroup
}

func (s *source) Open(ctx context.Context) (propagate.Stream, error) {
	if s.dead != nil {
		return nil, s.dead
	}
	near, far := net.Pipe()
	limit := int64(1) << 40
	s.mu.Lock()
	if s.rng.IntN(100) < s.cuts {
		limit = s.rng.Int64N(1 << 20)
	}
	s.mu.Unlock()
	s.wg.Go(func() {
		_ = propagate.Serve(ctx, stream{far, &io.LimitedReader{N: limit}}, s.lib, &s.link)
		_ = far.Close()
	})
	return stream{near, nil}, nil
}

// stream is a pipe that breaks after so many bytes were written to it.
type stream struct {
	net.Conn
	limit *io.LimitedReader
}

func (s stream) Write(p []byte) (int, error) {
	if s.limit != nil {
		if s.limit.N -= int64(len(p)); s.limit.N < 0 {
			_ = s.Close()
			return 0, syscall.EPIPE
		}
	}
	return s.Conn.Write(p)
}

func (stream) CloseWrite() error { return nil } // a request is one frame

// safe is a content that several may use at a time.
type safe struct {
	mu sync.Mutex
	content
	err error // of writes
}

func (s *safe) ReadBlocks(first scstore.BlockIndex, p []byte) ([]scstore.Extent, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.content.ReadBlocks(first, p)
}

func (s *safe) WriteBlocks(first scstore.BlockIndex, p []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return errors.Join(s.err, s.content.WriteBlocks(first, p))
}

func (s *safe) ZeroBlocks(e scstore.Extent) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return errors.Join(s.err, s.content.ZeroBlocks(e))
}

func (s *safe) digest(number uint64, _ []scstore.Extent) (scstore.Digest, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return spanDigest(s.bytes, number), nil
}

// fetchWorld is a replica that is behind, and hosts that are not.
type fetchWorld struct {
	old, next []byte
	changed   []scstore.Extent
	stage     *safe
	sources   []*source
	o         propagate.FetchOptions
}

func newFetchWorld(t *testing.T, seed uint64, sources int) *fetchWorld {
	t.Helper()
	rng := rand.New(rand.NewPCG(seed, 3))
	w := &fetchWorld{old: make([]byte, (6*propagate.SpanBlocks+100)*blockSize)}
	for i := range len(w.old) / 16 {
		w.old[i*16] = byte(rng.Uint32())
	}
	w.next = bytes.Clone(w.old)
	for b := 3; b < len(w.old)/blockSize-60; b += 50 {
		e := scstore.Extent{First: scstore.BlockIndex(b), Count: uint64(1 + rng.IntN(40))}
		w.changed = append(w.changed, e)
		for i := e.First.Offset(); i < e.End().Offset(); i++ {
			w.next[i] ^= byte(rng.Uint32())
		}
	}
	w.stage = &safe{content: content{bytes: bytes.Clone(w.old)}}
	o := propagate.JumpOptions{RequestBlocks: 64, Root: root, To: scstore.Position{Fence: 1, Epoch: 9}, From: scstore.Position{Fence: 1, Epoch: 2}}
	o.Volume[0] = 1
	o.Window = scstore.Extent{Count: uint64((len(w.old)+spanBytes-1)/spanBytes) * propagate.SpanBlocks}
	w.o = propagate.FetchOptions{Jump: o, Stage: w.stage, Base: &content{bytes: w.old}, Digest: w.stage.digest, Streams: 3}
	for i := range sources {
		l := &library{from: &content{bytes: w.old}, to: &content{bytes: w.next}, changed: w.changed}
		l.request = wire.ManifestRequest{Volume: o.Volume, From: o.From, To: o.To}
		s := &source{t: t, lib: l, rng: rand.New(rand.NewPCG(seed, uint64(i)))}
		w.sources = append(w.sources, s)
		w.o.Sources = append(w.o.Sources, s)
	}
	t.Cleanup(func() {
		for _, s := range w.sources {
			s.wg.Wait()
		}
	})
	return w
}

func TestFetch_GoesOnWhenSourcesFail(t *testing.T) {
	for seed := range uint64(20) {
		w := newFetchWorld(t, seed, 4)
		w.o.WindowBlocks = propagate.SpanBlocks * int(seed%3) // three windows, two, or one
		w.sources[0].dead = syscall.ECONNREFUSED
		w.sources[1].cuts = 70
		w.sources[2].lib.to = &content{bytes: w.next, absent: map[scstore.BlockIndex]bool{5: true, 60: true, 700: true}}
		p, err := propagate.Fetch(t.Context(), w.o)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if !bytes.Equal(w.stage.bytes, w.next) {
			t.Fatalf("seed %d: fetched, and the content is not the new one: %+v", seed, p)
		}
		if p.Verified != p.Spans || p.Spans == 0 {
			t.Errorf("seed %d: %+v", seed, p)
		}
	}
}

func TestFetch_DoesNotAskForWhatIsStaged(t *testing.T) {
	w := newFetchWorld(t, 1, 1)
	first, err := propagate.Fetch(t.Context(), w.o)
	if err != nil {
		t.Fatal(err)
	}
	w.o.WindowBlocks = propagate.SpanBlocks
	w.o.Staged = func(window scstore.Extent) ([]scstore.Extent, error) { return []scstore.Extent{window}, nil }
	again, err := propagate.Fetch(t.Context(), w.o)
	if err != nil {
		t.Fatal(err)
	}
	if first.Payload == 0 || again.Payload != 0 || again.Verified != first.Spans {
		t.Errorf("first %+v, again %+v", first, again)
	}
}

func TestFetch_DoesNotAskForSpansOfZeros(t *testing.T) {
	w := newFetchWorld(t, 1, 1)
	absent := map[scstore.BlockIndex]bool{}
	span := scstore.Extent{First: 2 * propagate.SpanBlocks, Count: propagate.SpanBlocks}
	for b := span.First; b < span.End(); b++ {
		absent[b] = true
	}
	clear(w.next[span.First.Offset():span.End().Offset()])
	lib := w.sources[0].lib
	lib.changed = append(slices.DeleteFunc(lib.changed, func(e scstore.Extent) bool { return e.End() > span.First }), span)
	copy(w.next[span.End().Offset():], w.old[span.End().Offset():])
	lib.to = &content{bytes: w.next, absent: absent}
	w.o.Hole = spanDigest(make([]byte, spanBytes), 0)
	if _, err := propagate.Fetch(t.Context(), w.o); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(w.stage.bytes, w.next) {
		t.Error("the content is not the new one")
	}
}

// TestFetch_AsksForTheNextManifestWhileBlocksCome has a source that answers for blocks only
// once it was asked for all manifests: the source hashes for each of them, for seconds.
func TestFetch_AsksForTheNextManifestWhileBlocksCome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newFetchWorld(t, 1, 1)
		w.o.WindowBlocks = 2 * propagate.SpanBlocks // and the rest
		asked := make(chan struct{})
		lib := w.sources[0].lib
		var windows []scstore.Extent
		lib.offered = func(window scstore.Extent) error {
			if windows = append(windows, window); len(windows) == 2 {
				close(asked)
			}
			return nil
		}
		lib.opened = func() { <-asked }
		p, err := propagate.Fetch(t.Context(), w.o)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(w.stage.bytes, w.next) || p.Verified != p.Spans || p.Blocks != p.Staged {
			t.Errorf("fetched, and the content is not the new one: %+v", p)
		}
		const span = propagate.SpanBlocks
		if want := []scstore.Extent{{First: 0, Count: 2 * span}, {First: 2 * span, Count: 5 * span}}; !slices.Equal(windows, want) {
			t.Errorf("windows %v, want %v", windows, want)
		}
	})
}

func TestFetch_SaysWhyItDoesNotEnd(t *testing.T) {
	full := errors.New("no room")
	for name, c := range map[string]struct {
		hurt func(w *fetchWorld, cancel context.CancelCauseFunc)
		want error
	}{
		"nobody there after the first window": {func(w *fetchWorld, _ context.CancelCauseFunc) {
			w.o.WindowBlocks = propagate.SpanBlocks
			w.sources[0].dead = syscall.EHOSTDOWN
			w.sources[1].lib.offered = func(window scstore.Extent) error {
				if window.First > 0 {
					return scstore.ErrNotFound
				}
				return nil
			}
		}, syscall.EHOSTDOWN},
		"nobody there": {func(w *fetchWorld, _ context.CancelCauseFunc) {
			w.sources[0].dead, w.sources[1].dead = syscall.EHOSTDOWN, syscall.EHOSTDOWN
		}, syscall.EHOSTDOWN},
		"nobody has the position": {func(w *fetchWorld, _ context.CancelCauseFunc) { w.o.Jump.To.Epoch = 99 }, scstore.ErrNotFound},
		"nobody has a block": {func(w *fetchWorld, _ context.CancelCauseFunc) {
			for _, s := range w.sources {
				s.lib.to = &content{bytes: w.next, absent: map[scstore.BlockIndex]bool{w.changed[2].First: true}}
			}
		}, scstore.ErrNotFound},
		"nobody has a block of a later window": {func(w *fetchWorld, _ context.CancelCauseFunc) {
			w.o.WindowBlocks = propagate.SpanBlocks
			for _, s := range w.sources {
				s.lib.to = &content{bytes: w.next, absent: map[scstore.BlockIndex]bool{w.changed[len(w.changed)-1].First: true}}
			}
		}, scstore.ErrNotFound},
		"what is staged can't be told": {func(w *fetchWorld, _ context.CancelCauseFunc) {
			w.o.WindowBlocks = propagate.SpanBlocks
			w.o.Staged = func(window scstore.Extent) ([]scstore.Extent, error) {
				if window.First > 0 {
					return nil, full
				}
				return nil, nil
			}
		}, full},
		"wrong bytes": {func(w *fetchWorld, _ context.CancelCauseFunc) {
			digest := w.o.Digest
			w.o.Digest = func(number uint64, changed []scstore.Extent) (d scstore.Digest, err error) {
				if number == 3 {
					return d, nil
				}
				return digest(number, changed)
			}
		}, scstore.ErrCorrupt},
		"no room":           {func(w *fetchWorld, _ context.CancelCauseFunc) { w.stage.err = full }, full},
		"cancelled":         {func(_ *fetchWorld, cancel context.CancelCauseFunc) { cancel(syscall.EINTR) }, syscall.EINTR},
		"no sources at all": {func(w *fetchWorld, _ context.CancelCauseFunc) { w.o.Sources = nil }, scstore.ErrNotFound},
	} {
		t.Run(name, func(t *testing.T) {
			w := newFetchWorld(t, 7, 2)
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			c.hurt(w, cancel)
			if _, err := propagate.Fetch(ctx, w.o); !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
		})
	}
}
