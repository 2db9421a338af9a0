package block

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"scstore"
)

// Open opens the store in o.FS, making one if the folder is empty, and recovers
// what the last process left: the newest checkpoint and the log that followed it.
// It serves nothing until its own first checkpoint is in force, so that no log is
// ever replayed over two incarnations. ctx bounds the opening only.
//
// Errors: ErrVersion (made by a newer scstore), ErrCorrupt (with a hint),
// ErrNoSpace (nothing was changed), ErrInvalid, also for the files of another store.
func Open(ctx context.Context, o Options) (*Store, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	if err := o.checkSpace(); err != nil {
		return nil, err
	}
	super, err := openSuperblock(o.FS, o.StoreID, o.SegmentSlots)
	if err != nil {
		return nil, err
	}
	s := newStore(o, super)
	started := time.Now()
	if err := s.recover(); err != nil {
		return nil, errors.Join(err, s.closeFiles())
	}
	s.start()
	if err := errors.Join(ctx.Err(), s.Checkpoint()); err != nil {
		return nil, errors.Join(fmt.Errorf("open store: %w", err), s.stop(), s.closeFiles())
	}
	s.recovery.Took = time.Since(started)
	return s, nil
}

// checkSpace refuses to open badger where it would die.
func (o Options) checkSpace() error {
	if o.index != nil {
		return nil
	}
	u, err := o.FS.Usage()
	if err != nil {
		return fmt.Errorf("open store: %w", err)
	}
	if u.FreeBytes < indexOpenBytes {
		return scstore.Hint(fmt.Errorf("open store: %d bytes free, %d needed: %w", u.FreeBytes, uint64(indexOpenBytes), scstore.ErrNoSpace),
			"free space on the store's file system; nothing of the store was changed")
	}
	return nil
}

func newStore(o Options, super superblock) *Store {
	s := &Store{
		id: super.id, incarnation: super.incarnation, slots: super.slots, opts: o, logger: o.Logger,
		cache: newPageCache(o.MapMemoryBytes), metrics: newMetrics(o.Registerer),
		nextTable: 1, nextRun: 1, mem: newMemtable(), tables: map[uint32]*Table{},
		byID: map[scstore.VolumeID]*Table{}, segments: map[uint64]*segment{}, fatal: make(chan error, 1),
	}
	s.log, s.mapLog = newAppender(s, streamLog), newAppender(s, streamMap)
	s.syncCond.L = &s.syncMu
	s.passes.cond.L = &s.passes.mu
	for i := range s.requests {
		s.requests[i] = make(chan struct{}, 1)
	}
	freeMax := int(4<<30/(int64(super.slots)*scstore.BlockSize)) + spareTarget
	s.pool = &pool{
		fs: o.FS, store: super.id, incarnation: super.incarnation, slots: super.slots,
		reserveBytes: o.ReserveBytes, freeMax: freeMax, nextID: 1, wake: make(chan struct{}, 1),
	}
	s.pool.cond = *sync.NewCond(&s.pool.mu)
	return s
}

// start starts the filler and the store's own work.
func (s *Store) start() {
	ctx, cancel := context.WithCancelCause(context.Background())
	s.cancel = cancel
	s.group, ctx = errgroup.WithContext(ctx)
	s.group.Go(func() error { return s.pool.fill(ctx) })
	for kind, work := range map[task]func(context.Context){
		taskWriteBack:  func(context.Context) { s.writeBack() },
		taskSync:       func(context.Context) { _ = s.Sync() },
		taskCheckpoint: func(context.Context) { s.tryCheckpoint() },
		taskClean:      s.clean,
	} {
		s.group.Go(func() error {
			for {
				select {
				case <-ctx.Done():
					return nil
				case <-s.requests[kind]:
					work(ctx)
				}
			}
		})
	}
}

// task is work that a writer asks for and does not wait for.
type task int

const (
	taskWriteBack  task = iota // the device has little to do: flushes should find little left
	taskSync                   // a lot is unsynced: the next flush should not pay for all of it
	taskCheckpoint             // the log to replay grows long
	taskClean                  // space runs low
	taskCount
)

// request asks for a task; one request that waits is enough.
func (s *Store) request(kind task) {
	select {
	case s.requests[kind] <- struct{}{}:
	default:
	}
}

// requestSpace asks the cleaner for space.
func (s *Store) requestSpace() { s.request(taskClean) }

func (s *Store) tryCheckpoint() {
	if err := s.Checkpoint(); err != nil {
		s.logger.Warn("checkpoint did not come into force", "err", err)
	} else if s.wasteful() {
		s.requestSpace()
	}
}

// Close makes everything durable, takes a last checkpoint and closes the store.
// Tables must not be used any more. It is idempotent and returns the first error;
// after one, a restart replays the log.
func (s *Store) Close() error {
	s.closeOnce.Do(func() {
		err := s.checkpointMode(false, true)
		s.closeErr = errors.Join(err, s.stop(), s.closeFiles())
	})
	return s.closeErr
}

// stop ends the store's goroutines.
func (s *Store) stop() error {
	if s.cancel == nil {
		return nil
	}
	s.cancel(scstore.ErrClosed)
	s.passes.note(func() { s.passes.closed = true })
	s.pool.mu.Lock()
	s.pool.closed = true
	s.pool.cond.Broadcast()
	s.pool.mu.Unlock()
	return s.group.Wait()
}

func (s *Store) closeFiles() error {
	s.logMu.Lock()
	if s.poison == nil {
		s.poison = fmt.Errorf("store: %w", scstore.ErrClosed)
	}
	s.logMu.Unlock()
	errs := []error{s.pool.close()}
	s.mapMu.Lock()
	for _, g := range s.segments {
		errs = append(errs, g.file.Close())
	}
	clear(s.segments)
	s.mapMu.Unlock()
	if s.index != nil {
		errs = append(errs, s.index.close())
	}
	s.metrics.unregister()
	return errors.Join(errs...)
}
