package wan

import (
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"
)

// BenchmarkModel is what the core costs for a packet: the link is full, with about
// 700 packets on the wire.
func BenchmarkModel(b *testing.B) {
	for name, link := range map[string]Link{
		"plain":  RTT(80 * ms).WithRate(200 * Mbit),
		"jitter": {Delay: 40 * ms, Jitter: ms, BitsPerSecond: 200 * Mbit},
	} {
		b.Run(name, func(b *testing.B) {
			m := testModel(link)
			now := time.Duration(0)
			for b.Loop() {
				now += link.sending(1500)
				m.send(now, 1500, 0)
				for ok := true; ok; {
					_, ok = m.take(now)
				}
			}
		})
	}
}

// BenchmarkNetwork sends TCP streams between three sites: one from each site to each
// other one, or just one of them; 1 MiB an iteration and stream. Its figures are of all streams
// together; cores counts this process, which both emulates and is every end.
func BenchmarkNetwork(b *testing.B) {
	for _, c := range []struct {
		name string
		link Link
		max  int // streams
	}{
		{"80ms,200Mbit,one", RTT(80 * ms).WithRate(200 * Mbit), 1},
		{"80ms,200Mbit,six", RTT(80 * ms).WithRate(200 * Mbit), 6},
		{"perfect", Link{}, 6},
	} {
		b.Run(c.name, func(b *testing.B) {
			n := open(b, Options{Link: c.link})
			type stream struct{ from, to net.Conn }
			var streams []stream
			for _, to := range n.Sites() {
				l, err := n.Listen(b.Context(), to, "tcp", at(n, to, 0, 0))
				check(b, err)
				defer l.Close()
				for _, from := range n.Sites() {
					if from == to || len(streams) == c.max {
						continue
					}
					client, err := n.Dial(b.Context(), from, "tcp", l.Addr().String())
					check(b, err)
					defer client.Close()
					server, err := l.Accept()
					check(b, err)
					defer server.Close()
					streams = append(streams, stream{client, server})
				}
			}
			size := int64(b.N) << 20
			errs := make(chan error, 2*len(streams))
			cpu := cpuTime(b)
			b.ResetTimer()
			var running sync.WaitGroup
			for _, s := range streams {
				running.Go(func() {
					_, err := io.CopyN(s.from, zeros{}, size)
					errs <- err
				})
				running.Go(func() {
					_, err := io.CopyN(io.Discard, s.to, size)
					errs <- err
				})
			}
			running.Wait()
			b.StopTimer()
			for range len(errs) {
				check(b, <-errs)
			}
			total := float64(size) * float64(len(streams))
			b.SetBytes(int64(len(streams)) << 20)
			b.ReportMetric(total*8/1e6/b.Elapsed().Seconds(), "Mbit/s")
			b.ReportMetric((cpuTime(b)-cpu).Seconds()/b.Elapsed().Seconds(), "cores")
			reportDrops(b, n)
		})
	}
}

// reportDrops shows what the links dropped, and what the kernel did before.
func reportDrops(b *testing.B, n *Network) {
	b.Helper()
	var overrun, overflowed uint64
	for _, from := range n.Sites() {
		site, err := n.SiteStats(from)
		check(b, err)
		overrun += site.Overrun
		for _, to := range n.Sites() {
			overflowed += n.Stats(from, to).Overflowed
		}
	}
	b.ReportMetric(float64(overflowed), "overflowed")
	b.ReportMetric(float64(overrun), "overrun")
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

// cpuTime returns the processor time that this process has used.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(fmt.Errorf("read the processor time: %w", err))
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
