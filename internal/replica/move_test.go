package replica

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"scstore"
	"scstore/consensus/meta"
	"scstore/propagate/quicnet"
)

var vol = scstore.VolumeID{7}

// moveTo moves a volume and requires that it works.
func (w *moveWorld) moveTo(from, to *moveHost) MoveReport {
	w.t.Helper()
	report, err := from.set.Move(w.t.Context(), vol, to.disk, MoveOptions{}, nil)
	if err != nil {
		w.t.Fatalf("move from %s to %s: %v", from.site, to.site, err)
	}
	if !report.Confirmed || report.From != from.disk || report.To != to.disk {
		w.t.Errorf("the report says %+v", report)
	}
	if got := from.tenure(vol).Holder; got != to.disk {
		w.t.Fatalf("%s has the right after a move to %s", got, to.disk)
	}
	return report
}

// What was never sealed is committed before the hand-off: so the target knows of the zeros.
func TestMove_OfAVolumeThatWasNeverSealedKnowsItsZeros(t *testing.T) {
	inMoveWorld(t, 2, func(t *testing.T, w *moveWorld) {
		a, b := w.hosts[0], w.hosts[1]
		w.create(vol, a)
		d, err := a.set.Open(t.Context(), vol)
		if err != nil {
			t.Fatal(err)
		}
		if err := d.Zero(0, d.Size(), false); err != nil {
			t.Fatal(err)
		}
		d.Release()
		defer stopFill(b.set)()
		w.moveTo(a, b)
		r, _ := b.set.lookup(vol)
		if n := r.table.RemoteBlocks(); n != 0 {
			t.Errorf("%d blocks of zeros are remote", n)
		}
		b.shows(vol, map[uint64]uint64{0: 0, moveBlocks - 1: 0})
	})
}

// settled waits until the volume's owner has all of it.
func (w *moveWorld) settled(at *moveHost) {
	w.t.Helper()
	w.eventually("the owner is not complete", func() bool {
		r, _ := at.set.lookup(vol)
		return at.tenure(vol).Phase == meta.PhaseNormal && at.set.complete(r) == 0
	})
}

func TestMove_TheTargetHasNothing(t *testing.T) {
	inMoveWorld(t, 3, func(t *testing.T, w *moveWorld) {
		a, b := w.hosts[0], w.hosts[1]
		w.create(vol, a)
		first := map[uint64]uint64{0: 1, 5: 2, 900: 3}
		a.write(vol, first)
		if report := w.moveTo(a, b); report.Fence != 2 || report.Position.Fence != 1 || report.Pause <= 0 {
			t.Errorf("the report says %+v", report)
		}
		b.shows(vol, merged(first, map[uint64]uint64{1: 0}))
		b.write(vol, map[uint64]uint64{5: 9})
		if err := a.put(vol, map[uint64]uint64{6: 1}); err == nil {
			t.Error("the old owner still takes writes")
		}
		a.shows(vol, first)
		w.settled(b)
		w.isolate(a, true)
		b.shows(vol, merged(first, map[uint64]uint64{5: 9}))
	})
}

func TestMove_AVolumeThatWasNeverWritten(t *testing.T) {
	inMoveWorld(t, 2, func(t *testing.T, w *moveWorld) {
		a, b := w.hosts[0], w.hosts[1]
		w.create(vol, a)
		w.moveTo(a, b)
		b.shows(vol, map[uint64]uint64{3: 0})
		b.write(vol, map[uint64]uint64{3: 4})
		w.moveTo(b, a)
		a.shows(vol, map[uint64]uint64{3: 4})
	})
}

func TestMove_TheTargetHasEverything(t *testing.T) {
	inMoveWorld(t, 3, func(t *testing.T, w *moveWorld) {
		a, b := w.hosts[0], w.hosts[1]
		w.create(vol, a, a, b)
		first := map[uint64]uint64{0: 1, 5: 2, 900: 3}
		a.write(vol, first)
		report, err := a.set.Move(t.Context(), vol, b.disk, MoveOptions{WaitComplete: true}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if report.MissingBytes != 0 {
			t.Errorf("%d bytes are missing at a target that was waited for", report.MissingBytes)
		}
		w.isolate(a, true)
		b.shows(vol, first)
	})
}

func TestMove_TheTargetHasAPart(t *testing.T) {
	inMoveWorld(t, 3, func(t *testing.T, w *moveWorld) {
		a, b := w.hosts[0], w.hosts[1]
		w.create(vol, a, a, b)
		first := map[uint64]uint64{}
		for i := range uint64(300) {
			first[3*i] = i + 1
		}
		a.write(vol, first)
		w.eventually("the copy is not complete", func() bool {
			at, head := a.copyAt(vol, b.disk)
			return at == head && head != scstore.Position{}
		})
		second := map[uint64]uint64{0: 77, 1: 78, 500: 79}
		a.write(vol, second)
		w.moveTo(a, b)
		b.shows(vol, merged(first, second))
		w.settled(b)
		w.isolate(a, true)
		b.shows(vol, merged(first, second))
	})
}

func TestMove_ThereAndBackTwice(t *testing.T) {
	inMoveWorld(t, 3, func(t *testing.T, w *moveWorld) {
		a, b := w.hosts[0], w.hosts[1]
		w.create(vol, a, a, b)
		want := map[uint64]uint64{}
		from, to := a, b
		for n := range uint64(4) {
			change := map[uint64]uint64{n: n + 1, 100: n + 50, 200 + n: n + 100}
			from.write(vol, change)
			want = merged(want, change)
			if report := w.moveTo(from, to); report.Fence != scstore.Fence(n+2) {
				t.Errorf("move %d: the fence is %d", n, report.Fence)
			}
			to.shows(vol, want)
			from, to = to, from
		}
	})
}

func TestMove_AConnectionAtTheTargetWaitsAndGoesOn(t *testing.T) {
	inMoveWorld(t, 2, func(t *testing.T, w *moveWorld) {
		a, b := w.hosts[0], w.hosts[1]
		w.create(vol, a)
		a.write(vol, map[uint64]uint64{1: 1})
		var early Device
		w.refusing(func(_ meta.DiskID, op meta.Op) error {
			if _, ok := op.(meta.HandOff); ok && early == nil {
				d, err := b.set.Open(t.Context(), vol)
				if err != nil {
					t.Errorf("open at the target: %v", err)
				}
				early = d
			}
			return nil
		})
		w.moveTo(a, b)
		if early == nil {
			t.Fatal("nobody opened the volume at the target")
		}
		if err := early.WriteAt(content(2), 0); err != nil {
			t.Fatal(err)
		}
		if early.Revoked().Err() != nil {
			t.Error("the connection ended")
		}
		b.shows(vol, map[uint64]uint64{0: 2, 1: 1})
	})
}

func TestMove_ReleaseIsLost(t *testing.T) {
	inMoveWorld(t, 3, func(t *testing.T, w *moveWorld) {
		a, b := w.hosts[0], w.hosts[1]
		w.create(vol, a)
		first := map[uint64]uint64{0: 1, 5: 2}
		a.write(vol, first)
		w.losing(func(_, _ meta.DiskID, kind quicnet.Kind) bool { return kind == KindRelease })
		w.moveTo(a, b)
		b.shows(vol, first)
		b.write(vol, map[uint64]uint64{6: 3})
		b.shows(vol, merged(first, map[uint64]uint64{6: 3}))
	})
}

func TestMove_TheEntryOfTheSourceIsLostAndTheTargetsDecides(t *testing.T) {
	inMoveWorld(t, 3, func(t *testing.T, w *moveWorld) {
		a, b := w.hosts[0], w.hosts[1]
		w.create(vol, a)
		a.write(vol, map[uint64]uint64{0: 1})
		w.refusing(func(from meta.DiskID, op meta.Op) error {
			if _, ok := op.(meta.HandOff); ok && from == a.disk {
				return scstore.ErrIndeterminate
			}
			return nil
		})
		w.moveTo(a, b)
		b.shows(vol, map[uint64]uint64{0: 1})
	})
}

func TestMove_EntriesThatGetLostDoNotHoldUpTheNext(t *testing.T) {
	for _, name := range []string{"source", "target"} {
		t.Run(name, func(t *testing.T) {
			inMoveWorld(t, 3, func(t *testing.T, w *moveWorld) {
				a, b := w.hosts[0], w.hosts[1]
				w.create(vol, a)
				a.write(vol, map[uint64]uint64{0: 1})
				by := map[string]*moveHost{"source": a, "target": b}[name]
				var first time.Time
				w.refusing(func(from meta.DiskID, op meta.Op) error {
					if _, ok := op.(meta.HandOff); !ok {
						return nil
					}
					if first.IsZero() {
						first = time.Now()
					}
					if from != by.disk || time.Since(first) < time.Second { // of virtual time: the leader is dead
						return errLost
					}
					return nil
				})
				w.moveTo(a, b)
				b.shows(vol, map[uint64]uint64{0: 1})
			})
		})
	}
}

// noHandOff refuses the entry of a hand-off, whoever proposes it.
func noHandOff(_ meta.DiskID, op meta.Op) error {
	if _, ok := op.(meta.HandOff); ok {
		return scstore.ErrNoMajority
	}
	return nil
}

func TestMove_CancelledTheSourceServesOnUnderTheNextFence(t *testing.T) {
	inMoveWorld(t, 3, func(t *testing.T, w *moveWorld) {
		a, b := w.hosts[0], w.hosts[1]
		w.create(vol, a)
		first := map[uint64]uint64{0: 1, 5: 2}
		a.write(vol, first)
		door, err := a.set.Open(t.Context(), vol)
		if err != nil {
			t.Fatal(err)
		}
		w.refusing(noHandOff)
		_, err = a.set.Move(t.Context(), vol, b.disk, MoveOptions{}, nil)
		if !errors.Is(err, scstore.ErrNoMajority) {
			t.Fatalf("got %v, want that it was taken back for want of a majority", err)
		}
		w.refusing(nil)
		if got := a.tenure(vol); got.Holder != a.disk || got.Fence != 2 {
			t.Fatalf("after Cancel the right is %+v", got)
		}
		if err := door.WriteAt(content(3), 4096); err != nil || door.Revoked().Err() != nil {
			t.Fatalf("a connection from before does not go on: %v", err)
		}
		want := merged(first, map[uint64]uint64{1: 3})
		a.shows(vol, want)
		w.moveTo(a, b) // what was sealed for the first move is in the epoch of the second
		b.shows(vol, want)
	})
}

func TestMove_TheTargetDiesBeforeTheEntry(t *testing.T) {
	inMoveWorld(t, 3, func(t *testing.T, w *moveWorld) {
		a, b := w.hosts[0], w.hosts[1]
		w.create(vol, a)
		first := map[uint64]uint64{0: 1, 5: 2}
		a.write(vol, first)
		dead := false
		w.refusing(func(from meta.DiskID, op meta.Op) error {
			if _, ok := op.(meta.HandOff); ok && from == a.disk {
				dead = true
			}
			return noHandOff(from, op)
		})
		w.losing(func(_, to meta.DiskID, kind quicnet.Kind) bool { return to == b.disk && (dead || kind == KindRelease) })
		if _, err := a.set.Move(t.Context(), vol, b.disk, MoveOptions{}, nil); err == nil || strings.Contains(err.Error(), "doubt") {
			t.Fatalf("got %v, want that it was taken back", err)
		}
		w.refusing(nil)
		b.stop()
		a.write(vol, map[uint64]uint64{6: 3})
		w.losing(nil)
		b.start()
		w.moveTo(a, b)
		b.shows(vol, merged(first, map[uint64]uint64{6: 3}))
	})
}

func TestMove_TheTargetIsUnreachable(t *testing.T) {
	inMoveWorld(t, 3, func(t *testing.T, w *moveWorld) {
		a, b := w.hosts[0], w.hosts[1]
		w.create(vol, a)
		w.losing(func(_, to meta.DiskID, kind quicnet.Kind) bool { return to == b.disk && kind == KindPrepare })
		if _, err := a.set.Move(t.Context(), vol, b.disk, MoveOptions{}, nil); !errors.Is(err, scstore.ErrUnreachable) {
			t.Fatalf("got %v, want ErrUnreachable", err)
		}
		a.write(vol, map[uint64]uint64{0: 1})
		w.cut(a, b, true)
		begun := time.Now()
		if _, err := a.set.Move(t.Context(), vol, b.disk, MoveOptions{}, nil); !errors.Is(err, scstore.ErrUnreachable) {
			t.Fatalf("got %v, want ErrUnreachable", err)
		}
		if took := time.Since(begun); took > 10*time.Second { // of virtual time
			t.Errorf("it took %v to say that a host is down", took)
		}
		w.cut(a, b, false)
		w.losing(nil)
		w.moveTo(a, b)
	})
}

// restartInDoubt has a source end between its mark and the decision.
func restartInDoubt(t *testing.T, w *moveWorld, want map[uint64]uint64) {
	t.Helper()
	a, b := w.hosts[0], w.hosts[1]
	w.create(vol, a)
	a.write(vol, want)
	doubt := make(chan struct{})
	closed := false
	w.refusing(func(from meta.DiskID, op meta.Op) error {
		switch op.(type) {
		case meta.HandOff:
			if !closed {
				closed = true
				close(doubt)
			}
			return scstore.ErrNoMajority
		case meta.Cancel:
			return scstore.ErrNoMajority
		}
		return nil
	})
	failed := make(chan error, 1)
	go func() {
		_, err := a.set.Move(t.Context(), vol, b.disk, MoveOptions{}, nil)
		failed <- err
	}()
	<-doubt
	a.stop()
	if err := <-failed; !errors.Is(err, scstore.ErrIndeterminate) {
		t.Errorf("a move that was left in doubt: %v", err)
	}
}

func TestMove_TheSourceRestartsInDoubtAndTheTargetHasIt(t *testing.T) {
	inMoveWorld(t, 3, func(t *testing.T, w *moveWorld) {
		a, b := w.hosts[0], w.hosts[1]
		first := map[uint64]uint64{0: 1, 5: 2}
		restartInDoubt(t, w, first)
		w.refusing(func(_ meta.DiskID, op meta.Op) error {
			if _, ok := op.(meta.Cancel); ok {
				return scstore.ErrNoMajority
			}
			return nil
		})
		w.eventually("the target's entry does not decide", func() bool { return b.tenure(vol).Holder == b.disk })
		a.start()
		w.eventually("the target does not write", func() bool { return b.put(vol, map[uint64]uint64{6: 3}) == nil })
		b.shows(vol, merged(first, map[uint64]uint64{6: 3}))
		if err := a.put(vol, map[uint64]uint64{7: 3}); err == nil {
			t.Error("the old owner takes writes after its restart")
		}
		a.shows(vol, first)
	})
}

func TestMove_TheSourceRestartsInDoubtAndKeepsIt(t *testing.T) {
	inMoveWorld(t, 3, func(t *testing.T, w *moveWorld) {
		a := w.hosts[0]
		first := map[uint64]uint64{0: 1, 5: 2}
		restartInDoubt(t, w, first)
		a.start()
		a.shows(vol, first) // for reading, while it is in doubt
		if err := a.put(vol, map[uint64]uint64{7: 3}); err == nil {
			t.Error("a source in doubt takes writes after its restart")
		}
		w.refusing(noHandOff)
		w.eventually("it is not cancelled", func() bool { return a.tenure(vol).Fence == 2 })
		w.eventually("the source does not write", func() bool { return a.put(vol, map[uint64]uint64{6: 3}) == nil })
		a.shows(vol, merged(first, map[uint64]uint64{6: 3}))
		w.refusing(nil)
		w.moveTo(a, w.hosts[2])
		w.hosts[2].shows(vol, merged(first, map[uint64]uint64{6: 3}))
	})
}

func TestMove_TheTargetRestartsAfterTheEntry(t *testing.T) {
	inMoveWorld(t, 3, func(t *testing.T, w *moveWorld) {
		a, b := w.hosts[0], w.hosts[1]
		w.create(vol, a)
		first := map[uint64]uint64{0: 1, 5: 2}
		a.write(vol, first)
		w.losing(func(_, _ meta.DiskID, kind quicnet.Kind) bool { return kind == KindRelease })
		w.refusing(func(_ meta.DiskID, op meta.Op) error {
			if _, ok := op.(meta.HandOff); ok {
				b.mu.Lock()
				b.deaf = true
				b.mu.Unlock()
			}
			return nil
		})
		report, err := a.set.Move(t.Context(), vol, b.disk, MoveOptions{}, nil)
		if err != nil || report.Confirmed {
			t.Fatalf("got %+v, %v, want a move that the target has not heard of", report, err)
		}
		w.refusing(nil)
		b.stop()
		b.deaf = false
		w.losing(nil)
		b.start()
		w.eventually("the target does not write", func() bool { return b.put(vol, map[uint64]uint64{6: 3}) == nil })
		b.shows(vol, merged(first, map[uint64]uint64{6: 3}))
	})
}

func TestMove_AnIntentFromBeforeARestartIsTakenBack(t *testing.T) {
	inMoveWorld(t, 2, func(t *testing.T, w *moveWorld) {
		a, b := w.hosts[0], w.hosts[1]
		w.create(vol, a)
		now := time.Now().UnixMilli()
		w.must(b.Propose(t.Context(), moveGroup, meta.Intent{NowMs: now, Move: meta.Move{
			ID: meta.HandOffID{9}, From: a.disk, To: b.disk, Volumes: []scstore.VolumeID{vol}, DeadlineMs: now + 600_000,
		}}))
		w.eventually("the intent still stands", func() bool { return a.tenure(vol).Move.IsZero() })
		w.moveTo(a, b)
	})
}

func TestMove_RefusedWhereItMakesNoSense(t *testing.T) {
	inMoveWorld(t, 3, func(t *testing.T, w *moveWorld) {
		a, b := w.hosts[0], w.hosts[1]
		w.create(vol, a)
		for _, c := range []struct {
			at   *moveHost
			id   scstore.VolumeID
			to   *moveHost
			o    MoveOptions
			want error
		}{
			{a, scstore.VolumeID{99}, b, MoveOptions{}, scstore.ErrNotFound},
			{a, vol, a, MoveOptions{}, scstore.ErrInvalid},
			{a, vol, b, MoveOptions{WaitComplete: true}, scstore.ErrInvalid},
		} {
			if _, err := c.at.set.Move(t.Context(), c.id, c.to.disk, c.o, nil); !errors.Is(err, c.want) {
				t.Errorf("move %s from %s to %s: got %v, want %v", c.id, c.at.site, c.to.site, err, c.want)
			}
		}
		w.moveTo(a, b)
		if _, err := a.set.Move(t.Context(), vol, w.hosts[2].disk, MoveOptions{}, nil); !errors.Is(err, scstore.ErrBusy) {
			t.Errorf("a move by a host that does not own: got %v, want ErrBusy", err)
		}
	})
}

func TestMove_WhoStopsWaitingIsTold(t *testing.T) {
	inMoveWorld(t, 3, func(t *testing.T, w *moveWorld) {
		a, b := w.hosts[0], w.hosts[1]
		w.create(vol, a)
		for kind, want := range map[quicnet.Kind]error{KindPrepare: context.DeadlineExceeded, 0: scstore.ErrIndeterminate} {
			w.losing(func(_, _ meta.DiskID, k quicnet.Kind) bool { return k == kind })
			w.refusing(func(_ meta.DiskID, op meta.Op) error {
				if s := fmt.Sprintf("%T", op); kind == 0 && (s == "meta.HandOff" || s == "meta.Cancel") {
					return scstore.ErrNoMajority
				}
				return nil
			})
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			_, err := a.set.Move(ctx, vol, b.disk, MoveOptions{}, nil)
			cancel()
			if !errors.Is(err, want) {
				t.Errorf("losing kind %d: got %v, want %v", kind, err, want)
			}
			w.losing(nil)
			w.refusing(nil)
			w.eventually("it is not decided", func() bool {
				decided := a.tenure(vol).Move.IsZero() // the view's lock comes before Replica.mu
				r, _ := a.set.lookup(vol)
				r.mu.Lock()
				defer r.mu.Unlock()
				return decided && r.source == nil
			})
			if a.tenure(vol).Holder != a.disk {
				w.moveTo(b, a)
			}
		}
	})
}
