//go:build soak

package e2e_test

import "time"

const killRounds = 50

const garbageTime = 10 * time.Second

const noiseTime = time.Minute
