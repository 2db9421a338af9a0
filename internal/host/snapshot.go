package host

import (
	"context"
	"fmt"
	"strings"
	"time"

	"scstore"
	"scstore/consensus/meta"
	"scstore/internal/api"
)

// CreateSnapshot ends the open epoch of a volume and names it, VOL@SNAP.
func (h *Host) CreateSnapshot(ctx context.Context, name string, progress func(done, total int64)) (api.Volume, error) {
	vol, snap, ok := strings.Cut(name, "@")
	if !ok || snap == "" {
		return api.Volume{}, scstore.Hint(fmt.Errorf("snapshot %q: %w", name, scstore.ErrInvalid), "write VOLUME@SNAPSHOT, like web1@before-update")
	}
	e, err := h.lookup(api.KindVolume, vol)
	if err != nil {
		return api.Volume{}, fmt.Errorf("snapshot %q: %w", name, err)
	}
	op := meta.Snapshot{ID: e.ID, Name: snap, Position: scstore.Position{Epoch: 1}, CreatedAtMs: time.Now().UnixMilli()}
	if err := (meta.Command{Op: op}).Validate(); err != nil { // before the work, not after it
		return api.Volume{}, fmt.Errorf("snapshot %q: %w", name, err)
	}
	if e.snapshot(snap) != nil {
		return api.Volume{}, scstore.Hint(fmt.Errorf("snapshot %q: %w", name, scstore.ErrExists), "choose another name, or remove it first: scstore volume rm %s", name)
	}
	line, elsewhere, err := h.forward(ctx, place{entry: e}, call{Method: methodSnapshot, Name: name}, progress)
	if elsewhere && err == nil && line.Volume != nil {
		return *line.Volume, nil
	}
	if !elsewhere {
		err = h.volumes.seal(ctx, place{entry: e}, op, progress)
	}
	if err != nil {
		return api.Volume{}, fmt.Errorf("snapshot %q: %w", name, err)
	}
	h.log.Info("snapshot made", "volume", vol, "snapshot", snap)
	return h.Get(ctx, api.KindVolume, name)
}

// Rollback makes a volume what it was at a snapshot. What was written since is gone,
// and must not be in a later snapshot: those are to be removed first, so that nobody
// loses one unawares.
func (h *Host) Rollback(ctx context.Context, name string, o api.RemoveOptions, progress func(done, total int64)) (api.Rollback, error) {
	p, err := h.find(api.KindVolume, name)
	if err == nil && p.snap == nil {
		err = scstore.Hint(fmt.Errorf("it names no snapshot: %w", scstore.ErrInvalid), "list them with scstore volume info %s", name)
	}
	var out api.Rollback
	if err == nil {
		out, err = h.volumes.rollback(ctx, p, o, progress)
	}
	if err != nil {
		return out, fmt.Errorf("roll back to %q: %w", name, err)
	}
	return out, nil
}
