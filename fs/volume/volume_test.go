package volume_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"math/rand/v2"
	"testing"

	"scstore"
	"scstore/fs/block"
	"scstore/fs/block/disk/crashdisk"
	"scstore/fs/volume"
)

// table gives a block table's pins the type that volume asks for.
type table struct{ *block.Table }

func (t table) Pin() (volume.View, error) { return t.Table.Pin() }

func openStore(t *testing.T, d *crashdisk.Disk, index string) *block.Store {
	t.Helper()
	s, err := block.Open(t.Context(), block.Options{FS: d, IndexDir: index, SegmentSlots: 256, ReserveBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func openVolume(t *testing.T, tab *block.Table, head scstore.Position, base ...volume.Reader) *volume.Volume {
	t.Helper()
	v, err := volume.Open(volume.Options{ID: tab.ID(), Table: table{tab}, Base: base, Head: head})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func id(n byte) scstore.VolumeID { return scstore.VolumeID{15: n} }

// model is a volume as a plain byte slice.
type model struct {
	t    *testing.T
	rng  *rand.Rand
	v    *volume.Volume
	data []byte
}

// step does one random operation on both and compares what they can tell.
func (m *model) step() {
	off := m.rng.Int64N(int64(len(m.data)))
	n := 1 + m.rng.Int64N(min(int64(len(m.data))-off, 1+m.rng.Int64N(100_000)))
	if m.rng.IntN(2) == 0 {
		off &^= scstore.BlockSize - 1
		n = min((n+scstore.BlockSize-1)&^(scstore.BlockSize-1), int64(len(m.data))-off)
	}
	part := m.data[off : off+n]
	var err error
	switch m.rng.IntN(10) {
	case 0:
		clear(part)
		err = m.v.Zero(off, n, m.rng.IntN(2) == 0)
	case 1:
		first, end := (off+scstore.BlockSize-1)/scstore.BlockSize, (off+n)/scstore.BlockSize
		if end > first {
			clear(m.data[first*scstore.BlockSize : end*scstore.BlockSize])
		}
		err = m.v.Discard(off, n)
	case 2:
		err = m.v.Flush(context.Background())
	case 3, 4, 5:
		m.compare(off, n)
	default:
		for i := range part {
			part[i] = byte(m.rng.Uint32() | 1)
		}
		err = m.v.WriteAt(part, off)
	}
	if err != nil {
		m.t.Fatal(err)
	}
}

// compare reads a range and its status.
func (m *model) compare(off, n int64) {
	m.t.Helper()
	got := bytes.Repeat([]byte{0xA5}, int(n))
	holes, err := m.v.ReadAt(got, off, nil)
	if err != nil {
		m.t.Fatal(err)
	}
	if !bytes.Equal(got, m.data[off:off+n]) {
		m.t.Fatalf("read %d+%d: content differs", off, n)
	}
	for _, h := range holes {
		if h.Offset < off || h.Offset+h.Length > off+n || !isZero(m.data[h.Offset:h.Offset+h.Length]) {
			m.t.Fatalf("read %d+%d: hole %+v is not one", off, n, h)
		}
	}
	ranges, err := m.v.Status(off, n, nil)
	if err != nil {
		m.t.Fatal(err)
	}
	at := off
	for _, r := range ranges {
		if r.Offset != at || r.Length <= 0 || r.State == scstore.RangeHole && !isZero(m.data[r.Offset:r.Offset+r.Length]) {
			m.t.Fatalf("status %d+%d: %+v at %d", off, n, r, at)
		}
		at += r.Length
	}
	if at != off+n {
		m.t.Fatalf("status %d+%d: ends at %d", off, n, at)
	}
}

func isZero(p []byte) bool { return len(bytes.Trim(p, "\x00")) == 0 }

func TestVolume_BehavesAsBytesDo(t *testing.T) {
	for seed := range uint64(4) {
		d, index := crashdisk.New(crashdisk.Options{Seed: seed}), t.TempDir()
		s := openStore(t, d, index)
		rng := rand.New(rand.NewPCG(seed, 7))
		const size = 3<<20 + 5*scstore.BlockSize
		tab, err := s.Create(block.CreateOptions{ID: id(1), SizeBytes: size})
		if err != nil {
			t.Fatal(err)
		}
		m := &model{t, rng, openVolume(t, tab, scstore.Position{Fence: 1}), make([]byte, size)}
		for range 400 {
			m.step()
		}
		frozen := bytes.Clone(m.data)
		if err := tab.Freeze(); err != nil {
			t.Fatal(err)
		}
		tab2, err := s.Create(block.CreateOptions{ID: id(2), SizeBytes: size + 1<<20, Base: id(1)})
		if err != nil {
			t.Fatal(err)
		}
		base := &model{t, rng, m.v, frozen}
		m = &model{t, rng, openVolume(t, tab2, scstore.Position{Fence: 1}, tab), append(bytes.Clone(frozen), make([]byte, 1<<20)...)}
		for range 300 {
			m.step()
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = openStore(t, d, index)
		tab, _ = s.Table(id(1))
		if tab2, err = s.Table(id(2)); err != nil {
			t.Fatal(err)
		}
		m.v = openVolume(t, tab2, scstore.Position{Fence: 1}, tab2.Base())
		base.v = openVolume(t, tab, scstore.Position{Fence: 1})
		for range 100 {
			m.step()
		}
		m.compare(0, int64(len(m.data)))
		base.compare(0, int64(len(base.data)))
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestVolume_SealNamesWhatChanged(t *testing.T) {
	s := openStore(t, crashdisk.New(crashdisk.Options{Seed: 1}), t.TempDir())
	defer s.Close()
	const size = 8 << 20
	tab, err := s.Create(block.CreateOptions{ID: id(1), SizeBytes: size})
	if err != nil {
		t.Fatal(err)
	}
	v := openVolume(t, tab, scstore.Position{Fence: 3, Epoch: 10})
	rng := rand.New(rand.NewPCG(5, 5))
	before := make([]byte, size)
	m := &model{t, rng, v, make([]byte, size)}
	parent := scstore.Position{Fence: 3, Epoch: 10}
	for range 6 {
		for range 15 {
			m.step()
		}
		got, err := v.Seal(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		if got.Parent != parent || got.Position != (scstore.Position{Fence: 3, Epoch: parent.Epoch + 1}) || v.Head() != got.Position {
			t.Fatalf("seal: got %s after %s", got.Position, got.Parent)
		}
		for b := int64(0); b < size; b += scstore.BlockSize {
			named := false
			for _, e := range got.Extents {
				named = named || e.Clamp(scstore.Extent{First: scstore.BlockIndex(b / scstore.BlockSize), Count: 1}).Count > 0
			}
			if !named && !bytes.Equal(before[b:b+scstore.BlockSize], m.data[b:b+scstore.BlockSize]) {
				t.Fatalf("seal %s: block %d changed and is not named", got.Position, b/scstore.BlockSize)
			}
		}
		if want := rootOf(m.data, got.Extents); got.Root != want {
			t.Fatalf("seal %s: root %s, want %s", got.Position, got.Root, want)
		}
		copy(before, m.data)
		parent = got.Position
	}
}

// rootOf computes the manifest's root the plain way.
func rootOf(data []byte, extents []scstore.Extent) scstore.Digest {
	in := []byte{3}
	for i := 7; i >= 0; i-- {
		in = append(in, byte(len(data)>>(8*i)))
	}
	for span := 0; span*volume.SpanBlocks*scstore.BlockSize < len(data); span++ {
		part := data[span*volume.SpanBlocks*scstore.BlockSize:][:volume.SpanBlocks*scstore.BlockSize]
		touched := false
		for _, e := range extents {
			touched = touched || e.Clamp(scstore.Extent{First: scstore.BlockIndex(span * volume.SpanBlocks), Count: volume.SpanBlocks}).Count > 0
		}
		if !touched || isZero(part) {
			continue
		}
		d := plainTree(part)
		in = append(in, 0, 0, 0, 0, 0, 0, 0, byte(span))
		in = append(in, d[:]...)
	}
	return sha256.Sum256(in)
}

func plainTree(p []byte) [32]byte {
	if len(p) == scstore.BlockSize {
		if isZero(p) {
			return sha256.Sum256([]byte{2})
		}
		return sha256.Sum256(append([]byte{0}, p...))
	}
	l, r := plainTree(p[:len(p)/2]), plainTree(p[len(p)/2:])
	return sha256.Sum256(append(append([]byte{1}, l[:]...), r[:]...))
}

func TestVolume_WriteAfterFenceIsRefused(t *testing.T) {
	s := openStore(t, crashdisk.New(crashdisk.Options{Seed: 1}), t.TempDir())
	defer s.Close()
	tab, err := s.Create(block.CreateOptions{ID: id(1), SizeBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	v := openVolume(t, tab, scstore.Position{Fence: 2})
	if err := v.WriteAt([]byte("kept"), 10); err != nil {
		t.Fatal(err)
	}
	v.Revoke(1) // an old grant changes nothing
	if err := v.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	v.Revoke(3)
	for name, op := range map[string]func() error{
		"write":   func() error { return v.WriteAt([]byte("lost"), 10) },
		"zero":    func() error { return v.Zero(0, 4096, false) },
		"discard": func() error { return v.Discard(0, 4096) },
		"flush":   func() error { return v.Flush(t.Context()) },
		"seal":    func() error { _, err := v.Seal(t.Context(), nil); return err },
	} {
		if err := op(); !errors.Is(err, scstore.ErrFenced) {
			t.Errorf("%s after a higher fence: got %v, want ErrFenced", name, err)
		}
	}
	got := make([]byte, 4)
	if _, err := v.ReadAt(got, 10, nil); err != nil || string(got) != "kept" {
		t.Fatalf("read after a higher fence: got %q, %v", got, err)
	}
}
