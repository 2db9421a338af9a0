package replica

import (
	"context"
	"fmt"
	"slices"
	"time"

	"scstore"
	"scstore/consensus/meta"
)

// learnInterval is between two rounds of asking for a map.
const learnInterval = 200 * time.Millisecond

// ownBlind begins to own a volume whose map at the start of the fence is not here: the
// entry was applied and RELEASE did not come, or this host restarted between, or it was
// promoted without a copy. It may be called many times.
//
// The paper's blind mode acknowledges writes of whole blocks before there is a map.
// This is narrower: until the map of the start was fetched, from the source or any other
// host that has the position, requests wait and nothing is acknowledged. That takes a
// round trip more, in a case that needs a lost message, and saves a second kind of
// table. Precondition: mu is held.
func (r *Replica) ownBlind(fence scstore.Fence, start scstore.Position) {
	if r.moving.blind == fence {
		return
	}
	g := r.group
	if !r.set.moves.start(func(ctx context.Context) { r.learn(ctx, g, fence, start) }) {
		return
	}
	r.moving.blind = fence
	r.hold()
	r.set.log.Info("volume is this host's, and waits for its map", "volume", r.id, "fence", uint64(fence), "from", start.String())
}

// learn fetches the map of a start until it is here, or the fence is not this host's any
// more.
func (r *Replica) learn(ctx context.Context, g meta.GroupID, fence scstore.Fence, start scstore.Position) {
	defer func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.moving.blind == fence {
			r.moving.blind = 0
		}
	}()
	for ctx.Err() == nil {
		var now tenureNow
		var from []meta.DiskID
		err := r.set.o.Log.View(g, func(st *meta.State) { now, from = tenureIn(st, r.id), r.holders(st, fence, start) })
		r.mu.Lock()
		gone := err == nil && (!r.mayOwn(now) || now.Fence != fence)
		if gone {
			r.unhold(fmt.Errorf("volume %s went on to another host: %w", r.id, scstore.ErrFenced))
		}
		r.mu.Unlock()
		if gone {
			return
		}
		if len(from) == 0 && start == (scstore.Position{}) {
			from = append(from, r.set.o.Disk) // nothing was committed: there is nothing to ask anybody for
		}
		for _, disk := range from {
			if err = r.learnFrom(ctx, g, disk, fence, start); err == nil {
				return
			}
			if ctx.Err() == nil {
				r.set.log.Warn("the map of a volume did not come", "volume", r.id, "position", start.String(), "from", disk, "err", err)
			}
		}
		pause(ctx, learnInterval)
	}
}

// holders returns who may have a position: who has all of it, and who wrote before.
func (r *Replica) holders(st *meta.State, fence scstore.Fence, start scstore.Position) []meta.DiskID {
	list := st.CompleteHolders(r.id, start)
	for _, g := range slices.Backward(st.Grants(r.id)) {
		if g.Holder != "" && g.Fence < fence && g.Fence+2 >= fence && !slices.Contains(list, g.Holder) {
			list = append(list, g.Holder)
		}
	}
	return slices.DeleteFunc(list, func(d meta.DiskID) bool { return d == r.set.o.Disk })
}

// learnFrom fetches the map from one host, and owns. A jump that was under way may have
// brought another position first.
func (r *Replica) learnFrom(ctx context.Context, g meta.GroupID, from meta.DiskID, fence scstore.Fence, start scstore.Position) error {
	for range 2 {
		at, err := r.partial(ctx, start, from)
		if err != nil {
			return err
		}
		if at == start {
			break
		}
	}
	var now tenureNow
	if err := r.set.o.Log.View(g, func(st *meta.State) { now = tenureIn(st, r.id) }); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case !r.mayOwn(now) || now.Fence != fence:
		return fmt.Errorf("volume %s: fence %d: %w", r.id, fence, scstore.ErrFenced)
	case !r.shows(start):
		return fmt.Errorf("volume %s: the map of %s is not here: %w", r.id, start, scstore.ErrAbsent)
	}
	return r.adopt(fence, start)
}
