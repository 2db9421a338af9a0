package meta

import (
	"cmp"
	"fmt"
	"slices"

	"scstore"
)

// Limits of reports.
const (
	MaxDisks = MaxHosts // of a volume group, removed ones included
	MaxAcks  = 512      // of one report
)

// disk is what a group of volumes knows of a disk.
type disk struct {
	ID        DiskID
	Site      SiteID
	Seq       uint64 // of its latest report
	Renewal   uint64 // number of its session's latest renewal; 0 without a session
	RemovedAt uint64 // State.applied then; 0 before
}

// AdmitDisk lets a disk hold volumes of the group. The same again changes nothing.
// Errors: ErrExists under another site, ErrFenced for a disk that was removed,
// ErrNoSpace.
type AdmitDisk struct {
	Disk DiskID
	Site SiteID
}

// RemoveDisk ends all that depends on a disk, in every kind of group: what it
// holds, its place in groups, its pins and moves, the wait for what it may have
// beyond a fork. The id never comes back. What it holds the right to write goes to
// another by Revoke and Promote. Result.Number is how many records it was taken
// out of. Applying it again changes nothing.
type RemoveDisk struct {
	Disk DiskID
}

// AckItem says that a disk holds a volume at a position: all of it, or its map.
type AckItem struct {
	ID       scstore.VolumeID
	Position scstore.Position
	Complete bool
}

// Ack reports what a disk holds, durably. Seq rises with each report, release and
// completion of the disk (the upper half is the number of the host's start), so
// that a report that arrives late, or twice, says nothing any more: CodeStale.
// Result.Each has one result an item, in order. Errors: ErrNotFound (disk; in Each:
// volume, position), ErrBusy (stale), in Each ErrFenced for a position that a
// promote left out.
type Ack struct {
	Disk  DiskID
	Seq   uint64
	Items []AckItem
}

// Complete is a report of one volume. From the disk that holds the right to write,
// at or after the position of the hand-off, it ends the tether. Errors as Ack.
type Complete struct {
	Disk     DiskID
	Seq      uint64
	ID       scstore.VolumeID
	Position scstore.Position
}

// Release asks to drop what a disk holds at a position. Once it is applied, the
// disk may delete it. Errors: ErrBusy if fewer complete copies than the placement
// asks (at least one) would remain, or the disk writes the volume, or a later
// report was applied.
type Release struct {
	Disk     DiskID
	Seq      uint64
	ID       scstore.VolumeID
	Position scstore.Position
}

func (AdmitDisk) kind() opKind  { return kindAdmitDisk }
func (RemoveDisk) kind() opKind { return kindRemoveDisk }
func (Ack) kind() opKind        { return kindAck }
func (Complete) kind() opKind   { return kindComplete }
func (Release) kind() opKind    { return kindRelease }

func (o AdmitDisk) validate() error { return validateAll(o.Disk.validate(), o.Site.validate()) }

func (o RemoveDisk) validate() error { return o.Disk.validate() }

func (o Ack) validate() error {
	if len(o.Items) > MaxAcks {
		return fmt.Errorf("report of %d items, want at most %d: %w", len(o.Items), MaxAcks, scstore.ErrInvalid)
	}
	for _, item := range o.Items {
		if err := validateAll(validateID(item.ID), validatePosition(item.Position)); err != nil {
			return err
		}
	}
	return validateSeq(o.Disk, o.Seq)
}

func (o Complete) validate() error {
	return validateAll(validateSeq(o.Disk, o.Seq), validateID(o.ID), validatePosition(o.Position))
}

func (o Release) validate() error {
	return validateAll(validateSeq(o.Disk, o.Seq), validateID(o.ID), validatePosition(o.Position))
}

func validateSeq(d DiskID, seq uint64) error { return validateAll(validateNumber(seq), d.validate()) }

// validateNumber checks what is counted from 1.
func validateNumber(n uint64) error {
	if n == 0 || n > maxCounter {
		return fmt.Errorf("number %d is out of range: %w", n, scstore.ErrInvalid)
	}
	return nil
}

func (o AdmitDisk) apply(s *State) Result {
	known := s.disks[o.Disk]
	switch {
	case known != nil && known.RemovedAt > 0:
		return Result{Code: CodeDiskRemoved}
	case known != nil && known.Site != o.Site:
		return Result{Code: CodeHostTaken}
	case known != nil:
		return Result{Code: CodeOK}
	case !s.makeRoomForDisk():
		return Result{Code: CodeLimit}
	}
	s.disks[o.Disk] = &disk{ID: o.Disk, Site: o.Site}
	return Result{Code: CodeOK}
}

// makeRoomForDisk forgets the disk that was removed longest ago, if it must.
func (s *State) makeRoomForDisk() bool {
	if len(s.disks) < MaxDisks {
		return true
	}
	var oldest *disk
	for _, d := range s.disks {
		if d.RemovedAt > 0 && (oldest == nil || cmp.Or(cmp.Compare(d.RemovedAt, oldest.RemovedAt), cmp.Compare(d.ID, oldest.ID)) < 0) {
			oldest = d
		}
	}
	if oldest == nil {
		return false
	}
	delete(s.disks, oldest.ID)
	return true
}

// removed reports whether a disk id was removed from the group.
func (s *State) removed(d DiskID) bool {
	known := s.disks[d]
	return known != nil && known.RemovedAt > 0
}

// admitted returns a disk that may hold volumes.
func (s *State) admitted(d DiskID) (*disk, Code) {
	known := s.disks[d]
	switch {
	case known == nil:
		return nil, CodeNoDisk
	case known.RemovedAt > 0:
		return nil, CodeDiskRemoved
	}
	return known, CodeOK
}

// report takes a disk's next report.
func (s *State) report(id DiskID, seq uint64) Code {
	d, code := s.admitted(id)
	switch {
	case d == nil:
		return code
	case seq <= d.Seq:
		return CodeStale
	}
	d.Seq = seq
	return CodeOK
}

func (o RemoveDisk) apply(s *State) Result {
	if s.group.takes(scopeNames) {
		s.removeHost(o.Disk)
	}
	if !s.group.takes(scopeVolumes) || s.removed(o.Disk) {
		return Result{Code: CodeOK}
	}
	if s.disks[o.Disk] == nil {
		if !s.makeRoomForDisk() {
			return Result{Code: CodeLimit}
		}
		s.disks[o.Disk] = &disk{ID: o.Disk}
	}
	s.disks[o.Disk].RemovedAt = s.applied
	for _, h := range sortedBy(s.moves, compareBytes[HandOffID]) {
		if m := s.moves[h]; m.From == o.Disk || m.To == o.Disk {
			s.decide(m, OutcomeDropped)
		}
	}
	count := uint64(0)
	for _, v := range s.records {
		if v.takeOut(o.Disk) {
			v.leaveEmptySites(s)
			s.changed(v)
			count++
		}
	}
	return Result{Code: CodeOK, Number: count}
}

// takeOut removes a disk's facts from a record and reports whether there were any.
func (v *volume) takeOut(d DiskID) bool {
	found := false
	if r, i := find(v.replicas, d, compareReplica); r != nil {
		v.replicas, found = slices.Delete(v.replicas, i, i+1), true
	}
	v.pins = slices.DeleteFunc(v.pins, func(p Pin) bool {
		found = found || p.Disk == d
		return p.Disk == d
	})
	for i := range v.forks {
		if f := &v.forks[i]; f.Owner == d && f.Waiting {
			f.Waiting, found = false, true
		}
	}
	return found
}

func (o Ack) apply(s *State) Result {
	if code := s.report(o.Disk, o.Seq); code != CodeOK {
		return Result{Code: code}
	}
	each := make([]Result, len(o.Items))
	for i, item := range o.Items {
		each[i] = s.acknowledge(o.Disk, item)
	}
	return Result{Code: CodeOK, Each: each}
}

func (o Complete) apply(s *State) Result {
	if code := s.report(o.Disk, o.Seq); code != CodeOK {
		return Result{Code: code}
	}
	return s.acknowledge(o.Disk, AckItem{ID: o.ID, Position: o.Position, Complete: true})
}

// acknowledge enters that a disk holds a volume at a position.
func (s *State) acknowledge(d DiskID, item AckItem) Result {
	v := s.records[item.ID]
	if v == nil || v.Life == Tombstone {
		return Result{Code: CodeNoVolume}
	}
	p := v.point(item.Position)
	known, _ := find(v.replicas, d, compareReplica)
	switch {
	case p == nil:
		return v.refuse(CodeUnknownPosition)
	case p.Line != 0 && !(item.Complete && v.isRoot(item.Position)):
		return v.refuse(CodeLeftOut)
	case known == nil && (!v.hasRoom(d) || s.full()):
		return v.refuse(CodeLimit)
	}
	r := v.replicaOf(d)
	r.AckedAt = v.Head
	switch {
	case item.Complete:
		r.hold(item.Position)
		s.untether(v, r, item.Position)
	case item.Position.Compare(v.newest(r)) > 0:
		r.Partial = item.Position
	}
	s.changed(v)
	return Result{Code: CodeOK, ID: v.ID, Fence: v.Fence, Position: v.Head}
}

// untether ends a hand-off's wait for data: what its new owner wrote since, it has.
func (s *State) untether(v *volume, r *replica, at scstore.Position) {
	if r.Disk != v.Holder || v.revoked || v.point(at).Line != 0 {
		return
	}
	if n := len(v.tethers); n > 0 && at.Compare(v.tethers[n-1]) >= 0 {
		v.tethers = nil
		r.hold(v.Head)
	}
}

func (o Release) apply(s *State) Result {
	if code := s.report(o.Disk, o.Seq); code != CodeOK {
		return Result{Code: code}
	}
	v := s.records[o.ID]
	if v == nil {
		return Result{Code: CodeNoVolume}
	}
	r, _ := find(v.replicas, o.Disk, compareReplica)
	if r == nil {
		return Result{Code: CodeOK, ID: o.ID}
	}
	if r.Partial == o.Position && o.Disk != v.Holder {
		r.Partial = scstore.Position{}
	}
	if r.holds(o.Position) {
		if v.Life != Tombstone {
			if code := s.checkRelease(v, o.Disk, o.Position); code != CodeOK {
				return v.refuse(code)
			}
		}
		r.Holds = slices.DeleteFunc(r.Holds, func(at scstore.Position) bool { return at == o.Position })
	}
	s.changed(v)
	return Result{Code: CodeOK, ID: o.ID}
}

// checkRelease says whether the others hold enough copies of a position.
func (s *State) checkRelease(v *volume, d DiskID, at scstore.Position) Code {
	if v.Holder == d && at == v.Head {
		return CodeHolder
	}
	if !v.isRoot(at) {
		return CodeOK
	}
	remain := 0
	sites := map[SiteID]bool{}
	for i := range v.replicas {
		if r := &v.replicas[i]; r.Disk != d && r.holds(at) {
			remain++
			sites[s.siteOf(r.Disk)] = true
		}
	}
	if remain == 0 {
		return CodeLastCopy
	}
	if v.placement.Mode == ModeLazy {
		return CodeOK
	}
	for _, site := range v.placement.Sites {
		if !sites[site] {
			return CodeLastCopy
		}
	}
	return CodeOK
}

// siteOf returns a disk's site, empty if it is not known.
func (s *State) siteOf(d DiskID) SiteID {
	if known := s.disks[d]; known != nil {
		return known.Site
	}
	return ""
}

func (o AdmitDisk) wire(c *codec) Op {
	wireDisk(c, &o.Disk)
	wireSite(c, &o.Site)
	return o
}

func (o RemoveDisk) wire(c *codec) Op {
	wireDisk(c, &o.Disk)
	return o
}

func (o Ack) wire(c *codec) Op {
	wireDisk(c, &o.Disk)
	number(c, &o.Seq)
	list(c, &o.Items, MaxAcks, func(c *codec, item *AckItem) {
		c.fixed(item.ID[:])
		c.position(&item.Position)
		c.flag(&item.Complete)
	})
	return o
}

func (o Complete) wire(c *codec) Op {
	wireDisk(c, &o.Disk)
	number(c, &o.Seq)
	c.fixed(o.ID[:])
	c.position(&o.Position)
	return o
}

func (o Release) wire(c *codec) Op {
	wireDisk(c, &o.Disk)
	number(c, &o.Seq)
	c.fixed(o.ID[:])
	c.position(&o.Position)
	return o
}

func (d *disk) wire(c *codec) {
	wireDisk(c, &d.ID)
	wireSite(c, &d.Site)
	number(c, &d.Seq)
	number(c, &d.Renewal)
	number(c, &d.RemovedAt)
}
