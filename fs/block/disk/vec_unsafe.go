//go:build linux

package disk

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// MaxVecBuffers is how many buffers WriteVec gives to one system call. Their
// table then fits on the stack (1 KiB), far below the kernel's own limit of 1024.
const MaxVecBuffers = 64

// pwritev writes the buffers, at most MaxVecBuffers, in one system call. The
// function of x/sys/unix allocates its table for more than 8 buffers.
func pwritev(fd int, bufs [][]byte, off int64) (int, error) {
	var table [MaxVecBuffers]unix.Iovec
	count := 0
	for _, b := range bufs {
		if len(b) == 0 {
			continue
		}
		table[count].Base = unsafe.SliceData(b)
		table[count].SetLen(len(b))
		count++
	}
	if count == 0 {
		return 0, nil
	}
	// The kernel shifts the high half of the offset out where a word holds it all.
	n, _, errno := unix.Syscall6(unix.SYS_PWRITEV, uintptr(fd), uintptr(unsafe.Pointer(&table[0])),
		uintptr(count), uintptr(off), uintptr(uint64(off)>>32), 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// preadv2 reads into one buffer with flags, without the slice of slices that the
// function of x/sys/unix takes.
func preadv2(fd int, p []byte, off int64, flags int) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	iov := unix.Iovec{Base: unsafe.SliceData(p)}
	iov.SetLen(len(p))
	n, _, errno := unix.Syscall6(unix.SYS_PREADV2, uintptr(fd), uintptr(unsafe.Pointer(&iov)),
		1, uintptr(off), uintptr(uint64(off)>>32), uintptr(flags))
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}
