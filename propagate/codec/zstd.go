package codec

import (
	"fmt"
	"runtime"

	"github.com/klauspost/compress/zstd"

	"scstore"
)

// zstdSlack is how much longer than its run a form may be that is not taken: noise is
// packed without an allocation.
const zstdSlack = 64

// maxZstd bounds how many runs are packed, and unpacked, at a time.
const maxZstd = 16

// zstdEncoder packs runs; safe for concurrent use. Checksums are left to the digests. It
// is used once here because its first use makes the channel that all others wait on.
var zstdEncoder = func() *zstd.Encoder {
	e, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithWindowSize(MaxRunBytes),
		zstd.WithSingleSegment(true), zstd.WithEncoderCRC(false), zstd.WithEncoderConcurrency(min(maxZstd, runtime.GOMAXPROCS(0))))
	must(err)
	e.EncodeAll(make([]byte, scstore.BlockSize), nil)
	return e
}()

// zstdDecoder unpacks runs; safe for concurrent use. It writes within the memory that it
// is given, and refuses a window longer than a run.
var zstdDecoder = func() *zstd.Decoder {
	d, err := zstd.NewReader(nil, zstd.WithDecodeAllCapLimit(true), zstd.WithDecoderMaxWindow(MaxRunBytes),
		zstd.WithDecoderConcurrency(min(maxZstd, runtime.GOMAXPROCS(0))))
	must(err)
	return d
}()

// must refuses options, which are constants.
func must(err error) {
	if err != nil {
		panic(fmt.Sprintf("bug: options of zstd: %v", err))
	}
}

// packZstd returns the packed form of p in out, nil if it is not smaller.
func packZstd(p, out []byte) []byte {
	out = zstdEncoder.EncodeAll(p, out[:0])
	if len(out) >= len(p) {
		return nil
	}
	return out
}

// unpackZstd fills out with what payload is a packed form of.
func unpackZstd(c Codec, payload, out []byte) error {
	got, err := zstdDecoder.DecodeAll(payload, out[:0:len(out)])
	if err != nil {
		return fmt.Errorf("decode %s: %v: %w", c, err, scstore.ErrCorrupt)
	}
	if len(got) != len(out) {
		return sizeError(c, len(got), len(out))
	}
	return nil
}
