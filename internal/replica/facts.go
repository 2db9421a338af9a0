package replica

import (
	"scstore"
	"scstore/consensus/meta"
)

// Facts is what this host must not forget of a volume: one file each, in JSON, written
// whole (a new file, synced, renamed, the folder synced).
type Facts struct {
	Format    int              `json:"format"` // factsFormat; a newer one is refused
	ID        scstore.VolumeID `json:"id"`
	Group     meta.GroupID     `json:"group"`
	SizeBytes int64            `json:"size_bytes"`

	Floor scstore.Fence    `json:"floor"` // data under it or a lower fence are refused
	Fence scstore.Fence    `json:"fence"` // under which this host writes; 0: it does not
	Head  scstore.Position `json:"head"`  // the last one sealed, or where Fence begins

	Pending []Point            `json:"pending,omitempty"` // sealed, not known to be in the history
	Holds   []scstore.Position `json:"holds,omitempty"`   // complete here, rising
	Jump    *JumpFacts         `json:"jump,omitempty"`    // what is staged above the mark of Jump.From

	Draining *Draining  `json:"draining,omitempty"` // a hand-off from this host that may have left
	Left     []Leftover `json:"left,omitempty"`     // what was written under fences that were lost to a promote
}

// Point is a sealed epoch.
type Point struct {
	Position scstore.Position `json:"position"`
	Parent   scstore.Position `json:"parent"`
	Digest   scstore.Digest   `json:"digest"`
	Complete bool             `json:"complete"` // no block was missing here when it was sealed
}

// JumpFacts says what a table's head holds above a mark.
type JumpFacts struct {
	From scstore.Position `json:"from"` // zero: the table's beginning
	To   scstore.Position `json:"to"`
}

// Draining is the mark of a hand-off whose RELEASE or entry may have left this host.
type Draining struct {
	ID      meta.HandOffID     `json:"id"`
	To      meta.DiskID        `json:"to"`
	Volumes []scstore.VolumeID `json:"volumes"` // all of the hand-off, rising
	Final   Point              `json:"final"`   // of this volume
	Fence   scstore.Fence      `json:"fence"`   // that it was sealed under, or went on from
}

// Leftover is what an owner wrote under a fence that it lost to a forced promote: it is
// kept behind the mark of Head until it is a branch.
type Leftover struct {
	Fence scstore.Fence    `json:"fence"`
	Head  scstore.Position `json:"head"`
}
