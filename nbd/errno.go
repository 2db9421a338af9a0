package nbd

import (
	"context"
	"errors"
	"fmt"

	"scstore"
)

// Errno is an error value of the protocol; 0 is success. As an error it unwraps
// to the root sentinel that comes nearest, for the client's users.
type Errno uint32

// The error values (proto.md, Error values).
const (
	EPERM     Errno = 1
	EIO       Errno = 5
	ENOMEM    Errno = 12
	EINVAL    Errno = 22
	ENOSPC    Errno = 28
	EOVERFLOW Errno = 75
	ENOTSUP   Errno = 95
	ESHUTDOWN Errno = 108
)

// Error returns the value's name.
func (e Errno) Error() string {
	switch e {
	case 0:
		return "success"
	case EPERM:
		return "EPERM (operation not permitted)"
	case EIO:
		return "EIO (input/output error)"
	case ENOMEM:
		return "ENOMEM (out of memory)"
	case EINVAL:
		return "EINVAL (invalid argument)"
	case ENOSPC:
		return "ENOSPC (no space left)"
	case EOVERFLOW:
		return "EOVERFLOW (value too large)"
	case ENOTSUP:
		return "ENOTSUP (not supported)"
	case ESHUTDOWN:
		return "ESHUTDOWN (server is shutting down)"
	}
	return fmt.Sprintf("NBD error %d", uint32(e))
}

// label is the value's metric label; unknown values share one.
func (e Errno) label() string {
	switch e {
	case EPERM:
		return "eperm"
	case EIO:
		return "eio"
	case ENOMEM:
		return "enomem"
	case EINVAL:
		return "einval"
	case ENOSPC:
		return "enospc"
	case EOVERFLOW:
		return "eoverflow"
	case ENOTSUP:
		return "enotsup"
	case ESHUTDOWN:
		return "eshutdown"
	}
	return "other"
}

// Is lets errors.Is(err, scstore.ErrX) work on what the client returns. EIO and
// unknown values stand for several sentinels and match none.
func (e Errno) Is(target error) bool {
	switch e {
	case EPERM:
		return target == scstore.ErrReadOnly
	case EINVAL, EOVERFLOW, ENOTSUP:
		return target == scstore.ErrInvalid
	case ENOSPC:
		return target == scstore.ErrNoSpace
	case ESHUTDOWN:
		return target == scstore.ErrClosed
	default:
		return false
	}
}

// errnoTable is the door's one table from sentinels to error values. The order
// matters only for an error that wraps several.
//
// A client takes EPERM as "this will never work here", ENOSPC as "pause, and try
// again once there is space" (qemu's werror=enospc), ESHUTDOWN as "disconnect";
// everything else is EIO.
var errnoTable = []struct {
	sentinel error
	errno    Errno
}{
	{scstore.ErrReadOnly, EPERM},
	{scstore.ErrFenced, EPERM},
	{scstore.ErrNoSpace, ENOSPC},
	{scstore.ErrInvalid, EINVAL},
	{scstore.ErrClosed, ESHUTDOWN},
	{scstore.ErrNotFound, EIO},
	{scstore.ErrExists, EIO},
	{scstore.ErrBusy, EIO},
	{scstore.ErrIndeterminate, EIO},
	{scstore.ErrUnreachable, EIO},
	{scstore.ErrAbsent, EIO},
	{scstore.ErrCorrupt, EIO},
	{scstore.ErrPoisoned, EIO},
	{scstore.ErrNoMajority, EIO},
	{scstore.ErrVersion, ENOTSUP},
}

// errnoOf translates an error of a device; nil is 0.
func errnoOf(err error) Errno {
	if err == nil {
		return 0
	}
	var e Errno
	if errors.As(err, &e) && e != 0 {
		return e
	}
	for _, row := range errnoTable {
		if errors.Is(err, row.sentinel) {
			return row.errno
		}
	}
	if errors.Is(err, context.Canceled) {
		return ESHUTDOWN
	}
	return EIO
}

// optionError translates an error of Exports into a reply to an option.
func optionError(err error) uint32 {
	switch {
	case errors.Is(err, scstore.ErrNotFound):
		return repErrUnknown
	case errors.Is(err, errTooBig):
		return repErrTooBig
	case errors.Is(err, scstore.ErrInvalid):
		return repErrInvalid
	case errors.Is(err, scstore.ErrClosed), errors.Is(err, context.Canceled):
		return repErrShutdown
	}
	return repErrPolicy
}
