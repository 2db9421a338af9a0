package meta

import (
	"cmp"
	"fmt"

	"scstore"
)

// Limits of re-grouping.
const (
	MaxForwards    = 1 << 16               // of a group
	MaxImportBytes = MaxCommandBytes - 256 // a volume's record on its way; one with more snapshots stays
)

// passage says that a record is on its way between two groups. Nothing changes it
// meanwhile but what is removed everywhere (RemoveDisk, Expire).
type passage struct {
	Peer     GroupID // where it goes, or comes from; 0 for no passage
	N        uint64
	Arriving bool
}

// Forwarding says that a record went to another group.
type Forwarding struct {
	ID    scstore.VolumeID
	Group GroupID
	N     uint64
}

// A volume changes its group in numbered steps, each of which may be repeated:
// Freeze in the old group, Import in the new one of what Export returns, Forward in
// the old one, Activate in the new one, Relink in the namespace. Forward is the one
// that decides: before it Unfreeze takes everything back (and DropImport what was
// imported), after it only the new group has the volume. Meanwhile commits and
// reports are refused as busy, and writes go on.

// Freeze begins a passage. N rises with each attempt. Errors: ErrNotFound,
// ErrReadOnly, ErrBusy (a move or another passage is under way), ErrFenced (revoked),
// ErrInvalid for a volume with branches or old owners that have not reported.
type Freeze struct {
	ID scstore.VolumeID
	To GroupID
	N  uint64
}

// Unfreeze gives a passage up in the old group. Errors: ErrNotFound, ErrInvalid if
// it is not the one under way.
type Unfreeze struct {
	ID scstore.VolumeID
	N  uint64
}

// Import enters a record that another group has frozen; it is not in use before
// Activate. What disks hold that were removed from this group is left out. Errors:
// ErrExists, ErrInvalid, ErrNoSpace.
type Import struct {
	From   GroupID
	N      uint64
	Record string // what Export returned
}

// DropImport removes a record that was imported and not activated; one that is not
// there is no error. Errors: ErrInvalid if it is in use, or another passage's.
type DropImport struct {
	ID scstore.VolumeID
	N  uint64
}

// Forward ends a passage in the old group: from here the volume is in the other one,
// and whoever asks is told (CodeForwarded, Result.Number is the group). Errors:
// ErrNotFound, ErrInvalid if it is not the passage under way, ErrNoSpace.
type Forward struct {
	ID scstore.VolumeID
	N  uint64
}

// Activate puts an imported record to use, after Forward was applied in the other
// group. Errors: ErrNotFound, ErrInvalid for another passage.
type Activate struct {
	ID scstore.VolumeID
	N  uint64
}

// DropForward forgets where a volume went, once nobody asks here any more.
type DropForward struct {
	ID scstore.VolumeID
}

// Relink tells the namespace that a volume is in another group. Errors:
// ErrNotFound, ErrInvalid if it is in neither.
type Relink struct {
	ID       scstore.VolumeID
	From, To GroupID
}

func (Freeze) kind() opKind      { return kindFreeze }
func (Unfreeze) kind() opKind    { return kindUnfreeze }
func (Import) kind() opKind      { return kindImport }
func (DropImport) kind() opKind  { return kindDropImport }
func (Forward) kind() opKind     { return kindForward }
func (Activate) kind() opKind    { return kindActivate }
func (DropForward) kind() opKind { return kindDropForward }
func (Relink) kind() opKind      { return kindRelink }

// validateVolumeGroup checks a group of several hosts that holds volumes.
func validateVolumeGroup(g GroupID) error {
	if g < FirstVolumes || g > maxCounter {
		return fmt.Errorf("group %d holds no volumes of its own: %w", g, scstore.ErrInvalid)
	}
	return nil
}

func (o Freeze) validate() error {
	return validateAll(validateID(o.ID), validateVolumeGroup(o.To), validateNumber(o.N))
}

func (o Unfreeze) validate() error { return validateAll(validateID(o.ID), validateNumber(o.N)) }

func (o Import) validate() error {
	if len(o.Record) > MaxImportBytes {
		return fmt.Errorf("record of %d bytes, want at most %d: %w", len(o.Record), MaxImportBytes, scstore.ErrInvalid)
	}
	return validateAll(validateVolumeGroup(o.From), validateNumber(o.N))
}

func (o DropImport) validate() error { return validateAll(validateID(o.ID), validateNumber(o.N)) }

func (o Forward) validate() error { return validateAll(validateID(o.ID), validateNumber(o.N)) }

func (o Activate) validate() error { return validateAll(validateID(o.ID), validateNumber(o.N)) }

func (o DropForward) validate() error { return validateID(o.ID) }

func (o Relink) validate() error {
	return validateAll(validateID(o.ID), validateVolumeGroup(o.From), validateVolumeGroup(o.To))
}

// missing returns the result for a record that is not here: it may be elsewhere.
func (s *State) missing(id scstore.VolumeID) Result {
	if f := s.forwards[id]; f != nil {
		return Result{Code: CodeForwarded, ID: id, Number: uint64(f.Group)}
	}
	return Result{Code: CodeNoVolume}
}

// settled returns a record that is not on its way to another group, or the result
// that says why there is none. A tombstone counts.
func (s *State) settled(id scstore.VolumeID) (*volume, Result) {
	v := s.records[id]
	switch {
	case v == nil:
		return nil, s.missing(id)
	case v.passage != passage{}:
		return nil, Result{Code: CodeFrozen, ID: id, Number: uint64(v.passage.Peer)}
	}
	return v, Result{}
}

// usable is settled for records that are not tombstones.
func (s *State) usable(id scstore.VolumeID) (*volume, Result) {
	v, refused := s.settled(id)
	if v != nil && v.Life == Tombstone {
		return nil, Result{Code: CodeNoVolume}
	}
	return v, refused
}

func (o Freeze) apply(s *State) Result {
	want := passage{Peer: o.To, N: o.N}
	if v := s.records[o.ID]; v != nil && v.passage == want {
		return Result{Code: CodeOK, ID: o.ID}
	}
	v, refused := s.writable(o.ID)
	switch {
	case v == nil:
		return refused
	case s.group < FirstVolumes || o.To == s.group:
		return v.refuse(CodeWrongGroup)
	case v.revoked:
		return v.refuse(CodeRevoked)
	case !v.intent.IsZero():
		return v.refuse(CodeMoving)
	case v.waiting() || s.branches(v) > 0:
		return v.refuse(CodeStays)
	case o.N <= v.lastPassage:
		return v.refuse(CodeStale)
	}
	v.passage, v.lastPassage = want, o.N
	s.changed(v)
	if v.encoded > MaxImportBytes {
		v.passage = passage{}
		s.changed(v)
		return v.refuse(CodeStays)
	}
	return Result{Code: CodeOK, ID: o.ID}
}

func (o Unfreeze) apply(s *State) Result {
	v := s.records[o.ID]
	switch {
	case v == nil:
		return s.missing(o.ID)
	case v.passage == passage{} && o.N <= v.lastPassage:
		return Result{Code: CodeOK, ID: o.ID}
	case v.passage.N != o.N || v.passage.Arriving:
		return v.refuse(CodeBadMove)
	}
	v.passage = passage{}
	s.changed(v)
	return Result{Code: CodeOK, ID: o.ID}
}

// Export returns a frozen record as Import takes it.
func (s *State) Export(id scstore.VolumeID) (record string, ok bool) {
	v := s.records[id]
	if v == nil || v.passage.Peer == 0 || v.passage.Arriving {
		return "", false
	}
	c := codec{mode: writing}
	v.wire(&c)
	return string(c.b), true
}

func (o Import) apply(s *State) Result {
	if s.group < FirstVolumes {
		return Result{Code: CodeWrongGroup}
	}
	v := &volume{}
	c := codec{mode: reading, b: []byte(o.Record)}
	v.wire(&c)
	if c.failed || len(c.b) > 0 || v.Kind != KindVolume || v.Life != Live || v.revoked || !v.intent.IsZero() || v.waiting() ||
		v.passage != (passage{Peer: s.group, N: o.N}) || v.lastPassage != o.N || o.From == s.group {
		return Result{Code: CodeInvalid}
	}
	v.passage = passage{Peer: o.From, N: o.N, Arriving: true}
	known, forwarded := s.records[v.ID], s.forwards[v.ID]
	switch {
	case known != nil && known.lastPassage == o.N && (known.passage == v.passage || known.passage == passage{}):
		return Result{Code: CodeOK, ID: v.ID} // applied before
	case known != nil && (!known.passage.Arriving || known.passage.N > o.N):
		return Result{Code: CodeIDTaken, ID: v.ID}
	case forwarded != nil && forwarded.N >= o.N:
		return Result{Code: CodeStale, ID: v.ID} // it was here and went on
	case len(s.records) >= MaxRecords || s.full():
		return Result{Code: CodeLimit}
	}
	for _, d := range sortedBy(s.disks, cmp.Compare[DiskID]) {
		if s.removed(d) {
			v.takeOut(d)
		}
	}
	v.leaveEmptySites(s)
	if known != nil { // of an attempt that was given up
		s.bytes -= known.encoded
	}
	s.records[v.ID] = v
	s.changed(v)
	if s.checkImported(v) != nil {
		s.bytes -= v.encoded
		delete(s.records, v.ID)
		return Result{Code: CodeInvalid}
	}
	delete(s.forwards, v.ID)
	return Result{Code: CodeOK, ID: v.ID}
}

// checkImported says what is wrong with a record that came, or with what is based
// on it here.
func (s *State) checkImported(v *volume) error {
	if err := s.checkRecord(v); err != nil {
		return err
	}
	for _, other := range s.records {
		if other.Base == v.ID {
			if err := s.checkBaseOf(other); err != nil {
				return err
			}
		}
	}
	return nil
}

func (o DropImport) apply(s *State) Result {
	v := s.records[o.ID]
	switch {
	case v == nil:
		return Result{Code: CodeOK}
	case !v.passage.Arriving || v.passage.N != o.N:
		return v.refuse(CodeBadMove)
	}
	s.bytes -= v.encoded
	delete(s.records, o.ID)
	return Result{Code: CodeOK, ID: o.ID}
}

func (o Forward) apply(s *State) Result {
	if f := s.forwards[o.ID]; f != nil && f.N == o.N {
		return Result{Code: CodeOK, ID: o.ID, Number: uint64(f.Group)}
	}
	v := s.records[o.ID]
	switch {
	case v == nil:
		return s.missing(o.ID)
	case v.passage.Peer == 0 || v.passage.Arriving || v.passage.N != o.N:
		return v.refuse(CodeBadMove)
	case len(s.forwards) >= MaxForwards:
		return v.refuse(CodeLimit)
	}
	s.forwards[o.ID] = &Forwarding{ID: o.ID, Group: v.passage.Peer, N: o.N}
	s.bytes -= v.encoded
	delete(s.records, o.ID)
	if base := s.records[v.Base]; base != nil {
		if r := base.ref(o.ID); r != nil {
			r.Group = v.passage.Peer
		}
	}
	return Result{Code: CodeOK, ID: o.ID, Number: uint64(v.passage.Peer)}
}

func (o Activate) apply(s *State) Result {
	v := s.records[o.ID]
	switch {
	case v == nil:
		return s.missing(o.ID)
	case v.passage == passage{} && v.lastPassage == o.N:
		return Result{Code: CodeOK, ID: o.ID, Fence: v.Fence, Position: v.Head}
	case !v.passage.Arriving || v.passage.N != o.N:
		return v.refuse(CodeBadMove)
	}
	v.passage = passage{}
	s.changed(v)
	if base := s.records[v.Base]; base != nil {
		base.ref(v.ID).Group = s.group
	}
	return Result{Code: CodeOK, ID: o.ID, Fence: v.Fence, Position: v.Head}
}

func (o DropForward) apply(s *State) Result {
	delete(s.forwards, o.ID)
	return Result{Code: CodeOK}
}

func (o Relink) apply(s *State) Result {
	e := s.entries[s.names[o.ID]]
	switch {
	case e == nil:
		return Result{Code: CodeNoName}
	case e.Group != o.From && e.Group != o.To:
		return Result{Code: CodeWrongGroup, ID: o.ID, Number: uint64(e.Group)}
	}
	e.Group = o.To
	return Result{Code: CodeOK, ID: o.ID}
}

// Forwarded returns the group that a volume went to from this one.
func (s *State) Forwarded(id scstore.VolumeID) (GroupID, bool) {
	if f := s.forwards[id]; f != nil {
		return f.Group, true
	}
	return 0, false
}

// checkForwards says what is wrong with passages between groups.
func (s *State) checkForwards() error {
	for id, f := range s.forwards {
		if id.IsZero() || validateVolumeGroup(f.Group) != nil || f.Group == s.group || f.N == 0 || f.N > maxCounter || s.records[id] != nil {
			return corruptf("%v went to group %d", id, f.Group)
		}
	}
	for id, v := range s.records {
		p := v.passage
		if v.lastPassage > maxCounter || p != (passage{}) && (validateVolumeGroup(p.Peer) != nil || p.Peer == s.group || s.group < FirstVolumes || p.N != v.lastPassage || p.N == 0 ||
			v.Kind != KindVolume || v.Life != Live || !v.intent.IsZero() || v.revoked) {
			return corruptf("%v on its way: %+v", id, p)
		}
	}
	return nil
}

func (o Freeze) wire(c *codec) Op {
	c.fixed(o.ID[:])
	number(c, &o.To)
	number(c, &o.N)
	return o
}

func (o Unfreeze) wire(c *codec) Op {
	c.fixed(o.ID[:])
	number(c, &o.N)
	return o
}

func (o Import) wire(c *codec) Op {
	number(c, &o.From)
	number(c, &o.N)
	text(c, &o.Record, MaxImportBytes)
	return o
}

func (o DropImport) wire(c *codec) Op {
	c.fixed(o.ID[:])
	number(c, &o.N)
	return o
}

func (o Forward) wire(c *codec) Op {
	c.fixed(o.ID[:])
	number(c, &o.N)
	return o
}

func (o Activate) wire(c *codec) Op {
	c.fixed(o.ID[:])
	number(c, &o.N)
	return o
}

func (o DropForward) wire(c *codec) Op {
	c.fixed(o.ID[:])
	return o
}

func (o Relink) wire(c *codec) Op {
	c.fixed(o.ID[:])
	number(c, &o.From)
	number(c, &o.To)
	return o
}

func (f *Forwarding) wire(c *codec) {
	c.fixed(f.ID[:])
	number(c, &f.Group)
	number(c, &f.N)
}
