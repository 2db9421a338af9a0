package propagate

import (
	"fmt"
	"io"

	"scstore"
	"scstore/propagate/wire"
)

// Offer is what a sender knows for the answer to a manifest request.
type Offer struct {
	Request   wire.ManifestRequest
	SizeBytes int64            // of the volume at Request.To
	Changed   []scstore.Extent // within the window, ascending, not touching; may name unchanged blocks
	// Digest returns a span's digest at Request.To. Write calls it once for each span that
	// Changed touches, in order; Serve does so on several goroutines at once.
	Digest func(number uint64) (scstore.Digest, error)
	Root   func(sizeBytes int64, spans []SpanDigest) scstore.Digest
}

// Write writes the frames of the manifest and returns it. All digests are made
// before the first frame is written, since the root comes first. Errors: of Digest,
// of w.
func (o Offer) Write(w io.Writer) (wire.Manifest, error) {
	extents := coarsen(o.Changed, wire.MaxManifestExtents)
	m := wire.Manifest{
		Volume: o.Request.Volume, From: o.Request.From, To: o.Request.To, Window: o.Request.Window,
		SizeBytes: o.SizeBytes, Extents: uint64(len(extents)),
	}
	var spans []SpanDigest
	var err error
	for _, e := range extents {
		m.Blocks += e.Count
		eachSpan(e, func(number uint64, _, _ int) {
			if n := len(spans); err != nil || n > 0 && spans[n-1].Number == number {
				return
			}
			s := SpanDigest{Number: number}
			s.Digest, err = o.Digest(number)
			spans = append(spans, s)
		})
		if err != nil {
			return m, fmt.Errorf("offer %s at %s: %w", m.Volume, m.To, err)
		}
	}
	m.Root = o.Root(m.SizeBytes, spans)
	return m, writeManifest(w, m, extents, spans)
}

func writeManifest(w io.Writer, m wire.Manifest, extents []scstore.Extent, spans []SpanDigest) error {
	frame := m.AppendTo(nil)
	flush := func() error {
		_, err := w.Write(frame)
		frame = frame[:0]
		return err
	}
	for len(extents) > 0 {
		n := min(len(extents), wire.MaxExtents)
		frame = wire.AppendExtents(frame, wire.KindExtents, extents[:n])
		extents = extents[n:]
		if err := flush(); err != nil {
			return err
		}
	}
	for len(spans) > 0 { // a frame for each run of consecutive spans
		s := wire.Spans{First: spans[0].Number}
		for len(spans) > 0 && len(s.Digests) < wire.MaxSpans && spans[0].Number == s.First+uint64(len(s.Digests)) {
			s.Digests = append(s.Digests, spans[0].Digest)
			spans = spans[1:]
		}
		frame = s.AppendTo(frame)
		if err := flush(); err != nil {
			return err
		}
	}
	frame = wire.End{Blocks: m.Blocks}.AppendTo(frame)
	return flush()
}

// coarsen joins neighbours until at most limit extents are left. It doubles the gap
// that it closes, beginning with one block, so few blocks are named for nothing.
func coarsen(list []scstore.Extent, limit int) []scstore.Extent {
	for gap := scstore.BlockIndex(1); len(list) > limit; gap *= 2 {
		out := list[:0:0]
		for _, e := range list {
			if n := len(out); n > 0 && e.First-out[n-1].End() <= gap {
				out[n-1].Count = uint64(e.End() - out[n-1].First)
			} else {
				out = append(out, e)
			}
		}
		list = out
	}
	return list
}
