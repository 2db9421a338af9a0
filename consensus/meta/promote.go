package meta

import (
	"fmt"
	"slices"

	"scstore"
)

// Revoke takes the right to write from a holder that does not answer: the fence
// rises, nobody holds it, and nothing is committed under the lower one from here
// on. A move that is intended is dropped. Applied again it changes nothing. Errors:
// ErrNotFound, ErrReadOnly, ErrFenced if the fence is not Fence any more, ErrNoSpace
// while too many old owners of the volume have not reported.
type Revoke struct {
	ID    scstore.VolumeID
	Fence scstore.Fence // the one to revoke
}

// Promote ends what Revoke began: the history goes on from Position, which some
// disk holds completely, with a new holder. Positions after it leave the history.
// The position stays alive until the old owner has said what it has beyond it.
// Whether the old owner is alive is for the proposer to find out. Applied again it
// changes nothing. Errors: ErrNotFound (volume, disk, position), ErrInvalid if the
// fence was not revoked, ErrFenced, ErrBusy if nobody holds the position.
type Promote struct {
	ID       scstore.VolumeID
	Fence    scstore.Fence    // that Revoke left
	Position scstore.Position // zero for a volume that nothing was committed of
	Holder   DiskID
	Loss     Loss
}

// RegisterBranch keeps what an old owner wrote beyond the fork: an immutable record
// in the same group, based on the volume at the fork, on the owner's disk alone. If
// the volume was removed meanwhile it is in the trash. Applied again it changes
// nothing. Errors: ErrNotFound (nobody waits for this report), ErrExists (the id),
// ErrNoSpace.
type RegisterBranch struct {
	ID          scstore.VolumeID
	Branch      scstore.VolumeID // drawn for it
	Fence       scstore.Fence    // that the owner wrote under
	Fork        scstore.Position
	Head        scstore.Position // what the branch ends with, under Fence or one before it
	Digest      scstore.Digest   // of the manifest from Fork to Head
	Bytes       int64            // that the branch has of its own
	Disk        DiskID
	CreatedAtMs int64
}

// ReportNoBranch says that an old owner has nothing beyond the fork. If nobody
// waits for it, nothing changes. Errors: ErrNotFound (the volume).
type ReportNoBranch struct {
	ID    scstore.VolumeID
	Fence scstore.Fence
	Disk  DiskID
}

// Renew opens a disk's session in the group, or renews it: N is one more than at
// the last renewal. The holder of a volume with automatic failover counts its time
// from before it proposed this, a successor from its own apply. Errors: ErrNotFound
// (the disk), ErrBusy for an N that was applied.
type Renew struct {
	Disk DiskID
	N    uint64
}

// TakeOver is Revoke by the cluster instead of a person: the holder's session has
// lapsed by the proposer's count since renewal N, and is refused if it was renewed
// meanwhile. Errors: those of Revoke, ErrBusy if it was renewed, ErrInvalid if the
// placement does not allow it.
type TakeOver struct {
	ID    scstore.VolumeID
	Fence scstore.Fence
	N     uint64
}

func (Revoke) kind() opKind         { return kindRevoke }
func (Promote) kind() opKind        { return kindPromote }
func (RegisterBranch) kind() opKind { return kindRegisterBranch }
func (ReportNoBranch) kind() opKind { return kindReportNoBranch }
func (Renew) kind() opKind          { return kindRenew }
func (TakeOver) kind() opKind       { return kindTakeOver }

func (o Revoke) validate() error { return validateAll(validateID(o.ID), validateFence(o.Fence)) }

func (o Promote) validate() error {
	if o.Position != (scstore.Position{}) {
		if err := validatePosition(o.Position); err != nil {
			return err
		}
	}
	return validateAll(validateID(o.ID), validateFence(o.Fence), o.Holder.validate(), o.Loss.validate())
}

func (l Loss) validate() error {
	if l.Epochs > maxCounter || l.Bytes < 0 || l.Extents > maxCounter || l.Seconds < 0 {
		return fmt.Errorf("loss %+v is out of range: %w", l, scstore.ErrInvalid)
	}
	return nil
}

func (o RegisterBranch) validate() error {
	if o.Fork != (scstore.Position{}) {
		if err := validatePosition(o.Fork); err != nil {
			return err
		}
	}
	if o.Branch == o.ID || o.Head.Fence > o.Fence || o.Head.Compare(o.Fork) <= 0 || o.Bytes < 0 {
		return fmt.Errorf("branch %v of %v with %d bytes, head %v, fork %v: %w", o.Branch, o.ID, o.Bytes, o.Head, o.Fork, scstore.ErrInvalid)
	}
	return validateAll(validateID(o.ID), validateID(o.Branch), validateFence(o.Fence), validatePosition(o.Head), o.Disk.validate(), validateTime(o.CreatedAtMs))
}

func (o ReportNoBranch) validate() error {
	return validateAll(validateID(o.ID), validateFence(o.Fence), o.Disk.validate())
}

func (o Renew) validate() error { return validateSeq(o.Disk, o.N) }

func (o TakeOver) validate() error {
	return validateAll(validateID(o.ID), validateFence(o.Fence), validateNumber(o.N))
}

func (o Revoke) apply(s *State) Result {
	v, refused := s.writable(o.ID)
	if v == nil {
		return refused
	}
	return s.revoke(v, o.Fence)
}

// revoke ends a fence.
func (s *State) revoke(v *volume, f scstore.Fence) Result {
	switch {
	case v.revoked && v.Fence == f+1:
		return Result{Code: CodeOK, ID: v.ID, Fence: v.Fence, Position: v.Head}
	case v.revoked && v.Fence == f:
		return v.refuse(CodeRevoked)
	case f != v.Fence:
		return v.refuse(v.checkFence(f))
	case len(v.forks) >= MaxForks || v.Fence >= maxCounter-1:
		return v.refuse(CodeLimit)
	}
	if !v.intent.IsZero() {
		s.decide(s.moves[v.intent], OutcomeDropped)
	}
	if v.Holder != "" && !s.removed(v.Holder) {
		v.forks = append(v.forks, Fork{Fence: f, Owner: v.Holder, Position: v.Head, Left: v.Head, Waiting: true})
	}
	v.grant("", v.Head)
	v.revoked = true
	s.changed(v)
	return Result{Code: CodeOK, ID: v.ID, Fence: v.Fence, Position: v.Head}
}

func (o Promote) apply(s *State) Result {
	v, refused := s.writable(o.ID)
	if v == nil {
		return refused
	}
	if !v.revoked && v.Fence == o.Fence && v.Holder == o.Holder && v.grantedAt(o.Fence, o.Position) {
		return Result{Code: CodeOK, ID: o.ID, Fence: v.Fence, Position: v.Head}
	}
	if _, code := s.admitted(o.Holder); code != CodeOK {
		return v.refuse(code)
	}
	switch code := v.checkFence(o.Fence); {
	case code == CodeOK:
		return v.refuse(CodeNotRevoked)
	case code != CodeRevoked:
		return v.refuse(code)
	case !v.hasRoom(o.Holder):
		return v.refuse(CodeLimit)
	}
	if code := v.checkPromoted(o.Position); code != CodeOK {
		return v.refuse(code)
	}
	s.rewind(v, o.Position, o.Loss)
	v.revoked = false
	v.Holder = o.Holder
	last := &v.grants[len(v.grants)-1]
	last.Holder, last.Start = o.Holder, o.Position
	v.tethers = nil
	v.tether(o.Holder)
	s.changed(v)
	return Result{Code: CodeOK, ID: o.ID, Fence: v.Fence, Position: v.Head}
}

// grantedAt reports whether a fence was granted at this position.
func (v *volume) grantedAt(f scstore.Fence, at scstore.Position) bool {
	g, _ := find(v.grants, f, compareGrant)
	return g != nil && g.Start == at
}

// checkPromoted says whether the history can go on from a position.
func (v *volume) checkPromoted(at scstore.Position) Code {
	if at == (scstore.Position{}) {
		if v.Head != at {
			return CodeUnknownPosition
		}
		return CodeOK
	}
	p := v.point(at)
	switch {
	case p == nil:
		return CodeUnknownPosition
	case p.Line != 0:
		return CodeLeftOut
	case !v.completeAnywhere(at):
		return CodeIncomplete
	}
	return CodeOK
}

// rewind makes a position of the history its head again. What came after it leaves
// the history, under the line of the fence that was revoked.
func (s *State) rewind(v *volume, at scstore.Position, loss Loss) {
	revoked := v.Fence - 1
	fork, i := find(v.forks, revoked, compareFork)
	if fork == nil && at != v.Head { // nobody to wait for, but points to tell apart
		v.forks = slices.Insert(v.forks, i, Fork{Fence: revoked, Left: v.Head})
		fork = &v.forks[i]
	}
	if fork != nil {
		fork.Position, fork.Loss = at, loss
	}
	for i := range v.points {
		if p := &v.points[i]; p.Line == 0 && p.Position.Compare(at) > 0 {
			p.Line = revoked
		}
	}
	v.pins = slices.DeleteFunc(v.pins, func(p Pin) bool { return p.Kind == PinJump && p.Position.Compare(at) > 0 })
	for i := range v.replicas {
		if r := &v.replicas[i]; r.Partial.Compare(at) > 0 {
			r.Partial = scstore.Position{}
		}
	}
	if p := v.point(at); p != nil {
		v.Head, v.Parent, v.Digest = p.Position, p.Parent, p.Digest
	}
	v.inSync = slices.DeleteFunc(v.inSync, func(site SiteID) bool {
		return v.Head != scstore.Position{} && !s.siteComplete(v, site, v.Head)
	})
}

// fork returns the fork that waits for this owner's report.
func (v *volume) fork(f scstore.Fence, owner DiskID) *Fork {
	fork, _ := find(v.forks, f, compareFork)
	if fork == nil || !fork.Waiting || fork.Owner != owner {
		return nil
	}
	return fork
}

func (o RegisterBranch) apply(s *State) Result {
	if b := s.records[o.Branch]; b != nil {
		if b.Kind == KindBranch && b.Base == o.ID && b.BasePosition == o.Fork && b.Head == o.Head && b.Digest == o.Digest {
			return Result{Code: CodeOK, ID: o.Branch, Position: o.Head}
		}
		return Result{Code: CodeIDTaken}
	}
	v, refused := s.settled(o.ID)
	if v == nil {
		return refused
	}
	fork := v.fork(o.Fence, o.Disk)
	switch {
	case s.baseElsewhere(o.Branch):
		return Result{Code: CodeIDTaken}
	case fork == nil || v.revoked && o.Fence == v.Fence-1:
		return v.refuse(CodeNoFork) // none, or not known before Promote
	case fork.Position != o.Fork:
		return v.refuse(CodeNoFork)
	case len(s.records) >= MaxRecords || len(v.refs) >= MaxRefs || s.full() || s.branches(v) >= MaxBranches:
		return v.refuse(CodeLimit)
	}
	fork.Waiting = false
	life := Live
	if v.Life == Tombstone {
		life = Trash
	}
	s.create(&volume{
		Record: Record{
			ID: o.Branch, Kind: KindBranch, Life: life, SizeBytes: v.SizeBytes, Base: o.ID, BasePosition: o.Fork,
			Fence: o.Fence, Head: o.Head, Parent: o.Fork, Digest: o.Digest, CreatedAtMs: o.CreatedAtMs, DeltaBytes: o.Bytes,
		},
		points:   []Point{{Position: o.Head, Parent: o.Fork, Digest: o.Digest}},
		replicas: []replica{{Disk: o.Disk, AckedAt: o.Head, Holds: []scstore.Position{o.Head}}},
	}, "")
	v.addRef(Ref{Clone: o.Branch, Position: o.Fork, Group: s.group, AddedAtMs: o.CreatedAtMs})
	s.changed(v)
	return Result{Code: CodeOK, ID: o.Branch, Position: o.Head}
}

// branches counts a volume's branches.
func (s *State) branches(v *volume) (n int) {
	for _, r := range v.refs {
		if b := s.records[r.Clone]; b != nil && b.Kind == KindBranch {
			n++
		}
	}
	return n
}

// branchPrefix begins what follows a volume's name in the name of a branch.
const branchPrefix = "@diverged-"

// BranchSuffix returns what follows a volume's name in the name of a branch.
func BranchSuffix(f scstore.Fence) string { return fmt.Sprint(branchPrefix, uint64(f)) }

func (o ReportNoBranch) apply(s *State) Result {
	v, refused := s.settled(o.ID)
	if v == nil {
		return refused
	}
	if fork := v.fork(o.Fence, o.Disk); fork != nil {
		if v.revoked && o.Fence == v.Fence-1 {
			return v.refuse(CodeNoFork) // not known before Promote
		}
		fork.Waiting = false
		s.changed(v)
	}
	return Result{Code: CodeOK, ID: o.ID}
}

func (o Renew) apply(s *State) Result {
	d, code := s.admitted(o.Disk)
	switch {
	case d == nil:
		return Result{Code: code}
	case o.N <= d.Renewal:
		return Result{Code: CodeStale, Number: d.Renewal}
	}
	d.Renewal = o.N
	return Result{Code: CodeOK, Number: o.N}
}

func (o TakeOver) apply(s *State) Result {
	v, refused := s.writable(o.ID)
	if v == nil {
		return refused
	}
	if !v.revoked {
		holder := s.disks[v.Holder]
		switch {
		case v.placement.Failover != FailoverAuto || holder == nil:
			return v.refuse(CodeNotAuto)
		case holder.Renewal != o.N:
			return Result{Code: CodeRenewed, ID: o.ID, Fence: v.Fence, Number: holder.Renewal}
		}
	}
	return s.revoke(v, o.Fence)
}

// Session returns the number of the latest renewal of a disk's session, 0 without
// one.
func (s *State) Session(d DiskID) uint64 {
	if known := s.disks[d]; known != nil {
		return known.Renewal
	}
	return 0
}

func (o Revoke) wire(c *codec) Op {
	c.fixed(o.ID[:])
	number(c, &o.Fence)
	return o
}

func (o Promote) wire(c *codec) Op {
	c.fixed(o.ID[:])
	number(c, &o.Fence)
	c.position(&o.Position)
	wireDisk(c, &o.Holder)
	o.Loss.wire(c)
	return o
}

func (l *Loss) wire(c *codec) {
	number(c, &l.Epochs)
	number(c, &l.Bytes)
	number(c, &l.Extents)
	number(c, &l.Seconds)
}

func (o RegisterBranch) wire(c *codec) Op {
	c.fixed(o.ID[:])
	c.fixed(o.Branch[:])
	number(c, &o.Fence)
	c.position(&o.Fork)
	c.position(&o.Head)
	c.fixed(o.Digest[:])
	number(c, &o.Bytes)
	wireDisk(c, &o.Disk)
	number(c, &o.CreatedAtMs)
	return o
}

func (o ReportNoBranch) wire(c *codec) Op {
	c.fixed(o.ID[:])
	number(c, &o.Fence)
	wireDisk(c, &o.Disk)
	return o
}

func (o Renew) wire(c *codec) Op {
	wireDisk(c, &o.Disk)
	number(c, &o.N)
	return o
}

func (o TakeOver) wire(c *codec) Op {
	c.fixed(o.ID[:])
	number(c, &o.Fence)
	number(c, &o.N)
	return o
}
