//go:build soak

package replica

// promoteSeeds is how many worlds a test with promotes runs.
const promoteSeeds = 200
