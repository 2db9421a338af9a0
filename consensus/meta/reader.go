package meta

import (
	"encoding/binary"

	"scstore"
)

// reader takes fields from the front of b. After the first that is not there,
// failed is set and every field reads as zero.
type reader struct {
	b      []byte
	failed bool
}

// take returns the next n bytes, or nil.
func (r *reader) take(n int) []byte {
	if r.failed || n > len(r.b) {
		r.failed = true
		return nil
	}
	field := r.b[:n]
	r.b = r.b[n:]
	return field
}

func (r *reader) uint8() uint8 {
	if field := r.take(1); field != nil {
		return field[0]
	}
	return 0
}

func (r *reader) uint16() uint16 {
	if field := r.take(2); field != nil {
		return binary.BigEndian.Uint16(field)
	}
	return 0
}

func (r *reader) uint32() uint32 {
	if field := r.take(4); field != nil {
		return binary.BigEndian.Uint32(field)
	}
	return 0
}

func (r *reader) uint64() uint64 {
	if field := r.take(8); field != nil {
		return binary.BigEndian.Uint64(field)
	}
	return 0
}

func (r *reader) id() (id scstore.VolumeID) {
	copy(id[:], r.take(len(id)))
	return id
}

func (r *reader) digest() (d scstore.Digest) {
	copy(d[:], r.take(len(d)))
	return d
}

func (r *reader) position() scstore.Position {
	return scstore.Position{Fence: scstore.Fence(r.uint64()), Epoch: scstore.Epoch(r.uint64())}
}

// string reads a string of at most limit bytes.
func (r *reader) string(limit int) string {
	length := int(r.uint16())
	if length > limit {
		r.failed = true
		return ""
	}
	return string(r.take(length))
}

// zeros reads n bytes that must be zero.
func (r *reader) zeros(n int) {
	for _, c := range r.take(n) {
		if c != 0 {
			r.failed = true
		}
	}
}
