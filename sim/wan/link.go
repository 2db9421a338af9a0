package wan

import (
	"fmt"
	"math"
	"time"

	"scstore"
)

// Kbit, Mbit and Gbit are bits per second, for Link.BitsPerSecond.
const (
	Kbit int64 = 1000
	Mbit       = 1000 * Kbit
	Gbit       = 1000 * Mbit
)

// Limits of a link.
const (
	// MaxDelay bounds the delay and the jitter of a link.
	MaxDelay = time.Minute
	// MaxBitsPerSecond bounds the rate of a link.
	MaxBitsPerSecond = 1000 * Gbit
	// MaxQueueBytes bounds the queue before a link.
	MaxQueueBytes = 1 << 30
	// MinDefaultQueueBytes is the default queue of a link that is slow or short.
	MinDefaultQueueBytes = 64 << 10
)

// Link is one direction between two sites. The zero value is a perfect link.
type Link struct {
	// Delay is the time from the moment when a packet's last bit was sent to its
	// arrival: one way.
	Delay time.Duration `json:"delay_ns"`
	// Jitter adds to each packet's delay a random part of itself, evenly
	// distributed. Packets may then overtake one another.
	Jitter time.Duration `json:"jitter_ns,omitempty"`
	// BitsPerSecond is the rate at which packets are sent, with their IP headers; 0
	// is without limit.
	BitsPerSecond int64 `json:"bits_per_second,omitempty"`
	// QueueBytes is how much may wait for the rate, the packet that is being sent
	// included. What comes on top is dropped; an idle link takes any one packet. 0
	// is what the link carries in 2 * Delay, at least MinDefaultQueueBytes.
	QueueBytes int64 `json:"queue_bytes,omitempty"`
	// Loss is the probability, 0 to 1, that a packet is sent and does not arrive.
	Loss float64 `json:"loss,omitempty"`
	// Down cuts the link: what is on it and what is sent to it is dropped.
	Down bool `json:"down,omitempty"`
}

// RTT returns a link with half of the round-trip time d as its delay, so that two
// of them, there and back, make d.
func RTT(d time.Duration) Link { return Link{Delay: d / 2} }

// WithRate returns the link with a rate in bits per second and the default queue.
func (l Link) WithRate(bitsPerSecond int64) Link {
	l.BitsPerSecond, l.QueueBytes = bitsPerSecond, 0
	return l
}

// WithLoss returns the link with a probability of loss, 0 to 1.
func (l Link) WithLoss(p float64) Link {
	l.Loss = p
	return l
}

// Validate says what is wrong with the link. Errors: scstore.ErrInvalid.
func (l Link) Validate() error {
	switch {
	case l.Delay < 0 || l.Delay > MaxDelay:
		return fmt.Errorf("check link: delay %s is not within 0 and %s: %w", l.Delay, MaxDelay, scstore.ErrInvalid)
	case l.Jitter < 0 || l.Jitter > MaxDelay:
		return fmt.Errorf("check link: jitter %s is not within 0 and %s: %w", l.Jitter, MaxDelay, scstore.ErrInvalid)
	case l.BitsPerSecond < 0 || l.BitsPerSecond > MaxBitsPerSecond:
		return fmt.Errorf("check link: rate of %d bit/s is not within 0 and %d: %w", l.BitsPerSecond, MaxBitsPerSecond, scstore.ErrInvalid)
	case l.QueueBytes < 0 || l.QueueBytes > MaxQueueBytes:
		return fmt.Errorf("check link: queue of %d bytes is not within 0 and %d: %w", l.QueueBytes, MaxQueueBytes, scstore.ErrInvalid)
	case l.Loss < 0 || l.Loss > 1 || math.IsNaN(l.Loss):
		return fmt.Errorf("check link: loss of %v is not within 0 and 1: %w", l.Loss, scstore.ErrInvalid)
	}
	return nil
}

// queueBytes returns the queue's length in bytes.
func (l Link) queueBytes() int64 {
	if l.QueueBytes > 0 {
		return l.QueueBytes
	}
	// In float64, which neither overflows nor needs to be exact here.
	inFlight := 2 * l.Delay.Seconds() * float64(l.BitsPerSecond) / 8
	return min(max(int64(inFlight), MinDefaultQueueBytes), MaxQueueBytes)
}

// sending returns how long the link takes to send so many bytes, rounded up, so
// that it never sends more than its rate. Below 2^20 bytes nothing overflows.
func (l Link) sending(size int) time.Duration {
	if l.BitsPerSecond == 0 {
		return 0
	}
	return time.Duration((int64(size)*8*int64(time.Second) + l.BitsPerSecond - 1) / l.BitsPerSecond)
}

// Stats counts the packets of one directed pair since it was opened. Bytes are
// those of the IP packets.
type Stats struct {
	Sent           uint64 `json:"sent"`
	SentBytes      uint64 `json:"sent_bytes"`
	Delivered      uint64 `json:"delivered"`
	DeliveredBytes uint64 `json:"delivered_bytes"`
	Lost           uint64 `json:"lost"`       // dropped by Link.Loss
	Overflowed     uint64 `json:"overflowed"` // dropped because the queue, or MaxFlight, was full
	Cut            uint64 `json:"cut"`        // dropped because the link was or went down
	Refused        uint64 `json:"refused"`    // arrived, but the far side's system did not take it
	InFlight       uint64 `json:"in_flight"`  // now
}
