package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"scstore"
)

// Errors of the command line itself.
var (
	errUsage    = errors.New("wrong usage")
	errFindings = errors.New("doctor found errors")
)

// exitCodes is the table from errors to exit codes. Codes are never renumbered:
// scripts test for them. The first match counts.
var exitCodes = []struct {
	err     error
	code    int
	meaning string
}{
	{nil, 0, "done"},
	{errUsage, 2, "unknown command, flag or argument"},
	{scstore.ErrNotFound, 3, "a name names nothing"},
	{scstore.ErrExists, 4, "a name is taken"},
	{scstore.ErrInvalid, 5, "the input can never be accepted as it is"},
	{scstore.ErrReadOnly, 6, "it is read-only"},
	{scstore.ErrFenced, 7, "another host took over"},
	{scstore.ErrBusy, 8, "it is in use; nothing was changed"},
	{scstore.ErrIndeterminate, 9, "nobody knows whether it was done: look"},
	{scstore.ErrUnreachable, 10, "the host does not answer"},
	{scstore.ErrAbsent, 16, "the bytes are at another host"},
	{scstore.ErrCorrupt, 11, "a checksum failed"},
	{scstore.ErrNoSpace, 12, "no space left; nothing was changed"},
	{scstore.ErrPoisoned, 14, "the disk failed: restart the host"},
	{scstore.ErrClosed, 13, "the host is stopping"},
	{scstore.ErrVersion, 15, "made by a newer version of scstore"},
	{scstore.ErrNoMajority, 17, "too few hosts of the cluster answer; nothing was changed"},
	{errFindings, 20, "doctor found something wrong"},
	{errTerminated, 143, "broken off by SIGTERM; nothing is half-made"},
	{errInterrupted, 130, "broken off by SIGINT; nothing is half-made"},
	{context.Canceled, 130, "broken off; nothing is half-made"},
}

// exitFailure is the code of an error that is in no table.
const exitFailure = 1

// exitCode returns the exit code of a command that ended with err.
func exitCode(err error) int {
	if err == nil {
		return 0
	}
	for _, e := range exitCodes {
		if e.err != nil && errors.Is(err, e.err) {
			return e.code
		}
	}
	return exitFailure
}

// exitHelp is the table for people.
func exitHelp() string {
	var b strings.Builder
	b.WriteString("Exit codes:\n")
	for code := range 256 {
		if code == exitFailure {
			fmt.Fprintf(&b, "  %3d  %s\n", code, "any other error")
		}
		for _, e := range exitCodes {
			if e.code == code && !errors.Is(e.err, context.Canceled) {
				fmt.Fprintf(&b, "  %3d  %s\n", code, e.meaning)
			}
		}
	}
	return b.String()
}
