package handoff

import (
	"slices"
	"time"
)

// TargetPhase is how far a target is.
type TargetPhase uint8

// The phases of a target, in order; the last two are ends.
const (
	Readying TargetPhase = iota // catching up, reserving
	Held                        // the export is open and holds writes
	Released                    // RELEASE is here
	Owner                       // the entry was applied
	Refused                     // cancelled, dropped or given up
)

// String names the phase.
func (p TargetPhase) String() string {
	return [...]string{"readying", "held", "released", "owner", "refused"}[p]
}

// Target is the side of the host that is to own. Not safe for concurrent use.
type Target struct {
	id     ID
	rtt    time.Duration
	phase  TargetPhase
	finals []Final
	again  time.Duration
}

// NewTarget begins on PREPARE. rtt is the round trip to the source.
func NewTarget(id ID, rtt time.Duration) (*Target, []Action) {
	return &Target{id: id, rtt: rtt}, []Action{Prepare}
}

// ID returns the hand-off's id.
func (t *Target) ID() ID { return t.id }

// Phase returns how far it is.
func (t *Target) Phase() TargetPhase { return t.phase }

// Acknowledges reports whether requests of clients may be answered: I4.
func (t *Target) Acknowledges() bool { return t.phase == Owner }

// Finals returns RELEASE's, nil before it came.
func (t *Target) Finals() []Final { return t.finals }

// Prepared says that the host has applied the log up to now, reserved the space and
// holds the export. Called again (PREPARE came twice) it answers again.
func (t *Target) Prepared() []Action {
	switch t.phase {
	case Readying:
		t.phase = Held
		return []Action{SendReady}
	case Held, Released:
		return []Action{SendReady}
	case Owner, Refused:
	}
	return nil
}

// Release says that RELEASE came. The log decides whether it was in time.
func (t *Target) Release(finals []Final, now time.Duration) []Action {
	if t.phase != Held {
		return nil
	}
	t.phase, t.finals, t.again = Released, finals, now+interval(t.rtt)
	return []Action{ProposeHandOff}
}

// Applied says what the target's own state machine applied, with the finals of a
// HandOff's entry. A RELEASE that says something else than the entry is as good as
// none.
func (t *Target) Applied(d Decision, finals []Final) []Action {
	if t.phase >= Owner {
		return nil
	}
	t.again = 0
	switch d {
	case HandedOff:
		t.phase = Owner
		if slices.Equal(finals, t.finals) {
			return []Action{Own}
		}
		t.finals = finals
		return []Action{OwnBlind}
	case Cancelled, Dropped:
		t.phase = Refused
		return []Action{LetGo}
	case Undecided:
	}
	return nil
}

// Failed says that the host can't prepare. Once RELEASE is here only the log ends it.
func (t *Target) Failed() []Action {
	if t.phase > Held {
		return nil
	}
	t.phase = Refused
	return []Action{LetGo}
}

// Tick is called when Due has come.
func (t *Target) Tick(now time.Duration) []Action {
	if t.again == 0 || now < t.again {
		return nil
	}
	t.again = now + interval(t.rtt)
	return []Action{ProposeHandOff}
}

// Due returns when Tick wants to be called, 0 for never.
func (t *Target) Due() time.Duration { return t.again }
