package wan

import (
	"math/rand/v2"
	"time"
)

// MaxFlight bounds the packets of a directed pair that are queued or under way:
// 1 Gbit/s over half a second in packets of 1500 bytes, with room to spare.
const MaxFlight = 1 << 16

// model is one directed link in virtual time: a queue, a transmitter with a rate,
// and a wire with a delay. It draws from the given source only and knows the time
// only from its callers, whose now never goes back.
//
// Loss is drawn when a packet joins the queue; a packet that will be lost takes its
// part of queue and rate all the same, as on a real wire.
type model[P any] struct {
	link Link
	rng  *rand.Rand

	queue   ring[queued[P]] // in sending order; the first is being sent
	backlog int64           // bytes in queue
	free    time.Duration   // when the transmitter will have sent all of queue
	wire    ring[flying[P]] // sent, by due, equal ones in sending order
	lastDue time.Duration   // the latest due so far
	stats   Stats
}

// queued waits for the transmitter or is in it.
type queued[P any] struct {
	sent    time.Duration // when its last bit will have left
	jitter  time.Duration
	size    int
	lost    bool // payload is empty then
	payload P
}

// flying was sent and has not arrived.
type flying[P any] struct {
	due     time.Duration
	size    int
	payload P
}

func newModel[P any](link Link, rng *rand.Rand) *model[P] {
	return &model[P]{link: link, rng: rng}
}

// send gives a packet of size bytes to the link. If it says false the packet was
// dropped and the caller keeps the payload.
func (m *model[P]) send(now time.Duration, size int, payload P) bool {
	m.advance(now)
	m.stats.Sent++
	m.stats.SentBytes += uint64(size)
	switch {
	case m.link.Down:
		m.stats.Cut++
		return false
	case m.backlog > 0 && m.backlog+int64(size) > m.link.queueBytes(), m.queue.len()+m.wire.len() >= MaxFlight:
		m.stats.Overflowed++
		return false
	}
	q := queued[P]{size: size}
	if m.link.Jitter > 0 {
		q.jitter = time.Duration(m.rng.Int64N(int64(m.link.Jitter) + 1))
	}
	if q.lost = m.link.Loss > 0 && m.rng.Float64() < m.link.Loss; q.lost {
		m.stats.Lost++
	} else {
		q.payload = payload
		m.stats.InFlight++
	}
	m.free = max(m.free, now) + m.link.sending(size)
	q.sent = m.free
	m.queue.push(q)
	m.backlog += int64(size)
	m.advance(now) // without a rate it is on the wire at once
	return !q.lost
}

// advance moves what the transmitter has sent by now to the wire.
func (m *model[P]) advance(now time.Duration) {
	for m.queue.len() > 0 && m.queue.at(0).sent <= now {
		q := m.queue.pop()
		m.backlog -= int64(q.size)
		if !q.lost {
			m.fly(q)
		}
	}
}

// fly puts a packet on the wire. Without jitter it overtakes none, even if the
// delay has become shorter meanwhile (I3).
func (m *model[P]) fly(q queued[P]) {
	due := q.sent + m.link.Delay + q.jitter
	if m.link.Jitter == 0 {
		due = max(due, m.lastDue)
	}
	m.lastDue = max(m.lastDue, due)
	m.wire.push(flying[P]{due: due, size: q.size, payload: q.payload})
	// A packet overtakes as many others as its jitter allows, few at usual rates.
	for i := m.wire.len() - 1; i > 0 && m.wire.at(i-1).due > due; i-- {
		a, b := m.wire.at(i-1), m.wire.at(i)
		*a, *b = *b, *a
	}
}

// next returns the earliest moment at which take may return a packet; ok is false
// if there is none to wait for.
func (m *model[P]) next() (due time.Duration, ok bool) {
	if m.queue.len() > 0 {
		due, ok = m.queue.at(0).sent+m.link.Delay, true // jitter only adds to it
	}
	if m.wire.len() > 0 && (!ok || m.wire.at(0).due < due) {
		due, ok = m.wire.at(0).due, true
	}
	return due, ok
}

// take returns a packet that has arrived by now, the earliest first, and counts it
// as delivered; ok is false if there is none.
func (m *model[P]) take(now time.Duration) (payload P, ok bool) {
	m.advance(now)
	if m.wire.len() == 0 || m.wire.at(0).due > now {
		return payload, false
	}
	f := m.wire.pop()
	m.stats.InFlight--
	m.stats.Delivered++
	m.stats.DeliveredBytes += uint64(f.size)
	return f.payload, true
}

// refuse says that a packet of size bytes that take returned was not accepted.
func (m *model[P]) refuse(size int) {
	m.stats.Delivered--
	m.stats.DeliveredBytes -= uint64(size)
	m.stats.Refused++
}

// set changes the link. What is on the wire keeps its time of arrival; what is in
// the queue goes on at the new rate, the packet that is being sent from its
// beginning, with the new delay. A link that is down loses both.
func (m *model[P]) set(now time.Duration, link Link) {
	m.advance(now)
	old := m.link
	m.link = link
	if link.Down {
		m.stats.Cut += m.stats.InFlight
		m.stats.InFlight = 0
		m.queue, m.wire, m.backlog, m.free, m.lastDue = ring[queued[P]]{}, ring[flying[P]]{}, 0, now, now
		return
	}
	if old.BitsPerSecond == link.BitsPerSecond {
		return
	}
	m.free = now
	for i := range m.queue.len() {
		q := m.queue.at(i)
		m.free += link.sending(q.size)
		q.sent = m.free
	}
	m.advance(now)
}
