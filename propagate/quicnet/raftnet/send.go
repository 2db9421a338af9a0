package raftnet

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/lni/dragonboat/v4/raftpb"

	"scstore"
	"scstore/propagate/quicnet"
)

// sender is the sending end of a stream.
type sender struct {
	t    *transport
	s    *quicnet.Stream
	buf  []byte
	stop func() bool
}

// maxKeptBytes bounds the buffer that is kept between two messages.
const maxKeptBytes = 1 << 20

// encode returns the frame of a message of at most size bytes; it is valid until the
// next call.
func (s *sender) encode(size, limit int, marshalTo func([]byte) (int, error)) ([]byte, error) {
	size += 4
	if cap(s.buf) < size || cap(s.buf) > maxKeptBytes {
		s.buf = make([]byte, size)
	}
	b := s.buf[:size]
	n, err := marshalTo(b[4:])
	if err != nil {
		return nil, fmt.Errorf("encode for %s: %w", s.s.Peer().Host, err)
	}
	if n > limit {
		return nil, fmt.Errorf("message of %d bytes, more than %d: %w", n, limit, scstore.ErrInvalid)
	}
	binary.BigEndian.PutUint32(b, uint32(n))
	return b[:4+n], nil
}

// messageConn sends batches of messages.
type messageConn struct {
	*sender
	beats *beats
}

// Close ends the stream; what was sent still arrives, unless the host is gone.
func (c *messageConn) Close() {
	c.beats.release()
	c.stop()
	_ = c.s.Close() // Raft sends again what was lost
}

// SendMessageBatch sends a batch, and its heart-beats a moment later. Errors:
// ErrUnreachable; ErrBusy if the peer's Raft does not run; the library then opens
// another connection.
func (c *messageConn) SendMessageBatch(batch raftpb.MessageBatch) error {
	if slices.ContainsFunc(batch.Requests, beat) {
		if err := c.beats.add(batch); err != nil {
			return err
		}
		batch.Requests = slices.DeleteFunc(batch.Requests, beat) // the library does not look at them again
		if len(batch.Requests) == 0 {
			return nil
		}
	}
	return c.send(batch)
}

func (s *sender) send(batch raftpb.MessageBatch) error {
	b, err := s.encode(batch.SizeUpperLimit(), MaxBatchBytes, batch.MarshalTo)
	if err != nil {
		return err
	}
	_, err = s.s.Write(b)
	return err
}

// snapshotConn sends the chunks of a snapshot.
type snapshotConn struct{ *sender }

// Close returns when the receiver has taken all chunks, or will not.
func (c *snapshotConn) Close() {
	defer c.stop()
	err := c.s.CloseWrite()
	if err == nil {
		err = c.s.SetDeadline(time.Now().Add(ackTimeout))
	}
	if err == nil {
		var b [1]byte
		if _, err = c.s.Read(b[:]); errors.Is(err, io.EOF) {
			err = nil
		}
	}
	if err != nil {
		c.t.f.o.Logger.Debug("snapshot not taken", "peer", c.s.Peer().Host, "err", err)
		c.s.Cancel(scstore.ErrClosed)
		return
	}
	_ = c.s.Close() // all is there
}

// SendChunk sends a chunk at the pace of Options.SnapshotBytes. Errors: as
// SendMessageBatch.
func (c *snapshotConn) SendChunk(chunk raftpb.Chunk) error {
	b, err := c.encode(chunk.Size(), MaxChunkBytes, chunk.MarshalTo)
	if err != nil {
		return err
	}
	for len(b) > 0 {
		step := min(len(b), snapshotStep)
		if pace := c.t.f.pace; pace != nil {
			if err := pace.WaitN(c.t.ctx, step); err != nil {
				return fmt.Errorf("send a snapshot: %v: %w", err, scstore.ErrClosed)
			}
		}
		if _, err := c.s.Write(b[:step]); err != nil {
			return err
		}
		b = b[step:]
	}
	return nil
}
