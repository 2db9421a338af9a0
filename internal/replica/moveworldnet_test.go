package replica

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"scstore"
	"scstore/consensus/meta"
	"scstore/propagate"
	"scstore/propagate/quicnet"
)

// moveNet is a host's network.
type moveNet struct{ h *moveHost }

func (n moveNet) reach(to meta.DiskID, kind quicnet.Kind) (*moveHost, error) {
	w := n.h.w
	w.mu.Lock()
	lost, lose := w.cuts[[2]meta.DiskID{n.h.disk, to}], w.lose
	w.mu.Unlock()
	if lose != nil {
		w.hooks.Lock()
		lost = lose(n.h.disk, to, kind) || lost
		w.hooks.Unlock()
	}
	time.Sleep(5 * time.Millisecond)
	for _, h := range w.hosts {
		if h.disk == to && !lost {
			return h, nil
		}
	}
	return nil, fmt.Errorf("host %s: %w", to, scstore.ErrUnreachable)
}

// Request asks another host.
func (n moveNet) Request(ctx context.Context, to meta.DiskID, _ quicnet.Class, kind quicnet.Kind, payload []byte) ([]byte, error) {
	h, err := n.reach(to, kind)
	if err != nil {
		return nil, err
	}
	life, leave, up := h.enter()
	if !up {
		return nil, fmt.Errorf("host %s is down: %w", to, scstore.ErrUnreachable)
	}
	defer leave()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(life, cancel)()
	h.mu.Lock()
	f := h.answers[kind]
	h.mu.Unlock()
	answer, err := f(ctx, n.h.disk, slices.Clone(payload))
	if _, lost := n.reach(to, kind); lost != nil {
		return nil, fmt.Errorf("host %s: %w", to, scstore.ErrIndeterminate)
	}
	return answer, err
}

// OpenStream opens a stream to another host.
func (n moveNet) OpenStream(ctx context.Context, to meta.DiskID, _ quicnet.Class, kind quicnet.Kind) (propagate.Stream, error) {
	h, err := n.reach(to, kind)
	if err != nil {
		return nil, err
	}
	life, leave, up := h.enter()
	if !up {
		return nil, fmt.Errorf("host %s is down: %w", to, scstore.ErrUnreachable)
	}
	r1, w1 := io.Pipe()
	r2, w2 := io.Pipe()
	h.mu.Lock()
	f := h.handlers[kind]
	h.mu.Unlock()
	go func() {
		defer leave()
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		defer context.AfterFunc(life, func() {
			cancel()
			_ = errors.Join(w2.CloseWithError(scstore.ErrUnreachable), r1.CloseWithError(scstore.ErrUnreachable))
		})()
		err := f(ctx, n.h.disk, moveStream{r1, w2})
		_ = w2.CloseWithError(err)
		_ = r1.CloseWithError(err)
	}()
	return moveStream{r2, w1}, nil
}

// RTT is the same for all.
func (moveNet) RTT(meta.DiskID) time.Duration { return 10 * time.Millisecond }

// Answer registers who answers a kind of requests.
func (n moveNet) Answer(kind quicnet.Kind, f func(context.Context, meta.DiskID, []byte) ([]byte, error)) {
	n.h.mu.Lock()
	defer n.h.mu.Unlock()
	n.h.answers[kind] = f
}

// Handle registers who serves a kind of streams.
func (n moveNet) Handle(kind quicnet.Kind, f func(context.Context, meta.DiskID, propagate.Stream) error) {
	n.h.mu.Lock()
	defer n.h.mu.Unlock()
	n.h.handlers[kind] = f
}

type moveStream struct {
	r *io.PipeReader
	w *io.PipeWriter
}

func (s moveStream) Read(p []byte) (int, error)  { return s.r.Read(p) }
func (s moveStream) Write(p []byte) (int, error) { return s.w.Write(p) }
func (s moveStream) CloseWrite() error           { return s.w.Close() }
func (s moveStream) Close() error {
	_ = s.r.Close()
	return s.w.Close()
}
