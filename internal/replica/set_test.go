package replica

import (
	"bytes"
	"encoding/binary"
	"slices"
	"sync"
	"testing"
	"time"

	"scstore"
	"scstore/consensus/meta"
	"scstore/fs/block"
)

const (
	testSize  = 6 << 20
	testBlock = scstore.BlockSize
)

// numbered writes the numbers from 1 on, one a block, round and round: so that what is
// there at any moment of the order of writes can be told from one number.
type numbered struct {
	d      Device
	blocks int
	next   uint64
}

func (n *numbered) write(t *testing.T) {
	t.Helper()
	n.next++
	p := make([]byte, testBlock)
	for i := 0; i < len(p); i += 8 {
		binary.BigEndian.PutUint64(p[i:], n.next)
	}
	if err := n.d.WriteAt(p, int64(n.next)%int64(n.blocks)*testBlock); err != nil {
		t.Error(err)
	}
}

// checkNumbered fails unless the bytes are what such a writer had written at some moment,
// and returns the number of its last write then.
func checkNumbered(t *testing.T, p []byte, blocks int) (last uint64) {
	t.Helper()
	for b := range blocks {
		last = max(last, binary.BigEndian.Uint64(p[b*testBlock:]))
	}
	for b := range blocks {
		got := binary.BigEndian.Uint64(p[b*testBlock:])
		want := last - (last-uint64(b))%uint64(blocks)
		if last < uint64(b) || want > last {
			want = 0
		}
		if got != want {
			t.Fatalf("block %d holds write %d, want %d: after write %d", b, got, want, last)
		}
	}
	return last
}

func TestSet_CopyFollowsUnderWritesAndShowsCommittedPositionsOnly(t *testing.T) {
	w := newWorld(t, "A", "B")
	a, b := w.hosts["A"], w.hosts["B"]
	id := w.create("A", testSize, "A", "B")
	writer := &numbered{d: a.device(id), blocks: 300}
	for range 400 {
		writer.write(t)
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				writer.write(t)
			}
		}
	})
	seen := map[uint64]bool{}
	w.eventually("the copy was read at several positions while the volume was written", func() bool {
		d, err := b.set.Open(t.Context(), id)
		if err != nil {
			return false
		}
		defer d.Release()
		seen[checkNumbered(t, readDevice(t, d), writer.blocks)] = true
		return len(seen) >= 4
	})
	close(stop)
	wg.Wait()
	at := a.seal(id)
	w.eventually("the copy is complete at the head", func() bool { return b.claims(id, at) && b.holds(id, at) })
	want := a.read(id)
	if last := checkNumbered(t, want, writer.blocks); last != writer.next {
		t.Errorf("the owner shows write %d, want %d", last, writer.next)
	}
	if !bytes.Equal(b.read(id), want) {
		t.Error("the copy differs from the owner's")
	}
	d := b.device(id)
	defer d.Release()
	if !d.ReadOnly() || d.WriteAt(make([]byte, testBlock), 0) == nil {
		t.Error("the copy takes writes")
	}
}

// behind makes a volume at A that B is to get, and cuts the link once B has about half.
func behind(t *testing.T, w *world) (id scstore.VolumeID, data []byte, at scstore.Position) {
	t.Helper()
	w.cut("A", "B")
	id = w.create("A", testSize, "A", "B")
	data = w.hosts["A"].fill(id, 1)
	at = w.hosts["A"].seal(id)
	w.heal("A", "B")
	w.limit("A", "B", testSize/2)
	w.eventually("the link is cut in the middle of the jump", func() bool { return w.isCut("A", "B") })
	return id, data, at
}

func TestSet_JumpGoesOnWhereItWasCut(t *testing.T) {
	for name, between := range map[string]func(w *world){
		"cut":               func(*world) {},
		"receiver restarts": func(w *world) { w.hosts["B"].restart() },
		"sender restarts":   func(w *world) { w.hosts["A"].restart() },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, "A", "B")
			id, data, at := behind(t, w)
			between(w)
			w.heal("A", "B")
			w.eventually("B is complete", func() bool { return w.hosts["B"].claims(id, at) })
			if !bytes.Equal(w.hosts["B"].read(id), data) {
				t.Error("the copy differs")
			}
			if n := w.sent("A", "B"); n > testSize*14/10 {
				t.Errorf("%d bytes went for %d: what was staged was fetched again", n, testSize)
			}
		})
	}
}

func TestSet_SnapshotIsAtBothSitesAndEqual(t *testing.T) {
	w := newWorld(t, "A", "B")
	a, b := w.hosts["A"], w.hosts["B"]
	id := w.create("A", testSize, "A", "B")
	data := a.fill(id, 1)
	at, err := a.set.Snapshot(t.Context(), id, "before", nil)
	if err != nil {
		t.Fatal(err)
	}
	a.fill(id, 2)
	head := a.seal(id)
	w.eventually("B has the snapshot and the head", func() bool { return b.claims(id, at) && b.claims(id, head) })
	for _, h := range []*testHost{a, b} {
		d, err := h.set.OpenAt(t.Context(), id, at)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(readDevice(t, d), data) {
			t.Errorf("the snapshot at %s differs", h.disk)
		}
		d.Release()
	}
	if _, err := a.set.Snapshot(t.Context(), id, "before", nil); err == nil {
		t.Error("a second snapshot of that name was made")
	}
}

func TestSet_ReplicasComeToRestAndWakeUp(t *testing.T) {
	w := newWorld(t, "A", "B")
	a, b := w.hosts["A"], w.hosts["B"]
	id := w.create("A", testSize, "A", "B")
	rest := func(h *testHost) func() bool {
		r := h.set.replica(id)
		return func() bool { return r.rests.Load() }
	}
	for n := range uint64(3) {
		if err := a.device(id).WriteAt(randomBytes(testBlock, n), int64(n)*testBlock); err != nil {
			t.Fatal(err)
		}
		w.eventually("what was written is at both hosts", func() bool {
			var head scstore.Position
			a.view(func(st *meta.State) {
				rec, _ := st.Get(id)
				head = rec.Head
			})
			return head.Epoch > scstore.Epoch(n) && b.claims(id, head)
		})
		w.eventually("A rests", rest(a))
		w.eventually("B rests", rest(b))
	}
}

// TestSet_WritesThatNobodyFollowsLetItRest: what is sealed on demand alone has no moment
// that ticks would have to wait for, until a placement gives it one.
func TestSet_WritesThatNobodyFollowsLetItRest(t *testing.T) {
	w := newWorld(t, "A", "B")
	a, b := w.hosts["A"], w.hosts["B"]
	id := w.create("A", testSize)
	a.fill(id, 1)
	r := a.set.replica(id)
	w.eventually("A rests", r.rests.Load)
	at := a.seal(id)
	if err := a.device(id).WriteAt(randomBytes(testBlock, 2), 0); err != nil {
		t.Fatal(err)
	}
	w.eventually("A rests again", r.rests.Load)
	w.place(id, "A", "B")
	w.eventually("what was written since is at B", func() bool {
		var head scstore.Position
		b.view(func(st *meta.State) {
			rec, _ := st.Get(id)
			head = rec.Head
		})
		return head.Compare(at) > 0 && b.claims(id, head)
	})
}

func TestSet_SnapshotWaitsForTheLogOnce(t *testing.T) {
	w := newWorld(t, "A")
	a := w.hosts["A"]
	id := w.create("A", testSize)
	a.fill(id, 1)
	a.seal(id)
	if err := a.device(id).WriteAt(randomBytes(testBlock, 2), 0); err != nil {
		t.Fatal(err)
	}
	at, err := a.set.Snapshot(t.Context(), id, "before", nil)
	if err != nil {
		t.Fatal(err)
	}
	r, _ := a.set.lookup(id)
	r.mu.Lock()
	g := r.group
	r.mu.Unlock()
	l := w.logs[g]
	l.mu.Lock()
	defer l.mu.Unlock()
	// Each proposal that is waited for costs a guest's host a round trip.
	named := func(ops ...meta.Op) (commits, names bool) {
		for _, op := range ops {
			switch o := op.(type) {
			case meta.CommitEpoch:
				commits = commits || o.Epoch == at.Epoch
			case meta.Snapshot:
				names = true
			}
		}
		return commits, names
	}
	for _, c := range l.entries {
		batch, ok := c.Op.(meta.Batch)
		if !ok {
			continue
		}
		if commits, names := named(batch.Ops...); commits && names {
			return
		}
	}
	t.Error("the epoch and its name are not in one entry of the log")
}

func TestSet_SnapshotWaitsForAMajority(t *testing.T) {
	w := newWorld(t, "A")
	a := w.hosts["A"]
	id := w.create("A", testSize)
	a.fill(id, 1)
	a.log.disconnect(true)
	done := make(chan error, 1)
	go func() {
		_, err := a.set.Snapshot(t.Context(), id, "before", nil)
		done <- err
	}()
	select {
	case err := <-done:
		t.Fatalf("without the log: %v", err)
	case <-time.After(2 * askInterval):
	}
	a.log.disconnect(false)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestSet_CloneComesAfterItsBase(t *testing.T) {
	w := newWorld(t, "A", "B")
	a, b := w.hosts["A"], w.hosts["B"]
	base := w.create("A", testSize)
	data := a.fill(base, 1)
	at, err := a.set.Snapshot(t.Context(), base, "golden", nil)
	if err != nil {
		t.Fatal(err)
	}
	a.fill(base, 2)
	clone := w.createOn("A", meta.CreateVolume{ID: newID(), SizeBytes: testSize, Base: base, BasePosition: at, CreatedAtMs: 1}, "A", "B")
	p := randomBytes(10*testBlock, 3)
	if err := a.device(clone).WriteAt(p, 3*testBlock); err != nil {
		t.Fatal(err)
	}
	copy(data[3*testBlock:], p)
	head := a.seal(clone)
	w.eventually("B has the clone", func() bool { return b.claims(clone, head) })
	if !b.holds(base, at) {
		t.Error("the clone came without its base")
	}
	if !bytes.Equal(b.read(clone), data) || !bytes.Equal(a.read(clone), data) {
		t.Error("the clone differs")
	}
	if n := w.sent("A", "B"); n > testSize*14/10 {
		t.Errorf("%d bytes went for %d: the clone's own blocks are few", n, testSize)
	}
}

func TestSet_OwnerProposesAfterARestartWhatItSealedBefore(t *testing.T) {
	w := newWorld(t, "A", "B")
	a := w.hosts["A"]
	id := w.create("A", testSize)
	a.fill(id, 1)
	a.seal(id)
	a.log.disconnect(true)
	r, _ := a.set.lookup(id)
	var sealed []Point
	for n := range uint64(3) {
		if err := a.device(id).WriteAt(randomBytes(testBlock, n+10), int64(n)*testBlock); err != nil {
			t.Fatal(err)
		}
		p, did, err := r.seal(t.Context())
		if err != nil || !did {
			t.Fatalf("seal: %v, %v", did, err)
		}
		sealed = append(sealed, p)
	}
	a.restart()
	a.log.disconnect(true)
	r, _ = a.set.lookup(id)
	r.mu.Lock()
	pending := slices.Clone(r.facts.Pending)
	r.mu.Unlock()
	if !slices.Equal(pending, sealed) {
		t.Fatalf("pending after the restart: %+v, want %+v", pending, sealed)
	}
	a.log.disconnect(false)
	last := sealed[len(sealed)-1]
	w.eventually("what was pending is in the history", func() bool {
		var rec meta.Record
		a.view(func(st *meta.State) { rec, _ = st.Get(id) })
		return rec.Head == last.Position && rec.Digest == last.Digest && rec.Parent == last.Parent
	})
}

func TestSet_PruneKeepsWhatIsNeededAndNoMore(t *testing.T) {
	w := newWorld(t, "A", "B")
	a, b := w.hosts["A"], w.hosts["B"]
	id := w.create("A", testSize, "A", "B")
	data := a.fill(id, 1)
	at, err := a.set.Snapshot(t.Context(), id, "kept", nil)
	if err != nil {
		t.Fatal(err)
	}
	var head scstore.Position
	for n := range uint64(10) {
		if err := a.device(id).WriteAt(randomBytes(testBlock, n+10), int64(n)*testBlock); err != nil {
			t.Fatal(err)
		}
		head = a.seal(id)
	}
	marks := func(h *testHost) []scstore.Position {
		r, _ := h.set.lookup(id)
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.marks()
	}
	want := []scstore.Position{{}, at, head}
	w.eventually("both hosts keep the snapshot and the head, and nothing else", func() bool {
		return slices.Equal(marks(a), want) && slices.Equal(marks(b), want)
	})
	a.restart()
	b.restart()
	w.eventually("both hosts say again what they have", func() bool { return a.claims(id, at) && b.claims(id, at) })
	for _, h := range []*testHost{a, b} {
		d, err := h.set.OpenAt(t.Context(), id, at)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(readDevice(t, d), data) {
			t.Errorf("the snapshot at %s differs", h.disk)
		}
		d.Release()
	}
}

func TestSet_RemovedVolumeGoesEverywhereAndIsForgotten(t *testing.T) {
	w := newWorld(t, "A", "B")
	a, b := w.hosts["A"], w.hosts["B"]
	id := w.create("A", testSize, "A", "B")
	a.fill(id, 1)
	at := a.seal(id)
	w.eventually("B has a copy", func() bool { return b.claims(id, at) })
	owner := a.device(id)
	w.must(testGroup, meta.Remove{ID: id})
	for _, h := range []*testHost{a, b} {
		if err := h.set.Remove(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		if _, err := h.blocks.Table(id); err == nil {
			t.Errorf("the table at %s is still there", h.disk)
		}
	}
	<-owner.Revoked().Done()
	w.eventually("the tombstone is forgotten", func() bool {
		known := true
		a.view(func(st *meta.State) { _, known = st.Get(id) })
		return !known
	})
}

func TestSet_StartRemovesWhatACrashLeftOfNewVolumes(t *testing.T) {
	w := newWorld(t, "A")
	a := w.hosts["A"]
	kept := w.create("A", testSize)
	data := a.fill(kept, 1)
	// A crash before the record, one after it, and one within an image.
	early, late, image := newID(), newID(), newID()
	for _, id := range []scstore.VolumeID{early, late} {
		if err := a.set.replica(id).begin(testGroup, testSize, scstore.VolumeID{}, scstore.Position{}); err != nil {
			t.Fatal(err)
		}
	}
	w.must(testGroup, meta.CreateVolume{ID: late, SizeBytes: testSize, CreatedAtMs: 1})
	r := a.set.replica(late)
	r.mu.Lock()
	if err := r.makeTable(testSize, scstore.VolumeID{}, scstore.Position{}); err != nil {
		t.Fatal(err)
	}
	r.mu.Unlock()
	if err := a.set.Reserve(testGroup, image, testSize); err != nil {
		t.Fatal(err)
	}
	if _, err := a.blocks.Create(block.CreateOptions{ID: image, SizeBytes: testSize}); err != nil {
		t.Fatal(err)
	}
	a.restart()
	w.eventually("nothing is left of them", func() bool {
		known := false
		a.view(func(st *meta.State) { _, known = st.Get(late) })
		for _, id := range []scstore.VolumeID{early, late, image} {
			_, err := a.blocks.Table(id)
			known = known || err == nil
		}
		facts, err := readFacts(a.set.o.Dir)
		return err == nil && !known && len(facts) == 1 && facts[0].ID == kept
	})
	if !bytes.Equal(a.read(kept), data) {
		t.Error("a volume that was made before differs")
	}
}

func TestSet_ImageIsAdoptedAndPlaced(t *testing.T) {
	w := newWorld(t, "A", "B")
	a, b := w.hosts["A"], w.hosts["B"]
	id, at := newID(), scstore.Position{Fence: 1, Epoch: 1}
	if err := a.set.Reserve(testGroup, id, testSize); err != nil {
		t.Fatal(err)
	}
	table, err := a.blocks.Create(block.CreateOptions{ID: id, SizeBytes: testSize})
	if err != nil {
		t.Fatal(err)
	}
	data := randomBytes(testSize, 1)
	if err := table.WriteBlocks(0, data); err != nil {
		t.Fatal(err)
	}
	if err := table.Mark(sealedTag(at)); err != nil {
		t.Fatal(err)
	}
	if err := table.Freeze(); err != nil {
		t.Fatal(err)
	}
	op := meta.CreateImage{ID: id, SizeBytes: testSize, Position: at, Digest: scstore.Digest{1}, CreatedAtMs: 1}
	if err := a.set.Adopt(t.Context(), op, testGroup); err != nil {
		t.Fatal(err)
	}
	w.eventually("A is said to have it", func() bool { return a.claims(id, at) })
	w.place(id, "A", "B")
	w.eventually("B has it", func() bool { return b.claims(id, at) })
	a.restart()
	w.eventually("A has read the log again", func() bool { return a.claims(id, at) })
	for _, h := range []*testHost{a, b} {
		d := h.device(id)
		if !d.ReadOnly() || !bytes.Equal(readDevice(t, d), data) {
			t.Errorf("the image at %s differs, or can be written", h.disk)
		}
		d.Release()
	}
}
