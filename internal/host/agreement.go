package host

import (
	"cmp"
	"context"
	"slices"
	"strings"

	"scstore"
	"scstore/consensus/meta"
)

// entry is a record with its name, the group that it is in, and what hangs on it.
type entry struct {
	meta.Record
	group    meta.GroupID
	snaps    []meta.Snap   // by name
	branches []meta.Record // by fence
}

// agreement is where names and records are agreed on: on a host alone one state, in a
// cluster the namespace's and those of the groups of volumes. What is read is what this
// host has applied.
type agreement interface {
	// resolve returns what a name names; ok is false if it names nothing. Errors: ErrBusy
	// if this host has applied the name and not yet the record.
	resolve(name string) (e entry, ok bool, err error)
	// entries returns all that have a name, sorted by it.
	entries() ([]entry, error)
	// view calls f with the state that has a group's records.
	view(g meta.GroupID, f func(*meta.State)) error
	// propose decides an operation in a group.
	propose(ctx context.Context, g meta.GroupID, op meta.Op) (meta.Result, error)
	// close ends it; nothing is pending, ever.
	close() error
}

// snapshot returns the snapshot of this name, without the volume's, or nil.
func (e *entry) snapshot(name string) *meta.Snap {
	i := slices.IndexFunc(e.snaps, func(s meta.Snap) bool { return s.Name == name })
	if i < 0 {
		return nil
	}
	return &e.snaps[i]
}

// branch returns the branch with this name, the volume's included.
func (e *entry) branch(name string) (meta.Record, bool) {
	for _, b := range e.branches {
		if e.Name+meta.BranchSuffix(b.Fence) == name {
			return b, true
		}
	}
	return meta.Record{}, false
}

// collect returns the records of a state that names has a name for, and those that have
// one in the state, if names is nil. group is what they are in.
func collect(s *meta.State, group meta.GroupID, names map[scstore.VolumeID]string) []entry {
	branches := map[scstore.VolumeID][]meta.Record{}
	var list []entry
	for _, r := range s.Records() {
		if r.Kind == meta.KindBranch {
			branches[r.Base] = append(branches[r.Base], r)
			continue
		}
		if names != nil {
			r.Name = names[r.ID]
		}
		if r.Name != "" {
			list = append(list, entry{Record: r, group: group, snaps: s.Snapshots(r.ID)})
		}
	}
	for i := range list {
		list[i].branches = sortBranches(branches[list[i].ID])
	}
	return list
}

// entryOf returns one record with what hangs on it.
func entryOf(s *meta.State, group meta.GroupID, id scstore.VolumeID, name string) (entry, bool) {
	r, ok := s.Get(id)
	if !ok || r.Life == meta.Tombstone {
		return entry{}, false
	}
	r.Name = name
	return entry{Record: r, group: group, snaps: s.Snapshots(id), branches: sortBranches(s.Branches(id))}, true
}

// sortBranches sorts by fence and leaves out what is removed.
func sortBranches(list []meta.Record) []meta.Record {
	list = slices.DeleteFunc(list, func(r meta.Record) bool { return r.Life != meta.Live })
	slices.SortFunc(list, func(a, b meta.Record) int { return cmp.Compare(a.Fence, b.Fence) })
	return list
}

// byName sorts entries.
func byName(list []entry) []entry {
	slices.SortFunc(list, func(a, b entry) int { return strings.Compare(a.Name, b.Name) })
	return list
}
