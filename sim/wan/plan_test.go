package wan

import "testing"

// ipv4 returns the header of a packet to an address.
func ipv4(to ...byte) []byte {
	return append([]byte{0x45, 0, 0, 20, 0, 0, 0, 0, 64, 17, 0, 0, siteNetwork, planByte, 0, 1}, to...)
}

func TestPlan_DestinationIsASiteOrNothing(t *testing.T) {
	for _, c := range []struct {
		name   string
		packet []byte
		want   int
	}{
		{"the first host", ipv4(10, 77, 0, 1), 0},
		{"the last host", ipv4(10, 77, 2, 4), 2},
		{"no such site", ipv4(10, 77, 3, 1), toNowhere},
		{"no such host", ipv4(10, 77, 2, 5), toNowhere},
		{"a subnet", ipv4(10, 77, 2, 0), toNowhere},
		{"another network", ipv4(10, 78, 2, 1), toNowhere},
		{"multicast", ipv4(224, 0, 0, 22), toNowhere},
		{"cut short", ipv4(10, 77, 2), toNoIPv4},
		{"nothing", nil, toNoIPv4},
		{"IPv6", append([]byte{0x60}, make([]byte, 39)...), toNoIPv4},
	} {
		if got := parseDestination(c.packet, 3, 4); got != c.want {
			t.Errorf("%s: got %d, want %d", c.name, got, c.want)
		}
	}
}

// FuzzParseDestination: whatever a site sends goes to a site that exists, and then
// to one of its addresses, or nowhere.
func FuzzParseDestination(f *testing.F) {
	f.Add(ipv4(10, 77, 1, 1))
	f.Add(ipv4(10, 77, 1))
	f.Add([]byte{0x60})
	f.Fuzz(func(t *testing.T, packet []byte) {
		const sites, hosts = 3, 4
		site := parseDestination(packet, sites, hosts)
		if site >= sites || site < toNoIPv4 {
			t.Fatalf("got site %d", site)
		}
		if site < 0 {
			return
		}
		for host := range hosts {
			to := hostAddr(siteNetwork, site, host+1).As4()
			if [4]byte(packet[16:20]) == to {
				return
			}
		}
		t.Fatalf("got site %d for % x", site, packet[16:20])
	})
}
