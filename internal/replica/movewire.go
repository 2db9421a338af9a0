package replica

import (
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

// wire walks the message's fields.
func (m *prepareMsg) wire(c *moveCodec) {
	c.handOff(&m.ID)
	number(c, &m.Group)
	volumes(c, &m.Volumes, func(v *preparedVolume) scstore.VolumeID {
		c.volume(&v.ID)
		c.size(&v.SizeBytes)
		number(c, &v.Fence)
		c.position(&v.At)
		return v.ID
	})
}

func (m *readyMsg) wire(c *moveCodec) {
	c.handOff(&m.ID)
	volumes(c, &m.Volumes, func(v *readyVolume) scstore.VolumeID {
		c.volume(&v.ID)
		c.position(&v.At)
		return v.ID
	})
}

func (m *releaseMsg) wire(c *moveCodec) {
	c.handOff(&m.ID)
	number(c, &m.Group)
	total := 0
	volumes(c, &m.Volumes, func(v *releaseVolume) scstore.VolumeID {
		c.volume(&v.ID)
		c.size(&v.SizeBytes)
		number(c, &v.Fence)
		c.position(&v.Final.Parent)
		c.position(&v.Final.Position)
		c.fixed(v.Final.Digest[:])
		c.position(&v.From)
		c.extents(&v.Changed, uint64(v.SizeBytes)/scstore.BlockSize)
		total += len(v.Changed)
		c.require(total <= MaxReleaseExtents)
		return v.ID
	})
}

func (m *holdsAsk) wire(c *moveCodec) {
	c.volume(&m.Volume)
	number(c, &m.Group)
	number(c, &m.Fence)
}

func (m *holdsMsg) wire(c *moveCodec) {
	c.positions(&m.Complete, MaxHeldPositions)
	c.position(&m.Mapped)
	number(c, &m.Blocks)
	number(c, &m.Extents)
	c.require(m.Blocks <= maxVolumeBlocks && m.Extents <= m.Blocks && (m.Mapped != scstore.Position{} || m.Blocks == 0))
}

func (m *aliveAsk) wire(c *moveCodec) { c.volume(&m.Volume) }

func (m *aliveMsg) wire(c *moveCodec) {
	c.flag(&m.Owns)
	number(c, &m.Fence)
	c.position(&m.Head)
	c.bytes(&m.MissingBytes)
	c.bytes(&m.OpenBytes)
}

// AppendTo appends the message.
func (m prepareMsg) AppendTo(b []byte) []byte { return appendMessage(b, magicPrepare, m.wire) }

// AppendTo appends the message.
func (m readyMsg) AppendTo(b []byte) []byte { return appendMessage(b, magicReady, m.wire) }

// AppendTo appends the message. Precondition: at most MaxReleaseExtents in all.
func (m releaseMsg) AppendTo(b []byte) []byte { return appendMessage(b, magicRelease, m.wire) }

// AppendTo appends the message.
func (m holdsAsk) AppendTo(b []byte) []byte { return appendMessage(b, magicHoldsAsk, m.wire) }

// AppendTo appends the message. Precondition: at most MaxHeldPositions.
func (m holdsMsg) AppendTo(b []byte) []byte { return appendMessage(b, magicHolds, m.wire) }

// AppendTo appends the message.
func (m aliveAsk) AppendTo(b []byte) []byte { return appendMessage(b, magicAliveAsk, m.wire) }

// AppendTo appends the message.
func (m aliveMsg) AppendTo(b []byte) []byte { return appendMessage(b, magicAlive, m.wire) }

// parsePrepare reads a PREPARE. Errors: ErrVersion, ErrCorrupt.
func parsePrepare(b []byte) (m prepareMsg, err error) {
	err = parseMessage(magicPrepare, b, m.wire)
	return m, err
}

// parseReady reads a READY. Errors: ErrVersion, ErrCorrupt.
func parseReady(b []byte) (m readyMsg, err error) {
	err = parseMessage(magicReady, b, m.wire)
	return m, err
}

// parseRelease reads a RELEASE. Errors: ErrVersion, ErrCorrupt.
func parseRelease(b []byte) (m releaseMsg, err error) {
	err = parseMessage(magicRelease, b, m.wire)
	return m, err
}

// parseHoldsAsk reads a HOLDS?. Errors: ErrVersion, ErrCorrupt.
func parseHoldsAsk(b []byte) (m holdsAsk, err error) {
	err = parseMessage(magicHoldsAsk, b, m.wire)
	return m, err
}

// parseHolds reads a HOLDS. Errors: ErrVersion, ErrCorrupt.
func parseHolds(b []byte) (m holdsMsg, err error) {
	err = parseMessage(magicHolds, b, m.wire)
	return m, err
}

// parseAliveAsk reads an ALIVE?. Errors: ErrVersion, ErrCorrupt.
func parseAliveAsk(b []byte) (m aliveAsk, err error) {
	err = parseMessage(magicAliveAsk, b, m.wire)
	return m, err
}

// parseAlive reads an ALIVE. Errors: ErrVersion, ErrCorrupt.
func parseAlive(b []byte) (m aliveMsg, err error) {
	err = parseMessage(magicAlive, b, m.wire)
	return m, err
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
