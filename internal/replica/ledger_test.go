package replica

import (
	"slices"
	"sync"

	"scstore"
	"scstore/consensus/meta"
)

// written is one write of a guest.
type written struct {
	block  int
	number uint64
	sure   bool // it was acknowledged; else it may have been done, or not
}

// tenancy is what guests wrote under one fence.
type tenancy struct {
	host   *moveHost
	begin  *picture // what the volume showed before; nil if nobody looked
	writes []written
}

// ledger keeps what guests were told, and what hosts showed, of one volume. In the end it
// compares that with the log.
type ledger struct {
	w *moveWorld

	mu      sync.Mutex
	number  uint64 // of the latest write
	under   map[scstore.Fence]*tenancy
	shown   map[scstore.Position]picture
	reports []PromoteReport
}

func newLedger(w *moveWorld) *ledger {
	return &ledger{w: w, under: map[scstore.Fence]*tenancy{}, shown: map[scstore.Position]picture{}}
}

// next returns the number of the next write: no two are the same.
func (l *ledger) next() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.number++
	return l.number
}

// isNew notes that a host serves under a fence, and reports whether that was not known.
func (l *ledger) isNew(h *moveHost, f scstore.Fence) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if t := l.under[f]; t != nil {
		if t.host != h {
			l.w.t.Errorf("%s and %s serve under fence %d", t.host.site, h.site, f)
		}
		return false
	}
	l.under[f] = &tenancy{host: h}
	return true
}

func (l *ledger) began(f scstore.Fence, p picture) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.under[f].begin = &p
}

func (l *ledger) wrote(f scstore.Fence, p written) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.under[f].writes = append(l.under[f].writes, p)
}

// showed enters what a host shows at a position: the same as every other host, at any time.
func (l *ledger) showed(h *moveHost, at scstore.Position, p picture) {
	l.mu.Lock()
	defer l.mu.Unlock()
	known, seen := l.shown[at]
	for i := range p {
		switch {
		case !seen || known[i] == unread:
		case p[i] == unread:
			p[i] = known[i]
		case p[i] != known[i]:
			l.w.t.Errorf("%s shows %d in block %d at %s, another host showed %d", h.site, p[i], i, at, known[i])
		}
	}
	l.shown[at] = p
}

// inspect enters what all hosts that are up have completely.
func (l *ledger) inspect() {
	for _, h := range l.w.hosts {
		if _, leave, up := h.enter(); up {
			l.inspectHost(h)
			leave()
		}
	}
}

func (l *ledger) inspectHost(h *moveHost) {
	r, ok := h.set.lookup(vol)
	if !ok {
		return
	}
	r.mu.Lock()
	holds := slices.Clone(r.facts.Holds)
	r.mu.Unlock()
	for _, at := range holds {
		door, err := h.set.OpenAt(l.w.t.Context(), vol, at)
		if err != nil {
			continue // dropped meanwhile
		}
		p := look(h, door.(*device).v.Load())
		door.Release()
		if slices.Contains(p[:], unread) {
			l.w.t.Errorf("%s lacks blocks at %s, which it is said to hold", h.site, at)
		}
		l.showed(h, at, p)
	}
}

// promoted enters a report.
func (l *ledger) promoted(report PromoteReport) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.reports = append(l.reports, report)
}

// maybe is what each block may show: of an empty list, zero. unread in a list allows all.
type maybe [guestBlocks][]uint64

func exactly(p picture) (m maybe) {
	for i, n := range p {
		m[i] = []uint64{n}
	}
	return m
}

// write enters one write.
func (m *maybe) write(p written) {
	old := m[p.block]
	switch {
	case p.sure:
		m[p.block] = []uint64{p.number}
	case len(old) == 0:
		m[p.block] = []uint64{0, p.number}
	default:
		m[p.block] = append(slices.Clone(old), p.number)
	}
}

// allows reports whether a block may show a number.
func (m *maybe) allows(block int, n uint64) bool {
	list := m[block]
	return n == unread || len(list) == 0 && n == 0 || slices.Contains(list, n) || slices.Contains(list, unread)
}

// differs returns the first block that may not show what it does, -1 for none.
func (m *maybe) differs(p picture) int {
	for i, n := range p {
		if !m.allows(i, n) {
			return i
		}
	}
	return -1
}

// all returns what the volume may show after all writes of the tenancy; t may be nil.
func (t *tenancy) all(begin maybe) maybe {
	if t != nil {
		for _, p := range t.writes {
			begin.write(p)
		}
	}
	return begin
}

// prefix returns after how many of the tenancy's writes, at least from, the volume shows a
// picture; -1 for none.
func (t *tenancy) prefix(begin maybe, from int, p picture) int {
	var writes []written
	if t != nil {
		writes = t.writes
	}
	for n := 0; ; n++ {
		if n >= from && begin.differs(p) < 0 {
			return n
		}
		if n == len(writes) {
			return -1
		}
		begin.write(writes[n])
	}
}

// positions returns the positions of a fence that were shown, rising.
func (l *ledger) positions(f scstore.Fence) (list []scstore.Position) {
	for at := range l.shown {
		if at.Fence == f {
			list = append(list, at)
		}
	}
	slices.SortFunc(list, scstore.Position.Compare)
	return list
}

// branchOf returns the branch of a fence, if there is one.
func branchOf(st *meta.State, f scstore.Fence) (meta.Record, bool) {
	list := st.Branches(vol)
	i := slices.IndexFunc(list, func(r meta.Record) bool { return r.Fence == f })
	if i < 0 {
		return meta.Record{}, false
	}
	return list[i], true
}
