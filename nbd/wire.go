package nbd

import (
	"encoding/binary"
	"errors"
	"fmt"

	"scstore"
)

// Limits of the protocol as this package speaks it. Values beyond them are
// refused before anything is allocated.
const (
	MaxNameBytes      = 4096     // an export, context or description string (proto.md, Conventions)
	MaxOptionBytes    = 64 << 10 // the data of one option
	MaxSkippedOption  = 1 << 20  // an oversize option up to this is skipped and answered TOO_BIG; beyond it the connection ends
	MaxOptions        = 4096     // options in one handshake
	MaxContextQueries = 256      // queries in one LIST or SET_META_CONTEXT
	MaxInfoRequests   = 256      // information requests in one INFO or GO
	MaxPayload        = 32 << 20 // bytes of one READ or WRITE
	MaxDescriptors    = 1 << 16  // extents in one BLOCK_STATUS reply that we send (the protocol allows 1 << 20)
	MaxErrorMessage   = 1024     // bytes of text in an error reply that we send

	maxDescriptorsDecoded = 1 << 20 // extents in one BLOCK_STATUS reply that the client accepts
	maxExportsDecoded     = 1 << 20 // entries of one LIST that the client accepts
)

// DefaultPort is the port that IANA reserves for NBD.
const DefaultPort = "10809"

// The magic numbers.
const (
	magicServer     = 0x4e42444d41474943 // "NBDMAGIC"
	magicOption     = 0x49484156454f5054 // "IHAVEOPT"
	magicOptReply   = 0x0003e889045565a9
	magicRequest    = 0x25609513
	magicSimple     = 0x67446698
	magicStructured = 0x668e33ef
)

// Handshake flags, the same bits on both sides.
const (
	flagFixedNewstyle = 1 << 0
	flagNoZeroes      = 1 << 1
)

// Options (client to server).
const (
	optExportName      = 1
	optAbort           = 2
	optList            = 3
	optStartTLS        = 5
	optInfo            = 6
	optGo              = 7
	optStructuredReply = 8
	optListMetaContext = 9
	optSetMetaContext  = 10
)

// Replies to options.
const (
	repAck         = 1
	repServer      = 2
	repInfo        = 3
	repMetaContext = 4

	repErr         = 1 << 31 // set in every error reply
	repErrUnsup    = repErr | 1
	repErrPolicy   = repErr | 2
	repErrInvalid  = repErr | 3
	repErrUnknown  = repErr | 6
	repErrShutdown = repErr | 7
	repErrTooBig   = repErr | 9
)

// Information types of INFO and GO.
const (
	infoExport      = 0
	infoName        = 1
	infoDescription = 2
	infoBlockSize   = 3
)

// TransmissionFlags say what an export can do.
type TransmissionFlags uint16

// The transmission flags (proto.md, Transmission flags).
const (
	FlagHasFlags        TransmissionFlags = 1 << 0
	FlagReadOnly        TransmissionFlags = 1 << 1
	FlagSendFlush       TransmissionFlags = 1 << 2
	FlagSendFUA         TransmissionFlags = 1 << 3
	FlagRotational      TransmissionFlags = 1 << 4
	FlagSendTrim        TransmissionFlags = 1 << 5
	FlagSendWriteZeroes TransmissionFlags = 1 << 6
	FlagSendDF          TransmissionFlags = 1 << 7
	FlagCanMultiConn    TransmissionFlags = 1 << 8
	FlagSendCache       TransmissionFlags = 1 << 10
	FlagSendFastZero    TransmissionFlags = 1 << 11
)

// Command is a request type.
type Command uint16

// The commands.
const (
	CmdRead        Command = 0
	CmdWrite       Command = 1
	CmdDisconnect  Command = 2
	CmdFlush       Command = 3
	CmdTrim        Command = 4
	CmdCache       Command = 5
	CmdWriteZeroes Command = 6
	CmdBlockStatus Command = 7

	commandCount = 8
)

// String returns the command's metric label.
func (c Command) String() string {
	switch c {
	case CmdRead:
		return "read"
	case CmdWrite:
		return "write"
	case CmdDisconnect:
		return "disconnect"
	case CmdFlush:
		return "flush"
	case CmdTrim:
		return "trim"
	case CmdCache:
		return "cache"
	case CmdWriteZeroes:
		return "write_zeroes"
	case CmdBlockStatus:
		return "block_status"
	}
	return "unknown"
}

// CommandFlags modify a request.
type CommandFlags uint16

// The command flags.
const (
	CmdFlagFUA      CommandFlags = 1 << 0 // durable before the reply
	CmdFlagNoHole   CommandFlags = 1 << 1 // WRITE_ZEROES: keep the space
	CmdFlagDF       CommandFlags = 1 << 2 // READ: one content chunk
	CmdFlagReqOne   CommandFlags = 1 << 3 // BLOCK_STATUS: one extent
	CmdFlagFastZero CommandFlags = 1 << 4 // WRITE_ZEROES: fail rather than be slow
)

// Structured reply chunks.
const (
	chunkFlagDone = 1 << 0

	chunkNone        = 0
	chunkData        = 1
	chunkHole        = 2
	chunkStatus      = 5
	chunkErrorBit    = 1 << 15
	chunkError       = chunkErrorBit | 1
	chunkErrorOffset = chunkErrorBit | 2
)

// The one metadata context, its id on the wire and its flags.
const (
	contextAllocation   = "base:allocation"
	contextAllocationID = 1
	stateHole           = 1 << 0
	stateZero           = 1 << 1
)

// Sizes of the fixed parts, in bytes.
const (
	requestBytes     = 28 // magic 4, flags 2, type 2, handle 8, offset 8, length 4
	simpleBytes      = 16 // magic 4, error 4, handle 8
	chunkBytes       = 20 // magic 4, flags 2, type 2, handle 8, length 4
	dataHeaderBytes  = chunkBytes + 8
	holeChunkBytes   = chunkBytes + 8 + 4
	optionBytes      = 16 // magic 8, option 4, length 4
	optReplyBytes    = 20 // magic 8, option 4, type 4, length 4
	descriptorBytes  = 8  // length 4, flags 4
	exportReplyBytes = 10 // size 8, transmission flags 2
	reservedZeroes   = 124
)

var (
	be = binary.BigEndian

	// errProtocol is the cause of every refusal of malformed bytes.
	errProtocol = fmt.Errorf("nbd protocol violation: %w", scstore.ErrInvalid)
	// errShort reports that the bytes end inside a field.
	errShort = fmt.Errorf("truncated: %w", errProtocol)
	// errNoMagic reports that the peer does not speak NBD here.
	errNoMagic = fmt.Errorf("wrong magic number: %w", errProtocol)
)

// request is the fixed part of a request.
//
//	magic 4 | flags 2 | type 2 | handle 8 | offset 8 | length 4
type request struct {
	flags  CommandFlags
	cmd    Command
	handle uint64
	offset uint64
	length uint32
}

// parseRequest decodes the first requestBytes of b.
func parseRequest(b []byte) (request, error) {
	if len(b) < requestBytes {
		return request{}, errShort
	}
	b = b[:requestBytes]
	if be.Uint32(b) != magicRequest {
		return request{}, errNoMagic
	}
	return request{
		flags:  CommandFlags(be.Uint16(b[4:])),
		cmd:    Command(be.Uint16(b[6:])),
		handle: be.Uint64(b[8:]),
		offset: be.Uint64(b[16:]),
		length: be.Uint32(b[24:]),
	}, nil
}

// appendTo encodes the request.
func (r request) appendTo(b []byte) []byte {
	b = be.AppendUint32(b, magicRequest)
	b = be.AppendUint16(b, uint16(r.flags))
	b = be.AppendUint16(b, uint16(r.cmd))
	b = be.AppendUint64(b, r.handle)
	b = be.AppendUint64(b, r.offset)
	return be.AppendUint32(b, r.length)
}

// appendSimple encodes a simple reply: magic 4 | error 4 | handle 8.
func appendSimple(b []byte, handle uint64, e Errno) []byte {
	b = be.AppendUint32(b, magicSimple)
	b = be.AppendUint32(b, uint32(e))
	return be.AppendUint64(b, handle)
}

// appendChunk encodes the head of a structured reply chunk:
// magic 4 | flags 2 | type 2 | handle 8 | payload length 4.
func appendChunk(b []byte, flags, kind uint16, handle uint64, length int) []byte {
	b = be.AppendUint32(b, magicStructured)
	b = be.AppendUint16(b, flags)
	b = be.AppendUint16(b, kind)
	b = be.AppendUint64(b, handle)
	return be.AppendUint32(b, uint32(length))
}

// appendError encodes a final error chunk: error 4 | message length 2 | message.
func appendError(b []byte, handle uint64, e Errno, message string) []byte {
	message = message[:min(len(message), MaxErrorMessage)]
	b = appendChunk(b, chunkFlagDone, chunkError, handle, 6+len(message))
	b = be.AppendUint32(b, uint32(e))
	b = be.AppendUint16(b, uint16(len(message)))
	return append(b, message...)
}

// appendOptReply encodes a reply to an option:
// magic 8 | option 4 | type 4 | length 4 | data.
func appendOptReply(b []byte, option, kind uint32, data []byte) []byte {
	b = be.AppendUint64(b, magicOptReply)
	b = be.AppendUint32(b, option)
	b = be.AppendUint32(b, kind)
	b = be.AppendUint32(b, uint32(len(data)))
	return append(b, data...)
}

// parseString reads a length-prefixed string of at most MaxNameBytes.
func parseString(b []byte) (s string, rest []byte, err error) {
	if len(b) < 4 {
		return "", nil, errShort
	}
	n := be.Uint32(b)
	if n > MaxNameBytes {
		return "", nil, fmt.Errorf("string of %d bytes, at most %d: %w", n, MaxNameBytes, errTooBig)
	}
	b = b[4:]
	if uint32(len(b)) < n {
		return "", nil, errShort
	}
	return string(b[:n]), b[n:], nil
}

// errTooBig refuses a well-formed value beyond a limit; the option is answered
// with TOO_BIG.
var errTooBig = errors.New("beyond the limit")

// appendString encodes a length-prefixed string.
func appendString(b []byte, s string) []byte {
	b = be.AppendUint32(b, uint32(len(s)))
	return append(b, s...)
}

// infoRequest is the data of INFO and GO:
// name length 4 | name | count 2 | count x type 2.
type infoRequest struct {
	name  string
	types []uint16
}

// parseInfoRequest decodes the data of INFO or GO; nothing may follow it.
func parseInfoRequest(b []byte) (r infoRequest, err error) {
	if r.name, b, err = parseString(b); err != nil {
		return infoRequest{}, fmt.Errorf("export name: %w", err)
	}
	if len(b) < 2 {
		return infoRequest{}, errShort
	}
	n := int(be.Uint16(b))
	if b = b[2:]; len(b) != 2*n {
		return infoRequest{}, fmt.Errorf("%d information requests in %d bytes: %w", n, len(b), errProtocol)
	}
	if n > MaxInfoRequests {
		return infoRequest{}, fmt.Errorf("%d information requests, at most %d: %w", n, MaxInfoRequests, errTooBig)
	}
	for ; len(b) > 0; b = b[2:] {
		r.types = append(r.types, be.Uint16(b))
	}
	return r, nil
}

// appendTo encodes the data of INFO or GO.
func (r infoRequest) appendTo(b []byte) []byte {
	b = appendString(b, r.name)
	b = be.AppendUint16(b, uint16(len(r.types)))
	for _, t := range r.types {
		b = be.AppendUint16(b, t)
	}
	return b
}

// contextRequest is the data of LIST and SET_META_CONTEXT:
// name length 4 | name | count 4 | count x (length 4 | query).
type contextRequest struct {
	name    string
	queries []string
}

// parseContextRequest decodes the data of LIST or SET_META_CONTEXT; nothing may
// follow it.
func parseContextRequest(b []byte) (r contextRequest, err error) {
	if r.name, b, err = parseString(b); err != nil {
		return contextRequest{}, fmt.Errorf("export name: %w", err)
	}
	if len(b) < 4 {
		return contextRequest{}, errShort
	}
	n := be.Uint32(b)
	b = b[4:]
	if n > MaxContextQueries {
		return contextRequest{}, fmt.Errorf("%d context queries, at most %d: %w", n, MaxContextQueries, errTooBig)
	}
	for range n {
		var q string
		if q, b, err = parseString(b); err != nil {
			return contextRequest{}, fmt.Errorf("context query: %w", err)
		}
		r.queries = append(r.queries, q)
	}
	if len(b) != 0 {
		return contextRequest{}, fmt.Errorf("%d bytes after the last context query: %w", len(b), errProtocol)
	}
	return r, nil
}

// appendTo encodes the data of LIST or SET_META_CONTEXT.
func (r contextRequest) appendTo(b []byte) []byte {
	b = appendString(b, r.name)
	b = be.AppendUint32(b, uint32(len(r.queries)))
	for _, q := range r.queries {
		b = appendString(b, q)
	}
	return b
}

// chunk is the head of a structured reply chunk.
type chunk struct {
	flags  uint16
	kind   uint16
	handle uint64
	length uint32 // bytes of payload that follow
}

// parseChunk decodes the first chunkBytes of b, after its magic was checked.
func parseChunk(b []byte) (chunk, error) {
	if len(b) < chunkBytes {
		return chunk{}, errShort
	}
	return chunk{flags: be.Uint16(b[4:]), kind: be.Uint16(b[6:]), handle: be.Uint64(b[8:]), length: be.Uint32(b[16:])}, nil
}

// parseErrorChunk decodes the payload of an ERROR or ERROR_OFFSET chunk.
func parseErrorChunk(b []byte) (e Errno, message string, err error) {
	if len(b) < 6 {
		return 0, "", errShort
	}
	e, n := Errno(be.Uint32(b)), int(be.Uint16(b[4:]))
	if b = b[6:]; n > len(b) {
		return 0, "", errShort
	}
	if e == 0 {
		return 0, "", fmt.Errorf("error chunk without an error: %w", errProtocol)
	}
	return e, string(b[:n]), nil
}

// parseStatusChunk decodes the payload of a BLOCK_STATUS chunk for base:allocation
// as consecutive ranges from offset on, appended to dst.
//
//	context id 4 | n x (length 4 | flags 4)
func parseStatusChunk(b []byte, offset int64, dst []scstore.Range) (id uint32, _ []scstore.Range, err error) {
	if len(b) < 4+descriptorBytes || (len(b)-4)%descriptorBytes != 0 {
		return 0, dst, fmt.Errorf("block status of %d bytes: %w", len(b), errProtocol)
	}
	id = be.Uint32(b)
	for b = b[4:]; len(b) > 0; b = b[descriptorBytes:] {
		r := scstore.Range{Offset: offset, Length: int64(be.Uint32(b)), State: scstore.RangeData}
		if r.Length == 0 {
			return 0, dst, fmt.Errorf("empty extent in block status: %w", errProtocol)
		}
		if be.Uint32(b[4:])&stateZero != 0 {
			r.State = scstore.RangeHole
		}
		dst = append(dst, r)
		offset += r.Length
	}
	return id, dst, nil
}
