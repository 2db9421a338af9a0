package main

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// nextData returns the next run of data [data, hole) of a file at or after off,
// within size; data is size if there is none. A file that knows no holes is all
// data. Source: lseek(2), SEEK_DATA.
func nextData(f *os.File, off, size int64) (data, hole int64, err error) {
	data, err = f.Seek(off, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		return size, size, nil
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOTSUP):
		return off, size, nil
	case err != nil:
		return 0, 0, err
	}
	if data >= size {
		return size, size, nil
	}
	hole, err = f.Seek(data, unix.SEEK_HOLE)
	if err != nil {
		return 0, 0, err
	}
	return data, min(hole, size), nil
}
