package host

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"scstore"
	"scstore/consensus/meta"
	"scstore/internal/api"
)

// askTimeout is how long the host that writes a volume gets to say what it alone has.
const askTimeout = 2 * time.Second

// facts is what the records say of who has what of a volume.
type facts struct {
	tenure   meta.Tenure
	head     scstore.Position
	replicas []meta.Replica
	exposed  map[meta.SiteID][]meta.Exposure // of the sites that have any of it, if asked for
	old      string                          // why the records may be old; empty if they are not
}

// facts reads them, as this host knows them.
func (c *clustered) facts(e entry, exposed bool) (f facts, err error) {
	err = c.view(e.group, func(s *meta.State) {
		f.tenure, _ = s.Holder(e.ID)
		if r, ok := s.Get(e.ID); ok {
			f.head = r.Head
		}
		f.replicas = s.Replicas(e.ID)
		if !exposed {
			return
		}
		f.exposed = map[meta.SiteID][]meta.Exposure{}
		for _, r := range f.replicas {
			if _, done := f.exposed[r.Site]; done || r.Site == "" {
				continue
			}
			f.exposed[r.Site] = slices.DeleteFunc(s.CanSwitchOffSite(r.Site), func(x meta.Exposure) bool { return x.ID != e.ID })
		}
	})
	return f, err
}

// mayBeOld brings what this host knows of a group up to date, or says why it can't.
func (c *clustered) mayBeOld(ctx context.Context, g meta.GroupID) string {
	if ctx.Value(forwardedKey{}) != nil {
		return "" // who asked does it
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	if err := c.log.Read(ctx, g, func(*meta.State) {}); err != nil {
		return fmt.Sprintf("what is said here may be old: %v", err)
	}
	return ""
}

// where says what a volume's bytes hang on.
func (c *clustered) where(ctx context.Context, e entry, ask bool) (*api.Where, error) {
	old := ""
	if ask {
		old = c.mayBeOld(ctx, e.group)
	}
	f, err := c.facts(e, ask)
	if err != nil {
		return nil, err
	}
	f.old = old
	hosts, err := c.hostsByDisk()
	if err != nil {
		return nil, err
	}
	w := &api.Where{
		Owner: hosts.name(f.tenure.Holder), Site: string(hosts[f.tenure.Holder].Site), Here: f.here(c.h.disk()),
		Phase: f.tenure.Phase.String(), Fence: f.tenure.Fence, Head: f.head, Copies: f.copies(hosts), Branches: branchNames(e),
	}
	alone, err := c.alone(ctx, e, f.tenure.Holder, ask)
	if err != nil {
		w.Unknown = fmt.Sprintf("host %s does not say what it alone has: %v", w.Owner, err)
	}
	if f.old != "" {
		w.Unknown = f.old
	}
	w.OnlyBytes, w.OnlyForMs = alone.bytes, alone.age.Milliseconds()
	if alone.missing > 0 {
		w.Tether = &api.Tether{Source: alone.source, MissingBytes: alone.missing, EtaMs: alone.eta.Milliseconds()}
	}
	for _, site := range f.sites() {
		reasons := f.reasons(site, hosts, w)
		w.CanSwitchOff = append(w.CanSwitchOff, api.SwitchOff{Site: string(site), OK: len(reasons) == 0, Reason: strings.Join(reasons, "; ")})
	}
	return w, nil
}

// here says what a host has.
func (f *facts) here(disk meta.DiskID) string {
	if f.tenure.Holder == disk {
		return "owner"
	}
	for _, r := range f.replicas {
		switch {
		case r.Disk != disk:
		case r.Complete != (scstore.Position{}):
			return "replica"
		case r.Partial != (scstore.Position{}):
			return "partial"
		}
	}
	return "none"
}

// copies lists who has what, by host.
func (f *facts) copies(hosts hostMap) []api.CopyInfo {
	list := []api.CopyInfo{}
	for _, r := range f.replicas {
		list = append(list, api.CopyInfo{
			Host: hosts.name(r.Disk), Site: string(r.Site), Position: r.Complete,
			Current: r.Complete == f.head && f.head != (scstore.Position{}), Owner: r.Disk == f.tenure.Holder,
		})
	}
	if owner := f.tenure.Holder; owner != "" && !slices.ContainsFunc(f.replicas, func(r meta.Replica) bool { return r.Disk == owner }) {
		list = append(list, api.CopyInfo{Host: hosts.name(owner), Site: string(hosts[owner].Site), Owner: true})
	}
	slices.SortFunc(list, func(a, b api.CopyInfo) int { return strings.Compare(a.Host, b.Host) })
	return list
}

// sites returns the sites that exposures were looked up for, by name.
func (f *facts) sites() (list []meta.SiteID) {
	for site := range f.exposed {
		list = append(list, site)
	}
	slices.Sort(list)
	return list
}

// reasons says why a site can't be switched off.
func (f *facts) reasons(site meta.SiteID, hosts hostMap, w *api.Where) (list []string) {
	add := func(format string, args ...any) {
		if text := fmt.Sprintf(format, args...); !slices.Contains(list, text) {
			list = append(list, text)
		}
	}
	if f.old != "" {
		add("%s", f.old)
	}
	for _, x := range f.exposed[site] {
		if x.Writer {
			add("host %s writes it: move it first", hosts.name(f.tenure.Holder))
		}
		if !x.LastCopy {
			continue
		}
		switch x.Root.Kind {
		case meta.RootHead:
			add("the only complete copy of its newest epoch is there")
		case meta.RootSnapshot:
			add("the only complete copy of snapshot %s is there", x.Root.Name)
		case meta.RootClone:
			add("the only complete copy of what clones are based on is there")
		case meta.RootTether:
			add("host %s has not yet fetched all that it was handed from there", w.Owner)
		case meta.RootFork:
			add("what a host that lost the volume may have is compared with a copy that is only there")
		case meta.RootRead, meta.RootJump:
			add("somebody reads a copy that is only there")
		}
	}
	if hosts[f.tenure.Holder].Site == site {
		if w.OnlyBytes > 0 {
			add("%d bytes that were written are at host %s alone", w.OnlyBytes, w.Owner)
		}
		if w.Unknown != "" {
			add("%s", w.Unknown)
		}
	}
	return list
}

// ownerFacts is what the host that writes a volume has and nobody else, and what it
// lacks.
type ownerFacts struct {
	bytes   int64         // written, and at no other host
	age     time.Duration // of the oldest of them
	missing int64         // not there yet
	source  string        // host that has it
	eta     time.Duration // until it is there; 0 if it is not known
}

// alone returns what the owner alone knows. With ask another host is asked.
func (c *clustered) alone(ctx context.Context, e entry, owner meta.DiskID, ask bool) (ownerFacts, error) {
	switch {
	case owner == "" || !ask:
		return ownerFacts{}, nil
	case owner == c.h.disk():
		return c.own(e)
	case ctx.Value(forwardedKey{}) != nil:
		return ownerFacts{}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	a, err := c.send(ctx, owner, call{Method: methodInfo, Name: e.Name}, nil)
	if err != nil {
		return ownerFacts{}, err
	}
	if a.Volume == nil || a.Volume.Where == nil {
		return ownerFacts{}, fmt.Errorf("an answer without what was asked: %w", scstore.ErrInvalid)
	}
	w := a.Volume.Where
	out := ownerFacts{bytes: w.OnlyBytes, age: time.Duration(w.OnlyForMs) * time.Millisecond}
	if w.Tether != nil {
		out.missing, out.source, out.eta = w.Tether.MissingBytes, w.Tether.Source, time.Duration(w.Tether.EtaMs)*time.Millisecond
	}
	return out, nil
}

// own returns what this host alone knows of a volume that it writes.
func (c *clustered) own(e entry) (ownerFacts, error) {
	i, err := c.replicas.Info(e.ID)
	if err != nil {
		return ownerFacts{}, err
	}
	out := ownerFacts{bytes: i.OnlyBytes, age: i.OnlyFor}
	if t := i.Tether; t != nil {
		out.missing, out.source, out.eta = t.MissingBytes, c.hostName(t.Source), t.ETA
	}
	return out, nil
}

// hostMap is the hosts by disk.
type hostMap map[meta.DiskID]meta.Host

// name returns what people call a host; empty for no disk.
func (m hostMap) name(d meta.DiskID) string {
	if h, ok := m[d]; ok {
		return h.Name
	}
	return string(d)
}

// names returns what people call hosts, sorted.
func (m hostMap) names(disks []meta.DiskID) []string {
	list := []string{}
	for _, d := range disks {
		list = append(list, m.name(d))
	}
	slices.Sort(list)
	return list
}

// hostsByDisk returns all hosts, removed ones included.
func (c *clustered) hostsByDisk() (hostMap, error) {
	list, err := c.hosts()
	m := hostMap{}
	for _, h := range list {
		m[h.Disk] = h
	}
	return m, err
}
