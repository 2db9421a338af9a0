package consensus_test

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"scstore"
	"scstore/consensus"
	"scstore/consensus/meta"
)

// What is checked is a counter: opening a volume's fence adds one and returns the
// sum, a read returns it.
type counterOp struct{ read bool }

var counter = porcupine.Model{
	Init: func() any { return uint64(0) },
	Step: func(state, input, output any) (bool, any) {
		n, seen := state.(uint64), output.(uint64)
		if input.(counterOp).read {
			return seen == n, n
		}
		return seen == n+1, n + 1
	},
}

// call is what a client did and saw.
type call struct {
	client  int
	name    meta.CommandID // of a proposal in the log; zero for a read
	from    time.Duration
	to      time.Duration
	seen    uint64
	outcome string // read, decided, not read, refused, unknown
}

// history gathers what clients saw.
type history struct {
	start time.Time

	mu    sync.Mutex
	calls []call
}

// client proposes and reads at one host until ctx ends.
func (h *history) client(ctx context.Context, id int, at *host, random *rand.Rand) {
	for n := 0; ctx.Err() == nil; n++ {
		time.Sleep(time.Duration(random.IntN(400)) * time.Millisecond)
		limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Duration(1+2*random.IntN(2))*time.Second)
		c := at.cluster()
		if c == nil {
			cancel()
			continue
		}
		k := call{client: id, from: time.Since(h.start)}
		var err error
		if random.IntN(2) == 0 {
			k.outcome = "read"
			err = c.Read(limited, theGroup, func(s *meta.State) {
				r, _ := s.Get(volumeID(0))
				k.seen = uint64(r.Fence)
			})
			if err != nil {
				k.outcome = "not read"
			}
		} else {
			k.outcome, k.name = "decided", meta.CommandID{Client: clientID(id), Seq: uint64(n + 1)}
			var result meta.Result
			result, err = c.Propose(limited, theGroup, meta.Command{ID: k.name, Op: openFence(0).Op})
			k.seen = uint64(result.Fence)
			switch {
			case errors.Is(err, scstore.ErrIndeterminate):
				k.outcome = "unknown"
			case err != nil:
				k.outcome = "refused"
			}
		}
		cancel()
		k.to = time.Since(h.start)
		h.mu.Lock()
		h.calls = append(h.calls, k)
		h.mu.Unlock()
	}
}

// operations are the calls that took effect. The log says which of the unknown did,
// and with what result: it is what the hosts' state machines saw.
func (h *history) operations(t *testing.T, log map[meta.CommandID]uint64) (list []porcupine.Operation, outcomes map[string]int) {
	t.Helper()
	outcomes = map[string]int{}
	for _, k := range h.calls {
		outcomes[k.outcome]++
		op := porcupine.Operation{
			ClientId: k.client, Input: counterOp{read: k.name.IsZero()}, Output: k.seen,
			Call: k.from.Nanoseconds(), Return: k.to.Nanoseconds(),
		}
		seen, inLog := log[k.name]
		switch k.outcome {
		case "not read":
			continue
		case "refused":
			if inLog {
				t.Errorf("proposal %v was refused and is in the log", k.name)
			}
			continue
		case "decided":
			if !inLog || seen != k.seen {
				t.Errorf("proposal %v was answered with %d; in the log: %v, %d", k.name, k.seen, inLog, seen)
			}
		case "unknown":
			if !inLog {
				continue
			}
			op.ClientId, op.Output, op.Return = 1_000_000+len(list), seen, math.MaxInt64
		}
		list = append(list, op)
	}
	return list, outcomes
}

// disturb cuts hosts off, loses messages, moves the leader, and takes the power from
// hosts but one.
func (w *world) disturb(ctx context.Context, spared *host, random *rand.Rand) {
	for ctx.Err() == nil {
		time.Sleep(time.Duration(2000+random.IntN(4000)) * time.Millisecond)
		h := w.hosts[random.IntN(len(w.hosts))]
		switch random.IntN(5) {
		case 0, 1:
			w.net.Cut(h.disk)
		case 2:
			w.net.SetLoss(0.2)
		case 3:
			limited, cancel := context.WithTimeout(ctx, time.Second)
			_ = h.c.TransferLeader(limited, theGroup, h.disk)
			cancel()
		case 4:
			if h != spared {
				w.cutPower(h)
				time.Sleep(time.Duration(random.IntN(3000)) * time.Millisecond)
				if err := w.tryOpen(h, consensus.Group{}); err != nil {
					w.t.Error(err)
					return
				}
			}
		}
		time.Sleep(time.Duration(1000+random.IntN(6000)) * time.Millisecond)
		w.net.Heal()
		w.net.SetLoss(0)
	}
}

// clientID names a client's session.
func clientID(n int) meta.ClientID { return meta.ClientID{0: 0xc1, 15: byte(n)} }

// readLog returns the fences that a host's state machine opened, by command.
func readLog(t *testing.T, w *world, h *host, watcher *consensus.Watcher) map[meta.CommandID]uint64 {
	t.Helper()
	var end uint64
	if err := h.c.View(theGroup, func(s *meta.State) { end = s.Applied() }); err != nil {
		t.Fatal(err)
	}
	log := map[meta.CommandID]uint64{}
	for {
		e, err := watcher.Next(t.Context())
		if err != nil || e.Gap {
			t.Fatalf("event %+v: %v", e, err)
		}
		if _, ok := e.Command.Op.(meta.OpenFence); ok {
			if _, twice := log[e.Command.ID]; twice {
				t.Errorf("proposal %v is in the log twice", e.Command.ID)
			}
			log[e.Command.ID] = uint64(e.Result.Fence)
		}
		if e.Applied == end {
			return log
		}
	}
}

func TestCluster_HistoriesAreLinearizable(t *testing.T) {
	for seed := range uint64(8) {
		h := &history{}
		var log map[meta.CommandID]uint64
		inWorld(t, 3, func(t *testing.T, w *world) {
			w.change = func(o *consensus.ClusterOptions) { o.Timeout = 2 * time.Second } // sooner than some clients'
			w.begin()
			w.leader()
			watcher, err := w.hosts[seed%3].c.Watch(theGroup)
			if err != nil {
				t.Fatal(err)
			}
			w.propose(w.hosts[0], createVolume(0))
			for i := range 6 {
				w.propose(w.hosts[0], meta.Command{ID: meta.CommandID{Client: clientID(i)}, Op: meta.OpenSession{}})
			}
			h.start = time.Now()
			ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
			defer cancel()
			var wait sync.WaitGroup
			for i := range 6 {
				wait.Go(func() { h.client(ctx, i, w.hosts[i%3], rand.New(rand.NewPCG(seed, uint64(i)))) })
			}
			wait.Go(func() { w.disturb(ctx, w.hosts[seed%3], rand.New(rand.NewPCG(seed, 99))) })
			wait.Wait()
			w.leader()
			w.agree(nil)
			log = readLog(t, w, w.hosts[seed%3], watcher)
		})
		operations, outcomes := h.operations(t, log)
		if !porcupine.CheckOperations(counter, operations) {
			t.Errorf("seed %d: a history of %d operations is not linearizable", seed, len(operations))
		}
		for _, outcome := range []string{"read", "decided", "not read", "unknown"} {
			if outcomes[outcome] == 0 {
				t.Errorf("seed %d: no operation was %s: %v", seed, outcome, outcomes)
			}
		}
		t.Logf("seed %d: %v", seed, outcomes)
	}
}

func TestCounterModel_CatchesWhatIsWrong(t *testing.T) {
	op := func(client int, from, to int64, read bool, seen uint64) porcupine.Operation {
		return porcupine.Operation{ClientId: client, Call: from, Return: to, Input: counterOp{read}, Output: seen}
	}
	good := []porcupine.Operation{op(0, 0, 1, false, 1), op(1, 2, 5, false, 2), op(2, 3, 4, true, 1)}
	if !porcupine.CheckOperations(counter, good) {
		t.Error("a good history is refused")
	}
	for what, bad := range map[string]porcupine.Operation{
		"stale read": op(3, 6, 7, true, 1),
		"lost":       op(3, 6, 7, false, 2),
		"twice":      op(3, 6, 7, true, 3),
	} {
		if porcupine.CheckOperations(counter, append(slices.Clone(good), bad)) {
			t.Errorf("%s: passes", what)
		}
	}
}
