package meta

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"

	"scstore"
	"scstore/internal/invariant"
)

// The formats of commands and of the state, version 1. Integers are big-endian;
// bytes marked 0 are zero and are checked. Both carry no checksum: they travel in
// containers that do (the journal of package consensus, frames between hosts).
// Each value has exactly one encoding.
//
//	Command: 36 bytes and a body
//	   0  4  "SCMC"
//	   4  1  version, 1
//	   5  1  kind
//	   6  2  0
//	   8 16  client id      } the command id; zero for none
//	  24  8  sequence       }
//	  32  4  body's length, at most MaxCommandBytes
//
//	Bodies (string = 2 bytes of length, then its bytes; position = 8 fence, 8 epoch)
//	  1 OpenSession   -
//	  2 CreateVolume  16 id, 8 size, 16 base, position of the base, 8 created, string name
//	  3 CreateImage   16 id, 8 size, position, 32 digest, 8 created, string name
//	  4 Remove        16 id, string name
//	  5 Forget        16 id
//	  6 Rename        string from, string to
//	  7 OpenFence     16 id, string holder
//	  8 CommitEpoch   16 id, 8 fence, position of the parent, 8 epoch, 32 digest
//	  9 Resize        16 id, 8 size
//
//	State: 24 bytes, then the records by rising id, then the sessions by rising client
//	   0  4  "SCMS"
//	   4  1  version, 1
//	   5  3  0
//	   8  8  commands applied
//	  16  4  number of records, at most MaxRecords
//	  20  4  number of sessions, at most MaxSessions
//
//	Record: 16 id, 1 kind, 1 life, 2 zero, 8 size, 16 base, position of the base, 8 fence,
//	        position of the head, position of the parent, 32 digest, 8 created,
//	        string name, string holder
//	Session: 16 client, 8 last used, 8 floor, 2 number of results, then per result
//	        8 sequence, 1 code, 16 id, 8 fence, position
const (
	wireVersion        = 1
	commandHeaderBytes = 36
	stateHeaderBytes   = 24
	minRecordBytes     = 16 + 4 + 8 + 16 + 16 + 8 + 16 + 16 + 32 + 8 + 2 + 2
	minSessionBytes    = 16 + 8 + 8 + 2

	// MaxCommandBytes is the longest encoded command: a rename of two long names.
	MaxCommandBytes = commandHeaderBytes + 2*(2+MaxNameBytes) + 256
)

var (
	commandMagic = [4]byte{'S', 'C', 'M', 'C'}
	stateMagic   = [4]byte{'S', 'C', 'M', 'S'}
)

// AppendTo appends the command's encoding to b.
// Precondition: Validate returned nil.
func (c Command) AppendTo(b []byte) []byte {
	start := len(b)
	b = append(b, commandMagic[:]...)
	b = append(b, wireVersion, byte(c.Op.kind()), 0, 0)
	b = append(b, c.ID.Client[:]...)
	b = binary.BigEndian.AppendUint64(b, c.ID.Seq)
	b = binary.BigEndian.AppendUint32(b, 0)
	b = c.Op.appendBody(b)
	body := len(b) - start - commandHeaderBytes
	invariant.Check(body <= MaxCommandBytes-commandHeaderBytes, "command of %d bytes", body)
	binary.BigEndian.PutUint32(b[start+32:], uint32(body))
	return b
}

// ParseCommand reads one command from the start of b and returns the rest. The
// command is well formed, not yet valid. Errors: ErrVersion for a format or kind of
// a newer release, ErrCorrupt.
func ParseCommand(b []byte) (Command, []byte, error) {
	if len(b) < commandHeaderBytes || [4]byte(b) != commandMagic {
		return Command{}, nil, fmt.Errorf("parse command: no header: %w", scstore.ErrCorrupt)
	}
	if b[4] != wireVersion {
		return Command{}, nil, fmt.Errorf("parse command: version %d, want %d: %w", b[4], wireVersion, scstore.ErrVersion)
	}
	var c Command
	copy(c.ID.Client[:], b[8:])
	c.ID.Seq = binary.BigEndian.Uint64(b[24:])
	length := binary.BigEndian.Uint32(b[32:])
	if b[6] != 0 || b[7] != 0 || length > MaxCommandBytes-commandHeaderBytes || int(length) > len(b)-commandHeaderBytes {
		return Command{}, nil, fmt.Errorf("parse command: bad header: %w", scstore.ErrCorrupt)
	}
	op := newOp(opKind(b[5]))
	if op == nil {
		return Command{}, nil, fmt.Errorf("parse command: kind %d: %w", b[5], scstore.ErrVersion)
	}
	r := reader{b: b[commandHeaderBytes:][:length]}
	c.Op = op.parseBody(&r)
	if r.failed || len(r.b) != 0 {
		return Command{}, nil, fmt.Errorf("parse command: bad body of kind %d: %w", b[5], scstore.ErrCorrupt)
	}
	return c, b[commandHeaderBytes+int(length):], nil
}

func (OpenSession) appendBody(b []byte) []byte { return b }

func (OpenSession) parseBody(*reader) Op { return OpenSession{} }

func (o CreateVolume) appendBody(b []byte) []byte {
	b = append(b, o.ID[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(o.SizeBytes))
	b = append(b, o.Base[:]...)
	b = appendPosition(b, o.BasePosition)
	b = binary.BigEndian.AppendUint64(b, uint64(o.CreatedAtMs))
	return appendString(b, o.Name)
}

func (o CreateVolume) parseBody(r *reader) Op {
	o.ID = r.id()
	o.SizeBytes = int64(r.uint64())
	o.Base = r.id()
	o.BasePosition = r.position()
	o.CreatedAtMs = int64(r.uint64())
	o.Name = r.string(MaxNameBytes)
	return o
}

func (o CreateImage) appendBody(b []byte) []byte {
	b = append(b, o.ID[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(o.SizeBytes))
	b = appendPosition(b, o.Position)
	b = append(b, o.Digest[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(o.CreatedAtMs))
	return appendString(b, o.Name)
}

func (o CreateImage) parseBody(r *reader) Op {
	o.ID = r.id()
	o.SizeBytes = int64(r.uint64())
	o.Position = r.position()
	o.Digest = r.digest()
	o.CreatedAtMs = int64(r.uint64())
	o.Name = r.string(MaxNameBytes)
	return o
}

func (o Remove) appendBody(b []byte) []byte { return appendString(append(b, o.ID[:]...), o.Name) }

func (o Remove) parseBody(r *reader) Op {
	o.ID = r.id()
	o.Name = r.string(MaxNameBytes)
	return o
}

func (o Forget) appendBody(b []byte) []byte { return append(b, o.ID[:]...) }

func (o Forget) parseBody(r *reader) Op {
	o.ID = r.id()
	return o
}

func (o Rename) appendBody(b []byte) []byte { return appendString(appendString(b, o.From), o.To) }

func (o Rename) parseBody(r *reader) Op {
	o.From = r.string(MaxNameBytes)
	o.To = r.string(MaxNameBytes)
	return o
}

func (o OpenFence) appendBody(b []byte) []byte {
	return appendString(append(b, o.ID[:]...), o.Holder)
}

func (o OpenFence) parseBody(r *reader) Op {
	o.ID = r.id()
	o.Holder = r.string(MaxHolderBytes)
	return o
}

func (o CommitEpoch) appendBody(b []byte) []byte {
	b = append(b, o.ID[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(o.Fence))
	b = appendPosition(b, o.Parent)
	b = binary.BigEndian.AppendUint64(b, uint64(o.Epoch))
	return append(b, o.Digest[:]...)
}

func (o CommitEpoch) parseBody(r *reader) Op {
	o.ID = r.id()
	o.Fence = scstore.Fence(r.uint64())
	o.Parent = r.position()
	o.Epoch = scstore.Epoch(r.uint64())
	o.Digest = r.digest()
	return o
}

func (o Resize) appendBody(b []byte) []byte {
	return binary.BigEndian.AppendUint64(append(b, o.ID[:]...), uint64(o.SizeBytes))
}

func (o Resize) parseBody(r *reader) Op {
	o.ID = r.id()
	o.SizeBytes = int64(r.uint64())
	return o
}

// AppendTo appends the state's encoding to b. Equal states give equal bytes.
func (s *State) AppendTo(b []byte) []byte {
	b = append(b, stateMagic[:]...)
	b = append(b, wireVersion, 0, 0, 0)
	b = binary.BigEndian.AppendUint64(b, s.applied)
	b = binary.BigEndian.AppendUint32(b, uint32(len(s.records)))
	b = binary.BigEndian.AppendUint32(b, uint32(len(s.sessions)))
	for _, id := range sortedKeys(s.records) {
		b = s.records[id].appendTo(b)
	}
	for _, client := range sortedKeys(s.sessions) {
		b = append(b, client[:]...)
		b = s.sessions[client].appendTo(b)
	}
	return b
}

// sortedKeys returns a map's 16-byte keys in rising order.
func sortedKeys[K ~[16]byte, V any](m map[K]V) []K {
	return slices.SortedFunc(maps.Keys(m), func(x, y K) int {
		a, b := [16]byte(x), [16]byte(y)
		return bytes.Compare(a[:], b[:])
	})
}

func (r *Record) appendTo(b []byte) []byte {
	b = append(b, r.ID[:]...)
	b = append(b, byte(r.Kind), byte(r.Life), 0, 0)
	b = binary.BigEndian.AppendUint64(b, uint64(r.SizeBytes))
	b = append(b, r.Base[:]...)
	b = appendPosition(b, r.BasePosition)
	b = binary.BigEndian.AppendUint64(b, uint64(r.Fence))
	b = appendPosition(b, r.Head)
	b = appendPosition(b, r.Parent)
	b = append(b, r.Digest[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(r.CreatedAtMs))
	b = appendString(b, r.Name)
	return appendString(b, r.Holder)
}

func parseRecord(r *reader) *Record {
	rec := &Record{ID: r.id(), Kind: Kind(r.uint8()), Life: Life(r.uint8())}
	r.zeros(2)
	rec.SizeBytes = int64(r.uint64())
	rec.Base = r.id()
	rec.BasePosition = r.position()
	rec.Fence = scstore.Fence(r.uint64())
	rec.Head = r.position()
	rec.Parent = r.position()
	rec.Digest = r.digest()
	rec.CreatedAtMs = int64(r.uint64())
	rec.Name = r.string(MaxNameBytes)
	rec.Holder = r.string(MaxHolderBytes)
	return rec
}

func (ses *session) appendTo(b []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, ses.lastUsed)
	b = binary.BigEndian.AppendUint64(b, ses.floor)
	b = binary.BigEndian.AppendUint16(b, uint16(len(ses.results)))
	for _, r := range ses.results {
		b = binary.BigEndian.AppendUint64(b, r.seq)
		b = append(b, byte(r.result.Code))
		b = append(b, r.result.ID[:]...)
		b = binary.BigEndian.AppendUint64(b, uint64(r.result.Fence))
		b = appendPosition(b, r.result.Position)
	}
	return b
}

func parseSession(r *reader) *session {
	ses := &session{lastUsed: r.uint64(), floor: r.uint64()}
	count := int(r.uint16())
	if count > MaxSessionResults {
		r.failed = true
		return ses
	}
	last := ses.floor
	for range count {
		res := sessionResult{seq: r.uint64()}
		res.result.Code = Code(r.uint8())
		res.result.ID = r.id()
		res.result.Fence = scstore.Fence(r.uint64())
		res.result.Position = r.position()
		if res.seq <= last || !res.result.Code.valid() {
			r.failed = true
		}
		last = res.seq
		ses.results = append(ses.results, res)
	}
	return ses
}

// ParseState reads what AppendTo wrote and checks the invariants. Errors:
// ErrVersion for a format of a newer release, ErrCorrupt.
func ParseState(b []byte) (*State, error) {
	if len(b) < stateHeaderBytes || [4]byte(b) != stateMagic {
		return nil, fmt.Errorf("parse state: no header: %w", scstore.ErrCorrupt)
	}
	if b[4] != wireVersion {
		return nil, fmt.Errorf("parse state: version %d, want %d: %w", b[4], wireVersion, scstore.ErrVersion)
	}
	r := reader{b: b[5:]}
	r.zeros(3)
	s := New()
	s.applied = r.uint64()
	records, sessions := int(r.uint32()), int(r.uint32())
	if s.applied > maxCounter {
		return nil, fmt.Errorf("parse state: %d commands applied: %w", s.applied, scstore.ErrCorrupt)
	}
	if records > MaxRecords || sessions > MaxSessions || records*minRecordBytes+sessions*minSessionBytes > len(r.b) {
		return nil, fmt.Errorf("parse state: %d records and %d sessions in %d bytes: %w", records, sessions, len(b), scstore.ErrCorrupt)
	}
	if err := s.parseRecords(&r, records); err != nil {
		return nil, fmt.Errorf("parse state: %w", err)
	}
	if err := s.parseSessions(&r, sessions); err != nil {
		return nil, fmt.Errorf("parse state: %w", err)
	}
	if len(r.b) != 0 {
		return nil, fmt.Errorf("parse state: %d bytes too many: %w", len(r.b), scstore.ErrCorrupt)
	}
	return s, nil
}

func (s *State) parseRecords(r *reader, count int) error {
	var last scstore.VolumeID
	for range count {
		rec := parseRecord(r)
		if r.failed || bytes.Compare(rec.ID[:], last[:]) <= 0 {
			return fmt.Errorf("record after %v: %w", last, scstore.ErrCorrupt)
		}
		last = rec.ID
		if rec.Life == Live && (ValidateName(rec.Name) != nil || s.checkName(rec.Name) != CodeOK) {
			return fmt.Errorf("%v: name %q: %w", rec.ID, rec.Name, scstore.ErrCorrupt)
		}
		s.insert(rec)
	}
	return s.verify() // a base may come after its clones
}

func (s *State) parseSessions(r *reader, count int) error {
	var last ClientID
	used := map[uint64]bool{}
	for range count {
		client := ClientID(r.id())
		ses := parseSession(r)
		if r.failed || bytes.Compare(client[:], last[:]) <= 0 || ses.lastUsed > s.applied || used[ses.lastUsed] {
			return fmt.Errorf("session after %v: %w", last, scstore.ErrCorrupt)
		}
		last, used[ses.lastUsed] = client, true
		s.sessions[client] = ses
	}
	return nil
}

func appendPosition(b []byte, p scstore.Position) []byte {
	b = binary.BigEndian.AppendUint64(b, uint64(p.Fence))
	return binary.BigEndian.AppendUint64(b, uint64(p.Epoch))
}

func appendString(b []byte, s string) []byte {
	invariant.Check(len(s) <= 1<<16-1, "string of %d bytes", len(s))
	b = binary.BigEndian.AppendUint16(b, uint16(len(s)))
	return append(b, s...)
}
