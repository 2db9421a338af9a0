package handoff

import (
	"fmt"
	"time"

	"scstore"
)

// Phase is how far a source is.
type Phase uint8

// The phases of a source, in order; the last four are ends.
const (
	Preparing Phase = iota // the intent is proposed, the target gets ready
	Shrinking              // the open epoch is made small
	Draining               // what was read from the clients is finished
	Sealing                // the last epoch becomes durable
	Doubt                  // RELEASE or HandOff have left
	Gone                   // the target owns
	Kept                   // cancelled: owns under the next fence
	Aborted                // taken back or dropped: owns under the old fence
)

// String names the phase.
func (p Phase) String() string {
	return [...]string{"preparing", "shrinking", "draining", "sealing", "in doubt", "gone", "kept", "aborted"}[p]
}

// Source is the owner's side. Times are of any one clock that does not go back; it is
// not safe for concurrent use.
type Source struct {
	id     ID
	rtt    time.Duration
	phase  Phase
	since  time.Duration // begin of the phase
	finals []Final
	rounds int
	intent bool          // the intent was applied
	cancel bool          // Cancel was proposed
	again  time.Duration // when to propose again; 0 for never
}

// NewSource begins a hand-off. rtt is the round trip to the target.
func NewSource(id ID, rtt, now time.Duration) (*Source, []Action) {
	return &Source{id: id, rtt: rtt, since: now, again: now + interval(rtt)}, []Action{ProposeIntent}
}

// Restarted is the source of a process that found the draining mark of a hand-off:
// it can't know what left before, so it is in doubt, and asks for Cancel.
func Restarted(id ID, finals []Final, rtt, now time.Duration) (*Source, []Action) {
	s := &Source{id: id, rtt: rtt, phase: Doubt, since: now, finals: finals, cancel: true}
	s.again = now + interval(rtt)
	return s, []Action{ProposeCancel}
}

// ID returns the hand-off's id.
func (s *Source) ID() ID { return s.id }

// Phase returns how far it is.
func (s *Source) Phase() Phase { return s.phase }

// Finals returns where the volumes' histories end, once they are sealed.
func (s *Source) Finals() []Final { return s.finals }

// Acknowledges reports whether requests of clients may be answered: I1. Those that
// were read before Drain are part of Draining.
func (s *Source) Acknowledges() bool {
	return s.phase <= Draining || s.phase == Kept || s.phase == Aborted
}

// Ended reports whether nothing is left to do.
func (s *Source) Ended() bool { return s.phase >= Gone }

func (s *Source) enter(p Phase, now time.Duration) {
	s.phase, s.since, s.again = p, now, 0
}

// Intended says that the intent was applied.
func (s *Source) Intended() []Action {
	if s.phase != Preparing || s.intent {
		return nil
	}
	s.intent = true
	return []Action{AskToPrepare}
}

// TargetReady says that the target is prepared.
func (s *Source) TargetReady(now time.Duration) []Action {
	if s.phase != Preparing {
		return nil
	}
	s.enter(Shrinking, now)
	return []Action{SealRound}
}

// Rounded says that a round of flush and seal is over, and how much was written
// meanwhile.
func (s *Source) Rounded(openBytes int64, now time.Duration) []Action {
	if s.phase != Shrinking {
		return nil
	}
	if s.rounds++; openBytes > FreezeBytes && s.rounds < MaxRounds {
		return []Action{SealRound}
	}
	s.enter(Draining, now)
	return []Action{Drain}
}

// Drained says that every request that was read has its answer: the last of them is
// the last acknowledgement.
func (s *Source) Drained(now time.Duration) []Action {
	if s.phase != Draining {
		return nil
	}
	since := s.since // the guest waits since then
	s.enter(Sealing, now)
	s.since = since
	return []Action{SealFinal}
}

// Sealed says that the last epochs and the draining mark are durable: I2.
func (s *Source) Sealed(finals []Final, now time.Duration) []Action {
	if s.phase != Sealing {
		return nil
	}
	s.finals = finals
	s.enter(Doubt, now)
	s.again = now + interval(s.rtt)
	return []Action{SendRelease, ProposeHandOff}
}

// Failed says that a step can't be done. Before anything has left, the hand-off is
// taken back; in doubt it changes nothing (I3).
func (s *Source) Failed(now time.Duration) []Action {
	switch s.phase {
	case Preparing, Shrinking:
		s.enter(Aborted, now)
		return []Action{ProposeDrop}
	case Draining, Sealing:
		s.enter(Aborted, now)
		return []Action{Resume, ProposeDrop}
	case Doubt, Gone, Kept, Aborted:
	}
	return nil
}

// Applied says what the source's own state machine applied: the only thing that ends
// doubt.
func (s *Source) Applied(d Decision, now time.Duration) []Action {
	switch {
	case s.Ended():
	case d == HandedOff:
		s.enter(Gone, now)
		return []Action{GiveUp}
	case d == Cancelled:
		s.enter(Kept, now)
		return []Action{ServeNext}
	case d == Dropped && s.phase < Doubt: // by another host's hand
		return s.Failed(now)
	case d == Dropped: // its time was over, or its fence or the target's disk is gone
		s.enter(Aborted, now)
		return []Action{Resume}
	}
	return nil
}

// Tick is called when Due has come.
func (s *Source) Tick(now time.Duration) []Action {
	due := s.Due()
	if due == 0 || now < due {
		return nil
	}
	s.again = now + interval(s.rtt)
	switch {
	case s.phase == Preparing && now-s.since < PrepareTimeout:
		if s.intent {
			return []Action{AskToPrepare}
		}
		return []Action{ProposeIntent}
	case s.phase != Doubt:
		return s.Failed(now)
	case s.cancel || now-s.since >= patience(s.rtt):
		s.cancel = true
		return []Action{ProposeCancel}
	}
	return []Action{SendRelease, ProposeHandOff}
}

// Due returns when Tick wants to be called, 0 for never.
func (s *Source) Due() time.Duration {
	switch s.phase {
	case Draining, Sealing:
		return s.since + FreezeTimeout
	case Preparing, Doubt:
		return s.again
	case Shrinking, Gone, Kept, Aborted:
	}
	return 0
}

// CheckFinals reports whether the finals name each volume of the hand-off once.
// Errors: ErrInvalid.
func CheckFinals(volumes []scstore.VolumeID, finals []Final) error {
	if len(volumes) != len(finals) {
		return fmt.Errorf("hand-off of %d volumes with %d final positions: %w", len(volumes), len(finals), scstore.ErrInvalid)
	}
	for i, f := range finals {
		if f.Volume != volumes[i] || f.Position.Compare(f.Parent) < 0 {
			return fmt.Errorf("hand-off of %s: final position %s of %s after %s: %w", volumes[i], f.Position, f.Volume, f.Parent, scstore.ErrInvalid)
		}
	}
	return nil
}
