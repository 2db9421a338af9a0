// Package codec makes runs of blocks small for the way between sites: as nothing
// where they are zeros or what the receiver has, as the difference from the version
// that the receiver has, compressed, or as they are if that is smaller.
//
// It stands between the planner of package propagate, which says which blocks to
// send and which version the receiver has, and the frames of package wire. It has
// no state of its own beyond scratch memory.
//
// Invariants:
//
//	I1 Decode of what Encode made, with an equal base, gives the run, to the byte
//	I2 a coded run is never longer than the run
//	I3 Decode of any bytes writes within the run alone, and needs no more memory beyond it
//	   than a run's
//
// Whether the base was right, and whether the result is, is for the digests to say:
// a form that decodes to other bytes is no error here.
//
// Sources: LZ4 block format (lz4.github.io, through pierrec/lz4); zstd frames (RFC 8878,
// through klauspost/compress) where the link is what is waited for. A run is at most
// 64 KiB: LZ4 finds a tenth more in it than in single blocks (1.76 against 1.55 on
// a Debian /usr), and a difference from the last version is 10 to 30 times smaller
// than the run where a guest changed little of it.
package codec
