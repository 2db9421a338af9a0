package raftnet

import (
	"context"
	"sync"
	"time"

	"github.com/lni/dragonboat/v4/raftpb"

	"scstore"
	"scstore/propagate/quicnet"
)

const (
	// beatDelay is how long heart-beats for a host wait for those of other groups.
	beatDelay = 5 * time.Millisecond
	// maxBeats bounds how many wait for one host. What is more gets lost, as on a
	// network: the next ones say the same.
	maxBeats = 1024
)

// beat reports whether a message is a heart-beat or the answer to one, and nothing else:
// those that a read waits for carry a hint.
func beat(m raftpb.Message) bool {
	return (m.Type == raftpb.Heartbeat || m.Type == raftpb.HeartbeatResp) && m.Hint == 0 && m.HintHigh == 0
}

// beats sends the heart-beats of all groups to one host on a stream of their own. The
// library sends those of a tick one by one, on several connections; each alone would be
// a packet and its acknowledgement. They wait behind no entries here either.
type beats struct {
	*sender
	target string
	uses   int // connections that have it; guarded by transport.mu

	mu      sync.Mutex
	waiting raftpb.MessageBatch
	timer   *time.Timer // nil: nothing waits
	err     error       // why no more can be sent
}

// beatsTo returns what sends heart-beats to a host, counted as in use by one more
// connection. Errors: as quicnet.Net.OpenStream.
func (t *transport) beatsTo(ctx context.Context, target string) (*beats, error) {
	if b := t.useBeats(target, nil); b != nil {
		return b, nil
	}
	s, err := t.open(ctx, target, quicnet.ClassRaft, KindMessages)
	if err != nil {
		return nil, err
	}
	opened := &beats{sender: s, target: target}
	b := t.useBeats(target, opened)
	if b != opened {
		opened.close() // another connection was faster
	}
	return b, nil
}

// useBeats counts one more connection on what sends heart-beats to a host: what there is
// and works, else the one that was opened. nil if there is neither.
func (t *transport) useBeats(target string, opened *beats) *beats {
	t.mu.Lock()
	defer t.mu.Unlock()
	b := t.beats[target]
	if b == nil || b.failed() != nil {
		if b = opened; b == nil {
			return nil
		}
		t.beats[target] = b
	}
	b.uses++
	return b
}

// release undoes beatsTo.
func (b *beats) release() {
	b.t.mu.Lock()
	b.uses--
	unused := b.uses == 0
	if unused && b.t.beats[b.target] == b {
		delete(b.t.beats, b.target)
	}
	b.t.mu.Unlock()
	if unused {
		b.close()
	}
}

// close ends the stream. What waits, or is on its way, is lost.
func (b *beats) close() {
	b.mu.Lock()
	b.waiting.Requests = nil
	b.mu.Unlock()
	b.stop()
	b.s.Cancel(scstore.ErrClosed)
}

// failed returns why no more heart-beats can be sent, nil if they can.
func (b *beats) failed() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.err
}

// add has the heart-beats of a batch sent in a moment. Errors: those of an earlier one's
// sending.
func (b *beats) add(batch raftpb.MessageBatch) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err != nil {
		return b.err
	}
	waiting := b.waiting.Requests
	for _, m := range batch.Requests {
		if beat(m) && len(waiting) < maxBeats {
			waiting = append(waiting, m)
		}
	}
	b.waiting = batch // its head
	b.waiting.Requests = waiting
	if b.timer == nil {
		b.timer = time.AfterFunc(b.t.f.beatDelay, b.flush)
	}
	return nil
}

// flush sends what waits. One runs at a time.
func (b *beats) flush() {
	b.mu.Lock()
	batch := b.waiting
	b.waiting.Requests = nil
	b.mu.Unlock()
	var err error
	if len(batch.Requests) > 0 {
		err = b.send(batch)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.err = err
	b.timer = nil
	if err == nil && len(b.waiting.Requests) > 0 {
		b.timer = time.AfterFunc(b.t.f.beatDelay, b.flush)
	}
}
