package main

import (
	"fmt"

	units "github.com/docker/go-units"

	"scstore"
)

// parseSize reads a size such as 20G; its units are powers of 1024, as qemu-img's
// are. Errors: ErrInvalid.
func parseSize(flag, text string) (int64, error) {
	n, err := units.RAMInBytes(text)
	if err != nil || n <= 0 {
		return 0, scstore.Hint(fmt.Errorf("%s %q: %w", flag, text, scstore.ErrInvalid), "write a size like 512M, 20G or 1.5T")
	}
	return n, nil
}

// humanSize prints bytes for people.
func humanSize(n int64) string { return units.BytesSize(float64(n)) }

// dataSize prints how much data there is, if that is known.
func dataSize(n *int64) string {
	if n == nil {
		return "-"
	}
	return humanSize(*n)
}
