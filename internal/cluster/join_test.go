package cluster

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"scstore"
	"scstore/consensus"
	"scstore/consensus/meta"
	"scstore/propagate/quicnet/authority"
)

func TestJoin_TokensAreRefusedWithAReason(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a := w.begin()
		began := time.Now()
		used := w.token(a, "b", 0)
		b := w.add()
		w.open(b, joining(used))
		w.active(b)

		refused := func(what, token, reason string, want error, change func(*Options)) {
			t.Helper()
			h := w.add()
			err := w.try(h, func(o *Options) {
				o.Join = token
				if change != nil {
					change(o)
				}
			})
			wantErr(t, what, err, want)
			if err != nil && !strings.Contains(err.Error(), reason) {
				t.Errorf("%s: %v, want %q in it", what, err, reason)
			}
			var hint *scstore.HintError
			if !errors.As(err, &hint) {
				t.Errorf("%s: no hint: %v", what, err)
			}
			if is, err := Exists(h.dir); is || err != nil {
				t.Errorf("%s: the folder is said to be a host's: %v, %v", what, is, err)
			}
		}
		refused("used by another", used, "used by another host", scstore.ErrInvalid, nil)
		refused("cut off", used[:len(used)-2], "mistyped", scstore.ErrInvalid, nil)
		fresh := w.token(a, "b", 0)
		refused("another site", fresh, `for site "b"`, scstore.ErrInvalid, func(o *Options) { o.Site = "c" })
		refused("a name that is taken", fresh, `has the name "host-2"`, scstore.ErrExists, func(o *Options) { o.Host = "host-2" })
		token, err := authority.ParseToken(fresh)
		if err != nil {
			t.Fatal(err)
		}
		token.Secret[5]++
		refused("made up", token.Encode(), "not a token of this cluster", scstore.ErrInvalid, nil)
		time.Sleep(tendPeriod - time.Since(began)%tendPeriod + time.Second) // it is not enforced right after it
		late := w.token(a, "b", time.Minute)
		time.Sleep(time.Minute + time.Second) // and before the deadline is enforced
		refused("expired", late, "expired", scstore.ErrInvalid, nil)

		// What was refused for other reasons did not cost the token.
		c := w.add()
		w.open(c, func(o *Options) { o.Join, o.Site = fresh, "b" })
		w.active(c)
		if c.c.Site() != "b" {
			t.Errorf("site %q", c.c.Site())
		}
	})
}

func TestJoin_HostOfAnotherClusterIsRefused(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a := w.begin()
		other := w.add()
		w.open(other, func(o *Options) { o.Site = "x" })
		foreign, own := w.token(other, "y", 0), w.token(a, "b", 0)

		w.stop(a)
		wantErr(t, "join while in a cluster", w.try(a, joining(foreign)), scstore.ErrInvalid)
		w.open(a, nil)

		// Its token sends a new host to this cluster: the authority is another.
		token, err := authority.ParseToken(foreign)
		if err != nil {
			t.Fatal(err)
		}
		token.Addresses = []string{a.addr().String()}
		wantErr(t, "a token of another cluster", w.try(w.add(), joining(token.Encode())), scstore.ErrInvalid)

		// And its host is turned away, though it knows where to knock.
		b := w.add()
		w.open(b, joining(own))
		w.active(b)
		if err := other.c.file.change(func(p *place) {
			p.Known.Applied = 1 << 40
			p.Known.Hosts = append(slices.Clone(p.Known.Hosts), knownHost{Disk: a.id(), Name: "host-1", Site: "x", Addresses: []string{a.addr().String()}})
		}); err != nil {
			t.Fatal(err)
		}
		w.stop(other)
		w.open(other, nil)
		if _, err := other.c.Net().Request(t.Context(), a.disk(), 0, KindLead, make([]byte, leadBytes)); err == nil {
			t.Error("a request of another cluster's host was answered")
		}
	})
}

// TestJoin_ThatWasCutOffGoesOn fails a join at one step after another; the same token
// does each time.
func TestJoin_ThatWasCutOffGoesOn(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a := w.begin()
		token := w.token(a, "b", 0)
		b := w.add()
		obstacle := b.placeFile() + ".new"
		// The answer is lost: the token is used, and nothing is here.
		if err := os.Mkdir(obstacle, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := w.try(b, joining(token)); err == nil {
			t.Fatal("the answer could not be kept, and nobody said so")
		}
		if err := os.Remove(obstacle); err != nil {
			t.Fatal(err)
		}
		// Another host with that token and disk is not let in.
		thief := &host{n: b.n, port: 9999, dir: t.TempDir(), fs: w.add().fs}
		err := w.try(thief, func(o *Options) { o.Join, o.Host = token, b.name() })
		wantErr(t, "the token and disk with another key", err, scstore.ErrInvalid)
		// The answer is kept, the keys are not in place.
		keys := filepath.Join(b.dir, keysName)
		if err := os.Mkdir(filepath.Join(keys, "host.pem.new"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(keys, "host.pem.new", "full"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := w.try(b, joining(token)); err == nil {
			t.Fatal("the keys could not be kept, and nobody said so")
		}
		if is, err := Exists(b.dir); !is || err != nil {
			t.Errorf("Exists: %v, %v", is, err)
		}
		wantErr(t, "without the token", w.try(b, nil), scstore.ErrInvalid)
		if err := os.RemoveAll(filepath.Join(keys, "host.pem.new")); err != nil {
			t.Fatal(err)
		}
		// The keys are in place, the log is not begun.
		err = w.try(b, func(o *Options) {
			o.Join = token
			o.tune = func(o *consensus.ClusterOptions) { o.Disk = consensus.DiskID{} }
		})
		wantErr(t, "a log that cannot be opened", err, scstore.ErrInvalid)
		// The log is begun, and the file does not say so.
		err = w.try(b, func(o *Options) {
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
		// A service is started with the same words each time.
		for range 2 {
			w.open(b, joining(token))
			w.active(b)
			w.stop(b)
		}
		w.open(b, nil)
		w.active(b)
		w.decided(b, 2, createVolume(1))
		if n := len(a.c.Status().Hosts); n != 2 {
			t.Errorf("%d hosts", n)
		}
	})
}

func TestJoin_WithoutAMajorityIsTriedElsewhere(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b, c := w.three()
		w.eventually("all hold the key", func() bool {
			return b.c.keys.Authority().HoldsKey() && c.c.keys.Authority().HoldsKey()
		})
		token := w.token(a, "d", 0)
		w.wan.setCut(true, a)
		d := w.add()
		w.open(d, joining(token))
		w.eventually("the host is active", func() bool {
			return slices.ContainsFunc(b.c.Status().Hosts, func(h HostStatus) bool { return h.Disk == d.id() && h.State == meta.HostActive })
		})
		// Nobody can use a token up without a majority, nor make one.
		token = w.token(b, "d", 0)
		w.wan.setCut(true, b, d)
		_, err := c.c.NewToken(within(t, time.Minute), "d", 0)
		wantErr(t, "a token without a majority", err, scstore.ErrNoMajority)
		e := w.add()
		wantErr(t, "a join without a majority", w.try(e, joining(token)), scstore.ErrBusy)
		w.wan.setCut(false, b, d)
		w.open(e, joining(token))
		w.active(e)
	})
}

func TestRemoveHost(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b, c := w.three()
		spare := w.join(a, "c")
		w.active(spare)
		w.decided(c, 2, createVolume(1))
		w.decided(c, 2, meta.OpenFence{ID: volumeID(1), Holder: c.id()})
		wantErr(t, "a stranger", second(a.c.RemoveHost(t.Context(), "nobody", false)), scstore.ErrNotFound)
		wantErr(t, "itself", second(a.c.RemoveHost(t.Context(), a.name(), false)), scstore.ErrInvalid)

		time.Sleep(time.Minute) // until all have said what they have to say
		before := a.c.view.Load().applied
		r, err := a.c.RemoveHost(t.Context(), c.name(), true)
		if err != nil || !r.DryRun || r.Disk != c.id() || r.Site != "c" || r.Records != 1 || r.Voters != 2 ||
			len(r.Exposed) != 1 || r.Exposed[0].Group != 2 || r.Exposed[0].ID != volumeID(1) || !r.Exposed[0].Writer {
			t.Errorf("dry run: %+v, %v", r, err)
		}
		time.Sleep(10 * time.Second)
		if a.c.view.Load().applied != before {
			t.Error("a dry run changed something")
		}
		w.voters(a, b, c)

		if r, err = a.c.RemoveHost(t.Context(), c.name(), false); err != nil || r.DryRun || r.Records != 1 {
			t.Fatalf("%+v, %v", r, err)
		}
		wantErr(t, "the removed host", w.failed(c), scstore.ErrFenced)
		w.voters(a, b, spare) // the other host of its site takes its place
		if _, err := a.c.RemoveHost(t.Context(), c.name(), false); err != nil {
			t.Errorf("again: %v", err)
		}
		// It does not come back: not as it is, nor with a token.
		w.stop(c)
		w.open(c, nil)
		wantErr(t, "the removed host, started again", w.failed(c), scstore.ErrFenced)
		if _, err := c.c.Net().Request(t.Context(), a.disk(), 0, KindLead, make([]byte, leadBytes)); !errors.Is(err, scstore.ErrFenced) {
			t.Errorf("a request of the removed host: %v", err)
		}
		w.stop(c)
		c.dir = t.TempDir()
		err = w.try(c, joining(w.token(a, "c", 0)))
		wantErr(t, "the removed disk with a new folder", err, scstore.ErrFenced)
	})
}

func TestRemoveHost_TheOnlyVoter(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a := w.begin()
		b := w.join(a, "b")
		w.active(b)
		w.decided(a, 2, createVolume(1))
		r, err := b.c.RemoveHost(within(t, 5*time.Minute), a.name(), false)
		if err != nil || r.Voters != 1 {
			t.Fatalf("%+v, %v", r, err)
		}
		wantErr(t, "the removed host", w.failed(a), scstore.ErrFenced)
		w.stop(a)
		w.voters(b)
		w.decided(b, 2, createVolume(2))
		w.stop(b)
		w.open(b, nil)
		w.decided(b, 2, createVolume(3))
	})
}

func TestRemoveHost_OneThatIsDead(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b, c := w.three()
		w.stop(a)
		if _, err := b.c.RemoveHost(within(t, 5*time.Minute), a.name(), false); err != nil {
			t.Fatal(err)
		}
		w.voters(b, c)
		w.decided(c, 2, createVolume(1))
		w.open(a, nil)
		wantErr(t, "the removed host", w.failed(a), scstore.ErrFenced)
	})
}

func second[T any](_ T, err error) error { return err }

// TestNewToken_WhileTheLeaderChanges asks for tokens while the leader goes from host to
// host: proposals are refused or lost at those moments, people are not.
func TestNewToken_WhileTheLeaderChanges(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		a, b, c := w.three()
		time.Sleep(30 * time.Second) // for those who are preferred to lead
		var over atomic.Bool
		go func() {
			defer over.Store(true)
			for i := range 10 {
				_ = a.c.Lead(within(t, time.Minute), meta.GroupNamespace, []*host{b, a}[i%2].id()) // or not yet
				time.Sleep(2 * time.Second)
			}
		}()
		made := 0
		for ; !over.Load(); made++ {
			if _, err := c.c.NewToken(within(t, time.Minute), "b", 0); err != nil {
				t.Errorf("token %d: %v", made, err)
			}
			time.Sleep(10 * time.Millisecond)
		}
		if made < 20 {
			t.Errorf("only %d tokens", made)
		}
	})
}
