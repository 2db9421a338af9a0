package block

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"scstore"
	"scstore/fs/block/disk/crashdisk"
	"scstore/internal/invariant"
)

const markBlocks = 96

// cell is one version of a block. Views that show the same version share it, so
// that content which arrives late reaches all of them and no other.
type cell struct {
	value  uint64 // what it reads as; 0: zeros
	remote bool   // not here yet
}

// content is what one view of the table shows: a cell for each block, 0 for zeros.
type content [markBlocks]int32

// moment is what a mark shows.
type moment struct {
	gen int // rises where a generation ends
	content
}

// model is a table with marks as the simplest program could have it.
type model struct {
	cells []cell
	head  moment
	marks map[scstore.Tag]moment
}

func newModel() *model { return &model{cells: make([]cell, 1), marks: map[scstore.Tag]moment{}} }

func (m *model) copy() *model {
	return &model{slices.Clone(m.cells), m.head, maps.Clone(m.marks)}
}

// put gives blocks of the head new versions.
func (m *model) put(first, n, value uint64, remote bool) {
	for b := first; b < first+n; b++ {
		m.head.content[b] = int32(len(m.cells))
		m.cells = append(m.cells, cell{value, remote})
		if value != 0 {
			value++
		}
	}
}

// view returns what a tag shows; the zero tag's is the head.
func (m *model) view(tag scstore.Tag) moment {
	if tag.IsZero() {
		return m.head
	}
	return m.marks[tag]
}

func (m *model) mark(tag scstore.Tag) {
	m.marks[tag] = m.head
	m.head.gen++
}

func (m *model) rollback(to scstore.Tag) {
	gen := m.head.gen + 1
	m.head = m.marks[to]
	for tag, at := range m.marks {
		if at.gen > m.head.gen {
			delete(m.marks, tag)
		}
	}
	m.head.gen = gen
}

// event is what one record of the log does to the model.
type event func(*model)

// markHistory is what was done to a table. A recovered one must equal the model
// after some prefix of the events, no shorter than what was made durable.
type markHistory struct {
	mu      sync.Mutex
	base    *model // before the first event; never changed
	events  []event
	flushed int // events
}

func (h *markHistory) add(e ...event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.events = append(h.events, e...)
}

func (h *markHistory) flush() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.flushed = len(h.events)
}

func (h *markHistory) snapshot() *markHistory {
	h.mu.Lock()
	defer h.mu.Unlock()
	return &markHistory{base: h.base, events: h.events[:len(h.events):len(h.events)], flushed: h.flushed}
}

// seen is what a view of the real table shows of a block.
type seen struct {
	value  uint64
	remote bool
	gen    uint32 // of a remote one
}

// observe reads the head and every mark.
func observe(t *Table) (map[scstore.Tag][]seen, error) {
	out := map[scstore.Tag][]seen{}
	for _, tag := range append(t.Marks(), scstore.Tag{}) {
		pin := &Pin{View: View{t, headGen}}
		if !tag.IsZero() {
			var err error
			if pin, err = t.At(tag); err != nil {
				return nil, err
			}
			defer pin.Release()
		}
		p := make([]byte, markBlocks*scstore.BlockSize)
		gaps, _, err := pin.ReadBlocks(0, p, nil, false)
		if err != nil {
			return nil, fmt.Errorf("view %s: %w", tag, err)
		}
		view := make([]seen, markBlocks)
		for _, g := range gaps {
			clear(p[g.First.Offset():g.End().Offset()])
			for b := g.First; b < g.End(); b++ {
				view[b].remote = g.State == scstore.PieceRemote
			}
		}
		var locs [markBlocks]loc
		var gens [markBlocks]uint32
		if err := t.store.resolveAll(t, pin.gen, 0, locs[:], gens[:]); err != nil {
			return nil, err
		}
		for b := range view {
			block := p[b*scstore.BlockSize:]
			view[b].value = binary.BigEndian.Uint64(block[8:])
			if got := binary.BigEndian.Uint64(block); view[b].value != 0 && got != uint64(b) {
				return nil, fmt.Errorf("view %s: block %d holds block %d", tag, b, got)
			}
			if view[b].remote {
				view[b].gen = gens[b]
			}
		}
		out[tag] = view
	}
	return out, nil
}

// differs says where the model differs from what was observed.
func (m *model) differs(obs map[scstore.Tag][]seen) error {
	if len(obs) != len(m.marks)+1 {
		return fmt.Errorf("%d marks, want %d", len(obs)-1, len(m.marks))
	}
	for b := range markBlocks {
		gens, cells := map[int32]uint32{}, map[uint32]int32{} // remote versions one to one
		for tag, view := range obs {
			if _, ok := m.marks[tag]; !ok && !tag.IsZero() {
				return fmt.Errorf("mark %s: nobody made it", tag)
			}
			at := m.view(tag).content[b]
			c, got := m.cells[at], view[b]
			switch {
			case c.remote != got.remote, !c.remote && c.value != got.value:
				return fmt.Errorf("view %s, block %d: got %+v, want %+v", tag, b, got, c)
			case !c.remote:
				continue
			}
			gen, known := gens[at]
			same, used := cells[got.gen]
			if known && gen != got.gen || used && same != at {
				return fmt.Errorf("view %s, block %d: remote in generation %d, shared wrongly", tag, b, got.gen)
			}
			gens[at], cells[got.gen] = got.gen, at
		}
	}
	return nil
}

// survived finds the prefix that the table shows, and returns the model after it.
func (h *markHistory) survived(t *Table) (*model, error) {
	obs, err := observe(t)
	if err != nil {
		return nil, err
	}
	m := h.base.copy()
	var first error
	for k := 0; ; k++ {
		if k >= h.flushed {
			err := m.differs(obs)
			if err == nil {
				return m, nil
			}
			if first == nil {
				first = err
			}
		}
		if k == len(h.events) {
			return nil, fmt.Errorf("no state between event %d and %d looks like this; the first: %w", h.flushed, k, first)
		}
		h.events[k](m)
	}
}

// markPoint is a disk as a power loss left it, and what it has to show.
type markPoint struct {
	d     *crashdisk.Disk
	index *syncedIndex
	want  *markHistory
}

// markWorld runs one store with one table with marks, and takes crash points.
type markWorld struct {
	rng     *rand.Rand
	crashes *rand.Rand
	every   int
	plant   planted

	d     *crashdisk.Disk
	index *syncedIndex
	hist  *markHistory
	now   *model // after all events
	next  uint64 // the next value, and the next tag's id
	store *Store
	table *Table

	mu     sync.Mutex
	points []markPoint
}

func newMarkWorld(seed uint64, plant planted) *markWorld {
	return &markWorld{
		rng: rand.New(rand.NewPCG(seed, 3)), crashes: rand.New(rand.NewPCG(seed, 4)), every: 14, plant: plant,
		d: crashdisk.New(crashdisk.Options{Seed: seed}), index: &syncedIndex{},
		hist: &markHistory{base: newModel()}, now: newModel(), next: 1 + seed<<24,
	}
}

func (w *markWorld) hook(crashdisk.Op) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.crashes.IntN(w.every) == 0 && len(w.points) < 40 {
		index := w.index.copy()
		w.points = append(w.points, markPoint{w.d.Crash(w.crashes), index, w.hist.snapshot()})
	}
	return nil
}

func (w *markWorld) open(t testing.TB) (err error) {
	w.store, err = Open(t.Context(), Options{
		FS: w.d, SegmentSlots: testSlots, ReserveBytes: 1 << 20, MapMemoryBytes: 1 << 20, index: w.index, plant: w.plant,
		pick: pickAny(w.rng.Uint64()),
	})
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	w.table, err = w.store.Table(testID(1))
	if errors.Is(err, scstore.ErrNotFound) && w.hist.flushed == 0 {
		w.table, err = w.store.Create(CreateOptions{ID: testID(1), SizeBytes: markBlocks * scstore.BlockSize})
	}
	return err
}

// note enters events in the history and plays them on the model.
func (w *markWorld) note(events ...event) {
	w.hist.add(events...)
	for _, e := range events {
		e(w.now)
	}
}

// anyMark returns a random mark, or the zero tag if there is none.
func (w *markWorld) anyMark() scstore.Tag {
	tags := w.table.Marks()
	if len(tags) == 0 {
		return scstore.Tag{}
	}
	return tags[w.rng.IntN(len(tags))]
}

func (w *markWorld) newTag() (tag scstore.Tag) {
	w.next++
	tag.Kind = scstore.TagKind(1 + w.rng.IntN(5))
	binary.BigEndian.PutUint64(tag.ID[:], w.next)
	return tag
}

// blocks returns a random run of up to limit blocks.
func (w *markWorld) blocks(limit uint64) (first, n uint64) {
	first = w.rng.Uint64N(markBlocks)
	return first, min(1+w.rng.Uint64N(limit), markBlocks-first)
}

func (w *markWorld) run(steps int) error {
	for i := range steps {
		if err := w.step(); err != nil {
			return fmt.Errorf("step %d: %w", i, err)
		}
		if i%10 == 9 {
			if err := w.verify(); err != nil {
				return fmt.Errorf("step %d: %w", i, err)
			}
		}
	}
	return nil
}

// step does one random operation.
func (w *markWorld) step() error {
	some := w.anyMark()
	k := w.rng.IntN(100)
	switch {
	case k < 6:
		first, n := w.blocks(8)
		w.note(func(m *model) { m.put(first, n, 0, false) })
		return w.table.ZeroBlocks(scstore.Extent{First: scstore.BlockIndex(first), Count: n}, k%2 == 0)
	case k < 16:
		if err := w.store.Sync(); err != nil {
			return err
		}
		w.hist.flush()
		return nil
	case k < 24:
		return w.store.Publish()
	case k < 27:
		return w.store.Checkpoint()
	case k < 29:
		return w.clean()
	case k < 35 && len(w.now.marks) < 6:
		tag := w.newTag()
		w.note(func(m *model) { m.mark(tag) })
		return w.table.Mark(tag)
	case k < 42:
		return w.markRemote()
	case k >= 58 || some.IsZero():
		return w.write()
	case k < 44:
		tag := w.newTag()
		w.note(func(m *model) { m.marks[tag] = m.marks[some] })
		return w.table.Alias(some, tag)
	case k < 48:
		w.note(func(m *model) { delete(m.marks, some) })
		return w.table.Unmark(some)
	case k < 53:
		return w.fill(some)
	case k < 56:
		tag := w.newTag()
		w.note(func(m *model) { delete(m.marks, some); m.mark(tag) })
		err := w.table.Advance(some, tag)
		w.hist.flush()
		return err
	default:
		w.note(func(m *model) { m.rollback(some) })
		err := w.table.Rollback(some)
		w.hist.flush()
		return err
	}
}

func (w *markWorld) write() error {
	first, n := w.blocks(6)
	p := make([]byte, n*scstore.BlockSize)
	for i := range n {
		value, b := w.next+i, first+i
		fillBlock(p[i*scstore.BlockSize:(i+1)*scstore.BlockSize], b, value)
		w.note(func(m *model) { m.put(b, 1, value, false) })
	}
	w.next += n
	return w.table.WriteBlocks(scstore.BlockIndex(first), p)
}

func (w *markWorld) markRemote() error {
	var extents []scstore.Extent
	for range 1 + w.rng.IntN(3) {
		first, n := w.blocks(8)
		value := w.next
		w.next += n
		extents = append(extents, scstore.Extent{First: scstore.BlockIndex(first), Count: n})
		w.note(func(m *model) { m.put(first, n, value, true) })
	}
	var tag scstore.Tag
	if len(w.now.marks) < 6 {
		tag = w.newTag()
		w.note(func(m *model) { m.mark(tag) })
	}
	return w.table.MarkRemote(extents, tag)
}

// fill brings the content of some blocks of a view. What is not missing there gets
// rubbish, which must not be stored.
func (w *markWorld) fill(at scstore.Tag) error {
	if w.rng.IntN(4) == 0 {
		at = scstore.Tag{}
	}
	first, n := w.blocks(12)
	p := make([]byte, n*scstore.BlockSize)
	view, want := w.now.view(at), uint64(0)
	zeros := w.rng.IntN(3) == 0 // that is what the other host has
	var events []event
	for i := range n {
		b := first + i
		at := view.content[b]
		value := uint64(1) << 60
		if c := w.now.cells[at]; c.remote {
			value = c.value
			want++
			events = append(events, func(m *model) {
				m.cells[at].remote = false
				if zeros {
					m.cells[at].value = 0
				}
			})
		}
		fillBlock(p[i*scstore.BlockSize:(i+1)*scstore.BlockSize], b, value)
	}
	w.note(events...)
	var filled uint64
	var err error
	if zeros {
		filled, err = w.table.FillZeros(at, scstore.Extent{First: scstore.BlockIndex(first), Count: n})
	} else {
		filled, err = w.table.Fill(at, scstore.BlockIndex(first), p)
	}
	if err == nil && filled != want {
		return fmt.Errorf("fill %s: %d blocks, want %d", at, filled, want)
	}
	return err
}

// clean empties the emptiest segment and frees it.
func (w *markWorld) clean() error {
	other := world{store: w.store}
	return other.cleanOne()
}

// verify compares the running table with the model, and asks what changed.
func (w *markWorld) verify() error {
	obs, err := observe(w.table)
	if err != nil {
		return err
	}
	if err := w.now.differs(obs); err != nil {
		return fmt.Errorf("while running: %w", err)
	}
	from, to := w.anyMark(), w.anyMark()
	if w.rng.IntN(2) == 0 {
		to = scstore.Tag{}
	}
	if err := w.verifyChanged(from, to); err != nil {
		return err
	}
	var missing content
	for b, at := range w.now.head.content {
		if w.now.cells[at].remote {
			missing[b] = 1
		}
	}
	got, err := pages(func(start scstore.BlockIndex, limit int) ([]scstore.Extent, error) {
		return w.table.Remote(context.Background(), start, limit)
	}, 2)
	if err == nil && got != missing {
		return fmt.Errorf("missing blocks: got %v, want %v", got, missing)
	}
	return err
}

// pages calls list until it has returned everything.
func pages(list func(scstore.BlockIndex, int) ([]scstore.Extent, error), limit int) (out content, err error) {
	for start := scstore.BlockIndex(0); ; {
		part, err := list(start, limit)
		if err != nil {
			return out, err
		}
		for _, e := range part {
			if e.First < start || e.Count == 0 {
				return out, fmt.Errorf("extent %+v after block %d", e, start)
			}
			for start = e.First; start < e.End(); start++ {
				out[start] = 1
			}
		}
		if len(part) < limit {
			return out, nil
		}
	}
}

func (w *markWorld) verifyChanged(from, to scstore.Tag) error {
	a, b := w.now.view(from), w.now.view(to)
	if from.IsZero() {
		a = moment{}
	}
	if a.gen > b.gen {
		return nil
	}
	got, err := pages(func(start scstore.BlockIndex, limit int) ([]scstore.Extent, error) {
		return w.table.Changed(context.Background(), from, to, start, limit)
	}, 3)
	if err != nil {
		return err
	}
	for i := range got {
		before, after := a.content[i], b.content[i]
		nothing := w.now.cells[before] == cell{} && w.now.cells[after] == cell{} // zeros stayed zeros
		if changed := before != after; (got[i] == 1) != changed && !nothing {
			return fmt.Errorf("changed from %s to %s: block %d: got %d, want %v", from, to, i, got[i], changed)
		}
	}
	return nil
}

// resumeMarks opens a crash point, checks it, and goes on from what survived.
func resumeMarks(t testing.TB, p markPoint, w *markWorld, hooked bool) error {
	w.d, w.index, w.hist = p.d, p.index, p.want
	if hooked {
		w.d.Fail(w.hook)
	}
	if err := w.open(t); err != nil {
		return err
	}
	for _, d := range w.store.Damage() {
		if !d.Healed {
			return fmt.Errorf("damage without rot: %+v", d)
		}
	}
	m, err := p.want.survived(w.table)
	if err != nil {
		return fmt.Errorf("%w (recovery %+v)", err, w.store.Recovery())
	}
	w.now = m
	w.hist.mu.Lock()
	defer w.hist.mu.Unlock()
	w.hist.base, w.hist.events, w.hist.flushed = m.copy(), nil, 0
	return nil
}

// markRun plays one seed, as crashRun does.
func markRun(t testing.TB, seed uint64, plant planted) (checked int, err error) {
	w := newMarkWorld(seed, plant)
	w.d.Fail(w.hook)
	if err := w.open(t); err != nil {
		return 0, err
	}
	err = w.run(120)
	w.d.Fail(nil)
	w.store.abandon()
	if err != nil {
		return 0, err
	}
	points := w.points
	for depth := 0; len(points) > 0 && depth < 3; depth++ {
		var next []markPoint
		for i, p := range points {
			again := newMarkWorld(seed<<8+uint64(depth)<<6+uint64(i), plant)
			again.every, again.next = 25, w.next<<1+uint64(depth)<<50+uint64(i)<<40
			deeper := i%6 == 0
			if err := resumeMarks(t, p, again, deeper); err != nil {
				return checked, fmt.Errorf("crash %d.%d: %w", depth, i, err)
			}
			checked++
			if deeper {
				if err := again.run(30); err != nil {
					return checked, fmt.Errorf("crash %d.%d: %w", depth, i, err)
				}
			}
			again.d.Fail(nil)
			again.store.abandon()
			next = append(next, again.points...)
		}
		points = next
	}
	return checked, nil
}

func TestCrash_MarkedViewsAreHistory(t *testing.T) {
	points := *crashPoints
	if invariant.Enabled {
		points /= 10
	}
	seeds := make(chan uint64)
	var wg sync.WaitGroup
	var mu sync.Mutex
	checked := 0
	for range 2 {
		wg.Go(func() {
			for seed := range seeds {
				n, err := markRun(t, seed, plantNothing)
				if err != nil {
					t.Errorf("seed %d: %v (replay: -crash.seed=%d)", seed, err, seed)
				}
				mu.Lock()
				checked += n
				mu.Unlock()
			}
		})
	}
	done := func() bool {
		mu.Lock()
		defer mu.Unlock()
		return checked >= points || t.Failed()
	}
	if *crashSeed != 0 {
		seeds <- *crashSeed
	}
	for seed := uint64(1); *crashSeed == 0 && !done(); seed++ {
		seeds <- seed
	}
	close(seeds)
	wg.Wait()
	t.Logf("%d crash points", checked)
}

func TestCrash_PlantedBugsOfMarksAreCaught(t *testing.T) {
	for name, plant := range map[string]planted{
		"advance returns before its data are synced": plantAdvanceUnsynced,
		"fill ignores what was written since":        plantBlindFill,
		"replay forgets rollbacks":                   plantForgetRollback,
	} {
		t.Run(name, func(t *testing.T) {
			for seed := range uint64(50) {
				if _, err := markRun(t, seed+1, plant); err != nil {
					t.Logf("caught at seed %d: %v", seed+1, err)
					return
				}
			}
			t.Fatal("the planted bug was not caught in 50 runs")
		})
	}
}
