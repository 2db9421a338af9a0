package wire_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"scstore"
	"scstore/propagate/codec"
	"scstore/propagate/wire"
)

var rewrite = flag.Bool("rewrite", false, "rewrite the golden files")

func id(n byte) (v scstore.VolumeID) {
	for i := range v {
		v[i] = n + byte(i)
	}
	return v
}

func digest(n byte) (d scstore.Digest) {
	for i := range d {
		d[i] = n ^ byte(i)
	}
	return d
}

func pos(fence scstore.Fence, epoch scstore.Epoch) scstore.Position {
	return scstore.Position{Fence: fence, Epoch: epoch}
}

func extents(pairs ...uint64) (out []scstore.Extent) {
	for i := 0; i < len(pairs); i += 2 {
		out = append(out, scstore.Extent{First: scstore.BlockIndex(pairs[i]), Count: pairs[i+1]})
	}
	return out
}

// message is one frame, how it is made and how its body is read.
type message struct {
	kind  wire.Kind
	value any
	frame []byte
	parse func([]byte) (any, error)
}

func parser[T any](f func([]byte) (T, error)) func([]byte) (any, error) {
	return func(b []byte) (any, error) { return f(b) }
}

func messages() map[string]message {
	request := wire.ManifestRequest{Volume: id(1), From: pos(2, 3), To: pos(4, 5), Window: scstore.Extent{First: 1 << 24, Count: wire.MaxWindowBlocks}}
	manifest := wire.Manifest{
		Volume: id(1), From: pos(2, 3), To: pos(4, 5), Window: scstore.Extent{Count: 1 << 20},
		SizeBytes: 4 << 30, Extents: 3, Blocks: 700, Root: digest(9),
	}
	list := extents(0, 1, 5, 300, 1<<33, 399)
	spans := wire.Spans{First: 77, Digests: []scstore.Digest{digest(1), digest(2)}}
	blocks := wire.BlocksRequest{Volume: id(3), Position: pos(4, 5), Base: pos(2, 3), Extents: extents(7, 1, 100, 16)}
	run := wire.Run{First: 100, Blocks: 2, Codec: codec.DeltaLZ4, BaseSum: 0x0102030405060708, Payload: []byte("payload")}
	end := wire.End{Blocks: 17, Bytes: 12345}
	refusal := wire.Refusal{Code: wire.RefusedPosition, Text: "position 4.5 is not here"}
	return map[string]message{
		"manifest_request": {wire.KindManifestRequest, request, request.AppendTo(nil), parser(wire.ParseManifestRequest)},
		"manifest":         {wire.KindManifest, manifest, manifest.AppendTo(nil), parser(wire.ParseManifest)},
		"extents":          {wire.KindExtents, list, wire.AppendExtents(nil, wire.KindExtents, list), parser(wire.ParseExtents)},
		"absent":           {wire.KindAbsent, list, wire.AppendExtents(nil, wire.KindAbsent, list), parser(wire.ParseExtents)},
		"spans":            {wire.KindSpans, spans, spans.AppendTo(nil), parser(wire.ParseSpans)},
		"blocks_request":   {wire.KindBlocksRequest, blocks, blocks.AppendTo(nil), parser(wire.ParseBlocksRequest)},
		"run":              {wire.KindRun, run, run.AppendTo(nil), parser(wire.ParseRun)},
		"end":              {wire.KindEnd, end, end.AppendTo(nil), parser(wire.ParseEnd)},
		"refusal":          {wire.KindRefusal, refusal, refusal.AppendTo(nil), parser(wire.ParseRefusal)},
	}
}

func TestGolden(t *testing.T) {
	for name, m := range messages() {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join("testdata", "golden", "v1", name+".hex")
			if *rewrite {
				if err := os.WriteFile(file, []byte(hex.Dump(m.frame)), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if got := hex.Dump(m.frame); got != string(want) {
				t.Errorf("got\n%swant\n%s", got, want)
			}
			kind, body, err := wire.ReadFrame(bytes.NewReader(m.frame), nil)
			if err != nil || kind != m.kind {
				t.Fatalf("read frame: kind %d, %v", kind, err)
			}
			got, err := m.parse(body)
			if err != nil || !reflect.DeepEqual(got, m.value) {
				t.Errorf("parsed %+v, %v, want %+v", got, err, m.value)
			}
			for n := range body {
				if _, err := m.parse(body[:n]); name != "run" && name != "refusal" && name != "spans" && name != "extents" && name != "absent" && name != "blocks_request" && err == nil {
					t.Fatalf("%d of %d bytes parse", n, len(body))
				}
			}
		})
	}
}

func TestReadFrame_Bounds(t *testing.T) {
	if _, _, err := wire.ReadFrame(bytes.NewReader(nil), nil); !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %v", err)
	}
	whole := wire.End{Blocks: 1}.AppendTo(nil)
	for n := 1; n < len(whole); n++ {
		if _, _, err := wire.ReadFrame(bytes.NewReader(whole[:n]), nil); !errors.Is(err, scstore.ErrCorrupt) {
			t.Errorf("%d of %d bytes: %v", n, len(whole), err)
		}
	}
	long := []byte{byte(wire.KindRun), 0xff, 0xff, 0xff}
	if _, buf, err := wire.ReadFrame(bytes.NewReader(long), nil); !errors.Is(err, scstore.ErrCorrupt) || cap(buf) > 0 {
		t.Errorf("a body of 16 MiB: %v, %d bytes taken", err, cap(buf))
	}
}

func TestExtents_TheLongestFrameFits(t *testing.T) {
	var list []scstore.Extent
	step := uint64(scstore.MaxVolumeBytes / scstore.BlockSize / wire.MaxExtents)
	for i := range uint64(wire.MaxExtents) {
		list = append(list, scstore.Extent{First: scstore.BlockIndex(i * step), Count: step - 1})
	}
	frame := wire.AppendExtents(nil, wire.KindExtents, list)
	_, body, err := wire.ReadFrame(bytes.NewReader(frame), nil)
	if err != nil {
		t.Fatal(err)
	}
	got, err := wire.ParseExtents(body)
	if err != nil || !reflect.DeepEqual(got, list) {
		t.Fatalf("%d extents, %v", len(got), err)
	}
}

func TestParse_RefusesWhatNoSenderMeans(t *testing.T) {
	m := messages()
	change := func(name string, at int, b ...byte) func() error {
		return func() error {
			_, body, err := wire.ReadFrame(bytes.NewReader(m[name].frame), nil)
			if err != nil {
				return nil
			}
			copy(body[at:], b)
			_, err = m[name].parse(body)
			return err
		}
	}
	for name, f := range map[string]func() error{
		"window of no blocks":      change("manifest_request", 56, 0, 0, 0, 0, 0, 0, 0, 0),
		"window too large":         change("manifest_request", 56, 0, 0, 0, 0, 1, 0, 0, 1),
		"size not of blocks":       change("manifest", 64, 0, 0, 0, 1, 0, 0, 0, 1),
		"size of nothing":          change("manifest", 64, 0, 0, 0, 0, 0, 0, 0, 0),
		"more extents than blocks": change("manifest", 72, 0, 0, 0, 0, 0, 0, 8, 0),
		"run of no blocks":         change("run", 8, 0),
		"run of 17 blocks":         change("run", 8, 17),
		"run beyond any volume":    change("run", 0, 0xff),
		"gap of none":              func() error { _, err := wire.ParseExtents([]byte{0, 1, 0, 1}); return err },
		"empty extent":             func() error { _, err := wire.ParseExtents([]byte{0, 0}); return err },
		"long uvarint":             func() error { _, err := wire.ParseExtents([]byte{0x80, 0, 1}); return err },
		"request for nothing":      func() error { _, err := wire.ParseBlocksRequest(make([]byte, 48)); return err },
	} {
		if err := f(); !errors.Is(err, scstore.ErrCorrupt) {
			t.Errorf("%s: %v, want ErrCorrupt", name, err)
		}
	}
	codes := map[wire.RefusalCode]error{
		wire.RefusedPosition: scstore.ErrNotFound, wire.RefusedBusy: scstore.ErrBusy,
		wire.RefusedFenced: scstore.ErrFenced, wire.RefusedFailed: scstore.ErrCorrupt, 99: scstore.ErrVersion,
	}
	for code, want := range codes {
		if err := (wire.Refusal{Code: code, Text: "why"}).Err(); !errors.Is(err, want) {
			t.Errorf("refusal %d: %v, want %v", code, err, want)
		}
	}
}

// fuzzParse checks that what parses is encoded as it was.
func fuzzParse[T any](f *testing.F, name string, parse func([]byte) (T, error), encode func(T) []byte) {
	_, body, err := wire.ReadFrame(bytes.NewReader(messages()[name].frame), nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(body)
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > wire.MaxBodyBytes {
			return
		}
		v, err := parse(b)
		if err != nil {
			if !errors.Is(err, scstore.ErrCorrupt) {
				t.Fatalf("refused with %v", err)
			}
			return
		}
		if _, again, err := wire.ReadFrame(bytes.NewReader(encode(v)), nil); err != nil || !bytes.Equal(again, b) {
			t.Fatalf("%x is encoded as %x, %v", b, again, err)
		}
	})
}

func FuzzParseManifestRequest(f *testing.F) {
	fuzzParse(f, "manifest_request", wire.ParseManifestRequest, func(m wire.ManifestRequest) []byte { return m.AppendTo(nil) })
}

func FuzzParseManifest(f *testing.F) {
	fuzzParse(f, "manifest", wire.ParseManifest, func(m wire.Manifest) []byte { return m.AppendTo(nil) })
}

func FuzzParseExtents(f *testing.F) {
	fuzzParse(f, "extents", wire.ParseExtents, func(e []scstore.Extent) []byte { return wire.AppendExtents(nil, wire.KindExtents, e) })
}

func FuzzParseSpans(f *testing.F) {
	fuzzParse(f, "spans", wire.ParseSpans, func(m wire.Spans) []byte { return m.AppendTo(nil) })
}

func FuzzParseBlocksRequest(f *testing.F) {
	fuzzParse(f, "blocks_request", wire.ParseBlocksRequest, func(m wire.BlocksRequest) []byte { return m.AppendTo(nil) })
}

func FuzzParseRun(f *testing.F) {
	fuzzParse(f, "run", wire.ParseRun, func(m wire.Run) []byte { return m.AppendTo(nil) })
}

func FuzzParseEnd(f *testing.F) {
	fuzzParse(f, "end", wire.ParseEnd, func(m wire.End) []byte { return m.AppendTo(nil) })
}

func FuzzParseRefusal(f *testing.F) {
	fuzzParse(f, "refusal", wire.ParseRefusal, func(m wire.Refusal) []byte { return m.AppendTo(nil) })
}
