package nbd

import (
	"time"

	"scstore"
)

// job is a request that may wait for the device.
type job struct {
	req request
	buf *buffer // for a READ's reply, if the loop had to take one already
}

// handOff gives a request to a worker. If all of them are busy, or hold as much as
// they may, the loop carries it out itself, which holds further requests back.
func (c *conn) handOff(j job) error {
	if c.jobs == nil {
		c.jobs = make(chan job)
	}
	if c.held.Load()+int64(j.payload()) <= MaxHandedOffBytes {
		c.hold(j) // before anybody else can have it
		select {
		case c.jobs <- j:
			return nil
		default:
		}
		if c.workers < MaxWorkers {
			c.workers++
			c.wg.Go(func() { c.work(j) })
			return nil
		}
		c.unhold(j)
	}
	if err := c.flushOut(); err != nil {
		if j.buf != nil {
			j.buf.release()
		}
		return err
	}
	return c.run(j)
}

// payload is what a job makes the connection hold, in bytes.
func (j job) payload() int {
	if j.req.cmd == CmdRead {
		return int(j.req.length)
	}
	return maxInPlace
}

func (c *conn) hold(j job) {
	c.export.Gate.add()
	c.held.Add(int64(j.payload()))
	c.s.metrics.handedOff.Add(float64(j.payload()))
}

func (c *conn) unhold(j job) {
	c.export.Gate.leave(1)
	c.held.Add(-int64(j.payload()))
	c.s.metrics.handedOff.Sub(float64(j.payload()))
}

// work is one worker; it ends when the loop closes jobs.
func (c *conn) work(j job) {
	for ok := true; ok; j, ok = <-c.jobs {
		_ = c.run(j) // a failed write has closed the socket; the loop reports it
		c.unhold(j)
	}
}

// run carries out a request that may wait and sends its reply. It runs on workers
// and on the loop.
func (c *conn) run(j job) error {
	switch j.req.cmd {
	case CmdRead:
		return c.runRead(j)
	case CmdBlockStatus:
		return c.runStatus(j.req)
	default:
		return c.runCache(j.req)
	}
}

// sendFailure sends an error reply from outside of the loop's buffer.
func (c *conn) sendFailure(req request, err error) error {
	e := errnoOf(err)
	c.s.metrics.failed(e)
	return c.writer.write(c.appendFailure(nil, req, e, err.Error()))
}

func (c *conn) runRead(j job) error {
	head, n := c.readHeaderBytes(), int(j.req.length)
	buf := j.buf
	if buf == nil {
		buf = getBuffer(head + n)
	}
	defer buf.release()
	var few [16]scstore.Range
	holes, err := c.dev.ReadAt(buf.b[head:head+n], int64(j.req.offset), few[:0])
	if err != nil {
		return c.sendFailure(j.req, err)
	}
	c.s.metrics.readBytes.Add(float64(n))
	return c.writer.write(buf.b[:c.frameRead(buf.b[:head+n], j.req, holes, true)])
}

// statusStep is how much of a device one call of Device.Status is asked for, in
// bytes: it bounds the scratch that the answer takes.
const statusStep = 64 << 20

// runStatus answers BLOCK_STATUS. The reply covers the request, or as much of it
// as MaxDescriptors extents describe.
func (c *conn) runStatus(req request) error {
	buf := getBuffer(chunkBytes + 4 + MaxDescriptors*descriptorBytes)
	defer buf.release()
	b := buf.b[:chunkBytes+4]
	var ranges []scstore.Range
	var current scstore.Range // the extent that is still growing
	off, end := int64(req.offset), int64(req.offset)+int64(req.length)
	limit := MaxDescriptors - 1 // one is kept for current
	if req.flags&CmdFlagReqOne != 0 {
		limit = 0
	}
	count := 0
scan:
	for ; off < end; off = min(off+statusStep, end) {
		var err error
		ranges, err = c.dev.Status(off, min(statusStep, end-off), ranges[:0])
		if err != nil {
			return c.sendFailure(req, err)
		}
		for _, r := range ranges {
			switch {
			case current.Length == 0:
				current = r
			case r.State == current.State:
				current.Length += r.Length
			case count == limit:
				break scan
			default:
				b = appendDescriptor(b, current)
				count++
				current = r
			}
		}
	}
	b = appendDescriptor(b, current)
	h := appendChunk(b[:0], chunkFlagDone, chunkStatus, req.handle, len(b)-chunkBytes)
	be.AppendUint32(h, contextAllocationID)
	return c.writer.write(b)
}

// appendDescriptor encodes one extent: length 4 | flags 4.
func appendDescriptor(b []byte, r scstore.Range) []byte {
	b = be.AppendUint32(b, uint32(r.Length))
	if r.State == scstore.RangeHole {
		return be.AppendUint32(b, stateHole|stateZero)
	}
	return be.AppendUint32(b, 0)
}

// runCache reads the range, so that it is near when it is read again. It is
// advice: errors are those that a READ would meet, and are left to it.
func (c *conn) runCache(req request) error {
	const step = 1 << 20
	left := min(int64(req.length), MaxCacheBytes)
	buf := getBuffer(step)
	defer buf.release()
	for off := int64(req.offset); left > 0 && c.ctx.Err() == nil && !c.draining.Load(); {
		n := min(left, step)
		if _, err := c.dev.ReadAt(buf.b[:n], off, nil); err != nil {
			c.log.Debug("nbd cache", "volume", c.export.Name, "err", err)
			break
		}
		off += n
		left -= n
	}
	return c.writer.write(appendSimple(nil, req.handle, 0))
}

// flush queues a handle for the flusher (step W4). What was received before it has
// been applied, so the next Device.Flush covers it (invariant I2).
func (c *conn) flush(handle uint64) error {
	if c.flushes == nil {
		c.flushes = make(chan uint64, MaxFlushWaiters)
		c.wg.Go(c.flusher)
	}
	c.s.metrics.flushWaiters.Inc()
	c.export.Gate.add()
	select {
	case c.flushes <- handle:
		return nil
	default:
	}
	if err := c.flushOut(); err != nil {
		c.s.metrics.flushWaiters.Dec()
		c.export.Gate.leave(1)
		return err
	}
	c.flushes <- handle // the flusher takes them until the loop closes the channel
	return nil
}

// flusher answers all that wait with one flush, until the loop closes flushes.
func (c *conn) flusher() {
	var out []byte
	waiting := make([]uint64, 0, 64)
	for handle := range c.flushes {
		waiting = append(waiting[:0], handle)
		for more := true; more && len(waiting) < MaxFlushWaiters; {
			select {
			case h, ok := <-c.flushes:
				if more = ok; ok {
					waiting = append(waiting, h)
				}
			default:
				more = false
			}
		}
		start := time.Now()
		err := c.dev.Flush(c.ctx)
		c.s.metrics.flushed(time.Since(start))
		e := errnoOf(err)
		if err != nil {
			c.log.Error("nbd flush", "volume", c.export.Name, "err", err)
		}
		out = out[:0]
		for _, h := range waiting {
			c.s.metrics.failed(e)
			out = appendSimple(out, h, e)
		}
		c.s.metrics.flushWaiters.Sub(float64(len(waiting)))
		_ = c.writer.write(out) // a failed write has closed the socket; the loop reports it
		c.export.Gate.leave(len(waiting))
	}
}
