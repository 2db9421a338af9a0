package host

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"scstore"
	"scstore/consensus/meta"
	"scstore/internal/api"
	"scstore/propagate/quicnet"
)

// KindForward is the kind of the streams by which a host passes a call for a volume on to
// the host that writes it. The request is a call, in JSON, up to the end of the stream;
// the answer is lines as those of package api, the last of which has a result or an error.
const KindForward quicnet.Kind = 32

// Limits of forwarded calls.
const (
	MaxForwardBytes  = 64 << 10         // of a call
	MaxForwardLine   = 1 << 20          // of a line of its answer
	MaxForwards      = 64               // that a host carries out at once; more are ErrBusy
	forwardTimeout   = 10 * time.Second // for a call to arrive
	forwardLineEvery = 500 * time.Millisecond
)

// The methods of calls.
const (
	methodSnapshot = "snapshot"
	methodRollback = "rollback"
	methodRemove   = "remove"
	methodMove     = "move"
	methodInfo     = "info" // what the owner alone knows of a volume
)

// call is one call of the API that another host carries out.
type call struct {
	Method string            `json:"method"`
	Kind   api.Kind          `json:"kind,omitempty"`
	Name   string            `json:"name"`
	Remove api.RemoveOptions `json:"remove"`
	Move   api.Move          `json:"move"`
}

// answer is one line of a call's answer.
type answer struct {
	api.Line
	Removal *api.Removal `json:"removal,omitempty"`
}

// last reports whether no line follows.
func (a *answer) last() bool {
	return a.Error != nil || a.Removal != nil || a.Volume != nil || a.Rollback != nil || a.Move != nil
}

// parseCall reads a call from another host. Errors: ErrInvalid, ErrVersion for a method
// that this release does not have.
func parseCall(text []byte) (call, error) {
	var c call
	if len(text) > MaxForwardBytes {
		return c, fmt.Errorf("a call of more than %d bytes: %w", MaxForwardBytes, scstore.ErrInvalid)
	}
	d := json.NewDecoder(bytes.NewReader(text))
	if err := d.Decode(&c); err != nil {
		return c, fmt.Errorf("read a call: %v: %w", err, scstore.ErrInvalid)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return c, fmt.Errorf("read a call: more than one: %w", scstore.ErrInvalid)
	}
	switch c.Method {
	case methodSnapshot, methodRollback, methodRemove, methodMove, methodInfo:
		return c, nil
	}
	return c, fmt.Errorf("call %q: %w", c.Method, scstore.ErrVersion)
}

// readAnswer reads lines up to the last one. Errors: that of the answer;
// ErrIndeterminate if it stops before its end.
func readAnswer(r io.Reader, progress func(done, total int64)) (answer, error) {
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, 0, 4<<10), MaxForwardLine)
	for lines.Scan() {
		var a answer
		if err := json.Unmarshal(lines.Bytes(), &a); err != nil {
			return answer{}, fmt.Errorf("read the answer: %v: %w", err, scstore.ErrIndeterminate)
		}
		switch {
		case a.Error != nil:
			return answer{}, a.Error.Err()
		case a.last():
			return a, nil
		case progress != nil:
			progress(a.DoneBytes, a.TotalBytes)
		}
	}
	err := lines.Err()
	if err == nil {
		err = io.ErrUnexpectedEOF
	}
	return answer{}, fmt.Errorf("the answer did not come: %v: %w", err, scstore.ErrIndeterminate)
}

// forwardedKey marks the context of a call that another host passed on.
type forwardedKey struct{}

// ownedElsewhere reports whether another host may write what p names, or none.
func (h *Host) ownedElsewhere(p place) bool {
	return h.cluster != nil && p.Kind == meta.KindVolume && p.branch == nil && p.Holder != h.disk()
}

// forward passes a call on to the host that writes p, if that is another one, which
// elsewhere says. A call is passed on once: the owner may change meanwhile. Errors:
// ErrUnreachable and ErrBusy (nothing was done), ErrIndeterminate, and the owner's.
func (h *Host) forward(ctx context.Context, p place, c call, progress func(done, total int64)) (a answer, elsewhere bool, err error) {
	if !h.ownedElsewhere(p) || p.Holder == "" {
		return answer{}, false, nil
	}
	name := h.cluster.log.HostName(p.Holder)
	if ctx.Value(forwardedKey{}) != nil {
		return answer{}, true, scstore.Hint(fmt.Errorf("%q is written by host %s now: %w", p.Name, name, scstore.ErrBusy), "try again")
	}
	a, err = h.cluster.send(ctx, p.Holder, c, progress)
	if err == nil {
		h.cluster.seeToo(ctx, p.group)
	} else {
		err = fmt.Errorf("host %s, which writes %q: %w", name, p.Name, err)
		hint, hinted := errors.AsType[*scstore.HintError](err)
		switch {
		case hinted:
			err = &scstore.HintError{Err: err, Hint: hint.Hint}
		case errors.Is(err, scstore.ErrUnreachable):
			err = scstore.Hint(err, "start that host, or give the volume to another one: scstore volume promote %s --to SITE", p.Name)
		case errors.Is(err, scstore.ErrIndeterminate):
			err = scstore.Hint(err, "look with scstore volume info %s", p.Name)
		}
	}
	return a, true, err
}

// seeToo has this host apply what another one's answer speaks of, so that who asked here
// sees it here, too.
func (c *clustered) seeToo(ctx context.Context, g meta.GroupID) {
	for _, id := range []meta.GroupID{meta.GroupNamespace, g} {
		if err := c.log.Read(ctx, id, func(*meta.State) {}); err != nil {
			c.h.log.Debug("what was done elsewhere may not show here yet", "group", uint64(id), "err", err)
		}
	}
}

// send has another host carry a call out.
func (c *clustered) send(ctx context.Context, to meta.DiskID, what call, progress func(done, total int64)) (answer, error) {
	text, err := json.Marshal(what)
	if err != nil {
		return answer{}, fmt.Errorf("encode a call: %w", err)
	}
	id, err := storeID(to)
	if err != nil {
		return answer{}, err
	}
	s, err := c.log.Net().OpenStream(ctx, id, quicnet.ClassManifest, KindForward)
	if err != nil {
		return answer{}, err
	}
	stop := context.AfterFunc(ctx, func() { s.Cancel(scstore.ErrClosed) })
	defer stop()
	_, err = s.Write(text)
	if err == nil {
		err = s.CloseWrite()
	}
	if err != nil {
		s.Cancel(scstore.ErrClosed)
		return answer{}, fmt.Errorf("send the call: %v: %w", err, scstore.ErrIndeterminate)
	}
	a, err := readAnswer(s, progress)
	_ = s.Close() // the answer is here, or it is known that it is not
	if err != nil && ctx.Err() != nil {
		return answer{}, fmt.Errorf("%w: %w", context.Cause(ctx), scstore.ErrIndeterminate)
	}
	return a, err
}

// serveForward carries out the calls of other hosts.
func (c *clustered) serveForward(ctx context.Context, from quicnet.Peer, s *quicnet.Stream) error {
	select {
	case c.forwards <- struct{}{}:
		defer func() { <-c.forwards }()
	default:
		return refuse(s, fmt.Errorf("%d calls of other hosts at once: %w", MaxForwards, scstore.ErrBusy))
	}
	if err := s.SetDeadline(time.Now().Add(forwardTimeout)); err != nil {
		return fmt.Errorf("limit a call's time: %w", err)
	}
	text, err := io.ReadAll(io.LimitReader(s, MaxForwardBytes+1))
	if err != nil {
		return fmt.Errorf("read a call: %w", err)
	}
	if err := s.SetDeadline(time.Time{}); err != nil {
		return fmt.Errorf("limit a call's time: %w", err)
	}
	what, err := parseCall(text)
	if err != nil {
		s.Refuse(err)
		return refuse(s, err)
	}
	c.h.log.Debug("call of another host", "peer", from.Host, "method", what.Method, "volume", what.Name)
	return c.answer(context.WithValue(ctx, forwardedKey{}, from.Disk), s, what)
}

// answer carries a call out and writes its lines.
func (c *clustered) answer(ctx context.Context, w io.Writer, what call) error {
	out := json.NewEncoder(w)
	var last time.Time
	var a answer
	progress := func(done, total int64) {
		a.DoneBytes, a.TotalBytes = done, total
		if time.Since(last) < forwardLineEvery {
			return
		}
		last = time.Now()
		_ = out.Encode(a) // who asked and went away ends ctx
	}
	var err error
	switch what.Method {
	case methodSnapshot:
		var v api.Volume
		v, err = c.h.CreateSnapshot(ctx, what.Name, progress)
		a.Volume = &v
	case methodInfo:
		var v api.Volume
		v, err = c.h.Get(ctx, api.KindVolume, what.Name)
		a.Volume = &v
	case methodRollback:
		var r api.Rollback
		r, err = c.h.Rollback(ctx, what.Name, what.Remove, progress)
		a.Rollback = &r
	case methodRemove:
		var r api.Removal
		r, err = c.h.Remove(ctx, what.Kind, what.Name, what.Remove)
		a.Removal = &r
	case methodMove:
		var r api.MoveReport
		r, err = c.h.Move(ctx, what.Name, what.Move, progress)
		a.Move = &r
	}
	if err != nil {
		return refuse(w, err)
	}
	return out.Encode(a)
}

// refuse answers with an error.
func refuse(w io.Writer, err error) error {
	e, _ := api.NewError(err)
	return json.NewEncoder(w).Encode(answer{Line: api.Line{Error: &e}})
}
