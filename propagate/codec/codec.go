package codec

import (
	"bytes"
	"crypto/subtle"
	"fmt"

	"github.com/pierrec/lz4/v4"

	"scstore"
)

// MaxRunBlocks is the longest run that is coded as one, in blocks.
const MaxRunBlocks = 16

// MaxRunBytes is the same in bytes.
const MaxRunBytes = MaxRunBlocks * scstore.BlockSize

// Codec says how a run was made small. The numbers are on the wire: never renumber.
type Codec uint8

// The codecs. Delta forms need the base, the version of the run that the receiver
// has.
const (
	Raw      Codec = 1 // the run
	LZ4      Codec = 2 // the run, compressed
	DeltaLZ4 Codec = 3 // run XOR base, compressed
	Same     Codec = 4 // nothing: the run is the base
	Hole     Codec = 5 // nothing: the run is zeros

	Zstd      Codec = 6 // as LZ4, but smaller, and slower to make and to undo
	DeltaZstd Codec = 7 // as DeltaLZ4, likewise
)

// String names the codec, for messages and metrics.
func (c Codec) String() string {
	switch c {
	case Raw:
		return "raw"
	case LZ4:
		return "lz4"
	case DeltaLZ4:
		return "delta_lz4"
	case Same:
		return "same"
	case Hole:
		return "hole"
	case Zstd:
		return "zstd"
	case DeltaZstd:
		return "delta_zstd"
	}
	return fmt.Sprintf("codec %d", uint8(c))
}

// NeedsBase reports whether Decode has to be given the base.
func (c Codec) NeedsBase() bool { return c == DeltaLZ4 || c == DeltaZstd || c == Same }

// zeros is compared with; nobody writes it.
var zeros [MaxRunBytes]byte

// Encoder codes runs. The zero value is ready. It is not safe for concurrent use:
// one for each goroutine.
type Encoder struct {
	// Slow is for a link that is slower than the codec: Zstd takes LZ4's place. It may
	// change between two runs.
	Slow bool

	lz4         lz4.Compressor
	delta       [MaxRunBytes]byte
	plain, diff [MaxRunBytes + zstdSlack]byte
}

// Encode returns the smallest form of a run of whole blocks, at most MaxRunBytes.
// base is the version of it that the receiver has, of the same length, or nil. The
// result is valid until the next call, or as long as run is, and must not be
// changed.
func (e *Encoder) Encode(run, base []byte) (Codec, []byte) {
	if bytes.Equal(run, zeros[:len(run)]) {
		return Hole, nil
	}
	whole, delta := LZ4, DeltaLZ4
	if e.Slow {
		whole, delta = Zstd, DeltaZstd
	}
	codec, best := Raw, run
	if len(base) == len(run) {
		if bytes.Equal(run, base) {
			return Same, nil
		}
		diff := e.delta[:len(run)]
		subtle.XORBytes(diff, run, base)
		if out := e.compress(diff, e.diff[:]); out != nil {
			codec, best = delta, out
		}
		// A base that halves the run is related to it: the run alone won't do better.
		if len(best) <= len(run)/2 {
			return codec, best
		}
	}
	if out := e.compress(run, e.plain[:]); out != nil && len(out) < len(best) {
		codec, best = whole, out
	}
	return codec, best
}

// compress returns the compressed form of p in out, nil if it is not smaller.
func (e *Encoder) compress(p, out []byte) []byte {
	if e.Slow {
		return packZstd(p, out)
	}
	n, err := e.lz4.CompressBlock(p, out[:len(p)-1])
	if err != nil || n == 0 {
		return nil // it does not fit: that is the answer
	}
	return out[:n]
}

// Decode writes the run that payload is a form of into run, whose length is the
// run's. base is what the receiver has there; it is looked at only if the codec
// needs it, and may be run itself.
//
// Errors: ErrCorrupt for a payload that is no form of a run of that length,
// ErrInvalid if the base has another length, ErrVersion for an unknown codec. What
// run holds is undefined then.
func Decode(c Codec, payload, base, run []byte) error {
	if c.NeedsBase() && len(base) != len(run) {
		return fmt.Errorf("decode %s: base of %d bytes for a run of %d: %w", c, len(base), len(run), scstore.ErrInvalid)
	}
	switch c {
	case Raw:
		if len(payload) != len(run) {
			return sizeError(c, len(payload), len(run))
		}
		copy(run, payload)
		return nil
	case LZ4, Zstd:
		return uncompress(c, payload, run)
	case DeltaLZ4, DeltaZstd:
		var delta [MaxRunBytes]byte
		if len(run) > len(delta) {
			return sizeError(c, len(payload), len(run))
		}
		if err := uncompress(c, payload, delta[:len(run)]); err != nil {
			return err
		}
		subtle.XORBytes(run, base, delta[:len(run)])
		return nil
	case Same, Hole:
		if len(payload) != 0 {
			return sizeError(c, len(payload), len(run))
		}
		if c == Hole {
			clear(run)
		} else {
			copy(run, base)
		}
		return nil
	}
	return fmt.Errorf("decode %s: %w", c, scstore.ErrVersion)
}

func uncompress(c Codec, payload, out []byte) error {
	if c == Zstd || c == DeltaZstd {
		return unpackZstd(c, payload, out)
	}
	n, err := lz4.UncompressBlock(payload, out)
	if err != nil {
		return fmt.Errorf("decode %s: %v: %w", c, err, scstore.ErrCorrupt)
	}
	if n != len(out) {
		return sizeError(c, n, len(out))
	}
	return nil
}

func sizeError(c Codec, got, want int) error {
	return fmt.Errorf("decode %s: %d bytes for a run of %d: %w", c, got, want, scstore.ErrCorrupt)
}
