package raftnet

import (
	"fmt"

	"github.com/lni/dragonboat/v4/raftpb"
	"google.golang.org/protobuf/encoding/protowire"

	"scstore"
)

// The fields of the library's messages that it counts before it decodes them, without
// a look at their lengths: hostile ones would have it count for ever.
const (
	batchRequests  protowire.Number = 1  // of a MessageBatch
	messageEntries protowire.Number = 11 // of a Message
)

// parseBatch reads a batch as the library encodes it. Errors: ErrInvalid.
func parseBatch(b []byte) (batch raftpb.MessageBatch, err error) {
	defer caught(&err)
	if !wellFormed(b, batchRequests, messageEntries) {
		return raftpb.MessageBatch{}, fmt.Errorf("malformed batch: %w", scstore.ErrInvalid)
	}
	if err := batch.Unmarshal(b); err != nil {
		return raftpb.MessageBatch{}, fmt.Errorf("read a batch: %v: %w", err, scstore.ErrInvalid)
	}
	return batch, nil
}

// parseChunk reads a chunk as the library encodes it. Errors: ErrInvalid.
func parseChunk(b []byte) (chunk raftpb.Chunk, err error) {
	defer caught(&err)
	if !wellFormed(b) {
		return raftpb.Chunk{}, fmt.Errorf("malformed chunk: %w", scstore.ErrInvalid)
	}
	if err := chunk.Unmarshal(b); err != nil {
		return raftpb.Chunk{}, fmt.Errorf("read a chunk: %v: %w", err, scstore.ErrInvalid)
	}
	return chunk, nil
}

// wellFormed reports whether b is a sequence of whole fields, and so are the fields
// within those of the path, except in the last one, whose content is the library's.
func wellFormed(b []byte, path ...protowire.Number) bool {
	for len(b) > 0 {
		number, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return false
		}
		b = b[n:]
		size := protowire.ConsumeFieldValue(number, kind, b)
		if size < 0 {
			return false
		}
		if len(path) > 0 && number == path[0] {
			inner, n := protowire.ConsumeBytes(b)
			if kind != protowire.BytesType || n < 0 || len(path) > 1 && !wellFormed(inner, path[1:]...) {
				return false
			}
		}
		b = b[size:]
	}
	return true
}

// caught turns a panic of the library's decoder into an error: what it reads comes
// from another host.
func caught(err *error) {
	if p := recover(); p != nil {
		*err = fmt.Errorf("decode: %v: %w", p, scstore.ErrInvalid)
	}
}
