package nbd

import (
	"bufio"
	"fmt"
	"io"
	"net"

	"scstore"
)

// handshakeInfo is what the client knows of its export after the handshake.
type handshakeInfo struct {
	size              int64
	flags             TransmissionFlags
	name, description string
	structured        bool
	hasContext        bool   // the server has base:allocation
	contextID         uint32 // of base:allocation
	blockMin          uint32
	blockPreferred    uint32
	blockMax          uint32
}

// clientHandshake negotiates. Every length is limited before it is used.
type clientHandshake struct {
	nc interface {
		io.Writer
		RemoteAddr() net.Addr
	}
	br *bufio.Reader
}

// greet exchanges the first bytes.
func (h *clientHandshake) greet() error {
	var b [18]byte
	if _, err := io.ReadFull(h.br, b[:]); err != nil {
		return fmt.Errorf("read greeting: %w: %w", err, scstore.ErrUnreachable)
	}
	if be.Uint64(b[:]) != magicServer || be.Uint64(b[8:]) != magicOption {
		return fmt.Errorf("read greeting: %w", errNoMagic)
	}
	flags := be.Uint16(b[16:])
	if flags&flagFixedNewstyle == 0 {
		return fmt.Errorf("server does not speak fixed newstyle: %w", scstore.ErrVersion)
	}
	return h.write(be.AppendUint32(nil, uint32(flags&(flagFixedNewstyle|flagNoZeroes))))
}

func (h *clientHandshake) write(b []byte) error {
	if _, err := h.nc.Write(b); err != nil {
		return fmt.Errorf("send option: %w: %w", err, scstore.ErrUnreachable)
	}
	return nil
}

// option sends one option.
func (h *clientHandshake) option(option uint32, data []byte) error {
	b := be.AppendUint64(nil, magicOption)
	b = be.AppendUint32(b, option)
	b = be.AppendUint32(b, uint32(len(data)))
	return h.write(append(b, data...))
}

// reply reads one reply to option.
func (h *clientHandshake) reply(option uint32) (kind uint32, data []byte, err error) {
	var b [optReplyBytes]byte
	if _, err := io.ReadFull(h.br, b[:]); err != nil {
		return 0, nil, fmt.Errorf("read reply to option %d: %w: %w", option, err, scstore.ErrUnreachable)
	}
	if be.Uint64(b[:]) != magicOptReply || be.Uint32(b[8:]) != option {
		return 0, nil, fmt.Errorf("read reply to option %d: %w", option, errNoMagic)
	}
	kind = be.Uint32(b[12:])
	n := be.Uint32(b[16:])
	if n > MaxOptionBytes {
		return 0, nil, fmt.Errorf("reply of %d bytes to option %d: %w", n, option, errProtocol)
	}
	data = make([]byte, n)
	if _, err := io.ReadFull(h.br, data); err != nil {
		return 0, nil, fmt.Errorf("read reply to option %d: %w: %w", option, err, scstore.ErrUnreachable)
	}
	return kind, data, nil
}

// replyFailure translates an error reply, or one that does not belong here.
func replyFailure(option, kind uint32, data []byte) error {
	sentinel := scstore.ErrInvalid
	switch kind {
	case repErrUnknown:
		sentinel = scstore.ErrNotFound
	case repErrUnsup:
		sentinel = scstore.ErrVersion
	case repErrShutdown:
		sentinel = scstore.ErrClosed
	case repErrPolicy:
		sentinel = scstore.ErrBusy
	}
	return fmt.Errorf("option %d: server answers %#x %q: %w", option, kind, data[:min(len(data), MaxErrorMessage)], sentinel)
}

// open negotiates the export name and enters the transmission phase.
func (h *clientHandshake) open(name string, structured bool) (info handshakeInfo, err error) {
	info = handshakeInfo{blockMin: 1, blockPreferred: scstore.BlockSize, blockMax: MaxPayload}
	if err := h.greet(); err != nil {
		return info, err
	}
	if structured {
		if err := h.option(optStructuredReply, nil); err != nil {
			return info, err
		}
		kind, _, err := h.reply(optStructuredReply)
		if err != nil {
			return info, err
		}
		info.structured = kind == repAck
	}
	if info.structured {
		if info.contextID, info.hasContext, err = h.selectContext(name); err != nil {
			return info, err
		}
	}
	return info, h.enter(name, &info)
}

// selectContext asks for base:allocation.
func (h *clientHandshake) selectContext(name string) (id uint32, ok bool, err error) {
	if err := h.option(optSetMetaContext, contextRequest{name: name, queries: []string{contextAllocation}}.appendTo(nil)); err != nil {
		return 0, false, err
	}
	for {
		kind, data, err := h.reply(optSetMetaContext)
		switch {
		case err != nil:
			return 0, false, err
		case kind == repAck:
			return id, ok, nil
		case kind == repErrUnknown:
			return 0, false, replyFailure(optSetMetaContext, kind, data)
		case kind&repErr != 0:
			return 0, false, nil
		case kind != repMetaContext || len(data) < 4 || string(data[4:]) != contextAllocation || ok:
			return 0, false, fmt.Errorf("reply %d to a context query: %w", kind, errProtocol)
		}
		id, ok = be.Uint32(data), true
	}
}

// enter sends GO.
func (h *clientHandshake) enter(name string, info *handshakeInfo) error {
	r := infoRequest{name: name, types: []uint16{infoName, infoDescription, infoBlockSize}}
	if err := h.option(optGo, r.appendTo(nil)); err != nil {
		return err
	}
	hasExport := false
	for range MaxInfoRequests {
		kind, data, err := h.reply(optGo)
		if err != nil {
			return err
		}
		if kind == repAck {
			if !hasExport {
				return fmt.Errorf("no size of the export: %w", errProtocol)
			}
			return nil
		}
		if kind != repInfo {
			return replyFailure(optGo, kind, data)
		}
		isExport, err := info.parse(data)
		if err != nil {
			return err
		}
		hasExport = hasExport || isExport
	}
	return fmt.Errorf("more than %d information replies: %w", MaxInfoRequests, errProtocol)
}

// parse reads one information reply: type 2 | data.
func (info *handshakeInfo) parse(b []byte) (isExport bool, err error) {
	if len(b) < 2 {
		return false, errShort
	}
	kind := be.Uint16(b)
	switch b = b[2:]; {
	case kind == infoExport && len(b) == exportReplyBytes:
		size := be.Uint64(b)
		if size > 1<<63-1 {
			return false, fmt.Errorf("export of %d bytes: %w", size, errProtocol)
		}
		info.size, info.flags = int64(size), TransmissionFlags(be.Uint16(b[8:]))
		return true, nil
	case kind == infoBlockSize && len(b) == 12:
		least, preferred, most := be.Uint32(b), be.Uint32(b[4:]), be.Uint32(b[8:])
		if least == 0 || least > 1<<16 || most < least {
			return false, fmt.Errorf("block sizes %d, %d, %d: %w", least, preferred, most, errProtocol)
		}
		info.blockMin, info.blockPreferred, info.blockMax = least, preferred, min(most, MaxPayload)
	case kind == infoExport, kind == infoBlockSize:
		return false, fmt.Errorf("information %d of %d bytes: %w", kind, len(b), errProtocol)
	case kind == infoName:
		info.name = string(b)
	case kind == infoDescription:
		info.description = string(b)
	}
	return false, nil
}

// list sends LIST and collects the answer.
func (h *clientHandshake) list() (exports []ExportInfo, err error) {
	if err := h.greet(); err != nil {
		return nil, err
	}
	if err := h.option(optList, nil); err != nil {
		return nil, err
	}
	for {
		kind, data, err := h.reply(optList)
		switch {
		case err != nil:
			return nil, err
		case kind == repAck:
			_ = h.option(optAbort, nil) // a courtesy; the connection is closed next
			return exports, nil
		case kind != repServer:
			return nil, replyFailure(optList, kind, data)
		case len(exports) == maxExportsDecoded:
			return nil, fmt.Errorf("more than %d exports: %w", maxExportsDecoded, errProtocol)
		}
		name, rest, err := parseString(data)
		if err != nil {
			return nil, fmt.Errorf("export name: %w", err)
		}
		exports = append(exports, ExportInfo{Name: name, Description: string(rest)})
	}
}
