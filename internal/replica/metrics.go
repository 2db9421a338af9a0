package replica

import (
	"github.com/prometheus/client_golang/prometheus"

	"scstore"
)

// metrics are a Set's; all are registered on the injected Registerer.
type metrics struct {
	jumps, failed, seals prometheus.Counter
	received, served     prometheus.Counter
	fetch                prometheus.Histogram
}

func newMetrics(reg prometheus.Registerer, s *Set) *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Namespace: "scstore", Subsystem: "replica", Name: name, Help: help})
	}
	m := &metrics{
		jumps:    counter("jumps_total", "Times that a copy got to its next position."),
		failed:   counter("jumps_failed_total", "Times that it did not."),
		seals:    counter("seals_total", "Epochs that were sealed."),
		received: counter("received_bytes_total", "Bytes that came from other hosts for copies and for what was missing."),
		served:   counter("served_bytes_total", "Bytes that went to other hosts for theirs."),
		fetch: prometheus.NewHistogram(prometheus.HistogramOpts{
			Namespace: "scstore", Subsystem: "replica", Name: "fetch_seconds", Help: "How long a MiB took that was missing.",
			Buckets: prometheus.ExponentialBuckets(1e-3, 2, 15),
		}),
	}
	gauge := func(name, help string, f func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "scstore", Subsystem: "replica", Name: name, Help: help}, f)
	}
	if reg != nil {
		reg.MustRegister(m.jumps, m.failed, m.seals, m.received, m.served, m.fetch,
			gauge("lag_seconds", "Age of the oldest write of a volume written here that is not known to be at another host.", s.lag),
			gauge("missing_blocks", "Blocks of volumes here that are at other hosts, at most.", s.missingBlocks))
	}
	return m
}

func (s *Set) missingBlocks() float64 {
	n := uint64(0)
	for _, r := range s.all() {
		r.mu.Lock()
		if r.table != nil && r.facts.Partial != (scstore.Position{}) {
			n += r.table.RemoteBlocks()
		}
		r.mu.Unlock()
	}
	return float64(n)
}
