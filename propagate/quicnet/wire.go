package quicnet

import (
	"encoding/binary"
	"fmt"
	"io"
	"slices"
	"time"

	"scstore"
	"scstore/internal/invariant"
	"scstore/propagate/quicnet/authority"
)

// Every message is a frame: 4 bytes of length, then as many bytes. Integers are
// big-endian. A stream of a connection of ALPN protocol scstore/1 begins with a
// frame; the first stream that the dialing host opens is the control stream and
// carries one hello in each direction, and no other stream is served before.
//
// Hello, the same in all versions so that versions can be told:
//
//	 0   4  "SCHI"
//	 4   2  lowest wire version that the sender speaks
//	 6   2  highest one
//	 8  16  cluster id
//	24   8  cluster incarnation
//	32  16  disk id
//	48   8  boot number
//	56   8  clock, nanoseconds since 1970
//	64   1  slot of the connection: 0 for control, else its place in the pool
//	65   1  length of the host's name
//	66      name; bytes behind it are ignored if the sender speaks a newer version
//
// Header of every other stream:
//
//	0   2  kind: what the stream is for
//	2   1  class
//	3   1  1 for a request, which one more frame follows; 0 for a stream of bytes
//
// Reply to a request: 2 bytes of code, then the answer if the code is 0, else what
// to tell the user, in UTF-8.
const (
	WireMin = 1 // lowest wire version that is spoken
	WireMax = 1 // highest one

	// MaxFrameBytes bounds every frame: a request, a reply, a membership.
	MaxFrameBytes = 4 << 20

	maxHelloBytes  = 512
	helloHeadBytes = 66
	headerBytes    = 4
	replyHeadBytes = 2
	frameStep      = 64 << 10 // a frame's buffer grows by this as its bytes arrive
)

var helloMagic = [4]byte{'S', 'C', 'H', 'I'}

// hello is what a host says of itself first.
type hello struct {
	min, max    uint16
	cluster     authority.ClusterID
	incarnation uint64
	disk        scstore.StoreID
	boot        uint64
	clock       time.Time
	slot        uint8
	host        string
}

// encode returns the hello's frame.
func (h hello) encode() []byte {
	invariant.Check(len(h.host) <= authority.MaxHostBytes, "host name of %d bytes", len(h.host))
	b := binary.BigEndian.AppendUint32(nil, uint32(helloHeadBytes+len(h.host)))
	b = append(b, helloMagic[:]...)
	b = binary.BigEndian.AppendUint16(b, h.min)
	b = binary.BigEndian.AppendUint16(b, h.max)
	b = append(b, h.cluster[:]...)
	b = binary.BigEndian.AppendUint64(b, h.incarnation)
	b = append(b, h.disk[:]...)
	b = binary.BigEndian.AppendUint64(b, h.boot)
	b = binary.BigEndian.AppendUint64(b, uint64(h.clock.UnixNano()))
	b = append(b, h.slot, byte(len(h.host)))
	return append(b, h.host...)
}

// parseHello reads a hello's frame without its length. A hello of a newer version is
// read as far as it is known. Errors: ErrInvalid.
func parseHello(b []byte) (hello, error) {
	if len(b) < helloHeadBytes || [4]byte(b) != helloMagic {
		return hello{}, fmt.Errorf("no hello: %w", scstore.ErrInvalid)
	}
	h := hello{
		min: binary.BigEndian.Uint16(b[4:]), max: binary.BigEndian.Uint16(b[6:]),
		cluster: authority.ClusterID(b[8:24]), incarnation: binary.BigEndian.Uint64(b[24:]),
		disk: scstore.StoreID(b[32:48]), boot: binary.BigEndian.Uint64(b[48:]),
		clock: time.Unix(0, int64(binary.BigEndian.Uint64(b[56:]))), slot: b[64],
	}
	name, rest := b[helloHeadBytes:], int(b[65])
	if h.min > h.max || rest > authority.MaxHostBytes || rest > len(name) || len(name) > rest && h.max <= WireMax {
		return hello{}, fmt.Errorf("malformed hello: %w", scstore.ErrInvalid)
	}
	h.host = string(name[:rest])
	return h, nil
}

// header begins a stream.
type header struct {
	kind    Kind
	class   Class
	request bool
}

// appendTo appends the header's frame.
func (h header) appendTo(b []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, headerBytes)
	b = binary.BigEndian.AppendUint16(b, uint16(h.kind))
	b = append(b, byte(h.class), 0)
	if h.request {
		b[len(b)-1] = 1
	}
	return b
}

// parseHeader reads a header's frame without its length. Errors: ErrInvalid.
func parseHeader(b []byte) (header, error) {
	if len(b) != headerBytes || !Class(b[2]).Valid() || b[3] > 1 {
		return header{}, fmt.Errorf("malformed stream header: %w", scstore.ErrInvalid)
	}
	return header{kind: Kind(binary.BigEndian.Uint16(b)), class: Class(b[2]), request: b[3] == 1}, nil
}

// encodeReply returns a reply's frame: the answer, or the error if there is one.
func encodeReply(answer []byte, err error) []byte {
	c := codeOf(err)
	if err != nil {
		answer = []byte(reasonText(err))
	}
	b := make([]byte, 0, 4+replyHeadBytes+len(answer))
	b = binary.BigEndian.AppendUint32(b, uint32(replyHeadBytes+len(answer)))
	b = binary.BigEndian.AppendUint16(b, uint16(c))
	return append(b, answer...)
}

// parseReply reads a reply's frame without its length: the answer, or the peer's
// error. The answer aliases b. Errors: ErrInvalid if it is malformed.
func parseReply(b []byte) (answer []byte, remote, err error) {
	if len(b) < replyHeadBytes {
		return nil, nil, fmt.Errorf("malformed reply: %w", scstore.ErrInvalid)
	}
	c, rest := code(binary.BigEndian.Uint16(b)), b[replyHeadBytes:]
	if c == codeNone {
		return rest, nil, nil
	}
	if len(rest) > MaxReasonBytes {
		return nil, nil, fmt.Errorf("malformed reply: %w", scstore.ErrInvalid)
	}
	return nil, &RemoteError{Text: reasonText(fmt.Errorf("%s", rest)), Err: c.sentinel()}, nil
}

// RemoteError is an error that a peer answered with.
type RemoteError struct {
	Text string // what the peer said
	Err  error  // the sentinel that it stands for
}

// Error returns the peer's text.
func (e *RemoteError) Error() string { return e.Text }

// Unwrap returns the sentinel.
func (e *RemoteError) Unwrap() error { return e.Err }

// ReadFrame reads one frame of at most limit bytes and returns it without its
// length. Memory is taken as bytes arrive, whatever the length claims. Errors:
// ErrInvalid if it is longer; io.EOF if there is none.
func ReadFrame(r io.Reader, limit int) ([]byte, error) {
	n, err := readLength(r, limit)
	if err != nil {
		return nil, err
	}
	return readBody(r, n)
}

// readLength reads the length of a frame.
func readLength(r io.Reader, limit int) (int, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if uint64(n) > uint64(limit) {
		return 0, fmt.Errorf("frame of %d bytes, more than %d: %w", n, limit, scstore.ErrInvalid)
	}
	return int(n), nil
}

// readBody reads the n bytes of a frame.
func readBody(r io.Reader, n int) ([]byte, error) {
	b := make([]byte, 0, min(n, frameStep))
	for len(b) < n {
		step := min(n-len(b), max(frameStep, len(b)))
		b = slices.Grow(b, step)
		got, err := io.ReadFull(r, b[len(b):len(b)+step])
		b = b[:len(b)+got]
		if err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
	}
	return b, nil
}
