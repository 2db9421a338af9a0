package nbd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"

	"scstore"
)

// The server's defaults and limits.
const (
	DefaultMaxConnections   = 1024             // open connections
	DefaultHandshakeTimeout = 30 * time.Second // from accept to the transmission phase
	DefaultCloseTimeout     = 10 * time.Second // for requests in progress, once the server ends
	DefaultShutdownGrace    = 50 * time.Millisecond

	MaxWorkers        = 16       // goroutines of one connection that wait for a device
	MaxFlushWaiters   = 1024     // FLUSH and FUA requests of one connection that wait
	MaxHandedOffBytes = 64 << 20 // payload of one connection that workers hold
	MaxCacheBytes     = 32 << 20 // bytes that one CACHE request reads ahead

	acceptRetryMin = 5 * time.Millisecond
	acceptRetryMax = time.Second

	warningBurst = 20 // lines before the logging of bad clients slows down
)

// Device is what an export stands on: a volume. All methods are safe for
// concurrent use. Offsets and lengths are bytes, of any alignment, and have been
// checked against Size. Errors wrap the root sentinels.
type Device interface {
	// Size is fixed while the device is open, in bytes.
	Size() int64
	// ReadOnly reports whether writes are refused.
	ReadOnly() bool
	// ReadAt fills all of p, zeros included, and appends to holes the
	// sub-ranges that hold no data, in order. It may wait for a device.
	ReadAt(p []byte, off int64, holes []scstore.Range) ([]scstore.Range, error)
	// ReadNowAt is ReadAt if that needs not wait; else ok is false and p is
	// undefined.
	ReadNowAt(p []byte, off int64, holes []scstore.Range) (h []scstore.Range, ok bool, err error)
	// WriteAt makes p visible to reads at once; it does not keep p.
	WriteAt(p []byte, off int64) error
	// Zero writes zeroes as metadata; keep asks that the space stays reserved.
	Zero(off, length int64, keep bool) error
	// Discard forgets the whole blocks within the range.
	Discard(off, length int64) error
	// Publish is called before writes, zeroes and discards are acknowledged:
	// they survive the end of the process after it.
	Publish() error
	// Flush makes everything that was applied before it durable. It includes
	// Publish.
	Flush(ctx context.Context) error
	// Status appends consecutive ranges that cover exactly the range asked for.
	Status(off, length int64, dst []scstore.Range) ([]scstore.Range, error)
}

// ExportInfo names one export.
type ExportInfo struct {
	Name        string
	Description string // one line for people; may be empty
}

// Export is an open export. Close is called once, after the last use of Device.
type Export struct {
	Device      Device
	Name        string // the canonical name
	Description string
	MultiConn   bool // a flush on one connection covers writes acknowledged on any
	// Revoked ends this connection when it ends, as a stop of the server would:
	// requests in progress are finished, further ones answered ESHUTDOWN. nil means
	// never.
	Revoked context.Context
	Gate    *Gate // shared by the connections of a volume; nil is always open
	Close   func() error
}

// Exports is what a server serves. Both methods are called concurrently.
type Exports interface {
	// List returns the exports that a client may know of.
	List(ctx context.Context) ([]ExportInfo, error)
	// Open opens an export; "" is the default export, if there is one.
	// Errors: ErrNotFound and whatever keeps it from being opened.
	Open(ctx context.Context, name string) (Export, error)
}

// Options configure a server. Zero values mean the defaults above.
type Options struct {
	Exports          Exports // required
	Logger           *slog.Logger
	Registerer       prometheus.Registerer // one server each
	MaxConnections   int
	HandshakeTimeout time.Duration
	CloseTimeout     time.Duration
	ShutdownGrace    time.Duration // how long requests still get ESHUTDOWN for an answer
}

func (o Options) withDefaults() Options {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.MaxConnections <= 0 {
		o.MaxConnections = DefaultMaxConnections
	}
	if o.HandshakeTimeout <= 0 {
		o.HandshakeTimeout = DefaultHandshakeTimeout
	}
	if o.CloseTimeout <= 0 {
		o.CloseTimeout = DefaultCloseTimeout
	}
	if o.ShutdownGrace <= 0 {
		o.ShutdownGrace = DefaultShutdownGrace
	}
	return o
}

// Server serves exports on any number of listeners.
type Server struct {
	o       Options
	metrics *metrics
	slots   chan struct{} // one token per open connection

	ctx    context.Context // ends when Close is called
	cancel context.CancelCauseFunc
	serves sync.WaitGroup

	mu     sync.Mutex // guards closed, and serves.Add against serves.Wait
	closed bool

	// What strangers can cause is logged at most about once a second.
	warnings rate.Sometimes
	unlogged atomic.Int64
}

// NewServer makes a server; Serve starts it. Precondition: o.Exports is set.
func NewServer(o Options) *Server {
	o = o.withDefaults()
	s := &Server{o: o, metrics: newMetrics(o.Registerer), slots: make(chan struct{}, o.MaxConnections),
		warnings: rate.Sometimes{First: warningBurst, Interval: time.Second}}
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	s.metrics.limitConns.Set(float64(o.MaxConnections))
	s.metrics.limitInFlight.Set(MaxHandedOffBytes)
	return s
}

// Serve accepts connections from l, which it closes, until ctx ends or Close is
// called; then requests in progress are finished, further ones answered ESHUTDOWN,
// and the connections closed. It returns nil if all of that ended within
// Options.CloseTimeout. Errors: ErrClosed after Close; what the listener returned;
// ErrBusy if connections outlived the timeout (their sockets are closed).
//
// Concurrency: one call per listener, any number of listeners.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return errors.Join(fmt.Errorf("serve nbd on %s: %w", l.Addr(), scstore.ErrClosed), l.Close())
	}
	s.serves.Add(1)
	s.mu.Unlock()
	defer s.serves.Done()

	// soft ends the accepting and reading, hard whatever is still in progress.
	soft, cancelSoft := context.WithCancelCause(ctx)
	defer cancelSoft(nil)
	defer context.AfterFunc(s.ctx, func() { cancelSoft(scstore.ErrClosed) })()
	hard, cancelHard := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancelHard(nil)
	defer context.AfterFunc(soft, func() { _ = l.Close() })() // the accept loop reports what matters

	var conns sync.WaitGroup
	err := s.accept(soft, hard, l, &conns)
	cancelSoft(err)
	return errors.Join(err, s.join(&conns, cancelHard))
}

// accept runs until the listener or soft ends.
func (s *Server) accept(soft, hard context.Context, l net.Listener, conns *sync.WaitGroup) error {
	retry := acceptRetryMin
	for {
		nc, err := l.Accept()
		switch {
		case soft.Err() != nil:
			if err == nil {
				_ = nc.Close()
			}
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("serve nbd on %s: %w", l.Addr(), err)
		case err != nil:
			// Out of descriptors or memory: others may free some.
			s.o.Logger.Warn("nbd accept", "err", err, "dur", retry)
			select {
			case <-soft.Done():
			case <-time.After(retry):
			}
			retry = min(2*retry, acceptRetryMax)
			continue
		}
		retry = acceptRetryMin
		select {
		case s.slots <- struct{}{}:
		default:
			s.metrics.refused.Inc()
			s.warn(s.o.Logger, "nbd connection refused: too many", "connections", s.o.MaxConnections)
			_ = nc.Close()
			continue
		}
		conns.Go(func() {
			defer func() { <-s.slots }()
			s.metrics.connections.Inc()
			defer s.metrics.connections.Dec()
			s.serveConn(soft, hard, nc)
		})
	}
}

// join waits for the connections of one Serve, at most CloseTimeout, and then
// closes their sockets and waits as long again.
func (s *Server) join(conns *sync.WaitGroup, cancelHard context.CancelCauseFunc) error {
	done := make(chan struct{})
	go func() {
		conns.Wait()
		close(done)
	}()
	timer := time.NewTimer(s.o.CloseTimeout)
	defer timer.Stop()
	select {
	case <-done:
		return nil
	case <-timer.C:
	}
	cancelHard(scstore.ErrClosed)
	timer.Reset(s.o.CloseTimeout)
	select {
	case <-done:
		return fmt.Errorf("close nbd: connections were cut off after %s: %w", s.o.CloseTimeout, scstore.ErrBusy)
	case <-timer.C:
		return fmt.Errorf("close nbd: devices still busy after %s: %w", 2*s.o.CloseTimeout, scstore.ErrBusy)
	}
}

// Close ends every Serve and waits for them, for at most twice CloseTimeout and a
// little more. It is idempotent.
func (s *Server) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.cancel(scstore.ErrClosed)
	s.serves.Wait() // bounded: each Serve bounds its own end
	return nil
}

// serveConn runs one connection from accept to close.
func (s *Server) serveConn(soft, hard context.Context, nc net.Conn) {
	defer func() { _ = nc.Close() }() // nothing is left to say to the peer
	defer context.AfterFunc(hard, func() { _ = nc.Close() })()

	log := s.o.Logger.With("peer", nc.RemoteAddr().String())
	c := newConn(s, nc, hard, log)
	_ = nc.SetReadDeadline(time.Now().Add(s.o.HandshakeTimeout))
	defer context.AfterFunc(soft, c.drain)()

	ok, err := c.handshake()
	if err != nil || !ok {
		s.logEnd(log, "nbd handshake ended", err)
		return
	}
	log.Info("nbd export opened", "volume", c.export.Name, "bytes", c.size, "read_only", c.readOnly)
	err = c.transmit()
	s.logEnd(log, "nbd connection ended", err)
}

// logEnd reports why a connection ended; a client that goes away is not news.
func (s *Server) logEnd(log *slog.Logger, message string, err error) {
	if err == nil || isDisconnect(err) {
		log.Debug(message, "err", err) //nolint:sloglint // a constant of its callers
		return
	}
	s.warn(log, message, "err", err)
}

// warn logs unless too much was logged just now; the next line says how much was
// left out.
func (s *Server) warn(log *slog.Logger, message string, args ...any) {
	shown := false
	s.warnings.Do(func() {
		shown = true
		log.Warn(message, append(args, "unlogged", s.unlogged.Swap(0))...) //nolint:sloglint // a constant of its callers
	})
	if !shown {
		s.unlogged.Add(1)
	}
}
