// Package wire is the format of what package propagate says to other hosts: which
// blocks changed between two positions, and their bytes. It is pure: bytes in, values
// out. Streams, identity and encryption are package quicnet's, the forms of runs
// package codec's.
//
// A stream carries one request and its answer, as frames:
//
//	Frame: 4 bytes and a body
//	   0  1  kind
//	   1  3  body's length, at most MaxBodyBytes
//
//	1 ManifestRequest  16 volume, position from, position to, 8 first block, 8 blocks
//	2 Manifest         16 volume, position from, position to, 8 first block, 8 blocks of the
//	                   window, 8 size, 8 extents, 8 blocks in them, 32 root
//	3 Extents          per extent: uvarint blocks between the end of the one before
//	                   and this one, uvarint length in blocks
//	4 Spans            8 first span, then 32 bytes a span
//	5 BlocksRequest    16 volume, position, position of the base (zero: none), then
//	                   extents as in 3
//	6 Run              8 first block, 1 blocks, 1 codec, 8 digest of the base (zero: none),
//	                   payload
//	7 Absent           extents as in 3, of blocks that the sender has not got
//	8 End              8 blocks sent, 8 bytes of their payloads
//	9 Refusal          1 code, text of at most MaxRefusalBytes
//
// Integers are big-endian; uvarints are those of encoding/binary, in their shortest
// form; position = 8 fence, 8 epoch. Each value has exactly one encoding.
//
//	ManifestRequest → Manifest Extents* Spans* End | Refusal
//	BlocksRequest   → (Run | Absent)* End | Refusal
//
// Manifest first, data after: who asks knows what changed before it has any of it.
// A manifest covers a window of the volume, at most MaxWindowBlocks, so that no
// volume is too large for the memory of either side.
//
// Invariants:
//
//	I1 a parser never reads beyond its body, and needs no more memory than a small
//	   multiple of it
//	I2 extents within one frame ascend, do not touch and lie within a volume of the
//	   largest size
package wire
