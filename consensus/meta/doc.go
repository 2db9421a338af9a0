// Package meta is the replicated state machine: what a cluster agrees on about
// its volumes. It holds the namespace (names to volume ids), one record per
// volume or image, and the sessions that make a retried command harmless.
//
// It is pure: no goroutine, no clock, no randomness, no I/O. A command carries
// the ids and times that it needs, so that every member of a group that applies
// the same commands in the same order reaches the same state, byte for byte.
// Package consensus keeps the commands durable and orders them; on one host that
// is a journal.
//
// In the write path it is step W7: a sealed epoch is part of the history once its
// CommitEpoch is applied. Nothing of a volume's data passes through here.
//
// Invariants, checked after every command when built with the tag invariants,
// and on every state that is read back:
//
//	I1 a live record has exactly one name, and a name exactly one live record
//	I2 no name is both a volume and a folder of other names
//	I3 a record's base is a live image, at the position that the record names
//	I4 a fence never falls; the head's fence is at most the record's fence
//	I5 a head's parent is the head that it replaced, and lies before it
//	I6 an image never changes but for its name and its removal
//	I7 a command id is applied at most once while its session is kept
//
// A removed record stays as a tombstone until Forget says that its data are gone:
// a crash between the two leaves work to do, never data without a record. A
// tombstone still counts as based on its base.
//
// The formats of commands and states are in wire.go.
package meta
