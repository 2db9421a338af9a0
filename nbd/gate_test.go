package nbd_test

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"scstore/nbd"
	"scstore/nbd/nbdtest"
)

// observed is a device that knows whether it is in use.
type observed struct {
	nbd.Device
	running, writes atomic.Int64
}

func (o *observed) use() func() {
	o.running.Add(1)
	return func() { o.running.Add(-1) }
}

func (o *observed) WriteAt(p []byte, off int64) error {
	defer o.use()()
	o.writes.Add(1)
	return o.Device.WriteAt(p, off)
}

func (o *observed) Flush(ctx context.Context) error {
	defer o.use()()
	return o.Device.Flush(ctx)
}

// eventually waits for what needs no more than the other goroutines' turn.
func eventually(t *testing.T, what string, fn func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !fn(); time.Sleep(100 * time.Microsecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 20 s: %s", what)
		}
	}
}

func gated(t *testing.T) (*env, *nbd.Gate, *observed) {
	t.Helper()
	d := &observed{Device: nbdtest.NewMemDevice(8*mib, false, nbdtest.Hooks{})}
	e := serve(t, map[string]nbd.Device{"disk": d}, nbd.Options{})
	e.exports.gate = &nbd.Gate{}
	return e, e.exports.gate, d
}

func TestGate_PauseReturnsAfterTheLastAnswer(t *testing.T) {
	e, gate, d := gated(t)
	ctx, stop := context.WithCancel(t.Context())
	var acked atomic.Int64
	var clients sync.WaitGroup
	for i := range 3 {
		c := e.dial(t, "disk", nbd.DialOptions{})
		for j := range 8 {
			clients.Go(func() {
				p := make([]byte, 4096<<(j%7)) // up to 256 KiB: in place, and in chunks
				for n := int64(0); ctx.Err() == nil; n++ {
					off := (n*int64(len(p)) + int64(i)*mib) % (7 * mib)
					flags := nbd.CommandFlags(0)
					if n%5 == 0 {
						flags = nbd.CmdFlagFUA
					}
					if err := c.WriteAt(context.Background(), p, off, flags); err != nil {
						t.Error(err)
						return
					}
					acked.Add(1)
					if err := c.ReadAt(context.Background(), p, off); n%3 == 0 && err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
	}
	for range 100 {
		if err := gate.Pause(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n := d.running.Load(); n != 0 {
			t.Fatalf("%d requests in the device after Pause", n)
		}
		writes := d.writes.Load()
		eventually(t, "an answer to every write that was carried out", func() bool { return acked.Load() == writes })
		time.Sleep(time.Millisecond)
		if n := d.writes.Load(); n != writes || acked.Load() != writes {
			t.Fatalf("%d writes at the pause, then %d, %d of them answered", writes, n, acked.Load())
		}
		gate.Resume()
		eventually(t, "more writes after Resume", func() bool { return acked.Load() > writes })
	}
	stop()
	clients.Wait()
}

func TestGate_APayloadThatComesLateIsNotWritten(t *testing.T) {
	for name, length := range map[string]int{"in place": 8192, "in chunks": 2 * mib} {
		t.Run(name, func(t *testing.T) {
			e, gate, d := gated(t)
			nc, err := net.Dial("unix", e.socket)
			if err != nil {
				t.Fatal(err)
			}
			defer nc.Close()
			r := (&raw{nc: nc}).begin(true, false)
			r.send(requestBytes(0, tWrite, 1, 0, uint32(length)))
			r.send(make([]byte, 4096))
			if r.err != nil {
				t.Fatal(r.err)
			}
			// Whether the server has seen any of it yet or not, it does not hold Pause up.
			if err := gate.Pause(t.Context()); err != nil {
				t.Fatal(err)
			}
			writes := d.writes.Load()
			sent := make(chan struct{})
			go func() {
				defer close(sent)
				r.send(make([]byte, length-4096))
			}()
			time.Sleep(20 * time.Millisecond)
			if n := d.writes.Load(); n != writes {
				t.Fatalf("%d writes while paused", n-writes)
			}
			gate.Resume()
			<-sent
			if got := r.answer(1, 0); got != "ok" {
				t.Errorf("answered %q, want ok", got)
			}
		})
	}
}

func TestGate_AnEndWhilePausedAnswersShutdown(t *testing.T) {
	e, gate, d := gated(t)
	c, err := nbd.Dial(t.Context(), e.url("disk"), nbd.DialOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := gate.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	answer := make(chan error, 1)
	go func() { answer <- c.WriteAt(context.Background(), make([]byte, 4096), 0, 0) }()
	time.Sleep(10 * time.Millisecond)
	e.stop(t)
	if err := <-answer; err == nil {
		t.Error("a write was acknowledged by an export that ended while it was paused")
	}
	if n := d.writes.Load(); n != 0 {
		t.Errorf("%d writes were carried out", n)
	}
	_ = c.Close() // the server is gone
}

func TestGate_PauseGivesUpWithItsContext(t *testing.T) {
	entered, release := make(chan struct{}), make(chan struct{})
	d := nbdtest.NewMemDevice(mib, false, nbdtest.Hooks{})
	e := serve(t, map[string]nbd.Device{"disk": &stalling{Device: d, entered: entered, release: release}}, nbd.Options{})
	e.exports.gate = &nbd.Gate{}
	c := e.dial(t, "disk", nbd.DialOptions{})
	answer := make(chan error, 1)
	go func() { answer <- c.Flush(context.Background()) }()
	<-entered
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(syscall.ETIME)
	if err := e.exports.gate.Pause(ctx); !errors.Is(err, syscall.ETIME) {
		t.Errorf("Pause with a request in the device: %v", err)
	}
	close(release)
	if err := <-answer; err != nil {
		t.Error(err)
	}
	e.exports.gate.Resume()
	if err := c.WriteAt(t.Context(), make([]byte, 4096), 0, 0); err != nil {
		t.Error(err)
	}
}

// stalling is a device whose flush waits.
type stalling struct {
	nbd.Device
	entered, release chan struct{}
}

func (s *stalling) Flush(ctx context.Context) error {
	close(s.entered)
	<-s.release
	return s.Device.Flush(ctx)
}
