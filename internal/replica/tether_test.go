package replica

import (
	"bytes"
	"errors"
	"sync"
	"testing"
	"time"

	"scstore"
	"scstore/consensus/meta"
	"scstore/propagate/codec"
)

// handOver gives a volume to another host in the log alone, as it is at its head, once
// that host has the map.
func (w *world) handOver(id scstore.VolumeID, from, to meta.DiskID) scstore.Position {
	w.t.Helper()
	var rec meta.Record
	w.hosts[from].view(func(st *meta.State) { rec, _ = st.Get(id) })
	r := w.hosts[to].set.replica(id)
	if at, err := r.partial(w.t.Context(), rec.Head, from); err != nil || at != rec.Head {
		w.t.Fatalf("map: at %s, %v", at, err)
	}
	h := meta.HandOffID{1, byte(rec.Fence)}
	now := time.Now().UnixMilli()
	// Right after each other: an intent that no source stands behind is taken back.
	handed := meta.HandOff{ID: h, To: to, Volumes: []meta.Handed{{ID: id, Fence: rec.Fence, Parent: rec.Parent, Final: rec.Head, Digest: rec.Digest}}}
	w.appendAll(testGroup, meta.Intent{Move: meta.Move{ID: h, From: from, To: to, Volumes: []scstore.VolumeID{id}, DeadlineMs: now + 60_000}, NowMs: now}, handed)
	w.must(testGroup, handed)
	w.eventually("the new owner serves", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.v != nil
	})
	return rec.Head
}

// stopFill keeps the background from bringing what is missing.
func stopFill(s *Set) (resume func()) {
	for range MaxFills {
		s.fillers <- struct{}{}
	}
	return func() {
		for range MaxFills {
			<-s.fillers
		}
	}
}

func TestSet_MissingBlocksAreFetchedOnceForManyReaders(t *testing.T) {
	w := newWorld(t, "A", "B")
	a, b := w.hosts["A"], w.hosts["B"]
	id := w.create("A", testSize)
	data := a.fill(id, 1)
	a.seal(id)
	resume := stopFill(b.set)
	start := w.handOver(id, "A", "B")
	d := b.device(id)
	if _, ok, err := d.ReadNowAt(make([]byte, testBlock), 0, nil); ok || err != nil {
		t.Errorf("a missing block is read now: %v, %v", ok, err)
	}
	small := bytes.Repeat([]byte{7}, 100) // within a block that is not here
	if err := d.WriteAt(small, 2<<20+50); err != nil {
		t.Fatal(err)
	}
	copy(data[2<<20+50:], small)
	link := [2]meta.DiskID{"B", "A"}
	before := w.opened[link]
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for off := int64(0); off < testSize; off += 64 << 10 {
				p := make([]byte, 64<<10)
				if _, err := d.ReadAt(p, off, nil); err != nil {
					t.Error(err)
				} else if !bytes.Equal(p, data[off:off+64<<10]) {
					t.Errorf("bytes from %d on differ", off)
				}
			}
		})
	}
	wg.Wait()
	w.mu.Lock()
	asked := w.opened[link] - before
	w.mu.Unlock()
	if want := testSize>>20 - 1; asked != want { // one came before, for the write
		t.Errorf("%d requests, want %d: each MiB once", asked, want)
	}
	resume()
	w.eventually("the tether has ended", func() bool {
		tethered := true
		b.view(func(st *meta.State) { tethered = len(st.Tethers(id)) > 0 })
		return !tethered && b.claims(id, start) && b.set.complete(b.set.replica(id)) == 0
	})
	w.cut("A", "B")
	if !bytes.Equal(b.read(id), data) {
		t.Error("the volume differs")
	}
}

func TestSet_MiBsOfZerosAreNotFetched(t *testing.T) {
	w := newWorld(t, "A", "B")
	a, b := w.hosts["A"], w.hosts["B"]
	id := w.create("A", testSize)
	data := a.fill(id, 1)
	const run = codec.MaxRunBlocks * testBlock
	const from, to = 1<<20 - run, 3<<20 + run // MiBs 1 and 2, and a run of each of their neighbours
	if err := a.device(id).Zero(from, to-from, false); err != nil {
		t.Fatal(err)
	}
	clear(data[from:to])
	a.seal(id)
	resume := stopFill(b.set)
	w.handOver(id, "A", "B")
	if got, want := b.set.complete(b.set.replica(id)), int64(testSize-2<<20); got != want {
		t.Errorf("%d bytes are missing, want %d", got, want)
	}
	w.cut("A", "B")
	p := make([]byte, 2<<20)
	if _, err := b.device(id).ReadAt(p, 1<<20, nil); err != nil || !bytes.Equal(p, data[1<<20:3<<20]) {
		t.Errorf("zeros can't be read without the other host: %v", err)
	}
	w.heal("A", "B")
	resume()
	w.eventually("the tether has ended", func() bool { return b.set.complete(b.set.replica(id)) == 0 })
	if !bytes.Equal(b.read(id), data) {
		t.Error("the volume differs")
	}
	zeros := scstore.Extent{First: from / testBlock, Count: (to - from) / testBlock}
	if got, err := b.set.replica(id).table.Status(zeros, nil); err != nil || len(got) != 1 || got[0].State != scstore.PieceHole {
		t.Errorf("zeros are stored: %+v, %v", got, err)
	}
}

func TestSet_SmallReadDoesNotWaitForTheMiBAroundIt(t *testing.T) {
	w := newWorld(t, "A", "B")
	a, b := w.hosts["A"], w.hosts["B"]
	id := w.create("A", testSize)
	data := a.fill(id, 1)
	a.seal(id)
	defer stopFill(b.set)()
	w.handOver(id, "A", "B")
	r := b.set.replica(id)
	r.mu.Lock()
	stuck := flightKey{id: id, at: r.facts.Partial, mib: 3}
	r.mu.Unlock()
	b.set.mu.Lock()
	b.set.flights[stuck] = &flight{done: make(chan struct{})} // the MiB is on its way, and does not come
	b.set.mu.Unlock()
	d := b.device(id)
	const at, most = 3<<20 + 5*testBlock, demandBlocks * testBlock
	p := make([]byte, most)
	if _, err := d.ReadAt(p, at, nil); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(p, data[at:at+most]) {
		t.Error("what was read differs")
	}
}

func TestSet_BackgroundEndsTheTetherAlsoAfterARestart(t *testing.T) {
	w := newWorld(t, "A", "B")
	a, b := w.hosts["A"], w.hosts["B"]
	id := w.create("A", testSize)
	data := a.fill(id, 1)
	a.seal(id)
	stopFill(b.set)
	w.handOver(id, "A", "B")
	w.place(id, "A", "B")
	w.cut("A", "B")
	p := randomBytes(10*testBlock, 9)
	if err := b.device(id).WriteAt(p, 0); err != nil {
		t.Fatal(err)
	}
	copy(data, p)
	info, err := b.set.Info(id)
	if err != nil || info.Role != RoleOwner || info.Tether == nil || info.Tether.Source != "A" || info.Tether.MissingBytes == 0 {
		t.Errorf("info: %+v, tether %+v, %v", info, info.Tether, err)
	}
	b.restart() // with nothing but its facts
	if b.set.complete(b.set.replica(id)) == 0 {
		t.Error("nothing is missing after the restart")
	}
	w.heal("A", "B")
	w.eventually("B is complete", func() bool {
		tethered := true
		b.view(func(st *meta.State) { tethered = len(st.Tethers(id)) > 0 })
		return !tethered && b.set.complete(b.set.replica(id)) == 0
	})
	at := b.seal(id)
	w.eventually("A follows", func() bool { return a.claims(id, at) })
	if !bytes.Equal(b.read(id), data) || !bytes.Equal(a.read(id), data) {
		t.Error("the volume differs")
	}
}

func TestSet_MapKeepsWhatAJumpStaged(t *testing.T) {
	w := newWorld(t, "A", "B")
	a, b := w.hosts["A"], w.hosts["B"]
	id, data, at := behind(t, w)
	staged := w.sent("A", "B")
	for range MaxJumps { // as many as there are: no jump begins
		b.set.jumps <- struct{}{}
	}
	resume := stopFill(b.set)
	w.heal("A", "B")
	r := b.set.replica(id)
	if got, err := r.partial(t.Context(), at, "A"); err != nil || got != at {
		t.Fatalf("map: at %s, %v", got, err)
	}
	missing := b.set.complete(r)
	if missing == 0 || missing > testSize-staged/2 {
		t.Errorf("%d bytes are missing, of %d, after %d came", missing, testSize, staged)
	}
	resume()
	w.eventually("the background has brought the rest", func() bool { return b.claims(id, at) })
	if !bytes.Equal(b.read(id), data) || !bytes.Equal(a.read(id), data) {
		t.Error("the copy differs")
	}
}

func TestSet_PositionOfASealThatFailedIsNotHeld(t *testing.T) {
	w := newWorld(t, "A", "B")
	a, b := w.hosts["A"], w.hosts["B"]
	id := w.create("A", testSize)
	a.fill(id, 1)
	a.seal(id)
	resume := stopFill(b.set)
	start := w.handOver(id, "A", "B")
	w.cut("A", "B")
	if err := b.device(id).WriteAt(make([]byte, testBlock), 0); err != nil {
		t.Fatal(err)
	}
	r := b.set.replica(id)
	if _, _, err := r.seal(t.Context()); !errors.Is(err, scstore.ErrUnreachable) { // the span's other blocks are at A
		t.Fatalf("seal: %v, want ErrUnreachable", err)
	}
	w.heal("A", "B")
	resume()
	w.eventually("B is complete", func() bool { return b.holds(id, start) })
	next := scstore.Position{Fence: 2, Epoch: start.Epoch + 1}
	if b.holds(id, next) {
		t.Errorf("B holds %s, which is not sealed", next)
	}
	if at := b.seal(id); at != next || !b.holds(id, at) {
		t.Errorf("sealed at %s, want %s", at, next)
	}
}

func TestSet_BlocksThatNobodyHasFailInTheEnd(t *testing.T) {
	w := newWorld(t, "A", "B")
	a, b := w.hosts["A"], w.hosts["B"]
	id := w.create("A", 1<<20)
	a.fill(id, 1)
	a.seal(id)
	stopFill(b.set)
	w.handOver(id, "A", "B")
	w.cut("A", "B")
	d := b.device(id)
	if err := d.WriteAt(make([]byte, testBlock), 0); err != nil {
		t.Errorf("a whole block is not taken: %v", err)
	}
	r := b.set.replica(id)
	if err := r.bring(t.Context(), r.facts.Partial, []uint64{0}, 1); !errors.Is(err, scstore.ErrUnreachable) {
		t.Errorf("fetch: %v, want ErrUnreachable", err)
	}
}

// promote takes a volume from its owner in the log alone.
func (w *world) promote(id scstore.VolumeID, to meta.DiskID, at scstore.Position) {
	w.t.Helper()
	var rec meta.Record
	w.hosts[to].view(func(st *meta.State) { rec, _ = st.Get(id) })
	w.must(testGroup, meta.Revoke{ID: id, Fence: rec.Fence})
	w.must(testGroup, meta.Promote{ID: id, Fence: rec.Fence + 1, Position: at, Holder: to})
}

func TestSet_CopyThatAPromoteLeftOutComesBack(t *testing.T) {
	w := newWorld(t, "A", "B", "C")
	a, b, c := w.hosts["A"], w.hosts["B"], w.hosts["C"]
	id := w.create("A", testSize, "A", "B", "C")
	data := a.fill(id, 1)
	fork := a.seal(id)
	w.eventually("both have a copy", func() bool { return b.claims(id, fork) && c.claims(id, fork) })
	w.cut("A", "C")
	w.cut("B", "C")
	if err := a.device(id).WriteAt(randomBytes(64*testBlock, 5), 100*testBlock); err != nil {
		t.Fatal(err)
	}
	lost, err := a.set.Snapshot(t.Context(), id, "lost", nil) // a root on the line that is left
	if err != nil {
		t.Fatal(err)
	}
	w.eventually("B is ahead of C", func() bool { return b.claims(id, lost) })
	held := b.device(id)
	a.close()
	w.promote(id, "C", fork)
	w.eventually("C owns", func() bool {
		r := c.set.replica(id)
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.v != nil
	})
	p := randomBytes(32*testBlock, 6)
	if err := c.device(id).WriteAt(p, 50*testBlock); err != nil {
		t.Fatal(err)
	}
	copy(data[50*testBlock:], p)
	w.heal("B", "C")
	held.Release()
	at := c.seal(id)
	w.eventually("B follows C", func() bool { return b.claims(id, at) })
	if !bytes.Equal(b.read(id), data) || !bytes.Equal(c.read(id), data) {
		t.Error("the copy differs")
	}
	if !b.holds(id, lost) {
		t.Error("the snapshot on the line that was left is gone")
	}
}

func TestSet_MapThatABranchIsBasedOnIsCompletedWhereItIs(t *testing.T) {
	w := newWorld(t, "A", "B")
	a, b := w.hosts["A"], w.hosts["B"]
	id := w.create("A", testSize, "A", "B")
	a.fill(id, 1)
	first := a.seal(id)
	w.eventually("B has a copy", func() bool { return b.claims(id, first) })
	for range MaxJumps { // as many as there are: no jump begins
		b.set.jumps <- struct{}{}
	}
	resume := stopFill(b.set)
	a.fill(id, 2)
	if _, err := a.set.Snapshot(t.Context(), id, "between", nil); err != nil { // a stop on B's way
		t.Fatal(err)
	}
	a.fill(id, 3)
	a.seal(id)
	start := w.handOver(id, "A", "B") // B has its map
	if err := b.device(id).WriteAt(make([]byte, testBlock), 0); err != nil {
		t.Fatal(err)
	}
	w.promote(id, "A", start)
	w.eventually("what B wrote is a branch", func() bool {
		r := b.set.replica(id)
		r.mu.Lock()
		defer r.mu.Unlock()
		return len(r.facts.Left) == 0 && r.facts.Fence == 0
	})
	r := b.set.replica(id)
	r.mu.Lock()
	r.failures = 1 // the map does not get complete at once, so the stop before it comes first
	r.mu.Unlock()
	for range MaxJumps {
		<-b.set.jumps
	}
	w.eventually("B has the snapshot", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return len(r.facts.Holds) > 1
	})
	resume()
	head := a.seal(id)
	w.eventually("B follows", func() bool { return b.claims(id, head) })
	if !bytes.Equal(b.read(id), a.read(id)) {
		t.Error("B's copy differs")
	}
}

func TestSet_CloneIsMadeWhereItsBaseIsNot(t *testing.T) {
	w := newWorld(t, "A", "B")
	a, b := w.hosts["A"], w.hosts["B"]
	base := w.create("A", testSize)
	data := a.fill(base, 1)
	at, err := a.set.Snapshot(t.Context(), base, "golden", nil)
	if err != nil {
		t.Fatal(err)
	}
	a.fill(base, 2)
	a.seal(base)
	resume := stopFill(b.set)
	clone := w.createOn("B", meta.CreateVolume{ID: newID(), SizeBytes: testSize, Base: base, BasePosition: at, CreatedAtMs: 1})
	if b.set.complete(b.set.replica(clone)) == 0 {
		t.Error("nothing is missing of the clone")
	}
	p := randomBytes(100, 3)
	if err := b.device(clone).WriteAt(p, 5000); err != nil {
		t.Fatal(err)
	}
	copy(data[5000:], p)
	if !bytes.Equal(b.read(clone), data) {
		t.Error("the clone differs")
	}
	head := b.seal(clone)
	resume()
	w.eventually("the clone is complete with its base", func() bool { return b.holds(base, at) && b.holds(clone, head) && b.claims(base, at) })
	w.place(clone, "A", "B")
	w.eventually("A has the clone", func() bool { return a.claims(clone, head) })
	if !bytes.Equal(a.read(clone), data) {
		t.Error("A's copy differs")
	}
}

func TestSet_CloneThatWasNeverWrittenIsCopiedWithItsBase(t *testing.T) {
	w := newWorld(t, "A", "B")
	a, b := w.hosts["A"], w.hosts["B"]
	base := w.create("A", testSize)
	data := a.fill(base, 1)
	at, err := a.set.Snapshot(t.Context(), base, "golden", nil)
	if err != nil {
		t.Fatal(err)
	}
	clone := w.createOn("A", meta.CreateVolume{ID: newID(), SizeBytes: testSize, Base: base, BasePosition: at, CreatedAtMs: 1}, "A", "B")
	w.eventually("B has the clone", func() bool {
		var rec meta.Record
		b.view(func(st *meta.State) { rec, _ = st.Get(clone) })
		return rec.Head != scstore.Position{} && b.claims(clone, rec.Head)
	})
	a.close()
	if !bytes.Equal(b.read(clone), data) {
		t.Error("B's copy differs")
	}
	report, err := b.set.Promote(t.Context(), clone, "", false)
	if err != nil || report.Epochs != 0 || report.To != "B" || !report.Complete {
		t.Fatalf("promote: %+v, %v", report, err)
	}
	w.eventually("B writes the clone", func() bool {
		d, err := b.set.Open(t.Context(), clone)
		return err == nil && !d.ReadOnly()
	})
	p := randomBytes(100, 3)
	if err := b.device(clone).WriteAt(p, 5000); err != nil {
		t.Fatal(err)
	}
	copy(data[5000:], p)
	if !bytes.Equal(b.read(clone), data) {
		t.Error("the clone differs")
	}
}

func TestSet_LargeVolumeComesInSeveralWindows(t *testing.T) {
	const size = 65 << 30 // more than wire.MaxWindowBlocks
	w := newWorld(t, "A", "B")
	a, b := w.hosts["A"], w.hosts["B"]
	id := w.create("A", size, "A", "B")
	p := randomBytes(1<<20, 4)
	at := []int64{0, 10 << 30, 64<<30 - 1<<19, size - 1<<20}
	for _, off := range at {
		if err := a.device(id).WriteAt(p, off); err != nil {
			t.Fatal(err)
		}
	}
	head := a.seal(id)
	w.eventually("B has it", func() bool { return b.claims(id, head) })
	d := b.device(id)
	defer d.Release()
	for _, off := range at {
		got := make([]byte, len(p))
		if _, err := d.ReadAt(got, off, nil); err != nil || !bytes.Equal(got, p) {
			t.Errorf("bytes from %d on differ, %v", off, err)
		}
	}
}

func TestSet_FenceThatIsGivenAgainKeepsWhatWasWritten(t *testing.T) {
	w := newWorld(t, "A")
	a := w.hosts["A"]
	id := w.create("A", testSize)
	data := a.fill(id, 1)
	fence := w.must(testGroup, meta.OpenFence{ID: id, Holder: "A"}).Fence
	r := a.set.replica(id)
	w.eventually("the volume is written under the new fence", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.facts.Fence == fence && r.acknowledges()
	})
	at := a.seal(id)
	if at.Fence != fence || !bytes.Equal(a.read(id), data) {
		t.Errorf("sealed at %s, under fence %d; or what was written is gone", at, fence)
	}
	w.must(testGroup, meta.Resize{ID: id, SizeBytes: 2 * testSize})
	w.eventually("it has grown", func() bool { return a.device(id).Size() == 2*testSize })
	a.restart()
	if !bytes.Equal(a.read(id)[:testSize], data) {
		t.Error("what was written is gone after a restart")
	}
}

func TestSet_RoleThatCouldNotBeTakenIsTakenLater(t *testing.T) {
	w := newWorld(t, "A")
	a := w.hosts["A"]
	id := w.create("A", testSize)
	data := a.fill(id, 1)
	mend := a.failFacts(id)
	fence := w.must(testGroup, meta.OpenFence{ID: id, Holder: "A"}).Fence
	r := a.set.replica(id)
	w.eventually("the new fence is tried", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.later
	})
	r.mu.Lock()
	if r.facts.Fence == fence {
		t.Error("the fence was taken, and it is not written down")
	}
	r.mu.Unlock()
	mend()
	w.eventually("the volume is written under the new fence, though nothing else happens", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.facts.Fence == fence && r.acknowledges()
	})
	if !bytes.Equal(a.read(id), data) {
		t.Error("what was written is gone")
	}
}
