package quicnet

import (
	"errors"
	"fmt"
	"time"

	"github.com/quic-go/quic-go"

	"scstore"
)

// link is one connection whose two ends know each other. Its fields below conn are
// guarded by its peer's mu.
type link struct {
	n      *Net
	peer   *peer
	who    Peer
	conn   *quic.Conn
	slot   int  // 0: control; 1 to MaxBulk: in the pool
	dialed bool // by this host

	active    int       // streams that are open, in both directions
	idleSince time.Time // when active became 0
	retired   bool      // another link has its slot: no stream is opened on it any more
	closing   bool      // closed, or about to be: no stream is served any more
	seen      traffic   // when the pool was last looked at
}

// enter counts a stream of the peer that is about to be served. Errors: ErrClosed if
// the link is about to be closed, ErrBusy if the peer has too many.
func (l *link) enter() error {
	l.peer.mu.Lock()
	defer l.peer.mu.Unlock()
	if l.closing {
		return errClosed()
	}
	if l.peer.accepted >= MaxStreamsPerPeer {
		return fmt.Errorf("more than %d streams of %s: %w", MaxStreamsPerPeer, l.who.Host, scstore.ErrBusy)
	}
	l.enterLocked(true)
	return nil
}

func (l *link) enterLocked(accepted bool) {
	l.active++
	if accepted {
		l.peer.accepted++
	}
}

// leave undoes enter.
func (l *link) leave(accepted bool) {
	l.peer.mu.Lock()
	defer l.peer.mu.Unlock()
	l.active--
	if accepted {
		l.peer.accepted--
	}
	if l.active == 0 {
		l.idleSince = time.Now()
	}
}

// close ends the connection; streams on it fail.
func (l *link) close(c code, text string) {
	l.peer.mu.Lock()
	l.closing = true
	l.peer.mu.Unlock()
	_ = l.conn.CloseWithError(quic.ApplicationErrorCode(c), text) // a connection that is closed already is closed
}

// idleLocked reports whether the link should be closed for want of streams. The
// dialing end decides; the other one only about what has been retired for long.
func (l *link) idleLocked(now time.Time) bool {
	if l.active > 0 || l.closing {
		return false
	}
	idle := now.Sub(l.idleSince)
	switch {
	case l.retired && l.dialed:
		return idle >= sweepPeriod
	case l.retired, l.slot > 0 && l.dialed:
		return idle >= BulkIdle
	}
	return false
}

// serve accepts the peer's streams until the connection ends.
func (l *link) serve() {
	ctx := l.conn.Context()
	for {
		s, err := l.conn.AcceptStream(ctx)
		if err != nil {
			l.peer.remove(l, translate(err))
			return
		}
		if err := l.enter(); errors.Is(err, scstore.ErrClosed) {
			continue // the close, which is next, says that it was not looked at
		} else if err != nil {
			cancelStream(s, err)
			l.n.door.refusedStream(l.who, refuseStream(reasonLimit, err))
			continue
		}
		if !l.n.spawn(func() { l.handle(s) }) {
			cancelStream(s, scstore.ErrClosed)
			l.leave(true)
		}
	}
}

// cancelStream gives up both directions of a stream, which the peer is told.
func cancelStream(s *quic.Stream, err error) {
	c := quic.StreamErrorCode(codeOf(err))
	s.CancelRead(c)
	s.CancelWrite(c)
}

// denied reports whether the peer closed the connection because it does not want
// this host.
func denied(err error) bool {
	return errors.Is(err, scstore.ErrFenced) || errors.Is(err, scstore.ErrInvalid) || errors.Is(err, scstore.ErrNotFound) || errors.Is(err, scstore.ErrVersion)
}
