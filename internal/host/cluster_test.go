package host

import (
	"bytes"
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"scstore"
	"scstore/consensus/meta"
	"scstore/internal/api"
	"scstore/nbd"
)

// running is a host that serves.
type running struct {
	*Host
	stop  func() // ends it; safe to call again
	cause *error // what it may end with
}

// serveHost opens and serves a host until the test ends. Its address between hosts is one
// of the loopback interface.
func serveHost(t *testing.T, o Options) running {
	t.Helper()
	if o.Dir == "" {
		dir, err := os.MkdirTemp("", "scs") //nolint:usetesting // T.TempDir is too long for sockets
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := os.RemoveAll(dir); err != nil {
				t.Error(err)
			}
		})
		o.Dir = dir
	}
	o.Version, o.Listen = "test", "127.0.0.1:0"
	h, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- h.Serve(ctx) }()
	var once sync.Once
	r := running{Host: h, cause: new(error)}
	r.stop = func() {
		once.Do(func() {
			cancel()
			if err := errors.Join(<-served, h.Close()); err != nil && (*r.cause == nil || !errors.Is(err, *r.cause)) {
				t.Errorf("host %s: %v", o.Name, err)
			}
		})
	}
	t.Cleanup(r.stop)
	return r
}

// dial connects to an export.
func (r running) dial(t *testing.T, name string) *nbd.Client {
	t.Helper()
	c, err := r.tryDial(t.Context(), name)
	if err != nil {
		t.Fatalf("dial %q: %v", name, err)
	}
	t.Cleanup(func() { _ = c.Close() }) // it may have been ended
	return c
}

func (r running) tryDial(ctx context.Context, name string) (*nbd.Client, error) {
	url := nbd.Address{Network: r.o.nbdAddr.Network, Addr: r.o.nbdAddr.Address, Export: name}
	return nbd.Dial(ctx, url.String(), nbd.DialOptions{Timeout: 20 * time.Second})
}

// write writes and flushes.
func write(t *testing.T, c *nbd.Client, p []byte, off int64) {
	t.Helper()
	if err := c.WriteAt(t.Context(), p, off, 0); err != nil {
		t.Fatalf("write at %d: %v", off, err)
	}
	if err := c.Flush(t.Context()); err != nil {
		t.Fatalf("flush: %v", err)
	}
}

// check compares what an export holds.
func check(t *testing.T, c *nbd.Client, want []byte, off int64) {
	t.Helper()
	got := make([]byte, len(want))
	if err := c.ReadAt(t.Context(), got, off); err != nil {
		t.Fatalf("read at %d: %v", off, err)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("read at %d: got %q..., want %q...", off, got[:8], want[:8])
	}
}

// eventually waits for what other hosts do.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(90 * time.Second); !is(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 90 s: %s", what)
		}
	}
}

func fill(b byte, n int) []byte { return bytes.Repeat([]byte{b}, n) }

func (r running) mustGet(t *testing.T, name string) api.Volume {
	t.Helper()
	v, err := r.Get(t.Context(), api.KindVolume, name)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestCluster_OfOneHost(t *testing.T) {
	a := serveHost(t, Options{Site: "ams", Name: "a"})
	ctx := t.Context()
	if err := importImage(a.Host, "base"); err != nil {
		t.Fatal(err)
	}
	if err := importImage(a.Host, "base"); !errors.Is(err, scstore.ErrExists) {
		t.Errorf("a second image of that name: %v", err)
	}
	if _, err := a.CreateVolume(ctx, api.CreateVolume{Name: "v", SizeBytes: 4 << 20}); err != nil {
		t.Fatal(err)
	}
	c := a.dial(t, "v")
	write(t, c, fill(1, 10000), 5000)
	if _, err := a.CreateSnapshot(ctx, "v@one", nil); err != nil {
		t.Fatal(err)
	}
	write(t, c, fill(2, 10000), 5000)
	if _, err := a.CreateVolume(ctx, api.CreateVolume{Name: "clone", From: "v@one"}); err != nil {
		t.Fatal(err)
	}
	if _, err := a.CreateVolume(ctx, api.CreateVolume{Name: "guest", From: "base", SizeBytes: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	if r, err := a.Rollback(ctx, "v@one", api.RemoveOptions{DryRun: true, Force: true}, nil); err != nil || r.LostBytes < 10000 || r.ClosedConns != 1 {
		t.Errorf("dry run of a rollback: got %+v, %v", r, err)
	}
	if _, err := a.Rollback(ctx, "v@one", api.RemoveOptions{}, nil); !errors.Is(err, scstore.ErrBusy) {
		t.Errorf("rollback under a connection: got %v, want ErrBusy", err)
	}
	if v := a.mustGet(t, "v"); v.Where == nil || v.Where.Owner != "a" || v.Where.Here != "owner" || len(v.Snapshots) != 1 || v.Connections != 1 {
		t.Errorf("got %+v, where %+v", v, v.Where)
	}
	st, err := a.Status(ctx)
	if err != nil || st.Cluster == nil || st.Cluster.Site != "ams" || st.Cluster.HostsActive != 1 || st.Cluster.Problem != "" || st.Volumes != 3 {
		t.Errorf("status %+v, cluster %+v, %v", st, st.Cluster, err)
	}
	a.stop()

	a = serveHost(t, Options{Dir: a.o.Dir})
	check(t, a.dial(t, "v"), fill(2, 10000), 5000)
	check(t, a.dial(t, "v@one"), fill(1, 10000), 5000)
	check(t, a.dial(t, "clone"), fill(1, 10000), 5000)
	check(t, a.dial(t, "guest"), []byte("base\x00\x00\x00\x00"), 0)
	check(t, a.dial(t, "base"), []byte("base\x00\x00\x00\x00"), 0)
	write(t, a.dial(t, "clone"), fill(3, 5000), 5000)
	src, err := a.OpenSource(ctx, api.KindVolume, "clone")
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 10000)
	if _, err := src.ReadAt(got, 5000, nil); err != nil || !bytes.Equal(got, append(fill(3, 5000), fill(1, 5000)...)) {
		t.Errorf("export of a clone: %v", err)
	}
	if err := src.Close(); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"clone", "v@one", "v", "guest"} {
		if _, err := a.Remove(ctx, api.KindVolume, name, api.RemoveOptions{Force: true}); err != nil {
			t.Errorf("remove %q: %v", name, err)
		}
	}
	if _, err := a.Remove(ctx, api.KindImage, "base", api.RemoveOptions{Force: true}); err != nil {
		t.Errorf("remove the image: %v", err)
	}
	eventually(t, "the data of what was removed are gone", func() bool { return a.blocks.Stats().Volumes == 0 })
}

func TestCluster_RecordsWithoutANameAreSwept(t *testing.T) {
	a := serveHost(t, Options{Site: "ams", Name: "a"})
	ctx := t.Context()
	if _, err := a.CreateVolume(ctx, api.CreateVolume{Name: "v", SizeBytes: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	g := a.cluster.log.PickGroup()
	made := time.Now()
	op := meta.CreateVolume{ID: newID(), SizeBytes: 1 << 20, CreatedAtMs: made.UnixMilli()}
	if err := a.cluster.replicas.Create(ctx, g, op); err != nil { // and no name follows
		t.Fatal(err)
	}
	tables := func() int { return a.blocks.Stats().Volumes }
	if err := a.cluster.removeNameless(ctx, g, made.Add(orphanGrace-time.Minute)); err != nil || tables() != 2 {
		t.Fatalf("before the grace is over: %v, %d tables", err, tables())
	}
	if err := a.cluster.removeNameless(ctx, g, made.Add(orphanGrace+time.Minute)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the record without a name is gone", func() bool { return tables() == 1 })
	a.mustGet(t, "v")
	report, err := a.Doctor(ctx, func(int64, int64) {})
	if err != nil || report.Worst() == api.SeverityError {
		t.Errorf("doctor: got %+v, %v", report, err)
	}
}

func TestCluster_StoreOfAHostAloneIsRefused(t *testing.T) {
	dir := t.TempDir()
	h := open(t, dir)
	if _, err := h.CreateVolume(t.Context(), api.CreateVolume{Name: "v", SizeBytes: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Cluster(t.Context()); !errors.Is(err, scstore.ErrInvalid) {
		t.Errorf("the cluster of a host alone: %v", err)
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	_, err := Open(t.Context(), Options{Dir: dir, Version: "test", Site: "ams", Listen: "127.0.0.1:0"})
	if hint, ok := errors.AsType[*scstore.HintError](err); !errors.Is(err, scstore.ErrInvalid) || !ok || hint.Hint == "" {
		t.Errorf("got %v", err)
	}
	h = open(t, dir) // and it is as before
	if _, err := h.Get(t.Context(), api.KindVolume, "v"); err != nil {
		t.Error(err)
	}
}

func TestCluster_KeepsItsSite(t *testing.T) {
	a := serveHost(t, Options{Site: "ams", Name: "a"})
	a.stop()
	for _, o := range []Options{{Site: "fra"}, {Join: "something"}} {
		o.Dir, o.Version = a.o.Dir, "test"
		if _, err := Open(t.Context(), o); !errors.Is(err, scstore.ErrInvalid) {
			t.Errorf("%+v: got %v, want invalid", o, err)
		}
	}
	report, err := Check(t.Context(), Options{Dir: a.o.Dir, Version: "test"}, false, func(int64, int64) {})
	if err != nil || report.Worst() == api.SeverityError {
		t.Errorf("doctor: got %+v, %v", report, err)
	}
}

// three serves a host in each of three sites.
func three(t *testing.T) (a, b, c running) {
	t.Helper()
	a = serveHost(t, Options{Site: "ams", Name: "a"})
	join := func(site, name string) running {
		token, err := a.NewToken(t.Context(), api.NewToken{Site: site})
		if err != nil {
			t.Fatal(err)
		}
		return serveHost(t, Options{Name: name, Join: token.Text})
	}
	b, c = join("fra", "b"), join("lon", "c")
	for _, h := range []running{a, b, c} {
		eventually(t, "all hosts are active, and one of each site votes, in the eyes of "+h.o.Name, func() bool {
			st, err := h.Cluster(t.Context())
			settled := err == nil && st.Majority && len(st.Hosts) == 3 && st.Problem == ""
			for _, g := range st.Groups {
				settled = settled && len(g.Voters) == 3 && g.Leader != ""
			}
			for _, p := range st.Hosts {
				settled = settled && p.State == "active"
			}
			return settled
		})
	}
	return a, b, c
}

// copyAt returns what a host has of a volume.
func copyAt(v api.Volume, host string) (found api.CopyInfo) {
	for _, c := range v.Where.Copies {
		if c.Host == host {
			found = c
		}
	}
	return found
}

func TestSites_VolumeIsPlacedReadAndMoved(t *testing.T) {
	t.Parallel()
	a, b, c := three(t)
	ctx := t.Context()
	if _, err := a.CreateVolume(ctx, api.CreateVolume{Name: "v", SizeBytes: 8 << 20}); err != nil {
		t.Fatal(err)
	}
	guest := a.dial(t, "v")
	write(t, guest, fill(1, 1<<20), 4096)
	if p, err := c.SetPlacement(ctx, "v", api.Placement{Sites: []string{"fra", "ams"}}); err != nil || p.Mode != "async" || len(p.Sites) != 2 {
		t.Fatalf("got %+v, %v", p, err)
	}
	if _, err := c.SetPlacement(ctx, "v", api.Placement{Sites: []string{"mars"}}); !errors.Is(err, scstore.ErrNotFound) {
		t.Errorf("an unknown site: %v", err)
	}
	eventually(t, "b holds the newest epoch", func() bool {
		v := b.mustGet(t, "v")
		return v.Where.Here == "replica" && copyAt(v, "b").Current
	})
	reader := b.dial(t, "v")
	if !reader.ReadOnly() {
		t.Error("the replica can be written")
	}
	check(t, reader, fill(1, 1<<20), 4096)

	// A snapshot is made where the volume is written, whoever is asked.
	if v, err := c.CreateSnapshot(ctx, "v@one", nil); err != nil || v.Kind != api.KindSnapshot {
		t.Fatalf("got %+v, %v", v, err)
	}
	write(t, guest, fill(2, 1<<20), 4096)
	if _, err := c.CreateSnapshot(ctx, "v@one", nil); !errors.Is(err, scstore.ErrExists) {
		t.Errorf("the same snapshot again: %v", err)
	}
	// A call that was passed on is not passed on again.
	_, err := c.cluster.send(ctx, b.disk(), call{Method: methodSnapshot, Name: "v@two"}, nil)
	if !errors.Is(err, scstore.ErrBusy) {
		t.Errorf("a call to who does not write: %v", err)
	}

	report, err := c.Move(ctx, "v", api.Move{To: "fra"}, func(int64, int64) {})
	if err != nil || report.From != "a" || report.To != "b" {
		t.Fatalf("got %+v, %v", report, err)
	}
	eventually(t, "the old owner ends its connections", func() bool { return guest.Err() != nil })
	guest = b.dial(t, "v")
	check(t, guest, fill(2, 1<<20), 4096)
	write(t, guest, fill(3, 1<<20), 4096)
	eventually(t, "a follows", func() bool {
		w := b.mustGet(t, "v").Where
		return w.OnlyBytes == 0 && w.Tether == nil && copyAt(a.mustGet(t, "v"), "a").Current
	})
	old := a.dial(t, "v")
	if !old.ReadOnly() {
		t.Error("the old owner can write")
	}
	check(t, old, fill(3, 1<<20), 4096)
	check(t, a.dial(t, "v@one"), fill(1, 1<<20), 4096)
	if v := c.mustGet(t, "v"); v.Where.Owner != "b" || v.Where.Site != "fra" {
		t.Errorf("c says %+v", v.Where)
	}

	// So is a rollback, and copies follow it.
	r, err := c.Rollback(ctx, "v@one", api.RemoveOptions{Force: true}, func(int64, int64) {})
	if err != nil || r.ClosedConns != 1 || r.LostBytes != 1<<20 {
		t.Fatalf("got %+v, %v", r, err)
	}
	check(t, b.dial(t, "v"), fill(1, 1<<20), 4096)
	eventually(t, "a follows the rollback", func() bool {
		return b.mustGet(t, "v").Where.OnlyBytes == 0 && copyAt(a.mustGet(t, "v"), "a").Current
	})
	check(t, a.dial(t, "v"), fill(1, 1<<20), 4096)
}

func TestSites_RemovalIsForTheOwnerToCarryOut(t *testing.T) {
	t.Parallel()
	a, b, c := three(t)
	ctx := t.Context()
	if err := importImage(b.Host, "base"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a knows the image", func() bool { _, err := a.Get(ctx, api.KindImage, "base"); return err == nil })
	if _, err := a.CreateVolume(ctx, api.CreateVolume{Name: "v", From: "base"}); err != nil {
		t.Fatal(err)
	}
	guest := a.dial(t, "v")
	check(t, guest, []byte("base\x00\x00\x00\x00"), 0)
	write(t, guest, fill(1, 100), 100)
	eventually(t, "c knows the volume", func() bool { _, err := c.Get(ctx, api.KindVolume, "v"); return err == nil })
	if _, err := c.Remove(ctx, api.KindVolume, "v", api.RemoveOptions{}); !errors.Is(err, scstore.ErrBusy) {
		t.Errorf("remove what has a connection elsewhere: %v", err)
	}
	if _, err := c.Remove(ctx, api.KindImage, "base", api.RemoveOptions{}); !errors.Is(err, scstore.ErrBusy) {
		t.Errorf("remove what has a clone: %v", err)
	}
	r, err := c.Remove(ctx, api.KindVolume, "v", api.RemoveOptions{Force: true})
	if err != nil || r.ClosedConns != 1 {
		t.Errorf("got %+v, %v", r, err)
	}
	if _, err := c.Remove(ctx, api.KindImage, "base", api.RemoveOptions{}); err != nil {
		t.Error(err)
	}
	for _, h := range []running{a, b, c} {
		eventually(t, "host "+h.o.Name+" has nothing left", func() bool {
			all, err := h.names.entries()
			return err == nil && len(all) == 0 && h.blocks.Stats().Volumes == 0
		})
	}
}

func TestSites_PromoteKeepsWhatTheOldOwnerHad(t *testing.T) {
	t.Parallel()
	a, b, c := three(t)
	ctx := t.Context()
	if _, err := a.CreateVolume(ctx, api.CreateVolume{Name: "v", SizeBytes: 4 << 20}); err != nil {
		t.Fatal(err)
	}
	guest := a.dial(t, "v")
	write(t, guest, fill(1, 1<<20), 0)
	place := func(mode string) {
		t.Helper()
		if _, err := a.SetPlacement(ctx, "v", api.Placement{Sites: []string{"lon"}, Mode: mode}); err != nil {
			t.Fatal(err)
		}
	}
	place("async")
	eventually(t, "c holds all", func() bool {
		v := a.mustGet(t, "v")
		return v.Where.OnlyBytes == 0 && copyAt(v, "c").Current
	})
	place("lazy") // from here on nothing leaves a by itself
	write(t, guest, fill(2, 1<<20), 4096)
	named := func(err error) bool { // by what people call it, not by its disk
		return strings.Contains(err.Error(), "host a of site ams") && !strings.Contains(err.Error(), string(a.disk()))
	}
	if _, err := c.Promote(ctx, "v", api.Promote{To: "lon"}); !errors.Is(err, scstore.ErrBusy) || !named(err) {
		t.Errorf("promote while the owner answers: %v", err)
	}
	a.stop()

	var report api.PromoteReport
	eventually(t, "c can take the volume", func() (ok bool) {
		var err error
		report, err = c.Promote(ctx, "v", api.Promote{To: "lon"})
		if err != nil && !errors.Is(err, scstore.ErrNoMajority) {
			t.Fatal(err)
		}
		return err == nil
	})
	if report.Owner != "a" || report.To != "c" || len(report.Silent) != 1 || report.Silent[0] != "a" || report.Unknown == "" {
		t.Errorf("got %+v", report)
	}
	eventually(t, "c owns the volume", func() bool { return c.mustGet(t, "v").Where.Here == "owner" })
	guest = c.dial(t, "v")
	check(t, guest, fill(1, 1<<20), 0)
	write(t, guest, fill(3, 1<<20), 0)
	if w := b.mustGet(t, "v").Where; w.Unknown != "" {
		t.Errorf("the new owner does not answer: %+v", w)
	}
	if _, err := c.Move(ctx, "v", api.Move{To: "ams"}, nil); !errors.Is(err, scstore.ErrUnreachable) || !named(err) {
		t.Errorf("move to a host that does not answer: %v", err)
	}

	a = serveHost(t, Options{Dir: a.o.Dir})
	eventually(t, "what a had is a branch", func() bool { return len(c.mustGet(t, "v").Where.Branches) == 1 })
	branch := c.mustGet(t, "v").Where.Branches[0]
	eventually(t, "a knows the branch", func() bool { _, err := a.Get(ctx, api.KindVolume, branch); return err == nil })
	old := a.dial(t, branch)
	check(t, old, fill(2, 1<<20), 4096)
	check(t, old, fill(1, 4096), 0)
	if !old.ReadOnly() {
		t.Error("a branch can be written")
	}
	check(t, guest, fill(3, 1<<20), 0)
	if _, err := c.Remove(ctx, api.KindVolume, "v", api.RemoveOptions{Force: true}); !errors.Is(err, scstore.ErrBusy) {
		t.Errorf("remove a volume with a branch: %v", err)
	}
	if _, err := a.Remove(ctx, api.KindVolume, branch, api.RemoveOptions{Force: true}); err != nil {
		t.Errorf("remove the branch: %v", err)
	}
	eventually(t, "the volume has no branch", func() bool { return len(c.mustGet(t, "v").Where.Branches) == 0 })
}

func TestSites_HostIsRemoved(t *testing.T) {
	t.Parallel()
	a, b, c := three(t)
	ctx := t.Context()
	if _, err := c.CreateVolume(ctx, api.CreateVolume{Name: "v", SizeBytes: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	write(t, c.dial(t, "v"), fill(1, 10000), 100)
	eventually(t, "a knows who writes it", func() bool {
		v, err := a.Get(ctx, api.KindVolume, "v")
		return err == nil && v.Where.Owner == "c"
	})
	if _, err := a.RemoveHost(ctx, "c", api.RemoveOptions{}); !errors.Is(err, scstore.ErrBusy) {
		t.Errorf("remove a host that writes: %v", err)
	}
	plan, err := a.RemoveHost(ctx, "c", api.RemoveOptions{DryRun: true})
	if err != nil || !plan.DryRun || len(plan.Only) != 1 || plan.Only[0] != "v" {
		t.Errorf("got %+v, %v", plan, err)
	}
	if _, err := c.Move(ctx, "v", api.Move{To: "fra/b"}, nil); err != nil {
		t.Fatal(err)
	}
	eventually(t, "b has all of it", func() bool {
		v := b.mustGet(t, "v")
		return v.Where.Here == "owner" && v.Where.Tether == nil && copyAt(v, "b").Current
	})
	eventually(t, "nothing hangs on c", func() bool {
		plan, err := a.RemoveHost(ctx, "c", api.RemoveOptions{DryRun: true})
		return err == nil && len(plan.Only) == 0
	})
	*c.cause = scstore.ErrFenced
	if _, err := a.RemoveHost(ctx, "c", api.RemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "c fails", func() bool { return c.cluster.failure() != nil })
	eventually(t, "b knows that c was removed", func() bool {
		st, err := b.Cluster(ctx)
		for _, p := range st.Hosts {
			if p.Name == "c" && p.State == "removed" {
				return err == nil
			}
		}
		return false
	})
}

func TestSites_OwnerWithoutAMajorityServesItsVolumes(t *testing.T) {
	t.Parallel()
	a, b, c := three(t)
	ctx := t.Context()
	if _, err := a.CreateVolume(ctx, api.CreateVolume{Name: "v", SizeBytes: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	write(t, a.dial(t, "v"), fill(1, 10000), 0)
	for _, h := range []running{a, b, c} {
		h.stop()
	}
	a = serveHost(t, Options{Dir: a.o.Dir})
	guest := a.dial(t, "v")
	check(t, guest, fill(1, 10000), 0)
	write(t, guest, fill(2, 10000), 5000)
	st, err := a.Status(ctx)
	if err != nil || !strings.HasPrefix(st.Cluster.Problem, "no majority in group 1 since ") {
		t.Errorf("got %+v, %v", st.Cluster, err)
	}
	if w := a.mustGet(t, "v").Where; w.Here != "owner" || !strings.Contains(w.Unknown, "may be old") || slices.ContainsFunc(w.CanSwitchOff, func(o api.SwitchOff) bool { return o.OK }) {
		t.Errorf("got %+v", w)
	}
	limited, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if _, err := a.SetPlacement(limited, "v", api.Placement{Sites: []string{"fra"}}); !errors.Is(err, scstore.ErrNoMajority) {
		t.Errorf("a decision without a majority: %v", err)
	}
}

func TestSites_WhatACallMayBe(t *testing.T) {
	for _, text := range []string{"", "{", `{"method":"rm -rf"}`, `{"method":"move"}{}`, string(fill('x', MaxForwardBytes+1))} {
		if _, err := parseCall([]byte(text)); err == nil {
			t.Errorf("%.20q was taken", text)
		}
	}
	if c, err := parseCall([]byte(`{"method":"move","name":"v","move":{"to":"fra/b"}}`)); err != nil || c.Move.To != "fra/b" {
		t.Errorf("got %+v, %v", c, err)
	}
}

func TestSites_AnAnswerThatStopsIsIndeterminate(t *testing.T) {
	for _, text := range []string{"", `{"done_bytes":1}` + "\n", `{"volume":{"name":"v"`, "\n"} {
		if _, err := readAnswer(bytes.NewReader([]byte(text)), nil); !errors.Is(err, scstore.ErrIndeterminate) {
			t.Errorf("%q: got %v", text, err)
		}
	}
	_, err := readAnswer(bytes.NewReader([]byte(`{"error":{"code":"busy","message":"later","hint":"wait"}}`)), nil)
	if hint, ok := errors.AsType[*scstore.HintError](err); !errors.Is(err, scstore.ErrBusy) || !ok || hint.Hint != "wait" {
		t.Errorf("got %v", err)
	}
}

func FuzzParseCall(f *testing.F) {
	f.Add([]byte(`{"method":"snapshot","name":"v@s"}`))
	f.Add([]byte(`{"method":"remove","kind":"volume","name":"v","remove":{"Force":true}}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := parseCall(text)
		if err == nil && c.Method != methodSnapshot && c.Method != methodRollback && c.Method != methodRemove && c.Method != methodMove && c.Method != methodInfo {
			t.Errorf("method %q", c.Method)
		}
	})
}

func FuzzReadAnswer(f *testing.F) {
	f.Add([]byte(`{"done_bytes":1,"total_bytes":2}` + "\n" + `{"volume":{"name":"v"}}` + "\n"))
	f.Add([]byte(`{"error":{"code":"busy","message":"m"}}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		a, err := readAnswer(bytes.NewReader(text), func(int64, int64) {})
		if err == nil && !a.last() {
			t.Error("an answer without an end")
		}
	})
}
