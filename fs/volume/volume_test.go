package volume_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"scstore"
	"scstore/fs/block"
	"scstore/fs/block/disk/crashdisk"
	"scstore/fs/volume"
)

// table gives a block table's views the type that volume asks for.
type table struct{ *block.Table }

func (t table) At(tag scstore.Tag) (volume.View, error) {
	pin, err := t.Table.At(tag)
	if err != nil {
		return nil, err
	}
	return pin, nil
}

func openStore(t *testing.T, d *crashdisk.Disk, index string) *block.Store {
	t.Helper()
	s, err := block.Open(t.Context(), block.Options{FS: d, IndexDir: index, SegmentSlots: 256, ReserveBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func openVolume(t *testing.T, tab *block.Table, fence scstore.Fence, head scstore.Position, base ...volume.Reader) *volume.Volume {
	t.Helper()
	v, err := volume.Open(volume.Options{ID: tab.ID(), Table: table{tab}, Base: base, Fence: fence, Head: head})
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
		m := &model{t, rng, openVolume(t, tab, 1, scstore.Position{}), make([]byte, size)}
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
		m = &model{t, rng, openVolume(t, tab2, 1, scstore.Position{}, tab), append(bytes.Clone(frozen), make([]byte, 1<<20)...)}
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
		m.v = openVolume(t, tab2, 1, scstore.Position{}, tab2.BaseView())
		base.v = openVolume(t, tab, 1, scstore.Position{})
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

// counting counts the blocks that are read of views.
type counting struct {
	table
	blocks *int
}

func (c counting) At(tag scstore.Tag) (volume.View, error) {
	v, err := c.table.At(tag)
	return countingView{v, c.blocks}, err
}

type countingView struct {
	volume.View
	blocks *int
}

func (c countingView) ReadBlocks(first scstore.BlockIndex, p []byte, dst []scstore.Piece, now bool) ([]scstore.Piece, bool, error) {
	*c.blocks += len(p) / scstore.BlockSize
	return c.View.ReadBlocks(first, p, dst, now)
}

func TestVolume_SealReadsWhatChangedAndNotTheMiBsAroundIt(t *testing.T) {
	s := openStore(t, crashdisk.New(crashdisk.Options{Seed: 1}), t.TempDir())
	defer s.Close()
	const size = 8 << 20
	tab, err := s.Create(block.CreateOptions{ID: id(1), SizeBytes: size})
	if err != nil {
		t.Fatal(err)
	}
	read := 0
	v, err := volume.Open(volume.Options{ID: tab.ID(), Table: counting{table{tab}, &read}, Fence: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	m := &model{t, rand.New(rand.NewPCG(1, 1)), v, make([]byte, size)}
	write := func(off, n int) {
		for i := range n {
			m.data[off+i] = byte(m.rng.Uint32() | 1)
		}
		if err := v.WriteAt(m.data[off:off+n], int64(off)); err != nil {
			t.Fatal(err)
		}
	}
	write(0, size)
	if _, err := v.Seal(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	read = 0
	for span := range size >> 20 {
		write(span<<20+7*scstore.BlockSize, scstore.BlockSize)
		write(span<<20+200*scstore.BlockSize, 3*scstore.BlockSize)
	}
	got, err := v.Seal(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if want := size >> 20 * 4; read != want {
		t.Errorf("%d blocks were read, want the %d that changed", read, want)
	}
	if want := rootOf(m.data, got.Extents); got.Root != want {
		t.Errorf("root %s, want %s", got.Root, want)
	}
}

// TestVolume_SealedDigestIsThatOfTheContent seals at random, some of it without success, and
// compares what is remembered with what every kept position holds.
func TestVolume_SealedDigestIsThatOfTheContent(t *testing.T) {
	d := crashdisk.New(crashdisk.Options{Seed: 1})
	s := openStore(t, d, t.TempDir())
	defer s.Close()
	const size = 8 << 20
	tab, err := s.Create(block.CreateOptions{ID: id(1), SizeBytes: size})
	if err != nil {
		t.Fatal(err)
	}
	broken := errors.New("broken")
	fails := &failing{table: table{tab}}
	start := scstore.Position{Fence: 3, Epoch: 10}
	v, err := volume.Open(volume.Options{ID: tab.ID(), Table: fails, Fence: 4, Head: start})
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	m := &model{t, rand.New(rand.NewPCG(6, 6)), v, make([]byte, size)}
	last := make([]scstore.Position, size>>20) // that changed each span
	content := map[scstore.Position][]byte{}
	hits, older := 0, 0 // of those, of a span that a later epoch changed
	for round := range 12 {
		fails.err = nil
		for range 1 + m.rng.IntN(3) {
			m.step()
		}
		if round%4 == 3 {
			fails.err = broken
		}
		got, err := v.Seal(t.Context(), nil)
		if !errors.Is(err, fails.err) {
			t.Fatal(err)
		}
		if err == nil {
			content[got.Position] = bytes.Clone(m.data)
			for _, e := range got.Extents {
				for b := e.First; b < e.End(); b++ {
					last[b/volume.SpanBlocks] = got.Position
				}
			}
		}
		for span := range uint64(size >> 20) {
			if _, ok := v.SealedDigest(span, start); ok {
				t.Fatalf("span %d: known before the first seal", span)
			}
			if _, ok := v.SealedDigest(span, scstore.Position{Fence: 4, Epoch: v.Head().Epoch + 1}); ok {
				t.Fatalf("span %d: known at a position that was not sealed", span)
			}
			for at, p := range content {
				sum, ok := v.SealedDigest(span, at)
				if !ok {
					if err == nil && last[span] == got.Position && at == got.Position {
						t.Fatalf("span %d is not known at %s, which changed it", span, at)
					}
					continue
				}
				if hits++; sum != volume.SpanDigest(p[span<<20:(span+1)<<20]) {
					t.Fatalf("round %d: span %d at %s: digest of something else", round, span, at)
				}
				if last[span].Compare(at) > 0 {
					older++
				}
			}
		}
	}
	if hits == older || older == 0 {
		t.Errorf("%d were remembered, %d of them from before the last change", hits, older)
	}
}

// failing is a table whose Sync fails, if err is set.
type failing struct {
	table
	err error
}

func (f *failing) Sync(ctx context.Context) error {
	if f.err != nil {
		return f.err
	}
	return f.table.Sync(ctx)
}

func TestVolume_SealNamesWhatChanged(t *testing.T) {
	s := openStore(t, crashdisk.New(crashdisk.Options{Seed: 1}), t.TempDir())
	defer s.Close()
	const size = 8 << 20
	tab, err := s.Create(block.CreateOptions{ID: id(1), SizeBytes: size})
	if err != nil {
		t.Fatal(err)
	}
	v := openVolume(t, tab, 4, scstore.Position{Fence: 3, Epoch: 10})
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
		if got.Parent != parent || got.Position != (scstore.Position{Fence: 4, Epoch: parent.Epoch + 1}) || v.Head() != got.Position {
			t.Fatalf("seal: got %s after %s", got.Position, got.Parent)
		}
		if err := v.Committed(got.Position); err != nil {
			t.Fatal(err)
		}
		if marks := tab.Marks(); !slices.Equal(marks, []scstore.Tag{got.Tag()}) {
			t.Fatalf("marks after the commit of %s: got %v", got.Position, marks)
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
	v := openVolume(t, tab, 2, scstore.Position{})
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

// TestVolume_SealNamesWhatWasWrittenBeforeAKill: what the dead process wrote since
// the last commit is in the next process's first manifest, exactly.
func TestVolume_SealNamesWhatWasWrittenBeforeAKill(t *testing.T) {
	d := crashdisk.New(crashdisk.Options{Seed: 1})
	s := openStore(t, d, t.TempDir())
	tab, err := s.Create(block.CreateOptions{ID: id(1), SizeBytes: 8 << 20})
	if err != nil {
		t.Fatal(err)
	}
	write := func(v *volume.Volume, first scstore.BlockIndex) {
		t.Helper()
		if err := errors.Join(v.WriteAt(bytes.Repeat([]byte{byte(first)}, 2*scstore.BlockSize), first.Offset()), v.Publish()); err != nil {
			t.Fatal(err)
		}
	}
	v := openVolume(t, tab, 1, scstore.Position{})
	write(v, 10)
	first, err := v.Seal(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	write(v, 20)
	lost, err := v.Seal(t.Context(), nil) // the process dies before its commit
	if err != nil {
		t.Fatal(err)
	}
	write(v, 30)
	if err := v.Discard(10*scstore.BlockSize, scstore.BlockSize); err != nil {
		t.Fatal(err)
	}
	if err := v.Publish(); err != nil {
		t.Fatal(err)
	}
	s2 := openStore(t, d.Kill(), t.TempDir())
	defer s2.Close()
	defer s.Close()
	if tab, err = s2.Table(id(1)); err != nil {
		t.Fatal(err)
	}
	v = openVolume(t, tab, 2, first.Position)
	write(v, 40)
	m, err := v.Seal(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if m.Parent != first.Position || m.Position != (scstore.Position{Fence: 2, Epoch: 2}) {
		t.Fatalf("seal: got %s after %s", m.Position, m.Parent)
	}
	want := []scstore.Extent{{First: 10, Count: 1}, {First: 20, Count: 2}, {First: 30, Count: 2}, {First: 40, Count: 2}}
	if !slices.Equal(m.Extents, want) {
		t.Fatalf("changed: got %v, want %v", m.Extents, want)
	}
	if err := v.Committed(m.Position); err != nil {
		t.Fatal(err)
	}
	if slices.Contains(tab.Marks(), lost.Tag()) {
		t.Fatalf("the mark of %s, which was never committed, is still there", lost.Position)
	}
}

// missing runs op and returns what it says is missing.
func missing(t *testing.T, what string, op func() error) *volume.MissingError {
	t.Helper()
	err := op()
	m, ok := errors.AsType[*volume.MissingError](err)
	if !ok || !errors.Is(err, scstore.ErrAbsent) {
		t.Fatalf("%s: got %v, want a MissingError", what, err)
	}
	return m
}

func TestVolume_MissingBlocksAreNamedAndFilled(t *testing.T) {
	s := openStore(t, crashdisk.New(crashdisk.Options{Seed: 1}), t.TempDir())
	defer s.Close()
	base, err := s.Create(block.CreateOptions{ID: id(1), SizeBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	at := scstore.PositionTag(scstore.TagSnapshot, scstore.Position{Fence: 1, Epoch: 1})
	if err := base.MarkRemote([]scstore.Extent{{First: 50, Count: 1}}, at); err != nil {
		t.Fatal(err)
	}
	tab, err := s.Create(block.CreateOptions{ID: id(2), SizeBytes: 1 << 20, Base: id(1), BaseMark: at})
	if err != nil {
		t.Fatal(err)
	}
	head := scstore.Position{Fence: 3, Epoch: 7}
	sealed := scstore.PositionTag(scstore.TagSealed, head)
	if err := tab.MarkRemote([]scstore.Extent{{First: 4, Count: 3}, {First: 9, Count: 1}}, sealed); err != nil {
		t.Fatal(err)
	}
	v := openVolume(t, tab, 4, head, tab.BaseView())
	p := make([]byte, 1<<20)
	m := missing(t, "read", func() error { _, err := v.ReadAt(p, 0, nil); return err })
	if m.Level != 0 || !slices.Equal(m.Extents, []scstore.Extent{{First: 4, Count: 3}, {First: 9, Count: 1}}) {
		t.Fatalf("read: missing %+v", m)
	}
	if _, ok, err := v.ReadNowAt(p, 0, nil); ok || err != nil {
		t.Fatalf("read now: got %v, %v: it would have to wait", ok, err)
	}
	m = missing(t, "ragged write", func() error { return v.WriteAt([]byte("x"), 5*scstore.BlockSize+1) })
	if m.Level != 0 || !slices.Equal(m.Extents, []scstore.Extent{{First: 5, Count: 1}}) {
		t.Fatalf("ragged write: missing %+v", m)
	}
	ranges, err := v.Status(0, 1<<20, nil)
	if err != nil || len(ranges) != 7 || ranges[1].State != scstore.RangeData || ranges[1].Offset != 4*scstore.BlockSize {
		t.Fatalf("status: %+v, %v: what is missing is data", ranges, err)
	}
	whole := bytes.Repeat([]byte{7}, scstore.BlockSize)
	if err := v.WriteAt(whole, 4*scstore.BlockSize); err != nil { // needs nothing of what was there
		t.Fatal(err)
	}
	if err := v.Discard(9*scstore.BlockSize, scstore.BlockSize); err != nil {
		t.Fatal(err)
	}
	m = missing(t, "seal", func() error { _, err := v.Seal(t.Context(), nil); return err })
	if m.Level != 0 || !slices.Equal(m.Extents, []scstore.Extent{{First: 5, Count: 2}}) {
		t.Fatalf("seal: missing %+v of a span that was written to", m)
	}
	if n, err := tab.Fill(sealed, 4, bytes.Repeat([]byte{8}, 3*scstore.BlockSize)); n != 3 || err != nil {
		t.Fatalf("fill: %d blocks, %v", n, err)
	}
	m = missing(t, "read of the base", func() error { _, err := v.ReadAt(p, 0, nil); return err })
	if m.Level != 1 || !slices.Equal(m.Extents, []scstore.Extent{{First: 50, Count: 1}}) {
		t.Fatalf("read of the base: missing %+v", m)
	}
	if n, err := base.Fill(at, 50, whole); n != 1 || err != nil {
		t.Fatalf("fill the base: %d blocks, %v", n, err)
	}
	if err := v.WriteAt([]byte("x"), 5*scstore.BlockSize+1); err != nil {
		t.Fatal(err)
	}
	want := make([]byte, 1<<20)
	copy(want[4*scstore.BlockSize:], whole)
	copy(want[5*scstore.BlockSize:], bytes.Repeat([]byte{8}, 2*scstore.BlockSize))
	want[5*scstore.BlockSize+1] = 'x'
	copy(want[50*scstore.BlockSize:], whole)
	if _, err := v.ReadAt(p, 0, nil); err != nil || !bytes.Equal(p, want) {
		t.Fatalf("read: %v, or the content differs", err)
	}
	got, err := v.Seal(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if got.Position != (scstore.Position{Fence: 4, Epoch: 8}) || !slices.Equal(got.Extents, []scstore.Extent{{First: 4, Count: 2}, {First: 9, Count: 1}}) {
		t.Fatalf("seal after one that failed: %s changed %v", got.Position, got.Extents)
	}
}
