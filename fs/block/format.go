package block

import (
	"encoding/binary"
	"fmt"

	"scstore"
)

// A segment is a file of equal slots of 4096 bytes, 16384 of them (64 MiB) unless
// the file system is small. All integers are big-endian.
//
//	slot 0                segment header
//	slots 1 .. t-1        groups: one header page, then the group's data slots
//	slots t .. end        the block checksums of all slots, 4 bytes each, written
//	                      when the segment is full
//
// Segment header (slot 0, first 64 bytes, the rest zero):
//
//	0   4  checksum of the page (pageSum)
//	4   4  magic "SCsg"
//	8   2  version
//	10  1  kind: 1 plain (2 is reserved: framed)
//	11  1  zero
//	12  4  slots in the segment
//	16 16  store id
//	32  8  segment id, never used again
//	40  8  incarnation of the store that prepared it
const (
	segmentMagic     = "SCsg"
	formatVersion    = 1
	segmentKindPlain = 1
)

// segmentHeader is slot 0.
type segmentHeader struct {
	slots       int
	store       scstore.StoreID
	id          uint64
	incarnation uint64
}

// appendTo writes the header as a page of BlockSize bytes.
func (h segmentHeader) appendTo(b []byte) []byte {
	page := make([]byte, scstore.BlockSize)
	copy(page[4:], segmentMagic)
	binary.BigEndian.PutUint16(page[8:], formatVersion)
	page[10] = segmentKindPlain
	binary.BigEndian.PutUint32(page[12:], uint32(h.slots))
	copy(page[16:], h.store[:])
	binary.BigEndian.PutUint64(page[32:], h.id)
	binary.BigEndian.PutUint64(page[40:], h.incarnation)
	binary.BigEndian.PutUint32(page, pageSum(h.store, page))
	return append(b, page...)
}

// parseSegmentHeader reads slot 0 of a segment of the given store.
// Errors: ErrCorrupt, ErrVersion.
func parseSegmentHeader(page []byte, store scstore.StoreID) (segmentHeader, error) {
	var h segmentHeader
	if len(page) < scstore.BlockSize || string(page[4:8]) != segmentMagic {
		return h, fmt.Errorf("segment header: no magic: %w", scstore.ErrCorrupt)
	}
	if binary.BigEndian.Uint32(page) != pageSum(store, page[:scstore.BlockSize]) {
		return h, fmt.Errorf("segment header: checksum: %w", scstore.ErrCorrupt)
	}
	if v := binary.BigEndian.Uint16(page[8:]); v != formatVersion {
		return h, fmt.Errorf("segment header: version %d: %w", v, scstore.ErrVersion)
	}
	if page[10] != segmentKindPlain {
		return h, fmt.Errorf("segment header: kind %d: %w", page[10], scstore.ErrVersion)
	}
	h.slots = int(binary.BigEndian.Uint32(page[12:]))
	copy(h.store[:], page[16:])
	h.id = binary.BigEndian.Uint64(page[32:])
	h.incarnation = binary.BigEndian.Uint64(page[40:])
	if h.store != store || h.slots < minSlots || h.slots > maxSlots || h.id == 0 || h.id > maxSegmentID {
		return h, fmt.Errorf("segment header: fields: %w", scstore.ErrCorrupt)
	}
	return h, nil
}

// Group header page: two equal copies of 2048 bytes, so that a flipped bit or a
// lost sector in one costs nothing. The valid copy with the higher revision
// counts. It is rewritten in the page cache while its group grows and never again
// once a sync covered it.
//
//	0    4  checksum: CRC-32C over store id and bytes 4..2047
//	4    4  magic "SCgr"
//	8    2  version
//	10   2  slot of this page
//	12   2  data slots that follow
//	14   2  records
//	16   8  segment id
//	24   8  incarnation
//	32   8  seq of the first record
//	40   8  synced: all records below this seq were durable when this was written
//	48   4  chain: checksum of the previous group's header, last revision
//	52   4  revision
//	56   4  bytes of records
//	60   1  stream: 0 log (replayed in order), 1 map (named by a root)
//	61   3  zero
//	64      records
//
// Record:
//
//	0   1  kind
//	1   1  codec (0: as it is)
//	2   2  key id (0: not encrypted)
//	4   4  generation
//	8   4  table
//	12  2  stored length in 512-byte units (0: count blocks)
//	14  2  count of blocks that follow in the group (data, map and root pages)
//	16  8  first block; for map and root pages the page number
//	24  8  seq at which it was first written; a copy keeps it
//	32     data and pages: 4 bytes of checksum a block
//	       zero, discard, remote: count of blocks (8)
//	       create: volume id (16), size in bytes (8), base table (4), base generation (4)
//	       resize: size in bytes (8)
//	       mark, unmark: a mark; advance: two, the one that ends and the one that begins
//	       rollback: generation that is the newest again (4), zero (4)
//
// Mark:
//
//	0   1  kind of its tag
//	1   3  zero
//	4   4  generation that it names; zero where it ends
//	8  16  id of its tag
const (
	groupMagic      = "SCgr"
	groupHeaderSize = 64
	groupCopySize   = scstore.BlockSize / 2
	recordSize      = 32
	recordRoom      = groupCopySize - groupHeaderSize

	// maxGroupBlocks is how many data slots one header can describe as one record.
	maxGroupBlocks = (recordRoom - recordSize) / 4
)

// recordKind says what a record does.
type recordKind byte

// The record kinds. Numbers are never reused.
const (
	recordData     recordKind = 1 // blocks of a table
	recordZero     recordKind = 2 // a range reads as zeros
	recordDiscard  recordKind = 3 // the same, and the guest does not need the space
	recordSeal     recordKind = 4 // the table's generation ends; the next one begins
	recordStaged   recordKind = 5 // reserved: data received for a position not yet committed
	recordCreate   recordKind = 6 // a table begins
	recordDelete   recordKind = 7 // a table ends
	recordResize   recordKind = 8 // a table's size changes
	recordRollback recordKind = 9 // the table's generations after one of its marks are dead
	recordMapPage  recordKind = 10
	recordKept     recordKind = 11 // data that only a pin shows, copied by the cleaner
	recordRootPage recordKind = 12
	recordFreeze   recordKind = 13 // the table takes no more writes
	recordMark     recordKind = 14 // a generation gets a tag; if it is the current one, it ends
	recordUnmark   recordKind = 15 // a tag ends
	recordAdvance  recordKind = 16 // a tag ends, and another names the current generation, which ends
	recordRemote   recordKind = 17 // a range's bytes are at another host
)

// record is one decoded record.
type record struct {
	kind  recordKind
	gen   uint32
	table uint32
	first uint64
	count uint64 // blocks: stored (hasSlots) or named (zero, discard)
	seq   uint64
	sums  []byte // hasSlots: 4 bytes a block, aliasing the header

	id        scstore.VolumeID // create
	sizeBytes int64            // create, resize
	base      uint32           // create
	baseGen   uint32           // create

	marks *marking // mark, unmark, advance, rollback; nil in others
}

// marking is what a record does to a table's marks.
type marking struct {
	mark mark   // mark, advance: what begins; unmark: what ends
	from mark   // advance: what ends
	keep uint32 // rollback: the newest generation that stays
}

// mark is a tag and the generation that it names.
type mark struct {
	tag scstore.Tag
	gen uint32
}

const markSize = 24

func (m mark) appendTo(b []byte) []byte {
	b = append(b, byte(m.tag.Kind), 0, 0, 0)
	b = binary.BigEndian.AppendUint32(b, m.gen)
	return append(b, m.tag.ID[:]...)
}

// parseMark decodes markSize bytes. Errors: ErrCorrupt.
func parseMark(b []byte) (mark, error) {
	m := mark{gen: binary.BigEndian.Uint32(b[4:])}
	m.tag.Kind = scstore.TagKind(b[0])
	copy(m.tag.ID[:], b[8:])
	if m.tag.Kind == 0 || b[1] != 0 || b[2] != 0 || b[3] != 0 || m.gen > maxGen {
		return m, fmt.Errorf("mark %s of generation %d: %w", m.tag, m.gen, scstore.ErrCorrupt)
	}
	return m, nil
}

// hasSlots reports whether the record's blocks follow in the group.
func (k recordKind) hasSlots() bool {
	return k == recordData || k == recordKept || k == recordMapPage || k == recordRootPage
}

// extraSize is what follows the fixed part of a record of count blocks.
func (k recordKind) extraSize(count uint64) int {
	switch k {
	case recordData, recordKept, recordMapPage, recordRootPage:
		return int(count) * 4
	case recordZero, recordDiscard, recordRemote, recordResize, recordRollback:
		return 8
	case recordCreate:
		return 32
	case recordMark, recordUnmark:
		return markSize
	case recordAdvance:
		return 2 * markSize
	case recordSeal, recordDelete, recordFreeze, recordStaged:
		return 0
	}
	return 0
}

// appendTo encodes r; the checksums of stored blocks come from r.sums.
func (r *record) appendTo(b []byte) []byte {
	at := len(b)
	b = append(b, make([]byte, recordSize)...)
	p := b[at:]
	p[0] = byte(r.kind)
	binary.BigEndian.PutUint32(p[4:], r.gen)
	binary.BigEndian.PutUint32(p[8:], r.table)
	if r.kind.hasSlots() {
		binary.BigEndian.PutUint16(p[14:], uint16(r.count))
	}
	binary.BigEndian.PutUint64(p[16:], r.first)
	binary.BigEndian.PutUint64(p[24:], r.seq)
	switch r.kind {
	case recordData, recordKept, recordMapPage, recordRootPage:
		b = append(b, r.sums...)
	case recordZero, recordDiscard, recordRemote:
		b = binary.BigEndian.AppendUint64(b, r.count)
	case recordResize:
		b = binary.BigEndian.AppendUint64(b, uint64(r.sizeBytes))
	case recordCreate:
		b = append(b, r.id[:]...)
		b = binary.BigEndian.AppendUint64(b, uint64(r.sizeBytes))
		b = binary.BigEndian.AppendUint32(b, r.base)
		b = binary.BigEndian.AppendUint32(b, r.baseGen)
	case recordMark, recordUnmark:
		b = r.marks.mark.appendTo(b)
	case recordAdvance:
		b = r.marks.mark.appendTo(r.marks.from.appendTo(b))
	case recordRollback:
		b = binary.BigEndian.AppendUint64(b, uint64(r.marks.keep)<<32)
	case recordSeal, recordDelete, recordFreeze, recordStaged:
	}
	return b
}

// parseRecord decodes the first record of b. Errors: ErrCorrupt, ErrVersion for
// a kind, codec or key that this version does not know.
func parseRecord(b []byte) (record, []byte, error) {
	var r record
	if len(b) < recordSize {
		return r, nil, fmt.Errorf("record: %d bytes: %w", len(b), scstore.ErrCorrupt)
	}
	r.kind = recordKind(b[0])
	if b[1] != 0 || b[2] != 0 || b[3] != 0 || b[12] != 0 || b[13] != 0 {
		return r, nil, fmt.Errorf("record: codec %d, key %d: %w", b[1], binary.BigEndian.Uint16(b[2:]), scstore.ErrVersion)
	}
	r.gen = binary.BigEndian.Uint32(b[4:])
	r.table = binary.BigEndian.Uint32(b[8:])
	stored := uint64(binary.BigEndian.Uint16(b[14:]))
	r.first = binary.BigEndian.Uint64(b[16:])
	r.seq = binary.BigEndian.Uint64(b[24:])
	extra := r.kind.extraSize(stored)
	if len(b) < recordSize+extra {
		return r, nil, fmt.Errorf("record: kind %d, %d blocks: %w", r.kind, stored, scstore.ErrCorrupt)
	}
	tail, rest := b[recordSize:recordSize+extra], b[recordSize+extra:]
	if err := r.parseExtra(stored, tail); err != nil {
		return r, nil, err
	}
	if r.first > maxBlock || r.count > maxBlock || r.first+r.count > maxBlock {
		return r, nil, fmt.Errorf("record: blocks %d+%d: %w", r.first, r.count, scstore.ErrCorrupt)
	}
	return r, rest, nil
}

// parseExtra decodes what follows the fixed part of a record. Errors: ErrCorrupt,
// ErrVersion.
func (r *record) parseExtra(stored uint64, tail []byte) (err error) {
	switch r.kind {
	case recordData, recordKept, recordMapPage, recordRootPage:
		r.count, r.sums = stored, tail
	case recordZero, recordDiscard, recordRemote:
		r.count = binary.BigEndian.Uint64(tail)
	case recordResize:
		r.sizeBytes = int64(binary.BigEndian.Uint64(tail))
	case recordCreate:
		copy(r.id[:], tail)
		r.sizeBytes = int64(binary.BigEndian.Uint64(tail[16:]))
		r.base = binary.BigEndian.Uint32(tail[24:])
		r.baseGen = binary.BigEndian.Uint32(tail[28:])
	case recordMark, recordUnmark:
		r.marks = new(marking)
		r.marks.mark, err = parseMark(tail)
	case recordAdvance:
		r.marks = new(marking)
		if r.marks.from, err = parseMark(tail); err == nil {
			r.marks.mark, err = parseMark(tail[markSize:])
		}
	case recordRollback:
		r.marks = &marking{keep: binary.BigEndian.Uint32(tail)}
		if binary.BigEndian.Uint32(tail[4:]) != 0 || r.marks.keep >= r.gen {
			err = fmt.Errorf("record: rollback of generation %d to %d: %w", r.gen, r.marks.keep, scstore.ErrCorrupt)
		}
	case recordSeal, recordDelete, recordFreeze:
	case recordStaged:
		err = fmt.Errorf("record: kind %d: %w", r.kind, scstore.ErrVersion)
	default:
		err = fmt.Errorf("record: kind %d: %w", r.kind, scstore.ErrVersion)
	}
	return err
}

// maxBlock bounds every block number in a record or entry.
const maxBlock = scstore.MaxVolumeBytes / scstore.BlockSize

// stream says which of the store's two append streams a group belongs to.
type stream byte

// The streams.
const (
	streamLog stream = 0 // data and table records
	streamMap stream = 1 // map pages and roots
)

// groupHeader is the fixed part of a group's header page.
type groupHeader struct {
	slot        int
	dataSlots   int
	records     int
	segment     uint64
	incarnation uint64
	seq         uint64
	synced      uint64
	chain       uint32
	revision    uint32
	stream      stream
	body        []byte // the encoded records
	sum         uint32 // of this header: what the next group's chain names
}

// encode fills page (BlockSize bytes) with both copies and returns the header's
// checksum.
func (h *groupHeader) encode(store scstore.StoreID, page []byte) uint32 {
	p := page[:groupCopySize]
	clear(p[:groupHeaderSize])
	copy(p[4:], groupMagic)
	binary.BigEndian.PutUint16(p[8:], formatVersion)
	binary.BigEndian.PutUint16(p[10:], uint16(h.slot))
	binary.BigEndian.PutUint16(p[12:], uint16(h.dataSlots))
	binary.BigEndian.PutUint16(p[14:], uint16(h.records))
	binary.BigEndian.PutUint64(p[16:], h.segment)
	binary.BigEndian.PutUint64(p[24:], h.incarnation)
	binary.BigEndian.PutUint64(p[32:], h.seq)
	binary.BigEndian.PutUint64(p[40:], h.synced)
	binary.BigEndian.PutUint32(p[48:], h.chain)
	binary.BigEndian.PutUint32(p[52:], h.revision)
	binary.BigEndian.PutUint32(p[56:], uint32(len(h.body)))
	p[60] = byte(h.stream)
	clear(p[groupHeaderSize+copy(p[groupHeaderSize:], h.body):])
	sum := pageSum(store, p)
	binary.BigEndian.PutUint32(p, sum)
	copy(page[groupCopySize:], p)
	return sum
}

// parseGroupHeader reads a header page. healed reports that one of the copies was
// bad while the other was good. Errors: ErrCorrupt if neither copy verifies.
func parseGroupHeader(page []byte, store scstore.StoreID) (h groupHeader, healed bool, err error) {
	if len(page) < scstore.BlockSize {
		return h, false, fmt.Errorf("group header: %d bytes: %w", len(page), scstore.ErrCorrupt)
	}
	a, errA := parseGroupCopy(page[:groupCopySize], store)
	b, errB := parseGroupCopy(page[groupCopySize:scstore.BlockSize], store)
	switch {
	case errA != nil && errB != nil:
		return h, false, errA
	case errB != nil, errA == nil && a.revision > b.revision:
		return a, errB != nil, nil
	default:
		return b, errA != nil, nil
	}
}

func parseGroupCopy(p []byte, store scstore.StoreID) (groupHeader, error) {
	var h groupHeader
	if string(p[4:8]) != groupMagic {
		return h, fmt.Errorf("group header: no magic: %w", scstore.ErrCorrupt)
	}
	h.sum = binary.BigEndian.Uint32(p)
	if h.sum != pageSum(store, p) {
		return h, fmt.Errorf("group header: checksum: %w", scstore.ErrCorrupt)
	}
	if v := binary.BigEndian.Uint16(p[8:]); v != formatVersion {
		return h, fmt.Errorf("group header: version %d: %w", v, scstore.ErrVersion)
	}
	h.slot = int(binary.BigEndian.Uint16(p[10:]))
	h.dataSlots = int(binary.BigEndian.Uint16(p[12:]))
	h.records = int(binary.BigEndian.Uint16(p[14:]))
	h.segment = binary.BigEndian.Uint64(p[16:])
	h.incarnation = binary.BigEndian.Uint64(p[24:])
	h.seq = binary.BigEndian.Uint64(p[32:])
	h.synced = binary.BigEndian.Uint64(p[40:])
	h.chain = binary.BigEndian.Uint32(p[48:])
	h.revision = binary.BigEndian.Uint32(p[52:])
	h.stream = stream(p[60])
	body := binary.BigEndian.Uint32(p[56:])
	if body > recordRoom || h.slot+h.dataSlots >= maxSlots {
		return h, fmt.Errorf("group header: fields: %w", scstore.ErrCorrupt)
	}
	h.body = p[groupHeaderSize : groupHeaderSize+body]
	return h, nil
}

// decode returns the group's records, in log order. Errors: ErrCorrupt if they do
// not fill the group exactly, ErrVersion.
func (h *groupHeader) decode() ([]record, error) {
	records := make([]record, 0, h.records)
	slots := 0
	for rest := h.body; len(rest) > 0; {
		r, next, err := parseRecord(rest)
		if err != nil {
			return nil, err
		}
		if r.kind.hasSlots() {
			slots += int(r.count)
		}
		records, rest = append(records, r), next
	}
	if len(records) != h.records || slots != h.dataSlots {
		return nil, fmt.Errorf("group header: %d records, %d slots: %w", len(records), slots, scstore.ErrCorrupt)
	}
	return records, nil
}
