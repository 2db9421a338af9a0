package nbd

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"scstore"
)

// handshake negotiates (fixed newstyle). ok is true when the transmission phase
// begins, with c.export open.
func (c *conn) handshake() (ok bool, err error) {
	defer func() {
		err = errors.Join(err, c.flushOut())
		if !ok || err != nil {
			c.closeExport()
		}
		c.clearDeadline()
	}()
	c.out = be.AppendUint64(c.out, magicServer)
	c.out = be.AppendUint64(c.out, magicOption)
	c.out = be.AppendUint16(c.out, flagFixedNewstyle|flagNoZeroes)
	if err := c.need(4); err != nil {
		return false, err
	}
	flags := be.Uint32(c.in[c.r:])
	c.r += 4
	if flags&^(flagFixedNewstyle|flagNoZeroes) != 0 {
		return false, fmt.Errorf("client flags %#x: %w", flags, errProtocol)
	}
	c.noZeroes = flags&flagNoZeroes != 0
	for range MaxOptions {
		done, err := c.option()
		if err != nil {
			return false, err
		}
		if done {
			return c.open, nil
		}
	}
	return false, fmt.Errorf("more than %d options: %w", MaxOptions, errProtocol)
}

// option reads and answers one option; done ends the handshake.
func (c *conn) option() (done bool, err error) {
	if err := c.need(optionBytes); err != nil {
		return false, err
	}
	if be.Uint64(c.in[c.r:]) != magicOption {
		return false, fmt.Errorf("read option: %w", errNoMagic)
	}
	option, length := be.Uint32(c.in[c.r+8:]), be.Uint32(c.in[c.r+12:])
	c.r += optionBytes
	if length > MaxOptionBytes {
		if length > MaxSkippedOption || option == optExportName {
			return false, fmt.Errorf("option %d of %d bytes, at most %d: %w", option, length, MaxOptionBytes, errProtocol)
		}
		if err := c.skip(int(length)); err != nil {
			return false, err
		}
		return false, c.reply(option, repErrTooBig, "too much option data")
	}
	if err := c.need(int(length)); err != nil {
		return false, err
	}
	data := c.in[c.r : c.r+int(length)]
	c.r += int(length)
	if c.draining.Load() && option != optAbort {
		if option == optExportName {
			return false, errDisconnect
		}
		return false, c.reply(option, repErrShutdown, "server is shutting down")
	}
	return c.answer(option, data)
}

// answer carries out one option. data is valid until the next need.
func (c *conn) answer(option uint32, data []byte) (done bool, err error) {
	switch option {
	case optExportName:
		return true, c.exportName(string(data))
	case optAbort:
		return true, errors.Join(c.reply(option, repAck, ""), c.flushOut(), errDisconnect)
	case optInfo, optGo:
		return c.info(option, data)
	case optListMetaContext, optSetMetaContext:
		return false, c.metaContext(option, data)
	case optList, optStructuredReply, optStartTLS:
		if len(data) != 0 {
			return false, c.reply(option, repErrInvalid, "option takes no data")
		}
	default:
		return false, c.reply(option, repErrUnsup, "unknown option")
	}
	switch option {
	case optList:
		return false, c.list()
	case optStructuredReply:
		c.structured = true
		return false, c.reply(option, repAck, "")
	default: // optStartTLS
		return false, c.reply(option, repErrPolicy, "this listener does not offer TLS")
	}
}

// reply queues a reply to an option; text is its data.
func (c *conn) reply(option, kind uint32, text string) error {
	if err := c.room(optReplyBytes + len(text)); err != nil {
		return err
	}
	c.out = appendOptReply(c.out, option, kind, []byte(text))
	return nil
}

// refuse answers an option with an error's text.
func (c *conn) refuse(option uint32, err error) error {
	c.log.Info("nbd option refused", "option", option, "err", err)
	text := err.Error()
	return c.reply(option, optionError(err), text[:min(len(text), MaxErrorMessage)])
}

// openExport opens the export that the following options are about; an INFO and
// the GO after it open it once.
func (c *conn) openExport(name string) error {
	if c.open && c.requested == name {
		return nil
	}
	c.closeExport()
	export, err := c.s.o.Exports.Open(c.ctx, name)
	if err != nil {
		return fmt.Errorf("open export %q: %w", name, err)
	}
	c.requested = name
	c.export, c.open = export, true
	c.dev = export.Device
	c.size, c.readOnly = c.dev.Size(), c.dev.ReadOnly()
	if export.Revoked != nil {
		c.keep = context.AfterFunc(export.Revoked, c.drain)
	}
	return nil
}

// flags are the export's transmission flags.
func (c *conn) flags() TransmissionFlags {
	f := FlagHasFlags | FlagSendFlush | FlagSendFUA | FlagSendTrim | FlagSendWriteZeroes | FlagSendCache | FlagSendFastZero
	if c.readOnly {
		f |= FlagReadOnly
	}
	if c.export.MultiConn {
		f |= FlagCanMultiConn
	}
	if c.structured {
		f |= FlagSendDF
	}
	return f
}

// exportName answers EXPORT_NAME, which can not be refused but by hanging up.
func (c *conn) exportName(name string) error {
	if len(name) > MaxNameBytes {
		return fmt.Errorf("export name of %d bytes: %w", len(name), errProtocol)
	}
	if err := c.openExport(name); err != nil {
		return err
	}
	if err := c.room(exportReplyBytes + reservedZeroes); err != nil {
		return err
	}
	c.out = be.AppendUint64(c.out, uint64(c.size))
	c.out = be.AppendUint16(c.out, uint16(c.flags()))
	if !c.noZeroes {
		c.out = append(c.out, make([]byte, reservedZeroes)...)
	}
	if c.contextOf != name {
		c.allocation = false
	}
	return nil
}

// info answers INFO and GO.
func (c *conn) info(option uint32, data []byte) (done bool, err error) {
	r, err := parseInfoRequest(data)
	if err != nil {
		return false, c.refuse(option, err)
	}
	if err := c.openExport(r.name); err != nil {
		return false, c.refuse(option, err)
	}
	var b []byte
	b = be.AppendUint16(b, infoExport)
	b = be.AppendUint64(b, uint64(c.size))
	b = be.AppendUint16(b, uint16(c.flags()))
	if err := c.reply(option, repInfo, string(b)); err != nil {
		return false, err
	}
	b = be.AppendUint16(b[:0], infoBlockSize)
	b = be.AppendUint32(b, 1)
	b = be.AppendUint32(b, scstore.BlockSize)
	b = be.AppendUint32(b, MaxPayload)
	if err := c.reply(option, repInfo, string(b)); err != nil {
		return false, err
	}
	sent := map[uint16]bool{}
	for _, t := range r.types {
		text := ""
		switch {
		case sent[t]:
			continue
		case t == infoName:
			text = c.export.Name
		case t == infoDescription && c.export.Description != "":
			text = c.export.Description
		default:
			continue
		}
		sent[t] = true
		b = append(be.AppendUint16(b[:0], t), text[:min(len(text), MaxNameBytes)]...)
		if err := c.reply(option, repInfo, string(b)); err != nil {
			return false, err
		}
	}
	if option == optGo && c.contextOf != r.name {
		c.allocation = false
	}
	return option == optGo, c.reply(option, repAck, "")
}

// list answers LIST: name length 4 | name | description.
func (c *conn) list() error {
	exports, err := c.s.o.Exports.List(c.ctx)
	if err != nil {
		return c.refuse(optList, fmt.Errorf("list exports: %w", err))
	}
	for _, e := range exports {
		if len(e.Name) > MaxNameBytes {
			continue // it has no name on this wire
		}
		data := appendString(nil, e.Name)
		data = append(data, e.Description[:min(len(e.Description), MaxNameBytes)]...)
		if err := c.reply(optList, repServer, string(data)); err != nil {
			return err
		}
	}
	return c.reply(optList, repAck, "")
}

// metaContext answers LIST and SET_META_CONTEXT. We have one context.
func (c *conn) metaContext(option uint32, data []byte) error {
	isSet := option == optSetMetaContext
	if isSet {
		c.allocation = false // whatever comes of it, earlier selections are gone
	}
	if !c.structured {
		return c.reply(option, repErrInvalid, "structured replies were not negotiated")
	}
	r, err := parseContextRequest(data)
	if err != nil {
		return c.refuse(option, err)
	}
	if err := c.openExport(r.name); err != nil {
		return c.refuse(option, err)
	}
	matches := !isSet && len(r.queries) == 0
	for _, q := range r.queries {
		matches = matches || q == contextAllocation || (!isSet && q == contextAllocation[:strings.IndexByte(contextAllocation, ':')+1])
	}
	if matches {
		id := uint32(0) // LIST has none
		if isSet {
			id = contextAllocationID
			c.allocation, c.contextOf = true, r.name
		}
		if err := c.reply(option, repMetaContext, string(be.AppendUint32(nil, id))+contextAllocation); err != nil {
			return err
		}
	}
	return c.reply(option, repAck, "")
}
