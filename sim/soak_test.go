//go:build soak

package sim_test

// defaultSeeds is how many worlds a test runs.
const defaultSeeds = 20_000
