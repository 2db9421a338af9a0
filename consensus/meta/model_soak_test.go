//go:build soak

package meta_test

// modelChecks is how many random histories the model test runs.
const modelChecks = 300_000
