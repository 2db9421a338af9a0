package cluster

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"time"

	"scstore"
	"scstore/consensus"
	"scstore/consensus/meta"
	"scstore/propagate/quicnet"
)

// leadBytes is the length of a request of KindLead: 8 bytes of group and 16 of disk.
const leadBytes = 24

// Leader returns the disk that leads a group as far as this host knows.
func (c *Cluster) Leader(g meta.GroupID) (meta.DiskID, bool) {
	l, err := c.raft.Leader(consensus.GroupID(g))
	if err != nil || !l.Known() || l.Disk == (consensus.DiskID{}) {
		return "", false
	}
	return meta.DiskID(l.Disk.String()), true
}

// voters returns the disks that vote in a group, as this host has applied it, rising.
func (c *Cluster) voters(g meta.GroupID) []meta.DiskID {
	voters, err := c.raft.Voters(consensus.GroupID(g))
	if err != nil {
		return nil
	}
	return disksOf(voters)
}

// tend tells the log who should lead, and ends what is past its deadline, until Close.
func (c *Cluster) tend() {
	ticker := time.NewTicker(tendPeriod)
	defer ticker.Stop()
	for {
		v := c.view.Load()
		for _, g := range groupIDs() {
			c.prefer(g, v)
			if leader, ok := c.Leader(g); ok && leader == c.disk {
				c.expire(g)
			}
		}
		select {
		case <-ticker.C:
		case <-c.ctx.Done():
			return
		}
	}
}

// prefer tells the log who should lead a group.
func (c *Cluster) prefer(g meta.GroupID, v *view) {
	disk, err := consensus.ParseDiskID(string(c.preferred(g, v)))
	if err != nil {
		return
	}
	if err := c.raft.Prefer(consensus.GroupID(g), disk); err != nil {
		c.log.Debug("no preference", "group", uint64(g), "err", err)
	}
}

// preferred returns the voter that should lead a group, empty for none.
func (c *Cluster) preferred(g meta.GroupID, v *view) meta.DiskID {
	voters := c.voters(g)
	if len(voters) == 0 {
		return ""
	}
	if g == meta.GroupNamespace {
		return voters[0]
	}
	return v.siteThatWrites(voters, v.writersBySite(c.writers(g)))
}

// writers counts the volumes of a group by the disk that writes them.
func (c *Cluster) writers(g meta.GroupID) map[meta.DiskID]int {
	var count map[meta.DiskID]int
	_ = c.View(g, func(s *meta.State) { count = s.Writers() }) // a group that is not here has none
	return count
}

func (v *view) writersBySite(writers map[meta.DiskID]int) map[meta.SiteID]int {
	count := map[meta.SiteID]int{}
	for d, n := range writers {
		count[v.hosts[d].Site] += n
	}
	return count
}

// siteThatWrites returns the voter whose site writes most, of equal ones that of the
// site whose name is lowest.
func (v *view) siteThatWrites(voters []meta.DiskID, writers map[meta.SiteID]int) meta.DiskID {
	return slices.MinFunc(voters, func(a, b meta.DiskID) int {
		x, y := v.hosts[a].Site, v.hosts[b].Site
		return cmp.Or(cmp.Compare(writers[y], writers[x]), cmp.Compare(x, y), cmp.Compare(a, b))
	})
}

// expire ends what is past its deadline, if there is something.
func (c *Cluster) expire(g meta.GroupID) {
	now := time.Now().UnixMilli()
	due := false
	if err := c.View(g, func(s *meta.State) {
		ms, ok := s.NextDeadline()
		due = ok && ms <= max(now, s.ClockMs())
	}); err != nil || !due {
		return
	}
	ctx, cancel := context.WithTimeout(c.ctx, actTimeout)
	defer cancel()
	if _, err := c.Propose(ctx, g, meta.Expire{NowMs: now}); err != nil && ctx.Err() == nil {
		c.log.Debug("deadlines not enforced", "group", uint64(g), "err", err)
	}
}

// PickGroup returns the group for a new volume that is written here: one that this site
// leads for what it writes already, else the one that others write least of.
func (c *Cluster) PickGroup() meta.GroupID {
	v, site := c.view.Load(), c.Site()
	type option struct {
		group       meta.GroupID
		led         bool
		here, there int
	}
	var options []option
	for _, g := range VolumeGroupIDs() {
		o := option{group: g}
		for s, n := range v.writersBySite(c.writers(g)) {
			if s == site {
				o.here += n
			} else {
				o.there += n
			}
		}
		o.led = v.hosts[c.preferred(g, v)].Site == site
		options = append(options, o)
	}
	best := slices.MinFunc(options, func(a, b option) int {
		if a.led != b.led {
			if a.led {
				return -1
			}
			return 1
		}
		if a.led {
			return cmp.Or(cmp.Compare(b.here, a.here), cmp.Compare(a.there, b.there), cmp.Compare(a.group, b.group))
		}
		return cmp.Or(cmp.Compare(a.there, b.there), cmp.Compare(b.here, a.here), cmp.Compare(a.group, b.group))
	})
	return best.group
}

// Lead makes one of the disks lead a group, if none of them does: the first that votes,
// where the voter of its site stands for a disk without a vote. Proposals are refused
// for the moment of the change.
//
// Errors: ErrNotFound if none of their sites has a vote; ErrNoMajority, ErrUnreachable,
// ErrIndeterminate: it may have happened, or not; ctx's cause.
func (c *Cluster) Lead(ctx context.Context, g meta.GroupID, disks ...meta.DiskID) error {
	voters, v := c.voters(g), c.view.Load()
	var fit []meta.DiskID
	for _, d := range disks {
		for _, voter := range voters {
			if voter == d || !slices.Contains(voters, d) && v.hosts[d].Site != "" && v.hosts[d].Site == v.hosts[voter].Site {
				fit = append(fit, voter)
			}
		}
	}
	leader, known := c.Leader(g)
	switch {
	case len(fit) == 0:
		return fmt.Errorf("lead group %d: none of %v has a vote: %w", g, disks, scstore.ErrNotFound)
	case known && slices.Contains(fit, leader):
		return nil
	case slices.Contains(voters, c.disk):
		disk, err := consensus.ParseDiskID(string(fit[0]))
		if err != nil {
			return err
		}
		return c.raft.TransferLeader(ctx, consensus.GroupID(g), disk)
	case !known:
		return fmt.Errorf("lead group %d: nobody leads it: %w", g, scstore.ErrNoMajority)
	}
	return c.askToLead(ctx, g, leader, fit[0])
}

// askToLead asks the leader to let another disk lead: only voters can.
func (c *Cluster) askToLead(ctx context.Context, g meta.GroupID, leader, disk meta.DiskID) error {
	at, err := storeID(leader)
	if err != nil {
		return err
	}
	to, err := storeID(disk)
	if err != nil {
		return err
	}
	request := append(binary.BigEndian.AppendUint64(nil, uint64(g)), to[:]...)
	if _, err := c.net.Request(ctx, at, quicnet.ClassRaft, KindLead, request); err != nil {
		return fmt.Errorf("lead group %d: %w", g, err)
	}
	return nil
}

// answerLead does what askToLead asks.
func (c *Cluster) answerLead(ctx context.Context, from quicnet.Peer, request []byte) ([]byte, error) {
	g, disk, err := parseLead(request)
	if err != nil {
		return nil, err
	}
	if !c.open.Load() {
		return nil, fmt.Errorf("%s asks while this host starts: %w", from.Host, scstore.ErrBusy)
	}
	return nil, c.raft.TransferLeader(ctx, g, disk)
}

// parseLead reads a request of KindLead. Errors: ErrInvalid.
func parseLead(b []byte) (consensus.GroupID, consensus.DiskID, error) {
	if len(b) != leadBytes {
		return 0, consensus.DiskID{}, fmt.Errorf("request of %d bytes, want %d: %w", len(b), leadBytes, scstore.ErrInvalid)
	}
	g := binary.BigEndian.Uint64(b)
	if g == 0 || g > math.MaxInt64 {
		return 0, consensus.DiskID{}, fmt.Errorf("group %d: %w", g, scstore.ErrInvalid)
	}
	return consensus.GroupID(g), consensus.DiskID(b[8:]), nil
}
