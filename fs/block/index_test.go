package block

import (
	"os"
	"path/filepath"
	"testing"
)

// What a process with larger tables left when it was killed is read.
func TestIndex_OpensWhatAnEarlierReleaseLeft(t *testing.T) {
	old, dir := t.TempDir(), filepath.Join(t.TempDir(), "index")
	x, err := openIndexWith(old, maxMemtableBytes)
	if err != nil {
		t.Fatal(err)
	}
	p := rootPointer{places: make([]pageExtent, 3000)} // 60 KiB
	for p.checkpoint = range uint64(50) {
		if err := x.commit(p); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.CopyFS(dir, os.DirFS(old)); err != nil { // as it is when the process is killed
		t.Fatal(err)
	}
	if err := x.close(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		x, err := openIndex(dir)
		if err != nil {
			t.Fatal(err)
		}
		got, err := x.root()
		if err != nil || got.checkpoint != p.checkpoint {
			t.Errorf("checkpoint %d, %v; want %d", got.checkpoint, err, p.checkpoint)
		}
		if err := x.close(); err != nil {
			t.Fatal(err)
		}
	}
	if most, err := memtableBytes(dir); err != nil || most != indexMemtableBytes {
		t.Errorf("the tables stay at %d bytes, %v", most, err)
	}
}
