package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"scstore"
)

const (
	dialTimeout = 5 * time.Second
	// abortGrace is how long an import that was broken off waits for the host to
	// say that it has removed what it had.
	abortGrace = 10 * time.Second
	// maxErrorBytes bounds an error's answer.
	maxErrorBytes = 1 << 20
)

// Client is the typed client. Its errors wrap the sentinels that the host's
// errors wrapped, and carry their hints; a host that does not answer is
// ErrUnreachable. Safe for concurrent use.
type Client struct {
	addr Addr
	http *http.Client
	base string
}

// NewClient returns a client of the host at addr. It connects when it is used.
func NewClient(addr Addr) *Client {
	c := &Client{addr: addr, base: "http://scstore"}
	if addr.Network == "tcp" {
		c.base = "http://" + addr.Address
	}
	c.http = &http.Client{Transport: newTransport(addr, nil)}
	return c
}

// newTransport returns a transport to addr. lost, if not nil, is called when a
// connection ends, from any goroutine and maybe more than once.
func newTransport(addr Addr, lost func()) *http.Transport {
	dialer := net.Dialer{Timeout: dialTimeout}
	return &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			conn, err := dialer.DialContext(ctx, addr.Network, addr.Address)
			if err != nil || lost == nil {
				return conn, err
			}
			return &watchedConn{Conn: conn, lost: lost}, nil
		},
		DisableCompression: true,
		WriteBufferSize:    128 << 10,
		ReadBufferSize:     128 << 10,
		MaxIdleConns:       4,
	}
}

// watchedConn says when its other side has gone. The transport notices too, but
// waits for the request's body, which may wait for a person.
type watchedConn struct {
	net.Conn
	lost func()
}

// Read reads, and reports the end.
func (c *watchedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if err != nil {
		c.lost()
	}
	return n, err
}

// Close closes idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Addr returns where the host is.
func (c *Client) Addr() Addr { return c.addr }

// Status returns the host's state.
func (c *Client) Status(ctx context.Context) (Status, error) {
	return call[Status](ctx, c, http.MethodGet, "/v1/status", nil)
}

// NBD returns the exports of the block device door.
func (c *Client) NBD(ctx context.Context) (NBD, error) {
	return call[NBD](ctx, c, http.MethodGet, "/v1/nbd", nil)
}

// List returns the volumes or the images, sorted by name.
func (c *Client) List(ctx context.Context, kind Kind) ([]Volume, error) {
	l, err := call[List](ctx, c, http.MethodGet, "/v1/"+kind.plural(), nil)
	return l.Volumes, err
}

// Get returns one volume or image.
func (c *Client) Get(ctx context.Context, kind Kind, name string) (Volume, error) {
	path, err := namePath(kind, name)
	if err != nil {
		return Volume{}, err
	}
	return call[Volume](ctx, c, http.MethodGet, path, nil)
}

// CreateVolume makes a volume. It is durable when this returns.
func (c *Client) CreateVolume(ctx context.Context, req CreateVolume) (Volume, error) {
	return call[Volume](ctx, c, http.MethodPost, "/v1/volumes", req)
}

// Remove removes a volume or an image. It is durable when this returns.
func (c *Client) Remove(ctx context.Context, kind Kind, name string, o RemoveOptions) (Removal, error) {
	path, err := namePath(kind, name)
	if err != nil {
		return Removal{}, err
	}
	return call[Removal](ctx, c, http.MethodDelete, path+"?"+o.query(), nil)
}

// query encodes the options.
func (o RemoveOptions) query() string {
	q := url.Values{}
	if o.Force {
		q.Set("force", "1")
	}
	if o.DryRun {
		q.Set("dry_run", "1")
	}
	return q.Encode()
}

// Rollback makes a volume what it was at a snapshot: name is VOLUME@SNAPSHOT. It is
// durable when this returns. progress, in bytes, may be nil.
func (c *Client) Rollback(ctx context.Context, name string, o RemoveOptions, progress func(done, total int64)) (Rollback, error) {
	path, err := namePath(KindVolume, name)
	if err != nil {
		return Rollback{}, err
	}
	l, err := c.follow(ctx, http.MethodPost, path+"/rollback?"+o.query(), nil, progress)
	if err != nil {
		return Rollback{}, err
	}
	if l.Rollback == nil {
		return Rollback{}, c.broken(ctx, io.ErrUnexpectedEOF)
	}
	return *l.Rollback, nil
}

// Doctor makes the host check itself. progress, in bytes, may be nil.
func (c *Client) Doctor(ctx context.Context, progress func(done, total int64)) (Report, error) {
	l, err := c.follow(ctx, http.MethodGet, "/v1/doctor", nil, progress)
	if err != nil {
		return Report{}, err
	}
	if l.Report == nil {
		return Report{}, c.broken(ctx, io.ErrUnexpectedEOF)
	}
	return *l.Report, nil
}

// CreateSnapshot names the content of a volume as it is now: name is
// VOLUME@SNAPSHOT. It is durable when this returns. progress, in bytes, may be nil.
func (c *Client) CreateSnapshot(ctx context.Context, name string, progress func(done, total int64)) (Volume, error) {
	path, err := namePath(KindVolume, name)
	if err != nil {
		return Volume{}, err
	}
	l, err := c.follow(ctx, http.MethodPost, path+"/snapshot", nil, progress)
	if err != nil {
		return Volume{}, err
	}
	if l.Volume == nil {
		return Volume{}, c.broken(ctx, io.ErrUnexpectedEOF)
	}
	return *l.Volume, nil
}

// follow calls what answers in lines and returns the last of them.
func (c *Client) follow(ctx context.Context, method, path string, body any, progress func(done, total int64)) (Line, error) {
	r, err := encode(body)
	if err != nil {
		return Line{}, err
	}
	resp, err := c.send(ctx, method, path, r)
	if err != nil {
		return Line{}, err
	}
	defer drainClose(resp.Body)
	for d := json.NewDecoder(resp.Body); ; {
		var l Line
		if err := d.Decode(&l); err != nil {
			return Line{}, c.broken(ctx, err)
		}
		switch {
		case l.Error != nil:
			return Line{}, l.Error.Err()
		case l.Report != nil || l.Volume != nil || l.Rollback != nil || l.Move != nil:
			return l, nil
		case progress != nil:
			progress(l.DoneBytes, l.TotalBytes)
		}
	}
}

// ImportImage makes an image of sizeBytes from what fill writes. If fill fails or
// ctx ends, the host removes what it had, and this waits for it (at most
// abortGrace). The image is durable when this returns without an error; with
// ErrIndeterminate it may exist. fill must return soon after
// its context ends or the stream fails, with that error: both say that the host
// has answered before the end. It is called once, or not at all if the host does
// not answer.
func (c *Client) ImportImage(ctx context.Context, name string, sizeBytes int64, fill func(context.Context, *StreamWriter) error) (Volume, error) {
	path, err := namePath(KindImage, name)
	if err != nil {
		return Volume{}, err
	}
	// The request outlives ctx by the grace, so that the abort frame gets through.
	reqCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	pr, pw := io.Pipe()
	type filled struct {
		done bool // the end frame was sent
		err  error
	}
	result := make(chan filled, 1)
	fillCtx, endFill := context.WithCancelCause(ctx)
	defer endFill(nil)
	go func() {
		done, err := writeStream(fillCtx, pw, sizeBytes, fill)
		if err != nil {
			time.AfterFunc(abortGrace, cancel)
		}
		_ = pw.Close() // it has no error
		result <- filled{done, err}
	}()
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(abortGrace, cancel) })
	defer stop()
	// A connection of its own, whose loss ends the body.
	transport := newTransport(c.addr, func() { _ = pr.CloseWithError(io.ErrClosedPipe) })
	defer transport.CloseIdleConnections()
	own := &Client{addr: c.addr, base: c.base, http: &http.Client{Transport: transport}}
	v, err := decode[Volume](own.send(reqCtx, http.MethodPut, path+"/data", pr))
	// Both end fill, if the host answered before its end.
	_ = pr.CloseWithError(io.ErrClosedPipe)
	endFill(io.ErrClosedPipe)
	sent := <-result
	ended := errors.Is(sent.err, io.ErrClosedPipe) || errors.Is(sent.err, context.Canceled) && err != nil
	switch {
	case sent.err != nil && !ended:
		return Volume{}, sent.err
	case err == nil:
		return v, nil
	case ctx.Err() != nil:
		return Volume{}, fmt.Errorf("import %q: %w", name, context.Cause(ctx))
	case sent.done && errors.Is(err, scstore.ErrUnreachable):
		return Volume{}, scstore.Hint(fmt.Errorf("import %q: the connection broke before the answer: %w", name, scstore.ErrIndeterminate),
			"look with scstore image info %s", name)
	}
	return Volume{}, err
}

// writeStream writes a whole stream to w, or as far as fill comes and then why
// it did not go on. done says that the end frame was written.
func writeStream(ctx context.Context, w io.Writer, sizeBytes int64, fill func(context.Context, *StreamWriter) error) (done bool, err error) {
	s, err := NewStreamWriter(w, sizeBytes)
	if err != nil {
		return false, err
	}
	if err := fill(ctx, s); err != nil {
		_ = s.Abort(err) // where the stream itself failed, so does this
		return false, err
	}
	if ctx.Err() != nil {
		_ = s.Abort(context.Canceled) // the same
		return false, context.Cause(ctx)
	}
	err = s.End()
	return err == nil, err
}

// Export reads a volume or an image. begin is called once with its size in bytes,
// then part with each part in order of offset; what no part covers is zeros. An
// error of either ends the export and is returned.
func (c *Client) Export(ctx context.Context, kind Kind, name string, begin func(sizeBytes int64) error, part func(Frame) error) error {
	path, err := namePath(kind, name)
	if err != nil {
		return err
	}
	resp, err := c.send(ctx, http.MethodGet, path+"/data", nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	in, err := NewStreamReader(resp.Body)
	if err != nil {
		return c.exportError(ctx, name, err)
	}
	if err := begin(in.Size()); err != nil {
		return err
	}
	for {
		f, err := in.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return c.exportError(ctx, name, err)
		}
		if err := part(f); err != nil {
			return err
		}
	}
}

// exportError says what broke an export.
func (c *Client) exportError(ctx context.Context, name string, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("export %q: %w", name, context.Cause(ctx))
	}
	return err
}

// namePath returns the path of a name.
func namePath(kind Kind, name string) (string, error) {
	if name == "" {
		return "", fmt.Errorf("the %s's name is empty: %w", kind, scstore.ErrInvalid)
	}
	return "/v1/" + kind.plural() + "/" + pathSegment(name), nil
}

// pathSegment escapes a name. A segment of dots only would be taken for a relative
// path.
func pathSegment(name string) string {
	segment := url.PathEscape(name)
	if strings.Trim(segment, ".") == "" {
		segment = strings.ReplaceAll(segment, ".", "%2E")
	}
	return segment
}

// call sends a JSON request and reads a JSON answer.
func call[T any](ctx context.Context, c *Client, method, path string, body any) (T, error) {
	r, err := encode(body)
	if err != nil {
		var zero T
		return zero, err
	}
	return decode[T](c.send(ctx, method, path, r))
}

// encode returns a request's JSON body; nil has none.
func encode(body any) (io.Reader, error) {
	if body == nil {
		return nil, nil
	}
	text, err := json.Marshal(body)
	if err != nil {
		return nil, fmt.Errorf("encode the request: %w", err)
	}
	return bytes.NewReader(text), nil
}

// decode reads a JSON answer.
func decode[T any](resp *http.Response, err error) (T, error) {
	var v T
	if err != nil {
		return v, err
	}
	defer drainClose(resp.Body)
	if err := json.NewDecoder(resp.Body).Decode(&v); err != nil {
		return v, fmt.Errorf("read the answer: %v: %w", err, scstore.ErrUnreachable)
	}
	return v, nil
}

// send sends a request; an answer that is no success is returned as its error.
func (c *Client) send(ctx context.Context, method, path string, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, body)
	if err != nil {
		return nil, fmt.Errorf("make the request: %v: %w", err, scstore.ErrInvalid)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.broken(ctx, err)
	}
	if resp.StatusCode < 300 {
		return resp, nil
	}
	defer drainClose(resp.Body)
	var e Error
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxErrorBytes)).Decode(&e); err != nil || e.Code == "" {
		return nil, fmt.Errorf("%s answers %s to %s %s: %w", c.addr, resp.Status, method, path, scstore.ErrInvalid)
	}
	return nil, e.Err()
}

// broken says why there was no answer.
func (c *Client) broken(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if u, ok := errors.AsType[*url.Error](err); ok {
		err = u.Err
	}
	return scstore.Hint(fmt.Errorf("no answer from %s: %v: %w", c.addr, err, scstore.ErrUnreachable),
		"start the host with scstore serve, or name another one with --host or SCSTORE_API")
}

// drainClose reads what is left of an answer, within a bound, so that its
// connection can be used again.
func drainClose(body io.ReadCloser) {
	_, _ = io.CopyN(io.Discard, body, maxErrorBytes) // only an optimization
	_ = body.Close()                                 // nothing was written
}
