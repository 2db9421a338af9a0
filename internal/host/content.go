package host

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"scstore"
	"scstore/consensus/meta"
	"scstore/fs/block"
	"scstore/fs/volume"
	"scstore/internal/api"
)

const (
	// publishBytes of an import are published at once: enough for large writes, and
	// the memory of a host that imports stays small.
	publishBytes = 4 << 20
	// statusStep is how much of a map is walked at once, in bytes.
	statusStep = 256 << 20
	// walkBudget is how long a description may take to count a volume's data.
	walkBudget = time.Second
)

// importFence is the fence of an image's one epoch: nobody else ever wrote it.
const importFence = scstore.Fence(1)

// unfinished is on the table of an import until the image has its name.
var unfinished = scstore.Tag{Kind: scstore.TagUnfinished, ID: [16]byte{15: 1}}

// BeginImport makes a table without a name. It is deleted by Abort, or by the next
// start (I2). The mark comes before the first block in the log, so no crash leaves a
// block without it.
func (h *Host) BeginImport(_ context.Context, name string, sizeBytes int64) (api.Import, error) {
	if err := h.checkNewName(api.KindImage, name); err != nil {
		return nil, fmt.Errorf("import: %w", err)
	}
	if err := checkVolumeSize(sizeBytes); err != nil {
		return nil, fmt.Errorf("import %q: %w", name, err)
	}
	id := newID()
	g, err := h.volumes.reserve(id, sizeBytes)
	if err != nil {
		return nil, fmt.Errorf("import %q: %w", name, err)
	}
	t, err := h.blocks.Create(block.CreateOptions{ID: id, SizeBytes: sizeBytes})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("import %q: %w", name, err), h.volumes.abandon(id))
	}
	var v *volume.Volume
	if err = t.Mark(unfinished); err == nil {
		v, err = volume.Open(volume.Options{ID: id, Table: table{t}, Fence: importFence})
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("import %q: %w", name, err), h.volumes.abandon(id))
	}
	return &importing{h: h, name: name, group: g, t: t, v: v}, nil
}

// importing is an image that is being filled.
type importing struct {
	h           *Host
	name        string
	group       meta.GroupID
	t           *block.Table
	v           *volume.Volume
	unpublished int
	ended       bool
}

// WriteAt writes data.
func (i *importing) WriteAt(p []byte, off int64) error {
	if err := i.v.WriteAt(p, off); err != nil {
		return err
	}
	return i.wrote(len(p))
}

// Zero writes zeros.
func (i *importing) Zero(off, length int64) error {
	if err := i.v.Zero(off, length, false); err != nil {
		return err
	}
	return i.wrote(0)
}

// wrote publishes now and then.
func (i *importing) wrote(n int) error {
	if i.unpublished += n; i.unpublished < publishBytes {
		return nil
	}
	i.unpublished = 0
	return i.v.Publish()
}

// Commit seals the image, freezes and names it.
func (i *importing) Commit(ctx context.Context) (api.Volume, error) {
	m, err := i.v.Seal(ctx, nil)
	if err == nil {
		err = i.v.Close()
	}
	if err != nil {
		return api.Volume{}, fmt.Errorf("import %q: %w", i.name, err)
	}
	err = i.h.volumes.adopt(ctx, i.name, i.group, i.t, meta.CreateImage{
		ID: m.Volume, SizeBytes: m.SizeBytes, Position: m.Position, Digest: m.Root, CreatedAtMs: time.Now().UnixMilli(),
	})
	if err != nil {
		// It may have its name: the next start looks.
		i.ended = errors.Is(err, scstore.ErrPoisoned) || errors.Is(err, scstore.ErrIndeterminate)
		return api.Volume{}, fmt.Errorf("import %q: %w", i.name, err)
	}
	i.ended = true
	if err := i.t.Unmark(unfinished); err != nil {
		i.h.log.Warn("the mark of an import is left to the next start", "image", i.name, "err", err)
	}
	i.h.log.Info("image imported", "image", i.name, "bytes", m.SizeBytes)
	return i.h.Get(ctx, api.KindImage, i.name)
}

// Abort deletes the table.
func (i *importing) Abort() error {
	if i.ended {
		return nil
	}
	i.ended = true
	return errors.Join(i.v.Close(), i.h.volumes.abandon(i.t.ID()))
}

// OpenSource opens a view of one moment: what is written to a volume from now on
// is not in it.
func (h *Host) OpenSource(ctx context.Context, kind api.Kind, name string) (api.Source, error) {
	p, err := h.find(kind, name)
	if err != nil {
		return nil, fmt.Errorf("export: %w", err)
	}
	u, err := h.volumes.open(ctx, p, false) // keeps it from being removed
	if err != nil {
		return nil, fmt.Errorf("export %q: %w", name, err)
	}
	src, err := h.volumes.source(ctx, p, u)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("export %q: %w", name, err), u.release())
	}
	return src, nil
}

// source is a volume on a view.
type source struct {
	*volume.Volume
	pin    volume.View
	u      *use
	closed atomic.Bool
}

// Close gives the view up.
func (s *source) Close() error {
	if s.closed.Swap(true) {
		return nil
	}
	s.pin.Release()
	return errors.Join(s.Volume.Close(), s.u.release())
}

// dataBytes counts what a volume holds of its own, or returns nil if that takes
// beyond the deadline, or cannot be read.
func (h *Host) dataBytes(id scstore.VolumeID, deadline time.Time) *int64 {
	t, err := h.blocks.Table(id)
	if err != nil {
		return nil
	}
	var bytes int64
	var pieces []scstore.Piece
	blocks := uint64(t.SizeBytes()) / scstore.BlockSize
	for at := uint64(0); at < blocks; at += statusStep / scstore.BlockSize {
		if time.Now().After(deadline) {
			return nil
		}
		e := scstore.Extent{First: scstore.BlockIndex(at), Count: min(blocks-at, statusStep/scstore.BlockSize)}
		if pieces, err = t.Status(e, pieces[:0]); err != nil {
			return nil
		}
		for _, p := range pieces {
			if p.State == scstore.PieceData {
				bytes += int64(p.Count) * scstore.BlockSize
			}
		}
	}
	return &bytes
}
