//go:build soak

package e2e_test

import (
	"bytes"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/pierrec/lz4/v4"

	"scstore"
	"scstore/propagate/codec"
)

// The disk that goes to another site: a file system with programs and libraries, and
// a later version of it.
const (
	wanDiskBytes  = 4 << 30
	wanDataBytes  = 1150 * mib // of files, which take an eighth more in it
	wanRewritten  = 58 * mib   // of it in the later version, and
	wanFileBlocks = 74         // blocks of a rewritten file, on average
	wanLogBytes   = 4 * mib    // that were appended to it
	wanSeed       = 41
	// wanUUID makes file systems of equal files alike.
	wanUUID = "5c5704e0-0000-4000-8000-000000000001"
)

// wanDisk is such a disk.
type wanDisk struct {
	v1, v2  string           // raw files
	data    []scstore.Extent // of v1 that is not zeros
	changed []scstore.Extent // where v2 is another
	// dataLZ4 and changedLZ4 are the sizes of those, compressed in runs as long as those on
	// the wire, in bytes.
	dataLZ4, changedLZ4 int64
}

// newWANDisk makes the disk in a folder, from this machine's programs.
func newWANDisk(t *testing.T, dir string) wanDisk {
	t.Helper()
	d := wanDisk{v1: filepath.Join(dir, "v1.raw"), v2: filepath.Join(dir, "v2.raw")}
	tree := filepath.Join(dir, "tree")
	copySome(t, "/usr", tree, wanDataBytes)
	tool(t, "mke2fs", "-q", "-F", "-t", "ext4", "-U", wanUUID, "-E", "hash_seed="+wanUUID, "-d", tree, d.v1, "4G")
	check(t, os.RemoveAll(tree))
	tool(t, "fallocate", "--dig-holes", d.v1)
	d.data = blocksWhere(t, d.v1, "", func(p, _ []byte) bool { return !isZero(p) })
	tool(t, "cp", "--sparse=always", d.v1, d.v2)
	d.rewrite(t)
	d.changed = blocksWhere(t, d.v1, d.v2, func(p, q []byte) bool { return !bytes.Equal(p, q) })
	d.dataLZ4, d.changedLZ4 = lz4Size(t, d.v1, d.data), lz4Size(t, d.v2, d.changed)
	return d
}

// copySome copies files below a folder, drawn at random, until they have so many bytes.
func copySome(t *testing.T, from, to string, want int64) {
	t.Helper()
	var files []string
	check(t, filepath.WalkDir(from, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.Type().IsRegular() {
			files = append(files, path)
		}
		return err
	}))
	rng := rand.New(rand.NewPCG(wanSeed, 1))
	rng.Shuffle(len(files), func(i, j int) { files[i], files[j] = files[j], files[i] })
	for _, path := range files {
		p, err := os.ReadFile(path)
		check(t, err)
		name := filepath.Join(to, path)
		check(t, os.MkdirAll(filepath.Dir(name), 0o755))
		check(t, os.WriteFile(name, p, 0o644))
		if want -= int64(len(p)); want <= 0 {
			return
		}
	}
	t.Logf("%s has %d MiB less than the disk is meant to hold", from, want/mib)
}

// rewrite makes v2 of a copy of v1: runs of data become other data of the same disk, as
// when programs are upgraded, and a log grows where nothing was.
func (d wanDisk) rewrite(t *testing.T) {
	t.Helper()
	from, err := os.Open(d.v1)
	check(t, err)
	defer func() { check(t, from.Close()) }()
	to, err := os.OpenFile(d.v2, os.O_WRONLY, 0)
	check(t, err)
	defer func() { check(t, to.Close()) }()
	rng := rand.New(rand.NewPCG(wanSeed, 2))
	for left := wanRewritten; left > 0; {
		old, other := someOf(rng, d.data), someOf(rng, d.data)
		n := min(1+rng.Uint64N(2*wanFileBlocks-1), old.Count, other.Count)
		p := make([]byte, n*scstore.BlockSize)
		_, err := from.ReadAt(p, other.First.Offset())
		check(t, err)
		_, err = to.WriteAt(p, old.First.Offset())
		check(t, err)
		left -= len(p)
	}
	var log []byte
	for len(log) < wanLogBytes {
		log = fmt.Appendf(log, "%10d web1 app[%d]: request %08x from 10.0.%d.%d took %d ms\n", len(log), 100+rng.IntN(900), rng.Uint32(), rng.IntN(256), rng.IntN(256), rng.IntN(500))
	}
	_, err = to.WriteAt(log[:wanLogBytes], wanDiskBytes-64*mib)
	check(t, err)
}

// someOf returns the rest of an extent, from a block drawn at random.
func someOf(rng *rand.Rand, list []scstore.Extent) scstore.Extent {
	at := rng.Uint64N(blockCount(list))
	for _, e := range list {
		if at < e.Count {
			return scstore.Extent{First: e.First + scstore.BlockIndex(at), Count: e.Count - at}
		}
		at -= e.Count
	}
	panic("not reached: the block is one of the list")
}

func blockCount(list []scstore.Extent) (n uint64) {
	for _, e := range list {
		n += e.Count
	}
	return n
}

// mibCount returns how many aligned MiB a list touches.
func mibCount(list []scstore.Extent) (n int) {
	const blocks = mib / scstore.BlockSize
	next := scstore.BlockIndex(0) // after those that are counted
	for _, e := range list {
		first := max(e.First/blocks, next)
		if last := (e.End() - 1) / blocks; last >= first {
			n += int(last - first + 1)
			next = last + 1
		}
	}
	return n
}

// blocksWhere reads a disk, and another one beside it unless that has no name, and
// returns the blocks of which is says so.
func blocksWhere(t *testing.T, path, other string, is func(p, q []byte) bool) (list []scstore.Extent) {
	t.Helper()
	f, err := os.Open(path)
	check(t, err)
	defer func() { check(t, f.Close()) }()
	g := f
	if other != "" {
		g, err = os.Open(other)
		check(t, err)
		defer func() { check(t, g.Close()) }()
	}
	p, q := make([]byte, mib), make([]byte, mib)
	for off := int64(0); off < wanDiskBytes; off += mib {
		_, err := f.ReadAt(p, off)
		check(t, err)
		if g != f {
			_, err = g.ReadAt(q, off)
			check(t, err)
		}
		for i := 0; i < mib; i += scstore.BlockSize {
			if !is(p[i:i+scstore.BlockSize], q[i:i+scstore.BlockSize]) {
				continue
			}
			b := scstore.BlockIndex((off + int64(i)) / scstore.BlockSize)
			if n := len(list); n > 0 && list[n-1].End() == b {
				list[n-1].Count++
			} else {
				list = append(list, scstore.Extent{First: b, Count: 1})
			}
		}
	}
	return list
}

var zeroMiB [mib]byte

func isZero(p []byte) bool { return bytes.Equal(p, zeroMiB[:len(p)]) }

// lz4Size returns how many bytes the blocks have in LZ4: in runs that end where those on
// the wire do, each as it is if that is smaller, zeros as nothing.
func lz4Size(t *testing.T, path string, list []scstore.Extent) (size int64) {
	t.Helper()
	f, err := os.Open(path)
	check(t, err)
	defer func() { check(t, f.Close()) }()
	var c lz4.Compressor
	p, out := make([]byte, codec.MaxRunBytes), make([]byte, codec.MaxRunBytes)
	for _, e := range list {
		for at := e.First; at < e.End(); {
			stop := min(e.End(), (at/codec.MaxRunBlocks+1)*codec.MaxRunBlocks)
			run := p[:(stop-at)*scstore.BlockSize]
			_, err := f.ReadAt(run, at.Offset())
			check(t, err)
			at = stop
			if isZero(run) {
				continue
			}
			n, err := c.CompressBlock(run, out[:len(run)-1])
			if err != nil || n == 0 {
				n = len(run) // it does not get smaller
			}
			size += int64(n)
		}
	}
	return size
}
