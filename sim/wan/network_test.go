package wan

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"scstore"
)

// at returns an address of a site with a port.
func at(n *Network, site string, host int, port uint16) string {
	return netip.AddrPortFrom(n.Addrs(site)[host], port).String()
}

// ping sends datagrams with random content one after the other, each after the
// echo of the one before, and returns how many bytes their packets have.
func ping(t *testing.T, c net.Conn, rng *rand.Rand, count int) (sent uint64) {
	t.Helper()
	reply := make([]byte, maxDatagram)
	for i := range count {
		payload := make([]byte, 1+rng.IntN(MTU-headerBytes))
		for j := range payload {
			payload[j] = byte(rng.Uint32())
		}
		_, err := c.Write(payload)
		check(t, err)
		size, err := c.Read(reply)
		check(t, err)
		if !bytes.Equal(reply[:size], payload) {
			t.Fatalf("datagram %d of %d bytes came back with %d other ones", i, len(payload), size)
		}
		sent += uint64(len(payload) + headerBytes)
	}
	return sent
}

func TestNamespaces_EchoIsEqualAndCounted(t *testing.T) {
	n := open(t, Options{Link: RTT(2 * ms).WithRate(100 * Mbit)})
	for host := range n.Addrs("b") {
		server, err := n.ListenPacket(t.Context(), "b", "udp", at(n, "b", host, 7))
		check(t, err)
		serveEcho(t, server)
	}
	client, err := n.Dial(t.Context(), "a", "udp", at(n, "b", 0, 7))
	check(t, err)
	defer client.Close()
	const count = 50
	size := ping(t, client, rand.New(rand.NewPCG(5, 6)), count)
	want := Stats{Sent: count, SentBytes: size, Delivered: count, DeliveredBytes: size}
	checkStats(t, n.Stats("a", "b"), want)
	checkStats(t, n.Stats("b", "a"), want)
	checkStats(t, n.Stats("a", "c"), Stats{})

	last, err := n.Dial(t.Context(), "c", "udp", at(n, "b", DefaultHostsPerSite-1, 7))
	check(t, err)
	defer last.Close()
	ping(t, last, rand.New(rand.NewPCG(7, 8)), 1)
	checkStats(t, n.Stats("a", "b"), want)
	if got := n.Stats("c", "b").Delivered; got != 1 {
		t.Errorf("%d packets went from c to b, want 1", got)
	}
	for _, site := range n.Sites() {
		if got, err := n.SiteStats(site); err != nil || got != (SiteStats{}) {
			t.Errorf("site %s: %+v, %v", site, got, err)
		}
	}
}

func TestNamespaces_WithinASiteNoLinkIsUsed(t *testing.T) {
	n := open(t, Options{Link: Link{Down: true}})
	server, err := n.ListenPacket(t.Context(), "a", "udp", at(n, "a", 1, 0))
	check(t, err)
	serveEcho(t, server)
	client, err := n.Dial(t.Context(), "a", "udp", server.LocalAddr().String())
	check(t, err)
	defer client.Close()
	ping(t, client, rand.New(rand.NewPCG(1, 1)), 5)
	checkStats(t, n.Stats("a", "b"), Stats{})
}

// cutAndHeal sends datagrams over a partition and after it. The connection echoes.
func cutAndHeal(t *testing.T, n *Network, client net.Conn) {
	t.Helper()
	rng := rand.New(rand.NewPCG(1, 1))
	ping(t, client, rng, 3)
	check(t, n.Partition("b", "a"))
	before := n.Stats("a", "b")
	for i := range 10 {
		_, err := client.Write([]byte{byte(i)})
		check(t, err)
	}
	waitFor(t, "the datagrams to be dropped", func() bool { return n.Stats("a", "b").Cut == before.Cut+10 })
	if got := n.Stats("a", "b"); got.Delivered != before.Delivered {
		t.Errorf("%d packets were delivered over a partition", got.Delivered-before.Delivered)
	}
	check(t, n.Heal("a", "b"))
	ping(t, client, rng, 3) // an echo of what was cut would come first
	checkSum(t, n.Stats("a", "b"))
}

func TestNamespaces_APartitionDropsAndHealingDelivers(t *testing.T) {
	n := open(t, Options{Link: RTT(2 * ms)})
	server, err := n.ListenPacket(t.Context(), "b", "udp", at(n, "b", 0, 0))
	check(t, err)
	serveEcho(t, server)
	client, err := n.Dial(t.Context(), "a", "udp", server.LocalAddr().String())
	check(t, err)
	defer client.Close()
	cutAndHeal(t, n, client)
}

func TestNamespaces_OneDirectionCanBeCut(t *testing.T) {
	n := open(t, Options{})
	server, err := n.ListenPacket(t.Context(), "b", "udp", at(n, "b", 0, 0))
	check(t, err)
	serveEcho(t, server)
	client, err := n.Dial(t.Context(), "a", "udp", server.LocalAddr().String())
	check(t, err)
	defer client.Close()
	check(t, n.SetLink("b", "a", Link{Down: true}))
	_, err = client.Write([]byte("there"))
	check(t, err)
	waitFor(t, "the echo to be dropped", func() bool { return n.Stats("b", "a").Cut == 1 })
	checkStats(t, n.Stats("a", "b"), Stats{Sent: 1, SentBytes: 33, Delivered: 1, DeliveredBytes: 33})
}

func TestNamespaces_WhatGoesNowhereIsCounted(t *testing.T) {
	n := open(t, Options{})
	client, err := n.Dial(t.Context(), "a", "udp", "10.77.0.200:7")
	check(t, err)
	defer client.Close()
	_, err = client.Write([]byte("hello"))
	check(t, err)
	waitFor(t, "a stray packet", func() bool {
		stats, err := n.SiteStats("a")
		check(t, err)
		return stats.Stray == 1
	})
	if _, err := n.Dial(t.Context(), "a", "udp", "192.0.2.1:7"); !errors.Is(err, syscall.ENETUNREACH) {
		t.Errorf("dial out of the network: got %v, want %v", err, syscall.ENETUNREACH)
	}
}

func TestNamespaces_TCPArrivesIntactUnderLoss(t *testing.T) {
	n := open(t, Options{Link: RTT(4 * ms).WithRate(200 * Mbit).WithLoss(0.01), Seed: 11})
	l, err := n.Listen(t.Context(), "b", "tcp", at(n, "b", 0, 0))
	check(t, err)
	defer l.Close()
	const size = 4 << 20
	data := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(data)
	received := make(chan error, 1)
	go func() { // answers with the digest of what it gets
		received <- func() error {
			c, err := l.Accept()
			if err != nil {
				return err
			}
			defer c.Close()
			h := sha256.New()
			if _, err := io.Copy(h, c); err != nil {
				return err
			}
			_, err = c.Write(h.Sum(nil))
			return err
		}()
	}()
	c, err := n.Dial(t.Context(), "a", "tcp", l.Addr().String())
	check(t, err)
	defer c.Close()
	_, err = c.Write(data)
	check(t, err)
	check(t, c.(*net.TCPConn).CloseWrite())
	got, err := io.ReadAll(c)
	check(t, err)
	check(t, <-received)
	if want := sha256.Sum256(data); !bytes.Equal(got, want[:]) {
		t.Errorf("got %x, want %x", got, want)
	}
	there := n.Stats("a", "b")
	checkSum(t, there)
	if there.Lost == 0 || there.SentBytes < size {
		t.Errorf("%d bytes were sent, and nothing was lost: %+v", size, there)
	}
}

func TestNamespaces_ProcessesRunInTheirSite(t *testing.T) {
	n := open(t, Options{})
	role := roleCommand("echo", at(n, "b", 1, 0))
	server := n.Command(t.Context(), "b", role.Path, role.Args[1:]...)
	server.Env, server.Stderr = role.Env, os.Stderr
	out, err := server.StdoutPipe()
	check(t, err)
	check(t, server.Start())
	client, err := n.Dial(t.Context(), "a", "udp", firstLine(t, out))
	check(t, err)
	defer client.Close()
	ping(t, client, rand.New(rand.NewPCG(1, 1)), 3)

	alone := n.Command(t.Context(), "c", "/proc/self/exe")
	alone.Env = append(os.Environ(), roleVariable+"=loopback")
	if said, err := alone.CombinedOutput(); err != nil {
		t.Errorf("use the loopback device in a site: %v: %s", err, said)
	}
	wrong := n.Command(t.Context(), "c", "/proc/self/exe")
	wrong.Env = append(os.Environ(), roleVariable+"=nonsense")
	if _, err := wrong.Output(); err == nil {
		t.Error("a command that failed passed")
	}
	if err := n.Command(t.Context(), "c", "no-such-program").Run(); !errors.Is(err, exec.ErrNotFound) {
		t.Errorf("got %v, want %v", err, exec.ErrNotFound)
	}

	if err := n.Command(t.Context(), "c", "true").Cmd.Start(); !errors.Is(err, errStartedOutside) {
		t.Errorf("start outside of the site: got %v", err)
	}

	check(t, n.Close())
	if exit, failed := errors.AsType[*exec.ExitError](server.Wait()); !failed || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("the process was not killed when the network was closed: %v", exit)
	}
}

// TestNamespaces_EndWithTheProcessThatEmulates kills one that emulates: its
// processes end, and no namespace is left.
func TestNamespaces_EndWithTheProcessThatEmulates(t *testing.T) {
	r, w, err := os.Pipe()
	check(t, err)
	defer r.Close()
	emulator := roleCommand("emulate")
	emulator.Stdout, emulator.Stderr = w, os.Stderr
	check(t, emulator.Start())
	check(t, w.Close())
	var lines []string
	for range 4 {
		lines = append(lines, firstLine(t, r))
	}
	slices.Sort(lines) // two names of namespaces, then two processes that are ready
	spaces := lines[:2]
	if lines[3] != "ready" || lines[2] != "ready" || !strings.HasPrefix(spaces[0], "net:[") || users(t, spaces) == 0 {
		t.Fatalf("the process that emulates said %q", lines)
	}
	check(t, emulator.Process.Kill())
	_ = emulator.Wait() // killed
	if _, err := io.ReadAll(r); err != nil {
		t.Fatal(err)
	} // the processes have ended: nobody holds the pipe
	waitFor(t, "the namespaces to be left", func() bool { return users(t, spaces) == 0 })
}

// users counts the threads of this machine in one of some network namespaces.
func users(t *testing.T, spaces []string) (count int) {
	t.Helper()
	links, err := filepath.Glob("/proc/[0-9]*/task/[0-9]*/ns/net")
	check(t, err)
	for _, link := range links {
		if name, err := os.Readlink(link); err == nil && slices.Contains(spaces, name) { // it may have ended since
			count++
		}
	}
	return count
}

func TestOpen_WithoutPrivilegeSaysWhatToDoAndRelays(t *testing.T) {
	cmd := roleCommand("unprivileged")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	if said, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, said)
	}
}

func TestOpen_NonsenseIsRefused(t *testing.T) {
	for _, o := range []Options{
		{}, {Sites: []string{""}}, {Sites: []string{"a", "a"}}, {Sites: make([]string, MaxSites+1)}, {Sites: []string{"a"}, Carrier: 7},
		{Sites: []string{"a"}, HostsPerSite: -1}, {Sites: []string{"a"}, HostsPerSite: MaxHostsPerSite + 1}, {Sites: []string{"a"}, Link: Link{Loss: 2}},
	} {
		if n, err := Open(t.Context(), o); !errors.Is(err, scstore.ErrInvalid) {
			t.Errorf("%+v: got %v, %v", o, n, err)
		}
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	reason := errors.New("enough")
	cancel(reason)
	if n, err := Open(ctx, Options{Sites: []string{"a"}}); !errors.Is(err, reason) {
		t.Errorf("open after the end: got %v, %v", n, err)
	}
}

func TestNetwork_LinksChangeOneByOne(t *testing.T) {
	n := open(t, Options{Carrier: Relay, Link: RTT(10 * ms)})
	want := RTT(80 * ms).WithRate(100 * Mbit)
	check(t, n.SetLink("a", "b", want))
	link := func(from, to string) Link {
		l, err := n.Link(from, to)
		check(t, err)
		return l
	}
	if got := link("a", "b"); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if got := link("b", "a"); got != RTT(10*ms) {
		t.Errorf("the other direction changed to %+v", got)
	}
	check(t, n.Partition("a", "b"))
	if !link("a", "b").Down || !link("b", "a").Down || link("a", "c").Down {
		t.Error("a partition of a and b is not one of them alone")
	}
	check(t, n.Heal("b", "a"))
	if got := link("a", "b"); got != want {
		t.Errorf("after healing: got %+v, want %+v", got, want)
	}
	check(t, n.SetRTTs(Link{BitsPerSecond: Gbit}, map[[2]string]time.Duration{{"a", "b"}: 80 * ms, {"c", "b"}: 200 * ms}))
	for _, c := range []struct {
		from, to string
		delay    time.Duration
	}{{"a", "b", 40 * ms}, {"b", "a", 40 * ms}, {"b", "c", 100 * ms}, {"c", "b", 100 * ms}, {"a", "c", 5 * ms}} {
		if got := link(c.from, c.to).Delay; got != c.delay {
			t.Errorf("from %s to %s: got %s, want %s", c.from, c.to, got, c.delay)
		}
	}
}

func TestNetwork_UnknownSitesAreRefused(t *testing.T) {
	n := open(t, Options{Carrier: Relay})
	target := netip.AddrPortFrom(n.Addrs("a")[0], 1)
	for name, f := range map[string]func(a, b string) error{
		"set link":  func(a, b string) error { return n.SetLink(a, b, Link{}) },
		"link":      func(a, b string) error { _, err := n.Link(a, b); return err },
		"partition": n.Partition,
		"heal":      n.Heal,
		"set RTTs":  func(a, b string) error { return n.SetRTTs(Link{}, map[[2]string]time.Duration{{a, b}: ms}) },
	} {
		for _, sites := range [][2]string{{"a", "x"}, {"x", "a"}, {"a", "a"}} {
			if err := f(sites[0], sites[1]); !errors.Is(err, scstore.ErrNotFound) {
				t.Errorf("%s %v: got %v", name, sites, err)
			}
		}
	}
	for name, f := range map[string]func(site string) error{
		"do":         func(site string) error { return n.Do(site, func() error { return nil }) },
		"start":      func(site string) error { return n.Start(site, exec.Command("true")) },
		"site stats": func(site string) error { _, err := n.SiteStats(site); return err },
		"via to":     func(site string) error { _, err := n.Via("a", site, target); return err },
		"via from":   func(site string) error { _, err := n.Via(site, "a", target); return err },
	} {
		if err := f("x"); !errors.Is(err, scstore.ErrNotFound) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if n.Addrs("x") != nil || n.Stats("a", "x") != (Stats{}) {
		t.Error("an unknown site has addresses or counters")
	}
	if err := n.SetLink("a", "b", Link{Delay: -1}); !errors.Is(err, scstore.ErrInvalid) {
		t.Errorf("set link to nonsense: got %v", err)
	}
	if _, err := n.Dial(t.Context(), "a", "tcp", "localhost:1"); !errors.Is(err, scstore.ErrInvalid) {
		t.Errorf("dial a name: got %v", err)
	}
}

func TestNetwork_AfterCloseNothingWorks(t *testing.T) {
	for _, carrier := range []Carrier{Namespaces, Relay} {
		t.Run(fmt.Sprint(carrier), func(t *testing.T) {
			n := open(t, Options{Carrier: carrier})
			target := netip.AddrPortFrom(n.Addrs("b")[0], 1)
			check(t, n.Close())
			check(t, n.Close())
			if err := n.Do("a", func() error { return nil }); !errors.Is(err, scstore.ErrClosed) {
				t.Errorf("do: got %v", err)
			}
			if err := n.Command(t.Context(), "a", "true").Run(); !errors.Is(err, scstore.ErrClosed) {
				t.Errorf("run: got %v", err)
			}
			if _, err := n.Via("a", "b", target); carrier == Relay && !errors.Is(err, scstore.ErrClosed) {
				t.Errorf("via: got %v", err)
			}
		})
	}
}

func TestDo_ReturnsToWhereItWas(t *testing.T) {
	n := open(t, Options{})
	name := func() string {
		s, err := os.Readlink(ownNamespace)
		check(t, err)
		return s
	}
	home, failure := name(), errors.New("planted failure")
	var a, b, again string
	err := n.Do("a", func() error {
		a = name()
		err := n.Do("b", func() error {
			b = name()
			return failure
		})
		again = name()
		return err
	})
	if !errors.Is(err, failure) {
		t.Errorf("got %v, want %v", err, failure)
	}
	if a == b || a == home || b == home || again != a || name() != home {
		t.Errorf("home %s, a %s, b %s, a again %s, home again %s", home, a, b, again, name())
	}
}
