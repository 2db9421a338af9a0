// Package invariant holds the assertions. A failed assertion is a bug of this
// program: it panics. Bytes from disk, wire or guest never reach an assertion;
// they are checked and answered with an error.
package invariant

import "fmt"

// Check panics with the formatted message unless cond holds. It is always on, so
// its condition must be cheap.
func Check(cond bool, format string, args ...any) {
	if !cond {
		panic("invariant: " + fmt.Sprintf(format, args...))
	}
}
