package meta

import (
	"bytes"
	"cmp"

	"scstore"
)

func compareHashes(a, b TokenHash) int { return bytes.Compare(a[:], b[:]) }

func (o SetCluster) wire(c *codec) Op {
	o.Cluster.wire(c)
	return o
}

func (k *Cluster) wire(c *codec) {
	c.fixed(k.ID[:])
	number(c, &k.Incarnation)
}

func (o SetSite) wire(c *codec) Op {
	o.Site.wire(c)
	return o
}

func (s *Site) wire(c *codec) {
	wireSite(c, &s.Name)
	list(c, &s.Voters, MaxSiteVoters, wireDisk)
}

func (o RemoveSite) wire(c *codec) Op {
	wireSite(c, &o.Name)
	return o
}

func (o AddHost) wire(c *codec) Op {
	wireDisk(c, &o.Disk)
	text(c, &o.Name, MaxSegmentBytes)
	wireSite(c, &o.Site)
	c.flag(&o.Witness)
	c.fixed(o.Fingerprint[:])
	list(c, &o.Addresses, MaxAddresses, wireAddress)
	return o
}

func (o UpdateHost) wire(c *codec) Op {
	wireDisk(c, &o.Disk)
	c.flag(&o.Active)
	c.fixed(o.Fingerprint[:])
	list(c, &o.Addresses, MaxAddresses, wireAddress)
	return o
}

func (o Boot) wire(c *codec) Op {
	wireDisk(c, &o.Disk)
	number(c, &o.N)
	c.fixed(o.Nonce[:])
	return o
}

func (o AddToken) wire(c *codec) Op {
	c.fixed(o.Hash[:])
	wireSite(c, &o.Site)
	number(c, &o.ExpiresAtMs)
	number(c, &o.NowMs)
	return o
}

func (o UseToken) wire(c *codec) Op {
	c.fixed(o.Hash[:])
	wireDisk(c, &o.Disk)
	number(c, &o.NowMs)
	return o
}

func (o AllocReplica) wire(c *codec) Op {
	number(c, &o.Group)
	wireDisk(c, &o.Disk)
	return o
}

func (o FreeReplica) wire(c *codec) Op {
	number(c, &o.Group)
	wireDisk(c, &o.Disk)
	return o
}

func (h *Host) wire(c *codec) {
	wireDisk(c, &h.Disk)
	text(c, &h.Name, MaxSegmentBytes)
	wireSite(c, &h.Site)
	octet(c, &h.State)
	c.flag(&h.Witness)
	c.fixed(h.Fingerprint[:])
	list(c, &h.Addresses, MaxAddresses, wireAddress)
	number(c, &h.Boots)
	c.fixed(h.BootNonce[:])
	number(c, &h.RemovedAt)
}

func (t *Token) wire(c *codec) {
	c.fixed(t.Hash[:])
	wireSite(c, &t.Site)
	number(c, &t.ExpiresAtMs)
	wireDisk(c, &t.UsedBy)
}

func (g *members) wire(c *codec) {
	number(c, &g.Group)
	number(c, &g.Last)
	list(c, &g.List, MaxMembers, func(c *codec, m *Member) {
		wireDisk(c, &m.Disk)
		number(c, &m.Replica)
	})
}

// wireCluster walks the part of a state that the namespace group has.
func (s *State) wireCluster(c *codec) {
	s.cluster.wire(c)
	table(c, s.sites, MaxSites, compareSite, func(v *Site) SiteID { return v.Name }, func(c *codec, v *Site) { v.wire(c) })
	table(c, s.hosts, MaxHosts, cmp.Compare[DiskID], func(v *Host) DiskID { return v.Disk }, func(c *codec, v *Host) { v.wire(c) })
	table(c, s.tokens, MaxTokens, compareHashes, func(v *Token) TokenHash { return v.Hash }, func(c *codec, v *Token) { v.wire(c) })
	table(c, s.members, MaxGroups, cmp.Compare[GroupID], func(v *members) GroupID { return v.Group }, func(c *codec, v *members) { v.wire(c) })
	table(c, s.entries, MaxNames, cmp.Compare[string], func(v *Entry) string { return v.Name }, func(c *codec, v *Entry) { v.wire(c) })
}

// checkCluster says what is wrong with the facts about the cluster.
func (s *State) checkCluster() error {
	if s.cluster != (Cluster{}) && (SetCluster{s.cluster}).validate() != nil {
		return corruptf("cluster %s, incarnation %d", s.cluster.ID, s.cluster.Incarnation)
	}
	names := map[string]bool{}
	for d, h := range s.hosts {
		op := AddHost{Disk: d, Name: h.Name, Site: h.Site, Addresses: h.Addresses}
		removed := h.State == HostRemoved
		switch {
		case op.validate() != nil, h.State < HostJoining, h.State > HostRemoved, h.Boots > maxCounter, removed != (h.RemovedAt > 0), h.RemovedAt > s.applied:
			return corruptf("host %q", d)
		case !removed && (s.sites[h.Site] == nil || names[h.Name]):
			return corruptf("host %q of site %q has no site, or its name twice", h.Name, h.Site)
		}
		if !removed {
			names[h.Name] = true
		}
	}
	for _, site := range s.sites {
		if (SetSite{*site}).validate() != nil {
			return corruptf("site %q", site.Name)
		}
		for _, d := range site.Voters {
			if h := s.hosts[d]; h == nil || h.Site != site.Name || h.State == HostRemoved {
				return corruptf("voter %q of site %q is no host of it", d, site.Name)
			}
		}
	}
	for _, t := range s.tokens {
		if t.Site.validate() != nil || t.ExpiresAtMs < 0 {
			return corruptf("token for site %q", t.Site)
		}
	}
	for id, g := range s.members {
		if err := g.check(id); err != nil {
			return err
		}
	}
	return nil
}

// check says what is wrong with a group's members.
func (g *members) check(id GroupID) error {
	if id == GroupAll || id > maxCounter || g.Last > maxCounter || !rising(g.List, func(a, b Member) int { return cmp.Compare(a.Disk, b.Disk) }) {
		return corruptf("members of group %d", id)
	}
	given := map[uint64]bool{}
	for _, m := range g.List {
		if m.Disk == "" || m.Replica == 0 || m.Replica > g.Last || given[m.Replica] {
			return corruptf("replica id %d of group %d", m.Replica, id)
		}
		given[m.Replica] = true
	}
	return nil
}

// checkNames says what is wrong with the namespace (I1, I2).
func (s *State) checkNames() error {
	for name, e := range s.entries {
		v := s.records[e.ID]
		switch {
		case ValidateName(name) != nil || e.Name != name || e.ID.IsZero() || s.names[e.ID] != name:
			return corruptf("name %q", name)
		case (e.Group == GroupAll) != (s.group == GroupAll) || e.Group == GroupNamespace || e.Group > maxCounter:
			return corruptf("name %q in group %d", name, e.Group)
		case s.group == GroupAll && (v == nil || v.Life != Live):
			return corruptf("name %q names %v", name, scstore.VolumeID(e.ID))
		case s.folders[name] > 0:
			return corruptf("name %q is a folder too", name)
		}
	}
	if len(s.names) != len(s.entries) {
		return corruptf("%d names of %d volumes", len(s.entries), len(s.names))
	}
	return nil
}
