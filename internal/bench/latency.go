package bench

import (
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"scstore/nbd"
)

// What a latency histogram holds: 100 ns to 10 minutes, to three digits.
const (
	latencyMin    = 100 * time.Nanosecond
	latencyMax    = 10 * time.Minute
	latencyDigits = 3
)

// Latency describes the time from a request to its reply, in microseconds.
type Latency struct {
	Count int64   `json:"count"`
	Mean  float64 `json:"mean_us"`
	P50   float64 `json:"p50_us"`
	P90   float64 `json:"p90_us"`
	P99   float64 `json:"p99_us"`
	P999  float64 `json:"p999_us"`
	Max   float64 `json:"max_us"`
}

// stats counts what one connection did.
type stats struct{ read, write, flush *hdrhistogram.Histogram }

func newHistogram() *hdrhistogram.Histogram {
	return hdrhistogram.New(int64(latencyMin), int64(latencyMax), latencyDigits)
}

func newStats() stats { return stats{newHistogram(), newHistogram(), newHistogram()} }

func (s stats) record(r *request, took time.Duration) {
	h := s.write
	switch r.Cmd {
	case nbd.CmdRead:
		h = s.read
	case nbd.CmdFlush:
		h = s.flush
	default: // all that changes the disk counts as a write
	}
	record(h, took)
}

// record counts a latency; what lies outside counts at the end of the scale.
func record(h *hdrhistogram.Histogram, took time.Duration) {
	_ = h.RecordValue(int64(min(max(took, latencyMin), latencyMax))) // within the scale it cannot fail
}

func (s stats) merge(other stats) {
	s.read.Merge(other.read)
	s.write.Merge(other.write)
	s.flush.Merge(other.flush)
}

func latencyOf(h *hdrhistogram.Histogram) Latency {
	us := func(ns int64) float64 { return float64(ns) / 1000 }
	return Latency{
		Count: h.TotalCount(),
		Mean:  h.Mean() / 1000,
		P50:   us(h.ValueAtQuantile(50)),
		P90:   us(h.ValueAtQuantile(90)),
		P99:   us(h.ValueAtQuantile(99)),
		P999:  us(h.ValueAtQuantile(99.9)),
		Max:   us(h.Max()),
	}
}
