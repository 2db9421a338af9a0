package raftnet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/lni/dragonboat/v4/raftpb"

	"scstore"
	"scstore/propagate/quicnet"
)

// begin returns the transport that runs, with one stream counted on it, and has the
// stream cancelled when it is closed. Errors: ErrBusy if none runs.
func (f *Factory) begin(s *quicnet.Stream) (t *transport, end func(), err error) {
	t = f.current.Load()
	if t == nil || !t.enter() {
		return nil, nil, errStopped()
	}
	stop := context.AfterFunc(t.ctx, func() { s.Cancel(scstore.ErrBusy) })
	return t, func() {
		stop()
		t.wg.Done()
	}, nil
}

func errStopped() error { return fmt.Errorf("raft does not run here: %w", scstore.ErrBusy) }

// serveMessages hands a peer's messages to the library.
func (f *Factory) serveMessages(_ context.Context, from quicnet.Peer, s *quicnet.Stream) error {
	t, end, err := f.begin(s)
	if err != nil {
		return err
	}
	defer end()
	for {
		b, err := quicnet.ReadFrame(s, MaxBatchBytes)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		batch, err := parseBatch(b)
		if err != nil {
			return err
		}
		if err := f.attribute(&batch, from); err != nil {
			return err
		}
		if t.ctx.Err() != nil {
			return errStopped()
		}
		if len(batch.Requests) > 0 {
			t.messages(batch)
		}
	}
}

// attribute drops what the peer must not send. Errors: ErrInvalid if it names another
// host as the source of the whole batch.
func (f *Factory) attribute(batch *raftpb.MessageBatch, from quicnet.Peer) error {
	if batch.SourceAddress != Target(from.Disk) {
		f.drop(from, len(batch.Requests), fmt.Errorf("source is %.64q", batch.SourceAddress))
		return fmt.Errorf("%s sends as %.64q: %w", from.Host, batch.SourceAddress, scstore.ErrInvalid)
	}
	batch.Requests = slices.DeleteFunc(batch.Requests, func(m raftpb.Message) bool {
		err := f.o.Owner(m.ShardID, m.From, from.Disk)
		if err != nil {
			f.drop(from, 1, err)
		}
		return err != nil
	})
	return nil
}

// drop counts messages that a peer must not send.
func (f *Factory) drop(from quicnet.Peer, n int, err error) {
	f.dropped.Add(float64(n))
	f.seldom.Do(func() { f.o.Logger.Warn("raft messages dropped", "peer", from.Host, "err", err) })
}

// serveSnapshots hands a peer's snapshots to the library.
func (f *Factory) serveSnapshots(_ context.Context, from quicnet.Peer, s *quicnet.Stream) error {
	t, end, err := f.begin(s)
	if err != nil {
		return err
	}
	defer end()
	for {
		b, err := quicnet.ReadFrame(s, MaxChunkBytes)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		chunk, err := parseChunk(b)
		if err != nil {
			return err
		}
		if err := f.o.Owner(chunk.ShardID, chunk.From, from.Disk); err != nil {
			f.drop(from, 1, err)
			return fmt.Errorf("snapshot of %s: %w", from.Host, err)
		}
		if t.ctx.Err() != nil {
			return errStopped()
		}
		f.chunks.Inc()
		if !t.chunks(chunk) {
			return fmt.Errorf("snapshot of %s is not wanted: %w", from.Host, scstore.ErrBusy)
		}
	}
}
