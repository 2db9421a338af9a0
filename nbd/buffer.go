package nbd

import (
	"math/bits"
	"sync"
)

// Payload that does not fit the buffers of a connection is held in pooled ones,
// in classes of powers of two with room for the headers that precede it. The Go
// allocator places blocks of these sizes at page boundaries.
const (
	minPooledShift = 17 // 128 KiB
	maxPooledShift = 25 // MaxPayload
	headerSlack    = 4096
)

var bufferPools [maxPooledShift - minPooledShift + 1]sync.Pool

// buffer is a pooled byte slice.
type buffer struct {
	b     []byte
	class int
}

// getBuffer returns a buffer of at least n bytes. Precondition: n <= MaxPayload +
// headerSlack.
func getBuffer(n int) *buffer {
	class := max(bits.Len(uint(max(n-headerSlack, 1)-1)), minPooledShift) - minPooledShift
	if b, ok := bufferPools[class].Get().(*buffer); ok {
		return b
	}
	return &buffer{b: make([]byte, 1<<(class+minPooledShift)+headerSlack), class: class}
}

// release gives the buffer back; it must not be used afterwards.
func (b *buffer) release() { bufferPools[b.class].Put(b) }
