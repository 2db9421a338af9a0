package replica

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
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

// TestPromote_ManyUnderFaultsLoseNothingUnsaid has guests write at every host that lets
// them, while the volume is moved, hosts are cut off or die, others are promoted, and all
// come back. What a guest was told stays true: it is in the history, or in the branch of
// who acknowledged it, or a promote has counted it as lost.
func TestPromote_ManyUnderFaultsLoseNothingUnsaid(t *testing.T) {
	var total counts
	worlds := 0
	for seed := range uint64(promoteSeeds) {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			inMoveWorld(t, 3, func(t *testing.T, w *moveWorld) {
				s := newStorm(w, rand.New(rand.NewPCG(seed, 3)))
				s.blow(50)
				s.calm()
				j := s.l.judge()
				j.branches()
				t.Logf("%+v", j.counts)
				total.add(j.counts)
				worlds++
			})
		})
	}
	if total.promotes < worlds || total.losses == 0 || total.branches < worlds/2 || total.moves < worlds/2 || total.writes < 100*worlds {
		t.Errorf("too little took place in %d worlds: %+v", worlds, total)
	}
}

// storm is what happens to a world with one volume while guests write.
type storm struct {
	w       *moveWorld
	l       *ledger
	rng     *rand.Rand
	off     map[*moveHost]bool // cut off
	down    map[*moveHost]bool
	guests  sync.WaitGroup
	errands sync.WaitGroup // moves and promotes under way
	end     context.CancelFunc
}

// newStorm makes the volume, and has its guests begin.
func newStorm(w *moveWorld, rng *rand.Rand) *storm {
	s := &storm{w: w, l: newLedger(w), rng: rng, off: map[*moveHost]bool{}, down: map[*moveHost]bool{}}
	w.create(vol, w.hosts[0], w.hosts...)
	ctx, end := context.WithCancel(w.t.Context())
	s.end = end
	for _, h := range w.hosts {
		g := &guest{h: h, l: s.l, rng: rand.New(rand.NewPCG(rng.Uint64(), 4))}
		s.guests.Go(func() { g.run(ctx) })
	}
	lost, refused := rand.New(rand.NewPCG(rng.Uint64(), 5)), rand.New(rand.NewPCG(rng.Uint64(), 6))
	w.losing(func(_, _ meta.DiskID, kind quicnet.Kind) bool {
		if kind == KindVolumes {
			return lost.IntN(2) == 0 // so that copies lag behind
		}
		return lost.IntN(12) == 0
	})
	w.refusing(func(meta.DiskID, meta.Op) error {
		switch refused.IntN(24) {
		case 0, 1:
			return scstore.ErrNoMajority
		case 2:
			return errAnswerLost
		}
		return nil
	})
	return s
}

// blow has so many things happen.
func (s *storm) blow(steps int) {
	for range steps {
		time.Sleep(time.Duration(s.rng.IntN(2500)) * time.Millisecond)
		switch s.rng.IntN(12) {
		case 0, 1:
			s.cutOff(s.victim())
		case 2:
			s.kill(s.victim())
		case 3:
			h := s.w.hosts[s.rng.IntN(len(s.w.hosts))]
			h.stop()
			s.start(h)
		case 4, 5, 6:
			s.bringBack(s.w.hosts[s.rng.IntN(len(s.w.hosts))])
		case 7, 8:
			s.move()
		default:
			s.promote()
		}
		s.l.inspect()
	}
}

// connected returns the hosts that the log and the others reach: there always is one.
func (s *storm) connected() (list []*moveHost) {
	for _, h := range s.w.hosts {
		if !s.off[h] && !s.down[h] {
			list = append(list, h)
		}
	}
	return list
}

// victim returns a host that something happens to: often the owner.
func (s *storm) victim() *moveHost {
	if owner := s.connected()[0].tenure(vol).Holder; owner != "" && s.rng.IntN(2) == 0 {
		return s.w.hostOf(owner)
	}
	return s.w.hosts[s.rng.IntN(len(s.w.hosts))]
}

func (s *storm) cutOff(h *moveHost) {
	if list := s.connected(); len(list) > 1 || list[0] != h {
		s.w.isolate(h, true)
		s.off[h] = true
	}
}

func (s *storm) kill(h *moveHost) {
	if list := s.connected(); len(list) > 1 || list[0] != h {
		h.stop()
		s.down[h] = true
	}
}

func (s *storm) start(h *moveHost) {
	if !s.down[h] || s.rng.IntN(2) == 0 {
		s.startBehind(h)
		delete(s.down, h)
	}
}

// startBehind starts a host that reads the log again: for a while it knows what once was.
func (s *storm) startBehind(h *moveHost) {
	s.w.mu.Lock()
	entries := len(s.w.entries[moveGroup])
	s.w.mu.Unlock()
	h.startBehind(s.rng.IntN(entries + 1))
	d := time.Duration(s.rng.IntN(2000)) * time.Millisecond
	s.errands.Go(func() {
		time.Sleep(d)
		h.readOn()
	})
}

// bringBack starts a host that is down, or connects it again.
func (s *storm) bringBack(h *moveHost) {
	if s.down[h] {
		s.startBehind(h)
		delete(s.down, h)
		return
	}
	s.w.isolate(h, false)
	delete(s.off, h)
}

// errand does something at a host, in the background, until its patience ends.
func (s *storm) errand(h *moveHost, f func(ctx context.Context, set *Set)) {
	life, leave, up := h.enter()
	if !up {
		return
	}
	set, patience := h.set, time.Duration(200+s.rng.IntN(20_000))*time.Millisecond
	s.errands.Go(func() {
		defer leave()
		ctx, cancel := context.WithTimeout(life, patience)
		defer cancel()
		f(ctx, set)
	})
}

// move has the owner hand the volume over.
func (s *storm) move() {
	list := s.connected()
	owner, to := list[0].tenure(vol).Holder, s.w.hosts[s.rng.IntN(len(s.w.hosts))]
	if owner != "" && to.disk != owner {
		s.errand(s.w.hostOf(owner), func(ctx context.Context, set *Set) {
			_, _ = set.Move(ctx, vol, to.disk, MoveOptions{}, nil) // the log says what came of it
		})
	}
}

// promote has a host take the volume from its owner.
func (s *storm) promote() {
	list := s.connected()
	at, to := list[s.rng.IntN(len(list))], meta.DiskID("")
	if s.rng.IntN(3) == 0 {
		to = s.w.hosts[s.rng.IntN(len(s.w.hosts))].disk
	}
	s.errand(at, func(ctx context.Context, set *Set) {
		if report, err := set.Promote(ctx, vol, to, false); err == nil {
			s.l.promoted(report)
		}
	})
}

// calm ends all faults, waits until the world is as it should be, and ends the guests.
func (s *storm) calm() {
	t, w := s.w.t, s.w
	w.losing(nil)
	w.refusing(nil)
	for _, h := range w.hosts {
		if s.down[h] {
			s.startBehind(h)
		}
		w.isolate(h, false)
	}
	s.errands.Wait()
	var owner *Replica
	w.eventually("nobody writes in the end", func() bool {
		now := w.hosts[0].tenure(vol)
		if now.Phase == meta.PhaseRevoked { // a promote was cut off
			if report, err := w.hosts[0].set.Promote(t.Context(), vol, "", false); err == nil {
				s.l.promoted(report)
			}
			return false
		}
		owner, _ = w.hostOf(now.Holder).set.lookup(vol)
		owner.mu.Lock()
		defer owner.mu.Unlock()
		return owner.acknowledges()
	})
	s.end()
	s.guests.Wait()
	sealed, _, err := owner.seal(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	w.eventually("not all copies are at the last position", func() bool {
		for _, h := range w.hosts {
			if at, head := w.hosts[0].copyAt(vol, h.disk); at != head || head.Compare(sealed.Position) < 0 {
				return false
			}
		}
		return true
	})
	w.eventually("somebody waits for an old owner", func() (ok bool) {
		_ = w.hosts[0].View(moveGroup, func(st *meta.State) {
			ok = !slices.ContainsFunc(st.Forks(vol), func(f meta.Fork) bool { return f.Waiting })
		})
		return ok
	})
	s.l.inspect()
}
