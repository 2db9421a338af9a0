package bench

import (
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"sync"

	"scstore"
)

// Limits of a Journal.
const (
	// MaxVerifyBlocks is the largest working set of a verified load: 64 GiB. A
	// Journal takes 17 bytes for each block.
	MaxVerifyBlocks = 16 << 20
	// MaxUnflushedWrites is how many acknowledged blocks may wait for a flush.
	MaxUnflushedWrites = 64 << 20
)

// Journal knows, for each block of a verified load, what may be read from it: the
// generation that the last flush covers, the last one acknowledged and the last one
// sent. It outlives the connection, so that the same Journal checks an export after
// its server was killed and started again, and goes on with the next load.
//
// Concurrency: safe for concurrent use.
type Journal struct {
	mu       sync.Mutex
	seed     uint64
	flushed  []uint32
	acked    []uint32
	issued   []uint32
	lastZero []uint32 // the newest generation that was written as zeros; 0 also means never written
	busy     []bool   // a write is in flight
	log      []ack    // acknowledged, in order, from number logStart on
	logStart uint64
	flushes  uint64 // acknowledged flushes
}

type ack struct{ block, generation uint32 }

// NewJournal makes the journal of an export whose first blockCount blocks read as
// zeros. Errors: ErrInvalid over MaxVerifyBlocks.
func NewJournal(seed uint64, blockCount int64) (*Journal, error) {
	if blockCount <= 0 || blockCount > MaxVerifyBlocks {
		return nil, fmt.Errorf("make a journal of %d blocks, want 1 to %d: %w", blockCount, MaxVerifyBlocks, scstore.ErrInvalid)
	}
	return &Journal{
		seed:     seed,
		flushed:  make([]uint32, blockCount),
		acked:    make([]uint32, blockCount),
		issued:   make([]uint32, blockCount),
		lastZero: make([]uint32, blockCount),
		busy:     make([]bool, blockCount),
	}, nil
}

// BlockCount returns how many blocks the journal covers.
func (j *Journal) BlockCount() int64 { return int64(len(j.issued)) }

// Flushes returns how many flushes were acknowledged.
func (j *Journal) Flushes() uint64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.flushes
}

// beginWrite gives the blocks [first, first+count) their next generation; ok is
// false if a write to one of them is in flight.
func (j *Journal) beginWrite(first, count int64, zero bool) (ok bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for b := first; b < first+count; b++ {
		if j.busy[b] {
			return false
		}
	}
	for b := first; b < first+count; b++ {
		j.busy[b] = true
		j.issued[b]++
		if zero {
			j.lastZero[b] = j.issued[b]
		}
	}
	return true
}

// appendPayload appends the stamped blocks of a write that has begun.
func (j *Journal) appendPayload(p []byte, first, count int64) []byte {
	for b := first; b < first+count; b++ {
		j.mu.Lock()
		s := Stamp{Seed: j.seed, Block: scstore.BlockIndex(b), Generation: j.issued[b]}
		j.mu.Unlock()
		p = s.AppendTo(p)
	}
	return p
}

// endWrite records that the write was acknowledged. Errors: ErrInvalid if more
// than MaxUnflushedWrites wait for a flush.
func (j *Journal) endWrite(first, count int64) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	for b := first; b < first+count; b++ {
		j.busy[b] = false
		j.acked[b] = j.issued[b]
		j.log = append(j.log, ack{uint32(b), j.issued[b]})
	}
	if len(j.log) > MaxUnflushedWrites {
		return fmt.Errorf("verify a load that never flushes: more than %d blocks: %w", MaxUnflushedWrites, scstore.ErrInvalid)
	}
	return nil
}

// beginFlush returns a mark: what was acknowledged so far.
func (j *Journal) beginFlush() (mark uint64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.logStart + uint64(len(j.log))
}

// endFlush records that the flush was acknowledged: what was before its mark is
// durable.
func (j *Journal) endFlush(mark uint64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.flushes++
	if mark <= j.logStart {
		return // a later flush came back first
	}
	n := mark - j.logStart
	for _, a := range j.log[:n] {
		j.flushed[a.block] = max(j.flushed[a.block], a.generation)
	}
	j.log = append(j.log[:0], j.log[n:]...)
	j.logStart = mark
}

// beginRead appends the lowest generation that a read sent now may return, for
// each block.
func (j *Journal) beginRead(floors []uint32, first, count int64) []uint32 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return append(floors, j.acked[first:first+count]...)
}

// endRead checks what a read returned. Errors: ErrCorrupt, with the first block
// that may not be so.
func (j *Journal) endRead(floors []uint32, first int64, p []byte) error {
	for i, floor := range floors {
		b := first + int64(i)
		got, err := j.find(b, p[i*scstore.BlockSize:(i+1)*scstore.BlockSize])
		if err != nil {
			return err
		}
		if got < floor {
			return fmt.Errorf("read block %d: generation %d, but %d was acknowledged before: %w", b, got, floor, scstore.ErrCorrupt)
		}
	}
	return nil
}

// find returns the generation that a block's content shows. Errors: ErrCorrupt if
// it is nothing that was ever sent to this block.
func (j *Journal) find(b int64, content []byte) (uint32, error) {
	j.mu.Lock()
	issued, lastZero := j.issued[b], j.lastZero[b]
	j.mu.Unlock()
	if isZero(content) {
		return lastZero, nil
	}
	s, err := ParseStamp(content)
	switch {
	case err != nil:
		return 0, fmt.Errorf("read block %d: %w: %w", b, scstore.ErrCorrupt, err)
	case s.Seed != j.seed, int64(s.Block) != b:
		return 0, fmt.Errorf("read block %d: holds block %d of load %d: %w", b, s.Block, s.Seed, scstore.ErrCorrupt)
	case s.Generation > issued:
		return 0, fmt.Errorf("read block %d: generation %d, but only %d were sent: %w", b, s.Generation, issued, scstore.ErrCorrupt)
	}
	return s.Generation, nil
}

// adopt takes what an export holds after a restart for what it acknowledged; the
// next flush covers it.
func (j *Journal) adopt(b int64, generation uint32) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.busy[b] = false
	j.acked[b] = generation
	if generation > j.flushed[b] {
		j.log = append(j.log, ack{uint32(b), generation})
	}
}

// forget empties the list of what waits for a flush.
func (j *Journal) forget() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.logStart += uint64(len(j.log))
	j.log = nil
}

// savedJournal is the Journal's form in a file.
type savedJournal struct {
	Seed                             uint64
	Flushes                          uint64
	Flushed, Acked, Issued, LastZero []uint32
}

// Save writes the journal, so that another process can verify the export. The load
// must have ended.
func (j *Journal) Save(w io.Writer) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	err := gob.NewEncoder(w).Encode(savedJournal{j.seed, j.flushes, j.flushed, j.acked, j.issued, j.lastZero})
	if err != nil {
		return fmt.Errorf("save the journal: %w", err)
	}
	return nil
}

// ReadJournal reads what Save wrote. Writes that were acknowledged and not flushed
// count as such; a later flush is not taken to cover them before Verify has found
// them. Errors: ErrInvalid.
func ReadJournal(r io.Reader) (*Journal, error) {
	var s savedJournal
	if err := gob.NewDecoder(r).Decode(&s); err != nil {
		return nil, fmt.Errorf("read the journal: %w: %w", scstore.ErrInvalid, err)
	}
	j, err := NewJournal(s.Seed, int64(len(s.Issued)))
	if err != nil {
		return nil, err
	}
	if len(s.Flushed) != len(s.Issued) || len(s.Acked) != len(s.Issued) || len(s.LastZero) != len(s.Issued) {
		return nil, fmt.Errorf("read the journal: tables of different length: %w", scstore.ErrInvalid)
	}
	for b := range s.Issued {
		if s.Flushed[b] > s.Acked[b] || s.Acked[b] > s.Issued[b] || s.LastZero[b] > s.Issued[b] {
			err = errors.Join(err, fmt.Errorf("read the journal: block %d flushed beyond what was sent: %w", b, scstore.ErrInvalid))
			return nil, err
		}
	}
	j.flushed, j.acked, j.issued, j.lastZero, j.flushes = s.Flushed, s.Acked, s.Issued, s.LastZero, s.Flushes
	return j, nil
}
