// Package replica is what one host of a cluster has of each volume, and how it moves:
// which position is complete here and which only in part, whether this host owns the
// volume, how blocks come from other hosts and go to them, and how the right to write
// changes hands. It drives the cores consensus/handoff and propagate with the local
// store, the log and the network, and holds the rules that package sim found.
//
// It is where steps W5 to W9 and R5 happen when there are several sites.
//
// Invariants:
//
//	I1 a mark TagSealed(p) of a table shows the volume at position p; Facts.Holds names
//	   those marks behind which no block is remote
//	I2 what this host must not forget (Facts) is on stable storage before anything that
//	   depends on it leaves the host
//	I3 this host acts on the state that it applied, never on the answer to a proposal
//	I4 it writes under a fence only above Floor, and only while no hand-off of its own
//	   is in doubt; Floor is durably at a fence before its end is told to anybody
//	I5 a position's number is used once: what was sealed and is not known to be in the
//	   history is proposed again as it is (Facts.Pending)
//	I6 a version is dropped only if nothing needs it (prune), and neither that nor a jump
//	   happens, nor is what was kept of a lost fence given up, before a report of this
//	   start was applied: the log that is read again passes through what was so before
//	I7 what follows a position is written to the table while its head shows that position
//	   (headAt): that of the newest mark, which therefore stays even if nobody needs its
//	   position, unless facts.Jump says that something is above it. That is on disk before
//	   anything is written there, and goes only when what is there is durable
//
// Lock order: the log's, within View; Replica.mu; moves.mu; then that of a hand-off, or
// Set.mu. None is held while the network or the log is waited for; Replica.mu is held over
// the local disk. So View is never called with one of them held.
package replica
