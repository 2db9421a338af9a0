package block

import (
	"encoding/binary"
	"hash/crc32"

	"golang.org/x/time/rate"
)

func unlimited() *rate.Limiter { return rate.NewLimiter(rate.Inf, 1<<30) }

func checksumOf(b []byte) []byte {
	return binary.BigEndian.AppendUint32(nil, crc32.Checksum(b, castagnoli))
}
