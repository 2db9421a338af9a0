package consensus

import (
	"context"
	"slices"
	"sync"

	"scstore/consensus/meta"
)

// MaxWatchEvents bounds the events that wait for one Watcher. Beyond it all of them
// are dropped and a gap takes their place.
const MaxWatchEvents = 4096

// Event is one command that this host's own state machine applied.
type Event struct {
	Index   uint64 // of the log entry; several commands may share one
	Applied uint64 // meta.State.Applied after the command: numbers a group's commands without a gap
	Command meta.Command
	Result  meta.Result
	// Gap says that commands were passed over: the Watcher fell behind, or the group
	// was brought up to date by a snapshot. Nothing else is set then but Index and
	// Applied; who reads it looks at the whole state (Cluster.View) and goes on.
	Gap bool
}

// Watcher delivers a group's events in the order of the log. A host acts on what its
// own state machine applied, never on a proposal's return: so this is where it
// learns of it.
//
// After a start the log's tail is applied again, as is what a host missed; events
// that a View has shown already have an Applied of at most that state's.
//
// Concurrency: Next is for one goroutine; Close may be called by any.
type Watcher struct {
	group *group
	wake  chan struct{} // holds one token

	mu     sync.Mutex
	events []Event
	closed error
}

// Watch begins to deliver the group's events from now on. Errors: ErrNotFound,
// ErrClosed.
func (c *Cluster) Watch(id GroupID) (*Watcher, error) {
	g, err := c.group(id)
	if err != nil {
		return nil, err
	}
	w := &Watcher{group: g, wake: make(chan struct{}, 1)}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.over != nil {
		return nil, g.over
	}
	g.watchers = append(g.watchers, w)
	return w, nil
}

// Next waits for the next event. Errors: ctx's cause; ErrClosed after Close of the
// Watcher, the group or the Cluster.
func (w *Watcher) Next(ctx context.Context) (Event, error) {
	for {
		w.mu.Lock()
		if len(w.events) > 0 {
			e := w.events[0]
			w.events = w.events[1:]
			w.mu.Unlock()
			return e, nil
		}
		err := w.closed
		w.mu.Unlock()
		if err != nil {
			return Event{}, err
		}
		select {
		case <-w.wake:
		case <-ctx.Done():
			return Event{}, context.Cause(ctx)
		}
	}
}

// Close ends the delivery; Next returns what is queued, then ErrClosed.
func (w *Watcher) Close() {
	w.group.mu.Lock()
	w.group.watchers = slices.DeleteFunc(w.group.watchers, func(x *Watcher) bool { return x == w })
	w.group.mu.Unlock()
	w.end(errClosed)
}

func (w *Watcher) end(err error) {
	w.mu.Lock()
	if w.closed == nil {
		w.closed = err
	}
	w.mu.Unlock()
	w.notify()
}

// publish queues an event; it never waits.
func (w *Watcher) publish(e Event) {
	w.mu.Lock()
	if len(w.events) >= MaxWatchEvents {
		w.events = nil
		e = Event{Index: e.Index, Applied: e.Applied, Gap: true}
	}
	w.events = append(w.events, e)
	w.mu.Unlock()
	w.notify()
}

func (w *Watcher) notify() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}
