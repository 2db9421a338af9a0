package block

import (
	"errors"
	"fmt"
	"io/fs"
	"time"

	"scstore"
)

const (
	// writeBackBytes is how much a segment grows before the kernel is told to
	// start writing it: flushes then find little left to do.
	writeBackBytes = 8 << 20
	// maxPause is the longest that a writer sleeps at a time to be slowed down, minPause
	// the shortest: what is less is made up for later.
	maxPause = 20 * time.Millisecond
	minPause = time.Millisecond
)

// throttle holds the writer of a record back while too much waits for the device or for
// a checkpoint. logMu is held, and let go of meanwhile.
func (s *Store) throttle(r *record) error {
	if s.log.behind() >= writeBackBytes {
		s.request(taskWriteBack)
	}
	if s.unsynced >= MaxUnsyncedBytes/2 {
		s.request(taskSync)
	}
	if s.logBytes >= checkpointBytes {
		s.request(taskCheckpoint)
	}
	var err error
	switch {
	case s.unsynced >= MaxUnsyncedBytes:
		s.logMu.Unlock()
		err = s.Sync()
		s.logMu.Lock()
	case s.logBytes >= MaxReplayBytes:
		s.logMu.Unlock()
		err = s.Checkpoint()
		s.logMu.Lock()
	case s.unsynced > MaxUnsyncedBytes/2 && r.kind.hasSlots():
		s.logMu.Unlock()
		s.slowDown(int64(min(r.count, maxGroupBlocks)) * scstore.BlockSize)
		s.logMu.Lock()
	}
	return errors.Join(err, s.poison)
}

// slowDown makes writers wait one after the other, so that those of small requests do not
// come to the limit, where they wait for a whole sync.
func (s *Store) slowDown(bytes int64) {
	s.paceMu.Lock()
	defer s.paceMu.Unlock()
	s.logMu.Lock()
	left := MaxUnsyncedBytes - s.unsynced
	s.logMu.Unlock()
	if left <= 0 || left >= MaxUnsyncedBytes/2 {
		return
	}
	s.syncMu.Lock()
	took := s.syncTook
	if s.syncing {
		took = max(took, time.Since(s.syncBegan))
	}
	s.syncMu.Unlock()
	now := time.Now()
	if s.paceAt.Before(now) {
		s.paceAt = now
	}
	s.paceAt = s.paceAt.Add(pause(bytes, left, took))
	if ahead := s.paceAt.Sub(now); ahead >= minPause {
		time.Sleep(ahead)
	}
}

// pause returns the time that a write of so many bytes has to take, while so much is left
// of what may wait for the device: its part of what is left is its part of the time that
// a sync takes. The longer that becomes, the more slowly what is left goes down, never to 0.
func pause(bytes, left int64, took time.Duration) time.Duration {
	return min(time.Duration(float64(took)*float64(bytes)/float64(left)), maxPause)
}

// writeBack tells the kernel to start writing what the active segment has grown by. That
// waits for a busy device, so no writer does it.
func (s *Store) writeBack() {
	s.logMu.Lock()
	a := s.log
	g, from, length := a.seg, a.started, a.behind()
	a.started += length
	s.logMu.Unlock()
	if g == nil {
		return
	}
	err := g.file.WriteBack(from, length)
	if err == nil || errors.Is(err, fs.ErrClosed) { // emptied meanwhile
		return
	}
	s.logMu.Lock()
	defer s.logMu.Unlock()
	_ = s.poisonLocked(fmt.Errorf("start writeback of segment %x: %w", g.id, err)) // the next writer is told
}
