package block

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math"

	"scstore"
)

// A root is a checkpoint: every table, every run of the map, every segment in
// use, and the place in the log where replay begins. It is written to the map
// stream as pages of its own kind, so that the newest one can be found by reading
// the segments alone; the index (badger) names the one in force.
//
// Root page:
//
//	0     4  checksum of the page (pageSum)
//	4     4  magic "SCrt"
//	8     4  page number
//	12    4  pages in the root
//	16 4080  a part of: the body's length (8), the body
//
// Body:
//
//	checkpoint (8), incarnation (8), flags (1: clean; the upper four bits: version)
//	replay: segment (8), slot (4), seq (8), chain (4)
//	next table (4), next run (4), next segment (8)
//	tables (4), each: number (4), volume id (16), size (8), generation (4),
//	    flags (1: frozen, 2: quarantined, 4: more), base table (4), base generation (4)
//	    more, from version 1 on: remote blocks (8),
//	      marks (4), ascending, each: as in a record (24)
//	      runs of dead generations (4), ascending, each: after (4), up to (4)
//	runs (4), newest first, each: id (4), entries (8), pages (4), places (4), each:
//	    first (4), count (4), location (8)
//	segments (4), each: id (8), next slot (4), live slots (4), flags (1: map, 2: damaged)
//	checksum of all before (4)
const (
	rootMagic       = "SCrt"
	rootPagePayload = scstore.BlockSize - 16

	// rootVersion is the version of the body that is written. 0 knew no marks, no
	// remote blocks and no dead generations.
	rootVersion = 1

	// MaxTables bounds the volumes of one store.
	MaxTables = 1 << 20
	// maxRootBytes bounds a root: a million tables and 64 TiB of segments fit.
	maxRootBytes = 256 << 20
	// maxRunPages bounds a run: 32 GiB of map, of which each page costs 8 bytes of
	// memory.
	maxRunPages = 1 << 23
)

// replayPoint is where the log goes on after a checkpoint.
type replayPoint struct {
	segment uint64 // 0: there is nothing to replay
	slot    int
	seq     uint64
	chain   uint32
}

// root is the decoded checkpoint.
type root struct {
	version     byte
	checkpoint  uint64
	incarnation uint64
	clean       bool
	replay      replayPoint
	nextTable   uint32
	nextRun     uint32
	nextSegment uint64
	tables      []rootTable
	runs        []*run
	segments    []rootSegment
}

type rootTable struct {
	no          uint32
	id          scstore.VolumeID
	sizeBytes   int64
	gen         uint32
	frozen      bool
	quarantined bool
	base        uint32
	baseGen     uint32
	remote      int64
	marks       []mark
	dead        genRanges
}

// more reports whether the table has anything that version 0 did not know.
func (t *rootTable) more() bool { return t.remote != 0 || len(t.marks) > 0 || len(t.dead) > 0 }

type rootSegment struct {
	id      uint64
	next    int
	live    int64
	stream  stream
	damaged bool
}

func flags(a, b bool) byte {
	var f byte
	if a {
		f |= 1
	}
	if b {
		f |= 2
	}
	return f
}

// encode returns the body.
func (r *root) encode() []byte {
	be := binary.BigEndian
	b := be.AppendUint64(nil, r.checkpoint)
	b = be.AppendUint64(b, r.incarnation)
	b = append(b, flags(r.clean, false)|r.version<<4)
	b = be.AppendUint64(b, r.replay.segment)
	b = be.AppendUint32(b, uint32(r.replay.slot))
	b = be.AppendUint64(b, r.replay.seq)
	b = be.AppendUint32(b, r.replay.chain)
	b = be.AppendUint32(b, r.nextTable)
	b = be.AppendUint32(b, r.nextRun)
	b = be.AppendUint64(b, r.nextSegment)
	b = be.AppendUint32(b, uint32(len(r.tables)))
	for _, t := range r.tables {
		b = be.AppendUint32(b, t.no)
		b = append(b, t.id[:]...)
		b = be.AppendUint64(b, uint64(t.sizeBytes))
		b = be.AppendUint32(b, t.gen)
		b = t.appendTo(b)
	}
	b = be.AppendUint32(b, uint32(len(r.runs)))
	for _, n := range r.runs {
		b = be.AppendUint32(b, n.id)
		b = be.AppendUint64(b, n.entries)
		b = be.AppendUint32(b, uint32(len(n.pages)))
		b = appendPlaces(b, n.places)
	}
	b = be.AppendUint32(b, uint32(len(r.segments)))
	for _, g := range r.segments {
		b = be.AppendUint64(b, g.id)
		b = be.AppendUint32(b, uint32(g.next))
		b = be.AppendUint32(b, uint32(max(g.live, 0)))
		b = append(b, flags(g.stream == streamMap, g.damaged))
	}
	return be.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// appendTo writes the table from its flags on.
func (t *rootTable) appendTo(b []byte) []byte {
	be := binary.BigEndian
	f := flags(t.frozen, t.quarantined)
	if t.more() {
		f |= 4
	}
	b = be.AppendUint32(be.AppendUint32(append(b, f), t.base), t.baseGen)
	if !t.more() {
		return b
	}
	b = be.AppendUint64(b, uint64(t.remote))
	b = be.AppendUint32(b, uint32(len(t.marks)))
	for _, m := range t.marks {
		b = m.appendTo(b)
	}
	b = be.AppendUint32(b, uint32(len(t.dead)))
	for _, x := range t.dead {
		b = be.AppendUint32(be.AppendUint32(b, x.after), x.upTo)
	}
	return b
}

func appendPlaces(b []byte, places []pageExtent) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(places)))
	for _, x := range places {
		b = binary.BigEndian.AppendUint32(b, x.first)
		b = binary.BigEndian.AppendUint32(b, x.count)
		b = binary.BigEndian.AppendUint64(b, uint64(x.at))
	}
	return b
}

// reader takes fixed-size fields off the front of b; after the first that does
// not fit, short is set and every further one is zero.
type reader struct {
	b     []byte
	short bool
}

func (r *reader) take(n int) []byte {
	if len(r.b) < n {
		r.short, r.b = true, nil
		return make([]byte, n)
	}
	p := r.b[:n]
	r.b = r.b[n:]
	return p
}

func (r *reader) u8() byte    { return r.take(1)[0] }
func (r *reader) u32() uint32 { return binary.BigEndian.Uint32(r.take(4)) }
func (r *reader) u64() uint64 { return binary.BigEndian.Uint64(r.take(8)) }

// size reads a count of items of at least each bytes, and refuses one that the
// input can't hold.
func (r *reader) size(each int) int {
	n := r.u32()
	if uint64(n)*uint64(each) > uint64(len(r.b)) {
		r.short = true
		return 0
	}
	return int(n)
}

func (r *reader) places() []pageExtent {
	places := make([]pageExtent, r.size(16))
	for i := range places {
		places[i] = pageExtent{r.u32(), r.u32(), loc(r.u64())}
	}
	return places
}

// table reads a table of a body of the given version.
func (r *reader) table(version byte) rootTable {
	t := rootTable{no: r.u32(), id: scstore.VolumeID(r.take(16)), sizeBytes: int64(r.u64()), gen: r.u32()}
	f := r.u8()
	t.frozen, t.quarantined = f&1 != 0, f&2 != 0
	t.base, t.baseGen = r.u32(), r.u32()
	if f&4 == 0 {
		return t
	}
	t.remote = int64(r.u64())
	for range r.size(markSize) {
		m, err := parseMark(r.take(markSize))
		r.short = r.short || err != nil
		t.marks = append(t.marks, m)
	}
	for range r.size(8) {
		t.dead = append(t.dead, genRange{r.u32(), r.u32()})
	}
	r.short = r.short || version == 0 || !t.more() || t.remote < 0 || len(t.dead) > MaxRollbacks
	return t
}

// parseRoot decodes what encode made. Errors: ErrCorrupt, ErrVersion.
func parseRoot(b []byte) (*root, error) {
	bad := fmt.Errorf("checkpoint of %d bytes: %w", len(b), scstore.ErrCorrupt)
	if len(b) < 4 || len(b) > maxRootBytes ||
		binary.BigEndian.Uint32(b[len(b)-4:]) != crc32.Checksum(b[:len(b)-4], castagnoli) {
		return nil, bad
	}
	d := &reader{b: b[:len(b)-4]}
	r := &root{checkpoint: d.u64(), incarnation: d.u64()}
	f := d.u8()
	if r.clean, r.version = f&1 != 0, f>>4; r.version > rootVersion {
		return nil, fmt.Errorf("checkpoint: version %d: %w", r.version, scstore.ErrVersion)
	}
	r.replay = replayPoint{d.u64(), int(d.u32()), d.u64(), d.u32()}
	r.nextTable, r.nextRun, r.nextSegment = d.u32(), d.u32(), d.u64()
	for range d.size(41) {
		r.tables = append(r.tables, d.table(r.version))
	}
	for range d.size(20) {
		n := &run{id: d.u32(), entries: d.u64()}
		pages := d.u32()
		n.places = d.places()
		if pages > maxRunPages || !placesCover(n.places, pages) {
			return nil, bad
		}
		n.pages = make([]pageRef, pages)
		r.runs = append(r.runs, n)
	}
	for range d.size(17) {
		g := rootSegment{id: d.u64(), next: int(d.u32()), live: int64(d.u32())}
		f := d.u8()
		g.damaged = f&2 != 0
		if f&1 != 0 {
			g.stream = streamMap
		}
		r.segments = append(r.segments, g)
	}
	if d.short || len(d.b) != 0 || len(r.tables) > MaxTables {
		return nil, bad
	}
	return r, nil
}

// placesCover reports whether places hold exactly the pages [0, pages), in order.
func placesCover(places []pageExtent, pages uint32) bool {
	next := uint64(0)
	for _, x := range places {
		if uint64(x.first) != next || x.count == 0 || next+uint64(x.count) > math.MaxUint32 {
			return false
		}
		next += uint64(x.count)
	}
	return next == uint64(pages) && pages > 0
}

// rootPages splits an encoded root into pages.
func rootPages(store scstore.StoreID, body []byte) []byte {
	body = append(binary.BigEndian.AppendUint64(nil, uint64(len(body))), body...)
	n := (len(body) + rootPagePayload - 1) / rootPagePayload
	out := make([]byte, n*scstore.BlockSize)
	for i := range n {
		p := out[i*scstore.BlockSize : (i+1)*scstore.BlockSize]
		copy(p[4:], rootMagic)
		binary.BigEndian.PutUint32(p[8:], uint32(i))
		binary.BigEndian.PutUint32(p[12:], uint32(n))
		copy(p[16:], body[i*rootPagePayload:])
		binary.BigEndian.PutUint32(p, pageSum(store, p))
	}
	return out
}

// parseRootPages joins the pages of a root and decodes it. Errors: ErrCorrupt.
func parseRootPages(store scstore.StoreID, pages []byte) (*root, error) {
	n := len(pages) / scstore.BlockSize
	body := make([]byte, 0, n*rootPagePayload)
	for i := range n {
		p := pages[i*scstore.BlockSize : (i+1)*scstore.BlockSize]
		if !rootPageIs(store, p, uint32(i), uint32(n)) {
			return nil, fmt.Errorf("checkpoint page %d of %d: %w", i, n, scstore.ErrCorrupt)
		}
		body = append(body, p[16:]...)
	}
	if len(body) < 8 || binary.BigEndian.Uint64(body) > uint64(len(body)-8) {
		return nil, fmt.Errorf("checkpoint of %d pages: %w", n, scstore.ErrCorrupt)
	}
	return parseRoot(body[8:][:binary.BigEndian.Uint64(body)])
}

// rootPageIs reports whether p is page index of a root of count pages, whole.
func rootPageIs(store scstore.StoreID, p []byte, index, count uint32) bool {
	return binary.BigEndian.Uint32(p) == pageSum(store, p) && string(p[4:8]) == rootMagic &&
		binary.BigEndian.Uint32(p[8:]) == index && binary.BigEndian.Uint32(p[12:]) == count
}
