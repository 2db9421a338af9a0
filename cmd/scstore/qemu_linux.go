package main

import (
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// limitProcess limits the address space of a process that has just been started,
// in bytes, and keeps it from dumping its memory. Source: prlimit(2).
func limitProcess(pid int, memoryBytes uint64) error {
	for resource, limit := range map[int]uint64{unix.RLIMIT_AS: memoryBytes, unix.RLIMIT_CORE: 0} {
		if err := unix.Prlimit(pid, resource, &unix.Rlimit{Cur: limit, Max: limit}, nil); err != nil {
			return fmt.Errorf("set the limits of process %d: %w", pid, err)
		}
	}
	return nil
}

// connPair returns two ends of one connection: one to serve here, one for another
// process to inherit. No file, and nobody else can connect.
func connPair() (here net.Conn, there *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make a connection: %w", err)
	}
	mine := os.NewFile(uintptr(fds[0]), "nbd")
	there = os.NewFile(uintptr(fds[1]), "nbd-client")
	here, err = net.FileConn(mine)
	_ = mine.Close() // FileConn has its own
	if err != nil {
		_ = there.Close() // never used
		return nil, nil, fmt.Errorf("make a connection: %w", err)
	}
	return here, there, nil
}
