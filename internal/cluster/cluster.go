package cluster

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"scstore"
	"scstore/consensus"
	"scstore/consensus/meta"
	"scstore/propagate/quicnet"
	"scstore/propagate/quicnet/authority"
	"scstore/propagate/quicnet/raftnet"
)

// Cluster is this host in its cluster.
//
// Concurrency: all methods are safe for concurrent use.
type Cluster struct {
	o    Options
	log  *slog.Logger
	file *placeFile
	disk meta.DiskID

	keys      *authority.Keys
	net       *quicnet.Net
	raft      *consensus.Cluster
	open      atomic.Bool // raft is there, for what the network asks
	sessions  map[meta.GroupID]*session
	asked     atomic.Int64 // questions of KindHello
	advertise []string     // where others find this host

	view       atomic.Pointer[view]
	refreshing sync.Mutex

	ctx    context.Context // ends when Close begins
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup

	mu      sync.Mutex    // guards everything that follows
	changed chan struct{} // closed and replaced when there is a new view
	skews   map[scstore.StoreID]time.Duration
	failure error
	failed  chan struct{}

	closeOnce sync.Once
	closeErr  error
}

// Open opens keys, network and log of this host, after it began a new cluster or joined
// one if that is asked for. Handlers are registered on Net next; Start lets peers in. It
// does not wait for other hosts, but to join.
//
// Durability: an interrupted first start goes on at the next one. Errors: ErrInvalid;
// ErrExists for a host's name that is taken; ErrBusy if the UDP port is; ErrUnreachable
// if no host of the token answers; ErrNotFound if the log is gone; ErrVersion;
// ErrCorrupt; ErrNoSpace.
func Open(ctx context.Context, o Options) (*Cluster, error) {
	o, err := o.withDefaults()
	if err == nil {
		err = o.validate()
	}
	if err != nil {
		return nil, fmt.Errorf("open cluster: %w", err)
	}
	c := &Cluster{
		o: o, log: o.Logger, disk: meta.DiskID(o.Disk.String()), sessions: map[meta.GroupID]*session{},
		changed: make(chan struct{}), skews: map[scstore.StoreID]time.Duration{}, failed: make(chan struct{}),
	}
	for _, g := range groupIDs() {
		c.sessions[g] = newSession()
	}
	c.ctx, c.cancel = context.WithCancelCause(context.Background())
	if err := c.openAll(ctx); err != nil {
		if c.net == nil && o.Conn != nil {
			_ = o.Conn.Close() // nobody else will
		}
		return nil, errors.Join(fmt.Errorf("open cluster: %w", err), c.Close())
	}
	return c, nil
}

func (c *Cluster) openAll(ctx context.Context) (err error) {
	if c.file, err = openPlace(c.o.Dir); err != nil {
		return err
	}
	token, err := c.checkOptions()
	if err != nil {
		return err
	}
	conn, listen, err := c.socket(ctx)
	if err != nil {
		return err
	}
	if c.keys, err = c.enter(ctx, token, conn, listen); err == nil {
		err = c.begins(conn, listen)
	}
	if err == nil {
		c.view.Store(newView(c.file.get().Known))
		err = c.openNet(ctx, conn)
	}
	if err != nil {
		return errors.Join(err, conn.Close())
	}
	if err := c.openRaft(ctx); err != nil {
		return err
	}
	c.wg.Go(c.watchRaft)
	return c.settleIn(ctx)
}

// checkOptions compares the options with what the folder says.
func (c *Cluster) checkOptions() (*authority.Token, error) {
	p := c.file.get()
	var token *authority.Token
	if c.o.Join != "" {
		t, err := authority.ParseToken(c.o.Join)
		if err != nil {
			return nil, err
		}
		token = &t
	}
	switch {
	case p.Format == 0 && token == nil && c.o.Site == "":
		return nil, scstore.Hint(fmt.Errorf("a new cluster without a site: %w", scstore.ErrInvalid),
			"name the site that this host is in with --site, or join a cluster with --join TOKEN")
	case p.Format == 0:
		return token, nil
	case p.Disk != id(c.o.Disk):
		return nil, scstore.Hint(fmt.Errorf("%s is of disk %s, the store is %s: %w", placeName, meta.ClusterID(p.Disk), c.o.Disk, scstore.ErrInvalid),
			"put back the files that belong together; nothing was changed")
	case c.o.Site != "" && c.o.Site != p.Site:
		return nil, scstore.Hint(fmt.Errorf("this host is in site %q, not in %q: %w", p.Site, c.o.Site, scstore.ErrInvalid),
			"a host keeps its site: leave --site out, or join again with an empty folder")
	case c.o.Host != "" && c.o.Host != p.Host:
		return nil, fmt.Errorf("this host is %q, not %q: a host keeps its name: %w", p.Host, c.o.Host, scstore.ErrInvalid)
	case token != nil && token.Cluster != authority.ClusterID(p.Cluster):
		return nil, scstore.Hint(fmt.Errorf("this host is of cluster %s, the token of %s: %w", meta.ClusterID(p.Cluster), token.Cluster, scstore.ErrInvalid),
			"use an empty folder to join another cluster")
	}
	return token, nil
}

// begins notes that this host starts once more, before anybody hears of it (I1).
func (c *Cluster) begins(conn net.PacketConn, listen string) error {
	var nonce id
	rand.Read(nonce[:])
	return c.file.change(func(p *place) {
		p.Boot.N++
		p.Boot.Nonce = nonce
		p.Listen, p.Advertise = listen, addresses(listen, conn.LocalAddr(), p.Seen)
		c.advertise = p.Advertise
	})
}

// openNet opens the network, which owns conn from then on.
func (c *Cluster) openNet(ctx context.Context, conn net.PacketConn) (err error) {
	p := c.file.get()
	c.net, err = quicnet.Open(ctx, quicnet.Options{
		Keys: c.keys, Conn: conn, Incarnation: p.Incarnation, Boot: p.Boot.N,
		Resolve: c.resolve, Allowed: c.allowed, Joiner: joiner{c}, MayHoldKey: c.mayHoldKey, KeyHolders: c.keyHolders, Skew: c.keepSkew,
		Logger: c.log, Registerer: c.o.Registerer,
	})
	if err == nil {
		c.net.Answer(KindLead, c.answerLead)
		c.net.Answer(KindHello, func(context.Context, quicnet.Peer, []byte) ([]byte, error) { return nil, nil })
	}
	return err
}

// openRaft opens the log, which it begins or joins only if this host is no member yet
// (I2).
func (c *Cluster) openRaft(ctx context.Context) error {
	factory, err := raftnet.New(raftnet.Options{Net: c.net, Owner: c.owner, Logger: c.log, Registerer: c.o.Registerer})
	if err != nil {
		return err
	}
	p := c.file.get()
	disk := consensus.DiskID(c.o.Disk)
	o := consensus.ClusterOptions{
		Cluster: consensus.ClusterID(p.Cluster), Disk: disk, Transport: factory, Logger: c.log, Registerer: c.o.Registerer,
	}
	for _, f := range p.Groups {
		g := consensus.Group{ID: consensus.GroupID(f.Group), Replica: consensus.ReplicaID(f.Replica), NonVoting: f.NonVoting, Alone: f.Alone}
		switch p.Stage {
		case stageNew:
			g.Members = map[consensus.ReplicaID]consensus.DiskID{g.Replica: disk}
		case stageJoining:
			g.Join = true
		case stageMember:
		}
		o.Groups = append(o.Groups, g)
	}
	c.o.tune(&o)
	if c.raft, err = consensus.OpenCluster(ctx, filepath.Join(c.o.Dir, raftName), o); err != nil {
		return err
	}
	c.open.Store(true)
	return c.refresh()
}

// settleIn makes a member of a host that has its log.
func (c *Cluster) settleIn(ctx context.Context) error {
	switch c.file.get().Stage {
	case stageMember:
		return nil
	case stageNew:
		if err := c.establish(ctx); err != nil {
			return fmt.Errorf("begin a cluster: %w", err)
		}
	case stageJoining:
	}
	return c.file.change(func(p *place) { p.Stage = stageMember })
}

// Start lets peers in, and from then on keeps the members what they should be. It
// registers this start in the background, as soon as a majority answers. It is called
// once.
func (c *Cluster) Start(_ context.Context) error {
	watcher, err := c.Watch(meta.GroupNamespace)
	if err == nil {
		err = c.refresh()
	}
	if err == nil {
		err = c.net.Start()
	}
	if err != nil {
		return fmt.Errorf("start cluster: %w", err)
	}
	c.wg.Go(func() { c.follow(c.ctx, watcher) })
	c.wg.Go(c.mindSelf)
	c.wg.Go(c.tend)
	for _, g := range groupIDs() {
		c.wg.Go(func() { c.mindMembers(g) })
	}
	return nil
}

// watchRaft fails with the log.
func (c *Cluster) watchRaft() {
	select {
	case <-c.raft.Failed():
		c.fail(c.raft.Failure())
	case <-c.ctx.Done():
	}
}

// Close ends what Start began, leaves the groups and closes the network. Handlers that
// run are cancelled. Closing again returns the same error.
func (c *Cluster) Close() error {
	c.closeOnce.Do(func() {
		c.cancel(fmt.Errorf("cluster: %w", scstore.ErrClosed))
		c.wg.Wait()
		var errs []error
		if c.raft != nil {
			errs = append(errs, c.raft.Close())
		}
		if c.net != nil {
			errs = append(errs, c.net.Close())
		}
		c.closeErr = errors.Join(errs...)
	})
	return c.closeErr
}

// Disk returns this host's disk.
func (c *Cluster) Disk() meta.DiskID { return c.disk }

// Site returns this host's site.
func (c *Cluster) Site() meta.SiteID { return c.file.get().Site }

// Host returns this host's name.
func (c *Cluster) Host() string { return c.file.get().Host }

// Boot returns the number of this start.
func (c *Cluster) Boot() uint64 { return c.file.get().Boot.N }

// Addr returns the address that this host listens on.
func (c *Cluster) Addr() net.Addr { return c.net.Addr() }

// Net returns the network between hosts.
func (c *Cluster) Net() *quicnet.Net { return c.net }

// Failed returns a channel that is closed when this host must not go on: see Failure.
// Whoever owns the Cluster closes it and ends.
func (c *Cluster) Failed() <-chan struct{} { return c.failed }

// Failure returns why Failed is closed, nil before. Errors: ErrFenced for a host that was
// removed, or whose disk was started elsewhere since; ErrVersion, ErrCorrupt, ErrNoSpace
// as consensus.Cluster.Failure.
func (c *Cluster) Failure() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.failure
}

func (c *Cluster) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.failure == nil {
		c.failure = err
		close(c.failed)
		c.log.Error("this host must leave the cluster", "err", err)
	}
}

// keepSkew notes how far ahead of this one a peer's clock is.
func (c *Cluster) keepSkew(p quicnet.Peer, skew time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.skews[p.Disk] = skew
}
