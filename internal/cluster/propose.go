package cluster

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"time"

	"scstore"
	"scstore/consensus"
	"scstore/consensus/meta"
)

// session is this host's session in a group, for commands that may not be applied
// twice. It is opened at the first of them.
type session struct {
	turn chan struct{} // of one token: who opens

	mu     sync.Mutex
	client meta.ClientID // zero while none is open
	last   uint64        // number of the latest command
	flying map[uint64]struct{}
	freed  chan struct{} // closed and replaced when a command has ended
}

func newSession() *session {
	return &session{turn: make(chan struct{}, 1), flying: map[uint64]struct{}{}, freed: make(chan struct{})}
}

// take returns the next command's id. ok is false if no session is open, or one must
// wait for wait: the state remembers so many results, not more.
func (s *session) take() (id meta.CommandID, wait <-chan struct{}, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.client == (meta.ClientID{}) {
		return meta.CommandID{}, nil, false
	}
	oldest := s.last + 1
	for seq := range s.flying {
		oldest = min(oldest, seq)
	}
	if s.last+1-oldest >= meta.MaxSessionResults {
		return meta.CommandID{}, s.freed, false
	}
	s.last++
	s.flying[s.last] = struct{}{}
	return meta.CommandID{Client: s.client, Seq: s.last}, nil, true
}

// done ends what take began.
func (s *session) done(id meta.CommandID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if id.Client == s.client {
		delete(s.flying, id.Seq)
	}
	close(s.freed)
	s.freed = make(chan struct{})
}

// replace puts another client in the place of one; the zero client for none.
func (s *session) replace(old, fresh meta.ClientID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.client == old {
		s.client, s.last, s.flying = fresh, 0, map[uint64]struct{}{}
	}
}

// proposer is how a command goes to the log.
type proposer func(context.Context, consensus.GroupID, meta.Command) (meta.Result, error)

// Propose has a group decide a command, once this host has applied it. One that may not
// be applied twice is proposed again, under the same id, until its outcome is known or
// ctx ends; all others once.
//
// Errors: those of meta.Result; ErrInvalid, ErrNotFound, ErrBusy, ErrNoMajority,
// ErrNoSpace, ctx's cause: nothing was applied, nothing will be; ErrIndeterminate: it
// may be applied, now or later; ErrVersion, ErrCorrupt, ErrClosed.
func (c *Cluster) Propose(ctx context.Context, g meta.GroupID, op meta.Op) (meta.Result, error) {
	return c.propose(ctx, g, op, c.raft.Propose)
}

// ProposeSoon is Propose for what nobody waits for with impatience: the command waits a
// moment for others to share an entry with.
func (c *Cluster) ProposeSoon(ctx context.Context, g meta.GroupID, op meta.Op) (meta.Result, error) {
	return c.propose(ctx, g, op, c.raft.ProposeSoon)
}

func (c *Cluster) propose(ctx context.Context, g meta.GroupID, op meta.Op, send proposer) (meta.Result, error) {
	if err := (meta.Command{Op: op}).Validate(); err != nil {
		return meta.Result{}, err
	}
	if repeatable(op) {
		return send(ctx, consensus.GroupID(g), meta.Command{Op: op})
	}
	s := c.sessions[g]
	if s == nil {
		return meta.Result{}, fmt.Errorf("group %d is not here: %w", g, scstore.ErrNotFound)
	}
	for again := false; ; again = true {
		id, err := c.begin(ctx, g, s, send)
		if err != nil {
			return meta.Result{}, err
		}
		result, tries, err := c.settle(ctx, g, meta.Command{ID: id, Op: op}, send)
		s.done(id)
		if result.Code != meta.CodeSessionExpired {
			return result, err
		}
		s.replace(id.Client, meta.ClientID{})
		if again || tries > 1 { // else the id was new: nothing was applied under it
			return meta.Result{}, err
		}
	}
}

// settle proposes a command of a session until its outcome is known, and says how often
// it did.
func (c *Cluster) settle(ctx context.Context, g meta.GroupID, command meta.Command, send proposer) (result meta.Result, tries int, err error) {
	for tries = 1; ; tries++ {
		result, err = send(ctx, consensus.GroupID(g), command)
		switch {
		case result.Code != 0: // the state has answered
			return result, tries, err
		case tries == 1 && !errors.Is(err, scstore.ErrIndeterminate):
			return result, tries, err
		case errors.Is(err, scstore.ErrClosed), errors.Is(err, scstore.ErrVersion), errors.Is(err, scstore.ErrCorrupt), c.pause(ctx) != nil:
			return meta.Result{}, tries, fmt.Errorf("%v: %w", err, scstore.ErrIndeterminate) // an earlier try may be applied
		}
	}
}

// begin returns the id of the next command, in a session that is opened if there is
// none. Errors: as Propose; nothing was applied.
func (c *Cluster) begin(ctx context.Context, g meta.GroupID, s *session, send proposer) (meta.CommandID, error) {
	for {
		id, wait, ok := s.take()
		switch {
		case ok:
			return id, nil
		case wait == nil:
			if err := c.openSession(ctx, g, s, send); err != nil {
				return meta.CommandID{}, err
			}
			continue
		}
		select {
		case <-wait:
		case <-ctx.Done():
			return meta.CommandID{}, context.Cause(ctx)
		}
	}
}

// openSession opens a session, unless somebody else did meanwhile.
func (c *Cluster) openSession(ctx context.Context, g meta.GroupID, s *session, send proposer) error {
	select {
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	s.mu.Lock()
	open := s.client != meta.ClientID{}
	s.mu.Unlock()
	if open {
		return nil
	}
	var client meta.ClientID
	rand.Read(client[:])
	_, _, err := c.settle(ctx, g, meta.Command{ID: meta.CommandID{Client: client}, Op: meta.OpenSession{}}, send)
	switch {
	case errors.Is(err, scstore.ErrIndeterminate): // of the session; the command that wants it was not proposed
		return fmt.Errorf("open a session in group %d: %v: %w", g, err, scstore.ErrNoMajority)
	case err != nil:
		return fmt.Errorf("open a session in group %d: %w", g, err)
	}
	s.replace(meta.ClientID{}, client)
	return nil
}

// repeatable reports whether applying an operation twice does no harm and answers the
// same, or whether it must not be part of a session.
func repeatable(op meta.Op) bool {
	switch op.(type) {
	case meta.Batch, meta.Ack, meta.Complete, meta.Release, meta.CommitEpoch, meta.Resize, meta.Snapshot, meta.Rollback, meta.ReportNoBranch,
		meta.LeaveInSync, meta.JoinInSync, meta.PutPin, meta.DropPin, meta.Renew, meta.Expire,
		meta.SetCluster, meta.RemoveSite, meta.AddHost, meta.Boot, meta.AddToken, meta.UseToken, meta.AllocReplica, meta.FreeReplica, meta.AdmitDisk,
		meta.Link, meta.AddRef, meta.DropRef,
		meta.Intent, meta.DropIntent, meta.HandOff, meta.Cancel, meta.Revoke, meta.Promote, meta.RegisterBranch:
		return true
	}
	return false
}

// firmly proposes a command that may be applied twice until the state answers, or ctx
// ends. A proposal that went to a leader which was one no more is lost without a word.
func (c *Cluster) firmly(ctx context.Context, g meta.GroupID, op meta.Op) (meta.Result, error) {
	for {
		try, cancel := context.WithTimeoutCause(ctx, proposeTry, fmt.Errorf("no answer within %v: %w", proposeTry, scstore.ErrNoMajority))
		result, err := c.Propose(try, g, op)
		cancel()
		if result.Code != 0 || !transient(err) || c.pause(ctx) != nil {
			return result, err
		}
	}
}

// transient reports whether to try again.
func transient(err error) bool {
	return errors.Is(err, scstore.ErrNoMajority) || errors.Is(err, scstore.ErrBusy) || errors.Is(err, scstore.ErrIndeterminate)
}

// pause waits a moment; its error says that there is no time for it.
func (c *Cluster) pause(ctx context.Context) error {
	timer := time.NewTimer(retryPause)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-c.ctx.Done():
		return context.Cause(c.ctx)
	}
}

// View calls f with a group's state as this host has applied it, which may be behind the
// group, after a restart by all since the newest snapshot. f must neither change nor keep
// it. Errors: ErrNotFound, ErrVersion, ErrCorrupt, ErrClosed.
func (c *Cluster) View(g meta.GroupID, f func(*meta.State)) error {
	return c.raft.View(consensus.GroupID(g), f)
}

// Read is View after everything that was answered before the call, anywhere in the
// cluster. Errors: those of View; ErrNoMajority; ctx's cause.
func (c *Cluster) Read(ctx context.Context, g meta.GroupID, f func(*meta.State)) error {
	return c.raft.Read(ctx, consensus.GroupID(g), f)
}

// readFirmly reads again while no leader answers, for a while. Errors: those of Read.
func (c *Cluster) readFirmly(ctx context.Context, patience time.Duration, g meta.GroupID, f func(*meta.State)) error {
	limited, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("no answer within %v: %w", patience, scstore.ErrNoMajority))
	defer cancel()
	return c.retry(limited, func() error { return c.Read(limited, g, f) })
}

// retry calls f again while what it asks for may come to be. It returns f's error.
func (c *Cluster) retry(ctx context.Context, f func() error) error {
	for {
		err := f()
		if err == nil || !transient(err) || c.pause(ctx) != nil {
			return err
		}
	}
}

// Watch begins to deliver a group's events from now on. Errors: ErrNotFound, ErrClosed.
func (c *Cluster) Watch(g meta.GroupID) (*consensus.Watcher, error) {
	return c.raft.Watch(consensus.GroupID(g))
}
