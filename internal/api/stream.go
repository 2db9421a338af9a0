package api

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"scstore"
)

// The content of a volume travels as a stream of frames. A frame is a header of
// FrameHeaderSize bytes, big-endian, and Length bytes of data where its kind has
// data:
//
//	 0  8  offset    bytes from the start of the volume (see the kinds)
//	 8  4  length    bytes of data, or of zeros
//	12  1  kind      FrameKind
//	13  1  version   StreamVersion
//	14  2  reserved  zero
//	16  4  data crc  CRC-32C of the data; zero where there is none
//	20  4  crc       CRC-32C of the 20 bytes before it
//
// A stream is one begin frame, data and zero frames in any order, and one end or
// one abort frame. What no frame covers is zeros. A later frame wins where two
// overlap. Bytes after the last frame are an error, and so is a stream that ends
// without one: a cut connection never looks like a whole volume.
const (
	FrameHeaderSize = 24
	StreamVersion   = 1
	// MaxFrameData bounds the data of one frame, so that a receiver needs one
	// buffer of this size, in bytes.
	MaxFrameData = 1 << 20
	// MaxFrameZero bounds the zeros of one frame, in bytes.
	MaxFrameZero = 1 << 30
)

// FrameKind says what a frame is.
type FrameKind uint8

// The kinds of frames.
const (
	FrameBegin FrameKind = iota + 1 // offset is the size of the volume; no data
	FrameData                       // data at offset
	FrameZero                       // length zeros at offset; no data
	FrameEnd                        // the stream is whole; offset is the sum of the lengths of its data frames
	FrameAbort                      // the sender gives up; the data is a JSON Error
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// FrameHeader is the head of a frame.
type FrameHeader struct {
	Offset  uint64
	Length  uint32
	Kind    FrameKind
	DataCRC uint32
}

// AppendTo appends the encoded header to b.
func (h FrameHeader) AppendTo(b []byte) []byte {
	start := len(b)
	b = binary.BigEndian.AppendUint64(b, h.Offset)
	b = binary.BigEndian.AppendUint32(b, h.Length)
	b = append(b, byte(h.Kind), StreamVersion, 0, 0)
	b = binary.BigEndian.AppendUint32(b, h.DataCRC)
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b[start:], castagnoli))
}

// dataLength returns how many bytes follow the header.
func (h FrameHeader) dataLength() int {
	if h.Kind == FrameData || h.Kind == FrameAbort {
		return int(h.Length)
	}
	return 0
}

// ParseFrameHeader reads a header from the start of b and returns what follows
// it. The header obeys every limit, whatever b was. Errors: ErrCorrupt (checksum,
// too short), ErrVersion, ErrInvalid (a limit).
func ParseFrameHeader(b []byte) (h FrameHeader, rest []byte, err error) {
	if len(b) < FrameHeaderSize {
		return FrameHeader{}, nil, fmt.Errorf("parse frame: %d of %d bytes: %w", len(b), FrameHeaderSize, scstore.ErrCorrupt)
	}
	if crc32.Checksum(b[:20], castagnoli) != binary.BigEndian.Uint32(b[20:]) {
		return FrameHeader{}, nil, fmt.Errorf("parse frame: checksum of the header: %w", scstore.ErrCorrupt)
	}
	if b[13] != StreamVersion {
		return FrameHeader{}, nil, fmt.Errorf("parse frame: stream version %d: %w", b[13], scstore.ErrVersion)
	}
	h = FrameHeader{
		Offset:  binary.BigEndian.Uint64(b),
		Length:  binary.BigEndian.Uint32(b[8:]),
		Kind:    FrameKind(b[12]),
		DataCRC: binary.BigEndian.Uint32(b[16:]),
	}
	if b[14] != 0 || b[15] != 0 {
		return FrameHeader{}, nil, fmt.Errorf("parse frame: reserved bytes: %w", scstore.ErrInvalid)
	}
	if err := h.validate(); err != nil {
		return FrameHeader{}, nil, err
	}
	return h, b[FrameHeaderSize:], nil
}

// validate checks the limits of each kind.
func (h FrameHeader) validate() error {
	ok := false
	switch h.Kind {
	case FrameBegin, FrameEnd:
		ok = h.Length == 0 && h.DataCRC == 0
	case FrameData:
		ok = h.Length > 0 && h.Length <= MaxFrameData && h.Offset <= scstore.MaxVolumeBytes
	case FrameZero:
		ok = h.Length > 0 && h.Length <= MaxFrameZero && h.Offset <= scstore.MaxVolumeBytes && h.DataCRC == 0
	case FrameAbort:
		ok = h.Length <= MaxFrameData && h.Offset == 0
	}
	if !ok {
		return fmt.Errorf("parse frame: kind %d, offset %d, length %d: %w", h.Kind, h.Offset, h.Length, scstore.ErrInvalid)
	}
	return nil
}

// StreamWriter writes one stream. Not safe for concurrent use. After an error
// every call returns it.
type StreamWriter struct {
	w         *bufio.Writer
	header    []byte
	dataBytes uint64
	err       error
}

// NewStreamWriter writes the begin frame of a volume of sizeBytes.
func NewStreamWriter(w io.Writer, sizeBytes int64) (*StreamWriter, error) {
	s := &StreamWriter{w: bufio.NewWriterSize(w, 128<<10), header: make([]byte, 0, FrameHeaderSize)}
	return s, s.frame(FrameHeader{Kind: FrameBegin, Offset: uint64(sizeBytes)}, nil)
}

// Data writes p at off, in as many frames as it takes. It does not keep p.
func (s *StreamWriter) Data(p []byte, off int64) error {
	for len(p) > 0 && s.err == nil {
		part := p[:min(len(p), MaxFrameData)]
		h := FrameHeader{Kind: FrameData, Offset: uint64(off), Length: uint32(len(part)), DataCRC: crc32.Checksum(part, castagnoli)}
		if s.frame(h, part) == nil {
			s.dataBytes += uint64(len(part))
		}
		p, off = p[len(part):], off+int64(len(part))
	}
	return s.err
}

// Zero writes length zeros at off.
func (s *StreamWriter) Zero(off, length int64) error {
	for length > 0 && s.err == nil {
		part := min(length, MaxFrameZero)
		if s.frame(FrameHeader{Kind: FrameZero, Offset: uint64(off), Length: uint32(part)}, nil) != nil {
			break
		}
		off, length = off+part, length-part
	}
	return s.err
}

// End ends a whole stream and flushes it.
func (s *StreamWriter) End() error {
	if s.frame(FrameHeader{Kind: FrameEnd, Offset: s.dataBytes}, nil) == nil {
		s.err = s.w.Flush()
	}
	return s.err
}

// Abort ends a stream that is not whole, and says why.
func (s *StreamWriter) Abort(cause error) error {
	e, _ := NewError(cause)
	e.Message = e.Message[:min(len(e.Message), MaxFrameData/4)] // JSON may grow it
	text, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("encode error: %w", err)
	}
	h := FrameHeader{Kind: FrameAbort, Length: uint32(len(text)), DataCRC: crc32.Checksum(text, castagnoli)}
	if s.frame(h, text) == nil {
		s.err = s.w.Flush()
	}
	return s.err
}

// frame writes one frame.
func (s *StreamWriter) frame(h FrameHeader, data []byte) error {
	if s.err != nil {
		return s.err
	}
	s.header = h.AppendTo(s.header[:0])
	if _, err := s.w.Write(s.header); err != nil {
		s.err = err
		return err
	}
	_, s.err = s.w.Write(data)
	return s.err
}

// StreamReader reads one stream. Not safe for concurrent use.
type StreamReader struct {
	r         *bufio.Reader
	sizeBytes int64
	dataBytes uint64
	header    [FrameHeaderSize]byte
	buf       []byte
}

// Frame is a part of a volume's content: data, or zeros if Data is nil.
type Frame struct {
	Offset int64
	Length int64
	Data   []byte // valid until the next call of Next
}

// NewStreamReader reads the begin frame. Errors: those of ParseFrameHeader, and
// ErrInvalid for a size that no volume has.
func NewStreamReader(r io.Reader) (*StreamReader, error) {
	s := &StreamReader{r: bufio.NewReaderSize(r, 128<<10)}
	h, err := s.readHeader()
	if err != nil {
		return nil, err
	}
	if h.Kind != FrameBegin {
		return nil, fmt.Errorf("read stream: kind %d comes first: %w", h.Kind, scstore.ErrInvalid)
	}
	if h.Offset > scstore.MaxVolumeBytes {
		return nil, scstore.Hint(
			fmt.Errorf("a volume of %d bytes: %w", h.Offset, scstore.ErrInvalid),
			"the largest volume has %d bytes (64 TiB)", int64(scstore.MaxVolumeBytes))
	}
	s.sizeBytes = int64(h.Offset)
	return s, nil
}

// Size returns the size of the volume in bytes, as the begin frame says.
func (s *StreamReader) Size() int64 { return s.sizeBytes }

// Next returns the next part. After the end frame, and only when nothing follows
// it, the error is io.EOF. An abort frame is the sender's error. A stream that
// stops anywhere else is ErrCorrupt.
func (s *StreamReader) Next() (Frame, error) {
	h, err := s.readHeader()
	if err != nil {
		return Frame{}, err
	}
	data, err := s.readData(h)
	if err != nil {
		return Frame{}, err
	}
	switch h.Kind {
	case FrameData, FrameZero:
		if h.Offset+uint64(h.Length) > uint64(s.sizeBytes) {
			return Frame{}, fmt.Errorf("read stream: %d bytes at %d are beyond the volume's %d: %w",
				h.Length, h.Offset, s.sizeBytes, scstore.ErrInvalid)
		}
		s.dataBytes += uint64(len(data))
		return Frame{Offset: int64(h.Offset), Length: int64(h.Length), Data: data}, nil
	case FrameEnd:
		if h.Offset != s.dataBytes {
			return Frame{}, fmt.Errorf("read stream: got %d bytes of data, the sender sent %d: %w", s.dataBytes, h.Offset, scstore.ErrCorrupt)
		}
		if _, err := s.r.ReadByte(); !errors.Is(err, io.EOF) {
			return Frame{}, fmt.Errorf("read stream: bytes after its end: %w", scstore.ErrInvalid)
		}
		return Frame{}, io.EOF
	case FrameAbort:
		var e Error
		if err := json.Unmarshal(data, &e); err != nil {
			return Frame{}, fmt.Errorf("read stream: abort frame: %w", scstore.ErrInvalid)
		}
		return Frame{}, e.Err()
	case FrameBegin:
	}
	return Frame{}, fmt.Errorf("read stream: a second beginning: %w", scstore.ErrInvalid)
}

// readHeader reads and checks one header.
func (s *StreamReader) readHeader() (FrameHeader, error) {
	if _, err := io.ReadFull(s.r, s.header[:]); err != nil {
		return FrameHeader{}, cutError(err)
	}
	h, _, err := ParseFrameHeader(s.header[:])
	return h, err
}

// readData reads and checks a frame's data.
func (s *StreamReader) readData(h FrameHeader) ([]byte, error) {
	n := h.dataLength()
	if n == 0 {
		return nil, nil
	}
	if cap(s.buf) < n {
		s.buf = make([]byte, n)
	}
	data := s.buf[:n]
	if _, err := io.ReadFull(s.r, data); err != nil {
		return nil, cutError(err)
	}
	if crc32.Checksum(data, castagnoli) != h.DataCRC {
		return nil, fmt.Errorf("read stream: checksum of %d bytes at %d: %w", n, h.Offset, scstore.ErrCorrupt)
	}
	return data, nil
}

// cutError makes the end of the input an error of its own.
func cutError(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("read stream: it stops before its end: %w", scstore.ErrCorrupt)
	}
	return fmt.Errorf("read stream: %w", err)
}
