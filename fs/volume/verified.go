package volume

import (
	"sync/atomic"

	lru "github.com/hashicorp/golang-lru/v2"

	"scstore"
)

// MaxVerifiedSpans bounds the spans that are remembered of copies, of all volumes together:
// some 700 bytes of memory each, so 11 MiB, for 16 GiB of volumes.
const MaxVerifiedSpans = 1 << 14

// verifiedSpans are those that were looked at last.
var verifiedSpans = func() *lru.Cache[rowSpan, verifiedSpan] {
	c, err := lru.New[rowSpan, verifiedSpan](MaxVerifiedSpans)
	if err != nil { // of a size below one
		panic(err)
	}
	return c
}()

// rowSpan is a span of a copy that goes from one position to the next.
type rowSpan struct{ row, span uint64 }

type verifiedSpan struct {
	at    scstore.Position
	nodes spanNodes
}

// Verified remembers nodes of the spans of a copy that goes from one position to the next.
// Where it does, only what changes has to be read and hashed, in groups of 16 blocks, and
// not the MiB around it. Its use ends when one of the steps fails, or what is at the copy
// became so in another way: what is remembered then is of another content.
type Verified struct{ row uint64 }

var rows atomic.Uint64

// NewVerified returns one that remembers nothing yet.
func NewVerified() *Verified { return &Verified{rows.Add(1)} }

// DigestSpan returns the digest of a span of a view of a position, in which so much changed
// since the position of the step before. A span that is asked for again at a position is
// read whole. Safe for concurrent use, for different spans. Errors: those of ReadAt.
func (f *Verified) DigestSpan(view *Volume, number uint64, at scstore.Position, changed []scstore.Extent) (scstore.Digest, error) {
	key := rowSpan{f.row, number}
	s, ok := verifiedSpans.Get(key)
	groups := groupsOf(changed)
	if !ok || s.at == at {
		s, groups = verifiedSpan{nodes: holeNodes()}, allGroups
	}
	if err := view.hashGroups(&s.nodes, number, groups); err != nil {
		return scstore.Digest{}, err
	}
	s.at = at
	verifiedSpans.Add(key, s)
	return foldNodes(s.nodes, 4), nil
}

// groupsOf returns the groups that extents of one span touch, by bit.
func groupsOf(extents []scstore.Extent) (groups uint) {
	for _, e := range extents {
		for b := e.First / groupLeaves; b*groupLeaves < e.End(); b++ {
			groups |= 1 << (b % (SpanBlocks / groupLeaves))
		}
	}
	return groups
}
