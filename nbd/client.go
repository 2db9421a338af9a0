package nbd

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"scstore"
)

// The client's defaults and limits.
const (
	DefaultDialTimeout = 10 * time.Second // connect and handshake
	DefaultMaxInFlight = 256              // requests of one client
	MaxMaxInFlight     = 1 << 14

	clientBuffer = 256 << 10
	copyPayload  = 64 << 10 // shorter payload is copied behind its header, longer sent as it is
	rangeStep    = 1 << 30  // bytes of one TRIM, WRITE_ZEROES or BLOCK_STATUS
)

// DialOptions configure a client. Zero values mean the defaults above.
type DialOptions struct {
	Timeout       time.Duration
	MaxInFlight   int  // Submit waits beyond it
	SimpleReplies bool // do not ask for structured replies: no holes, no BlockStatus
}

// Request is one request of a client, for Submit. The fields but the results are
// set by the caller and must not be touched until Done was called.
type Request struct {
	Cmd    Command
	Flags  CommandFlags
	Offset int64  // bytes
	Length uint32 // bytes; READ and WRITE take len(Data) instead
	Data   []byte // READ: is filled; WRITE: is sent
	// Done is called once, on the client's receiving goroutine: it must not
	// block, nor call Submit.
	Done func(*Request)

	Err    error           // result
	Ranges []scstore.Range // result, appended: the holes of a READ, the extents of a BLOCK_STATUS

	handle uint64
	reply  replyState
	wake   chan struct{} // of Do; has room for one
}

// Client is one connection to an export. All methods are safe for concurrent use,
// and any number of requests may be in flight, up to DialOptions.MaxInFlight.
//
// When the connection ends, requests in flight fail; those of the write class with
// ErrIndeterminate, since the server may have carried them out.
type Client struct {
	nc   net.Conn
	info handshakeInfo

	free chan uint32   // slots without a request
	done chan struct{} // closed when the receiver has ended

	sendMu sync.Mutex // held while requests are encoded and sent
	wbuf   []byte

	mu    sync.Mutex // guards what follows
	slots []slot
	err   error // why the connection ended; sticky
}

// slot holds a request in flight. Its number and generation make the handle, so
// that a reply to a request that is gone names nothing.
type slot struct {
	generation uint32
	r          *Request
}

// Dial connects to the export that url names and negotiates structured replies
// and base:allocation where the server has them.
// Errors: ErrInvalid (the URL), ErrNotFound (the export), ErrUnreachable.
func Dial(ctx context.Context, url string, o DialOptions) (*Client, error) {
	nc, a, err := connect(ctx, url, &o)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = nc.Close() })
	h := &clientHandshake{nc: nc, br: bufio.NewReaderSize(nc, clientBuffer)}
	info, err := h.open(a.Export, !o.SimpleReplies)
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err == nil {
		err = nc.SetDeadline(time.Time{})
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("dial %s: %w", url, err), nc.Close())
	}
	c := &Client{
		nc: nc, info: info,
		free:  make(chan uint32, o.MaxInFlight),
		slots: make([]slot, o.MaxInFlight),
		done:  make(chan struct{}),
		wbuf:  make([]byte, 0, clientBuffer),
	}
	for i := range c.slots {
		c.free <- uint32(i)
	}
	go c.receive(h.br)
	return c, nil
}

// List returns the exports that the server at url tells of; the name in url is
// ignored. Errors as of Dial.
func List(ctx context.Context, url string, o DialOptions) ([]ExportInfo, error) {
	nc, _, err := connect(ctx, url, &o)
	if err != nil {
		return nil, err
	}
	defer func() { _ = nc.Close() }() // nothing is left to say
	defer context.AfterFunc(ctx, func() { _ = nc.Close() })()
	h := &clientHandshake{nc: nc, br: bufio.NewReader(nc)}
	exports, err := h.list()
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", url, err)
	}
	return exports, nil
}

func connect(ctx context.Context, url string, o *DialOptions) (net.Conn, Address, error) {
	if o.Timeout <= 0 {
		o.Timeout = DefaultDialTimeout
	}
	if o.MaxInFlight <= 0 {
		o.MaxInFlight = DefaultMaxInFlight
	}
	o.MaxInFlight = min(o.MaxInFlight, MaxMaxInFlight)
	a, err := ParseURL(url)
	if err != nil {
		return nil, a, err
	}
	deadline := time.Now().Add(o.Timeout)
	d := net.Dialer{Deadline: deadline}
	nc, err := d.DialContext(ctx, a.Network, a.Addr)
	if err != nil {
		return nil, a, fmt.Errorf("dial %s: %w: %w", url, err, scstore.ErrUnreachable)
	}
	if u, ok := nc.(*net.UnixConn); ok {
		_ = u.SetWriteBuffer(socketBuffer) // a wish: smaller works too
	}
	return nc, a, nc.SetDeadline(deadline)
}

// Size is the export's size, in bytes.
func (c *Client) Size() int64 { return c.info.size }

// Flags are the export's transmission flags.
func (c *Client) Flags() TransmissionFlags { return c.info.flags }

// ReadOnly reports whether the server refuses writes.
func (c *Client) ReadOnly() bool { return c.info.flags&FlagReadOnly != 0 }

// Name and Description are what the server calls the export; either may be empty.
func (c *Client) Name() string { return c.info.name }

// Description is the server's line for people; it may be empty.
func (c *Client) Description() string { return c.info.description }

// BlockSizes are the minimum, preferred and maximum length of a request, in bytes.
func (c *Client) BlockSizes() (minimum, preferred, maximum uint32) {
	return c.info.blockMin, c.info.blockPreferred, c.info.blockMax
}

// HasStatus reports whether BlockStatus works here.
func (c *Client) HasStatus() bool { return c.info.hasContext }

// Err is why the connection ended, or nil while it stands.
func (c *Client) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Close tells the server to disconnect and ends the connection. Requests in
// flight fail with ErrClosed. It is idempotent.
func (c *Client) Close() error {
	disc := request{cmd: CmdDisconnect}.appendTo(nil)
	if c.fail(fmt.Errorf("nbd client: %w", scstore.ErrClosed)) && c.sendMu.TryLock() {
		// Nobody is within a message. A socket that takes no 28 bytes at once
		// has a peer that would not read them either.
		_ = c.nc.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
		_, _ = c.nc.Write(disc) // the peer may be gone: so are we
		c.sendMu.Unlock()
	}
	err := c.nc.Close()
	<-c.done
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// fail records why the connection ends; first is false if it had ended before.
func (c *Client) fail(err error) (first bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return false
	}
	c.err = err
	return true
}

// Submit sends requests with as few system calls as it can and does not wait for
// replies: Done is called for each. It waits while MaxInFlight requests are in
// flight. An error means that the connection has ended; Done has then been, or
// will be, called for every request all the same.
func (c *Client) Submit(rs ...*Request) error {
	c.sendMu.Lock()
	defer c.sendMu.Unlock()
	var err error
	for _, r := range rs {
		if err != nil {
			c.complete(r, err)
			continue
		}
		err = c.enqueue(r)
	}
	if err == nil {
		err = c.send(nil)
	}
	return err
}

// enqueue checks r, gives it a slot and encodes it. sendMu is held.
func (c *Client) enqueue(r *Request) error {
	r.Err, r.reply = nil, replyState{}
	length, err := c.lengthOf(r)
	if err != nil {
		c.complete(r, err)
		return nil // the connection is well
	}
	var i uint32
	select {
	case i = <-c.free:
	default:
		if err := c.send(nil); err != nil {
			c.complete(r, err)
			return err
		}
		select {
		case i = <-c.free:
		case <-c.done:
			c.complete(r, c.Err())
			return c.Err()
		}
	}
	c.mu.Lock()
	if err := c.err; err != nil {
		c.mu.Unlock()
		c.free <- i
		c.complete(r, err)
		return err
	}
	s := &c.slots[i]
	s.generation++
	s.r = r
	r.handle = uint64(s.generation)<<32 | uint64(i)
	c.mu.Unlock()

	c.wbuf = request{flags: r.Flags, cmd: r.Cmd, handle: r.handle, offset: uint64(r.Offset), length: length}.appendTo(c.wbuf)
	switch {
	case r.Cmd == CmdWrite && len(r.Data) > copyPayload:
		return c.send(r.Data)
	case r.Cmd == CmdWrite:
		c.wbuf = append(c.wbuf, r.Data...)
	}
	if len(c.wbuf) > clientBuffer-copyPayload-requestBytes {
		return c.send(nil)
	}
	return nil
}

// lengthOf returns the length to send, or why the request can not be sent.
func (c *Client) lengthOf(r *Request) (uint32, error) {
	length := int64(r.Length)
	switch r.Cmd {
	case CmdRead, CmdWrite:
		if length = int64(len(r.Data)); length > int64(c.info.blockMax) {
			return 0, fmt.Errorf("%s of %d bytes, at most %d: %w", r.Cmd, length, c.info.blockMax, scstore.ErrInvalid)
		}
	case CmdBlockStatus:
		if !c.HasStatus() {
			return 0, fmt.Errorf("block status was not negotiated: %w", scstore.ErrInvalid)
		}
	case CmdFlush, CmdTrim, CmdCache, CmdWriteZeroes:
	case CmdDisconnect:
		return 0, fmt.Errorf("disconnect by Close: %w", scstore.ErrInvalid)
	default:
		return 0, fmt.Errorf("command %d: %w", r.Cmd, scstore.ErrInvalid)
	}
	if r.Offset < 0 {
		return 0, fmt.Errorf("%s at %d: %w", r.Cmd, r.Offset, scstore.ErrInvalid)
	}
	return uint32(length), nil
}

// send writes what is encoded, and then payload. sendMu is held.
func (c *Client) send(payload []byte) error {
	if len(c.wbuf) == 0 {
		return nil
	}
	var err error
	if payload == nil {
		_, err = c.nc.Write(c.wbuf)
	} else {
		_, err = (&net.Buffers{c.wbuf, payload}).WriteTo(c.nc)
	}
	c.wbuf = c.wbuf[:0]
	if err != nil {
		c.fail(fmt.Errorf("send requests: %w: %w", err, scstore.ErrUnreachable))
		_ = c.nc.Close() // wakes the receiver, which fails what is in flight
		return c.Err()
	}
	return nil
}

// complete hands r back to its owner.
func (c *Client) complete(r *Request, err error) {
	r.Err = err
	if r.wake != nil {
		r.wake <- struct{}{}
		return
	}
	if r.Done != nil {
		r.Done(r)
	}
}

// lookup returns the request in flight that a handle names, or nil.
func (c *Client) lookup(handle uint64) *Request {
	i := uint32(handle)
	c.mu.Lock()
	defer c.mu.Unlock()
	if uint64(i) >= uint64(len(c.slots)) || c.slots[i].r == nil || c.slots[i].r.handle != handle {
		return nil
	}
	return c.slots[i].r
}

// finished frees the slot of r and completes it.
func (c *Client) finished(r *Request, err error) {
	i := uint32(r.handle)
	c.mu.Lock()
	c.slots[i].r = nil
	c.mu.Unlock()
	c.free <- i
	c.complete(r, err)
}

// receive reads replies until the connection ends; then it fails what is left.
func (c *Client) receive(br *bufio.Reader) {
	d := replyDecoder{br: br, lookup: c.lookup, finished: c.finished, structured: c.info.structured, contextID: c.info.contextID}
	var err error
	for err == nil {
		err = d.next()
	}
	c.fail(fmt.Errorf("receive replies: %w: %w", err, scstore.ErrUnreachable))
	_ = c.nc.Close() // whoever sends notices
	err = c.Err()
	c.mu.Lock()
	var left []*Request
	for i := range c.slots {
		if r := c.slots[i].r; r != nil {
			left = append(left, r)
			c.slots[i].r = nil
		}
	}
	c.mu.Unlock()
	for _, r := range left {
		switch r.Cmd {
		case CmdWrite, CmdTrim, CmdWriteZeroes, CmdFlush:
			c.complete(r, fmt.Errorf("%s in flight: %w: %w", r.Cmd, err, scstore.ErrIndeterminate))
		default:
			c.complete(r, err)
		}
	}
	close(c.done)
}
