package replica

import (
	"context"
	"fmt"
	"sync"
	"time"

	"scstore"
	"scstore/consensus"
	"scstore/consensus/meta"
)

// groupLog is a log that never fails; hosts may be cut off from it.
type groupLog struct {
	mu      sync.Mutex
	entries []meta.Command
	grown   chan struct{}
}

func newGroupLog() *groupLog { return &groupLog{grown: make(chan struct{})} }

func (w *world) append(g meta.GroupID, op meta.Op) int { return w.appendAll(g, op) }

// appendAll appends operations with nothing between them.
func (w *world) appendAll(g meta.GroupID, ops ...meta.Op) int {
	l := w.logs[g]
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, op := range ops {
		l.entries = append(l.entries, meta.Command{Op: op})
	}
	close(l.grown)
	l.grown = make(chan struct{})
	return len(l.entries)
}

// testLog is one host's part of the logs.
type testLog struct {
	h      *testHost
	groups map[meta.GroupID]*hostGroup
	cancel context.CancelFunc
	ctx    context.Context
	wg     sync.WaitGroup

	mu   sync.Mutex
	off  bool // no majority is reached
	upTo int  // how many of the test group's entries are applied; 0: all
}

// hostGroup is a host's state of a group.
type hostGroup struct {
	log *groupLog

	mu       sync.Mutex
	state    *meta.State
	results  []meta.Result
	applied  chan struct{} // closed and replaced with each entry
	watchers map[*testWatcher]bool
}

func newTestLog(h *testHost) *testLog {
	l := &testLog{h: h, groups: map[meta.GroupID]*hostGroup{}}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	for g, log := range h.w.logs {
		l.groups[g] = &hostGroup{log: log, state: meta.NewGroup(g), applied: make(chan struct{}), watchers: map[*testWatcher]bool{}}
	}
	return l
}

func (l *testLog) start() {
	for _, g := range l.groups {
		l.wg.Go(func() { l.follow(g) })
	}
}

func (l *testLog) close() {
	l.cancel()
	l.wg.Wait()
}

// disconnect cuts the host off from the log, or connects it again.
func (l *testLog) disconnect(off bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.off = off
}

func (l *testLog) cut() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.off
}

// hold has only so many of the test group's entries applied, 0 all.
func (l *testLog) hold(upTo int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.upTo = upTo
}

func (l *testLog) held(g *hostGroup, n int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return g == l.groups[testGroup] && l.upTo > 0 && n >= l.upTo
}

// follow applies a group's entries.
func (l *testLog) follow(g *hostGroup) {
	for n := 0; ; n++ {
		for {
			g.log.mu.Lock()
			there, grown := len(g.log.entries) > n, g.log.grown
			g.log.mu.Unlock()
			if there && !l.cut() && !l.held(g, n) {
				break
			}
			select {
			case <-grown:
			case <-time.After(5 * time.Millisecond):
			case <-l.ctx.Done():
				return
			}
		}
		if l.ctx.Err() != nil {
			return
		}
		g.log.mu.Lock()
		c := g.log.entries[n]
		g.log.mu.Unlock()
		g.apply(c)
	}
}

func (g *hostGroup) apply(c meta.Command) {
	g.mu.Lock()
	defer g.mu.Unlock()
	r := g.state.Apply(c)
	g.results = append(g.results, r)
	close(g.applied)
	g.applied = make(chan struct{})
	for w := range g.watchers {
		w.publish(consensus.Event{Index: uint64(len(g.results)), Applied: g.state.Applied(), Command: c, Result: r})
	}
}

// await waits until the n-th entry is applied.
func (g *hostGroup) await(ctx context.Context, n int) (meta.Result, error) {
	for {
		g.mu.Lock()
		done, applied := len(g.results) >= n, g.applied
		var r meta.Result
		if done {
			r = g.results[n-1]
		}
		g.mu.Unlock()
		if done {
			return r, nil
		}
		select {
		case <-applied:
		case <-ctx.Done():
			return r, fmt.Errorf("%w: %w", scstore.ErrIndeterminate, context.Cause(ctx))
		}
	}
}

// Propose appends an operation and waits until it is applied here.
func (l *testLog) Propose(ctx context.Context, g meta.GroupID, op meta.Op) (meta.Result, error) {
	if err := (meta.Command{Op: op}).Validate(); err != nil {
		return meta.Result{}, err
	}
	if l.cut() {
		return meta.Result{}, scstore.ErrNoMajority
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(l.ctx, cancel)()
	n := l.h.w.append(g, op)
	r, err := l.groups[g].await(ctx, n)
	if err != nil {
		return r, err
	}
	return r, r.Err()
}

// ProposeSoon is Propose.
func (l *testLog) ProposeSoon(ctx context.Context, g meta.GroupID, op meta.Op) (meta.Result, error) {
	return l.Propose(ctx, g, op)
}

// View looks at the state.
func (l *testLog) View(g meta.GroupID, f func(*meta.State)) error {
	group := l.groups[g]
	group.mu.Lock()
	defer group.mu.Unlock()
	f(group.state)
	return nil
}

// Read is View of all that was appended before.
func (l *testLog) Read(ctx context.Context, g meta.GroupID, f func(*meta.State)) error {
	if l.cut() {
		return scstore.ErrNoMajority
	}
	group := l.groups[g]
	group.log.mu.Lock()
	n := len(group.log.entries)
	group.log.mu.Unlock()
	if n > 0 {
		if _, err := group.await(ctx, n); err != nil {
			return err
		}
	}
	return l.View(g, f)
}

// Lead has nothing to do: every host is as near to the log.
func (l *testLog) Lead(context.Context, meta.GroupID, ...meta.DiskID) error { return nil }

// Watch delivers events.
func (l *testLog) Watch(g meta.GroupID) (Watcher, error) {
	group := l.groups[g]
	w := &testWatcher{group: group, wake: make(chan struct{}, 1)}
	group.mu.Lock()
	defer group.mu.Unlock()
	group.watchers[w] = true
	return w, nil
}

type testWatcher struct {
	group *hostGroup
	wake  chan struct{}

	mu     sync.Mutex
	events []consensus.Event
	closed bool
}

func (w *testWatcher) publish(e consensus.Event) {
	w.mu.Lock()
	w.events = append(w.events, e)
	w.mu.Unlock()
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

func (w *testWatcher) Next(ctx context.Context) (consensus.Event, error) {
	for {
		w.mu.Lock()
		if len(w.events) > 0 {
			e := w.events[0]
			w.events = w.events[1:]
			w.mu.Unlock()
			return e, nil
		}
		closed := w.closed
		w.mu.Unlock()
		if closed {
			return consensus.Event{}, scstore.ErrClosed
		}
		select {
		case <-w.wake:
		case <-ctx.Done():
			return consensus.Event{}, context.Cause(ctx)
		}
	}
}

func (w *testWatcher) Close() {
	w.group.mu.Lock()
	delete(w.group.watchers, w)
	w.group.mu.Unlock()
	w.mu.Lock()
	w.closed = true
	w.mu.Unlock()
	select {
	case w.wake <- struct{}{}:
	default:
	}
}
