package propagate

import (
	"cmp"
	"fmt"
	"slices"

	"scstore"
	"scstore/propagate/wire"
)

// The limits of a jump.
const (
	// DefaultRequestBlocks is how much one request asks for: 1 MiB.
	DefaultRequestBlocks = SpanBlocks
	// MaxInFlightBlocks bounds what is asked for and not yet here: 64 MiB, the
	// bandwidth-delay product of 1.7 Gbit/s over 300 ms.
	MaxInFlightBlocks = 16 << 10
	// MaxSources bounds the hosts that a jump asks.
	MaxSources = 64
	// MaxTries is how often a span that fails to verify is fetched again: the first
	// time without a base, then whole.
	MaxTries = 2
)

// SpanDigest is the digest of one span.
type SpanDigest struct {
	Number uint64
	Digest scstore.Digest
}

// JumpOptions says what to bring where.
type JumpOptions struct {
	Volume   scstore.VolumeID
	From, To scstore.Position // From is zero if nothing is held
	Window   scstore.Extent   // whole spans; at most wire.MaxWindowBlocks
	// Root returns the root over the digests, which ascend, of touched spans of a
	// volume of that size. Required.
	Root func(sizeBytes int64, spans []SpanDigest) scstore.Digest
	// RequestBlocks is how much one request asks for; default DefaultRequestBlocks.
	RequestBlocks int
	// InFlightBlocks bounds what is asked for at once; default and most
	// MaxInFlightBlocks.
	InFlightBlocks int
}

func (o JumpOptions) withDefaults() JumpOptions {
	if o.RequestBlocks == 0 {
		o.RequestBlocks = DefaultRequestBlocks
	}
	if o.InFlightBlocks == 0 {
		o.InFlightBlocks = MaxInFlightBlocks
	}
	return o
}

// Validate reports what is wrong with the options. Errors: ErrInvalid.
func (o JumpOptions) Validate() error {
	o = o.withDefaults()
	switch {
	case o.Root == nil, o.Volume.IsZero(), o.From == o.To:
		return fmt.Errorf("jump of %s from %s to %s: nothing to do: %w", o.Volume, o.From, o.To, scstore.ErrInvalid)
	case o.Window.Count == 0, o.Window.Count > wire.MaxWindowBlocks, uint64(o.Window.First)%SpanBlocks != 0:
		return fmt.Errorf("jump of %s: window %+v: %w", o.Volume, o.Window, scstore.ErrInvalid)
	case o.RequestBlocks < 1, o.InFlightBlocks < 1, o.InFlightBlocks > MaxInFlightBlocks:
		return fmt.Errorf("jump of %s: %d blocks a request, %d at once: %w", o.Volume, o.RequestBlocks, o.InFlightBlocks, scstore.ErrInvalid)
	}
	return nil
}

// Jump is the state of one jump. Not safe for concurrent use.
type Jump struct {
	o        JumpOptions
	manifest wire.Manifest
	begun    bool
	complete bool // the manifest is
	extents  uint64
	blocks   uint64
	last     scstore.BlockIndex // end of the last extent
	digests  int

	spans    []span // ascending
	next     int    // every span before it is not waiting
	staged   []int  // indexes of spans to verify
	verified int

	requests map[RequestID]*request
	lastID   RequestID
	inFlight int
	gone     uint64 // sources that are asked no more, a bit each
	progress Progress
}

// RequestID names an open request of a jump.
type RequestID uint64

// request is an open request.
type request struct {
	source int
	spans  []int // indexes
	raw    bool
	blocks int             // still counted in flight
	absent map[int]*bitmap // by span index: what the source has not got
}

// Progress says how far a jump is, or the windows of a fetch that were begun.
type Progress struct {
	Blocks   uint64 // to be fetched
	Staged   uint64 // of those, here
	Payload  uint64 // bytes that came for them
	Spans    int    // touched
	Verified int    // of those
	Again    int    // spans that had to be fetched again
}

// plus adds what another window has.
func (p Progress) plus(q Progress) Progress {
	return Progress{
		Blocks: p.Blocks + q.Blocks, Staged: p.Staged + q.Staged, Payload: p.Payload + q.Payload,
		Spans: p.Spans + q.Spans, Verified: p.Verified + q.Verified, Again: p.Again + q.Again,
	}
}

// NewJump begins a jump; the manifest comes next. Errors: ErrInvalid.
func NewJump(o JumpOptions) (*Jump, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	return &Jump{o: o.withDefaults(), requests: map[RequestID]*request{}}, nil
}

// ManifestRequest returns what to ask for first.
func (j *Jump) ManifestRequest() wire.ManifestRequest {
	return wire.ManifestRequest{Volume: j.o.Volume, From: j.o.From, To: j.o.To, Window: j.o.Window}
}

// corrupt is an answer that does not fit what was asked.
func (j *Jump) corrupt(format string, args ...any) error {
	return fmt.Errorf("jump of %s to %s: %s: %w", j.o.Volume, j.o.To, fmt.Sprintf(format, args...), scstore.ErrCorrupt)
}

// Manifest begins the manifest. Errors: ErrCorrupt if it answers another request.
func (j *Jump) Manifest(m wire.Manifest) error {
	if j.begun || m.Volume != j.o.Volume || m.From != j.o.From || m.To != j.o.To || m.Window != j.o.Window {
		return j.corrupt("manifest of %s from %s to %s", m.Volume, m.From, m.To)
	}
	j.manifest, j.begun = m, true
	return nil
}

// Extents adds changed blocks. Errors: ErrCorrupt if they do not go on where the
// last ones ended, leave the window or are more than was said.
func (j *Jump) Extents(list []scstore.Extent) error {
	if !j.begun || j.complete || j.digests > 0 {
		return j.corrupt("extents out of turn")
	}
	end := min(j.o.Window.End(), scstore.BlockIndex(j.manifest.SizeBytes/scstore.BlockSize))
	for _, e := range list {
		if e.First < max(j.o.Window.First, j.last) || e.End() > end || e.Count == 0 {
			return j.corrupt("extent %+v of the manifest", e)
		}
		j.last = e.End()
		j.extents++
		j.blocks += e.Count
		eachSpan(e, func(number uint64, first, count int) {
			if n := len(j.spans); n == 0 || j.spans[n-1].number != number {
				j.spans = append(j.spans, span{number: number})
			}
			j.spans[len(j.spans)-1].changed.set(first, count)
		})
	}
	if j.extents > j.manifest.Extents || j.blocks > j.manifest.Blocks {
		return j.corrupt("more extents than the manifest names")
	}
	return nil
}

// Spans adds digests, in the order of the touched spans; untouched ones between them
// are not allowed. Errors: ErrCorrupt.
func (j *Jump) Spans(s wire.Spans) error {
	if !j.begun || j.complete {
		return j.corrupt("digests out of turn")
	}
	for i, d := range s.Digests {
		if j.digests == len(j.spans) || j.spans[j.digests].number != s.First+uint64(i) {
			return j.corrupt("digest of span %d, which did not change", s.First+uint64(i))
		}
		j.spans[j.digests].digest = d
		j.digests++
	}
	return nil
}

// ManifestEnd ends the manifest: from here on Next says what to ask. Errors:
// ErrCorrupt if something is missing, or the root is not that of the digests.
func (j *Jump) ManifestEnd() error {
	if !j.begun || j.complete || j.extents != j.manifest.Extents || j.blocks != j.manifest.Blocks || j.digests != len(j.spans) {
		return j.corrupt("the manifest ends after %d of %d extents", j.extents, j.manifest.Extents)
	}
	list := make([]SpanDigest, len(j.spans))
	for i := range j.spans {
		s := &j.spans[i]
		s.missing = s.changed
		list[i] = SpanDigest{s.number, s.digest}
	}
	if j.o.Root(j.manifest.SizeBytes, list) != j.manifest.Root {
		return j.corrupt("the manifest's digests do not give its root")
	}
	j.complete = true
	j.progress = Progress{Blocks: j.blocks, Spans: len(j.spans)}
	return nil
}

// Changed returns the extents of the manifest. Precondition: it has ended.
func (j *Jump) Changed() []scstore.Extent {
	var out []scstore.Extent
	for i := range j.spans {
		out = j.spans[i].changed.appendExtents(out, j.spans[i].start())
	}
	return out
}

// ChangedIn returns those in one span. Precondition: the manifest has ended.
func (j *Jump) ChangedIn(number uint64) []scstore.Extent {
	i, ok := j.find(number)
	if !ok {
		return nil
	}
	return j.spans[i].changed.appendExtents(nil, j.spans[i].start())
}

// Zeros returns those extents of the manifest that lie in spans of which the digest says
// that they hold only zeros: it is that of hole. They need not be fetched. Precondition:
// the manifest has ended.
func (j *Jump) Zeros(hole scstore.Digest) []scstore.Extent {
	var out []scstore.Extent
	for i := range j.spans {
		if j.spans[i].digest == hole {
			out = j.spans[i].changed.appendExtents(out, j.spans[i].start())
		}
	}
	return out
}

// Missing returns the blocks still to be fetched.
func (j *Jump) Missing() []scstore.Extent {
	var out []scstore.Extent
	for i := range j.spans {
		out = j.spans[i].missing.appendExtents(out, j.spans[i].start())
	}
	return out
}

// Have says that blocks are staged already, by an attempt before this one. What is
// wrong about that shows when their spans are verified. Precondition: the manifest
// has ended and nothing was asked yet.
func (j *Jump) Have(list []scstore.Extent) {
	for _, e := range list {
		eachSpan(e, func(number uint64, first, count int) {
			if i, ok := j.find(number); ok {
				before := j.spans[i].missing.count()
				j.spans[i].missing.unset(first, count)
				j.progress.Staged += uint64(before - j.spans[i].missing.count())
			}
		})
	}
	for i := range j.spans {
		j.settle(i)
	}
}

func (j *Jump) find(number uint64) (int, bool) {
	return slices.BinarySearchFunc(j.spans, number, func(s span, n uint64) int { return cmp.Compare(s.number, n) })
}

// settle puts a span that lacks nothing up for verification, and one that lacks
// something and is not asked for up for asking.
func (j *Jump) settle(i int) {
	switch s := &j.spans[i]; {
	case s.state != spanWaiting && s.state != spanAsked:
	case s.missing == bitmap{}:
		s.state = spanStaged
		j.staged = append(j.staged, i)
	default:
		s.state = spanWaiting
		j.next = min(j.next, i)
	}
}

// Next returns a request to send to a source (0 to MaxSources-1), or false if there
// is nothing to ask it for now: enough is under way, all was asked for, or it has not
// got what is left.
func (j *Jump) Next(source int) (RequestID, wire.BlocksRequest, bool) {
	var m wire.BlocksRequest
	if !j.complete || source < 0 || source >= MaxSources || j.gone&(1<<source) != 0 {
		return 0, m, false
	}
	r := &request{source: source, absent: map[int]*bitmap{}}
	for i := j.next; i < len(j.spans); i++ {
		s := &j.spans[i]
		if s.state != spanWaiting {
			if i == j.next {
				j.next++
			}
			continue
		}
		n := s.missing.count()
		if s.lacking&(1<<source) != 0 || len(r.spans) > 0 && r.raw != s.raw() {
			continue
		}
		if len(r.spans) > 0 && (r.blocks+n > j.o.RequestBlocks || len(m.Extents)+n > wire.MaxExtents) || j.inFlight > 0 && j.inFlight+r.blocks+n > j.o.InFlightBlocks {
			break
		}
		r.raw = s.raw()
		r.spans = append(r.spans, i)
		r.blocks += n
		s.state = spanAsked
		m.Extents = s.missing.appendExtents(m.Extents, s.start())
	}
	if len(r.spans) == 0 {
		return 0, m, false
	}
	j.lastID++
	j.requests[j.lastID] = r
	j.inFlight += r.blocks
	m.Volume, m.Position = j.o.Volume, j.o.To
	if !r.raw {
		m.Base = j.o.From
	}
	return j.lastID, m, true
}

// Run is told of a run that came for a request, before it is decoded, and reports
// whether to keep it: blocks that came twice are not kept again. Errors: ErrCorrupt
// for blocks that the request did not name.
func (j *Jump) Run(id RequestID, m wire.Run) (keep bool, err error) {
	r := j.requests[id]
	if r == nil {
		return false, j.corrupt("blocks for a request that is not open")
	}
	number, first := uint64(m.First)/SpanBlocks, int(uint64(m.First)%SpanBlocks)
	i, ok := j.find(number)
	if !ok || first+m.Blocks > SpanBlocks || !slices.Contains(r.spans, i) {
		return false, j.corrupt("blocks %d+%d, which were not asked for", m.First, m.Blocks)
	}
	return j.spans[i].missing.all(first, m.Blocks), nil
}

// Staged says that the blocks of a run that was to be kept are staged.
func (j *Jump) Staged(id RequestID, m wire.Run) {
	i, ok := j.find(uint64(m.First) / SpanBlocks)
	if !ok {
		return
	}
	j.spans[i].missing.unset(int(uint64(m.First)%SpanBlocks), m.Blocks)
	if r := j.requests[id]; r != nil {
		n := min(m.Blocks, r.blocks)
		r.blocks -= n
		j.inFlight -= n
	}
	j.progress.Staged += uint64(m.Blocks)
	j.progress.Payload += uint64(len(m.Payload))
}

// BadBase says that a run came as a delta against a base that is not what is held:
// its span is fetched again without one.
func (j *Jump) BadBase(m wire.Run) {
	if i, ok := j.find(uint64(m.First) / SpanBlocks); ok && j.spans[i].tries == 0 {
		j.spans[i].tries = 1
		j.progress.Again++
	}
}

// Absent says that the source of a request has not got blocks.
func (j *Jump) Absent(id RequestID, list []scstore.Extent) {
	r := j.requests[id]
	if r == nil {
		return
	}
	for _, e := range list {
		eachSpan(e, func(number uint64, first, count int) {
			i, ok := j.find(number)
			if !ok || !slices.Contains(r.spans, i) {
				return
			}
			if r.absent[i] == nil {
				r.absent[i] = new(bitmap)
			}
			r.absent[i].set(first, count)
		})
	}
}

// Close ends a request, whether it was answered or broke off. What it did not bring
// is asked for again; if it was answered to its end, of another source. Closing it
// again does nothing.
func (j *Jump) Close(id RequestID, answered bool) {
	r := j.requests[id]
	if r == nil {
		return
	}
	delete(j.requests, id)
	j.inFlight -= r.blocks
	for _, i := range r.spans {
		// Whoever answered to the end has no more of what is missing, unless a base
		// was wrong: then it has it in another form.
		if s := &j.spans[i]; answered && s.missing != (bitmap{}) && (s.raw() == r.raw || s.missing.within(r.absent[i])) {
			s.lacking |= 1 << r.source
		}
		j.settle(i)
	}
}

// Drop says that a source is asked no more.
func (j *Jump) Drop(source int) { j.gone |= 1 << source }

// Verify returns a span to read back, whole, from what is staged, or false if there
// is none now. Verified is told what it is.
func (j *Jump) Verify() (number uint64, ok bool) {
	if len(j.staged) == 0 {
		return 0, false
	}
	i := j.staged[0]
	j.staged = j.staged[1:]
	j.spans[i].state = spanVerifying
	return j.spans[i].number, true
}

// Verified says what digest a span that Verify returned has. A wrong one has it
// fetched again; each source is asked anew. Errors: ErrCorrupt if that was tried
// MaxTries times: the jump has failed.
func (j *Jump) Verified(number uint64, d scstore.Digest) error {
	i, ok := j.find(number)
	if !ok || j.spans[i].state != spanVerifying {
		return j.corrupt("span %d is not being verified", number)
	}
	s := &j.spans[i]
	if d == s.digest {
		s.state = spanVerified
		j.verified++
		return nil
	}
	if s.tries == MaxTries {
		return j.corrupt("span %d fails to verify, fetched %d times", number, MaxTries+1)
	}
	s.tries++
	j.progress.Again++
	s.missing, s.lacking, s.state = s.changed, 0, spanWaiting
	if s.tries == MaxTries { // what it did not change may be what is wrong
		size := uint64(j.manifest.SizeBytes / scstore.BlockSize)
		s.missing.set(0, int(min(SpanBlocks, size-number*SpanBlocks)))
	}
	again := s.missing.count()
	j.progress.Blocks += uint64(again)
	j.next = min(j.next, i)
	return nil
}

// Done reports whether everything is staged and verified.
func (j *Jump) Done() bool { return j.complete && j.verified == len(j.spans) }

// Stuck reports whether no source (of the first n) has what is left, and nothing is
// under way.
func (j *Jump) Stuck(n int) bool {
	if !j.complete || len(j.requests) > 0 || len(j.staged) > 0 || j.Done() {
		return false
	}
	every := uint64(1)<<n - 1
	if n >= MaxSources {
		every = 1<<64 - 1
	}
	for i := range j.spans {
		switch s := &j.spans[i]; {
		case s.state == spanVerifying:
			return false
		case s.state == spanWaiting && (s.lacking|j.gone)&every != every:
			return false
		}
	}
	return true
}

// Progress returns how far the jump is.
func (j *Jump) Progress() Progress {
	p := j.progress
	p.Verified = j.verified
	return p
}
