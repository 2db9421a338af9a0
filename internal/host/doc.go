// Package host is the composition root: it opens, wires and closes everything
// that one host runs, and is the Service behind its API and the Exports behind
// its NBD door.
//
// A store is a folder:
//
//	LOCK        locked (flock) by the process that uses the folder; holds its pid
//	store.json  the format's version and the store's id; its presence makes the
//	            folder a store
//	segments/   the log (fs/block)
//	index/      its index (badger); can be made anew from the segments
//	api.sock, nbd.sock   the doors, unless they are elsewhere
//
// A host is alone, or one of a cluster. Alone (local.go) it has
//
//	meta/       names, sizes, fences (consensus.Local)
//
// and in a cluster (clustered.go)
//
//	cluster.json, keys/, raft/   its place in the cluster (internal/cluster)
//	replicas/   what it must not forget of its volumes (internal/replica)
//
// Two interfaces keep the rest of the package from knowing which: agreement, where names
// and records are agreed on, and opener, what is done with the bytes of volumes. A call
// for a volume that another host writes is passed on to that host, once (forward.go).
//
// Invariants:
//
//	I1 One process uses a folder: LOCK is held from before anything is read until
//	   after everything is closed.
//	I2 A name of a host alone has its data: a table is made before its name, and goes
//	   after it. What a crash leaves is a tombstone, or a table without a name that is
//	   empty or marked as an unfinished import, and the next start deletes them before
//	   it serves. Data without a name or such a mark are never deleted: the start is
//	   refused. In a cluster a record comes before its name and goes after it; what a
//	   crash leaves is swept (clean.go).
//	I3 However many connections use a volume, it is open once. It is opened with a
//	   new fence when it is first used.
//	I4 Close ends the doors first, then flushes the volumes, then leaves the network,
//	   then closes the stores: nothing is used after it is closed.
//	I5 A store is of a host alone or of a cluster's for its whole life.
//
// Lock order: slot.mu, local.catalog, Host.mu.
package host
