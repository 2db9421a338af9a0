package crashdisk

import (
	"errors"
	"fmt"
	"strings"
	"syscall"

	"scstore"
)

// Kind names an operation, in traces and for the hook of Fail.
type Kind string

// The operations. Size and Close are never counted and never fail.
const (
	Create    Kind = "create"
	Open      Kind = "open"
	Rename    Kind = "rename" // Op.Name is the old name, Op.To the new one
	Remove    Kind = "remove"
	List      Kind = "list"
	SyncDir   Kind = "syncdir"
	Usage     Kind = "usage"
	Read      Kind = "read"  // ReadAt and ReadNowAt
	Write     Kind = "write" // WriteAt, and WriteVec as one
	Allocate  Kind = "allocate"
	Truncate  Kind = "truncate"
	Sync      Kind = "sync" // Datasync
	WriteBack Kind = "writeback"
)

// Op is one call that is about to be made.
type Op struct {
	Kind Kind
	Name string // the name under which the file was opened
	To   string // of a rename
	Off  int64  // bytes
	Len  int64  // bytes
	N    uint64 // the number of this call among all of the disk, from 1
}

// String returns the operation as a line of a trace: "write seg-1 4096 8192".
func (o Op) String() string {
	var b strings.Builder
	b.WriteString(string(o.Kind))
	for _, name := range []string{o.Name, o.To} {
		if name != "" {
			b.WriteString(" " + name)
		}
	}
	switch o.Kind {
	case Read, Write, WriteBack:
		fmt.Fprintf(&b, " %d %d", o.Off, o.Len)
	case Allocate, Truncate:
		fmt.Fprintf(&b, " %d", o.Len)
	default: // names say it all
	}
	return b.String()
}

// Fail installs a hook that sees every operation before it happens and, if it
// returns an error, makes it fail with that error: a failed write may have written
// a part of its pages, a failed Datasync drops pages (see disk.File), everything
// else has no effect. syscall.ENOSPC comes out as scstore.ErrNoSpace. nil removes
// the hook.
//
// Concurrency: the hook runs on the caller's goroutine, at once with others, and
// outside all locks, so that it may call Crash.
func (d *Disk) Fail(hook func(Op) error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.hook = hook
}

// Ops returns how many operations have been counted.
func (d *Disk) Ops() uint64 { return d.ops.Load() }

// Trace starts the record of the operations that change something: all but open,
// list, usage and read.
func (d *Disk) Trace() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.tracing, d.trace = true, nil
}

// TakeTrace returns the record so far, one operation a line, in order, and empties
// it. An operation that failed is marked.
func (d *Disk) TakeTrace() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	trace := d.trace
	d.trace = nil
	return trace
}

// begin counts the operation and asks the hook.
func (d *Disk) begin(op Op) error {
	op.N = d.ops.Add(1)
	d.mu.RLock()
	hook := d.hook
	d.mu.RUnlock()
	if hook == nil {
		return nil
	}
	err := hook(op)
	if err == nil {
		return nil
	}
	if errors.Is(err, syscall.ENOSPC) && !errors.Is(err, scstore.ErrNoSpace) {
		err = fmt.Errorf("%w: %w", scstore.ErrNoSpace, err)
	}
	return opError(op, err)
}

func opError(op Op, err error) error { return fmt.Errorf("%s %q: %w", op.Kind, op.Name, err) }

// note adds the operation to the trace.
// Precondition: d.mu held.
func (d *Disk) noteLocked(op Op, err error) {
	if !d.tracing {
		return
	}
	line := op.String()
	if err != nil {
		line += " failed"
	}
	d.trace = append(d.trace, line)
}
