package meta

import (
	"fmt"
	"slices"
	"strings"

	"scstore"
)

// Snapshot names a position of a volume, for good. The position is one that
// something keeps alive: the head, one that is pinned, another snapshot. The same
// again changes nothing. Errors: ErrNotFound, ErrReadOnly, ErrExists (the name),
// ErrInvalid (nothing keeps the position), ErrBusy while a move is under way, or
// while no disk holds all of the position: what a tethered owner writes needs the
// position of the hand-off, which is kept until the tether ends and no longer.
// ErrNoSpace.
type Snapshot struct {
	ID          scstore.VolumeID
	Name        string // one segment; not like that of a branch
	Position    scstore.Position
	CreatedAtMs int64
}

// DeleteSnapshot removes a snapshot. Errors: ErrNotFound, ErrBusy while volumes are
// based on it.
type DeleteSnapshot struct {
	ID   scstore.VolumeID
	Name string
}

// AddRef keeps a position of a base alive for a clone that is about to be made, in
// this group or another. The same again changes nothing. Errors: ErrNotFound,
// ErrInvalid (no image, branch or snapshot at that position), ErrNoSpace.
type AddRef struct {
	Base scstore.VolumeID
	Ref  Ref
}

// DropRef ends what AddRef began, after the clone is gone, or never came to be; a
// reference that is not there is no error. Errors: ErrNotFound (the base), ErrBusy
// while the clone is in this state.
type DropRef struct {
	Base  scstore.VolumeID
	Clone scstore.VolumeID
}

// Rollback makes a snapshot's content the volume's again: a new position whose
// parent is the head. To replicas it is an epoch like others, whose manifest names
// what changed since the snapshot; one that holds both the head and the snapshot
// needs no data for it, and reports it like any other. Errors: those of
// CommitEpoch; ErrNotFound (no such snapshot), ErrBusy while a move is under way.
type Rollback struct {
	ID       scstore.VolumeID
	Snapshot string
	Fence    scstore.Fence
	Parent   scstore.Position
	Epoch    scstore.Epoch
	Digest   scstore.Digest // of the manifest from Parent
}

func (Snapshot) kind() opKind       { return kindSnapshot }
func (DeleteSnapshot) kind() opKind { return kindDeleteSnapshot }
func (AddRef) kind() opKind         { return kindAddRef }
func (DropRef) kind() opKind        { return kindDropRef }
func (Rollback) kind() opKind       { return kindRollback }

func (o Snapshot) validate() error {
	return validateAll(validateID(o.ID), validateSnapshot(o.Name), validatePosition(o.Position), validateTime(o.CreatedAtMs))
}

// validateSnapshot checks what follows the '@'.
func validateSnapshot(name string) error {
	if strings.HasPrefix("@"+name, branchPrefix) {
		return fmt.Errorf("snapshot name %q is that of a branch: %w", name, scstore.ErrInvalid)
	}
	return validateSegment("snapshot", name)
}

func (o DeleteSnapshot) validate() error {
	return validateAll(validateID(o.ID), validateSnapshot(o.Name))
}

func (r Ref) validate() error {
	if r.Group == GroupNamespace || r.Group > maxCounter {
		return fmt.Errorf("clone in group %d: %w", r.Group, scstore.ErrInvalid)
	}
	return validateAll(validateID(r.Clone), validatePosition(r.Position), validateTime(r.AddedAtMs))
}

func (o AddRef) validate() error {
	if o.Base == o.Ref.Clone {
		return fmt.Errorf("volume based on itself: %w", scstore.ErrInvalid)
	}
	return validateAll(validateID(o.Base), o.Ref.validate())
}

func (o DropRef) validate() error { return validateAll(validateID(o.Base), validateID(o.Clone)) }

func (o Rollback) validate() error {
	commit := CommitEpoch{ID: o.ID, Fence: o.Fence, Parent: o.Parent, Epoch: o.Epoch}
	return validateAll(commit.validate(), validateSnapshot(o.Snapshot))
}

func (v *volume) snapshot(name string) (*Snap, int) { return find(v.snapshots, name, compareSnap) }

func (o Snapshot) apply(s *State) Result {
	v, refused := s.writable(o.ID)
	if v == nil {
		return refused
	}
	known, i := v.snapshot(o.Name)
	switch {
	case known != nil && known.Position == o.Position:
		return Result{Code: CodeOK, ID: o.ID, Position: o.Position}
	case known != nil:
		return v.refuse(CodeSnapshotTaken)
	case !v.intent.IsZero():
		return v.refuse(CodeMoving)
	case !v.isRoot(o.Position):
		return v.refuse(CodeNotKept)
	case v.point(o.Position).Line != 0:
		return v.refuse(CodeLeftOut)
	case !v.completeAnywhere(o.Position):
		return v.refuse(CodeIncomplete)
	case len(v.snapshots) >= MaxSnapshots || s.full():
		return v.refuse(CodeLimit)
	}
	v.snapshots = slices.Insert(v.snapshots, i, Snap{Name: o.Name, Position: o.Position, SizeBytes: v.SizeBytes, CreatedAtMs: o.CreatedAtMs})
	s.changed(v)
	return Result{Code: CodeOK, ID: o.ID, Position: o.Position}
}

func (o DeleteSnapshot) apply(s *State) Result {
	v, refused := s.usable(o.ID)
	if v == nil {
		return refused
	}
	snap, i := v.snapshot(o.Name)
	if snap == nil {
		return v.refuse(CodeNoSnapshot)
	}
	for _, r := range v.refs {
		if r.Position == snap.Position {
			return v.refuse(CodeInUse)
		}
	}
	v.snapshots = slices.Delete(v.snapshots, i, i+1)
	s.changed(v)
	return Result{Code: CodeOK, ID: o.ID}
}

func (o AddRef) apply(s *State) Result {
	v, refused := s.usable(o.Base)
	if v == nil {
		return refused
	}
	if code := s.checkBase(v, o.Ref.Clone, o.Ref.Position, scstore.MaxVolumeBytes); code != CodeOK {
		return v.refuse(code)
	}
	if v.ref(o.Ref.Clone) == nil && s.full() {
		return v.refuse(CodeLimit)
	}
	v.addRef(o.Ref)
	s.changed(v)
	return Result{Code: CodeOK, ID: o.Base, Position: o.Ref.Position}
}

func (o DropRef) apply(s *State) Result {
	v, refused := s.settled(o.Base)
	if v == nil {
		return refused
	}
	if clone := s.records[o.Clone]; clone != nil && clone.Base == o.Base {
		return v.refuse(CodeInUse)
	}
	v.dropRef(o.Clone)
	s.changed(v)
	return Result{Code: CodeOK, ID: o.Base}
}

func (o Rollback) apply(s *State) Result {
	v, refused := s.writable(o.ID)
	if v == nil {
		return refused
	}
	p := Point{Position: scstore.Position{Fence: o.Fence, Epoch: o.Epoch}, Parent: o.Parent, Digest: o.Digest}
	if known := v.point(p.Position); known != nil {
		p.Content = known.Content // applied before; the snapshot may be gone
	}
	if p.Content == (scstore.Position{}) || !v.inHistory(p) {
		snap, _ := v.snapshot(o.Snapshot)
		switch {
		case snap == nil:
			return v.refuse(CodeNoSnapshot)
		case !v.intent.IsZero():
			return v.refuse(CodeMoving)
		case snap.Position.Compare(v.Head) > 0 || v.point(snap.Position).Line != 0:
			return v.refuse(CodeLeftOut)
		}
		p.Content = snap.Position
	}
	if code := s.commit(v, o.Fence, p); code != CodeOK {
		return v.refuse(code)
	}
	return Result{Code: CodeOK, ID: o.ID, Fence: v.Fence, Position: v.Head}
}

// Snapshots returns a volume's snapshots by name.
func (s *State) Snapshots(id scstore.VolumeID) []Snap {
	if v := s.records[id]; v != nil {
		return slices.Clone(v.snapshots)
	}
	return nil
}

func (o Snapshot) wire(c *codec) Op {
	c.fixed(o.ID[:])
	text(c, &o.Name, MaxSegmentBytes)
	c.position(&o.Position)
	number(c, &o.CreatedAtMs)
	return o
}

func (o DeleteSnapshot) wire(c *codec) Op {
	c.fixed(o.ID[:])
	text(c, &o.Name, MaxSegmentBytes)
	return o
}

func (o AddRef) wire(c *codec) Op {
	c.fixed(o.Base[:])
	o.Ref.wire(c)
	return o
}

func (r *Ref) wire(c *codec) {
	c.fixed(r.Clone[:])
	c.position(&r.Position)
	number(c, &r.Group)
	number(c, &r.AddedAtMs)
}

func (o DropRef) wire(c *codec) Op {
	c.fixed(o.Base[:])
	c.fixed(o.Clone[:])
	return o
}

func (o Rollback) wire(c *codec) Op {
	c.fixed(o.ID[:])
	text(c, &o.Snapshot, MaxSegmentBytes)
	number(c, &o.Fence)
	c.position(&o.Parent)
	number(c, &o.Epoch)
	c.fixed(o.Digest[:])
	return o
}
