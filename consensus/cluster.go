package consensus

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lni/dragonboat/v4"
	"github.com/lni/dragonboat/v4/config"
	"github.com/lni/dragonboat/v4/raftio"
	"github.com/lni/vfs"
	"github.com/prometheus/client_golang/prometheus"

	"scstore"
)

// Values of the log's engine that a folder keeps for ever: another number would make
// the library refuse it.
const (
	execShards  = 4
	logDBShards = 4
)

// Bounds of a Cluster.
const (
	MaxGroups       = 64       // per host; a group costs 0.4 MB and its share of ticks
	MaxInMemoryLog  = 64 << 20 // bytes per group that are not applied yet; beyond it proposals get ErrBusy
	MaxSendQueue    = 64 << 20 // bytes that wait for one host; beyond it messages are dropped and sent again
	MaxReceiveQueue = 64 << 20 // bytes that wait for one group
)

// Timing of an Alone group: it elects itself in 0.4 to 1.0 s with ticks of 200 ms.
const (
	aloneHeartbeatTicks = 1
	aloneElectionTicks  = 3
)

// lookInterval is the time between two looks at what the library does not tell of.
const lookInterval = 50 * time.Millisecond

var errClosed = fmt.Errorf("cluster: %w", scstore.ErrClosed)

// ClusterOptions says what OpenCluster opens.
type ClusterOptions struct {
	Cluster ClusterID // seeds every checksum and keeps out messages of other clusters
	Disk    DiskID    // this host's disk; its text is the address that others send to
	Groups  []Group   // started by OpenCluster; more by Start
	// Transport makes the carrier of messages. It is the library's own interface,
	// because a thin one of ours would repeat it word for word; its Close must join
	// every goroutine that calls a handler.
	Transport config.TransportFactory

	// TickInterval, HeartbeatTicks and ElectionTicks default to 200 ms, 1 and 10: a
	// leader that is gone is replaced within 2 to 4 s, with round trips of up to 300 ms.
	// A tick wakes the library for every group; with one for each heart-beat those of
	// all groups leave at the same moment. Nothing that is asked for waits for a tick.
	TickInterval   time.Duration
	HeartbeatTicks int
	ElectionTicks  int
	// BatchDelay is how long ProposeSoon waits for company; 0 means 25 ms.
	BatchDelay time.Duration
	// Timeout bounds proposals, reads and changes of members; 0 means 10 s.
	Timeout time.Duration
	// SnapshotEntries is how many entries lie between two snapshots of a group, and
	// TrailingEntries how many before the newest are kept for members that lag; 0
	// means 10,000 and 2,000.
	SnapshotEntries, TrailingEntries int
	// PreferInterval is how often it is checked that preferred leaders lead; 0 means 1 s.
	PreferInterval time.Duration

	// ReserveBytes of free space are kept from the log: below them proposals are
	// refused, below a quarter of them the Cluster fails. 0 means 256 MiB.
	ReserveBytes int64
	// BallastBytes are reserved in a file that is given back to the disk when it is
	// full; 0 means 64 MiB, and there is none if FS is set.
	BallastBytes int64
	// FreeBytes returns the free space; nil asks the file system, if FS is nil.
	FreeBytes func() (int64, error)

	FS         vfs.FS                // nil means the real one
	Logger     *slog.Logger          // nil discards
	Registerer prometheus.Registerer // nil for none
}

func orDefault[T comparable](value, otherwise T) T {
	var zero T
	if value == zero {
		return otherwise
	}
	return value
}

func (o ClusterOptions) withDefaults() ClusterOptions {
	o.TickInterval = orDefault(o.TickInterval, 200*time.Millisecond)
	o.HeartbeatTicks = orDefault(o.HeartbeatTicks, 1)
	o.ElectionTicks = orDefault(o.ElectionTicks, 10)
	o.BatchDelay = orDefault(o.BatchDelay, 25*time.Millisecond)
	o.Timeout = orDefault(o.Timeout, 10*time.Second)
	o.SnapshotEntries = orDefault(o.SnapshotEntries, 10_000)
	o.TrailingEntries = orDefault(o.TrailingEntries, 2_000)
	o.PreferInterval = orDefault(o.PreferInterval, time.Second)
	o.ReserveBytes = orDefault(o.ReserveBytes, 256<<20)
	o.BallastBytes = orDefault(o.BallastBytes, 64<<20)
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

// Validate checks the options, defaults filled in. Errors: ErrInvalid.
func (o ClusterOptions) Validate() error {
	switch {
	case o.Cluster == (ClusterID{}) || o.Disk == (DiskID{}):
		return fmt.Errorf("cluster or disk id is zero: %w", scstore.ErrInvalid)
	case o.Transport == nil:
		return fmt.Errorf("no transport: %w", scstore.ErrInvalid)
	case o.TickInterval < time.Millisecond || o.TickInterval%time.Millisecond != 0:
		return fmt.Errorf("tick of %v, want whole milliseconds: %w", o.TickInterval, scstore.ErrInvalid)
	case o.HeartbeatTicks < 1 || o.ElectionTicks <= 2*o.HeartbeatTicks:
		return fmt.Errorf("heartbeat of %d and election of %d ticks, want more than twice as many: %w", o.HeartbeatTicks, o.ElectionTicks, scstore.ErrInvalid)
	case o.BatchDelay < 0 || o.Timeout < 2*o.TickInterval || o.PreferInterval < o.TickInterval:
		return fmt.Errorf("a time limit is below two ticks: %w", scstore.ErrInvalid)
	case o.SnapshotEntries < 1 || o.TrailingEntries < 1 || o.ReserveBytes < 0 || o.BallastBytes < 0:
		return fmt.Errorf("a count or size is negative: %w", scstore.ErrInvalid)
	}
	return nil
}

// Cluster keeps this host's replicas of all groups.
//
// Concurrency: all methods are safe for concurrent use.
type Cluster struct {
	options ClusterOptions
	dir     string // absolute
	under   vfs.FS
	origin  origin
	host    *dragonboat.NodeHost
	space   *space
	metrics *clusterMetrics
	logger  *slog.Logger

	ctx    context.Context // ends when Close begins
	cancel context.CancelFunc
	loops  sync.WaitGroup // the goroutines of the Cluster itself
	waits  sync.WaitGroup // proposals that wait for the log

	mu      sync.Mutex
	closed  bool
	calls   int           // calls into host that are under way
	idle    chan struct{} // closed when calls falls to 0 after closed was set
	groups  map[GroupID]*group
	leaders chan struct{} // closed and replaced at every change of a leader
	failure error
	failed  chan struct{}

	closeOnce sync.Once
	closeErr  error
}

// OpenCluster opens this host's part of the cluster's groups in the folder dir,
// which it makes if it is missing. Nobody else may have it open: package host locks
// it. It returns before the groups have leaders.
//
// Errors: ErrInvalid, also for the folder of another cluster or disk; ErrNotFound for
// a Group whose log is not here (see Group); ErrVersion; ErrCorrupt; ErrNoSpace.
func OpenCluster(ctx context.Context, dir string, options ClusterOptions) (*Cluster, error) {
	c, err := openCluster(ctx, dir, options.withDefaults())
	if err != nil {
		return nil, fmt.Errorf("open cluster in %q: %w", dir, err)
	}
	return c, nil
}

func openCluster(ctx context.Context, dir string, o ClusterOptions) (c *Cluster, err error) {
	if err := errors.Join(ctx.Err(), o.Validate(), refuseSettingsFiles()); err != nil {
		return nil, err
	}
	under := orDefault[vfs.FS](o.FS, vfs.Default)
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, err
	}
	if o.FS == nil {
		err = makeFolder(dir)
	} else {
		err = makeFolderIn(o.FS, dir)
	}
	if err != nil {
		return nil, err
	}
	guard, err := openSpace(dir, o)
	if err != nil {
		return nil, err
	}
	if err := claimFolder(under, dir, member{cluster: o.Cluster, disk: o.Disk}); err != nil {
		return nil, err
	}
	c = &Cluster{
		options: o, dir: dir, under: under, space: guard, logger: o.Logger,
		idle: make(chan struct{}), groups: map[GroupID]*group{},
		leaders: make(chan struct{}), failed: make(chan struct{}),
	}
	rand.Read(c.origin[:])
	c.ctx, c.cancel = context.WithCancel(context.WithoutCancel(ctx))
	setRaftLogger(o.Logger)
	open := &atomic.Pointer[Cluster]{}
	o.Transport = gate{TransportFactory: o.Transport, open: open}
	if c.host, err = newHost(o, under, dir, leaderListener{c}); err != nil {
		c.cancel()
		return nil, err
	}
	open.Store(c)
	c.metrics = newClusterMetrics(c, o.Registerer)
	for _, g := range o.Groups {
		if err := c.Start(ctx, g); err != nil {
			return nil, errors.Join(err, c.Close())
		}
	}
	c.loops.Go(c.watchSpace)
	c.loops.Go(c.prefer)
	return c, nil
}

// newHost starts the library. It panics where it means to stop the process, also for
// damage that it finds while it opens its files: here that becomes an error.
func newHost(o ClusterOptions, under vfs.FS, dir string, listener raftio.IRaftEventListener) (host *dragonboat.NodeHost, err error) {
	defer func() {
		if cause := recover(); cause != nil {
			err = fmt.Errorf("raft log: %v: %w", cause, scstore.ErrCorrupt)
			err = scstore.Hint(err, "replace this member: remove it from its groups and add it under a new replica id")
		}
	}()
	log := config.GetTinyMemLogDBConfig()
	log.Shards = logDBShards
	host, err = dragonboat.NewNodeHost(config.NodeHostConfig{
		DeploymentID:        o.Cluster.deployment(),
		NodeHostDir:         dir,
		RTTMillisecond:      uint64(o.TickInterval.Milliseconds()),
		RaftAddress:         o.Disk.String(),
		EnableMetrics:       true,
		RaftEventListener:   listener,
		MaxSendQueueSize:    MaxSendQueue,
		MaxReceiveQueueSize: MaxReceiveQueue,
		Expert: config.ExpertConfig{
			TransportFactory: o.Transport,
			FS:               under,
			LogDB:            log,
			Engine: config.EngineConfig{
				ExecShards: execShards, CommitShards: execShards, ApplyShards: execShards,
				SnapshotShards: execShards, CloseShards: execShards,
			},
		},
	})
	if err == nil && host == nil {
		panic("it does not say why") // its own recovery swallows what is not an error
	}
	return host, err
}

// enter admits a call into the library, which does not survive calls after its end.
// The returned function must be called when the call is over.
func (c *Cluster) enter() (leave func(), err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, errClosed
	}
	c.calls++
	return c.leave, nil
}

func (c *Cluster) leave() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls--
	if c.closed && c.calls == 0 {
		close(c.idle)
	}
}

// Close stops the replicas and closes the log. Proposals that wait get
// ErrIndeterminate. Closing again returns the same error.
//
// Durability: nothing is pending; the log is durable before anything is answered.
func (c *Cluster) Close() error {
	c.closeOnce.Do(func() { c.closeErr = c.close() })
	return c.closeErr
}

func (c *Cluster) close() error {
	c.cancel()
	c.mu.Lock()
	c.closed = true
	if c.calls == 0 {
		close(c.idle)
	}
	groups := slices.Collect(maps.Values(c.groups))
	c.mu.Unlock()
	for _, g := range groups {
		g.queue.stop(errClosed)
	}
	<-c.idle
	c.loops.Wait()
	err := closeHost(c.host)
	c.waits.Wait()
	for _, g := range groups {
		g.end(errClosed)
	}
	c.metrics.unregister()
	return err
}

func closeHost(host *dragonboat.NodeHost) (err error) {
	defer func() {
		if cause := recover(); cause != nil {
			err = fmt.Errorf("close raft log: %v: %w", cause, scstore.ErrPoisoned)
		}
	}()
	host.Close()
	return nil
}

// Failed returns a channel that is closed when this host must not go on: an entry was
// made by a newer version, or the disk is full. Failure says which. Whoever owns the
// Cluster closes it and ends.
func (c *Cluster) Failed() <-chan struct{} { return c.failed }

// Failure returns why Failed is closed, nil before. Errors: ErrVersion, ErrCorrupt,
// ErrNoSpace.
func (c *Cluster) Failure() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.failure
}

func (c *Cluster) fail(err error) {
	c.mu.Lock()
	first := c.failure == nil
	if first {
		c.failure = err
		close(c.failed)
	}
	c.mu.Unlock()
	if first {
		c.logger.Error("this host must leave its groups", "err", err)
	}
}

// leaderListener hears of leaders from one goroutine of the library.
type leaderListener struct{ c *Cluster }

func (l leaderListener) LeaderUpdated(info raftio.LeaderInfo) {
	c := l.c
	c.mu.Lock()
	if g := c.groups[GroupID(info.ShardID)]; g != nil {
		g.leaderSince.Store(time.Now().UnixNano())
	}
	close(c.leaders)
	c.leaders = make(chan struct{})
	c.mu.Unlock()
	c.logger.Debug("leader changed", "group", info.ShardID, "replica", info.LeaderID, "term", info.Term)
}

// leaderChange returns a channel that is closed at the next change of any leader.
func (c *Cluster) leaderChange() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.leaders
}

// group finds a started group. Errors: ErrNotFound, ErrClosed.
func (c *Cluster) group(id GroupID) (*group, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, errClosed
	}
	g := c.groups[id]
	if g == nil {
		return nil, fmt.Errorf("group %d is not here: %w", id, scstore.ErrNotFound)
	}
	return g, nil
}

// bounded returns ctx with the Cluster's time limit; it ends when Close begins.
func (c *Cluster) bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(ctx, c.options.Timeout)
	stop := context.AfterFunc(c.ctx, cancel)
	return ctx, func() { stop(); cancel() }
}
