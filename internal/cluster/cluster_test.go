package cluster

import (
	"errors"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/quic-go/quic-go/testutils/simnet"

	"scstore"
	"scstore/consensus"
	"scstore/consensus/meta"
)

func TestCluster_OneHostBeginsAndRestarts(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		h := w.add()
		if is, err := Exists(h.dir); is || err != nil {
			t.Errorf("Exists before: %v, %v", is, err)
		}
		wantErr(t, "a new cluster without a site", w.try(h, nil), scstore.ErrInvalid)
		for n := range 4 {
			start := time.Now()
			w.open(h, func(o *Options) { o.Site = "a" })
			w.decided(h, 2, createVolume(n))
			if took := time.Since(start); took > 5*time.Second {
				t.Errorf("start %d took %v", n, took)
			}
			for i := range 4 {
				if got := w.has(h, 2, i); got != (i <= n) {
					t.Errorf("start %d: volume %d: %v", n, i, got)
				}
			}
			if h.c.Boot() != uint64(n+1) || h.c.Site() != "a" || h.c.Host() != "host-1" || h.c.Disk() != h.id() {
				t.Errorf("start %d: %d, %s, %s, %s", n, h.c.Boot(), h.c.Site(), h.c.Host(), h.c.Disk())
			}
			w.eventually("the start is registered", func() bool {
				s := h.c.Status()
				return len(s.Hosts) == 1 && s.Hosts[0].Boots == h.c.Boot() && s.Hosts[0].State == meta.HostActive && s.Hosts[0].Here
			})
			s := h.c.Status()
			if len(s.Sites) != 1 || !slices.Equal(s.Sites[0].Voters, []meta.DiskID{h.id()}) || len(s.Groups) != 1+VolumeGroups {
				t.Errorf("start %d: status %+v", n, s)
			}
			if h.c.Failure() != nil {
				t.Errorf("start %d: %v", n, h.c.Failure())
			}
			w.stop(h)
		}
		if is, err := Exists(h.dir); !is || err != nil {
			t.Errorf("Exists after: %v, %v", is, err)
		}
		wantErr(t, "another site", w.try(h, func(o *Options) { o.Site = "b" }), scstore.ErrInvalid)
		wantErr(t, "another disk", w.try(h, func(o *Options) { o.Disk[3]++ }), scstore.ErrInvalid)
		wantErr(t, "another name", w.try(h, func(o *Options) { o.Host = "other" }), scstore.ErrInvalid)
	})
}

func TestCluster_ThreeSitesJoinAndVote(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a := w.begin()
		w.decided(a, 2, createVolume(1))
		b := w.join(a, "b")
		w.active(b)
		if got := a.c.voters(2); !slices.Equal(got, []meta.DiskID{a.id()}) {
			t.Errorf("with two sites %v vote", got)
		}
		if !w.has(b, 2, 1) {
			t.Error("the second host is active and has not caught up")
		}
		c := w.join(a, "c")
		w.voters(a, b, c)
		for i, h := range w.hosts {
			w.decided(h, 3, createVolume(10+i))
		}
		// Any two of them go on alone.
		w.wan.setCut(true, a)
		w.decided(b, 2, createVolume(2))
		w.decided(c, 2, createVolume(3))
		w.wan.setCut(false, a)
		w.eventually("the first host catches up", func() bool { return w.has(a, 2, 2) && w.has(a, 2, 3) })

		// All voters can let hosts in; a second host of a site does not vote.
		w.eventually("the third host has the authority's key", func() bool { return c.c.keys.Authority().HoldsKey() })
		d := w.join(c, "b")
		w.active(d)
		time.Sleep(time.Minute)
		w.voters(a, b, c)
		if err := d.c.Read(t.Context(), 3, func(*meta.State) {}); err != nil {
			t.Errorf("read at a host without a vote: %v", err)
		}
		w.decided(d, 3, createVolume(20))
		s := d.c.Status()
		if len(s.Hosts) != 4 || len(s.Sites) != 3 {
			t.Errorf("status of the fourth: %+v", s)
		}
		for _, h := range a.c.Status().Hosts {
			if !h.Reachable || !h.Here && (h.RTT < 15*time.Millisecond || h.RTT > 100*time.Millisecond) {
				t.Errorf("%s: reachable %v, round trip %v, %v", h.Name, h.Reachable, h.RTT, h.LastErr)
			}
		}
	})
}

func TestCluster_AllRestart(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b, c := w.three()
		w.decided(a, 4, createVolume(1))
		for range 2 {
			for _, h := range w.hosts {
				w.stop(h)
			}
			for _, h := range w.hosts {
				w.open(h, nil)
			}
			w.voters(a, b, c)
			for i, h := range w.hosts {
				w.decided(h, 4, meta.AdmitDisk{Disk: h.id(), Site: h.c.Site()})
				if !w.has(h, 4, 1) {
					t.Errorf("host %d lost a volume", i)
				}
			}
		}
		w.eventually("each start is registered", func() bool {
			return !slices.ContainsFunc(a.c.Status().Hosts, func(h HostStatus) bool { return h.Boots != 3 })
		})
	})
}

func TestCluster_RestartsWhileNobodyAnswers(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b, c := w.three()
		w.decided(b, 2, createVolume(1))
		w.stop(c)
		w.wan.setCut(true, c)
		w.open(c, nil)
		time.Sleep(time.Minute)
		if err := c.c.Failure(); err != nil {
			t.Errorf("without an answer: %v", err)
		}
		if err := c.c.View(2, func(*meta.State) {}); err != nil {
			t.Errorf("View: %v", err)
		}
		_, err := c.c.Propose(within(t, 30*time.Second), 2, createVolume(2))
		wantErr(t, "Propose", err, scstore.ErrNoMajority)
		if _, known := c.c.Leader(2); known || len(c.c.Status().Hosts) != 3 {
			t.Errorf("status %+v", c.c.Status())
		}
		w.wan.setCut(false, c)
		w.decided(c, 2, createVolume(2))
		w.voters(a, b, c)
		w.eventually("the start is registered", func() bool {
			return slices.ContainsFunc(a.c.Status().Hosts, func(h HostStatus) bool { return h.Disk == c.id() && h.Boots == 2 })
		})
	})
}

func TestCluster_HostMovesToAnotherAddress(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b, c := w.three()
		w.stop(c)
		c.port = 7500
		w.open(c, nil)
		for _, h := range []*host{a, b} {
			w.eventually("the others know", func() bool {
				return slices.ContainsFunc(h.c.Status().Hosts, func(s HostStatus) bool {
					return s.Disk == c.id() && slices.Equal(s.Addresses, []string{"10.0.0.3:7500"})
				})
			})
		}
		w.stop(a) // it finds the others by what it wrote down
		w.wan.setCut(true, b)
		w.open(a, nil)
		w.decided(a, 2, createVolume(1))
	})
}

func TestCluster_DiskThatWasSetBackIsFenced(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b, c := w.three()
		w.stop(c)
		old, err := os.ReadFile(c.placeFile())
		if err != nil {
			t.Fatal(err)
		}
		w.open(c, nil)
		w.voters(a, b, c)
		w.eventually("the start is registered", func() bool {
			return slices.ContainsFunc(a.c.Status().Hosts, func(h HostStatus) bool { return h.Disk == c.id() && h.Boots == 2 })
		})
		w.stop(c)
		if err := os.WriteFile(c.placeFile(), old, 0o600); err != nil {
			t.Fatal(err)
		}
		w.open(c, nil)
		wantErr(t, "the same start twice", w.failed(c), scstore.ErrFenced)
		w.stop(c)
		w.open(c, nil) // its next start is another one, and nobody can tell
		w.voters(a, b, c)
		w.stop(c)
		if err := os.WriteFile(c.placeFile(), old, 0o600); err != nil {
			t.Fatal(err)
		}
		w.open(c, nil)
		wantErr(t, "an earlier start", w.failed(c), scstore.ErrFenced)
	})
}

// TestCluster_FirstStartThatWasCutOffGoesOn fails the first start at one step after
// another.
func TestCluster_FirstStartThatWasCutOffGoesOn(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		h := w.add()
		obstacle := h.placeFile() + ".new"
		site := func(o *Options) { o.Site = "a" }
		// Before anything is written.
		if err := os.Mkdir(obstacle, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := w.try(h, site); err == nil {
			t.Fatal("nothing could be written, and nobody said so")
		}
		if err := os.Remove(obstacle); err != nil {
			t.Fatal(err)
		}
		// After the keys, before the log.
		err := w.try(h, func(o *Options) {
			site(o)
			o.tune = func(o *consensus.ClusterOptions) { o.Disk = consensus.DiskID{} }
		})
		wantErr(t, "a log that cannot be opened", err, scstore.ErrInvalid)
		// After the log and the state, before the file says so.
		err = w.try(h, func(o *Options) {
			site(o)
			tune := o.tune
			o.tune = func(o *consensus.ClusterOptions) {
				tune(o)
				if err := os.Mkdir(obstacle, 0o700); err != nil {
					t.Error(err)
				}
			}
		})
		if err == nil {
			t.Fatal("the file could not be written, and nobody said so")
		}
		if err := os.Remove(obstacle); err != nil {
			t.Fatal(err)
		}
		w.open(h, nil)
		w.voters(h)
		if got := h.c.file.get(); got.Stage != stageMember || got.Boot.N != 3 {
			t.Errorf("stage %q after %d starts", got.Stage, got.Boot.N)
		}
	})
}

func TestCluster_LostFilesAreNamed(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		h := w.begin()
		w.stop(h)
		text, err := os.ReadFile(h.placeFile())
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(h.placeFile()); err != nil {
			t.Fatal(err)
		}
		wantErr(t, "keys without the file", w.try(h, func(o *Options) { o.Site = "a" }), scstore.ErrCorrupt)
		if err := os.WriteFile(h.placeFile(), text, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(h.dir+"/"+keysName, h.dir+"/elsewhere"); err != nil {
			t.Fatal(err)
		}
		wantErr(t, "the file without keys", w.try(h, nil), scstore.ErrCorrupt)
		if err := os.Rename(h.dir+"/elsewhere", h.dir+"/"+keysName); err != nil {
			t.Fatal(err)
		}
		empty := w.add()
		wantErr(t, "a log that is gone", w.try(h, func(o *Options) {
			o.tune = func(o *consensus.ClusterOptions) { o.FS = empty.fs }
		}), scstore.ErrNotFound)
		w.open(h, nil)
		w.voters(h)
	})
}

func TestCluster_Lead(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b, c := w.three()
		d := w.join(a, "b")
		w.active(d)
		time.Sleep(30 * time.Second) // for those who are preferred to lead
		leads := func(at *host, g meta.GroupID, want *host) {
			t.Helper()
			w.eventually("the leader is known", func() bool {
				got, ok := at.c.Leader(g)
				return ok && got == want.id()
			})
		}
		for _, h := range []*host{a, b, c} {
			if err := h.c.Lead(within(t, time.Minute), 2, c.id()); err != nil {
				t.Fatalf("asked at %s: %v", h.name(), err)
			}
			leads(h, 2, c)
			if err := h.c.Lead(within(t, time.Minute), 2, b.id(), c.id()); err != nil {
				t.Errorf("one of them leads: %v", err)
			}
			leads(h, 2, c)
			if err := h.c.Lead(within(t, time.Minute), 2, b.id()); err != nil {
				t.Fatal(err)
			}
			leads(a, 2, b)
		}
		// A host without a vote asks the leader, and its site's voter stands for it.
		if err := d.c.Lead(within(t, time.Minute), 2, a.id()); err != nil {
			t.Fatal(err)
		}
		leads(d, 2, a)
		if err := d.c.Lead(within(t, time.Minute), 2, d.id()); err != nil {
			t.Fatal(err)
		}
		leads(d, 2, b)
		wantErr(t, "a stranger", a.c.Lead(within(t, time.Minute), 2, meta.DiskID("00000000000000000000000000000001")), scstore.ErrNotFound)
	})
}

func TestCluster_LeaderFollowsTheWriters(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b, c := w.three()
		for n, h := range []*host{c, c, b} {
			w.decided(h, 3, createVolume(n))
			w.decided(h, 3, meta.OpenFence{ID: volumeID(n), Holder: h.id()})
		}
		leads := func(g meta.GroupID, want *host) {
			t.Helper()
			w.eventually("the preferred host leads", func() bool {
				got, ok := a.c.Leader(g)
				return ok && got == want.id()
			})
		}
		leads(3, c)
		leads(meta.GroupNamespace, a)
		if g := c.c.PickGroup(); g != 3 {
			t.Errorf("the host that writes group 3 picks group %d", g)
		}
		if g := b.c.PickGroup(); g == 3 {
			t.Error("another one picks it too")
		}
	})
}

func TestCluster_DeadlinesPass(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		h := w.begin()
		w.token(h, "b", time.Minute)
		tokens := func() (n int) {
			if err := h.c.View(meta.GroupNamespace, func(s *meta.State) { n = len(s.Tokens()) }); err != nil {
				t.Fatal(err)
			}
			return n
		}
		time.Sleep(50 * time.Second)
		if tokens() != 1 {
			t.Errorf("%d tokens before the deadline", tokens())
		}
		time.Sleep(20 * time.Second)
		if tokens() != 0 {
			t.Errorf("%d tokens after the deadline", tokens())
		}
	})
}

func TestOpen_RefusesOptionsThatCannotWork(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		for what, change := range map[string]func(*Options){
			"no folder":            func(o *Options) { o.Dir = "" },
			"no disk":              func(o *Options) { o.Disk = scstore.StoreID{} },
			"a site of two":        func(o *Options) { o.Site = "a/b" },
			"a name of two":        func(o *Options) { o.Host = "a b" },
			"no port":              func(o *Options) { o.Listen = "10.0.0.1" },
			"a token that is none": func(o *Options) { o.Join = "scstore-join-AAAA" },
		} {
			h := &host{n: 9, port: DefaultPort, dir: t.TempDir()}
			o := Options{Dir: h.dir, Disk: h.disk(), Site: "a", Conn: simnet.NewBlockingSimConn(h.addr(), w.wan)}
			change(&o)
			c, err := Open(t.Context(), o)
			wantErr(t, what, err, scstore.ErrInvalid)
			if c != nil {
				t.Errorf("%s: opened", what)
			}
			if is, err := Exists(h.dir); is || err != nil {
				t.Errorf("%s: something is left: %v, %v", what, is, err)
			}
		}
	})
}

func TestCluster_CloseAgain(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		h := w.begin()
		c := h.c
		w.stop(h)
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		_, err := c.Propose(t.Context(), 2, createVolume(1))
		if !errors.Is(err, scstore.ErrClosed) && !errors.Is(err, scstore.ErrNoMajority) {
			t.Errorf("propose after Close: %v", err)
		}
	})
}
