package replica

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"scstore"
	"scstore/consensus/meta"
	"scstore/propagate/quicnet"
)

// lostOwner is a world in which the owner, host a, wrote what only it has.
type lostOwner struct {
	kept   map[uint64]uint64 // complete at b
	lost   map[uint64]uint64 // written after it: committed, then open
	at     scstore.Position  // of what b has
	head   scstore.Position
	epochs uint64
}

// loseOwner has a write what b gets, then what is committed and b does not get, then what
// is not committed; and cuts a off.
func loseOwner(w *moveWorld) (o lostOwner) {
	w.t.Helper()
	a, b := w.hosts[0], w.hosts[1]
	w.create(vol, a, a, b)
	o.kept = map[uint64]uint64{0: 1, 5: 2, 900: 3}
	a.write(vol, o.kept)
	w.eventually("the copy is not complete", func() bool {
		at, head := a.copyAt(vol, b.disk)
		o.at = at
		return at == head && head != scstore.Position{}
	})
	w.losing(func(_, _ meta.DiskID, kind quicnet.Kind) bool { return kind == KindVolumes })
	o.lost = map[uint64]uint64{5: 20, 6: 21}
	for n := range uint64(3) {
		a.write(vol, map[uint64]uint64{5: 20, 6: 21, 100 + n: n + 30})
		o.lost[100+n] = n + 30
		w.eventually("an epoch is not committed", func() bool { _, o.head = a.copyAt(vol, a.disk); return o.head.Epoch == o.at.Epoch+scstore.Epoch(n)+1 })
		time.Sleep(time.Second)
	}
	o.epochs = 3
	w.isolate(a, true)
	a.write(vol, map[uint64]uint64{200: 40})
	o.lost[200] = 40
	return o
}

func TestPromote_ReportsWhatIsLostAndTheOldOwnersBranchHoldsIt(t *testing.T) {
	inMoveWorld(t, 3, func(t *testing.T, w *moveWorld) {
		a, b, c := w.hosts[0], w.hosts[1], w.hosts[2]
		o := loseOwner(w)
		report, err := c.set.Promote(t.Context(), vol, "", false)
		if err != nil {
			t.Fatal(err)
		}
		w.losing(nil)
		if report.Epochs != o.epochs || report.Position != o.at || report.Head != o.head || report.To != b.disk || report.Owner != a.disk || report.Fence != 2 || !report.Complete {
			t.Errorf("the report says %+v, want %+v", report, o)
		}
		if !slices.Equal(report.Reachable, []meta.DiskID{b.disk, c.disk}) || !slices.Equal(report.Silent, []meta.DiskID{a.disk}) || report.Bytes != nil || report.Unknown == "" {
			t.Errorf("the report says %+v", report)
		}
		w.eventually("the new owner does not write", func() bool { return b.put(vol, map[uint64]uint64{7: 50}) == nil })
		b.shows(vol, merged(o.kept, map[uint64]uint64{6: 0, 7: 50, 200: 0}))

		w.isolate(a, false)
		var branches []meta.Record
		w.eventually("there is no branch", func() bool {
			_ = b.View(moveGroup, func(st *meta.State) { branches = st.Branches(vol) })
			return len(branches) == 1
		})
		br := branches[0]
		if br.BasePosition != o.at || br.Fence != 1 || br.DeltaBytes != int64(len(o.lost))*scstore.BlockSize {
			t.Errorf("the branch is %+v", br)
		}
		door, err := a.set.OpenAt(t.Context(), br.ID, br.Head)
		if err != nil {
			t.Fatal(err)
		}
		defer door.Release()
		a.same(door, merged(o.kept, o.lost, map[uint64]uint64{7: 0}))
		w.eventually("the old owner is no copy of what followed", func() bool {
			at, head := b.copyAt(vol, a.disk)
			return at == head && head.Fence == 2
		})
		a.shows(vol, merged(o.kept, map[uint64]uint64{6: 0, 7: 50, 200: 0}))
		a.same(door, merged(o.kept, o.lost, map[uint64]uint64{7: 0}))
	})
}

func TestPromote_SecondsAreKnownToWhoSawTheCommits(t *testing.T) {
	for _, restarted := range []bool{false, true} {
		t.Run(fmt.Sprint("restarted: ", restarted), func(t *testing.T) {
			inMoveWorld(t, 3, func(t *testing.T, w *moveWorld) {
				b := w.hosts[1]
				o := loseOwner(w)
				if restarted { // and reads the log again, entry by entry
					b.stop()
					b.startBehind(1)
					for b.readEntry() {
						time.Sleep(100 * time.Millisecond)
					}
				}
				report, err := b.set.Promote(t.Context(), vol, "", false)
				if err != nil {
					t.Fatal(err)
				}
				w.losing(nil)
				if known := report.Seconds != nil; report.Epochs != o.epochs || report.Epochs == 0 || known == restarted {
					t.Errorf("the report says %+v", report)
				}
			})
		})
	}
}

func TestPromote_TheOldOwnerRestartsAndItsBranchHoldsWhatItFlushed(t *testing.T) {
	inMoveWorld(t, 3, func(t *testing.T, w *moveWorld) {
		a, b := w.hosts[0], w.hosts[1]
		o := loseOwner(w)
		a.stop()
		if _, err := b.set.Promote(t.Context(), vol, "", false); err != nil {
			t.Fatal(err)
		}
		w.losing(nil)
		a.start() // it does not know yet
		a.write(vol, map[uint64]uint64{201: 41})
		o.lost[201] = 41
		a.stop()
		a.start()
		w.isolate(a, false)
		var branches []meta.Record
		w.eventually("there is no branch", func() bool {
			_ = b.View(moveGroup, func(st *meta.State) { branches = st.Branches(vol) })
			return len(branches) == 1
		})
		a.stop()
		a.start()
		w.eventually("the branch is not here after a restart", func() bool {
			door, err := a.set.OpenAt(t.Context(), branches[0].ID, branches[0].Head)
			if err != nil {
				return false
			}
			defer door.Release()
			a.same(door, merged(o.kept, o.lost))
			return true
		})
		w.moveTo(b, a)
		a.shows(vol, merged(o.kept, map[uint64]uint64{6: 0, 201: 0}))
	})
}

func TestPromote_NoBranchOfNothing(t *testing.T) {
	inMoveWorld(t, 3, func(t *testing.T, w *moveWorld) {
		a, b := w.hosts[0], w.hosts[1]
		w.create(vol, a, a, b)
		first := map[uint64]uint64{0: 1}
		a.write(vol, first)
		w.eventually("the copy is not complete", func() bool {
			at, head := a.copyAt(vol, b.disk)
			return at == head && head != scstore.Position{}
		})
		w.isolate(a, true)
		report, err := b.set.Promote(t.Context(), vol, "", false)
		if err != nil {
			t.Fatal(err)
		}
		if report.Epochs != 0 || report.Bytes == nil || *report.Bytes != 0 || report.Seconds == nil || *report.Seconds != 0 {
			t.Errorf("nothing is lost, and the report says %+v", report)
		}
		w.eventually("the new owner does not write", func() bool { return b.put(vol, map[uint64]uint64{1: 5}) == nil })
		w.isolate(a, false)
		w.eventually("the old owner does not report", func() (ok bool) {
			_ = b.View(moveGroup, func(st *meta.State) {
				ok = !slices.ContainsFunc(st.Forks(vol), func(f meta.Fork) bool { return f.Waiting }) && len(st.Branches(vol)) == 0
			})
			return ok
		})
		w.eventually("the old owner is no copy of what followed", func() bool {
			at, head := b.copyAt(vol, a.disk)
			return at == head && head.Fence == 2
		})
		a.shows(vol, merged(first, map[uint64]uint64{1: 5}))
	})
}

func TestPromote_RefusedWhileTheOwnerAnswers(t *testing.T) {
	inMoveWorld(t, 3, func(t *testing.T, w *moveWorld) {
		a, b := w.hosts[0], w.hosts[1]
		w.create(vol, a, a, b)
		a.write(vol, map[uint64]uint64{0: 1})
		for _, dry := range []bool{true, false} {
			for _, h := range []*moveHost{a, b} {
				if _, err := h.set.Promote(t.Context(), vol, b.disk, dry); !errors.Is(err, scstore.ErrBusy) {
					t.Errorf("asked of %s, dry %v: got %v, want ErrBusy", h.site, dry, err)
				}
			}
		}
		if got := a.tenure(vol); got.Fence != 1 || got.Holder != a.disk {
			t.Errorf("the right is %+v", got)
		}
		a.write(vol, map[uint64]uint64{0: 2})
	})
}

func TestPromote_ADryRunChangesNothing(t *testing.T) {
	inMoveWorld(t, 3, func(t *testing.T, w *moveWorld) {
		a, b, c := w.hosts[0], w.hosts[1], w.hosts[2]
		o := loseOwner(w)
		w.eventually("the log does not come to rest", func() bool {
			w.mu.Lock()
			n := len(w.entries[moveGroup])
			w.mu.Unlock()
			time.Sleep(10 * time.Second)
			w.mu.Lock()
			defer w.mu.Unlock()
			return n == len(w.entries[moveGroup])
		})
		before := len(w.entries[moveGroup])
		report, err := c.set.Promote(t.Context(), vol, "", true)
		if err != nil {
			t.Fatal(err)
		}
		if !report.DryRun || report.Epochs != o.epochs || report.Position != o.at || report.To != b.disk {
			t.Errorf("the report says %+v, want %+v", report, o)
		}
		if len(w.entries[moveGroup]) != before {
			t.Errorf("a dry run made %d entries", len(w.entries[moveGroup])-before)
		}
		w.losing(nil)
		w.isolate(a, false)
		a.write(vol, map[uint64]uint64{201: 41})
		a.shows(vol, merged(o.kept, o.lost, map[uint64]uint64{201: 41}))
	})
}

func TestPromote_GoesOnAfterItWasCutOff(t *testing.T) {
	inMoveWorld(t, 3, func(t *testing.T, w *moveWorld) {
		b, c := w.hosts[1], w.hosts[2]
		o := loseOwner(w)
		w.losing(nil)
		w.refusing(func(_ meta.DiskID, op meta.Op) error {
			if _, ok := op.(meta.Promote); ok {
				return scstore.ErrNoMajority
			}
			return nil
		})
		if _, err := b.set.Promote(t.Context(), vol, "", false); !errors.Is(err, scstore.ErrNoMajority) {
			t.Fatalf("got %v, want ErrNoMajority", err)
		}
		if got := b.tenure(vol); got.Phase != meta.PhaseRevoked {
			t.Fatalf("the right is %+v", got)
		}
		w.refusing(nil)
		report, err := c.set.Promote(t.Context(), vol, c.disk, false) // to a host that has nothing
		if err != nil {
			t.Fatal(err)
		}
		if report.Epochs != o.epochs || report.To != c.disk || report.Complete || report.Owner != w.hosts[0].disk {
			t.Errorf("the report says %+v, want %+v", report, o)
		}
		w.eventually("the new owner does not write", func() bool { return c.put(vol, map[uint64]uint64{7: 50}) == nil })
		c.shows(vol, merged(o.kept, map[uint64]uint64{6: 0, 7: 50}))
	})
}

func TestPromote_TheOwnerReturnsBeforeItIsDoneAndNothingIsLost(t *testing.T) {
	inMoveWorld(t, 3, func(t *testing.T, w *moveWorld) {
		a, b := w.hosts[0], w.hosts[1]
		o := loseOwner(w)
		w.losing(nil)
		w.refusing(func(_ meta.DiskID, op meta.Op) error {
			if _, ok := op.(meta.Promote); ok {
				return scstore.ErrNoMajority
			}
			return nil
		})
		if _, err := b.set.Promote(t.Context(), vol, "", false); err == nil {
			t.Fatal("the promote was not cut off")
		}
		w.refusing(nil)
		w.isolate(a, false)
		w.eventually("the owner does not give up", func() bool { return a.put(vol, map[uint64]uint64{7: 1}) != nil })
		report, err := b.set.Promote(t.Context(), vol, "", false)
		if err != nil {
			t.Fatal(err)
		}
		if report.Epochs != 0 || report.Position != o.head || report.To != a.disk {
			t.Errorf("the report says %+v, want nothing lost and the old owner", report)
		}
		delete(o.lost, 200) // not committed: it is in the branch
		w.eventually("the old owner does not write again", func() bool { return a.put(vol, map[uint64]uint64{7: 50}) == nil })
		a.shows(vol, merged(o.kept, o.lost, map[uint64]uint64{7: 50, 200: 0}))
	})
}

func TestPromote_BackToTheOldOwnerItWritesThoughNothingElseHappens(t *testing.T) {
	for _, committed := range []bool{false, true} {
		t.Run(fmt.Sprint("something was committed: ", committed), func(t *testing.T) {
			inMoveWorld(t, 2, func(t *testing.T, w *moveWorld) {
				a, b := w.hosts[0], w.hosts[1]
				w.create(vol, a) // placed nowhere: no other host makes entries
				want := map[uint64]uint64{0: 0, 5: 0, 7: 50}
				if committed {
					a.write(vol, map[uint64]uint64{5: 2})
					w.commits(a, vol)
					want[5] = 2
				}
				a.write(vol, map[uint64]uint64{0: 1})
				w.isolate(a, true)
				w.must(b.Propose(t.Context(), moveGroup, meta.Revoke{ID: vol, Fence: 1}))
				w.isolate(a, false)
				w.eventually("the owner does not give up", func() bool { return a.put(vol, map[uint64]uint64{7: 1}) != nil })
				if report, err := b.set.Promote(t.Context(), vol, a.disk, false); err != nil || report.To != a.disk {
					t.Fatalf("got %+v, %v", report, err)
				}
				w.eventually("the old owner does not write again", func() bool { return a.put(vol, map[uint64]uint64{7: 50}) == nil })
				a.shows(vol, want) // what was not committed is in the branch
			})
		})
	}
}

func TestPromote_OfTwoAtOnceNoneReportsWhatTheOtherDid(t *testing.T) {
	inMoveWorld(t, 3, func(t *testing.T, w *moveWorld) {
		b, c := w.hosts[1], w.hosts[2]
		o := loseOwner(w)
		w.losing(nil)
		moveNet{b}.Answer(KindHolds, func(ctx context.Context, from meta.DiskID, request []byte) ([]byte, error) {
			pause(ctx, 2*time.Second)
			return b.set.answerHolds(ctx, from, request)
		})
		type answer struct {
			report PromoteReport
			err    error
		}
		late := make(chan answer, 1)
		go func() {
			report, err := c.set.Promote(t.Context(), vol, b.disk, false)
			late <- answer{report, err}
		}()
		time.Sleep(time.Second)
		report, err := b.set.Promote(t.Context(), vol, b.disk, false)
		if err != nil || report.Epochs != o.epochs || report.Head != o.head {
			t.Fatalf("got %+v, %v, want %+v", report, err, o)
		}
		if got := <-late; got.err == nil && (got.report.Epochs != o.epochs || got.report.Head != o.head) {
			t.Errorf("the other promote reports %+v, want %+v", got.report, o)
		}
		w.eventually("the new owner does not write", func() bool { return b.put(vol, map[uint64]uint64{7: 50}) == nil })
	})
}
