// Package consensus keeps the replicated state of package meta and decides the
// order of its commands. It is where steps W6 and W7 of the write path happen; no
// volume's data pass through here.
//
// Local is the one-host form: no other member to ask, so a command is decided once
// it is on this host's stable storage. It writes each command to a journal before
// it applies it, and now and then replaces the journal by a state snapshot. Groups
// of hosts keep meta.State and its commands as they are and replace the journal by
// a replicated log.
//
// Invariants:
//
//	I1 a command is answered only after its frames and all before them are durable
//	I2 what is found after a crash is a prefix of the commands proposed that holds
//	   every answered one
//	I3 a journal holds commands base+1, base+2, ... without a gap; its base is at
//	   most the snapshot's number
//	I4 what fails its checksum and cannot be the remains of an unanswered command is
//	   reported with file and offset, and nothing is opened
//
// How I4 tells the remains of a crash from rot: a disk writes sectors of 512 bytes
// whole, and the journal is zeros before it is written. So a command is stored in
// frames of one sector each; a frame is valid, or zeros (it did not reach the
// disk), or rot. Only the last command can be incomplete, because each is durable
// before the next is written.
//
// Lock order: Local's turn (a channel of one), then its mu. File I/O happens under
// the turn and never under mu.
//
// Concurrency: package consensus starts no goroutine.
package consensus
