package bench

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strings"
	"time"

	"scstore"
)

// What of the NBD protocol a load needs. Structured replies are not asked for:
// every reply is then 16 bytes and, for a read, its data.
const (
	nbdMagic        = 0x4e42444d41474943 // "NBDMAGIC"
	nbdOptionMagic  = 0x49484156454f5054 // "IHAVEOPT"
	nbdReplyMagic   = 0x0003e889045565a9
	nbdRequestMagic = 0x25609513
	nbdSimpleMagic  = 0x67446698

	nbdFixedNewstyle = 1 << 0
	nbdNoZeroes      = 1 << 1

	nbdOptExportName = 1
	nbdOptAbort      = 2
	nbdOptGo         = 7
	nbdRepAck        = 1
	nbdRepInfo       = 3
	nbdRepErrUnsup   = 1<<31 | 1
	nbdInfoExport    = 0

	nbdFlagHasFlags    = 1 << 0
	nbdFlagReadOnly    = 1 << 1
	nbdFlagFlush       = 1 << 2
	nbdFlagFUA         = 1 << 3
	nbdFlagTrim        = 1 << 5
	nbdFlagWriteZeroes = 1 << 6
	nbdFlagMultiConn   = 1 << 8

	nbdCmdRead   = 0
	nbdCmdWrite  = 1
	nbdCmdDisc   = 2
	nbdCmdFlush  = 3
	nbdCmdTrim   = 4
	nbdCmdZeroes = 6

	requestLen = 28
	replyLen   = 16

	// maxOptionReply bounds what a server may say during the handshake.
	maxOptionReply = 64 << 10
	// dialTimeout bounds connecting and the handshake.
	dialTimeout = 10 * time.Second
	// connBuffer is the size of the read and the write buffer.
	connBuffer = 256 << 10
)

// conn is a connection in its transmission phase.
type conn struct {
	nc    net.Conn
	r     *bufio.Reader
	w     *bufio.Writer
	size  int64
	flags uint16
}

// parseURL understands nbd+unix:///NAME?socket=PATH and nbd://host:port/NAME.
func parseURL(raw string) (network, address, export string, err error) {
	u, err := url.Parse(raw)
	if err != nil {
		return "", "", "", fmt.Errorf("parse NBD address %q: %w: %w", raw, scstore.ErrInvalid, err)
	}
	export = strings.TrimPrefix(u.Path, "/")
	switch {
	case u.Scheme == "nbd+unix" && u.Query().Get("socket") != "":
		return "unix", u.Query().Get("socket"), export, nil
	case u.Scheme == "nbd" && u.Port() != "":
		return "tcp", u.Host, export, nil
	case u.Scheme == "nbd" && u.Hostname() != "":
		return "tcp", net.JoinHostPort(u.Hostname(), "10809"), export, nil
	}
	err = fmt.Errorf("parse NBD address %q: %w", raw, scstore.ErrInvalid)
	return "", "", "", scstore.Hint(err, "use nbd+unix:///NAME?socket=PATH or nbd://HOST:PORT/NAME")
}

// dial connects and enters the transmission phase.
// Errors: ErrUnreachable; ErrInvalid for the address; ErrNotFound if the server
// refuses the export.
func dial(ctx context.Context, raw string) (*conn, error) {
	network, address, export, err := parseURL(raw)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	var d net.Dialer
	nc, err := d.DialContext(ctx, network, address)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w: %w", raw, scstore.ErrUnreachable, err)
	}
	c := &conn{nc: nc, r: bufio.NewReaderSize(nc, connBuffer), w: bufio.NewWriterSize(nc, connBuffer)}
	stop := context.AfterFunc(ctx, func() { nc.SetDeadline(time.Unix(1, 0)) })
	err = c.handshake(export)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open export %q of %s: %w", export, raw, err), nc.Close())
	}
	return c, nil
}

func (c *conn) handshake(export string) error {
	var hello [18]byte
	if _, err := io.ReadFull(c.r, hello[:]); err != nil {
		return fmt.Errorf("read the greeting: %w: %w", scstore.ErrUnreachable, err)
	}
	if binary.BigEndian.Uint64(hello[:]) != nbdMagic || binary.BigEndian.Uint64(hello[8:]) != nbdOptionMagic {
		return fmt.Errorf("read the greeting: no NBD server: %w", scstore.ErrInvalid)
	}
	b := binary.BigEndian.AppendUint32(nil, nbdFixedNewstyle|nbdNoZeroes)
	b = binary.BigEndian.AppendUint64(b, nbdOptionMagic)
	b = binary.BigEndian.AppendUint32(b, nbdOptGo)
	b = binary.BigEndian.AppendUint32(b, uint32(4+len(export)+2))
	b = binary.BigEndian.AppendUint32(b, uint32(len(export)))
	b = append(b, export...)
	b = binary.BigEndian.AppendUint16(b, 0)
	if _, err := c.nc.Write(b); err != nil {
		return fmt.Errorf("ask for the export: %w: %w", scstore.ErrUnreachable, err)
	}
	for {
		kind, data, err := c.optionReply()
		if err != nil {
			return err
		}
		switch {
		case kind == nbdRepAck && c.flags == 0:
			return fmt.Errorf("the server described no export: %w", scstore.ErrInvalid)
		case kind == nbdRepAck:
			return nil
		case kind == nbdRepInfo && len(data) >= 12 && binary.BigEndian.Uint16(data) == nbdInfoExport:
			c.size = int64(binary.BigEndian.Uint64(data[2:]))
			c.flags = binary.BigEndian.Uint16(data[10:]) | nbdFlagHasFlags
		case kind == nbdRepInfo:
		default:
			return fmt.Errorf("the server refused with %#x %q: %w", kind, data, scstore.ErrNotFound)
		}
	}
}

func (c *conn) optionReply() (kind uint32, data []byte, err error) {
	var h [20]byte
	if _, err := io.ReadFull(c.r, h[:]); err != nil {
		return 0, nil, fmt.Errorf("read an option's reply: %w: %w", scstore.ErrUnreachable, err)
	}
	length := binary.BigEndian.Uint32(h[16:])
	if binary.BigEndian.Uint64(h[:]) != nbdReplyMagic || length > maxOptionReply {
		return 0, nil, fmt.Errorf("read an option's reply: malformed: %w", scstore.ErrInvalid)
	}
	data = make([]byte, length)
	if _, err := io.ReadFull(c.r, data); err != nil {
		return 0, nil, fmt.Errorf("read an option's reply: %w: %w", scstore.ErrUnreachable, err)
	}
	return binary.BigEndian.Uint32(h[12:]), data, nil
}

func appendRequest(b []byte, command uint16, handle uint64, off int64, length int) []byte {
	b = binary.BigEndian.AppendUint32(b, nbdRequestMagic)
	b = binary.BigEndian.AppendUint16(b, 0)
	b = binary.BigEndian.AppendUint16(b, command)
	b = binary.BigEndian.AppendUint64(b, handle)
	b = binary.BigEndian.AppendUint64(b, uint64(off))
	return binary.BigEndian.AppendUint32(b, uint32(length))
}

// send queues a request; payload is nil but for a write.
func (c *conn) send(command uint16, handle uint64, off int64, length int, payload []byte) error {
	if c.w.Available() < requestLen {
		if err := c.w.Flush(); err != nil {
			return err
		}
	}
	if _, err := c.w.Write(appendRequest(c.w.AvailableBuffer(), command, handle, off, length)); err != nil {
		return err
	}
	_, err := c.w.Write(payload)
	return err
}

// reply reads the next reply's header.
func (c *conn) reply() (handle uint64, code uint32, err error) {
	h, err := c.r.Peek(replyLen)
	if err != nil {
		return 0, 0, err
	}
	if binary.BigEndian.Uint32(h) != nbdSimpleMagic {
		return 0, 0, fmt.Errorf("read a reply: malformed: %w", scstore.ErrInvalid)
	}
	handle, code = binary.BigEndian.Uint64(h[8:]), binary.BigEndian.Uint32(h[4:])
	_, err = c.r.Discard(replyLen)
	return handle, code, err
}
