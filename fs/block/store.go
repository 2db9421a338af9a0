package block

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"scstore"
	"scstore/fs/block/disk"
)

// The limits of the local store.
const (
	// DefaultMapMemoryBytes is how much of the extent map stays in memory.
	DefaultMapMemoryBytes = 32 << 20
	// MaxUnsyncedBytes is how much acknowledged data may wait for the device. From half
	// of it on writers are slowed down; one that comes to it waits for a sync.
	MaxUnsyncedBytes = 64 << 20
	// MaxReplayBytes bounds the log that a restart replays.
	MaxReplayBytes = 512 << 20
	// minReserveBytes is the smallest default of ReserveBytes: a store that has filled
	// its disk up to the reserve must be able to open its index again.
	minReserveBytes = indexOpenBytes + 48<<20
	// checkpointBytes of log make a checkpoint due.
	checkpointBytes = MaxReplayBytes / 2
	// MaxPins bounds the generations of one table that views, marks and clones hold:
	// all versions of a block must fit on one map page.
	MaxPins = 128
)

// Options says how a store is opened. The zero value of a field means its default.
type Options struct {
	// FS holds the segments and nothing else. Required.
	FS disk.FS
	// IndexDir is badger's folder. Required.
	IndexDir string
	// StoreID is the id that the store must have, or gets if it is new; zero takes any.
	StoreID scstore.StoreID
	// Logger gets state changes that a person acts on; nil discards them.
	Logger *slog.Logger
	// Registerer gets the store's metrics; nil keeps them nowhere.
	Registerer prometheus.Registerer
	// MapMemoryBytes caps the pages of the map and of checksum tables in memory.
	MapMemoryBytes int64
	// SegmentSlots is the size of segments in blocks when the store is made; by
	// default 16384 (64 MiB), less on a small file system. Later opens ignore it.
	SegmentSlots int
	// ReserveBytes of the file system are never taken; by default 128 MiB or 1 %,
	// whichever is more.
	ReserveBytes uint64
	// Rebuild makes the index anew from the segments.
	Rebuild bool

	// index replaces badger in tests of the crash model; plant puts a bug in; pick
	// says how many of so many runs a checkpoint merges.
	index rootIndex
	plant planted
	pick  func(runs int) int
}

// rootIndex says which checkpoint is in force (index.go).
type rootIndex interface {
	root() (rootPointer, error)
	commit(rootPointer) error
	close() error
}

func (o Options) withDefaults() (Options, error) {
	if o.FS == nil || o.IndexDir == "" && o.index == nil {
		return o, fmt.Errorf("open store: no folder: %w", scstore.ErrInvalid)
	}
	u, err := o.FS.Usage()
	if err != nil {
		return o, fmt.Errorf("open store: %w", err)
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.MapMemoryBytes == 0 {
		o.MapMemoryBytes = DefaultMapMemoryBytes
	}
	if o.SegmentSlots == 0 {
		o.SegmentSlots = defaultSlots(u.TotalBytes)
	}
	if o.ReserveBytes == 0 {
		o.ReserveBytes = max(minReserveBytes, min(u.TotalBytes/100, 4<<30))
	}
	if o.MapMemoryBytes < MinMapMemoryBytes || o.SegmentSlots < minSlots || o.SegmentSlots > maxSlots {
		return o, fmt.Errorf("open store: map memory %d, segment of %d slots: %w",
			o.MapMemoryBytes, o.SegmentSlots, scstore.ErrInvalid)
	}
	return o, nil
}

// defaultSlots sizes segments so that a small file system still holds many.
func defaultSlots(totalBytes uint64) int {
	slots := maxSlots
	for slots > minSlots && uint64(slots)*scstore.BlockSize*256 > totalBytes {
		slots /= 2
	}
	return slots
}

// Store is the local store of one host. All methods are safe for concurrent use.
// Lock order: createMu, ckptMu, paceMu, logMu, mapMu, then the leaf locks (pool, cache, syncMu, damageMu).
type Store struct {
	id          scstore.StoreID
	incarnation uint64
	slots       int
	opts        Options
	logger      *slog.Logger
	index       rootIndex
	cache       *pageCache
	pool        *pool
	metrics     *metrics

	// logMu guards the log stream, the tables' generations, and the order of
	// writes.
	logMu     sync.Mutex
	log       *appender
	logBytes  int64 // appended since the last checkpoint
	unsynced  int64 // bytes appended since the last sync began
	nextTable uint32
	marks     int   // of all tables
	poison    error // sticky; set once a write or sync failed

	// mapMu guards what a lookup walks. A memtable is changed under both locks.
	mapMu    sync.RWMutex
	mem      *memtable
	frozen   *memtable // being written as a run
	runs     []*run    // newest first; the slice is never changed in place
	tables   map[uint32]*Table
	byID     map[scstore.VolumeID]*Table
	segments map[uint64]*segment

	// createMu orders Create and Delete.
	createMu sync.Mutex

	// ckptMu guards the map stream and is held for a whole checkpoint or cleaning.
	ckptMu     sync.Mutex
	mapLog     *appender
	nextRun    uint32
	checkpoint uint64     // number of the last one
	capture    *capture   // of a checkpoint not yet in force; also guarded by logMu
	emptied    []*segment // by the cleaner; not named by the next checkpoint

	syncMu    sync.Mutex
	syncCond  sync.Cond
	syncing   bool
	syncBegan time.Time     // of the last round
	syncTook  time.Duration // of the last that ended
	synced    atomic.Uint64 // every record below this seq is durable

	// paceMu is held by the one writer that sleeps because it is slowed down.
	paceMu sync.Mutex
	paceAt time.Time // until then the bytes are used up that were written

	requests [taskCount]chan struct{}

	damageMu sync.Mutex
	damage   []Damage
	recovery RecoveryReport

	passes    passes // of the cleaner
	fatal     chan error
	group     *errgroup.Group
	cancel    context.CancelCauseFunc
	closeOnce sync.Once
	closeErr  error
}

// nextLogSeq returns the seq of the next record. logMu is held.
func (s *Store) nextLogSeq() uint64 { return s.log.seq }

// segment returns the segment with the id, or nil.
func (s *Store) segment(id uint64) *segment {
	s.mapMu.RLock()
	defer s.mapMu.RUnlock()
	return s.segments[id]
}

// noteDead takes slots off a segment's count of live ones. mapMu is held.
func (s *Store) noteDead(at loc, count uint64) {
	if !at.stored() {
		return
	}
	if g := s.segments[at.segment()]; g != nil {
		g.live.Add(-int64(count))
	}
}

// appendLog appends one record of table t (nil for one that makes a table) with
// its data, in as many pieces as the segments ask for, and applies each piece to
// the map: steps W2 and W3. It leaves reserve spare segments alone. The record's
// generation is the table's current one unless the record only moves blocks.
func (s *Store) appendLog(t *Table, r record, data []byte, reserve int) error {
	s.logMu.Lock()
	defer s.logMu.Unlock()
	return s.appendLocked(r, data, reserve, func(r *record) error {
		if err := s.throttle(r); err != nil {
			return err
		}
		return t.admit(r)
	})
}

// appendLocked is appendLog with logMu held. allow is asked before each piece,
// since the lock may have been let go of meanwhile.
func (s *Store) appendLocked(r record, data []byte, reserve int, allow func(*record) error) error {
	for {
		if s.poison != nil {
			return s.poison
		}
		if err := allow(&r); err != nil {
			return err
		}
		if s.pool.starved(reserve) {
			if err := s.awaitSpace(reserve); err != nil {
				return err
			}
			continue
		}
		n, at, err := s.log.append(r, data)
		if errors.Is(err, errNeedSegment) {
			if err := s.newLogSegment(reserve); err != nil {
				return err
			}
			continue
		}
		if err != nil {
			return s.poisonLocked(err)
		}
		piece := r
		if r.kind.hasSlots() {
			piece.count = uint64(n)
		}
		s.mapMu.Lock()
		s.apply(&piece, at)
		s.mapMu.Unlock()
		bytes := int64(n) * scstore.BlockSize
		s.logBytes += bytes + recordSize
		s.unsynced += bytes
		if !r.kind.hasSlots() || uint64(n) == r.count {
			return nil
		}
		r.first, r.count, data = r.first+uint64(n), r.count-uint64(n), data[bytes:]
	}
}

// apply changes the map and the tables as the record says. Replay runs the same
// code in the same order. logMu and mapMu are held.
func (s *Store) apply(r *record, at loc) {
	switch r.kind {
	case recordData:
		s.mem.put(entry{r.table, r.gen, r.first, r.count, at}, s.noteDead)
	case recordKept:
		s.mem.put(entry{r.table, r.gen, r.first, r.count, at | locKept}, s.noteDead)
	case recordZero, recordDiscard:
		s.mem.put(entry{r.table, r.gen, r.first, r.count, locHole}, s.noteDead)
	case recordSeal:
		s.tables[r.table].gen.Store(r.gen + 1)
	case recordFreeze:
		s.tables[r.table].frozen.Store(true)
	case recordResize:
		s.tables[r.table].sizeBytes.Store(r.sizeBytes)
	case recordCreate:
		s.addTable(rootTable{no: r.table, id: r.id, sizeBytes: r.sizeBytes, base: r.base, baseGen: r.baseGen})
	case recordDelete:
		if t := s.tables[r.table]; t != nil {
			s.dropTable(t)
		}
	case recordRemote:
		s.mem.put(entry{r.table, r.gen, r.first, r.count, locRemote}, s.noteDead)
		s.tables[r.table].remote.Add(int64(r.count))
	case recordMark, recordUnmark, recordAdvance, recordRollback:
		s.tables[r.table].applyMarks(r)
	case recordMapPage, recordRootPage, recordStaged:
		// Not of the log stream, or refused by the decoder.
	}
}

// newLogSegment makes a spare the log's active segment; while there is none but
// one will come, it lets go of logMu and waits.
func (s *Store) newLogSegment(reserve int) error {
	g, err := s.pool.take(reserve)
	switch {
	case errors.Is(err, errNeedSegment):
		s.logMu.Unlock()
		s.pool.wait(reserve)
		s.logMu.Lock()
		return nil
	case errors.Is(err, scstore.ErrNoSpace):
		return s.awaitSpace(reserve)
	case err != nil:
		return err
	}
	s.adopt(g, streamLog)
	if err := s.log.use(g); err != nil {
		return s.poisonLocked(err)
	}
	return nil
}

// adopt makes a spare one of the store's segments.
func (s *Store) adopt(g *segment, kind stream) {
	g.begin(kind) // before anybody else sees it
	s.mapMu.Lock()
	s.segments[g.id] = g
	s.mapMu.Unlock()
}

// appendMap appends to the map stream. ckptMu is held.
func (s *Store) appendMap(r record, data []byte) (int, loc, error) {
	for {
		n, at, err := s.mapLog.append(r, data)
		if !errors.Is(err, errNeedSegment) {
			return n, at, err
		}
		g, err := s.pool.take(reserveNone)
		switch {
		case errors.Is(err, errNeedSegment):
			s.pool.wait(reserveNone)
			continue
		case err != nil:
			return 0, 0, err
		}
		s.adopt(g, streamMap)
		if err := s.mapLog.use(g); err != nil {
			return 0, 0, err
		}
	}
}

// Publish puts everything that was written into the page cache: from here on it
// survives the death of this process. Call it before acknowledging a write.
// Errors: ErrPoisoned.
func (s *Store) Publish() error {
	s.logMu.Lock()
	defer s.logMu.Unlock()
	return s.publishLocked()
}

func (s *Store) publishLocked() error {
	if s.poison != nil {
		return s.poison
	}
	if err := s.log.publish(); err != nil {
		return s.poisonLocked(err)
	}
	return nil
}

// poisonLocked makes the first error of the log sticky: no write or flush
// succeeds any more, no fsync is tried again, reads of what was synced go on, and
// a restart replays what the disk really holds. logMu is held.
func (s *Store) poisonLocked(err error) error {
	if s.poison == nil {
		s.poison = scstore.Hint(fmt.Errorf("%w: %w", scstore.ErrPoisoned, err),
			"check the disk and restart scstore: it replays what the disk holds")
		s.logger.Error("store is poisoned: writes are refused until a restart", "err", err)
	}
	return s.poison
}

// Sync makes every write that returned before the call durable. Concurrent calls
// share one fdatasync (group commit). After an error nothing may be assumed, and
// no later call succeeds. Errors: ErrPoisoned.
func (s *Store) Sync() error {
	s.logMu.Lock()
	if err := s.publishLocked(); err != nil {
		s.logMu.Unlock()
		return err
	}
	target := s.nextLogSeq()
	s.logMu.Unlock()

	s.syncMu.Lock()
	for s.synced.Load() < target {
		if s.syncing {
			s.syncCond.Wait()
			continue
		}
		s.syncing, s.syncBegan = true, time.Now()
		s.syncMu.Unlock()
		err := s.syncRound()
		s.syncMu.Lock()
		s.syncing, s.syncTook = false, time.Since(s.syncBegan)
		s.syncCond.Broadcast()
		if err != nil {
			s.syncMu.Unlock()
			return err
		}
	}
	s.syncMu.Unlock()
	return nil
}

// syncRound syncs the log up to now: step W4. The group is closed first, so that
// no header which a sync covered is written again.
func (s *Store) syncRound() error {
	s.logMu.Lock()
	if s.poison != nil {
		s.logMu.Unlock()
		return s.poison
	}
	if err := s.log.closeGroup(); err != nil {
		defer s.logMu.Unlock()
		return s.poisonLocked(err)
	}
	target := s.nextLogSeq()
	todo := s.log.unsynced
	s.log.unsynced = nil
	if s.log.seg != nil {
		s.log.unsynced = []*segment{s.log.seg}
	}
	s.unsynced = 0
	s.logMu.Unlock()

	for _, g := range todo {
		if err := g.file.Datasync(); err != nil {
			s.logMu.Lock()
			defer s.logMu.Unlock()
			return s.poisonLocked(fmt.Errorf("sync segment %x: %w", g.id, err))
		}
	}
	s.synced.Store(target)
	s.metrics.syncs.Inc()
	return nil
}

// Fatal delivers one error when this process has to end: the disk was filled by
// somebody else, and the index could no longer be written safely.
func (s *Store) Fatal() <-chan error { return s.fatal }
