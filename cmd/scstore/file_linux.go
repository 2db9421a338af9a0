package main

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// umask returns the process's umask. Precondition: no other goroutine makes files.
func umask() os.FileMode {
	m := unix.Umask(0)
	unix.Umask(m)
	return os.FileMode(m)
}

// isNoSpace reports whether a disk or a quota is full.
func isNoSpace(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)
}
