// Package consensus keeps the replicated state of package meta and decides the
// order of its commands. It is where steps W6 and W7 of the write path happen; no
// volume's data pass through here.
//
// Local is the one-host form: no other member to ask, so a command is decided once
// it is on this host's stable storage. It writes each command to a journal before
// it applies it, and now and then replaces the journal by a state snapshot.
//
// Cluster is the form for several hosts: groups of them, each with a replicated log
// (Raft, by the library dragonboat) in the journal's place. A group of one voter is
// the same code. The library shows in one place only, ClusterOptions.Transport, so
// that it could be replaced.
//
// Invariants of Local:
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
// Invariants of Cluster:
//
//	I5 a result is what this host's own state machine returned for the command, at a
//	   place in the log that a majority has on disk
//	I6 an error other than ErrIndeterminate means that the command is not in the log
//	   and never will be; a proposal that left is never called refused
//	I7 replicas that applied the same entries have equal states, byte for byte; one
//	   that cannot read an entry stands still before it
//	I8 a replica id is used by one log only; a log that is gone is never begun again
//	   under it
//	I9 a Watcher's events are numbered without a gap, or say that there is one
//
// What the library does that its users must know, and what is done about it here: it
// ends the process at a failed write (space.go keeps the disk from filling; an I/O
// error of the device ends this process, and the others go on); it pins its folder to
// address and host name and records absolute paths (adoptLog, place.go: the
// disk id and the cluster id decide, folders move and hosts are renamed); it reads settings
// from files in the current folder (folder.go refuses them); it lets a voter whose log
// was wiped vote again (Group: such a start is refused); its end makes later calls
// fail (Cluster.enter admits none); it never says what became of a transfer of
// leadership (TransferLeader looks, and asks again); its logger is the process's
// (raftlog.go).
//
// Lock order of Local: its turn (a channel of one), then its mu. File I/O happens
// under the turn and never under mu.
//
// Lock order of Cluster: queue.turn, then Cluster.mu or queue.flights; group.mu, then queue.flights,
// Cluster.mu or Watcher.mu. queue.turn and group.mu are never held together. The
// library is called under queue.turn, and calls back under none of its locks that a
// proposal takes.
//
// Concurrency: Local starts no goroutine. A Cluster owns two, one for each entry under
// way (MaxFlights a group), and the library's; Close joins them.
//
// Sources: Ongaro and Ousterhout, In Search of an Understandable Consensus Algorithm,
// 2014; Ongaro's thesis, sections 3.10 (transfer), 4 (members), 6.4 (reads), 9.6
// (pre-vote).
package consensus
