package block

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"maps"
	"os"
	"path/filepath"
	"testing"

	"scstore"
)

var rewrite = flag.Bool("rewrite", false, "rewrite the golden files")

var goldenStore = scstore.StoreID{0xA0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}

// goldenRecords is one record of every kind.
func goldenRecords() map[string]record {
	sums := []byte{1, 2, 3, 4, 5, 6, 7, 8}
	return map[string]record{
		"data":     {kind: recordData, gen: 7, table: 9, first: 1 << 20, count: 2, seq: 99, sums: sums},
		"kept":     {kind: recordKept, gen: 6, table: 9, first: 5, count: 2, seq: 50, sums: sums},
		"zero":     {kind: recordZero, gen: 7, table: 9, first: 16, count: 1 << 29, seq: 100},
		"discard":  {kind: recordDiscard, gen: 7, table: 9, first: 16, count: 3, seq: 101},
		"seal":     {kind: recordSeal, gen: 7, table: 9, seq: 102},
		"freeze":   {kind: recordFreeze, gen: 8, table: 9, seq: 103},
		"create":   {kind: recordCreate, table: 10, seq: 104, id: testID(77), sizeBytes: 20 << 30, base: 9, baseGen: headGen},
		"resize":   {kind: recordResize, gen: 1, table: 10, seq: 105, sizeBytes: 40 << 30},
		"delete":   {kind: recordDelete, table: 10, seq: 106},
		"map-page": {kind: recordMapPage, table: 3, first: 12, count: 2, seq: 107, sums: sums},
		"root":     {kind: recordRootPage, first: 0, count: 2, seq: 5, sums: sums},
	}
}

// goldenMarks is one record of every kind that version 2 of the store added.
func goldenMarks() map[string]record {
	a, b := mark{goldenTag(1), 6}, mark{goldenTag(2), 8}
	return map[string]record{
		"mark":     {kind: recordMark, gen: 8, table: 9, seq: 108, marks: &marking{mark: b}},
		"unmark":   {kind: recordUnmark, gen: 8, table: 9, seq: 109, marks: &marking{mark: mark{tag: goldenTag(1)}}},
		"advance":  {kind: recordAdvance, gen: 8, table: 9, seq: 110, marks: &marking{mark: b, from: a}},
		"rollback": {kind: recordRollback, gen: 9, table: 9, seq: 111, marks: &marking{keep: 6}},
		"remote":   {kind: recordRemote, gen: 7, table: 9, first: 16, count: 1 << 29, seq: 112},
	}
}

func goldenTag(n byte) scstore.Tag {
	return scstore.Tag{Kind: scstore.TagServed, ID: [16]byte{7: 3, 15: n}}
}

// allRecords is goldenRecords and goldenMarks.
func allRecords() map[string]record {
	all := goldenRecords()
	maps.Copy(all, goldenMarks())
	return all
}

func goldenRoot() *root {
	return &root{
		checkpoint: 12, incarnation: 3, clean: true, replay: replayPoint{44, 17, 1234, 0xDEADBEEF},
		nextTable: 11, nextRun: 8, nextSegment: 50,
		tables: []rootTable{
			{no: 9, id: testID(5), sizeBytes: 1 << 30, gen: 4, frozen: true},
			{no: 10, id: testID(6), sizeBytes: 2 << 30, quarantined: true, base: 9, baseGen: headGen},
		},
		runs:     []*run{{id: 7, entries: 300, pages: make([]pageRef, 3), places: []pageExtent{{0, 2, makeLoc(45, 2)}, {2, 1, makeLoc(46, 2)}}}},
		segments: []rootSegment{{44, 17, 12, streamLog, false}, {45, 9, 3, streamMap, true}},
	}
}

// goldenRootNow is goldenRoot with what version 1 of the body added.
func goldenRootNow() *root {
	r := goldenRoot()
	r.version = rootVersion
	r.tables = append(r.tables, rootTable{
		no: 11, id: testID(7), sizeBytes: 1 << 30, gen: 20, remote: 5,
		marks: []mark{{goldenTag(1), 3}, {goldenTag(2), 3}, {testTag(1), 9}}, dead: genRanges{{3, 5}, {9, 19}},
	})
	return r
}

// goldens is every format as version 1 wrote it, encoded.
func goldens() map[string][]byte {
	out := map[string][]byte{
		"segment-header": segmentHeader{slots: maxSlots, store: goldenStore, id: 44, incarnation: 3}.appendTo(nil)[:64],
		"superblock":     superblock{goldenStore, maxSlots, 3, 1}.encode()[:64],
		"root-body":      goldenRoot().encode(),
		"root-pages":     rootPages(goldenStore, goldenRoot().encode())[:64],
		"root-pointer":   rootPointer{12, []pageExtent{{0, 1, makeLoc(45, 9)}}}.encode(),
	}
	h := groupHeader{slot: 5, segment: 44, incarnation: 3, seq: 99, synced: 90, chain: 0xC0FFEE, revision: 2}
	for name, r := range goldenRecords() {
		out["record-"+name] = r.appendTo(nil)
	}
	for _, name := range []string{"data", "zero", "create"} {
		r := goldenRecords()[name]
		h.body = r.appendTo(h.body)
		h.records++
	}
	h.dataSlots = 2
	page := make([]byte, scstore.BlockSize)
	h.encode(goldenStore, page)
	out["group-header"] = page[:groupHeaderSize+len(h.body)]
	var b pageBuilder
	b.add(entry{9, 7, 1 << 20, 300, makeLoc(44, 6)})
	b.add(entry{9, 6, 1 << 20, 300, makeLoc(40, 6) | locKept})
	b.add(entry{10, 0, 0, maxEntryBlocks, locHole})
	out["map-page"] = b.finish(goldenStore, 7, 2, 1)[:pageHeaderSize+3*entrySize]
	return out
}

// goldens2 is what version 2 added or changed.
func goldens2() map[string][]byte {
	out := map[string][]byte{
		"superblock": superblock{goldenStore, maxSlots, 3, superVersion}.encode()[:64],
		"root-body":  goldenRootNow().encode(),
	}
	for name, r := range goldenMarks() {
		out["record-"+name] = r.appendTo(nil)
	}
	var b pageBuilder
	b.add(entry{9, 7, 1 << 20, 300, locRemote})
	out["map-page"] = b.finish(goldenStore, 7, 2, 0)[:pageHeaderSize+entrySize]
	return out
}

func TestFormat_Golden(t *testing.T) {
	compareGolden(t, filepath.Join("testdata", "golden", "v1"), goldens())
	compareGolden(t, filepath.Join("testdata", "golden", "v2"), goldens2())
}

func compareGolden(t *testing.T, dir string, goldens map[string][]byte) {
	t.Helper()
	for name, got := range goldens {
		file := filepath.Join(dir, name+".hex")
		text := []byte(hex.Dump(got))
		if *rewrite {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, text, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(text, want) {
			t.Errorf("%s changed: a store on disk could not be read any more\ngot\n%swant\n%s", name, text, want)
		}
	}
}

func TestFormat_RecordsComeBack(t *testing.T) {
	for name, r := range allRecords() {
		b := append(r.appendTo(nil), 0xEE)
		got, rest, err := parseRecord(b)
		if err != nil || len(rest) != 1 {
			t.Fatalf("%s: %v, %d bytes left", name, err, len(rest))
		}
		if !bytes.Equal(got.appendTo(nil), b[:len(b)-1]) {
			t.Errorf("%s: got %+v", name, got)
		}
		for cut := range len(b) - 1 {
			if _, _, err := parseRecord(b[:cut]); !errors.Is(err, scstore.ErrCorrupt) {
				t.Errorf("%s cut at %d: got %v, want ErrCorrupt", name, cut, err)
			}
		}
	}
	for _, r := range []*root{goldenRoot(), goldenRootNow()} {
		if got, err := parseRoot(r.encode()); err != nil || !bytes.Equal(got.encode(), r.encode()) {
			t.Errorf("root of version %d: %v, %+v", r.version, err, got)
		}
	}
	for _, version := range []uint16{1, superVersion} {
		b := superblock{goldenStore, maxSlots, 3, version}
		if got, err := parseSuperblock(b.encode()); err != nil || got != b {
			t.Errorf("superblock of version %d: %+v, %v", version, got, err)
		}
	}
}

func TestFormat_NewerVersionIsRefused(t *testing.T) {
	b := superblock{goldenStore, maxSlots, 3, superVersion + 1}.encode()
	if _, err := parseSuperblock(b); !errors.Is(err, scstore.ErrVersion) {
		t.Errorf("superblock of a newer version: got %v, want ErrVersion", err)
	}
	r := goldenRootNow()
	r.version++
	if _, err := parseRoot(r.encode()); !errors.Is(err, scstore.ErrVersion) {
		t.Errorf("checkpoint of a newer version: got %v, want ErrVersion", err)
	}
	r = goldenRootNow()
	r.version = 0
	if _, err := parseRoot(r.encode()); !errors.Is(err, scstore.ErrCorrupt) {
		t.Errorf("marks in a checkpoint of version 0: got %v, want ErrCorrupt", err)
	}
}

func TestOpen_RaisesTheVersionOfAnOldStore(t *testing.T) {
	s, tab, d, index := newMarked(t)
	writeVersion(t, tab, 3, 1)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	old, err := readSuperblock(d)
	if err != nil {
		t.Fatal(err)
	}
	old.version = 1
	if err := writeSuperblock(d, old); err != nil {
		t.Fatal(err)
	}
	_, tab = reopen(t, d, index)
	wantVersion(t, tab, 3, 1)
	if now, err := readSuperblock(d); err != nil || now.version != superVersion || now.id != old.id {
		t.Fatalf("superblock after the open: %+v, %v", now, err)
	}
}

func FuzzParseRecord(f *testing.F) {
	for _, r := range allRecords() {
		f.Add(r.appendTo(nil))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, rest, err := parseRecord(b)
		if err != nil {
			return
		}
		again := r.appendTo(nil)
		if len(again) != len(b)-len(rest) {
			t.Fatalf("%d bytes came back as %d", len(b)-len(rest), len(again))
		}
		if r2, _, err := parseRecord(again); err != nil || r2.kind != r.kind || r2.count != r.count || r2.first != r.first {
			t.Fatalf("%+v came back as %+v, %v", r, r2, err)
		}
	})
}

func FuzzParseGroupHeader(f *testing.F) {
	page := make([]byte, scstore.BlockSize)
	r := goldenRecords()["data"]
	h := groupHeader{slot: 5, segment: 44, seq: 9, records: 1, dataSlots: 2, body: r.appendTo(nil)}
	h.encode(goldenStore, page)
	f.Add(page, uint16(16))
	f.Fuzz(func(t *testing.T, b []byte, body uint16) {
		if len(b) >= scstore.BlockSize { // give it a good checksum: the fields are what is fuzzed
			b = bytes.Clone(b[:scstore.BlockSize])
			copy(b[4:], groupMagic)
			sum := pageSum(goldenStore, b[:groupCopySize])
			b[0], b[1], b[2], b[3] = byte(sum>>24), byte(sum>>16), byte(sum>>8), byte(sum)
		}
		h, _, err := parseGroupHeader(b, goldenStore)
		if err != nil {
			return
		}
		records, err := h.decode()
		if err == nil && len(records) != h.records {
			t.Fatalf("%d records of %d", len(records), h.records)
		}
	})
}

func FuzzParseRoot(f *testing.F) {
	f.Add(goldenRoot().encode())
	f.Add(goldenRootNow().encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		fixed := reseal(b)
		r, err := parseRoot(fixed)
		if err != nil {
			return
		}
		if again := r.encode(); len(again) != len(fixed) {
			t.Fatalf("%d bytes came back as %d", len(fixed), len(again))
		}
	})
}

func FuzzParseRootPointer(f *testing.F) {
	f.Add(rootPointer{12, []pageExtent{{0, 1, makeLoc(45, 9)}}}.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		fixed := reseal(b)
		if p, err := parseRootPointer(fixed); err == nil && !bytes.Equal(p.encode(), fixed) {
			t.Fatalf("%x came back as %x", fixed, p.encode())
		}
	})
}

func FuzzParsePages(f *testing.F) {
	for _, b := range [][]byte{
		segmentHeader{slots: maxSlots, store: goldenStore, id: 44}.appendTo(nil), superblock{goldenStore, maxSlots, 3, superVersion}.encode(),
		rootPages(goldenStore, goldenRoot().encode()), new(pageBuilder).finish(goldenStore, 1, 2, 0),
	} {
		f.Add(b)
	}
	f.Fuzz(func(_ *testing.T, b []byte) {
		if len(b) >= scstore.BlockSize {
			b = bytes.Clone(b)
			sum := pageSum(goldenStore, b[:scstore.BlockSize])
			b[0], b[1], b[2], b[3] = byte(sum>>24), byte(sum>>16), byte(sum>>8), byte(sum)
			page, err := parseMapPage(b[:scstore.BlockSize], goldenStore, 1, 2)
			for i := 0; err == nil && i < page.count(); i++ {
				_ = page.entry(i)
			}
			_, _ = parseSuperblock(b[:scstore.BlockSize])
		}
		_, _ = parseSegmentHeader(b, goldenStore)
		_, _ = parseRootPages(goldenStore, b)
	})
}

// reseal puts a good checksum at the end of b.
func reseal(b []byte) []byte {
	if len(b) < 4 {
		return b
	}
	out := bytes.Clone(b[:len(b)-4])
	return append(out, checksumOf(out)...)
}
