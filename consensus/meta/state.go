package meta

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"strings"

	"scstore"
	"scstore/internal/invariant"
)

// MaxRecords is the most volumes, images and tombstones that one state holds: at a
// few hundred bytes each, a state snapshot stays below 256 MiB at the worst and
// near 25 MiB with ordinary names.
const MaxRecords = 1 << 17

// Kind says what a record is.
type Kind uint8

// The kinds of records; stored, never renumber.
const (
	KindVolume Kind = 1 // writable, one history
	KindImage  Kind = 2 // immutable, frozen at its head
)

// String returns "volume" or "image".
func (k Kind) String() string {
	switch k {
	case KindVolume:
		return "volume"
	case KindImage:
		return "image"
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// Life says whether a record is in use.
type Life uint8

// The lives of a record; stored, never renumber.
const (
	Live      Life = 1 // it has a name
	Tombstone Life = 2 // removed; its data may not be gone yet
)

// Record is what is agreed about one volume or image.
type Record struct {
	ID           scstore.VolumeID
	Kind         Kind
	Life         Life
	Name         string // empty for a tombstone
	SizeBytes    int64
	Base         scstore.VolumeID // zero for none
	BasePosition scstore.Position
	Fence        scstore.Fence    // the highest granted; 0 before the first
	Holder       string           // disk id of the host that was granted Fence
	Head         scstore.Position // zero before the first commit
	Parent       scstore.Position // the head before
	Digest       scstore.Digest   // of the head's manifest; of an image's content
	CreatedAtMs  int64            // milliseconds since 1970
}

// State is the replicated state. It is not safe for concurrent use; who holds it
// orders calls (package consensus).
type State struct {
	applied  uint64 // commands applied, refused ones included
	records  map[scstore.VolumeID]*Record
	sessions map[ClientID]*session

	// Derived from the records.
	names   map[string]scstore.VolumeID
	folders map[string]int           // names below each folder
	clones  map[scstore.VolumeID]int // records based on each image, tombstones included
}

// New returns the empty state.
func New() *State {
	return &State{
		records:  map[scstore.VolumeID]*Record{},
		sessions: map[ClientID]*session{},
		names:    map[string]scstore.VolumeID{},
		folders:  map[string]int{},
		clones:   map[scstore.VolumeID]int{},
	}
}

// Applied returns how many commands made this state, refused ones included: its
// place in the log.
func (s *State) Applied() uint64 { return s.applied }

// Lookup returns the live record with this name.
func (s *State) Lookup(name string) (Record, bool) {
	id, ok := s.names[name]
	if !ok {
		return Record{}, false
	}
	return *s.records[id], true
}

// Get returns the record with this id, which may be a tombstone.
func (s *State) Get(id scstore.VolumeID) (Record, bool) {
	r, ok := s.records[id]
	if !ok {
		return Record{}, false
	}
	return *r, true
}

// List returns the live records whose name is folder or lies below it, by name;
// all of them for "".
func (s *State) List(folder string) []Record {
	var list []Record
	for name, id := range s.names {
		if folder == "" || name == folder || strings.HasPrefix(name, folder+"/") {
			list = append(list, *s.records[id])
		}
	}
	slices.SortFunc(list, func(a, b Record) int { return strings.Compare(a.Name, b.Name) })
	return list
}

// Tombstones returns the removed records that are not forgotten yet, by id: what
// is left to delete.
func (s *State) Tombstones() []Record {
	var list []Record
	for _, r := range s.records {
		if r.Life == Tombstone {
			list = append(list, *r)
		}
	}
	slices.SortFunc(list, compareIDs)
	return list
}

// Clones returns how many records are based on an image, tombstones included.
func (s *State) Clones(image scstore.VolumeID) int { return s.clones[image] }

func compareIDs(a, b Record) int { return bytes.Compare(a.ID[:], b.ID[:]) }

// live returns the record with this id if it is not a tombstone.
func (s *State) live(id scstore.VolumeID) *Record {
	if r := s.records[id]; r != nil && r.Life == Live {
		return r
	}
	return nil
}

// checkName says whether a new record could take this name (I1, I2).
// Precondition: ValidateName(name) returned nil.
func (s *State) checkName(name string) Code {
	if _, taken := s.names[name]; taken {
		return CodeNameTaken
	}
	if s.folders[name] > 0 {
		return CodeNameIsFolder
	}
	for folder := range parents(name) {
		if _, taken := s.names[folder]; taken {
			return CodeParentIsVolume
		}
	}
	return CodeOK
}

// link enters a record's name.
// Precondition: checkName(r.Name) returned CodeOK.
func (s *State) link(r *Record) {
	s.names[r.Name] = r.ID
	for folder := range parents(r.Name) {
		s.folders[folder]++
	}
}

// unlink takes a record's name out of the namespace and leaves it in the record.
func (s *State) unlink(r *Record) {
	delete(s.names, r.Name)
	for folder := range parents(r.Name) {
		decrement(s.folders, folder)
	}
}

// insert adds a record that keeps the invariants.
func (s *State) insert(r *Record) {
	s.records[r.ID] = r
	if r.Life == Live {
		s.link(r)
	}
	if !r.Base.IsZero() {
		s.clones[r.Base]++
	}
}

func decrement[K cmp.Ordered | scstore.VolumeID](counts map[K]int, key K) {
	counts[key]--
	invariant.Check(counts[key] >= 0, "count of %v fell below zero", key)
	if counts[key] == 0 {
		delete(counts, key)
	}
}

// checkRecord says what is wrong with a record by itself and with its base.
func (s *State) checkRecord(r *Record) error {
	switch {
	case r.ID.IsZero():
		return fmt.Errorf("zero id: %w", scstore.ErrCorrupt)
	case r.Kind != KindVolume && r.Kind != KindImage:
		return fmt.Errorf("%v: %v: %w", r.ID, r.Kind, scstore.ErrCorrupt)
	case r.Life != Live && r.Life != Tombstone:
		return fmt.Errorf("%v: life %d: %w", r.ID, r.Life, scstore.ErrCorrupt)
	case (r.Life == Live) != (r.Name != ""):
		return fmt.Errorf("%v: name %q does not fit life %d: %w", r.ID, r.Name, r.Life, scstore.ErrCorrupt)
	case r.Name != "" && ValidateName(r.Name) != nil:
		return fmt.Errorf("%v: bad name %q: %w", r.ID, r.Name, scstore.ErrCorrupt)
	case validateSize(r.SizeBytes) != nil || r.CreatedAtMs < 0 || len(r.Holder) > MaxHolderBytes:
		return fmt.Errorf("%v: size, time or holder out of range: %w", r.ID, scstore.ErrCorrupt)
	case r.Fence > maxCounter || r.Head.Epoch > maxCounter || r.Head.Fence > r.Fence:
		return fmt.Errorf("%v: fence %d, head %v: %w", r.ID, r.Fence, r.Head, scstore.ErrCorrupt)
	case r.Head == scstore.Position{} && r.Parent != r.Head, r.Head != scstore.Position{} && r.Parent.Compare(r.Head) >= 0:
		return fmt.Errorf("%v: head %v with parent %v: %w", r.ID, r.Head, r.Parent, scstore.ErrCorrupt)
	case r.Kind == KindImage && (r.Head.Epoch == 0 || r.Fence != r.Head.Fence || r.Holder != "" || !r.Base.IsZero()):
		return fmt.Errorf("%v: an image with a volume's fields: %w", r.ID, scstore.ErrCorrupt)
	case r.Base.IsZero() && r.BasePosition != scstore.Position{}:
		return fmt.Errorf("%v: base position without a base: %w", r.ID, scstore.ErrCorrupt)
	case !r.Base.IsZero() && s.checkBase(r.Base, r.BasePosition, r.SizeBytes) != CodeOK:
		return fmt.Errorf("%v: base %v: %w", r.ID, r.Base, scstore.ErrCorrupt)
	}
	return nil
}

// checkBase says whether a volume of this size can have this base (I3).
func (s *State) checkBase(id scstore.VolumeID, at scstore.Position, sizeBytes int64) Code {
	base := s.live(id)
	if base == nil || base.Kind != KindImage || base.Head != at || base.SizeBytes > sizeBytes {
		return CodeBadBase
	}
	return CodeOK
}

// verify checks the whole state; it costs as much as writing it.
func (s *State) verify() error {
	for id, r := range s.records {
		if err := s.checkRecord(r); err != nil {
			return err
		}
		if r.Life == Live && s.names[r.Name] != id {
			return fmt.Errorf("%v: name %q is not in the namespace: %w", id, r.Name, scstore.ErrCorrupt)
		}
	}
	for name, id := range s.names {
		if r := s.live(id); r == nil || r.Name != name {
			return fmt.Errorf("name %q names %v: %w", name, id, scstore.ErrCorrupt)
		}
		if s.folders[name] > 0 {
			return fmt.Errorf("name %q is a folder too: %w", name, scstore.ErrCorrupt)
		}
	}
	return nil
}
