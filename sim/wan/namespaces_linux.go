package wan

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"scstore"
)

const (
	device    = "wan0"
	tunDevice = "/dev/net/tun"
	// ownNamespace is the network namespace of the thread that opens it.
	ownNamespace = "/proc/thread-self/ns/net"
	// maxDeviceQueue is how many packets a site may send faster than they are read:
	// a burst of 12 MB. What comes on top is in SiteStats.Overrun.
	maxDeviceQueue = 8192
	// maxReads is how many packets are read before they are passed on.
	maxReads = 64
)

// namespaces is the carrier that gives each site a network namespace. Safe for
// concurrent use.
type namespaces struct {
	pairs   [][]*pair
	pool    *packets
	hosts   int
	sites   []*namespace
	readers sync.WaitGroup

	mu     sync.RWMutex // held for reading while a namespace's descriptor is used
	closed bool
}

// namespace is one site.
type namespace struct {
	keeper *keeper
	fd     int // of the namespace
	tun    *os.File
	raw    syscall.RawConn // of tun
	addrs  []netip.Addr
	stray  atomic.Uint64
	failed error // what ended its reader; read after readers were joined
}

func openNamespaces(ctx context.Context, o Options, pairs [][]*pair, pool *packets) (*namespaces, error) {
	c := &namespaces{pairs: pairs, pool: pool, hosts: o.HostsPerSite}
	for i, name := range o.Sites {
		ns, err := openNamespace(siteAddrs(siteNetwork, i, o.HostsPerSite))
		if err == nil {
			c.sites = append(c.sites, ns)
			err = context.Cause(ctx)
		}
		if err != nil {
			return nil, errors.Join(advise(fmt.Errorf("open namespace of site %q: %w", name, err)), c.close())
		}
	}
	for i := range c.sites {
		c.readers.Go(func() { c.sites[i].failed = c.read(i) })
	}
	return c, nil
}

// advise adds what a person can do.
func advise(err error) error {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return scstore.Hint(err, "run as root (with CAP_SYS_ADMIN and CAP_NET_ADMIN), or use the relay, which carries UDP without")
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return scstore.Hint(err, "provide %s: modprobe tun; or: mkdir -p /dev/net && mknod %s c 10 200", tunDevice, tunDevice)
	}
	return err
}

// openNamespace makes a namespace with its device.
func openNamespace(addrs []netip.Addr) (*namespace, error) {
	ns := &namespace{fd: -1, addrs: addrs}
	k, err := startKeeper(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("unshare network: %w", err)
		}
		fd, err := unix.Open(ownNamespace, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open %s: %w", ownNamespace, err)
		}
		ns.fd = fd
		if ns.tun, err = openTUN(); err != nil {
			return err
		}
		if ns.raw, err = ns.tun.SyscallConn(); err != nil {
			return fmt.Errorf("use %s: %w", device, err)
		}
		return configure(addrs)
	})
	if err != nil {
		return nil, errors.Join(err, ns.closeFiles())
	}
	ns.keeper = k
	return ns, nil
}

// openTUN makes the device, in the namespace of the calling thread, and returns it
// ready for the runtime's poller.
func openTUN() (*os.File, error) {
	fd, err := unix.Open(tunDevice, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", tunDevice, err)
	}
	request, err := unix.NewIfreq(device)
	if err == nil {
		request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make device %s: %w", device, err), unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), device), nil // after TUNSETIFF: the poller cannot wait for it before
}

// configure brings up the devices of the calling thread's namespace.
func configure(addrs []netip.Addr) error {
	loopback, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find the loopback device: %w", err)
	}
	wan, err := netlink.LinkByName(device)
	if err != nil {
		return fmt.Errorf("find %s: %w", device, err)
	}
	steps := []struct {
		what string
		do   func() error
	}{
		{"bring the loopback device up", func() error { return netlink.LinkSetUp(loopback) }},
		{"set the MTU", func() error { return netlink.LinkSetMTU(wan, MTU) }},
		{"set the queue", func() error { return netlink.LinkSetTxQLen(wan, maxDeviceQueue) }},
		{"bring it up", func() error { return netlink.LinkSetUp(wan) }},
	}
	for _, step := range steps {
		if err := step.do(); err != nil {
			return fmt.Errorf("configure %s: %s: %w", device, step.what, err)
		}
	}
	for _, addr := range addrs {
		if err := netlink.AddrAdd(wan, &netlink.Addr{IPNet: ipNet(addr, siteBits)}); err != nil {
			return fmt.Errorf("configure %s: add address %s: %w", device, addr, err)
		}
	}
	all := netip.PrefixFrom(addrs[0], planBits).Masked()
	route := &netlink.Route{LinkIndex: wan.Attrs().Index, Scope: netlink.SCOPE_LINK, Dst: ipNet(all.Addr(), planBits), Src: addrs[0].AsSlice()}
	if err := netlink.RouteAdd(route); err != nil {
		return fmt.Errorf("configure %s: add the route to %s: %w", device, all, err)
	}
	return nil
}

func ipNet(addr netip.Addr, bits int) *net.IPNet {
	return &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(bits, addr.BitLen())}
}

// read passes on what a site sends, until its device is closed.
func (c *namespaces) read(from int) error {
	ns := c.sites[from]
	var batch [maxReads]*packet
	var n int
	var failed error
	some := func(fd uintptr) bool {
		n, failed = readPackets(int(fd), batch[:], c.pool)
		return n > 0 || failed != nil
	}
	for {
		if err := ns.raw.Read(some); err != nil {
			if c.isClosed() { // said before the device is closed
				return nil
			}
			return fmt.Errorf("wait for %s: %w", device, err)
		}
		if n > 0 {
			c.forward(from, batch[:n])
		}
		if failed != nil {
			return failed
		}
	}
}

// readPackets reads as many packets as there are, up to those that fit in batch.
func readPackets(fd int, batch []*packet, pool *packets) (n int, err error) {
	for n < len(batch) {
		p := pool.get()
		size, err := unix.Read(fd, p.room[:])
		if err != nil {
			pool.put(p)
			switch {
			case errors.Is(err, unix.EINTR):
				continue
			case errors.Is(err, unix.EAGAIN):
				return n, nil
			}
			return n, fmt.Errorf("read %s: %w", device, err)
		}
		p.bytes, p.size = p.room[:size], size
		batch[n] = p
		n++
	}
	return n, nil
}

// forward gives each packet to its pair, neighbours with one destination together.
func (c *namespaces) forward(from int, batch []*packet) {
	destination := func(p *packet) int { return parseDestination(p.bytes, len(c.sites), c.hosts) }
	for len(batch) > 0 {
		to, n := destination(batch[0]), 1
		for n < len(batch) && destination(batch[n]) == to {
			n++
		}
		if to < 0 || to == from {
			if to != toNoIPv4 {
				c.sites[from].stray.Add(uint64(n))
			}
			for _, p := range batch[:n] {
				c.pool.put(p)
			}
		} else {
			for _, p := range batch[:n] {
				p.exit = c.sites[to]
			}
			c.pairs[from][to].send(batch[:n]...)
		}
		batch = batch[n:]
	}
}

// deliver hands a packet to the site's kernel, which takes it in at once.
func (ns *namespace) deliver(p []byte) error {
	_, err := ns.tun.Write(p)
	return err
}

func (c *namespaces) addrs(site int) []netip.Addr { return slices.Clone(c.sites[site].addrs) }

func (c *namespaces) via(_, to int, target netip.AddrPort) (netip.AddrPort, error) {
	if !slices.Contains(c.sites[to].addrs, target.Addr()) {
		return netip.AddrPort{}, fmt.Errorf("no address of the site: %w", scstore.ErrInvalid)
	}
	return target, nil
}

func (c *namespaces) start(site int, cmd *exec.Cmd) error { return c.sites[site].keeper.start(cmd) }

// do calls f on this goroutine's thread while that is in the site's namespace.
func (c *namespaces) do(site int, f func() error) (err error) {
	runtime.LockOSThread()
	home, err := unix.Open(ownNamespace, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("open %s: %w", ownNamespace, err)
	}
	defer func() {
		if back := unix.Setns(home, unix.CLONE_NEWNET); back == nil {
			runtime.UnlockOSThread()
		} else { // the thread stays locked and ends with this goroutine
			err = errors.Join(err, fmt.Errorf("leave namespace: %w", back))
		}
		err = errors.Join(err, unix.Close(home))
	}()
	if err := c.enter(site); err != nil {
		return err
	}
	return f()
}

// enter moves the calling thread into a site's namespace.
func (c *namespaces) enter(site int) error {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if c.closed {
		return fmt.Errorf("enter namespace: %w", scstore.ErrClosed)
	}
	if err := unix.Setns(c.sites[site].fd, unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter namespace: %w", err)
	}
	return nil
}

func (c *namespaces) siteStats(site int) (SiteStats, error) {
	stats := SiteStats{Stray: c.sites[site].stray.Load()}
	err := c.do(site, func() error {
		wan, err := netlink.LinkByName(device)
		if err != nil {
			return fmt.Errorf("find %s: %w", device, err)
		}
		if counters := wan.Attrs().Statistics; counters != nil {
			stats.Overrun = counters.TxDropped
		}
		return nil
	})
	return stats, err
}

func (c *namespaces) close() error {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	var err error
	for _, ns := range c.sites {
		ns.keeper.close()
		err = errors.Join(err, ns.closeFiles())
	}
	c.readers.Wait()
	for _, ns := range c.sites {
		err = errors.Join(err, ns.failed)
	}
	return err
}

func (c *namespaces) isClosed() bool {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.closed
}

// closeFiles closes what was opened.
func (ns *namespace) closeFiles() (err error) {
	if ns.tun != nil {
		err = ns.tun.Close()
	}
	if ns.fd >= 0 {
		err = errors.Join(err, unix.Close(ns.fd))
	}
	return err
}
