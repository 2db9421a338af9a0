package replica

import (
	"bytes"
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
