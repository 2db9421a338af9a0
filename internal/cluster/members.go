package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"scstore"
	"scstore/consensus"
	"scstore/consensus/meta"
	"scstore/propagate/quicnet"
	"scstore/propagate/quicnet/authority"
)

// mindSelf keeps what the cluster says of this host right, until Close.
func (c *Cluster) mindSelf() {
	registered := false
	c.every(managePeriod, func() {
		ctx, cancel := context.WithTimeout(c.ctx, actTimeout)
		defer cancel()
		if err := c.tendSelf(ctx, &registered); err != nil && ctx.Err() == nil {
			c.log.Debug("not done yet", "err", err)
		}
	})
}

// every calls act now and then, and when there is a new view, until Close begins.
func (c *Cluster) every(period time.Duration, act func()) {
	ticker := time.NewTicker(period)
	defer ticker.Stop()
	for {
		changed := c.change()
		act()
		select {
		case <-changed:
		case <-ticker.C:
		case <-c.ctx.Done():
			return
		}
	}
}

// tendSelf does what is next.
func (c *Cluster) tendSelf(ctx context.Context, registered *bool) error {
	if err := c.saveKnown(); err != nil {
		return err
	}
	leader, ok := c.Leader(meta.GroupNamespace)
	if !ok {
		c.checkFenced(ctx)
		return nil
	}
	if !*registered {
		if err := c.register(ctx); err != nil {
			return err
		}
		*registered = true
	}
	v := c.view.Load()
	self, ok := v.hosts[c.disk]
	if !ok || v.replica(meta.GroupNamespace, c.disk) == 0 { // this host has not caught up with its own joining
		return nil
	}
	if self.State == meta.HostJoining {
		return c.catchUp(ctx)
	}
	if self.Fingerprint != c.fingerprint() || !slices.Equal(self.Addresses, c.advertise) {
		if err := c.updateHost(ctx, false); err != nil {
			return err
		}
	}
	if v.votes(c.disk) && !c.keys.Authority().HoldsKey() {
		if err := c.fetchKey(ctx); err != nil {
			return err
		}
	}
	if leader == c.disk {
		return c.setVoters(ctx, v)
	}
	return nil
}

// saveKnown keeps where the others are, for a restart without a majority.
func (c *Cluster) saveKnown() error {
	was, now := c.file.get().Known, c.view.Load().known()
	if now.Applied <= was.Applied || slices.EqualFunc(was.Hosts, now.Hosts, knownHost.equal) {
		return nil
	}
	return c.file.change(func(p *place) { p.Known = now })
}

func (h knownHost) equal(o knownHost) bool {
	return h.Disk == o.Disk && h.Name == o.Name && h.Site == o.Site && h.Joining == o.Joining && h.Removed == o.Removed && h.Boots == o.Boots && slices.Equal(h.Addresses, o.Addresses)
}

// register enters this start. One that is refused ends this host: another one runs with
// its disk, or it was removed.
func (c *Cluster) register(ctx context.Context) error {
	p := c.file.get()
	_, err := c.firmly(ctx, meta.GroupNamespace, meta.Boot{Disk: c.disk, N: p.Boot.N, Nonce: p.Boot.Nonce})
	if errors.Is(err, scstore.ErrFenced) {
		c.fail(fmt.Errorf("start %d of %s: %w", p.Boot.N, p.Host, err))
	}
	return err
}

// checkFenced ends a host that no majority answers because it was removed, or its disk
// was started elsewhere: its peers say so, and are asked, because a log that knows that
// it was removed is silent.
func (c *Cluster) checkFenced(ctx context.Context) {
	var others []meta.Host
	for _, h := range c.view.Load().bySeniority() {
		if h.Disk != c.disk {
			others = append(others, h)
		}
	}
	if len(others) > 0 {
		h := others[int(c.asked.Add(1))%len(others)]
		ctx, cancel := context.WithTimeout(ctx, helloTimeout)
		defer cancel()
		if disk, err := storeID(h.Disk); err == nil {
			if _, err := c.net.Request(ctx, disk, quicnet.ClassRaft, KindHello, nil); err != nil {
				c.log.Debug("no leader, and no answer", "host", h.Name, "err", err)
			}
		}
	}
	for _, p := range c.net.Status() {
		if p.Links == 0 && errors.Is(p.LastErr, scstore.ErrFenced) {
			err := fmt.Errorf("%s refuses this host: %w", c.HostName(meta.DiskID(p.Disk.String())), p.LastErr)
			c.fail(scstore.Hint(err, "this host was removed, copied or set back: join again with an empty folder"))
			return
		}
	}
}

// HostName returns what people call a disk's host, and its site; the disk if it is none
// that this host knows. It asks nobody.
func (c *Cluster) HostName(disk meta.DiskID) string {
	if h, ok := c.view.Load().hosts[disk]; ok {
		return fmt.Sprintf("%s of site %s", h.Name, h.Site)
	}
	return string(disk)
}

// catchUp makes this host active once it has all groups' states.
func (c *Cluster) catchUp(ctx context.Context) error {
	for _, g := range groupIDs() {
		if err := c.Read(ctx, g, func(*meta.State) {}); err != nil {
			return err
		}
	}
	if err := c.activate(ctx); err != nil {
		return err
	}
	c.log.Info("this host is an active member", "site", string(c.Site()), "host", c.Host())
	return nil
}

// fetchKey gets the authority's key, so that hosts can join through this one.
func (c *Cluster) fetchKey(ctx context.Context) error {
	var errs []error
	for _, disk := range c.keyHolders() {
		err := c.net.FetchAuthority(ctx, disk)
		if err == nil {
			return nil
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// setVoters gives each site that lacks one its voter: its first active host.
func (c *Cluster) setVoters(ctx context.Context, v *view) error {
	for _, site := range v.sites {
		voter, ok := v.siteVoter(site)
		if !ok || slices.Contains(site.Voters, voter) {
			continue
		}
		if _, err := c.firmly(ctx, meta.GroupNamespace, meta.SetSite{Site: meta.Site{Name: site.Name, Voters: []meta.DiskID{voter}}}); err != nil {
			return err
		}
	}
	return nil
}

// siteVoter returns the host that should vote for a site.
func (v *view) siteVoter(site meta.Site) (meta.DiskID, bool) {
	first := meta.DiskID("")
	for _, h := range v.bySeniority() {
		if h.Site != site.Name || h.State != meta.HostActive {
			continue
		}
		if slices.Contains(site.Voters, h.Disk) {
			return h.Disk, true
		}
		if first == "" {
			first = h.Disk
		}
	}
	return first, first != ""
}

// mindMembers keeps a group's members what they should be while this host leads it,
// until Close.
func (c *Cluster) mindMembers(g meta.GroupID) {
	var seen *view
	var last time.Time
	c.every(managePeriod, func() {
		leader, ok := c.Leader(g)
		v := c.view.Load()
		if !ok || leader != c.disk || v == seen && time.Since(last) < settlePeriod {
			return
		}
		ctx, cancel := context.WithTimeout(c.ctx, actTimeout)
		defer cancel()
		if err := c.settleMembers(ctx, g, v); err != nil {
			if ctx.Err() == nil {
				c.log.Debug("members not changed", "group", uint64(g), "err", err)
			}
			return
		}
		seen, last = v, time.Now()
	})
}

// settleMembers adds hosts that joined, takes out those that were removed, and lets those
// vote who should.
func (c *Cluster) settleMembers(ctx context.Context, g meta.GroupID, v *view) error {
	group := consensus.GroupID(g)
	m, err := c.raft.Members(ctx, group)
	if err != nil {
		return err
	}
	for _, h := range v.bySeniority() {
		replica := consensus.ReplicaID(v.replica(g, h.Disk))
		disk, err := consensus.ParseDiskID(string(h.Disk))
		if err != nil || replica == 0 {
			continue
		}
		_, gone := m.Removed[replica]
		if _, is := m.Has(disk); is || gone {
			continue
		}
		if err := c.raft.AddNonVoting(ctx, group, replica, disk); err != nil {
			return err
		}
	}
	for _, d := range disksOf(m.Voters, m.NonVoting) {
		if v.hosts[d].State != meta.HostRemoved {
			continue
		}
		if err := c.removeMember(ctx, g, d); err != nil {
			return err
		}
	}
	if m, err = c.raft.Members(ctx, group); err != nil {
		return err
	}
	return c.promote(ctx, g, m, v.toPromote(disksOf(m.Voters), disksOf(m.NonVoting)))
}

// promote lets members of a group vote.
func (c *Cluster) promote(ctx context.Context, g meta.GroupID, m consensus.Members, disks []meta.DiskID) error {
	voters := disksOf(m.Voters)
	if err := c.file.setAlone(g, len(disks) == 0 && len(voters) == 1 && voters[0] == c.disk); err != nil { // before another one votes (I1)
		return err
	}
	for _, d := range disks {
		disk, err := consensus.ParseDiskID(string(d))
		if err != nil {
			return err
		}
		replica, _ := m.Has(disk)
		if err := c.raft.Promote(ctx, consensus.GroupID(g), replica); err != nil {
			return err
		}
	}
	return nil
}

// removeMember takes a disk out of a group's members; one that is none is no error.
func (c *Cluster) removeMember(ctx context.Context, g meta.GroupID, d meta.DiskID) error {
	disk, err := consensus.ParseDiskID(string(d))
	if err != nil {
		return err
	}
	m, err := c.raft.Members(ctx, consensus.GroupID(g))
	if err != nil {
		return err
	}
	replica, is := m.Has(disk)
	if !is {
		return nil
	}
	err = c.raft.RemoveMember(ctx, consensus.GroupID(g), replica)
	if errors.Is(err, scstore.ErrNotFound) { // somebody else did
		return nil
	}
	return err
}

// toPromote returns the members that should get a vote: of each site one, all sites' or
// none, an odd number in the end.
func (v *view) toPromote(voters, others []meta.DiskID) []meta.DiskID {
	represented := map[meta.SiteID]bool{}
	for _, d := range voters {
		represented[v.hosts[d].Site] = true
	}
	var candidates []meta.DiskID
	for _, h := range v.bySeniority() {
		if h.State == meta.HostActive && !represented[h.Site] && v.votes(h.Disk) && slices.Contains(others, h.Disk) {
			represented[h.Site] = true
			candidates = append(candidates, h.Disk)
		}
	}
	want := min(len(voters)+len(candidates), MaxVoters)
	if want < 3 {
		return nil
	}
	if want%2 == 0 {
		want--
	}
	return candidates[:max(0, want-len(voters))]
}

// disksOf returns the disks of members, rising.
func disksOf(members ...map[consensus.ReplicaID]consensus.DiskID) []meta.DiskID {
	var list []meta.DiskID
	for _, of := range members {
		for _, d := range of {
			list = append(list, meta.DiskID(d.String()))
		}
	}
	slices.Sort(list)
	return list
}

// storeID is a disk as the network names it.
func storeID(d meta.DiskID) (scstore.StoreID, error) { return authority.ParseDisk(string(d)) }
