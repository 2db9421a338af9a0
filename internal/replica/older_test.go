package replica

import (
	"bytes"
	"errors"
	"slices"
	"testing"
	"time"

	"scstore"
	"scstore/consensus/meta"
)

// A copy that brought an older position for a clone, and gave that up again, goes on from
// its newest one.
func TestSet_CopyThatBroughtAnOlderPositionGoesOnFromTheNewest(t *testing.T) {
	inMoveWorld(t, 2, func(t *testing.T, w *moveWorld) {
		a, b := w.hosts[0], w.hosts[1]
		w.create(vol, a, b)
		want := map[uint64]uint64{0: 1, 5: 2}
		a.write(vol, want)
		golden, err := a.set.Snapshot(t.Context(), vol, "golden", nil)
		if err != nil {
			t.Fatal(err)
		}
		follows := func(more map[uint64]uint64) {
			t.Helper()
			want = merged(want, more)
			a.write(vol, more)
			w.commits(a, vol)
			w.eventually("b does not follow", func() bool { at, head := a.copyAt(vol, b.disk); return at == head })
			b.shows(vol, want)
		}
		follows(map[uint64]uint64{5: 3, 900: 4})
		r, _ := b.set.lookup(vol)
		held := func() bool {
			r.mu.Lock()
			defer r.mu.Unlock()
			return r.facts.holds(golden)
		}
		r.mu.Lock()
		r.drop([]scstore.Position{golden}) // as if it had come to be needed only now
		r.mu.Unlock()
		if held() {
			t.Fatal("the snapshot is still at b")
		}

		clone := scstore.VolumeID{8}
		w.must(a.Propose(t.Context(), moveGroup, meta.CreateVolume{
			ID: clone, SizeBytes: moveBlocks * scstore.BlockSize, Base: vol, BasePosition: golden, CreatedAtMs: 1,
		}))
		w.must(a.Propose(t.Context(), moveGroup, meta.SetPlacement{ID: clone, Placement: meta.Placement{
			Mode: meta.ModeAsync, Failover: meta.FailoverManual, Sites: []meta.SiteID{b.site},
		}}))
		w.eventually("the clone's base is not at b", held)
		b.shows(vol, want)
		w.must(a.Propose(t.Context(), moveGroup, meta.Remove{ID: clone}))
		w.eventually("the snapshot is still needed", func() bool {
			_, err := a.Propose(t.Context(), moveGroup, meta.DeleteSnapshot{ID: vol, Name: "golden"})
			return err == nil
		})
		time.Sleep(time.Minute) // virtual: b gives up what nobody needs
		follows(map[uint64]uint64{8: 6})
		w.eventually("the old position is still at b", func() bool { return !held() })
		follows(map[uint64]uint64{9: 7})
	})
}

// The log that a start reads again passes through what was so before. A copy that is
// further does not go back to it.
func TestSet_CopyDoesNotGoBackToWhatTheLogSaysAfterAStart(t *testing.T) {
	w := newWorld(t, "A", "B")
	a, b := w.hosts["A"], w.hosts["B"]
	id := w.create("A", testSize, "A", "B")
	data := a.fill(id, 1)
	follows := func(block int64) (head scstore.Position) {
		t.Helper()
		p := randomBytes(testBlock, uint64(block))
		if err := a.device(id).WriteAt(p, block*testBlock); err != nil {
			t.Fatal(err)
		}
		copy(data[block*testBlock:], p)
		head = a.seal(id)
		w.eventually("B follows", func() bool { return b.claims(id, head) })
		return head
	}
	first := follows(0)
	follows(1)
	follows(2)

	b.restartAt(func(st *meta.State) bool { // B had a lease on the first position, and was to bring it
		for _, root := range st.Roots(id) {
			if root.Kind == meta.RootJump && root.Disk == b.disk && root.Position == first {
				return true
			}
		}
		return false
	})
	time.Sleep(4 * tickInterval) // what it does too much, it does at once
	r, _ := b.set.lookup(id)
	r.mu.Lock()
	if r.jump != nil || r.facts.Jump != nil || r.facts.holds(first) {
		t.Errorf("jump %v, facts %+v: it went back", r.jump, r.facts)
	}
	r.mu.Unlock()
	b.log.hold(0)
	follows(100)
	if got := b.read(id); !bytes.Equal(got, data) {
		t.Error("the copy differs")
	}
}

// leads reports whether the state has a volume at a host, at a position.
func leads(st *meta.State, id scstore.VolumeID, disk meta.DiskID, head scstore.Position) bool {
	rec, _ := st.Get(id)
	t, _ := st.Holder(id)
	return t.Holder == disk && rec.Head == head
}

// What an owner wrote under a fence that it lost is kept while the log that a start reads
// again is not yet where the fence was lost: nobody seems to wait for it there.
func TestPromote_WhatWasKeptStaysWhileTheLogIsReadAgain(t *testing.T) {
	w := newWorld(t, "A", "B")
	a, b := w.hosts["A"], w.hosts["B"]
	id := w.create("A", testSize, "A", "B")
	data := a.fill(id, 1)
	at := a.seal(id)
	w.eventually("B has a copy", func() bool { return b.claims(id, at) })
	a.log.disconnect(true)
	p, d := randomBytes(10*testBlock, 5), a.device(id)
	if err := errors.Join(d.WriteAt(p, 0), d.Flush(t.Context())); err != nil {
		t.Fatal(err)
	}
	copy(data, p)
	w.promote(id, "B", at)

	a.restartAt(func(st *meta.State) bool { t, _ := st.Holder(id); return t.Phase == meta.PhaseRevoked })
	left := func() int {
		r := a.set.replica(id)
		r.mu.Lock()
		defer r.mu.Unlock()
		return len(r.facts.Left)
	}
	w.eventually("A keeps what it wrote", func() bool { return left() == 1 })
	a.restartAt(func(st *meta.State) bool { return leads(st, id, "A", at) })
	time.Sleep(4 * tickInterval) // what it does too much, it does at once
	if left() != 1 {
		t.Error("what A wrote is given up")
	}
	a.log.hold(0)
	var branches []meta.Record
	w.eventually("what A wrote is a branch", func() bool {
		b.view(func(st *meta.State) { branches = st.Branches(id) })
		return len(branches) == 1
	})
	door, err := a.set.OpenAt(t.Context(), branches[0].ID, branches[0].Head)
	if err != nil {
		t.Fatal(err)
	}
	defer door.Release()
	if !bytes.Equal(readDevice(t, door), data) {
		t.Error("the branch differs")
	}
}

// A fence that was handed over is not taken up again by a state of before, also if the
// host ended before it noted that another fence was given.
func TestMove_FenceThatWasGivenUpIsNotTakenUpAgain(t *testing.T) {
	w := newWorld(t, "A", "B")
	a, b := w.hosts["A"], w.hosts["B"]
	id := w.create("A", testSize)
	a.fill(id, 1)
	at := a.seal(id)
	r, next := a.set.replica(id), b.set.replica(id)
	if got, err := next.partial(t.Context(), at, "A"); err != nil || got != at {
		t.Fatalf("map: at %s, %v", got, err)
	}
	log := w.logs[testGroup]
	log.mu.Lock()
	a.log.hold(len(log.entries)) // the review does not see what follows
	log.mu.Unlock()
	var rec meta.Record
	b.view(func(st *meta.State) { rec, _ = st.Get(id) })
	h, now := meta.HandOffID{1}, time.Now().UnixMilli()
	w.appendAll(testGroup,
		meta.Intent{Move: meta.Move{ID: h, From: "A", To: "B", Volumes: []scstore.VolumeID{id}, DeadlineMs: now + 60_000}, NowMs: now},
		meta.HandOff{ID: h, To: "B", Volumes: []meta.Handed{{ID: id, Fence: rec.Fence, Parent: rec.Parent, Final: at, Digest: rec.Digest}}})
	w.eventually("B owns", func() bool {
		next.mu.Lock()
		defer next.mu.Unlock()
		return next.acknowledges()
	})
	r.mu.Lock()
	r.endTenure(scstore.ErrFenced) // as the hand-off does, which sees the entry too
	r.mu.Unlock()

	a.restartAt(func(st *meta.State) bool { return leads(st, id, "A", at) })
	time.Sleep(4 * tickInterval)
	r = a.set.replica(id)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.facts.Fence != 0 || r.device != nil {
		t.Errorf("it writes again: %+v", r.facts)
	}
}

// Who said that there is nothing of its fence does not write under it later, also if
// nothing of the volume was ever there.
func TestPromote_WhoReportedNothingDoesNotWriteAfterARestart(t *testing.T) {
	w := newWorld(t, "A", "B")
	a, b := w.hosts["A"], w.hosts["B"]
	id := w.create("A", testSize)
	a.fill(id, 1)
	at := a.seal(id)
	w.cut("A", "B")
	w.promote(id, "B", at)
	if _, err := b.set.holds(t.Context(), holdsAsk{Volume: id, Group: testGroup, Fence: 1}); err != nil { // asked before it was promoted
		t.Fatal(err)
	}
	w.promote(id, "A", at)
	w.eventually("B has reported", func() (reported bool) {
		b.view(func(st *meta.State) {
			reported = !slices.ContainsFunc(st.Forks(id), func(f meta.Fork) bool { return f.Waiting })
		})
		return reported
	})
	w.heal("A", "B")
	b.restartAt(func(st *meta.State) bool { return leads(st, id, "B", at) })
	time.Sleep(4 * tickInterval)
	r := b.set.replica(id)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.facts.Fence != 0 {
		t.Errorf("it writes: %+v", r.facts)
	}
}

// Who is asked for an older position by somebody who is at one that it never had does not
// leave out what changed between the two.
func TestSet_CopyGoesBackWithAHostThatNeverHadItsPosition(t *testing.T) {
	w := newWorld(t, "A", "B", "C")
	a, b, c := w.hosts["A"], w.hosts["B"], w.hosts["C"]
	id := w.create("A", testSize, "A", "B", "C")
	data := a.fill(id, 1)
	then := bytes.Clone(data)
	golden, err := a.set.Snapshot(t.Context(), id, "golden", nil)
	if err != nil {
		t.Fatal(err)
	}
	w.eventually("all have the snapshot", func() bool { return b.claims(id, golden) && c.claims(id, golden) })
	c.log.disconnect(true)
	second := a.change(id, data, 3<<20, 2)
	w.eventually("B follows, and has come to rest", func() (rests bool) {
		b.view(func(st *meta.State) { rests = len(st.Pins(id)) == 0 })
		return rests && b.claims(id, second)
	})
	w.place(id, "A", "C")
	third := a.change(id, data, 1<<20, 3)
	c.log.disconnect(false)
	w.eventually("C follows", func() bool { return c.claims(id, third) })
	if c.holds(id, second) || b.holds(id, third) {
		t.Fatal("both were everywhere: this shows nothing")
	}
	if _, err := a.set.Move(t.Context(), id, "C", MoveOptions{}, nil); err != nil { // so that it is asked first
		t.Fatal(err)
	}
	b.need(id, golden)
	d, err := b.set.OpenAt(t.Context(), id, golden)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Release()
	if !bytes.Equal(readDevice(t, d), then) {
		t.Error("the snapshot differs")
	}
}
