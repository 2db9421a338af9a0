package replica

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"scstore"
	"scstore/consensus/meta"
	"scstore/fs/block"
)

// change writes a block at a volume's owner, also to data, and seals.
func (h *testHost) change(id scstore.VolumeID, data []byte, at int64, seed uint64) (head scstore.Position) {
	h.w.t.Helper()
	p := randomBytes(testBlock, seed)
	if err := h.device(id).WriteAt(p, at); err != nil {
		h.w.t.Fatal(err)
	}
	copy(data[at:], p)
	return h.seal(id)
}

// need has a host bring a position of a volume, which it had and gave up, for a clone.
func (h *testHost) need(id scstore.VolumeID, at scstore.Position) {
	h.w.t.Helper()
	r := h.set.replica(id)
	r.mu.Lock()
	r.drop([]scstore.Position{at}) // as if it had come to be needed only now
	r.mu.Unlock()
	if h.holds(id, at) {
		h.w.t.Fatalf("%s is still at %s", at, h.disk)
	}
	clone := newID()
	h.w.must(testGroup, meta.CreateVolume{ID: clone, SizeBytes: testSize, Base: id, BasePosition: at, CreatedAtMs: 1})
	h.w.place(clone, h.disk)
	h.w.eventually("the clone's base is there", func() bool { return h.holds(id, at) })
}

// wentBack makes a volume at A of which B has the head, and, brought after it, an older
// position: what B's table shows at its head.
func wentBack(w *world) (id scstore.VolumeID, head scstore.Position, data []byte) {
	w.t.Helper()
	a, b := w.hosts["A"], w.hosts["B"]
	id = w.create("A", testSize, "A", "B")
	data = a.fill(id, 1)
	golden, err := a.set.Snapshot(w.t.Context(), id, "golden", nil)
	if err != nil {
		w.t.Fatal(err)
	}
	w.eventually("B has the snapshot", func() bool { return b.claims(id, golden) })
	head = a.change(id, data, 0, 2)
	w.eventually("B follows", func() bool { return b.claims(id, head) })
	b.need(id, golden)
	return id, head, data
}

// beginNext has B begin to jump to what A writes next, and get nothing of it.
func beginNext(w *world, id scstore.VolumeID, head scstore.Position, data []byte) (next scstore.Position) {
	w.t.Helper()
	w.cut("A", "B")
	next = w.hosts["A"].change(id, data, 3<<20, 3)
	r := w.hosts["B"].set.replica(id)
	w.eventually("B tries to get to the next position", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		j := r.facts.Jump
		return r.jump == nil && r.failures > 0 && j != nil && *j == JumpFacts{From: head, To: next}
	})
	return next
}

func TestSet_CopyThatIsKilledAfterItWentBackGoesOnFromThere(t *testing.T) {
	w := newWorld(t, "A", "B")
	b := w.hosts["B"]
	id, head, data := wentBack(w)
	next := beginNext(w, id, head, data)
	b.killAt(0)
	w.heal("A", "B")
	w.eventually("B follows", func() bool { return b.claims(id, next) })
	if !bytes.Equal(b.read(id), data) {
		t.Error("the copy differs")
	}
}

func TestMove_TheTargetIsKilledAfterItWentBackAndServesWhatItWasHanded(t *testing.T) {
	w := newWorld(t, "A", "B")
	a, b := w.hosts["A"], w.hosts["B"]
	id, _, data := wentBack(w)
	w.place(id, "B") // B's next epoch would make all durable
	if _, err := a.set.Move(t.Context(), id, "B", MoveOptions{}, nil); err != nil {
		t.Fatal(err)
	}
	b.killAt(0)
	if d := b.device(id); d.ReadOnly() || !bytes.Equal(readDevice(t, d), data) {
		t.Error("it does not write the volume that it was handed")
	}
}

// A mark that says how far the head went back, and that was taken back before a crash and
// is there again after it, does not hide what was staged above it.
func TestReplica_HeadIsNotWhatAMarkShowsThatACrashBroughtBack(t *testing.T) {
	w := newWorld(t, "A", "B")
	b := w.hosts["B"]
	id, head, data := wentBack(w)
	beginNext(w, id, head, data)
	for range MaxJumps { // no other attempt comes between
		b.set.jumps <- struct{}{}
	}
	r := b.set.replica(id)
	r.mu.Lock()
	staged := errors.Join(r.table.WriteBlocks(7, make([]byte, testBlock)), r.table.Sync(t.Context()))
	err := r.rollBack(head)
	r.mu.Unlock()
	if staged != nil || !errors.Is(err, errRevert) {
		t.Fatalf("got %v, %v", staged, err)
	}
	b.killAt(1)
	r = b.set.replica(id)
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.table.Marked(jumpTag(head)) {
		t.Error("the mark is gone: this shows nothing")
	}
	if r.headAt(head) {
		t.Errorf("the head is said to be that of %s: %+v", head, r.facts.Jump)
	}
}

func TestSet_NothingIsStagedThatTheFactsDoNotSay(t *testing.T) {
	w := newWorld(t, "A", "B")
	a, b := w.hosts["A"], w.hosts["B"]
	id := w.create("A", testSize, "A", "B")
	data := a.fill(id, 1)
	first := a.seal(id)
	w.eventually("B follows", func() bool { return b.claims(id, first) })
	r := b.set.replica(id)
	mend := b.failFacts(id)
	second := a.change(id, data, 0, 2)
	w.eventually("B tries twice", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.failures > 1
	})
	r.mu.Lock()
	if above, err := r.above(sealedTag(first)); above || err != nil {
		t.Errorf("something is staged: %v, %v", above, err)
	}
	r.mu.Unlock()
	mend()
	w.eventually("B follows", func() bool { return b.claims(id, second) })
	if !bytes.Equal(b.read(id), data) {
		t.Error("the copy differs")
	}
}

func TestReplica_HeadDoesNotGoBackUnlessTheFactsSayIt(t *testing.T) {
	w := newWorld(t, "A", "B")
	a, b := w.hosts["A"], w.hosts["B"]
	id := w.create("A", testSize, "A", "B")
	data := a.fill(id, 1)
	first, err := a.set.Snapshot(t.Context(), id, "first", nil)
	if err != nil {
		t.Fatal(err)
	}
	w.eventually("B has the snapshot", func() bool { return b.claims(id, first) })
	second := a.change(id, data, 0, 2)
	w.eventually("B follows", func() bool { return b.claims(id, second) })
	r := b.set.replica(id)
	mend := b.failFacts(id)
	r.mu.Lock()
	for range 2 {
		if err := r.settle(first); err == nil {
			t.Error("it went back")
		}
	}
	if above, err := r.above(sealedTag(second)); above || err != nil {
		t.Errorf("the head changed: %v, %v", above, err)
	}
	r.mu.Unlock()
	mend()
	third := a.change(id, data, 3<<20, 3)
	w.eventually("B follows", func() bool { return b.claims(id, third) })
	if !bytes.Equal(b.read(id), data) {
		t.Error("the copy differs")
	}
}

// A rollback that fails while somebody reads what it has copied so far is undone by
// copying. What is written after it stays.
func TestRollBack_WhatIsWrittenAfterOneThatFailedStaysAfterARestart(t *testing.T) {
	w := newWorld(t, "A")
	a := w.hosts["A"]
	id, at, _, now := changedSince(t, w)
	ctx, cancel := context.WithCancel(t.Context())
	middle, letGo, ended := interrupted(ctx, a.set, id, at)
	<-middle
	r := a.set.replica(id)
	r.mu.Lock()
	pin, err := r.table.Pin() // an export
	r.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	close(letGo)
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	pin.Release()
	p := randomBytes(testBlock, 99)
	d := a.device(id)
	if err := errors.Join(d.WriteAt(p, 0), d.Flush(t.Context())); err != nil {
		t.Fatal(err)
	}
	copy(now, p)
	a.restart()
	if !bytes.Equal(a.read(id), now) {
		t.Error("what was flushed is gone")
	}
}

func TestSet_CopyBeginsInATableThatACrashLeftEmpty(t *testing.T) {
	for _, restart := range []bool{false, true} {
		w := newWorld(t, "A", "B")
		a, b := w.hosts["A"], w.hosts["B"]
		id := w.create("A", testSize)
		data := a.fill(id, 1)
		head := a.seal(id)
		if restart { // between the making of its table and the first mark
			r := b.set.replica(id)
			r.mu.Lock()
			r.group, r.facts.SizeBytes = testGroup, testSize
			if err := r.save(); err != nil {
				t.Fatal(err)
			}
			r.mu.Unlock()
		}
		if _, err := b.blocks.Create(block.CreateOptions{ID: id, SizeBytes: testSize}); err != nil {
			t.Fatal(err)
		}
		if restart {
			b.restart()
		}
		w.place(id, "A", "B")
		w.eventually("B has a copy", func() bool { return b.claims(id, head) })
		if !bytes.Equal(b.read(id), data) {
			t.Error("the copy differs")
		}
	}
}
