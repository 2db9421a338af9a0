package meta

import (
	"fmt"
	"slices"

	"scstore"
)

// MaxPlacementSites is the most sites that one placement names.
const MaxPlacementSites = 16

// Mode says when a site of the placement must have what was written.
type Mode uint8

// The modes; stored, never renumber. The zero mode is that of a volume without a
// placement: one complete copy anywhere.
const (
	ModeLazy  Mode = 1 // when something is read there, or moves there
	ModeAsync Mode = 2 // soon, behind the writer
	ModeSync  Mode = 3 // before a flush is answered, while the site is in the in-sync set
)

// Failover says who may take a volume from an owner that does not answer.
type Failover uint8

// The kinds of failover; stored, never renumber.
const (
	FailoverManual Failover = 1 // a person
	FailoverAuto   Failover = 2 // the cluster too, once the owner's session has lapsed
)

// Placement is a volume's policy.
type Placement struct {
	Sites    []SiteID // rising: where replicas are
	Mode     Mode
	Failover Failover
	MaxLagMs int64 // of a site in mode async before somebody is told; 0 for no limit
}

// SetPlacement sets a volume's policy. Sites that it does not name, and all sites
// of a mode other than sync, leave the in-sync set. Errors: ErrNotFound,
// ErrReadOnly for a branch.
type SetPlacement struct {
	ID        scstore.VolumeID
	Placement Placement
}

// LeaveInSync takes a site out of the set that a flush waits for. It is applied
// before the first flush that does not wait for the site is answered. Errors:
// ErrNotFound, ErrFenced.
type LeaveInSync struct {
	ID    scstore.VolumeID
	Fence scstore.Fence // of the holder
	Site  SiteID
}

// JoinInSync takes a site of a sync placement into the set. Errors: ErrNotFound,
// ErrFenced, ErrInvalid if the placement does not ask for it, ErrBusy while no disk
// of the site is complete at the head.
type JoinInSync struct {
	ID    scstore.VolumeID
	Fence scstore.Fence
	Site  SiteID
}

func (SetPlacement) kind() opKind { return kindSetPlacement }
func (LeaveInSync) kind() opKind  { return kindLeaveInSync }
func (JoinInSync) kind() opKind   { return kindJoinInSync }

func (p Placement) validate() error {
	if len(p.Sites) > MaxPlacementSites {
		return fmt.Errorf("%d sites, want at most %d: %w", len(p.Sites), MaxPlacementSites, scstore.ErrInvalid)
	}
	for _, site := range p.Sites {
		if err := site.validate(); err != nil {
			return err
		}
	}
	if p.Mode < ModeLazy || p.Mode > ModeSync || p.Failover < FailoverManual || p.Failover > FailoverAuto || p.MaxLagMs < 0 {
		return fmt.Errorf("placement with mode %d, failover %d, lag %d ms: %w", p.Mode, p.Failover, p.MaxLagMs, scstore.ErrInvalid)
	}
	return validateRising("sites", p.Sites)
}

func (o SetPlacement) validate() error { return validateAll(validateID(o.ID), o.Placement.validate()) }

func (o LeaveInSync) validate() error {
	return validateAll(validateID(o.ID), validateFence(o.Fence), o.Site.validate())
}

func (o JoinInSync) validate() error {
	return validateAll(validateID(o.ID), validateFence(o.Fence), o.Site.validate())
}

func (o SetPlacement) apply(s *State) Result {
	v := s.records[o.ID]
	switch {
	case v == nil || v.Life != Live:
		return Result{Code: CodeNoVolume}
	case v.Kind == KindBranch:
		return v.refuse(CodeImage)
	}
	v.placement = o.Placement
	v.placement.Sites = slices.Clone(o.Placement.Sites)
	v.inSync = slices.DeleteFunc(v.inSync, func(site SiteID) bool {
		return o.Placement.Mode != ModeSync || !slices.Contains(o.Placement.Sites, site)
	})
	s.changed(v)
	return Result{Code: CodeOK, ID: o.ID}
}

// held returns a volume that the holder of this fence may change.
func (s *State) held(id scstore.VolumeID, f scstore.Fence) (*volume, Result) {
	v, code := s.writable(id)
	if v == nil {
		return nil, touched(id, code)
	}
	if code := v.checkFence(f); code != CodeOK {
		return nil, v.refuse(code)
	}
	return v, Result{}
}

func (o LeaveInSync) apply(s *State) Result {
	v, refused := s.held(o.ID, o.Fence)
	if v == nil {
		return refused
	}
	if i, found := slices.BinarySearch(v.inSync, o.Site); found {
		v.inSync = slices.Delete(v.inSync, i, i+1)
		s.changed(v)
	}
	return Result{Code: CodeOK, ID: o.ID, Position: v.Head}
}

func (o JoinInSync) apply(s *State) Result {
	v, refused := s.held(o.ID, o.Fence)
	if v == nil {
		return refused
	}
	i, found := slices.BinarySearch(v.inSync, o.Site)
	switch {
	case found:
	case v.placement.Mode != ModeSync || !slices.Contains(v.placement.Sites, o.Site):
		return v.refuse(CodeNotPlaced)
	case v.Head != (scstore.Position{}) && !s.siteComplete(v, o.Site, v.Head):
		return v.refuse(CodeIncomplete)
	default:
		v.inSync = slices.Insert(v.inSync, i, o.Site)
		s.changed(v)
	}
	return Result{Code: CodeOK, ID: o.ID, Position: v.Head}
}

// siteComplete reports whether a disk of the site holds all of a position.
func (s *State) siteComplete(v *volume, site SiteID, at scstore.Position) bool {
	return slices.ContainsFunc(v.replicas, func(r replica) bool { return s.siteOf(r.Disk) == site && r.holds(at) })
}

// leaveEmptySites takes sites out of the in-sync set where nobody holds anything.
func (v *volume) leaveEmptySites(s *State) {
	v.inSync = slices.DeleteFunc(v.inSync, func(site SiteID) bool {
		return !slices.ContainsFunc(v.replicas, func(r replica) bool { return s.siteOf(r.Disk) == site })
	})
}

func (o SetPlacement) wire(c *codec) Op {
	c.fixed(o.ID[:])
	o.Placement.wire(c)
	return o
}

func (p *Placement) wire(c *codec) {
	list(c, &p.Sites, MaxPlacementSites, wireSite)
	octet(c, &p.Mode)
	octet(c, &p.Failover)
	number(c, &p.MaxLagMs)
}

func (o LeaveInSync) wire(c *codec) Op {
	c.fixed(o.ID[:])
	number(c, &o.Fence)
	wireSite(c, &o.Site)
	return o
}

func (o JoinInSync) wire(c *codec) Op {
	c.fixed(o.ID[:])
	number(c, &o.Fence)
	wireSite(c, &o.Site)
	return o
}
