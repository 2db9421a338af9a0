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
	"scstore/internal/cluster"
	"scstore/internal/replica"
)

// noCluster says that a host is alone.
func noCluster() error {
	return scstore.Hint(fmt.Errorf("this host is in no cluster: %w", scstore.ErrInvalid),
		"begin one on a new folder: scstore serve --dir DIR --site NAME --listen HOST:PORT")
}

// NewToken makes a token with which one host can join a site.
func (h *Host) NewToken(ctx context.Context, req api.NewToken) (api.Token, error) {
	if h.cluster == nil {
		return api.Token{}, noCluster()
	}
	valid := req.Valid
	if valid == 0 {
		valid = cluster.DefaultTokenTime
	}
	expires := time.Now().Add(valid)
	text, err := h.cluster.log.NewToken(ctx, meta.SiteID(req.Site), valid)
	if err != nil {
		return api.Token{}, fmt.Errorf("make a token for site %q: %w", req.Site, err)
	}
	h.log.Info("join token made", "site", req.Site, "valid", valid)
	return api.Token{Text: text, Site: req.Site, ExpiresAt: expires.UTC()}, nil
}

// findPlaced finds what has a placement: a volume or an image.
func (h *Host) findPlaced(name string) (entry, error) {
	if h.cluster == nil {
		return entry{}, noCluster()
	}
	p, err := h.find("", name)
	if err == nil && (p.snap != nil || p.branch != nil) {
		err = scstore.Hint(fmt.Errorf("%q goes where its volume goes: %w", name, scstore.ErrInvalid), "name the volume: %s", p.Name)
	}
	return p.entry, err
}

// SetPlacement says which sites hold a volume or an image, and how.
func (h *Host) SetPlacement(ctx context.Context, name string, p api.Placement) (api.Placement, error) {
	e, err := h.findPlaced(name)
	if err != nil {
		return api.Placement{}, err
	}
	policy, err := h.cluster.policy(p)
	if err == nil {
		_, err = h.cluster.propose(ctx, e.group, meta.SetPlacement{ID: e.ID, Placement: policy})
	}
	if err != nil {
		return api.Placement{}, fmt.Errorf("place %q: %w", name, err)
	}
	h.log.Info("placement set", "volume", name, "sites", strings.Join(p.Sites, ","), "mode", modeName(policy.Mode))
	return h.cluster.placement(e)
}

// Placement returns the policy, and how far each site is.
func (h *Host) Placement(_ context.Context, name string) (api.Placement, error) {
	e, err := h.findPlaced(name)
	if err != nil {
		return api.Placement{}, err
	}
	return h.cluster.placement(e)
}

// modeName returns what people call a mode; empty without a placement.
func modeName(m meta.Mode) string {
	switch m {
	case meta.ModeLazy:
		return "lazy"
	case meta.ModeAsync:
		return "async"
	case meta.ModeSync:
		return "sync"
	}
	return ""
}

// policy reads a placement. Errors: ErrInvalid, ErrNotFound for a site.
func (c *clustered) policy(p api.Placement) (meta.Placement, error) {
	out := meta.Placement{Failover: meta.FailoverManual}
	switch p.Mode {
	case "", "async":
		out.Mode = meta.ModeAsync
	case "lazy":
		out.Mode = meta.ModeLazy
	case "sync":
		return out, scstore.Hint(fmt.Errorf("mode sync: not yet with several sites: %w", scstore.ErrInvalid), "use --mode async")
	default:
		return out, scstore.Hint(fmt.Errorf("mode %q: %w", p.Mode, scstore.ErrInvalid), "use --mode async or --mode lazy")
	}
	if p.Failover != "" && p.Failover != "manual" {
		return out, scstore.Hint(fmt.Errorf("failover %q: not yet: %w", p.Failover, scstore.ErrInvalid), "use --failover manual")
	}
	if len(p.Sites) == 0 {
		return out, scstore.Hint(fmt.Errorf("no site: %w", scstore.ErrInvalid), "name the sites that hold a copy, like --replicas ams,fra")
	}
	var known []meta.SiteID
	if err := c.view(meta.GroupNamespace, func(s *meta.State) {
		for _, site := range s.Sites() {
			known = append(known, site.Name)
		}
	}); err != nil {
		return out, err
	}
	for _, site := range p.Sites {
		if !slices.Contains(known, meta.SiteID(site)) {
			return out, noSite(site)
		}
		out.Sites = append(out.Sites, meta.SiteID(site))
	}
	slices.Sort(out.Sites)
	out.Sites = slices.Compact(out.Sites)
	return out, nil
}

// noSite says that a site is not known.
func noSite(site string) error {
	return scstore.Hint(fmt.Errorf("site %q: %w", site, scstore.ErrNotFound), "list them with scstore site ls; a new one is made with scstore host token --site %s", site)
}

// placement describes a policy.
func (c *clustered) placement(e entry) (api.Placement, error) {
	var p meta.Placement
	if err := c.view(e.group, func(s *meta.State) { p, _ = s.PlacementOf(e.ID) }); err != nil {
		return api.Placement{}, err
	}
	out := api.Placement{Volume: e.Name, Sites: []string{}, Mode: modeName(p.Mode), Failover: "manual"}
	if p.Failover == meta.FailoverAuto {
		out.Failover = "auto"
	}
	for _, site := range p.Sites {
		out.Sites = append(out.Sites, string(site))
	}
	f, err := c.facts(e, false)
	if err != nil {
		return out, err
	}
	hosts, err := c.hostsByDisk()
	out.Copies = f.copies(hosts)
	return out, err
}

// findVolume finds a volume that can be moved.
func (h *Host) findVolume(name string) (place, error) {
	if h.cluster == nil {
		return place{}, noCluster()
	}
	p, err := h.find(api.KindVolume, name)
	if err == nil && (p.snap != nil || p.branch != nil) {
		err = scstore.Hint(fmt.Errorf("%q is no volume that is written: %w", name, scstore.ErrInvalid), "name the volume: %s", p.Name)
	}
	return p, err
}

// Move hands a volume to a host.
func (h *Host) Move(ctx context.Context, name string, req api.Move, progress func(done, total int64)) (api.MoveReport, error) {
	p, err := h.findVolume(name)
	if err != nil {
		return api.MoveReport{}, err
	}
	a, elsewhere, err := h.forward(ctx, p, call{Method: methodMove, Name: name, Move: req}, progress)
	if elsewhere && err == nil && a.Move != nil {
		return *a.Move, nil
	}
	var out api.MoveReport
	if !elsewhere {
		out, err = h.cluster.move(ctx, p, req, progress)
	}
	if err != nil {
		return api.MoveReport{}, fmt.Errorf("move %q: %w", name, err)
	}
	return out, nil
}

// move hands a volume over that this host writes.
func (c *clustered) move(ctx context.Context, p place, req api.Move, progress func(done, total int64)) (api.MoveReport, error) {
	hosts, err := c.hostsByDisk()
	if err != nil {
		return api.MoveReport{}, err
	}
	f, err := c.facts(p.entry, false)
	if err != nil {
		return api.MoveReport{}, err
	}
	if f.tenure.Holder == "" {
		return api.MoveReport{}, scstore.Hint(fmt.Errorf("no host writes it: %w", scstore.ErrBusy), "end the promote that was begun: scstore volume promote %s --to SITE", p.Name)
	}
	to, err := target(req.To, hosts, &f)
	if err != nil {
		return api.MoveReport{}, err
	}
	if to == f.tenure.Holder {
		return api.MoveReport{}, scstore.Hint(fmt.Errorf("host %s writes it already: %w", c.log.HostName(to), scstore.ErrExists), "name another site or host")
	}
	if progress == nil {
		progress = func(int64, int64) {}
	}
	r, err := c.replicas.Move(ctx, p.ID, to, replica.MoveOptions{WaitComplete: req.WaitComplete}, progress)
	if err != nil {
		return api.MoveReport{}, err
	}
	c.h.log.Info("volume moved", "volume", p.Name, "to", hosts.name(to), "pause", r.Pause, "missing_bytes", r.MissingBytes)
	out := api.MoveReport{
		Volume: p.Name, From: hosts.name(r.From), To: hosts.name(r.To), Position: r.Position, Fence: r.Fence,
		PauseMs: milliseconds(r.Pause), RTTMs: milliseconds(r.RTT), TotalMs: milliseconds(r.Total), MissingBytes: r.MissingBytes,
	}
	if r.MissingBytes > 0 {
		out.OnlyAt = out.From
	}
	return out, nil
}

// milliseconds returns a duration for the API.
func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// target reads SITE or SITE/HOST. A site alone is its active host that has the newest
// copy, else the first by name.
func target(to string, hosts hostMap, f *facts) (meta.DiskID, error) {
	site, name, byHost := strings.Cut(to, "/")
	var best meta.Host
	known := false
	for _, h := range hosts {
		if string(h.Site) != site || h.State == meta.HostRemoved {
			continue
		}
		known = true
		if byHost && h.Name != name || h.State != meta.HostActive || h.Witness {
			continue
		}
		if best.Disk == "" || better(f, h, best) {
			best = h
		}
	}
	switch {
	case !known:
		return "", scstore.Hint(fmt.Errorf("site %q has no host: %w", site, scstore.ErrNotFound), "list them with scstore host ls; one joins with what scstore host token --site %s prints", site)
	case best.Disk == "" && byHost:
		return "", scstore.Hint(fmt.Errorf("site %q has no active host %q: %w", site, name, scstore.ErrNotFound), "list them with scstore host ls")
	case best.Disk == "":
		return "", scstore.Hint(fmt.Errorf("site %q has no active host: %w", site, scstore.ErrNotFound), "list them with scstore host ls")
	}
	return best.Disk, nil
}

// better reports whether a is the better target.
func better(f *facts, a, b meta.Host) bool {
	at := func(h meta.Host) (newest scstore.Position) {
		for _, r := range f.replicas {
			if r.Disk == h.Disk {
				newest = r.Complete
			}
		}
		return newest
	}
	if c := at(a).Compare(at(b)); c != 0 {
		return c > 0
	}
	return a.Name < b.Name
}

// Promote gives a volume to another host without its owner.
func (h *Host) Promote(ctx context.Context, name string, req api.Promote) (api.PromoteReport, error) {
	p, err := h.findVolume(name)
	if err != nil {
		return api.PromoteReport{}, err
	}
	out, err := h.cluster.promote(ctx, p, req)
	if err != nil {
		return api.PromoteReport{}, fmt.Errorf("promote %q: %w", name, err)
	}
	return out, nil
}

// promote gives a volume to another host.
func (c *clustered) promote(ctx context.Context, p place, req api.Promote) (api.PromoteReport, error) {
	hosts, err := c.hostsByDisk()
	if err != nil {
		return api.PromoteReport{}, err
	}
	f, err := c.facts(p.entry, false)
	if err != nil {
		return api.PromoteReport{}, err
	}
	var to meta.DiskID // the best that answers
	if req.To != "" {
		if to, err = target(req.To, hosts, &f); err != nil {
			return api.PromoteReport{}, err
		}
	}
	r, err := c.replicas.Promote(ctx, p.ID, to, req.DryRun)
	if err != nil {
		return api.PromoteReport{}, err
	}
	return promoteReport(p.Name, r, hosts), nil
}

// promoteReport translates a report.
func promoteReport(name string, r replica.PromoteReport, hosts hostMap) api.PromoteReport {
	return api.PromoteReport{
		Volume: name, DryRun: r.DryRun, Owner: hosts.name(r.Owner), To: hosts.name(r.To),
		Position: r.Position, Head: r.Head, Fence: r.Fence,
		Epochs: r.Epochs, Bytes: r.Bytes, Extents: r.Extents, Seconds: r.Seconds, Unknown: r.Unknown,
		Reachable: hosts.names(r.Reachable), Silent: hosts.names(r.Silent),
	}
}
