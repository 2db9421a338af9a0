// Package bench measures scstore beside its peers and checks that it keeps what it
// promises while it is being killed.
//
// Load drives one NBD export: queue depth, connections, block size, mix, flushes,
// latencies. Run starts scstore and its peers on the same file system, gives all of
// them the same loads in turns, and returns medians, ratios and the table of the
// promised figures. Verify compares an export with the Journal of an earlier Load.
//
// On a small machine the load must take less of the processors than what it
// measures. A load of reads or of writes alone is one goroutine for each connection
// (inline); one that mixes them, or is verified, submits batches to a nbd.Client
// (pipeline).
//
// Invariants:
//
//	I1 a load's time runs from the first request to the reply of the final flush;
//	I2 every flush counted is one FLUSH request that the server answered;
//	I3 a FLUSH covers the writes whose replies had come before it was sent, no more;
//	I4 in a verified load no two writes to one block are in flight at once, so that
//	   the newest content of each block is known.
//
// Lock order: Journal.mu is a leaf.
//
// Sources: the NBD protocol, doc/proto.md of the NetworkBlockDevice project. fio's
// nbd engine sends one flush for each write with fsync=32 at depth 32 and none with
// fdatasync=32 (measured), so flush figures come from Load alone.
package bench
