package replica

import (
	"context"
	"fmt"

	"github.com/prometheus/client_golang/prometheus"

	"scstore"
	"scstore/consensus/meta"
	"scstore/fs/block"
	"scstore/fs/volume"
	"scstore/propagate"
	"scstore/propagate/wire"
)

var _ propagate.Library = library{}

// library is what this host has, for other hosts.
type library struct{ s *Set }

// Offer answers what differs between two positions within a window. One that is not known
// here is taken as an older one that is, if there is one, or as no position at all: then
// every block may differ.
func (l library) Offer(ctx context.Context, m wire.ManifestRequest) (propagate.Offer, func(), error) {
	s := l.s
	select {
	case s.offers <- struct{}{}:
	case <-ctx.Done():
		return propagate.Offer{}, nil, fmt.Errorf("offer volume %s: %w", m.Volume, scstore.ErrBusy)
	}
	o, release, err := s.offer(ctx, m)
	if err != nil {
		<-s.offers
		return o, nil, fmt.Errorf("offer volume %s at %s: %w", m.Volume, m.To, err)
	}
	return o, func() {
		release()
		<-s.offers
	}, nil
}

func (s *Set) offer(ctx context.Context, m wire.ManifestRequest) (propagate.Offer, func(), error) {
	r, ok := s.lookup(m.Volume)
	if !ok {
		return propagate.Offer{}, nil, scstore.ErrNotFound
	}
	from, known := s.between(r, m.From, m.To)
	r.mu.Lock()
	t, marks, owner := r.table, r.marks(), r.v
	whole := t != nil && r.facts.holds(m.To)
	r.mu.Unlock()
	if !whole {
		return propagate.Offer{}, nil, fmt.Errorf("not all of it is here: %w", scstore.ErrNotFound)
	}
	v, release, err := viewAt(t, m.To)
	if err != nil {
		return propagate.Offer{}, nil, err
	}
	o := propagate.Offer{Request: m, SizeBytes: t.SizeBytes(), Digest: digests(owner, v, m.To), Root: root}
	window := m.Window.Clamp(blocksOf(t))
	switch {
	case window.Count == 0:
	case known:
		o.Changed, err = changedWithin(ctx, t, marks, from, m.To, window)
	default:
		o.Changed = []scstore.Extent{window}
	}
	if err != nil {
		release()
		return o, nil, err
	}
	return o, release, nil
}

// digests returns the digests of the spans of a view at a position. Those that the owner's
// seals left in memory are not made again; a wrong one would fail the copy, which verifies
// what it gets against them.
func digests(owner, view *volume.Volume, at scstore.Position) func(number uint64) (scstore.Digest, error) {
	return func(number uint64) (scstore.Digest, error) {
		if owner != nil {
			if d, ok := owner.SealedDigest(number, at); ok {
				return d, nil
			}
		}
		return view.DigestSpan(number)
	}
}

// between returns a position that is marked here and between which and to everything has
// changed that differs between from and to: from itself, or one that it came about from,
// if to came about from it. On the way back to an older position none but from will do.
// The zero position is known of a volume whose table was begun here or as a copy.
func (s *Set) between(r *Replica, from, to scstore.Position) (at scstore.Position, known bool) {
	r.mu.Lock()
	marks, g := r.marks(), r.group
	r.mu.Unlock()
	for _, p := range marks {
		if p == from {
			return p, true
		}
	}
	if from == (scstore.Position{}) {
		return from, true
	}
	if err := s.o.Log.View(g, func(st *meta.State) {
		if yes, sure := st.IsAncestor(r.id, from, to); !yes || !sure {
			return
		}
		for _, p := range marks {
			if p == (scstore.Position{}) {
				continue
			}
			if yes, sure := st.IsAncestor(r.id, p, from); yes && sure {
				at, known = p, true
			}
		}
	}); err != nil {
		return at, false
	}
	return at, known
}

// Open opens a volume at a position that is here, in whole or in part.
func (l library) Open(_ context.Context, id scstore.VolumeID, at scstore.Position) (propagate.Reader, func(), error) {
	r, ok := l.s.lookup(id)
	if !ok {
		return nil, nil, fmt.Errorf("volume %s: %w", id, scstore.ErrNotFound)
	}
	r.mu.Lock()
	t := r.table
	r.mu.Unlock()
	if t == nil {
		return nil, nil, fmt.Errorf("volume %s: %w", id, scstore.ErrNotFound)
	}
	v, release, err := viewAt(t, at)
	if err != nil {
		return nil, nil, err
	}
	return v, release, nil
}

// viewAt opens a table's volume as a mark shows it.
func viewAt(t *block.Table, at scstore.Position) (*volume.Volume, func(), error) {
	pin, err := t.At(sealedTag(at))
	if err != nil {
		return nil, nil, err
	}
	v, err := volume.Open(volume.Options{ID: t.ID(), View: pin, Base: baseChain(t)})
	if err != nil {
		pin.Release()
		return nil, nil, err
	}
	return v, pin.Release, nil
}

// countedStream counts the bytes of a stream's payload.
type countedStream struct {
	propagate.Stream
	read, written prometheus.Counter
}

func (c *countedStream) Read(p []byte) (int, error) {
	n, err := c.Stream.Read(p)
	if c.read != nil {
		c.read.Add(float64(n))
	}
	return n, err
}

func (c *countedStream) Write(p []byte) (int, error) {
	n, err := c.Stream.Write(p)
	if c.written != nil {
		c.written.Add(float64(n))
	}
	return n, err
}
