package volume

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"hash"
	"iter"
	"slices"

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

// holeLeaves are the leaves of a span of holes.
var holeLeaves = [SpanBlocks]scstore.Digest(slices.Repeat(holeDigests[:1], SpanBlocks))

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
	nodes := holeNodes()
	nodes.set(0, span)
	return foldNodes(nodes, 4)
}

// spanNodes are the nodes over groupLeaves leaves each of a span.
type spanNodes [SpanBlocks / groupLeaves]scstore.Digest

// holeNodes returns the nodes over holes.
func holeNodes() (t spanNodes) {
	for n := range t {
		t[n] = holeDigests[4]
	}
	return t
}

// set hashes whole groups from that of a block on; what is missing at the end of the last
// one counts as holes.
func (t *spanNodes) set(first int, blocks []byte) {
	for g := first / groupLeaves; len(blocks) > 0; g++ {
		leaves := [groupLeaves]scstore.Digest(holeLeaves[:])
		for n := 0; n < groupLeaves && len(blocks) > 0; n++ {
			leaves[n] = BlockDigest(blocks[:scstore.BlockSize])
			blocks = blocks[scstore.BlockSize:]
		}
		t[g] = foldNodes(leaves, 0)
	}
}

// spanTree is the tree over a span. It keeps the leaves and, of the nodes, those over
// groupLeaves leaves: a block that changed costs 30 nodes then, not 255, which took four
// times as long as its leaf (BenchmarkSeal_ScatteredBlocks). All nodes would make it 8,
// for twice the memory.
type spanTree struct {
	leaves [SpanBlocks]scstore.Digest
	groups spanNodes
	stale  uint // the groups, by bit, that do not cover what their leaves are now
}

// groupLeaves is how many leaves one kept node covers.
const groupLeaves = 16

// holeTree returns the tree over holes.
func holeTree() (t spanTree) {
	t.leaves, t.groups = holeLeaves, holeNodes()
	return t
}

// set hashes blocks of the span, from one on.
func (t *spanTree) set(first int, blocks []byte) {
	for n := first; len(blocks) > 0; n++ {
		t.leaves[n] = BlockDigest(blocks[:scstore.BlockSize])
		t.stale |= 1 << (n / groupLeaves)
		blocks = blocks[scstore.BlockSize:]
	}
}

// fold returns the digest of the span.
func (t *spanTree) fold() scstore.Digest {
	for n := range t.groups {
		if t.stale&(1<<n) != 0 {
			t.groups[n] = foldNodes([groupLeaves]scstore.Digest(t.leaves[n*groupLeaves:]), 0)
		}
	}
	t.stale = 0
	return foldNodes(t.groups, 4)
}

// foldNodes returns the node over subtrees of a depth.
func foldNodes(d [groupLeaves]scstore.Digest, depth int) scstore.Digest {
	for n := len(d); n > 1; n /= 2 {
		for i := 0; i < n; i += 2 {
			if d[i] == holeDigests[depth] && d[i+1] == holeDigests[depth] {
				d[i/2] = holeDigests[depth+1]
				continue
			}
			d[i/2] = nodeDigest(&d[i], &d[i+1])
		}
		depth++
	}
	return d[0]
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
