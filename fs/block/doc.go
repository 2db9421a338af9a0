// Package block is the local store: a segment log that holds every volume's
// blocks, and a map that says where each block is. It implements steps W3 and W4
// of the write path (append, sync) and R2 to R4 of the read path (look up, read,
// verify).
//
// A write is appended to the log's active segment; a flush is one fdatasync of the
// log, shared by all who wait. The map lives in a memtable, in immutable sorted
// runs below it, and, in force since the last checkpoint, in a root that names
// both the runs and the place in the log where replay begins. Map and roots are
// pages of segments too; badger (index.go) only says which root is in force.
//
// Invariants:
//
//	I1 A group's header is never written again once a sync covered it.
//	I2 The log is recovered as one prefix: the chain of header checksums is
//	   followed, never guessed, and it never crosses an incarnation.
//	I3 What a sync covered is never cut: a header's synced field proves it.
//	I4 Nothing durable names a block that is not durable: a run and a root are
//	   written after the log they describe was synced, the index after the root.
//	I5 A segment's file is recycled only after a durable checkpoint that neither
//	   names nor replays it, and only after every slot was looked up in the map.
//	I6 A block leaves the store verified, by a checksum that depends on store,
//	   segment and slot, or as an error.
//	I7 The newest source that knows a block is right at the head; versions that
//	   only a pin shows carry a mark.
//	I8 What a held generation shows is in the map and on disk: a merge drops only
//	   what no pin, mark, clone or head needs, by the state of marks, clones and
//	   rollbacks that the checkpoint captured and synced first.
//	I9 A mark moves, and a table rolls back, in one record: a crash leaves what was
//	   before or what is after. Generations are never used again, so that a record
//	   that names one means the same for ever.
//	I10 Content that comes later takes the place of the remote entry that it was
//	   fetched for, in its generation, or none: no view changes otherwise.
//	I11 Changed names every block whose content differs between its two ends.
//
// Lock order: Store.createMu, ckptMu, logMu, mapMu, then the leaf locks, of which
// Table.pinMu is one.
//
// Sources: Rosenblum and Ousterhout, "The Design and Implementation of a
// Log-Structured File System" (1992), sections 3 and 4; O'Neil et al., "The
// Log-Structured Merge-Tree" (1996); Hajkazemi et al., "Beating the I/O bottleneck:
// a case for log-structured virtual disks" (EuroSys 2022).
package block
