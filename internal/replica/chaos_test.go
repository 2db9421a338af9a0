package replica

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"scstore"
	"scstore/consensus/meta"
	"scstore/propagate/quicnet"
)

// TestMove_ManyMovesUnderFaultsLoseNothing moves a volume to and fro while messages and
// entries are lost, hosts are cut off and restart. Without a promote nothing that was
// flushed may be lost, whoever owns in the end.
func TestMove_ManyMovesUnderFaultsLoseNothing(t *testing.T) {
	for seed := range uint64(6) {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			inMoveWorld(t, 3, func(t *testing.T, w *moveWorld) { moveUnderFaults(t, w, rand.New(rand.NewPCG(seed, 1))) })
		})
	}
}

func moveUnderFaults(t *testing.T, w *moveWorld, rng *rand.Rand) {
	w.create(vol, w.hosts[0], w.hosts...)
	want := map[uint64]uint64{}
	written, moved := 0, 0
	lossy := rand.New(rand.NewPCG(rng.Uint64(), 2))
	w.losing(func(_, _ meta.DiskID, kind quicnet.Kind) bool { return kind != KindAlive && lossy.IntN(8) == 0 })
	w.refusing(func(meta.DiskID, meta.Op) error {
		if lossy.IntN(8) == 0 {
			return scstore.ErrNoMajority
		}
		return nil
	})
	for n := range 40 {
		owner := w.hosts[0]
		for _, h := range w.hosts {
			if h.disk == h.tenure(vol).Holder {
				owner = h
			}
		}
		change := map[uint64]uint64{rng.Uint64N(8): uint64(n + 1), 100 + rng.Uint64N(300): uint64(n + 1)}
		if owner.put(vol, change) == nil {
			want = merged(want, change)
			written++
		} else {
			for at := range change { // it may have been written, or not
				delete(want, at)
			}
		}
		other := w.hosts[rng.IntN(3)]
		switch rng.IntN(4) {
		case 0:
			w.isolate(other, true)
			time.Sleep(time.Duration(rng.IntN(5000)) * time.Millisecond)
			w.isolate(other, false)
		case 1:
			other.stop()
			other.start()
		default:
			if other == owner {
				continue
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Duration(200+rng.IntN(20_000))*time.Millisecond)
			if _, err := owner.set.Move(ctx, vol, other.disk, MoveOptions{}, nil); err == nil {
				moved++
			}
			cancel()
		}
	}
	w.losing(nil)
	w.refusing(nil)
	last := map[uint64]uint64{1000: 77}
	var owner *moveHost
	w.eventually("nobody writes in the end", func() bool {
		for _, h := range w.hosts {
			if h.disk == h.tenure(vol).Holder && h.put(vol, last) == nil {
				owner = h
			}
		}
		return owner != nil
	})
	owner.shows(vol, merged(want, last))
	if written < 10 || moved < 2 {
		t.Errorf("only %d writes and %d moves took place", written, moved)
	}
	r, _ := owner.set.lookup(vol)
	sealed, _, err := r.seal(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	w.eventually("not all copies are at the last position", func() bool {
		for _, h := range w.hosts {
			if at, head := owner.copyAt(vol, h.disk); at != head || head.Compare(sealed.Position) < 0 {
				return false
			}
		}
		return true
	})
	for _, h := range w.hosts {
		h.shows(vol, merged(want, last))
	}
}
