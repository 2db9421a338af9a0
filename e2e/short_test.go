//go:build !soak

package e2e_test

import "time"

// killRounds is how often a host is killed; soak_test.go has the long run.
const killRounds = 10

// garbageTime is how long garbage is sent.
const garbageTime = 2 * time.Second

// noiseTime is how long random datagrams, and random frames, are sent to a host.
const noiseTime = 2 * time.Second
