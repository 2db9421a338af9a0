// Package consensustest is a network in memory for the members of a cluster, with
// delays, losses and partitions, for tests in the virtual time of testing/synctest.
//
// Invariants:
//
//	I1 messages from one host to another arrive in the order sent, or not at all
//	I2 a cut loses what is under way
//	I3 no handler is called after the transport's Close returned
//	I4 what is delivered shares no memory with what was sent
package consensustest
