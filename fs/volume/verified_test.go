package volume_test

import (
	"math/rand/v2"
	"testing"

	"scstore"
	"scstore/fs/block"
	"scstore/fs/block/disk/crashdisk"
	"scstore/fs/volume"
)

// TestVerified_IsThatOfTheContentAndReadsGroups takes a copy from one position to the next
// and compares the digests of the spans that change with what they hold, the last of which
// is not a whole one.
func TestVerified_IsThatOfTheContentAndReadsGroups(t *testing.T) {
	s := openStore(t, crashdisk.New(crashdisk.Options{Seed: 1}), t.TempDir())
	defer s.Close()
	const size, spanBytes = 7<<20 + 21*scstore.BlockSize, volume.SpanBlocks * scstore.BlockSize
	tab, err := s.Create(block.CreateOptions{ID: id(1), SizeBytes: size})
	if err != nil {
		t.Fatal(err)
	}
	v := openVolume(t, tab, 1, scstore.Position{})
	defer v.Close()
	m := &model{t, rand.New(rand.NewPCG(7, 7)), v, make([]byte, size)}
	read := 0
	digest := func(f *volume.Verified, of volume.Manifest, span uint64) {
		t.Helper()
		table, err := counting{table{tab}, &read}.At(of.Tag())
		if err != nil {
			t.Fatal(err)
		}
		defer table.Release()
		view, err := volume.Open(volume.Options{ID: tab.ID(), View: table})
		if err != nil {
			t.Fatal(err)
		}
		got, err := f.DigestSpan(view, span, of.Position, partsIn(span, of.Extents))
		if err != nil {
			t.Fatal(err)
		}
		if want := volume.SpanDigest(m.data[span*spanBytes : min(size, (span+1)*spanBytes)]); got != want {
			t.Fatalf("span %d at %s: digest of something else", span, of.Position)
		}
	}
	f := volume.NewVerified()
	var last volume.Manifest
	for range 40 {
		for range 1 + m.rng.IntN(3) {
			m.step()
		}
		if last, err = v.Seal(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		for span := range uint64((size + spanBytes - 1) / spanBytes) {
			if len(partsIn(span, last.Extents)) > 0 {
				digest(f, last, span)
			}
		}
	}

	digest(f, last, 3)
	one := m.data[3*spanBytes+37*scstore.BlockSize:][:scstore.BlockSize]
	one[0]++
	if err := v.WriteAt(one, 3*spanBytes+37*scstore.BlockSize); err != nil {
		t.Fatal(err)
	}
	if last, err = v.Seal(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		f      *volume.Verified
		blocks int
	}{
		{"what changed", f, 16},
		{"again", f, volume.SpanBlocks},
		{"another row", volume.NewVerified(), volume.SpanBlocks},
	} {
		read = 0
		if digest(c.f, last, 3); read != c.blocks {
			t.Errorf("%s: %d blocks were read, want %d", c.name, read, c.blocks)
		}
	}
}

// partsIn returns the parts of extents that lie in a span.
func partsIn(span uint64, extents []scstore.Extent) (parts []scstore.Extent) {
	for _, e := range extents {
		if e = e.Clamp(scstore.Extent{First: scstore.BlockIndex(span * volume.SpanBlocks), Count: volume.SpanBlocks}); e.Count > 0 {
			parts = append(parts, e)
		}
	}
	return parts
}
