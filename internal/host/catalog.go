package host

import (
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"strings"
	"time"

	"scstore"
	"scstore/consensus/meta"
	"scstore/internal/api"
)

var _ api.Service = (*Host)(nil)

// maxNamed bounds how many names an error lists.
const maxNamed = 5

// describe returns what the API shows of a place, with the names of its base and its
// clones from all.
func (h *Host) describe(p place, all []entry) api.Volume {
	v := api.Volume{
		Name: p.name(), Kind: p.kind(), ID: p.ID, SizeBytes: p.sizeBytes(),
		Position: p.Head, Connections: h.connections(p.key()), CreatedAt: atMs(p.CreatedAtMs),
	}
	switch {
	case p.branch != nil:
		v.ID, v.Position, v.CreatedAt = p.branch.ID, p.branch.Head, atMs(p.branch.CreatedAtMs)
	case p.snap != nil:
		v.Position, v.CreatedAt = p.snap.Position, atMs(p.snap.CreatedAtMs)
	case v.Kind == api.KindImage:
		v.Digest = p.Digest.String()
	default:
		v.Snapshots = describeSnapshots(p.entry, all)
	}
	for _, other := range all {
		if other.ID == p.Base && p.branch == nil {
			v.Base = baseName(other, p.BasePosition)
		}
		if other.Base == v.ID && (p.snap == nil || other.BasePosition == p.snap.Position) {
			v.Clones = append(v.Clones, other.Name)
		}
	}
	slices.Sort(v.Clones)
	return v
}

// describeSnapshots lists a volume's snapshots, by name.
func describeSnapshots(e entry, all []entry) (list []api.Snapshot) {
	for _, s := range e.snaps {
		out := api.Snapshot{Name: s.Name, Position: s.Position, SizeBytes: s.SizeBytes, CreatedAt: atMs(s.CreatedAtMs)}
		for _, other := range all {
			if other.Base == e.ID && other.BasePosition == s.Position {
				out.Clones = append(out.Clones, other.Name)
			}
		}
		list = append(list, out)
	}
	return list
}

// baseName names what a clone is based on: an image, or a volume's snapshot.
func baseName(base entry, at scstore.Position) string {
	if base.Kind == meta.KindVolume {
		for _, s := range base.snaps {
			if s.Position == at {
				return base.Name + "@" + s.Name
			}
		}
	}
	return base.Name
}

// atMs returns a time of the records, nil if there is none.
func atMs(ms int64) *time.Time {
	if ms <= 0 {
		return nil
	}
	at := time.UnixMilli(ms).UTC()
	return &at
}

// List returns the volumes or the images.
func (h *Host) List(ctx context.Context, kind api.Kind) ([]api.Volume, error) {
	all, err := h.names.entries()
	if err != nil {
		return nil, fmt.Errorf("list: %w", err)
	}
	byID, clones := map[scstore.VolumeID]entry{}, map[scstore.VolumeID][]string{}
	for _, e := range all {
		byID[e.ID] = e
		if !e.Base.IsZero() {
			clones[e.Base] = append(clones[e.Base], e.Name)
		}
	}
	var list []api.Volume
	budget := time.Now().Add(walkBudget)
	for _, e := range all {
		if kindOf(e.Kind) != kind {
			continue
		}
		v := h.describe(place{entry: e}, nil)
		v.Base, v.Clones = "", clones[e.ID]
		if base, ok := byID[e.Base]; ok {
			v.Base = baseName(base, e.BasePosition)
		}
		v.DataBytes = h.dataBytes(e.ID, budget)
		if v.Where, err = h.volumes.where(ctx, e, false); err != nil {
			return nil, fmt.Errorf("list: %w", err)
		}
		list = append(list, v)
	}
	return list, nil
}

// Get describes one.
func (h *Host) Get(ctx context.Context, kind api.Kind, name string) (api.Volume, error) {
	p, err := h.find(kind, name)
	if err != nil {
		return api.Volume{}, err
	}
	return h.info(ctx, p)
}

// info describes a place.
func (h *Host) info(ctx context.Context, p place) (api.Volume, error) {
	all, err := h.names.entries()
	if err != nil {
		return api.Volume{}, err
	}
	v := h.describe(p, all)
	if p.snap == nil {
		v.DataBytes = h.dataBytes(v.ID, time.Now().Add(walkBudget))
		v.DamagedAt = h.damagedAt(v.ID)
	}
	if p.snap == nil && p.branch == nil {
		v.Where, err = h.volumes.where(ctx, p.entry, true)
	}
	return v, err
}

// CreateVolume makes a volume, empty or a clone.
func (h *Host) CreateVolume(ctx context.Context, req api.CreateVolume) (api.Volume, error) {
	if err := h.checkNewName(api.KindVolume, req.Name); err != nil {
		return api.Volume{}, err
	}
	defer h.volumes.exclude()()
	op := meta.CreateVolume{ID: newID(), SizeBytes: req.SizeBytes, CreatedAtMs: time.Now().UnixMilli()}
	var base place
	if req.From != "" {
		var err error
		if base, err = h.find(api.KindImage, req.From); err != nil {
			return api.Volume{}, fmt.Errorf("create volume %q: %w", req.Name, err)
		}
		op.Base, op.BasePosition = base.baseOf()
		if op.SizeBytes == 0 {
			op.SizeBytes = base.sizeBytes()
		}
		if op.SizeBytes < base.sizeBytes() {
			return api.Volume{}, scstore.Hint(
				fmt.Errorf("create volume %q: %d bytes is less than the %d of %s %q: %w", req.Name, op.SizeBytes, base.sizeBytes(), base.kind(), req.From, scstore.ErrInvalid),
				"leave the size out to take its size")
		}
	}
	if err := checkVolumeSize(op.SizeBytes); err != nil {
		return api.Volume{}, fmt.Errorf("create volume %q: %w", req.Name, err)
	}
	if err := h.volumes.create(ctx, req.Name, base, op); err != nil {
		return api.Volume{}, fmt.Errorf("create volume %q: %w", req.Name, err)
	}
	h.log.Info("volume created", "volume", req.Name, "bytes", op.SizeBytes, "base", req.From)
	return h.Get(ctx, api.KindVolume, req.Name)
}

// baseOf returns what a clone of p is based on.
func (p place) baseOf() (scstore.VolumeID, scstore.Position) {
	switch {
	case p.branch != nil:
		return p.branch.ID, p.branch.Head
	case p.snap != nil:
		return p.ID, p.snap.Position
	}
	return p.ID, p.Head
}

// checkVolumeSize refuses sizes that no volume has.
func checkVolumeSize(n int64) error {
	switch {
	case n <= 0:
		return scstore.Hint(fmt.Errorf("%d bytes: %w", n, scstore.ErrInvalid), "write a size like 20G")
	case n > scstore.MaxVolumeBytes:
		return scstore.Hint(fmt.Errorf("%d bytes: %w", n, scstore.ErrInvalid), "the largest volume has %d bytes (64 TiB)", int64(scstore.MaxVolumeBytes))
	case n%scstore.BlockSize != 0:
		return scstore.Hint(fmt.Errorf("%d bytes is not a multiple of %d: %w", n, scstore.BlockSize, scstore.ErrInvalid),
			"the next one that is: %d", (n+scstore.BlockSize-1)/scstore.BlockSize*scstore.BlockSize)
	}
	return nil
}

// Remove removes a volume or an image with its data, or a snapshot or a branch.
func (h *Host) Remove(ctx context.Context, kind api.Kind, name string, o api.RemoveOptions) (api.Removal, error) {
	p, err := h.find(kind, name)
	if err != nil {
		return api.Removal{}, err
	}
	what := string(kind)
	if p.kind() == api.KindSnapshot {
		what = "snapshot"
	}
	line, elsewhere, err := h.forward(ctx, p, call{Method: methodRemove, Kind: kind, Name: name, Remove: o}, nil)
	if elsewhere && err == nil && line.Removal != nil {
		return *line.Removal, nil
	}
	var out api.Removal
	if !elsewhere {
		out, err = h.remove(ctx, p, o)
	}
	if err != nil {
		return api.Removal{}, fmt.Errorf("remove %s %q: %w", what, name, err)
	}
	return out, nil
}

// remove removes what a name means.
func (h *Host) remove(ctx context.Context, p place, o api.RemoveOptions) (api.Removal, error) {
	v, err := h.info(ctx, p)
	switch {
	case err != nil:
		return api.Removal{}, err
	case len(v.Clones) > 0:
		return api.Removal{}, inUse(v)
	case len(v.Snapshots) > 0:
		return api.Removal{}, hasSnapshots(v)
	case p.branch == nil && p.snap == nil && len(p.branches) > 0:
		return api.Removal{}, hasBranches(p.entry)
	case v.Connections > 0 && !o.Force:
		return api.Removal{}, connected(v)
	}
	out := api.Removal{Volume: v, DryRun: o.DryRun, ClosedConns: v.Connections}
	if o.DryRun {
		return out, nil
	}
	if out.ClosedConns, err = h.retire(ctx, p, o.Force); err != nil {
		return api.Removal{}, err
	}
	h.log.Info("removed", "kind", string(p.kind()), "volume", p.name(), "connections", out.ClosedConns)
	return out, nil
}

// retire ends the use of a place, takes its name and deletes its data. It returns
// how many connections it closed.
func (h *Host) retire(ctx context.Context, p place, force bool) (closed int, err error) {
	s := h.slot(p.key())
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.removed {
		return 0, fmt.Errorf("%q: %w", p.name(), scstore.ErrNotFound)
	}
	if closed, err = h.drain(ctx, s, force); err != nil {
		return 0, err
	}
	defer h.volumes.exclude()() // no clone is made of it meanwhile
	return closed, h.volumes.remove(ctx, p, s)
}

// inUse says which clones keep an image, a volume or a snapshot.
func inUse(v api.Volume) error {
	return scstore.Hint(fmt.Errorf("%d volumes are based on it: %w", len(v.Clones), scstore.ErrBusy), "remove them first: %s", some(v.Clones))
}

// hasSnapshots says which snapshots keep a volume.
func hasSnapshots(v api.Volume) error {
	var names []string
	for _, s := range v.Snapshots {
		names = append(names, v.Name+"@"+s.Name)
	}
	return scstore.Hint(fmt.Errorf("it has %d snapshots: %w", len(names), scstore.ErrBusy), "remove them first: %s", some(names))
}

// hasBranches says which branches keep a volume.
func hasBranches(e entry) error {
	names := branchNames(e)
	return scstore.Hint(fmt.Errorf("it has %d branches: %w", len(names), scstore.ErrBusy), "export what you need of them, then remove them first: %s", some(names))
}

// branchNames returns the names of a volume's branches.
func branchNames(e entry) (names []string) {
	for _, b := range e.branches {
		names = append(names, e.Name+meta.BranchSuffix(b.Fence))
	}
	return names
}

// connected says that a disk is in use.
func connected(v api.Volume) error {
	return scstore.Hint(fmt.Errorf("it has %d NBD connections: %w", v.Connections, scstore.ErrBusy),
		"disconnect its users, or close the connections with --force")
}

// some lists the first few names.
func some(names []string) string {
	if len(names) > maxNamed {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:maxNamed], ", "), len(names)-maxNamed)
	}
	return strings.Join(names, ", ")
}

// newID draws the id of a new volume.
func newID() (id scstore.VolumeID) {
	rand.Read(id[:])
	return id
}
