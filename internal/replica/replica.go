package replica

import (
	"context"
	"sync"

	"scstore"
	"scstore/consensus/meta"
	"scstore/fs/block"
	"scstore/fs/volume"
	"scstore/nbd"
)

// Replica is one volume's copy on this host.
type Replica struct {
	set   *Set
	id    scstore.VolumeID
	group meta.GroupID

	// mu is held over a change of role and over the local disk's part of it, never while
	// the log or another host is waited for.
	mu    sync.Mutex
	facts Facts          // as on disk
	table *block.Table   // nil: nothing is here
	v     *volume.Volume // open for writing: this host owns it, or is handing it over; else nil

	// held is what the doors of a hand-off's target have before it owns: requests wait.
	// owned is what they have of an owner. Both are one device, so that a connection
	// that was opened while it was held goes on.
	device *device
	gate   *nbd.Gate

	revoked context.Context // its end closes the doors of this tenure
	revoke  context.CancelCauseFunc

	source *source // a hand-off from here
	target *target // a hand-off to here
	jump   *jump   // on its way to another position
}
