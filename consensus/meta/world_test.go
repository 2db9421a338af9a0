package meta_test

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"scstore"
	"scstore/consensus/meta"
)

// world is a group of volumes, its twin, and hosts that propose. A proposal may
// arrive late, after others, more than once, or never.
type world struct {
	pick  func(n int) int // a number from 0 to n-1
	bug   meta.Bug
	s     *meta.State
	other *meta.State // applies the encoded commands
	twin  *twin
	air   []meta.Op // what may still arrive

	now     int64
	drawn   int // ids and digests that were given
	revokes int
	reports map[meta.DiskID]uint64

	holders map[string]meta.DiskID // of each fence of each volume
	decided map[meta.HandOffID]meta.Outcome
	counts  map[meta.Code]int
}

var (
	worldDisks   = []meta.DiskID{diskA, diskB, diskC}
	worldVolumes = []scstore.VolumeID{volumeID(1), volumeID(2)}
)

const maxWorldRevokes = meta.MaxForks - 1

func newWorld(pick func(int) int, bug meta.Bug) *world {
	w := &world{
		pick: pick, bug: bug, s: meta.NewGroup(2), other: meta.NewGroup(2), twin: newTwin(), now: 1_000, reports: map[meta.DiskID]uint64{},
		holders: map[string]meta.DiskID{}, decided: map[meta.HandOffID]meta.Outcome{}, counts: map[meta.Code]int{},
	}
	w.s.Plant(bug)
	for _, d := range worldDisks {
		w.both(meta.AdmitDisk{Disk: d, Site: siteA})
	}
	for n, id := range worldVolumes {
		w.twin.volumes[id] = newTwinVolume()
		w.both(volume(byte(n+1), ""))
	}
	return w
}

func (w *world) both(op meta.Op) meta.Result {
	w.other.Apply(meta.Command{Op: op})
	return w.s.Apply(meta.Command{Op: op})
}

func (w *world) disk() meta.DiskID { return worldDisks[w.pick(len(worldDisks))] }

// fresh returns a number that was not given before.
func (w *world) fresh() byte {
	w.drawn++
	return byte(w.drawn)
}

func (w *world) digest() scstore.Digest {
	w.drawn++
	return scstore.Digest{byte(w.drawn), byte(w.drawn >> 8)}
}

// position returns the head or, now and then, another position that is known.
func (w *world) position(v *twinVolume) scstore.Position {
	known := slices.SortedFunc(maps.Keys(v.points), scstore.Position.Compare)
	if len(known) == 0 || w.pick(3) == 0 {
		return v.head
	}
	return known[w.pick(len(known))]
}

// next returns a position and digest that may follow the head; now and then they
// do not.
func (w *world) next(v *twinVolume) (f scstore.Fence, parent, at scstore.Position, digest scstore.Digest) {
	f, parent = v.fence, v.head
	at = scstore.Position{Fence: f, Epoch: 1}
	if v.head.Fence == f {
		at.Epoch = v.head.Epoch + 1
	}
	switch w.pick(12) {
	case 0: // an owner that was fenced out
		f = max(1, f) - 1
		at.Fence = f
		at.Epoch = v.head.Epoch + 1
	case 1: // a number again
		at.Epoch = max(1, v.head.Epoch)
	case 2:
		parent = w.position(v)
	case 3:
		f++
		at.Fence = f
	}
	return max(1, f), parent, at, w.digest()
}

// draw makes a proposal as some host would.
func (w *world) draw() meta.Op {
	id := worldVolumes[w.pick(len(worldVolumes))]
	v := w.twin.volumes[id]
	if v.fence == 0 {
		return meta.OpenFence{ID: id, Holder: w.disk()}
	}
	if v.revoked && w.pick(3) > 0 || w.pick(40) == 0 {
		return meta.Promote{ID: id, Fence: v.fence, Position: w.position(v), Holder: w.disk()}
	}
	switch w.pick(20) {
	case 0:
		return meta.OpenFence{ID: id, Holder: w.disk()}
	case 1, 2, 3:
		return w.drawReport(id, v)
	case 4:
		d := w.disk()
		w.reports[d]++
		return meta.Release{Disk: d, Seq: w.reports[d], ID: id, Position: w.position(v)}
	case 5:
		return meta.Snapshot{ID: id, Name: string(rune('s' + w.pick(3))), Position: w.position(v)}
	case 6:
		return meta.DeleteSnapshot{ID: id, Name: string(rune('s' + w.pick(3)))}
	case 7, 8:
		kind := meta.PinRead + meta.PinKind(w.pick(2))
		w.now += 10
		return meta.PutPin{ID: id, NowMs: w.now, Pin: meta.Pin{ID: meta.PinID{byte(w.pick(4)) + 1}, Kind: kind, Position: w.position(v), Disk: w.disk(), DeadlineMs: w.now + int64(w.pick(5_000))}}
	case 9:
		return meta.DropPin{ID: id, Pin: meta.PinID{byte(w.pick(4)) + 1}}
	case 10:
		w.now += int64(w.pick(2_000))
		return meta.Expire{NowMs: w.now}
	case 11, 12, 13:
		return w.drawMove()
	case 14:
		if w.revokes < maxWorldRevokes {
			w.revokes++
			return meta.Revoke{ID: id, Fence: v.fence}
		}
	case 15:
		return w.drawOwner(id, v)
	}
	f, parent, at, digest := w.next(v)
	return meta.CommitEpoch{ID: id, Fence: f, Parent: parent, Epoch: at.Epoch, Digest: digest}
}

func (w *world) drawReport(id scstore.VolumeID, v *twinVolume) meta.Op {
	at, d := w.position(v), w.disk()
	if at == zero {
		at = pos(1, 1)
	}
	w.reports[d]++
	return meta.Ack{Disk: d, Seq: w.reports[d], Items: []meta.AckItem{{ID: id, Position: at, Complete: w.pick(4) > 0}}}
}

// drawMove begins, ends or repeats a move.
func (w *world) drawMove() meta.Op {
	open := slices.SortedFunc(maps.Keys(w.twin.moves), func(a, b meta.HandOffID) int { return bytes.Compare(a[:], b[:]) })
	if len(open) == 0 || w.pick(4) == 0 {
		o := meta.Intent{Move: meta.Move{ID: moveID(w.fresh()), To: w.disk(), DeadlineMs: w.now + 1_000 + int64(w.pick(8_000))}, NowMs: w.now}
		o.Volumes = worldVolumes[w.pick(2) : 1+w.pick(1)+1]
		if len(o.Volumes) == 0 || w.pick(2) == 0 {
			o.Volumes = worldVolumes[:1+w.pick(2)]
		}
		if o.From = w.twin.volumes[o.Volumes[0]].holder; o.From == "" || o.From == o.To {
			o.From = worldDisks[(slices.Index(worldDisks, o.To)+1)%len(worldDisks)]
		}
		return o
	}
	m := w.twin.moves[open[w.pick(len(open))]]
	switch w.pick(6) {
	case 0:
		return meta.Cancel{ID: m.ID}
	case 1:
		return meta.DropIntent{ID: m.ID}
	case 2:
		w.now += 100
		return meta.Intent{Move: meta.Move{ID: m.ID, From: m.From, To: m.To, Volumes: m.Volumes, DeadlineMs: w.now + 3_000}, NowMs: w.now}
	}
	o := meta.HandOff{ID: m.ID, To: m.To}
	if w.pick(12) == 0 {
		o.To = w.disk()
	}
	for _, id := range m.Volumes {
		v := w.twin.volumes[id]
		h := meta.Handed{ID: id}
		if h.Fence, h.Parent, h.Final, h.Digest = w.next(v); w.pick(4) == 0 {
			p := v.points[v.head]
			h.Fence, h.Parent, h.Final, h.Digest = v.fence, p.parent, v.head, p.digest
		}
		o.Volumes = append(o.Volumes, h)
	}
	w.air = append(w.air, meta.Cancel{ID: m.ID}) // a person lost patience
	return o
}

// drawOwner is what an owner says that was fenced out and came back.
func (w *world) drawOwner(id scstore.VolumeID, v *twinVolume) meta.Op {
	fences := slices.Sorted(maps.Keys(v.forks))
	if len(fences) == 0 {
		return meta.ReportNoBranch{ID: id, Fence: v.fence, Disk: w.disk()}
	}
	f := fences[w.pick(len(fences))]
	fork := v.forks[f]
	if w.pick(3) == 0 {
		return meta.ReportNoBranch{ID: id, Fence: f, Disk: fork.owner}
	}
	return meta.RegisterBranch{
		ID: id, Branch: volumeID(100 + w.fresh()%100), Fence: f, Fork: fork.at, Disk: fork.owner, Digest: w.digest(),
		Head: scstore.Position{Fence: f, Epoch: fork.at.Epoch + 1 + scstore.Epoch(w.pick(3))},
	}
}

// step lets one proposal arrive and checks everything after it.
func (w *world) step() error {
	var op meta.Op
	if len(w.air) > 0 && w.pick(3) == 0 {
		op = w.air[w.pick(len(w.air))] // it stays: it may come again
	} else {
		op = w.draw()
		if w.pick(2) == 0 {
			w.air = append(w.air, op)
		}
		if w.pick(10) == 0 {
			return nil // it comes later, or never
		}
	}
	c := meta.Command{Op: op}
	if c.Validate() != nil {
		return nil // a position or time that no host would send
	}
	read, rest, err := meta.ParseCommand(c.AppendTo(nil))
	if err != nil || len(rest) != 0 || !reflect.DeepEqual(read, c) {
		return fmt.Errorf("round trip of %+v: %+v, %w", c, read, err)
	}
	got := w.s.Apply(c)
	w.other.Apply(read)
	if _, reported := op.(meta.Ack); reported && got.Code == meta.CodeOK {
		got = got.Each[0]
	}
	w.counts[got.Code]++
	code, outcome := w.twin.apply(op)
	if got.Code != code || got.Outcome != outcome {
		return fmt.Errorf("%T%+v: got %q, %v; want %q, %v", op, op, got.Code, got.Outcome, code, outcome)
	}
	if err := w.s.Verify(); err != nil {
		return fmt.Errorf("after %T%+v: %w", op, op, err)
	}
	if err := w.check(op, got); err != nil {
		return fmt.Errorf("after %T%+v: %w", op, op, err)
	}
	return w.reopen()
}

// reopen sends the state through its encoding now and then.
func (w *world) reopen() error {
	b := w.s.AppendTo(nil)
	if !bytes.Equal(b, w.other.AppendTo(nil)) {
		return fmt.Errorf("another member has other bytes")
	}
	if w.pick(8) > 0 {
		return nil
	}
	again, err := meta.ParseState(b)
	if err != nil {
		return err
	}
	w.s = again
	w.s.Plant(w.bug)
	return nil
}

// check compares the state with its twin, and with what was seen before: whatever
// both may get wrong, a fence has one holder and a move one outcome.
func (w *world) check(op meta.Op, got meta.Result) error {
	for _, id := range worldVolumes {
		v := w.twin.volumes[id]
		tenure, _ := w.s.Holder(id)
		if tenure.Holder != "" {
			key := fmt.Sprint(id, tenure.Fence)
			if before, seen := w.holders[key]; seen && before != tenure.Holder {
				return fmt.Errorf("fence %d of %v: held by %q, then by %q", tenure.Fence, id, before, tenure.Holder)
			}
			w.holders[key] = tenure.Holder
		}
		if err := w.compare(id, v, tenure); err != nil {
			return fmt.Errorf("%v: %w", id, err)
		}
	}
	var h meta.HandOffID
	switch o := op.(type) {
	case meta.HandOff:
		h = o.ID
	case meta.Cancel:
		h = o.ID
	case meta.DropIntent:
		h = o.ID
	}
	if got.Outcome == 0 || h.IsZero() {
		return nil
	}
	if before, seen := w.decided[h]; seen && before != got.Outcome {
		return fmt.Errorf("move %v: %v, then %v", h, before, got.Outcome)
	}
	w.decided[h] = got.Outcome
	return nil
}

func (w *world) compare(id scstore.VolumeID, v *twinVolume, tenure meta.Tenure) error {
	r, _ := w.s.Get(id)
	if r.Head != v.head || r.Fence != v.fence || r.Holder != v.holder || tenure.Move != v.move || (tenure.Phase == meta.PhaseRevoked) != v.revoked {
		return fmt.Errorf("got %+v, %+v; want head %v, fence %d, holder %q, move %v, revoked %v", r, tenure, v.head, v.fence, v.holder, v.move, v.revoked)
	}
	roots := map[meta.RootKind][]scstore.Position{}
	for _, root := range w.s.Roots(id) {
		roots[root.Kind] = append(roots[root.Kind], root.Position)
	}
	if want := v.roots(); !reflect.DeepEqual(roots, want) {
		return fmt.Errorf("roots: got %v, want %v", roots, want)
	}
	var known []scstore.Position
	for _, p := range w.s.History(id) {
		known = append(known, p.Position)
		if want := v.points[p.Position]; want.parent != p.Parent || want.digest != p.Digest || want.left != (p.Line != 0) {
			return fmt.Errorf("position: got %+v, want %+v", p, want)
		}
		var want []meta.DiskID
		for _, d := range worldDisks {
			if v.holds[d][p.Position] {
				want = append(want, d)
			}
		}
		if got := w.s.CompleteHolders(id, p.Position); !slices.Equal(got, want) {
			return fmt.Errorf("holders of %v: got %v, want %v", p.Position, got, want)
		}
	}
	if want := slices.SortedFunc(maps.Keys(v.points), scstore.Position.Compare); !slices.Equal(known, want) {
		return fmt.Errorf("history: got %v, want %v", known, want)
	}
	for range min(8, len(known)) {
		p, q := known[w.pick(len(known))], known[w.pick(len(known))]
		if yes, sure := w.s.IsAncestor(id, p, q); !sure || yes != v.ancestor(p, q) {
			return fmt.Errorf("%v ancestor of %v: got %v, known %v; want %v", p, q, yes, sure, v.ancestor(p, q))
		}
	}
	return nil
}

// TestWorld_RandomHistories runs hosts whose proposals come late, twice and out of
// order against the twin.
func TestWorld_RandomHistories(t *testing.T) {
	drawHistories(t, modelChecks/2)
	rapid.Check(t, func(t *rapid.T) {
		numbers := rapid.IntRange(0, 1<<30)
		w := newWorld(func(n int) int { return numbers.Draw(t, "n") % n }, meta.BugNone)
		for range rapid.IntRange(1, 200).Draw(t, "steps") {
			if err := w.step(); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// TestWorld_HistoriesMeetEveryAnswer: the histories are no idle talk. Their seeds are
// fixed, so that this does not depend on luck.
func TestWorld_HistoriesMeetEveryAnswer(t *testing.T) {
	counts := map[meta.Code]int{}
	for seed := range uint64(modelChecks / 5) {
		w, err := runSeed(seed, meta.BugNone)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		for code, n := range w.counts {
			counts[code] += n
		}
	}
	for _, code := range []meta.Code{
		meta.CodeOK, meta.CodeFenced, meta.CodeNotGranted, meta.CodeBadParent, meta.CodeHeld, meta.CodeMoving, meta.CodeHandedOff, meta.CodeCancelled, meta.CodeDropped,
		meta.CodeBadMove, meta.CodeRevoked, meta.CodeNotRevoked, meta.CodeNoFork, meta.CodeStale, meta.CodeLeftOut, meta.CodeNotKept, meta.CodeLastCopy, meta.CodeHolder,
		meta.CodeIncomplete, meta.CodeNoSnapshot, meta.CodeSnapshotTaken, meta.CodeExpired,
	} {
		if counts[code] == 0 {
			t.Errorf("no history ended a command with %q", code)
		}
	}
}

// TestWorld_PlantedBugsAreFound: the checks above find what they are there for.
func TestWorld_PlantedBugsAreFound(t *testing.T) {
	for name, bug := range map[string]meta.Bug{
		"an epoch number is given twice":          meta.BugReusedEpoch,
		"a commit under a revoked fence is taken": meta.BugRevokedCommits,
		"hand-off and cancel both win":            meta.BugBothWin,
		"a pin is confirmed and not kept":         meta.BugDroppedPin,
	} {
		t.Run(name, func(t *testing.T) {
			const seeds = 500
			for seed := range uint64(seeds) {
				if _, err := runSeed(seed, bug); err != nil {
					t.Logf("seed %d: %v", seed, err)
					return
				}
			}
			t.Errorf("not found in %d histories", seeds)
		})
	}
	for seed := range uint64(modelChecks / 50) {
		if _, err := runSeed(seed, meta.BugNone); err != nil {
			t.Fatalf("seed %d without a bug: %v", seed, err)
		}
	}
}

// TestVerify_FindsBrokenHistories: without the twin, on the state alone.
func TestVerify_FindsBrokenHistories(t *testing.T) {
	for name, c := range map[string]struct {
		bug meta.Bug
		ops []meta.Op
	}{
		"an epoch number is given twice": {meta.BugReusedEpoch, []meta.Op{meta.CommitEpoch{ID: volumeID(1), Fence: 1, Parent: pos(1, 1), Epoch: 1, Digest: scstore.Digest{77}}}},
		"a commit under a revoked fence is taken": {meta.BugRevokedCommits, []meta.Op{
			meta.Revoke{ID: volumeID(1), Fence: 1}, commit(1, 1, pos(1, 1), 2),
		}},
		"hand-off and cancel both win": {meta.BugBothWin, []meta.Op{
			intent(1, diskA, diskB, 1), meta.HandOff{ID: moveID(1), To: diskB, Volumes: []meta.Handed{handed(1, 1, pos(1, 1), 2)}}, meta.Cancel{ID: moveID(1)},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			s := volumeGroup(t)
			s.Plant(c.bug)
			for i, op := range c.ops {
				if err := s.Verify(); err != nil {
					t.Fatalf("before operation %d: %v", i, err)
				}
				s.Apply(meta.Command{Op: op})
			}
			if err := s.Verify(); !errors.Is(err, scstore.ErrCorrupt) {
				t.Errorf("got %v, want ErrCorrupt", err)
			}
			if _, err := meta.ParseState(s.AppendTo(nil)); !errors.Is(err, scstore.ErrCorrupt) {
				t.Errorf("read back: got %v, want ErrCorrupt", err)
			}
		})
	}
}

func runSeed(seed uint64, bug meta.Bug) (*world, error) {
	rng := rand.New(rand.NewPCG(seed, 7))
	w := newWorld(rng.IntN, bug)
	for range 300 {
		if err := w.step(); err != nil {
			return w, err
		}
	}
	return w, nil
}
