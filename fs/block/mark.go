package block

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"scstore"
)

// Marks are pins that last: a tag names a generation of a table, and what that
// generation shows is kept, across restarts, until the tag is taken back. The
// marks of a table are part of the log's order: a crash leaves those that the
// surviving prefix of the log made.
//
// A replica lives on two of their properties. It serves the view of one mark while
// the data of the next position arrive above it, in a later generation, as ordinary
// writes; Advance moves the mark over them, in one record. And Rollback drops what
// is above a mark, in one record too: no entry of the map is touched. The
// generations in between are dead from then on, in every view, and the head is what
// is left. Each merge leaves dead entries out; once one has merged the whole map,
// the table is as if they had never been.

const (
	// MaxMarks bounds the marks of one store: they are in every checkpoint.
	MaxMarks = 1 << 20
	// MaxRollbacks bounds the runs of dead generations of one table. At the limit, a
	// rollback has the map merged first.
	MaxRollbacks = 32
)

// errManyRollbacks asks for a merge of the whole map.
var errManyRollbacks = errors.New("too many rollbacks since the map was merged")

// Mark ends the current generation and keeps it under tag: At returns what the
// table held at this moment of its write order until Unmark. Cost: one record.
//
// Durability: that of a write made at this moment; after Sync it is durable, and
// so is everything that it shows.
// Errors: ErrExists if the tag is in use, ErrBusy if MaxPins generations are held,
// ErrNoSpace (also at MaxMarks), ErrInvalid for the zero tag, ErrPoisoned.
func (t *Table) Mark(tag scstore.Tag) error {
	return t.appendMarks("mark", recordMark, tag, marking{mark: mark{tag: tag}})
}

// Alias gives the generation that the mark of names another tag. Durability and
// errors as for Mark; ErrNotFound if there is no such mark.
func (t *Table) Alias(of, tag scstore.Tag) error {
	if of.IsZero() {
		return fmt.Errorf("mark volume %s: %w", t.id, scstore.ErrInvalid)
	}
	return t.appendMarks("mark", recordMark, tag, marking{mark: mark{tag: tag}, from: mark{tag: of}})
}

// Unmark takes a tag back. What only it kept is given up as merges and the cleaner
// get to it. Durability as for Mark. Errors: ErrNotFound, ErrBusy while a clone is
// based on the mark, ErrPoisoned.
func (t *Table) Unmark(tag scstore.Tag) error {
	return t.appendMarks("unmark", recordUnmark, tag, marking{mark: mark{tag: tag}})
}

// Advance ends the current generation, keeps it under the tag to, and takes from
// back, all in one record: how a replica moves from a position to the next. from and
// to may be the same.
//
// Durability: durable when it returns, with everything that to shows; a crash before
// leaves from or to, never both or neither.
// Errors: ErrNotFound for from, else as for Mark and Unmark.
func (t *Table) Advance(from, to scstore.Tag) error {
	err := t.appendMarks("advance", recordAdvance, to, marking{mark: mark{tag: to}, from: mark{tag: from}})
	if err != nil || t.store.opts.plant == plantAdvanceUnsynced {
		return err
	}
	return t.store.Sync()
}

// Rollback drops everything that was written after the mark to, and all marks made
// after it: the head is again what the mark shows. The size stays as it is.
//
// Durability: durable when it returns; a crash before leaves all or nothing of it.
// Errors: ErrNotFound, ErrBusy while a view or a clone of what would be dropped is in
// use, ErrReadOnly for a frozen table, ErrNoSpace, ErrPoisoned.
func (t *Table) Rollback(to scstore.Tag) error {
	for range 3 { // a checkpoint that failed before is brought into force first
		err := t.appendMarks("roll back", recordRollback, to, marking{from: mark{tag: to}})
		if err == nil {
			return t.store.Sync()
		}
		if !errors.Is(err, errManyRollbacks) {
			return err
		}
		if err := t.store.checkpointMode(true, false); err != nil {
			return err
		}
	}
	return fmt.Errorf("roll back volume %s to %s: %w", t.id, to, scstore.ErrBusy)
}

func (t *Table) appendMarks(verb string, kind recordKind, tag scstore.Tag, m marking) error {
	if m.mark.tag.Kind == 0 && kind != recordRollback {
		return fmt.Errorf("%s volume %s: no tag: %w", verb, t.id, scstore.ErrInvalid)
	}
	if err := t.store.appendLog(t, record{kind: kind, table: t.no, marks: &m}, nil, reserveCleaner); err != nil {
		return fmt.Errorf("%s volume %s, %s: %w", verb, t.id, tag, err)
	}
	return nil
}

// Marks returns the table's tags, the oldest generation first.
func (t *Table) Marks() []scstore.Tag {
	t.pinMu.Lock()
	defer t.pinMu.Unlock()
	var tags []scstore.Tag
	for _, m := range t.sortedMarks() {
		tags = append(tags, m.tag)
	}
	return tags
}

// Marked reports whether there is a mark of that tag.
func (t *Table) Marked(tag scstore.Tag) bool {
	t.pinMu.Lock()
	defer t.pinMu.Unlock()
	_, ok := t.marks[tag]
	return ok
}

// At returns a view of what the table held when tag was given to it. The view stays
// as it is until Release, also if the tag is taken back meanwhile. Errors:
// ErrNotFound.
func (t *Table) At(tag scstore.Tag) (*Pin, error) {
	// Under logMu, so that a rollback sees the view, or the view the rollback.
	t.store.logMu.Lock()
	defer t.store.logMu.Unlock()
	t.pinMu.Lock()
	defer t.pinMu.Unlock()
	gen, ok := t.marks[tag]
	if !ok {
		return nil, fmt.Errorf("view of volume %s at %s: %w", t.id, tag, scstore.ErrNotFound)
	}
	t.pins[gen]++
	return &Pin{View: View{table: t, gen: gen}}, nil
}

// sortedMarks returns the marks by generation and tag. pinMu is held.
func (t *Table) sortedMarks() []mark {
	out := make([]mark, 0, len(t.marks))
	for tag, gen := range t.marks {
		out = append(out, mark{tag, gen})
	}
	slices.SortFunc(out, func(a, b mark) int {
		return cmp.Or(cmp.Compare(a.gen, b.gen), cmp.Compare(a.tag.Kind, b.tag.Kind), slices.Compare(a.tag.ID[:], b.tag.ID[:]))
	})
	return out
}

// admitMarks checks that a record may change the table's marks, and completes it.
// logMu is held, and stays so until the record is applied.
func (t *Table) admitMarks(r *record) error {
	t.pinMu.Lock()
	defer t.pinMu.Unlock()
	m := r.marks
	switch r.kind {
	case recordMark:
		m.mark.gen = r.gen
		if !m.from.tag.IsZero() {
			gen, ok := t.marks[m.from.tag]
			if !ok {
				return fmt.Errorf("mark %s: %w", m.from.tag, scstore.ErrNotFound)
			}
			m.mark.gen = gen
		}
		return t.mayMark(m.mark, scstore.Tag{}, MaxPins)
	case recordUnmark:
		m.mark.gen = 0
		return t.mayUnmark(m.mark.tag)
	case recordAdvance:
		if err := t.mayUnmark(m.from.tag); err != nil {
			return err
		}
		m.mark.gen = r.gen
		room := MaxPins
		if t.pins[t.marks[m.from.tag]] == 1 {
			room++ // its generation is let go
		}
		return t.mayMark(m.mark, m.from.tag, room)
	default: // recordRollback
		gen, ok := t.marks[m.from.tag]
		if !ok {
			return scstore.ErrNotFound
		}
		m.keep = gen
		return t.mayRollback(gen)
	}
}

// mayMark checks that m may be made, in place of the mark from, while at most room
// generations are held.
func (t *Table) mayMark(m mark, from scstore.Tag, room int) error {
	_, taken := t.marks[m.tag]
	switch {
	case taken && m.tag != from:
		return scstore.ErrExists
	case t.pins[m.gen] == 0 && len(t.pins) >= room:
		return fmt.Errorf("%d generations are held: %w", len(t.pins), scstore.ErrBusy)
	case t.store.marks >= MaxMarks:
		return fmt.Errorf("%d marks: %w", t.store.marks, scstore.ErrNoSpace)
	}
	return nil
}

// mayUnmark checks that the mark exists, and that no clone needs it.
func (t *Table) mayUnmark(tag scstore.Tag) error {
	gen, ok := t.marks[tag]
	if !ok {
		return fmt.Errorf("mark %s: %w", tag, scstore.ErrNotFound)
	}
	if t.clones[gen] > 0 && t.marksAt(gen) == 1 {
		return fmt.Errorf("%d volumes are based on it: %w", t.clones[gen], scstore.ErrBusy)
	}
	return nil
}

// mayRollback checks that nobody but marks holds a generation after keep.
func (t *Table) mayRollback(keep uint32) error {
	for gen, holders := range t.pins {
		if gen > keep && holders != t.marksAt(gen) {
			return fmt.Errorf("what was written after it is in use: %w", scstore.ErrBusy)
		}
	}
	if len(t.dead.kill(keep, lastGen)) > MaxRollbacks {
		return errManyRollbacks
	}
	return nil
}

// marksAt counts the marks of a generation.
func (t *Table) marksAt(gen uint32) int {
	n := 0
	for _, g := range t.marks {
		if g == gen {
			n++
		}
	}
	return n
}

// applyMarks changes the table's marks, generation and dead generations as the
// record says. logMu and mapMu are held.
func (t *Table) applyMarks(r *record) {
	t.pinMu.Lock()
	defer t.pinMu.Unlock()
	ends := true
	switch r.kind {
	case recordMark:
		t.setMark(r.marks.mark)
		ends = r.marks.mark.gen == r.gen
	case recordUnmark:
		t.dropMark(r.marks.mark.tag)
		ends = false
	case recordAdvance:
		t.dropMark(r.marks.from.tag)
		t.setMark(r.marks.mark)
	default: // recordRollback
		for tag, gen := range t.marks {
			if gen > r.marks.keep {
				t.dropMark(tag)
			}
		}
		t.dead = t.dead.kill(r.marks.keep, r.gen)
	}
	if ends {
		t.gen.Store(r.gen + 1)
	}
}

func (t *Table) setMark(m mark) {
	t.marks[m.tag] = m.gen
	t.pins[m.gen]++
	t.store.marks++
}

func (t *Table) dropMark(tag scstore.Tag) {
	if gen, ok := t.marks[tag]; ok {
		delete(t.marks, tag)
		t.unpin(gen)
		t.store.marks--
	}
}

// unpin lets a held generation go. pinMu is held.
func (t *Table) unpin(gen uint32) {
	if t.pins[gen]--; t.pins[gen] == 0 {
		delete(t.pins, gen)
	}
}

// noteClone counts a table that is based on a generation of this one, or, with -1,
// is so no more.
func (t *Table) noteClone(gen uint32, n int) {
	t.pinMu.Lock()
	defer t.pinMu.Unlock()
	if t.clones[gen] += n; t.clones[gen] == 0 {
		delete(t.clones, gen)
	}
	if n > 0 {
		t.pins[gen]++
	} else {
		t.unpin(gen)
	}
}
