package block

import (
	"encoding/binary"
	"fmt"

	"scstore"
)

// A map page is one node of a run: a B+tree of entries that is written once. It
// verifies itself, so that reading a block of a cold map takes one page of the
// map, one of checksums, and the block.
//
//	0    4  checksum of the page (pageSum)
//	4    4  run id
//	8    4  page number within the run
//	12   2  entries
//	14   1  level: 0 leaf; an entry of a higher level names a page below: its
//	        first key and, for location, its page number
//	15   1  version
//	16  24  entries: table (4), generation (4), first block (5), count (3), location (8)
const (
	pageHeaderSize = 16
	entrySize      = 24
	entriesPerPage = (scstore.BlockSize - pageHeaderSize) / entrySize
)

// mapPage is an encoded page; its accessors decode in place.
type mapPage []byte

func (p mapPage) count() int { return int(binary.BigEndian.Uint16(p[12:])) }
func (p mapPage) level() int { return int(p[14]) }

func (p mapPage) entry(i int) entry {
	b := p[pageHeaderSize+i*entrySize:]
	where := binary.BigEndian.Uint64(b[8:])
	return entry{
		table: binary.BigEndian.Uint32(b), gen: binary.BigEndian.Uint32(b[4:]),
		first: where >> 24, count: where & maxEntryBlocks, loc: loc(binary.BigEndian.Uint64(b[16:])),
	}
}

// search returns the number of entries that are not after key (table, first),
// whatever their generation.
func (p mapPage) search(table uint32, first uint64) int {
	lo, hi := 0, p.count()
	for lo < hi {
		mid := int(uint(lo+hi) / 2)
		b := p[pageHeaderSize+mid*entrySize:]
		t := binary.BigEndian.Uint32(b)
		if t < table || t == table && binary.BigEndian.Uint64(b[8:])>>24 <= first {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return lo
}

// pageBuilder fills a page.
type pageBuilder struct {
	page  [scstore.BlockSize]byte
	count int
}

func (b *pageBuilder) full() bool { return b.count == entriesPerPage }

func (b *pageBuilder) add(e entry) {
	p := b.page[pageHeaderSize+b.count*entrySize:]
	binary.BigEndian.PutUint32(p, e.table)
	binary.BigEndian.PutUint32(p[4:], e.gen)
	binary.BigEndian.PutUint64(p[8:], e.first<<24|e.count)
	binary.BigEndian.PutUint64(p[16:], uint64(e.loc))
	b.count++
}

// finish completes the page, returns it, valid until the next add, and starts over.
func (b *pageBuilder) finish(store scstore.StoreID, run, index uint32, level int) []byte {
	p := b.page[:]
	binary.BigEndian.PutUint32(p[4:], run)
	binary.BigEndian.PutUint32(p[8:], index)
	binary.BigEndian.PutUint16(p[12:], uint16(b.count))
	p[14], p[15] = byte(level), formatVersion
	clear(p[pageHeaderSize+b.count*entrySize:])
	binary.BigEndian.PutUint32(p, pageSum(store, p))
	b.count = 0
	return p
}

// parseMapPage checks a page that was read as page index of a run.
// Errors: ErrCorrupt, ErrVersion.
func parseMapPage(p []byte, store scstore.StoreID, run, index uint32) (mapPage, error) {
	if len(p) != scstore.BlockSize || binary.BigEndian.Uint32(p) != pageSum(store, p) {
		return nil, fmt.Errorf("map page %d of run %d: checksum: %w", index, run, scstore.ErrCorrupt)
	}
	if p[15] != formatVersion {
		return nil, fmt.Errorf("map page %d of run %d: version %d: %w", index, run, p[15], scstore.ErrVersion)
	}
	page := mapPage(p)
	if binary.BigEndian.Uint32(p[4:]) != run || binary.BigEndian.Uint32(p[8:]) != index || page.count() > entriesPerPage {
		return nil, fmt.Errorf("map page %d of run %d: fields: %w", index, run, scstore.ErrCorrupt)
	}
	return page, nil
}
