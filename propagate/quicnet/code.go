package quicnet

import (
	"context"
	"errors"
	"io"
	"math"
	"net"
	"os"
	"strings"

	"github.com/quic-go/quic-go"

	"scstore"
)

// code is an error as it goes over the wire: in a reply, as the reason for which a
// stream is reset, and as the reason for which a connection is closed. Codes are
// never used again for something else.
type code uint16

const (
	codeNone      code = 0 // no error; a connection closed for being idle
	codeClosing   code = 1 // the host stops
	codeDuplicate code = 2 // another connection took this one's place; nothing was lost with it
	codeInternal  code = 3 // an error of no other kind: nobody knows what was done
)

// codes gives each sentinel its number.
var codes = []struct {
	code code
	err  error
}{
	{16, scstore.ErrNotFound},
	{17, scstore.ErrExists},
	{18, scstore.ErrInvalid},
	{19, scstore.ErrReadOnly},
	{20, scstore.ErrFenced},
	{21, scstore.ErrBusy},
	{22, scstore.ErrIndeterminate},
	{23, scstore.ErrUnreachable},
	{24, scstore.ErrCorrupt},
	{25, scstore.ErrNoSpace},
	{26, scstore.ErrClosed},
	{27, scstore.ErrPoisoned},
	{28, scstore.ErrVersion},
	{29, scstore.ErrAbsent},
	{30, scstore.ErrNoMajority},
}

// codeOf returns the code of an error's sentinel.
func codeOf(err error) code {
	if err == nil {
		return codeNone
	}
	for _, c := range codes {
		if errors.Is(err, c.err) {
			return c.code
		}
	}
	return codeInternal
}

// sentinel returns the error that a peer's code stands for, never nil.
func (c code) sentinel() error {
	for _, known := range codes {
		if known.code == c {
			return known.err
		}
	}
	switch c {
	case codeNone, codeClosing, codeDuplicate:
		return scstore.ErrUnreachable
	default:
		return scstore.ErrIndeterminate
	}
}

// wireCode returns the code that a stream or a connection was ended with.
func wireCode(v uint64) code {
	if v > math.MaxUint16 {
		return codeInternal
	}
	return code(v)
}

// MaxReasonBytes bounds the text that goes with a code, in bytes.
const MaxReasonBytes = 240

// reasonText is what a peer is told with a code.
func reasonText(err error) string {
	text := strings.ToValidUTF8(err.Error(), "?")
	if len(text) > MaxReasonBytes {
		text = strings.ToValidUTF8(text[:MaxReasonBytes], "")
	}
	return text
}

// unhandled reports whether a connection was closed by a peer that had no stream on
// it: what was sent and not answered was not looked at.
func unhandled(err error) bool {
	var closed *quic.ApplicationError
	return errors.As(err, &closed) && (code(closed.ErrorCode) == codeNone || code(closed.ErrorCode) == codeDuplicate)
}

// wireError is an error of the QUIC library with the sentinel that it stands for.
type wireError struct {
	text     string
	sentinel error
	cause    error
}

// Error returns the text.
func (e *wireError) Error() string { return e.text }

// Unwrap returns the sentinel and the library's error.
func (e *wireError) Unwrap() []error { return []error{e.sentinel, e.cause} }

// translate gives an error of the QUIC library its sentinel; an error that has one
// stays as it is.
func translate(err error) error {
	var stream *quic.StreamError
	var closed *quic.ApplicationError
	var transport *quic.TransportError
	switch {
	case err == nil, errors.Is(err, io.EOF), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded),
		errors.Is(err, os.ErrDeadlineExceeded), codeOf(err) != codeInternal:
		return err
	case errors.As(err, &stream) && stream.Remote:
		return &wireError{"peer reset the stream", wireCode(uint64(stream.ErrorCode)).sentinel(), err}
	case errors.As(err, &stream):
		return &wireError{"stream was cancelled", scstore.ErrClosed, err}
	case errors.As(err, &closed) && closed.Remote:
		text := "peer closed the connection: " + reasonText(errors.New(closed.ErrorMessage))
		return &wireError{text, wireCode(uint64(closed.ErrorCode)).sentinel(), err}
	case errors.As(err, &closed):
		return &wireError{"connection was closed", scstore.ErrClosed, err}
	case errors.As(err, &transport) && transport.ErrorCode.IsCryptoError():
		return &wireError{"authenticate: " + err.Error(), scstore.ErrInvalid, err}
	case errors.As(err, new(*quic.IdleTimeoutError)), errors.As(err, new(*quic.HandshakeTimeoutError)),
		errors.As(err, new(*quic.StatelessResetError)), errors.As(err, &transport):
		return &wireError{err.Error(), scstore.ErrUnreachable, err} // the library calls them closed, too
	case errors.Is(err, net.ErrClosed):
		return &wireError{err.Error(), scstore.ErrClosed, err}
	}
	return &wireError{err.Error(), scstore.ErrUnreachable, err}
}

// notSent gives an error from before anything was sent a sentinel, if it has none.
func notSent(err error) error {
	if codeOf(err) != codeInternal {
		return err
	}
	return &wireError{err.Error(), scstore.ErrUnreachable, err}
}

// several is more than one error, on one line.
type several []error

// Error returns the texts.
func (s several) Error() string {
	var texts []string
	for _, err := range s {
		texts = append(texts, err.Error())
	}
	return strings.Join(texts, "; ")
}

// Unwrap returns the errors.
func (s several) Unwrap() []error { return s }

// all returns the errors as one; none is a bug of the caller.
func all(errs []error) error {
	if len(errs) == 1 {
		return errs[0]
	}
	return several(errs)
}
