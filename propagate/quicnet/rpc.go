package quicnet

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"scstore"
)

// AnswerFunc answers one request of a peer. ctx ends as a HandleFunc's does. The
// answer has at most MaxFrameBytes-2 bytes. The request's bytes are the callee's.
type AnswerFunc func(ctx context.Context, from Peer, request []byte) ([]byte, error)

// Answer registers who answers requests of a kind, before Start. An error's sentinel
// and text reach who asked.
func (n *Net) Answer(kind Kind, f AnswerFunc) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.answers[kind] = f
}

// maxTries bounds how often a request is sent that the peer is known not to have
// looked at: each link of the pool may have been closed a moment ago.
const maxTries = MaxBulk + 2

// Request asks a peer and returns its answer. payload has at most MaxFrameBytes.
//
// Errors: a *RemoteError with the sentinel that the peer's AnswerFunc returned;
// ErrUnreachable and ErrBusy if nothing was done there (retry); ErrIndeterminate if
// the answer did not come, when the request may have been carried out; ErrInvalid.
// Concurrency: any number at once.
func (n *Net) Request(ctx context.Context, disk scstore.StoreID, class Class, kind Kind, payload []byte) ([]byte, error) {
	if len(payload) > MaxFrameBytes {
		return nil, fmt.Errorf("request of %d bytes, more than %d: %w", len(payload), MaxFrameBytes, scstore.ErrInvalid)
	}
	frame := append(binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(payload)), uint32(len(payload))), payload...)
	var err error
	for range maxTries {
		var answer []byte
		answer, err = n.request(ctx, disk, header{kind: kind, class: class, request: true}, frame)
		if err == nil {
			return answer, nil
		}
		var remote *RemoteError
		if errors.As(err, &remote) {
			return nil, err
		}
		if !unhandledRequest(err) {
			break
		}
	}
	return nil, err
}

// unhandledRequest reports whether to send a request again.
func unhandledRequest(err error) bool {
	var lost *lostError
	return errors.As(err, &lost) && lost.unhandled
}

// lostError is a request without an answer.
type lostError struct {
	err       error
	unhandled bool // the peer did not look at it
	sentinel  error
}

// Error returns the cause's text.
func (e *lostError) Error() string { return e.err.Error() }

// Unwrap returns what is known of the outcome.
func (e *lostError) Unwrap() error { return e.sentinel }

// request sends one request and reads its answer.
func (n *Net) request(ctx context.Context, disk scstore.StoreID, h header, frame []byte) ([]byte, error) {
	s, err := n.open(ctx, disk, h, frame)
	if err != nil {
		var sent *sentError
		if errors.As(err, &sent) {
			return nil, lost(ctx, sent.err)
		}
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { s.Cancel(scstore.ErrClosed) })
	defer stop()
	_ = s.s.Close() // a peer that was quick may have closed it, and its answer is here
	b, err := ReadFrame(s.s, MaxFrameBytes)
	if err != nil {
		s.Cancel(scstore.ErrClosed)
		return nil, lost(ctx, err)
	}
	n.metrics.received[h.class].Add(float64(len(b)))
	_ = s.Close() // the answer is here
	answer, remote, err := parseReply(b)
	if err != nil {
		return nil, err
	}
	if remote != nil {
		return nil, fmt.Errorf("%s: %w", s.Peer().Host, remote)
	}
	return answer, nil
}

// lost says what is known of a request after which the connection failed.
func lost(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return &lostError{err: fmt.Errorf("no answer: %w", cause), sentinel: errors.Join(scstore.ErrIndeterminate, cause)}
	}
	if unhandled(err) {
		return &lostError{err: fmt.Errorf("no answer: %w", translate(err)), unhandled: true, sentinel: scstore.ErrUnreachable}
	}
	if known := translate(err); errors.Is(known, scstore.ErrBusy) {
		return &lostError{err: known, sentinel: scstore.ErrBusy}
	}
	return &lostError{err: fmt.Errorf("no answer: %w", translate(err)), sentinel: scstore.ErrIndeterminate}
}

// answer reads a request's payload, has it answered and sends the answer.
func (n *Net) answer(s *Stream, kind Kind) error {
	n.mu.Lock()
	f := n.answers[kind]
	n.mu.Unlock()
	if f == nil {
		err := refuseStream(reasonKind, fmt.Errorf("no requests of kind %d here: %w", kind, scstore.ErrNotFound))
		s.Refuse(err)
		return n.reply(s, nil, err)
	}
	length, err := readLength(s.s, MaxFrameBytes)
	if err != nil {
		return translate(err)
	}
	p := s.link.peer
	if !p.requests.TryAcquire(int64(length)) {
		return fmt.Errorf("requests of %s hold %d bytes: %w", s.link.who.Host, MaxRequestBytesPerPeer, scstore.ErrBusy)
	}
	defer p.requests.Release(int64(length))
	if err := s.SetDeadline(time.Now().Add(PayloadTimeout)); err != nil {
		return err
	}
	payload, err := readBody(s.s, length)
	if err != nil {
		return translate(err)
	}
	n.metrics.received[s.class].Add(float64(length))
	if err := s.SetDeadline(time.Time{}); err != nil {
		return err
	}
	answer, err := f(s.s.Context(), s.link.who, payload)
	if err != nil {
		s.Refuse(err)
	}
	return n.reply(s, answer, err)
}

// reply sends an answer, or the error that there is in place of one.
func (n *Net) reply(s *Stream, answer []byte, err error) error {
	if len(answer) > MaxFrameBytes-replyHeadBytes {
		err = fmt.Errorf("answer of %d bytes, more than %d: %w", len(answer), MaxFrameBytes-replyHeadBytes, scstore.ErrInvalid)
	}
	_, err = s.Write(encodeReply(answer, err))
	return err
}
