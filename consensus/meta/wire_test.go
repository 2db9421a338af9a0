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

func TestGolden_State(t *testing.T) {
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
	good := goldenState(t).AppendTo(nil)
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
	for _, c := range goldenCommands() {
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
		s := meta.New()
		if r := s.Apply(c); r.Code == meta.CodeOK {
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
	for _, name := range []string{"v1/state", "v1/state_empty", "v2/state"} {
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
		reopen(t, s)
	})
}
