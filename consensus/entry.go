package consensus

import (
	"encoding/binary"
	"fmt"
	"slices"

	"scstore"
	"scstore/consensus/meta"
	"scstore/internal/invariant"
)

// The formats of a Cluster, version 1. Integers are big-endian, bytes marked 0 are
// zero and are checked; checksums are CRC-32C of the cluster's id followed by what
// they cover, so that nothing of another cluster ever verifies.
//
// An entry of a group's log: several commands that are applied one after another
// and answered one by one.
//
//	 0  4  "SCRE"
//	 4  1  version, 1
//	 5  1  0
//	 6  2  number of commands, 1 to MaxEntryCommands
//	 8  8  group
//	16 16  origin: drawn by the proposing host at each start
//	32  8  sequence, counted by the origin: names the proposal that waits for results
//	40  4  checksum of the entry with this field zero
//	44     the commands (package meta), one after another
//
// A snapshot of a group:
//
//	 0  4  "SCRS"
//	 4  1  version, 1
//	 5  3  0
//	 8  8  group
//	16  8  index of the last entry applied
//	24  8  length of the state, at most MaxStateBytes
//	32  4  checksum of the state
//	36  4  checksum of the header up to here
//	40     the state (package meta)
//
// The member file says whose log the folder holds:
//
//	 0  4  "SCRM"
//	 4  1  version, 1
//	 5  3  0
//	 8 16  cluster
//	24 16  disk
//	40  4  checksum of the bytes before
const (
	entryHeaderBytes         = 44
	groupSnapshotHeaderBytes = 40
	memberBytes              = 44

	// MaxEntryCommands is the most commands that share an entry.
	MaxEntryCommands = 256
	// MaxSharedBytes is the length of an entry's commands from which on no further
	// one joins them, in bytes.
	MaxSharedBytes = 64 << 10
	// MaxEntryBytes is the longest entry, in bytes.
	MaxEntryBytes = entryHeaderBytes + MaxSharedBytes + meta.MaxCommandBytes
)

var (
	entryMagic         = [4]byte{'S', 'C', 'R', 'E'}
	groupSnapshotMagic = [4]byte{'S', 'C', 'R', 'S'}
	memberMagic        = [4]byte{'S', 'C', 'R', 'M'}
)

// origin names one run of one host.
type origin [16]byte

// entry is what one proposal puts into a group's log.
type entry struct {
	group    GroupID
	origin   origin
	sequence uint64
	commands []meta.Command
}

// encode returns the entry's encoding.
// Precondition: the commands are valid and within the limits.
func (e entry) encode(cluster ClusterID) []byte {
	invariant.Check(len(e.commands) > 0 && len(e.commands) <= MaxEntryCommands, "entry of %d commands", len(e.commands))
	b := slices.Concat(entryMagic[:], []byte{wireVersion, 0})
	b = binary.BigEndian.AppendUint16(b, uint16(len(e.commands)))
	b = binary.BigEndian.AppendUint64(b, uint64(e.group))
	b = append(b, e.origin[:]...)
	b = binary.BigEndian.AppendUint64(b, e.sequence)
	b = append(b, 0, 0, 0, 0)
	for _, c := range e.commands {
		b = c.AppendTo(b)
	}
	invariant.Check(len(b) <= MaxEntryBytes, "entry of %d bytes", len(b))
	binary.BigEndian.PutUint32(b[40:], entryChecksum(b, cluster))
	return b
}

func entryChecksum(b []byte, cluster ClusterID) uint32 {
	return checksum(scstore.StoreID(cluster), b[:40], zeroFrame[:4], b[entryHeaderBytes:])
}

// parseEntry reads a whole entry. Errors: ErrVersion for a format or a command of a
// newer release, ErrCorrupt.
func parseEntry(b []byte, cluster ClusterID) (entry, error) {
	if len(b) < entryHeaderBytes || len(b) > MaxEntryBytes || [4]byte(b) != entryMagic {
		return entry{}, fmt.Errorf("parse entry of %d bytes: no header: %w", len(b), scstore.ErrCorrupt)
	}
	if sum := entryChecksum(b, cluster); sum != binary.BigEndian.Uint32(b[40:]) {
		return entry{}, fmt.Errorf("parse entry: fails its checksum: %w", scstore.ErrCorrupt)
	}
	if b[4] != wireVersion {
		return entry{}, fmt.Errorf("parse entry: version %d, want %d: %w", b[4], wireVersion, scstore.ErrVersion)
	}
	count := int(binary.BigEndian.Uint16(b[6:]))
	if b[5] != 0 || count == 0 || count > MaxEntryCommands {
		return entry{}, fmt.Errorf("parse entry: bad header: %w", scstore.ErrCorrupt)
	}
	e := entry{
		group:    GroupID(binary.BigEndian.Uint64(b[8:])),
		origin:   origin(b[16:]),
		sequence: binary.BigEndian.Uint64(b[32:]),
	}
	rest := b[entryHeaderBytes:]
	for range count {
		c, after, err := meta.ParseCommand(rest)
		if err != nil {
			return entry{}, err
		}
		e.commands, rest = append(e.commands, c), after
	}
	if len(rest) > 0 {
		return entry{}, fmt.Errorf("parse entry: %d bytes too many: %w", len(rest), scstore.ErrCorrupt)
	}
	return e, nil
}

// groupSnapshot is a group's state after the entry with this index. Equal states at
// equal indexes give equal bytes.
func groupSnapshot(cluster ClusterID, group GroupID, index uint64, s *meta.State) []byte {
	b := s.AppendTo(make([]byte, groupSnapshotHeaderBytes))
	header, body := b[:groupSnapshotHeaderBytes], b[groupSnapshotHeaderBytes:]
	invariant.Check(len(body) <= MaxStateBytes, "state of %d bytes", len(body))
	copy(header, groupSnapshotMagic[:])
	header[4] = wireVersion
	binary.BigEndian.PutUint64(header[8:], uint64(group))
	binary.BigEndian.PutUint64(header[16:], index)
	binary.BigEndian.PutUint64(header[24:], uint64(len(body)))
	binary.BigEndian.PutUint32(header[32:], checksum(scstore.StoreID(cluster), body))
	binary.BigEndian.PutUint32(header[36:], checksum(scstore.StoreID(cluster), header[:36]))
	return b
}

// parseGroupSnapshot reads a whole snapshot. Errors: ErrVersion, ErrCorrupt.
func parseGroupSnapshot(b []byte, cluster ClusterID) (GroupID, uint64, *meta.State, error) {
	fail := func(text string, err error) (GroupID, uint64, *meta.State, error) {
		return 0, 0, nil, fmt.Errorf("parse group snapshot: %s: %w", text, err)
	}
	if len(b) < groupSnapshotHeaderBytes || [4]byte(b) != groupSnapshotMagic {
		return fail("no header", scstore.ErrCorrupt)
	}
	if checksum(scstore.StoreID(cluster), b[:36]) != binary.BigEndian.Uint32(b[36:]) {
		return fail("header fails its checksum", scstore.ErrCorrupt)
	}
	if b[4] != wireVersion {
		return fail(fmt.Sprintf("version %d, want %d", b[4], wireVersion), scstore.ErrVersion)
	}
	body := b[groupSnapshotHeaderBytes:]
	if !isZero(b[5:8]) || len(body) > MaxStateBytes || binary.BigEndian.Uint64(b[24:]) != uint64(len(body)) {
		return fail("bad header", scstore.ErrCorrupt)
	}
	if checksum(scstore.StoreID(cluster), body) != binary.BigEndian.Uint32(b[32:]) {
		return fail("state fails its checksum", scstore.ErrCorrupt)
	}
	s, err := meta.ParseState(body)
	if err != nil {
		return fail("state", err)
	}
	return GroupID(binary.BigEndian.Uint64(b[8:])), binary.BigEndian.Uint64(b[16:]), s, nil
}

// member is the content of the member file.
type member struct {
	cluster ClusterID
	disk    DiskID
}

func (m member) encode() []byte {
	b := slices.Concat(memberMagic[:], []byte{wireVersion, 0, 0, 0}, m.cluster[:], m.disk[:])
	return binary.BigEndian.AppendUint32(b, checksum(scstore.StoreID(m.cluster), b))
}

// parseMember reads a whole member file. Errors: ErrVersion, ErrCorrupt.
func parseMember(b []byte) (member, error) {
	if len(b) != memberBytes || [4]byte(b) != memberMagic {
		return member{}, fmt.Errorf("parse member file of %d bytes: no header: %w", len(b), scstore.ErrCorrupt)
	}
	m := member{cluster: ClusterID(b[8:]), disk: DiskID(b[24:])}
	if checksum(scstore.StoreID(m.cluster), b[:40]) != binary.BigEndian.Uint32(b[40:]) {
		return member{}, fmt.Errorf("parse member file: fails its checksum: %w", scstore.ErrCorrupt)
	}
	if b[4] != wireVersion {
		return member{}, fmt.Errorf("parse member file: version %d, want %d: %w", b[4], wireVersion, scstore.ErrVersion)
	}
	if !isZero(b[5:8]) {
		return member{}, fmt.Errorf("parse member file: bad header: %w", scstore.ErrCorrupt)
	}
	return m, nil
}
