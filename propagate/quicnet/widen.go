package quicnet

import "time"

// The congestion control of a connection takes every lost packet for a full link, so on a
// long path that loses packets for other reasons even the pool leaves most of the link
// idle. A full link has a queue before it, which the round trips show. While packets are
// lost and there is no queue, the pool grows.
const (
	// widenPeriod is the time between two looks.
	widenPeriod = time.Second
	// widenPackets is how many packets were sent before their losses say anything.
	widenPackets = 500
	// widenLoss is the share of lost packets, one of so many, from which on the pool grows.
	widenLoss = 5000
	// widenQueue is how much longer round trips are where there is a queue, in percent.
	widenQueue = 25
)

// traffic is what connections sent, and how many of those packets were lost.
type traffic struct{ sent, lost int64 }

// widen adds connections to pools from time to time.
func (n *Net) widen() {
	ticker := time.NewTicker(widenPeriod)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			for _, p := range n.all() {
				p.widen()
			}
		case <-n.ctx.Done():
			return
		}
	}
}

// widen dials half as many connections as the busy pool has, if they would help. What it
// dialed is closed as the rest of the pool is, when nobody needs it.
func (p *peer) widen() {
	p.mu.Lock()
	defer p.mu.Unlock()
	pool, least, mean := p.lookLocked()
	t := p.recent
	if pool == 0 || t.sent < widenPackets {
		return
	}
	p.recent = traffic{}
	if t.lost*widenLoss < t.sent || mean > least+least*widenQueue/100 {
		return
	}
	more := max(pool/2, 1)
	for slot := 1; slot <= MaxBulk && more > 0; slot++ {
		if p.slots[slot] == nil && p.attempts[slot] == nil {
			if _, err := p.dialLocked(slot); err != nil {
				return
			}
			more--
		}
	}
}

// lookLocked counts the connections of the pool that have streams, and what was sent on
// them since the last look. It returns the least round trip of all connections, and the
// mean of those.
func (p *peer) lookLocked() (pool int, least, mean time.Duration) {
	for l := range p.links {
		s := l.conn.ConnectionStats()
		if s.MinRTT > 0 && (least == 0 || s.MinRTT < least) {
			least = s.MinRTT
		}
		now := traffic{int64(s.PacketsSent), int64(s.PacketsLost)}
		since := traffic{now.sent - l.seen.sent, now.lost - l.seen.lost}
		l.seen = now
		if l.slot == 0 || l.active == 0 {
			continue
		}
		p.recent.sent += since.sent
		p.recent.lost += since.lost // less than nothing if packets came late after all
		pool++
		mean += s.SmoothedRTT
	}
	if pool > 0 {
		mean /= time.Duration(pool)
	}
	return pool, least, mean
}
