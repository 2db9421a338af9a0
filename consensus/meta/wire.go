package meta

import (
	"cmp"
	"encoding/binary"
	"fmt"

	"scstore"
	"scstore/internal/invariant"
)

// The formats of commands, results and the state. Integers are big-endian; bytes
// marked 0 are zero and are checked. They carry no checksum: they travel in
// containers that do (the journal of package consensus, frames between hosts). Each
// value has exactly one encoding.
//
//	Command, version 1: 36 bytes and a body
//	   0  4  "SCMC"
//	   4  1  version, 1
//	   5  1  kind
//	   6  2  0
//	   8 16  client id      } the command id; zero for none
//	  24  8  sequence       }
//	  32  4  body's length, at most MaxCommandBytes
//
// A body is the fields of the operation in the order of its method wire. A string
// is 2 bytes of length and its bytes; a position 8 of fence, 8 of epoch; a flag 1; a
// list 2 of length, 4 if its limit needs them, and its items; an operation in a
// Batch 1 of kind and its body. Those of the first release:
//
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
//	Result, version 1: 12 bytes and a body
//	   0  4  "SCMR"
//	   4  1  version, 1
//	   5  3  0
//	   8  4  body's length
//	  12     1 code, 1 outcome, 16 id, 8 fence, position, 8 number, list of results
//
//	State, version 2: 32 bytes, then lists by rising key (version 1: wire_v1.go)
//	   0  4  "SCMS"
//	   4  1  version, 2
//	   5  3  0
//	   8  8  commands applied
//	  16  8  group
//	  24  8  the proposers' clock, milliseconds since 1970
//	  32     cluster, sites, hosts, tokens, members of groups, names,
//	         disks, moves, decisions, records, sessions
const (
	commandVersion     = 1
	commandHeaderBytes = 36
	resultVersion      = 1
	resultHeaderBytes  = 12
	stateVersion       = 2
	stateHeaderBytes   = 32

	// MaxCommandBytes is the longest encoded command.
	MaxCommandBytes = 128 << 10
)

var (
	commandMagic = [4]byte{'S', 'C', 'M', 'C'}
	resultMagic  = [4]byte{'S', 'C', 'M', 'R'}
	stateMagic   = [4]byte{'S', 'C', 'M', 'S'}
)

// AppendTo appends the command's encoding to b.
// Precondition: Validate returned nil.
func (c Command) AppendTo(b []byte) []byte {
	start := len(b)
	b = append(b, commandMagic[:]...)
	b = append(b, commandVersion, byte(c.Op.kind()), 0, 0)
	b = append(b, c.ID.Client[:]...)
	b = binary.BigEndian.AppendUint64(b, c.ID.Seq)
	b = binary.BigEndian.AppendUint32(b, 0)
	b = c.appendBody(b)
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
	if b[4] != commandVersion {
		return Command{}, nil, fmt.Errorf("parse command: version %d, want %d: %w", b[4], commandVersion, scstore.ErrVersion)
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
	r := codec{mode: reading, b: b[commandHeaderBytes:][:length]}
	c.Op = op.wire(&r)
	switch {
	case r.newer:
		return Command{}, nil, fmt.Errorf("parse command: body of kind %d: %w", b[5], scstore.ErrVersion)
	case r.failed || len(r.b) != 0:
		return Command{}, nil, fmt.Errorf("parse command: bad body of kind %d: %w", b[5], scstore.ErrCorrupt)
	}
	return c, b[commandHeaderBytes+int(length):], nil
}

// AppendTo appends the state's encoding to b. Equal states give equal bytes.
func (s *State) AppendTo(b []byte) []byte {
	b = append(b, stateMagic[:]...)
	b = append(b, stateVersion, 0, 0, 0)
	c := codec{mode: writing, b: b}
	s.wire(&c)
	return c.b
}

// wire walks the state after its magic and version.
func (s *State) wire(c *codec) {
	number(c, &s.applied)
	number(c, &s.group)
	number(c, &s.clockMs)
	s.wireCluster(c)
	table(c, s.disks, MaxDisks, cmp.Compare[DiskID], func(v *disk) DiskID { return v.ID }, func(c *codec, v *disk) { v.wire(c) })
	table(c, s.moves, MaxMoves, compareBytes[HandOffID], func(v *Move) HandOffID { return v.ID }, func(c *codec, v *Move) { v.wire(c) })
	table(c, s.decided, MaxDecided, compareBytes[HandOffID], func(v *Decision) HandOffID { return v.ID }, func(c *codec, v *Decision) { v.wire(c) })
	table(c, s.records, MaxRecords, compareBytes[scstore.VolumeID], func(v *volume) scstore.VolumeID { return v.ID }, func(c *codec, v *volume) { v.wire(c) })
	table(c, s.sessions, MaxSessions, compareBytes[ClientID], func(v *session) ClientID { return v.client }, func(c *codec, v *session) { v.wire(c) })
}

// wire walks a record with what it holds.
func (v *volume) wire(c *codec) {
	c.fixed(v.ID[:])
	octet(c, &v.Kind)
	octet(c, &v.Life)
	c.flag(&v.revoked)
	number(c, &v.SizeBytes)
	c.fixed(v.Base[:])
	c.position(&v.BasePosition)
	number(c, &v.Fence)
	wireDisk(c, &v.Holder)
	c.position(&v.Head)
	c.position(&v.Parent)
	c.fixed(v.Digest[:])
	number(c, &v.CreatedAtMs)
	number(c, &v.DeltaBytes)
	c.fixed(v.intent[:])
	list(c, &v.points, maxPoints, func(c *codec, p *Point) {
		c.position(&p.Position)
		c.position(&p.Parent)
		c.fixed(p.Digest[:])
		c.position(&p.Content)
		number(c, &p.Line)
	})
	list(c, &v.grants, MaxGrants, func(c *codec, g *Grant) {
		number(c, &g.Fence)
		wireDisk(c, &g.Holder)
		c.position(&g.Start)
	})
	list(c, &v.replicas, MaxReplicas, func(c *codec, r *replica) {
		wireDisk(c, &r.Disk)
		c.position(&r.Partial)
		c.position(&r.AckedAt)
		list(c, &r.Holds, maxPoints, wirePosition)
	})
	v.placement.wire(c)
	list(c, &v.inSync, MaxPlacementSites, wireSite)
	list(c, &v.snapshots, MaxSnapshots, func(c *codec, s *Snap) {
		text(c, &s.Name, MaxSegmentBytes)
		c.position(&s.Position)
		number(c, &s.SizeBytes)
		number(c, &s.CreatedAtMs)
	})
	list(c, &v.refs, MaxRefs, func(c *codec, r *Ref) { r.wire(c) })
	list(c, &v.pins, MaxPins, func(c *codec, p *Pin) { p.wire(c) })
	list(c, &v.tethers, MaxTethers, wirePosition)
	list(c, &v.forks, MaxForks, func(c *codec, f *Fork) {
		number(c, &f.Fence)
		wireDisk(c, &f.Owner)
		c.position(&f.Position)
		c.position(&f.Left)
		f.Loss.wire(c)
		c.flag(&f.Waiting)
	})
}

// ParseState reads what AppendTo wrote, or an earlier release, and checks the
// invariants. Errors: ErrVersion for a format of a newer release, ErrCorrupt.
func ParseState(b []byte) (*State, error) {
	if len(b) < 8 || [4]byte(b) != stateMagic {
		return nil, fmt.Errorf("parse state: no header: %w", scstore.ErrCorrupt)
	}
	s := New()
	c := codec{mode: reading, b: b[5:]}
	c.zeros(3)
	switch b[4] {
	case 1:
		s.readV1(&c)
	case stateVersion:
		s.wire(&c)
	default:
		return nil, fmt.Errorf("parse state: version %d, want %d: %w", b[4], stateVersion, scstore.ErrVersion)
	}
	switch {
	case c.newer:
		return nil, fmt.Errorf("parse state: %w", scstore.ErrVersion)
	case c.failed:
		return nil, fmt.Errorf("parse state: malformed %d bytes before the end: %w", len(c.b), scstore.ErrCorrupt)
	case len(c.b) > 0:
		return nil, fmt.Errorf("parse state: %d bytes too many: %w", len(c.b), scstore.ErrCorrupt)
	}
	if err := s.index(); err != nil {
		return nil, fmt.Errorf("parse state: %w", err)
	}
	if err := s.verify(); err != nil {
		return nil, fmt.Errorf("parse state: %w", err)
	}
	return s, nil
}

// index makes what is derived after a state was read.
func (s *State) index() error {
	for name, e := range s.entries {
		if _, twice := s.names[e.ID]; twice || ValidateName(name) != nil {
			return corruptf("name %q of %v", name, e.ID)
		}
		s.names[e.ID] = name
		for folder := range parents(name) {
			s.folders[folder]++
		}
	}
	for _, v := range s.records {
		c := codec{mode: counting}
		v.wire(&c)
		v.encoded = c.count
		s.bytes += c.count
	}
	return nil
}
