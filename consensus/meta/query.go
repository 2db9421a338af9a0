package meta

import (
	"cmp"
	"slices"

	"scstore"
)

// RootKind says why a position is kept alive.
type RootKind uint8

// The kinds of roots.
const (
	RootHead     RootKind = 1 // the newest
	RootSnapshot RootKind = 2
	RootClone    RootKind = 3 // the base of a clone or branch
	RootRead     RootKind = 4 // a reader
	RootJump     RootKind = 5 // what replicas are being brought to
	RootTether   RootKind = 6 // handed over, and not all of it at the new holder
	RootFork     RootKind = 7 // an old owner has not reported
)

// String returns the kind's name.
func (k RootKind) String() string {
	names := [...]string{"none", "head", "snapshot", "clone", "read", "jump", "hand-off", "fork"}
	if int(k) < len(names) {
		return names[k]
	}
	return "unknown"
}

// Root is one reason to keep a position of a volume.
type Root struct {
	Kind     RootKind
	Position scstore.Position
	Name     string           // of a snapshot
	Clone    scstore.VolumeID // of a clone
	Disk     DiskID           // of a pin, of a fork's owner
}

// Roots returns what keeps positions of a volume alive, by position and kind. A
// host drops a version only if no root shows it, or by Release.
func (s *State) Roots(id scstore.VolumeID) []Root {
	v := s.records[id]
	if v == nil {
		return nil
	}
	roots := v.roots()
	slices.SortStableFunc(roots, compareRoots)
	return roots
}

// Tenure is the right to write a volume.
type Tenure struct {
	Holder DiskID // empty for nobody
	Fence  scstore.Fence
	Phase  Phase
	Move   HandOffID // that is intended, zero for none
}

// Holder returns who may write a volume.
func (s *State) Holder(id scstore.VolumeID) (Tenure, bool) {
	v := s.records[id]
	if v == nil || v.Life == Tombstone {
		return Tenure{}, false
	}
	return Tenure{Holder: v.Holder, Fence: v.Fence, Phase: v.phase(), Move: v.intent}, true
}

// Writers returns how many volumes each disk holds the right to write.
func (s *State) Writers() map[DiskID]int {
	count := map[DiskID]int{}
	for _, v := range s.records {
		if v.Life != Tombstone && v.Holder != "" {
			count[v.Holder]++
		}
	}
	return count
}

// Grants returns the latest grants of the right to write a volume, the oldest
// first.
func (s *State) Grants(id scstore.VolumeID) []Grant {
	if v := s.records[id]; v != nil {
		return slices.Clone(v.grants)
	}
	return nil
}

// Replica is what one disk holds of a volume.
type Replica struct {
	Disk     DiskID
	Site     SiteID             // empty if the disk is not known
	Complete scstore.Position   // the newest of the history, zero for none
	Partial  scstore.Position   // whose map it holds beyond that, zero for none
	AckedAt  scstore.Position   // the head when it reported last
	Holds    []scstore.Position // complete there: Complete and roots, rising
}

// Replicas returns who holds what of a volume, by disk.
func (s *State) Replicas(id scstore.VolumeID) []Replica {
	v := s.records[id]
	if v == nil {
		return nil
	}
	var list []Replica
	for i := range v.replicas {
		r := &v.replicas[i]
		list = append(list, Replica{
			Disk: r.Disk, Site: s.siteOf(r.Disk), Complete: v.newest(r), Partial: r.Partial, AckedAt: r.AckedAt, Holds: slices.Clone(r.Holds),
		})
	}
	return list
}

// Reported returns the number of a disk's latest report, 0 without one. A report with a
// lower number changes nothing any more. So a host that has started anew drops nothing
// before a report of this start is applied: until then it may have acted on more of the
// log than it sees, and one of its earlier reports may still be on the way.
func (s *State) Reported(d DiskID) uint64 {
	if known := s.disks[d]; known != nil {
		return known.Seq
	}
	return 0
}

// CompleteHolders returns the disks that hold all of a volume at a position.
func (s *State) CompleteHolders(id scstore.VolumeID, at scstore.Position) []DiskID {
	v := s.records[id]
	if v == nil {
		return nil
	}
	return v.completeHolders(at)
}

func (v *volume) completeHolders(at scstore.Position) []DiskID {
	var list []DiskID
	for i := range v.replicas {
		if v.replicas[i].holds(at) {
			list = append(list, v.replicas[i].Disk)
		}
	}
	return list
}

// Tethers returns the positions of hand-offs whose data are not all at the holder.
func (s *State) Tethers(id scstore.VolumeID) []scstore.Position {
	if v := s.records[id]; v != nil {
		return slices.Clone(v.tethers)
	}
	return nil
}

// Forks returns where fences that were revoked left the history.
func (s *State) Forks(id scstore.VolumeID) []Fork {
	if v := s.records[id]; v != nil {
		return slices.Clone(v.forks)
	}
	return nil
}

// History returns the positions of a volume that are kept, rising, those that were
// left out included.
func (s *State) History(id scstore.VolumeID) []Point {
	if v := s.records[id]; v != nil {
		return slices.Clone(v.points)
	}
	return nil
}

// IsAncestor reports whether q came about from p, or is p. It knows the latest
// MaxRecent positions and all that are kept alive or reported; known is false for
// others. The zero position is an ancestor of all.
func (s *State) IsAncestor(id scstore.VolumeID, p, q scstore.Position) (yes, known bool) {
	v := s.records[id]
	if v == nil {
		return false, false
	}
	return v.isAncestor(p, q)
}

// PlacementOf returns a volume's policy and the sites that a flush waits for.
func (s *State) PlacementOf(id scstore.VolumeID) (p Placement, inSync []SiteID) {
	v := s.records[id]
	if v == nil {
		return Placement{}, nil
	}
	p = v.placement
	p.Sites = slices.Clone(p.Sites)
	return p, slices.Clone(v.inSync)
}

// Missing is a volume that its placement wants at a site and that is not there.
type Missing struct {
	ID     scstore.VolumeID
	Head   scstore.Position
	Newest scstore.Position // that a disk of the site holds completely, zero for none
}

// MissingAt returns the volumes and images whose placement names a site where no
// disk is complete at the head, by id. Mode lazy asks for nothing.
func (s *State) MissingAt(site SiteID) []Missing {
	var list []Missing
	for _, id := range sortedBy(s.records, compareBytes[scstore.VolumeID]) {
		v := s.records[id]
		if v.Life != Live || v.Head == (scstore.Position{}) || v.placement.Mode == ModeLazy || !slices.Contains(v.placement.Sites, site) || s.siteComplete(v, site, v.Head) {
			continue
		}
		m := Missing{ID: id, Head: v.Head}
		for i := range v.replicas {
			if r := &v.replicas[i]; s.siteOf(r.Disk) == site {
				if at := v.newest(r); at.Compare(m.Newest) > 0 {
					m.Newest = at
				}
			}
		}
		list = append(list, m)
	}
	return list
}

// Candidate is a position that a forced promote can go on from.
type Candidate struct {
	Position scstore.Position
	Digest   scstore.Digest
	Disks    []DiskID // reachable ones that hold it completely
}

// PromoteCandidates returns the positions of a volume's history that the reachable
// disks hold completely, the newest first. What lies between the first and the head
// would be lost.
func (s *State) PromoteCandidates(id scstore.VolumeID, reachable []DiskID) []Candidate {
	v := s.records[id]
	if v == nil {
		return nil
	}
	var list []Candidate
	for _, p := range slices.Backward(v.points) {
		if p.Line != 0 {
			continue
		}
		disks := slices.DeleteFunc(v.completeHolders(p.Position), func(d DiskID) bool { return !slices.Contains(reachable, d) })
		if len(disks) > 0 {
			list = append(list, Candidate{Position: p.Position, Digest: p.Digest, Disks: disks})
		}
	}
	return list
}

// Exposure is a position that would be lost, or a writer that would stop, if some
// disks went away.
type Exposure struct {
	ID       scstore.VolumeID
	Root     Root // why the position matters; RootHead for the writer
	Writer   bool // one of the disks holds the right to write
	LastCopy bool // no other disk holds the position completely
}

// CanSwitchOff returns what depends on these disks alone, by volume and root;
// nothing means that they can be switched off. What was never committed is not
// seen here: the writer knows it.
func (s *State) CanSwitchOff(disks ...DiskID) []Exposure {
	var list []Exposure
	for _, id := range sortedBy(s.records, compareBytes[scstore.VolumeID]) {
		v := s.records[id]
		if v.Life == Tombstone {
			continue
		}
		writer := v.Holder != "" && slices.Contains(disks, v.Holder)
		seen := false
		for _, root := range s.Roots(id) {
			holders := v.completeHolders(root.Position)
			gone := slices.ContainsFunc(holders, func(d DiskID) bool { return slices.Contains(disks, d) })
			left := slices.ContainsFunc(holders, func(d DiskID) bool { return !slices.Contains(disks, d) })
			e := Exposure{ID: id, Root: root, Writer: writer && root.Kind == RootHead, LastCopy: gone && !left}
			// A tethered writer's own blocks are nowhere else, though it is not complete.
			e.LastCopy = e.LastCopy || e.Writer && !left
			if e.Writer || e.LastCopy {
				list = append(list, e)
				seen = true
			}
		}
		if writer && !seen {
			list = append(list, Exposure{ID: id, Root: Root{Kind: RootHead}, Writer: true})
		}
	}
	return list
}

// CanSwitchOffSite is CanSwitchOff for all disks of a site.
func (s *State) CanSwitchOffSite(site SiteID) []Exposure {
	var disks []DiskID
	for _, d := range sortedBy(s.disks, cmp.Compare[DiskID]) {
		if known := s.disks[d]; known.Site == site && known.RemovedAt == 0 {
			disks = append(disks, d)
		}
	}
	return s.CanSwitchOff(disks...)
}

// Orphan is what an interrupted command across groups left: a volume that never
// got its name, or lost it, or a reference whose clone never came to be, or is gone.
type Orphan struct {
	ID    scstore.VolumeID // the volume; the base of the reference
	Clone scstore.VolumeID // zero for a volume
}

// Orphans compares a group of volumes with the namespace and the other groups, and
// returns what is left over and older than the given time, by id: Remove the
// volumes, DropRef the references. All states must be read at or after that time
// plus the grace. others holds every group that clones may be in.
func Orphans(names, volumes *State, others map[GroupID]*State, olderThanMs int64) []Orphan {
	var list []Orphan
	for _, id := range sortedBy(volumes.records, compareBytes[scstore.VolumeID]) {
		v := volumes.records[id]
		_, named := names.names[id]
		if v.Life == Live && v.Kind != KindBranch && !named && v.CreatedAtMs < olderThanMs {
			list = append(list, Orphan{ID: id})
		}
		for _, r := range v.refs {
			_, readable := others[r.Group]
			if (readable || r.Group == volumes.group) && r.AddedAtMs < olderThanMs && !volumes.knows(r.Clone) && !anyKnows(others, r.Clone) {
				list = append(list, Orphan{ID: id, Clone: r.Clone})
			}
		}
	}
	return list
}

// knows reports whether a record is here, or went from here.
func (s *State) knows(id scstore.VolumeID) bool { return s.records[id] != nil || s.forwards[id] != nil }

func anyKnows(groups map[GroupID]*State, id scstore.VolumeID) bool {
	for _, g := range groups {
		if g.knows(id) {
			return true
		}
	}
	return false
}
