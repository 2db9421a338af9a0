package quicnet

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/quic-go/quic-go"
)

// LinkStats is what connections carried, as QUIC counts it: packets with their
// overhead and what was sent again.
type LinkStats struct {
	RTT             time.Duration // smoothed; of several links the least; 0 if none is open
	SentBytes       uint64
	ReceivedBytes   uint64
	SentPackets     uint64
	ReceivedPackets uint64
	LostPackets     uint64
}

func linkStats(conn *quic.Conn) LinkStats {
	s := conn.ConnectionStats()
	return LinkStats{
		RTT: s.SmoothedRTT, SentBytes: s.BytesSent, ReceivedBytes: s.BytesReceived,
		SentPackets: s.PacketsSent, ReceivedPackets: s.PacketsReceived, LostPackets: s.PacketsLost,
	}
}

// add adds the counts of t; RTT stays.
func (s *LinkStats) add(t LinkStats) {
	s.SentBytes += t.SentBytes
	s.ReceivedBytes += t.ReceivedBytes
	s.SentPackets += t.SentPackets
	s.ReceivedPackets += t.ReceivedPackets
	s.LostPackets += t.LostPackets
}

// PeerStatus is what is known of the way to a peer.
type PeerStatus struct {
	Peer    // of the newest link; only Disk is set if there was none
	Links   int
	Streams int
	LinkStats
	LastErr error // of the last attempt to connect, nil once one succeeded
}

// Status returns what is known of the way to each peer that was ever talked to, in
// no order.
func (n *Net) Status() []PeerStatus {
	var list []PeerStatus
	for _, p := range n.all() {
		list = append(list, p.status())
	}
	return list
}

func (p *peer) status() PeerStatus {
	p.mu.Lock()
	st := PeerStatus{Peer: p.who, Links: len(p.links), LinkStats: p.past, LastErr: p.lastErr}
	st.Disk = p.disk
	var conns []*quic.Conn
	for l := range p.links {
		st.Streams += l.active
		conns = append(conns, l.conn)
	}
	p.mu.Unlock()
	for _, conn := range conns {
		s := linkStats(conn)
		st.add(s)
		if st.RTT == 0 || s.RTT > 0 && s.RTT < st.RTT {
			st.RTT = s.RTT
		}
	}
	return st
}

var _ prometheus.Collector = (*metrics)(nil)

// metrics are the Net's; it is a prometheus.Collector of what it asks of the peers.
type metrics struct {
	n              *Net
	refused        *prometheus.CounterVec
	links          prometheus.Gauge
	turnedAway     prometheus.Counter
	strays         prometheus.Counter
	streamsRefused *prometheus.CounterVec
	streams        [classCount]prometheus.Counter
	sent           [classCount]prometheus.Counter
	received       [classCount]prometheus.Counter
	dials          [2]prometheus.Counter // succeeded, failed
	renewals       [2]prometheus.Counter
	skew           *prometheus.GaugeVec
	plain          []prometheus.Collector

	rtt, sentBytes, receivedBytes, sentPackets, lostPackets, window, expiry *prometheus.Desc
}

// newMetrics makes and registers the metrics; reg may be nil.
func newMetrics(n *Net, reg prometheus.Registerer) *metrics {
	name := func(s string) string { return "scstore_quicnet_" + s }
	vec := func(s, help, label string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name(s), Help: help}, []string{label})
	}
	desc := func(s, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(name(s), help, labels, nil)
	}
	m := &metrics{
		n:              n,
		refused:        vec("refused_total", "Connections refused at the door.", "reason"),
		turnedAway:     prometheus.NewCounter(prometheus.CounterOpts{Name: name("turned_away_total"), Help: "Connections of this host that a peer refused."}),
		strays:         prometheus.NewCounter(prometheus.CounterOpts{Name: name("stray_packets_total"), Help: "Packets dropped that belong to no connection and begin none."}),
		links:          prometheus.NewGauge(prometheus.GaugeOpts{Name: name("links"), Help: "Open connections with peers."}),
		streamsRefused: vec("streams_refused_total", "Streams of peers refused because of what they say, or because there are too many.", "reason"),
		skew:           prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name("clock_skew_seconds"), Help: "How far a peer's clock is ahead."}, []string{"peer"}),
		rtt:            desc("rtt_seconds", "Smoothed round trip time.", "peer"),
		sentBytes:      desc("link_sent_bytes_total", "Bytes sent in packets.", "peer"),
		receivedBytes:  desc("link_received_bytes_total", "Bytes received in packets.", "peer"),
		sentPackets:    desc("link_sent_packets_total", "Packets sent.", "peer"),
		lostPackets:    desc("link_lost_packets", "Packets lost, less those that came late after all.", "peer"),
		window:         desc("window_granted_bytes", "Bytes that peers may have under way beyond their first windows."),
		expiry:         desc("certificate_expiry_timestamp_seconds", "When the host's certificate ends."),
	}
	streams, sent, received := vec("streams_total", "Streams opened.", "class"), vec("sent_bytes_total", "Bytes written to streams.", "class"),
		vec("received_bytes_total", "Bytes read from streams.", "class")
	for c := range classCount {
		m.streams[c], m.sent[c], m.received[c] = streams.WithLabelValues(c.String()), sent.WithLabelValues(c.String()), received.WithLabelValues(c.String())
	}
	dials, renewals := vec("dials_total", "Connections dialed.", "result"), vec("renewals_total", "Renewals of the certificate.", "result")
	for i, result := range []string{"ok", "failed"} {
		m.dials[i], m.renewals[i] = dials.WithLabelValues(result), renewals.WithLabelValues(result)
	}
	m.plain = []prometheus.Collector{m.refused, m.turnedAway, m.strays, m.links, m.streamsRefused, m.skew, streams, sent, received, dials, renewals}
	if reg != nil {
		reg.MustRegister(m)
	}
	return m
}

// unregister takes the metrics from reg, so that a host that is opened again can
// register its own.
func (m *metrics) unregister(reg prometheus.Registerer) {
	if reg != nil {
		reg.Unregister(m)
	}
}

// Describe sends the descriptions of all metrics.
func (m *metrics) Describe(out chan<- *prometheus.Desc) {
	for _, c := range m.plain {
		c.Describe(out)
	}
	for _, d := range []*prometheus.Desc{m.rtt, m.sentBytes, m.receivedBytes, m.sentPackets, m.lostPackets, m.window, m.expiry} {
		out <- d
	}
}

// Collect sends the metrics.
func (m *metrics) Collect(out chan<- prometheus.Metric) {
	for _, c := range m.plain {
		c.Collect(out)
	}
	counter := func(d *prometheus.Desc, v uint64, peer string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), peer)
	}
	byHost := map[string]PeerStatus{} // a host that came back with another disk is one series
	for _, st := range m.n.Status() {
		if st.Host == "" {
			continue
		}
		st.add(byHost[st.Host].LinkStats)
		st.RTT = max(st.RTT, byHost[st.Host].RTT)
		byHost[st.Host] = st
	}
	for host, st := range byHost {
		if st.RTT > 0 {
			out <- prometheus.MustNewConstMetric(m.rtt, prometheus.GaugeValue, st.RTT.Seconds(), host)
		}
		counter(m.sentBytes, st.SentBytes, host)
		counter(m.receivedBytes, st.ReceivedBytes, host)
		counter(m.sentPackets, st.SentPackets, host)
		out <- prometheus.MustNewConstMetric(m.lostPackets, prometheus.GaugeValue, float64(st.LostPackets), host)
	}
	out <- prometheus.MustNewConstMetric(m.window, prometheus.GaugeValue, float64(m.n.windows.bytes()))
	out <- prometheus.MustNewConstMetric(m.expiry, prometheus.GaugeValue, float64(m.n.o.Keys.Certificate().Leaf.NotAfter.Unix()))
}

// outcome is the index of a counter.
func outcome(err error) int {
	if err != nil {
		return 1
	}
	return 0
}

func (m *metrics) dialed(err error)  { m.dials[outcome(err)].Inc() }
func (m *metrics) renewed(err error) { m.renewals[outcome(err)].Inc() }

// skewed records how far ahead a peer's clock is.
func (m *metrics) skewed(p Peer, skew time.Duration) {
	m.skew.WithLabelValues(p.Host).Set(skew.Seconds())
}
