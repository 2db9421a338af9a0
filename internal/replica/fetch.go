package replica

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"scstore"
	"scstore/consensus/meta"
	"scstore/fs/block"
	"scstore/fs/volume"
	"scstore/propagate"
	"scstore/propagate/quicnet"
	"scstore/propagate/wire"
)

const (
	fetchBlocks  = volume.SpanBlocks // what is missing is fetched by aligned MiB, which reads ahead
	fetchTimeout = 10 * time.Second  // for one of them from one host
	fetchAtOnce  = 16                // of one request
	demandBlocks = 8                 // of a read that does not wait for the MiB around them
)

// flightKey names what is fetched once, however many ask: a MiB of a volume at a position,
// or a few blocks of it.
type flightKey struct {
	id  scstore.VolumeID
	at  scstore.Position
	mib uint64
	few scstore.Extent // the first of them; zero for all of the MiB
}

// flight is such a fetch.
type flight struct {
	done chan struct{}
	err  error // once done is closed
}

// bringMissing fetches what an operation on the volume lacked, of the level that it names:
// step R5. Errors: ErrUnreachable if no holder answers; ctx's.
func (r *Replica) bringMissing(ctx context.Context, m *volume.MissingError, class quicnet.Class) error {
	owner, at, err := r.level(m.Level)
	if err != nil {
		return err
	}
	return owner.bring(ctx, at, spansOf(m.Extents), class)
}

// bringDemanded is bringMissing for a read. A few blocks come on their own, and the MiBs
// around them after that, as far as not many are on their way: over 200 Mbit/s a MiB takes
// 42 ms.
func (r *Replica) bringDemanded(ctx context.Context, m *volume.MissingError) error {
	owner, at, err := r.level(m.Level)
	if err != nil {
		return err
	}
	spans := spansOf(m.Extents)
	if countBlocks(m.Extents) > demandBlocks {
		return owner.bring(ctx, at, spans, quicnet.ClassDemand)
	}
	few := r.set.fly(owner, flightKey{owner.id, at, spans[0], m.Extents[0]}, m.Extents, quicnet.ClassDemand)
	for _, span := range spans {
		if r.set.flying() < fillAtOnce+fetchAtOnce {
			r.set.flySpan(owner, at, span, quicnet.ClassHot)
		}
	}
	return few.wait(ctx, owner)
}

// spansOf returns the numbers of the MiBs that extents, which ascend, have blocks of.
func spansOf(extents []scstore.Extent) (spans []uint64) {
	for _, e := range extents {
		for n := uint64(e.First) / fetchBlocks; n <= uint64(e.End()-1)/fetchBlocks; n++ {
			if len(spans) == 0 || spans[len(spans)-1] != n {
				spans = append(spans, n)
			}
		}
	}
	return spans
}

// level returns the replica whose table is at a level of the volume's chain, and the
// position at which what it lacks is shown.
func (r *Replica) level(n int) (*Replica, scstore.Position, error) {
	at := scstore.Position{}
	for range n {
		r.mu.Lock()
		base, baseAt := r.facts.Base, r.facts.BasePosition
		r.mu.Unlock()
		next, ok := r.set.lookup(base)
		if !ok {
			return nil, at, fmt.Errorf("base of volume %s: %w", r.id, scstore.ErrNotFound)
		}
		r, at = next, baseAt
	}
	if n == 0 {
		r.mu.Lock()
		at = r.facts.Partial
		r.mu.Unlock()
	}
	return r, at, nil
}

// bring fetches what some MiBs lack at a position.
func (r *Replica) bring(ctx context.Context, at scstore.Position, spans []uint64, class quicnet.Class) error {
	for len(spans) > 0 {
		n := min(len(spans), fetchAtOnce)
		flights := make([]*flight, n)
		for i, span := range spans[:n] {
			flights[i] = r.set.flySpan(r, at, span, class)
		}
		for _, f := range flights {
			if err := f.wait(ctx, r); err != nil {
				return err
			}
		}
		spans = spans[n:]
	}
	return nil
}

// wait waits until what was asked for is here, or does not come.
func (f *flight) wait(ctx context.Context, r *Replica) error {
	select {
	case <-f.done:
		return f.err
	case <-ctx.Done():
		return fmt.Errorf("fetch blocks of volume %s: %w", r.id, context.Cause(ctx))
	}
}

// flying returns how many fetches are under way.
func (s *Set) flying() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.flights)
}

// flySpan begins to fetch a MiB, or joins who does.
func (s *Set) flySpan(r *Replica, at scstore.Position, span uint64, class quicnet.Class) *flight {
	mib := scstore.Extent{First: scstore.BlockIndex(span * fetchBlocks), Count: fetchBlocks}
	return s.fly(r, flightKey{id: r.id, at: at, mib: span}, []scstore.Extent{mib}, class)
}

// fly begins to fetch what blocks lack, or joins who does.
func (s *Set) fly(r *Replica, key flightKey, wanted []scstore.Extent, class quicnet.Class) *flight {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f := s.flights[key]; f != nil {
		return f
	}
	f := &flight{done: make(chan struct{})}
	if s.closed {
		f.err = errClosing
		close(f.done)
		return f
	}
	s.flights[key] = f
	s.wg.Go(func() {
		began := s.now()
		f.err = s.fetch(s.ctx, r, key.at, wanted, class)
		s.metrics.fetch.Observe((s.now() - began).Seconds())
		s.mu.Lock()
		delete(s.flights, key)
		s.mu.Unlock()
		close(f.done)
	})
	return f
}

// fetch asks one holder after the other for what blocks lack.
func (s *Set) fetch(ctx context.Context, r *Replica, at scstore.Position, wanted []scstore.Extent, class quicnet.Class) error {
	r.mu.Lock()
	t, g := r.table, r.group
	r.mu.Unlock()
	if t == nil {
		return fmt.Errorf("fetch blocks of volume %s: %w", r.id, scstore.ErrNotFound)
	}
	missing, err := missingIn(t, at, wanted)
	if err != nil || len(missing) == 0 {
		return err
	}
	var from []meta.DiskID
	if err := s.o.Log.View(g, func(st *meta.State) { from = s.anyHolders(st, r.id, at) }); err != nil {
		return err
	}
	var errs []error
	for _, disk := range from {
		err := s.fetchFrom(ctx, peer{s, disk, class}, r.id, t, at, missing)
		if err != nil {
			errs = append(errs, fmt.Errorf("host %s: %w", s.o.HostName(disk), err))
			if ctx.Err() != nil {
				break
			}
		}
		if missing, err = missingIn(t, at, wanted); err != nil || len(missing) == 0 {
			return err
		}
	}
	return fmt.Errorf("fetch blocks %d+%d of volume %s at %s: none of %d holders has them: %w: %w",
		missing[0].First, missing[0].Count, r.id, at, len(from), scstore.ErrUnreachable, errors.Join(errs...))
}

// anyHolders returns who has a position completely, and then who may have parts of it.
func (s *Set) anyHolders(st *meta.State, id scstore.VolumeID, at scstore.Position) []meta.DiskID {
	list := s.holders(st, id, at)
	add := func(disk meta.DiskID) {
		if disk != "" && disk != s.o.Disk && !slices.Contains(list, disk) {
			list = append(list, disk)
		}
	}
	for _, g := range slices.Backward(st.Grants(id)) {
		if g.Fence <= at.Fence+1 {
			add(g.Holder)
		}
	}
	for _, m := range st.Replicas(id) {
		add(m.Disk)
	}
	return list
}

// missingIn returns which blocks a table lacks in the view of a mark.
func missingIn(t *block.Table, at scstore.Position, wanted []scstore.Extent) (list []scstore.Extent, err error) {
	if t.RemoteBlocks() == 0 {
		return nil, nil
	}
	pin, err := t.At(sealedTag(at))
	if err != nil {
		return nil, err
	}
	defer pin.Release()
	for _, e := range wanted {
		part, err := remoteOf(pin, e.Clamp(blocksOf(t)))
		if err != nil {
			return nil, err
		}
		list = append(list, part...)
	}
	return list, nil
}

// remoteOf returns the blocks of an extent that a view shows as remote.
func remoteOf(pin *block.Pin, e scstore.Extent) (list []scstore.Extent, err error) {
	if e.Count == 0 {
		return nil, nil
	}
	pieces, err := pin.Status(e, nil)
	if err != nil {
		return nil, err
	}
	for _, p := range pieces {
		if p.State == scstore.PieceRemote {
			list = append(list, p.Extent)
		}
	}
	return list, nil
}

// fetchFrom asks one host for blocks and fills them in.
func (s *Set) fetchFrom(ctx context.Context, p peer, id scstore.VolumeID, t *block.Table, at scstore.Position, missing []scstore.Extent) error {
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	stream, err := p.Open(ctx)
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { _ = stream.Close() })()
	m := wire.BlocksRequest{Volume: id, Position: at, Extents: missing}
	_, err = stream.Write(m.AppendTo(nil))
	if err == nil {
		err = stream.CloseWrite()
	}
	if err == nil {
		v := &propagate.Receiver{Jump: asked{missing}, Stage: filling{t, sealedTag(at)}}
		err = v.Blocks(0, stream)
	}
	return errors.Join(err, stream.Close())
}

// asked takes what comes for a request that belongs to no jump: what was asked for.
type asked struct{ extents []scstore.Extent }

// Run keeps a run that was asked for.
func (a asked) Run(_ propagate.RequestID, m wire.Run) (bool, error) {
	e := scstore.Extent{First: m.First, Count: uint64(m.Blocks)}
	if countBlocks(intersect(a.extents, []scstore.Extent{e})) != e.Count {
		return false, fmt.Errorf("blocks %d+%d were not asked for: %w", e.First, e.Count, scstore.ErrCorrupt)
	}
	return true, nil
}

// Manifest refuses what was not asked for.
func (asked) Manifest(wire.Manifest) error { return errUnasked }

// Extents refuses what was not asked for.
func (asked) Extents([]scstore.Extent) error { return errUnasked }

// Spans refuses what was not asked for.
func (asked) Spans(wire.Spans) error { return errUnasked }

// ManifestEnd refuses what was not asked for.
func (asked) ManifestEnd() error { return errUnasked }

// Staged has nothing to note: the table knows.
func (asked) Staged(propagate.RequestID, wire.Run) {}

// BadBase has nothing to note: no base was named.
func (asked) BadBase(wire.Run) {}

// Absent has nothing to note: the table knows what is still missing.
func (asked) Absent(propagate.RequestID, []scstore.Extent) {}

// Close has nothing to note.
func (asked) Close(propagate.RequestID, bool) {}

var errUnasked = fmt.Errorf("a manifest in an answer with blocks: %w", scstore.ErrCorrupt)

// filling is where such an answer goes.
type filling struct {
	t  *block.Table
	at scstore.Tag
}

// WriteBlocks fills in what is missing of the blocks.
func (f filling) WriteBlocks(first scstore.BlockIndex, p []byte) error {
	_, err := f.t.Fill(f.at, first, p)
	return err
}

// ZeroBlocks fills in zeros.
func (f filling) ZeroBlocks(e scstore.Extent) error {
	_, err := f.t.FillZeros(f.at, e)
	return err
}
