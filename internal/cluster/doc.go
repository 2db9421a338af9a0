// Package cluster is this host's place in a cluster: who it is, who the others are, and
// the log that they share. It owns the file cluster.json, the keys, the network between
// hosts and the replicas of all groups, and keeps the members of the groups what the
// rules below say. Of volumes it knows which disk writes how many of them, no more.
//
// Groups: the namespace (meta.GroupNamespace) and VolumeGroups volume groups. Every host
// has a replica of each. It joins without a vote and says itself when it has caught up;
// from then on it is active. Each site has one host that may vote, its first active one.
// There is one voter while there are fewer than three sites, then an odd number of them,
// MaxVoters at most. What was promoted goes on voting until it is removed: two voters
// stay after the third one's removal until another site, or another host of that site,
// takes its place.
//
// A new cluster: cluster.json, keys, groups of one voter each, then the commands that
// make the state say so. A host that joins: its token is checked and used up, the host
// and its replica ids are entered in the namespace, and what the host is answered is in
// cluster.json before its keys are put in place. A start that was cut off anywhere goes
// on where it was: with the same token, if the keys are not there yet.
//
// Invariants:
//
//	I1 what cluster.json says is durable before it is acted on: the number of a start
//	   before it is registered, replica ids before the keys, that a group is not this
//	   voter's alone before it lets another one vote
//	I2 a log is begun once: groups are made or joined until cluster.json says that this
//	   host is a member, and then never again
//	I3 replica ids are those that the namespace gave
//	I4 a host that was removed, or that runs an earlier start of its disk, is refused; what
//	   this host knows of others never gets older, restarts included
//	I5 a command that may not be applied twice is applied at most once for each call of
//	   Propose; an error other than ErrIndeterminate means that it was not
//	I6 a joining host gets a certificate only for a token of this cluster that nobody else
//	   used, and again only for the key that it asked with first
//
// Lock order: Cluster.refreshing, then placeFile.mu or Cluster.mu; session.mu is a leaf.
// Only placeFile.mu is held over file I/O; nothing waits for the log or the network under
// any of them.
//
// Concurrency: Start starts one goroutine for what this host knows, one for its own
// affairs, one for leaders and deadlines, and one for the members of each group. Close
// joins them.
package cluster
