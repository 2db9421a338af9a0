package handoff

import (
	"encoding/hex"
	"time"

	"scstore"
)

// The times of a hand-off. R is the round trip between its two hosts.
const (
	// MinProposeInterval and 2 R, whichever is more, lie between two proposals of the
	// same entry.
	MinProposeInterval = 100 * time.Millisecond
	// MinCancelAfter and 4 R, whichever is more, is how long the source waits in doubt
	// before it proposes to cancel.
	MinCancelAfter = 2 * time.Second
	// PrepareTimeout ends a hand-off whose target does not get ready.
	PrepareTimeout = 60 * time.Second
	// FreezeTimeout ends one that can't be drained and sealed: the guest waits
	// meanwhile.
	FreezeTimeout = 5 * time.Second
	// FreezeBytes is how much of an open epoch is sealed while the guest waits.
	FreezeBytes = 4 << 20
	// MaxRounds of seals are tried to get there; a guest that writes faster than that
	// is paused for what is open then.
	MaxRounds = 16
)

// ID names one hand-off. It is drawn at random.
type ID [16]byte

// String returns the id as 32 hexadecimal digits.
func (h ID) String() string { return hex.EncodeToString(h[:]) }

// Final is where one volume's history under the source ends.
type Final struct {
	Volume   scstore.VolumeID
	Parent   scstore.Position // the head that the last epoch follows
	Position scstore.Position // of the last epoch, under the source's fence
	Digest   scstore.Digest   // of its manifest
}

// Decision is what the log says about a hand-off.
type Decision uint8

// The decisions. The first of them in the log is the only one.
const (
	Undecided Decision = iota
	HandedOff          // the target owns, under the next fence
	Cancelled          // the source owns, under the next fence
	Dropped            // the intent is gone: the source owns as before, and no HandOff counts any more
)

// Action is what the host has to do now. Actions are done in the order in which they
// are returned.
type Action uint8

// The actions of the source (S) and of the target (T).
const (
	ProposeIntent  Action = iota + 1 // S: to the log; answer with Intended
	AskToPrepare                     // S: send PREPARE to the target; answer with TargetReady
	SealRound                        // S: flush and seal; answer with Sealed round
	Drain                            // S: stop reading requests, finish what was read; answer with Drained
	SealFinal                        // S: seal, make data, manifest and the draining mark durable; answer with Final
	SendRelease                      // S: to the target, with the finals, before anything else
	ProposeHandOff                   // S, T: to the log, always the same entry; T: with RELEASE's finals
	ProposeCancel                    // S: to the log, always the same entry
	ProposeDrop                      // S: take the intent back
	Resume                           // S: remove the draining mark, durably, then read requests again, under the old fence
	ServeNext                        // S: go on under the fence of Cancel, once it is durable; then remove the mark
	GiveUp                           // S: answer what waits with ESHUTDOWN, close the connections, serve the final position for reading
	Prepare                          // T: catch up, reserve space, hold the export; answer with Prepared
	SendReady                        // T: to the source
	Own                              // T: adopt the finals' map under the next fence; then held writes go
	OwnBlind                         // T: the same without a manifest: every block is asked of the source until it is here
	LetGo                            // T: give the reserved space and the held export back
)

// String names the action.
func (a Action) String() string {
	names := [...]string{
		"nothing", "propose intent", "ask to prepare", "seal round", "drain", "seal final", "send release",
		"propose hand-off", "propose cancel", "propose drop", "resume", "serve under the next fence", "give up",
		"prepare", "send ready", "own", "own blind", "let go",
	}
	if int(a) < len(names) {
		return names[a]
	}
	return "unknown action"
}

// interval is the time between two proposals of the same entry.
func interval(rtt time.Duration) time.Duration { return max(2*rtt, MinProposeInterval) }

// patience is how long the source stays in doubt before it proposes to cancel.
func patience(rtt time.Duration) time.Duration { return max(4*rtt, MinCancelAfter) }
