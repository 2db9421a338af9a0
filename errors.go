package scstore

import (
	"errors"
	"fmt"
)

// The closed set of sentinel errors. Every door (NBD, API, exit codes, later
// FUSE and the wire) has one table from these to its own codes, and a test ranges
// over Sentinels so that none is missing from any table. Compare with errors.Is,
// never by text.
var (
	ErrNotFound      = errors.New("not found")                // the name or id names nothing
	ErrExists        = errors.New("already exists")           // the name is taken
	ErrInvalid       = errors.New("invalid")                  // the request can never succeed as it is
	ErrReadOnly      = errors.New("read-only")                // an image, a snapshot or a read-only export
	ErrFenced        = errors.New("fenced")                   // a higher fence was granted: stop, never retry
	ErrBusy          = errors.New("busy")                     // not applied; retry
	ErrIndeterminate = errors.New("outcome unknown")          // may have been applied: re-read, or retry with the same command id
	ErrUnreachable   = errors.New("unreachable")              // no holder of the bytes answers
	ErrAbsent        = errors.New("not here yet")             // the newest bytes are at another host: fetch them and retry
	ErrCorrupt       = errors.New("corrupt")                  // a checksum failed: repair from a replica
	ErrNoSpace       = errors.New("no space left")            // nothing was written; reads go on; retry once space is free
	ErrClosed        = errors.New("closed")                   // the volume or store was closed
	ErrPoisoned      = errors.New("poisoned by an I/O error") // unsynced writes were lost: restart replays from disk
	ErrVersion       = errors.New("unsupported version")      // made by a newer scstore: use that one
	ErrNoMajority    = errors.New("no majority")              // not applied: too few members of the group answer; retry
)

// Sentinels returns all of the sentinel errors, in a fixed order.
func Sentinels() []error {
	return []error{
		ErrNotFound, ErrExists, ErrInvalid, ErrReadOnly, ErrFenced, ErrBusy, ErrIndeterminate,
		ErrUnreachable, ErrAbsent, ErrCorrupt, ErrNoSpace, ErrClosed, ErrPoisoned, ErrVersion, ErrNoMajority,
	}
}

// HintError is an error with advice for the person who reads it. Error returns
// the cause alone; whoever prints it prints the hint on a line of its own.
type HintError struct {
	Err  error
	Hint string // one sentence, an imperative, no full stop
}

// Error returns the cause's text.
func (e *HintError) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *HintError) Unwrap() error { return e.Err }

// Hint returns err with advice attached.
func Hint(err error, format string, args ...any) error {
	return &HintError{Err: err, Hint: fmt.Sprintf(format, args...)}
}
