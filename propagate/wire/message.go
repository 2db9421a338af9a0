package wire

import (
	"encoding/binary"
	"fmt"

	"scstore"
	"scstore/propagate/codec"
)

// ManifestRequest asks which blocks of a window differ between two positions of a
// volume. From is what the asker holds complete; the zero position is nothing at
// all.
type ManifestRequest struct {
	Volume   scstore.VolumeID
	From, To scstore.Position
	Window   scstore.Extent // at most MaxWindowBlocks; may reach beyond the volume's end
}

// AppendTo appends the frame.
func (m ManifestRequest) AppendTo(b []byte) []byte {
	b, at := beginFrame(b, KindManifestRequest)
	b = append(b, m.Volume[:]...)
	b = appendPosition(appendPosition(b, m.From), m.To)
	return endFrame(appendExtent(b, m.Window), at)
}

// ParseManifestRequest reads a body. Errors: ErrCorrupt, also for a window that no
// manifest covers.
func ParseManifestRequest(b []byte) (ManifestRequest, error) {
	r := body{b: b}
	m := ManifestRequest{Volume: r.volume(), From: r.position(), To: r.position(), Window: r.extent()}
	if err := r.end(KindManifestRequest); err != nil {
		return ManifestRequest{}, err
	}
	if !validWindow(m.Window) {
		return ManifestRequest{}, fmt.Errorf("parse request for a manifest: window %+v: %w", m.Window, scstore.ErrCorrupt)
	}
	return m, nil
}

// Manifest begins the answer: what the frames that follow name, in all.
type Manifest struct {
	Volume    scstore.VolumeID
	From, To  scstore.Position
	Window    scstore.Extent // of the request
	SizeBytes int64          // of the volume at To
	Extents   uint64         // in the Extents frames, at most MaxManifestExtents
	Blocks    uint64         // in those extents
	Root      scstore.Digest // over the spans that the extents touch, at To
}

// AppendTo appends the frame.
func (m Manifest) AppendTo(b []byte) []byte {
	b, at := beginFrame(b, KindManifest)
	b = append(b, m.Volume[:]...)
	b = appendPosition(appendPosition(b, m.From), m.To)
	b = appendExtent(b, m.Window)
	b = binary.BigEndian.AppendUint64(b, uint64(m.SizeBytes))
	b = binary.BigEndian.AppendUint64(b, m.Extents)
	b = binary.BigEndian.AppendUint64(b, m.Blocks)
	return endFrame(append(b, m.Root[:]...), at)
}

// ParseManifest reads a body. Errors: ErrCorrupt, also for counts and sizes that no
// volume has.
func ParseManifest(b []byte) (Manifest, error) {
	r := body{b: b}
	m := Manifest{Volume: r.volume(), From: r.position(), To: r.position(), Window: r.extent()}
	size := r.uint64()
	m.Extents, m.Blocks, m.Root = r.uint64(), r.uint64(), r.digest()
	if err := r.end(KindManifest); err != nil {
		return Manifest{}, err
	}
	if !validWindow(m.Window) || size == 0 || size > scstore.MaxVolumeBytes || size%scstore.BlockSize != 0 ||
		m.Extents > MaxManifestExtents || m.Extents > m.Blocks || m.Blocks > m.Window.Count {
		return Manifest{}, fmt.Errorf("parse manifest: %d extents of %d blocks in window %+v of %d bytes: %w",
			m.Extents, m.Blocks, m.Window, size, scstore.ErrCorrupt)
	}
	m.SizeBytes = int64(size)
	return m, nil
}

// AppendExtents appends a frame with up to MaxExtents extents, which ascend and do
// not touch. Kind is KindExtents or KindAbsent.
func AppendExtents(b []byte, k Kind, extents []scstore.Extent) []byte {
	b, at := beginFrame(b, k)
	return endFrame(appendExtents(b, extents), at)
}

// ParseExtents reads the body of a frame of kind KindExtents or KindAbsent. Errors:
// ErrCorrupt.
func ParseExtents(b []byte) ([]scstore.Extent, error) {
	r := body{b: b}
	extents := r.extents()
	if err := r.end(KindExtents); err != nil {
		return nil, err
	}
	return extents, nil
}

// Spans are the digests of consecutive spans.
type Spans struct {
	First   uint64 // number of the first span
	Digests []scstore.Digest
}

// AppendTo appends the frame. Precondition: at most MaxSpans.
func (s Spans) AppendTo(b []byte) []byte {
	b, at := beginFrame(b, KindSpans)
	b = binary.BigEndian.AppendUint64(b, s.First)
	for i := range s.Digests {
		b = append(b, s.Digests[i][:]...)
	}
	return endFrame(b, at)
}

// ParseSpans reads a body. Errors: ErrCorrupt.
func ParseSpans(b []byte) (Spans, error) {
	r := body{b: b}
	s := Spans{First: r.uint64()}
	n := len(r.b) / len(scstore.Digest{})
	if n > MaxSpans || s.First > maxBlocks {
		return Spans{}, fmt.Errorf("parse spans: %d from %d on: %w", n, s.First, scstore.ErrCorrupt)
	}
	for range n {
		s.Digests = append(s.Digests, r.digest())
	}
	return s, r.end(KindSpans)
}

// BlocksRequest asks for the bytes of blocks at a position.
type BlocksRequest struct {
	Volume   scstore.VolumeID
	Position scstore.Position
	Base     scstore.Position // that the asker holds complete; zero for none
	Extents  []scstore.Extent // at most MaxExtents, ascending
}

// AppendTo appends the frame.
func (m BlocksRequest) AppendTo(b []byte) []byte {
	b, at := beginFrame(b, KindBlocksRequest)
	b = append(b, m.Volume[:]...)
	b = appendPosition(appendPosition(b, m.Position), m.Base)
	return endFrame(appendExtents(b, m.Extents), at)
}

// ParseBlocksRequest reads a body. Errors: ErrCorrupt, also for no extents.
func ParseBlocksRequest(b []byte) (BlocksRequest, error) {
	r := body{b: b}
	m := BlocksRequest{Volume: r.volume(), Position: r.position(), Base: r.position(), Extents: r.extents()}
	if err := r.end(KindBlocksRequest); err != nil {
		return BlocksRequest{}, err
	}
	if len(m.Extents) == 0 {
		return BlocksRequest{}, fmt.Errorf("parse request for blocks: it names none: %w", scstore.ErrCorrupt)
	}
	return m, nil
}

// Run is a run of blocks in one of the forms of package codec.
type Run struct {
	First   scstore.BlockIndex
	Blocks  int // 1 to codec.MaxRunBlocks
	Codec   codec.Codec
	BaseSum uint64 // of the base that a delta form needs, so that a wrong one shows; else 0
	Payload []byte // at most codec.MaxRunBytes; a parsed one is part of the body
}

// AppendTo appends the frame.
func (m Run) AppendTo(b []byte) []byte {
	b, at := beginFrame(b, KindRun)
	b = binary.BigEndian.AppendUint64(b, uint64(m.First))
	b = append(b, byte(m.Blocks), byte(m.Codec))
	b = binary.BigEndian.AppendUint64(b, m.BaseSum)
	return endFrame(append(b, m.Payload...), at)
}

// ParseRun reads a body. An unknown codec is for codec.Decode to refuse. Errors:
// ErrCorrupt.
func ParseRun(b []byte) (Run, error) {
	r := body{b: b}
	m := Run{First: scstore.BlockIndex(r.uint64()), Blocks: int(r.uint8()), Codec: codec.Codec(r.uint8()), BaseSum: r.uint64()}
	m.Payload = r.take(len(r.b))
	if err := r.end(KindRun); err != nil {
		return Run{}, err
	}
	if !validRun(m.First, m.Blocks) || len(m.Payload) > m.Blocks*scstore.BlockSize {
		return Run{}, fmt.Errorf("parse run: %d bytes for %d blocks from %d on: %w", len(m.Payload), m.Blocks, m.First, scstore.ErrCorrupt)
	}
	return m, nil
}

// End ends an answer and says how much it was.
type End struct {
	Blocks uint64 // in runs
	Bytes  uint64 // of their payloads
}

// AppendTo appends the frame.
func (m End) AppendTo(b []byte) []byte {
	b, at := beginFrame(b, KindEnd)
	return endFrame(binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(b, m.Blocks), m.Bytes), at)
}

// ParseEnd reads a body. Errors: ErrCorrupt.
func ParseEnd(b []byte) (End, error) {
	r := body{b: b}
	m := End{Blocks: r.uint64(), Bytes: r.uint64()}
	return m, r.end(KindEnd)
}

// RefusalCode says why a request was not answered. Never renumber.
type RefusalCode uint8

// The codes of refusals.
const (
	RefusedPosition RefusalCode = 2 // no such volume, or not at that position
	RefusedBusy     RefusalCode = 3 // too much is asked at once; later, or elsewhere
	RefusedFenced   RefusalCode = 4 // the sender no longer speaks for the position
	RefusedFailed   RefusalCode = 5 // it can't be read
)

// Refusal is the answer to what is not answered.
type Refusal struct {
	Code RefusalCode
	Text string // for a person; at most MaxRefusalBytes
}

// AppendTo appends the frame; a longer text is cut.
func (m Refusal) AppendTo(b []byte) []byte {
	b, at := beginFrame(b, KindRefusal)
	b = append(b, byte(m.Code))
	return endFrame(append(b, m.Text[:min(len(m.Text), MaxRefusalBytes)]...), at)
}

// ParseRefusal reads a body. Errors: ErrCorrupt.
func ParseRefusal(b []byte) (Refusal, error) {
	r := body{b: b}
	m := Refusal{Code: RefusalCode(r.uint8())}
	if len(r.b) > MaxRefusalBytes {
		return Refusal{}, fmt.Errorf("parse refusal: text of %d bytes: %w", len(r.b), scstore.ErrCorrupt)
	}
	m.Text = string(r.take(len(r.b)))
	return m, r.end(KindRefusal)
}

// Err returns the refusal as an error. It wraps ErrNotFound, ErrBusy, ErrFenced or
// ErrCorrupt, and ErrVersion for a code of a newer release.
func (m Refusal) Err() error {
	sentinel := scstore.ErrVersion
	switch m.Code {
	case RefusedPosition:
		sentinel = scstore.ErrNotFound
	case RefusedBusy:
		sentinel = scstore.ErrBusy
	case RefusedFenced:
		sentinel = scstore.ErrFenced
	case RefusedFailed:
		sentinel = scstore.ErrCorrupt
	}
	return fmt.Errorf("refused: %s: %w", m.Text, sentinel)
}
