package quicnet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"

	"scstore"
)

// writeStep is how much of a write the bandwidth cap decides about at once, in bytes.
const writeStep = 32 << 10

// Kind says what a stream is for. Kinds from 0xff00 on are this package's own.
type Kind uint16

// HandleFunc serves one stream of a peer. The stream is closed when it returns; ctx
// ends with the stream's connection, when the peer cancels the stream, and when the
// Net is closed.
type HandleFunc func(ctx context.Context, from Peer, s *Stream) error

// Handle registers who serves streams of a kind, before Start. An error that a
// handler returns resets the stream, and the peer's Read returns its sentinel.
func (n *Net) Handle(kind Kind, f HandleFunc) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.handlers[kind] = f
}

// Stream is a stream of bytes in both directions between this host and a peer.
//
// Concurrency: one reader and one writer at a time; Cancel and the deadlines at any
// time.
type Stream struct {
	link     *link
	s        *quic.Stream
	class    Class
	accepted bool
	gone     atomic.Bool
}

// OpenStream opens a stream to a peer, making a connection if there is none. The
// peer's handler may refuse it, which the first Read says. ctx limits the opening
// alone. The caller must Close or Cancel what it got.
//
// Errors: ErrUnreachable, ErrBusy (nothing was done; retry); ErrInvalid, ErrFenced,
// ErrVersion and what Options.Allowed answers, if the peer refuses this host.
func (n *Net) OpenStream(ctx context.Context, disk scstore.StoreID, class Class, kind Kind) (*Stream, error) {
	return n.open(ctx, disk, header{kind: kind, class: class}, nil)
}

// open opens a stream and sends what is to come first with its header. It tries
// again while the connections that it finds were closed a moment ago.
func (n *Net) open(ctx context.Context, disk scstore.StoreID, h header, first []byte) (*Stream, error) {
	if !h.class.Valid() {
		return nil, fmt.Errorf("open a stream of %s: %w", h.class, scstore.ErrInvalid)
	}
	p, err := n.peer(disk)
	if err != nil {
		return nil, err
	}
	for range maxTries {
		var l *link
		if l, err = p.link(ctx, h.class); err != nil {
			return nil, err
		}
		var s *Stream
		if s, err = l.open(ctx, h, first); err == nil {
			return s, nil
		}
		if !unhandled(err) {
			break
		}
	}
	return nil, err
}

// open opens a stream on the link, which counts it already.
func (l *link) open(ctx context.Context, h header, first []byte) (*Stream, error) {
	raw, err := l.conn.OpenStreamSync(ctx)
	if err != nil {
		if ctx.Err() == nil { // the connection has ended, though its own context may not have yet
			l.peer.lose(l)
		}
		l.leave(false)
		return nil, notSent(fmt.Errorf("open a stream to %s: %w", l.who.Host, translate(err)))
	}
	s := &Stream{link: l, s: raw, class: h.class}
	s.prioritize()
	l.n.metrics.streams[h.class].Inc()
	if len(first) == 0 {
		_, err = raw.Write(h.appendTo(nil))
	} else {
		_, err = s.Write(append(h.appendTo(make([]byte, 0, len(first)+2*headerBytes)), first...))
	}
	if reset := (*quic.StreamError)(nil); h.request && errors.As(err, &reset) && reset.Remote {
		return s, nil // the peer has answered without reading on
	}
	if err != nil {
		s.Cancel(scstore.ErrClosed)
		return nil, &sentError{fmt.Errorf("send to %s: %w", l.who.Host, translate(err))}
	}
	return s, nil
}

// sentError is an error from when a part of the stream may have been sent.
type sentError struct{ err error }

// Error returns the cause's text.
func (e *sentError) Error() string { return e.err.Error() }

// Unwrap returns the cause.
func (e *sentError) Unwrap() error { return e.err }

// prioritize tells the library how urgent what this end sends is.
func (s *Stream) prioritize() { s.s.SetPriority(classes[s.class].urgency, true) }

// Peer returns who is at the other end, as its certificate says.
func (s *Stream) Peer() Peer { return s.link.who }

// Class returns the stream's class.
func (s *Stream) Class() Class { return s.class }

// Read reads what the peer sent; io.EOF after its CloseWrite. Errors: the peer's
// sentinel if it cancelled; ErrUnreachable; os.ErrDeadlineExceeded.
func (s *Stream) Read(b []byte) (int, error) {
	got, err := s.s.Read(b)
	s.link.n.metrics.received[s.class].Add(float64(got))
	if err != nil && !errors.Is(err, io.EOF) {
		err = fmt.Errorf("read from %s: %w", s.link.who.Host, translate(err))
	}
	return got, err
}

// Write sends b. It waits for the peer's windows and, in the capped classes, for the
// bandwidth cap. What it accepted may still be lost: only an answer tells. Errors: as
// Read.
func (s *Stream) Write(b []byte) (int, error) {
	sent := 0
	for sent < len(b) {
		step := b[sent:min(len(b), sent+writeStep)]
		if err := s.pace(len(step)); err != nil {
			return sent, fmt.Errorf("write to %s: %w", s.link.who.Host, translate(err))
		}
		wrote, err := s.s.Write(step)
		sent += wrote
		s.link.n.metrics.sent[s.class].Add(float64(wrote))
		if err != nil {
			return sent, fmt.Errorf("write to %s: %w", s.link.who.Host, translate(err))
		}
	}
	return sent, nil
}

// pace takes n bytes from the link's cap: the capped classes wait until there are as
// many, the others take them in advance, so that the capped ones make room.
func (s *Stream) pace(n int) error {
	limiter := s.link.peer.limiter
	switch {
	case limiter == nil:
		return nil
	case !classes[s.class].capped:
		limiter.ReserveN(time.Now(), n)
		return nil
	}
	if err := limiter.WaitN(s.s.Context(), n); err != nil {
		return fmt.Errorf("%v: %w", err, scstore.ErrClosed)
	}
	return nil
}

// SetDeadline limits the reads and writes that follow or wait; zero means none.
func (s *Stream) SetDeadline(t time.Time) error { return translate(s.s.SetDeadline(t)) }

// CloseWrite says that nothing more will be written. Errors: ErrClosed after Cancel.
func (s *Stream) CloseWrite() error { return translate(s.s.Close()) }

// Close ends the stream: what was written still goes, what was not read is lost. It
// may be called again, and after Cancel. Errors: ErrUnreachable if the peer or the
// connection ended it first.
func (s *Stream) Close() error {
	if !s.release() {
		return nil
	}
	err := s.s.Close()
	s.s.CancelRead(0)
	return translate(err)
}

// Refuse records that what the peer sent is refused with err, for a handler that
// answers with the reason in its own words and returns no error.
func (s *Stream) Refuse(err error) { s.link.n.door.refusedStream(s.link.who, err) }

// Cancel gives the stream up: the peer's reads and writes fail with err's sentinel,
// this end's waiting ones with ErrClosed.
func (s *Stream) Cancel(err error) {
	cancelStream(s.s, err)
	s.release()
}

// release counts the stream as gone; false if it was.
func (s *Stream) release() bool {
	if s.gone.Swap(true) {
		return false
	}
	s.link.leave(s.accepted)
	return true
}

// handle serves one stream of the peer.
func (l *link) handle(raw *quic.Stream) {
	s := &Stream{link: l, s: raw, class: ClassRepair, accepted: true}
	if err := l.n.route(s); err != nil {
		l.n.door.refusedStream(l.who, err)
		l.n.log.Debug("stream failed", "peer", l.who.Host, "err", err)
		s.Cancel(err)
		return
	}
	_ = s.Close() // the peer that cancelled meanwhile knows
}

// noHeader says why a stream is refused that ended, or went on for too long, before
// its header did.
func noHeader(err error) error {
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return refuseStream(reasonMalformed, fmt.Errorf("no stream header: %w", err))
	case timedOut(err) && !errors.Is(err, scstore.ErrUnreachable): // not the connection
		return refuseStream(reasonTimeout, fmt.Errorf("no stream header within %v: %w", HeaderTimeout, err))
	}
	return err
}

// route reads a stream's header and hands it to who serves its kind.
func (n *Net) route(s *Stream) error {
	if err := s.SetDeadline(time.Now().Add(HeaderTimeout)); err != nil {
		return err
	}
	b, err := ReadFrame(s.s, headerBytes)
	if err != nil {
		return noHeader(translate(err))
	}
	h, err := parseHeader(b)
	if err != nil {
		return err
	}
	s.class = h.class
	s.prioritize()
	if h.request {
		return n.answer(s, h.kind)
	}
	n.mu.Lock()
	f := n.handlers[h.kind]
	n.mu.Unlock()
	if f == nil {
		return refuseStream(reasonKind, fmt.Errorf("no streams of kind %d here: %w", h.kind, scstore.ErrNotFound))
	}
	if err := s.SetDeadline(time.Time{}); err != nil {
		return err
	}
	return f(s.s.Context(), s.link.who, s)
}
