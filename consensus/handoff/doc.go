// Package handoff holds the two sides of a planned hand-off as state machines: what
// the owner of some volumes and the host that is to own them do, step by step, so
// that the new owner sees the last acknowledged write of the old one and nobody
// acknowledges at the same time. They have no clock, goroutine, disk or network of
// their own: the host tells them what happened and does what they return.
//
//	before: Intent in the log; the target prepares; the source seals until little is open
//	0       source: stops reading requests, finishes what was read = LAST ACK; seals; makes
//	        data, manifest and a draining mark durable
//	0+      source → target: RELEASE; source → log: HandOff. From here on it is in doubt
//	R/2     target: has RELEASE, proposes the same HandOff
//	T       both: apply the entry. Target: FIRST ACK. Source: closes, serves old bytes
//
// In doubt the source acknowledges nothing, and a read of the state ends no doubt:
// only an entry of the log does: HandOff, Cancel, or what drops the intent (its
// deadline, a revoked fence, a removed disk), whichever is first. Cancel gives the
// source the next fence, a dropped intent leaves it the one it had. Both sides act on the entry that their own state machine
// applied, never on the answer to a proposal.
//
// Invariants:
//
//	I1 the source acknowledges in the phases that Acknowledges names, and no later
//	   phase but Kept is one of them
//	I2 RELEASE and HandOff leave only after the draining mark is durable
//	I3 from the first of them on only Applied moves the source, a restart included
//	I4 the target owns only after Applied(HandOff)
//	I5 every proposal of one hand-off is the same, however often it is made
package handoff
