package consensus

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/lni/dragonboat/v4"

	"scstore"
	"scstore/consensus/meta"
)

// Bounds of a group's proposals on one host.
const (
	MaxQueuedCommands = 4096 // that wait for company; beyond it ErrBusy
	MaxFlights        = 256  // entries that wait for the log; beyond it ErrBusy
)

// queue gathers a group's commands into entries and answers them.
//
// Lock order: group.mu, then flights; turn before flights. The library is called
// under turn, so that entries enter the log in the order of their commands.
type queue struct {
	g *group

	turn     sync.Mutex
	waiting  []*proposal
	timer    *time.Timer // flushes; nil if none runs
	sequence uint64
	stopped  error

	flights struct {
		sync.Mutex
		bySequence map[uint64]*flight
	}
}

// proposal is one command that somebody waits for.
type proposal struct {
	command meta.Command
	bytes   int
	sent    bool // under queue.turn: it may be in the log
	done    chan struct{}
	result  meta.Result // once done is closed
	err     error       // once done is closed
}

// flight is an entry on its way through the log.
type flight struct {
	proposals []*proposal
	results   []meta.Result // set when this host applied the entry
}

func (q *queue) init(g *group) {
	q.g = g
	q.flights.bySequence = map[uint64]*flight{}
}

// Propose has the group decide a command and returns its result once this host has
// applied it, with result.Err() as the error when the state refused it. Commands of
// ProposeSoon that wait go along, before it.
//
// Durability: a command that was answered is on the disks of a majority. Errors: those
// of meta.Result; ErrInvalid, ErrNotFound, ErrBusy, ErrNoMajority, ErrNoSpace: nothing
// was applied, nothing will be; ErrIndeterminate: it may be applied, now or later;
// propose it again with the same command id; ErrVersion, ErrCorrupt if the group
// stands still here; ErrClosed; ctx's cause if it ended before the command was sent.
//
// step W6
func (c *Cluster) Propose(ctx context.Context, id GroupID, command meta.Command) (meta.Result, error) {
	return c.propose(ctx, id, command, false)
}

// ProposeSoon is Propose for what nobody waits for with impatience: the command waits
// up to BatchDelay for others to share an entry with. Order is kept among the commands
// of one host and group, however they were proposed.
func (c *Cluster) ProposeSoon(ctx context.Context, id GroupID, command meta.Command) (meta.Result, error) {
	return c.propose(ctx, id, command, true)
}

func (c *Cluster) propose(ctx context.Context, id GroupID, command meta.Command, soon bool) (meta.Result, error) {
	if err := command.Validate(); err != nil {
		return meta.Result{}, err
	}
	g, err := c.group(id)
	if err != nil {
		return meta.Result{}, err
	}
	if err := g.admit(); err != nil {
		return meta.Result{}, fmt.Errorf("propose to group %d: %w", id, err)
	}
	if ctx.Err() != nil {
		return meta.Result{}, context.Cause(ctx)
	}
	p := &proposal{command: command, bytes: len(command.AppendTo(nil)), done: make(chan struct{})}
	if err := g.queue.add(p, soon); err != nil {
		return meta.Result{}, fmt.Errorf("propose to group %d: %w", id, err)
	}
	select {
	case <-p.done:
	case <-ctx.Done():
		if g.queue.withdraw(p) {
			return meta.Result{}, context.Cause(ctx)
		}
		select {
		case <-p.done: // both at once: an answer is better than none
		default:
			c.metrics.outcomes.WithLabelValues("indeterminate").Inc()
			return meta.Result{}, fmt.Errorf("propose to group %d: %v: %w", id, context.Cause(ctx), scstore.ErrIndeterminate)
		}
	}
	if p.err != nil {
		return p.result, fmt.Errorf("propose to group %d: %w", id, p.err)
	}
	return p.result, p.result.Err()
}

// admit says whether this host may propose.
func (g *group) admit() error {
	g.mu.RLock()
	defer g.mu.RUnlock()
	if g.halted != nil {
		return g.halted
	}
	return g.c.space.check()
}

// add queues a command and sends what waits, at once or soon.
func (q *queue) add(p *proposal, soon bool) error {
	q.turn.Lock()
	defer q.turn.Unlock()
	if q.stopped != nil {
		return q.stopped
	}
	if len(q.waiting) >= MaxQueuedCommands {
		return fmt.Errorf("%d commands wait: %w", len(q.waiting), scstore.ErrBusy)
	}
	q.waiting = append(q.waiting, p)
	switch {
	case !soon || len(q.waiting) >= MaxEntryCommands:
		q.flush()
	case q.timer == nil:
		q.timer = time.AfterFunc(q.g.c.options.BatchDelay, func() {
			q.turn.Lock()
			defer q.turn.Unlock()
			q.flush()
		})
	}
	return nil
}

// withdraw takes back a command that was not sent.
func (q *queue) withdraw(p *proposal) bool {
	q.turn.Lock()
	defer q.turn.Unlock()
	if p.sent {
		return false
	}
	q.waiting = slices.DeleteFunc(q.waiting, func(x *proposal) bool { return x == p })
	return true
}

// stop refuses what follows and answers what was not sent.
func (q *queue) stop(err error) {
	q.turn.Lock()
	defer q.turn.Unlock()
	q.stopped = err
	q.stopTimer()
	answer(q.waiting, err)
	q.waiting = nil
}

func (q *queue) stopTimer() {
	if q.timer != nil {
		q.timer.Stop()
		q.timer = nil
	}
}

// flush sends all that waits.
// Precondition: turn is held.
func (q *queue) flush() {
	q.stopTimer()
	for len(q.waiting) > 0 {
		n, size := 0, 0
		for n < len(q.waiting) && n < MaxEntryCommands && size < MaxSharedBytes {
			q.waiting[n].sent = true
			size += q.waiting[n].bytes
			n++
		}
		batch := slices.Clone(q.waiting[:n])
		q.waiting = q.waiting[n:]
		if err := q.send(batch); err != nil {
			answer(batch, err)
		}
	}
	q.waiting = nil
}

// send puts commands into one entry and hands it to the log. An error means that it
// did not.
// Precondition: turn is held.
func (q *queue) send(batch []*proposal) error {
	leave, err := q.g.c.enter()
	if err != nil {
		return err
	}
	defer leave()
	q.sequence++
	e := entry{group: q.g.id, origin: q.g.c.origin, sequence: q.sequence}
	for _, p := range batch {
		e.commands = append(e.commands, p.command)
	}
	f := &flight{proposals: batch}
	if !q.launch(e.sequence, f) {
		return fmt.Errorf("%d entries are under way: %w", MaxFlights, scstore.ErrBusy)
	}
	request, err := q.g.c.host.Propose(q.g.session, e.encode(q.g.c.options.Cluster), q.g.c.options.Timeout)
	if err != nil {
		q.land(e.sequence)
		return q.g.restarts(translate(err))
	}
	q.g.c.metrics.entries.Inc()
	q.g.c.waits.Go(func() { q.wait(request, e.sequence, f) })
	return nil
}

func (q *queue) launch(sequence uint64, f *flight) bool {
	q.flights.Lock()
	defer q.flights.Unlock()
	if len(q.flights.bySequence) >= MaxFlights {
		return false
	}
	q.flights.bySequence[sequence] = f
	return true
}

func (q *queue) land(sequence uint64) {
	q.flights.Lock()
	defer q.flights.Unlock()
	delete(q.flights.bySequence, sequence)
}

// applied gives the results to whoever waits for the entry.
// Precondition: group.mu is held.
func (q *queue) applied(sequence uint64, results []meta.Result) {
	q.flights.Lock()
	defer q.flights.Unlock()
	if f := q.flights.bySequence[sequence]; f != nil {
		f.results = results
	}
}

// wait answers an entry's commands once the library has: it does so at its time limit
// at the latest, or when the replica stops.
func (q *queue) wait(request *dragonboat.RequestState, sequence uint64, f *flight) {
	r := <-request.AppliedC()
	request.Release()
	q.land(sequence) // from here on results is ours
	if f.results != nil {
		for i, p := range f.proposals {
			p.result = f.results[i]
			close(p.done)
		}
		q.g.c.metrics.outcomes.WithLabelValues("decided").Add(float64(len(f.proposals)))
		return
	}
	err := fmt.Errorf("no answer from the log: %w", scstore.ErrIndeterminate)
	outcome := "indeterminate"
	if r.Dropped() { // here, before it went anywhere
		err = fmt.Errorf("no leader: %w", scstore.ErrNoMajority)
		outcome = "no_majority"
	}
	q.g.c.metrics.outcomes.WithLabelValues(outcome).Add(float64(len(f.proposals)))
	answer(f.proposals, err)
}

func answer(proposals []*proposal, err error) {
	for _, p := range proposals {
		p.err = err
		close(p.done)
	}
}
