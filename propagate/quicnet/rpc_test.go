package quicnet

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"scstore"
)

func TestRequest_ErrorsKeepTheirKind(t *testing.T) {
	w := newWorld(t)
	a := w.host(t, 1, nil)
	w.host(t, 2, nil)
	for i, want := range scstore.Sentinels() {
		_, err := a.Request(t.Context(), disk(2), ClassRaft, kindFail, []byte{byte(i)})
		var remote *RemoteError
		if !errors.Is(err, want) || !errors.As(err, &remote) {
			t.Errorf("%v comes back as %v", want, err)
		}
	}
	if _, err := a.Request(t.Context(), disk(2), ClassRaft, 999, nil); !errors.Is(err, scstore.ErrNotFound) {
		t.Errorf("a kind that nobody answers: %v", err)
	}
	for range 20 { // the answer comes before the request is read
		if _, err := a.Request(t.Context(), disk(2), ClassRaft, 999, make([]byte, MaxFrameBytes)); !errors.Is(err, scstore.ErrNotFound) {
			t.Errorf("a long request of a kind that nobody answers: %v", err)
		}
	}
	if _, err := a.Request(t.Context(), disk(7), ClassRaft, kindEcho, nil); !errors.Is(err, scstore.ErrNotFound) {
		t.Errorf("a disk that is nowhere: %v", err)
	}
	for _, self := range []scstore.StoreID{disk(1), {}} {
		if _, err := a.Request(t.Context(), self, ClassRaft, kindEcho, nil); !errors.Is(err, scstore.ErrInvalid) {
			t.Errorf("disk %s: %v", self, err)
		}
	}
	if _, err := a.Request(t.Context(), disk(2), classCount, kindEcho, nil); !errors.Is(err, scstore.ErrInvalid) {
		t.Errorf("a class that is none: %v", err)
	}
}

func TestRequest_SizesUpToTheLimitPass(t *testing.T) {
	w := newWorld(t)
	a, b := w.host(t, 1, nil), w.open(t, 2, nil)
	b.Answer(kindEcho, func(_ context.Context, _ Peer, request []byte) ([]byte, error) { return request, nil })
	if err := b.Start(); err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{0, 1, frameStep, frameStep + 1, MaxFrameBytes - replyHeadBytes} {
		want := bytes.Repeat([]byte{byte(n), 1, 2}, n/3+1)[:n]
		got, err := a.Request(t.Context(), disk(2), ClassDemand, kindEcho, want)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d bytes: got %d, %v", n, len(got), err)
		}
	}
	if _, err := a.Request(t.Context(), disk(2), ClassDemand, kindEcho, make([]byte, MaxFrameBytes)); !errors.Is(err, scstore.ErrInvalid) {
		t.Errorf("an answer over the limit: %v", err)
	}
	if _, err := a.Request(t.Context(), disk(2), ClassDemand, kindEcho, make([]byte, MaxFrameBytes+1)); !errors.Is(err, scstore.ErrInvalid) {
		t.Errorf("a request over the limit: %v", err)
	}
}

func TestRequest_CutInTheMiddleIsInDoubt(t *testing.T) {
	w := newWorld(t)
	a, b := w.host(t, 1, nil), w.open(t, 2, nil)
	begun, ended := make(chan struct{}), make(chan struct{})
	b.Answer(kindBlock, func(ctx context.Context, _ Peer, _ []byte) ([]byte, error) {
		close(begun)
		<-ctx.Done()
		close(ended)
		return nil, ctx.Err()
	})
	if err := b.Start(); err != nil {
		t.Fatal(err)
	}
	answer := make(chan error, 1)
	go func() {
		_, err := a.Request(t.Context(), disk(2), ClassRaft, kindBlock, nil)
		answer <- err
	}()
	<-begun
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	<-ended
	if err := <-answer; !errors.Is(err, scstore.ErrIndeterminate) {
		t.Errorf("got %v", err)
	}
}

func TestRequest_EndOfTheCallersContextReachesTheHandler(t *testing.T) {
	w := newWorld(t)
	a, b := w.host(t, 1, nil), w.open(t, 2, nil)
	begun, ended := make(chan struct{}), make(chan struct{})
	b.Answer(kindBlock, func(ctx context.Context, _ Peer, _ []byte) ([]byte, error) {
		close(begun)
		<-ctx.Done()
		close(ended)
		return nil, ctx.Err()
	})
	if err := b.Start(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	answer := make(chan error, 1)
	go func() {
		_, err := a.Request(ctx, disk(2), ClassRaft, kindBlock, nil)
		answer <- err
	}()
	<-begun
	cancel()
	if err := <-answer; !errors.Is(err, scstore.ErrIndeterminate) || !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	<-ended
	mustEcho(t, a, 2, ClassRaft)
}

func TestRequest_NobodyThere(t *testing.T) {
	w := newWorld(t)
	a := w.host(t, 1, nil)
	silent, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	w.place(2, silent.LocalAddr().String())
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("no patience"))
	if _, err := a.Request(ctx, disk(2), ClassRaft, kindEcho, nil); !errors.Is(err, scstore.ErrUnreachable) || !errors.Is(err, context.Cause(ctx)) {
		t.Errorf("got %v", err)
	}
	w.place(3, "not an address")
	if _, err := a.Request(t.Context(), disk(3), ClassRaft, kindEcho, nil); !errors.Is(err, scstore.ErrInvalid) {
		t.Errorf("got %v", err)
	}
}

// TestRequest_ManyAtOnceFromBothSides: each is answered with its own answer, both
// sides make progress, and no more connections exist than the pool has.
func TestRequest_ManyAtOnceFromBothSides(t *testing.T) {
	w := newWorld(t)
	hosts := []*Net{w.host(t, 1, func(o *Options) { o.Bulk = 3 }), w.host(t, 2, func(o *Options) { o.Bulk = 3 })}
	var wg sync.WaitGroup
	var done [2]atomic.Int32
	for side, from := range hosts {
		to := byte(2 - side)
		for worker := range 20 {
			wg.Go(func() {
				for i := range 20 {
					want := fmt.Sprintf("%d.%d.%d", side, worker, i)
					got, err := from.Request(t.Context(), disk(to), Class(i%int(classCount)), kindEcho, []byte(want))
					if err != nil || string(got) != fmt.Sprintf("host-%d:%s", side+1, want) {
						t.Errorf("%s: got %q, %v", want, got, err)
						return
					}
					done[side].Add(1)
				}
			})
		}
	}
	wg.Wait()
	for side, h := range hosts {
		if got := done[side].Load(); got != 400 {
			t.Errorf("side %d: %d requests answered", side, got)
		}
		p, err := h.peer(disk(byte(2 - side)))
		if err != nil {
			t.Fatal(err)
		}
		p.mu.Lock()
		for slot, l := range p.slots {
			if l != nil && slot > 3 {
				t.Errorf("side %d has a link in slot %d", side, slot)
			}
		}
		p.mu.Unlock()
	}
}

// TestRequest_IdleConnectionsMayCloseAtAnyMoment closes every connection that has no
// stream, over and over, between and under requests: none may fail.
func TestRequest_IdleConnectionsMayCloseAtAnyMoment(t *testing.T) {
	w := newWorld(t)
	a, b := w.host(t, 1, nil), w.host(t, 2, nil)
	closed := 0
	for round := range 60 {
		sweep := make(chan int, 2)
		for _, h := range []*Net{a, b} {
			go func() {
				before := 0
				for _, p := range h.all() {
					before += p.status().Links
					p.mu.Lock()
					for l := range p.links {
						l.idleSince = l.idleSince.Add(-2 * BulkIdle)
					}
					p.mu.Unlock()
				}
				for _, p := range h.all() {
					p.sweep(time.Now())
				}
				sweep <- before
			}()
		}
		if err := echo(t.Context(), a, 2, ClassAsync); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		closed += <-sweep + <-sweep
		if err := echo(t.Context(), b, 1, ClassAsync); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
	}
	if closed == 0 {
		t.Error("there was never a link to close")
	}
}

func TestStream_CarriesBytesBothWaysAndErrors(t *testing.T) {
	w := newWorld(t)
	a, b := w.host(t, 1, nil), w.open(t, 2, nil)
	b.Handle(kindPipe, func(_ context.Context, from Peer, s *Stream) error {
		if from.Host != "host-1" || s.Class() != ClassSync || s.Peer() != from {
			return fmt.Errorf("from %+v in %s: %w", from, s.Class(), scstore.ErrCorrupt)
		}
		_, err := io.Copy(s, s)
		return err
	})
	b.Handle(kindFail, func(context.Context, Peer, *Stream) error { return fmt.Errorf("no: %w", scstore.ErrNoSpace) })
	if err := b.Start(); err != nil {
		t.Fatal(err)
	}
	s, err := a.OpenStream(t.Context(), disk(2), ClassSync, kindPipe)
	if err != nil {
		t.Fatal(err)
	}
	want := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	go func() {
		_, err := s.Write(want)
		if err = errors.Join(err, s.CloseWrite()); err != nil {
			t.Error(err)
		}
	}()
	got, err := io.ReadAll(s)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("got %d bytes, %v", len(got), err)
	}
	if err := errors.Join(s.Close(), s.Close()); err != nil {
		t.Error(err)
	}
	for kind, want := range map[Kind]error{kindFail: scstore.ErrNoSpace, 999: scstore.ErrNotFound} {
		s, err := a.OpenStream(t.Context(), disk(2), ClassSync, kind)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(s); !errors.Is(err, want) {
			t.Errorf("kind %d: got %v, want %v", kind, err, want)
		}
		s.Cancel(scstore.ErrClosed)
	}
	eventually(t, "all streams are counted as gone", func() bool {
		return a.Status()[0].Streams == 0 && b.Status()[0].Streams == 0
	})
}

// TestStream_TooManyAreRefusedAndTheOthersGoOn opens one stream more than a peer may
// have.
func TestStream_TooManyAreRefusedAndTheOthersGoOn(t *testing.T) {
	w := newWorld(t)
	a, b := w.host(t, 1, nil), w.open(t, 2, nil)
	b.Handle(kindPipe, func(ctx context.Context, _ Peer, s *Stream) error {
		if _, err := s.Write([]byte{1}); err != nil {
			return err
		}
		_, err := io.Copy(io.Discard, s)
		return err
	})
	if err := b.Start(); err != nil {
		t.Fatal(err)
	}
	var streams []*Stream
	defer func() {
		for _, s := range streams {
			s.Cancel(scstore.ErrClosed)
		}
	}()
	for range MaxStreamsPerPeer {
		s, err := a.OpenStream(t.Context(), disk(2), ClassAsync, kindPipe)
		if err != nil {
			t.Fatal(err)
		}
		streams = append(streams, s)
		if _, err := s.Read(make([]byte, 1)); err != nil {
			t.Fatalf("stream %d: %v", len(streams), err)
		}
	}
	s, err := a.OpenStream(t.Context(), disk(2), ClassAsync, kindPipe)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Cancel(scstore.ErrClosed)
	if _, err := s.Read(make([]byte, 1)); !errors.Is(err, scstore.ErrBusy) {
		t.Errorf("one more: %v", err)
	}
	if err := streams[0].Close(); err != nil {
		t.Error(err)
	}
	streams = streams[1:]
	eventually(t, "there is room again", func() bool {
		p, err := b.peer(disk(1))
		if err != nil {
			t.Fatal(err)
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.accepted < MaxStreamsPerPeer
	})
	mustEcho(t, a, 2, ClassAsync)
}

func TestNet_ClosedAnswersErrClosed(t *testing.T) {
	w := newWorld(t)
	a := w.host(t, 1, nil)
	if err := errors.Join(a.Close(), a.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Request(t.Context(), disk(2), ClassRaft, kindEcho, nil); !errors.Is(err, scstore.ErrClosed) {
		t.Errorf("got %v", err)
	}
	b := w.open(t, 2, nil)
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if err := b.Start(); !errors.Is(err, scstore.ErrClosed) {
		t.Errorf("start after close: %v", err)
	}
}

func TestOptions_Validate(t *testing.T) {
	w := newWorld(t)
	for name, change := range map[string]func(*Options){
		"no keys":         func(o *Options) { o.Keys = nil },
		"no resolver":     func(o *Options) { o.Resolve = nil },
		"no address":      func(o *Options) { o.Listen = "" },
		"pool too large":  func(o *Options) { o.Bulk = MaxBulk + 1 },
		"pool negative":   func(o *Options) { o.Bulk = -1 },
		"cap too low":     func(o *Options) { o.BandwidthBytes = minBandwidthBytes - 1 },
		"lifetime absurd": func(o *Options) { o.Lifetime = 1 },
	} {
		o := Options{Keys: w.first, Resolve: w.resolve, Listen: "127.0.0.1:0"}
		change(&o)
		if _, err := Open(t.Context(), o); !errors.Is(err, scstore.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
