package nbd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"scstore"
)

const (
	readBufferBytes = 256 << 10 // requests, and payload that is written in place
	outBufferBytes  = 256 << 10 // replies, and payload that is read in place
	maxInPlace      = 128 << 10 // payload up to this is handled within those two; longer READs are answered in such pieces
	socketBuffer    = 1 << 20   // asked of the kernel for unix sockets, where it does not tune itself

	// MaxWriteChunk is the most that one Device.WriteAt is given, in bytes; a
	// longer WRITE is applied in chunks that end at block boundaries.
	MaxWriteChunk = 1 << 20
)

// shuttingDown is the message that goes with ESHUTDOWN.
const shuttingDown = "server is shutting down"

// errDisconnect ends a connection as the client asked.
var errDisconnect = errors.New("disconnect requested")

// isDisconnect reports whether err is only the peer's going away.
func isDisconnect(err error) bool {
	return errors.Is(err, errDisconnect) || errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, io.ErrClosedPipe) ||
		errors.Is(err, os.ErrDeadlineExceeded)
}

// conn is one connection. Its loop owns every field but those marked shared.
type conn struct {
	s   *Server
	nc  net.Conn
	ctx context.Context // shared: ends when the connection must be cut off
	log *slog.Logger

	in []byte // the read buffer; in[r:w] is received and not yet consumed
	r  int
	w  int

	// Negotiated; constant in the transmission phase, then shared.
	noZeroes   bool
	structured bool
	allocation bool // base:allocation was selected
	export     Export
	open       bool        // export is to be closed
	inside     bool        // export.Gate counts the loop in
	keep       func() bool // ends the watch over export.Revoked; may be nil
	requested  string      // the name that it was opened by
	contextOf  string      // the export that base:allocation was selected for
	dev        Device
	size       int64
	readOnly   bool

	out     []byte          // replies not yet sent
	acks    []int           // offsets in out of replies that wait for a publish
	dirty   bool            // something was written since the last publish
	holes   []scstore.Range // scratch
	writer  writer          // shared
	jobs    chan job        // to workers
	flushes chan uint64     // handles that wait for the flusher; nil before the first
	workers int
	wg      sync.WaitGroup
	held    atomic.Int64 // shared: payload bytes that workers hold

	draining atomic.Bool   // shared: the server ends
	drained  chan struct{} // closed when draining is set
	mu       sync.Mutex    // guards the read deadline against drain
}

// newConn prepares a connection; it takes no resources but memory.
func newConn(s *Server, nc net.Conn, hard context.Context, log *slog.Logger) *conn { //nolint:revive // hard is not the call's context but the one that ends the connection
	if u, ok := nc.(*net.UnixConn); ok {
		_ = u.SetWriteBuffer(socketBuffer) // a wish: smaller works too
	}
	return &conn{
		s: s, nc: nc, ctx: hard, log: log,
		in:     make([]byte, readBufferBytes),
		out:    make([]byte, 0, outBufferBytes),
		writer: writer{nc: nc, sent: s.metrics.replyWrites}, drained: make(chan struct{}),
	}
}

// drain makes the loop answer ESHUTDOWN for a short time and then end. It runs
// on a goroutine of its own, when the server ends.
func (c *conn) drain() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.draining.Swap(true) {
		close(c.drained)
	}
	_ = c.nc.SetReadDeadline(time.Now().Add(c.s.o.ShutdownGrace))
}

// clearDeadline ends the handshake's time limit, unless the server ends.
func (c *conn) clearDeadline() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.draining.Load() {
		_ = c.nc.SetReadDeadline(time.Time{})
	}
}

// need makes n bytes available at in[r:]; they stay there until the next need.
// It sends what is in the output buffer before it waits. Precondition: n <= len(in).
func (c *conn) need(n int) error {
	if c.w-c.r >= n {
		return nil
	}
	if err := c.flushOut(); err != nil {
		return err
	}
	c.leaveGate()
	if c.r == c.w {
		c.r, c.w = 0, 0
	} else if len(c.in)-c.r < n || c.r >= len(c.in)/2 {
		c.w = copy(c.in, c.in[c.r:c.w])
		c.r = 0
	}
	for c.w-c.r < n {
		k, err := c.nc.Read(c.in[c.w:])
		c.w += k
		if err != nil && c.w-c.r < n {
			if errors.Is(err, io.EOF) && c.w > c.r {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
	}
	return nil
}

// transmit is the transmission phase: it returns when the connection has ended,
// after every request in progress was answered or could not be, and the export
// was closed.
func (c *conn) transmit() (err error) {
	defer func() {
		err = errors.Join(err, c.flushOut())
		c.leaveGate()
		if c.jobs != nil {
			close(c.jobs)
		}
		if c.flushes != nil {
			close(c.flushes)
		}
		c.wg.Wait()
		c.closeExport()
	}()
	for {
		if err := c.need(requestBytes); err != nil {
			return err
		}
		req, err := parseRequest(c.in[c.r:c.w])
		if err != nil {
			return fmt.Errorf("read request: %w", err)
		}
		c.r += requestBytes
		if err := c.handle(req); err != nil {
			return err
		}
	}
}

// closeExport gives the export back, once.
func (c *conn) closeExport() {
	if !c.open {
		return
	}
	c.open = false
	if c.keep != nil {
		c.keep()
		c.keep = nil
	}
	if c.export.Close == nil {
		return
	}
	if err := c.export.Close(); err != nil {
		c.log.Error("nbd export close", "volume", c.export.Name, "err", err)
	}
}

// allowedFlags are the flags that each command may carry. FUA is legal on all.
var allowedFlags = [commandCount]CommandFlags{
	CmdRead:        CmdFlagFUA | CmdFlagDF,
	CmdWrite:       CmdFlagFUA,
	CmdDisconnect:  ^CommandFlags(0),
	CmdFlush:       CmdFlagFUA,
	CmdTrim:        CmdFlagFUA,
	CmdCache:       CmdFlagFUA,
	CmdWriteZeroes: CmdFlagFUA | CmdFlagNoHole | CmdFlagFastZero,
	CmdBlockStatus: CmdFlagFUA | CmdFlagReqOne,
}

// handle carries out one request or hands it off. An error ends the connection.
func (c *conn) handle(req request) error {
	if req.cmd != CmdDisconnect {
		if _, err := c.enterGate(); err != nil { // if the connection ends, check says so
			return err
		}
	}
	if req.cmd >= commandCount {
		return c.fail(req, EINVAL, "unknown command")
	}
	c.s.metrics.requests[req.cmd].Inc()
	if req.cmd == CmdDisconnect {
		return errDisconnect
	}
	if req.cmd == CmdWrite && req.length > MaxPayload {
		return fmt.Errorf("write of %d bytes, at most %d: %w", req.length, MaxPayload, errProtocol)
	}
	if e, message := c.check(req); e != 0 {
		if req.cmd == CmdWrite {
			if err := c.skip(int(req.length)); err != nil {
				return err
			}
		}
		return c.fail(req, e, message)
	}
	switch req.cmd {
	case CmdRead:
		return c.read(req)
	case CmdWrite:
		return c.write(req)
	case CmdFlush:
		return c.flush(req.handle)
	case CmdTrim:
		return c.applied(req, c.dev.Discard(int64(req.offset), int64(req.length)))
	case CmdWriteZeroes:
		// Zeroes are metadata for every device here, so FAST_ZERO always holds.
		return c.applied(req, c.dev.Zero(int64(req.offset), int64(req.length), req.flags&CmdFlagNoHole != 0))
	case CmdCache, CmdBlockStatus:
		return c.handOff(job{req: req})
	default: // not a request, or one that we do not know
	}
	return c.fail(req, EINVAL, "unknown command")
}

// check returns why a request can not be carried out.
func (c *conn) check(req request) (e Errno, message string) {
	isWrite := req.cmd == CmdWrite || req.cmd == CmdWriteZeroes || req.cmd == CmdTrim
	switch {
	case c.draining.Load():
		return ESHUTDOWN, shuttingDown
	case req.flags&^allowedFlags[req.cmd] != 0, req.flags&CmdFlagDF != 0 && !c.structured:
		return EINVAL, "flag not allowed for this command"
	case req.cmd == CmdFlush:
		return 0, "" // offset and length are reserved
	case isWrite && c.readOnly:
		return EPERM, "export is read-only"
	case req.offset > uint64(c.size) || uint64(req.length) > uint64(c.size)-req.offset:
		if req.cmd == CmdWrite || req.cmd == CmdWriteZeroes {
			return ENOSPC, "beyond the end of the export"
		}
		return EINVAL, "beyond the end of the export"
	case req.cmd == CmdRead && req.length > MaxPayload:
		return EINVAL, "longer than the maximum block size"
	case req.cmd == CmdBlockStatus && !c.allocation:
		return EINVAL, "no metadata context was negotiated"
	case req.cmd == CmdBlockStatus && req.length == 0:
		return EINVAL, "empty range"
	}
	return 0, ""
}

// fail queues an error reply.
func (c *conn) fail(req request, e Errno, message string) error {
	c.s.metrics.failed(e)
	if err := c.room(chunkBytes + 6 + MaxErrorMessage); err != nil {
		return err
	}
	c.out = c.appendFailure(c.out, req, e, message)
	return nil
}

// appendFailure encodes an error reply: structured where the protocol demands it.
func (c *conn) appendFailure(b []byte, req request, e Errno, message string) []byte {
	if c.structured && (req.cmd == CmdRead || req.cmd == CmdBlockStatus) {
		return appendError(b, req.handle, e, message)
	}
	return appendSimple(b, req.handle, e)
}

// room makes n bytes free in the output buffer. Precondition: n <= outBufferBytes.
func (c *conn) room(n int) error {
	if cap(c.out)-len(c.out) >= n {
		return nil
	}
	return c.flushOut()
}

// flushOut publishes what was written since the last time and sends the output
// buffer (invariant I1).
func (c *conn) flushOut() error {
	if c.dirty {
		c.dirty = false
		c.s.metrics.publishes.Inc()
		if err := c.dev.Publish(); err != nil {
			c.log.Error("nbd publish", "volume", c.export.Name, "err", err)
			e := errnoOf(err)
			for _, at := range c.acks {
				be.PutUint32(c.out[at+4:], uint32(e))
				c.s.metrics.failed(e)
			}
		}
		c.acks = c.acks[:0]
	}
	if len(c.out) == 0 {
		return nil
	}
	err := c.writer.write(c.out)
	c.out = c.out[:0]
	return err
}

// applied finishes a write-class request that was applied, or not.
func (c *conn) applied(req request, err error) error {
	if err != nil {
		return c.fail(req, errnoOf(err), err.Error())
	}
	if req.flags&CmdFlagFUA != 0 {
		return c.flush(req.handle)
	}
	if err := c.room(simpleBytes); err != nil {
		return err
	}
	c.dirty = true
	c.acks = append(c.acks, len(c.out))
	c.out = appendSimple(c.out, req.handle, 0)
	return nil
}

// skip consumes n bytes of payload.
func (c *conn) skip(n int) error {
	for n > 0 {
		if err := c.need(1); err != nil {
			return err
		}
		k := min(n, c.w-c.r)
		c.r += k
		n -= k
	}
	return nil
}

// writer sends whole replies of one connection; safe for concurrent use. The
// first error is kept, and closes the socket so that the loop ends too.
type writer struct {
	nc   net.Conn
	sent interface{ Inc() }

	mu  sync.Mutex // held while writing: replies must not mix
	err error
}

// write sends b.
func (w *writer) write(b []byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil {
		return w.err
	}
	w.sent.Inc()
	if _, err := w.nc.Write(b); err != nil {
		w.err = fmt.Errorf("send replies: %w", err)
		_ = w.nc.Close()
		return w.err
	}
	return nil
}
