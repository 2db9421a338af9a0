package block

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"scstore"
)

// Table is one volume's part of the store: a map from blocks to what was written
// there, in generations. A generation ends at each pin and mark; the blocks that a later
// one overwrites stay readable through the pin. All methods are safe for
// concurrent use.
type Table struct {
	store   *Store
	no      uint32
	id      scstore.VolumeID
	base    uint32
	baseGen uint32

	sizeBytes   atomic.Int64
	gen         atomic.Uint32 // changed under logMu
	frozen      atomic.Bool
	deleted     atomic.Bool
	quarantined atomic.Bool
	remote      atomic.Int64 // remote blocks that the map has, in all generations, at most

	// dead is the generations that rollbacks dropped and that may be in the map
	// still. Guarded by Store.mapMu; changed under logMu too.
	dead genRanges

	pinMu  sync.Mutex
	pins   map[uint32]int         // pinned generation → holders: views, marks, clones
	marks  map[scstore.Tag]uint32 // changed under logMu too
	clones map[uint32]int         // generation → tables based on it
}

// addTable enters a table. mapMu is held.
func (s *Store) addTable(rt rootTable) {
	t := &Table{
		store: s, no: rt.no, id: rt.id, base: rt.base, baseGen: rt.baseGen, dead: rt.dead,
		pins: map[uint32]int{}, marks: map[scstore.Tag]uint32{}, clones: map[uint32]int{},
	}
	t.remote.Store(rt.remote)
	for _, m := range rt.marks {
		t.setMark(m)
	}
	if base := s.tables[rt.base]; base != nil && rt.baseGen != headGen {
		base.noteClone(rt.baseGen, 1)
	}
	t.sizeBytes.Store(rt.sizeBytes)
	t.gen.Store(rt.gen)
	t.frozen.Store(rt.frozen)
	t.quarantined.Store(rt.quarantined)
	s.tables[t.no], s.byID[t.id] = t, t
	s.nextTable = max(s.nextTable, t.no+1)
}

// ID returns the volume's id.
func (t *Table) ID() scstore.VolumeID { return t.id }

// SizeBytes returns the volume's size in bytes, a multiple of 4096.
func (t *Table) SizeBytes() int64 { return t.sizeBytes.Load() }

// Frozen reports whether the table takes no more writes, for ever.
func (t *Table) Frozen() bool { return t.frozen.Load() }

// dropTable takes a table out. logMu and mapMu are held.
func (s *Store) dropTable(t *Table) {
	t.deleted.Store(true)
	delete(s.tables, t.no)
	delete(s.byID, t.id)
	s.mem.drop(t.no, s.noteDead)
	s.marks -= len(t.marks)
	if base := s.tables[t.base]; base != nil && t.baseGen != headGen {
		base.noteClone(t.baseGen, -1)
	}
}

// Base returns the table that shows through, at BaseView, where this one was never
// written, or nil.
func (t *Table) Base() *Table {
	if t.base == 0 {
		return nil
	}
	t.store.mapMu.RLock()
	defer t.store.mapMu.RUnlock()
	return t.store.tables[t.base]
}

// BaseView returns the base as this table sees it: at the mark that it was made of,
// or a frozen table whole. It is nil if there is no base, and good as long as this
// table is not deleted.
func (t *Table) BaseView() *View {
	if base := t.Base(); base != nil {
		return &View{table: base, gen: t.baseGen}
	}
	return nil
}

// admit checks that a record may be written to the table and stamps it with the
// current generation. logMu is held.
func (t *Table) admit(r *record) error {
	switch {
	case t == nil:
		return nil
	case t.deleted.Load():
		return fmt.Errorf("write volume %s: %w", t.id, scstore.ErrNotFound)
	case r.kind == recordDelete:
		return nil
	case t.quarantined.Load() && r.kind != recordUnmark:
		return t.quarantineError()
	case t.frozen.Load() && r.kind != recordMark && r.kind != recordUnmark:
		return fmt.Errorf("write volume %s: %w", t.id, scstore.ErrReadOnly)
	}
	r.gen = t.gen.Load()
	switch {
	case r.kind == recordData:
		return nil
	case r.gen >= maxGen && (r.kind == recordSeal || r.marks != nil && r.kind != recordUnmark):
		return fmt.Errorf("volume %s: no generation after %d: %w", t.id, r.gen, scstore.ErrInvalid)
	case r.marks != nil:
		return t.admitMarks(r)
	}
	return nil
}

func (t *Table) quarantineError() error {
	return scstore.Hint(fmt.Errorf("volume %s: a part of the log that may hold its writes is unreadable: %w", t.id, scstore.ErrCorrupt),
		"restore it from another site, an image or a backup; scstore doctor says where the log is damaged")
}

func (t *Table) check(first scstore.BlockIndex, count uint64) error {
	size := uint64(t.SizeBytes()) / scstore.BlockSize
	if count == 0 || uint64(first) >= size || count > size-uint64(first) {
		return fmt.Errorf("volume %s: blocks %d+%d of %d: %w", t.id, first, count, size, scstore.ErrInvalid)
	}
	return nil
}

// WriteBlocks stores whole blocks from first on. They are visible to reads at
// once.
//
// Durability: they survive the death of this process after Publish, a power loss
// after Sync.
// Errors: ErrNoSpace (a part may have been written; retry when there is space),
// ErrReadOnly, ErrInvalid, ErrPoisoned, ErrCorrupt for a quarantined volume.
func (t *Table) WriteBlocks(first scstore.BlockIndex, p []byte) error {
	n := uint64(len(p)) / scstore.BlockSize
	if len(p)%scstore.BlockSize != 0 {
		return fmt.Errorf("volume %s: write of %d bytes: %w", t.id, len(p), scstore.ErrInvalid)
	}
	if err := t.check(first, n); err != nil {
		return err
	}
	return t.store.appendLog(t, record{kind: recordData, table: t.no, first: uint64(first), count: n}, p, reserveDiscards)
}

// ZeroBlocks makes the extent read as zeros, in one record however long it is.
// discard says that the guest does not need the space. Durability and errors as
// for WriteBlocks.
func (t *Table) ZeroBlocks(e scstore.Extent, discard bool) error {
	if err := t.check(e.First, e.Count); err != nil {
		return err
	}
	kind := recordZero
	if discard {
		kind = recordDiscard
	}
	return t.store.appendLog(t, record{kind: kind, table: t.no, first: uint64(e.First), count: e.Count}, nil, reserveCleaner)
}

// Freeze ends all writing to the table, for ever, and makes its content durable:
// what a volume needs to be another's base.
func (t *Table) Freeze() error {
	if !t.frozen.Load() {
		if err := t.store.appendLog(t, record{kind: recordFreeze, table: t.no}, nil, reserveCleaner); err != nil {
			return err
		}
	}
	return t.store.Sync()
}

// Resize changes the size to sizeBytes, which must not be less than it is.
func (t *Table) Resize(sizeBytes int64) error {
	if sizeBytes < t.SizeBytes() || sizeBytes > scstore.MaxVolumeBytes || sizeBytes%scstore.BlockSize != 0 {
		return fmt.Errorf("resize volume %s to %d bytes: %w", t.id, sizeBytes, scstore.ErrInvalid)
	}
	if err := t.store.appendLog(t, record{kind: recordResize, table: t.no, sizeBytes: sizeBytes}, nil, reserveCleaner); err != nil {
		return err
	}
	return t.store.Sync()
}

// Publish is Store.Publish.
func (t *Table) Publish() error { return t.store.Publish() }

// Sync is Store.Sync; a context that has ended is not waited for.
func (t *Table) Sync(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("sync volume %s: %w", t.id, err)
	}
	return t.store.Sync()
}

// View is a table as it was when one of its generations ended. It is good as long
// as something holds that generation.
type View struct {
	table *Table
	gen   uint32
}

// Pin is a View of one moment of a table's write order. It keeps the blocks that it
// shows until Release, and does not outlive the process.
type Pin struct {
	View
	released atomic.Bool
}

// Pin ends the current generation and returns a view of it. Cost: one record.
// Errors: ErrBusy if MaxPins views are held.
func (t *Table) Pin() (*Pin, error) {
	if t.Frozen() {
		return &Pin{View: View{table: t, gen: headGen}}, nil
	}
	// The pin is entered before the generation ends, so that no checkpoint drops
	// what it shows. Writes in between are in this generation or in the next.
	gen, err := t.hold()
	if err != nil {
		return nil, err
	}
	p := &Pin{View: View{table: t, gen: gen}}
	if err := t.store.appendLog(t, record{kind: recordSeal, table: t.no}, nil, reserveCleaner); err != nil {
		p.Release()
		return nil, err
	}
	return p, nil
}

// hold pins the current generation. It takes logMu, so that no rollback comes
// between the look at the generation and the pin.
func (t *Table) hold() (uint32, error) {
	t.store.logMu.Lock()
	defer t.store.logMu.Unlock()
	t.pinMu.Lock()
	defer t.pinMu.Unlock()
	gen := t.gen.Load()
	if t.pins[gen] == 0 && len(t.pins) >= MaxPins {
		return 0, fmt.Errorf("pin volume %s: %d views are held: %w", t.id, len(t.pins), scstore.ErrBusy)
	}
	t.pins[gen]++
	return gen, nil
}

// Release gives the view up. It is safe to call more than once.
func (p *Pin) Release() {
	if p.gen == headGen || p.released.Swap(true) {
		return
	}
	p.table.pinMu.Lock()
	defer p.table.pinMu.Unlock()
	p.table.unpin(p.gen)
}

// pinned returns the generations that views, marks and clones hold, ascending.
func (t *Table) pinned() []uint32 {
	t.pinMu.Lock()
	defer t.pinMu.Unlock()
	gens := make([]uint32, 0, len(t.pins))
	for gen := range t.pins {
		gens = append(gens, gen)
	}
	slices.Sort(gens)
	return gens
}

// ReadBlocks reads at the head; see read.
func (t *Table) ReadBlocks(first scstore.BlockIndex, p []byte, gaps []scstore.Piece, now bool) ([]scstore.Piece, bool, error) {
	return t.read(headGen, first, p, gaps, now)
}

// Status describes the extent at the head; see status.
func (t *Table) Status(e scstore.Extent, dst []scstore.Piece) ([]scstore.Piece, error) {
	return t.status(headGen, e, dst)
}

// SizeBytes returns the table's size, which no view keeps: what was added later is
// absent.
func (v *View) SizeBytes() int64 { return v.table.SizeBytes() }

// ReadBlocks reads what the table held then; see Table.read.
func (v *View) ReadBlocks(first scstore.BlockIndex, b []byte, gaps []scstore.Piece, now bool) ([]scstore.Piece, bool, error) {
	return v.table.read(v.gen, first, b, gaps, now)
}

// Status describes the extent as it was then.
func (v *View) Status(e scstore.Extent, dst []scstore.Piece) ([]scstore.Piece, error) {
	return v.table.status(v.gen, e, dst)
}

// Create makes an empty volume, durably. A base, if there is one, shows through
// wherever the new volume was never written: a frozen volume, or any volume at one
// of its marks, which stays as long as the new volume does. It costs no copy.
// Errors: ErrExists, ErrNotFound for the base or its mark, ErrInvalid, ErrNoSpace.
func (s *Store) Create(o CreateOptions) (*Table, error) {
	if o.SizeBytes <= 0 || o.SizeBytes > scstore.MaxVolumeBytes || o.SizeBytes%scstore.BlockSize != 0 || o.ID.IsZero() {
		return nil, fmt.Errorf("create volume %s of %d bytes: %w", o.ID, o.SizeBytes, scstore.ErrInvalid)
	}
	s.createMu.Lock()
	defer s.createMu.Unlock()
	r := record{kind: recordCreate, id: o.ID, sizeBytes: o.SizeBytes}
	s.mapMu.RLock()
	_, taken := s.byID[o.ID]
	base, tables := s.byID[o.Base], len(s.tables)
	r.table = s.nextTable
	s.mapMu.RUnlock()
	switch {
	case taken:
		return nil, fmt.Errorf("create volume %s: %w", o.ID, scstore.ErrExists)
	case tables >= MaxTables:
		return nil, fmt.Errorf("create volume %s: %d volumes: %w", o.ID, tables, scstore.ErrNoSpace)
	case !o.Base.IsZero() && base == nil:
		return nil, fmt.Errorf("create volume %s: base %s: %w", o.ID, o.Base, scstore.ErrNotFound)
	case base != nil && o.BaseMark.IsZero() && !base.Frozen():
		return nil, fmt.Errorf("create volume %s: base %s is still written to: %w", o.ID, o.Base, scstore.ErrInvalid)
	case base == nil && !o.BaseMark.IsZero():
		return nil, fmt.Errorf("create volume %s: a mark without a base: %w", o.ID, scstore.ErrInvalid)
	case base != nil:
		r.base, r.baseGen = base.no, headGen
	}
	if err := s.appendCreate(r, base, o.BaseMark); err != nil {
		return nil, fmt.Errorf("create volume %s: %w", o.ID, err)
	}
	if err := s.Sync(); err != nil {
		return nil, err
	}
	return s.Table(o.ID)
}

// appendCreate appends the record. A mark of the base is looked up under the lock
// under which it is used, so that it is not taken back in between.
func (s *Store) appendCreate(r record, base *Table, at scstore.Tag) error {
	s.logMu.Lock()
	defer s.logMu.Unlock()
	return s.appendLocked(r, nil, reserveDiscards, func(r *record) error {
		if err := s.throttle(r); err != nil || at.IsZero() {
			return err
		}
		base.pinMu.Lock()
		defer base.pinMu.Unlock()
		gen, ok := base.marks[at]
		if !ok {
			return fmt.Errorf("base %s at %s: %w", base.id, at, scstore.ErrNotFound)
		}
		r.baseGen = gen
		return nil
	})
}

// CreateOptions says what Create makes.
type CreateOptions struct {
	ID        scstore.VolumeID
	SizeBytes int64            // a multiple of 4096, at most MaxVolumeBytes
	Base      scstore.VolumeID // zero: none
	BaseMark  scstore.Tag      // of the base; zero: the base is frozen
}

// Table returns the volume's table. Errors: ErrNotFound.
func (s *Store) Table(id scstore.VolumeID) (*Table, error) {
	s.mapMu.RLock()
	defer s.mapMu.RUnlock()
	if t := s.byID[id]; t != nil {
		return t, nil
	}
	return nil, fmt.Errorf("open volume %s: %w", id, scstore.ErrNotFound)
}

// Delete removes a volume, durably; its space comes back as the cleaner gets to
// it. Reads and writes that are under way end in ErrNotFound. Errors: ErrNotFound,
// ErrBusy while another volume is based on it.
func (s *Store) Delete(id scstore.VolumeID) error {
	s.createMu.Lock()
	defer s.createMu.Unlock()
	t, err := s.Table(id)
	if err != nil {
		return err
	}
	s.mapMu.RLock()
	for _, other := range s.tables {
		if other.base == t.no {
			err = fmt.Errorf("delete volume %s: volume %s is based on it: %w", id, other.id, scstore.ErrBusy)
		}
	}
	s.mapMu.RUnlock()
	if err != nil {
		return err
	}
	if err := s.appendLog(t, record{kind: recordDelete, table: t.no}, nil, reserveCleaner); err != nil {
		return err
	}
	s.requestSpace()
	return s.Sync()
}

// TableInfo describes a table.
type TableInfo struct {
	ID          scstore.VolumeID
	SizeBytes   int64
	Frozen      bool
	Quarantined bool
	Base        scstore.VolumeID // zero: none
	Marks       int
	Remote      uint64 // blocks that are not here, at most; see RemoteBlocks
}

// Tables returns what the store holds, in no order.
func (s *Store) Tables() []TableInfo {
	s.mapMu.RLock()
	defer s.mapMu.RUnlock()
	out := make([]TableInfo, 0, len(s.tables))
	for _, t := range s.tables {
		info := TableInfo{ID: t.id, SizeBytes: t.SizeBytes(), Frozen: t.Frozen(), Quarantined: t.quarantined.Load(), Marks: len(t.Marks()), Remote: t.RemoteBlocks()}
		if base := s.tables[t.base]; base != nil {
			info.Base = base.id
		}
		out = append(out, info)
	}
	return out
}
