package block

import (
	"math/rand/v2"
	"path/filepath"
	"testing"

	"scstore"
	"scstore/fs/block/disk"
)

// benchStore opens a store in a real folder.
func benchStore(b *testing.B, sizeBytes int64) (*Store, *Table) {
	b.Helper()
	dir := b.TempDir()
	fs, err := disk.OpenDir(dir)
	if err != nil {
		b.Fatal(err)
	}
	s, err := Open(b.Context(), Options{FS: fs, IndexDir: filepath.Join(dir, "index")})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := s.Close(); err != nil {
			b.Error(err)
		}
	})
	t, err := s.Create(CreateOptions{ID: testID(1), SizeBytes: sizeBytes})
	if err != nil {
		b.Fatal(err)
	}
	return s, t
}

func BenchmarkStore_SequentialWrite1M(b *testing.B) {
	s, t := benchStore(b, 8<<30)
	p := make([]byte, 1<<20)
	rand.NewChaCha8([32]byte{1}).Read(p)
	b.SetBytes(int64(len(p)))
	i := uint64(0)
	for b.Loop() {
		if err := t.WriteBlocks(scstore.BlockIndex(i*256%(8<<30/scstore.BlockSize)), p); err != nil {
			b.Fatal(err)
		}
		if err := s.Publish(); err != nil {
			b.Fatal(err)
		}
		i++
	}
}

func BenchmarkStore_RandomRead4k(b *testing.B) {
	s, t := benchStore(b, 1<<30)
	p := make([]byte, 1<<20)
	for i := range uint64(1024) {
		if err := t.WriteBlocks(scstore.BlockIndex(i*256), p); err != nil {
			b.Fatal(err)
		}
	}
	rng := rand.New(rand.NewPCG(1, 2))
	one := make([]byte, scstore.BlockSize)
	for range 100_000 {
		if err := t.WriteBlocks(scstore.BlockIndex(rng.Uint64N(1<<18)), one); err != nil {
			b.Fatal(err)
		}
	}
	if err := s.Checkpoint(); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := t.ReadBlocks(scstore.BlockIndex(rng.Uint64N(1<<18)), one, nil, true); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkStore_RandomWrite4k(b *testing.B) {
	s, t := benchStore(b, 1<<30)
	rng := rand.New(rand.NewPCG(1, 2))
	one := make([]byte, scstore.BlockSize)
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		if err := t.WriteBlocks(scstore.BlockIndex(rng.Uint64N(1<<18)), one); err != nil {
			b.Fatal(err)
		}
		if n++; n%32 == 0 {
			if err := s.Publish(); err != nil {
				b.Fatal(err)
			}
		}
	}
}
