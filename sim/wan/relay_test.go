package wan

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"

	"scstore"
)

// echoAt starts a server at an address of a site and returns a connection to it
// from another site, by way of a relay.
func echoAt(t *testing.T, n *Network, from, to string) (server netip.AddrPort, client net.Conn) {
	t.Helper()
	c, err := n.ListenPacket(t.Context(), to, "udp", at(n, to, 0, 0))
	check(t, err)
	serveEcho(t, c)
	server, err = netip.ParseAddrPort(c.LocalAddr().String())
	check(t, err)
	return server, dialVia(t, n, from, to, server)
}

func dialVia(t *testing.T, n *Network, from, to string, server netip.AddrPort) net.Conn {
	t.Helper()
	way, err := n.Via(from, to, server)
	check(t, err)
	c, err := n.Dial(t.Context(), from, "udp", way.String())
	check(t, err)
	t.Cleanup(func() { check(t, c.Close()) })
	return c
}

func TestRelay_EchoIsEqualAndCounted(t *testing.T) {
	n := open(t, Options{Carrier: Relay, Link: RTT(2 * ms).WithRate(100 * Mbit)})
	_, client := echoAt(t, n, "a", "b")
	const count = 50
	size := ping(t, client, rand.New(rand.NewPCG(5, 6)), count)
	want := Stats{Sent: count, SentBytes: size, Delivered: count, DeliveredBytes: size}
	checkStats(t, n.Stats("a", "b"), want)
	checkStats(t, n.Stats("b", "a"), want)
	checkStats(t, n.Stats("a", "c"), Stats{})
}

func TestRelay_CarriesTheLargestDatagram(t *testing.T) {
	n := open(t, Options{Carrier: Relay})
	_, client := echoAt(t, n, "a", "b")
	payload := bytes.Repeat([]byte("0123456789"), maxDatagram/10)
	_, err := client.Write(payload)
	check(t, err)
	reply := make([]byte, maxDatagram)
	size, err := client.Read(reply)
	check(t, err)
	if !bytes.Equal(reply[:size], payload) {
		t.Errorf("%d bytes came back as %d other ones", len(payload), size)
	}
}

func TestRelay_APartitionDropsAndHealingDelivers(t *testing.T) {
	n := open(t, Options{Carrier: Relay, Link: RTT(2 * ms)})
	_, client := echoAt(t, n, "a", "b")
	cutAndHeal(t, n, client)
}

func TestRelay_LossIsCounted(t *testing.T) {
	n := open(t, Options{Carrier: Relay, Link: Link{Loss: 1}})
	_, client := echoAt(t, n, "a", "b")
	for range 5 {
		_, err := client.Write([]byte("lost"))
		check(t, err)
	}
	waitFor(t, "the datagrams to be lost", func() bool { return n.Stats("a", "b").Lost == 5 })
	checkStats(t, n.Stats("a", "b"), Stats{Sent: 5, SentBytes: 5 * (4 + headerBytes), Lost: 5})
}

func TestRelay_ClientsGetTheirOwnAnswers(t *testing.T) {
	n := open(t, Options{Carrier: Relay, Link: RTT(2 * ms)})
	server, first := echoAt(t, n, "a", "b")
	clients := []net.Conn{first}
	for range MaxRelayFlows { // one more than there may be: the first is forgotten
		clients = append(clients, dialVia(t, n, "a", "b", server))
	}
	for i, c := range clients {
		ping(t, c, rand.New(rand.NewPCG(uint64(i), 1)), 1)
	}
	ping(t, first, rand.New(rand.NewPCG(1, 1)), 1) // and is a new one then
}

func TestRelay_AnswersTheSameQuestionAlike(t *testing.T) {
	n := open(t, Options{Carrier: Relay})
	target := netip.AddrPortFrom(n.Addrs("b")[0], 1)
	way := func(from, to string, target netip.AddrPort) netip.AddrPort {
		got, err := n.Via(from, to, target)
		check(t, err)
		return got
	}
	one := way("a", "b", target)
	if one == target || way("a", "b", target) != one || way("c", "b", target) == one {
		t.Errorf("from a to %s by way of %s", target, one)
	}
	if got := way("b", "b", target); got != target {
		t.Errorf("within a site by way of %s", got)
	}
	for _, wrong := range []string{"192.0.2.1:1", "127.0.0.1:0"} {
		if got, err := n.Via("a", "b", netip.MustParseAddrPort(wrong)); !errors.Is(err, scstore.ErrInvalid) {
			t.Errorf("%s: got %s, %v", wrong, got, err)
		}
	}
}

func TestRelay_NobodyThereIsNoEnd(t *testing.T) {
	n := open(t, Options{Carrier: Relay})
	c, err := n.ListenPacket(t.Context(), "b", "udp", at(n, "b", 0, 0))
	check(t, err)
	server := netip.MustParseAddrPort(c.LocalAddr().String())
	check(t, c.Close())
	client := dialVia(t, n, "a", "b", server)
	for range 3 {
		_, err := client.Write([]byte("anybody there?"))
		check(t, err)
	}
	waitFor(t, "the datagrams to arrive", func() bool { s := n.Stats("a", "b"); return s.Delivered+s.Refused == 3 })
	again, err := n.ListenPacket(t.Context(), "b", "udp", server.String())
	check(t, err)
	serveEcho(t, again)
	// The socket of the relay may still have to tell that nobody was there.
	for range 3 {
		_, err := client.Write([]byte("now?"))
		check(t, err)
	}
	reply := make([]byte, 10)
	size, err := client.Read(reply)
	check(t, err)
	if string(reply[:size]) != "now?" {
		t.Errorf("got %q", reply[:size])
	}
}

func TestVia_WithNamespacesIsTheTarget(t *testing.T) {
	n := open(t, Options{})
	target := netip.AddrPortFrom(n.Addrs("b")[1], 7)
	if got, err := n.Via("a", "b", target); err != nil || got != target {
		t.Errorf("got %s, %v", got, err)
	}
	if got, err := n.Via("a", "c", target); !errors.Is(err, scstore.ErrInvalid) {
		t.Errorf("an address of another site: got %s, %v", got, err)
	}
}
