package consensus

import (
	"fmt"
	"io"
	"strconv"

	"github.com/lni/dragonboat/v4"
	"github.com/prometheus/client_golang/prometheus"
)

// Status is how a group stands in this host's eyes.
type Status struct {
	Group     GroupID
	Replica   ReplicaID
	Leader    Leader
	Preferred DiskID
	Index     uint64 // of the last log entry with commands that was applied here
	Applied   uint64 // commands applied here (meta.State.Applied)
	Flights   int    // entries of this host that wait for the log
	Halted    error  // the group stands still here
}

// HasMajority reports whether this host knows of a leader, who would step down
// without a majority; it lags by an election time at most.
func (s Status) HasMajority() bool { return s.Leader.Known() }

// Status describes a group. Errors: ErrNotFound, ErrClosed.
func (c *Cluster) Status(id GroupID) (Status, error) {
	g, err := c.group(id)
	if err != nil {
		return Status{}, err
	}
	s := Status{Group: id, Replica: g.replica}
	g.mu.RLock()
	s.Index, s.Applied, s.Halted = g.shown.index, g.shown.state.Applied(), g.halted
	g.mu.RUnlock()
	g.queue.flights.Lock()
	s.Flights = len(g.queue.flights.bySequence)
	g.queue.flights.Unlock()
	if s.Preferred, err = c.Preferred(id); err != nil {
		return s, err
	}
	s.Leader, err = c.Leader(id)
	return s, err
}

// Statuses describes all groups that are started, by rising id.
func (c *Cluster) Statuses() []Status {
	var list []Status
	for _, id := range c.groupIDs() {
		if s, err := c.Status(id); err == nil {
			list = append(list, s)
		}
	}
	return list
}

// WriteRaftMetrics writes the library's own metrics, of all Clusters of the process,
// in the text format of Prometheus: they are kept outside of any Registerer.
func WriteRaftMetrics(w io.Writer) { dragonboat.WriteHealthMetrics(w) }

// clusterMetrics are the Cluster's counters, and a collector of its groups.
type clusterMetrics struct {
	c          *Cluster
	registerer prometheus.Registerer
	entries    prometheus.Counter
	outcomes   *prometheus.CounterVec

	majority, leads, index, applied, flights, free *prometheus.Desc
}

func newClusterMetrics(c *Cluster, r prometheus.Registerer) *clusterMetrics {
	gauge := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("scstore_consensus_"+name, help, labels, nil)
	}
	m := &clusterMetrics{
		c: c, registerer: r,
		entries: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "scstore_consensus_entries_total", Help: "Entries handed to the log, each with one or more commands.",
		}),
		outcomes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "scstore_consensus_commands_total", Help: "Commands proposed here, by what became of them.",
		}, []string{"outcome"}),
		majority: gauge("has_majority", "1 if this host knows a leader of the group.", "group"),
		leads:    gauge("leads", "1 if this host leads the group.", "group"),
		index:    gauge("applied_index", "Log index of the last entry applied here.", "group"),
		applied:  gauge("applied_commands", "Commands applied here since the group began.", "group"),
		flights:  gauge("waiting_entries", "Entries proposed here that wait for the log.", "group"),
		free:     gauge("free_bytes", "Free space when last asked; 0 if it is not watched."),
	}
	if r != nil {
		r.MustRegister(m)
	}
	return m
}

func (m *clusterMetrics) unregister() {
	if m.registerer != nil {
		m.registerer.Unregister(m)
	}
}

// Describe sends the metrics' descriptions.
func (m *clusterMetrics) Describe(out chan<- *prometheus.Desc) {
	m.entries.Describe(out)
	m.outcomes.Describe(out)
	for _, d := range []*prometheus.Desc{m.majority, m.leads, m.index, m.applied, m.flights, m.free} {
		out <- d
	}
}

// Collect sends the metrics' values.
func (m *clusterMetrics) Collect(out chan<- prometheus.Metric) {
	m.entries.Collect(out)
	m.outcomes.Collect(out)
	send := func(d *prometheus.Desc, value float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	truth := map[bool]float64{true: 1}
	for _, s := range m.c.Statuses() {
		group := strconv.FormatUint(uint64(s.Group), 10)
		send(m.majority, truth[s.HasMajority()], group)
		send(m.leads, truth[s.Leader.Here], group)
		send(m.index, float64(s.Index), group)
		send(m.applied, float64(s.Applied), group)
		send(m.flights, float64(s.Flights), group)
	}
	send(m.free, float64(m.c.space.last.Load()))
}

// String describes a leader for people.
func (l Leader) String() string {
	if !l.Known() {
		return "none"
	}
	return fmt.Sprintf("replica %d on disk %v", l.Replica, l.Disk)
}
