package e2e_test

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"scstore"
)

func TestFull_ScatteredBlocksLeaveRoomForTheMap(t *testing.T) {
	dir := filepath.Join(smallDisk(t, "640M"), "store")
	s := serve(t, dir)
	run(t, s, "volume", "create", "disk", "--size", "4G")
	c := dial(t, s.URL("disk"))
	began := time.Now()
	lap := func(what string) {
		t.Logf("%s: %s", what, time.Since(began).Round(time.Millisecond))
		began = time.Now()
	}
	// Every second block, so that each has an entry of the map to itself.
	offset := func(n int) int64 { return int64(n) * 2 * scstore.BlockSize }
	limit := 4 << 30 / (2 * scstore.BlockSize)
	write := func(n int) error { return c.WriteAt(t.Context(), random(scstore.BlockSize, uint64(n)), offset(n), 0) }
	n := 0
	for ; n < limit; n++ {
		if err := write(n); errors.Is(err, scstore.ErrNoSpace) {
			break
		} else {
			check(t, err)
		}
	}
	if n < 50000 || n == limit {
		t.Fatalf("full after %d blocks", n)
	}
	check(t, c.Flush(t.Context()))
	lap(fmt.Sprintf("full after %d blocks", n))
	half := n / 2
	check(t, c.Trim(t.Context(), 0, offset(half), 0))
	lap("discarded")
	for i := range half / 2 {
		if err := write(i); err != nil {
			t.Fatalf("write block %d of %d discarded: %v", i, half, err)
		}
	}
	check(t, c.Flush(t.Context()))
	lap(fmt.Sprintf("%d blocks written again", half/2))
	check(t, s.Kill())
	s = serve(t, dir)
	lap("serving again")
	c = dial(t, s.URL("disk"))
	got, zeros := make([]byte, scstore.BlockSize), make([]byte, scstore.BlockSize)
	for i := range n {
		check(t, c.ReadAt(t.Context(), got, offset(i)))
		want := random(scstore.BlockSize, uint64(i))
		if i >= half/2 && i < half {
			want = zeros
		}
		if !bytes.Equal(got, want) {
			t.Fatalf("block %d differs from what was acknowledged", i)
		}
	}
	check(t, s.Stop())
}
