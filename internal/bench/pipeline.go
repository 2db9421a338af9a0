package bench

import (
	"context"
	"fmt"
	"sync"
	"time"

	"scstore/nbd"
)

const (
	// drainTimeout bounds the wait for the replies that are due when a load's time
	// is over, the final flush among them.
	drainTimeout = 5 * time.Minute
	// cancelTimeout bounds the same when the caller gave up.
	cancelTimeout = 10 * time.Second
	// maxBatch is how many requests are given to the client at once.
	maxBatch = 64
)

// request is one request in flight. The pipeline reuses it and its buffer.
type request struct {
	nbd.Request
	length int    // bytes that it reads or writes
	buf    []byte // for the data of a read, or to build a payload
	floors []uint32
	mark   uint64
	start  time.Time
	sent   bool // in flight; for inline alone
	alone  bool // sent when nothing else is in flight, and nothing else before its reply
}

// pipeline keeps up to depth requests in flight on one connection.
type pipeline struct {
	c    *nbd.Client
	free chan *request
	// next fills in a request, or says that there is none left. It is called by
	// the sending goroutine alone.
	next func(r *request) bool
	// sending sees each request just before it is sent; may be nil.
	sending func(r *request)
	// done sees a request that was answered without an error, in the receiving
	// goroutine.
	done func(r *request, took time.Duration) error

	batch  []*nbd.Request
	failed context.Context // done once something has failed; the cause says what
	fail   context.CancelCauseFunc
}

func newPipeline(c *nbd.Client, depth, bufBytes int) *pipeline {
	p := &pipeline{c: c, free: make(chan *request, depth), batch: make([]*nbd.Request, 0, maxBatch)}
	p.failed, p.fail = context.WithCancelCause(context.Background())
	reqs := make([]request, depth)
	backing := make([]byte, depth*bufBytes)
	for i := range reqs {
		r := &reqs[i]
		r.buf = backing[i*bufBytes : (i+1)*bufBytes : (i+1)*bufBytes]
		r.Done = func(*nbd.Request) { p.answered(r) }
		p.free <- r
	}
	return p
}

// answered runs on the client's receiving goroutine.
func (p *pipeline) answered(r *request) {
	took := time.Since(r.start)
	err := r.Err
	if err == nil {
		err = p.done(r, took)
	} else {
		err = fmt.Errorf("%s of %d bytes at %d: %w", r.Cmd, r.length, r.Offset, err)
	}
	if err != nil {
		p.fail(err)
	}
	p.free <- r
}

// run sends what next gives until next has no more or ctx is done, waits for all
// replies, then sends what last gives, if anything, alone, and closes the client.
// abandon, from which ctx is derived, is done when the caller wants out without
// the last request.
func (p *pipeline) run(ctx, abandon context.Context, last func(r *request) bool) error {
	defer p.fail(nil)
	var timers sync.WaitGroup // of those that run
	giveUp := func(after time.Duration) func() {
		timers.Add(1)
		return func() {
			defer timers.Done()
			timer := time.NewTimer(after)
			defer timer.Stop()
			select {
			case <-timer.C:
				_ = p.c.Close() // what is in flight fails, and says so
			case <-p.failed.Done():
			}
		}
	}
	stops := []func() bool{
		context.AfterFunc(ctx, giveUp(drainTimeout)),
		context.AfterFunc(abandon, giveUp(cancelTimeout)),
	}
	defer timers.Wait()
	defer p.fail(nil)
	defer func() {
		for _, stop := range stops {
			if stop() {
				timers.Done()
			}
		}
	}()
	err := p.sendAll(ctx, p.next)
	if drained := p.drain(0); err == nil {
		err = drained
	}
	if err == nil && last != nil && abandon.Err() == nil {
		err = p.sendAll(context.Background(), once(last))
		if err == nil {
			err = p.drain(0)
		}
	}
	closed := p.c.Close()
	if err == nil {
		err = closed
	}
	return err
}

// once returns f for its first call, then false.
func once(f func(r *request) bool) func(r *request) bool {
	called := false
	return func(r *request) bool {
		if called {
			return false
		}
		called = true
		return f(r)
	}
}

// submit sends the batch.
func (p *pipeline) submit() error {
	if len(p.batch) == 0 {
		return nil
	}
	err := p.c.Submit(p.batch...)
	p.batch = p.batch[:0]
	return err
}

// take returns a free request, or nil once ctx is done. Before it waits for one it
// sends the batch.
func (p *pipeline) take(ctx context.Context) (*request, error) {
	if len(p.batch) < maxBatch {
		select {
		case r := <-p.free:
			return r, nil
		default:
		}
	}
	if err := p.submit(); err != nil {
		return nil, p.why(err)
	}
	select {
	case r := <-p.free:
		return r, nil
	case <-ctx.Done():
		return nil, nil
	}
}

// why prefers the first failure, which explains the ones after it.
func (p *pipeline) why(err error) error {
	if cause := context.Cause(p.failed); cause != nil {
		return cause
	}
	return err
}

func (p *pipeline) sendAll(ctx context.Context, next func(r *request) bool) error {
	for ctx.Err() == nil && p.failed.Err() == nil {
		r, err := p.take(ctx)
		if err != nil {
			return err
		}
		if r == nil {
			break
		}
		r.alone, r.Data, r.Length, r.Offset = false, nil, 0, 0
		if !next(r) {
			p.free <- r
			break
		}
		if r.alone {
			if err := p.drain(1); err != nil {
				p.free <- r
				return err
			}
		}
		if p.sending != nil {
			p.sending(r)
		}
		alone := r.alone // r is the receiver's once it is sent
		r.start = time.Now()
		p.batch = append(p.batch, &r.Request)
		if alone {
			if err := p.drain(0); err != nil {
				return err
			}
		}
	}
	return p.why(p.submit())
}

// drain sends the batch and waits until nothing is in flight but held requests.
// The client answers every request, so that it ends.
func (p *pipeline) drain(held int) error {
	err := p.submit()
	taken := make([]*request, 0, cap(p.free))
	for len(taken) < cap(p.free)-held {
		taken = append(taken, <-p.free)
	}
	for _, r := range taken {
		p.free <- r
	}
	return p.why(err)
}

func (p *pipeline) close() error { return p.c.Close() }
