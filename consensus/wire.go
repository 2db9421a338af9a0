package consensus

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"scstore"
	"scstore/consensus/meta"
	"scstore/internal/invariant"
)

// The formats of the journal and of the snapshot file, version 1. Integers are
// big-endian, bytes marked 0 are zero and are checked, and checksums are CRC-32C of
// the store's id followed by what they cover, so that a file of another store never
// verifies.
//
// A journal is a header frame, frames of commands, and zeros up to its end. A
// command takes one to maxFrames frames, one after another. Frames are 512 bytes:
//
//	 0   4  "SCJF"
//	 4   1  version, 1
//	 5   1  kind: 1 header, 2 command
//	 6   1  1 in the last frame of a command and in a header
//	 7   1  0
//	 8   8  number: of the command, counted from 1; in the header, of the last
//	        command before the journal (its base)
//	16   2  index of the frame within its command
//	18   2  length of the payload, at least 1
//	20   4  checksum of the frame with this field zero
//	24 488  payload, then zeros: a part of the command; in the header the store's id
//
// A snapshot file:
//
//	 0   4  "SCSS"
//	 4   1  version, 1
//	 5   3  0
//	 8  16  store id
//	24   8  length of the state, at most MaxStateBytes
//	32   4  checksum of the state
//	36   4  checksum of the header up to here
//	40      the state (package meta)
const (
	wireVersion         = 1
	frameBytes          = 512
	frameHeaderBytes    = 24
	framePayloadBytes   = frameBytes - frameHeaderBytes
	maxFrames           = (meta.MaxCommandBytes + framePayloadBytes - 1) / framePayloadBytes
	snapshotHeaderBytes = 40

	// MaxStateBytes bounds the snapshot file that is read, in bytes.
	MaxStateBytes = 768 << 20
)

type frameKind uint8

const (
	frameHeader  frameKind = 1
	frameCommand frameKind = 2
)

var (
	frameMagic    = [4]byte{'S', 'C', 'J', 'F'}
	snapshotMagic = [4]byte{'S', 'C', 'S', 'S'}
	castagnoli    = crc32.MakeTable(crc32.Castagnoli)
	zeroFrame     [frameBytes]byte
)

// frame is one sector of a journal. payload aliases what was parsed.
type frame struct {
	kind    frameKind
	last    bool
	number  uint64
	index   int
	payload []byte
}

func checksum(store scstore.StoreID, parts ...[]byte) uint32 {
	sum := crc32.Checksum(store[:], castagnoli)
	for _, part := range parts {
		sum = crc32.Update(sum, castagnoli, part)
	}
	return sum
}

// appendTo appends the frame's 512 bytes.
func (f frame) appendTo(b []byte, store scstore.StoreID) []byte {
	invariant.Check(len(f.payload) > 0 && len(f.payload) <= framePayloadBytes, "frame with %d bytes", len(f.payload))
	start := len(b)
	b = append(b, zeroFrame[:]...)
	out := b[start:]
	copy(out, frameMagic[:])
	out[4], out[5] = wireVersion, byte(f.kind)
	if f.last {
		out[6] = 1
	}
	binary.BigEndian.PutUint64(out[8:], f.number)
	binary.BigEndian.PutUint16(out[16:], uint16(f.index))
	binary.BigEndian.PutUint16(out[18:], uint16(len(f.payload)))
	copy(out[frameHeaderBytes:], f.payload)
	binary.BigEndian.PutUint32(out[20:], checksum(store, out[:20], zeroFrame[:4], out[frameHeaderBytes:]))
	return b
}

// journalHeader returns the header frame of a journal that goes on after command
// number base.
func journalHeader(store scstore.StoreID, base uint64) []byte {
	return frame{kind: frameHeader, last: true, number: base, payload: store[:]}.appendTo(nil, store)
}

// appendCommand appends the frames of an encoded command.
func appendCommand(b []byte, store scstore.StoreID, number uint64, command []byte) []byte {
	for index := 0; len(command) > 0; index++ {
		n := min(len(command), framePayloadBytes)
		f := frame{kind: frameCommand, last: n == len(command), number: number, index: index, payload: command[:n]}
		b = f.appendTo(b, store)
		command = command[n:]
	}
	return b
}

// parseFrame reads one frame from the start of b and returns the rest. Errors:
// ErrVersion, ErrCorrupt.
func parseFrame(b []byte, store scstore.StoreID) (frame, []byte, error) {
	if len(b) < frameBytes || [4]byte(b) != frameMagic {
		return frame{}, nil, fmt.Errorf("no frame: %w", scstore.ErrCorrupt)
	}
	in, rest := b[:frameBytes], b[frameBytes:]
	if sum := checksum(store, in[:20], zeroFrame[:4], in[frameHeaderBytes:]); sum != binary.BigEndian.Uint32(in[20:]) {
		return frame{}, nil, fmt.Errorf("frame fails its checksum: %w", scstore.ErrCorrupt)
	}
	if in[4] != wireVersion {
		return frame{}, nil, fmt.Errorf("frame of version %d, want %d: %w", in[4], wireVersion, scstore.ErrVersion)
	}
	length := int(binary.BigEndian.Uint16(in[18:]))
	f := frame{
		kind:   frameKind(in[5]),
		last:   in[6] == 1,
		number: binary.BigEndian.Uint64(in[8:]),
		index:  int(binary.BigEndian.Uint16(in[16:])),
	}
	if f.kind != frameHeader && f.kind != frameCommand || in[6] > 1 || in[7] != 0 || f.index >= maxFrames ||
		length == 0 || length > framePayloadBytes || !isZero(in[frameHeaderBytes+length:]) {
		return frame{}, nil, fmt.Errorf("malformed frame: %w", scstore.ErrCorrupt)
	}
	f.payload = in[frameHeaderBytes:][:length]
	return f, rest, nil
}

func isZero(b []byte) bool {
	for len(b) > frameBytes {
		if !bytes.Equal(b[:frameBytes], zeroFrame[:]) {
			return false
		}
		b = b[frameBytes:]
	}
	return bytes.Equal(b, zeroFrame[:len(b)])
}

// snapshotFile returns a snapshot file of the state.
func snapshotFile(store scstore.StoreID, s *meta.State) []byte {
	b := s.AppendTo(make([]byte, snapshotHeaderBytes))
	header, body := b[:snapshotHeaderBytes], b[snapshotHeaderBytes:]
	invariant.Check(len(body) <= MaxStateBytes, "state of %d bytes", len(body))
	copy(header, snapshotMagic[:])
	header[4] = wireVersion
	copy(header[8:], store[:])
	binary.BigEndian.PutUint64(header[24:], uint64(len(body)))
	binary.BigEndian.PutUint32(header[32:], checksum(store, body))
	binary.BigEndian.PutUint32(header[36:], checksum(store, header[:36]))
	return b
}

// parseSnapshot reads a whole snapshot file. Errors: ErrInvalid for a file of
// another store, ErrVersion, ErrCorrupt.
func parseSnapshot(b []byte, store scstore.StoreID) (*meta.State, error) {
	if len(b) < snapshotHeaderBytes || [4]byte(b) != snapshotMagic {
		return nil, fmt.Errorf("byte 0: no snapshot header: %w", scstore.ErrCorrupt)
	}
	owner := scstore.StoreID(b[8:24])
	if checksum(owner, b[:36]) != binary.BigEndian.Uint32(b[36:]) {
		return nil, fmt.Errorf("byte 0: header fails its checksum: %w", scstore.ErrCorrupt)
	}
	if owner != store {
		return nil, fmt.Errorf("belongs to store %v, not to %v: %w", owner, store, scstore.ErrInvalid)
	}
	if b[4] != wireVersion {
		return nil, fmt.Errorf("version %d, want %d: %w", b[4], wireVersion, scstore.ErrVersion)
	}
	body := b[snapshotHeaderBytes:]
	switch {
	case !isZero(b[5:8]):
		return nil, fmt.Errorf("byte 5: malformed header: %w", scstore.ErrCorrupt)
	case binary.BigEndian.Uint64(b[24:]) != uint64(len(body)):
		return nil, fmt.Errorf("byte %d: file of %d bytes, header says %d: %w", len(b), len(b), binary.BigEndian.Uint64(b[24:])+snapshotHeaderBytes, scstore.ErrCorrupt)
	case checksum(store, body) != binary.BigEndian.Uint32(b[32:]):
		return nil, fmt.Errorf("byte %d: state fails its checksum: %w", snapshotHeaderBytes, scstore.ErrCorrupt)
	}
	return meta.ParseState(body)
}
