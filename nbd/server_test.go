package nbd_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"scstore"
	"scstore/nbd"
	"scstore/nbd/nbdtest"
)

func random(n int, seed uint64) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16), byte(seed >> 24)}).Read(b) // never fails
	return b
}

func TestClient_SeesWhatTheServerSays(t *testing.T) {
	e := serve(t, map[string]nbd.Device{
		"disk":  nbdtest.NewMemDevice(16*mib, false, nbdtest.Hooks{}),
		"a/b c": nbdtest.NewMemDevice(4096, true, nbdtest.Hooks{}),
	}, nbd.Options{})
	c := e.dial(t, "disk", nbd.DialOptions{})
	if got, want := c.Size(), int64(16*mib); got != want {
		t.Errorf("size %d, want %d", got, want)
	}
	if got, want := c.Flags(), nbd.TransmissionFlags(0xded); got != want {
		t.Errorf("flags %#x, want %#x", got, want)
	}
	if c.Name() != "disk" || c.Description() != "volume disk" || !c.HasStatus() {
		t.Errorf("name %q, description %q, status %v", c.Name(), c.Description(), c.HasStatus())
	}
	ro := e.dial(t, "a/b c", nbd.DialOptions{})
	if !ro.ReadOnly() || ro.Size() != 4096 {
		t.Errorf("read-only %v, size %d", ro.ReadOnly(), ro.Size())
	}
	wantIs(t, ro.WriteAt(t.Context(), make([]byte, 512), 0, 0), scstore.ErrReadOnly)
	wantIs(t, ro.Zero(t.Context(), 0, 512, 0), nbd.EPERM)
	wantIs(t, ro.Trim(t.Context(), 0, 512, 0), nbd.EPERM)

	_, err := nbd.Dial(t.Context(), e.url("none"), nbd.DialOptions{})
	wantIs(t, err, scstore.ErrNotFound)
	list, err := nbd.List(t.Context(), e.url(""), nbd.DialOptions{})
	if want := "[{a/b c volume a/b c} {disk volume disk}]"; err != nil || fmt.Sprint(list) != want {
		t.Errorf("list %v, %v, want %s", list, err, want)
	}
}

func TestServer_DataRoundTripsInEverySize(t *testing.T) {
	for _, simple := range []bool{false, true} {
		for _, slow := range []bool{false, true} {
			t.Run(fmt.Sprintf("simple=%v slow=%v", simple, slow), func(t *testing.T) {
				e, _ := memory(t, 80*mib, nbdtest.Hooks{ReadNow: func(int64, int) bool { return !slow }})
				c := e.dial(t, "disk", nbd.DialOptions{SimpleReplies: simple})
				for i, n := range []int{1, 511, 4096, 4097, 100 * kib, 128 * kib, 128*kib + 1, 256 * kib, mib, mib + 1, 5*mib + 77, 32 * mib, 33 * mib} {
					data, off := random(n, uint64(i)), int64(i*7919)
					if err := c.WriteAt(t.Context(), data, off, 0); err != nil {
						t.Fatal(err)
					}
					got := random(n, 99)
					if err := c.ReadAt(t.Context(), got, off); err != nil {
						t.Fatal(err)
					}
					if !bytes.Equal(got, data) {
						t.Fatalf("%d bytes at %d differ", n, off)
					}
				}
				if err := c.Flush(t.Context()); err != nil {
					t.Fatal(err)
				}
			})
		}
	}
}

func TestServer_HolesComeAsHolesAndReadAsZeroes(t *testing.T) {
	e, _ := memory(t, 4*mib, nbdtest.Hooks{})
	c := e.dial(t, "disk", nbd.DialOptions{})
	model := make([]byte, 4*mib)
	put := func(off, n int) {
		copy(model[off:], random(n, uint64(off)))
		if err := c.WriteAt(t.Context(), model[off:off+n], int64(off), 0); err != nil {
			t.Fatal(err)
		}
	}
	put(4096, 4096)
	put(3*4096, 100)
	put(mib-10, 20)
	put(2*mib, 3*4096)
	if err := c.Zero(t.Context(), 2*mib+4096, 4096, nbd.CmdFlagFastZero); err != nil {
		t.Fatal(err)
	}
	clear(model[2*mib+4096 : 2*mib+8192])
	for _, r := range [][2]int{{0, 4 * mib}, {0, 16 * kib}, {1, 8192}, {100, 4}, {5000, 30000}, {2 * mib, 12288}, {3 * mib, mib}, {mib - 4096, 8192}} {
		for _, flags := range []nbd.CommandFlags{0, nbd.CmdFlagDF} {
			req := nbd.Request{Cmd: nbd.CmdRead, Flags: flags, Offset: int64(r[0]), Data: random(r[1], 3)}
			if err := c.Do(t.Context(), &req); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(req.Data, model[r[0]:r[0]+r[1]]) {
				t.Errorf("read %v differs", r)
			}
			if flags == nbd.CmdFlagDF && len(req.Ranges) != 0 {
				t.Errorf("read %v with DF has holes %v", r, req.Ranges)
			}
		}
	}
	req := nbd.Request{Cmd: nbd.CmdRead, Data: make([]byte, 4*mib)}
	if err := c.Do(t.Context(), &req); err != nil {
		t.Fatal(err)
	}
	if got, want := fmt.Sprint(req.Ranges), "[{0 4096 1} {8192 4096 1} {16384 1028096 1} {1052672 1044480 1} {2101248 4096 1} {2109440 2084864 1}]"; got != want {
		t.Errorf("holes %s, want %s", got, want)
	}
	status, err := c.BlockStatus(t.Context(), 0, 20000, nil)
	if want := "[{0 4096 1} {4096 4096 0} {8192 4096 1} {12288 4096 0} {16384 3616 1}]"; err != nil || fmt.Sprint(status) != want {
		t.Errorf("status %v, %v, want %s", status, err, want)
	}
	one := nbd.Request{Cmd: nbd.CmdBlockStatus, Flags: nbd.CmdFlagReqOne, Offset: 10, Length: 9000}
	if err := c.Do(t.Context(), &one); err != nil || fmt.Sprint(one.Ranges) != "[{10 4086 1}]" {
		t.Errorf("status with REQ_ONE %v, %v", one.Ranges, err)
	}
}

func TestServer_WriteRepliesWaitForPublish(t *testing.T) {
	var applied, published atomic.Int64
	gate := make(chan struct{})
	entered := make(chan struct{}, 1)
	e, _ := memory(t, mib, nbdtest.Hooks{
		Write: func(int64, int) error { applied.Add(1); return nil },
		Publish: func() error {
			select {
			case entered <- struct{}{}:
			default:
			}
			<-gate
			published.Store(applied.Load())
			return nil
		},
	})
	c := e.dial(t, "disk", nbd.DialOptions{})
	const n = 32
	replies := make(chan int64, n)
	rs := make([]*nbd.Request, n)
	for i := range rs {
		rs[i] = &nbd.Request{Cmd: nbd.CmdWrite, Offset: int64(i * 4096), Data: make([]byte, 4096), Done: func(r *nbd.Request) {
			if r.Err != nil {
				t.Error(r.Err)
			}
			replies <- published.Load()
		}}
	}
	if err := c.Submit(rs...); err != nil {
		t.Fatal(err)
	}
	<-entered
	select {
	case <-replies:
		t.Fatal("a write was acknowledged before it was published")
	case <-time.After(50 * time.Millisecond):
	}
	close(gate)
	for i := range n {
		if at := <-replies; at < int64(i+1) {
			t.Errorf("reply %d came when only %d writes were published", i, at)
		}
	}
}

func TestServer_FailedPublishFailsEveryWriteOfTheBatch(t *testing.T) {
	var broken atomic.Bool
	var publishes atomic.Int64
	e, _ := memory(t, mib, nbdtest.Hooks{Publish: func() error {
		publishes.Add(1)
		if broken.Load() {
			return fmt.Errorf("publish: %w", scstore.ErrPoisoned)
		}
		return nil
	}})
	c := e.dial(t, "disk", nbd.DialOptions{})
	if err := c.WriteAt(t.Context(), []byte("fine"), 0, 0); err != nil {
		t.Fatal(err)
	}
	broken.Store(true)
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			var err error
			switch i % 3 {
			case 0:
				err = c.WriteAt(t.Context(), []byte("lost"), int64(i)*4096, 0)
			case 1:
				err = c.Zero(t.Context(), int64(i)*4096, 4096, 0)
			default:
				err = c.Trim(t.Context(), int64(i)*4096, 4096, 0)
			}
			wantIs(t, err, nbd.EIO)
		})
	}
	wg.Wait()
	broken.Store(false)
	if err := c.WriteAt(t.Context(), []byte("fine"), 0, 0); err != nil {
		t.Error(err)
	}
}

func TestServer_FlushCoversEarlierWritesAndIsShared(t *testing.T) {
	var writes, covered atomic.Int64
	gate := make(chan struct{})
	first := make(chan struct{}, 100)
	e, d := memory(t, mib, nbdtest.Hooks{
		Write: func(int64, int) error { writes.Add(1); return nil },
		Flush: func(context.Context) error {
			at := writes.Load()
			first <- struct{}{}
			<-gate
			covered.Store(at)
			return nil
		},
	})
	c := e.dial(t, "disk", nbd.DialOptions{})
	done := make(chan *nbd.Request, 100)
	submit := func(r nbd.Request) {
		r.Done = func(r *nbd.Request) { done <- r }
		if err := c.Submit(&r); err != nil {
			t.Fatal(err)
		}
	}
	submit(nbd.Request{Cmd: nbd.CmdFlush})
	<-first // the flusher is busy; what follows must share the next flush
	for i := range 10 {
		submit(nbd.Request{Cmd: nbd.CmdWrite, Flags: nbd.CmdFlagFUA, Offset: int64(i), Data: []byte{1}})
		submit(nbd.Request{Cmd: nbd.CmdFlush})
	}
	// The loop goes on while a flush is in progress: a plain write is answered.
	submit(nbd.Request{Cmd: nbd.CmdWrite, Data: []byte{1}})
	if r := <-done; r.Flags != 0 || r.Cmd != nbd.CmdWrite || r.Err != nil {
		t.Fatalf("first reply is to %v, flags %v: %v", r.Cmd, r.Flags, r.Err)
	}
	close(gate)
	for range 21 {
		if r := <-done; r.Err != nil {
			t.Error(r.Err)
		}
	}
	if got := d.Flushes.Load(); got != 2 {
		t.Errorf("%d flushes of the device, want 2", got)
	}
	if got := covered.Load(); got < 10 {
		t.Errorf("the last flush covered %d writes, want 10 or more", got)
	}
}

func TestServer_SlowReadsDoNotHoldOthersBack(t *testing.T) {
	gate := make(chan struct{})
	var waiting atomic.Int64
	e, _ := memory(t, mib, nbdtest.Hooks{
		ReadNow: func(off int64, _ int) bool { return off >= 512*kib },
		Read:    func(int64, int) error { waiting.Add(1); <-gate; return nil },
	})
	c := e.dial(t, "disk", nbd.DialOptions{})
	var wg sync.WaitGroup
	for i := range nbd.MaxWorkers {
		wg.Go(func() {
			if err := c.ReadAt(t.Context(), make([]byte, 4096), int64(i)*4096); err != nil {
				t.Error(err)
			}
		})
	}
	for waiting.Load() < nbd.MaxWorkers {
		time.Sleep(time.Millisecond)
	}
	if err := c.ReadAt(t.Context(), make([]byte, 4096), 512*kib); err != nil {
		t.Error(err)
	}
	close(gate)
	wg.Wait()
}

func TestServer_DeviceErrorsReachTheClient(t *testing.T) {
	e, _ := memory(t, 4*mib, nbdtest.Hooks{
		ReadNow: func(off int64, _ int) bool { return off < mib },
		Read:    func(int64, int) error { return fmt.Errorf("read block: %w", scstore.ErrCorrupt) },
		Write:   func(int64, int) error { return fmt.Errorf("append: %w", scstore.ErrNoSpace) },
		Zero:    func(int64, int64, bool) error { return scstore.ErrFenced },
		Discard: func(int64, int64) error { return scstore.ErrBusy },
		Flush:   func(context.Context) error { return errors.New("a disk fell out") },
	})
	for _, simple := range []bool{false, true} {
		c := e.dial(t, "disk", nbd.DialOptions{SimpleReplies: simple})
		wantIs(t, c.ReadAt(t.Context(), make([]byte, 10), 2*mib), nbd.EIO)
		wantIs(t, c.ReadAt(t.Context(), make([]byte, mib), 2*mib), nbd.EIO)
		wantIs(t, c.WriteAt(t.Context(), make([]byte, 10), 0, 0), nbd.ENOSPC)
		wantIs(t, c.WriteAt(t.Context(), make([]byte, 3*mib), 0, 0), nbd.ENOSPC)
		wantIs(t, c.WriteAt(t.Context(), make([]byte, 10), 0, nbd.CmdFlagFUA), scstore.ErrNoSpace)
		wantIs(t, c.Zero(t.Context(), 0, 4096, 0), nbd.EPERM)
		wantIs(t, c.Trim(t.Context(), 0, 4096, 0), nbd.EIO)
		wantIs(t, c.Flush(t.Context()), nbd.EIO)
		if err := c.ReadAt(t.Context(), make([]byte, 10), 0); err != nil {
			t.Errorf("the connection did not survive the errors: %v", err)
		}
		if err := c.Cache(t.Context(), 0, 2*mib); err != nil {
			t.Errorf("cache is advice: %v", err)
		}
	}
}

func TestServer_CloseFinishesWhatIsInProgress(t *testing.T) {
	gate, entered := make(chan struct{}), make(chan struct{})
	e, _ := memory(t, mib, nbdtest.Hooks{Flush: func(context.Context) error {
		close(entered)
		<-gate
		return nil
	}})
	c := e.dial(t, "disk", nbd.DialOptions{})
	flushed := make(chan error, 1)
	go func() { flushed <- c.Flush(context.Background()) }()
	<-entered
	e.cancel()
	for {
		// Requests get through until the server has noticed, then ESHUTDOWN.
		if err := c.WriteAt(t.Context(), []byte("x"), 0, 0); err != nil {
			wantIs(t, err, nbd.ESHUTDOWN)
			break
		}
	}
	time.Sleep(2 * nbd.DefaultShutdownGrace)
	close(gate)
	if err := <-flushed; err != nil {
		t.Errorf("the flush in progress got %v", err)
	}
	e.stop(t)
	_, err := nbd.Dial(t.Context(), e.url("disk"), nbd.DialOptions{})
	wantIs(t, err, scstore.ErrUnreachable)
}

func TestServer_CloseIsBoundedByItsTimeout(t *testing.T) {
	gate := make(chan struct{})
	d := nbdtest.NewMemDevice(mib, false, nbdtest.Hooks{Flush: func(ctx context.Context) error {
		<-ctx.Done()
		return ctx.Err()
	}})
	e := serve(t, map[string]nbd.Device{"disk": d}, nbd.Options{CloseTimeout: 50 * time.Millisecond})
	c := e.dial(t, "disk", nbd.DialOptions{})
	go func() { _ = c.Flush(context.Background()); close(gate) }()
	time.Sleep(20 * time.Millisecond)
	start := time.Now()
	if err := e.server.Close(); err != nil {
		t.Error(err)
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("Close took %s", took)
	}
	<-gate
	err := <-e.served
	wantIs(t, err, scstore.ErrBusy)
	e.served <- nil
}

func TestServer_ConnectionsAreLimited(t *testing.T) {
	d := nbdtest.NewMemDevice(mib, false, nbdtest.Hooks{})
	e := serve(t, map[string]nbd.Device{"disk": d}, nbd.Options{MaxConnections: 2})
	a := e.dial(t, "disk", nbd.DialOptions{})
	e.dial(t, "disk", nbd.DialOptions{})
	_, err := nbd.Dial(t.Context(), e.url("disk"), nbd.DialOptions{})
	wantIs(t, err, scstore.ErrUnreachable)
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	for start := time.Now(); ; time.Sleep(time.Millisecond) {
		c, err := nbd.Dial(t.Context(), e.url("disk"), nbd.DialOptions{})
		if err == nil {
			_ = c.Close()
			break
		}
		if time.Since(start) > 10*time.Second {
			t.Fatal("a slot was not freed")
		}
	}
}

func TestClient_LosingTheServerFailsWhatIsInFlight(t *testing.T) {
	gate, entered := make(chan struct{}), make(chan struct{})
	var once sync.Once // the abandoned flush may reach the device too
	e, _ := memory(t, mib, nbdtest.Hooks{Flush: func(ctx context.Context) error { once.Do(func() { close(entered) }); <-gate; return nil }})
	c := e.dial(t, "disk", nbd.DialOptions{})
	result := make(chan error, 1)
	go func() { result <- c.WriteAt(context.Background(), []byte("x"), 0, nbd.CmdFlagFUA) }()
	<-entered
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.Flush(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("abandoned flush: %v", err)
	}
	wantIs(t, <-result, scstore.ErrIndeterminate)
	wantIs(t, c.ReadAt(t.Context(), make([]byte, 1), 0), context.Canceled)
	close(gate)
}

// A long read that stops being ready half-way is finished by a worker, whose last
// chunk must not overtake those before it.
func TestServer_LongReadThatTurnsSlowKeepsItsOrder(t *testing.T) {
	e, d := memory(t, 4*mib, nbdtest.Hooks{ReadNow: func(off int64, _ int) bool { return off < mib }})
	data := random(4*mib, 5)
	if err := d.WriteAt(data, 0); err != nil {
		t.Fatal(err)
	}
	c := e.dial(t, "disk", nbd.DialOptions{})
	for off := 512 * kib; off < mib; off += 128 * kib {
		got := make([]byte, 2*mib)
		if err := c.ReadAt(t.Context(), got, int64(off)); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, data[off:off+len(got)]) {
			t.Errorf("read at %d differs", off)
		}
	}
}
