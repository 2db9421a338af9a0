package propagate

import (
	"bufio"
	"context"
	"errors"
	"fmt"

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

// Serve reads the request off a stream, answers it and returns. The stream stays
// open. Errors: of the stream; ErrCorrupt for what is no request. What the library
// refuses is answered with the reason, and is no error.
func Serve(ctx context.Context, s Stream, l Library) error {
	kind, body, err := wire.ReadFrame(s, nil)
	if err != nil {
		return unfinished(err)
	}
	w := bufio.NewWriterSize(s, sendBufferBytes)
	switch kind {
	case wire.KindManifestRequest:
		err = serveManifest(ctx, w, body, l)
	case wire.KindBlocksRequest:
		err = serveBlocks(ctx, w, body, l)
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
	if _, err = o.Write(w); err != nil && w.Buffered() == 0 {
		return refuse(w, err) // nothing was sent: the reason can be
	}
	return err
}

func serveBlocks(ctx context.Context, w *bufio.Writer, body []byte, l Library) error {
	m, err := wire.ParseBlocksRequest(body)
	if err != nil {
		return err
	}
	at, release, err := l.Open(ctx, m.Volume, m.Position)
	if err != nil {
		return refuse(w, err)
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
	_, err = new(Answerer).Answer(w, m, at, base)
	return err
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
