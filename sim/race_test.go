//go:build race && !soak

package sim_test

// defaultSeeds is how many worlds a test runs: there is one goroutine in each, so the
// race detector has little to look for.
const defaultSeeds = 200
