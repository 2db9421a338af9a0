package meta

import (
	"bytes"
	"cmp"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"

	"scstore"
)

// GroupID names a group: the hosts that keep one State and agree on its commands.
type GroupID uint64

// The groups. What is not said here is a volume group.
const (
	GroupAll       GroupID = 0 // one state for everything: a cluster of one host
	GroupNamespace GroupID = 1 // names, sites, hosts
	FirstVolumes   GroupID = 2 // this and above: volumes, each in one group
)

// scope says which states a command belongs to.
type scope uint8

const (
	scopeAny     scope = iota
	scopeNames         // GroupNamespace, GroupAll
	scopeVolumes       // volume groups, GroupAll
)

// takes reports whether commands of the scope belong to the group.
func (g GroupID) takes(s scope) bool {
	switch s {
	case scopeNames:
		return g <= GroupNamespace
	case scopeVolumes:
		return g != GroupNamespace
	}
	return true
}

// MaxDiskIDBytes is the longest DiskID, in bytes.
const MaxDiskIDBytes = 255

// DiskID names a host's store for the store's whole life: its scstore.StoreID as
// text. What a host holds, and its place in groups, belong to the disk id: a host
// with a new disk is a new host.
type DiskID string

func (d DiskID) validate() error {
	if d == "" || len(d) > MaxDiskIDBytes {
		return fmt.Errorf("disk id of %d bytes, want 1 to %d: %w", len(d), MaxDiskIDBytes, scstore.ErrInvalid)
	}
	return nil
}

// SiteID is a site's name: one segment of a name (ValidateName).
type SiteID string

func (s SiteID) validate() error { return validateSegment("site", string(s)) }

// HandOffID names one planned hand-off, of one or more volumes. It is drawn at
// random.
type HandOffID [16]byte

// String returns the id as 32 hexadecimal digits.
func (h HandOffID) String() string { return hex.EncodeToString(h[:]) }

// IsZero reports whether the id names nothing.
func (h HandOffID) IsZero() bool { return h == HandOffID{} }

func (h HandOffID) validate() error {
	if h.IsZero() {
		return fmt.Errorf("hand-off id is zero: %w", scstore.ErrInvalid)
	}
	return nil
}

// compareBytes orders ids of 16 bytes.
func compareBytes[K ~[16]byte](x, y K) int {
	a, b := [16]byte(x), [16]byte(y)
	return bytes.Compare(a[:], b[:])
}

// sortedBy returns a map's keys in order.
func sortedBy[K comparable, V any](m map[K]V, compare func(a, b K) int) []K {
	return slices.SortedFunc(maps.Keys(m), compare)
}

// rising reports whether the items are strictly in order, without duplicates.
func rising[T any](items []T, compare func(a, b T) int) bool {
	for i := 1; i < len(items); i++ {
		if compare(items[i-1], items[i]) >= 0 {
			return false
		}
	}
	return true
}

// find returns the item with this key in a slice that rises by key, and its place.
func find[T, K any](items []T, key K, compare func(item T, key K) int) (*T, int) {
	i, found := slices.BinarySearchFunc(items, key, compare)
	if !found {
		return nil, i
	}
	return &items[i], i
}

func comparePositions(p, q scstore.Position) int { return p.Compare(q) }

func validateRising[T cmp.Ordered](what string, items []T) error {
	if !rising(items, cmp.Compare[T]) {
		return fmt.Errorf("%s are not in order, or twice: %w", what, scstore.ErrInvalid)
	}
	return nil
}
