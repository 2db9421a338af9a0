package nbd

import (
	"bufio"
	"fmt"
	"io"
	"slices"

	"scstore"
)

// maxOutOfOrder bounds the chunks of one READ reply that a server may send out of
// order.
const maxOutOfOrder = 1 << 16

// span is a part of a READ's data, as offsets into it.
type span struct{ start, end int }

// replyState is what is known of a reply that is not complete.
type replyState struct {
	next   int    // Data[:next] has arrived
	later  []span // parts beyond next that have arrived
	status bool   // the block status has arrived
	err    error  // of an error chunk
}

// arrived records that [start, end) of r.Data has arrived.
func (r *Request) arrived(start, end int) error {
	if start == r.reply.next {
		r.reply.next = end
		return nil
	}
	if len(r.reply.later) == maxOutOfOrder {
		return fmt.Errorf("more than %d chunks out of order: %w", maxOutOfOrder, errProtocol)
	}
	r.reply.later = append(r.reply.later, span{start, end})
	return nil
}

// isComplete reports whether every byte of r.Data has arrived exactly once.
func (r *Request) isComplete() bool {
	slices.SortFunc(r.reply.later, func(a, b span) int { return a.start - b.start })
	for _, s := range r.reply.later {
		if s.start != r.reply.next {
			return false
		}
		r.reply.next = s.end
	}
	return r.reply.next == len(r.Data)
}

// replyDecoder reads replies. It trusts nothing: a length is checked against the
// request that it answers before it is used.
type replyDecoder struct {
	br         *bufio.Reader
	lookup     func(handle uint64) *Request
	finished   func(r *Request, err error)
	structured bool   // negotiated
	contextID  uint32 // of base:allocation
	scratch    []byte
}

// next reads one simple reply or one chunk. An error ends the connection.
func (d *replyDecoder) next() error {
	b, err := d.br.Peek(4)
	if err != nil {
		return err
	}
	switch be.Uint32(b) {
	case magicSimple:
		return d.simple()
	case magicStructured:
		if d.structured {
			return d.chunk()
		}
	}
	return errNoMagic
}

func (d *replyDecoder) find(handle uint64) (*Request, error) {
	r := d.lookup(handle)
	if r == nil {
		return nil, fmt.Errorf("reply to unknown handle %#x: %w", handle, errProtocol)
	}
	return r, nil
}

// simple reads a simple reply.
func (d *replyDecoder) simple() error {
	b, err := d.br.Peek(simpleBytes)
	if err != nil {
		return err
	}
	e, handle := Errno(be.Uint32(b[4:])), be.Uint64(b[8:])
	if _, err := d.br.Discard(simpleBytes); err != nil {
		return err
	}
	r, err := d.find(handle)
	if err != nil {
		return err
	}
	if e != 0 {
		d.finished(r, e)
		return nil
	}
	switch r.Cmd {
	case CmdRead:
		if d.structured {
			return fmt.Errorf("simple reply to read: %w", errProtocol)
		}
		if _, err := io.ReadFull(d.br, r.Data); err != nil {
			return err
		}
	case CmdBlockStatus:
		return fmt.Errorf("simple reply to block status: %w", errProtocol)
	default: // the header is all there is
	}
	d.finished(r, nil)
	return nil
}

// chunk reads one chunk of a structured reply.
func (d *replyDecoder) chunk() error {
	b, err := d.br.Peek(chunkBytes)
	if err != nil {
		return err
	}
	c, err := parseChunk(b)
	if err != nil {
		return err
	}
	if _, err := d.br.Discard(chunkBytes); err != nil {
		return err
	}
	r, err := d.find(c.handle)
	if err != nil {
		return err
	}
	if err := d.payload(r, c); err != nil {
		return fmt.Errorf("reply to %s: %w", r.Cmd, err)
	}
	if c.flags&chunkFlagDone == 0 {
		return nil
	}
	switch {
	case r.reply.err != nil:
		d.finished(r, r.reply.err)
	case r.Cmd == CmdRead && !r.isComplete():
		return fmt.Errorf("read reply has gaps or overlaps: %w", errProtocol)
	case r.Cmd == CmdBlockStatus && !r.reply.status:
		return fmt.Errorf("block status reply without status: %w", errProtocol)
	default:
		d.finished(r, nil)
	}
	return nil
}

// payload reads the payload of a chunk.
func (d *replyDecoder) payload(r *Request, c chunk) error {
	switch {
	case c.kind == chunkNone:
		if c.length != 0 || c.flags&chunkFlagDone == 0 {
			return fmt.Errorf("empty chunk that is not the last: %w", errProtocol)
		}
		return nil
	case c.kind == chunkData && r.Cmd == CmdRead:
		return d.data(r, c)
	case c.kind == chunkHole && r.Cmd == CmdRead:
		return d.hole(r, c)
	case c.kind == chunkStatus && r.Cmd == CmdBlockStatus:
		return d.status(r, c)
	case c.kind&chunkErrorBit != 0:
		return d.failure(r, c)
	}
	return fmt.Errorf("chunk of type %d: %w", c.kind, errProtocol)
}

// read returns n bytes of payload, valid until the next read.
func (d *replyDecoder) read(n int) ([]byte, error) {
	if cap(d.scratch) < n {
		d.scratch = make([]byte, n)
	}
	b := d.scratch[:n]
	_, err := io.ReadFull(d.br, b)
	return b, err
}

// within returns the place in r.Data of n bytes at offset of the export.
func within(r *Request, offset uint64, n uint32) (start, end int, err error) {
	at := offset - uint64(r.Offset) // wraps around below the request, which fails too
	if at > uint64(len(r.Data)) || uint64(n) > uint64(len(r.Data))-at || n == 0 {
		return 0, 0, fmt.Errorf("%d bytes at %d, outside of the request: %w", n, offset, errProtocol)
	}
	return int(at), int(at) + int(n), nil
}

func (d *replyDecoder) data(r *Request, c chunk) error {
	if c.length < 8 {
		return errShort
	}
	b, err := d.br.Peek(8)
	if err != nil {
		return err
	}
	start, end, err := within(r, be.Uint64(b), c.length-8)
	if err != nil {
		return err
	}
	if _, err := d.br.Discard(8); err != nil {
		return err
	}
	if _, err := io.ReadFull(d.br, r.Data[start:end]); err != nil {
		return err
	}
	return r.arrived(start, end)
}

func (d *replyDecoder) hole(r *Request, c chunk) error {
	if c.length != 12 {
		return fmt.Errorf("hole of %d bytes: %w", c.length, errProtocol)
	}
	b, err := d.read(12)
	if err != nil {
		return err
	}
	start, end, err := within(r, be.Uint64(b), be.Uint32(b[8:]))
	if err != nil {
		return err
	}
	clear(r.Data[start:end])
	h := scstore.Range{Offset: r.Offset + int64(start), Length: int64(end - start), State: scstore.RangeHole}
	if k := len(r.Ranges) - 1; k >= 0 && r.Ranges[k].Offset+r.Ranges[k].Length == h.Offset {
		r.Ranges[k].Length += h.Length
	} else {
		r.Ranges = append(r.Ranges, h)
	}
	return r.arrived(start, end)
}

func (d *replyDecoder) status(r *Request, c chunk) error {
	if c.length > 4+maxDescriptorsDecoded*descriptorBytes {
		return fmt.Errorf("block status of %d bytes: %w", c.length, errProtocol)
	}
	b, err := d.read(int(c.length))
	if err != nil {
		return err
	}
	id, ranges, err := parseStatusChunk(b, r.Offset, r.Ranges)
	if err != nil {
		return err
	}
	if id != d.contextID || r.reply.status {
		return fmt.Errorf("block status of context %d: %w", id, errProtocol)
	}
	r.Ranges, r.reply.status = ranges, true
	return nil
}

// failure reads an error chunk. The first error of a reply is kept.
func (d *replyDecoder) failure(r *Request, c chunk) error {
	if c.length > 6+8+MaxNameBytes {
		return fmt.Errorf("error chunk of %d bytes: %w", c.length, errProtocol)
	}
	b, err := d.read(int(c.length))
	if err != nil {
		return err
	}
	e, message, err := parseErrorChunk(b)
	if err != nil {
		return err
	}
	if r.reply.err != nil {
		return nil
	}
	if r.reply.err = e; message != "" {
		r.reply.err = fmt.Errorf("%w: server says %q", e, message)
	}
	return nil
}
