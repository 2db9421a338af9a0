//go:build !soak

package meta_test

// modelChecks is how many random histories each model test runs.
const modelChecks = 1_000
