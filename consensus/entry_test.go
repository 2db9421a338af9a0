package consensus

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"testing"

	"scstore"
	"scstore/consensus/meta"
)

var (
	testCluster = ClusterID{0: 0xc1, 15: 1}
	testMember  = member{cluster: testCluster, disk: DiskID{0: 0xd1, 15: 2}}
)

func testEntry() entry {
	return entry{group: 7, origin: origin{0: 0x0a}, sequence: 99, commands: testCommands()}
}

func testState() *meta.State {
	s := meta.New()
	for _, c := range testCommands() {
		s.Apply(c)
	}
	return s
}

func TestGolden_Cluster(t *testing.T) {
	golden(t, "v1/entry", testEntry().encode(testCluster))
	golden(t, "v2/group_snapshot", groupSnapshot(testCluster, 7, 1234, testState()))
	golden(t, "v1/member", testMember.encode())
}

func TestParseEntry_ReadsWhatWasWritten(t *testing.T) {
	want := testEntry()
	got, err := parseEntry(want.encode(testCluster), testCluster)
	if err != nil {
		t.Fatal(err)
	}
	if got.group != want.group || got.origin != want.origin || got.sequence != want.sequence || !slices.Equal(got.commands, want.commands) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestParseEntry_TellsNewerFromDamaged(t *testing.T) {
	if _, err := parseEntry(NewerEntry(testCluster, 7, testCommands()[0]), testCluster); !errors.Is(err, scstore.ErrVersion) {
		t.Errorf("newer: got %v, want ErrVersion", err)
	}
	good := testEntry().encode(testCluster)
	if _, err := parseEntry(good, ClusterID{9}); !errors.Is(err, scstore.ErrCorrupt) {
		t.Errorf("another cluster's: got %v, want ErrCorrupt", err)
	}
	for i := range good {
		b := slices.Clone(good)
		b[i] ^= 1
		if _, err := parseEntry(b, testCluster); !errors.Is(err, scstore.ErrCorrupt) {
			t.Errorf("bit of byte %d flipped: got %v, want ErrCorrupt", i, err)
		}
		if _, err := parseEntry(good[:i], testCluster); !errors.Is(err, scstore.ErrCorrupt) {
			t.Errorf("cut at %d: got %v, want ErrCorrupt", i, err)
		}
	}
}

func FuzzParseEntry(f *testing.F) {
	f.Add(testEntry().encode(testCluster))
	f.Add(NewerEntry(testCluster, 7, testCommands()[0]))
	f.Fuzz(func(t *testing.T, b []byte) {
		sealed := slices.Clone(b)
		if len(b) >= entryHeaderBytes {
			binary.BigEndian.PutUint32(sealed[40:], entryChecksum(b, testCluster))
		}
		for _, b := range [][]byte{b, sealed} { // what a stranger sends, and what a member might
			e, err := parseEntry(b, testCluster)
			if err == nil && !bytes.Equal(e.encode(testCluster), b) {
				t.Fatal("another encoding")
			}
		}
	})
}

func FuzzParseGroupSnapshot(f *testing.F) {
	f.Add(groupSnapshot(testCluster, 7, 1234, testState()))
	f.Add(groupSnapshot(testCluster, 1, 0, meta.New()))
	f.Fuzz(func(t *testing.T, b []byte) {
		sealed := slices.Clone(b)
		if len(b) >= groupSnapshotHeaderBytes {
			seed := scstore.StoreID(testCluster)
			binary.BigEndian.PutUint64(sealed[24:], uint64(len(b)-groupSnapshotHeaderBytes))
			binary.BigEndian.PutUint32(sealed[32:], checksum(seed, sealed[groupSnapshotHeaderBytes:]))
			binary.BigEndian.PutUint32(sealed[36:], checksum(seed, sealed[:36]))
		}
		for _, b := range [][]byte{b, sealed} {
			id, index, s, err := parseGroupSnapshot(b, testCluster)
			if err != nil {
				continue
			}
			again := groupSnapshot(testCluster, id, index, s)
			if b[groupSnapshotHeaderBytes+4] != 1 && !bytes.Equal(again, b) { // a state of version 1 is written as a newer one
				t.Fatal("another encoding")
			}
			if _, _, _, err := parseGroupSnapshot(again, testCluster); err != nil {
				t.Fatalf("what was written again: %v", err)
			}
		}
	})
}

func FuzzParseMember(f *testing.F) {
	f.Add(testMember.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parseMember(b)
		if err == nil && !bytes.Equal(m.encode(), b) {
			t.Fatal("another encoding")
		}
	})
}

func FuzzParseDiskID(f *testing.F) {
	f.Add(testMember.disk.String())
	f.Add("xyz")
	f.Fuzz(func(t *testing.T, text string) {
		d, err := ParseDiskID(text)
		if err != nil {
			return
		}
		if again, err := ParseDiskID(d.String()); err != nil || again != d {
			t.Fatalf("%q: %v, %v", text, again, err)
		}
	})
}
