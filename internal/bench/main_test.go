package bench

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"scstore"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// serve runs a bare server over dev and returns its address and what kills it.
func serve(t testing.TB, size int64, dev bareDevice) (url string, kill func()) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "nbd.sock")
	l, err := net.Listen("unix", socket)
	check(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var served error
	wg.Go(func() { served = serveBare(ctx, l, size, dev) })
	var once sync.Once
	kill = func() {
		once.Do(func() {
			cancel()
			wg.Wait()
			if served != nil {
				t.Error(served)
			}
		})
	}
	t.Cleanup(kill)
	return "nbd+unix:///x?socket=" + socket, kill
}

// volatile is a device with a cache that a power loss empties, and with faults.
type volatile struct {
	mu      sync.Mutex
	live    memory
	durable memory
	dirty   map[int64]bool
	flushes int
	// keepFlush, if set, says whether a flush makes a block durable.
	keepFlush func(block int64) bool
	// failAfter ends the server's replies with an error after so many writes.
	failAfter int
	writes    int
}

func newVolatile(size int64) *volatile {
	return &volatile{live: make(memory, size), durable: make(memory, size), dirty: make(map[int64]bool), failAfter: -1}
}

func (v *volatile) read(p []byte, off int64) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.live.read(p, off)
}

func (v *volatile) changed(off, length int64) error {
	v.writes++
	if v.failAfter >= 0 && v.writes > v.failAfter {
		return errors.New("planted failure")
	}
	for b := off / scstore.BlockSize; b*scstore.BlockSize < off+length; b++ {
		v.dirty[b] = true
	}
	return nil
}

func (v *volatile) write(p []byte, off int64) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if err := v.changed(off, int64(len(p))); err != nil {
		return err
	}
	return v.live.write(p, off)
}

func (v *volatile) zero(off, length int64) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if err := v.changed(off, length); err != nil {
		return err
	}
	return v.live.zero(off, length)
}

func (v *volatile) flush() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.flushes++
	for b := range v.dirty {
		if v.keepFlush == nil || v.keepFlush(b) {
			copy(v.durable[b*scstore.BlockSize:(b+1)*scstore.BlockSize], v.live[b*scstore.BlockSize:])
		}
	}
	clear(v.dirty)
	return nil
}

// powerLoss forgets what no flush covered.
func (v *volatile) powerLoss() {
	v.mu.Lock()
	defer v.mu.Unlock()
	copy(v.live, v.durable)
	clear(v.dirty)
	v.failAfter, v.writes = -1, 0
}
