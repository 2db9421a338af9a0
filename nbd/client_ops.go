package nbd

import (
	"context"
	"fmt"
	"sync"

	"scstore"
)

var wakers = sync.Pool{New: func() any { return make(chan struct{}, 1) }}

// Do sends one request and waits for its reply; r.Done is not called. A request
// can not be taken back: if ctx ends first, the connection is closed.
func (c *Client) Do(ctx context.Context, r *Request) error {
	wake, _ := wakers.Get().(chan struct{})
	r.wake = wake
	_ = c.Submit(r) // an error reaches r too
	select {
	case <-wake:
	case <-ctx.Done():
		c.fail(fmt.Errorf("%s abandoned: %w", r.Cmd, context.Cause(ctx)))
		_ = c.nc.Close() // wakes the receiver
		<-wake
	}
	r.wake = nil
	wakers.Put(wake)
	return r.Err
}

// ReadAt fills p, of any length, from off on. Errors: EINVAL beyond the end;
// EIO; ErrUnreachable when the connection ended.
func (c *Client) ReadAt(ctx context.Context, p []byte, off int64) error {
	for len(p) > 0 {
		n := min(len(p), int(c.info.blockMax))
		if err := c.Do(ctx, &Request{Cmd: CmdRead, Offset: off, Data: p[:n]}); err != nil {
			return fmt.Errorf("read %d bytes at %d: %w", n, off, err)
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// WriteAt writes p, of any length, at off; flags may hold CmdFlagFUA.
//
// Durability: with FUA, on stable storage; else after the next Flush.
// Errors: ErrNoSpace, also beyond the end; ErrReadOnly; ErrIndeterminate when the
// connection ended before the reply.
func (c *Client) WriteAt(ctx context.Context, p []byte, off int64, flags CommandFlags) error {
	for len(p) > 0 {
		n := min(len(p), int(c.info.blockMax))
		if err := c.Do(ctx, &Request{Cmd: CmdWrite, Flags: flags, Offset: off, Data: p[:n]}); err != nil {
			return fmt.Errorf("write %d bytes at %d: %w", n, off, err)
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// Flush makes every write that was acknowledged before it durable.
func (c *Client) Flush(ctx context.Context) error {
	if err := c.Do(ctx, &Request{Cmd: CmdFlush}); err != nil {
		return fmt.Errorf("flush: %w", err)
	}
	return nil
}

// Trim tells the server that the range is not needed any more; its content is
// then undefined.
func (c *Client) Trim(ctx context.Context, off, length int64, flags CommandFlags) error {
	return c.overRange(ctx, CmdTrim, off, length, flags)
}

// Zero makes the range read as zeroes; flags may hold CmdFlagNoHole,
// CmdFlagFastZero and CmdFlagFUA.
func (c *Client) Zero(ctx context.Context, off, length int64, flags CommandFlags) error {
	return c.overRange(ctx, CmdWriteZeroes, off, length, flags)
}

// Cache asks the server to have the range at hand.
func (c *Client) Cache(ctx context.Context, off, length int64) error {
	return c.overRange(ctx, CmdCache, off, length, 0)
}

func (c *Client) overRange(ctx context.Context, cmd Command, off, length int64, flags CommandFlags) error {
	for length > 0 {
		n := min(length, rangeStep)
		if err := c.Do(ctx, &Request{Cmd: cmd, Flags: flags, Offset: off, Length: uint32(n)}); err != nil {
			return fmt.Errorf("%s %d bytes at %d: %w", cmd, n, off, err)
		}
		off, length = off+n, length-n
	}
	return nil
}

// BlockStatus appends to dst consecutive ranges that cover exactly the range
// asked for, by base:allocation: RangeHole where the server says that it reads as
// zeroes. Errors: ErrInvalid unless HasStatus.
func (c *Client) BlockStatus(ctx context.Context, off, length int64, dst []scstore.Range) ([]scstore.Range, error) {
	r := Request{Cmd: CmdBlockStatus}
	for length > 0 {
		r.Offset, r.Length, r.Ranges = off, uint32(min(length, rangeStep)), r.Ranges[:0]
		if err := c.Do(ctx, &r); err != nil {
			return dst, fmt.Errorf("block status of %d bytes at %d: %w", r.Length, off, err)
		}
		for _, e := range r.Ranges {
			// The last extent may reach beyond what was asked for.
			e.Length = min(e.Length, length)
			if k := len(dst) - 1; k >= 0 && dst[k].State == e.State && dst[k].Offset+dst[k].Length == e.Offset {
				dst[k].Length += e.Length
			} else {
				dst = append(dst, e)
			}
			off, length = off+e.Length, length-e.Length
			if length == 0 {
				break
			}
		}
	}
	return dst, nil
}
