package block

import (
	"github.com/prometheus/client_golang/prometheus"

	"scstore"
)

// metrics are the store's counters.
type metrics struct {
	syncs       prometheus.Counter
	checkpoints prometheus.Counter
	cleaned     prometheus.Counter
	mapBytes    prometheus.Counter
	damage      *prometheus.CounterVec
	registerer  prometheus.Registerer
}

func newMetrics(r prometheus.Registerer) *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	m := &metrics{
		syncs:       counter("scstore_block_syncs_total", "Times the log was made durable."),
		checkpoints: counter("scstore_block_checkpoints_total", "Checkpoints that came into force."),
		cleaned:     counter("scstore_block_cleaned_segments_total", "Segments emptied by the cleaner."),
		mapBytes:    counter("scstore_block_map_written_bytes_total", "Bytes of the extent map written."),
		damage: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "scstore_block_damage_total", Help: "Stored places that failed to verify.",
		}, []string{"kind"}),
		registerer: r,
	}
	if r != nil {
		r.MustRegister(m.all()...)
	}
	return m
}

func (m *metrics) all() []prometheus.Collector {
	return []prometheus.Collector{m.syncs, m.checkpoints, m.cleaned, m.mapBytes, m.damage}
}

func (m *metrics) unregister() {
	if m.registerer != nil {
		for _, c := range m.all() {
			m.registerer.Unregister(c)
		}
	}
}

// Stats describes the store's use of space, in bytes unless said otherwise.
type Stats struct {
	StoreID        scstore.StoreID
	Incarnation    uint64 // how often the store was opened
	Checkpoint     uint64 // number of the one in force
	Volumes        int
	Segments       int
	LogBytes       int64 // written to log segments, headers and overwritten blocks included
	LiveBytes      int64 // of them still named by the map, at most
	MapBytes       int64 // of the extent map's runs
	MapRuns        int
	MapMemoryBytes int64 // pages of the map and of checksums in memory
	MemtableRuns   int   // runs of blocks changed since the last checkpoint
	ReplayBytes    int64 // of log that a restart would replay
	UnsyncedBytes  int64
	SpareSegments  int // ready for appends
	FreeBytes      uint64
	TotalBytes     uint64
	ReserveBytes   uint64
	Full           bool // writes are refused until space is freed
	Poisoned       error
}

// Stats returns a snapshot of the store's figures.
func (s *Store) Stats() Stats {
	st := Stats{StoreID: s.id, Incarnation: s.incarnation, ReserveBytes: s.opts.ReserveBytes}
	if u, err := s.opts.FS.Usage(); err == nil {
		st.FreeBytes, st.TotalBytes = u.FreeBytes, u.TotalBytes
	}
	s.logMu.Lock()
	st.ReplayBytes, st.UnsyncedBytes, st.Poisoned = s.logBytes, s.unsynced, s.poison
	s.mapMu.RLock()
	st.Volumes, st.Segments, st.MapRuns = len(s.tables), len(s.segments), len(s.runs)
	for _, g := range s.segments {
		if g.stream == streamLog {
			st.LogBytes += int64(g.next) * scstore.BlockSize
			st.LiveBytes += max(g.live.Load(), 0) * scstore.BlockSize
		}
	}
	for _, r := range s.runs {
		st.MapBytes += int64(len(r.pages)) * scstore.BlockSize
	}
	st.MemtableRuns = s.mem.runs()
	s.mapMu.RUnlock()
	s.logMu.Unlock()
	st.MapMemoryBytes = int64(s.cache.pages()) * scstore.BlockSize
	s.pool.mu.Lock()
	st.SpareSegments, st.Full = len(s.pool.spares), len(s.pool.spares) <= reserveDiscards && s.pool.exhausted()
	s.pool.mu.Unlock()
	return st
}
