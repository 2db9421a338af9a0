// Package raftnet carries the messages and state snapshots of the Raft library over
// package quicnet. A host's Raft address is its disk id in hexadecimal, fixed for
// life; where the host is, quicnet finds out.
//
// # Invariants
//
//	I1 A batch is handed on only if it names as its source the disk that the
//	   connection's certificate proves; of it, only messages that Options.Owner lets
//	   that disk send. So no host speaks for another one's replicas.
//	I2 After Close of a transport the library's handlers are not called any more, and
//	   none of their calls is still running.
//	I3 Messages of one connection arrive in the order in which they were sent, or the
//	   connection fails. Heart-beats that no read waits for are not among them: those of
//	   all groups for one host are gathered and have a stream of their own.
//	I4 A snapshot's stream is closed only when the receiver has taken all of it, or
//	   said that it did not.
//
// Messages go in class raft, on the control connection; snapshots in class repair, on
// the pool, paced.
//
// # Format
//
// A stream is a sequence of frames of quicnet: 4 bytes of length, then a MessageBatch
// or a Chunk as the library encodes it.
//
// Concurrency: the goroutines are quicnet's and the library's, and a timer's for each
// host that heart-beats wait for, which calls no handler.
package raftnet
