package quicnet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/quic-go/quic-go"
	"golang.org/x/time/rate"

	"scstore"
	"scstore/internal/invariant"
)

// maxUnverified is how many new connections a second are taken from addresses that
// did not prove that they can receive; more must first answer a Retry.
const maxUnverified = 100

// connectionIDBytes is longer than need be, so that every packet with a request in it
// is long enough for a stateless reset to be sent in answer (RFC 9000 10.3): a host
// that was restarted is noticed by the first request.
const connectionIDBytes = 12

// Net is this host's place in the cluster: it accepts peers, dials them, and serves
// their streams.
//
// Concurrency: all methods are safe for concurrent use.
type Net struct {
	o         Options
	log       *slog.Logger
	metrics   *metrics
	door      *door
	windows   *windows
	conn      net.PacketConn
	transport *quic.Transport
	listener  *quic.Listener

	wireMin, wireMax uint16
	handshakes       chan struct{} // one token for each connection that is not yet known
	joins            chan struct{} // one token for each join under way

	ctx    context.Context
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup

	mu       sync.Mutex // guards everything that follows
	closed   bool
	started  bool
	peers    map[scstore.StoreID]*peer
	answers  map[Kind]AnswerFunc
	handlers map[Kind]HandleFunc
}

// Open takes the UDP port. Handlers are registered next, and Start lets peers in;
// what this host asks of peers can be asked at once. The Net owns Options.Conn.
//
// Errors: ErrInvalid; ErrBusy if the port is taken.
func Open(ctx context.Context, o Options) (*Net, error) {
	o = o.withDefaults()
	if err := o.Validate(); err != nil {
		return nil, fmt.Errorf("open network: %w", err)
	}
	conn := o.Conn
	if conn == nil {
		var err error
		if conn, err = new(net.ListenConfig).ListenPacket(ctx, "udp", o.Listen); err != nil {
			return nil, scstore.Hint(fmt.Errorf("listen on %s: %v: %w", o.Listen, err, scstore.ErrBusy), "see which process has the UDP port, or choose another with --listen")
		}
	}
	n := &Net{
		o: o, log: o.Logger, windows: newWindows(), conn: conn, wireMin: WireMin, wireMax: WireMax,
		handshakes: make(chan struct{}, MaxHandshakes), joins: make(chan struct{}, MaxJoins),
		peers: map[scstore.StoreID]*peer{}, answers: map[Kind]AnswerFunc{}, handlers: map[Kind]HandleFunc{},
	}
	n.ctx, n.cancel = context.WithCancelCause(context.Background())
	n.metrics = newMetrics(n, o.Registerer)
	n.door = newDoor(n.log, n.metrics)
	reset := quic.StatelessResetKey(o.Keys.ResetKey())
	unverified := rate.NewLimiter(maxUnverified, maxUnverified)
	n.transport = &quic.Transport{
		Conn: conn, ConnectionIDLength: connectionIDBytes, StatelessResetKey: &reset, VerifySourceAddress: func(net.Addr) bool { return !unverified.Allow() },
		ConnContext: n.knocked, Tracer: strays{n.door},
	}
	n.answers[kindRenew] = n.answerRenew
	n.answers[kindAuthorityKey] = n.answerAuthorityKey
	return n, nil
}

// Start lets peers in, and keeps the host's certificate fresh. It is called once.
func (n *Net) Start() error {
	n.mu.Lock()
	invariant.Check(!n.started, "network started twice")
	n.started = true
	closed := n.closed
	n.mu.Unlock()
	if closed {
		return errClosed()
	}
	listener, err := n.transport.Listen(n.serverTLS(), n.quicConfig(false))
	if err != nil {
		return fmt.Errorf("listen: %w", translate(err))
	}
	n.listener = listener
	for _, f := range []func(){n.accept, n.readStrays, n.sweep, n.widen, n.renew} {
		if !n.spawn(f) {
			return errClosed()
		}
	}
	return nil
}

// Addr returns the address that the host sends from and listens on.
func (n *Net) Addr() net.Addr { return n.conn.LocalAddr() }

// Close ends all connections and waits for what runs, handlers included: their
// contexts are cancelled. It may be called again.
//
// Errors: ErrBusy if something still ran after CloseTimeout.
func (n *Net) Close() error {
	n.mu.Lock()
	if n.closed {
		n.mu.Unlock()
		return nil
	}
	n.closed = true
	peers := slices.Collect(maps.Values(n.peers))
	n.mu.Unlock()
	n.cancel(errClosed())
	for _, p := range peers {
		p.disconnect(codeClosing, "host stops")
	}
	err := n.transport.Close()
	err = errors.Join(err, n.conn.Close())
	done := make(chan struct{})
	go func() {
		n.wg.Wait()
		close(done)
	}()
	late := time.NewTimer(CloseTimeout)
	defer late.Stop()
	select {
	case <-done:
		n.metrics.unregister(n.o.Registerer)
	case <-late.C:
		err = errors.Join(err, fmt.Errorf("close network: handlers still run after %v: %w", CloseTimeout, scstore.ErrBusy))
	}
	return err
}

// spawn runs f in a goroutine that Close waits for; false if the Net is closed.
func (n *Net) spawn(f func()) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return false
	}
	n.wg.Go(f)
	return true
}

func errClosed() error { return fmt.Errorf("network: %w", scstore.ErrClosed) }

// accept takes connections until the Net is closed.
func (n *Net) accept() {
	for {
		conn, err := n.listener.Accept(n.ctx)
		if err != nil {
			return
		}
		if !heard(conn.Context()) {
			continue // it is gone, and counted
		}
		context.AfterFunc(conn.Context(), func() { n.windows.release(conn) })
		select {
		case n.handshakes <- struct{}{}:
		default:
			n.turnAway(conn, refuse(reasonLimit, fmt.Errorf("%d peers are at the door: %w", MaxHandshakes, scstore.ErrBusy)))
			continue
		}
		if !n.spawn(func() { n.admit(conn) }) {
			turnAway(conn, errClosed())
		}
	}
}

// admit finds out who dialed.
func (n *Net) admit(conn *quic.Conn) {
	defer func() { <-n.handshakes }()
	if conn.ConnectionState().TLS.NegotiatedProtocol == protocolJoin {
		n.serveJoin(conn)
		return
	}
	who, slot, err := n.welcome(n.ctx, conn)
	if err != nil {
		n.turnAway(conn, err)
		return
	}
	p, err := n.peer(who.Disk)
	if err != nil {
		n.turnAway(conn, refuse(reasonLimit, err))
		return
	}
	p.add(&link{n: n, peer: p, who: who, conn: conn, slot: slot})
}

// turnAway closes a connection for a reason that is told, logged and counted.
func (n *Net) turnAway(conn *quic.Conn, err error) {
	if errors.Is(err, scstore.ErrClosed) {
		_ = conn.CloseWithError(quic.ApplicationErrorCode(codeClosing), "host stops") // given up
		return
	}
	n.door.refused(conn.RemoteAddr(), err)
	turnAway(conn, err)
}

// peer returns what there is to do with a host.
func (n *Net) peer(disk scstore.StoreID) (*peer, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return nil, errClosed()
	}
	if disk == n.o.Keys.Identity().Disk || disk == (scstore.StoreID{}) {
		return nil, fmt.Errorf("disk %s is no peer: %w", disk, scstore.ErrInvalid)
	}
	p := n.peers[disk]
	if p == nil {
		if len(n.peers) >= MaxPeers {
			return nil, fmt.Errorf("more than %d peers: %w", MaxPeers, scstore.ErrBusy)
		}
		p = newPeer(n, disk)
		n.peers[disk] = p
	}
	return p, nil
}

// dial makes a connection to a peer, trying its addresses in order.
func (n *Net) dial(p *peer, slot int) (*link, error) {
	addresses, err := n.o.Resolve(n.ctx, p.disk)
	if err != nil {
		return nil, fmt.Errorf("find %s: %w", p.name(), err)
	}
	var failed []error
	for _, address := range addresses {
		l, err := n.dialAddress(p, slot, address)
		if err == nil {
			return l, nil
		}
		failed = append(failed, fmt.Errorf("dial %s: %w", address, err))
	}
	if len(failed) == 0 {
		return nil, fmt.Errorf("find %s: no address: %w", p.name(), scstore.ErrUnreachable)
	}
	return nil, all(failed)
}

func (n *Net) dialAddress(p *peer, slot int, address string) (*link, error) {
	ctx, cancel := context.WithTimeout(n.ctx, HandshakeTimeout+HelloTimeout)
	defer cancel()
	addr, err := resolveUDP(ctx, address)
	if err != nil {
		return nil, err
	}
	conn, err := n.transport.Dial(ctx, addr, n.clientTLS(p.disk), n.quicConfig(true))
	if err != nil {
		n.notDialed(addr, err)
		return nil, notSent(translate(err))
	}
	context.AfterFunc(conn.Context(), func() { n.windows.release(conn) })
	who, err := n.greet(ctx, conn, slot)
	if err != nil {
		n.notDialed(addr, err)
		turnAway(conn, err)
		return nil, notSent(err)
	}
	return &link{n: n, peer: p, who: who, conn: conn, slot: slot, dialed: true}, nil
}

// notDialed records a connection that one of its ends did not want.
func (n *Net) notDialed(addr net.Addr, err error) {
	if known := (*refusal)(nil); errors.As(err, &known) {
		n.door.refusedDialed(addr, known, err)
	} else if err = translate(err); denied(err) {
		n.door.turnedAway(addr, err)
	}
}

// resolveUDP turns host:port into an address.
func resolveUDP(ctx context.Context, address string) (net.Addr, error) {
	if ap, err := netip.ParseAddrPort(address); err == nil {
		return net.UDPAddrFromAddrPort(ap), nil
	}
	host, portText, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fmt.Errorf("address %q: want host:port: %w", address, scstore.ErrInvalid)
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("address %q: port is no number: %w", address, scstore.ErrInvalid)
	}
	found, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil || len(found) == 0 {
		return nil, fmt.Errorf("look up %s: %v: %w", host, err, scstore.ErrUnreachable)
	}
	return net.UDPAddrFromAddrPort(netip.AddrPortFrom(found[0].Unmap(), uint16(port))), nil
}

// sweep closes idle connections from time to time.
func (n *Net) sweep() {
	ticker := time.NewTicker(sweepPeriod)
	defer ticker.Stop()
	for {
		select {
		case now := <-ticker.C:
			for _, p := range n.all() {
				p.sweep(now)
			}
		case <-n.ctx.Done():
			return
		}
	}
}

// all returns the peers.
func (n *Net) all() []*peer {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Collect(maps.Values(n.peers))
}

// Disconnect ends all connections with a host that was removed and tells it why. That
// it does not come back is for Options.Allowed to say, from before the call on.
func (n *Net) Disconnect(disk scstore.StoreID, reason error) {
	n.mu.Lock()
	p := n.peers[disk]
	n.mu.Unlock()
	if p == nil {
		return
	}
	if closed := p.disconnect(codeOf(reason), reasonText(reason)); closed > 0 {
		n.log.Info("peer disconnected", "disk", disk.String(), "connections", closed, "err", reason)
	}
}
