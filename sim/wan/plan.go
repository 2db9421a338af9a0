package wan

import "net/netip"

// The address plan: host h, from 1, of site s, from 0, is PREFIX.s.h.
const (
	siteNetwork  = 10  // 10.77.0.0/16 inside of namespaces
	relayNetwork = 127 // 127.77.0.0/16 on this machine
	planByte     = 77
	siteBits     = 24 // of a site's subnet
	planBits     = 16 // of them all
)

// hostAddr returns an address of the plan.
func hostAddr(network byte, site, host int) netip.Addr {
	return netip.AddrFrom4([4]byte{network, planByte, byte(site), byte(host)})
}

// siteAddrs returns the addresses of a site.
func siteAddrs(network byte, site, hosts int) []netip.Addr {
	addrs := make([]netip.Addr, 0, hosts)
	for host := range hosts {
		addrs = append(addrs, hostAddr(network, site, host+1))
	}
	return addrs
}

// Where a packet goes that goes to no site.
const (
	toNowhere = -1 // an address that no site has
	toNoIPv4  = -2 // not IPv4: the kernel's own talk to its neighbours
)

// parseDestination returns the number of the site that an IP packet is sent to, in
// a network of so many sites with so many hosts each, or a negative number.
// Source: RFC 791, section 3.1.
func parseDestination(packet []byte, sites, hosts int) int {
	if len(packet) < 20 || packet[0]>>4 != 4 {
		return toNoIPv4
	}
	site, host := int(packet[18]), int(packet[19])
	if packet[16] != siteNetwork || packet[17] != planByte || site >= sites || host < 1 || host > hosts {
		return toNowhere
	}
	return site
}
