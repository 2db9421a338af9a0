package nbd

import (
	"fmt"
	"io"

	"scstore"
)

// minHoleBytes is the shortest hole that is worth a chunk of its own. Being longer
// than any chunk head, it also lets frameRead move data only forward.
const minHoleBytes = scstore.BlockSize

// readHeaderBytes is the room that a READ reply needs before its data.
func (c *conn) readHeaderBytes() int {
	if c.structured {
		return dataHeaderBytes
	}
	return simpleBytes
}

// read answers a READ (steps R1 and R6): in place if the device needs not wait.
func (c *conn) read(req request) error {
	head, n := c.readHeaderBytes(), int(req.length)
	if n > maxInPlace {
		return c.readLarge(req)
	}
	if err := c.room(head + n); err != nil {
		return err
	}
	at := len(c.out)
	b := c.out[at : at+head+n]
	holes, ok, err := c.dev.ReadNowAt(b[head:], int64(req.offset), c.holes[:0])
	c.holes = holes[:0]
	switch {
	case err != nil:
		return c.fail(req, errnoOf(err), err.Error())
	case !ok:
		return c.handOff(job{req: req})
	}
	c.s.metrics.readBytes.Add(float64(n))
	c.out = c.out[:at+c.frameRead(b, req, holes, true)]
	return nil
}

// readLarge answers a READ that does not fit the output buffer.
func (c *conn) readLarge(req request) error {
	if c.structured && req.flags&CmdFlagDF == 0 {
		return c.readPieces(req)
	}
	head, n := c.readHeaderBytes(), int(req.length)
	buf := getBuffer(head + n)
	holes, ok, err := c.dev.ReadNowAt(buf.b[head:head+n], int64(req.offset), c.holes[:0])
	c.holes = holes[:0]
	if err != nil {
		buf.release()
		return c.fail(req, errnoOf(err), err.Error())
	}
	if !ok {
		return c.handOff(job{req: req, buf: buf})
	}
	defer buf.release()
	if err := c.flushOut(); err != nil {
		return err
	}
	c.s.metrics.readBytes.Add(float64(n))
	return c.writer.write(buf.b[:c.frameRead(buf.b[:head+n], req, holes, true)])
}

// readPieces answers a READ by chunks that fit the output buffer: each is sent
// while it is still in the processor's cache, and no large buffer is held. What
// is left when the device would have to wait goes to a worker.
func (c *conn) readPieces(req request) error {
	for {
		n := min(int(req.length), maxInPlace)
		if err := c.room(dataHeaderBytes + n); err != nil {
			return err
		}
		at := len(c.out)
		b := c.out[at : at+dataHeaderBytes+n]
		holes, ok, err := c.dev.ReadNowAt(b[dataHeaderBytes:], int64(req.offset), c.holes[:0])
		c.holes = holes[:0]
		switch {
		case err != nil:
			return c.fail(req, errnoOf(err), err.Error())
		case !ok:
			// The worker sends the last chunk, and that must be the last.
			if err := c.flushOut(); err != nil {
				return err
			}
			return c.handOff(job{req: req})
		}
		c.s.metrics.readBytes.Add(float64(n))
		isLast := n == int(req.length)
		c.out = c.out[:at+c.frameRead(b, req, holes, isLast)]
		if isLast {
			return nil
		}
		req.offset += uint64(n)
		req.length -= uint32(n)
	}
}

// frameRead turns b, whose first readHeaderBytes are free and whose rest is the
// data read, into the reply, or into a part of it unless isLast, and returns its length. Holes become chunks of their
// own where the client allows it; the data behind them moves forward.
func (c *conn) frameRead(b []byte, req request, holes []scstore.Range, isLast bool) int {
	if !c.structured {
		appendSimple(b[:0], req.handle, 0)
		return len(b)
	}
	data := b[dataHeaderBytes:]
	if len(data) == 0 {
		return len(appendChunk(b[:0], chunkFlagDone, chunkNone, req.handle, 0))
	}
	length := 0   // bytes of reply so far
	consumed := 0 // bytes of data that they describe
	emit := func(end int) {
		if end == consumed {
			return
		}
		part := data[consumed:end]
		copy(b[length+dataHeaderBytes:], part)
		h := appendChunk(b[length:length], doneIf(isLast && end == len(data)), chunkData, req.handle, 8+len(part))
		be.AppendUint64(h, req.offset+uint64(consumed))
		length += dataHeaderBytes + len(part)
		consumed = end
	}
	if req.flags&CmdFlagDF == 0 {
		for _, hole := range holes {
			start := int(hole.Offset - int64(req.offset))
			end := start + int(hole.Length)
			if hole.Length < minHoleBytes || start < consumed || end > len(data) {
				continue
			}
			emit(start)
			h := appendChunk(b[length:length], doneIf(isLast && end == len(data)), chunkHole, req.handle, 12)
			h = be.AppendUint64(h, req.offset+uint64(start))
			be.AppendUint32(h, uint32(hole.Length))
			length += holeChunkBytes
			consumed = end
		}
	}
	emit(len(data))
	return length
}

func doneIf(done bool) uint16 {
	if done {
		return chunkFlagDone
	}
	return 0
}

// write carries out a WRITE (step W1).
func (c *conn) write(req request) error {
	n := int(req.length)
	if n > maxInPlace {
		return c.writeLarge(req)
	}
	if err := c.need(n); err != nil {
		return fmt.Errorf("read payload: %w", err)
	}
	ok, err := c.enterGate() // it may have been left to wait for the payload
	if err != nil {
		return err
	}
	if !ok {
		c.r += n
		return c.fail(req, ESHUTDOWN, shuttingDown)
	}
	err = c.dev.WriteAt(c.in[c.r:c.r+n], int64(req.offset))
	c.r += n
	if err == nil {
		c.s.metrics.writtenBytes.Add(float64(n))
	}
	return c.applied(req, err)
}

// writeLarge carries out a WRITE whose payload does not fit the read buffer, in
// chunks that end at block boundaries. After an error the rest is skipped.
func (c *conn) writeLarge(req request) error {
	if err := c.flushOut(); err != nil {
		return err
	}
	off, left := int64(req.offset), int(req.length)
	buf := getBuffer(min(left, MaxWriteChunk))
	defer buf.release()
	for left > 0 {
		n := min(left, MaxWriteChunk-int(off%scstore.BlockSize))
		chunk := buf.b[:n]
		k := copy(chunk, c.in[c.r:c.w])
		c.r += k
		c.leaveGate()
		if _, err := io.ReadFull(c.nc, chunk[k:]); err != nil {
			return fmt.Errorf("read payload: %w", err)
		}
		ok, err := c.enterGate()
		if err != nil {
			return err
		}
		if ok {
			err = c.dev.WriteAt(chunk, off)
		}
		if err != nil || !ok {
			if err := c.skip(left - n); err != nil {
				return err
			}
			if !ok {
				return c.fail(req, ESHUTDOWN, shuttingDown)
			}
			return c.applied(req, err)
		}
		off += int64(n)
		left -= n
	}
	c.s.metrics.writtenBytes.Add(float64(req.length))
	return c.applied(req, nil)
}
