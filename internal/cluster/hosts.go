package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"scstore"
	"scstore/consensus"
	"scstore/consensus/meta"
	"scstore/propagate/quicnet/authority"
)

// NewToken makes a token with which one host can join a site, once, until it expires;
// the site is made if it is new. A ttl of 0 means DefaultTokenTime.
//
// Errors: ErrInvalid; ErrNoSpace; ErrNoMajority, ErrBusy, ErrIndeterminate: no token was
// given out, ask again.
func (c *Cluster) NewToken(ctx context.Context, site meta.SiteID, ttl time.Duration) (text string, err error) {
	if ttl == 0 {
		ttl = DefaultTokenTime
	}
	if ttl < time.Second || ttl > MaxTokenTime {
		return "", fmt.Errorf("a token for %v, want 1s to %v: %w", ttl, MaxTokenTime, scstore.ErrInvalid)
	}
	if err := checkSite(site); err != nil {
		return "", err
	}
	known := false
	v := &view{}
	if err := c.readFirmly(ctx, readPatience, meta.GroupNamespace, v.read); err != nil {
		return "", fmt.Errorf("make a token: %w", err)
	}
	for _, s := range v.sites {
		known = known || s.Name == site
	}
	now := time.Now()
	token, err := authority.NewToken(c.keys.Authority(), now.Add(ttl), c.joinAddresses(v))
	if err != nil {
		return "", fmt.Errorf("make a token: %w", err)
	}
	// The leader may change at any moment, which a person need not know.
	ctx, cancel := context.WithTimeoutCause(ctx, readPatience, fmt.Errorf("no answer within %v: %w", readPatience, scstore.ErrNoMajority))
	defer cancel()
	if !known {
		if _, err := c.firmly(ctx, meta.GroupNamespace, meta.SetSite{Site: meta.Site{Name: site}}); err != nil {
			return "", fmt.Errorf("make site %q: %w", site, err)
		}
	}
	_, err = c.firmly(ctx, meta.GroupNamespace, meta.AddToken{
		Hash: meta.TokenHash(token.ID()), Site: site, ExpiresAtMs: token.Expires.UnixMilli(), NowMs: now.UnixMilli(),
	})
	if err != nil {
		return "", fmt.Errorf("make a token: %w", err)
	}
	return token.Encode(), nil
}

// joinAddresses returns where a host can ask to join: this host first, if it can let
// others in, then the voters.
func (c *Cluster) joinAddresses(v *view) []string {
	var list []string
	if c.keys.Authority().HoldsKey() {
		list = append(list, c.advertise...)
	}
	for _, h := range v.bySeniority() {
		if v.votes(h.Disk) {
			list = append(list, h.Addresses...)
		}
	}
	list = compact(list)
	return list[:min(len(list), authority.MaxTokenAddresses)]
}

// Removal is what RemoveHost did, or would do.
type Removal struct {
	Host    string
	Disk    meta.DiskID
	Site    meta.SiteID
	DryRun  bool
	Records int       // volumes and images that it held something of
	Exposed []Exposed // what is lost, or stops, without it
	Voters  int       // of the namespace, afterwards
}

// Exposed is what hangs on a host alone.
type Exposed struct {
	Group meta.GroupID
	meta.Exposure
}

// RemoveHost takes a host out of the cluster for good: out of every group, with all that
// is known of what it holds; it is refused by all others from then on. It does so
// whatever is exposed: a dry run tells, and changes nothing. A removal that was
// interrupted is finished by another one.
//
// Errors: ErrNotFound; ErrInvalid for this host itself; ErrBusy if no other host can vote
// in its place; ErrNoMajority, ErrIndeterminate: some of it may be done.
func (c *Cluster) RemoveHost(ctx context.Context, name string, dryRun bool) (Removal, error) {
	ctx, cancel := context.WithTimeout(ctx, removeTime)
	defer cancel()
	r, err := c.examine(ctx, name)
	if err != nil {
		return Removal{}, fmt.Errorf("remove host %q: %w", name, err)
	}
	if r.DryRun = dryRun; dryRun {
		return r, nil
	}
	if err := c.remove(ctx, r.Disk); err != nil {
		return Removal{}, fmt.Errorf("remove host %q: %w", name, err)
	}
	c.log.Info("host removed", "host", name, "disk", string(r.Disk), "site", string(r.Site))
	return r, nil
}

// examine says what hangs on a host.
func (c *Cluster) examine(ctx context.Context, name string) (Removal, error) {
	v := &view{}
	if err := c.readFirmly(ctx, readPatience, meta.GroupNamespace, v.read); err != nil {
		return Removal{}, err
	}
	h, ok := v.byName(name)
	switch {
	case !ok:
		return Removal{}, scstore.Hint(fmt.Errorf("no such host: %w", scstore.ErrNotFound), "see scstore host ls")
	case h.Disk == c.disk:
		return Removal{}, scstore.Hint(fmt.Errorf("this is the host that was asked: %w", scstore.ErrInvalid), "ask another host to remove it")
	}
	r := Removal{Host: h.Name, Disk: h.Disk, Site: h.Site}
	for _, g := range VolumeGroupIDs() {
		if err := c.readFirmly(ctx, readPatience, g, func(s *meta.State) {
			for _, e := range s.CanSwitchOff(h.Disk) {
				r.Exposed = append(r.Exposed, Exposed{Group: g, Exposure: e})
			}
			for _, record := range s.Records() {
				if slices.ContainsFunc(s.Replicas(record.ID), func(held meta.Replica) bool { return held.Disk == h.Disk }) {
					r.Records++
				}
			}
		}); err != nil {
			return Removal{}, err
		}
	}
	var m consensus.Members
	if err := c.retry(ctx, func() (err error) {
		m, err = c.raft.Members(ctx, consensus.GroupID(meta.GroupNamespace))
		return err
	}); err != nil {
		return Removal{}, err
	}
	r.Voters = len(slices.DeleteFunc(disksOf(m.Voters), func(d meta.DiskID) bool { return d == h.Disk }))
	r.Voters = max(r.Voters, 1) // another one takes its place first
	return r, nil
}

// remove takes a disk out of everything. The groups come first: what they agree on next
// must not need it. The namespace goes last, so that a removal that was cut off is found
// by the same name again.
func (c *Cluster) remove(ctx context.Context, d meta.DiskID) error {
	for _, g := range groupIDs() {
		if err := c.replaceVoter(ctx, g, d); err != nil {
			return err
		}
		if err := c.retry(ctx, func() error { return c.removeMember(ctx, g, d) }); err != nil {
			return err
		}
	}
	for _, g := range append(VolumeGroupIDs(), meta.GroupNamespace) {
		if _, err := c.firmly(ctx, g, meta.RemoveDisk{Disk: d}); err != nil {
			return err
		}
	}
	return c.refresh()
}

// replaceVoter sees that a group has a voter, and a leader, other than the disk.
func (c *Cluster) replaceVoter(ctx context.Context, g meta.GroupID, d meta.DiskID) error {
	var m consensus.Members
	if err := c.retry(ctx, func() (err error) {
		m, err = c.raft.Members(ctx, consensus.GroupID(g))
		return err
	}); err != nil {
		return err
	}
	voters := disksOf(m.Voters)
	if !slices.Contains(voters, d) {
		return nil
	}
	others := slices.DeleteFunc(voters, func(o meta.DiskID) bool { return o == d })
	if len(others) == 0 {
		heir, err := c.heir(g, d, disksOf(m.NonVoting))
		if err != nil {
			return err
		}
		if err := c.retry(ctx, func() error { return c.letVote(ctx, g, heir) }); err != nil {
			return err
		}
		others = []meta.DiskID{heir}
	}
	if leader, ok := c.Leader(g); ok && leader == d {
		if err := c.Lead(ctx, g, others...); err != nil {
			c.log.Info("the leader is removed without a transfer", "group", uint64(g), "err", err)
		}
	}
	return nil
}

// letVote promotes a member unless it votes already.
func (c *Cluster) letVote(ctx context.Context, g meta.GroupID, d meta.DiskID) error {
	m, err := c.raft.Members(ctx, consensus.GroupID(g))
	if err != nil || slices.Contains(disksOf(m.Voters), d) {
		return err
	}
	disk, err := consensus.ParseDiskID(string(d))
	if err != nil {
		return err
	}
	replica, ok := m.Has(disk)
	if !ok {
		return fmt.Errorf("host %s is no member of group %d: %w", c.HostName(d), g, scstore.ErrNotFound)
	}
	return c.raft.Promote(ctx, consensus.GroupID(g), replica)
}

// heir returns who votes in place of a group's last voter: the first active host.
func (c *Cluster) heir(g meta.GroupID, last meta.DiskID, members []meta.DiskID) (meta.DiskID, error) {
	for _, h := range c.view.Load().bySeniority() {
		if h.Disk != last && h.State == meta.HostActive && slices.Contains(members, h.Disk) {
			return h.Disk, nil
		}
	}
	return "", scstore.Hint(fmt.Errorf("it is the only voter of group %d, and no other host is ready: %w", g, scstore.ErrBusy),
		"let another host join, or wait until one is active")
}

// Status is the cluster in the eyes of this host.
type Status struct {
	Cluster     meta.ClusterID
	Incarnation uint64
	Disk        meta.DiskID
	Host        string
	Site        meta.SiteID
	Boot        uint64
	Listen      string // UDP, between hosts
	Sites       []meta.Site
	Hosts       []HostStatus  // by name
	Groups      []GroupStatus // by number
}

// HostStatus is a host as far as it is known here.
type HostStatus struct {
	meta.Host
	Here      bool // it is this one
	Reachable bool // a connection is open
	RTT       time.Duration
	Skew      time.Duration // how far its clock is ahead of this one
	Sent      uint64        // bytes to it, packets with their overhead
	Received  uint64
	LastErr   error // of the last attempt to connect
}

// GroupStatus is a group as far as it is known here.
type GroupStatus struct {
	Group     meta.GroupID
	Leader    meta.DiskID // empty if none is known
	Preferred meta.DiskID
	Voters    []meta.DiskID
	Majority  bool // a leader is known here
	Applied   uint64
	Err       error // why this host does not follow the group
}

// Status describes the cluster. It asks nobody, and works without a majority.
func (c *Cluster) Status() Status {
	p, v := c.file.get(), c.view.Load()
	s := Status{
		Cluster: meta.ClusterID(p.Cluster), Incarnation: p.Incarnation, Disk: c.disk, Host: p.Host, Site: p.Site, Boot: p.Boot.N,
		Listen: c.Addr().String(), Sites: v.sites,
	}
	links := map[meta.DiskID]HostStatus{}
	for _, peer := range c.net.Status() {
		d := meta.DiskID(peer.Disk.String())
		links[d] = HostStatus{
			Reachable: peer.Links > 0, RTT: peer.RTT, Sent: peer.SentBytes, Received: peer.ReceivedBytes, LastErr: peer.LastErr, Skew: c.skew(peer.Disk),
		}
	}
	for d, host := range v.hosts {
		h := links[d]
		h.Host, h.Here = host, d == c.disk
		h.Reachable = h.Reachable || h.Here
		s.Hosts = append(s.Hosts, h)
	}
	slices.SortFunc(s.Hosts, func(a, b HostStatus) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Disk, b.Disk)) })
	for _, g := range groupIDs() {
		s.Groups = append(s.Groups, c.groupStatus(g))
	}
	return s
}

func (c *Cluster) skew(disk scstore.StoreID) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.skews[disk]
}

func (c *Cluster) groupStatus(g meta.GroupID) GroupStatus {
	st, err := c.raft.Status(consensus.GroupID(g))
	s := GroupStatus{Group: g, Voters: c.voters(g), Majority: st.HasMajority(), Applied: st.Applied, Err: errors.Join(err, st.Halted)}
	if st.Preferred != (consensus.DiskID{}) {
		s.Preferred = meta.DiskID(st.Preferred.String())
	}
	s.Leader, _ = c.Leader(g)
	return s
}
