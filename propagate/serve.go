package propagate

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"scstore"
	"scstore/propagate/wire"
)

// sendBufferBytes gathers small frames.
const sendBufferBytes = 64 << 10

// Library is what a host has of the volumes. Both methods are called concurrently;
// release is called once, after the last use.
type Library interface {
	// Offer answers for a window. Errors: ErrNotFound if the volume, or one of the
	// positions, is not here; ErrBusy; ErrFenced.
	Offer(ctx context.Context, m wire.ManifestRequest) (o Offer, release func(), err error)
	// Open returns a volume at a position. Errors as for Offer.
	Open(ctx context.Context, volume scstore.VolumeID, p scstore.Position) (r Reader, release func(), err error)
}

// Link is what was learnt of the way to one peer: whether answers wait for it, or for
// the processor. The zero value knows nothing. Safe for concurrent use.
type Link struct{ slow atomic.Bool }

// Slow reports whether answers wait for the link: then they are made as small as they can
// be.
func (l *Link) Slow() bool { return l.slow.Load() }

// learn takes how long an answer took to make, and how long to send. Between the two
// bounds it stays as it is, since the smaller form takes longer to make.
func (l *Link) learn(making, sending time.Duration) {
	switch {
	case sending > 2*making:
		l.slow.Store(true)
	case sending < making:
		l.slow.Store(false)
	}
}

// timedWriter counts the time that writes take.
type timedWriter struct {
	w    io.Writer
	took time.Duration
}

func (t *timedWriter) Write(p []byte) (int, error) {
	begin := time.Now()
	n, err := t.w.Write(p)
	t.took += time.Since(begin)
	return n, err
}

// answerers keeps the memory for answers from one to the next.
var answerers = sync.Pool{New: func() any { return new(Answerer) }}

// Serve reads the request off a stream, answers it and returns. link is the way to who
// asks. The stream stays open. Errors: of the stream; ErrCorrupt for what is no request.
// What the library refuses is answered with the reason, and is no error.
func Serve(ctx context.Context, s Stream, l Library, link *Link) error {
	kind, body, err := wire.ReadFrame(s, nil)
	if err != nil {
		return unfinished(err)
	}
	timed := &timedWriter{w: s}
	w := bufio.NewWriterSize(timed, sendBufferBytes)
	switch kind {
	case wire.KindManifestRequest:
		err = serveManifest(ctx, w, body, l)
	case wire.KindBlocksRequest:
		begin := time.Now()
		var end wire.End
		if end, err = serveBlocks(ctx, w, body, l, link); end.Bytes >= sendBufferBytes { // less says nothing
			link.learn(time.Since(begin)-timed.took, timed.took)
		}
	default:
		return fmt.Errorf("serve a request of kind %d: %w", kind, scstore.ErrCorrupt)
	}
	return errors.Join(err, w.Flush())
}

func serveManifest(ctx context.Context, w *bufio.Writer, body []byte, l Library) error {
	m, err := wire.ParseManifestRequest(body)
	if err != nil {
		return err
	}
	o, release, err := l.Offer(ctx, m)
	if err != nil {
		return refuse(w, err)
	}
	defer release()
	if o.Digest, err = digests(ctx, o); err != nil {
		err = fmt.Errorf("offer %s at %s: %w", m.Volume, m.To, err)
	} else {
		_, err = o.Write(w)
	}
	if err != nil && w.Buffered() == 0 {
		return refuse(w, err) // nothing was sent: the reason can be
	}
	return err
}

// digests makes the digests of an offer on all processors at once: whoever asked waits for
// the last of them. What it returns has them. Errors: of Digest; ctx's.
func digests(ctx context.Context, o Offer) (func(number uint64) (scstore.Digest, error), error) {
	var numbers []uint64
	for _, e := range o.Changed {
		eachSpan(e, func(number uint64, _, _ int) {
			if n := len(numbers); n == 0 || numbers[n-1] != number {
				numbers = append(numbers, number)
			}
		})
	}
	made := make([]scstore.Digest, len(numbers))
	g, ctx := errgroup.WithContext(ctx)
	var next atomic.Int64
	for range min(runtime.GOMAXPROCS(0), len(numbers)) {
		g.Go(func() error {
			for i := int(next.Add(1)) - 1; i < len(numbers) && ctx.Err() == nil; i = int(next.Add(1)) - 1 {
				d, err := o.Digest(numbers[i])
				if err != nil {
					return err
				}
				made[i] = d
			}
			return context.Cause(ctx)
		})
	}
	return func(number uint64) (scstore.Digest, error) {
		if i, ok := slices.BinarySearch(numbers, number); ok {
			return made[i], nil
		}
		return o.Digest(number) // between two extents that are named as one
	}, g.Wait()
}

func serveBlocks(ctx context.Context, w *bufio.Writer, body []byte, l Library, link *Link) (end wire.End, err error) {
	m, err := wire.ParseBlocksRequest(body)
	if err != nil {
		return end, err
	}
	at, release, err := l.Open(ctx, m.Volume, m.Position)
	if err != nil {
		return end, refuse(w, err)
	}
	defer release()
	var base Reader
	if m.Base != (scstore.Position{}) {
		// Without the base the answer is longer, and as good.
		if r, release, err := l.Open(ctx, m.Volume, m.Base); err == nil {
			defer release()
			base = r
		}
	}
	a := answerers.Get().(*Answerer)
	defer answerers.Put(a)
	a.encoder.Slow = link.Slow()
	return a.Answer(w, m, at, base)
}

// refuse answers with the reason.
func refuse(w *bufio.Writer, err error) error {
	m := wire.Refusal{Code: wire.RefusedFailed, Text: err.Error()}
	switch {
	case errors.Is(err, scstore.ErrNotFound):
		m.Code = wire.RefusedPosition
	case errors.Is(err, scstore.ErrBusy):
		m.Code = wire.RefusedBusy
	case errors.Is(err, scstore.ErrFenced):
		m.Code = wire.RefusedFenced
	}
	_, err = w.Write(m.AppendTo(nil))
	return err
}
