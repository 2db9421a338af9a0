package replica

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"scstore"
	"scstore/consensus"
	"scstore/consensus/meta"
)

func (h *moveHost) catchUp() { h.apply(moveGroup); h.apply(meta.GroupNamespace) }

// apply applies what was decided, unless the host is down or still before that.
func (h *moveHost) apply(g meta.GroupID) {
	h.w.mu.Lock()
	entries := slices.Clone(h.w.entries[g])
	h.w.mu.Unlock()
	h.mu.Lock()
	defer h.mu.Unlock()
	if g == moveGroup && h.behind {
		entries = entries[:min(len(entries), h.upTo)]
	}
	for h.up && !h.deaf && len(h.results[g]) < len(entries) {
		c := entries[len(h.results[g])]
		r := h.states[g].Apply(c)
		h.results[g] = append(h.results[g], r)
		for _, w := range h.watchers[g] {
			w.push(consensus.Event{Index: uint64(len(h.results[g])), Applied: h.states[g].Applied(), Command: c, Result: r})
		}
	}
}

// Propose has the log take an operation: all hosts apply it that are not deaf.
func (h *moveHost) Propose(ctx context.Context, g meta.GroupID, op meta.Op) (meta.Result, error) {
	if err := ctx.Err(); err != nil {
		return meta.Result{}, err
	}
	h.w.mu.Lock()
	refuse := h.w.refuse
	h.w.mu.Unlock()
	var failed error
	if refuse != nil {
		h.w.hooks.Lock()
		failed = refuse(h.disk, op)
		h.w.hooks.Unlock()
	}
	switch {
	case errors.Is(failed, errLost):
		<-ctx.Done()
		return meta.Result{}, fmt.Errorf("%v: %w", failed, scstore.ErrIndeterminate)
	case failed != nil && !errors.Is(failed, errAnswerLost):
		return meta.Result{}, failed
	}
	h.mu.Lock()
	deaf := h.deaf
	h.mu.Unlock()
	if deaf {
		return meta.Result{}, scstore.ErrNoMajority
	}
	time.Sleep(10 * time.Millisecond) // to a majority
	h.w.mu.Lock()
	h.w.entries[g] = append(h.w.entries[g], meta.Command{Op: op})
	n := len(h.w.entries[g])
	h.w.mu.Unlock()
	for _, o := range h.w.hosts {
		o.apply(g)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if failed != nil || len(h.results[g]) < n {
		return meta.Result{}, scstore.ErrIndeterminate
	}
	result := h.results[g][n-1]
	return result, result.Err()
}

// ProposeSoon is Propose.
func (h *moveHost) ProposeSoon(ctx context.Context, g meta.GroupID, op meta.Op) (meta.Result, error) {
	return h.Propose(ctx, g, op)
}

// View shows what was applied.
func (h *moveHost) View(g meta.GroupID, f func(*meta.State)) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	f(h.states[g])
	return nil
}

// Read shows all that was decided.
func (h *moveHost) Read(_ context.Context, g meta.GroupID, f func(*meta.State)) error {
	h.mu.Lock()
	old := h.deaf || h.behind
	h.mu.Unlock()
	if old {
		return scstore.ErrNoMajority
	}
	h.apply(g)
	return h.View(g, f)
}

// Lead does nothing: nobody leads here.
func (h *moveHost) Lead(context.Context, meta.GroupID, ...meta.DiskID) error { return nil }

// Watch delivers what is applied from now on.
func (h *moveHost) Watch(g meta.GroupID) (Watcher, error) {
	w := &moveWatcher{more: make(chan struct{}, 1), closed: make(chan struct{})}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.watchers[g] = append(h.watchers[g], w)
	return w, nil
}

type moveWatcher struct {
	mu     sync.Mutex
	events []consensus.Event
	more   chan struct{}
	closed chan struct{}
	once   sync.Once
}

func (w *moveWatcher) push(e consensus.Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.events = append(w.events, e)
	select {
	case w.more <- struct{}{}:
	default:
	}
}

// Next returns the next event.
func (w *moveWatcher) Next(ctx context.Context) (consensus.Event, error) {
	for {
		w.mu.Lock()
		if len(w.events) > 0 {
			e := w.events[0]
			w.events = w.events[1:]
			w.mu.Unlock()
			return e, nil
		}
		w.mu.Unlock()
		select {
		case <-w.more:
		case <-w.closed:
			return consensus.Event{}, scstore.ErrClosed
		case <-ctx.Done():
			return consensus.Event{}, ctx.Err()
		}
	}
}

// Close ends the delivery.
func (w *moveWatcher) Close() { w.once.Do(func() { close(w.closed) }) }
