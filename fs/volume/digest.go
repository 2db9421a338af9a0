package volume

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"hash"
	"iter"

	"scstore"
)

// The digest tree. Leaves are blocks, nodes pair them up to a span of 256 blocks
// (1 MiB, aligned), and a root covers the spans that an epoch touched. Each kind
// is hashed under its own first byte, so that none can pass for another:
//
//	leaf   SHA-256(0x00, block)
//	hole   SHA-256(0x02): a block of zeros, however it is stored
//	node   SHA-256(0x01, left, right)
//	root   SHA-256(0x03, size in bytes (8), then for each span: number (8), digest (32))
//
// Source: RFC 6962 section 2.1, for the separation of leaves and nodes.
const (
	// SpanBlocks is the unit of digests: 1 MiB.
	SpanBlocks = 256

	domainLeaf = 0x00
	domainNode = 0x01
	domainHole = 0x02
	domainRoot = 0x03
)

var zeroBlock = make([]byte, scstore.BlockSize)

// holeDigests are the digests of subtrees of 1, 2, 4 .. SpanBlocks holes.
var holeDigests = func() (d [9]scstore.Digest) {
	d[0] = sha256.Sum256([]byte{domainHole})
	for i := 1; i < len(d); i++ {
		d[i] = nodeDigest(&d[i-1], &d[i-1])
	}
	return d
}()

func nodeDigest(left, right *scstore.Digest) scstore.Digest {
	var b [1 + 2*sha256.Size]byte
	b[0] = domainNode
	copy(b[1:], left[:])
	copy(b[1+sha256.Size:], right[:])
	return sha256.Sum256(b[:])
}

// BlockDigest returns the leaf of one block of BlockSize bytes.
func BlockDigest(block []byte) scstore.Digest {
	if bytes.Equal(block, zeroBlock) {
		return holeDigests[0]
	}
	h := sha256.New()
	h.Write([]byte{domainLeaf})
	h.Write(block)
	var d scstore.Digest
	h.Sum(d[:0])
	return d
}

// SpanDigest returns the digest of a span: span holds up to SpanBlocks blocks, and
// what is missing at the end of a volume counts as holes.
func SpanDigest(span []byte) scstore.Digest {
	leaves := leavesOf(span)
	return leaves.fold()
}

// spanLeaves are the digests of a span's blocks.
type spanLeaves [SpanBlocks]scstore.Digest

// leavesOf hashes the blocks of a span.
func leavesOf(span []byte) (l spanLeaves) {
	l.set(0, span)
	for n := len(span) / scstore.BlockSize; n < SpanBlocks; n++ {
		l[n] = holeDigests[0]
	}
	return l
}

// set hashes blocks of the span, from one on.
func (l *spanLeaves) set(first int, blocks []byte) {
	for n := first; len(blocks) > 0; n++ {
		l[n] = BlockDigest(blocks[:scstore.BlockSize])
		blocks = blocks[scstore.BlockSize:]
	}
}

// fold returns the digest of the span. It works on a copy.
func (l spanLeaves) fold() scstore.Digest {
	n := SpanBlocks
	for depth := 0; n > 1; depth++ {
		for i := 0; i < n; i += 2 {
			if l[i] == holeDigests[depth] && l[i+1] == holeDigests[depth] {
				l[i/2] = holeDigests[depth+1]
				continue
			}
			l[i/2] = nodeDigest(&l[i], &l[i+1])
		}
		n /= 2
	}
	return l[0]
}

// HoleSpanDigest returns the digest of a span of zeros.
func HoleSpanDigest() scstore.Digest { return holeDigests[8] }

// rootHash builds the root over touched spans, given in ascending order.
type rootHash struct{ h hash.Hash }

func newRootHash(sizeBytes int64) rootHash {
	r := rootHash{sha256.New()}
	r.h.Write(binary.BigEndian.AppendUint64([]byte{domainRoot}, uint64(sizeBytes)))
	return r
}

func (r rootHash) add(span uint64, d scstore.Digest) {
	r.h.Write(append(binary.BigEndian.AppendUint64(nil, span), d[:]...))
}

func (r rootHash) sum() (d scstore.Digest) {
	r.h.Sum(d[:0])
	return d
}

// RootOf returns the root over touched spans of a volume of that size: their numbers,
// rising, with their digests.
func RootOf(sizeBytes int64, spans iter.Seq2[uint64, scstore.Digest]) scstore.Digest {
	r := newRootHash(sizeBytes)
	for number, d := range spans {
		r.add(number, d)
	}
	return r.sum()
}
