package nbd

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
)

// Gate stops the requests of all connections of an export, and lets them go on: a
// hand-off's freeze. While it is shut nothing is carried out and nothing answered;
// what clients send waits in their sockets. The zero value is open.
//
// Concurrency: safe for concurrent use, but only one Pause at a time.
type Gate struct {
	shut atomic.Bool // changed under mu

	mu     sync.Mutex
	inside int           // loops, workers and waiters between a request and its answer
	opened chan struct{} // closed by Resume; nil while open
	idle   chan struct{} // closed when inside becomes 0; nil if nobody waits
}

// Pause shuts the gate and returns once every request that was read has its answer:
// the last of them is the last acknowledgement. If ctx ends before that, the gate
// stays shut; Resume opens it. Errors: ctx's.
func (g *Gate) Pause(ctx context.Context) error {
	g.mu.Lock()
	if g.opened == nil {
		g.opened = make(chan struct{})
		g.shut.Store(true)
	}
	if g.inside == 0 {
		g.mu.Unlock()
		return nil
	}
	idle := make(chan struct{})
	g.idle = idle
	g.mu.Unlock()
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("pause nbd export: %w", context.Cause(ctx))
	}
}

// Resume opens the gate. It is idempotent.
func (g *Gate) Resume() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.opened != nil {
		close(g.opened)
		g.opened = nil
		g.shut.Store(false)
	}
}

// enter waits until the gate is open and goes in, or reports false once end is
// closed.
func (g *Gate) enter(end <-chan struct{}) bool {
	for {
		g.mu.Lock()
		opened := g.opened
		if opened == nil {
			g.inside++
			g.mu.Unlock()
			return true
		}
		g.mu.Unlock()
		select {
		case <-opened:
		case <-end:
			return false
		}
	}
}

// add goes in once more, for a request that somebody else will answer. The caller
// is inside.
func (g *Gate) add() {
	if g == nil {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.inside++
}

// leave goes out n times.
func (g *Gate) leave(n int) {
	if g == nil {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.inside -= n; g.inside == 0 && g.idle != nil {
		close(g.idle)
		g.idle = nil
	}
}

// enterGate is called before the device is used. It reports false if the connection
// ends instead.
func (c *conn) enterGate() (ok bool, err error) {
	g := c.export.Gate
	if g == nil || c.inside && !g.shut.Load() {
		return true, nil
	}
	if err := c.flushOut(); err != nil {
		return false, err
	}
	c.leaveGate()
	c.inside = g.enter(c.drained)
	return c.inside, nil
}

// leaveGate is called when the loop has answered, or handed off, what it read.
func (c *conn) leaveGate() {
	if c.inside {
		c.inside = false
		c.export.Gate.leave(1)
	}
}
