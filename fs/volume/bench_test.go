package volume_test

import (
	"math/rand/v2"
	"path/filepath"
	"testing"

	"scstore"
	"scstore/fs/block"
	"scstore/fs/block/disk"
	"scstore/fs/volume"
)

// BenchmarkSeal_ScatteredBlocks seals epochs of 700 scattered blocks each, what a database
// writes in a second or less.
func BenchmarkSeal_ScatteredBlocks(b *testing.B) {
	const volumeBlocks, epochBlocks = 1 << 18, 700
	dir := b.TempDir()
	fs, err := disk.OpenDir(dir)
	check(b, err)
	s, err := block.Open(b.Context(), block.Options{FS: fs, IndexDir: filepath.Join(dir, "index")})
	check(b, err)
	b.Cleanup(func() { check(b, s.Close()) })
	tab, err := s.Create(block.CreateOptions{ID: id(1), SizeBytes: volumeBlocks * scstore.BlockSize})
	check(b, err)
	v, err := volume.Open(volume.Options{ID: tab.ID(), Table: table{tab}, Fence: 1})
	check(b, err)
	rng := rand.NewChaCha8([32]byte{1})
	span := make([]byte, volume.SpanBlocks*scstore.BlockSize)
	for off := int64(0); off < volumeBlocks*scstore.BlockSize; off += int64(len(span)) {
		rng.Read(span)
		check(b, v.WriteAt(span, off))
	}
	seal := func() {
		m, err := v.Seal(b.Context(), nil)
		check(b, err)
		check(b, v.Committed(m.Position))
	}
	seal()
	one := span[:scstore.BlockSize]
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		for range epochBlocks {
			rng.Read(one)
			check(b, v.WriteAt(one, int64(rng.Uint64()%volumeBlocks)*scstore.BlockSize))
		}
		b.StartTimer()
		seal()
	}
	b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N)/epochBlocks, "µs/block")
}

func check(b *testing.B, err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}
