package replica

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"scstore"
	"scstore/consensus/meta"
	"scstore/propagate"
)

// The limits of a Set.
const (
	MaxJumps  = 4   // on their way at once
	MaxSeals  = 4   // by time, at once
	MaxFills  = 4   // volumes that what is missing is brought of in the background
	MaxServed = 256 // requests of other hosts that are answered at once
	MaxOffers = 4   // manifests among those: they read what they are about
	MaxAsks   = 64  // proposals in the background at once; more are made later

	tickInterval = 250 * time.Millisecond
	wholeTick    = 5 * time.Second        // between two ticks that pass nothing over
	askInterval  = 400 * time.Millisecond // between two proposals of the same
	reviewAgain  = time.Second            // after a role that could not be taken
	askTimeout   = 10 * time.Second
	closeTimeout = 30 * time.Second
	defaultRTT   = 100 * time.Millisecond
)

// errClosing ends what is under way when a Set closes.
var errClosing = fmt.Errorf("this host is closing: %w", scstore.ErrClosed)

// Set is all replicas of this host. Safe for concurrent use.
type Set struct {
	o       Options
	log     *slog.Logger
	metrics *metrics
	begun   time.Time

	ctx    context.Context // ends with Close
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup
	wake   chan struct{} // holds one token: tick now

	jumps, sealers, fillers, served, offers, asks chan struct{} // hold a token for each that is under way

	moves moves

	unfinished []*Replica    // that the last process was making; set once
	wholeTick  time.Duration // tests set another one, before Start

	mu       sync.Mutex
	replicas map[scstore.VolumeID]*Replica
	asked    map[string]time.Duration
	flights  map[flightKey]*flight
	reports  map[meta.GroupID]*reports
	links    map[meta.DiskID]*propagate.Link // to hosts that asked for something
	seq      uint64                          // of the latest report
	watchers []Watcher
	closed   bool
}

// Open reads what this host has and serves what it owns, at once under its durable
// fence, unless it was handing it over. Nothing is asked of other hosts before Start.
// Errors: ErrInvalid, ErrCorrupt, ErrVersion.
func Open(ctx context.Context, o Options) (*Set, error) {
	if o.Disk == "" || o.Site == "" || o.Boot == 0 || o.Dir == "" || len(o.Groups) == 0 || o.Blocks == nil || o.Log == nil || o.Net == nil {
		return nil, fmt.Errorf("open replicas: an option is missing: %w", scstore.ErrInvalid)
	}
	o.Groups = slices.DeleteFunc(slices.Clone(o.Groups), func(g meta.GroupID) bool { return g == meta.GroupNamespace })
	if o.SealInterval == 0 {
		o.SealInterval = DefaultSealInterval
	}
	if o.HostName == nil {
		o.HostName = func(d meta.DiskID) string { return string(d) }
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	tokens := func(n int) chan struct{} { return make(chan struct{}, n) }
	s := &Set{
		o: o, log: o.Logger, begun: time.Now(), wake: tokens(1),
		jumps: tokens(MaxJumps), sealers: tokens(MaxSeals), fillers: tokens(MaxFills),
		served: tokens(MaxServed), offers: tokens(MaxOffers), asks: tokens(MaxAsks),
		replicas: map[scstore.VolumeID]*Replica{}, asked: map[string]time.Duration{},
		flights: map[flightKey]*flight{}, reports: map[meta.GroupID]*reports{},
		links: map[meta.DiskID]*propagate.Link{}, wholeTick: wholeTick,
	}
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	for _, g := range o.Groups {
		s.reports[g] = &reports{}
	}
	s.metrics = newMetrics(o.Registerer, s)
	if err := s.load(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("open replicas: %w", err), s.Close())
	}
	o.Net.Handle(KindVolumes, s.serve)
	if err := s.resumeMoves(); err != nil {
		return nil, errors.Join(fmt.Errorf("open replicas: %w", err), s.Close())
	}
	return s, nil
}

// load reads the facts, and opens what this host owns.
func (s *Set) load(ctx context.Context) error {
	all, err := readFacts(s.o.Dir)
	if err != nil {
		return err
	}
	for _, f := range all {
		if err := ctx.Err(); err != nil {
			return err
		}
		r := s.replica(f.ID)
		r.mu.Lock()
		r.facts, r.group, r.refused = f, f.Group, f.Floor
		err := r.load()
		if f.Creating {
			s.unfinished = append(s.unfinished, r)
		}
		r.mu.Unlock()
		if err != nil {
			return fmt.Errorf("volume %s: %w", f.ID, err)
		}
	}
	return nil
}

// load brings the facts and the table together, which a crash may have left a step
// apart. mu is held.
func (r *Replica) load() error {
	t, err := r.set.o.Blocks.Table(r.id)
	switch {
	case errors.Is(err, scstore.ErrNotFound):
		r.facts.Holds, r.facts.Jump, r.facts.Partial = nil, nil, scstore.Position{}
		if r.facts.Fence != 0 {
			return scstore.Hint(fmt.Errorf("it is written here, and its data are gone: %w", scstore.ErrCorrupt), "promote another copy, from another host")
		}
		return nil
	case err != nil:
		return err
	}
	r.table = t
	if r.facts.Head == (scstore.Position{}) && r.facts.Fence == 0 && !r.facts.Creating { // a crash may have come right after it was made
		if err := markBeginning(t); err != nil { // the next start tries again
			r.set.log.Warn("an empty table is of no use", "volume", r.id, "err", err)
		}
	}
	r.facts.Holds = slices.DeleteFunc(r.facts.Holds, func(at scstore.Position) bool { return !t.Marked(sealedTag(at)) })
	if at := r.facts.Partial; at != (scstore.Position{}) && !t.Marked(sealedTag(at)) {
		r.facts.Partial = scstore.Position{}
	}
	if j := r.facts.Jump; j != nil && j.To != (scstore.Position{}) && t.Marked(sealedTag(j.To)) {
		if j.Map { // the mark is the last step of each
			r.facts.Partial = j.To
		} else {
			r.facts.hold(j.To)
		}
		r.facts.Jump = nil
	}
	if r.facts.Fence != 0 && r.facts.Jump != nil { // of a rollback that did not come to its end
		if err := r.undoRollBack(); err != nil {
			return err
		}
	}
	if r.facts.Fence != 0 && r.facts.Draining == nil {
		v, dirty, err := r.openVolume()
		if err != nil {
			return err
		}
		r.serve(v, dirty)
	}
	return nil
}

// Start follows the log and begins to act on it. Errors: those of the log.
func (s *Set) Start() error {
	for _, g := range s.o.Groups {
		w, err := s.o.Log.Watch(g)
		if err != nil {
			return fmt.Errorf("start replicas: %w", err)
		}
		s.mu.Lock()
		s.watchers = append(s.watchers, w)
		s.mu.Unlock()
		if !s.spawn(func(ctx context.Context) { s.follow(ctx, g, w) }) {
			w.Close()
			return fmt.Errorf("start replicas: %w", errClosing)
		}
	}
	s.spawn(s.run)
	s.spawn(s.sweep)
	return nil
}

// Close makes what is written here durable, ends all that is under way, and waits for
// it. It is idempotent.
func (s *Set) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	watchers := s.watchers
	s.mu.Unlock()
	if s.moves.cancel != nil {
		s.closeMoves()
	}
	s.cancel(errClosing)
	for _, w := range watchers {
		w.Close()
	}
	s.wg.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	var errs []error
	for _, r := range s.all() {
		r.mu.Lock()
		if r.v != nil {
			if err := r.v.Flush(ctx); err != nil && !errors.Is(err, scstore.ErrFenced) {
				errs = append(errs, fmt.Errorf("close volume %s: %w", r.id, err))
			}
			_ = r.v.Close()
			r.v = nil
		}
		r.dropDevice(errClosing)
		r.endReaders(errClosing)
		r.mu.Unlock()
	}
	return errors.Join(errs...)
}

// spawn runs f in a goroutine that Close joins. It reports false if the Set is closed.
func (s *Set) spawn(f func(ctx context.Context)) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.wg.Go(func() { f(s.ctx) })
	return true
}

// take takes a token and runs f in the background, if there is one.
func (s *Set) take(tokens chan struct{}, f func(ctx context.Context)) bool {
	select {
	case tokens <- struct{}{}:
	default:
		return false
	}
	if s.spawn(func(ctx context.Context) {
		defer func() { <-tokens }()
		f(ctx)
	}) {
		return true
	}
	<-tokens
	return false
}

// run ticks until the Set closes.
func (s *Set) run(ctx context.Context) {
	t := time.NewTicker(tickInterval)
	defer t.Stop()
	wholeAt := time.Duration(0)
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		case <-s.wake:
		}
		whole := s.now() >= wholeAt
		if whole {
			wholeAt = s.now() + s.wholeTick
		}
		awake := s.awake()
		s.tickForks(awake)
		for _, g := range s.o.Groups {
			s.tick(g, awake, whole)
		}
	}
}

// wakeUp has the next tick come at once.
func (s *Set) wakeUp() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// now is monotonic, and says nothing of the date.
func (s *Set) now() time.Duration { return time.Since(s.begun) }

// rtt returns the round trip to a host, or a guess.
func (s *Set) rtt(disk meta.DiskID) time.Duration {
	if d := s.o.Net.RTT(disk); d > 0 {
		return d
	}
	return defaultRTT
}

// replica returns a volume's replica, a new one if nothing is known of it.
func (s *Set) replica(id scstore.VolumeID) *Replica {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.replicas[id]
	if r == nil {
		r = &Replica{set: s, id: id, sealing: make(chan struct{}, 1), bell: make(chan struct{}), readers: map[*device]func(){}}
		r.sealing <- struct{}{}
		s.replicas[id] = r
	}
	return r
}

// lookup returns a volume's replica, if something is known of it.
func (s *Set) lookup(id scstore.VolumeID) (*Replica, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, ok := s.replicas[id]
	return r, ok
}

// all returns all replicas, by id.
func (s *Set) all() []*Replica {
	s.mu.Lock()
	list := make([]*Replica, 0, len(s.replicas))
	for _, r := range s.replicas {
		list = append(list, r)
	}
	s.mu.Unlock()
	slices.SortFunc(list, func(a, b *Replica) int { return slices.Compare(a.id[:], b.id[:]) })
	return list
}

// awake returns the replicas that are not at rest, in any order.
func (s *Set) awake() (list []*Replica) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.replicas {
		if !r.rests.Load() {
			list = append(list, r)
		}
	}
	return list
}

// ask proposes in the background; the same key not more often than every askInterval.
// What becomes of it shows in the state.
func (s *Set) ask(key string, g meta.GroupID, op meta.Op) { s.tryAsk(key, g, op) }

// tryAsk is ask; it reports whether the proposal was sent on its way.
func (s *Set) tryAsk(key string, g meta.GroupID, op meta.Op) bool {
	now := s.now()
	s.mu.Lock()
	if at, ok := s.asked[key]; ok && now-at < askInterval {
		s.mu.Unlock()
		return false
	}
	if len(s.asked) > 1024 {
		for k, at := range s.asked {
			if now-at >= askInterval {
				delete(s.asked, k)
			}
		}
	}
	s.asked[key] = now
	s.mu.Unlock()
	return s.take(s.asks, func(ctx context.Context) {
		ctx, cancel := context.WithTimeout(ctx, askTimeout)
		defer cancel()
		if _, err := s.o.Log.ProposeSoon(ctx, g, op); err != nil && ctx.Err() == nil {
			s.log.Debug("a proposal was not taken", "what", key, "group", uint64(g), "err", err)
		}
	})
}

// groupOf returns the group that a volume's record is in.
func (s *Set) groupOf(id scstore.VolumeID) (meta.GroupID, error) {
	if r, ok := s.lookup(id); ok {
		r.mu.Lock()
		g := r.group
		r.mu.Unlock()
		if g != 0 {
			return g, nil
		}
	}
	for _, g := range s.o.Groups {
		found := false
		if err := s.o.Log.View(g, func(st *meta.State) { _, found = st.Get(id) }); err != nil {
			return 0, err
		}
		if found {
			return g, nil
		}
	}
	return 0, fmt.Errorf("volume %s: %w", id, scstore.ErrNotFound)
}

// serve answers one request of another host.
func (s *Set) serve(ctx context.Context, from meta.DiskID, stream propagate.Stream) error {
	select {
	case s.served <- struct{}{}:
		defer func() { <-s.served }()
	default:
		return fmt.Errorf("host %s asks for more than %d things at once: %w", s.o.HostName(from), MaxServed, scstore.ErrBusy)
	}
	select {
	case <-s.ctx.Done():
		return errClosing
	default:
	}
	counted := &countedStream{Stream: stream, written: s.metrics.served}
	return propagate.Serve(ctx, counted, library{s}, s.link(from))
}

// link returns what was learnt of the way to a host.
func (s *Set) link(to meta.DiskID) *propagate.Link {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.links[to]
	if l == nil {
		l = new(propagate.Link)
		s.links[to] = l
	}
	return l
}

// sweep removes, once the log was read as it is now, what a crash left of volumes that
// were being made here.
func (s *Set) sweep(ctx context.Context) {
	left := map[meta.GroupID][]*Replica{}
	for _, r := range s.unfinished {
		r.mu.Lock()
		left[r.group] = append(left[r.group], r)
		r.mu.Unlock()
	}
	for g, list := range left {
		for ctx.Err() == nil {
			records := map[scstore.VolumeID]meta.Record{}
			read, cancel := context.WithTimeout(ctx, askTimeout)
			err := s.o.Log.Read(read, g, func(st *meta.State) {
				for _, r := range list {
					if rec, ok := st.Get(r.id); ok {
						records[r.id] = rec
					}
				}
			})
			cancel()
			if err == nil {
				s.sweepGroup(g, list, records)
				break
			}
			pause(ctx, time.Second)
		}
	}
}

func (s *Set) sweepGroup(g meta.GroupID, list []*Replica, records map[scstore.VolumeID]meta.Record) {
	for _, r := range list {
		rec, ok := records[r.id]
		r.mu.Lock()
		var err error
		switch {
		case !r.facts.Creating: // owned meanwhile
		case !ok:
			s.log.Info("what a crash left of a volume is removed", "volume", r.id)
			_, err = r.forget()
		case rec.Kind == meta.KindImage || rec.Fence != 0:
			r.facts.Creating = false
			err = r.save()
		case rec.Life == meta.Live:
			s.ask("remove"+r.id.String(), g, meta.Remove{ID: r.id})
		}
		r.mu.Unlock()
		if err != nil {
			s.log.Warn("what a crash left of a volume is still here", "volume", r.id, "err", err)
		}
	}
}

// pause waits, unless ctx ends before.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
