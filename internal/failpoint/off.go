//go:build !failpoints

package failpoint

// Enabled says whether points are looked at.
const Enabled = false

// Hit is called at a point. It does nothing.
func Hit(string) {}
