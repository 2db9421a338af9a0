//go:build soak

package e2e_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"scstore/sim/wan"
)

const (
	// peerPort is what the peers' servers listen on, one at a time.
	peerPort = 9000
	// iperfSeconds is how long a stream of iperf3 runs.
	iperfSeconds = 6
)

// peerSites are two sites with a link of their own, for the peers.
type peerSites struct {
	t      testing.TB
	n      *wan.Network
	target string // the file at the site b
}

// startPeers opens sites like those of openSites.
func startPeers(t testing.TB, loss float64) *peerSites {
	t.Helper()
	n, err := wan.Open(t.Context(), wan.Options{Sites: []string{"a", "b"}, Link: wan.RTT(wanRTT).WithRate(wanRate).WithLoss(loss), Seed: 1})
	check(t, err)
	t.Cleanup(func() { check(t, n.Close()) })
	return &peerSites{t: t, n: n, target: filepath.Join(t.TempDir(), "target.raw")}
}

// addr returns where the servers of a site listen.
func (p *peerSites) addr(site string) netip.AddrPort {
	return netip.AddrPortFrom(p.n.Addrs(site)[0], peerPort)
}

// congestion returns which congestion control TCP has at the sites.
func (p *peerSites) congestion() string {
	var b []byte
	check(p.t, p.n.Do("a", func() (err error) {
		b, err = os.ReadFile("/proc/sys/net/ipv4/tcp_congestion_control")
		return err
	}))
	return strings.TrimSpace(string(b))
}

// command prepares a program at a site. Where it is missing, the test fails.
func (p *peerSites) command(site string, argv ...string) *wan.Cmd {
	p.t.Helper()
	if _, err := exec.LookPath(argv[0]); err != nil {
		p.t.Fatalf("%s is needed by this test; scripts/install-tools installs it: %v", argv[0], err)
	}
	return p.n.Command(p.t.Context(), site, argv[0], argv[1:]...)
}

// run runs a program at a site that must succeed.
func (p *peerSites) run(site string, argv ...string) string {
	p.t.Helper()
	cmd := p.command(site, argv...)
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		p.t.Fatalf("%v: %v: %s%s", argv, err, said.String(), out)
	}
	return string(out)
}

// serve starts a server at a site, waits until it takes connections, and ends it when
// stop is called.
func (p *peerSites) serve(site string, argv ...string) (stop func()) {
	p.t.Helper()
	cmd := p.command(site, argv...)
	check(p.t, cmd.Start())
	eventually(p.t, sitesPatience, argv[0]+" takes connections", func() bool {
		conn, err := p.n.Dial(p.t.Context(), site, "tcp", p.addr(site).String())
		return err == nil && conn.Close() == nil
	})
	return func() {
		check(p.t, cmd.Process.Kill())
		_ = cmd.Wait() // it was killed
	}
}

// copyTo times what makes a disk at the site b, until it is on the device there, and
// compares it.
func (p *peerSites) copyTo(disk string, copying func()) time.Duration {
	p.t.Helper()
	begin := time.Now()
	copying()
	f, err := os.OpenFile(p.target, os.O_WRONLY, 0)
	check(p.t, err)
	check(p.t, f.Sync())
	took := time.Since(begin)
	check(p.t, f.Close())
	tool(p.t, "qemu-img", "compare", "-f", "raw", "-F", "raw", disk, p.target)
	return took
}

// forget removes the disk at the site b.
func (p *peerSites) forget() { check(p.t, os.Remove(p.target)) }

// nbdcopy copies with libnbd's tool from nbdkit.
func (p *peerSites) nbdcopy(disk string) time.Duration {
	at := p.addr("a")
	defer p.serve("a", "nbdkit", "-f", "-r", "-i", at.Addr().String(), "-p", fmt.Sprint(at.Port()), "file", disk)()
	return p.copyTo(disk, func() { p.run("b", "nbdcopy", "nbd://"+at.String(), p.target) })
}

// qemuImg copies with qemu-img from qemu-nbd.
func (p *peerSites) qemuImg(disk string) time.Duration {
	at := p.addr("a")
	defer p.serve("a", "qemu-nbd", "-r", "-t", "-e", "16", "-f", "raw", "-b", at.Addr().String(), "-p", fmt.Sprint(at.Port()), disk)()
	return p.copyTo(disk, func() {
		p.run("b", "qemu-img", "convert", "-f", "raw", "-O", "raw", "-m", "16", "-W", "nbd://"+at.String(), p.target)
	})
}

// zstd copies through zstd, a TCP connection of socat, and zstd.
func (p *peerSites) zstd(disk string) time.Duration {
	to := p.addr("b")
	return p.copyTo(disk, func() {
		listen := p.command("b", "socat", "-u", fmt.Sprintf("TCP-LISTEN:%d,bind=%s,reuseaddr", to.Port(), to.Addr()), "-")
		unpack := p.command("b", "zstd", "-q", "-d", "-f", "--sparse", "-o", p.target)
		p.pipe(listen, unpack)
		pack := p.command("a", "zstd", "-q", "-3", "-T2", "-c", disk)
		send := p.command("a", "socat", "-u", "-", fmt.Sprintf("TCP:%s,retry=100,interval=0.05", to))
		p.pipe(pack, send)
		for _, cmd := range []*wan.Cmd{send, pack, listen, unpack} {
			check(p.t, cmd.Wait())
		}
	})
}

// pipe starts two programs, of which the second reads what the first writes.
func (p *peerSites) pipe(from, to *wan.Cmd) {
	p.t.Helper()
	out, err := from.StdoutPipe()
	check(p.t, err)
	to.Stdin = out
	check(p.t, from.Start())
	check(p.t, to.Start())
}

// serveRsync starts rsync's daemon at the site b.
func (p *peerSites) serveRsync() (url string, stop func()) {
	p.t.Helper()
	to, dir := p.addr("b"), p.t.TempDir()
	config := filepath.Join(dir, "rsyncd.conf")
	check(p.t, os.WriteFile(config, fmt.Appendf(nil, `use chroot = no
reverse lookup = no
uid = 0
gid = 0
[disk]
path = %s
read only = no
`, filepath.Dir(p.target)), 0o600))
	stop = p.serve("b", "rsync", "--daemon", "--no-detach", "--config="+config, "--address="+to.Addr().String(), fmt.Sprintf("--port=%d", to.Port()),
		"--log-file="+filepath.Join(dir, "rsyncd.log"))
	return fmt.Sprintf("rsync://%s/disk/%s", to, filepath.Base(p.target)), stop
}

// rsync copies with rsync, without a look for what is there already.
func (p *peerSites) rsync(disk string) time.Duration {
	url, stop := p.serveRsync()
	defer stop()
	return p.copyTo(disk, func() { p.run("a", "rsync", "-W", "-S", "-z", "--compress-choice=lz4", disk, url) })
}

// rsyncDelta has rsync find out what the disk at the site b lacks.
func (p *peerSites) rsyncDelta(disk string) time.Duration {
	url, stop := p.serveRsync()
	defer stop()
	return p.copyTo(disk, func() {
		p.run("a", "rsync", "-I", "--inplace", "--no-whole-file", "-z", "--compress-choice=lz4", disk, url)
	})
}

// iperf returns what one stream of iperf3 brings from a to b with a congestion control,
// in bit/s.
func (p *peerSites) iperf(congestion string) float64 {
	p.t.Helper()
	to := p.addr("b")
	server := p.command("b", "iperf3", "-s", "-1", "-B", to.Addr().String(), "-p", fmt.Sprint(to.Port()))
	check(p.t, server.Start())
	defer func() {
		_ = server.Process.Kill() // if it serves still
		_ = server.Wait()         // its client says how it went
	}()
	ctx, cancel := context.WithTimeout(p.t.Context(), sitesPatience)
	defer cancel()
	for {
		out, err := p.command("a", "iperf3", "-J", "-c", to.Addr().String(), "-p", fmt.Sprint(to.Port()), "-t", fmt.Sprint(iperfSeconds), "-C", congestion).Output()
		var result struct {
			Error string `json:"error"`
			End   struct {
				Received struct {
					BitsPerSecond float64 `json:"bits_per_second"`
				} `json:"sum_received"`
			} `json:"end"`
		}
		if parsed := json.Unmarshal(out, &result); parsed == nil && err == nil && result.Error == "" {
			return result.End.Received.BitsPerSecond
		}
		if ctx.Err() != nil {
			p.t.Fatalf("iperf3 with %s: %v: %s", congestion, err, out)
		}
		time.Sleep(100 * time.Millisecond) // until the server is there
	}
}
