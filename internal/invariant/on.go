//go:build invariants

package invariant

// Enabled turns on the checks that cost something.
const Enabled = true
