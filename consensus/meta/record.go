package meta

import (
	"fmt"

	"scstore"
	"scstore/internal/invariant"
)

// CreateVolume makes a volume and, where names are in the same state, names it. In
// a volume group its name comes afterwards (Link) and Name is empty. A base in
// another group holds a reference already (AddRef); one in this state gets it here.
// Errors: ErrExists, ErrInvalid (base), ErrNoSpace.
type CreateVolume struct {
	ID           scstore.VolumeID
	Name         string
	SizeBytes    int64            // multiple of scstore.BlockSize, at least the base's size
	Base         scstore.VolumeID // an image, a branch, or a volume with a snapshot; zero for none
	BasePosition scstore.Position // the image's or snapshot's; zero without a base
	CreatedAtMs  int64            // proposer's clock, milliseconds since 1970
}

// CreateImage records an image whose data are complete and durable. Name is as in
// CreateVolume. Errors: ErrExists, ErrNoSpace.
type CreateImage struct {
	ID          scstore.VolumeID
	Name        string
	SizeBytes   int64
	Position    scstore.Position // where the image is frozen
	Digest      scstore.Digest   // of the whole content (fs/volume, digest tree)
	CreatedAtMs int64
}

// Remove takes a record out of use and leaves a tombstone, found by name, where
// names are in the same state, or by id: exactly one of them is set. Its name goes
// with it; where names are in another state, it went before (Unlink). Errors:
// ErrNotFound, ErrBusy while another record is based on it or a move is under way.
type Remove struct {
	ID   scstore.VolumeID
	Name string
}

// Forget drops a tombstone, once its data are gone everywhere. Errors:
// ErrNotFound, ErrInvalid if the record is in use, ErrBusy while a branch or an
// old owner needs it.
type Forget struct {
	ID scstore.VolumeID
}

// OpenFence takes the right to write a volume that nobody else holds: it raises
// the fence by one and names the holder. The result holds the fence granted and
// the head to go on from. From another host the right goes by HandOff or Promote
// alone. Errors: ErrNotFound, ErrReadOnly for an image, ErrBusy if another disk
// holds it or a move is under way, ErrFenced after Revoke.
type OpenFence struct {
	ID     scstore.VolumeID
	Holder DiskID
}

// CommitEpoch makes a sealed epoch the volume's head. After a new fence its parent
// is the head under the old one. Committing again what is in the history changes
// nothing. Errors: ErrNotFound, ErrReadOnly, ErrFenced, ErrInvalid if the parent is
// not the head.
type CommitEpoch struct {
	ID     scstore.VolumeID
	Fence  scstore.Fence    // of the writer that sealed it
	Parent scstore.Position // the head that it follows
	Epoch  scstore.Epoch
	Digest scstore.Digest // of the epoch's manifest
}

// Resize grows a volume; its present size changes nothing. Errors: ErrNotFound,
// ErrReadOnly, ErrInvalid for a smaller size, ErrBusy while a move is under way.
type Resize struct {
	ID        scstore.VolumeID
	SizeBytes int64
}

func (CreateVolume) kind() opKind { return kindCreateVolume }
func (CreateImage) kind() opKind  { return kindCreateImage }
func (Remove) kind() opKind       { return kindRemove }
func (Forget) kind() opKind       { return kindForget }
func (OpenFence) kind() opKind    { return kindOpenFence }
func (CommitEpoch) kind() opKind  { return kindCommitEpoch }
func (Resize) kind() opKind       { return kindResize }

func (o CreateVolume) validate() error {
	if o.Base.IsZero() && o.BasePosition != (scstore.Position{}) {
		return fmt.Errorf("base position %v without a base: %w", o.BasePosition, scstore.ErrInvalid)
	}
	if !o.Base.IsZero() {
		if err := validatePosition(o.BasePosition); err != nil {
			return err
		}
	}
	if o.Base == o.ID && !o.ID.IsZero() {
		return fmt.Errorf("volume based on itself: %w", scstore.ErrInvalid)
	}
	return validateNew(o.ID, o.Name, o.SizeBytes, o.CreatedAtMs)
}

func (o CreateImage) validate() error {
	return validateAll(validateNew(o.ID, o.Name, o.SizeBytes, o.CreatedAtMs), validatePosition(o.Position))
}

func (o Remove) validate() error {
	if o.ID.IsZero() == (o.Name == "") {
		return fmt.Errorf("remove wants a name or an id, and not both: %w", scstore.ErrInvalid)
	}
	if o.Name != "" {
		return ValidateName(o.Name)
	}
	return nil
}

func (o Forget) validate() error { return validateID(o.ID) }

func (o OpenFence) validate() error { return validateAll(o.Holder.validate(), validateID(o.ID)) }

func (o CommitEpoch) validate() error {
	return validateAll(validateID(o.ID), validateFence(o.Fence), validatePosition(scstore.Position{Fence: o.Fence, Epoch: o.Epoch}))
}

func (o Resize) validate() error { return validateAll(validateID(o.ID), validateSize(o.SizeBytes)) }

func validateNew(id scstore.VolumeID, name string, sizeBytes, createdAtMs int64) error {
	if name != "" {
		if err := ValidateName(name); err != nil {
			return err
		}
	}
	return validateAll(validateID(id), validateTime(createdAtMs), validateSize(sizeBytes))
}

func validateSize(sizeBytes int64) error {
	switch {
	case sizeBytes <= 0 || sizeBytes > scstore.MaxVolumeBytes:
		return fmt.Errorf("size of %d bytes, want 1 to %d: %w", sizeBytes, int64(scstore.MaxVolumeBytes), scstore.ErrInvalid)
	case sizeBytes%scstore.BlockSize != 0:
		return fmt.Errorf("size of %d bytes is not a multiple of %d: %w", sizeBytes, scstore.BlockSize, scstore.ErrInvalid)
	}
	return nil
}

func (o CreateVolume) apply(s *State) Result {
	if code := s.checkNew(o.ID, o.Name); code != CodeOK {
		return Result{Code: code}
	}
	base := s.records[o.Base]
	switch {
	case o.Base.IsZero():
	case base == nil && s.group != GroupAll: // in another group, with a reference there
	default:
		if code := s.checkBase(base, o.ID, o.BasePosition, o.SizeBytes); code != CodeOK {
			return Result{Code: code}
		}
	}
	v := &volume{Record: Record{
		ID: o.ID, Kind: KindVolume, Life: Live, SizeBytes: o.SizeBytes,
		Base: o.Base, BasePosition: o.BasePosition, CreatedAtMs: o.CreatedAtMs,
	}}
	s.create(v, o.Name)
	if base != nil {
		base.addRef(Ref{Clone: o.ID, Position: o.BasePosition, Group: s.group, AddedAtMs: o.CreatedAtMs})
		s.changed(base)
	}
	return Result{Code: CodeOK, ID: o.ID}
}

func (o CreateImage) apply(s *State) Result {
	if code := s.checkNew(o.ID, o.Name); code != CodeOK {
		return Result{Code: code}
	}
	s.create(&volume{
		Record: Record{
			ID: o.ID, Kind: KindImage, Life: Live, SizeBytes: o.SizeBytes,
			Fence: o.Position.Fence, Head: o.Position, Digest: o.Digest, CreatedAtMs: o.CreatedAtMs,
		},
		points: []Point{{Position: o.Position, Digest: o.Digest}},
	}, o.Name)
	return Result{Code: CodeOK, ID: o.ID, Position: o.Position}
}

// create adds a record and its name, which may be empty.
func (s *State) create(v *volume, name string) {
	s.records[v.ID] = v
	if name != "" {
		s.link(&Entry{Name: name, ID: v.ID, Group: s.group})
	}
	s.changed(v)
}

// checkNew says whether a record could be made under this id and name.
func (s *State) checkNew(id scstore.VolumeID, name string) Code {
	switch {
	case s.records[id] != nil:
		return CodeIDTaken
	case len(s.records) >= MaxRecords || s.full():
		return CodeLimit
	case name == "":
		return CodeOK
	case s.group != GroupAll:
		return CodeWrongGroup
	}
	return s.checkName(name)
}

// checkBase says whether a volume of this size can have this base (I3).
func (s *State) checkBase(base *volume, clone scstore.VolumeID, at scstore.Position, sizeBytes int64) Code {
	if base == nil || base.Life == Tombstone {
		return CodeBadBase
	}
	size, ok := base.cloneable(at)
	if !ok || size > sizeBytes {
		return CodeBadBase
	}
	if ref := base.ref(clone); ref != nil {
		if ref.Position != at {
			return CodeBadBase
		}
	} else if len(base.refs) >= MaxRefs {
		return CodeLimit
	}
	return CodeOK
}

func (o Remove) apply(s *State) Result {
	id, missing := o.ID, CodeNoVolume
	if o.Name != "" {
		missing = CodeNoName
		if e := s.entries[o.Name]; e != nil {
			id = e.ID
		}
	}
	v := s.records[id]
	switch {
	case v == nil || v.Life == Tombstone:
		return Result{Code: missing}
	case len(v.refs) > 0:
		return Result{Code: CodeInUse, ID: id}
	case !v.intent.IsZero():
		return Result{Code: CodeMoving, ID: id}
	}
	if name, linked := s.names[id]; linked {
		s.unlink(name)
	}
	v.Life = Tombstone
	v.snapshots, v.pins, v.tethers, v.inSync = nil, nil, nil, nil
	s.changed(v)
	return Result{Code: CodeOK, ID: id}
}

func (o Forget) apply(s *State) Result {
	v := s.records[o.ID]
	switch {
	case v == nil:
		return Result{Code: CodeNoVolume}
	case v.Life != Tombstone:
		return Result{Code: CodeNotRemoved, ID: o.ID}
	case len(v.refs) > 0 || v.waiting():
		return Result{Code: CodeInUse, ID: o.ID}
	}
	s.bytes -= v.encoded
	delete(s.records, o.ID)
	if base := s.records[v.Base]; base != nil {
		base.dropRef(o.ID)
		s.changed(base)
	}
	return Result{Code: CodeOK, ID: o.ID}
}

// writable returns a volume that can be written, or the code that says why not.
func (s *State) writable(id scstore.VolumeID) (*volume, Code) {
	v := s.records[id]
	switch {
	case v == nil || v.Life == Tombstone:
		return nil, CodeNoVolume
	case v.Kind != KindVolume:
		return nil, CodeImage
	}
	return v, CodeOK
}

// refuse returns the result of a command on a volume that exists.
func (v *volume) refuse(code Code) Result {
	return Result{Code: code, ID: v.ID, Fence: v.Fence, Position: v.Head}
}

// touched returns the result of a command that found no volume, or none to write.
func touched(id scstore.VolumeID, code Code) Result {
	if code == CodeNoVolume {
		return Result{Code: code}
	}
	return Result{Code: code, ID: id}
}

func (o OpenFence) apply(s *State) Result {
	v, code := s.writable(o.ID)
	if v == nil {
		return touched(o.ID, code)
	}
	switch {
	case v.revoked:
		return v.refuse(CodeRevoked)
	case v.Holder != "" && v.Holder != o.Holder:
		return v.refuse(CodeHeld)
	case !v.intent.IsZero():
		return v.refuse(CodeMoving)
	case v.Holder == "" && v.Head != scstore.Position{} && !v.completeAt(o.Holder, v.Head):
		return v.refuse(CodeIncomplete)
	case s.removed(o.Holder):
		return v.refuse(CodeDiskRemoved)
	case !v.hasRoom(o.Holder):
		return v.refuse(CodeLimit)
	case v.Fence >= maxCounter-1:
		return v.refuse(CodeLimit)
	}
	v.grant(o.Holder, v.Head)
	s.changed(v)
	return Result{Code: CodeOK, ID: o.ID, Fence: v.Fence, Position: v.Head}
}

// checkFence says whether the writer that holds this fence may change the volume.
func (v *volume) checkFence(f scstore.Fence) Code {
	switch {
	case f < v.Fence:
		return CodeFenced
	case f > v.Fence:
		return CodeNotGranted
	case v.revoked:
		return CodeRevoked
	}
	return CodeOK
}

func (o CommitEpoch) apply(s *State) Result {
	v, code := s.writable(o.ID)
	if v == nil {
		return touched(o.ID, code)
	}
	p := Point{Position: scstore.Position{Fence: o.Fence, Epoch: o.Epoch}, Parent: o.Parent, Digest: o.Digest}
	if code := s.commit(v, o.Fence, p); code != CodeOK {
		return v.refuse(code)
	}
	return Result{Code: CodeOK, ID: o.ID, Fence: v.Fence, Position: v.Head}
}

// commit makes p the head, or finds it in the history.
func (s *State) commit(v *volume, f scstore.Fence, p Point) Code {
	if v.inHistory(p) {
		return CodeOK
	}
	code := v.checkFence(f)
	if code == CodeFenced && s.planted == BugRevokedCommits && v.revoked {
		code = CodeOK
	}
	switch {
	case code != CodeOK:
		return code
	case s.removed(v.Holder):
		return CodeDiskRemoved
	}
	if p.Parent != v.Head || p.Position.Compare(v.Head) <= 0 {
		if s.planted != BugReusedEpoch || p.Parent != v.Head {
			return CodeBadParent
		}
	}
	v.append(p)
	s.changed(v)
	return CodeOK
}

func (o Resize) apply(s *State) Result {
	v, code := s.writable(o.ID)
	switch {
	case v == nil:
		return touched(o.ID, code)
	case o.SizeBytes < v.SizeBytes:
		return Result{Code: CodeShrink, ID: o.ID}
	case o.SizeBytes > v.SizeBytes && !v.intent.IsZero():
		return Result{Code: CodeMoving, ID: o.ID}
	}
	v.SizeBytes = o.SizeBytes
	return Result{Code: CodeOK, ID: o.ID}
}

// grant raises the fence by one for this holder; start is where the lower one ends.
func (v *volume) grant(holder DiskID, start scstore.Position) {
	invariant.Check(v.Fence < maxCounter, "fence %d of %v", v.Fence, v.ID)
	v.Fence++
	v.Holder = holder
	v.grants = append(v.grants, Grant{Fence: v.Fence, Holder: holder, Start: start})
	if len(v.grants) > MaxGrants {
		v.grants = v.grants[1:]
	}
}

func (o CreateVolume) wire(c *codec) Op {
	c.fixed(o.ID[:])
	number(c, &o.SizeBytes)
	c.fixed(o.Base[:])
	c.position(&o.BasePosition)
	number(c, &o.CreatedAtMs)
	text(c, &o.Name, MaxNameBytes)
	return o
}

func (o CreateImage) wire(c *codec) Op {
	c.fixed(o.ID[:])
	number(c, &o.SizeBytes)
	c.position(&o.Position)
	c.fixed(o.Digest[:])
	number(c, &o.CreatedAtMs)
	text(c, &o.Name, MaxNameBytes)
	return o
}

func (o Remove) wire(c *codec) Op {
	c.fixed(o.ID[:])
	text(c, &o.Name, MaxNameBytes)
	return o
}

func (o Forget) wire(c *codec) Op {
	c.fixed(o.ID[:])
	return o
}

func (o OpenFence) wire(c *codec) Op {
	c.fixed(o.ID[:])
	text(c, &o.Holder, MaxDiskIDBytes)
	return o
}

func (o CommitEpoch) wire(c *codec) Op {
	c.fixed(o.ID[:])
	number(c, &o.Fence)
	c.position(&o.Parent)
	number(c, &o.Epoch)
	c.fixed(o.Digest[:])
	return o
}

func (o Resize) wire(c *codec) Op {
	c.fixed(o.ID[:])
	number(c, &o.SizeBytes)
	return o
}
