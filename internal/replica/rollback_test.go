package replica

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"scstore"
	"scstore/consensus/meta"
	"scstore/propagate/quicnet"
)

// changedSince makes a volume at A with a snapshot, and changes it in many places: data,
// zeros, holes. It returns the snapshot's position and content, and what is there now.
func changedSince(t *testing.T, w *world, placed ...meta.DiskID) (id scstore.VolumeID, at scstore.Position, then, now []byte) {
	t.Helper()
	a := w.hosts["A"]
	id = w.create("A", testSize, placed...)
	a.fill(id, 1)
	d := a.device(id)
	if err := errors.Join(d.Zero(3<<20, 1<<20, true), d.Discard(9*testBlock, 2*testBlock)); err != nil {
		t.Fatal(err)
	}
	then = a.read(id)
	at, err := a.set.Snapshot(t.Context(), id, "before", nil)
	if err != nil {
		t.Fatal(err)
	}
	for n := range int64(8) {
		if err := d.WriteAt(randomBytes(5*testBlock, uint64(n)), n*700*testBlock/4); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(d.Zero(1<<20, 1<<20, true), d.Discard(5<<20, 1<<20), d.Flush(t.Context())); err != nil {
		t.Fatal(err)
	}
	return id, at, then, a.read(id)
}

func TestRollBack_CopiesFollowAndWhatWasBetweenStays(t *testing.T) {
	w := newWorld(t, "A", "B")
	a, b := w.hosts["A"], w.hosts["B"]
	id, at, then, now := changedSince(t, w, "A", "B")
	later, err := a.set.Snapshot(t.Context(), id, "after", nil)
	if err != nil {
		t.Fatal(err)
	}
	lost, err := a.set.WrittenSince(t.Context(), id, at)
	if err != nil || lost < 2<<20 || lost > 3<<20 {
		t.Errorf("%d bytes were written since, %v", lost, err)
	}
	if _, err := b.set.WrittenSince(t.Context(), id, at); !errors.Is(err, scstore.ErrReadOnly) {
		t.Errorf("asked of a copy: %v", err)
	}
	var done, total int64
	if err := a.set.RollBack(t.Context(), id, at, func(d, of int64) { done, total = d, of }); err != nil {
		t.Fatal(err)
	}
	if done != total || total < lost {
		t.Errorf("progress ended at %d of %d", done, total)
	}
	same := func() {
		t.Helper()
		if !bytes.Equal(a.read(id), then) {
			t.Error("the owner does not show what the volume was")
		}
		head := a.seal(id)
		w.eventually("the copy follows", func() bool { return b.claims(id, head) && b.holds(id, head) })
		if !bytes.Equal(b.read(id), then) {
			t.Error("the copy differs")
		}
	}
	same()
	d, err := a.set.OpenAt(t.Context(), id, later)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Release()
	if !bytes.Equal(readDevice(t, d), now) {
		t.Error("a snapshot in between changed")
	}
	a.restart()
	same()
	block := randomBytes(testBlock, 99)
	if err := a.device(id).WriteAt(block, 0); err != nil {
		t.Fatal(err)
	}
	copy(then, block)
	same()
}

// interrupted begins to roll back and comes to a stop in the middle, until it is let go.
func interrupted(ctx context.Context, s *Set, id scstore.VolumeID, at scstore.Position) (middle, letGo chan struct{}, ended chan error) {
	middle, letGo, ended = make(chan struct{}), make(chan struct{}), make(chan error, 1)
	go func() {
		first := true
		ended <- s.RollBack(ctx, id, at, func(int64, int64) {
			if first {
				first = false
				close(middle)
				<-letGo
			}
		})
	}()
	return middle, letGo, ended
}

func TestRollBack_GivenUpInTheMiddleChangesNothing(t *testing.T) {
	w := newWorld(t, "A", "B")
	a := w.hosts["A"]
	id, at, then, now := changedSince(t, w, "A", "B")
	ctx, cancel := context.WithCancel(t.Context())
	middle, letGo, ended := interrupted(ctx, a.set, id, at)
	<-middle
	if err := a.device(id).WriteAt(make([]byte, testBlock), 0); !errors.Is(err, scstore.ErrBusy) {
		t.Errorf("a write during a rollback: %v", err)
	}
	if _, err := a.set.Move(t.Context(), id, "B", MoveOptions{}, nil); !errors.Is(err, scstore.ErrBusy) {
		t.Errorf("a move during a rollback: %v", err)
	}
	cancel()
	close(letGo)
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if !bytes.Equal(a.read(id), now) {
		t.Error("the volume changed")
	}
	if err := a.set.RollBack(t.Context(), id, at, nil); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(a.read(id), then) {
		t.Error("the owner does not show what the volume was")
	}
}

func TestRollBack_AHostThatEndsInTheMiddleComesBackWithTheVolumeAsItWas(t *testing.T) {
	w := newWorld(t, "A")
	a := w.hosts["A"]
	id, at, then, now := changedSince(t, w)
	middle, letGo, ended := interrupted(t.Context(), a.set, id, at)
	<-middle
	a.close()
	close(letGo)
	if err := <-ended; err == nil {
		t.Fatal("the rollback ended well")
	}
	a.open()
	if !bytes.Equal(a.read(id), now) {
		t.Error("the volume changed")
	}
	if err := a.set.RollBack(t.Context(), id, at, nil); err != nil {
		t.Fatal(err)
	}
	a.restart()
	if !bytes.Equal(a.read(id), then) {
		t.Error("the owner does not show what the volume was")
	}
}

func TestRollBack_APromoteInTheMiddleKeepsWhatWasThereBefore(t *testing.T) {
	inMoveWorld(t, 3, func(t *testing.T, w *moveWorld) {
		a, b := w.hosts[0], w.hosts[1]
		w.create(vol, a, a, b)
		first := map[uint64]uint64{0: 1, 5: 2, 900: 3}
		a.write(vol, first)
		at, err := a.set.Snapshot(t.Context(), vol, "before", nil)
		if err != nil {
			t.Fatal(err)
		}
		w.eventually("the copy is not complete", func() bool { got, _ := a.copyAt(vol, b.disk); return got == at })
		w.losing(func(_, _ meta.DiskID, kind quicnet.Kind) bool { return kind == KindVolumes })
		since := map[uint64]uint64{0: 7, 5: 8, 900: 9, 1000: 10}
		a.write(vol, since)
		middle, letGo, ended := interrupted(t.Context(), a.set, vol, at)
		<-middle
		w.isolate(a, true)
		if _, err := b.set.Promote(t.Context(), vol, b.disk, false); err != nil {
			t.Fatal(err)
		}
		w.losing(nil)
		w.isolate(a, false)
		r, _ := a.set.lookup(vol)
		w.eventually("the old owner does not give up", func() bool {
			r.mu.Lock()
			defer r.mu.Unlock()
			return r.facts.Fence == 0
		})
		close(letGo)
		if err := <-ended; err == nil {
			t.Fatal("the rollback ended well")
		}
		var branches []meta.Record
		w.eventually("there is no branch", func() bool {
			_ = b.View(moveGroup, func(st *meta.State) { branches = st.Branches(vol) })
			return len(branches) == 1
		})
		door, err := a.set.OpenAt(t.Context(), branches[0].ID, branches[0].Head)
		if err != nil {
			t.Fatal(err)
		}
		defer door.Release()
		a.same(door, merged(first, since))
		w.eventually("the new owner does not write", func() bool { return b.put(vol, map[uint64]uint64{7: 50}) == nil })
		b.shows(vol, merged(first, map[uint64]uint64{7: 50, 1000: 0}))
		w.eventually("the old owner is no copy of what followed", func() bool {
			got, head := b.copyAt(vol, a.disk)
			return got == head && head.Fence == 2
		})
	})
}
