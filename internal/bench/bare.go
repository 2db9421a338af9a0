package bench

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"

	"scstore"
	"scstore/nbd"
)

// What of the NBD protocol a bare server and an inline load need beside the names
// of package nbd.
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

	requestLen = 28
	// maxOption bounds what a client may send with an option.
	maxOption = 64 << 10
	// connBuffer is the size of the read and the write buffer.
	connBuffer = 256 << 10
)

// MaxBareBytes is the largest memory of a bare server.
const MaxBareBytes = 64 << 30

// bareDevice is what a bare server serves. Requests of one connection come one
// after another, those of several at once.
type bareDevice interface {
	read(p []byte, off int64) error
	write(p []byte, off int64) error
	zero(off, length int64) error
	flush() error
}

// memory is a device that does nothing but copy.
type memory []byte

func (m memory) read(p []byte, off int64) error  { copy(p, m[off:]); return nil }
func (m memory) write(p []byte, off int64) error { copy(m[off:], p); return nil }
func (m memory) zero(off, length int64) error    { clear(m[off : off+length]); return nil }
func (m memory) flush() error                    { return nil }

// ServeBare serves sizeBytes of memory on a listener until ctx is done: one
// goroutine for each connection, requests handled in place, replies gathered and
// sent when no further request waits in the read buffer. It checks nothing, stores
// nothing and keeps nothing: it is the limit that a server on this machine can
// reach, not a peer.
//
// Errors: ErrInvalid for the size; what the listener returns.
func ServeBare(ctx context.Context, l net.Listener, sizeBytes int64) error {
	if sizeBytes <= 0 || sizeBytes > MaxBareBytes {
		return errors.Join(fmt.Errorf("serve %d bytes of memory: %w", sizeBytes, scstore.ErrInvalid), l.Close())
	}
	return serveBare(ctx, l, sizeBytes, make(memory, sizeBytes))
}

func serveBare(ctx context.Context, l net.Listener, size int64, dev bareDevice) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	for {
		nc, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("accept: %w", err)
		}
		wg.Go(func() {
			stop := context.AfterFunc(ctx, func() { nc.Close() })
			defer stop()
			defer nc.Close()
			b := &bareConn{r: bufio.NewReaderSize(nc, connBuffer), w: bufio.NewWriterSize(nc, connBuffer), size: size, dev: dev}
			// A client that goes away ends its connection, and that is all.
			_ = b.serve()
		})
	}
}

type bareConn struct {
	r    *bufio.Reader
	w    *bufio.Writer
	size int64
	dev  bareDevice
	buf  []byte
}

const bareFlags = nbd.FlagHasFlags | nbd.FlagSendFlush | nbd.FlagSendWriteZeroes | nbd.FlagCanMultiConn

func (b *bareConn) serve() error {
	hello := binary.BigEndian.AppendUint64(nil, nbdMagic)
	hello = binary.BigEndian.AppendUint64(hello, nbdOptionMagic)
	hello = binary.BigEndian.AppendUint16(hello, nbdFixedNewstyle|nbdNoZeroes)
	if err := b.say(hello); err != nil {
		return err
	}
	if _, err := b.r.Discard(4); err != nil {
		return err
	}
	for {
		done, err := b.option()
		if err != nil {
			return err
		}
		if done {
			return b.transmit()
		}
	}
}

func (b *bareConn) say(p []byte) error {
	_, err := b.w.Write(p)
	return errors.Join(err, b.w.Flush())
}

// option handles one option; whatever export is asked for is the one there is.
func (b *bareConn) option() (done bool, err error) {
	var h [16]byte
	if _, err := io.ReadFull(b.r, h[:]); err != nil {
		return false, err
	}
	option, length := binary.BigEndian.Uint32(h[8:]), binary.BigEndian.Uint32(h[12:])
	if length > maxOption {
		return false, fmt.Errorf("option of %d bytes: %w", length, scstore.ErrInvalid)
	}
	if _, err := b.r.Discard(int(length)); err != nil {
		return false, err
	}
	reply := func(kind uint32, data []byte) error {
		p := binary.BigEndian.AppendUint64(nil, nbdReplyMagic)
		p = binary.BigEndian.AppendUint32(p, option)
		p = binary.BigEndian.AppendUint32(p, kind)
		p = binary.BigEndian.AppendUint32(p, uint32(len(data)))
		return b.say(append(p, data...))
	}
	export := binary.BigEndian.AppendUint64(nil, uint64(b.size))
	export = binary.BigEndian.AppendUint16(export, uint16(bareFlags))
	switch option {
	case nbdOptGo:
		err := reply(nbdRepInfo, append([]byte{0, nbdInfoExport}, export...))
		return true, errors.Join(err, reply(nbdRepAck, nil))
	case nbdOptExportName:
		return true, b.say(export)
	case nbdOptAbort:
		return false, errors.Join(reply(nbdRepAck, nil), io.EOF)
	default:
		return false, reply(nbdRepErrUnsup, nil)
	}
}

func (b *bareConn) transmit() error {
	for {
		if b.r.Buffered() < requestLen {
			if err := b.w.Flush(); err != nil {
				return err
			}
		}
		h, err := b.r.Peek(requestLen)
		if err != nil {
			return err
		}
		command, handle := nbd.Command(binary.BigEndian.Uint16(h[6:])), binary.BigEndian.Uint64(h[8:])
		off, length := int64(binary.BigEndian.Uint64(h[16:])), int64(binary.BigEndian.Uint32(h[24:]))
		if _, err := b.r.Discard(requestLen); err != nil {
			return err
		}
		if command == nbd.CmdDisconnect {
			return b.w.Flush()
		}
		if off < 0 || off > b.size-length || length > MaxRequestBytes && command != nbd.CmdWriteZeroes {
			return fmt.Errorf("request of %d bytes at %d: %w", length, off, scstore.ErrInvalid)
		}
		if err := b.handle(command, handle, off, length); err != nil {
			return err
		}
	}
}

func (b *bareConn) handle(command nbd.Command, handle uint64, off, length int64) error {
	data, err := b.apply(command, off, length)
	if err != nil {
		return err
	}
	p := binary.BigEndian.AppendUint32(b.w.AvailableBuffer(), nbdSimpleMagic)
	p = binary.BigEndian.AppendUint32(p, 0)
	p = binary.BigEndian.AppendUint64(p, handle)
	if _, err := b.w.Write(p); err != nil {
		return err
	}
	_, err = b.w.Write(data)
	return err
}

func (b *bareConn) apply(command nbd.Command, off, length int64) (data []byte, err error) {
	switch command {
	case nbd.CmdRead, nbd.CmdWrite:
		if m, ok := b.dev.(memory); ok { // no copy between the buffer and the memory
			if command == nbd.CmdRead {
				return m[off : off+length], nil
			}
			_, err := io.ReadFull(b.r, m[off:off+length])
			return nil, err
		}
		if int64(cap(b.buf)) < length {
			b.buf = make([]byte, length)
		}
		p := b.buf[:length]
		if command == nbd.CmdRead {
			return p, b.dev.read(p, off)
		}
		if _, err := io.ReadFull(b.r, p); err != nil {
			return nil, err
		}
		return nil, b.dev.write(p, off)
	case nbd.CmdWriteZeroes:
		return nil, b.dev.zero(off, length)
	case nbd.CmdFlush:
		return nil, b.dev.flush()
	default:
		return nil, fmt.Errorf("command %d: %w", command, scstore.ErrInvalid)
	}
}
