package consensus

import (
	"context"
	"errors"
	"fmt"
	"maps"

	"github.com/lni/dragonboat/v4"

	"scstore"
)

// Members is who belongs to a group.
type Members struct {
	Change    uint64 // index of the entry that made it so; every change names the one before
	Voters    map[ReplicaID]DiskID
	NonVoting map[ReplicaID]DiskID
	Removed   map[ReplicaID]struct{} // never given again
}

// Has returns the replica of a disk.
func (m Members) Has(disk DiskID) (ReplicaID, bool) {
	for _, of := range []map[ReplicaID]DiskID{m.Voters, m.NonVoting} {
		for replica, d := range of {
			if d == disk {
				return replica, true
			}
		}
	}
	return 0, false
}

// Members reads a group's members, linearizably. Errors: those of Read.
func (c *Cluster) Members(ctx context.Context, id GroupID) (Members, error) {
	m, err := c.members(ctx, id)
	if err != nil {
		return Members{}, fmt.Errorf("read members of group %d: %w", id, err)
	}
	return m, nil
}

func (c *Cluster) members(ctx context.Context, id GroupID) (Members, error) {
	g, err := c.group(id)
	if err != nil {
		return Members{}, err
	}
	bounded, cancel := c.bounded(ctx)
	defer cancel()
	var got *dragonboat.Membership
	err = c.ask(bounded, id, func() error {
		return c.call(func(host *dragonboat.NodeHost) (err error) {
			got, err = host.SyncGetShardMembership(bounded, uint64(id))
			return err
		})
	})
	if err != nil {
		if bounded.Err() != nil {
			return Members{}, c.waited(ctx, scstore.ErrNoMajority)
		}
		return Members{}, g.restarts(err)
	}
	m := Members{Change: got.ConfigChangeID, Removed: map[ReplicaID]struct{}{}}
	for replica := range got.Removed {
		m.Removed[ReplicaID(replica)] = struct{}{}
	}
	voters, err1 := parseTargets(got.Nodes)
	others, err2 := parseTargets(got.NonVotings)
	m.Voters, m.NonVoting = voters, others
	return m, errors.Join(err1, err2)
}

func parseTargets(targets map[uint64]string) (map[ReplicaID]DiskID, error) {
	disks := map[ReplicaID]DiskID{}
	for replica, target := range targets {
		disk, err := ParseDiskID(target)
		if err != nil {
			return nil, err
		}
		disks[ReplicaID(replica)] = disk
	}
	return disks, nil
}

// AddVoter adds a disk to a group as a voter, which its host then starts with
// Group.Join. A disk that replaces another is added after that one was removed, under
// a replica id of its own. Until the new voter has caught up a majority is harder to
// find: AddNonVoting and Promote avoid that.
//
// Errors: ErrExists if the disk is a member; ErrInvalid for a replica id that is or
// was in use; ErrBusy if the members changed meanwhile (nothing was done);
// ErrNoMajority; ErrIndeterminate: look at Members.
func (c *Cluster) AddVoter(ctx context.Context, id GroupID, replica ReplicaID, disk DiskID) error {
	return c.changeVoters(ctx, id, fmt.Sprintf("add voter %d", replica), func(host *dragonboat.NodeHost, m Members) (*dragonboat.RequestState, error) {
		if err := m.admits(replica, disk); err != nil {
			return nil, err
		}
		return host.RequestAddReplica(uint64(id), uint64(replica), disk.String(), m.Change, c.options.Timeout)
	})
}

// AddNonVoting adds a disk to a group as a member that follows and does not vote; its
// host then starts it with Group.Join and Group.NonVoting. Errors: those of AddVoter.
func (c *Cluster) AddNonVoting(ctx context.Context, id GroupID, replica ReplicaID, disk DiskID) error {
	return c.change(ctx, id, fmt.Sprintf("add non-voting %d", replica), func(host *dragonboat.NodeHost, m Members) (*dragonboat.RequestState, error) {
		if err := m.admits(replica, disk); err != nil {
			return nil, err
		}
		return host.RequestAddNonVoting(uint64(id), uint64(replica), disk.String(), m.Change, c.options.Timeout)
	})
}

// Promote lets a non-voting member vote. Errors: ErrNotFound if it is none; otherwise
// those of AddVoter.
func (c *Cluster) Promote(ctx context.Context, id GroupID, replica ReplicaID) error {
	return c.changeVoters(ctx, id, fmt.Sprintf("promote %d", replica), func(host *dragonboat.NodeHost, m Members) (*dragonboat.RequestState, error) {
		disk, ok := m.NonVoting[replica]
		if !ok {
			return nil, fmt.Errorf("not a non-voting member: %w", scstore.ErrNotFound)
		}
		return host.RequestAddReplica(uint64(id), uint64(replica), disk.String(), m.Change, c.options.Timeout)
	})
}

// RemoveMember takes a member out of a group, for ever: its replica id is never given
// again. Its host stops the replica by itself when it learns of it. Errors:
// ErrNotFound if it is none; ErrInvalid for the last voter; otherwise those of
// AddVoter.
func (c *Cluster) RemoveMember(ctx context.Context, id GroupID, replica ReplicaID) error {
	return c.change(ctx, id, fmt.Sprintf("remove %d", replica), func(host *dragonboat.NodeHost, m Members) (*dragonboat.RequestState, error) {
		_, votes := m.Voters[replica]
		_, follows := m.NonVoting[replica]
		switch {
		case !votes && !follows:
			return nil, fmt.Errorf("not a member: %w", scstore.ErrNotFound)
		case votes && len(m.Voters) == 1:
			return nil, fmt.Errorf("the last voter: %w", scstore.ErrInvalid)
		}
		return host.RequestDeleteReplica(uint64(id), uint64(replica), m.Change, c.options.Timeout)
	})
}

// admits says whether a disk may become a member under this replica id.
func (m Members) admits(replica ReplicaID, disk DiskID) error {
	if other, ok := m.Has(disk); ok {
		return fmt.Errorf("disk %v is replica %d: %w", disk, other, scstore.ErrExists)
	}
	_, removed := m.Removed[replica]
	_, votes := m.Voters[replica]
	_, follows := m.NonVoting[replica]
	if replica == 0 || disk == (DiskID{}) || removed || votes || follows {
		return fmt.Errorf("replica id %d is or was in use: %w", replica, scstore.ErrInvalid)
	}
	return nil
}

// changeVoters is change for one that gives the group another voter.
func (c *Cluster) changeVoters(ctx context.Context, id GroupID, what string,
	request func(*dragonboat.NodeHost, Members) (*dragonboat.RequestState, error),
) error {
	g, err := c.group(id)
	if err == nil {
		err = g.lengthen(ctx)
	}
	if err != nil {
		return fmt.Errorf("%s of group %d: %w", what, id, err)
	}
	return c.change(ctx, id, what, request)
}

// change asks for one change of the members as they are now.
func (c *Cluster) change(ctx context.Context, id GroupID, what string,
	request func(*dragonboat.NodeHost, Members) (*dragonboat.RequestState, error),
) error {
	if err := c.tryChange(ctx, id, request); err != nil {
		return fmt.Errorf("%s of group %d: %w", what, id, err)
	}
	c.logger.Info("members changed", "group", id, "change", what)
	return nil
}

func (c *Cluster) tryChange(ctx context.Context, id GroupID,
	request func(*dragonboat.NodeHost, Members) (*dragonboat.RequestState, error),
) error {
	if err := c.space.check(); err != nil {
		return err
	}
	m, err := c.members(ctx, id)
	if err != nil {
		return err
	}
	var state *dragonboat.RequestState
	err = c.call(func(host *dragonboat.NodeHost) (err error) {
		state, err = request(host, m)
		return err
	})
	if err != nil {
		return err
	}
	bounded, cancel := c.bounded(ctx)
	defer cancel()
	select {
	case r := <-state.AppliedC():
		state.Release()
		switch {
		case r.Completed():
			return nil
		case r.Rejected():
			return fmt.Errorf("the members changed meanwhile: %w", scstore.ErrBusy)
		case r.Dropped():
			return fmt.Errorf("no leader: %w", scstore.ErrNoMajority)
		}
		return fmt.Errorf("no answer from the log: %w", scstore.ErrIndeterminate)
	case <-bounded.Done():
		return fmt.Errorf("%v: %w", c.waited(ctx, scstore.ErrNoMajority), scstore.ErrIndeterminate)
	}
}

// Voters returns the voters of a group as this host has applied them. Errors:
// ErrNotFound, ErrClosed.
func (c *Cluster) Voters(id GroupID) (map[ReplicaID]DiskID, error) { return c.localVoters(id) }

// localVoters returns the voters of a group as this host has applied them.
func (c *Cluster) localVoters(id GroupID) (map[ReplicaID]DiskID, error) {
	leave, err := c.enter()
	if err != nil {
		return nil, err
	}
	defer leave()
	info := c.host.GetNodeHostInfo(dragonboat.NodeHostInfoOption{SkipLogInfo: true})
	for _, shard := range info.ShardInfoList {
		if shard.ShardID == uint64(id) {
			return parseTargets(maps.Clone(shard.Replicas))
		}
	}
	return nil, fmt.Errorf("group %d is not here: %w", id, scstore.ErrNotFound)
}
