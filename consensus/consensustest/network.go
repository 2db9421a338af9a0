package consensustest

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/lni/dragonboat/v4/config"
	"github.com/lni/dragonboat/v4/raftio"
	"github.com/lni/dragonboat/v4/raftpb"

	"scstore/consensus"
)

// MaxLinkMessages bounds what is under way from one host to another; beyond it
// sending fails.
const MaxLinkMessages = 1024

var (
	errCut    = errors.New("no route")
	errDown   = errors.New("connection refused")
	errFull   = errors.New("link is full")
	errClosed = errors.New("transport is closed")
)

type pair struct{ from, to consensus.DiskID }

// Network carries messages between the Clusters that have it as their Transport.
//
// Concurrency: all methods are safe for concurrent use.
type Network struct {
	mu      sync.Mutex
	random  *rand.Rand
	delay   time.Duration
	delays  map[pair]time.Duration
	loss    float64
	cut     map[pair]bool
	members map[consensus.DiskID]*transport
	known   map[consensus.DiskID]bool // members, now or before
}

// New returns a network on which every message takes the delay. Losses follow from
// the seed.
func New(seed uint64, delay time.Duration) *Network {
	return &Network{
		random: rand.New(rand.NewPCG(seed, 0)), delay: delay,
		delays: map[pair]time.Duration{}, cut: map[pair]bool{}, members: map[consensus.DiskID]*transport{},
		known: map[consensus.DiskID]bool{},
	}
}

// SetDelay sets how long messages take between two hosts, each way.
func (n *Network) SetDelay(a, b consensus.DiskID, delay time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.delays[pair{a, b}], n.delays[pair{b, a}] = delay, delay
}

// SetLoss makes each batch of messages vanish with this probability. Chunks of
// snapshots are not concerned: they travel on a reliable stream.
func (n *Network) SetLoss(probability float64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.loss = probability
}

// Cut separates the hosts from all others that the network knows, both ways; among
// themselves they stay connected.
func (n *Network) Cut(hosts ...consensus.DiskID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	inside := map[consensus.DiskID]bool{}
	for _, h := range hosts {
		inside[h] = true
	}
	for a := range n.known {
		for b := range n.known {
			if inside[a] != inside[b] {
				n.cut[pair{a, b}] = true
			}
		}
	}
}

// Heal ends all cuts.
func (n *Network) Heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.cut)
}

// Create makes the transport of one member; config.TransportFactory.
func (n *Network) Create(c config.NodeHostConfig, messages raftio.MessageHandler, chunks raftio.ChunkHandler) raftio.ITransport {
	disk, err := consensus.ParseDiskID(c.RaftAddress)
	if err != nil {
		panic(err) // Validate has seen it
	}
	return &transport{
		net: n, disk: disk, messages: messages, chunks: chunks,
		stop: make(chan struct{}), links: map[link]chan parcel{},
	}
}

// Validate reports whether an address is a disk id; config.TransportFactory.
func (n *Network) Validate(address string) bool {
	_, err := consensus.ParseDiskID(address)
	return err == nil
}

// route finds the receiver. Errors: errCut, errDown.
func (n *Network) route(p pair) (*transport, time.Duration, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.cut[p] {
		return nil, 0, errCut
	}
	to := n.members[p.to]
	if to == nil {
		return nil, 0, errDown
	}
	delay, ok := n.delays[p]
	if !ok {
		delay = n.delay
	}
	return to, delay, nil
}

func (n *Network) lost() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.loss > 0 && n.random.Float64() < n.loss
}

func (n *Network) isCut(p pair) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.cut[p]
}

// link is one ordered stream of parcels to a member.
type link struct {
	from   consensus.DiskID
	chunks bool
}

// parcel is what travels: one of the two is set.
type parcel struct {
	due      time.Time
	messages *raftpb.MessageBatch
	chunk    *raftpb.Chunk
}

// transport is one member's end. The receiver owns the goroutines that deliver, one
// a link, so that its Close can join them (I3).
type transport struct {
	net      *Network
	disk     consensus.DiskID
	messages raftio.MessageHandler
	chunks   raftio.ChunkHandler
	stop     chan struct{}
	workers  sync.WaitGroup

	mu     sync.Mutex
	closed bool
	links  map[link]chan parcel
}

// Name names the transport.
func (t *transport) Name() string { return "consensustest" }

// Start connects the member.
func (t *transport) Start() error {
	t.net.mu.Lock()
	defer t.net.mu.Unlock()
	t.net.members[t.disk] = t
	t.net.known[t.disk] = true
	return nil
}

// Close disconnects the member and joins what delivers to it.
func (t *transport) Close() error {
	t.net.mu.Lock()
	if t.net.members[t.disk] == t {
		delete(t.net.members, t.disk)
	}
	t.net.mu.Unlock()
	t.mu.Lock()
	if !t.closed {
		t.closed = true
		close(t.stop)
	}
	t.mu.Unlock()
	t.workers.Wait()
	return nil
}

// GetConnection opens a connection for messages.
func (t *transport) GetConnection(_ context.Context, target string) (raftio.IConnection, error) {
	return t.connect(target)
}

// GetSnapshotConnection opens a connection for the chunks of snapshots.
func (t *transport) GetSnapshotConnection(_ context.Context, target string) (raftio.ISnapshotConnection, error) {
	return t.connect(target)
}

func (t *transport) connect(target string) (*connection, error) {
	to, err := consensus.ParseDiskID(target)
	if err != nil {
		return nil, err
	}
	if _, _, err := t.net.route(pair{t.disk, to}); err != nil {
		return nil, err
	}
	return &connection{from: t, to: to}, nil
}

// accept queues a parcel for delivery.
func (t *transport) accept(l link, p parcel) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return errClosed
	}
	queue := t.links[l]
	if queue == nil {
		queue = make(chan parcel, MaxLinkMessages)
		t.links[l] = queue
		t.workers.Go(func() { t.deliver(l, queue) })
	}
	select {
	case queue <- p:
		return nil
	default:
		return errFull
	}
}

// deliver hands over one link's parcels when they are due.
func (t *transport) deliver(l link, queue <-chan parcel) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		var p parcel
		select {
		case p = <-queue:
		case <-t.stop:
			return
		}
		timer.Reset(time.Until(p.due))
		select {
		case <-timer.C:
		case <-t.stop:
			return
		}
		switch {
		case t.net.isCut(pair{l.from, t.disk}):
		case p.messages != nil:
			t.messages(*p.messages)
		default:
			t.chunks(*p.chunk) // a refusal shows when the stream is not completed
		}
	}
}

// connection is the sender's end towards one member.
type connection struct {
	from *transport
	to   consensus.DiskID
}

// Close ends the connection.
func (c *connection) Close() {}

// SendMessageBatch sends messages; what a cut or a loss takes is not reported.
func (c *connection) SendMessageBatch(batch raftpb.MessageBatch) error {
	to, delay, err := c.from.net.route(pair{c.from.disk, c.to})
	switch {
	case errors.Is(err, errCut):
		return nil // packets vanish
	case err != nil:
		return err
	case c.from.net.lost():
		return nil
	}
	b, err := batch.Marshal()
	if err != nil {
		return err
	}
	sent := &raftpb.MessageBatch{}
	if err := sent.Unmarshal(b); err != nil {
		return err
	}
	return to.accept(link{from: c.from.disk}, parcel{due: time.Now().Add(delay), messages: sent})
}

// SendChunk sends a part of a snapshot.
func (c *connection) SendChunk(chunk raftpb.Chunk) error {
	to, delay, err := c.from.net.route(pair{c.from.disk, c.to})
	if err != nil {
		return err
	}
	b, err := chunk.Marshal()
	if err != nil {
		return err
	}
	sent := &raftpb.Chunk{}
	if err := sent.Unmarshal(b); err != nil {
		return err
	}
	return to.accept(link{from: c.from.disk, chunks: true}, parcel{due: time.Now().Add(delay), chunk: sent})
}
