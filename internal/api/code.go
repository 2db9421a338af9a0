package api

import (
	"context"
	"errors"
	"net/http"

	"scstore"
)

// Error is an error as it crosses the interface.
type Error struct {
	Code    string `json:"code"`           // of the table below, or CodeInternal or CodeCancelled
	Message string `json:"message"`        // one line
	Hint    string `json:"hint,omitempty"` // what to do, one sentence
}

// The codes of errors that wrap no sentinel.
const (
	CodeInternal  = "internal"
	CodeCancelled = "cancelled"
)

// statusClientClosed is nginx's status for a client that went away.
const statusClientClosed = 499

// codes is the table from sentinels to codes and HTTP statuses.
var codes = []struct {
	err    error
	code   string
	status int
}{
	{scstore.ErrNotFound, "not_found", http.StatusNotFound},
	{scstore.ErrExists, "exists", http.StatusConflict},
	{scstore.ErrInvalid, "invalid", http.StatusBadRequest},
	{scstore.ErrReadOnly, "read_only", http.StatusForbidden},
	{scstore.ErrFenced, "fenced", http.StatusConflict},
	{scstore.ErrBusy, "busy", http.StatusConflict},
	{scstore.ErrIndeterminate, "indeterminate", http.StatusGatewayTimeout},
	{scstore.ErrUnreachable, "unreachable", http.StatusBadGateway},
	{scstore.ErrAbsent, "absent", http.StatusBadGateway},
	{scstore.ErrCorrupt, "corrupt", http.StatusInternalServerError},
	{scstore.ErrNoSpace, "no_space", http.StatusInsufficientStorage},
	{scstore.ErrClosed, "closed", http.StatusServiceUnavailable},
	{scstore.ErrPoisoned, "poisoned", http.StatusInternalServerError},
	{scstore.ErrVersion, "version", http.StatusNotImplemented},
	{scstore.ErrNoMajority, "no_majority", http.StatusServiceUnavailable},
}

// NewError returns err as it crosses the interface, and its HTTP status. The
// first sentinel of the table that err wraps gives the code.
func NewError(err error) (Error, int) {
	e := Error{Code: CodeInternal, Message: err.Error()}
	status := http.StatusInternalServerError
	if hint, ok := errors.AsType[*scstore.HintError](err); ok {
		e.Hint = hint.Hint
	}
	if errors.Is(err, context.Canceled) {
		e.Code, status = CodeCancelled, statusClientClosed
	}
	for _, c := range codes {
		if errors.Is(err, c.err) {
			e.Code, status = c.code, c.status
			break
		}
	}
	return e, status
}

// Err returns e as an error again: its text is the message, it wraps the
// sentinel of its code, and it carries the hint.
func (e Error) Err() error {
	var err error = &remoteError{message: e.Message}
	switch e.Code {
	case CodeInternal:
	case CodeCancelled:
		err = &remoteError{message: e.Message, cause: context.Canceled}
	default:
		for _, c := range codes {
			if c.code == e.Code {
				err = &remoteError{message: e.Message, cause: c.err}
			}
		}
	}
	if e.Hint != "" {
		err = &scstore.HintError{Err: err, Hint: e.Hint}
	}
	return err
}

// remoteError is an error of the other side.
type remoteError struct {
	message string
	cause   error // the sentinel, or nil
}

// Error returns the message of the other side as it is.
func (e *remoteError) Error() string { return e.message }

// Unwrap returns the sentinel.
func (e *remoteError) Unwrap() error { return e.cause }
