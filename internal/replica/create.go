package replica

import (
	"context"
	"errors"
	"fmt"

	"scstore"
	"scstore/consensus/meta"
)

// Create makes a volume that this host owns: its record, without a name, then its table,
// then the right to write it. What is known of it here comes first, so that a restart finds
// what a crash left. A clone's base is brought here, as far as its map. Errors: those of
// meta.CreateVolume and meta.OpenFence; ErrUnreachable if no holder of the base answers.
func (s *Set) Create(ctx context.Context, g meta.GroupID, op meta.CreateVolume) error {
	if err := s.create(ctx, g, op); err != nil {
		return fmt.Errorf("create volume %s: %w", op.ID, err)
	}
	return nil
}

func (s *Set) create(ctx context.Context, g meta.GroupID, op meta.CreateVolume) error {
	if op.Name != "" {
		return fmt.Errorf("name %q comes later: %w", op.Name, scstore.ErrInvalid)
	}
	if err := (meta.Command{Op: op}).Validate(); err != nil {
		return err
	}
	if !op.Base.IsZero() {
		if err := s.bringBase(ctx, g, op.Base, op.BasePosition); err != nil {
			return err
		}
	}
	r := s.replica(op.ID)
	if err := r.begin(g, op.SizeBytes, op.Base, op.BasePosition); err != nil {
		return err
	}
	if _, err := s.o.Log.Propose(ctx, g, op); err != nil {
		return s.undo(r, err)
	}
	r.mu.Lock()
	err := r.makeTable(op.SizeBytes, op.Base, op.BasePosition)
	r.mu.Unlock()
	if err == nil {
		_, err = s.o.Log.Propose(ctx, g, meta.OpenFence{ID: op.ID, Holder: s.o.Disk})
	}
	if err != nil { // the sweep of the next start, or of orphans, removes the record
		s.ask("remove"+op.ID.String(), g, meta.Remove{ID: op.ID})
		return err
	}
	s.review(g, []scstore.VolumeID{op.ID})
	return r.wait(ctx, func() (bool, error) { return r.v != nil, nil })
}

// begin writes down that a volume is being made here.
func (r *Replica) begin(g meta.GroupID, size int64, base scstore.VolumeID, baseAt scstore.Position) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.table != nil || r.facts.Creating {
		return fmt.Errorf("volume %s: %w", r.id, scstore.ErrExists)
	}
	r.group = g
	r.facts.SizeBytes, r.facts.Base, r.facts.BasePosition, r.facts.Creating = size, base, baseAt, true
	return r.save()
}

// undo forgets a volume whose record was refused. If that is not certain, the next start
// finds out.
func (s *Set) undo(r *Replica, cause error) error {
	if errors.Is(cause, scstore.ErrIndeterminate) || errors.Is(cause, context.Canceled) || errors.Is(cause, context.DeadlineExceeded) {
		return cause
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.facts.Creating = false
	if _, err := r.forget(); err != nil {
		return errors.Join(cause, err)
	}
	return cause
}

// bringBase has what a clone is based on here, at least as a map.
func (s *Set) bringBase(ctx context.Context, g meta.GroupID, id scstore.VolumeID, at scstore.Position) error {
	s.join(id, g)
	base := s.replica(id)
	base.mu.Lock()
	here := base.table != nil && base.table.Marked(sealedTag(at))
	base.mu.Unlock()
	if here {
		return nil
	}
	var from []meta.DiskID
	if err := s.o.Log.View(g, func(st *meta.State) { from = s.holders(st, id, at) }); err != nil {
		return err
	}
	err := fmt.Errorf("base %s at %s: %w", id, at, scstore.ErrUnreachable)
	for _, disk := range from {
		var got scstore.Position
		if got, err = base.partial(ctx, at, disk); err == nil && got == at {
			return nil
		}
	}
	return err
}

// Reserve writes down that an image is being made here, in a table with its id, so that a
// restart removes what a crash leaves of it. Adopt follows, or Abandon.
func (s *Set) Reserve(g meta.GroupID, id scstore.VolumeID, sizeBytes int64) error {
	if err := s.replica(id).begin(g, sizeBytes, scstore.VolumeID{}, scstore.Position{}); err != nil {
		return fmt.Errorf("reserve image %s: %w", id, err)
	}
	return nil
}

// Abandon removes what was made of a reserved image.
func (s *Set) Abandon(id scstore.VolumeID) error {
	r := s.replica(id)
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.facts.Creating {
		return fmt.Errorf("abandon image %s: it is not being made: %w", id, scstore.ErrInvalid)
	}
	if t, err := s.o.Blocks.Table(id); err == nil {
		r.table = t
	}
	r.facts.Creating = false
	_, err := r.forget()
	return err
}

// Adopt records an image whose table is complete here, with the mark of op.Position.
// Errors: ErrNotFound without such a table; those of meta.CreateImage.
func (s *Set) Adopt(ctx context.Context, op meta.CreateImage, g meta.GroupID) error {
	t, err := s.o.Blocks.Table(op.ID)
	if err == nil && !t.Marked(sealedTag(op.Position)) {
		err = fmt.Errorf("no mark of %s: %w", op.Position, scstore.ErrNotFound)
	}
	if err != nil {
		return fmt.Errorf("image %s: %w", op.ID, err)
	}
	r := s.replica(op.ID)
	r.mu.Lock()
	r.group, r.table = g, t
	r.facts.SizeBytes, r.facts.Creating = t.SizeBytes(), true
	r.facts.hold(op.Position)
	err = r.save()
	r.mu.Unlock()
	if err == nil {
		_, err = s.o.Log.Propose(ctx, g, op)
	}
	if err != nil {
		return fmt.Errorf("image %s: %w", op.ID, s.undo(r, err))
	}
	r.mu.Lock()
	r.facts.Creating = false
	err = r.save()
	r.mu.Unlock()
	s.wakeUp()
	return err
}
