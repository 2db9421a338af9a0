package replica

import (
	"testing"
	"time"

	"scstore"
	"scstore/consensus/meta"
)

// TestSet_HoursCutOff has an owner write for hours while it, or the copy, is cut off: what
// waits to be told or fetched does not grow with the time.
func TestSet_HoursCutOff(t *testing.T) {
	for name, alone := range map[string]int{"the owner": 0, "the copy": 1} {
		t.Run(name, func(t *testing.T) {
			inMoveWorld(t, 3, func(t *testing.T, w *moveWorld) { cutOffForHours(t, w, w.hosts[alone]) })
		})
	}
}

func cutOffForHours(t *testing.T, w *moveWorld, alone *moveHost) {
	const hours, perHour = 3, 60
	a, b := w.hosts[0], w.hosts[1]
	w.create(vol, a, a, b)
	all := map[uint64]uint64{}
	write := func(n uint64) {
		t.Helper()
		part := map[uint64]uint64{n % moveBlocks: n, (7 * n) % moveBlocks: n}
		a.write(vol, part)
		all = merged(all, part)
	}
	write(1)
	w.eventually("the copy is not complete", func() bool { at, head := a.copyAt(vol, b.disk); return at == head && head.Epoch > 0 })
	w.isolate(alone, true)
	marks := 0
	for hour := range uint64(hours) {
		for n := range uint64(perHour) {
			write(2 + hour*perHour + n)
			time.Sleep(time.Hour / perHour)
		}
		if hour == 0 {
			marks = bounded(t, a)
		} else if now := bounded(t, a); now > marks+1 {
			t.Fatalf("after %d hours the owner keeps %d marks, after one it kept %d", hour+1, now, marks)
		}
	}
	w.isolate(alone, false)
	write(1 << 20)
	var head scstore.Position
	w.eventually("the copy is not complete after that", func() bool {
		var at scstore.Position
		at, head = a.copyAt(vol, b.disk)
		r, _ := a.set.lookup(vol)
		r.mu.Lock()
		defer r.mu.Unlock()
		return at == head && at == r.facts.Head && r.device.written.Load() == 0
	})
	b.shows(vol, all)
	a.shows(vol, all)
}

// bounded checks what an owner keeps in memory and on disk of what nobody took, and returns
// the number of marks.
func bounded(t *testing.T, h *moveHost) int {
	t.Helper()
	var history []meta.Point
	_ = h.View(moveGroup, func(st *meta.State) { history = st.History(vol) }) // its lock comes before Replica.mu
	r, _ := h.set.lookup(vol)
	r.mu.Lock()
	defer r.mu.Unlock()
	h.set.mu.Lock()
	asked := len(h.set.asked)
	h.set.mu.Unlock()
	if len(r.facts.Pending) > maxPending || len(r.stamps) > maxStamps || asked > 1025 || len(history) > meta.MaxRecent+2 {
		t.Fatalf("%d epochs wait to be committed, %d stamps, %d questions, %d points of the history", len(r.facts.Pending), len(r.stamps), asked, len(history))
	}
	return len(r.marks())
}
