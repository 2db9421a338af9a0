package consensus

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/lni/dragonboat/v4"

	"scstore"
)

// Times between attempts to move a leader.
const (
	transferRetry    = 500 * time.Millisecond // a transfer takes 1.5 round trips if it works
	minPreferBackoff = 2 * time.Second
	maxPreferBackoff = time.Minute
)

// Leader is who leads a group as far as this host knows; it may lag by the time of an
// election.
type Leader struct {
	Replica ReplicaID // 0 if none is known: this host sees no majority
	Disk    DiskID    // zero if not known here
	Term    uint64
	Here    bool // it is this host
}

// Known reports whether there is a leader, and so a majority, in this host's eyes.
func (l Leader) Known() bool { return l.Replica != 0 }

// Leader says who leads a group. Errors: ErrNotFound, ErrClosed.
func (c *Cluster) Leader(id GroupID) (Leader, error) {
	g, err := c.group(id)
	if err != nil {
		return Leader{}, err
	}
	var l Leader
	err = c.call(func(host *dragonboat.NodeHost) error {
		replica, term, valid, err := host.GetLeaderID(uint64(id))
		if valid {
			l = Leader{Replica: ReplicaID(replica), Term: term, Here: ReplicaID(replica) == g.replica}
		}
		return err
	})
	if err != nil || !l.Known() {
		return l, err
	}
	voters, err := c.localVoters(id)
	l.Disk = voters[l.Replica]
	return l, err
}

// awaitLeader waits until this host knows of a leader.
func (c *Cluster) awaitLeader(ctx context.Context, id GroupID) error {
	bounded, cancel := c.bounded(ctx)
	defer cancel()
	for {
		changed := c.leaderChange()
		l, err := c.Leader(id)
		if err != nil || l.Known() {
			return err
		}
		select {
		case <-changed:
		case <-time.After(lookInterval): // the library tells of a leader a moment before it shows
		case <-bounded.Done():
			return c.waited(ctx, scstore.ErrNoMajority)
		}
	}
}

// TransferLeader makes a disk lead a group and returns once this host knows that it
// does. It asks again every half second: the library drops a request if the target
// lags or another transfer is under way, and never says so. Proposals are refused for
// the moment of the transfer.
//
// Errors, both as this host has applied the members: ErrNotFound if the disk is no
// voter of the group, ErrInvalid if this host is none (only voters can ask);
// ErrNoMajority if it did not happen within the Timeout (it still may); ErrClosed;
// ctx's cause.
func (c *Cluster) TransferLeader(ctx context.Context, id GroupID, disk DiskID) error {
	if err := c.transfer(ctx, id, disk); err != nil {
		return fmt.Errorf("move leader of group %d to disk %v: %w", id, disk, err)
	}
	return nil
}

func (c *Cluster) transfer(ctx context.Context, id GroupID, disk DiskID) error {
	bounded, cancel := c.bounded(ctx)
	defer cancel()
	var asked time.Time
	for {
		changed := c.leaderChange()
		now, err := c.Leader(id)
		if err != nil {
			return err
		}
		if now.Disk == disk {
			return nil
		}
		if time.Since(asked) >= transferRetry {
			asked = time.Now()
			if err := c.askForTransfer(id, disk); err != nil {
				return err
			}
		}
		select {
		case <-changed:
		case <-time.After(lookInterval): // see awaitLeader
		case <-bounded.Done():
			return c.waited(ctx, scstore.ErrNoMajority)
		}
	}
}

func (c *Cluster) askForTransfer(id GroupID, disk DiskID) error {
	target, err := c.transferTarget(id, disk)
	if err != nil {
		return err
	}
	err = c.call(func(host *dragonboat.NodeHost) error {
		return host.RequestLeaderTransfer(uint64(id), uint64(target))
	})
	if errors.Is(err, scstore.ErrBusy) || errors.Is(err, scstore.ErrNoMajority) {
		return nil // ask again later
	}
	return err
}

func (c *Cluster) transferTarget(id GroupID, disk DiskID) (ReplicaID, error) {
	voters, err := c.localVoters(id)
	if err != nil {
		return 0, err
	}
	g, err := c.group(id)
	if err != nil {
		return 0, err
	}
	if _, votes := voters[g.replica]; !votes {
		return 0, fmt.Errorf("this host has no vote: %w", scstore.ErrInvalid)
	}
	for replica, d := range voters {
		if d == disk {
			return replica, nil
		}
	}
	return 0, fmt.Errorf("no voter: %w", scstore.ErrNotFound)
}

// preference is which disk should lead a group.
type preference struct {
	mu      sync.Mutex
	disk    DiskID // zero for none
	next    time.Time
	backoff time.Duration
}

// Prefer says which disk should lead a group: the one whose host writes, because a
// proposal from there then takes one round trip and not three. The zero disk leaves
// it to chance. It is told to every host; the preferred one alone acts on it, since
// it alone can prove that it is fit: it first reads linearizably, which shows that it
// reaches the leader and has caught up, and only then asks for the lead. One that is
// dead or behind never makes the leader refuse proposals for nothing. It waits until
// a leader has led for two election times, and between attempts that fail from two
// seconds up to a minute. Errors: ErrNotFound, ErrClosed.
func (c *Cluster) Prefer(id GroupID, disk DiskID) error {
	g, err := c.group(id)
	if err != nil {
		return err
	}
	p := &g.preference
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.disk != disk {
		p.disk, p.next, p.backoff = disk, time.Time{}, 0
	}
	return nil
}

// Preferred returns what Prefer was told last, zero for none. Errors: ErrNotFound,
// ErrClosed.
func (c *Cluster) Preferred(id GroupID) (DiskID, error) {
	g, err := c.group(id)
	if err != nil {
		return DiskID{}, err
	}
	g.preference.mu.Lock()
	defer g.preference.mu.Unlock()
	return g.preference.disk, nil
}

// due reports whether this disk is preferred and may try now.
func (p *preference) due(disk DiskID, now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.disk == disk && !now.Before(p.next)
}

// tried sets the time of the next attempt.
func (p *preference) tried(now time.Time, led bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if led {
		p.backoff = 0
		return
	}
	p.backoff = min(max(2*p.backoff, minPreferBackoff), maxPreferBackoff)
	p.next = now.Add(p.backoff)
}

// prefer takes the lead of groups that prefer this disk, until the Cluster ends.
func (c *Cluster) prefer() {
	ticker := time.NewTicker(c.options.PreferInterval)
	defer ticker.Stop()
	for {
		select {
		case <-c.ctx.Done():
			return
		case <-ticker.C:
		}
		for _, id := range c.groupIDs() {
			if g, err := c.group(id); err == nil {
				c.refresh(g)
				c.takeLead(g)
			}
		}
	}
}

func (c *Cluster) takeLead(g *group) {
	now := time.Now()
	stable := time.Duration(2*c.options.ElectionTicks) * c.options.TickInterval
	if !g.preference.due(c.options.Disk, now) || now.Sub(time.Unix(0, g.leaderSince.Load())) < stable {
		return
	}
	l, err := c.Leader(g.id)
	if err != nil || !l.Known() || l.Here {
		return
	}
	if voters, err := c.localVoters(g.id); err != nil || voters[g.replica] != c.options.Disk {
		return
	}
	ctx, cancel := context.WithTimeout(c.ctx, 4*transferRetry)
	defer cancel()
	err = g.barrier(ctx)
	if err == nil {
		err = c.transfer(ctx, g.id, c.options.Disk)
	}
	g.preference.tried(time.Now(), err == nil)
	if err != nil && c.ctx.Err() == nil {
		c.logger.Debug("cannot take the lead", "group", g.id, "err", err)
	}
}
