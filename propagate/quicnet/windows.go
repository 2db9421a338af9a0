package quicnet

import (
	"sync"

	"github.com/quic-go/quic-go"
)

// windows bounds what all peers together may send before it is read. Each
// connection has its first window; what it asks for beyond comes from one budget.
type windows struct {
	mu      sync.Mutex // guards everything that follows
	granted map[*quic.Conn]uint64
	total   uint64
}

func newWindows() *windows { return &windows{granted: map[*quic.Conn]uint64{}} }

// allow decides whether a connection's window may grow by delta bytes.
func (w *windows) allow(conn *quic.Conn, delta uint64) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if conn.Context().Err() != nil || delta > MaxWindowBytes-w.total {
		return false
	}
	w.granted[conn] += delta
	w.total += delta
	return true
}

// release gives back what a closed connection was granted.
func (w *windows) release(conn *quic.Conn) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.total -= w.granted[conn]
	delete(w.granted, conn)
}

// bytes returns what is granted.
func (w *windows) bytes() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.total
}
