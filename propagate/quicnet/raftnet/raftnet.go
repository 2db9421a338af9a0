package raftnet

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lni/dragonboat/v4/config"
	"github.com/lni/dragonboat/v4/raftio"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"

	"scstore"
	"scstore/propagate/quicnet"
	"scstore/propagate/quicnet/authority"
)

// The kinds of streams.
const (
	KindMessages  quicnet.Kind = 1
	KindSnapshots quicnet.Kind = 2
)

// Limits.
const (
	// MaxBatchBytes bounds a batch of messages. The library sends up to 64 MiB.
	MaxBatchBytes = 72 << 20
	// MaxChunkBytes bounds a chunk of a snapshot. The library sends 2 MiB.
	MaxChunkBytes = 8 << 20
	// MinSnapshotBytes is the slowest pace of snapshots, bytes per second.
	MinSnapshotBytes = 64 << 10

	snapshotStep = 32 << 10         // the pace decides about this much at once
	ackTimeout   = 30 * time.Second // for the receiver of a snapshot to take its end
	logEvery     = 10 * time.Second
)

// Options says what to build on.
type Options struct {
	Net *quicnet.Net
	// Owner returns an error if the disk must not send for this replica of the shard,
	// because it is known to be another disk's. A replica that nobody knows yet may
	// send: it is new.
	Owner func(shard, replica uint64, disk scstore.StoreID) error
	// SnapshotBytes is the pace of the snapshots that this host sends, all together, in
	// bytes per second; 0 means none.
	SnapshotBytes int64
	Logger        *slog.Logger // nil discards
	Registerer    prometheus.Registerer
}

// Factory makes the transport of one Raft host. It is what the library's
// Expert.TransportFactory takes.
type Factory struct {
	o       Options
	pace    *rate.Limiter // nil: none
	dropped prometheus.Counter
	chunks  prometheus.Counter
	seldom  rate.Sometimes
	current atomic.Pointer[transport]

	beatDelay time.Duration // tests set another one
}

var _ config.TransportFactory = (*Factory)(nil)

// New registers the streams of Raft on the Net, which must not be started yet. Errors:
// ErrInvalid.
func New(o Options) (*Factory, error) {
	if o.Net == nil || o.Owner == nil {
		return nil, fmt.Errorf("raft transport without network or owners: %w", scstore.ErrInvalid)
	}
	if o.SnapshotBytes < 0 || o.SnapshotBytes > 0 && o.SnapshotBytes < MinSnapshotBytes {
		return nil, fmt.Errorf("snapshots at %d bytes a second, want 0 or at least %d: %w", o.SnapshotBytes, MinSnapshotBytes, scstore.ErrInvalid)
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	f := &Factory{
		o: o, seldom: rate.Sometimes{Interval: logEvery}, beatDelay: beatDelay,
		dropped: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "scstore_raftnet_dropped_total", Help: "Messages dropped because their sender may not send them.",
		}),
		chunks: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "scstore_raftnet_received_chunks_total", Help: "Chunks of snapshots received.",
		}),
	}
	if o.SnapshotBytes > 0 {
		f.pace = rate.NewLimiter(rate.Limit(o.SnapshotBytes), int(max(snapshotStep, o.SnapshotBytes/20)))
	}
	if o.Registerer != nil {
		o.Registerer.MustRegister(f.dropped, f.chunks)
	}
	o.Net.Handle(KindMessages, f.serveMessages)
	o.Net.Handle(KindSnapshots, f.serveSnapshots)
	return f, nil
}

// Target returns the Raft address of a host.
func Target(disk scstore.StoreID) string { return disk.String() }

// Validate reports whether a text is a Raft address.
func (f *Factory) Validate(target string) bool {
	_, err := authority.ParseDisk(target)
	return err == nil
}

// Create makes the transport of a Raft host that begins. It takes the place of one
// that was closed.
func (f *Factory) Create(_ config.NodeHostConfig, messages raftio.MessageHandler, chunks raftio.ChunkHandler) raftio.ITransport {
	t := &transport{f: f, messages: messages, chunks: chunks, beats: map[string]*beats{}}
	t.ctx, t.cancel = context.WithCancel(context.Background())
	return t
}

// transport is what the library sends through, and who calls its handlers.
type transport struct {
	f        *Factory
	messages raftio.MessageHandler
	chunks   raftio.ChunkHandler
	ctx      context.Context
	cancel   context.CancelFunc

	mu     sync.Mutex // guards closed, Add against Wait, and beats
	closed bool
	beats  map[string]*beats // by where they go
	wg     sync.WaitGroup    // of streams that may call a handler
}

var _ raftio.ITransport = (*transport)(nil)

// Name returns the transport's name, for the library's log.
func (t *transport) Name() string { return "scstore-quic" }

// Start lets messages in.
func (t *transport) Start() error {
	if !t.f.current.CompareAndSwap(nil, t) {
		return fmt.Errorf("start raft transport: another one runs: %w", scstore.ErrBusy)
	}
	return nil
}

// Close cuts all streams and returns when no handler runs any more. It may be called
// again.
func (t *transport) Close() error {
	t.mu.Lock()
	t.closed = true
	t.mu.Unlock()
	t.cancel()
	t.wg.Wait()
	t.f.current.CompareAndSwap(t, nil)
	return nil
}

// enter counts a stream that may call a handler; false if none may any more.
func (t *transport) enter() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return false
	}
	t.wg.Add(1)
	return true
}

// GetConnection opens a stream for messages to a host, and one for heart-beats if there
// is none yet. Errors: as quicnet.Net.OpenStream.
func (t *transport) GetConnection(ctx context.Context, target string) (raftio.IConnection, error) {
	b, err := t.beatsTo(ctx, target)
	if err != nil {
		return nil, err
	}
	s, err := t.open(ctx, target, quicnet.ClassRaft, KindMessages)
	if err != nil {
		b.release()
		return nil, err
	}
	return &messageConn{s, b}, nil
}

// GetSnapshotConnection opens a stream for a snapshot to a host. Errors: as
// quicnet.Net.OpenStream.
func (t *transport) GetSnapshotConnection(ctx context.Context, target string) (raftio.ISnapshotConnection, error) {
	s, err := t.open(ctx, target, quicnet.ClassRepair, KindSnapshots)
	if err != nil {
		return nil, err
	}
	return &snapshotConn{s}, nil
}

func (t *transport) open(ctx context.Context, target string, class quicnet.Class, kind quicnet.Kind) (*sender, error) {
	disk, err := authority.ParseDisk(target)
	if err != nil {
		return nil, err
	}
	s, err := t.f.o.Net.OpenStream(ctx, disk, class, kind)
	if err != nil {
		return nil, err
	}
	return &sender{t: t, s: s, stop: context.AfterFunc(t.ctx, func() { s.Cancel(scstore.ErrClosed) })}, nil
}
