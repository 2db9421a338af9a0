package host

import (
	"context"
	"errors"
	"time"

	"scstore"
	"scstore/consensus/meta"
	"scstore/internal/cluster"
)

// What removals leave behind goes after these times.
const (
	cleanEvery  = time.Minute      // between two looks
	lookEvery   = 5 * time.Second  // at who has a majority
	forgetSoon  = 3 * time.Second  // by the host that removed
	forgetGrace = 10 * time.Minute // by the leader, if that host did not
	orphanGrace = time.Hour        // for what never got its name
)

// forgetLater drops a record's tombstone in a moment. If this host stops before, the
// leader does it.
func (c *clustered) forgetLater(g meta.GroupID, id scstore.VolumeID) {
	c.background(func(ctx context.Context) {
		timer := time.NewTimer(forgetSoon)
		defer timer.Stop()
		select {
		case <-timer.C:
			c.forget(ctx, g, id)
		case <-ctx.Done():
		}
	})
}

// forget drops a tombstone.
func (c *clustered) forget(ctx context.Context, g meta.GroupID, id scstore.VolumeID) {
	_, err := c.propose(ctx, g, meta.Forget{ID: id})
	if err != nil && !errors.Is(err, scstore.ErrNotFound) {
		c.h.log.Debug("tombstone stays for now", "volume", id.String(), "err", err)
	}
}

// forgetClones drops the tombstones of what was based on a record, so that it can be
// removed.
func (c *clustered) forgetClones(ctx context.Context, g meta.GroupID, id scstore.VolumeID) error {
	var gone []scstore.VolumeID
	err := c.view(g, func(s *meta.State) {
		for _, r := range s.Tombstones() {
			if r.Base == id {
				gone = append(gone, r.ID)
			}
		}
	})
	for _, clone := range gone {
		c.forget(ctx, g, clone)
	}
	return err
}

// background runs f until the host closes.
func (c *clustered) background(f func(context.Context)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.life != nil && c.life.Err() == nil {
		c.done.Go(func() { f(c.life) })
	}
}

// clean looks now and then at what is left over in the groups that this host leads, and
// at which groups have a majority.
func (c *clustered) clean(ctx context.Context) {
	again, look := time.NewTicker(cleanEvery), time.NewTicker(lookEvery)
	defer again.Stop()
	defer look.Stop()
	seen := map[meta.GroupID]sightings{}
	for {
		select {
		case <-look.C:
			c.lost.see(c.log.Status().Groups, time.Now())
			continue
		case <-again.C:
		case <-ctx.Done():
			return
		}
		for _, g := range cluster.VolumeGroupIDs() {
			if leader, ok := c.log.Leader(g); !ok || leader != c.h.disk() {
				continue
			}
			var err error
			if seen[g], err = c.cleanGroup(ctx, g, time.Now(), seen[g]); err != nil && ctx.Err() == nil {
				c.h.log.Debug("group not cleaned", "group", uint64(g), "err", err)
			}
		}
	}
}

// sightings is when each tombstone of a group was first looked at.
type sightings map[scstore.VolumeID]time.Time

// cleanGroup forgets the tombstones that are old and removes the records that have had no
// name for long. It returns what to call it with next.
func (c *clustered) cleanGroup(ctx context.Context, g meta.GroupID, now time.Time, seen sightings) (sightings, error) {
	var tombstones, records []meta.Record
	err := c.view(g, func(s *meta.State) { tombstones, records = s.Tombstones(), s.Records() })
	if err != nil {
		return seen, err
	}
	next := sightings{}
	for _, r := range tombstones {
		first, known := seen[r.ID]
		if !known {
			first = now
		}
		next[r.ID] = first
		if now.Sub(first) >= forgetGrace {
			c.forget(ctx, g, r.ID)
		}
	}
	return next, c.removeNameless(ctx, g, now, records)
}

// removeNameless removes the records that have had no name for long.
func (c *clustered) removeNameless(ctx context.Context, g meta.GroupID, now time.Time, records []meta.Record) error {
	// A name that was there when the record was is seen by this read.
	named := map[scstore.VolumeID]bool{}
	err := c.log.Read(ctx, meta.GroupNamespace, func(s *meta.State) {
		for _, e := range s.Entries("") {
			named[e.ID] = true
		}
	})
	if err != nil {
		return err
	}
	for _, r := range records {
		if r.Life != meta.Live || r.Kind == meta.KindBranch || named[r.ID] || now.Sub(time.UnixMilli(r.CreatedAtMs)) < orphanGrace {
			continue
		}
		c.h.log.Info("removing what an unfinished command left", "volume", r.ID.String(), "group", uint64(g))
		if _, err := c.propose(ctx, g, meta.Remove{ID: r.ID}); err != nil && !errors.Is(err, scstore.ErrNotFound) {
			return err
		}
	}
	return nil
}
