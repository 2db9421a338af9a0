package e2e_test

import (
	"encoding/binary"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"scstore"
	"scstore/internal/bench"
)

// The openings that random bytes follow, so that they reach deeper states.
var (
	clientFlags = []byte{0, 0, 0, 3}
	goOption    = append([]byte("IHAVEOPT\x00\x00\x00\x07\x00\x00\x00\x0a\x00\x00\x00\x04disk"), 0, 0)
	listOption  = []byte("IHAVEOPT\x00\x00\x00\x03\x00\x00\x00\x00")
	httpRequest = []byte("PUT /v1/volumes/x HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n")
)

func TestGarbage_OnTheSocketsHarmsNobody(t *testing.T) {
	const seed, set = 21, 32 * mib
	dir := t.TempDir()
	s := serve(t, dir)
	run(t, s, "volume", "create", "disk", "--size", "32M")
	run(t, s, "volume", "create", "mine", "--size", "32M")
	journal, err := bench.NewJournal(seed, set/scstore.BlockSize)
	check(t, err)
	load := func(d time.Duration) {
		result, err := bench.Load(t.Context(), bench.LoadOptions{
			URL: s.URL("mine"), Connections: 2, QueueDepth: 8, ReadPercent: 50, ZeroPercent: 10, FlushEvery: 100, Duration: d, Seed: seed, Journal: journal,
		})
		check(t, err)
		if result.Reads == 0 || result.Writes == 0 || result.Flushes == 0 {
			t.Errorf("the client got nowhere: %+v", result)
		}
	}
	storm := func(d time.Duration) int64 {
		stop := make(chan struct{})
		var wg sync.WaitGroup
		var sent atomic.Int64
		for i := range 4 {
			wg.Go(func() {
				rng := rand.New(rand.NewPCG(seed, uint64(i)))
				for {
					select {
					case <-stop:
						return
					default:
						socket := s.Socket()
						if rng.IntN(8) == 0 {
							socket = filepath.Join(dir, "api.sock")
						}
						sent.Add(attack(rng, socket))
					}
				}
			})
		}
		load(d)
		close(stop)
		wg.Wait()
		return sent.Load()
	}
	storm(garbageTime / 4) // opens what stays open
	time.Sleep(time.Second)
	fds, goroutines := openFiles(t, s.PID(), dir), metric(t, dir, "go_goroutines")
	sent := storm(garbageTime)
	if sent < 100 {
		t.Errorf("only %d attacks", sent)
	}
	report, err := bench.Verify(t.Context(), bench.VerifyOptions{URL: s.URL("mine"), Journal: journal})
	check(t, err)
	check(t, report.AfterKill())
	var fdsNow int
	var goroutinesNow float64
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		fdsNow, goroutinesNow = openFiles(t, s.PID(), dir), metric(t, dir, "go_goroutines")
		if fdsNow <= fds && goroutinesNow <= goroutines {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d open files and %v goroutines are left, %d and %v before", fdsNow, goroutinesNow, fds, goroutines)
		}
	}
	t.Logf("seed %d, %d connections of garbage, %d files, %v goroutines", seed, sent, fds, goroutines)
	check(t, s.Stop())
}

// attack sends garbage over one connection and returns 1 if it could connect.
func attack(rng *rand.Rand, socket string) int64 {
	c, err := net.Dial("unix", socket)
	if err != nil {
		return 0
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(time.Second)) // a socket has one
	var p []byte
	switch rng.IntN(6) {
	case 0:
	case 1:
		p = append(p, clientFlags...)
	case 2:
		p = append(append(p, clientFlags...), listOption...)
	case 3:
		p = append(append(p, clientFlags...), goOption...)
	case 4: // requests with a valid magic number and wild fields
		p = append(append(p, clientFlags...), goOption...)
		for range rng.IntN(20) {
			p = append(p, 0x25, 0x60, 0x95, 0x13)
			p = binary.BigEndian.AppendUint16(p, uint16(rng.IntN(64)))
			p = binary.BigEndian.AppendUint16(p, uint16(rng.IntN(10)))
			p = binary.BigEndian.AppendUint64(p, rng.Uint64())
			p = binary.BigEndian.AppendUint64(p, rng.Uint64()>>rng.IntN(64))
			p = binary.BigEndian.AppendUint32(p, rng.Uint32()>>rng.IntN(32))
		}
	case 5:
		p = append(p, httpRequest...)
	}
	for range rng.IntN(4000) {
		p = append(p, byte(rng.Uint32()))
	}
	for len(p) > 0 {
		n := min(1+rng.IntN(4096), len(p))
		if _, err := c.Write(p[:n]); err != nil {
			break
		}
		p = p[n:]
	}
	if rng.IntN(2) == 0 {
		_, _ = c.Read(make([]byte, 4096)) // whatever it says
	}
	return 1
}

// openFiles counts what a process has open outside of a folder.
func openFiles(t testing.TB, pid int, except string) (n int) {
	t.Helper()
	fds := filepath.Join("/proc", strconv.Itoa(pid), "fd")
	entries, err := os.ReadDir(fds)
	check(t, err)
	for _, e := range entries {
		if target, err := os.Readlink(filepath.Join(fds, e.Name())); err == nil && !strings.HasPrefix(target, except) {
			n++
		}
	}
	return n
}
