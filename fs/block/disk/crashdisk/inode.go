package crashdisk

import (
	"bytes"
	"math/bits"
	"math/rand/v2"
	"slices"

	"scstore/fs/block/disk"
)

// MaxVersions is how many unsynced versions of one page, and lengths of one file,
// are kept. Past it a random one between the durable and the newest is forgotten,
// which only makes a crash choose among fewer states.
const MaxVersions = 32

// chunkPages is how many pages one chunk covers: 256 KiB.
const chunkPages = 64

type page [disk.PageSize]byte

var zeroPage page

// chunk is a run of pages; a nil page is all zeros.
type chunk struct {
	owner *inode // nil once it is shared between disks
	pages [chunkPages]*page
}

// history is what a page may turn out to hold instead of its live content.
type history struct {
	versions []*page // versions[0] is on the platter; the live content is not among them
}

// inode is one file's content, whatever names it.
type inode struct {
	chunks []*chunk
	space  []uint64 // per chunk, one bit for each page that takes space
	size   int64
	sizes  []int64 // lengths since the last sync, the durable one first, the live one not included
	dirty  map[int64]*history

	linked bool // the process sees a name for it
	opens  int
}

func (n *inode) live(index int64) *page {
	if c := index / chunkPages; c < int64(len(n.chunks)) && n.chunks[c] != nil {
		return n.chunks[c].pages[index%chunkPages]
	}
	return nil
}

// set replaces the live content of a page and keeps no history.
func (n *inode) set(index int64, p *page) {
	c := index / chunkPages
	if c >= int64(len(n.chunks)) {
		if p == nil {
			return
		}
		n.chunks = append(n.chunks, make([]*chunk, c+1-int64(len(n.chunks)))...)
	}
	switch old := n.chunks[c]; {
	case old == nil && p == nil:
		return
	case old == nil:
		n.chunks[c] = &chunk{owner: n}
	case old.pages[index%chunkPages] == p:
		return
	case old.owner != n:
		n.chunks[c] = &chunk{owner: n, pages: old.pages}
	}
	n.chunks[c].pages[index%chunkPages] = p
}

// write replaces the live content of a page as a write does: what was there
// becomes one of its unsynced versions.
func (n *inode) write(index int64, p *page, rng func(int) int) {
	old := n.live(index)
	if old == p {
		return
	}
	if h := n.dirty[index]; h != nil {
		h.versions = keep(h.versions, old, rng)
	} else {
		if n.dirty == nil {
			n.dirty = make(map[int64]*history)
		}
		n.dirty[index] = &history{versions: []*page{old}}
	}
	n.set(index, p)
}

// keep appends an unsynced version, within MaxVersions.
func keep[T any](versions []T, v T, rng func(int) int) []T {
	if len(versions) >= MaxVersions {
		i := 1 + rng(len(versions)-1)
		versions = slices.Delete(versions, i, i+1)
	}
	return append(versions, v)
}

// resize sets the live length; the old one becomes an unsynced one.
func (n *inode) resize(size int64, rng func(int) int) {
	if size == n.size {
		return
	}
	n.sizes = keep(n.sizes, n.size, rng)
	n.size = size
}

// cut zeroes what lies at and after size, in the live content.
func (n *inode) cut(size int64, put func(index int64, p *page)) {
	first := size / disk.PageSize
	if tail := size % disk.PageSize; tail != 0 {
		if old := n.live(first); old != nil {
			put(first, merge(old, make([]byte, disk.PageSize-tail), int(tail)))
		}
		first++
	}
	for c := first / chunkPages; c < int64(len(n.chunks)); c++ {
		if n.chunks[c] == nil {
			continue
		}
		for i := max(first, c*chunkPages); i < (c+1)*chunkPages; i++ {
			if n.live(i) != nil {
				put(i, nil)
			}
		}
	}
}

// merge returns old with part laid over it at off; nil if that is all zeros.
func merge(old *page, part []byte, off int) *page {
	if (old == nil || len(part) == disk.PageSize) && bytes.Equal(part, zeroPage[:len(part)]) {
		return nil
	}
	p := new(page)
	if old != nil && len(part) < disk.PageSize {
		*p = *old
	}
	copy(p[off:], part)
	if *p == zeroPage {
		return nil
	}
	return p
}

// read fills p from the live content; the caller has clipped it to the length.
func (n *inode) read(p []byte, off int64) {
	for len(p) > 0 {
		in := int(off % disk.PageSize)
		count := min(len(p), disk.PageSize-in)
		if src := n.live(off / disk.PageSize); src != nil {
			copy(p[:count], src[in:])
		} else {
			clear(p[:count])
		}
		p = p[count:]
		off += int64(count)
	}
}

// takeSpace marks pages [first, end) as taking space, in order, as long as limit
// lasts, and returns how many did not before.
func (n *inode) takeSpace(first, end, limit int64) (taken, stop int64) {
	if need := (end + chunkPages - 1) / chunkPages; need > int64(len(n.space)) {
		n.space = append(n.space, make([]uint64, need-int64(len(n.space)))...)
	}
	for i := first; i < end; i++ {
		word, bit := &n.space[i/chunkPages], uint64(1)<<(i%chunkPages)
		if i%chunkPages == 0 && end-i >= chunkPages && *word == ^uint64(0) {
			i += chunkPages - 1
			continue
		}
		if *word&bit != 0 {
			continue
		}
		if taken == limit {
			return taken, i
		}
		*word |= bit
		taken++
	}
	return taken, end
}

// dropSpace gives back the space of the pages from first on and returns how many.
func (n *inode) dropSpace(first int64) (dropped int64) {
	for c := first / chunkPages; c < int64(len(n.space)); c++ {
		gone := n.space[c]
		if c == first/chunkPages {
			gone &= ^uint64(0) << (first % chunkPages)
		}
		dropped += int64(bits.OnesCount64(gone))
		n.space[c] &^= gone
	}
	return dropped
}

func (n *inode) spacePages() (pages int64) {
	for _, w := range n.space {
		pages += int64(bits.OnesCount64(w))
	}
	return pages
}

// share returns a second inode with the same live content and no history. Both
// copy a chunk before they change it.
func (n *inode) share() *inode {
	for _, c := range n.chunks {
		if c != nil && c.owner == n {
			c.owner = nil
		}
	}
	return &inode{chunks: slices.Clone(n.chunks), space: slices.Clone(n.space), size: n.size}
}

// synced makes the live content durable.
func (n *inode) synced() {
	n.sizes = nil
	clear(n.dirty)
}

// dirtyPages returns the changed pages in order.
func (n *inode) dirtyPages() []int64 {
	pages := make([]int64, 0, len(n.dirty))
	for index := range n.dirty {
		pages = append(pages, index)
	}
	slices.Sort(pages)
	return pages
}

// syncFailed is what a failed sync leaves: of each changed page the device took
// the newest version, or an older one, which shows from now on, or nothing was
// tried and the page is as unsynced as before.
func (n *inode) syncFailed(rng *rand.Rand) {
	for _, index := range n.dirtyPages() {
		switch h := n.dirty[index]; rng.IntN(3) {
		case 0:
			delete(n.dirty, index)
		case 1:
			n.set(index, h.versions[rng.IntN(len(h.versions))])
			delete(n.dirty, index)
		}
	}
}
