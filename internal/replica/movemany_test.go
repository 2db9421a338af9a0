package replica

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"scstore"
	"scstore/consensus/handoff"
	"scstore/consensus/meta"
	"scstore/propagate/quicnet"
)

// many are the volumes of a machine: one that has a copy elsewhere, one that has none, and
// one that was never written.
var many = []scstore.VolumeID{{7}, {8}, {9}}

// machine makes them at host a, and returns what was written to each.
func machine(w *moveWorld) []map[uint64]uint64 {
	w.t.Helper()
	a, b := w.hosts[0], w.hosts[1]
	want := []map[uint64]uint64{{0: 1, 5: 2, 900: 3}, {0: 11, 6: 12}, {}}
	w.create(many[0], a, a, b)
	w.create(many[1], a)
	w.create(many[2], a)
	a.write(many[0], want[0])
	w.eventually("the copy is not complete", func() bool {
		at, head := a.copyAt(many[0], b.disk)
		return at == head && head != scstore.Position{}
	})
	a.write(many[1], want[1])
	w.commits(a, many[1])
	want[0][5] = 4
	a.write(many[0], map[uint64]uint64{5: 4})
	return want
}

// handOff begins to hand all those volumes over at once.
func (h *moveHost) handOff(id byte, to *moveHost) *source {
	h.w.t.Helper()
	var list []*Replica
	for _, v := range many {
		r, _ := h.set.lookup(v)
		list = append(list, r)
	}
	src := h.set.newSource(meta.HandOffID{id}, moveGroup, to.disk, list)
	for _, r := range list {
		r.mu.Lock()
		r.source = src
		src.fences = append(src.fences, r.facts.Fence)
		r.mu.Unlock()
	}
	if !src.begin(handoff.NewSource(handoff.ID{id}, src.rtt, h.set.now())) {
		h.w.t.Fatal("the hand-off did not begin")
	}
	return src
}

// held fails unless one host writes all the volumes, under this fence, and no other does;
// and unless all show what was written.
func (w *moveWorld) held(at *moveHost, f scstore.Fence, want []map[uint64]uint64) {
	w.t.Helper()
	for i, id := range many {
		if got := at.tenure(id); got.Holder != at.disk || got.Fence != f || !got.Move.IsZero() {
			w.t.Errorf("volume %s: the right is %+v, want fence %d at %s", id, got, f, at.site)
		}
		more := map[uint64]uint64{uint64(300 + f): uint64(i) + 50}
		w.eventually("a volume is not written", func() bool { return at.put(id, more) == nil })
		want[i] = merged(want[i], more)
		at.shows(id, want[i])
		for _, h := range w.hosts {
			if h != at && h.put(id, more) == nil {
				w.t.Errorf("%s and %s take writes of volume %s", at.site, h.site, id)
			}
		}
	}
}

// entries counts what the log has of a hand-off.
func (w *moveWorld) handOffs(id byte) (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.entries[moveGroup] {
		if op, ok := c.Op.(meta.HandOff); ok && op.ID == (meta.HandOffID{id}) {
			n++
			if len(op.Volumes) != len(many) {
				w.t.Errorf("an entry hands %d volumes over, want %d", len(op.Volumes), len(many))
			}
		}
	}
	return n
}

func TestMove_SeveralVolumesGoTogetherAndBack(t *testing.T) {
	inMoveWorld(t, 3, func(t *testing.T, w *moveWorld) {
		a, b := w.hosts[0], w.hosts[1]
		want := machine(w)
		for n, from := range []*moveHost{a, b, a} {
			to := map[*moveHost]*moveHost{a: b, b: a}[from]
			if _, err := from.handOff(byte(n+1), to).result(t.Context()); err != nil {
				t.Fatal(err)
			}
			w.held(to, scstore.Fence(n+2), want)
			if w.handOffs(byte(n+1)) == 0 {
				t.Error("no entry has handed them over")
			}
		}
		w.eventually("the last owner lacks something", func() bool {
			for _, id := range many {
				r, _ := b.set.lookup(id)
				if b.tenure(id).Phase != meta.PhaseNormal || b.set.complete(r) != 0 {
					return false
				}
			}
			return true
		})
		w.isolate(b, true)
		for i, id := range many {
			b.shows(id, want[i])
		}
	})
}

func TestMove_SeveralVolumesStayTogether(t *testing.T) {
	lost := func(kind quicnet.Kind) func(*moveWorld) {
		return func(w *moveWorld) {
			w.losing(func(_, _ meta.DiskID, k quicnet.Kind) bool { return k == kind })
		}
	}
	for name, c := range map[string]struct {
		fail  func(w *moveWorld)
		fence scstore.Fence // that the owner has in the end
	}{
		"the target does not hear of it": {lost(KindPrepare), 1},
		"no map comes":                   {lost(KindVolumes), 1},
		"the entry is not taken":         {func(w *moveWorld) { w.refusing(noHandOff) }, 2},
		"the target dies in doubt": {func(w *moveWorld) {
			b := w.hosts[1]
			w.refusing(func(from meta.DiskID, op meta.Op) error {
				if _, ok := op.(meta.HandOff); ok {
					b.mu.Lock()
					b.deaf = true
					b.mu.Unlock()
				}
				return noHandOff(from, op)
			})
		}, 2},
	} {
		t.Run(name, func(t *testing.T) {
			inMoveWorld(t, 3, func(t *testing.T, w *moveWorld) {
				a, b := w.hosts[0], w.hosts[1]
				want := machine(w)
				c.fail(w)
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				if _, err := a.handOff(1, b).result(ctx); err == nil || errors.Is(err, scstore.ErrIndeterminate) {
					t.Fatalf("got %v, want that it was taken back", err)
				}
				w.losing(nil)
				w.refusing(nil)
				b.hear(true)
				w.eventually("it is not decided", func() bool { return a.tenure(many[2]).Move.IsZero() })
				w.held(a, c.fence, want)
				if _, err := a.handOff(2, b).result(t.Context()); err != nil {
					t.Fatal(err)
				}
				w.held(b, c.fence+1, want)
			})
		})
	}
}

func TestMove_SeveralVolumesWithoutReleaseGoTogether(t *testing.T) {
	for _, restarts := range []bool{false, true} {
		t.Run(fmt.Sprint("the target restarts: ", restarts), func(t *testing.T) {
			inMoveWorld(t, 3, func(t *testing.T, w *moveWorld) {
				a, b := w.hosts[0], w.hosts[1]
				want := machine(w)
				w.losing(func(_, _ meta.DiskID, kind quicnet.Kind) bool { return kind == KindRelease })
				w.refusing(func(_ meta.DiskID, op meta.Op) error {
					if _, ok := op.(meta.HandOff); ok && restarts {
						b.mu.Lock()
						b.deaf = true
						b.mu.Unlock()
					}
					return nil
				})
				if _, err := a.handOff(1, b).result(t.Context()); err != nil {
					t.Fatal(err)
				}
				w.refusing(nil)
				if restarts {
					b.stop()
					b.hear(true)
					b.start()
				}
				w.held(b, 2, want)
			})
		})
	}
}

// stopInDoubt has the source of a hand-off of all volumes end between its marks and the
// decision.
func stopInDoubt(w *moveWorld, to *moveHost) {
	w.t.Helper()
	doubt, stop := context.WithCancel(w.t.Context())
	w.refusing(func(_ meta.DiskID, op meta.Op) error {
		switch op.(type) {
		case meta.HandOff:
			stop()
			return scstore.ErrNoMajority
		case meta.Cancel:
			return scstore.ErrNoMajority
		}
		return nil
	})
	src := w.hosts[0].handOff(1, to)
	<-doubt.Done()
	w.hosts[0].stop()
	if _, err := src.result(w.t.Context()); !errors.Is(err, scstore.ErrIndeterminate) {
		w.t.Errorf("a move that was left in doubt: %v", err)
	}
}

func TestMove_SeveralVolumesInDoubtOverARestartGoTogether(t *testing.T) {
	inMoveWorld(t, 3, func(t *testing.T, w *moveWorld) {
		a, b := w.hosts[0], w.hosts[1]
		want := machine(w)
		stopInDoubt(w, b)
		w.refusing(func(_ meta.DiskID, op meta.Op) error {
			if _, ok := op.(meta.Cancel); ok {
				return scstore.ErrNoMajority
			}
			return nil
		})
		w.eventually("the target's entry does not decide", func() bool { return b.tenure(many[0]).Holder == b.disk })
		a.start()
		w.held(b, 2, want)
	})
}

func TestMove_SeveralVolumesOfWhichOneWasMarkedStayTogether(t *testing.T) {
	inMoveWorld(t, 3, func(t *testing.T, w *moveWorld) {
		a, b := w.hosts[0], w.hosts[1]
		want := machine(w)
		w.losing(func(_, _ meta.DiskID, kind quicnet.Kind) bool { return kind == KindRelease })
		stopInDoubt(w, b)
		for _, id := range many[1:] { // as if it had ended after its first mark: nothing has left
			r, _ := a.set.lookup(id)
			facts := r.facts
			facts.Draining = nil
			if err := writeFacts(a.set.o.Dir, facts); err != nil {
				t.Fatal(err)
			}
		}
		a.start()
		if err := a.put(many[0], map[uint64]uint64{7: 1}); err == nil {
			t.Error("a volume in doubt takes writes after a restart")
		}
		more := map[uint64]uint64{8: 1}
		a.write(many[1], more) // it was not in doubt
		want[1] = merged(want[1], more)
		w.refusing(nil)
		w.losing(nil)
		w.eventually("it is not decided", func() bool { return a.tenure(many[0]).Fence == 2 })
		w.held(a, 2, want)
		if _, err := a.handOff(2, b).result(t.Context()); err != nil {
			t.Fatal(err)
		}
		w.held(b, 3, want)
	})
}

func TestMove_SeveralVolumesOfWhichOneIsPromotedAwayStay(t *testing.T) {
	inMoveWorld(t, 3, func(t *testing.T, w *moveWorld) {
		a, b := w.hosts[0], w.hosts[1]
		want := machine(w)
		refused := 0
		w.refusing(func(from meta.DiskID, op meta.Op) error {
			if _, ok := op.(meta.HandOff); ok {
				refused++
			}
			return noHandOff(from, op)
		})
		src := a.handOff(1, b)
		<-src.doubt
		w.must(b.Propose(t.Context(), moveGroup, meta.Revoke{ID: many[1], Fence: 1}))
		if _, err := src.result(t.Context()); err == nil || refused == 0 {
			t.Fatalf("got %v after %d proposals, want that it was taken back in doubt", err, refused)
		}
		w.refusing(nil)
		w.eventually("the other volumes are not written", func() bool {
			return a.put(many[0], map[uint64]uint64{8: 1}) == nil && a.put(many[2], map[uint64]uint64{8: 1}) == nil
		})
		a.shows(many[0], merged(want[0], map[uint64]uint64{8: 1}))
		if err := a.put(many[1], map[uint64]uint64{8: 1}); err == nil {
			t.Error("a volume that was revoked takes writes")
		}
		report, err := b.set.Promote(t.Context(), many[1], a.disk, false)
		if err != nil || report.To != a.disk {
			t.Fatalf("got %+v, %v", report, err)
		}
		w.eventually("the promoted volume is not written", func() bool { return a.put(many[1], map[uint64]uint64{8: 1}) == nil })
		for _, id := range []scstore.VolumeID{many[0], many[2]} {
			if got := a.tenure(id); got.Fence != 1 || got.Holder != a.disk {
				t.Errorf("volume %s: the right is %+v", id, got)
			}
		}
	})
}
