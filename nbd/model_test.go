package nbd_test

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"scstore"
	"scstore/nbd"
	"scstore/nbd/nbdtest"
)

// seed is drawn anew for each run, printed when the test fails, and can be given
// in SCSTORE_SEED.
func seed(t testing.TB) uint64 {
	s := rand.Uint64()
	if v := os.Getenv("SCSTORE_SEED"); v != "" {
		var err error
		if s, err = strconv.ParseUint(v, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("reproduce with SCSTORE_SEED=%d", s)
	return s
}

// actor works on its own quarter of the device over its own connection, with many
// requests in flight, and keeps a copy of what the bytes must be.
type actor struct {
	c     *nbd.Client
	rng   *rand.Rand
	base  int64
	model []byte
	ops   int
}

// pick draws a range, of every alignment and mostly short.
func (a *actor) pick() (off, n int) {
	switch a.rng.IntN(4) {
	case 0:
		off, n = a.rng.IntN(len(a.model)/4096)*4096, 4096*(1+a.rng.IntN(8))
	case 1:
		off, n = a.rng.IntN(len(a.model)), 1+a.rng.IntN(600*kib)
	default:
		off, n = a.rng.IntN(len(a.model)), 1+a.rng.IntN(9000)
	}
	return off, min(n, len(a.model)-off)
}

// step submits a batch of requests that do not overlap, waits, and checks.
func (a *actor) step() error {
	var rs []*nbd.Request
	type check struct {
		r   *nbd.Request
		off int
	}
	var checks []check
	done := make(chan struct{}, 64)
	var used [][2]int
	for range 1 + a.rng.IntN(24) {
		off, n := a.pick()
		overlaps := false
		for _, u := range used {
			overlaps = overlaps || (off < u[1] && u[0] < off+n)
		}
		if overlaps {
			continue
		}
		used = append(used, [2]int{off, off + n})
		r := &nbd.Request{Offset: a.base + int64(off), Length: uint32(n), Done: func(*nbd.Request) { done <- struct{}{} }}
		r.Flags = nbd.CommandFlags(a.rng.IntN(8) / 7) // FUA now and then
		switch a.rng.IntN(8) {
		case 0, 1, 2:
			r.Cmd, r.Data = nbd.CmdWrite, random(n, a.rng.Uint64())
			copy(a.model[off:], r.Data)
		case 3:
			r.Cmd = nbd.CmdWriteZeroes
			clear(a.model[off : off+n])
		case 4:
			r.Cmd = nbd.CmdTrim // whole blocks become holes, the rest stays
			if first, end := (off+4095)/4096*4096, (off+n)/4096*4096; end > first {
				clear(a.model[first:end])
			}
		case 5:
			r.Cmd = nbd.CmdFlush
			r.Offset, r.Length = 0, 0
		default:
			r.Cmd, r.Data = nbd.CmdRead, random(n, 1)
			checks = append(checks, check{r, off})
		}
		rs = append(rs, r)
	}
	if err := a.c.Submit(rs...); err != nil {
		return err
	}
	for range rs {
		<-done
	}
	for _, r := range rs {
		if r.Err != nil {
			return fmt.Errorf("%s %d at %d: %w", r.Cmd, r.Length, r.Offset, r.Err)
		}
	}
	for _, c := range checks {
		if want := a.model[c.off : c.off+len(c.r.Data)]; !bytes.Equal(c.r.Data, want) {
			return fmt.Errorf("read of %d at %d differs from the model", len(c.r.Data), c.off)
		}
		for _, h := range c.r.Ranges {
			if at := int(h.Offset - a.base); len(bytes.Trim(a.model[at:at+int(h.Length)], "\x00")) != 0 {
				return fmt.Errorf("hole %+v where the model has data", h)
			}
		}
	}
	a.ops += len(rs)
	return nil
}

func TestServer_RandomOperationsOverFourConnectionsMatchAModel(t *testing.T) {
	s := seed(t)
	slow := rand.New(rand.NewPCG(s, 0))
	var mu sync.Mutex
	const part = 4 * mib
	e, _ := memory(t, 4*part, nbdtest.Hooks{ReadNow: func(int64, int) bool {
		mu.Lock()
		defer mu.Unlock()
		return slow.IntN(3) > 0
	}})
	var wg sync.WaitGroup
	actors := make([]*actor, 4)
	deadline := time.Now().Add(4 * time.Second)
	for i := range actors {
		a := &actor{c: e.dial(t, "disk", nbd.DialOptions{SimpleReplies: i == 3, MaxInFlight: 8 << i}), rng: rand.New(rand.NewPCG(s, uint64(i+1))), base: int64(i) * part, model: make([]byte, part)}
		actors[i] = a
		wg.Go(func() {
			for time.Now().Before(deadline) {
				if err := a.step(); err != nil {
					t.Errorf("actor %d after %d operations: %v", i, a.ops, err)
					return
				}
			}
		})
	}
	wg.Wait()
	reader := e.dial(t, "disk", nbd.DialOptions{})
	for i, a := range actors {
		if a.ops == 0 {
			t.Errorf("actor %d did nothing", i)
		}
		got := make([]byte, part)
		if err := reader.ReadAt(t.Context(), got, a.base); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, a.model) {
			t.Errorf("part %d differs from the model", i)
		}
		status, err := reader.BlockStatus(t.Context(), a.base, part, nil)
		if err != nil {
			t.Fatal(err)
		}
		end := a.base
		for _, r := range status {
			if r.Offset != end {
				t.Fatalf("status range %+v, want one at %d", r, end)
			}
			end += r.Length
			if at := r.Offset - a.base; r.State == scstore.RangeHole && len(bytes.Trim(a.model[at:at+r.Length], "\x00")) != 0 {
				t.Errorf("part %d: hole %+v where the model has data", i, r)
			}
		}
		if end != a.base+part {
			t.Errorf("status ends at %d, want %d", end, a.base+part)
		}
	}
}

// TestServer_SurvivesRandomBytes sends garbage, and valid beginnings that turn
// into garbage, and wants the server to serve others as before.
func TestServer_SurvivesRandomBytes(t *testing.T) {
	s := seed(t)
	e, _ := memory(t, mib, nbdtest.Hooks{ReadNow: func(off int64, _ int) bool { return off%3 != 0 }})
	var wg sync.WaitGroup
	for w := range 4 {
		rng := rand.New(rand.NewPCG(s, uint64(w)))
		wg.Go(func() {
			for range 150 {
				abuse(t, e, rng)
			}
		})
	}
	wg.Wait()
	c := e.dial(t, "disk", nbd.DialOptions{})
	if err := c.WriteAt(t.Context(), []byte("alive"), 0, nbd.CmdFlagFUA); err != nil {
		t.Error(err)
	}
}

func abuse(t testing.TB, e *env, rng *rand.Rand) {
	nc, err := net.Dial("unix", e.socket)
	if err != nil {
		t.Error(err)
		return
	}
	defer func() { _ = nc.Close() }()
	_ = nc.SetDeadline(time.Now().Add(2 * time.Second))
	go func() { _, _ = io.Copy(io.Discard, nc) }()
	var b []byte
	switch rng.IntN(4) {
	case 0:
		b = random(rng.IntN(500), rng.Uint64())
	case 1: // options of random data
		b = []byte{0, 0, 0, 3}
		for range rng.IntN(20) {
			data := random(rng.IntN(60), rng.Uint64())
			for i := range data {
				data[i] &= byte(rng.Uint32()) & 0x0f
			}
			b = append(b, optionBytes(uint32(rng.IntN(12)), data)...)
		}
	default: // requests of random fields
		b = []byte{0, 0, 0, 3}
		b = append(b, optionBytes(tStructured, nil)...)
		b = append(b, optionBytes(tSetMeta, metaData("disk", "base:allocation"))...)
		b = append(b, optionBytes(tGo, infoData("disk", 0, 1, 2, 3))...)
		for range rng.IntN(60) {
			length := rng.Uint32() >> rng.IntN(32)
			off := rng.Uint64() >> rng.IntN(64)
			cmd := uint16(rng.IntN(9))
			b = append(b, requestBytes(uint16(rng.IntN(32)&rng.IntN(32)), cmd, rng.Uint64(), off, length)...)
			if cmd == tWrite {
				b = append(b, make([]byte, min(length, 1<<18))...)
			}
		}
	}
	_, _ = nc.Write(b)
	if rng.IntN(2) == 0 {
		time.Sleep(time.Duration(rng.IntN(3)) * time.Millisecond)
	}
}

func TestMemDevice_PassesTheDeviceSuite(t *testing.T) {
	nbdtest.TestDevice(t, func(_ testing.TB, sizeBytes int64) nbdtest.Device {
		return nbdtest.NewMemDevice(sizeBytes, false, nbdtest.Hooks{})
	})
	var _ nbdtest.Device = nbd.Device(nil) // the same interface
}
