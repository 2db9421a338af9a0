//go:build !soak && !race

package sim_test

// defaultSeeds is how many worlds a test runs.
const defaultSeeds = 2_000
