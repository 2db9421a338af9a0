//go:build soak

package e2e_test

import (
	"flag"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"scstore/e2e"
	"scstore/internal/api"
)

// failRounds is how often each row of the table is forced.
var failRounds = flag.Int("failures.rounds", 20, "how often each failure of a hand-off is forced")

const (
	// beforeCancel is how long a source in doubt waits at least before it asks for Cancel:
	// max(2 s, 4 R).
	beforeCancel = 2 * time.Second
	// cutFor is how long a cut lasts: longer than beforeCancel and an election.
	cutFor = 6 * time.Second
)

// TestFailures_OfAHandOff forces each row of the table of what can fail in a hand-off,
// with real hosts that are killed, held or cut off at the step that the row names. In
// every round the row's result has to come about, and always: one decision, the same at
// all sites; every acknowledged write at the new owner, or named by the report of a
// promote and on its branch; nobody else acknowledges.
func TestFailures_OfAHandOff(t *testing.T) {
	for _, row := range []struct {
		name    string
		prepare func(f *failures, round int)
		force   func(f *failures, round int)
	}{
		{"SourceBeforeRelease", turning, sourceBeforeRelease},
		{"SourceAfterRelease", nil, sourceAfterRelease},
		{"TargetBeforeTheEntry", turning, targetBeforeTheEntry},
		{"TargetAfterTheEntry", nil, targetAfterTheEntry},
		{"Leader", func(f *failures, round int) { weighing(f, round, string("ab"[round%2])) }, leaderDies},
		{"LinkOfTheTwo", func(f *failures, round int) { weighing(f, round, "a") }, linkOfTheTwo},
		{"Majority", nil, majorityLost},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel() // mostly they wait
			f := startFailures(t)
			for round := range *failRounds {
				t.Logf("round %d", round)
				if row.prepare != nil {
					row.prepare(f, round)
				}
				row.force(f, round)
			}
			f.whole()
			f.report(*failRounds)
		})
	}
}

// turning has both sites be the source, where the failure leaves the volume where it is.
func turning(f *failures, round int) {
	if round%4 == 2 {
		f.turn()
	}
}

// weighing has the group be led from a in the first half of the rounds, and from c, when
// no move has it led from elsewhere, in the second one; source is where the volume is to
// be.
func weighing(f *failures, round int, source string) {
	f.t.Helper()
	if round == 0 {
		f.weights = f.weigh()
	}
	if f.owner != source {
		f.turn()
	}
	if !thirdLeads(round) {
		f.awaitLeader("a")
		return
	}
	for _, name := range f.weights {
		move(f.t, f.s, "a", name, "c")
	}
	f.weights = nil
	f.awaitLeader("c")
}

func thirdLeads(round int) bool { return round >= *failRounds/2 }

// sourceBeforeRelease: A restarts, sees that it was draining, has Cancel committed and
// serves under f+1.
func sourceBeforeRelease(f *failures, _ int) {
	f.put(f.owner, "source:draining", "kill")
	a := f.begin()
	f.killed(a.from, "source:draining")
	a.died, a.failed = true, time.Now()
	f.restart(a.from)
	f.expectOwner(a, a.from, f.s.Names()...)
	f.finish(a, "the source restarted")
}

// sourceAfterRelease: the entry commits, or B proposes it; B is tethered until A is back.
func sourceAfterRelease(f *failures, round int) {
	how := "the source proposed"
	if round%2 == 1 {
		how = "the target proposed"
		f.put(f.owner, "source:propose", "hold")
	}
	f.put(f.owner, "source:released", "kill")
	a := f.begin()
	f.killed(a.from, "source:released")
	if round%2 == 1 {
		f.letGo(a.from, "source:propose") // nobody is left to be held
	}
	a.died, a.failed = true, time.Now()
	f.expectOwner(a, a.to, a.to, "c")
	a.claim.await(f.t) // without A
	w := waitVolume(f.t, f.s, a.to, "disk", func(api.Where) bool { return true })
	if w.Phase != "tethered" || w.Tether == nil || w.Tether.MissingBytes == 0 {
		f.t.Fatalf("the new owner is complete without the old one: %+v, %+v", w, w.Tether)
	}
	f.restart(a.from)
	f.finish(a, how)
}

// targetBeforeTheEntry: A has Cancel committed after max(2 s, 4 R). The proposals of the
// entry are late: they come after Cancel, and change nothing.
func targetBeforeTheEntry(f *failures, _ int) {
	f.put(f.owner, "source:propose", "hold")
	f.put(f.other(), "target:released", "kill")
	a := f.begin()
	f.killed(a.to, "target:released")
	a.failed = time.Now()
	f.expectOwner(a, a.from, a.from, "c")
	if took := time.Since(a.began); took < beforeCancel {
		f.t.Errorf("cancelled %s after the move began, want no sooner than %s", took, beforeCancel)
	}
	a.client.goesOn(f.t) // on its connection
	f.letGo(a.from, "source:propose")
	f.restart(a.to)
	f.finish(a, "the target restarted")
}

// targetAfterTheEntry: B owns. It restarts, or A is promoted, and the report names what
// can be lost.
func targetAfterTheEntry(f *failures, round int) {
	if round%4 == 1 {
		promoteOverWrites(f)
		return
	}
	f.put(f.other(), "target:applied", "kill")
	a := f.begin()
	f.killed(a.to, "target:applied")
	a.failed = time.Now()
	f.expectOwner(a, a.to, a.from, "c")
	if round%4 == 3 {
		promoteBack(f, a, nil)
		return
	}
	f.restart(a.to)
	f.finish(a, "the target restarted")
}

// promoteOverWrites has B acknowledge writes before it is killed: they become a branch.
func promoteOverWrites(f *failures) {
	a := f.begin()
	a.claim.await(f.t)
	if err := a.client.await(f.t); err == nil {
		f.t.Fatal("the old owner's client goes on")
	}
	f.c.acked = f.c.expect(f.t, f.url[a.to], f.c.acked, f.c.acked+1)
	kept := *f.c
	client := f.write(a.to)
	client.goesOn(f.t)
	check(f.t, f.s.Kill(a.to))
	a.failed = time.Now()
	if err := client.await(f.t); err == nil {
		f.t.Fatal("the client of a host that was killed did not notice")
	}
	lost := *f.c
	*f.c = kept
	promoteBack(f, a, &lost)
}

// promoteBack gives the volume back to the source while the target, which owns it, is
// down. lost is what the target acknowledged beyond the hand-off, if anything.
func promoteBack(f *failures, a *attempt, lost *chain) {
	f.t.Helper()
	if err := <-a.moved; err != nil { // the entry was applied, whatever the command heard of it
		f.t.Logf("the move said: %v", err)
	}
	r := promote(f.t, f.s, "disk", a.from)
	if host := e2e.HostName(a.to); r.Unknown == "" || r.Owner != host || !strings.Contains(strings.Join(r.Silent, " "), host) {
		f.t.Errorf("the report does not say that what %s wrote may be lost: %+v", host, r)
	}
	at := f.claim(a.from).await(f.t)
	f.owner = a.from
	outcome := "the source was promoted: no branch"
	if lost == nil {
		a.claim.none(f.t)
		if err := a.client.await(f.t); err == nil {
			f.t.Fatal("the old owner's client went on after the entry")
		}
	}
	if lost == nil { // else it is known what was handed over
		f.c.acked = f.c.expect(f.t, f.url[a.from], f.c.acked, f.c.acked+1)
	}
	f.c.expect(f.t, f.url[a.from], f.c.acked, f.c.acked)
	pause := a.pause(f.c.ackAt, at)
	f.c.writeAll(f.t, f.url[a.from], 5)
	f.restart(a.to)
	if lost != nil {
		outcome = "the source was promoted: a branch"
		branch := fmt.Sprintf("disk@diverged-%d", a.fence+1)
		waitVolume(f.t, f.s, a.from, "disk", func(w api.Where) bool { return strings.Contains(strings.Join(w.Branches, " "), branch) })
		lost.expect(f.t, f.s.Host(a.to).URL(branch), lost.acked, lost.acked+1)
		pause = a.pause(lost.ackAt, at)
	}
	for _, site := range f.s.Names() {
		waitVolume(f.t, f.s, site, "disk", func(w api.Where) bool { return w.Site == a.from && w.Fence == r.Fence && w.Fence > a.fence+1 })
	}
	f.refused(a.from)
	f.c.expect(f.t, f.url[a.from], f.c.acked, f.c.acked)
	f.record(outcome, pause)
}

// leaderDies: an election, and the entry is proposed again, or A cancels: exactly one of
// them. The leader is the one of the volume's group when A is about to send RELEASE: A or
// B by turns, in the second half of the rounds the third site.
func leaderDies(f *failures, round int) {
	f.put(f.owner, "source:draining", "hold")
	a := f.begin()
	f.met(a.from, "source:draining")
	if thirdLeads(round) {
		f.awaitLeader("c") // which gave it up for the move, and takes it back
	}
	leader := f.leader(a.from)
	check(f.t, f.s.Kill(leader))
	a.failed = time.Now()
	f.letGo(a.from, "source:draining")
	if a.died = leader == a.from; !a.died { // else nobody else can say more
		alive := slices.DeleteFunc(f.s.Names(), func(site string) bool { return site == leader })
		f.decided(a, alive...)
	}
	f.restart(leader)
	f.finish(a, map[string]string{a.from: "led from the source", a.to: "led from the target", "c": "led from the third site"}[leader])
}

// linkOfTheTwo: the entry commits through C while B is deaf. It is held until the link is
// back or, where RELEASE had come, until C leads.
func linkOfTheTwo(f *failures, round int) {
	if thirdLeads(round) {
		linkAfterRelease(f)
		return
	}
	f.put(f.owner, "source:draining", "hold")
	a := f.begin()
	f.met(a.from, "source:draining")
	if leader := f.leader(a.from); leader != a.from {
		f.t.Fatalf("%s leads, want the source", leader)
	}
	check(f.t, f.s.CutLink(a.from, a.to))
	a.failed = time.Now()
	f.letGo(a.from, "source:draining")
	f.expectOwner(a, a.to, a.from, "c")
	time.Sleep(cutFor)
	a.claim.waits(f.t)
	check(f.t, f.s.HealLink(a.from, a.to))
	f.finish(a, "RELEASE lost, the link came back")
}

func linkAfterRelease(f *failures) {
	f.put(f.owner, "source:propose", "hold")
	f.put(f.other(), "target:released", "hold")
	a := f.begin()
	f.met(a.from, "source:propose")
	f.met(a.to, "target:released")
	leader := f.leader(a.from)
	check(f.t, f.s.CutLink(a.from, a.to))
	a.failed = time.Now()
	f.letGo(a.from, "source:propose")
	f.letGo(a.to, "target:released")
	f.expectOwner(a, a.to, a.from, "c", a.to)
	a.claim.await(f.t) // while the link is cut
	check(f.t, f.s.HealLink(a.from, a.to))
	f.finish(a, "RELEASE came, led from "+leader+", then from c")
}

// majorityLost: both wait, and neither fails a request, until it is back.
func majorityLost(f *failures, round int) {
	what, held := "RELEASE lost", []string{"source:draining"}
	if round%2 == 1 {
		what, held = "RELEASE came", []string{"source:propose", "target:released"}
	}
	at := func(point string) string {
		if strings.HasPrefix(point, "source:") {
			return f.owner
		}
		return f.other()
	}
	for _, point := range held {
		f.put(at(point), point, "hold")
	}
	a := f.begin()
	for _, point := range held {
		f.met(at(point), point)
	}
	check(f.t, f.s.Cut(a.from))
	check(f.t, f.s.CutLink(a.to, "c"))
	a.failed = time.Now()
	for _, point := range held {
		f.letGo(at(point), point)
	}
	acked, failed := a.client.acked.Load(), a.claim.failed.Load()
	time.Sleep(cutFor)
	a.claim.waits(f.t)
	if n := a.client.acked.Load(); n != acked || len(a.client.ended) > 0 || a.claim.failed.Load() != failed {
		f.t.Fatalf("without a majority: the source acknowledged %d writes, its client ended %d times, the target failed %d writes",
			n-acked, len(a.client.ended), a.claim.failed.Load()-failed)
	}
	check(f.t, f.s.Heal(a.from))
	check(f.t, f.s.HealLink(a.to, "c"))
	f.finish(a, what)
}
