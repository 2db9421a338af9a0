package block

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync/atomic"

	"scstore"
	"scstore/fs/block/disk"
)

const (
	// minSlots is the smallest segment, for tests and tiny file systems (1 MiB).
	minSlots = 256
	// sumsPerPage is how many block checksums a page of a segment's table holds.
	sumsPerPage = scstore.BlockSize / 4
)

// segment is one file of the log or map stream. Its id never comes back: a file
// that is recycled becomes a new segment.
type segment struct {
	id        uint64
	file      disk.File
	name      string
	seed      slotSeed
	slots     int // in the file
	tableSlot int // first slot of the checksum table; groups end before it

	// next is the first slot that no group uses. Guarded by the stream's lock
	// while the segment is appended to, constant afterwards.
	next int
	// visible: slots below it are in the file; what lies above needs a publish.
	visible atomic.Int32
	// live counts slots that the map may still name. It only chooses victims:
	// what frees a segment is a check of every slot.
	live atomic.Int64
	// stream is constant once the segment is in use.
	stream stream
	// retired: the checksum table is written and no append follows.
	retired atomic.Bool
	// gone is set before the file is given away. Whoever read from it checks gone
	// afterwards and, if it is set, looks the block up again.
	gone atomic.Bool
	// damaged: something in it failed to verify; the cleaner leaves it alone.
	damaged atomic.Bool

	// sums holds the table's pages that are in memory: all of them, outside of the
	// cache's reach, until the segment is retired.
	sums []pageRef
}

func segmentName(id uint64) string { return fmt.Sprintf("%016x.seg", id) }

// parseSegmentName returns the id in a segment file's name.
func parseSegmentName(name string) (uint64, bool) {
	var id uint64
	if n, err := fmt.Sscanf(name, "%016x.seg", &id); n != 1 || err != nil || name != segmentName(id) {
		return 0, false
	}
	return id, true
}

// tableSlots returns how many slots the checksum table of a segment takes.
func tableSlots(slots int) int { return (slots*4 + scstore.BlockSize - 1) / scstore.BlockSize }

func newSegment(store scstore.StoreID, id uint64, slots int, file disk.File) *segment {
	return &segment{
		id: id, file: file, name: segmentName(id), seed: newSlotSeed(store, id),
		slots: slots, tableSlot: slots - tableSlots(slots), next: 1,
		sums: make([]pageRef, tableSlots(slots)),
	}
}

// begin readies the segment for appends: its checksum table grows in memory.
func (g *segment) begin(kind stream) {
	g.stream = kind
	for i := range g.sums {
		page := newCachedPage()
		page.home = &g.sums[i]
		g.sums[i].Store(page)
	}
}

// setSum notes the checksum of the block at slot. Appends only.
func (g *segment) setSum(slot int, sum uint32) {
	page := g.sums[slot/sumsPerPage].Load()
	binary.BigEndian.PutUint32(page.data[slot%sumsPerPage*4:], sum)
}

// retire writes the checksum table and hands its pages to the cache. The table is
// durable with the segment's next sync.
func (g *segment) retire(cache *pageCache) error {
	if g.retired.Load() {
		return nil
	}
	bufs := make([][]byte, len(g.sums))
	for i := range g.sums {
		bufs[i] = g.sums[i].Load().data[:]
	}
	if err := g.file.WriteVec(bufs, int64(g.tableSlot)*scstore.BlockSize); err != nil {
		return fmt.Errorf("write checksum table of segment %x: %w", g.id, err)
	}
	g.retired.Store(true)
	for i := range g.sums {
		p := g.sums[i].Swap(nil)
		cache.add(&g.sums[i], p)
	}
	return nil
}

// sumPage returns the table page that covers slot, from memory or disk. now asks
// for it only if the device need not be waited for; ok is false otherwise.
func (g *segment) sumPage(cache *pageCache, slot int, now bool) (page *cachedPage, ok bool, err error) {
	ref := &g.sums[slot/sumsPerPage]
	if p := cache.get(ref); p != nil {
		return p, true, nil
	}
	p := newCachedPage()
	off := int64(g.tableSlot+slot/sumsPerPage) * scstore.BlockSize
	if now {
		if ok, err := g.file.ReadNowAt(p.data[:], off); err != nil || !ok {
			return nil, false, err
		}
		return cache.add(ref, p), true, nil
	}
	if err := readFull(g.file, p.data[:], off); err != nil {
		return nil, false, fmt.Errorf("read checksum table of segment %x: %w", g.id, err)
	}
	return cache.add(ref, p), true, nil
}

// sum returns the checksum that the table gives for slot.
func (p *cachedPage) sum(slot int) uint32 {
	return binary.BigEndian.Uint32(p.data[slot%sumsPerPage*4:])
}

// readHeader reads the group header at slot.
func (g *segment) readHeader(store scstore.StoreID, page []byte, slot int) (h groupHeader, healed bool, err error) {
	if slot < 1 || slot >= g.tableSlot {
		return h, false, fmt.Errorf("read group header %x/%d: %w", g.id, slot, scstore.ErrCorrupt)
	}
	if err := readFull(g.file, page, int64(slot)*scstore.BlockSize); err != nil {
		return h, false, fmt.Errorf("read group header %x/%d: %w", g.id, slot, err)
	}
	h, healed, err = parseGroupHeader(page, store)
	if err == nil && (h.segment != g.id || h.slot != slot || slot+h.dataSlots >= g.tableSlot) {
		err = fmt.Errorf("group header %x/%d: belongs to %x/%d: %w", g.id, slot, h.segment, h.slot, scstore.ErrCorrupt)
	}
	return h, healed, err
}

// headerSum walks the groups to the one that holds slot and returns the checksum
// its header gives: the second opinion when the table and the data disagree.
func (g *segment) headerSum(store scstore.StoreID, slot int) (uint32, error) {
	page := make([]byte, scstore.BlockSize)
	for at := 1; at < slot; {
		h, _, err := g.readHeader(store, page, at)
		if err != nil {
			return 0, err
		}
		if slot > at+h.dataSlots {
			at += 1 + h.dataSlots
			continue
		}
		records, err := h.decode()
		if err != nil {
			return 0, err
		}
		next := at + 1
		for i := range records {
			r := &records[i]
			if !r.kind.hasSlots() {
				continue
			}
			if slot < next+int(r.count) {
				return binary.BigEndian.Uint32(r.sums[(slot-next)*4:]), nil
			}
			next += int(r.count)
		}
	}
	return 0, fmt.Errorf("find slot %x/%d in its group: %w", g.id, slot, scstore.ErrCorrupt)
}

// readFull reads len(p) bytes at off; a file that ends before is corrupt.
func readFull(f disk.File, p []byte, off int64) error {
	n, err := f.ReadAt(p, off)
	switch {
	case n == len(p):
		return nil
	case err == nil || errors.Is(err, io.EOF):
		return fmt.Errorf("file ends at byte %d: %w", off+int64(n), scstore.ErrCorrupt)
	}
	return err
}
