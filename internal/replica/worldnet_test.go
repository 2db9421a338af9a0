package replica

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"scstore"
	"scstore/consensus/meta"
	"scstore/propagate"
	"scstore/propagate/quicnet"
)

// testNet is one host's end of the network.
type testNet struct {
	h        *testHost
	answers  map[quicnet.Kind]func(context.Context, meta.DiskID, []byte) ([]byte, error)
	handlers map[quicnet.Kind]func(context.Context, meta.DiskID, propagate.Stream) error
	wg       sync.WaitGroup

	mu   sync.Mutex
	open bool
}

func (n *testNet) up(yes bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.open = yes
}

// enter counts a handler, unless the host is down.
func (n *testNet) enter() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.open {
		n.wg.Add(1)
	}
	return n.open
}

// reach returns the other end. It has to be left (wg.Done).
func (n *testNet) reach(to meta.DiskID) (*testNet, error) {
	other := n.h.w.hosts[to]
	if other == nil || n.h.w.isCut(n.h.disk, to) || !other.net.enter() {
		return nil, fmt.Errorf("host %s: %w", to, scstore.ErrUnreachable)
	}
	return other.net, nil
}

func (n *testNet) Request(ctx context.Context, to meta.DiskID, _ quicnet.Class, kind quicnet.Kind, payload []byte) ([]byte, error) {
	other, err := n.reach(to)
	if err != nil {
		return nil, err
	}
	defer other.wg.Done()
	f := other.answers[kind]
	if f == nil {
		return nil, scstore.ErrVersion
	}
	b, err := f(ctx, n.h.disk, payload)
	if n.h.w.isCut(n.h.disk, to) {
		return nil, fmt.Errorf("host %s: %w", to, scstore.ErrUnreachable)
	}
	return b, err
}

func (n *testNet) OpenStream(_ context.Context, to meta.DiskID, _ quicnet.Class, kind quicnet.Kind) (propagate.Stream, error) {
	other, err := n.reach(to)
	if err != nil {
		return nil, err
	}
	f := other.handlers[kind]
	if f == nil {
		other.wg.Done()
		return nil, scstore.ErrVersion
	}
	w := n.h.w
	upR, upW := io.Pipe()
	downR, downW := io.Pipe()
	near := &testStream{w: w, r: downR, wr: upW, link: [2]meta.DiskID{n.h.disk, to}}
	far := &testStream{w: w, r: upR, wr: downW, link: [2]meta.DiskID{to, n.h.disk}}
	w.mu.Lock()
	w.streams[near], w.streams[far] = near.link, far.link
	w.opened[near.link]++
	w.mu.Unlock()
	go func() {
		defer other.wg.Done()
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		if err := f(ctx, n.h.disk, far); err != nil {
			_ = downW.CloseWithError(err)
		}
		_ = far.Close()
	}()
	return near, nil
}

// RTT is not known.
func (n *testNet) RTT(meta.DiskID) time.Duration { return time.Millisecond }

func (n *testNet) Answer(kind quicnet.Kind, f func(ctx context.Context, from meta.DiskID, request []byte) ([]byte, error)) {
	n.answers[kind] = f
}

func (n *testNet) Handle(kind quicnet.Kind, f func(ctx context.Context, from meta.DiskID, s propagate.Stream) error) {
	n.handlers[kind] = f
}

// testStream is one end of a stream.
type testStream struct {
	w    *world
	r    *io.PipeReader
	wr   *io.PipeWriter
	link [2]meta.DiskID // this end's host, the other's
}

var errCut = errors.New("the link is cut")

func (s *testStream) Read(p []byte) (int, error) { return s.r.Read(p) }

func (s *testStream) Write(p []byte) (int, error) {
	if !s.w.carry(s.link, len(p)) {
		s.w.cut(s.link[0], s.link[1])
		return 0, errCut
	}
	return s.wr.Write(p)
}

func (s *testStream) CloseWrite() error { return s.wr.Close() }

func (s *testStream) Close() error {
	s.w.mu.Lock()
	delete(s.w.streams, s)
	s.w.mu.Unlock()
	_ = s.r.CloseWithError(io.ErrClosedPipe)
	return s.wr.Close()
}

// carry counts bytes and reports whether the link still takes them.
func (w *world) carry(link [2]meta.DiskID, n int) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.bytes[link] += int64(n)
	limit, limited := w.limits[link]
	return !limited || w.bytes[link] <= limit
}

// cut cuts the link between two hosts, in both directions, and ends its streams.
func (w *world) cut(a, b meta.DiskID) {
	w.mu.Lock()
	w.cuts[[2]meta.DiskID{a, b}], w.cuts[[2]meta.DiskID{b, a}] = true, true
	var gone []*testStream
	for s, link := range w.streams {
		if link == [2]meta.DiskID{a, b} || link == [2]meta.DiskID{b, a} {
			gone = append(gone, s)
		}
	}
	w.mu.Unlock()
	for _, s := range gone {
		_ = s.r.CloseWithError(errCut)
		_ = s.wr.CloseWithError(errCut)
	}
}

// cutStreams ends the streams of a host.
func (w *world) cutStreams(d meta.DiskID) {
	w.mu.Lock()
	var gone []*testStream
	for s, link := range w.streams {
		if link[0] == d || link[1] == d {
			gone = append(gone, s)
		}
	}
	w.mu.Unlock()
	for _, s := range gone {
		_ = s.r.CloseWithError(errCut)
		_ = s.wr.CloseWithError(errCut)
	}
}

// heal mends a link, and forgets its limits.
func (w *world) heal(a, b meta.DiskID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, link := range [][2]meta.DiskID{{a, b}, {b, a}} {
		delete(w.cuts, link)
		delete(w.limits, link)
	}
}

func (w *world) isCut(a, b meta.DiskID) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.cuts[[2]meta.DiskID{a, b}]
}

// sent returns how many bytes a host has sent to another.
func (w *world) sent(from, to meta.DiskID) int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.bytes[[2]meta.DiskID{from, to}]
}

// limit cuts the link between two hosts after so many more bytes from one to the other.
func (w *world) limit(from, to meta.DiskID, bytes int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	link := [2]meta.DiskID{from, to}
	w.limits[link] = w.bytes[link] + bytes
}
