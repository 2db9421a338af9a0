package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"scstore"
)

// The limits of the server.
const (
	MaxRequestBytes = 1 << 20          // of a JSON body
	MaxHeaderBytes  = 32 << 10         // of a request's header
	MaxRequests     = 256              // at once; more are ErrBusy
	MaxStreams      = 16               // imports and exports at once; more are ErrBusy
	headerTimeout   = 10 * time.Second // to read a request's header
	idleTimeout     = 2 * time.Minute  // between requests of a connection
	bodyTimeout     = 30 * time.Second // to read a JSON body
	lineInterval    = 500 * time.Millisecond
)

// Options configures a server.
type Options struct {
	Service  Service
	Gatherer prometheus.Gatherer // served at /metrics; nil serves none
	Logger   *slog.Logger        // nil discards
}

// Server serves the interface. Safe for concurrent use.
type Server struct {
	service  Service
	log      *slog.Logger
	http     *http.Server
	cancel   context.CancelCauseFunc // ends the contexts of all requests
	inflight atomic.Int64            // requests, for MaxRequests
	streams  chan struct{}           // a token for each import or export

	mu       sync.Mutex
	closed   bool
	handlers sync.WaitGroup // Add only with mu held and closed false
}

// NewServer returns a server that serves nothing yet.
func NewServer(o Options) *Server {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	s := &Server{service: o.Service, log: o.Logger, cancel: cancel, streams: make(chan struct{}, MaxStreams)}
	s.http = &http.Server{
		Handler:           s.limit(s.routes(o.Gatherer)),
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    MaxHeaderBytes,
		ErrorLog:          slog.NewLogLogger(o.Logger.Handler(), slog.LevelDebug),
	}
	return s
}

// Serve answers requests on l until Close, and closes l. It returns nil after
// Close.
func (s *Server) Serve(l net.Listener) error {
	if err := s.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve the API: %w", err)
	}
	return nil
}

// Close stops the server: no new request begins, requests that run get until ctx
// is done, then they are cancelled, which aborts imports. It returns after the
// last handler has returned (I3), which a handler does soon after its context is
// cancelled. Idempotent.
func (s *Server) Close(ctx context.Context) error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	err := s.http.Shutdown(ctx)
	s.cancel(scstore.ErrClosed)
	if err != nil {
		err = s.http.Close()
	}
	s.handlers.Wait()
	if err != nil {
		return fmt.Errorf("close the API: %w", err)
	}
	return nil
}

// begin counts a handler in, unless the server is closed.
func (s *Server) begin() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.handlers.Add(1)
	return true
}

// limit counts requests and refuses too many of them.
func (s *Server) limit(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !s.begin() {
			s.fail(w, r, fmt.Errorf("the host is stopping: %w", scstore.ErrClosed))
			return
		}
		defer s.handlers.Done()
		if s.inflight.Add(1) > MaxRequests {
			s.inflight.Add(-1)
			s.fail(w, r, fmt.Errorf("%d requests at once: %w", MaxRequests, scstore.ErrBusy))
			return
		}
		defer s.inflight.Add(-1)
		next.ServeHTTP(w, r)
	})
}

// routes returns the table of paths.
func (s *Server) routes(g prometheus.Gatherer) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", s.status)
	mux.HandleFunc("GET /v1/nbd", s.nbd)
	mux.HandleFunc("GET /v1/doctor", s.doctor)
	mux.HandleFunc("POST /v1/volumes", s.createVolume)
	mux.HandleFunc("POST /v1/volumes/{name}/snapshot", s.createSnapshot)
	mux.HandleFunc("POST /v1/volumes/{name}/rollback", s.rollback)
	for _, kind := range []Kind{KindVolume, KindImage} {
		path := "/v1/" + kind.plural()
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, r *http.Request) { s.list(w, r, kind) })
		mux.HandleFunc("GET "+path+"/{name}", func(w http.ResponseWriter, r *http.Request) { s.get(w, r, kind) })
		mux.HandleFunc("DELETE "+path+"/{name}", func(w http.ResponseWriter, r *http.Request) { s.remove(w, r, kind) })
		mux.HandleFunc("GET "+path+"/{name}/data", func(w http.ResponseWriter, r *http.Request) { s.export(w, r, kind) })
	}
	mux.HandleFunc("PUT /v1/images/{name}/data", s.importImage)
	s.sitesRoutes(mux)
	profileRoutes(mux)
	if g != nil {
		mux.Handle("GET /metrics", promhttp.HandlerFor(g, promhttp.HandlerOpts{}))
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		s.fail(w, r, scstore.Hint(fmt.Errorf("%s %q: %w", r.Method, r.URL.Path, scstore.ErrNotFound),
			"the client and the host may be of different versions: compare scstore version and scstore status"))
	})
	return mux
}

func (s *Server) status(w http.ResponseWriter, r *http.Request) {
	v, err := s.service.Status(r.Context())
	s.reply(w, r, http.StatusOK, v, err)
}

func (s *Server) nbd(w http.ResponseWriter, r *http.Request) {
	v, err := s.service.NBD(r.Context())
	s.reply(w, r, http.StatusOK, v, err)
}

func (s *Server) list(w http.ResponseWriter, r *http.Request, kind Kind) {
	v, err := s.service.List(r.Context(), kind)
	if v == nil {
		v = []Volume{}
	}
	s.reply(w, r, http.StatusOK, List{Volumes: v}, err)
}

func (s *Server) get(w http.ResponseWriter, r *http.Request, kind Kind) {
	v, err := s.service.Get(r.Context(), kind, r.PathValue("name"))
	s.reply(w, r, http.StatusOK, v, err)
}

func (s *Server) createVolume(w http.ResponseWriter, r *http.Request) {
	var req CreateVolume
	if err := decodeBody(w, r, &req); err != nil {
		s.fail(w, r, err)
		return
	}
	v, err := s.service.CreateVolume(r.Context(), req)
	s.reply(w, r, http.StatusCreated, v, err)
}

func (s *Server) remove(w http.ResponseWriter, r *http.Request, kind Kind) {
	v, err := s.service.Remove(r.Context(), kind, r.PathValue("name"), removeOptions(r))
	s.reply(w, r, http.StatusOK, v, err)
}

func removeOptions(r *http.Request) RemoveOptions {
	q := r.URL.Query()
	return RemoveOptions{Force: q.Get("force") == "1", DryRun: q.Get("dry_run") == "1"}
}

func (s *Server) doctor(w http.ResponseWriter, r *http.Request) {
	lines(w, func(l *Line, progress func(done, total int64)) error {
		report, err := s.service.Doctor(r.Context(), progress)
		l.Report = &report
		return err
	})
}

// createSnapshot is POST /v1/volumes/VOLUME@SNAPSHOT/snapshot.
func (s *Server) createSnapshot(w http.ResponseWriter, r *http.Request) {
	lines(w, func(l *Line, progress func(done, total int64)) error {
		v, err := s.service.CreateSnapshot(r.Context(), r.PathValue("name"), progress)
		l.Volume = &v
		return err
	})
}

// rollback is POST /v1/volumes/VOLUME@SNAPSHOT/rollback.
func (s *Server) rollback(w http.ResponseWriter, r *http.Request) {
	lines(w, func(l *Line, progress func(done, total int64)) error {
		v, err := s.service.Rollback(r.Context(), r.PathValue("name"), removeOptions(r), progress)
		l.Rollback = &v
		return err
	})
}

// lines does work that takes long and sends its progress as lines, so that a client
// sees that it goes on; work puts its result into the last one.
func lines(w http.ResponseWriter, work func(l *Line, progress func(done, total int64)) error) {
	w.Header().Set("Content-Type", "application/x-ndjson")
	out := json.NewEncoder(w)
	flush := http.NewResponseController(w)
	var last time.Time
	var l Line
	err := work(&l, func(done, total int64) {
		l.DoneBytes, l.TotalBytes = done, total
		if time.Since(last) < lineInterval {
			return
		}
		last = time.Now()
		// A client that went away ends the request's context, and so the work.
		_ = out.Encode(l)
		_ = flush.Flush()
	})
	if err != nil {
		e, _ := NewError(err)
		l = Line{DoneBytes: l.DoneBytes, TotalBytes: l.TotalBytes, Error: &e}
	}
	_ = out.Encode(l) // the same
}

// decodeBody reads a JSON body strictly.
func decodeBody(w http.ResponseWriter, r *http.Request, into any) error {
	if err := http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyTimeout)); err != nil {
		return fmt.Errorf("limit the request's time: %w", err)
	}
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, MaxRequestBytes))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return fmt.Errorf("read the request: %v: %w", err, scstore.ErrInvalid)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("read the request: more than one JSON value: %w", scstore.ErrInvalid)
	}
	if err := http.NewResponseController(w).SetReadDeadline(time.Time{}); err != nil {
		return fmt.Errorf("limit the request's time: %w", err)
	}
	return nil
}

// reply writes v, or err if there is one.
func (s *Server) reply(w http.ResponseWriter, r *http.Request, status int, v any, err error) {
	if err != nil {
		s.fail(w, r, err)
		return
	}
	writeJSON(w, status, v)
}

// fail writes an error.
func (s *Server) fail(w http.ResponseWriter, r *http.Request, err error) {
	e, status := NewError(err)
	level := slog.LevelDebug
	if e.Code == CodeInternal {
		level = slog.LevelError
	}
	s.log.Log(r.Context(), level, "request refused", "method", r.Method, "path", r.URL.Path, "code", e.Code, "err", err)
	writeJSON(w, status, e)
}

// writeJSON writes v as the answer. The error of a client that went away is of
// no use to anybody.
func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}
