package consensus

import (
	"fmt"
	"io"

	sm "github.com/lni/dragonboat/v4/statemachine"

	"scstore"
	"scstore/consensus/meta"
)

// replica is the state machine that the log drives. The library makes a new one at
// each start of a group, fills it from a snapshot and applies the log after it.
//
// An entry or snapshot that cannot be read halts the group here: it, and all that
// follow, are not applied; proposals and reads get the error; no snapshot is taken
// any more, so that the log keeps the entry; and Cluster.Failed tells the host to
// end. A newer version that is started on the folder applies the entry and goes on.
// A state that went on past an entry that others apply would differ from theirs.
type replica struct {
	g     *group
	state *meta.State
	index uint64 // of the last entry applied
}

func (g *group) newReplica() *replica {
	return &replica{g: g, state: meta.NewGroup(meta.GroupID(g.id))}
}

// Update applies entries in the order of the log; step W7 is in package meta.
func (r *replica) Update(entries []sm.Entry) ([]sm.Entry, error) {
	r.g.mu.Lock()
	defer r.g.mu.Unlock()
	for i := range entries {
		if r.g.halted != nil {
			break
		}
		r.apply(entries[i])
	}
	return entries, nil
}

// apply applies one entry, answers those who wait for it here, and tells watchers.
// Precondition: g.mu is held.
func (r *replica) apply(raw sm.Entry) {
	e, err := parseEntry(raw.Cmd, r.g.c.options.Cluster)
	if err == nil && e.group != r.g.id {
		err = fmt.Errorf("entry of group %d: %w", e.group, scstore.ErrCorrupt)
	}
	if err != nil {
		r.halt(fmt.Errorf("entry %d: %w", raw.Index, err))
		return
	}
	results := make([]meta.Result, len(e.commands))
	for i, c := range e.commands {
		results[i] = r.state.Apply(c)
		r.show(raw.Index)
		r.announce(Event{Index: raw.Index, Applied: r.state.Applied(), Command: c, Result: results[i]})
	}
	if e.origin == r.g.c.origin {
		r.g.queue.applied(e.sequence, results)
	}
}

// show makes this replica's state the one that is read, unless it has not caught up
// with that of its predecessor yet.
// Precondition: g.mu is held.
func (r *replica) show(index uint64) {
	r.index = index
	if r.g.shown != r && r.state.Applied() >= r.g.shown.state.Applied() {
		r.g.shown = r
	}
}

// announce queues an event for each watcher, once.
// Precondition: g.mu is held.
func (r *replica) announce(e Event) {
	if e.Applied <= r.g.announced {
		return
	}
	r.g.announced = e.Applied
	for _, w := range r.g.watchers {
		w.publish(e)
	}
}

// halt stops the group here for good.
// Precondition: g.mu is held.
func (r *replica) halt(err error) {
	err = fmt.Errorf("group %d stands still: %w", r.g.id, err)
	r.g.halted = scstore.Hint(err, "start the version of scstore that the other hosts run")
	r.g.c.fail(r.g.halted)
}

// Lookup is not used: reads go to the state itself.
func (r *replica) Lookup(any) (any, error) { return nil, nil }

// PrepareSnapshot fixes what SaveSnapshot writes; nil for a group that stands still.
func (r *replica) PrepareSnapshot() (any, error) {
	r.g.mu.RLock()
	defer r.g.mu.RUnlock()
	if r.g.halted != nil {
		return []byte(nil), nil
	}
	return groupSnapshot(r.g.c.options.Cluster, r.g.id, r.index, r.state), nil
}

// SaveSnapshot writes what PrepareSnapshot fixed, while entries go on being applied.
func (r *replica) SaveSnapshot(prepared any, w io.Writer, _ sm.ISnapshotFileCollection, _ <-chan struct{}) error {
	b, ok := prepared.([]byte)
	if !ok || len(b) == 0 {
		return sm.ErrSnapshotAborted
	}
	_, err := w.Write(b)
	return err
}

// RecoverFromSnapshot replaces the state.
func (r *replica) RecoverFromSnapshot(from io.Reader, _ []sm.SnapshotFile, _ <-chan struct{}) error {
	b, err := io.ReadAll(io.LimitReader(from, MaxStateBytes+groupSnapshotHeaderBytes+1))
	if err != nil {
		return err
	}
	id, index, state, err := parseGroupSnapshot(b, r.g.c.options.Cluster)
	if err == nil && (id != r.g.id || state.Group() != meta.GroupID(id)) {
		err = fmt.Errorf("snapshot of group %d with the state of group %d: %w", id, state.Group(), scstore.ErrCorrupt)
	}
	r.g.mu.Lock()
	defer r.g.mu.Unlock()
	if err != nil {
		r.halt(err)
		return nil
	}
	r.state = state
	r.show(index)
	r.announce(Event{Index: index, Applied: state.Applied(), Gap: true})
	return nil
}

// Close is called when the replica has stopped. The state stays readable.
func (r *replica) Close() error { return nil }
