package consensus

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"scstore"
	"scstore/fs/block/disk"
)

const (
	ballastName   = "ballast"
	spaceInterval = time.Second
)

// space keeps the log from meeting a full disk: the library ends the process when a
// write fails, and cannot even start again without space to write.
//
// Three lines of defence. Below reserve bytes of free space this host proposes
// nothing more; only what others propose still grows its log. Below a quarter of
// that it leaves its groups, in order: the majority goes on without it, and nothing
// that it confirmed is lost. And a ballast file is removed at that point, so that
// the next start finds room to open the log even on a disk that others have filled.
type space struct {
	free    func() (int64, error) // nil: there is no limit
	reserve int64
	last    atomic.Int64 // bytes free when last asked
	folder  disk.FS      // nil: no ballast
	ballast int64
}

func (s *space) critical() int64 { return s.reserve / 4 }

// openSpace refuses to open a log for which there is no room. Errors: ErrNoSpace.
func openSpace(dir string, o ClusterOptions) (*space, error) {
	s := &space{free: o.FreeBytes, reserve: o.ReserveBytes, ballast: o.BallastBytes}
	if o.FS == nil {
		folder, err := disk.OpenDir(dir)
		if err != nil {
			return nil, err
		}
		s.folder = folder
		if s.free == nil {
			s.free = func() (int64, error) {
				usage, err := folder.Usage()
				return int64(usage.FreeBytes), err
			}
		}
	}
	if s.free == nil {
		return s, nil
	}
	free, err := s.look()
	if err == nil && free < s.critical() && s.dropBallast() {
		free, err = s.look()
	}
	if err != nil {
		return nil, err
	}
	if free < s.critical() {
		return nil, s.full()
	}
	if free >= s.reserve+s.ballast {
		return s, s.makeBallast()
	}
	return s, nil
}

// look asks for the free space.
func (s *space) look() (int64, error) {
	free, err := s.free()
	if err != nil {
		return 0, fmt.Errorf("ask for free space: %w", err)
	}
	s.last.Store(free)
	return free, nil
}

// check says whether a proposal may be made. Errors: ErrNoSpace.
func (s *space) check() error {
	if s.free == nil || s.last.Load() >= s.reserve {
		return nil
	}
	return s.full()
}

func (s *space) full() error {
	err := fmt.Errorf("%d bytes free, want %d for the raft log: %w", s.last.Load(), s.reserve, scstore.ErrNoSpace)
	return scstore.Hint(err, "free space on the disk")
}

func (s *space) makeBallast() error {
	if s.folder == nil || s.ballast == 0 {
		return nil
	}
	f, err := s.folder.Open(ballastName)
	if isMissing(err) {
		f, err = s.folder.Create(ballastName)
	}
	if err != nil {
		return err
	}
	err = f.Allocate(s.ballast)
	if errors.Is(err, scstore.ErrNoSpace) {
		err = s.folder.Remove(ballastName)
	}
	return errors.Join(err, f.Close())
}

// dropBallast reports whether there was one.
func (s *space) dropBallast() bool {
	return s.folder != nil && s.folder.Remove(ballastName) == nil
}

// watchSpace looks at the free space until the Cluster ends.
func (c *Cluster) watchSpace() {
	if c.space.free == nil {
		return
	}
	ticker := time.NewTicker(spaceInterval)
	defer ticker.Stop()
	for {
		select {
		case <-c.ctx.Done():
			return
		case <-ticker.C:
		}
		free, err := c.space.look()
		switch {
		case err != nil:
			c.logger.Warn("cannot tell how much space is free", "err", err)
		case free < c.space.critical():
			c.space.dropBallast()
			c.fail(c.space.full())
			c.leaveGroups()
			return
		}
	}
}

// leaveGroups stops all replicas, while there is still space to stop them.
func (c *Cluster) leaveGroups() {
	for _, id := range c.groupIDs() {
		if err := c.Stop(id); err != nil && !errors.Is(err, scstore.ErrNotFound) {
			c.logger.Warn("cannot stop a replica", "group", id, "err", err)
		}
	}
}
