//go:build soak

package e2e_test

import (
	"fmt"
	"slices"
	"time"
)

// spread is how a list of times is spread.
type spread struct {
	count           int
	p50, p99, worst time.Duration
}

// quantiles returns how the times of a list are spread.
func quantiles[T any](list []T, of func(T) time.Duration) spread {
	times := make([]time.Duration, 0, len(list))
	for _, x := range list {
		times = append(times, of(x))
	}
	slices.Sort(times)
	n := len(times)
	if n == 0 {
		return spread{}
	}
	return spread{count: n, p50: times[n/2], p99: times[n*99/100], worst: times[n-1]}
}

// String says it in short.
func (s spread) String() string {
	return fmt.Sprintf("p50 %s, p99 %s, worst %s of %d", rounded(s.p50), rounded(s.p99), rounded(s.worst), s.count)
}

// rounded leaves out what no measurement of this kind can tell.
func rounded(d time.Duration) time.Duration { return d.Round(100 * time.Microsecond) }
