package host

import (
	"fmt"
	"strings"

	"scstore"
	"scstore/consensus/meta"
	"scstore/internal/api"
)

// place is what a name means: a volume or image as it is now, a volume at one of its
// snapshots, or a branch of one.
type place struct {
	entry               // of a branch the volume's
	snap   *meta.Snap   // nil as it is now
	branch *meta.Record // nil but for a branch
}

// slotKey names a slot: an id, and the position of a snapshot, which is zero for what
// is as it is now.
type slotKey struct {
	id scstore.VolumeID
	at scstore.Position
}

func (p place) key() slotKey {
	switch {
	case p.branch != nil:
		return slotKey{id: p.branch.ID}
	case p.snap != nil:
		return slotKey{p.ID, p.snap.Position}
	}
	return slotKey{id: p.ID}
}

// name is what a person calls it.
func (p place) name() string {
	switch {
	case p.branch != nil:
		return p.Name + meta.BranchSuffix(p.branch.Fence)
	case p.snap != nil:
		return p.Name + "@" + p.snap.Name
	}
	return p.Name
}

// kind is how the API calls it.
func (p place) kind() api.Kind {
	if p.snap != nil || p.branch != nil {
		return api.KindSnapshot
	}
	return kindOf(p.Kind)
}

// sizeBytes is what a guest sees.
func (p place) sizeBytes() int64 {
	switch {
	case p.branch != nil:
		return p.branch.SizeBytes
	case p.snap != nil:
		return p.snap.SizeBytes
	}
	return p.SizeBytes
}

// readOnly reports whether it can't be written.
func (p place) readOnly() bool { return p.kind() != api.KindVolume }

// kindOf translates the kinds.
func kindOf(k meta.Kind) api.Kind {
	if k == meta.KindImage {
		return api.KindImage
	}
	return api.KindVolume
}

// article returns "an image" or "a volume".
func article(k api.Kind) string {
	if k == api.KindImage {
		return "an image"
	}
	return "a volume"
}

// lookup returns the entry of a name. Errors: ErrNotFound, also for the other kind;
// kind "" is either.
func (h *Host) lookup(kind api.Kind, name string) (entry, error) {
	e, ok, err := h.names.resolve(name)
	what := kind
	if what == "" {
		what = "volume or image"
	}
	switch {
	case err != nil:
		return e, fmt.Errorf("%s %q: %w", what, name, err)
	case !ok:
		err := fmt.Errorf("%s %q: %w", what, name, scstore.ErrNotFound)
		return e, scstore.Hint(err, "list the names with scstore volume ls and scstore image ls")
	case kind != "" && kindOf(e.Kind) != kind:
		err := fmt.Errorf("%s %q: %w", kind, name, scstore.ErrNotFound)
		return e, scstore.Hint(err, "%q is %s: use scstore %s", name, article(kindOf(e.Kind)), kindOf(e.Kind))
	}
	return e, nil
}

// find returns what a name means, VOL@SNAP and VOL@diverged-FENCE included. Errors: as
// for lookup.
func (h *Host) find(kind api.Kind, name string) (place, error) {
	vol, snap, isSnapshot := strings.Cut(name, "@")
	if !isSnapshot {
		e, err := h.lookup(kind, name)
		return place{entry: e}, err
	}
	e, err := h.lookup(api.KindVolume, vol)
	if err != nil {
		return place{}, err
	}
	if s := e.snapshot(snap); s != nil {
		return place{entry: e, snap: s}, nil
	}
	if b, ok := e.branch(name); ok {
		return place{entry: e, branch: &b}, nil
	}
	return place{}, scstore.Hint(fmt.Errorf("snapshot %q: %w", name, scstore.ErrNotFound), "list them with scstore volume info %s", vol)
}

// checkNewName refuses early what meta would refuse at the end.
func (h *Host) checkNewName(kind api.Kind, name string) error {
	if err := meta.ValidateName(name); err != nil {
		return scstore.Hint(fmt.Errorf("%s: %w", kind, err), "write a name like web1 or prod/web1, without @")
	}
	taken, ok, err := h.names.resolve(name)
	if err != nil {
		return fmt.Errorf("%s %q: %w", kind, name, err)
	}
	if ok {
		return scstore.Hint(fmt.Errorf("%s %q: %w", kindOf(taken.Kind), name, scstore.ErrExists),
			"choose another name, or remove it first: scstore %s rm %s", kindOf(taken.Kind), name)
	}
	return nil
}

// places returns all that can be exported: names in order, each followed by its
// snapshots and branches.
func (h *Host) places() (list []place, err error) {
	all, err := h.names.entries()
	if err != nil {
		return nil, err
	}
	for _, e := range all {
		list = append(list, place{entry: e})
		for _, s := range e.snaps {
			list = append(list, place{entry: e, snap: &s})
		}
		for _, b := range e.branches {
			list = append(list, place{entry: e, branch: &b})
		}
	}
	return list, nil
}
