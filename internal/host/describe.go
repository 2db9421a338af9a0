package host

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"scstore"
	"scstore/consensus/meta"
	"scstore/internal/api"
	"scstore/internal/cluster"
)

// Of what is a problem.
const (
	skewLimit = 2 * time.Second // that a host's clock may be ahead or behind
	lagLimit  = time.Minute     // that a placed volume's newest bytes may be at one host alone
	// lookBudget is how long the volumes of this host are looked at for one answer.
	lookBudget = 200 * time.Millisecond
)

// losses remembers since when groups have had no majority in this host's eyes.
type losses struct {
	mu    sync.Mutex
	since map[meta.GroupID]time.Time
}

// see notes who has a majority now, and returns since when a group has had none.
func (l *losses) see(groups []cluster.GroupStatus, now time.Time) map[meta.GroupID]time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	lost := map[meta.GroupID]time.Time{}
	for _, g := range groups {
		if g.Majority {
			delete(l.since, g.Group)
			continue
		}
		if _, known := l.since[g.Group]; !known {
			l.since[g.Group] = now
		}
		lost[g.Group] = l.since[g.Group]
	}
	return lost
}

// Cluster describes sites, hosts and groups as this host sees them.
func (h *Host) Cluster(context.Context) (api.Cluster, error) {
	if h.cluster == nil {
		return api.Cluster{}, noCluster()
	}
	all, err := h.names.entries()
	if err != nil {
		return api.Cluster{}, fmt.Errorf("describe the cluster: %w", err)
	}
	return h.cluster.describe(all), nil
}

// describe describes the cluster.
func (c *clustered) describe(all []entry) api.Cluster {
	st := c.log.Status()
	names, written := map[meta.DiskID]string{}, map[meta.DiskID]int{}
	for _, h := range st.Hosts {
		names[h.Disk] = h.Name
	}
	for _, e := range all {
		if e.Kind == meta.KindVolume && e.Holder != "" {
			written[e.Holder]++
		}
	}
	out := api.Cluster{
		ID: st.Cluster.String(), Site: string(st.Site), Host: st.Host, Disk: string(st.Disk), Listen: st.Listen,
		Problem: c.problem(st, all), Sites: []api.Site{}, Hosts: []api.Peer{}, Groups: []api.Group{}, Majority: true,
	}
	for _, h := range st.Hosts {
		out.Hosts = append(out.Hosts, describeHost(h, written[h.Disk]))
	}
	for _, s := range st.Sites {
		out.Sites = append(out.Sites, describeSite(s, st, written))
	}
	for _, g := range st.Groups {
		group := api.Group{Number: uint64(g.Group), Leader: names[g.Leader], Preferred: names[g.Preferred], Voters: []string{}, Applied: g.Applied}
		for _, d := range g.Voters {
			group.Voters = append(group.Voters, names[d])
		}
		slices.Sort(group.Voters)
		out.Groups = append(out.Groups, group)
		out.Majority = out.Majority && g.Majority
	}
	return out
}

// hostState returns what people call a state.
func hostState(s meta.HostState) string {
	switch s {
	case meta.HostJoining:
		return "joining"
	case meta.HostActive:
		return "active"
	case meta.HostRemoved:
		return "removed"
	}
	return "unknown"
}

func describeHost(h cluster.HostStatus, written int) api.Peer {
	p := api.Peer{
		Name: h.Name, Site: string(h.Site), Disk: string(h.Disk), State: hostState(h.State), Addresses: h.Addresses,
		Here: h.Here, Reachable: h.Reachable, RTTMs: milliseconds(h.RTT), SkewMs: milliseconds(h.Skew),
		SentBytes: h.Sent, Received: h.Received, Volumes: written,
	}
	if h.LastErr != nil {
		p.LastError = h.LastErr.Error()
	}
	return p
}

func describeSite(s meta.Site, st cluster.Status, written map[meta.DiskID]int) api.Site {
	out := api.Site{Name: string(s.Name), Hosts: []string{}}
	for _, h := range st.Hosts {
		if h.Site != s.Name || h.State == meta.HostRemoved {
			continue
		}
		out.Hosts = append(out.Hosts, h.Name)
		out.Volumes += written[h.Disk]
		votes := slices.ContainsFunc(st.Groups, func(g cluster.GroupStatus) bool { return slices.Contains(g.Voters, h.Disk) })
		if votes && out.Voter == "" {
			out.Voter = h.Name
		}
	}
	return out
}

// summary is the cluster in one line.
func (c *clustered) summary(all []entry) *api.ClusterSummary {
	st := c.log.Status()
	out := &api.ClusterSummary{Site: string(st.Site), Host: st.Host, Problem: c.problem(st, all)}
	for _, h := range st.Hosts {
		if h.State != meta.HostRemoved {
			out.HostsKnown++
		}
		if h.State == meta.HostActive {
			out.HostsActive++
		}
	}
	return out
}

// problem says what is wrong, the worst first, in a sentence; empty if nothing is.
func (c *clustered) problem(st cluster.Status, all []entry) string {
	list := slices.Concat(c.groupProblems(st), hostProblems(st), c.volumeProblems(all))
	stats := c.h.blocks.Stats()
	for _, f := range checkSpace(c.h.o.Dir, int64(stats.FreeBytes), int64(stats.TotalBytes)) {
		list = append(list, f.Message)
	}
	switch len(list) {
	case 0:
		return ""
	case 1:
		return list[0]
	}
	return fmt.Sprintf("%s; and %d more", list[0], len(list)-1)
}

func (c *clustered) groupProblems(st cluster.Status) (list []string) {
	if err := c.log.Failure(); err != nil {
		list = append(list, fmt.Sprintf("this host must leave the cluster: %v", err))
	}
	lost := c.lost.see(st.Groups, time.Now())
	for _, g := range st.Groups {
		since, none := lost[g.Group]
		switch {
		case g.Err != nil:
			list = append(list, fmt.Sprintf("group %d stands still here: %v", g.Group, g.Err))
		case none:
			list = append(list, fmt.Sprintf("no majority in group %d since %s", g.Group, since.UTC().Format(time.RFC3339)))
		}
	}
	return list
}

func hostProblems(st cluster.Status) (list []string) {
	for _, h := range st.Hosts {
		switch {
		case h.Here || h.State == meta.HostRemoved:
		case !h.Reachable && h.LastErr != nil:
			list = append(list, fmt.Sprintf("host %s of site %s is not reachable: %v", h.Name, h.Site, h.LastErr))
		case h.Skew.Abs() > skewLimit:
			list = append(list, fmt.Sprintf("the clock of host %s is off by %s", h.Name, h.Skew.Round(time.Millisecond)))
		case h.State == meta.HostJoining:
			list = append(list, fmt.Sprintf("host %s of site %s is still joining", h.Name, h.Site))
		}
	}
	return list
}

func (c *clustered) volumeProblems(all []entry) (list []string) {
	budget := time.Now().Add(lookBudget)
	for _, e := range all {
		switch {
		case e.Phase == meta.PhaseRevoked:
			list = append(list, fmt.Sprintf("volume %s is written by no host: a promote was begun and not ended", e.Name))
		case e.Phase == meta.PhaseTethered && e.Holder != c.h.disk():
			list = append(list, fmt.Sprintf("volume %s hangs on another host: not all of it is at host %s yet", e.Name, c.log.HostName(e.Holder)))
		case e.Kind != meta.KindVolume || e.Holder != c.h.disk() || time.Now().After(budget):
		case e.Phase == meta.PhaseTethered || c.placedElsewhere(e):
			list = append(list, c.ownProblems(e)...)
		}
	}
	return list
}

// ownProblems looks at a volume that this host writes.
func (c *clustered) ownProblems(e entry) []string {
	own, err := c.own(e)
	switch {
	case err != nil:
		return []string{fmt.Sprintf("volume %s: %v", e.Name, err)}
	case own.missing > 0:
		return []string{fmt.Sprintf("volume %s hangs on host %s: %d bytes are not here yet", e.Name, own.source, own.missing)}
	case own.age > lagLimit:
		return []string{fmt.Sprintf("what was written to volume %s in the last %s is at this host alone", e.Name, own.age.Round(time.Second))}
	}
	return nil
}

// placedElsewhere reports whether a volume's policy wants copies at other sites.
func (c *clustered) placedElsewhere(e entry) (yes bool) {
	// A group that is not readable is reported as that.
	_ = c.view(e.group, func(s *meta.State) {
		p, _ := s.PlacementOf(e.ID)
		yes = p.Mode != meta.ModeLazy && slices.ContainsFunc(p.Sites, func(site meta.SiteID) bool { return site != c.log.Site() })
	})
	return yes
}

// RemoveHost takes a host out of the cluster for good.
func (h *Host) RemoveHost(ctx context.Context, name string, o api.RemoveOptions) (api.HostRemoval, error) {
	if h.cluster == nil {
		return api.HostRemoval{}, noCluster()
	}
	r, err := h.cluster.log.RemoveHost(ctx, name, true)
	if err != nil {
		return api.HostRemoval{}, err
	}
	all, err := h.names.entries()
	if err != nil {
		return api.HostRemoval{}, fmt.Errorf("remove host %q: %w", name, err)
	}
	out := api.HostRemoval{Host: r.Host, DryRun: o.DryRun, Only: exposedNames(r, all), Records: r.Records}
	if o.DryRun {
		return out, nil
	}
	if len(out.Only) > 0 && !o.Force {
		return api.HostRemoval{}, scstore.Hint(fmt.Errorf("remove host %q: it writes, or alone has all of, %d volumes: %w", name, len(out.Only), scstore.ErrBusy),
			"move or promote them first (%s), or lose what is only there with --force", some(out.Only))
	}
	if _, err := h.cluster.log.RemoveHost(ctx, name, false); err != nil {
		return api.HostRemoval{}, err
	}
	return out, nil
}

// exposedNames returns the names of what hangs on a host, sorted.
func exposedNames(r cluster.Removal, all []entry) (list []string) {
	names := map[scstore.VolumeID]string{}
	for _, e := range all {
		names[e.ID] = e.Name
		for _, b := range e.branches {
			names[b.ID] = e.Name + meta.BranchSuffix(b.Fence)
		}
	}
	for _, x := range r.Exposed {
		name, ok := names[x.ID]
		if !ok {
			name = x.ID.String() // made a moment ago, or left over
		}
		list = append(list, name)
	}
	slices.Sort(list)
	return slices.Compact(list)
}
