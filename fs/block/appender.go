package block

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"scstore"
)

const (
	// directWriteBytes is the size from which a write goes straight from the
	// caller's buffer to the file instead of by way of the group's buffer.
	directWriteBytes = 64 << 10
)

// appender is one append stream: the open group at the end of the active segment.
// It has no lock of its own; the log's is Store.logMu, the map's Store.ckptMu.
type appender struct {
	store  *Store
	stream stream
	seg    *segment // nil before the first append

	// The open group. buf holds its header page and, for small writes, its data
	// pages, each at its slot's place.
	buf    []byte
	header groupHeader
	open   bool
	last   record // the last record, so that a contiguous write extends it
	lastAt int    // its place in header.body
	copied bool   // it is a copy, which keeps its seq and is not extended

	seq     uint64 // of the next record
	written int    // slots below this are in the file
	dirty   bool   // the header in buf is newer than the file's
	chain   uint32
	started int64 // bytes of seg that the kernel was told to write

	unsynced []*segment // written to since their last sync, oldest first
}

func newAppender(s *Store, kind stream) *appender {
	return &appender{store: s, stream: kind, seq: 1, buf: make([]byte, (1+maxGroupBlocks)*scstore.BlockSize),
		header: groupHeader{body: make([]byte, 0, recordRoom)}}
}

// append writes as much of r as fits at the end of the stream and returns how
// many blocks that was (0 for a record without slots) and where they are. data
// holds r.count blocks, or nothing. Errors: errNeedSegment if the caller has to
// bring a segment first; nothing was written then.
func (a *appender) append(r record, data []byte) (int, loc, error) {
	if r.kind.hasSlots() && a.extends(&r) {
		if n := min(int(r.count), (recordRoom-len(a.header.body))/4, a.seg.tableSlot-a.seg.next); n > 0 {
			at := a.seg.next
			a.last.count += uint64(n)
			binary.BigEndian.PutUint16(a.header.body[a.lastAt+14:], uint16(a.last.count))
			return n, makeLoc(a.seg.id, at), a.place(data[:n*scstore.BlockSize])
		}
	}
	need := recordSize + r.kind.extraSize(min(r.count, 1))
	for !a.fits(need, r.kind.hasSlots()) {
		if err := a.openGroup(r.kind.hasSlots()); err != nil {
			return 0, 0, err
		}
	}
	n := 0
	if r.kind.hasSlots() {
		n = min(int(r.count), (recordRoom-len(a.header.body)-recordSize)/4, a.seg.tableSlot-a.seg.next)
		r.count, r.sums = uint64(n), nil
	}
	a.copied = r.seq != 0
	if !a.copied {
		r.seq = a.seq
	}
	a.seq++
	at := a.seg.next
	a.last, a.lastAt = r, len(a.header.body)
	a.header.body = r.appendTo(a.header.body)
	a.header.records++
	a.dirty = true
	if n == 0 {
		return 0, 0, nil
	}
	return n, makeLoc(a.seg.id, at), a.place(data[:n*scstore.BlockSize])
}

// extends reports whether r continues the group's last record.
func (a *appender) extends(r *record) bool {
	return a.open && a.header.records > 0 && !a.copied && r.seq == 0 && a.last.kind == r.kind && a.last.table == r.table &&
		a.last.gen == r.gen && a.last.first+a.last.count == r.first && r.kind == recordData
}

func (a *appender) fits(need int, slots bool) bool {
	return a.open && len(a.header.body)+need <= recordRoom && (!slots || a.seg.next < a.seg.tableSlot)
}

// place puts whole blocks into the next slots and notes their checksums.
func (a *appender) place(data []byte) error {
	first := a.seg.next
	n := len(data) / scstore.BlockSize
	for i := range n {
		block := data[i*scstore.BlockSize : (i+1)*scstore.BlockSize]
		sum := a.seg.seed.sum(block, first+i)
		a.seg.setSum(first+i, sum)
		a.header.body = binary.BigEndian.AppendUint32(a.header.body, sum)
	}
	a.seg.next += n
	a.header.dataSlots += n
	a.seg.live.Add(int64(n))
	a.dirty = true
	if len(data) < directWriteBytes {
		copy(a.buf[(first-a.header.slot)*scstore.BlockSize:], data)
		return nil
	}
	if err := a.writePending(first); err != nil {
		return err
	}
	if _, err := a.seg.file.WriteAt(data, int64(first)*scstore.BlockSize); err != nil {
		return fmt.Errorf("append to segment %x: %w", a.seg.id, err)
	}
	a.written = a.seg.next
	a.seg.visible.Store(int32(a.written))
	return nil
}

// writePending writes the buffered slots below end to the file.
func (a *appender) writePending(end int) error {
	if a.written >= end {
		return nil
	}
	from, to := (a.written-a.header.slot)*scstore.BlockSize, (end-a.header.slot)*scstore.BlockSize
	if _, err := a.seg.file.WriteAt(a.buf[from:to], int64(a.written)*scstore.BlockSize); err != nil {
		return fmt.Errorf("append to segment %x: %w", a.seg.id, err)
	}
	a.written = end
	a.seg.visible.Store(int32(end))
	return nil
}

// publish puts everything appended so far into the file: from here on it survives
// the death of this process. The header goes last, or with the data in one write.
func (a *appender) publish() error {
	if !a.dirty {
		return nil
	}
	a.header.revision++
	a.header.synced = a.store.synced.Load()
	a.header.sum = a.header.encode(a.store.id, a.buf[:scstore.BlockSize])
	headerWritten := a.written > a.header.slot
	if err := a.writePending(a.seg.next); err != nil {
		return err
	}
	if headerWritten {
		if _, err := a.seg.file.WriteAt(a.buf[:scstore.BlockSize], int64(a.header.slot)*scstore.BlockSize); err != nil {
			return fmt.Errorf("append to segment %x: %w", a.seg.id, err)
		}
	}
	a.dirty = false
	return nil
}

// behind returns how many bytes of the active segment the kernel was not told to write yet.
func (a *appender) behind() int64 {
	if a.seg == nil {
		return 0
	}
	return int64(a.written)*scstore.BlockSize - a.started
}

// closeGroup publishes the open group and lets no more records into it.
func (a *appender) closeGroup() error {
	if !a.open {
		return nil
	}
	if err := a.publish(); err != nil {
		return err
	}
	a.open = false
	a.chain = chainSum(a.header.sum, a.header.records)
	return nil
}

// openGroup closes the open group and begins the next one, in the next segment if
// this one is full. Errors: errNeedSegment.
func (a *appender) openGroup(slots bool) error {
	if err := a.closeGroup(); err != nil {
		return err
	}
	if a.seg == nil || a.seg.next >= a.seg.tableSlot || slots && a.seg.next+1 >= a.seg.tableSlot {
		return errNeedSegment
	}
	a.header = groupHeader{
		slot: a.seg.next, segment: a.seg.id, incarnation: a.store.incarnation, seq: a.seq,
		chain: a.chain, stream: a.stream, body: a.header.body[:0],
	}
	a.open, a.written = true, a.seg.next
	a.seg.next++
	return nil
}

// use makes g, which was begun, the active segment. The one before it is retired.
func (a *appender) use(g *segment) error {
	if err := a.leave(); err != nil {
		return err
	}
	a.seg, a.written, a.started = g, 0, 0
	a.unsynced = append(a.unsynced, g)
	return nil
}

// leave retires the active segment, if there is one.
func (a *appender) leave() error {
	if err := a.closeGroup(); err != nil || a.seg == nil {
		return err
	}
	g := a.seg
	a.seg = nil
	return g.retire(a.store.cache)
}

// sync makes the whole stream durable, oldest segment first, and returns only
// then. No append may run meanwhile: the map stream's form of Store.sync.
func (a *appender) sync() error {
	if err := a.closeGroup(); err != nil {
		return err
	}
	for _, g := range a.unsynced {
		if err := g.file.Datasync(); err != nil {
			return fmt.Errorf("sync segment %x: %w", g.id, err)
		}
	}
	a.unsynced = a.unsynced[:0]
	if a.seg != nil {
		a.unsynced = append(a.unsynced, a.seg)
	}
	return nil
}

// chainSum is what a group's successor names it by: its header's checksum and how
// many of its records count.
func chainSum(headerSum uint32, records int) uint32 {
	var b [6]byte
	binary.BigEndian.PutUint32(b[:], headerSum)
	binary.BigEndian.PutUint16(b[4:], uint16(records))
	return crc32.Checksum(b[:], castagnoli)
}
