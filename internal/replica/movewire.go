package replica

import (
	"encoding/binary"
	"fmt"

	"scstore"
	"scstore/consensus/meta"
)

// What hosts say to each other about hand-offs and promotes, version 1. Each message
// is a request or its answer; integers are big-endian, bytes marked 0 are zero and are
// checked, a position is 8 of fence and 8 of epoch. Every message begins with
//
//	0  4  magic
//	4  1  version, 1
//	5  3  0
//
//	PREPARE "SCMP"  16 hand-off, 8 group, 2 volumes, each: 16 id, 8 size, 8 fence of the
//	                source, position whose map the target is to have
//	READY   "SCMY"  16 hand-off, 2 volumes, each: 16 id, position whose map it has
//	RELEASE "SCML"  16 hand-off, 8 group, 2 volumes, each: 16 id, 8 size, 8 fence of the
//	                source, position of the parent, of the end, 32 digest of its manifest,
//	                position that READY named, 4 extents, each: uvarint blocks since the end
//	                of the one before, uvarint length
//	HOLDS?  "SCMH"  16 volume, 8 group, 8 fence to be refused, 0 for none
//	HOLDS   "SCMI"  2 positions, rising, complete there; position, 8 blocks, 8 extents: what
//	                a map that is there changes after the last of them; zeros without one
//	ALIVE?  "SCMA"  16 volume
//	ALIVE   "SCMB"  1 flags (1: owns), 8 fence, position of the head, 8 missing bytes, 8 open
//	                bytes
//
// Volumes rise by id; extents ascend, do not touch and lie within the volume; uvarints
// are in their shortest form. So each value has exactly one encoding.
const (
	moveVersion = 1

	magicPrepare  = "SCMP"
	magicReady    = "SCMY"
	magicRelease  = "SCML"
	magicHoldsAsk = "SCMH"
	magicHolds    = "SCMI"
	magicAliveAsk = "SCMA"
	magicAlive    = "SCMB"
)

const (
	// MaxReleaseExtents bounds the extents of one RELEASE, all volumes together, so that
	// it fits into one request: at most 10 bytes each. Where more changed, neighbours are
	// named as one with what lies between them.
	MaxReleaseExtents = 256 << 10
	// MaxHeldPositions bounds the positions of one answer: the newest are told.
	MaxHeldPositions = 1024
)

// maxVolumeBlocks is how many blocks the largest volume has.
const maxVolumeBlocks = scstore.MaxVolumeBytes / scstore.BlockSize

// prepareMsg is PREPARE.
type prepareMsg struct {
	ID      meta.HandOffID
	Group   meta.GroupID
	Volumes []preparedVolume // rising
}

type preparedVolume struct {
	ID        scstore.VolumeID
	SizeBytes int64
	Fence     scstore.Fence
	At        scstore.Position
}

// readyMsg is READY.
type readyMsg struct {
	ID      meta.HandOffID
	Volumes []readyVolume // rising
}

type readyVolume struct {
	ID scstore.VolumeID
	At scstore.Position
}

// releaseMsg is RELEASE.
type releaseMsg struct {
	ID      meta.HandOffID
	Group   meta.GroupID
	Volumes []releaseVolume // rising
}

type releaseVolume struct {
	ID        scstore.VolumeID
	SizeBytes int64
	Fence     scstore.Fence // of the source
	Final     Point
	From      scstore.Position // that READY named
	Changed   []scstore.Extent // between From and Final
}

// holdsAsk asks what a host holds of a volume, once it refuses data under a fence.
type holdsAsk struct {
	Volume scstore.VolumeID
	Group  meta.GroupID
	Fence  scstore.Fence // 0: it need not refuse anything
}

// holdsMsg is the answer.
type holdsMsg struct {
	Complete []scstore.Position // rising
	Mapped   scstore.Position   // whose map is there beyond the last of them; zero for none
	Blocks   uint64             // that change between the two
	Extents  uint64             // that they make
}

// aliveAsk asks whether a host owns a volume.
type aliveAsk struct{ Volume scstore.VolumeID }

// aliveMsg is the answer.
type aliveMsg struct {
	Owns         bool
	Fence        scstore.Fence
	Head         scstore.Position // the last one sealed there
	MissingBytes int64            // that it has yet to fetch
	OpenBytes    int64            // written after Head
}

// beginMessage begins a message.
func beginMessage(magic string) []byte { return append([]byte(magic), moveVersion, 0, 0, 0) }

func appendAt(b []byte, p scstore.Position) []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(b, uint64(p.Fence)), uint64(p.Epoch))
}

// appendExtents appends extents that ascend and do not touch.
func appendExtents(b []byte, extents []scstore.Extent) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(extents)))
	at := scstore.BlockIndex(0)
	for _, e := range extents {
		b = binary.AppendUvarint(b, uint64(e.First-at))
		b = binary.AppendUvarint(b, e.Count)
		at = e.End()
	}
	return b
}

// moveReader reads a message from its front.
type moveReader struct {
	b      []byte
	failed bool
}

// openMessage begins to read a message. Errors: ErrVersion, ErrCorrupt.
func openMessage(magic string, b []byte) (*moveReader, error) {
	if len(b) < 8 || string(b[:4]) != magic {
		return nil, fmt.Errorf("parse %s: no such message: %w", magic, scstore.ErrCorrupt)
	}
	if b[4] != moveVersion {
		return nil, fmt.Errorf("parse %s: version %d, this host knows %d: %w", magic, b[4], moveVersion, scstore.ErrVersion)
	}
	return &moveReader{b: b[8:], failed: b[5] != 0 || b[6] != 0 || b[7] != 0}, nil
}

// end reports what is wrong with a message, once all of it should have been read.
func (f *moveReader) end(magic string) error {
	if f.failed || len(f.b) > 0 {
		return fmt.Errorf("parse %s: malformed, or %d bytes too many: %w", magic, len(f.b), scstore.ErrCorrupt)
	}
	return nil
}

func (f *moveReader) take(n int) []byte {
	if f.failed || n > len(f.b) {
		f.failed = true
		return nil
	}
	field := f.b[:n:n]
	f.b = f.b[n:]
	return field
}

func (f *moveReader) uint8() uint8 {
	if b := f.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (f *moveReader) uint16() uint16 {
	if b := f.take(2); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

func (f *moveReader) uint32() uint32 {
	if b := f.take(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (f *moveReader) uint64() uint64 {
	if b := f.take(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

// bytes reads a count of bytes.
func (f *moveReader) bytes() int64 {
	n := f.uint64()
	if n > scstore.MaxVolumeBytes {
		f.failed = true
		return 0
	}
	return int64(n)
}

// size reads the size of a volume.
func (f *moveReader) size() int64 {
	n := f.bytes()
	if n == 0 || n%scstore.BlockSize != 0 {
		f.failed = true
	}
	return n
}

func (f *moveReader) handOff() (id meta.HandOffID) {
	copy(id[:], f.take(len(id)))
	f.failed = f.failed || id.IsZero()
	return id
}

func (f *moveReader) volume() (id scstore.VolumeID) {
	copy(id[:], f.take(len(id)))
	f.failed = f.failed || id.IsZero()
	return id
}

func (f *moveReader) digest() (d scstore.Digest) {
	copy(d[:], f.take(len(d)))
	return d
}

func (f *moveReader) position() scstore.Position {
	return scstore.Position{Fence: scstore.Fence(f.uint64()), Epoch: scstore.Epoch(f.uint64())}
}

// uvarint reads an uvarint in its shortest form.
func (f *moveReader) uvarint() uint64 {
	v, n := binary.Uvarint(f.b)
	if n <= 0 || n > 1 && f.b[n-1] == 0 {
		f.failed = true
		return 0
	}
	f.b = f.b[n:]
	return v
}

// extents reads extents of a volume of that many blocks.
func (f *moveReader) extents(blocks uint64) []scstore.Extent {
	n := int(f.uint32())
	if n > MaxReleaseExtents || 2*n > len(f.b) {
		f.failed = true
	}
	if f.failed || n == 0 {
		return nil
	}
	out := make([]scstore.Extent, 0, n)
	at := uint64(0)
	for range n {
		gap, count := f.uvarint(), f.uvarint()
		if f.failed || count == 0 || gap == 0 && len(out) > 0 || gap > maxVolumeBlocks || count > maxVolumeBlocks || at+gap+count > blocks {
			f.failed = true
			return nil
		}
		out = append(out, scstore.Extent{First: scstore.BlockIndex(at + gap), Count: count})
		at += gap + count
	}
	return out
}

// volumes reads how many volumes follow, and each of them.
func (f *moveReader) volumes(one func() scstore.VolumeID) {
	n := int(f.uint16())
	if n == 0 || n > meta.MaxMoveVolumes {
		f.failed = true
		return
	}
	var last scstore.VolumeID
	for range n {
		if f.failed {
			return
		}
		id := one()
		if string(id[:]) <= string(last[:]) {
			f.failed = true
		}
		last = id
	}
}

// AppendTo appends the message.
func (m prepareMsg) AppendTo(b []byte) []byte {
	b = append(b, beginMessage(magicPrepare)...)
	b = append(b, m.ID[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(m.Group))
	b = binary.BigEndian.AppendUint16(b, uint16(len(m.Volumes)))
	for _, v := range m.Volumes {
		b = append(b, v.ID[:]...)
		b = binary.BigEndian.AppendUint64(b, uint64(v.SizeBytes))
		b = binary.BigEndian.AppendUint64(b, uint64(v.Fence))
		b = appendAt(b, v.At)
	}
	return b
}

// parsePrepare reads a PREPARE. Errors: ErrVersion, ErrCorrupt.
func parsePrepare(b []byte) (prepareMsg, error) {
	f, err := openMessage(magicPrepare, b)
	if err != nil {
		return prepareMsg{}, err
	}
	m := prepareMsg{ID: f.handOff(), Group: meta.GroupID(f.uint64())}
	f.volumes(func() scstore.VolumeID {
		v := preparedVolume{ID: f.volume(), SizeBytes: f.size(), Fence: scstore.Fence(f.uint64()), At: f.position()}
		m.Volumes = append(m.Volumes, v)
		return v.ID
	})
	return m, f.end(magicPrepare)
}

// AppendTo appends the message.
func (m readyMsg) AppendTo(b []byte) []byte {
	b = append(b, beginMessage(magicReady)...)
	b = append(b, m.ID[:]...)
	b = binary.BigEndian.AppendUint16(b, uint16(len(m.Volumes)))
	for _, v := range m.Volumes {
		b = appendAt(append(b, v.ID[:]...), v.At)
	}
	return b
}

// parseReady reads a READY. Errors: ErrVersion, ErrCorrupt.
func parseReady(b []byte) (readyMsg, error) {
	f, err := openMessage(magicReady, b)
	if err != nil {
		return readyMsg{}, err
	}
	m := readyMsg{ID: f.handOff()}
	f.volumes(func() scstore.VolumeID {
		v := readyVolume{ID: f.volume(), At: f.position()}
		m.Volumes = append(m.Volumes, v)
		return v.ID
	})
	return m, f.end(magicReady)
}

// AppendTo appends the message. Precondition: at most MaxReleaseExtents in all.
func (m releaseMsg) AppendTo(b []byte) []byte {
	b = append(b, beginMessage(magicRelease)...)
	b = append(b, m.ID[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(m.Group))
	b = binary.BigEndian.AppendUint16(b, uint16(len(m.Volumes)))
	for _, v := range m.Volumes {
		b = append(b, v.ID[:]...)
		b = binary.BigEndian.AppendUint64(b, uint64(v.SizeBytes))
		b = binary.BigEndian.AppendUint64(b, uint64(v.Fence))
		b = appendAt(appendAt(b, v.Final.Parent), v.Final.Position)
		b = append(b, v.Final.Digest[:]...)
		b = appendExtents(appendAt(b, v.From), v.Changed)
	}
	return b
}

// parseRelease reads a RELEASE. Errors: ErrVersion, ErrCorrupt.
func parseRelease(b []byte) (releaseMsg, error) {
	f, err := openMessage(magicRelease, b)
	if err != nil {
		return releaseMsg{}, err
	}
	m := releaseMsg{ID: f.handOff(), Group: meta.GroupID(f.uint64())}
	total := 0
	f.volumes(func() scstore.VolumeID {
		v := releaseVolume{ID: f.volume(), SizeBytes: f.size(), Fence: scstore.Fence(f.uint64())}
		v.Final = Point{Parent: f.position(), Position: f.position(), Digest: f.digest()}
		v.From = f.position()
		v.Changed = f.extents(uint64(v.SizeBytes) / scstore.BlockSize)
		if total += len(v.Changed); total > MaxReleaseExtents {
			f.failed = true
		}
		m.Volumes = append(m.Volumes, v)
		return v.ID
	})
	return m, f.end(magicRelease)
}

// AppendTo appends the message.
func (m holdsAsk) AppendTo(b []byte) []byte {
	b = append(append(b, beginMessage(magicHoldsAsk)...), m.Volume[:]...)
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(b, uint64(m.Group)), uint64(m.Fence))
}

// parseHoldsAsk reads a HOLDS?. Errors: ErrVersion, ErrCorrupt.
func parseHoldsAsk(b []byte) (holdsAsk, error) {
	f, err := openMessage(magicHoldsAsk, b)
	if err != nil {
		return holdsAsk{}, err
	}
	m := holdsAsk{Volume: f.volume(), Group: meta.GroupID(f.uint64()), Fence: scstore.Fence(f.uint64())}
	return m, f.end(magicHoldsAsk)
}

// AppendTo appends the message. Precondition: at most MaxHeldPositions.
func (m holdsMsg) AppendTo(b []byte) []byte {
	b = binary.BigEndian.AppendUint16(append(b, beginMessage(magicHolds)...), uint16(len(m.Complete)))
	for _, p := range m.Complete {
		b = appendAt(b, p)
	}
	b = appendAt(b, m.Mapped)
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(b, m.Blocks), m.Extents)
}

// parseHolds reads a HOLDS. Errors: ErrVersion, ErrCorrupt.
func parseHolds(b []byte) (holdsMsg, error) {
	f, err := openMessage(magicHolds, b)
	if err != nil {
		return holdsMsg{}, err
	}
	var m holdsMsg
	n := int(f.uint16())
	if n > MaxHeldPositions || 16*n > len(f.b) {
		f.failed = true
		n = 0
	}
	for i := range n {
		p := f.position()
		if i > 0 && p.Compare(m.Complete[i-1]) <= 0 {
			f.failed = true
		}
		m.Complete = append(m.Complete, p)
	}
	m.Mapped, m.Blocks, m.Extents = f.position(), f.uint64(), f.uint64()
	if m.Blocks > maxVolumeBlocks || m.Extents > m.Blocks || m.Mapped == (scstore.Position{}) && m.Blocks > 0 {
		f.failed = true
	}
	return m, f.end(magicHolds)
}

// AppendTo appends the message.
func (m aliveAsk) AppendTo(b []byte) []byte {
	return append(append(b, beginMessage(magicAliveAsk)...), m.Volume[:]...)
}

// parseAliveAsk reads an ALIVE?. Errors: ErrVersion, ErrCorrupt.
func parseAliveAsk(b []byte) (aliveAsk, error) {
	f, err := openMessage(magicAliveAsk, b)
	if err != nil {
		return aliveAsk{}, err
	}
	m := aliveAsk{Volume: f.volume()}
	return m, f.end(magicAliveAsk)
}

// AppendTo appends the message.
func (m aliveMsg) AppendTo(b []byte) []byte {
	owns := byte(0)
	if m.Owns {
		owns = 1
	}
	b = append(append(b, beginMessage(magicAlive)...), owns)
	b = appendAt(binary.BigEndian.AppendUint64(b, uint64(m.Fence)), m.Head)
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(b, uint64(m.MissingBytes)), uint64(m.OpenBytes))
}

// parseAlive reads an ALIVE. Errors: ErrVersion, ErrCorrupt.
func parseAlive(b []byte) (aliveMsg, error) {
	f, err := openMessage(magicAlive, b)
	if err != nil {
		return aliveMsg{}, err
	}
	flags := f.uint8()
	f.failed = f.failed || flags > 1
	m := aliveMsg{Owns: flags == 1, Fence: scstore.Fence(f.uint64()), Head: f.position(), MissingBytes: f.bytes(), OpenBytes: f.bytes()}
	return m, f.end(magicAlive)
}

// coarsen names extents of a volume of that many blocks as at most limit of them, by
// joining neighbours with what lies between them.
func coarsen(extents []scstore.Extent, blocks uint64, limit int) []scstore.Extent {
	for grain := uint64(2); len(extents) > limit; grain *= 2 {
		var out []scstore.Extent
		for _, e := range extents {
			first := uint64(e.First) / grain * grain
			end := min((uint64(e.End())+grain-1)/grain*grain, blocks)
			if n := len(out); n > 0 && uint64(out[n-1].End()) >= first {
				out[n-1].Count = max(uint64(out[n-1].End()), end) - uint64(out[n-1].First)
				continue
			}
			out = append(out, scstore.Extent{First: scstore.BlockIndex(first), Count: end - first})
		}
		extents = out
	}
	return extents
}
