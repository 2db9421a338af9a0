package consensus

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

var testStore = scstore.StoreID{0: 0x5c, 15: 1}

func testCommands() []meta.Command {
	long := strings.Repeat("s/", 200) + "s"
	return []meta.Command{
		{Op: meta.CreateVolume{ID: scstore.VolumeID{1}, Name: "prod/web1", SizeBytes: 1 << 30}},
		{ID: meta.CommandID{Client: meta.ClientID{2}}, Op: meta.OpenSession{}},
		{Op: meta.Rename{From: "prod/web1", To: long}},
	}
}

func testJournal() []byte {
	b := journalHeader(testStore, 41)
	for i, c := range testCommands() {
		b = appendCommand(b, testStore, 42+uint64(i), c.AppendTo(nil))
	}
	return append(b, make([]byte, 2*frameBytes)...)
}

func testSnapshot() []byte {
	s := meta.New()
	for _, c := range testCommands() {
		s.Apply(c)
	}
	return snapshotFile(testStore, s)
}

// golden compares b with a file of hexadecimal digits; name has its version.
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
		t.Errorf("%s differs; got\n%s", path, text.String())
	}
}

func TestGolden(t *testing.T) {
	golden(t, "v1/journal", testJournal())
	golden(t, "v2/snapshot", testSnapshot()) // a state of version 2 in a file of version 1
}

// TestParseSnapshot_ReadsWhatTheFirstReleaseWrote: the file holds a state of
// version 1.
func TestParseSnapshot_ReadsWhatTheFirstReleaseWrote(t *testing.T) {
	digits, err := os.ReadFile(filepath.Join("testdata", "golden", "v1", "snapshot.hex"))
	if err != nil {
		t.Fatal(err)
	}
	b, err := hex.DecodeString(strings.ReplaceAll(string(digits), "\n", ""))
	if err != nil {
		t.Fatal(err)
	}
	s, err := parseSnapshot(b, testStore)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(snapshotFile(testStore, s), testSnapshot()) {
		t.Errorf("it reads as another state: %+v", s.List(""))
	}
}

func TestParseJournal_ReadsWhatWasWritten(t *testing.T) {
	got, err := parseJournal(testJournal(), testStore)
	if err != nil {
		t.Fatal(err)
	}
	if got.base != 41 || got.torn || got.end != int64(len(testJournal())-2*frameBytes) || !slices.Equal(got.commands, testCommands()) {
		t.Errorf("got %+v", got)
	}
}

func TestParse_NewerVersionIsToldFromDamage(t *testing.T) {
	b := testJournal()
	f := b[frameBytes:][:frameBytes]
	f[4]++
	copy(f[20:24], zeroFrame[:])
	sum := checksum(testStore, f[:20], zeroFrame[:4], f[frameHeaderBytes:])
	f[20], f[21], f[22], f[23] = byte(sum>>24), byte(sum>>16), byte(sum>>8), byte(sum)
	if _, err := parseJournal(b, testStore); !errors.Is(err, scstore.ErrVersion) {
		t.Errorf("got %v, want ErrVersion", err)
	}
}

func FuzzParseJournal(f *testing.F) {
	f.Add(testJournal())
	f.Add(testJournal()[:3*frameBytes])
	f.Add(journalHeader(testStore, 0))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := parseJournal(b, testStore)
		if err != nil {
			return
		}
		again := journalHeader(testStore, c.base)
		for i, command := range c.commands {
			again = appendCommand(again, testStore, c.base+1+uint64(i), command.AppendTo(nil))
		}
		if !bytes.Equal(again, b[:c.end]) {
			t.Fatal("another encoding")
		}
	})
}

func FuzzParseFrame(f *testing.F) {
	f.Add(testJournal())
	f.Fuzz(func(t *testing.T, b []byte) {
		fr, rest, err := parseFrame(b, testStore)
		if err == nil && !bytes.Equal(append(fr.appendTo(nil, testStore), rest...), b) {
			t.Fatal("another encoding")
		}
	})
}

func FuzzParseSnapshot(f *testing.F) {
	f.Add(testSnapshot())
	f.Add(snapshotFile(testStore, meta.New()))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := parseSnapshot(b, testStore)
		if err != nil {
			return
		}
		again := snapshotFile(testStore, s)
		if b[snapshotHeaderBytes+4] != 1 && !bytes.Equal(again, b) {
			t.Fatal("another encoding")
		}
		if _, err := parseSnapshot(again, testStore); err != nil {
			t.Fatalf("what was written again: %v", err)
		}
	})
}
