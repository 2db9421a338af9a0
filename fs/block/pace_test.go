package block

import (
	"testing"
	"time"

	"scstore"
)

// TestPause_NoSmallWriteWaitsForAWholeSync has eight writers write on while a sync stands
// still for twenty times as long as the one before it took.
func TestPause_NoSmallWriteWaitsForAWholeSync(t *testing.T) {
	const (
		usual   = 100 * time.Millisecond
		stands  = 20 * usual
		writers = 8
	)
	left := int64(MaxUnsyncedBytes / 2)
	var now, longest time.Duration
	for now < stands {
		p := pause(scstore.BlockSize, left, max(usual, now))
		now += p
		if left -= scstore.BlockSize; left <= 0 {
			t.Fatalf("after %s of %s nothing is left: all wait for the sync", now, stands)
		}
		longest = max(longest, p*writers)
	}
	if longest > stands/10 {
		t.Errorf("a write waits for %s of the %s that the sync takes", longest, stands)
	}
}
