package quicnet

import "fmt"

// Class says how urgent a stream is. A connection sends nothing of a class while a
// stream of a more urgent one has something to send; classes of equal urgency share.
type Class uint8

// The classes, the most urgent first.
const (
	ClassRaft     Class = iota // votes, heart-beats, log entries, leases, hand-offs
	ClassDemand                // reads that a guest waits for
	ClassManifest              // what is newest, before the bytes of it
	ClassHot                   // a migration's hot blocks
	ClassSync                  // placements whose flush waits for them
	ClassAsync                 // placements that follow
	ClassPrefetch              // what will probably be read
	ClassRepair                // everything that nobody waits for
	classCount
)

// classes holds what differs between classes.
var classes = [classCount]struct {
	name    string
	urgency int8 // of RFC 9218: 0 is the most urgent, 7 the least
	capped  bool // waits for the bandwidth cap; the others only draw on it
}{
	ClassRaft:     {"raft", 0, false},
	ClassDemand:   {"demand", 1, false},
	ClassManifest: {"manifest", 1, false},
	ClassHot:      {"hot", 2, true},
	ClassSync:     {"sync", 2, true},
	ClassAsync:    {"async", 4, true},
	ClassPrefetch: {"prefetch", 5, true},
	ClassRepair:   {"repair", 7, true},
}

// Valid reports whether c is a class.
func (c Class) Valid() bool { return c < classCount }

// Urgency returns the class's urgency as RFC 9218 counts it, 0 first.
func (c Class) Urgency() int { return int(classes[c].urgency) }

// String returns the class's name.
func (c Class) String() string {
	if !c.Valid() {
		return fmt.Sprintf("class %d", uint8(c))
	}
	return classes[c].name
}
