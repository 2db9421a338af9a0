// Package meta is the replicated state machine: what a cluster agrees on. One type,
// State, serves every group. The namespace group holds names, sites, hosts, join
// tokens and the members of groups; a volume group holds volumes: who may write
// them, their history, who holds what of it, and what is to be kept. A cluster of
// one host has it all in one state (GroupAll). A command of another kind of group is
// refused.
//
// It is pure: no goroutine, no clock, no randomness, no I/O. A command carries the
// ids and times that it needs, so that every member of a group that applies the same
// commands in the same order reaches the same state, byte for byte. Deadlines are
// compared with the latest clock that a command brought, and pass by Expire alone.
// Package consensus keeps the commands durable and orders them.
//
// In the write path it is step W7: a sealed epoch is part of the history once its
// CommitEpoch is applied. Nothing of a volume's data passes through here.
//
// Every command may be proposed again when its outcome is not known: within a
// session (CommandID) it is applied once; without one, operations that may be part
// of a Batch, and all whose comment says so, change nothing the second time. Reports
// of a disk are numbered, so that one that comes late does not undo what followed.
//
// Invariants, checked after every command when built with the tag invariants,
// and on every state that is read back:
//
//	I1  a name names one volume, and a volume has at most one name
//	I2  no name is both a volume and a folder of other names
//	I3  a record's base, if it is in this state, is an image, a branch or a snapshot
//	    at the position that the record names, and refers back to the record; what is
//	    referred to is not removed
//	I4  one history: fences rise by one; a grant names the exact position where the
//	    fence before it ends, and nothing under that fence beyond it is in the history;
//	    at most one disk holds a fence, and none from Revoke to Promote
//	I5  a head's parent is the head that it replaced, and lies before it; a number
//	    names one position only
//	I6  an image or a branch never changes but for its name and its removal
//	I7  a command id is applied at most once while its session is kept
//	I8  every root's position is in the history or on a line that left it; what a
//	    replica is said to hold is a root or its newest position
//	I9  a holder is complete at the head, or a hand-off's position is kept
//	I10 what left the history lies after the fork of the fence that was revoked; a
//	    fork that waits for its old owner is kept, and so is its volume
//	I11 a volume is in at most one move, and its holder is the move's source; a
//	    hand-off is decided once, and then intended no more
//	I12 every collection is bounded (the Max constants), and equal states have equal
//	    bytes
//
// Hand-off: of HandOff, Cancel and DropIntent (or Expire) with one id, the first in
// the log decides; the others change nothing and are answered with what was decided,
// as long as the id is among the MaxDecided decided last. A forgotten id has no
// intent, so that what comes even later changes nothing either. Whoever acts on a
// decision acts on the entry that its own state applied.
//
// Which positions are known: the latest MaxRecent of the history, every root, and
// what replicas reported. All other questions about ancestry are answered "unknown".
// A replica holds a version until nothing keeps it (Roots), or until its Release was
// applied.
//
// A rollback is a position like others: its parent is the head, its content that of
// a snapshot. Holders learn from Point.Content that no data need to move if they
// hold both.
//
// A removed record stays as a tombstone until Forget says that its data are gone:
// a crash between the two leaves work to do, never data without a record. A
// tombstone still counts as based on its base. Across groups references come first
// (create: volume, then Link; remove: Unlink, then Remove; clone: AddRef, then
// CreateVolume; delete: clone, then DropRef), and Orphans finds what a crash left.
//
// The formats of commands, results and states are in wire.go.
//
// Sources: D. Ongaro's thesis, section 6.3 (sessions).
package meta
