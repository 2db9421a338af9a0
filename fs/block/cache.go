package block

import (
	"sync"
	"sync/atomic"

	"scstore"
)

// cachedPage is a 4096-byte page of the map or of a checksum table in memory. Its bytes
// are apart: together with them the allocator would round it up by a sixth.
type cachedPage struct {
	data *[scstore.BlockSize]byte
	used atomic.Bool // since the clock's hand last came by
	home *pageRef
}

func newCachedPage() *cachedPage { return &cachedPage{data: new([scstore.BlockSize]byte)} }

// pageRef is where a page hangs while it is in memory.
type pageRef = atomic.Pointer[cachedPage]

// pageCache bounds the pages in memory: second-chance eviction (the CLOCK
// algorithm, Corbató 1968). Looking a page up takes no lock.
type pageCache struct {
	mu    sync.Mutex
	ring  []*cachedPage
	hand  int
	limit int // pages
}

// MinMapMemoryBytes is the least that Options.MapMemoryBytes may be.
const MinMapMemoryBytes = 1 << 20

func newPageCache(limitBytes int64) *pageCache {
	return &pageCache{limit: int(limitBytes / scstore.BlockSize)}
}

// get returns the page that hangs at ref, or nil.
func (c *pageCache) get(ref *pageRef) *cachedPage {
	p := ref.Load()
	if p != nil && !p.used.Load() {
		p.used.Store(true)
	}
	return p
}

// add hangs p at ref, and takes another page out of memory if the cache is full.
// If ref has a page already, that one stays and is returned.
func (c *pageCache) add(ref *pageRef, p *cachedPage) *cachedPage {
	p.home = ref
	if !ref.CompareAndSwap(nil, p) {
		if old := ref.Load(); old != nil {
			return old
		}
		ref.Store(p)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.ring) < c.limit {
		c.ring = append(c.ring, p)
		return p
	}
	for c.ring[c.hand].used.Swap(false) {
		c.hand = (c.hand + 1) % len(c.ring)
	}
	old := c.ring[c.hand]
	old.home.CompareAndSwap(old, nil)
	c.ring[c.hand] = p
	c.hand = (c.hand + 1) % len(c.ring)
	return p
}

// pages returns how many pages are in memory.
func (c *pageCache) pages() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.ring)
}
