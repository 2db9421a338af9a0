package replica

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"scstore"
	"scstore/consensus/meta"
	"scstore/fs/block"
	"scstore/fs/volume"
	"scstore/nbd"
)

// Replica is one volume's copy on this host.
type Replica struct {
	set   *Set
	id    scstore.VolumeID
	group meta.GroupID // guarded by mu: 0 until it is known

	// rests says that the last tick found nothing to do, nor to wait for, and that nothing
	// has happened since: ticks pass it over.
	rests atomic.Bool

	// sealing holds a token while no seal is under way. It comes before mu.
	sealing chan struct{}

	// mu is held over a change of role and over the local disk's part of it, never while
	// the log or another host is waited for. A clone's comes before its base's.
	mu      sync.Mutex
	facts   Facts          // as on disk, unless unsaved
	unsaved bool           // the last attempt to write them failed
	refused scstore.Fence  // their Floor, as on disk
	table   *block.Table   // nil: nothing is here
	v       *volume.Volume // open for writing: this host owns it, or is handing it over; else nil

	// What the doors of an owner have, and of a hand-off's target before it owns:
	// requests wait then. Both are one device, so that a connection that was opened
	// while it was held goes on.
	device *device
	gate   *nbd.Gate

	revoked context.Context // its end closes the doors of this tenure
	revoke  context.CancelCauseFunc

	seals   bool               // epochs are sealed by time
	sealed  time.Duration      // when the last one was
	stamps  []stamp            // of the last epochs that were sealed here
	exposed time.Duration      // since when there are writes that are known to be here alone, now(); 0: none
	readers map[*device]func() // open for reading, with what ends them

	source *source // a hand-off from here
	target *target // a hand-off to here
	moving moving
	jump   *jump // the one who changes the table's head, other than v
	fill   *fill // brings what is missing
	hurry  int   // who waits for it

	verified struct { // what is remembered of the spans of the last position that a jump came to
		at    scstore.Position
		spans *volume.Verified // nil for nothing
	}

	retryAt  time.Duration // no jump before
	failures int           // in a row
	later    bool          // the state is looked at again in a moment
	buried   bool          // it was removed, and nothing is here any more
	bell     chan struct{} // closed when something changed
}

// stamp says since when what is in an epoch exists.
type stamp struct {
	at    scstore.Position
	first time.Duration // of its first write; now()
}

// maxStamps bounds what is remembered of them.
const maxStamps = 256

func sealedTag(at scstore.Position) scstore.Tag { return scstore.PositionTag(scstore.TagSealed, at) }

// tagged gives a table's views the type that package volume wants.
type tagged struct{ *block.Table }

// At returns a view of what a mark kept.
func (t tagged) At(tag scstore.Tag) (volume.View, error) {
	pin, err := t.Table.At(tag)
	if err != nil {
		return nil, err
	}
	return pin, nil
}

// baseChain returns what shows through, nearest first.
func baseChain(t *block.Table) (chain []volume.Reader) {
	for ; t.Base() != nil; t = t.Base() {
		chain = append(chain, t.BaseView())
	}
	return chain
}

// save writes the facts to stable storage. mu is held.
func (r *Replica) save() error {
	r.rests.Store(false)
	r.facts.ID, r.facts.Group = r.id, r.group
	if err := writeFacts(r.set.o.Dir, r.facts); err != nil {
		r.unsaved = true
		r.set.log.Error("what is known of a volume can't be written", "volume", r.id, "err", err)
		return fmt.Errorf("write down what is known of volume %s: %w", r.id, err)
	}
	r.unsaved, r.refused = false, r.facts.Floor
	return nil
}

// ring wakes who waits for a change. mu is held.
func (r *Replica) ring() {
	r.rests.Store(false)
	close(r.bell)
	r.bell = make(chan struct{})
}

// wait waits until cond, which is called with mu held, says so. Errors: ctx's cause,
// ErrClosed, cond's.
func (r *Replica) wait(ctx context.Context, cond func() (bool, error)) error {
	for {
		r.mu.Lock()
		ok, err := cond()
		bell := r.bell
		r.mu.Unlock()
		if ok || err != nil {
			return err
		}
		select {
		case <-bell:
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-r.set.ctx.Done():
			return fmt.Errorf("volume %s: %w", r.id, scstore.ErrClosed)
		}
	}
}

// acknowledges reports whether requests are answered here: I4. mu is held.
func (r *Replica) acknowledges() bool {
	return r.v != nil && r.facts.Fence != 0 && r.facts.Fence > r.facts.Floor && r.facts.Draining == nil
}

// newest returns the newest complete position of the history, zero for none. mu is
// held.
func (r *Replica) newest(st *meta.State) scstore.Position {
	return r.newestOf(st.History(r.id))
}

func (r *Replica) newestOf(history []meta.Point) scstore.Position {
	for _, at := range slices.Backward(r.facts.Holds) {
		if inHistory(history, at) {
			return at
		}
	}
	return scstore.Position{}
}

// inHistory reports whether the position is part of the history, not left out of it.
func inHistory(history []meta.Point, at scstore.Position) bool {
	p, ok := pointAt(history, at)
	return ok && p.Line == 0
}

func pointAt(history []meta.Point, at scstore.Position) (meta.Point, bool) {
	i, found := slices.BinarySearchFunc(history, at, func(p meta.Point, at scstore.Position) int { return p.Position.Compare(at) })
	if !found {
		return meta.Point{}, false
	}
	return history[i], true
}

// adopt begins to serve writes under a fence, from start on, whose mark is there,
// complete or in part. What this host wrote above it under a fence of its own stays, and
// is in the next epoch. A device that was held, or had a fence before, goes on. After an
// error all is as before, and the state is looked at again in a moment. mu is held.
func (r *Replica) adopt(fence scstore.Fence, start scstore.Position) error {
	if err := r.adoptNow(fence, start); err != nil {
		r.reviewLater()
		return err
	}
	r.set.log.Info("volume is written here", "volume", r.id, "fence", uint64(fence), "from", start.String(), "missing_blocks", r.table.RemoteBlocks())
	r.ring()
	r.set.wakeUp()
	return nil
}

func (r *Replica) adoptNow(fence scstore.Fence, start scstore.Position) error {
	if r.table == nil {
		return fmt.Errorf("own volume %s from %s on: nothing of it is here: %w", r.id, start, scstore.ErrAbsent)
	}
	if r.facts.Fence == 0 {
		r.stopJump()
		if err := r.settleToWrite(start); err != nil {
			return fmt.Errorf("own volume %s: %w", r.id, err)
		}
	}
	old := r.facts
	r.facts.Fence, r.facts.Head, r.facts.Pending, r.facts.Draining = fence, start, nil, nil
	r.facts.Jump, r.facts.Creating = nil, false
	if start != (scstore.Position{}) && !r.facts.holds(start) {
		r.facts.Partial = start
	}
	v, dirty, err := r.openVolume()
	if err == nil {
		if err = r.save(); err == nil {
			r.serve(v, dirty)
			return nil
		}
		_ = v.Close() // nothing was written to it
	}
	r.facts = old
	return err
}

// reviewLater has the state looked at again for this volume. mu is held.
func (r *Replica) reviewLater() {
	if r.later {
		return
	}
	r.later = r.set.spawn(func(ctx context.Context) {
		pause(ctx, reviewAgain)
		r.mu.Lock()
		r.later = false
		g := r.group
		r.mu.Unlock()
		if ctx.Err() == nil {
			r.set.review(g, []scstore.VolumeID{r.id})
		}
	})
}

// openVolume opens the volume under the fence of the facts, and says whether there are
// writes that are in no epoch. mu is held.
func (r *Replica) openVolume() (v *volume.Volume, dirty bool, err error) {
	if dirty, err = r.written(r.facts.Head); err != nil {
		return nil, false, err
	}
	v, err = volume.Open(volume.Options{ID: r.id, Table: tagged{r.table}, Base: baseChain(r.table), Fence: r.facts.Fence, Head: r.facts.Head})
	return v, dirty, err
}

// serve binds the device to the volume that was opened under the fence of the facts. mu
// is held.
func (r *Replica) serve(v *volume.Volume, dirty bool) {
	old := r.v
	r.v = v
	if r.device == nil {
		r.openDevice()
	}
	if dirty {
		r.device.note(scstore.BlockSize)
	}
	r.device.bind(v)
	if r.facts.Floor >= r.facts.Fence {
		v.Revoke(r.facts.Floor + 1)
	}
	if old != nil {
		_ = old.Close() // it has nothing that could fail
	}
	r.seals = r.facts.Draining == nil
	r.endReaders(fmt.Errorf("volume %s is written here now: %w", r.id, scstore.ErrBusy))
	r.gate.Resume()
}

// written reports whether the table's head holds more than the mark of a position. mu
// is held.
func (r *Replica) written(at scstore.Position) (bool, error) {
	var tag scstore.Tag
	if at != (scstore.Position{}) {
		if tag = sealedTag(at); !r.table.Marked(tag) {
			return true, nil
		}
	}
	return r.above(tag)
}

// openDevice makes the device of a tenure, with its gate. mu is held.
func (r *Replica) openDevice() {
	r.gate = &nbd.Gate{}
	r.revoked, r.revoke = context.WithCancelCause(context.Background())
	r.device = &device{r: r, size: r.size(), gate: r.gate, revoked: r.revoked}
}

// size is the volume's. mu is held.
func (r *Replica) size() int64 {
	if r.table != nil {
		return r.table.SizeBytes()
	}
	return r.facts.SizeBytes
}

// hold makes what the doors of a hand-off's target have: its requests wait at the gate
// until this host owns the volume. mu is held.
func (r *Replica) hold() {
	if r.device == nil {
		r.openDevice()
		_ = r.gate.Pause(context.Background()) // nobody is inside
		r.endReaders(fmt.Errorf("volume %s is being handed over to this host: %w", r.id, scstore.ErrBusy))
	}
}

// unhold ends what hold began, unless this host came to own the volume. mu is held.
func (r *Replica) unhold(cause error) {
	if r.device != nil && r.v == nil {
		r.dropDevice(cause)
	}
}

// dropDevice ends the doors of a tenure. mu is held.
func (r *Replica) dropDevice(cause error) {
	if r.device == nil {
		return
	}
	r.device.ended.Store(&cause)
	r.revoke(cause)
	r.device.bind(nil)
	r.device = nil
	r.ring()
}

// endTenure ends the right to write: from here on the volume is read-only here. What
// was written since the last seal is given up. mu is held.
func (r *Replica) endTenure(cause error) {
	if r.v != nil {
		r.v.Revoke(r.facts.Fence + 1)
		_ = r.v.Close()
		r.v = nil
	}
	if r.facts.Fence != 0 && r.table != nil {
		if dirty, err := r.written(r.facts.Head); dirty || err != nil {
			r.facts.Jump = &JumpFacts{From: r.facts.Head}
		}
	}
	// The state that a restart reads again may still say that the fence is this host's.
	r.facts.Floor = max(r.facts.Floor, r.facts.Fence)
	r.facts.Fence, r.facts.Pending, r.facts.Draining = 0, nil, nil
	r.seals = false
	if err := r.save(); err != nil {
		// The floor of the facts keeps a restart from writing under that fence.
		r.set.log.Warn("the end of a tenure is not on disk", "volume", r.id, "err", err)
	}
	r.dropDevice(cause)
	r.set.log.Info("volume is not written here any more", "volume", r.id, "cause", cause)
	r.ring()
}

// endReaders ends the doors that read a position. mu is held.
func (r *Replica) endReaders(cause error) {
	for d, end := range r.readers {
		d.ended.Store(&cause)
		end()
	}
}

// marks returns the positions of the table's sealed marks, the oldest generation first.
// mu is held.
func (r *Replica) marks() (list []scstore.Position) {
	if r.table == nil {
		return nil
	}
	for _, tag := range r.table.Marks() {
		if tag.Kind == scstore.TagSealed {
			list = append(list, tag.Position())
		}
	}
	return list
}

// changed lists the blocks that may differ between two marks, whichever is older.
func (r *Replica) changed(ctx context.Context, from, to scstore.Position) ([]scstore.Extent, error) {
	r.mu.Lock()
	t, marks := r.table, r.marks()
	r.mu.Unlock()
	if t == nil {
		return nil, fmt.Errorf("changes of volume %s: %w", r.id, scstore.ErrNotFound)
	}
	return changedWithin(ctx, t, marks, from, to, blocksOf(t))
}

// changedWithin lists what was written between two of a table's marks, which are given
// the oldest first. The table's order decides, not that of the positions: one that was
// brought later is newer.
func changedWithin(ctx context.Context, t *block.Table, marks []scstore.Position, from, to scstore.Position, window scstore.Extent) ([]scstore.Extent, error) {
	i, j := slices.Index(marks, from), slices.Index(marks, to)
	if i < 0 && from != (scstore.Position{}) || j < 0 {
		return nil, fmt.Errorf("changes of volume %s from %s to %s: %w", t.ID(), from, to, scstore.ErrNotFound)
	}
	if i > j {
		i, j = j, i
	}
	var tag scstore.Tag
	if i >= 0 {
		tag = sealedTag(marks[i])
	}
	return volume.Changed(ctx, t, tag, sealedTag(marks[j]), window)
}

// digest returns the root over what changed between two marks, in the content of to: what a
// branch is known by.
func (r *Replica) digest(ctx context.Context, from, to scstore.Position) (scstore.Digest, error) {
	extents, err := r.changed(ctx, from, to)
	if err != nil {
		return scstore.Digest{}, err
	}
	pin, err := r.table.At(sealedTag(to))
	if err != nil {
		return scstore.Digest{}, err
	}
	defer pin.Release()
	chain := append([]volume.Reader{pin}, baseChain(r.table)...)
	return volume.DigestExtents(ctx, chain, r.table.SizeBytes(), extents)
}
