package wan

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"sync"
	"time"

	"scstore"
)

// Limits of a network.
const (
	MaxSites            = 16
	MaxHostsPerSite     = 64
	DefaultHostsPerSite = 4
)

// Carrier is how packets get from site to site. The package comment compares them.
type Carrier int

// The carriers.
const (
	Namespaces Carrier = iota // a network namespace for each site; needs root
	Relay                     // UDP over loopback; needs nothing
)

// Options says what to open. Zero values mean the defaults.
type Options struct {
	Carrier      Carrier
	Sites        []string // their names, at most MaxSites
	Link         Link     // of every directed pair, to begin with
	Seed         uint64   // of loss and jitter
	HostsPerSite int      // addresses of each site, at most MaxHostsPerSite
}

func (o Options) withDefaults() Options {
	if o.HostsPerSite == 0 {
		o.HostsPerSite = DefaultHostsPerSite
	}
	o.Sites = slices.Clone(o.Sites)
	return o
}

// Validate says what is wrong with the options. Errors: scstore.ErrInvalid.
func (o Options) Validate() error {
	if o.Carrier != Namespaces && o.Carrier != Relay {
		return fmt.Errorf("check options: unknown carrier %d: %w", o.Carrier, scstore.ErrInvalid)
	}
	if len(o.Sites) == 0 || len(o.Sites) > MaxSites {
		return fmt.Errorf("check options: %d sites, not 1 to %d: %w", len(o.Sites), MaxSites, scstore.ErrInvalid)
	}
	for i, site := range o.Sites {
		if site == "" || slices.Contains(o.Sites[:i], site) {
			return fmt.Errorf("check options: the site name %q is empty or there twice: %w", site, scstore.ErrInvalid)
		}
	}
	if o.HostsPerSite < 0 || o.HostsPerSite > MaxHostsPerSite {
		return fmt.Errorf("check options: %d hosts a site, not 1 to %d: %w", o.HostsPerSite, MaxHostsPerSite, scstore.ErrInvalid)
	}
	return o.Link.Validate()
}

// medium is a carrier that is open. Sites are numbers, checked by Network.
type medium interface {
	addrs(site int) []netip.Addr
	do(site int, f func() error) error
	start(site int, cmd *exec.Cmd) error
	via(from, to int, target netip.AddrPort) (netip.AddrPort, error)
	siteStats(site int) (SiteStats, error)
	// close ends what reads packets and joins it. It is called once.
	close() error
}

// Network is a set of sites and the links between them.
//
// Concurrency: all methods are safe for concurrent use.
type Network struct {
	sites   []string
	pairs   [][]*pair // [from][to]; nil from a site to itself
	medium  medium
	done    chan struct{}
	running sync.WaitGroup

	closeOnce sync.Once
	closeErr  error
}

// Open makes the sites and links them. The caller closes the network. ctx bounds
// the opening only.
//
// Errors: scstore.ErrInvalid for the options; fs.ErrPermission, with a hint, if
// namespaces are not allowed; what the system says.
func Open(ctx context.Context, o Options) (*Network, error) {
	o = o.withDefaults()
	if err := o.Validate(); err != nil {
		return nil, fmt.Errorf("open wide-area network: %w", err)
	}
	n := &Network{sites: o.Sites, done: make(chan struct{})}
	clock, pool := newClock(), &packets{}
	for from := range o.Sites {
		row := make([]*pair, len(o.Sites))
		for to := range o.Sites {
			if to != from {
				row[to] = newPair(clock, pool, o.Link, rand.New(rand.NewPCG(o.Seed, uint64(from)<<32|uint64(to))))
			}
		}
		n.pairs = append(n.pairs, row)
	}
	var err error
	if o.Carrier == Relay {
		n.medium, err = openRelay(o, n.pairs, pool)
	} else {
		n.medium, err = openNamespaces(ctx, o, n.pairs, pool)
	}
	if err != nil {
		return nil, fmt.Errorf("open wide-area network: %w", err)
	}
	for _, row := range n.pairs {
		for _, p := range row {
			if p != nil {
				n.running.Go(func() { p.run(n.done) })
			}
		}
	}
	return n, nil
}

// Close ends the network and every process that Start or a Cmd started in it. What
// is in flight is lost. It may be called more than once. Errors: what ended a
// carrier before.
func (n *Network) Close() error {
	n.closeOnce.Do(func() {
		n.closeErr = n.medium.close()
		close(n.done)
		n.running.Wait()
	})
	return n.closeErr
}

// Sites returns the names of the sites.
func (n *Network) Sites() []string { return slices.Clone(n.sites) }

// site returns a site's number.
func (n *Network) site(name string) (int, error) {
	i := slices.Index(n.sites, name)
	if i < 0 {
		return 0, fmt.Errorf("find site %q: %w", name, scstore.ErrNotFound)
	}
	return i, nil
}

// pair returns the directed pair of two different sites.
func (n *Network) pair(from, to string) (*pair, error) {
	i, err := n.site(from)
	if err != nil {
		return nil, err
	}
	j, err := n.site(to)
	if err != nil {
		return nil, err
	}
	if i == j {
		return nil, fmt.Errorf("find link from %q to itself: %w", from, scstore.ErrNotFound)
	}
	return n.pairs[i][j], nil
}

// Addrs returns the addresses of a site, on which its processes listen; nil if
// there is no such site. With the relay they are this machine's own, so ports are
// shared with everything else on it.
func (n *Network) Addrs(site string) []netip.Addr {
	i, err := n.site(site)
	if err != nil {
		return nil
	}
	return n.medium.addrs(i)
}

// Via returns the address that a process of the site from uses to reach target, an
// address of the site to: target itself with namespaces; with the relay one that
// this process listens on, for UDP. It answers the same for the same question.
//
// Errors: scstore.ErrNotFound (a site), ErrInvalid (not an address of that site),
// ErrBusy (MaxRelayPaths), ErrClosed.
func (n *Network) Via(from, to string, target netip.AddrPort) (netip.AddrPort, error) {
	i, err := n.site(from)
	if err != nil {
		return netip.AddrPort{}, err
	}
	j, err := n.site(to)
	if err != nil {
		return netip.AddrPort{}, err
	}
	addr, err := n.medium.via(i, j, target)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("find the way from %q to %s at %q: %w", from, target, to, err)
	}
	return addr, nil
}

// Link returns the link of a directed pair. Errors: scstore.ErrNotFound.
func (n *Network) Link(from, to string) (Link, error) {
	p, err := n.pair(from, to)
	if err != nil {
		return Link{}, err
	}
	return p.link(), nil
}

// SetLink changes the link of a directed pair while it runs, Down included. What is
// on the wire keeps its time of arrival; what waits in the queue goes on at the new
// rate; a link that is down loses both. Errors: scstore.ErrNotFound, ErrInvalid.
func (n *Network) SetLink(from, to string, link Link) error {
	p, err := n.pair(from, to)
	if err != nil {
		return err
	}
	if err := link.Validate(); err != nil {
		return fmt.Errorf("set link from %q to %q: %w", from, to, err)
	}
	p.set(func(Link) Link { return link })
	return nil
}

// SetRTTs gives each pair of sites that is named the link, in both directions, with
// half of its round-trip time as the delay. Errors: scstore.ErrNotFound,
// ErrInvalid; pairs that came before are set then.
func (n *Network) SetRTTs(link Link, rtts map[[2]string]time.Duration) error {
	for sites, rtt := range rtts {
		link.Delay = rtt / 2
		if err := errors.Join(n.SetLink(sites[0], sites[1], link), n.SetLink(sites[1], sites[0], link)); err != nil {
			return err
		}
	}
	return nil
}

// Partition cuts two sites from each other, in both directions. When it returns
// nothing that was under way arrives any more. Errors: scstore.ErrNotFound.
func (n *Network) Partition(a, b string) error { return n.setDown(a, b, true) }

// Heal ends a partition of two sites. Errors: scstore.ErrNotFound.
func (n *Network) Heal(a, b string) error { return n.setDown(a, b, false) }

func (n *Network) setDown(a, b string, down bool) error {
	there, err := n.pair(a, b)
	if err != nil {
		return err
	}
	back, err := n.pair(b, a)
	if err != nil {
		return err
	}
	for _, p := range []*pair{there, back} {
		p.set(func(link Link) Link {
			link.Down = down
			return link
		})
	}
	return nil
}

// Stats returns the counters of a directed pair, zeros if there is none.
func (n *Network) Stats(from, to string) Stats {
	p, err := n.pair(from, to)
	if err != nil {
		return Stats{}
	}
	return p.stats()
}

// SiteStats counts what a site sent that no link has seen.
type SiteStats struct {
	// Stray is what went to an address that no site has.
	Stray uint64 `json:"stray"`
	// Overrun is what the kernel dropped because this process read too slowly. It
	// should be 0: such losses are not the links'. Relay does not know it.
	Overrun uint64 `json:"overrun"`
}

// SiteStats returns the counters of a site. Errors: scstore.ErrNotFound, ErrClosed;
// what the kernel says.
func (n *Network) SiteStats(site string) (SiteStats, error) {
	i, err := n.site(site)
	if err != nil {
		return SiteStats{}, err
	}
	return n.medium.siteStats(i)
}

// Do calls f on a thread that is in the site's namespace: sockets that f itself
// opens, and processes that it starts, belong to the site for good. Goroutines that
// f starts are not in the site.
//
// Errors: scstore.ErrNotFound, ErrClosed; what f returns.
func (n *Network) Do(site string, f func() error) error {
	i, err := n.site(site)
	if err != nil {
		return err
	}
	return n.medium.do(i, f)
}

// Dial connects from a site to an address, which must be numeric.
// Errors: scstore.ErrNotFound, ErrInvalid, ErrClosed; as net.Dialer.
func (n *Network) Dial(ctx context.Context, site, network, address string) (conn net.Conn, err error) {
	if err := numeric(address); err != nil {
		return nil, err
	}
	err = n.Do(site, func() (err error) {
		conn, err = new(net.Dialer).DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// Listen listens in a site on an address, which must be numeric.
// Errors: scstore.ErrNotFound, ErrInvalid, ErrClosed; as net.ListenConfig.
func (n *Network) Listen(ctx context.Context, site, network, address string) (l net.Listener, err error) {
	if err := numeric(address); err != nil {
		return nil, err
	}
	err = n.Do(site, func() (err error) {
		l, err = new(net.ListenConfig).Listen(ctx, network, address)
		return err
	})
	return l, err
}

// ListenPacket opens a datagram socket in a site at an address, which must be
// numeric. Errors: scstore.ErrNotFound, ErrInvalid, ErrClosed; as net.ListenConfig.
func (n *Network) ListenPacket(ctx context.Context, site, network, address string) (c net.PacketConn, err error) {
	if err := numeric(address); err != nil {
		return nil, err
	}
	err = n.Do(site, func() (err error) {
		c, err = new(net.ListenConfig).ListenPacket(ctx, network, address)
		return err
	})
	return c, err
}

// numeric refuses names, which would be looked up on another thread, outside of the
// site.
func numeric(address string) error {
	if _, err := netip.ParseAddrPort(address); err != nil {
		return fmt.Errorf("parse address %q: %v: %w", address, err, scstore.ErrInvalid)
	}
	return nil
}
