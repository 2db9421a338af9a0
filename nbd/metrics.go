package nbd

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are the server's; all are registered on the injected Registerer.
type metrics struct {
	connections   prometheus.Gauge
	refused       prometheus.Counter
	handedOff     prometheus.Gauge
	flushWaiters  prometheus.Gauge
	requests      [commandCount]prometheus.Counter
	readBytes     prometheus.Counter
	writtenBytes  prometheus.Counter
	replyWrites   prometheus.Counter
	publishes     prometheus.Counter
	flushSeconds  prometheus.Histogram
	errors        *prometheus.CounterVec
	limitInFlight prometheus.Gauge
	limitConns    prometheus.Gauge
}

// newMetrics makes and registers the metrics; reg may be nil. Registering two
// servers on one Registerer is a bug of the caller and panics.
func newMetrics(reg prometheus.Registerer) *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Namespace: "scstore", Subsystem: "nbd", Name: name, Help: help})
	}
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Namespace: "scstore", Subsystem: "nbd", Name: name, Help: help})
	}
	m := &metrics{
		connections:   gauge("connections", "Open connections."),
		limitConns:    gauge("connections_max", "Limit of open connections."),
		refused:       counter("connections_refused_total", "Connections closed at once because of the limit."),
		handedOff:     gauge("handed_off_bytes", "Bytes of requests that workers hold."),
		limitInFlight: gauge("handed_off_bytes_max", "Limit, per connection, of the bytes that workers hold."),
		flushWaiters:  gauge("flush_waiters", "FLUSH and FUA requests that wait for a flush."),
		readBytes:     counter("read_bytes_total", "Bytes answered to READ."),
		writtenBytes:  counter("written_bytes_total", "Bytes accepted by WRITE."),
		replyWrites:   counter("reply_writes_total", "Times that a batch of replies was sent."),
		publishes:     counter("publishes_total", "Times that writes were published before a batch of replies."),
		flushSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Namespace: "scstore", Subsystem: "nbd", Name: "flush_seconds", Help: "Duration of one flush of a device.",
			Buckets: prometheus.ExponentialBuckets(50e-6, 2, 18),
		}),
		errors: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: "scstore", Subsystem: "nbd", Name: "errors_total", Help: "Requests answered with an error.",
		}, []string{"error"}),
	}
	requests := prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: "scstore", Subsystem: "nbd", Name: "requests_total", Help: "Requests received.",
	}, []string{"command"})
	for c := range m.requests {
		m.requests[c] = requests.WithLabelValues(Command(c).String())
	}
	if reg != nil {
		reg.MustRegister(
			m.connections, m.limitConns, m.refused, m.handedOff, m.limitInFlight, m.flushWaiters, m.readBytes,
			m.writtenBytes, m.replyWrites, m.publishes, m.flushSeconds, m.errors, requests,
		)
	}
	return m
}

// failed counts a request that is answered with an error.
func (m *metrics) failed(e Errno) {
	if e != 0 {
		m.errors.WithLabelValues(e.label()).Inc()
	}
}

// flushed records the duration of one flush of a device.
func (m *metrics) flushed(d time.Duration) { m.flushSeconds.Observe(d.Seconds()) }
