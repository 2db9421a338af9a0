// Package propagate moves the bytes of volumes between sites, after consensus has
// agreed on which are the newest. It is the middle of the way from a sealed epoch to
// another site's replica: package wire is the format of what is said, package codec
// what blocks look like on the way, package quicnet the streams.
//
// Jump is the receiver's core for one jump of one window of a volume from one
// position to another, and has no clock, goroutine, disk or network of its own: it
// is told what came and says what to ask, what to keep and what to verify. Fetch is
// the shell around it: it asks several hosts at a time, and goes through a volume window
// by window. Offer and Answerer are the sender's side, and Serve the shell around them.
//
// Invariants:
//
//	I1 a jump is done only if every span that its manifest touches was read back and
//	   has the digest of the manifest, whose root is over all of them
//	I2 a block is kept only if it was asked for and is still missing; so two answers
//	   with the same block keep it once
//	I3 a span that fails to verify is asked again without a base, then whole, and
//	   then the jump fails: nothing is tried for ever
//	I4 blocks of a window asked for and not yet here, over all requests, stay within
//	   MaxInFlightBlocks
//	I5 memory is bounded by the window: about 150 bytes a touched span (1 MiB); a fetch
//	   has two windows at a time
//	I6 a fetch is done only if every window of it is
package propagate
