package meta

import (
	"bytes"
	"cmp"
	"slices"
	"strings"

	"scstore"
)

// Limits of what one record holds.
const (
	MaxRecent    = 16      // latest positions of the history that are kept though nothing refers to them
	MaxGrants    = 8       // latest grants of the right to write
	MaxReplicas  = 64      // disks that hold a volume
	MaxSnapshots = 1024    // of a volume
	MaxRefs      = 1 << 17 // clones of an image or volume
	MaxBranches  = 64      // of a volume
	MaxPins      = 256     // leased positions of a volume
	MaxTethers   = 16      // hand-offs that followed each other before the data did
	MaxForks     = 16      // old owners of a volume that have not reported

	maxPoints = MaxRecent + MaxSnapshots + MaxBranches + MaxPins + MaxTethers + MaxForks + 2*MaxReplicas + 1
)

// Point is a position of a volume and how it came about.
type Point struct {
	Position scstore.Position
	Parent   scstore.Position
	Digest   scstore.Digest   // of the manifest
	Content  scstore.Position // not zero after a rollback: the snapshot whose content this is again
	Line     scstore.Fence    // 0 in the history; otherwise left out of it when this fence was revoked
}

// Grant is one grant of the right to write.
type Grant struct {
	Fence  scstore.Fence
	Holder DiskID           // empty from Revoke to Promote
	Start  scstore.Position // where the fence before it ends
}

// replica is what one disk holds of a volume. Partial means: it holds the map of
// that position, and asks others for blocks that it lacks.
type replica struct {
	Disk    DiskID
	Partial scstore.Position   // zero for none
	AckedAt scstore.Position   // the head when the disk reported last
	Holds   []scstore.Position // complete there, rising; among roots and its newest
}

// Snap is a snapshot: a named position.
type Snap struct {
	Name        string // one segment
	Position    scstore.Position
	SizeBytes   int64 // of the volume then
	CreatedAtMs int64
}

// Ref keeps a position alive for a clone, which may be in another group.
type Ref struct {
	Clone     scstore.VolumeID
	Position  scstore.Position
	Group     GroupID // of the clone
	AddedAtMs int64   // proposer's clock
}

// PinID names a pin. It is drawn at random.
type PinID [16]byte

// PinKind says what a pin is for.
type PinKind uint8

// The kinds of pins; stored, never renumber.
const (
	PinRead PinKind = 1 // a reader keeps to one position
	PinJump PinKind = 2 // the position that replicas are being brought to
)

// Pin keeps a position alive until its deadline.
type Pin struct {
	ID         PinID
	Kind       PinKind
	Position   scstore.Position
	Disk       DiskID // who reads or receives
	DeadlineMs int64  // by the clocks of proposers
}

// Loss is what a forced promote left out, as far as it is known. It is told to
// people and decides nothing.
type Loss struct {
	Epochs  uint64 `json:"epochs"`
	Bytes   int64  `json:"bytes"`
	Extents uint64 `json:"extents"`
	Seconds int64  `json:"seconds"` // between the newest write that is kept and the newest known
}

// Fork is where a fence that was revoked left the history. Position is kept alive
// while the old owner has not said what it has beyond it.
type Fork struct {
	Fence    scstore.Fence // the fence that was revoked
	Owner    DiskID        // who held it
	Position scstore.Position
	Left     scstore.Position // the head that was left; Position if nothing committed is lost
	Loss     Loss
	Waiting  bool // the owner has not reported
}

// volume is a record with what it holds. Lists rise by the field named.
type volume struct {
	Record    // Name and Phase are not kept here: State.record
	revoked   bool
	intent    HandOffID // of the move under way, zero for none
	points    []Point   // Position
	grants    []Grant   // Fence
	replicas  []replica // Disk
	placement Placement
	inSync    []SiteID           // itself
	snapshots []Snap             // Name
	refs      []Ref              // Clone
	pins      []Pin              // ID
	tethers   []scstore.Position // itself
	forks     []Fork             // Fence

	passage     passage // between two groups; zero for none
	lastPassage uint64  // number of the latest

	encoded int // length on the wire, counted in State.bytes
}

func comparePoint(p Point, at scstore.Position) int { return p.Position.Compare(at) }
func compareReplica(r replica, d DiskID) int        { return cmp.Compare(r.Disk, d) }
func compareSnap(s Snap, name string) int           { return strings.Compare(s.Name, name) }
func compareRef(r Ref, clone scstore.VolumeID) int  { return bytes.Compare(r.Clone[:], clone[:]) }
func comparePin(p Pin, id PinID) int                { return bytes.Compare(p.ID[:], id[:]) }
func compareFork(f Fork, fence scstore.Fence) int   { return cmp.Compare(f.Fence, fence) }
func compareGrant(g Grant, fence scstore.Fence) int { return cmp.Compare(g.Fence, fence) }
func compareSite(s, t SiteID) int                   { return cmp.Compare(s, t) }

// phase says where the volume's right to write stands.
func (v *volume) phase() Phase {
	switch {
	case v.passage != passage{}:
		return PhaseFrozen
	case v.revoked:
		return PhaseRevoked
	case !v.intent.IsZero():
		return PhaseMoving
	case len(v.tethers) > 0:
		return PhaseTethered
	}
	return PhaseNormal
}

func (v *volume) point(at scstore.Position) *Point {
	p, _ := find(v.points, at, comparePoint)
	return p
}

// inHistory reports whether exactly this was committed and is still part of the
// history.
func (v *volume) inHistory(p Point) bool {
	known := v.point(p.Position)
	return known != nil && *known == p
}

// append makes p the head, written by the holder.
func (v *volume) append(p Point) {
	if v.Holder != "" {
		r := v.replicaOf(v.Holder)
		if v.Head == (scstore.Position{}) || r.holds(v.Head) {
			r.hold(p.Position)
		} else {
			r.Partial = p.Position
		}
		r.AckedAt = p.Position
	}
	v.points = append(v.points, p)
	v.Parent, v.Head, v.Digest = p.Parent, p.Position, p.Digest
}

// isAncestor reports whether q came about from p, or is p; known is false if one of
// them is not kept.
func (v *volume) isAncestor(p, q scstore.Position) (yes, known bool) {
	if (p == scstore.Position{}) {
		return true, v.point(q) != nil || q == p
	}
	from, to := v.point(p), v.point(q)
	if from == nil || to == nil {
		return false, false
	}
	// Go back from q, line by line, to the one that p is on.
	line := to.Line
	for line != from.Line {
		if line == 0 {
			return false, true // p was left out: nothing in the history came about from it
		}
		fork, _ := find(v.forks, line, compareFork)
		if fork == nil {
			return false, false
		}
		q, line = fork.Position, v.lineAfter(fork)
	}
	return p.Compare(q) <= 0, true
}

// lineAfter returns the line that a fork's position is on now: the history, or that
// of a later fork before it. A later fork that is forgotten has no known position on
// its line, and then it does not matter.
func (v *volume) lineAfter(fork *Fork) scstore.Fence {
	for _, f := range v.forks {
		if f.Fence > fork.Fence && fork.Position.Compare(f.Position) > 0 {
			return f.Fence
		}
	}
	return 0
}

// replicaOf returns the disk's replica, a new one if there was none.
func (v *volume) replicaOf(d DiskID) *replica {
	r, i := find(v.replicas, d, compareReplica)
	if r == nil {
		v.replicas = slices.Insert(v.replicas, i, replica{Disk: d})
		r = &v.replicas[i]
	}
	return r
}

// hasRoom reports whether the disk has a replica or can have one.
func (v *volume) hasRoom(d DiskID) bool {
	r, _ := find(v.replicas, d, compareReplica)
	return r != nil || len(v.replicas) < MaxReplicas
}

// completeAt reports whether the disk holds all of the volume at this position.
func (v *volume) completeAt(d DiskID, at scstore.Position) bool {
	r, _ := find(v.replicas, d, compareReplica)
	return r != nil && r.holds(at)
}

// completeAnywhere reports whether some disk holds all of the volume at this position.
func (v *volume) completeAnywhere(at scstore.Position) bool {
	return slices.ContainsFunc(v.replicas, func(r replica) bool { return r.holds(at) })
}

func (r *replica) holds(at scstore.Position) bool {
	_, found := slices.BinarySearchFunc(r.Holds, at, comparePositions)
	return found
}

// hold enters a position at which the replica is complete.
func (r *replica) hold(at scstore.Position) {
	i, found := slices.BinarySearchFunc(r.Holds, at, comparePositions)
	if !found {
		r.Holds = slices.Insert(r.Holds, i, at)
	}
	if r.Partial.Compare(at) <= 0 {
		r.Partial = scstore.Position{}
	}
}

// newest returns the newest position of the history at which the replica is
// complete, zero for none.
func (v *volume) newest(r *replica) scstore.Position {
	for _, at := range slices.Backward(r.Holds) {
		if p := v.point(at); p != nil && p.Line == 0 {
			return at
		}
	}
	return scstore.Position{}
}

func (v *volume) ref(clone scstore.VolumeID) *Ref {
	r, _ := find(v.refs, clone, compareRef)
	return r
}

// addRef enters a reference unless the clone has one.
func (v *volume) addRef(r Ref) {
	if known, i := find(v.refs, r.Clone, compareRef); known == nil {
		v.refs = slices.Insert(v.refs, i, r)
	}
}

func (v *volume) dropRef(clone scstore.VolumeID) {
	if r, i := find(v.refs, clone, compareRef); r != nil {
		v.refs = slices.Delete(v.refs, i, i+1)
	}
}

// cloneable returns the size of a position that volumes can be based on.
func (v *volume) cloneable(at scstore.Position) (sizeBytes int64, ok bool) {
	if v.Kind != KindVolume {
		return v.SizeBytes, at == v.Head
	}
	for _, snap := range v.snapshots {
		if snap.Position == at {
			return snap.SizeBytes, true
		}
	}
	return 0, false
}

// waiting reports whether an old owner has not said what it has.
func (v *volume) waiting() bool {
	return slices.ContainsFunc(v.forks, func(f Fork) bool { return f.Waiting })
}

// roots returns what keeps positions of the volume alive, in a fixed order.
func (v *volume) roots() []Root {
	var roots []Root
	if v.Life != Tombstone && v.Head != (scstore.Position{}) {
		roots = append(roots, Root{Kind: RootHead, Position: v.Head})
	}
	for _, s := range v.snapshots {
		roots = append(roots, Root{Kind: RootSnapshot, Position: s.Position, Name: s.Name})
	}
	for _, r := range v.refs {
		if r.Position != (scstore.Position{}) {
			roots = append(roots, Root{Kind: RootClone, Position: r.Position, Clone: r.Clone})
		}
	}
	for _, p := range v.pins {
		kind := RootRead
		if p.Kind == PinJump {
			kind = RootJump
		}
		roots = append(roots, Root{Kind: kind, Position: p.Position, Disk: p.Disk})
	}
	for _, at := range v.tethers {
		roots = append(roots, Root{Kind: RootTether, Position: at})
	}
	for _, f := range v.forks {
		if f.Waiting && f.Position != (scstore.Position{}) {
			roots = append(roots, Root{Kind: RootFork, Position: f.Position, Disk: f.Owner})
		}
	}
	return roots
}

// rootPositions returns the positions of roots, rising, each once.
func (v *volume) rootPositions() []scstore.Position {
	var at []scstore.Position
	add := func(p scstore.Position) {
		if p != (scstore.Position{}) && (len(at) == 0 || at[len(at)-1] != p) { // most clones of an image share theirs
			at = append(at, p)
		}
	}
	if v.Life != Tombstone {
		add(v.Head)
	}
	for i := range v.snapshots {
		add(v.snapshots[i].Position)
	}
	for i := range v.refs {
		add(v.refs[i].Position)
	}
	for i := range v.pins {
		add(v.pins[i].Position)
	}
	for i := range v.tethers {
		add(v.tethers[i])
	}
	for i := range v.forks {
		if v.forks[i].Waiting {
			add(v.forks[i].Position)
		}
	}
	slices.SortFunc(at, comparePositions)
	return slices.Compact(at)
}

// isRoot reports whether something keeps the position alive.
func (v *volume) isRoot(at scstore.Position) bool {
	_, found := slices.BinarySearchFunc(v.rootPositions(), at, comparePositions)
	return found
}

// prune forgets what nothing refers to any more: positions at which a replica is
// complete, positions of the history, forks.
func (v *volume) prune() {
	roots := v.rootPositions()
	kept := slices.Clone(roots)
	for i := range v.replicas {
		r := &v.replicas[i]
		newest := v.newest(r)
		r.Holds = slices.DeleteFunc(r.Holds, func(at scstore.Position) bool {
			_, root := slices.BinarySearchFunc(roots, at, comparePositions)
			return !root && at != newest
		})
		kept = append(append(kept, r.Holds...), r.Partial)
	}
	slices.SortFunc(kept, comparePositions)
	recent, oldest := 0, scstore.Position{} // oldest of the recent ones; zero if all are recent
	for _, p := range slices.Backward(v.points) {
		if p.Line == 0 {
			recent++
		}
		if recent == MaxRecent {
			oldest = p.Position
			break
		}
	}
	v.points = slices.DeleteFunc(v.points, func(p Point) bool {
		if p.Line == 0 && p.Position.Compare(oldest) >= 0 {
			return false
		}
		_, found := slices.BinarySearchFunc(kept, p.Position, comparePositions)
		return !found
	})
	v.replicas = slices.DeleteFunc(v.replicas, func(r replica) bool {
		return len(r.Holds) == 0 && r.Partial == scstore.Position{} && r.Disk != v.Holder
	})
	v.forks = slices.DeleteFunc(v.forks, func(f Fork) bool {
		return !f.Waiting && !slices.ContainsFunc(v.points, func(p Point) bool { return p.Line == f.Fence })
	})
}

// changed brings what is derived up to date after a change of the record.
func (s *State) changed(v *volume) {
	v.prune()
	c := codec{mode: counting}
	v.wire(&c)
	s.bytes += c.count - v.encoded
	v.encoded = c.count
}

// full reports whether no record may grow, but for commits.
func (s *State) full() bool { return s.bytes >= MaxRecordsBytes }
