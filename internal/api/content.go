package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"

	"scstore"
)

// statusStep is how much of a source is asked for its holes at once, in bytes.
const statusStep = 256 << 20

// takeStream takes one of MaxStreams.
func (s *Server) takeStream() error {
	select {
	case s.streams <- struct{}{}:
		return nil
	default:
		return scstore.Hint(fmt.Errorf("%d imports and exports at once: %w", MaxStreams, scstore.ErrBusy), "try again once one of them has ended")
	}
}

// giveStream gives it back.
func (s *Server) giveStream() { <-s.streams }

// importImage is PUT /v1/images/NAME/data.
func (s *Server) importImage(w http.ResponseWriter, r *http.Request) {
	if err := s.takeStream(); err != nil {
		s.fail(w, r, err)
		return
	}
	defer s.giveStream()
	// By default the server reads on before it answers, and what feeds the client
	// may bring nothing for long: a failed import is answered at once.
	if err := http.NewResponseController(w).EnableFullDuplex(); err != nil {
		s.fail(w, r, fmt.Errorf("import: %w", err))
		return
	}
	v, err := s.receive(r.Context(), r.PathValue("name"), r.Body)
	if err != nil {
		w.Header().Set("Connection", "close")
	}
	s.reply(w, r, http.StatusCreated, v, err)
}

// receive fills an image from a stream. Invariant I1.
func (s *Server) receive(ctx context.Context, name string, body io.Reader) (v Volume, err error) {
	in, err := NewStreamReader(body)
	if err != nil {
		return Volume{}, fmt.Errorf("import %q: %w", name, err)
	}
	imp, err := s.service.BeginImport(ctx, name, in.Size())
	if err != nil {
		return Volume{}, err
	}
	defer func() {
		if err != nil {
			if abortErr := imp.Abort(); abortErr != nil {
				s.log.Error("import not removed", "volume", name, "err", abortErr)
			}
		}
	}()
	for ctx.Err() == nil {
		f, err := in.Next()
		switch {
		case errors.Is(err, io.EOF):
			return imp.Commit(ctx)
		case err != nil:
			return Volume{}, fmt.Errorf("import %q: %w", name, err)
		case f.Data == nil:
			err = imp.Zero(f.Offset, f.Length)
		default:
			err = imp.WriteAt(f.Data, f.Offset)
		}
		if err != nil {
			return Volume{}, fmt.Errorf("import %q: %w", name, err)
		}
	}
	return Volume{}, fmt.Errorf("import %q: %w", name, context.Cause(ctx))
}

// export is GET /v1/.../NAME/data.
func (s *Server) export(w http.ResponseWriter, r *http.Request, kind Kind) {
	if err := s.takeStream(); err != nil {
		s.fail(w, r, err)
		return
	}
	defer s.giveStream()
	name := r.PathValue("name")
	src, err := s.service.OpenSource(r.Context(), kind, name)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	defer func() {
		if err := src.Close(); err != nil {
			s.log.Error("export not closed", "volume", name, "err", err)
		}
	}()
	w.Header().Set("Content-Type", "application/octet-stream")
	out, err := NewStreamWriter(w, src.Size())
	if err != nil {
		return // the client went away
	}
	if err := send(r.Context(), out, src); err != nil {
		// If the cause was the client, this fails too.
		_ = out.Abort(fmt.Errorf("export %q: %w", name, err))
		return
	}
	_ = out.End() // the same
}

// send writes what src holds, without its holes, in order of offset.
func send(ctx context.Context, out *StreamWriter, src Source) error {
	buf := make([]byte, MaxFrameData)
	var ranges []scstore.Range
	for off := int64(0); off < src.Size(); {
		var err error
		ranges, err = src.Status(off, min(statusStep, src.Size()-off), ranges[:0])
		if err != nil {
			return err
		}
		for _, rg := range ranges {
			off += rg.Length
			if rg.State == scstore.RangeHole {
				continue
			}
			if err := sendRange(ctx, out, src, rg, buf); err != nil {
				return err
			}
		}
	}
	return nil
}

// sendRange writes one range of data; what became a hole since is left out.
func sendRange(ctx context.Context, out *StreamWriter, src Source, rg scstore.Range, buf []byte) error {
	var holes []scstore.Range
	for off, end := rg.Offset, rg.Offset+rg.Length; off < end; {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		p := buf[:min(int64(len(buf)), end-off)]
		var err error
		if holes, err = src.ReadAt(p, off, holes[:0]); err != nil {
			return err
		}
		at := off
		for _, h := range holes {
			if err := out.Data(p[at-off:h.Offset-off], at); err != nil {
				return err
			}
			at = h.Offset + h.Length
		}
		if err := out.Data(p[at-off:], at); err != nil {
			return err
		}
		off += int64(len(p))
	}
	return nil
}
