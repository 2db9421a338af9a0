package consensus

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lni/dragonboat/v4"
	"github.com/lni/dragonboat/v4/client"
	"github.com/lni/dragonboat/v4/config"
	sm "github.com/lni/dragonboat/v4/statemachine"

	"scstore"
	"scstore/consensus/meta"
)

// ClusterID names a cluster for its whole life; it is drawn at random.
type ClusterID [16]byte

// String returns the id as 32 hexadecimal digits.
func (c ClusterID) String() string { return hex.EncodeToString(c[:]) }

// deployment is the id's part that the library's messages carry; never 0.
func (c ClusterID) deployment() uint64 { return binary.BigEndian.Uint64(c[:]) | 1 }

// DiskID names a member: a host with the disk that holds its log. Another disk is
// another member. It is drawn at random.
type DiskID [16]byte

// String returns the id as 32 hexadecimal digits.
func (d DiskID) String() string { return hex.EncodeToString(d[:]) }

// ParseDiskID reads what String wrote. Errors: ErrInvalid.
func ParseDiskID(text string) (DiskID, error) {
	var d DiskID
	if len(text) != hex.EncodedLen(len(d)) {
		return DiskID{}, fmt.Errorf("disk id %q: want %d hexadecimal digits: %w", text, hex.EncodedLen(len(d)), scstore.ErrInvalid)
	}
	if _, err := hex.Decode(d[:], []byte(text)); err != nil {
		return DiskID{}, fmt.Errorf("disk id %q: %w", text, scstore.ErrInvalid)
	}
	return d, nil
}

// GroupID numbers a group of the cluster, from 1.
type GroupID uint64

// ReplicaID numbers a member within its group, from 1. A number is never given twice,
// not even to the same disk after it was removed: the log would take it for one that
// remembers its votes.
type ReplicaID uint64

// Group says how this host takes part in a group. Members and Join are for the first
// start of a replica and are not looked at when its log is here already; a restart
// leaves both out, so that a log that was lost is noticed: Start returns ErrNotFound
// then, and the disk joins again under a new replica id. To start it afresh under the
// old one would let it vote twice.
type Group struct {
	ID      GroupID
	Replica ReplicaID
	Members map[ReplicaID]DiskID // of a new group: all of its voters, the same for each
	Join    bool                 // the group exists; this replica was added to it before
	// NonVoting says that this replica was added by AddNonVoting, even if it was
	// promoted since.
	NonVoting bool
	// Alone says that this replica is the group's only voter: it is its leader within
	// a second of its start. AddVoter and Promote end it.
	Alone bool
}

func (g Group) validate() error {
	switch {
	case g.ID == 0 || g.Replica == 0:
		return fmt.Errorf("group %d, replica %d, want both from 1: %w", g.ID, g.Replica, scstore.ErrInvalid)
	case g.Join && len(g.Members) > 0:
		return fmt.Errorf("group %d: joins and is new: %w", g.ID, scstore.ErrInvalid)
	case g.Alone && (g.NonVoting || len(g.Members) > 1):
		return fmt.Errorf("group %d: alone with others: %w", g.ID, scstore.ErrInvalid)
	case len(g.Members) > 0 && g.NonVoting:
		return fmt.Errorf("group %d: the first members vote: %w", g.ID, scstore.ErrInvalid)
	}
	return nil
}

// group is this host's replica of one group, as long as it is started.
type group struct {
	c       *Cluster
	id      GroupID
	replica ReplicaID
	session *client.Session
	options Group // Alone may become false

	leaderSince atomic.Int64 // nanoseconds since 1970
	restarting  atomic.Bool  // stopped for a moment: lengthen
	placed      atomic.Bool  // place.go
	nextRefresh time.Time    // only for Cluster.prefer's goroutine
	preference  preference

	queue queue

	mu        sync.RWMutex
	shown     *replica // what View shows
	announced uint64   // Applied of the last event
	halted    error    // sticky: an entry could not be read
	over      error    // sticky: stopped
	watchers  []*Watcher
}

// Start starts this host's replica of a group. It returns once the state is restored
// from the newest snapshot; the log after it is applied when a leader says what is
// decided.
//
// Errors: ErrInvalid; ErrExists if it is started; ErrNotFound if its log is not here
// (see Group); ErrNoSpace beyond MaxGroups; ErrClosed.
func (c *Cluster) Start(ctx context.Context, o Group) error {
	if err := errors.Join(ctx.Err(), o.validate()); err != nil {
		return err
	}
	if disk, ok := o.Members[o.Replica]; len(o.Members) > 0 && (!ok || disk != c.options.Disk) {
		return fmt.Errorf("group %d: replica %d is not this disk among the members: %w", o.ID, o.Replica, scstore.ErrInvalid)
	}
	g := &group{c: c, id: o.ID, replica: o.Replica, options: o}
	g.queue.init(g)
	g.shown = g.newReplica()
	if err := c.call(func(host *dragonboat.NodeHost) error {
		g.session = host.GetNoOPSession(uint64(o.ID))
		return nil
	}); err != nil {
		return err
	}
	c.mu.Lock()
	switch {
	case c.closed:
		c.mu.Unlock()
		return errClosed
	case c.groups[o.ID] != nil:
		c.mu.Unlock()
		return fmt.Errorf("group %d is started: %w", o.ID, scstore.ErrExists)
	case len(c.groups) >= MaxGroups:
		c.mu.Unlock()
		return fmt.Errorf("%d groups on one host: %w", MaxGroups, scstore.ErrNoSpace)
	}
	c.groups[o.ID] = g
	c.mu.Unlock()
	if err := g.start(); err != nil {
		c.forget(g)
		return fmt.Errorf("start group %d: %w", o.ID, err)
	}
	return nil
}

// start has the library run the replica; the log decides whether it is the first time.
func (g *group) start() (err error) {
	leave, err := g.c.enter()
	if err != nil {
		return err
	}
	defer leave()
	defer func() {
		if cause := recover(); cause != nil { // see newHost
			err = fmt.Errorf("raft log: %v: %w", cause, scstore.ErrCorrupt)
		}
	}()
	host := g.c.host
	members, join := map[uint64]dragonboat.Target{}, false
	placed, err := g.c.isPlaced(g.id)
	if err != nil {
		return err
	}
	if !host.HasNodeInfo(uint64(g.id), uint64(g.replica)) {
		if !g.options.Join && len(g.options.Members) == 0 {
			err := fmt.Errorf("no log of replica %d: %w", g.replica, scstore.ErrNotFound)
			return scstore.Hint(err, "remove the replica from its group and add this disk under a new replica id")
		}
		join = g.options.Join
		for replica, disk := range g.options.Members {
			members[uint64(replica)] = disk.String()
		}
		if err := g.c.setPlaced(g.id); err != nil { // there is no snapshot yet
			return err
		}
		placed = true
	}
	g.placed.Store(placed)
	create := func(uint64, uint64) sm.IConcurrentStateMachine { return g.newReplica() }
	return translate(host.StartConcurrentReplica(members, join, create, g.config()))
}

func (g *group) config() config.Config {
	o := g.c.options
	heartbeat, election := o.HeartbeatTicks, o.ElectionTicks
	if g.options.Alone {
		heartbeat, election = aloneHeartbeatTicks, aloneElectionTicks
	}
	return config.Config{
		ShardID:             uint64(g.id),
		ReplicaID:           uint64(g.replica),
		CheckQuorum:         true,
		PreVote:             true,
		HeartbeatRTT:        uint64(heartbeat),
		ElectionRTT:         uint64(election),
		SnapshotEntries:     uint64(o.SnapshotEntries),
		CompactionOverhead:  uint64(o.TrailingEntries),
		OrderedConfigChange: true,
		MaxInMemLogSize:     MaxInMemoryLog,
		IsNonVoting:         g.options.NonVoting,
		WaitReady:           true,
	}
}

// lengthen gives an Alone group the timing of one that spans sites, before it gets a
// second voter.
func (g *group) lengthen(ctx context.Context) error {
	g.mu.Lock()
	alone := g.options.Alone
	g.options.Alone = false
	g.mu.Unlock()
	if !alone {
		return nil
	}
	g.restarting.Store(true)
	defer g.restarting.Store(false)
	if err := g.stopReplica(); err != nil {
		return err
	}
	for {
		err := g.start()
		if err == nil {
			if err = g.c.awaitLeader(ctx, g.id); !errors.Is(err, scstore.ErrNotFound) {
				return err
			}
		} else if !errors.Is(err, scstore.ErrExists) { // its former self is still on its way out
			return err
		}
		if err := sleep(g.c.ctx, lookInterval); err != nil { // not ctx: it must not stay stopped
			return errClosed
		}
	}
}

// restarts gives an error of the library another sentinel while the replica is stopped
// for a moment: nothing was done, and it will be there again.
func (g *group) restarts(err error) error {
	if g.restarting.Load() && (errors.Is(err, scstore.ErrNotFound) || errors.Is(err, scstore.ErrClosed)) {
		return fmt.Errorf("group %d starts anew: %w", g.id, scstore.ErrBusy)
	}
	return err
}

// stopReplica has the library stop the replica. When it notices, a moment later, that
// one has stopped, the library once more stops what then runs under that number; so
// this waits for that moment to pass.
func (g *group) stopReplica() error {
	if err := g.c.call(func(host *dragonboat.NodeHost) error {
		return host.StopReplica(uint64(g.id), uint64(g.replica))
	}); err != nil {
		return err
	}
	_ = sleep(g.c.ctx, 2*lookInterval) // Close need not wait
	return nil
}

// Stop stops this host's replica of a group; its log stays. Proposals that wait get
// ErrIndeterminate. Errors: ErrNotFound, ErrClosed.
func (c *Cluster) Stop(id GroupID) error {
	g, err := c.group(id)
	if err != nil {
		return err
	}
	g.queue.stop(errClosed)
	err = g.stopReplica()
	c.forget(g)
	g.end(errClosed)
	return err
}

func (c *Cluster) forget(g *group) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.groups, g.id)
}

// end tells the watchers that nothing will follow.
func (g *group) end(err error) {
	g.mu.Lock()
	g.over = err
	watchers := g.watchers
	g.watchers = nil
	g.mu.Unlock()
	for _, w := range watchers {
		w.end(err)
	}
}

// groupIDs returns the started groups in rising order.
func (c *Cluster) groupIDs() []GroupID {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Sorted(maps.Keys(c.groups))
}

// call runs a short call into the library and translates its error.
func (c *Cluster) call(f func(*dragonboat.NodeHost) error) error {
	leave, err := c.enter()
	if err != nil {
		return err
	}
	defer leave()
	return translate(f(c.host))
}

// View calls f with the state as this host has applied it, which may be behind the
// group. f must neither change nor keep it; commands wait meanwhile. Errors:
// ErrNotFound; ErrVersion or ErrCorrupt if the group stands still here; ErrClosed.
func (c *Cluster) View(id GroupID, f func(*meta.State)) error {
	g, err := c.group(id)
	if err != nil {
		return err
	}
	return g.view(f)
}

func (g *group) view(f func(*meta.State)) error {
	g.mu.RLock()
	defer g.mu.RUnlock()
	if g.halted != nil {
		return g.halted
	}
	f(g.shown.state)
	return nil
}

// Read is View after everything that was answered, anywhere in the cluster, before
// the call: a linearizable read. It costs a round trip to the leader and one from
// there to a majority. Errors: those of View; ErrNoMajority; ctx's cause.
func (c *Cluster) Read(ctx context.Context, id GroupID, f func(*meta.State)) error {
	g, err := c.group(id)
	if err != nil {
		return err
	}
	if err := g.barrier(ctx); err != nil {
		return fmt.Errorf("read group %d: %w", id, err)
	}
	return g.view(f)
}

// barrier waits until this host has applied what was decided before the call.
func (g *group) barrier(ctx context.Context) error {
	bounded, cancel := g.c.bounded(ctx)
	defer cancel()
	return g.restarts(g.c.ask(bounded, g.id, func() error { return g.tryBarrier(ctx, bounded) }))
}

// ask reads again while it is refused although there is a leader: one that was just
// elected answers no read before its first entry is decided.
func (c *Cluster) ask(bounded context.Context, id GroupID, read func() error) error {
	for {
		err := read()
		if !errors.Is(err, scstore.ErrNoMajority) || bounded.Err() != nil {
			return err
		}
		if l, err := c.Leader(id); err != nil {
			return err
		} else if !l.Known() {
			return fmt.Errorf("no leader: %w", scstore.ErrNoMajority)
		}
		if sleep(bounded, lookInterval) != nil {
			return err
		}
	}
}

func (g *group) tryBarrier(ctx, bounded context.Context) error {
	var request *dragonboat.RequestState
	err := g.c.call(func(host *dragonboat.NodeHost) (err error) {
		// A request that goes to a leader who is gone is never answered: the next one
		// goes to its successor.
		attempt := time.Duration(g.c.options.ElectionTicks) * g.c.options.TickInterval
		request, err = host.ReadIndex(uint64(g.id), min(g.c.timeLeft(bounded), attempt))
		return err
	})
	if err != nil {
		return err
	}
	select {
	case r := <-request.AppliedC():
		request.Release()
		if !r.Completed() {
			return fmt.Errorf("no answer: %w", scstore.ErrNoMajority)
		}
		return nil
	case <-bounded.Done():
		return g.c.waited(ctx, scstore.ErrNoMajority)
	}
}

// timeLeft is the time until ctx ends, at least two ticks: the library counts whole
// ones.
func (c *Cluster) timeLeft(ctx context.Context) time.Duration {
	deadline, _ := ctx.Deadline()
	return max(time.Until(deadline), 2*c.options.TickInterval)
}

// waited says why a bounded context of ctx ended.
func (c *Cluster) waited(ctx context.Context, otherwise error) error {
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case c.ctx.Err() != nil:
		return errClosed
	}
	return fmt.Errorf("no answer within %v: %w", c.options.Timeout, otherwise)
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// translate gives an error of the library a sentinel. Nothing was done where it comes
// from: what may have been done is told apart by the callers.
func translate(err error) error {
	for _, row := range []struct{ from, to error }{
		{dragonboat.ErrSystemBusy, scstore.ErrBusy},
		{dragonboat.ErrShardNotReady, scstore.ErrNoMajority},
		{dragonboat.ErrShardNotInitialized, scstore.ErrBusy},
		{dragonboat.ErrShardNotFound, scstore.ErrNotFound},
		{dragonboat.ErrShardAlreadyExist, scstore.ErrExists},
		{dragonboat.ErrInvalidShardSettings, scstore.ErrInvalid},
		{dragonboat.ErrReplicaRemoved, scstore.ErrInvalid},
		{dragonboat.ErrInvalidTarget, scstore.ErrInvalid},
		{dragonboat.ErrInvalidOperation, scstore.ErrInvalid},
		{dragonboat.ErrPayloadTooBig, scstore.ErrInvalid},
		{dragonboat.ErrShardClosed, scstore.ErrClosed},
		{dragonboat.ErrClosed, scstore.ErrClosed},
		{dragonboat.ErrTimeout, scstore.ErrNoMajority},
		{dragonboat.ErrCanceled, scstore.ErrNoMajority},
		{dragonboat.ErrRejected, scstore.ErrBusy},
	} {
		if errors.Is(err, row.from) {
			return fmt.Errorf("%v: %w", err, row.to)
		}
	}
	return err
}
