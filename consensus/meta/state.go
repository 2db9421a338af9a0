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

// Limits of one state. 100,000 volumes with ordinary names and histories of two
// replicas make a state snapshot of some 200 MiB.
const (
	MaxRecords = 1 << 17 // volumes, images, branches and tombstones
	MaxNames   = 1 << 17 // of the namespace

	// MaxRecordsBytes is the encoded length of all records from which on none may
	// grow but by commits and reports of the head, which add a bounded history.
	MaxRecordsBytes = 256 << 20
)

// Kind says what a record is.
type Kind uint8

// The kinds of records; stored, never renumber.
const (
	KindVolume Kind = 1 // writable, one history
	KindImage  Kind = 2 // immutable, frozen at its head
	KindBranch Kind = 3 // immutable: what an owner wrote that was fenced out, on top of its base at the fork
)

// String returns "volume", "image" or "branch".
func (k Kind) String() string {
	switch k {
	case KindVolume:
		return "volume"
	case KindImage:
		return "image"
	case KindBranch:
		return "branch"
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// Life says whether a record is in use.
type Life uint8

// The lives of a record; stored, never renumber.
const (
	Live      Life = 1 // in use
	Tombstone Life = 2 // removed; its data may not be gone yet
	Trash     Life = 3 // a branch of a volume that was removed meanwhile: kept, not shown
)

// Phase says where the right to write a volume stands.
type Phase uint8

// The phases of a volume; shown, not stored.
const (
	PhaseNormal   Phase = 1 // its holder writes, if it has one
	PhaseMoving   Phase = 2 // as normal, and a hand-off is intended
	PhaseTethered Phase = 3 // handed over, the data are not all at the holder yet
	PhaseRevoked  Phase = 4 // nobody writes until Promote
	PhaseFrozen   Phase = 5 // on its way to another group: commits wait
)

// String returns the phase's name.
func (p Phase) String() string {
	switch p {
	case PhaseNormal:
		return "normal"
	case PhaseMoving:
		return "moving"
	case PhaseTethered:
		return "tethered"
	case PhaseRevoked:
		return "revoked"
	case PhaseFrozen:
		return "frozen"
	}
	return fmt.Sprintf("phase %d", uint8(p))
}

// Record is what is agreed about one volume, image or branch.
type Record struct {
	ID           scstore.VolumeID
	Kind         Kind
	Life         Life
	Phase        Phase
	Name         string // empty without one, and where names are in another state
	SizeBytes    int64
	Base         scstore.VolumeID // zero for none; a branch's volume
	BasePosition scstore.Position // a branch's fork
	Fence        scstore.Fence    // the highest granted; 0 before the first
	Holder       DiskID           // who was granted Fence; empty for nobody
	Head         scstore.Position // zero before the first commit
	Parent       scstore.Position // the head before
	Digest       scstore.Digest   // of the head's manifest; of an image's content
	CreatedAtMs  int64            // milliseconds since 1970
	DeltaBytes   int64            // of a branch: what it has beyond the fork, as reported
}

// State is the replicated state of one group. It is not safe for concurrent use;
// who holds it orders calls (package consensus).
type State struct {
	group    GroupID
	applied  uint64 // commands applied, refused ones included
	clockMs  int64  // the latest of the proposers' clocks that commands brought
	sessions map[ClientID]*session

	// Cluster and names.
	cluster Cluster
	sites   map[SiteID]*Site
	hosts   map[DiskID]*Host
	tokens  map[TokenHash]*Token
	members map[GroupID]*members
	entries map[string]*Entry

	// Volumes.
	disks    map[DiskID]*disk
	moves    map[HandOffID]*Move
	decided  map[HandOffID]*Decision
	records  map[scstore.VolumeID]*volume
	forwards map[scstore.VolumeID]*Forwarding

	// Derived.
	names   map[scstore.VolumeID]string // of each volume that has one
	folders map[string]int              // names below each folder
	bytes   int                         // encoded length of the records

	planted Bug // zero but in tests of the tests
}

// Bug is a mistake that a test plants to see that the checks find it.
type Bug uint8

// The bugs that tests plant; none in a product.
const (
	BugNone           Bug = iota
	BugReusedEpoch        // an epoch number is given twice
	BugRevokedCommits     // a commit under a revoked fence is taken
	BugBothWin            // Cancel wins after HandOff
	BugDroppedPin         // a pin is confirmed and not kept
)

// Plant puts a bug into the state, for tests of the tests: this package's and those
// of the simulated world. It is not part of what is stored or sent.
func (s *State) Plant(b Bug) { s.planted = b }

// New returns the empty state of a cluster of one host.
func New() *State { return NewGroup(GroupAll) }

// NewGroup returns the empty state of a group.
func NewGroup(g GroupID) *State {
	return &State{
		group:    g,
		sessions: map[ClientID]*session{},
		sites:    map[SiteID]*Site{},
		hosts:    map[DiskID]*Host{},
		tokens:   map[TokenHash]*Token{},
		members:  map[GroupID]*members{},
		entries:  map[string]*Entry{},
		disks:    map[DiskID]*disk{},
		moves:    map[HandOffID]*Move{},
		decided:  map[HandOffID]*Decision{},
		records:  map[scstore.VolumeID]*volume{},
		forwards: map[scstore.VolumeID]*Forwarding{},
		names:    map[scstore.VolumeID]string{},
		folders:  map[string]int{},
	}
}

// Group returns the group whose state this is.
func (s *State) Group() GroupID { return s.group }

// Applied returns how many commands made this state, refused ones included: its
// place in the log.
func (s *State) Applied() uint64 { return s.applied }

// ClockMs returns the latest proposer's clock that a command brought, milliseconds
// since 1970: the clock that deadlines are compared with.
func (s *State) ClockMs() int64 { return s.clockMs }

// Apply runs one command and returns its outcome, which depends on the state and
// the command alone. A refused command changes no record.
//
// step W7 (CommitEpoch)
func (s *State) Apply(c Command) Result {
	s.applied++
	result := s.applyOnce(c)
	if invariant.Enabled && s.planted == BugNone {
		err := s.verify()
		invariant.Check(err == nil, "state after %+v: %v", c, err)
	}
	return result
}

// applyOnce runs the command unless its session has run it before (I7).
func (s *State) applyOnce(c Command) Result {
	if c.Validate() != nil {
		return Result{Code: CodeInvalid}
	}
	if _, opens := c.Op.(OpenSession); opens {
		s.openSession(c.ID.Client)
		return Result{Code: CodeOK}
	}
	if !s.group.takes(ops[c.Op.kind()].scope) {
		return Result{Code: CodeWrongGroup}
	}
	if c.ID.IsZero() {
		return c.Op.apply(s)
	}
	ses := s.sessions[c.ID.Client]
	if ses == nil {
		return Result{Code: CodeSessionExpired}
	}
	ses.lastUsed = s.applied
	if result, known := ses.result(c.ID.Seq); known {
		return result
	}
	result := c.Op.apply(s)
	ses.record(c.ID.Seq, result)
	return result
}

// record returns a record as others see it.
func (s *State) record(v *volume) Record {
	r := v.Record
	r.Name, r.Phase = s.names[v.ID], v.phase()
	return r
}

// Lookup returns the record with this name, where names and volumes are in one
// state. See Resolve.
func (s *State) Lookup(name string) (Record, bool) {
	if e := s.entries[name]; e != nil {
		if v := s.records[e.ID]; v != nil {
			return s.record(v), true
		}
	}
	return Record{}, false
}

// Get returns the record with this id, which may be a tombstone.
func (s *State) Get(id scstore.VolumeID) (Record, bool) {
	v := s.records[id]
	if v == nil {
		return Record{}, false
	}
	return s.record(v), true
}

// List returns the records whose name is folder or lies below it, by name; all of
// them that have a name for "".
func (s *State) List(folder string) []Record {
	var list []Record
	for name, e := range s.entries {
		if v := s.records[e.ID]; v != nil && within(folder, name) {
			list = append(list, s.record(v))
		}
	}
	slices.SortFunc(list, func(a, b Record) int { return strings.Compare(a.Name, b.Name) })
	return list
}

// Records returns all records that are not tombstones, by id, with or without a
// name.
func (s *State) Records() []Record {
	return s.filter(func(v *volume) bool { return v.Life != Tombstone })
}

// Tombstones returns the removed records that are not forgotten yet, by id: what
// is left to delete.
func (s *State) Tombstones() []Record {
	return s.filter(func(v *volume) bool { return v.Life == Tombstone })
}

// Branches returns the branches of a volume, by id. Their names are the volume's
// with the suffix that BranchSuffix gives.
func (s *State) Branches(id scstore.VolumeID) []Record {
	return s.filter(func(v *volume) bool { return v.Kind == KindBranch && v.Base == id })
}

func (s *State) filter(match func(*volume) bool) []Record {
	var list []Record
	for _, v := range s.records {
		if match(v) {
			list = append(list, s.record(v))
		}
	}
	slices.SortFunc(list, func(a, b Record) int { return bytes.Compare(a.ID[:], b.ID[:]) })
	return list
}

// Clones returns how many volumes are based on a record, tombstones and branches
// included.
func (s *State) Clones(id scstore.VolumeID) int {
	if v := s.records[id]; v != nil {
		return len(v.refs)
	}
	return 0
}

// tick takes a proposer's clock.
func (s *State) tick(nowMs int64) { s.clockMs = max(s.clockMs, nowMs) }

func decrement[K cmp.Ordered](counts map[K]int, key K) {
	counts[key]--
	invariant.Check(counts[key] >= 0, "count of %v fell below zero", key)
	if counts[key] == 0 {
		delete(counts, key)
	}
}
