package block

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"scstore"
	"scstore/fs/block/disk"
)

// errNeedSegment asks the caller of an append to bring a segment and try again.
var errNeedSegment = errors.New("stream needs a segment")

// How far down an append may go in the spare segments. Data written by guests
// leave the last ones to what frees space, that to the cleaner, which makes space
// of it, and all to checkpoints, without which nothing is ever freed.
const (
	reserveNone       = 0 // checkpoints
	reserveCheckpoint = 1 // the cleaner: it empties at least one segment into its own
	reserveCleaner    = 2 // discards, and what else frees space
	reserveDiscards   = 3 // guests' data

	// spareTarget is how many segments the filler keeps ready.
	spareTarget = reserveDiscards + 2
)

// poolPollInterval is how often a full file system is asked for room again.
const poolPollInterval = time.Second

// pool keeps segments ready: zero-filled, named, with a durable header, so that
// an append and its fdatasync never allocate (measured: 1.7-2.9 times the cost of
// a flush otherwise). Its filler is the only one to make, recycle or remove files.
type pool struct {
	fs           disk.FS
	store        scstore.StoreID
	incarnation  uint64
	slots        int
	reserveBytes uint64
	freeMax      int

	mu     sync.Mutex
	cond   sync.Cond
	spares []*segment
	free   []disk.File // recyclable, no longer named by any durable checkpoint
	names  []string    // of free
	nextID uint64
	full   bool  // the file system has no room for another segment
	making bool  // the filler is making a spare of a free file
	hurry  bool  // the filler is behind: segments are only reserved, not zero-filled
	err    error // of the filler; sticky
	closed bool
	wake   chan struct{}
}

// take returns a spare segment, leaving at least reserve of them. Errors:
// errNeedSegment if one will come (wait), ErrNoSpace if none will.
func (p *pool) take(reserve int) (*segment, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.kick()
	p.hurry = p.hurry || len(p.spares) <= reserve+1 // this is the last one
	switch {
	case p.closed:
		return nil, fmt.Errorf("take segment: %w", scstore.ErrClosed)
	case p.err != nil:
		return nil, p.err
	case len(p.spares) > reserve:
		g := p.spares[0]
		p.spares = slices.Delete(p.spares, 0, 1)
		return g, nil
	case p.exhausted():
		return nil, fmt.Errorf("take segment: %w", scstore.ErrNoSpace)
	}
	return nil, errNeedSegment
}

// exhausted reports whether no spare will come by itself. p.mu is held.
func (p *pool) exhausted() bool { return p.full && len(p.free) == 0 && !p.making }

// starved reports whether fewer than reserve spares are left and none will come:
// then what is left of the active segment is not for those who have to leave that
// many either, or they would use up what the cleaner took for its copies.
func (p *pool) starved(reserve int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.spares) < reserve && p.exhausted()
}

// canTake reports whether take would bring a segment now.
func (p *pool) canTake(reserve int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.spares) > reserve
}

// peekID returns an id that no segment has yet.
func (p *pool) peekID() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.nextID
}

// short reports whether the file system has no room for more segments.
func (p *pool) short() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.full && len(p.free)+len(p.spares) <= spareTarget
}

// wait blocks until the pool may have changed for one who has to leave reserve
// spares.
func (p *pool) wait(reserve int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.undecided(reserve) {
		p.cond.Wait()
	}
}

// settle blocks until take would bring a segment, which it reports, or none will
// come by itself.
func (p *pool) settle(reserve int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.undecided(reserve) {
		p.cond.Wait()
	}
	return len(p.spares) > reserve
}

// undecided reports whether a spare that is missing may still come by itself. p.mu
// is held.
func (p *pool) undecided(reserve int) bool {
	return !p.closed && p.err == nil && len(p.spares) <= reserve && !p.exhausted()
}

// kick wakes the filler. p.mu is held.
func (p *pool) kick() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// give makes the files of dead segments recyclable. No durable checkpoint names
// or replays them any more.
func (p *pool) give(dead []*segment) {
	if len(dead) == 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, g := range dead {
		g.gone.Store(true)
		p.free = append(p.free, g.file)
		p.names = append(p.names, g.name)
	}
	p.kick()
	p.cond.Broadcast()
}

// fill is the filler: it runs until ctx ends.
func (p *pool) fill(ctx context.Context) error {
	poll := time.NewTicker(poolPollInterval)
	defer poll.Stop()
	for {
		for ctx.Err() == nil && p.fillOne() {
		}
		select {
		case <-ctx.Done():
			p.mu.Lock()
			p.closed = true
			p.cond.Broadcast()
			p.mu.Unlock()
			return nil
		case <-p.wake:
		case <-poll.C:
		}
	}
}

// fillOne makes one spare, or trims the free files, and reports whether there may
// be more to do.
func (p *pool) fillOne() bool {
	p.mu.Lock()
	if p.err != nil || p.closed {
		p.mu.Unlock()
		return false
	}
	want, haveFree := len(p.spares) < spareTarget, len(p.free)
	var file disk.File
	var name string
	if haveFree > 0 && (want || haveFree > p.freeMax || p.full) {
		file, name = p.free[haveFree-1], p.names[haveFree-1]
		p.free, p.names = p.free[:haveFree-1], p.names[:haveFree-1]
		p.making = true
	}
	id := p.nextID
	if want {
		p.nextID++
	} else {
		p.hurry = false
	}
	p.mu.Unlock()

	switch {
	case want && file != nil:
		return p.done(p.recycle(file, name, id))
	case want:
		return p.done(p.create(id))
	case file != nil:
		return p.done(nil, p.unlink(file, name))
	}
	return false
}

// done adds a made spare and reports whether the filler should go on.
func (p *pool) done(g *segment, err error) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	defer p.cond.Broadcast()
	p.making = false
	switch {
	case errors.Is(err, scstore.ErrNoSpace):
		p.full = true
		return false
	case err != nil:
		p.err = err
		return false
	}
	p.full = false
	if g != nil {
		p.spares = append(p.spares, g)
	}
	return true
}

// create makes a segment file and fills it with zeros, so that no later flush has to
// allocate. Errors: ErrNoSpace if the reserve would be touched; nothing is left then.
func (p *pool) create(id uint64) (*segment, error) {
	size := int64(p.slots) * scstore.BlockSize
	u, err := p.fs.Usage()
	if err != nil {
		return nil, fmt.Errorf("make segment: %w", err)
	}
	if u.FreeBytes < uint64(size)+p.reserveBytes {
		return nil, fmt.Errorf("make segment: %d bytes free: %w", u.FreeBytes, scstore.ErrNoSpace)
	}
	name := segmentName(id)
	f, err := p.fs.Create(name)
	if err != nil {
		return nil, fmt.Errorf("make segment: %w", err)
	}
	g := newSegment(p.store, id, p.slots, f)
	if err = f.Allocate(size); err == nil {
		err = p.writeZeros(f, size)
	}
	if err == nil {
		err = p.finish(g)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make segment %s: %w", name, err), p.unlink(f, name))
	}
	return g, nil
}

// writeZeros fills the file, as long as the filler keeps up. A writer that streams faster
// is better served without: it would write everything twice, and its flushes are rare.
func (p *pool) writeZeros(f disk.File, size int64) error {
	zeros := make([]byte, min(size, 1<<20))
	for off := int64(0); off < size && !p.behind(); off += int64(len(zeros)) {
		if _, err := f.WriteAt(zeros[:min(int64(len(zeros)), size-off)], off); err != nil {
			return err
		}
	}
	return nil
}

// behind reports whether the filler should hurry.
func (p *pool) behind() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.hurry
}

// recycle gives a dead segment's file a new id. What it holds stays; no header in
// it verifies under the new id.
func (p *pool) recycle(f disk.File, name string, id uint64) (*segment, error) {
	g := newSegment(p.store, id, p.slots, f)
	if err := p.fs.Rename(name, g.name); err != nil {
		return nil, fmt.Errorf("recycle segment %s: %w", name, err)
	}
	return g, p.finish(g)
}

// finish makes a new segment durable: header, file, folder.
func (p *pool) finish(g *segment) error {
	h := segmentHeader{slots: p.slots, store: p.store, id: g.id, incarnation: p.incarnation}
	if _, err := g.file.WriteAt(h.appendTo(nil), 0); err != nil {
		return fmt.Errorf("make segment %s: %w", g.name, err)
	}
	if err := g.file.Datasync(); err != nil {
		return fmt.Errorf("make segment %s: %w", g.name, err)
	}
	if err := p.fs.SyncDir(); err != nil {
		return fmt.Errorf("make segment %s: %w", g.name, err)
	}
	return nil
}

func (p *pool) unlink(f disk.File, name string) error {
	if err := errors.Join(f.Close(), p.fs.Remove(name)); err != nil {
		return fmt.Errorf("remove segment %s: %w", name, err)
	}
	return nil
}

// close closes the files that no segment of the store owns.
func (p *pool) close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var errs []error
	for _, g := range p.spares {
		errs = append(errs, g.file.Close())
	}
	for _, f := range p.free {
		errs = append(errs, f.Close())
	}
	p.spares, p.free, p.names = nil, nil, nil
	return errors.Join(errs...)
}
