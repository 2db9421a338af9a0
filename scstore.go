package scstore

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
)

// BlockSize is the unit of address and freshness, in bytes.
const BlockSize = 4096

// MaxVolumeBytes is the largest volume, in bytes (64 TiB). It keeps block
// numbers within the 40 bits that the extent map gives them, with room to grow.
const MaxVolumeBytes = 64 << 40

// BlockIndex is the number of a block within its volume, counted from 0.
type BlockIndex uint64

// Offset returns the byte offset of the block within its volume.
func (b BlockIndex) Offset() int64 { return int64(b) * BlockSize }

// Extent is the run of blocks [First, First+Count).
type Extent struct {
	First BlockIndex
	Count uint64 // blocks
}

// End returns the first block after the extent.
func (e Extent) End() BlockIndex { return e.First + BlockIndex(e.Count) }

// Clamp returns the part of e that lies within limit; its Count is 0 if they
// do not touch.
func (e Extent) Clamp(limit Extent) Extent {
	first, end := max(e.First, limit.First), min(e.End(), limit.End())
	if end <= first {
		return Extent{First: first}
	}
	return Extent{First: first, Count: uint64(end - first)}
}

// VolumeID names a volume, and every image, snapshot branch or file that can be
// addressed as one: the 128-bit inode id of the namespace. It is drawn at random
// and never used again. Names are never keys of data.
type VolumeID [16]byte

// String returns the id as 32 hexadecimal digits.
func (v VolumeID) String() string { return hex.EncodeToString(v[:]) }

// IsZero reports whether the id names nothing.
func (v VolumeID) IsZero() bool { return v == VolumeID{} }

// MarshalText encodes the id as String does, for JSON.
func (v VolumeID) MarshalText() ([]byte, error) { return []byte(v.String()), nil }

// UnmarshalText reads what MarshalText wrote. Errors: ErrInvalid.
func (v *VolumeID) UnmarshalText(text []byte) error {
	if len(text) != hex.EncodedLen(len(v)) {
		return fmt.Errorf("volume id %q: want %d hexadecimal digits: %w", text, hex.EncodedLen(len(v)), ErrInvalid)
	}
	if _, err := hex.Decode(v[:], text); err != nil {
		return fmt.Errorf("volume id %q: %w", text, ErrInvalid)
	}
	return nil
}

// StoreID names one local store for its whole life. It is drawn at random when
// the store is made and seeds every checksum in it, so that a block or header of
// another store, or one that a guest forged, never verifies here.
type StoreID [16]byte

// String returns the id as 32 hexadecimal digits.
func (s StoreID) String() string { return hex.EncodeToString(s[:]) }

// Fence is the monotonic token of the right to write a volume. A writer that
// holds a lower fence than the volume's current one is refused for ever.
type Fence uint64

// Epoch numbers a volume's atomic batches of writes within one fence.
type Epoch uint64

// Position names a volume's content. Epoch numbers alone never do: an owner that
// was fenced out and its successor both write their own epoch 21.
type Position struct {
	Fence Fence `json:"fence"`
	Epoch Epoch `json:"epoch"`
}

// String returns "fence.epoch".
func (p Position) String() string { return fmt.Sprintf("%d.%d", p.Fence, p.Epoch) }

// Compare orders positions of one history: by fence, then by epoch.
func (p Position) Compare(q Position) int {
	switch {
	case p.Fence < q.Fence, p.Fence == q.Fence && p.Epoch < q.Epoch:
		return -1
	case p == q:
		return 0
	}
	return 1
}

// Digest is a SHA-256 digest of content, domain-separated by what it covers
// (fs/volume, digest tree).
type Digest [32]byte

// String returns the digest as 64 hexadecimal digits.
func (d Digest) String() string { return hex.EncodeToString(d[:]) }

// MarshalText encodes the digest as String does, for JSON.
func (d Digest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads what MarshalText wrote. Errors: ErrInvalid.
func (d *Digest) UnmarshalText(text []byte) error {
	if len(text) != hex.EncodedLen(len(d)) {
		return fmt.Errorf("digest %q: want %d hexadecimal digits: %w", text, hex.EncodedLen(len(d)), ErrInvalid)
	}
	if _, err := hex.Decode(d[:], text); err != nil {
		return fmt.Errorf("digest %q: %w", text, ErrInvalid)
	}
	return nil
}

// Range is a run of bytes of a volume whose blocks share one allocation state.
type Range struct {
	Offset int64 // bytes from the start of the volume
	Length int64 // bytes
	State  RangeState
}

// RangeState says what a range's bytes are.
type RangeState uint8

// The states of a range.
const (
	RangeData RangeState = iota // stored bytes, whatever they are
	RangeHole                   // no stored bytes; reads as zeros
)

// PieceState says what a table of the local store knows of a run of blocks.
type PieceState uint8

// The states of a piece.
const (
	PieceData   PieceState = iota // stored here
	PieceHole                     // known to be zeros
	PieceAbsent                   // never written here: the base shows through, or zeros
	PieceRemote                   // written, but its bytes are at another host and not yet here
)

// Piece is a run of blocks in one state.
type Piece struct {
	Extent
	State PieceState
}

// Tag names a mark: a moment of a volume's write order that a local store keeps
// readable, across restarts, until the tag is taken back. The store knows nothing
// of what a tag means. The zero Tag names no mark.
type Tag struct {
	Kind TagKind
	ID   [16]byte // opaque: a position, a snapshot's id, a jump's
}

// TagKind keeps the tags of different users of marks apart.
type TagKind uint8

// The kinds of tags. Numbers are stored and never reused; 0 is no tag.
const (
	TagSealed   TagKind = 1 // a sealed epoch; its ID is a position
	TagSnapshot TagKind = 2 // a snapshot's position
	TagServed   TagKind = 3 // the position at which a replica serves
	TagJump     TagKind = 4 // what a jump is based on
	TagPeer     TagKind = 5 // the position of another host's replica
)

// PositionTag returns the tag of a position.
func PositionTag(kind TagKind, p Position) Tag {
	t := Tag{Kind: kind}
	binary.BigEndian.PutUint64(t.ID[:], uint64(p.Fence))
	binary.BigEndian.PutUint64(t.ID[8:], uint64(p.Epoch))
	return t
}

// Position returns the position that PositionTag made the tag of.
func (t Tag) Position() Position {
	return Position{Fence: Fence(binary.BigEndian.Uint64(t.ID[:])), Epoch: Epoch(binary.BigEndian.Uint64(t.ID[8:]))}
}

// IsZero reports whether the tag names nothing.
func (t Tag) IsZero() bool { return t == Tag{} }

// String returns the kind and the id in hexadecimal digits.
func (t Tag) String() string { return fmt.Sprintf("%d:%x", t.Kind, t.ID[:]) }
