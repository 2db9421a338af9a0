package meta_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"scstore"
	"scstore/consensus/meta"
)

var rewrite = flag.Bool("rewrite", false, "write the golden files anew")

// goldenCommands holds one command of each kind.
func goldenCommands() map[string]meta.Command {
	protected := func(seq uint64, op meta.Op) meta.Command {
		return meta.Command{ID: meta.CommandID{Client: clientID(7), Seq: seq}, Op: op}
	}
	base := image(1, "images/debian-12")
	digest := scstore.Digest(bytes.Repeat([]byte{0xd1, 0x6e}, 16))
	return map[string]meta.Command{
		"open_session":         protected(0, meta.OpenSession{}),
		"create_volume":        protected(1, volume(2, "prod/web1")),
		"create_volume_cloned": protected(2, clone(3, "prod/été", base)),
		"create_image":         protected(3, base),
		"remove_name":          protected(4, meta.Remove{Name: "prod/web1"}),
		"remove_id":            {Op: meta.Remove{ID: volumeID(2)}},
		"forget":               protected(5, meta.Forget{ID: volumeID(2)}),
		"rename":               protected(6, meta.Rename{From: "a", To: "b/c"}),
		"open_fence":           protected(7, meta.OpenFence{ID: volumeID(3), Holder: "disk-5f3c"}),
		"commit_epoch":         protected(1<<40, meta.CommitEpoch{ID: volumeID(3), Fence: 2, Parent: pos(1, 20), Epoch: 21, Digest: digest}),
		"resize":               protected(9, meta.Resize{ID: volumeID(3), SizeBytes: 1 << 40}),
	}
}

// clusterCommands holds one command of each kind that came with groups.
func clusterCommands() map[string]meta.Command {
	digest := scstore.Digest(bytes.Repeat([]byte{0xd1, 0x6e}, 16))
	print := meta.Fingerprint(bytes.Repeat([]byte{0xf1, 0x6e}, 16))
	id, other := volumeID(3), volumeID(4)
	pin := meta.Pin{ID: meta.PinID{15: 5}, Kind: meta.PinJump, Position: pos(2, 21), Disk: diskB, DeadlineMs: 1_800_000_060_000}
	commitOp := meta.CommitEpoch{ID: id, Fence: 2, Parent: pos(1, 20), Epoch: 21, Digest: digest}
	report := meta.Ack{Disk: diskB, Seq: 3<<32 | 7, Items: []meta.AckItem{{ID: id, Position: pos(2, 21), Complete: true}, {ID: other, Position: pos(1, 2)}}}
	list := map[string]meta.Op{
		"batch":            meta.Batch{Ops: []meta.Op{commitOp, report}},
		"expire":           meta.Expire{NowMs: 1_800_000_000_000},
		"set_cluster":      meta.SetCluster{Cluster: meta.Cluster{ID: meta.ClusterID{15: 9}, Incarnation: 2}},
		"set_site":         meta.SetSite{Site: meta.Site{Name: siteA, Voters: []meta.DiskID{diskA, diskB}}},
		"remove_site":      meta.RemoveSite{Name: siteA},
		"add_host":         meta.AddHost{Disk: diskA, Name: "alpha", Site: siteA, Witness: true, Fingerprint: print, Addresses: []string{"10.0.0.1:7400", "alpha.example:7400"}},
		"update_host":      meta.UpdateHost{Disk: diskA, Active: true, Fingerprint: print, Addresses: []string{"10.0.0.2:7400"}},
		"boot":             meta.Boot{Disk: diskA, N: 3, Nonce: [16]byte{1, 2, 3}},
		"add_token":        meta.AddToken{Hash: meta.TokenHash(digest), Site: siteA, ExpiresAtMs: 1_800_000_600_000, NowMs: 1_800_000_000_000},
		"use_token":        meta.UseToken{Hash: meta.TokenHash(digest), Disk: diskB, NowMs: 1_800_000_000_000},
		"alloc_replica":    meta.AllocReplica{Group: 2, Disk: diskA},
		"free_replica":     meta.FreeReplica{Group: 2, Disk: diskA},
		"remove_disk":      meta.RemoveDisk{Disk: diskA},
		"admit_disk":       meta.AdmitDisk{Disk: diskA, Site: siteA},
		"link":             meta.Link{Name: "prod/web1", ID: id, Group: 2},
		"unlink":           meta.Unlink{Name: "prod/web1", ID: id},
		"ack":              report,
		"complete":         meta.Complete{Disk: diskB, Seq: 8, ID: id, Position: pos(2, 21)},
		"release":          meta.Release{Disk: diskB, Seq: 9, ID: id, Position: pos(1, 20)},
		"set_placement":    meta.SetPlacement{ID: id, Placement: meta.Placement{Sites: []meta.SiteID{siteA, siteB}, Mode: meta.ModeSync, Failover: meta.FailoverAuto, MaxLagMs: 1_000}},
		"leave_in_sync":    meta.LeaveInSync{ID: id, Fence: 2, Site: siteB},
		"join_in_sync":     meta.JoinInSync{ID: id, Fence: 2, Site: siteB},
		"put_pin":          meta.PutPin{ID: id, Pin: pin, NowMs: 1_800_000_000_000},
		"drop_pin":         meta.DropPin{ID: id, Pin: pin.ID},
		"intent":           intent(1, diskA, diskB, 3, 4),
		"drop_intent":      meta.DropIntent{ID: moveID(1)},
		"hand_off":         meta.HandOff{ID: moveID(1), To: diskB, Volumes: []meta.Handed{handed(3, 1, pos(1, 20), 21), handed(4, 1, pos(1, 1), 2)}},
		"cancel":           meta.Cancel{ID: moveID(1)},
		"revoke":           meta.Revoke{ID: id, Fence: 2},
		"promote":          meta.Promote{ID: id, Fence: 3, Position: pos(1, 20), Holder: diskB, Loss: meta.Loss{Epochs: 1, Bytes: 4096, Extents: 1, Seconds: 2}},
		"register_branch":  branch(8, pos(0, 1), pos(1, 6)),
		"report_no_branch": meta.ReportNoBranch{ID: id, Fence: 2, Disk: diskA},
		"snapshot":         meta.Snapshot{ID: id, Name: "before-upgrade", Position: pos(2, 21), CreatedAtMs: 1_800_000_000_000},
		"delete_snapshot":  meta.DeleteSnapshot{ID: id, Name: "before-upgrade"},
		"add_ref":          meta.AddRef{Base: id, Ref: meta.Ref{Clone: other, Position: pos(2, 21), Group: 3, AddedAtMs: 1_800_000_000_000}},
		"drop_ref":         meta.DropRef{Base: id, Clone: other},
		"rollback":         meta.Rollback{ID: id, Snapshot: "before-upgrade", Fence: 2, Parent: pos(2, 21), Epoch: 22, Digest: digest},
		"renew":            meta.Renew{Disk: diskA, N: 7},
		"take_over":        meta.TakeOver{ID: id, Fence: 2, N: 7},
		"freeze":           meta.Freeze{ID: id, To: 3, N: 1},
		"unfreeze":         meta.Unfreeze{ID: id, N: 1},
		"import":           meta.Import{From: 2, N: 1, Record: "opaque here"},
		"drop_import":      meta.DropImport{ID: id, N: 1},
		"forward":          meta.Forward{ID: id, N: 1},
		"activate":         meta.Activate{ID: id, N: 1},
		"drop_forward":     meta.DropForward{ID: id},
		"relink":           meta.Relink{ID: id, From: 2, To: 3},
	}
	commands := map[string]meta.Command{}
	for name, op := range list {
		commands[name] = meta.Command{Op: op}
	}
	return commands
}

// TestGolden_EveryKindHasAFile: a kind without one could change unseen.
func TestGolden_EveryKindHasAFile(t *testing.T) {
	seen := map[byte]bool{}
	for _, c := range goldenCommands() {
		seen[c.AppendTo(nil)[5]] = true
	}
	for _, c := range clusterCommands() {
		seen[c.AppendTo(nil)[5]] = true
	}
	kinds := 0
	for k := range byte(255) {
		if meta.NewOp(k) != nil {
			kinds++
			if !seen[k] {
				t.Errorf("kind %d, %T, has no golden file", k, meta.NewOp(k))
			}
		}
	}
	if kinds != len(seen) {
		t.Errorf("%d kinds, %d with a file", kinds, len(seen))
	}
}

// clusterState is a state of one host's cluster that has something of everything.
func clusterState(t testing.TB) *meta.State {
	s := meta.New()
	for _, op := range []meta.Op{
		meta.SetCluster{Cluster: meta.Cluster{ID: meta.ClusterID{15: 9}, Incarnation: 2}},
		meta.SetSite{Site: meta.Site{Name: siteA}},
		meta.SetSite{Site: meta.Site{Name: siteB}},
		addHost(diskA, "alpha", siteA), addHost(diskB, "beta", siteB), addHost(diskC, "gamma", siteB),
		meta.SetSite{Site: meta.Site{Name: siteA, Voters: []meta.DiskID{diskA}}},
		meta.Boot{Disk: diskA, N: 3, Nonce: [16]byte{1}},
		meta.AddToken{Hash: meta.TokenHash{1}, Site: siteA, ExpiresAtMs: 600_000, NowMs: 1_000},
		meta.UseToken{Hash: meta.TokenHash{1}, Disk: diskB, NowMs: 2_000},
		meta.AllocReplica{Group: 2, Disk: diskA}, meta.AllocReplica{Group: 2, Disk: diskB},
		volume(1, "prod/web1"),
		meta.OpenFence{ID: volumeID(1), Holder: diskA},
		commit(1, 1, pos(0, 0), 1),
		meta.Snapshot{ID: volumeID(1), Name: "s", Position: pos(1, 1), CreatedAtMs: 3},
		meta.CreateVolume{ID: volumeID(2), Name: "prod/clone", SizeBytes: 8 * scstore.BlockSize, Base: volumeID(1), BasePosition: pos(1, 1)},
		commit(1, 1, pos(1, 1), 2),
		ack(diskB, 1, pos(1, 2), true),
		commit(1, 1, pos(1, 2), 3),
		meta.Revoke{ID: volumeID(1), Fence: 1},
		meta.Promote{ID: volumeID(1), Fence: 2, Position: pos(1, 2), Holder: diskB, Loss: meta.Loss{Epochs: 1}},
		branch(8, pos(1, 2), pos(1, 5)),
		meta.SetPlacement{ID: volumeID(1), Placement: meta.Placement{Sites: []meta.SiteID{siteA, siteB}, Mode: meta.ModeSync, Failover: meta.FailoverAuto, MaxLagMs: 9}},
		meta.JoinInSync{ID: volumeID(1), Fence: 2, Site: siteB},
		commit(1, 2, pos(1, 2), 1),
		meta.Rollback{ID: volumeID(1), Snapshot: "s", Fence: 2, Parent: pos(2, 1), Epoch: 2, Digest: scstore.Digest{5}},
		meta.PutPin{ID: volumeID(1), NowMs: 3_000, Pin: meta.Pin{ID: meta.PinID{1}, Kind: meta.PinRead, Position: pos(1, 1), Disk: diskC, DeadlineMs: 90_000}},
		intent(1, diskB, diskA, 1),
		meta.HandOff{ID: moveID(1), To: diskA, Volumes: []meta.Handed{handed(1, 2, pos(2, 2), 3)}},
		volume(3, ""),
		meta.OpenFence{ID: volumeID(3), Holder: diskC},
		commit(3, 1, pos(0, 0), 1),
		ack(diskA, 1, pos(2, 3), false),
		intent(2, diskC, diskA, 3),
		meta.Renew{Disk: diskC, N: 4},
		meta.RemoveDisk{Disk: "disk-d"},
	} {
		if r := s.Apply(meta.Command{Op: op}); r.Code != meta.CodeOK {
			t.Fatalf("%T%+v: %v", op, op, r.Err())
		}
	}
	open(s, clientID(7))
	s.Apply(meta.Command{ID: meta.CommandID{Client: clientID(7), Seq: 1}, Op: meta.Cancel{ID: moveID(1)}})
	return s
}

// goldenState has a record of each kind and life and a session.
func goldenState(t *testing.T) *meta.State {
	s := meta.New()
	base := image(1, "images/debian-12")
	open(s, clientID(7))
	apply(t, s, base, meta.CodeOK)
	apply(t, s, clone(3, "prod/web1", base), meta.CodeOK)
	apply(t, s, volume(2, "old"), meta.CodeOK)
	apply(t, s, meta.Remove{Name: "old"}, meta.CodeOK)
	for seq, op := range []meta.Op{
		meta.OpenFence{ID: volumeID(3), Holder: "disk-5f3c"},
		meta.CommitEpoch{ID: volumeID(3), Fence: 1, Epoch: 1, Digest: scstore.Digest{9}},
		meta.Rename{From: "nothing", To: "x"},
	} {
		s.Apply(meta.Command{ID: meta.CommandID{Client: clientID(7), Seq: uint64(seq + 1)}, Op: op})
	}
	return s
}

// golden compares b with a file of hexadecimal digits, 32 bytes a line.
// name has its version.
func golden(t *testing.T, name string, b []byte) {
	t.Helper()
	path := filepath.Join("testdata", "golden", name+".hex")
	var text strings.Builder
	for line := range slices.Chunk(b, 32) {
		text.WriteString(hex.EncodeToString(line) + "\n")
	}
	if *rewrite {
		if err := os.WriteFile(path, []byte(text.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if text.String() != string(want) {
		t.Errorf("%s:\ngot\n%swant\n%s", path, text.String(), want)
	}
}

func TestGolden_Commands(t *testing.T) {
	for name, c := range goldenCommands() {
		if err := c.Validate(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		b := c.AppendTo(nil)
		golden(t, "v1/"+name, b)
		got, rest, err := meta.ParseCommand(append(b, "rest"...))
		if err != nil || !reflect.DeepEqual(got, c) || string(rest) != "rest" {
			t.Errorf("%s: parse: %+v, rest %q, %v", name, got, rest, err)
		}
	}
}

func TestGolden_ClusterCommands(t *testing.T) {
	for name, c := range clusterCommands() {
		if err := c.Validate(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		b := c.AppendTo(nil)
		golden(t, "v2/"+name, b)
		got, rest, err := meta.ParseCommand(append(b, "rest"...))
		if err != nil || !reflect.DeepEqual(got, c) || string(rest) != "rest" {
			t.Errorf("%s: parse: %+v, rest %q, %v", name, got, rest, err)
		}
		for cut := range b {
			if _, _, err := meta.ParseCommand(b[:cut]); !errors.Is(err, scstore.ErrCorrupt) {
				t.Errorf("%s cut at %d: got %v, want ErrCorrupt", name, cut, err)
			}
		}
	}
}

// goldenResult has parts in its parts, as the result of a batch of reports has.
func goldenResult() meta.Result {
	return meta.Result{Code: meta.CodeOK, Each: []meta.Result{
		{Code: meta.CodeFenced, ID: volumeID(1), Fence: 3, Position: pos(3, 4)},
		{Code: meta.CodeOK, Each: []meta.Result{{Code: meta.CodeUnknownPosition, ID: volumeID(2)}, {Code: meta.CodeOK, Number: 7}}},
		{Code: meta.CodeHandedOff, Outcome: meta.OutcomeHandedOff},
	}}
}

func TestGolden_Result(t *testing.T) {
	want := goldenResult()
	b := want.AppendTo(nil)
	golden(t, "v2/result", b)
	got, rest, err := meta.ParseResult(append(b, "rest"...))
	if err != nil || !got.Equal(want) || string(rest) != "rest" {
		t.Errorf("parse: %+v, rest %q, %v", got, rest, err)
	}
	for cut := range b {
		if _, _, err := meta.ParseResult(b[:cut]); !errors.Is(err, scstore.ErrCorrupt) {
			t.Errorf("cut at %d: got %v, want ErrCorrupt", cut, err)
		}
	}
	newer := meta.Result{Code: 250}.AppendTo(nil)
	if _, _, err := meta.ParseResult(newer); !errors.Is(err, scstore.ErrVersion) {
		t.Errorf("a code of a newer release: got %v, want ErrVersion", err)
	}
}

func TestParseCommand_PortsOfALaterReleaseAreRefused(t *testing.T) {
	b := clusterCommands()["hand_off"].AppendTo(nil)
	b[len(b)-1] = 1
	if _, _, err := meta.ParseCommand(b); !errors.Is(err, scstore.ErrVersion) {
		t.Errorf("got %v, want ErrVersion", err)
	}
}

func TestGolden_State(t *testing.T) {
	all := clusterState(t)
	golden(t, "v2/state_cluster", all.AppendTo(nil))
	reopen(t, all)
	golden(t, "v2/state", goldenState(t).AppendTo(nil))
	golden(t, "v2/state_empty", meta.New().AppendTo(nil))
}

// TestGolden_StateOfTheFirstReleaseIsRead: what version 1 wrote of the same history
// reads as the same state, but for the grant, which it did not keep, and the base's
// reference, whose time it did not keep either.
func TestGolden_StateOfTheFirstReleaseIsRead(t *testing.T) {
	read := func(name string) *meta.State {
		digits, err := os.ReadFile(filepath.Join("testdata", "golden", "v1", name+".hex"))
		if err != nil {
			t.Fatal(err)
		}
		b, err := hex.DecodeString(strings.ReplaceAll(string(digits), "\n", ""))
		if err != nil {
			t.Fatal(err)
		}
		s, err := meta.ParseState(b)
		if err != nil {
			t.Fatal(err)
		}
		for cut := range b {
			if _, err := meta.ParseState(b[:cut]); !errors.Is(err, scstore.ErrCorrupt) {
				t.Errorf("%s cut at %d: got %v, want ErrCorrupt", name, cut, err)
			}
		}
		return reopen(t, s)
	}
	if got := read("state_empty"); !bytes.Equal(got.AppendTo(nil), meta.New().AppendTo(nil)) {
		t.Error("the empty state reads as another")
	}
	got, want := read("state"), goldenState(t)
	if !reflect.DeepEqual(got.List(""), want.List("")) || !reflect.DeepEqual(got.Tombstones(), want.Tombstones()) || got.Applied() != want.Applied() {
		t.Errorf("records: got %+v %+v, want %+v %+v", got.List(""), got.Tombstones(), want.List(""), want.Tombstones())
	}
	if g, w := got.Replicas(volumeID(3)), want.Replicas(volumeID(3)); !reflect.DeepEqual(g, w) {
		t.Errorf("replicas: got %+v, want %+v", g, w)
	}
	if n := got.Clones(volumeID(1)); n != 1 {
		t.Errorf("the base has %d clones, want 1", n)
	}
	retry := meta.Command{ID: meta.CommandID{Client: clientID(7), Seq: 1}, Op: meta.Rename{From: "a", To: "b"}}
	if g, w := got.Apply(retry), want.Apply(retry); !g.Equal(w) || g.Code != meta.CodeOK {
		t.Errorf("result of a session: got %+v, want %+v", g, w)
	}
}

func TestMaxCommandBytes_HoldsTheLongestCommand(t *testing.T) {
	long := strings.Repeat("s/", meta.MaxNameBytes/2-1) + "ss"
	c := meta.Command{Op: meta.Rename{From: long, To: long}}
	if b := c.AppendTo(nil); len(b) > meta.MaxCommandBytes {
		t.Errorf("rename of %d bytes, limit %d", len(b), meta.MaxCommandBytes)
	}
}

func TestParseCommand_Damage(t *testing.T) {
	good := goldenCommands()["create_volume"].AppendTo(nil)
	for cut := range good {
		if _, _, err := meta.ParseCommand(good[:cut]); !errors.Is(err, scstore.ErrCorrupt) {
			t.Errorf("cut at %d: got %v, want ErrCorrupt", cut, err)
		}
	}
	for at, want := range map[int]error{0: scstore.ErrCorrupt, 4: scstore.ErrVersion, 5: scstore.ErrVersion, 6: scstore.ErrCorrupt, 32: scstore.ErrCorrupt} {
		bad := slices.Clone(good)
		bad[at] += 0x40
		if _, _, err := meta.ParseCommand(bad); !errors.Is(err, want) {
			t.Errorf("byte %d changed: got %v, want %v", at, err, want)
		}
	}
}

func TestParseState_Damage(t *testing.T) {
	good := clusterState(t).AppendTo(nil)
	for cut := range good {
		if _, err := meta.ParseState(good[:cut]); !errors.Is(err, scstore.ErrCorrupt) {
			t.Errorf("cut at %d: got %v, want ErrCorrupt", cut, err)
		}
	}
	if _, err := meta.ParseState(append(slices.Clone(good), 0)); !errors.Is(err, scstore.ErrCorrupt) {
		t.Errorf("a byte too many: got %v, want ErrCorrupt", err)
	}
	newer := slices.Clone(good)
	newer[4]++
	if _, err := meta.ParseState(newer); !errors.Is(err, scstore.ErrVersion) {
		t.Errorf("newer version: got %v, want ErrVersion", err)
	}
}

func FuzzParseCommand(f *testing.F) {
	f.Add(meta.Command{Op: exported(f)}.AppendTo(nil))
	for _, c := range goldenCommands() {
		f.Add(c.AppendTo(nil))
	}
	for _, c := range clusterCommands() {
		f.Add(c.AppendTo(nil))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		c, rest, err := meta.ParseCommand(b)
		if err != nil {
			return
		}
		if !bytes.Equal(append(c.AppendTo(nil), rest...), b) {
			t.Fatalf("%+v: another encoding", c)
		}
		based := meta.NewGroup(2)
		based.Apply(meta.Command{Op: meta.CreateVolume{ID: volumeID(7), SizeBytes: scstore.BlockSize, Base: volumeID(1), BasePosition: pos(0, 1)}})
		third := meta.NewGroup(3)
		third.Apply(meta.Command{Op: meta.RemoveDisk{Disk: diskB}})
		for _, s := range []*meta.State{third, meta.New(), meta.NewGroup(meta.GroupNamespace), based, clusterState(t)} {
			s.Apply(c)
			reopen(t, s)
		}
	})
}

func FuzzParseState(f *testing.F) {
	f.Add(meta.New().AppendTo(nil))
	s := meta.New()
	for _, c := range goldenCommands() {
		s.Apply(c)
	}
	f.Add(s.AppendTo(nil))
	f.Add(clusterState(f).AppendTo(nil))
	for _, name := range []string{"v1/state", "v1/state_empty"} {
		digits, err := os.ReadFile(filepath.Join("testdata", "golden", name+".hex"))
		if err != nil {
			f.Fatal(err)
		}
		b, err := hex.DecodeString(strings.ReplaceAll(string(digits), "\n", ""))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := meta.ParseState(b)
		if err != nil {
			return
		}
		if b[4] != 1 && !bytes.Equal(s.AppendTo(nil), b) {
			t.Fatal("another encoding")
		}
		reopen(t, s)
		for _, c := range goldenCommands() { // what was accepted can be used
			s.Apply(c)
		}
		for _, c := range clusterCommands() {
			s.Apply(c)
		}
		reopen(t, s)
	})
}

func FuzzParseResult(f *testing.F) {
	f.Add(goldenResult().AppendTo(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, rest, err := meta.ParseResult(b)
		if err != nil {
			return
		}
		if !bytes.Equal(append(r.AppendTo(nil), rest...), b) {
			t.Fatalf("%+v: another encoding", r)
		}
		_ = r.Err()
	})
}
