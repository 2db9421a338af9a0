package cluster

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"scstore"
)

// maxOwnAddresses is how many of the machine's addresses are told to others, who try one
// after another.
const maxOwnAddresses = 4

// socket opens the UDP socket and says what it was asked to listen on. Errors: ErrBusy.
func (c *Cluster) socket(ctx context.Context) (net.PacketConn, string, error) {
	listen := cmp.Or(c.o.Listen, c.file.get().Listen, DefaultListen)
	if c.o.Conn != nil {
		return c.o.Conn, cmp.Or(c.o.Listen, c.o.Conn.LocalAddr().String()), nil
	}
	conn, err := new(net.ListenConfig).ListenPacket(ctx, "udp", listen)
	if err != nil {
		return nil, "", scstore.Hint(fmt.Errorf("listen on %s: %v: %w", listen, err, scstore.ErrBusy), "see which process has the UDP port, or choose another with --listen")
	}
	return conn, listen, nil
}

// anyHost reports whether a listening address leaves the host open.
func anyHost(listen string) bool {
	host, _, err := net.SplitHostPort(listen)
	if err != nil {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return host == "" || err == nil && ip.IsUnspecified()
}

// addresses returns where others find a socket: what it was asked to listen on, if that
// names a host, else the machine's addresses, and the one that others saw it at.
func addresses(listen string, local net.Addr, seen string) []string {
	_, port, err := net.SplitHostPort(local.String())
	if err != nil {
		return nil
	}
	if !anyHost(listen) {
		host, _, _ := net.SplitHostPort(listen)
		return []string{net.JoinHostPort(host, port)}
	}
	var list []string
	for _, ip := range ownIPs() {
		list = append(list, net.JoinHostPort(ip.String(), port))
	}
	if seen != "" {
		list = append(list, net.JoinHostPort(seen, port))
	}
	if len(list) == 0 {
		list = append(list, net.JoinHostPort("127.0.0.1", port))
	}
	return compact(list)
}

// compact drops what is there twice, and keeps the order.
func compact(list []string) []string {
	var once []string
	for _, a := range list {
		if !slices.Contains(once, a) {
			once = append(once, a)
		}
	}
	return once
}

// ownIPs returns the machine's addresses that others may reach, those of version 4 first.
func ownIPs() []netip.Addr {
	found, err := net.InterfaceAddrs()
	if err != nil {
		return nil
	}
	var list []netip.Addr
	for _, a := range found {
		if prefix, err := netip.ParsePrefix(a.String()); err == nil && prefix.Addr().IsGlobalUnicast() {
			list = append(list, prefix.Addr().Unmap())
		}
	}
	slices.SortStableFunc(list, func(a, b netip.Addr) int { return cmp.Compare(a.BitLen(), b.BitLen()) })
	return list[:min(len(list), maxOwnAddresses)]
}
