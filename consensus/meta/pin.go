package meta

import (
	"cmp"
	"fmt"
	"slices"

	"scstore"
)

// MaxLeaseMs is how far ahead of the proposer's clock a deadline may be: a week.
const MaxLeaseMs = 7 * 24 * 3600 * 1000

// PutPin keeps a position alive until the deadline, or renews a pin: the same id,
// kind, position and disk with a later deadline. The position is one that something
// keeps alive already. Receivers of one volume share a jump's position by pinning
// the same. Applying it twice does no harm. Errors: ErrNotFound, ErrInvalid (nothing
// keeps the position, or the deadline has passed), ErrBusy (no disk holds all of the
// position, see Snapshot), ErrExists (the id is another pin's), ErrNoSpace.
type PutPin struct {
	ID    scstore.VolumeID
	Pin   Pin
	NowMs int64
}

// DropPin ends a pin; one that is not there is no error. Errors: ErrNotFound (the
// volume).
type DropPin struct {
	ID  scstore.VolumeID
	Pin PinID
}

// Expire brings a proposer's clock and ends what is past its deadline: pins,
// tokens, and intents, which are decided as dropped. Deadlines pass by this command
// alone. Result.Number is how many ended.
type Expire struct {
	NowMs int64
}

func (PutPin) kind() opKind  { return kindPutPin }
func (DropPin) kind() opKind { return kindDropPin }
func (Expire) kind() opKind  { return kindExpire }

func (o PutPin) validate() error {
	if o.Pin.ID == (PinID{}) || o.Pin.Kind != PinRead && o.Pin.Kind != PinJump {
		return fmt.Errorf("pin of kind %d: %w", o.Pin.Kind, scstore.ErrInvalid)
	}
	return validateAll(validateID(o.ID), validatePosition(o.Pin.Position), o.Pin.Disk.validate(), validateLease(o.Pin.DeadlineMs, o.NowMs))
}

// validateLease checks a deadline against the proposer's clock.
func validateLease(deadlineMs, nowMs int64) error {
	if nowMs < 0 || deadlineMs < nowMs || deadlineMs-nowMs > MaxLeaseMs {
		return fmt.Errorf("deadline %d ms after now, want 0 to %d: %w", deadlineMs-nowMs, MaxLeaseMs, scstore.ErrInvalid)
	}
	return nil
}

func (o DropPin) validate() error { return validateID(o.ID) }

func (o Expire) validate() error { return validateTime(o.NowMs) }

func (o PutPin) apply(s *State) Result {
	s.tick(o.NowMs)
	v, refused := s.usable(o.ID)
	if v == nil {
		return refused
	}
	if o.Pin.DeadlineMs <= s.clockMs {
		return v.refuse(CodeExpired)
	}
	known, i := find(v.pins, o.Pin.ID, comparePin)
	if known != nil {
		renewed := o.Pin
		renewed.DeadlineMs = max(known.DeadlineMs, o.Pin.DeadlineMs)
		same := *known
		same.DeadlineMs = renewed.DeadlineMs
		if same != renewed {
			return v.refuse(CodeIDTaken)
		}
		*known = renewed
		return Result{Code: CodeOK, ID: o.ID, Position: o.Pin.Position}
	}
	switch {
	case s.removed(o.Pin.Disk):
		return v.refuse(CodeDiskRemoved)
	case !v.isRoot(o.Pin.Position):
		return v.refuse(CodeNotKept)
	case !v.completeAnywhere(o.Pin.Position):
		return v.refuse(CodeIncomplete)
	case len(v.pins) >= MaxPins || s.full():
		return v.refuse(CodeLimit)
	}
	if s.planted != BugDroppedPin {
		v.pins = slices.Insert(v.pins, i, o.Pin)
	}
	s.changed(v)
	return Result{Code: CodeOK, ID: o.ID, Position: o.Pin.Position}
}

func (o DropPin) apply(s *State) Result {
	v, refused := s.settled(o.ID)
	if v == nil {
		return refused
	}
	if p, i := find(v.pins, o.Pin, comparePin); p != nil {
		v.pins = slices.Delete(v.pins, i, i+1)
		s.changed(v)
	}
	return Result{Code: CodeOK, ID: o.ID}
}

func (o Expire) apply(s *State) Result {
	s.tick(o.NowMs)
	ended := 0
	for hash, t := range s.tokens {
		if t.ExpiresAtMs <= s.clockMs {
			delete(s.tokens, hash)
			ended++
		}
	}
	for _, h := range sortedBy(s.moves, compareBytes[HandOffID]) {
		if m := s.moves[h]; m.DeadlineMs <= s.clockMs {
			s.decide(m, OutcomeDropped)
			ended++
		}
	}
	for _, v := range s.records {
		before := len(v.pins)
		v.pins = slices.DeleteFunc(v.pins, func(p Pin) bool { return p.DeadlineMs <= s.clockMs })
		if len(v.pins) < before {
			ended += before - len(v.pins)
			s.changed(v)
		}
	}
	return Result{Code: CodeOK, Number: uint64(ended)}
}

// NextDeadline returns the earliest deadline that Expire ends something at,
// milliseconds since 1970; ok is false if there is none.
func (s *State) NextDeadline() (ms int64, ok bool) {
	see := func(deadline int64) {
		if !ok || deadline < ms {
			ms, ok = deadline, true
		}
	}
	for _, t := range s.tokens {
		see(t.ExpiresAtMs)
	}
	for _, m := range s.moves {
		see(m.DeadlineMs)
	}
	for _, v := range s.records {
		for i := range v.pins {
			see(v.pins[i].DeadlineMs)
		}
	}
	return ms, ok
}

// Pins returns a volume's pins by id.
func (s *State) Pins(id scstore.VolumeID) []Pin {
	if v := s.records[id]; v != nil {
		return slices.Clone(v.pins)
	}
	return nil
}

func (o PutPin) wire(c *codec) Op {
	c.fixed(o.ID[:])
	o.Pin.wire(c)
	number(c, &o.NowMs)
	return o
}

func (p *Pin) wire(c *codec) {
	c.fixed(p.ID[:])
	octet(c, &p.Kind)
	c.position(&p.Position)
	wireDisk(c, &p.Disk)
	number(c, &p.DeadlineMs)
}

func (o DropPin) wire(c *codec) Op {
	c.fixed(o.ID[:])
	c.fixed(o.Pin[:])
	return o
}

func (o Expire) wire(c *codec) Op {
	number(c, &o.NowMs)
	return o
}

func compareRoots(a, b Root) int {
	return cmp.Or(a.Position.Compare(b.Position), cmp.Compare(a.Kind, b.Kind))
}
