// Package volume is the write engine: it turns a guest's reads and writes, of any
// alignment, into blocks of a table, resolves what the table never held in the
// base chain, checks the fence, and closes epochs. It implements steps W2, W3 and
// W5 of the write path and R2 and R3 of the read path. It does no I/O of its own
// and reads no clock: the table below it does, and the doors above it. Its goroutines
// end with the call that started them.
//
// Invariants:
//
//	V1 A block reads as: the table's data or hole, else the nearest base's, else zeros.
//	V2 Nothing is written, and no flush succeeds, once a higher fence is known; the
//	   fence is checked before the write and again after the sync.
//	V3 A sealed epoch is a point in write order: every write that returned before
//	   Seal is in it, none that was called after.
//	V4 Writes that share a block are atomic towards each other, whatever their
//	   alignment.
//	V5 What an epoch changed is read from the table's map, between two marks: no
//	   death of the process loses any of it.
//	V6 A block whose newest content is at another host is never read as anything
//	   else: what needs it fails with a *MissingError.
//	V7 A digest that comes from memory (SealedDigest) is of a seal that succeeded, and of
//	   the last one that changed the span, which is not after the position asked for.
//
// Lock order: Volume.sealing, Volume.seal, then Volume.ragged; leafCache.mu is a leaf.
package volume
