package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"scstore"
)

const (
	// drainTimeout bounds the wait for the replies that are due when a load's time
	// is over, the final flush among them.
	drainTimeout = 5 * time.Minute
	// cancelTimeout bounds the same when the caller gave up.
	cancelTimeout = 10 * time.Second
)

// request is one request in flight. The pipeline reuses it and its buffers.
type request struct {
	command uint16
	off     int64
	length  int
	payload []byte // of a write
	buf     []byte // at least length bytes, for the data of a read or to build a payload
	floors  []uint32
	mark    uint64
	start   time.Time
	alone   bool // sent when nothing else is in flight, and nothing else before its reply
	handle  uint64
}

// pipeline keeps up to depth requests in flight on one connection.
type pipeline struct {
	c    *conn
	reqs []request
	free chan *request
	// next fills in a request, or says that there is none left. It is called by
	// the sending goroutine alone.
	next func(r *request) bool
	// sending sees each request just before it is sent; may be nil.
	sending func(r *request)
	// done sees a request that was answered without an error, in the receiving
	// goroutine.
	done     func(r *request, took time.Duration) error
	finished atomic.Bool // all replies are in, and the connection is being closed
}

func newPipeline(c *conn, depth, bufBytes int) *pipeline {
	p := &pipeline{c: c, reqs: make([]request, depth), free: make(chan *request, depth)}
	backing := make([]byte, depth*bufBytes)
	for i := range p.reqs {
		p.reqs[i].handle = uint64(i)
		p.reqs[i].buf = backing[i*bufBytes : (i+1)*bufBytes : (i+1)*bufBytes]
		p.free <- &p.reqs[i]
	}
	return p
}

// run sends what next gives until next has no more or ctx is done, waits for all
// replies, then calls last, if any, whose request is sent alone, and disconnects.
// abandon is done when the caller wants out without the last request.
func (p *pipeline) run(ctx, abandon context.Context, last func(r *request) bool) error {
	stop := context.AfterFunc(ctx, func() { // ctx is derived from abandon
		limit := drainTimeout
		if abandon.Err() != nil {
			limit = cancelTimeout
		}
		p.c.nc.SetDeadline(time.Now().Add(limit))
	})
	defer stop()
	stopFast := context.AfterFunc(abandon, func() { p.c.nc.SetDeadline(time.Now().Add(cancelTimeout)) })
	defer stopFast()
	broken, breakOff := context.WithCancelCause(context.Background())
	defer breakOff(nil)
	var receiver sync.WaitGroup
	var received error
	receiver.Go(func() {
		received = p.receive()
		breakOff(received)
	})
	err := p.sendAll(ctx, broken, p.next)
	if err == nil {
		err = p.drain(broken)
	}
	if err == nil && last != nil && abandon.Err() == nil {
		err = p.sendLast(broken, last)
	}
	if err == nil {
		p.finished.Store(true)
		err = errors.Join(p.c.send(nbdCmdDisc, 0, 0, 0, nil), p.c.w.Flush())
	}
	closed := p.c.nc.Close()
	receiver.Wait()
	switch {
	case received != nil:
		return received // why the sender stopped, if it did
	case err != nil:
		return err
	}
	return closed
}

func (p *pipeline) sendLast(broken context.Context, last func(r *request) bool) error {
	once := false
	err := p.sendAll(context.Background(), broken, func(r *request) bool {
		if once {
			return false
		}
		once = true
		return last(r)
	})
	if err != nil {
		return err
	}
	return p.drain(broken)
}

// take returns a free request. Before it waits for one it sends what is queued.
func (p *pipeline) take(ctx, broken context.Context) (*request, error) {
	select {
	case r := <-p.free:
		return r, nil
	default:
	}
	if err := p.c.w.Flush(); err != nil {
		return nil, fmt.Errorf("send: %w: %w", scstore.ErrUnreachable, err)
	}
	select {
	case r := <-p.free:
		return r, nil
	case <-broken.Done():
		return nil, context.Cause(broken)
	case <-ctx.Done():
		return nil, nil
	}
}

func (p *pipeline) sendAll(ctx, broken context.Context, next func(r *request) bool) error {
	for ctx.Err() == nil {
		r, err := p.take(ctx, broken)
		if err != nil || r == nil {
			return err
		}
		r.alone, r.payload = false, nil
		if !next(r) {
			p.free <- r
			return nil
		}
		if r.alone {
			if err := p.drainBut(broken, 1); err != nil {
				return err
			}
		}
		if p.sending != nil {
			p.sending(r)
		}
		alone := r.alone // r is the receiver's once it is sent
		r.start = time.Now()
		if err := p.c.send(r.command, r.handle, r.off, r.length, r.payload); err != nil {
			return fmt.Errorf("send: %w: %w", scstore.ErrUnreachable, err)
		}
		if alone {
			if err := p.drain(broken); err != nil {
				return err
			}
		}
	}
	return nil
}

// drain waits until nothing is in flight.
func (p *pipeline) drain(broken context.Context) error { return p.drainBut(broken, 0) }

func (p *pipeline) drainBut(broken context.Context, held int) error {
	taken := make([]*request, 0, cap(p.free))
	for len(taken) < cap(p.free)-held {
		r, err := p.take(context.Background(), broken)
		if err != nil {
			return err
		}
		taken = append(taken, r)
	}
	for _, r := range taken {
		p.free <- r
	}
	return nil
}

// receive handles the replies until the connection ends.
func (p *pipeline) receive() error {
	for {
		handle, code, err := p.c.reply()
		if err != nil {
			if p.finished.Load() {
				return nil
			}
			return fmt.Errorf("receive: %w: %w", scstore.ErrUnreachable, err)
		}
		if handle >= uint64(len(p.reqs)) {
			return fmt.Errorf("receive: reply to a request %d that was never sent: %w", handle, scstore.ErrInvalid)
		}
		r := &p.reqs[handle]
		if code != 0 {
			return fmt.Errorf("command %d of %d bytes at %d: the server answered: %w", r.command, r.length, r.off, syscall.Errno(code))
		}
		if r.command == nbdCmdRead {
			if _, err := io.ReadFull(p.c.r, r.buf[:r.length]); err != nil {
				return fmt.Errorf("receive: %w: %w", scstore.ErrUnreachable, err)
			}
		}
		if err := p.done(r, time.Since(r.start)); err != nil {
			return err
		}
		p.free <- r
	}
}
