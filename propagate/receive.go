package propagate

import (
	"errors"
	"fmt"
	"io"

	"scstore"
	"scstore/propagate/codec"
	"scstore/propagate/wire"
)

// Stage is where a jump puts what came, not yet visible in the replica.
type Stage interface {
	WriteBlocks(first scstore.BlockIndex, p []byte) error
	ZeroBlocks(e scstore.Extent) error
}

// jump is what a Receiver tells of what came: a Jump, or one that several receivers
// share.
type jump interface {
	Manifest(m wire.Manifest) error
	Extents(list []scstore.Extent) error
	Spans(s wire.Spans) error
	ManifestEnd() error
	Run(id RequestID, m wire.Run) (keep bool, err error)
	Staged(id RequestID, m wire.Run)
	BadBase(m wire.Run)
	Absent(id RequestID, list []scstore.Extent)
	Close(id RequestID, answered bool)
}

// Receiver takes the answers to a jump's requests off streams; it holds the memory
// for one stream at a time.
type Receiver struct {
	Jump  jump
	Stage Stage
	Base  Reader // the replica at Jump's From; nil for none

	buf       []byte
	run, base [codec.MaxRunBytes]byte
}

// Manifest reads the answer to the jump's manifest request. Errors: the refusal's,
// ErrCorrupt, ErrVersion, what r returned.
func (v *Receiver) Manifest(r io.Reader) error {
	for {
		kind, body, err := wire.ReadFrame(r, v.buf)
		v.buf = body[:0]
		if err != nil {
			return unfinished(err)
		}
		done, err := v.manifestFrame(kind, body)
		if done || err != nil {
			return err
		}
	}
}

func (v *Receiver) manifestFrame(kind wire.Kind, body []byte) (done bool, err error) {
	switch kind {
	case wire.KindManifest:
		m, err := wire.ParseManifest(body)
		if err == nil {
			err = v.Jump.Manifest(m)
		}
		return false, err
	case wire.KindExtents:
		list, err := wire.ParseExtents(body)
		if err == nil {
			err = v.Jump.Extents(list)
		}
		return false, err
	case wire.KindSpans:
		s, err := wire.ParseSpans(body)
		if err == nil {
			err = v.Jump.Spans(s)
		}
		return false, err
	case wire.KindEnd:
		if _, err := wire.ParseEnd(body); err != nil {
			return false, err
		}
		return true, v.Jump.ManifestEnd()
	case wire.KindRefusal:
		return false, refused(body)
	case wire.KindManifestRequest, wire.KindBlocksRequest, wire.KindRun, wire.KindAbsent:
	}
	return false, unexpected(kind)
}

// Blocks reads the answer to a request and stages what it brings. It closes the
// request in every case. Errors: as for Manifest, and those of the stage.
func (v *Receiver) Blocks(id RequestID, r io.Reader) error {
	for {
		kind, body, err := wire.ReadFrame(r, v.buf)
		v.buf = body[:0]
		done := false
		if err != nil {
			err = unfinished(err)
		} else {
			done, err = v.blocksFrame(id, kind, body)
		}
		if done || err != nil {
			v.Jump.Close(id, done)
			return err
		}
	}
}

func (v *Receiver) blocksFrame(id RequestID, kind wire.Kind, body []byte) (done bool, err error) {
	switch kind {
	case wire.KindRun:
		m, err := wire.ParseRun(body)
		if err == nil {
			err = v.stageRun(id, m)
		}
		return false, err
	case wire.KindAbsent:
		list, err := wire.ParseExtents(body)
		if err == nil {
			v.Jump.Absent(id, list)
		}
		return false, err
	case wire.KindEnd:
		_, err := wire.ParseEnd(body)
		return err == nil, err
	case wire.KindRefusal:
		return false, refused(body)
	case wire.KindManifestRequest, wire.KindManifest, wire.KindExtents, wire.KindSpans, wire.KindBlocksRequest:
	}
	return false, unexpected(kind)
}

// stageRun decodes a run and stages it.
func (v *Receiver) stageRun(id RequestID, m wire.Run) error {
	keep, err := v.Jump.Run(id, m)
	if err != nil || !keep {
		return err
	}
	if m.Codec == codec.Hole && len(m.Payload) == 0 {
		err = v.Stage.ZeroBlocks(scstore.Extent{First: m.First, Count: uint64(m.Blocks)})
	} else {
		p := v.run[:m.Blocks*scstore.BlockSize]
		err = decode(m, p, v.Base, v.base[:])
		if errors.Is(err, errBadBase) {
			v.Jump.BadBase(m)
			return nil
		}
		if err != nil {
			return fmt.Errorf("decode blocks %d+%d: %w", m.First, m.Blocks, err)
		}
		err = v.Stage.WriteBlocks(m.First, p)
	}
	if err != nil {
		return &stageError{m, err}
	}
	v.Jump.Staged(id, m)
	return nil
}

// stageError is one of the stage, not of who sent the blocks.
type stageError struct {
	run wire.Run
	err error
}

func (e *stageError) Error() string {
	return fmt.Sprintf("stage blocks %d+%d: %v", e.run.First, e.run.Blocks, e.err)
}

func (e *stageError) Unwrap() error { return e.err }

func refused(body []byte) error {
	m, err := wire.ParseRefusal(body)
	if err != nil {
		return err
	}
	return m.Err()
}

func unexpected(kind wire.Kind) error {
	return fmt.Errorf("frame of kind %d in an answer: %w", kind, scstore.ErrCorrupt)
}

// unfinished makes an end of the stream before the end of the answer an error that
// nobody takes for a good end.
func unfinished(err error) error {
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("the answer ends early: %w", io.ErrUnexpectedEOF)
	}
	return err
}
