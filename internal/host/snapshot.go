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
		out, err = h.rollback(ctx, p, o, progress)
	}
	if err != nil {
		return out, fmt.Errorf("roll back to %q: %w", name, err)
	}
	return out, nil
}

func (h *Host) rollback(ctx context.Context, p place, o api.RemoveOptions, progress func(done, total int64)) (api.Rollback, error) {
	line, elsewhere, err := h.forward(ctx, p, call{Method: methodRollback, Name: p.name(), Remove: o}, progress)
	if elsewhere {
		if err == nil && line.Rollback != nil {
			return *line.Rollback, nil
		}
		return api.Rollback{}, err
	}
	whole := place{entry: p.entry}
	v := h.describe(whole, nil)
	out := api.Rollback{Snapshot: p.name(), DryRun: o.DryRun, ClosedConns: v.Connections}
	var later []string
	for _, s := range v.Snapshots {
		if s.Position.Compare(p.snap.Position) > 0 {
			later = append(later, p.Name+"@"+s.Name)
		}
	}
	switch {
	case len(later) > 0:
		return out, scstore.Hint(fmt.Errorf("%d snapshots are later: %w", len(later), scstore.ErrBusy), "remove them first: %s", some(later))
	case v.Connections > 0 && !o.Force:
		return out, connected(v)
	}
	if out.LostBytes, err = h.volumes.writtenSince(ctx, p); err != nil || o.DryRun {
		return out, err
	}
	s := h.slot(whole.key())
	s.mu.Lock()
	defer s.mu.Unlock()
	if out.ClosedConns, err = h.drain(ctx, s, o.Force); err != nil {
		return out, err
	}
	if err := h.volumes.rollback(ctx, p, s, progress); err != nil {
		return out, err
	}
	h.log.Info("volume rolled back", "volume", p.Name, "snapshot", p.snap.Name, "bytes", out.LostBytes)
	return out, nil
}
