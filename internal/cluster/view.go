package cluster

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"

	"scstore"
	"scstore/consensus"
	"scstore/consensus/meta"
	"scstore/propagate/quicnet"
)

// view is what this host knows of the members, taken out of the namespace's state. It is
// never changed, but replaced by a later one (I4): after a restart the state may be older
// than what cluster.json holds.
type view struct {
	applied uint64 // of the namespace's state that the hosts are from
	hosts   map[meta.DiskID]meta.Host
	sites   []meta.Site
	members map[meta.GroupID][]meta.Member
}

// newView is what cluster.json knows.
func newView(k known) *view {
	v := &view{applied: k.Applied, hosts: map[meta.DiskID]meta.Host{}}
	for _, h := range k.Hosts {
		state := meta.HostActive
		switch {
		case h.Removed:
			state = meta.HostRemoved
		case h.Joining:
			state = meta.HostJoining
		}
		v.hosts[h.Disk] = meta.Host{Disk: h.Disk, Name: h.Name, Site: h.Site, State: state, Boots: h.Boots, Addresses: h.Addresses}
	}
	return v
}

// read takes what a state says.
func (v *view) read(s *meta.State) {
	v.applied, v.sites = s.Applied(), s.Sites()
	v.hosts, v.members = map[meta.DiskID]meta.Host{}, map[meta.GroupID][]meta.Member{}
	for _, h := range s.Hosts() {
		v.hosts[h.Disk] = h
	}
	for _, g := range groupIDs() {
		v.members[g] = s.Members(g)
	}
}

// known is what cluster.json is to hold of the view.
func (v *view) known() known {
	k := known{Applied: v.applied}
	for _, h := range v.hosts {
		k.Hosts = append(k.Hosts, knownOf(h))
	}
	slices.SortFunc(k.Hosts, func(a, b knownHost) int { return cmp.Compare(a.Disk, b.Disk) })
	return k
}

// knownOf is what cluster.json is to hold of a host.
func knownOf(h meta.Host) knownHost {
	return knownHost{
		Disk: h.Disk, Name: h.Name, Site: h.Site, Joining: h.State == meta.HostJoining, Removed: h.State == meta.HostRemoved,
		Boots: h.Boots, Addresses: h.Addresses,
	}
}

// replica returns a disk's replica id in a group, 0 without one.
func (v *view) replica(g meta.GroupID, d meta.DiskID) uint64 {
	for _, m := range v.members[g] {
		if m.Disk == d {
			return m.Replica
		}
	}
	return 0
}

// bySeniority returns the hosts that were not removed, those that joined first first.
func (v *view) bySeniority() []meta.Host {
	list := slices.DeleteFunc(slices.Collect(maps.Values(v.hosts)), func(h meta.Host) bool { return h.State == meta.HostRemoved })
	slices.SortFunc(list, func(a, b meta.Host) int {
		return cmp.Or(
			cmp.Compare(v.replica(meta.GroupNamespace, a.Disk), v.replica(meta.GroupNamespace, b.Disk)), cmp.Compare(a.Disk, b.Disk))
	})
	return list
}

// votes reports whether a disk is its site's voter.
func (v *view) votes(d meta.DiskID) bool {
	return slices.ContainsFunc(v.sites, func(s meta.Site) bool { return slices.Contains(s.Voters, d) })
}

// byName returns the host with this name, one that was removed only if there is no
// other.
func (v *view) byName(name string) (meta.Host, bool) {
	var found meta.Host
	for _, h := range v.hosts {
		if h.Name == name && (found.Disk == "" || h.State != meta.HostRemoved || found.State == meta.HostRemoved && h.RemovedAt > found.RemovedAt) {
			found = h
		}
	}
	return found, found.Disk != ""
}

// refresh takes the namespace's state as this host has applied it.
func (c *Cluster) refresh() error {
	c.refreshing.Lock()
	defer c.refreshing.Unlock()
	next, old := &view{}, c.view.Load()
	if err := c.raft.View(consensus.GroupID(meta.GroupNamespace), next.read); err != nil {
		return err
	}
	if next.applied < old.applied {
		next.applied, next.hosts = old.applied, old.hosts
	}
	c.view.Store(next)
	c.mu.Lock()
	close(c.changed)
	c.changed = make(chan struct{})
	c.mu.Unlock()
	for d, h := range next.hosts {
		if h.State == meta.HostRemoved && old.hosts[d].State != meta.HostRemoved {
			c.part(h)
		}
	}
	return nil
}

// part ends what this host has to do with one that was removed, which may be itself.
func (c *Cluster) part(h meta.Host) {
	if h.Disk == c.disk {
		c.fail(scstore.Hint(errRemoved(h), "join again with an empty folder"))
		return
	}
	if disk, err := storeID(h.Disk); err == nil {
		c.net.Disconnect(disk, errRemoved(h))
	}
}

func errRemoved(h meta.Host) error {
	return fmt.Errorf("host %s was removed from the cluster: %w", h.Name, scstore.ErrFenced)
}

// change returns a channel that is closed when there is a new view.
func (c *Cluster) change() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.changed
}

// follow keeps the view up to date until ctx ends.
func (c *Cluster) follow(ctx context.Context, w *consensus.Watcher) {
	defer w.Close()
	for {
		e, err := w.Next(ctx)
		if err != nil {
			return
		}
		if !e.Gap && !concernsMembers(e.Command.Op) {
			continue
		}
		if err := c.refresh(); err != nil {
			c.log.Debug("members not read", "err", err)
		}
	}
}

// concernsMembers reports whether an operation may change what a view holds.
func concernsMembers(op meta.Op) bool {
	switch op.(type) {
	case meta.SetCluster, meta.SetSite, meta.RemoveSite, meta.AddHost, meta.UpdateHost, meta.Boot, meta.AllocReplica, meta.FreeReplica, meta.RemoveDisk:
		return true
	}
	return false
}

// resolve says where a host is.
func (c *Cluster) resolve(_ context.Context, disk scstore.StoreID) ([]string, error) {
	h, ok := c.view.Load().hosts[meta.DiskID(disk.String())]
	if !ok {
		return nil, fmt.Errorf("disk %s is no host of the cluster: %w", disk, scstore.ErrNotFound)
	}
	if h.State == meta.HostRemoved {
		return nil, fmt.Errorf("host %s was removed: %w", h.Name, scstore.ErrNotFound)
	}
	return h.Addresses, nil
}

// allowed says whether a host of the cluster may talk to this one (I4). One that is not
// known yet has joined a moment ago.
func (c *Cluster) allowed(p quicnet.Peer) error {
	h, ok := c.view.Load().hosts[meta.DiskID(p.Disk.String())]
	switch {
	case !ok:
		return nil
	case h.State == meta.HostRemoved:
		return errRemoved(h)
	case p.Boot < h.Boots:
		return fmt.Errorf("host %s says it is start %d of its disk, start %d is registered: %w", h.Name, p.Boot, h.Boots, scstore.ErrFenced)
	}
	return nil
}

// owner says whether a disk may send for a replica.
func (c *Cluster) owner(shard, replica uint64, disk scstore.StoreID) error {
	for _, m := range c.view.Load().members[meta.GroupID(shard)] {
		if m.Replica == replica && m.Disk != meta.DiskID(disk.String()) {
			return fmt.Errorf("replica %d of group %d is of host %s: %w", replica, shard, c.HostName(m.Disk), scstore.ErrInvalid)
		}
	}
	return nil
}

// mayHoldKey says whether a host may have the authority's key: voters may.
func (c *Cluster) mayHoldKey(p quicnet.Peer) bool {
	return c.view.Load().votes(meta.DiskID(p.Disk.String()))
}

// keyHolders returns the other hosts that should have the authority's key.
func (c *Cluster) keyHolders() []scstore.StoreID {
	v := c.view.Load()
	var list []scstore.StoreID
	for _, h := range v.bySeniority() {
		if disk, err := storeID(h.Disk); err == nil && v.votes(h.Disk) && h.Disk != c.disk {
			list = append(list, disk)
		}
	}
	return list
}
