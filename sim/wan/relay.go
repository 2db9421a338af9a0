package wan

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"sync"
	"sync/atomic"

	"scstore"
)

// Limits of the relay.
const (
	// MaxRelayPaths bounds the different questions that Via answers.
	MaxRelayPaths = 1024
	// MaxRelayFlows bounds the clients of one answer. When there are more, the one
	// that was silent for longest is forgotten.
	MaxRelayFlows = 256
	// maxDatagram is the largest UDP payload over IPv4, in bytes.
	maxDatagram = 65507
	// headerBytes is what IPv4 and UDP add to a payload.
	headerBytes = 20 + 8
	// relayBufferBytes is asked for each socket; the kernel may give less.
	relayBufferBytes = 4 << 20
)

// relay is the carrier of UDP datagrams over loopback. Safe for concurrent use.
type relay struct {
	pairs  [][]*pair
	pool   *packets
	hosts  int
	keeper *keeper
	strays []atomic.Uint64 // by site

	mu     sync.Mutex
	paths  map[question]*relayPath
	closed bool
}

// question is what Via was asked.
type question struct {
	from, to int
	target   netip.AddrPort
}

func openRelay(o Options, pairs [][]*pair, pool *packets) (*relay, error) {
	k, err := startKeeper(func() error { return nil })
	if err != nil {
		return nil, err
	}
	return &relay{
		pairs: pairs, pool: pool, hosts: o.HostsPerSite, keeper: k,
		strays: make([]atomic.Uint64, len(o.Sites)), paths: make(map[question]*relayPath),
	}, nil
}

func (r *relay) addrs(site int) []netip.Addr { return siteAddrs(relayNetwork, site, r.hosts) }

func (r *relay) do(_ int, f func() error) error {
	r.mu.Lock()
	closed := r.closed
	r.mu.Unlock()
	if closed {
		return fmt.Errorf("enter site: %w", scstore.ErrClosed)
	}
	return f()
}

func (r *relay) start(_ int, cmd *exec.Cmd) error { return r.keeper.start(cmd) }

func (r *relay) siteStats(site int) (SiteStats, error) {
	return SiteStats{Stray: r.strays[site].Load()}, nil
}

func (r *relay) via(from, to int, target netip.AddrPort) (netip.AddrPort, error) {
	if !target.Addr().IsLoopback() || target.Port() == 0 {
		return netip.AddrPort{}, fmt.Errorf("no address and port of this machine's loopback: %w", scstore.ErrInvalid)
	}
	if from == to {
		return target, nil
	}
	q := question{from, to, target}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return netip.AddrPort{}, scstore.ErrClosed
	}
	p, known := r.paths[q]
	if !known {
		if len(r.paths) == MaxRelayPaths {
			return netip.AddrPort{}, fmt.Errorf("%d ways are open: %w", MaxRelayPaths, scstore.ErrBusy)
		}
		var err error
		if p, err = r.openPath(q); err != nil {
			return netip.AddrPort{}, err
		}
		r.paths[q] = p
	}
	return p.addr, nil
}

func (r *relay) close() error {
	r.mu.Lock()
	r.closed = true
	paths := r.paths
	r.mu.Unlock()
	r.keeper.close()
	var err error
	for _, p := range paths {
		err = errors.Join(err, p.close())
	}
	return err
}

// relayPath is one answer of Via: a socket that clients at one site send to in
// place of a target at another one.
type relayPath struct {
	target  netip.AddrPort
	front   *net.UDPConn
	addr    netip.AddrPort // of front
	there   *pair          // to the target
	back    *pair          // from it
	pool    *packets
	stray   *atomic.Uint64
	readers sync.WaitGroup

	mu     sync.Mutex
	flows  map[netip.AddrPort]*flow // by client
	clock  uint64                   // counts datagrams from clients
	closed bool
}

func (r *relay) openPath(q question) (*relayPath, error) {
	own := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 0)
	front, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(own))
	if err != nil {
		return nil, fmt.Errorf("open a socket of the relay: %w", err)
	}
	addr, err := netip.ParseAddrPort(front.LocalAddr().String())
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open a socket of the relay: %w", err), front.Close())
	}
	enlarge(front)
	p := &relayPath{
		target: q.target, front: front, addr: addr, there: r.pairs[q.from][q.to], back: r.pairs[q.to][q.from], pool: r.pool,
		stray: &r.strays[q.from], flows: make(map[netip.AddrPort]*flow),
	}
	p.readers.Go(p.readClients)
	return p, nil
}

// enlarge asks for large buffers, so that a burst is the model's to drop. What the
// kernel refuses is left as it is.
func enlarge(c *net.UDPConn) {
	_ = c.SetReadBuffer(relayBufferBytes)
	_ = c.SetWriteBuffer(relayBufferBytes)
}

// flow is one client of a path, with the socket that the target sees in its place.
type flow struct {
	path   *relayPath
	client netip.AddrPort
	back   *net.UDPConn
	used   uint64 // path.clock at the client's last datagram
}

// toTarget and toClient are the ends of a flow.
type (
	toTarget struct{ flow *flow }
	toClient struct{ flow *flow }
)

func (e toTarget) deliver(p []byte) error {
	_, err := e.flow.back.Write(p)
	return err
}

func (e toClient) deliver(p []byte) error {
	_, err := e.flow.path.front.WriteToUDPAddrPort(p, e.flow.client)
	return err
}

// readClients passes on what clients send, until front is closed.
func (p *relayPath) readClients() {
	buffer := make([]byte, maxDatagram)
	for {
		n, client, err := p.front.ReadFromUDPAddrPort(buffer)
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil:
			p.stray.Add(1)
			continue
		}
		f, err := p.flow(client)
		if err != nil {
			p.stray.Add(1) // no socket to be had: the client's to repeat, as any loss
			continue
		}
		p.there.send(p.datagram(buffer[:n], toTarget{f}))
	}
}

// datagram makes a packet with a copy of the payload.
func (p *relayPath) datagram(payload []byte, e exit) *packet {
	pk := p.pool.get()
	pk.bytes = append(pk.room[:0], payload...) // longer ones leave room
	pk.size, pk.exit = len(payload)+headerBytes, e
	return pk
}

// flow returns a client's flow, which it opens for a new one.
func (p *relayPath) flow(client netip.AddrPort) (*flow, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.clock++
	if f, known := p.flows[client]; known {
		f.used = p.clock
		return f, nil
	}
	if p.closed {
		return nil, scstore.ErrClosed
	}
	back, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(p.target))
	if err != nil {
		return nil, fmt.Errorf("open a socket of the relay: %w", err)
	}
	enlarge(back)
	if len(p.flows) == MaxRelayFlows {
		p.forgetLocked()
	}
	f := &flow{path: p, client: client, back: back, used: p.clock}
	p.flows[client] = f
	p.readers.Go(func() { p.readTarget(f) })
	return f, nil
}

// forgetLocked drops the flow whose client was silent for longest.
func (p *relayPath) forgetLocked() {
	var oldest *flow
	for _, f := range p.flows {
		if oldest == nil || f.used < oldest.used {
			oldest = f
		}
	}
	delete(p.flows, oldest.client)
	_ = oldest.back.Close() // its reader ends; a UDP socket has nothing left to say
}

// readTarget passes on what the target sends to a client, until the flow is closed.
func (p *relayPath) readTarget(f *flow) {
	buffer := make([]byte, maxDatagram)
	for {
		n, err := f.back.Read(buffer)
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil: // nobody listens there now, as an earlier datagram has shown
			continue
		}
		p.back.send(p.datagram(buffer[:n], toClient{f}))
	}
}

func (p *relayPath) close() error {
	p.mu.Lock()
	p.closed = true
	flows := p.flows
	p.flows = nil
	p.mu.Unlock()
	err := p.front.Close()
	for _, f := range flows {
		err = errors.Join(err, f.back.Close())
	}
	p.readers.Wait()
	return err
}
