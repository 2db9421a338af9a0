package meta_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"os"
	"path/filepath"
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
func golden(t *testing.T, name string, b []byte) {
	t.Helper()
	path := filepath.Join("testdata", "golden", "v1", name+".hex")
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
		golden(t, name, b)
		got, rest, err := meta.ParseCommand(append(b, "rest"...))
		if err != nil || got != c || string(rest) != "rest" {
			t.Errorf("%s: parse: %+v, rest %q, %v", name, got, rest, err)
		}
	}
}

func TestGolden_State(t *testing.T) {
	golden(t, "state", goldenState(t).AppendTo(nil))
	golden(t, "state_empty", meta.New().AppendTo(nil))
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
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := meta.ParseState(b)
		if err != nil {
			return
		}
		if !bytes.Equal(s.AppendTo(nil), b) {
			t.Fatal("another encoding")
		}
		for _, c := range goldenCommands() { // what was accepted can be used
			s.Apply(c)
		}
		reopen(t, s)
	})
}
