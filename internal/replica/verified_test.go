package replica

import (
	"testing"

	"scstore/fs/volume"
)

// TestSet_CopyGoesOnFromWhatItVerified has a copy follow an owner. What it verified is of use
// for the next step, until the volume is written here.
func TestSet_CopyGoesOnFromWhatItVerified(t *testing.T) {
	inMoveWorld(t, 3, func(t *testing.T, w *moveWorld) {
		a, b := w.hosts[0], w.hosts[1]
		w.create(vol, a, a, b)
		all := map[uint64]uint64{}
		next := func(n uint64) *volume.Verified {
			t.Helper()
			part := map[uint64]uint64{n: n, 500 + n: n}
			a.write(vol, part)
			all = merged(all, part)
			w.commits(a, vol)
			w.eventually("the copy is not complete", func() bool { at, head := a.copyAt(vol, b.disk); return at == head })
			at, _ := a.copyAt(vol, b.disk)
			r, _ := b.set.lookup(vol)
			r.mu.Lock()
			defer r.mu.Unlock()
			if r.verified.spans == nil || r.verified.at != at {
				t.Fatalf("the copy is at %s, and what it remembers is of %s", at, r.verified.at)
			}
			return r.verified.spans
		}
		first := next(1)
		if next(2) != first {
			t.Error("nothing was remembered from one position to the next")
		}
		w.moveTo(a, b)
		part := map[uint64]uint64{3: 33}
		b.write(vol, part)
		all = merged(all, part)
		w.moveTo(b, a)
		if next(4) == first {
			t.Error("what was remembered is of before this host wrote")
		}
		b.shows(vol, all)
	})
}
