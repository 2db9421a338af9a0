package host

import (
	"context"
	"errors"
	"fmt"
	"time"

	"scstore"
	"scstore/consensus/meta"
	"scstore/internal/cluster"
)

// What removals and unfinished commands leave behind.
const (
	cleanEvery   = time.Minute      // between two looks
	lookEvery    = 5 * time.Second  // at who has a majority
	orphanGrace  = time.Hour        // for a record that has no name yet
	clonesGrace  = 15 * time.Second // for the data of removed clones to go everywhere
	clonesPeriod = 50 * time.Millisecond
)

// awaitClones waits until what was based on a record and has no name any more is gone from
// all hosts that had it, and so forgotten: before, the record can't be removed. Errors:
// ErrBusy.
func (c *clustered) awaitClones(ctx context.Context, g meta.GroupID, id scstore.VolumeID) error {
	again := time.NewTicker(clonesPeriod)
	defer again.Stop()
	for until := time.Now().Add(clonesGrace); ; {
		left, err := c.namelessClones(g, id)
		switch {
		case err != nil || left == 0:
			return err
		case time.Now().After(until):
			return scstore.Hint(fmt.Errorf("the data of %d removed clones are not gone yet: %w", left, scstore.ErrBusy),
				"see that every host that held them runs (scstore host ls), and try again")
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// namelessClones counts the records that are based on another one and have no name.
func (c *clustered) namelessClones(g meta.GroupID, id scstore.VolumeID) (n int, err error) {
	named := map[scstore.VolumeID]bool{}
	err = c.view(meta.GroupNamespace, func(s *meta.State) {
		for _, e := range s.Entries("") {
			named[e.ID] = true
		}
	})
	if err != nil {
		return 0, err
	}
	err = c.view(g, func(s *meta.State) {
		for _, list := range [][]meta.Record{s.Tombstones(), s.Records()} {
			for _, r := range list {
				if r.Base == id && r.Kind != meta.KindBranch && !named[r.ID] {
					n++
				}
			}
		}
	})
	return n, err
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
			if err := c.removeNameless(ctx, g, time.Now()); err != nil && ctx.Err() == nil {
				c.h.log.Debug("group not cleaned", "group", uint64(g), "err", err)
			}
		}
	}
}

// removeNameless removes the records that have had no name for long.
func (c *clustered) removeNameless(ctx context.Context, g meta.GroupID, now time.Time) error {
	var old []meta.Record
	err := c.view(g, func(s *meta.State) {
		for _, r := range s.Records() {
			if r.Life == meta.Live && r.Kind != meta.KindBranch && now.Sub(time.UnixMilli(r.CreatedAtMs)) >= orphanGrace {
				old = append(old, r)
			}
		}
	})
	if err != nil || len(old) == 0 {
		return err
	}
	// A name that was there when the record was is seen by this read.
	named := map[scstore.VolumeID]bool{}
	err = c.log.Read(ctx, meta.GroupNamespace, func(s *meta.State) {
		for _, e := range s.Entries("") {
			named[e.ID] = true
		}
	})
	if err != nil {
		return err
	}
	for _, r := range old {
		if named[r.ID] {
			continue
		}
		c.h.log.Info("removing what an unfinished command left", "volume", r.ID.String(), "group", uint64(g))
		if _, err := c.propose(ctx, g, meta.Remove{ID: r.ID}); err != nil && !errors.Is(err, scstore.ErrNotFound) {
			return err
		}
	}
	return nil
}
