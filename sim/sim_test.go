package sim_test

import (
	"flag"
	"reflect"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"scstore/sim"
)

var (
	seeds = flag.Uint64("sim.seeds", defaultSeeds, "worlds to run")
	one   = flag.Uint64("sim.seed", 0, "replay this one alone (0: all)")
)

// add sums what worlds exercised.
func add(sum *sim.Count, c sim.Count) {
	to, from := reflect.ValueOf(sum).Elem(), reflect.ValueOf(c)
	for i := range to.NumField() {
		to.Field(i).SetInt(to.Field(i).Int() + from.Field(i).Int())
	}
}

// runAll runs worlds from seed 1 on, as many at a time as there are processors, and
// returns the first that broke a promise, 0 for none, and what all of them exercised.
func runAll(n uint64, bug sim.Bug) (broken uint64, sum sim.Count) {
	var next, found atomic.Uint64
	var mu sync.Mutex
	var workers sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		workers.Go(func() {
			for {
				seed := next.Add(1)
				if seed > n || found.Load() != 0 {
					return
				}
				r, err := sim.Run(sim.Options{Seed: seed, Bug: bug})
				mu.Lock()
				if before := found.Load(); err != nil && (before == 0 || seed < before) {
					found.Store(seed)
				}
				add(&sum, r.Count)
				mu.Unlock()
			}
		})
	}
	workers.Wait()
	return found.Load(), sum
}

// replay runs a world again and shows it line by line.
func replay(t *testing.T, seed uint64) {
	t.Helper()
	r, err := sim.Run(sim.Options{Seed: seed, Trace: true})
	for _, line := range r.Trace {
		t.Log(line)
	}
	t.Logf("%+v", r.Count)
	if err != nil {
		t.Errorf("%v; again with -sim.seed=%d", err, seed)
	}
}

func TestWorld_KeepsItsPromises(t *testing.T) {
	if *one != 0 {
		replay(t, *one)
		return
	}
	broken, sum := runAll(*seeds, sim.NoBug)
	if broken != 0 {
		replay(t, broken)
		return
	}
	t.Logf("%+v", sum)
	if *seeds < 1000 {
		return // too few to count
	}
	per := func(what string, got, worlds int) { // at least one in so many worlds
		if got*worlds < int(*seeds) {
			t.Errorf("%s: %d in %d worlds, want one in %d: the worlds do not test it any more", what, got, *seeds, worlds)
		}
	}
	per("settled worlds", sum.Settled, 1)
	per("hand-offs", sum.HandedOff, 1)
	per("cancelled hand-offs", sum.Cancelled, 20)
	per("dropped hand-offs", sum.Dropped, 50)
	per("hand-offs dropped in doubt", sum.DroppedInDoubt, 200)
	per("hand-offs by a tethered owner", sum.TetheredMoves, 20)
	per("blind owners", sum.Blind, 10)
	per("restarts in doubt", sum.RestartsInDoubt, 20)
	per("crashes", sum.Crashes, 1)
	per("hosts lost for good", sum.Lost, 20)
	per("promotes", sum.Promotes, 5)
	per("promotes with a loss", sum.PromotesWithLoss, 20)
	per("writes on both sides of a promote", sum.SplitWrites, 10)
	per("branches", sum.Branches, 10)
	per("jumps that were finished", sum.JumpsDone, 1)
	per("jumps that were interrupted", sum.JumpsInterrupted, 2)
	per("evictions", sum.Releases, 10)
	per("snapshots", sum.Snapshots, 1)
	per("clones", sum.Clones, 10)
}

func TestWorld_IsTheSameEachTime(t *testing.T) {
	for seed := range uint64(5) {
		o := sim.Options{Seed: seed + 1, Trace: true}
		first, err1 := sim.Run(o)
		again, err2 := sim.Run(o)
		if !reflect.DeepEqual(first, again) || (err1 == nil) != (err2 == nil) {
			t.Errorf("seed %d: two runs differ", o.Seed)
		}
	}
}

func TestWorld_PlantedBugsAreCaught(t *testing.T) {
	for name, bug := range map[string]sim.Bug{
		"the doubt rule is ignored":                 sim.BugIgnoreDoubt,
		"the draining mark is not looked at":        sim.BugForgetMark,
		"a proposal's return is acted on":           sim.BugTrustProposal,
		"the last of hand-off and cancel counts":    sim.BugLastCounts,
		"an epoch's number is used again":           sim.BugReusedEpoch,
		"a root is dropped":                         sim.BugDroppedRoot,
		"a confirmed pin is not kept":               sim.BugDroppedPin,
		"data are deleted before the release":       sim.BugReleaseEarly,
		"a revoked fence accepts data":              sim.BugRevokedAccepts,
		"the fence is not looked at after the sync": sim.BugFlushUnchecked,
		"a replica shows half a jump":               sim.BugHalfJump,
		"a promote reports less than is lost":       sim.BugUnderReport,
	} {
		t.Run(name, func(t *testing.T) {
			broken, _ := runAll(*seeds, bug)
			if broken == 0 {
				t.Fatalf("not caught in %d worlds", *seeds)
			}
			_, err := sim.Run(sim.Options{Seed: broken, Bug: bug})
			t.Logf("seed %d: %v", broken, err)
		})
	}
}
