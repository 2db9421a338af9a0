package meta

import (
	"cmp"
	"fmt"
	"slices"

	"scstore"
)

// Limits of hand-offs.
const (
	MaxMoveVolumes = 64   // of one hand-off: the disks of a machine
	MaxMoves       = 1024 // intended at once in a group
	MaxDecided     = 4096 // remembered; beyond it the one decided longest ago is forgotten
)

// Outcome says how a hand-off was decided. The first of HandOff, Cancel and
// DropIntent (or Expire) in the log decides, once.
type Outcome uint8

// The outcomes; stored, never renumber.
const (
	OutcomeHandedOff Outcome = 1 // the target has the right to write
	OutcomeCancelled Outcome = 2 // the source has it, under a new fence
	OutcomeDropped   Outcome = 3 // nothing changed; the source has it as before
)

// String returns the outcome's name.
func (o Outcome) String() string {
	switch o {
	case OutcomeHandedOff:
		return "handed off"
	case OutcomeCancelled:
		return "cancelled"
	case OutcomeDropped:
		return "dropped"
	}
	return fmt.Sprintf("outcome %d", uint8(o))
}

// code is the answer to who asked for another outcome.
func (o Outcome) code() Code {
	switch o {
	case OutcomeHandedOff:
		return CodeHandedOff
	case OutcomeCancelled:
		return CodeCancelled
	}
	return CodeDropped
}

// Move is a hand-off that is intended: of volumes of one group, all or none.
type Move struct {
	ID         HandOffID
	From, To   DiskID
	Volumes    []scstore.VolumeID // rising
	DeadlineMs int64
}

// MovedVolume says what a decision did to a volume.
type MovedVolume struct {
	ID    scstore.VolumeID
	Fence scstore.Fence    // from then on
	Start scstore.Position // where the fence before ended; the head, if it did not end
}

// Decision is a hand-off that was decided.
type Decision struct {
	ID       HandOffID
	Outcome  Outcome
	From, To DiskID
	At       uint64        // State.Applied then
	Volumes  []MovedVolume // rising
}

// Intent announces a hand-off. From then on the volumes refuse resizes, snapshots,
// removal and other moves, until the hand-off is decided. Announcing it again with
// a later deadline puts the deadline off. Errors: ErrNotFound (a volume, or the
// target's disk), ErrReadOnly, ErrBusy (From does not hold a volume, or another
// move is under way), ErrExists (the id is another's), ErrNoSpace, and the codes of
// a hand-off that was decided.
type Intent struct {
	Move
	NowMs int64
}

// DropIntent gives a hand-off up before it was begun; it is decided as dropped.
// Errors: ErrNotFound, and the codes of one that was decided otherwise.
type DropIntent struct {
	ID HandOffID
}

// Handed is a volume's part of a hand-off.
type Handed struct {
	ID     scstore.VolumeID
	Fence  scstore.Fence    // of the source
	Parent scstore.Position // the head that Final follows
	Final  scstore.Position // the last position under Fence; the head, if nothing was written since
	Digest scstore.Digest   // of Final's manifest
}

// HandOff commits the last position of each volume, raises its fence and names the
// target as its holder, for all volumes or for none. Any host may propose it again:
// the same id gets the same answer while the decision is remembered (MaxDecided);
// later it finds no intent and changes nothing. Result.Outcome says what was
// decided; Fence and Position are those of the first volume. Errors: ErrFenced,
// ErrInvalid (it does not follow a head, or does not fit the intent, or was
// cancelled or dropped first), ErrNotFound (no intent).
type HandOff struct {
	ID      HandOffID
	To      DiskID
	Volumes []Handed // rising; those of the intent
}

// Cancel ends a hand-off that was begun: the source gets a new fence, so that it
// knows of nothing in flight. Errors: ErrFenced if the hand-off was committed
// first, ErrInvalid if it was dropped, ErrNotFound (no intent).
type Cancel struct {
	ID HandOffID
}

func (Intent) kind() opKind     { return kindIntent }
func (DropIntent) kind() opKind { return kindDropIntent }
func (HandOff) kind() opKind    { return kindHandOff }
func (Cancel) kind() opKind     { return kindCancel }

func (m Move) validate() error {
	if m.From == m.To {
		return fmt.Errorf("move from %q to itself: %w", m.From, scstore.ErrInvalid)
	}
	for _, id := range m.Volumes {
		if err := validateID(id); err != nil {
			return err
		}
	}
	if !rising(m.Volumes, compareBytes[scstore.VolumeID]) {
		return fmt.Errorf("volumes are not in order, or twice: %w", scstore.ErrInvalid)
	}
	return validateAll(m.ID.validate(), m.From.validate(), m.To.validate(), validateMoved(len(m.Volumes)), validateTime(m.DeadlineMs))
}

func validateMoved(n int) error {
	if n == 0 || n > MaxMoveVolumes {
		return fmt.Errorf("move of %d volumes, want 1 to %d: %w", n, MaxMoveVolumes, scstore.ErrInvalid)
	}
	return nil
}

func (o Intent) validate() error {
	return validateAll(o.Move.validate(), validateLease(o.DeadlineMs, o.NowMs))
}

func (o DropIntent) validate() error { return o.ID.validate() }

func (o HandOff) validate() error {
	for _, v := range o.Volumes {
		if err := validateAll(validateID(v.ID), validateFence(v.Fence)); err != nil {
			return err
		}
		if v.Final != (scstore.Position{}) {
			if err := validatePosition(v.Final); err != nil {
				return err
			}
		}
	}
	if !rising(o.Volumes, func(a, b Handed) int { return compareBytes(a.ID, b.ID) }) {
		return fmt.Errorf("volumes are not in order, or twice: %w", scstore.ErrInvalid)
	}
	return validateAll(o.ID.validate(), o.To.validate(), validateMoved(len(o.Volumes)))
}

func (o Cancel) validate() error { return o.ID.validate() }

// answer returns a decision's result for who asks for this outcome.
func (d *Decision) answer(asked Outcome) Result {
	r := Result{Code: CodeOK, Outcome: d.Outcome}
	if d.Outcome != asked {
		r.Code = d.Outcome.code()
	}
	if len(d.Volumes) > 0 {
		r.ID, r.Fence, r.Position = d.Volumes[0].ID, d.Volumes[0].Fence, d.Volumes[0].Start
	}
	return r
}

// decide ends a move, once, and remembers how.
func (s *State) decide(m *Move, outcome Outcome) *Decision {
	d := &Decision{ID: m.ID, Outcome: outcome, From: m.From, To: m.To, At: s.applied}
	for _, id := range m.Volumes {
		v := s.records[id]
		v.intent = HandOffID{}
		d.Volumes = append(d.Volumes, MovedVolume{ID: id, Fence: v.Fence, Start: v.Head})
		s.changed(v)
	}
	delete(s.moves, m.ID)
	if len(s.decided) >= MaxDecided {
		var oldest *Decision
		for _, other := range s.decided {
			if oldest == nil || cmp.Or(cmp.Compare(other.At, oldest.At), compareBytes(other.ID, oldest.ID)) < 0 {
				oldest = other
			}
		}
		delete(s.decided, oldest.ID)
	}
	s.decided[m.ID] = d
	return d
}

func (o Intent) apply(s *State) Result {
	s.tick(o.NowMs)
	if d := s.decided[o.ID]; d != nil {
		return d.answer(0)
	}
	if m := s.moves[o.ID]; m != nil {
		if m.From != o.From || m.To != o.To || !slices.Equal(m.Volumes, o.Volumes) {
			return Result{Code: CodeIDTaken}
		}
		m.DeadlineMs = max(m.DeadlineMs, o.DeadlineMs)
		return Result{Code: CodeOK}
	}
	if _, code := s.admitted(o.To); code != CodeOK {
		return Result{Code: code}
	}
	switch {
	case o.DeadlineMs <= s.clockMs:
		return Result{Code: CodeExpired}
	case len(s.moves) >= MaxMoves:
		return Result{Code: CodeLimit}
	}
	for _, id := range o.Volumes {
		v, code := s.writable(id)
		switch {
		case v == nil:
			return touched(id, code)
		case v.revoked:
			return v.refuse(CodeRevoked)
		case !v.intent.IsZero():
			return v.refuse(CodeMoving)
		case v.Holder != o.From:
			return v.refuse(CodeHeld)
		case !v.hasRoom(o.To) || len(v.tethers) >= MaxTethers || v.Fence >= maxCounter-1:
			return v.refuse(CodeLimit)
		}
	}
	m := o.Move
	m.Volumes = slices.Clone(o.Volumes)
	s.moves[o.ID] = &m
	for _, id := range o.Volumes {
		s.records[id].intent = o.ID
		s.changed(s.records[id])
	}
	return Result{Code: CodeOK}
}

func (o DropIntent) apply(s *State) Result {
	if d := s.decided[o.ID]; d != nil {
		return d.answer(OutcomeDropped)
	}
	m := s.moves[o.ID]
	if m == nil {
		return Result{Code: CodeNoIntent}
	}
	return s.decide(m, OutcomeDropped).answer(OutcomeDropped)
}

func (o HandOff) apply(s *State) Result {
	if d := s.decided[o.ID]; d != nil {
		return d.answer(OutcomeHandedOff)
	}
	m := s.moves[o.ID]
	switch {
	case m == nil:
		return Result{Code: CodeNoIntent}
	case o.To != m.To || len(o.Volumes) != len(m.Volumes):
		return Result{Code: CodeBadMove}
	}
	for i, h := range o.Volumes {
		if h.ID != m.Volumes[i] {
			return Result{Code: CodeBadMove, ID: h.ID}
		}
		v := s.records[h.ID]
		if code := v.checkHanded(h); code != CodeOK {
			return v.refuse(code)
		}
		// What Intent checked may have changed since: replicas came.
		if !v.hasRoom(m.To) || v.Fence >= maxCounter-1 {
			return v.refuse(CodeLimit)
		}
	}
	for _, h := range o.Volumes {
		s.records[h.ID].handOver(h, m.To)
	}
	return s.decide(m, OutcomeHandedOff).answer(OutcomeHandedOff)
}

// checkHanded says whether a volume's part of a hand-off follows its head.
func (v *volume) checkHanded(h Handed) Code {
	if code := v.checkFence(h.Fence); code != CodeOK {
		return code
	}
	if h.Final == v.Head {
		if h.Parent != v.Parent || h.Digest != v.Digest {
			return CodeBadParent
		}
		return CodeOK
	}
	if h.Parent != v.Head || h.Final.Fence != h.Fence || h.Final.Compare(v.Head) <= 0 {
		return CodeBadParent
	}
	return CodeOK
}

// handOver commits the last position and grants the next fence.
func (v *volume) handOver(h Handed, to DiskID) {
	if h.Final != v.Head {
		v.append(Point{Position: h.Final, Parent: h.Parent, Digest: h.Digest})
	}
	v.grant(to, v.Head)
	v.tether(to)
}

// tether keeps the head for a new holder that does not have all of it yet.
func (v *volume) tether(to DiskID) {
	r := v.replicaOf(to)
	switch {
	case v.Head == scstore.Position{} || r.holds(v.Head):
		v.tethers = nil
	case len(v.tethers) == 0 || v.tethers[len(v.tethers)-1] != v.Head:
		v.tethers = append(v.tethers, v.Head)
		r.Partial = v.Head
	default:
		r.Partial = v.Head
	}
}

func (o Cancel) apply(s *State) Result {
	if d := s.decided[o.ID]; d != nil {
		if s.planted == BugBothWin && d.Outcome == OutcomeHandedOff {
			for _, moved := range d.Volumes {
				v := s.records[moved.ID]
				v.Fence--
				v.grant(d.From, v.Head)
				s.changed(v)
			}
			return d.answer(OutcomeHandedOff)
		}
		return d.answer(OutcomeCancelled)
	}
	m := s.moves[o.ID]
	if m == nil {
		return Result{Code: CodeNoIntent}
	}
	for _, id := range m.Volumes {
		if v := s.records[id]; v.Fence >= maxCounter-1 {
			return v.refuse(CodeLimit)
		}
	}
	for _, id := range m.Volumes {
		v := s.records[id]
		v.grant(m.From, v.Head)
	}
	return s.decide(m, OutcomeCancelled).answer(OutcomeCancelled)
}

// Decided returns how a hand-off was decided, while that is remembered.
func (s *State) Decided(h HandOffID) (Decision, bool) {
	d := s.decided[h]
	if d == nil {
		return Decision{}, false
	}
	decision := *d
	decision.Volumes = slices.Clone(d.Volumes)
	return decision, true
}

// Moves returns the hand-offs that are intended and not decided, by id.
func (s *State) Moves() []Move {
	var list []Move
	for _, h := range sortedBy(s.moves, compareBytes[HandOffID]) {
		m := *s.moves[h]
		m.Volumes = slices.Clone(m.Volumes)
		list = append(list, m)
	}
	return list
}

func (m *Move) wire(c *codec) {
	c.fixed(m.ID[:])
	wireDisk(c, &m.From)
	wireDisk(c, &m.To)
	list(c, &m.Volumes, MaxMoveVolumes, wireVolumeID)
	number(c, &m.DeadlineMs)
}

func (o Intent) wire(c *codec) Op {
	o.Move.wire(c)
	number(c, &o.NowMs)
	return o
}

func (o DropIntent) wire(c *codec) Op {
	c.fixed(o.ID[:])
	return o
}

func (o HandOff) wire(c *codec) Op {
	c.fixed(o.ID[:])
	wireDisk(c, &o.To)
	list(c, &o.Volumes, MaxMoveVolumes, func(c *codec, h *Handed) {
		c.fixed(h.ID[:])
		number(c, &h.Fence)
		c.position(&h.Parent)
		c.position(&h.Final)
		c.fixed(h.Digest[:])
	})
	c.absent() // where the ports of the machine are from now on
	return o
}

func (o Cancel) wire(c *codec) Op {
	c.fixed(o.ID[:])
	return o
}

func (d *Decision) wire(c *codec) {
	c.fixed(d.ID[:])
	octet(c, &d.Outcome)
	wireDisk(c, &d.From)
	wireDisk(c, &d.To)
	number(c, &d.At)
	list(c, &d.Volumes, MaxMoveVolumes, func(c *codec, m *MovedVolume) {
		c.fixed(m.ID[:])
		number(c, &m.Fence)
		c.position(&m.Start)
	})
}
