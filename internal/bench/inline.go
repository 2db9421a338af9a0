package bench

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"time"

	"scstore"
	"scstore/nbd"
)

// inline keeps up to depth requests in flight with one goroutine that sends all it
// can, waits for replies, takes all there are, and sends again. A goroutine for
// each direction costs two wake-ups a round trip: at depth 1 over a bare loop 17k
// instead of 40k requests a second, at depth 32 over qemu-nbd 60k instead of 80k
// (measured). It suits loads in one direction only: with large reads and writes
// mixed, both sides could wait for the other to read.
type inline struct {
	nc   net.Conn
	r    *bufio.Reader
	w    *bufio.Writer
	reqs []request
	free []uint64 // indexes of reqs that are not in flight
	next func(r *request) bool
	done func(r *request, took time.Duration) error
}

const replyLen = 16

// inlineSuits reports whether a load goes in one direction only.
func inlineSuits(o LoadOptions) bool {
	return o.Journal == nil && (o.ReadPercent == 0 || o.ReadPercent == 100)
}

// dialInline connects for an inline load. The export has been found before, by a
// nbd.Client.
func dialInline(ctx context.Context, url string, depth, bufBytes int) (*inline, error) {
	a, err := nbd.ParseURL(url)
	if err != nil {
		return nil, err
	}
	d := net.Dialer{Timeout: nbd.DefaultDialTimeout}
	nc, err := d.DialContext(ctx, a.Network, a.Addr)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w: %w", url, scstore.ErrUnreachable, err)
	}
	p := &inline{nc: nc, r: bufio.NewReaderSize(nc, connBuffer), w: bufio.NewWriterSize(nc, connBuffer), reqs: make([]request, depth)}
	if err := p.handshake(a.Export); err != nil {
		return nil, errors.Join(fmt.Errorf("dial %s: %w: %w", url, scstore.ErrUnreachable, err), nc.Close())
	}
	backing := make([]byte, depth*bufBytes)
	for i := range p.reqs {
		p.reqs[i].buf = backing[i*bufBytes : (i+1)*bufBytes : (i+1)*bufBytes]
		p.free = append(p.free, uint64(i))
	}
	slices.Reverse(p.free)
	return p, nil
}

// handshake asks for the export by the one option that every server knows, so that
// replies are simple ones.
func (p *inline) handshake(export string) error {
	if err := p.nc.SetDeadline(time.Now().Add(nbd.DefaultDialTimeout)); err != nil {
		return err
	}
	var hello [18]byte
	if _, err := io.ReadFull(p.r, hello[:]); err != nil {
		return err
	}
	if binary.BigEndian.Uint64(hello[:]) != nbdMagic || binary.BigEndian.Uint64(hello[8:]) != nbdOptionMagic {
		return fmt.Errorf("no NBD server: %w", scstore.ErrInvalid)
	}
	b := binary.BigEndian.AppendUint32(nil, nbdFixedNewstyle|nbdNoZeroes)
	b = binary.BigEndian.AppendUint64(b, nbdOptionMagic)
	b = binary.BigEndian.AppendUint32(b, nbdOptExportName)
	b = binary.BigEndian.AppendUint32(b, uint32(len(export)))
	if _, err := p.nc.Write(append(b, export...)); err != nil {
		return err
	}
	var sizeAndFlags [10]byte
	if _, err := io.ReadFull(p.r, sizeAndFlags[:]); err != nil {
		return err
	}
	return p.nc.SetDeadline(time.Time{})
}

// run is the inline form of pipeline.run.
func (p *inline) run(ctx, abandon context.Context, last func(r *request) bool) error {
	limit := func(d time.Duration) func() {
		return func() { _ = p.nc.SetDeadline(time.Now().Add(d)) } // fails on a closed one
	}
	defer context.AfterFunc(abandon, limit(cancelTimeout))()
	defer context.AfterFunc(ctx, func() {
		if abandon.Err() == nil {
			limit(drainTimeout)()
		}
	})()
	err := p.loop(ctx, p.next)
	if err == nil && last != nil && abandon.Err() == nil {
		err = p.loop(context.Background(), once(last))
	}
	if err == nil {
		_, err = p.w.Write(appendRequest(p.w.AvailableBuffer(), nbd.CmdDisconnect, 0, 0, 0))
		err = errors.Join(err, p.w.Flush())
	}
	return errors.Join(err, p.nc.Close())
}

// loop sends what next gives, until it has no more or ctx is done, and returns
// with nothing in flight.
func (p *inline) loop(ctx context.Context, next func(r *request) bool) error {
	for more := true; ; {
		for more && len(p.free) > 0 {
			i := p.free[len(p.free)-1]
			r := &p.reqs[i]
			r.alone, r.Data, r.Length, r.Offset = false, nil, 0, 0
			if more = ctx.Err() == nil && next(r); !more {
				break
			}
			p.free = p.free[:len(p.free)-1]
			if err := p.sendAlone(r, i); err != nil {
				return err
			}
		}
		if len(p.free) == len(p.reqs) {
			return nil
		}
		if err := p.receive(); err != nil {
			return err
		}
	}
}

// sendAlone queues a request; around one that wants to be alone it waits until
// nothing else is in flight.
func (p *inline) sendAlone(r *request, i uint64) error {
	for r.alone && len(p.free) < len(p.reqs)-1 {
		if err := p.receive(); err != nil {
			return err
		}
	}
	if err := p.send(r, i); err != nil {
		return fmt.Errorf("send: %w: %w", scstore.ErrUnreachable, err)
	}
	for r.alone && len(p.free) < len(p.reqs) {
		if err := p.receive(); err != nil {
			return err
		}
	}
	return nil
}

func (p *inline) send(r *request, i uint64) error {
	if p.w.Available() < requestLen {
		if err := p.w.Flush(); err != nil {
			return err
		}
	}
	length := r.length
	if r.Cmd == nbd.CmdFlush {
		length = 0
	}
	r.start, r.sent = time.Now(), true
	if _, err := p.w.Write(appendRequest(p.w.AvailableBuffer(), r.Cmd, i, r.Offset, length)); err != nil {
		return err
	}
	if r.Cmd != nbd.CmdWrite {
		return nil
	}
	_, err := p.w.Write(r.Data)
	return err
}

// receive sends what is queued, waits for a reply and handles all that have come.
func (p *inline) receive() error {
	if err := p.w.Flush(); err != nil {
		return fmt.Errorf("send: %w: %w", scstore.ErrUnreachable, err)
	}
	for {
		if err := p.reply(); err != nil {
			return err
		}
		if p.r.Buffered() < replyLen || len(p.free) == len(p.reqs) {
			return nil
		}
	}
}

func (p *inline) reply() error {
	h, err := p.r.Peek(replyLen)
	if err != nil {
		return fmt.Errorf("receive: %w: %w", scstore.ErrUnreachable, err)
	}
	magic, code, i := binary.BigEndian.Uint32(h), binary.BigEndian.Uint32(h[4:]), binary.BigEndian.Uint64(h[8:])
	if magic != nbdSimpleMagic || i >= uint64(len(p.reqs)) || !p.reqs[i].sent {
		return fmt.Errorf("receive: no reply to anything that was sent: %w", scstore.ErrInvalid)
	}
	r := &p.reqs[i]
	if code != 0 {
		return fmt.Errorf("%s of %d bytes at %d: %w", r.Cmd, r.length, r.Offset, nbd.Errno(code))
	}
	if _, err := p.r.Discard(replyLen); err != nil {
		return fmt.Errorf("receive: %w: %w", scstore.ErrUnreachable, err)
	}
	if r.Cmd == nbd.CmdRead {
		if _, err := io.ReadFull(p.r, r.Data); err != nil {
			return fmt.Errorf("receive: %w: %w", scstore.ErrUnreachable, err)
		}
	}
	r.sent = false
	p.free = append(p.free, i)
	return p.done(r, time.Since(r.start))
}

func (p *inline) close() error { return p.nc.Close() }

func appendRequest(b []byte, command nbd.Command, handle uint64, off int64, length int) []byte {
	b = binary.BigEndian.AppendUint32(b, nbdRequestMagic)
	b = binary.BigEndian.AppendUint16(b, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(command))
	b = binary.BigEndian.AppendUint64(b, handle)
	b = binary.BigEndian.AppendUint64(b, uint64(off))
	return binary.BigEndian.AppendUint32(b, uint32(length))
}
