package replica

import (
	"sync"

	"scstore"
)

// Set is all replicas of this host. Safe for concurrent use.
type Set struct {
	o Options

	mu       sync.Mutex
	replicas map[scstore.VolumeID]*Replica

	moves moves
}
