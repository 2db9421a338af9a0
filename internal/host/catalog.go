package host

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"scstore"
	"scstore/consensus/meta"
	"scstore/fs/block"
	"scstore/internal/api"
)

var _ api.Service = (*Host)(nil)

// maxNamed bounds how many names an error lists.
const maxNamed = 5

// kindOf translates the kinds.
func kindOf(k meta.Kind) api.Kind {
	if k == meta.KindImage {
		return api.KindImage
	}
	return api.KindVolume
}

// lookup returns the record of a name. Errors: ErrNotFound, also for the other
// kind; kind "" is either.
func (h *Host) lookup(kind api.Kind, name string) (meta.Record, error) {
	var r meta.Record
	ok := false
	h.meta.View(func(s *meta.State) { r, ok = s.Lookup(name) })
	what := kind
	if what == "" {
		what = "volume or image"
	}
	switch {
	case !ok:
		err := fmt.Errorf("%s %q: %w", what, name, scstore.ErrNotFound)
		return r, scstore.Hint(err, "list the names with scstore volume ls and scstore image ls")
	case kind != "" && kindOf(r.Kind) != kind:
		err := fmt.Errorf("%s %q: %w", kind, name, scstore.ErrNotFound)
		return r, scstore.Hint(err, "%q is %s: use scstore %s", name, article(kindOf(r.Kind)), kindOf(r.Kind))
	}
	return r, nil
}

// article returns "an image" or "a volume".
func article(k api.Kind) string {
	if k == api.KindImage {
		return "an image"
	}
	return "a volume"
}

// checkNewName refuses early what meta would refuse at the end.
func (h *Host) checkNewName(kind api.Kind, name string) error {
	if err := meta.ValidateName(name); err != nil {
		return scstore.Hint(fmt.Errorf("%s: %w", kind, err), "write a name like web1 or prod/web1, without @")
	}
	taken, ok := meta.Record{}, false
	h.meta.View(func(s *meta.State) { taken, ok = s.Lookup(name) })
	if ok {
		return scstore.Hint(fmt.Errorf("%s %q: %w", kindOf(taken.Kind), name, scstore.ErrExists),
			"choose another name, or remove it first: scstore %s rm %s", kindOf(taken.Kind), name)
	}
	return nil
}

// describe returns what the API shows of a place, with the names of its base and its
// clones from all.
func (h *Host) describe(r place, all []meta.Record) api.Volume {
	v := api.Volume{
		Name: r.name(), Kind: r.kind(), ID: r.ID, SizeBytes: r.SizeBytes,
		Position: r.Head, Connections: h.connections(r.key()), CreatedAt: atMs(r.CreatedAtMs),
	}
	switch v.Kind {
	case api.KindImage:
		v.Digest = r.Digest.String()
	case api.KindSnapshot:
		v.SizeBytes, v.Position, v.CreatedAt = r.snap.SizeBytes, r.snap.Position, atMs(r.snap.CreatedAtMs)
	case api.KindVolume:
		v.Snapshots = h.describeSnapshots(r.ID, all)
	}
	for _, other := range all {
		if other.ID == r.Base {
			v.Base = h.baseName(other, r.BasePosition)
		}
		if other.Base == r.ID && (r.snap == nil || other.BasePosition == r.snap.Position) {
			v.Clones = append(v.Clones, other.Name)
		}
	}
	slices.Sort(v.Clones)
	return v
}

// describeSnapshots lists a volume's snapshots, by name.
func (h *Host) describeSnapshots(id scstore.VolumeID, all []meta.Record) (list []api.Snapshot) {
	for _, s := range h.snapshots(id) {
		out := api.Snapshot{Name: s.Name, Position: s.Position, SizeBytes: s.SizeBytes, CreatedAt: atMs(s.CreatedAtMs)}
		for _, other := range all {
			if other.Base == id && other.BasePosition == s.Position {
				out.Clones = append(out.Clones, other.Name)
			}
		}
		list = append(list, out)
	}
	return list
}

// baseName names what a clone is based on: an image, or a volume's snapshot.
func (h *Host) baseName(base meta.Record, at scstore.Position) string {
	if base.Kind == meta.KindVolume {
		for _, s := range h.snapshots(base.ID) {
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

// records returns all live records, sorted by name.
func (h *Host) records() (all []meta.Record) {
	h.meta.View(func(s *meta.State) { all = s.List("") })
	return all
}

// List returns the volumes or the images.
func (h *Host) List(_ context.Context, kind api.Kind) ([]api.Volume, error) {
	all := h.records()
	byID, clones := map[scstore.VolumeID]meta.Record{}, map[scstore.VolumeID][]string{}
	for _, r := range all {
		byID[r.ID] = r
		if !r.Base.IsZero() {
			clones[r.Base] = append(clones[r.Base], r.Name)
		}
	}
	var list []api.Volume
	budget := time.Now().Add(walkBudget)
	for _, r := range all {
		if kindOf(r.Kind) != kind {
			continue
		}
		v := h.describe(place{Record: r}, nil)
		v.Base, v.Clones = "", clones[r.ID]
		if base, ok := byID[r.Base]; ok {
			v.Base = h.baseName(base, r.BasePosition)
		}
		v.DataBytes = h.dataBytes(r.ID, budget)
		list = append(list, v)
	}
	return list, nil
}

// Get describes one.
func (h *Host) Get(_ context.Context, kind api.Kind, name string) (api.Volume, error) {
	r, err := h.find(kind, name)
	if err != nil {
		return api.Volume{}, err
	}
	v := h.describe(r, h.records())
	if r.snap == nil {
		v.DataBytes = h.dataBytes(r.ID, time.Now().Add(walkBudget))
		v.DamagedAt = h.damagedAt(r.ID)
	}
	return v, nil
}

// CreateVolume makes a volume, empty or a clone.
func (h *Host) CreateVolume(ctx context.Context, req api.CreateVolume) (api.Volume, error) {
	if err := h.checkNewName(api.KindVolume, req.Name); err != nil {
		return api.Volume{}, err
	}
	h.catalog.Lock()
	defer h.catalog.Unlock()
	op := meta.CreateVolume{ID: newID(), Name: req.Name, SizeBytes: req.SizeBytes, CreatedAtMs: time.Now().UnixMilli()}
	var mark scstore.Tag
	if req.From != "" {
		base, err := h.find(api.KindImage, req.From)
		if err != nil {
			return api.Volume{}, fmt.Errorf("create volume %q: %w", req.Name, err)
		}
		size := base.SizeBytes
		op.Base, op.BasePosition = base.ID, base.Head
		if base.snap != nil {
			size, op.BasePosition, mark = base.snap.SizeBytes, base.snap.Position, snapshotTag(base.snap.Position)
		}
		if op.SizeBytes == 0 {
			op.SizeBytes = size
		}
		if op.SizeBytes < size {
			return api.Volume{}, scstore.Hint(
				fmt.Errorf("create volume %q: %d bytes is less than the %d of %s %q: %w", req.Name, op.SizeBytes, size, base.kind(), req.From, scstore.ErrInvalid),
				"leave the size out to take its size")
		}
	}
	if err := checkVolumeSize(op.SizeBytes); err != nil {
		return api.Volume{}, fmt.Errorf("create volume %q: %w", req.Name, err)
	}
	if _, err := h.blocks.Create(block.CreateOptions{ID: op.ID, SizeBytes: op.SizeBytes, Base: op.Base, BaseMark: mark}); err != nil {
		return api.Volume{}, fmt.Errorf("create volume %q: %w", req.Name, err)
	}
	if err := h.propose(ctx, op.ID, op); err != nil {
		return api.Volume{}, fmt.Errorf("create volume %q: %w", req.Name, err)
	}
	h.log.Info("volume created", "volume", req.Name, "bytes", op.SizeBytes, "base", req.From)
	return h.Get(ctx, api.KindVolume, req.Name)
}

// propose gives a table its name; if the names refuse it, the table goes.
func (h *Host) propose(ctx context.Context, id scstore.VolumeID, op meta.Op) error {
	_, err := h.meta.Propose(ctx, meta.Command{Op: op})
	switch {
	case err == nil:
		return nil
	case errors.Is(err, scstore.ErrPoisoned), errors.Is(err, scstore.ErrIndeterminate):
		return err // it may have its name: the next start looks
	}
	return errors.Join(err, h.blocks.Delete(id))
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

// Remove removes a volume or an image with its data.
func (h *Host) Remove(ctx context.Context, kind api.Kind, name string, o api.RemoveOptions) (api.Removal, error) {
	p, err := h.find(kind, name)
	if err != nil {
		return api.Removal{}, err
	}
	if p.snap != nil {
		out, err := h.removeSnapshot(ctx, p, o)
		if err != nil {
			return out, fmt.Errorf("remove snapshot %q: %w", name, err)
		}
		return out, nil
	}
	v, err := h.Get(ctx, kind, name)
	switch {
	case err != nil:
		return api.Removal{}, err
	case len(v.Clones) > 0:
		return api.Removal{}, fmt.Errorf("remove %s %q: %w", kind, name, inUse(v))
	case len(v.Snapshots) > 0:
		return api.Removal{}, fmt.Errorf("remove %s %q: %w", kind, name, hasSnapshots(v))
	case v.Connections > 0 && !o.Force:
		return api.Removal{}, fmt.Errorf("remove %s %q: %w", kind, name, connected(v))
	}
	out := api.Removal{Volume: v, DryRun: o.DryRun, ClosedConns: v.Connections}
	if o.DryRun {
		return out, nil
	}
	closed, err := h.retire(ctx, v, o.Force)
	if err != nil {
		return api.Removal{}, fmt.Errorf("remove %s %q: %w", kind, name, err)
	}
	out.ClosedConns = closed
	h.log.Info("removed", "kind", string(kind), "volume", name, "connections", closed)
	return out, nil
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

// retire ends the use of a volume, takes its name and deletes its data. It returns
// how many connections it closed.
func (h *Host) retire(ctx context.Context, v api.Volume, force bool) (closed int, err error) {
	key := slotKey{id: v.ID}
	s := h.slot(key)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.removed {
		return 0, fmt.Errorf("%q: %w", v.Name, scstore.ErrNotFound)
	}
	if closed, err = h.drain(ctx, s, force); err != nil {
		return 0, err
	}
	h.catalog.Lock()
	defer h.catalog.Unlock()
	// By id: the name may be another's by now.
	if _, err := h.meta.Propose(ctx, meta.Command{Op: meta.Remove{ID: v.ID}}); err != nil {
		return 0, err
	}
	// From here on it is gone; a crash leaves the rest to the next start.
	s.removed = true
	h.dropSlot(key)
	if err := s.close(); err != nil {
		h.log.Warn("removed volume did not close", "volume", v.Name, "err", err)
	}
	if err := h.blocks.Delete(v.ID); err != nil {
		return 0, err
	}
	_, err = h.meta.Propose(context.WithoutCancel(ctx), meta.Command{Op: meta.Forget{ID: v.ID}})
	return closed, err
}

// newID draws the id of a new volume.
func newID() (id scstore.VolumeID) {
	rand.Read(id[:])
	return id
}
