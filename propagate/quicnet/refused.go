package quicnet

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/qlog"
	"github.com/quic-go/quic-go/qlogwriter"
	"golang.org/x/time/rate"

	"scstore"
)

// Everything that is refused is counted. Of each reason logBurst lines are logged at
// once, so that a person who tries something sees why it fails, and then one every
// logEvery, which says how many were left out: noise does not fill a disk.
const (
	logEvery = 10 * time.Second
	logBurst = 4
)

// seldom lets some lines of a log through, and counts the others.
type seldom struct {
	limit *rate.Limiter

	mu   sync.Mutex // guards left
	left int        // out, since the last line
}

func newSeldom() *seldom { return &seldom{limit: rate.NewLimiter(rate.Every(logEvery), logBurst)} }

// do calls f, with how many calls were left out before, or leaves this one out.
func (s *seldom) do(f func(leftOut int)) {
	s.mu.Lock()
	if !s.limit.Allow() {
		s.left++
		s.mu.Unlock()
		return
	}
	left := s.left
	s.left = 0
	s.mu.Unlock()
	f(left)
}

// tally is the counter and the log of one reason.
type tally struct {
	count prometheus.Counter
	log   *seldom
}

// door counts and logs what was refused.
type door struct {
	log     *slog.Logger
	conns   map[reason]tally
	dialed  map[reason]*seldom // the log of those that this host dialed: it dials again and again
	streams map[reason]tally
	away    tally // connections that the other end refused
	strays  tally // packets
}

func newDoor(log *slog.Logger, m *metrics) *door {
	d := &door{
		log: log, conns: map[reason]tally{}, dialed: map[reason]*seldom{}, streams: map[reason]tally{},
		away: tally{m.turnedAway, newSeldom()}, strays: tally{m.strays, newSeldom()},
	}
	for _, r := range reasons {
		d.conns[r], d.dialed[r] = tally{m.refused.WithLabelValues(string(r)), newSeldom()}, newSeldom()
	}
	for _, r := range streamReasons {
		d.streams[r] = tally{m.streamsRefused.WithLabelValues(string(r)), newSeldom()}
	}
	return d
}

// refused records that a connection of somebody else was refused.
func (d *door) refused(addr net.Addr, err error) {
	r := reasonMalformed
	if known := (*refusal)(nil); errors.As(err, &known) {
		r = known.reason
	} else if timedOut(err) {
		r = reasonTimeout
	}
	d.conns[r].count.Inc()
	d.peerRefused(d.conns[r].log, r, addr, err)
}

// refusedDialed records that this host refused who answered when it dialed.
func (d *door) refusedDialed(addr net.Addr, why *refusal, err error) {
	d.conns[why.reason].count.Inc()
	d.peerRefused(d.dialed[why.reason], why.reason, addr, err)
}

func (d *door) peerRefused(log *seldom, r reason, addr net.Addr, err error) {
	log.do(func(leftOut int) {
		attrs := []any{"peer", addr.String(), "reason", string(r), "err", err}
		if known := (*refusal)(nil); errors.As(err, &known) && known.host != "" {
			attrs = append(attrs, "host", known.host)
		}
		d.log.Warn("peer refused", more(attrs, leftOut)...)
	})
}

// turnedAway records that a peer refused a connection of this host.
func (d *door) turnedAway(addr net.Addr, err error) {
	d.away.count.Inc()
	d.away.log.do(func(leftOut int) {
		d.log.Warn("this host is refused", more([]any{"peer", addr.String(), "err", err}, leftOut)...)
	})
}

// refusedStream records a stream of a peer that failed with err, if what the peer
// sent is why.
func (d *door) refusedStream(from Peer, err error) {
	r, ok := streamReason(err)
	if !ok {
		return
	}
	d.streams[r].count.Inc()
	d.streams[r].log.do(func(leftOut int) {
		d.log.Warn("stream refused", more([]any{"peer", from.Host, "addr", from.Addr, "reason", string(r), "err", err}, leftOut)...)
	})
}

// streamReason returns why a stream was refused; false if it failed for another
// reason than what the peer sent.
func streamReason(err error) (reason, bool) {
	var known *refusal
	var reset *quic.StreamError
	var closed *quic.ApplicationError
	switch {
	case errors.As(err, &known): // or a refusal that the handler met when it asked others
		return known.reason, known.stream
	case errors.As(err, &reset), errors.As(err, &closed): // it was the peer that gave up
		return "", false
	case errors.Is(err, scstore.ErrVersion):
		return reasonVersion, true
	case errors.Is(err, scstore.ErrInvalid):
		return reasonMalformed, true
	case errors.Is(err, scstore.ErrCorrupt):
		return reasonCorrupt, true
	}
	return "", false
}

// stray records a packet that belongs to no connection and begins none. from may be
// nil: not known.
func (d *door) stray(from net.Addr, why string) {
	d.strays.count.Inc()
	d.strays.log.do(func(leftOut int) {
		attrs := []any{"reason", why}
		if from != nil {
			attrs = append(attrs, "from", from.String())
		}
		d.log.Info("stray packet dropped", more(attrs, leftOut)...)
	})
}

// more adds how many lines were left out.
func more(attrs []any, leftOut int) []any {
	if leftOut > 0 {
		attrs = append(attrs, "more", leftOut)
	}
	return attrs
}

// timedOut reports whether something did not come in time.
func timedOut(err error) bool {
	var timeout net.Error
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) || errors.As(err, &timeout) && timeout.Timeout()
}

// strays tells the door of packets that the QUIC library drops before they reach a
// connection. It is the tracer of the transport, which has no other events of
// interest.
type strays struct{ d *door }

var _ qlogwriter.Recorder = strays{}

// RecordEvent counts a packet that is dropped.
func (s strays) RecordEvent(event qlogwriter.Event) {
	if dropped, ok := event.(qlog.PacketDropped); ok {
		s.d.stray(nil, string(dropped.Trigger))
	}
}

// Close does nothing.
func (strays) Close() error { return nil }

// readStrays takes packets that are not of QUIC until the Net is closed: the library
// drops them without a word if nobody asks for them.
func (n *Net) readStrays() {
	b := make([]byte, 1)
	for {
		_, from, err := n.transport.ReadNonQUICPacket(n.ctx, b)
		if err != nil {
			return
		}
		n.door.stray(from, "not QUIC")
	}
}
