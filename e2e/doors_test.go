package e2e_test

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lni/dragonboat/v4/raftpb"

	"scstore/e2e"
	"scstore/internal/api"
	"scstore/internal/cluster"
	"scstore/internal/host"
	"scstore/internal/replica"
	"scstore/propagate/quicnet"
	"scstore/propagate/quicnet/authority"
	"scstore/propagate/quicnet/raftnet"
)

// The metrics of what is refused.
const (
	refusedMetric  = "scstore_quicnet_refused_total"
	streamsMetric  = "scstore_quicnet_streams_refused_total"
	strayMetric    = "scstore_quicnet_stray_packets_total"
	raftDropMetric = "scstore_raftnet_dropped_total"
)

// The exit codes of refusals; docs/operations.md lists them.
const (
	exitExists  = 4
	exitInvalid = 5
	exitFenced  = 7
)

// noiseSeed is of what means nothing.
const noiseSeed = 23

// newPort is the port of hosts that are one too many at their site.
const newPort = e2e.HostPort + 1

// doors is a cluster at whose doors the wrong ones knock, while a client writes a
// volume of site a.
type doors struct {
	s       *e2e.Sites
	acked   atomic.Uint64      // writes
	settled func(t *testing.T) // looks at what the noise left
}

// load writes the volume until the context ends.
func (d *doors) load(ctx context.Context, t testing.TB, c *chain) func() {
	client := dial(t, d.s.Host("a").URL("disk"))
	ended := make(chan error, 1)
	go func() {
		for ctx.Err() == nil {
			err := c.write(t.Context(), client)
			if err == nil && c.acked%64 == 0 {
				err = client.Flush(t.Context())
			}
			if err != nil {
				ended <- fmt.Errorf("write %d: %w", c.acked+1, err)
				return
			}
			d.acked.Store(c.acked)
			time.Sleep(time.Millisecond) // the machine is for the others, too
		}
		ended <- errors.Join(client.Flush(t.Context()), client.Close())
	}()
	return func() { check(t, <-ended) }
}

// scene is what no refusal may change.
func (d *doors) scene(t testing.TB) string {
	t.Helper()
	var of struct {
		Hosts []api.Peer `json:"hosts"`
	}
	check(t, json.Unmarshal([]byte(at(t, d.s, "a", "--json", "host", "ls")), &of))
	var b strings.Builder
	for _, h := range of.Hosts {
		fmt.Fprintf(&b, "host %s of %s, disk %s, %s at %v writes %d\n", h.Name, h.Site, h.Disk, h.State, h.Addresses, h.Volumes)
	}
	fmt.Fprintf(&b, "sites %s\n", at(t, d.s, "a", "--json", "site", "ls"))
	var list api.List
	check(t, json.Unmarshal([]byte(at(t, d.s, "a", "--json", "volume", "ls")), &list))
	for _, v := range list.Volumes {
		fmt.Fprintf(&b, "%s %s %s of %d bytes, snapshots %d", v.Kind, v.Name, v.ID, v.SizeBytes, len(v.Snapshots))
		if v.Where != nil {
			fmt.Fprintf(&b, ", at %s %s %v", v.Where.Owner, v.Where.Phase, v.Where.Branches)
		}
		b.WriteString("\n")
	}
	return b.String()
}

// count is how often the host of a site refused; a reason of "" is for a metric
// without.
func (d *doors) count(t testing.TB, site, name, reason string) float64 {
	t.Helper()
	if reason != "" {
		name = fmt.Sprintf("%s{reason=%q}", name, reason)
	}
	return metric(t, d.s.Folder(site), name)
}

// refuses expects that what knock does is refused by the host of a site: counted under
// a reason, logged in a line that has the words, and nothing else changes.
func (d *doors) refuses(t *testing.T, site, name, reason, words string, knock func()) {
	t.Helper()
	scene, before, acked, said := d.scene(t), d.count(t, site, name, reason), d.acked.Load(), len(d.logged(site, words))
	knock()
	eventually(t, sitesPatience, fmt.Sprintf("%s counts one more %s %q than %v", site, name, reason, before), func() bool {
		return d.count(t, site, name, reason) > before
	})
	eventually(t, sitesPatience, fmt.Sprintf("%s logs %q once more", site, words), func() bool { return len(d.logged(site, words)) > said })
	eventually(t, sitesPatience, "the client writes on", func() bool { return d.acked.Load() > acked+10 })
	if now := d.scene(t); now != scene {
		t.Errorf("it changed something:\n%s\nbefore:\n%s", now, scene)
	}
}

// logged returns the lines of a host's log that have all of the words.
func (d *doors) logged(site, words string) (lines []string) {
	for line := range strings.SplitSeq(d.s.Host(site).Said(), "\n") {
		if !slices.ContainsFunc(strings.Split(words, " & "), func(w string) bool { return !strings.Contains(line, w) }) {
			lines = append(lines, line)
		}
	}
	return lines
}

// token makes a token for site b.
func (d *doors) token(t testing.TB, flags ...string) string {
	t.Helper()
	return strings.TrimSpace(at(t, d.s, "a", append([]string{"host", "token", "--site", "b"}, flags...)...))
}

// change returns a token with something else in it.
func change(t testing.TB, text string, f func(*authority.Token)) string {
	t.Helper()
	token, err := authority.ParseToken(text)
	check(t, err)
	f(&token)
	return token.Encode()
}

// joinArgs are the arguments of a new host at site b.
func (d *doors) joinArgs(t testing.TB, token, name string) []string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "token")
	check(t, os.WriteFile(file, []byte(token), 0o600))
	return []string{"--site", "b", "--name", name, "--listen", d.s.Addr("b", newPort), "--join", "@" + file}
}

// join has a new host ask to join from a folder, and expects that it ends with an exit
// code and one line about want, and leaves nothing of a member behind.
func (d *doors) join(t testing.TB, dir, token, name string, code int, want string) {
	t.Helper()
	admitted, err := d.s.Serve(t.Context(), "b", dir, d.joinArgs(t, token, name)...)
	if err == nil {
		t.Errorf("it was let in: %v", admitted.Kill())
		return
	}
	_, said, _ := strings.Cut(err.Error(), fmt.Sprintf("exit status %d: ", code))
	if exitCode(err) != code || !oneLineAndHint(said, want) || !strings.Contains(said, "\nhint: ") {
		t.Errorf("it ended with %v, want exit code %d, one line about %q and a hint", err, code, want)
	}
	for _, file := range []string{"cluster.json", "keys/host.pem", "raft", "replicas"} {
		if _, err := os.Lstat(filepath.Join(dir, file)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("it left %s: %v", file, err)
		}
	}
}

// TestDoors_WhatIsRefusedHasAReasonAndChangesNothing has everybody knock who must not
// come in.
func TestDoors_WhatIsRefusedHasAReasonAndChangesNothing(t *testing.T) {
	d := &doors{s: startSites(t, 20*time.Millisecond, 0)}
	at(t, d.s, "a", "volume", "create", "disk", "--size", "2M")
	at(t, d.s, "a", "placement", "set", "disk", "--replicas", "b")
	c := &chain{blocks: 512}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	stopped := d.load(ctx, t, c)
	eventually(t, sitesPatience, "the client writes", func() bool { return d.acked.Load() > 0 })

	token, dir := d.token(t), t.TempDir() // of a host whose name is taken
	t.Run("noise", d.noise)
	t.Run("tokens", d.tokens)
	t.Run("name of another", func(t *testing.T) {
		d.refuses(t, "a", refusedMetric, "name", "peer refused & reason=name & host=a1", func() {
			d.join(t, dir, token, e2e.HostName("a"), exitExists, "has the name")
		})
	})
	t.Run("the noise left nothing", d.quiet)
	t.Run("another cluster", d.anotherCluster)
	t.Run("a member that lies", d.liar)
	t.Run("removed", d.removed)

	// What was refused for its name left no trace, and its token is good.
	late, err := d.s.Serve(t.Context(), "b", dir, d.joinArgs(t, token, "b2")...)
	check(t, err)
	eventually(t, sitesPatience, "the new host is a member", func() bool {
		_, line, _ := strings.Cut(d.scene(t), "host b2 of b, ")
		line, _, _ = strings.Cut(line, "\n")
		return strings.Contains(line, " active at ")
	})
	check(t, late.Stop())

	stop()
	stopped()
	c.expect(t, d.s.Host("a").URL("disk"), c.acked, c.acked)
	waitCurrent(t, d.s, "a", "disk", "b")
	c.expect(t, d.s.Host("b").URL("disk"), c.acked, c.acked)
}

func (d *doors) tokens(t *testing.T) {
	wrong := change(t, d.token(t), func(token *authority.Token) { token.Secret[5]++ })
	d.refuses(t, "a", refusedMetric, "token", "peer refused & reason=token & host=new & not a token of this cluster", func() {
		d.join(t, t.TempDir(), wrong, "new", exitInvalid, "not a token of this cluster")
	})
	used, err := os.ReadFile(d.s.Folder("b") + ".token")
	check(t, err)
	d.refuses(t, "a", refusedMetric, "token", "peer refused & reason=token & host=new & used by another host", func() {
		d.join(t, t.TempDir(), string(used), "new", exitInvalid, "used by another host")
	})
	short := d.token(t, "--valid", "1s")
	parsed, err := authority.ParseToken(short)
	check(t, err)
	time.Sleep(time.Until(parsed.Expires) + 50*time.Millisecond)
	d.refuses(t, "a", refusedMetric, "token", "peer refused & reason=token & host=new & has expired", func() {
		d.join(t, t.TempDir(), short, "new", exitInvalid, "has expired")
	})
}

// anotherCluster has a host of another cluster knock, and be where a member should be.
func (d *doors) anotherCluster(t *testing.T) {
	dir, site := t.TempDir(), "c"
	other := []string{"--site", "x", "--name", "x1", "--listen", d.s.Addr(site, e2e.HostPort)}
	check(t, d.s.Stop(site))
	start := func() *e2e.Server {
		x, err := d.s.Serve(t.Context(), site, dir, other...)
		check(t, err)
		t.Cleanup(func() { check(t, x.Kill()) })
		return x
	}
	// The others look for their member at its address.
	var x *e2e.Server
	d.refuses(t, "a", refusedMetric, "certificate", "peer refused & reason=certificate & peer="+d.s.Addr(site, e2e.HostPort), func() { x = start() })
	eventually(t, sitesPatience, "the other cluster's host counts them, too", func() bool {
		return metric(t, dir, refusedMetric+`{reason="certificate"}`) > 0 && strings.Contains(x.Said(), "reason=certificate")
	})
	// Who has its token is sent to this cluster: it does not give the secret away.
	token, err := x.Run(t.Context(), "host", "token")
	check(t, err)
	astray := change(t, strings.TrimSpace(token), func(token *authority.Token) { token.Addresses = []string{d.s.Addr("a", e2e.HostPort)} })
	d.refuses(t, "a", refusedMetric, "certificate", "peer refused & reason=certificate & no handshake & peer="+d.s.Addr("b", newPort), func() {
		d.join(t, t.TempDir(), astray, "new", exitInvalid, "does not show the authority")
	})
	check(t, x.Stop())
	// Its certificate, shown by somebody who does not look at the others'.
	stranger := newStranger(t, d.s, "b", 0, dir)
	d.refuses(t, "a", refusedMetric, "certificate", "peer refused & reason=certificate & verify a certificate", func() {
		if _, err := stranger.dial(t.Context(), d.s.Addr("a", e2e.HostPort), stranger.honest()); closedWith(err) == "" {
			t.Errorf("the connection ended with %v, want a reason of the other end's", err)
		}
	})
	check(t, d.s.Start(t.Context(), site))
	check(t, d.s.WaitReady(t.Context(), site))
}

// liar has somebody with the certificate of a member say what is not so.
func (d *doors) liar(t *testing.T) {
	check(t, d.s.Stop("c"))
	a := d.s.Addr("a", e2e.HostPort)
	x := newStranger(t, d.s, "c", 0, d.s.Folder("c"))
	keys, err := authority.Load(filepath.Join(d.s.Folder("b"), "keys"))
	check(t, err)
	b := keys.Identity()
	for _, lie := range []struct {
		name, reason, words, told string
		change                    func(*claim)
	}{
		{"another's disk", "identity", "reason=identity & says that it is & " + b.Disk.String(), "says that it is", func(c *claim) { c.Disk = b.Disk }},
		{"another's name", "identity", `reason=identity & says that it is \"b1\"`, "says that it is", func(c *claim) { c.Host = b.Host }},
		{"another's cluster", "cluster", "reason=cluster", "of cluster", func(c *claim) { c.Cluster[3]++ }},
		{"a newer format", "version", "reason=version & speaks wire versions 2 to 2", "speaks wire versions", func(c *claim) { c.version = quicnet.WireMax + 1 }},
	} {
		t.Run(lie.name, func(t *testing.T) {
			d.refuses(t, "a", refusedMetric, lie.reason, "peer refused & "+lie.words, func() {
				claim := x.honest()
				lie.change(&claim)
				if _, err := x.dial(t.Context(), a, claim); !strings.Contains(closedWith(err), lie.told) {
					t.Errorf("the connection ended with %v, want a reason with %q", err, lie.told)
				}
			})
		})
	}
	t.Run("a newer format answers", func(t *testing.T) {
		newer := newStranger(t, d.s, "c", e2e.HostPort, d.s.Folder("c"))
		d.refuses(t, "a", refusedMetric, "version", "peer refused & reason=version & peer="+d.s.Addr("c", e2e.HostPort), func() {
			claim := newer.honest()
			claim.version = quicnet.WireMax + 1
			ctx, cancel := context.WithTimeout(t.Context(), sitesPatience)
			defer cancel()
			if err := newer.answer(ctx, a, claim); !strings.Contains(closedWith(err), "speaks wire versions") {
				t.Errorf("the connection ended with %v, want a reason", err)
			}
		})
	})
	t.Run("another's messages", func(t *testing.T) { d.forged(t, x, b) })
	t.Run("frames", func(t *testing.T) { d.frames(t, x) })
	check(t, d.s.Start(t.Context(), "c"))
	check(t, d.s.WaitReady(t.Context(), "c"))
}

// forged has a member send what only another one may.
func (d *doors) forged(t *testing.T, x *stranger, other authority.Identity) {
	conn, err := x.dial(t.Context(), d.s.Addr("a", e2e.HostPort), x.honest())
	check(t, err)
	defer func() { _ = conn.CloseWithError(0, "") }() // done with it
	send := func(source authority.Identity, m raftpb.Message) {
		batch := raftpb.MessageBatch{SourceAddress: raftnet.Target(source.Disk), Requests: []raftpb.Message{m}}
		b := make([]byte, batch.SizeUpperLimit())
		n, err := batch.MarshalTo(b)
		check(t, err)
		frame := append(binary.BigEndian.AppendUint32(streamHeader(raftnet.KindMessages, false), uint32(n)), b[:n]...)
		_, _ = say(t.Context(), conn, frame) // nothing comes back
	}
	// The replicas have the numbers of the hosts in the order in which they joined.
	vote := raftpb.Message{Type: raftpb.RequestVote, ShardID: 1, From: 2, To: 1, Term: 1 << 40}
	before := d.count(t, "a", raftDropMetric, "")
	d.refuses(t, "a", raftDropMetric, "", "raft messages dropped & peer=c1", func() {
		send(x.keys.Identity(), vote)
		send(other, vote)
	})
	eventually(t, sitesPatience, "both messages are dropped", func() bool { return d.count(t, "a", raftDropMetric, "") == before+2 })
}

// kinds are those of the streams between hosts, and one that is none.
var kinds = []quicnet.Kind{
	raftnet.KindMessages, raftnet.KindSnapshots, cluster.KindLead, cluster.KindHello, replica.KindVolumes, replica.KindPrepare,
	replica.KindRelease, replica.KindHolds, replica.KindAlive, host.KindForward, 0xff01, 77,
}

// frames has a member send noise on streams, with and without what begins a good one.
func (d *doors) frames(t *testing.T, x *stranger) {
	conn, err := x.dial(t.Context(), d.s.Addr("a", e2e.HostPort), x.honest())
	check(t, err)
	defer func() { _ = conn.CloseWithError(0, "") }() // done with it
	const workers = 8
	var sent atomic.Int64
	storm := func(limit time.Duration) {
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		defer cancel()
		var wg sync.WaitGroup
		for i := range workers {
			rng := rand.New(rand.NewPCG(noiseSeed, uint64(sent.Load())<<8|uint64(i)))
			wg.Go(func() {
				for ctx.Err() == nil {
					_, _ = say(t.Context(), conn, noisyFrame(rng)) // whatever it says
					sent.Add(1)
				}
			})
		}
		wg.Wait()
		if conn.Context().Err() != nil {
			t.Errorf("after %d frames: %v", sent.Load(), context.Cause(conn.Context()))
		}
	}
	d.refuses(t, "a", streamsMetric, "malformed", "stream refused & reason=malformed & peer=c1", func() {
		d.refuses(t, "a", streamsMetric, "kind", "stream refused & reason=kind & peer=c1", func() {
			storm(noiseTime / 4) // makes what stays: buffers, pools
			after := d.steady(t, "stream refused")
			storm(noiseTime)
			after(t)
		})
	})
	t.Logf("seed %d, %d frames, %v malformed, %v of no kind, %v corrupt", noiseSeed, sent.Load(),
		d.count(t, "a", streamsMetric, "malformed"), d.count(t, "a", streamsMetric, "kind"), d.count(t, "a", streamsMetric, "corrupt"))
	if sent.Load() < 100 {
		t.Errorf("only %d frames", sent.Load())
	}
}

// noisyFrame returns what means nothing, more or less like what begins a stream.
func noisyFrame(rng *rand.Rand) []byte {
	p := random(rng.IntN(300), rng.Uint64())
	header := streamHeader(kinds[rng.IntN(len(kinds))], rng.IntN(2) == 0)
	switch rng.IntN(4) {
	case 0:
		return p
	case 1:
		return append(header, p...)
	}
	return append(binary.BigEndian.AppendUint32(header, uint32(len(p))), p...)
}

// noise sends random datagrams to the port of site a's host, from there and from
// elsewhere.
func (d *doors) noise(t *testing.T) {
	var sent atomic.Int64
	storm := func(limit time.Duration) {
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		defer cancel()
		var wg sync.WaitGroup
		for i, site := range []string{"a", "b"} {
			wg.Go(func() { sent.Add(datagrams(ctx, t, d.s, site, uint64(i))) })
		}
		wg.Wait()
	}
	d.settled = d.steady(t, "stray packet")
	d.refuses(t, "a", strayMetric, "", "stray packet dropped", func() { storm(noiseTime) })
	t.Logf("seed %d, %d datagrams, %v dropped as nobody's", noiseSeed, sent.Load(), d.count(t, "a", strayMetric, ""))
	if sent.Load() < 500 {
		t.Errorf("only %d datagrams", sent.Load())
	}
}

// quiet looks at what the noise left, a while later.
func (d *doors) quiet(t *testing.T) {
	eventually(t, sitesPatience, "handshakes that go nowhere are counted", func() bool {
		return d.count(t, "a", refusedMetric, "timeout") > 0 && len(d.logged("a", "peer refused & reason=timeout & no handshake")) > 0
	})
	d.settled(t)
}

// datagrams sends noise from a site until the context ends, some of it in the shape of
// packets.
func datagrams(ctx context.Context, t testing.TB, s *e2e.Sites, site string, seed uint64) (sent int64) {
	conn, err := s.ListenPacket(t.Context(), site, 0)
	if err != nil {
		t.Error(err)
		return 0
	}
	defer conn.Close()
	to, err := net.ResolveUDPAddr("udp", s.Addr("a", e2e.HostPort))
	if err != nil {
		t.Error(err)
		return 0
	}
	rng := rand.New(rand.NewPCG(noiseSeed, seed))
	for ctx.Err() == nil {
		b := random(1+rng.IntN(1300), rng.Uint64())
		switch rng.IntN(4) {
		case 0:
			b[0] |= 0xc0
			copy(b[1:], []byte{0, 0, 0, 1, 8}) // a long header of QUIC version 1
		case 1: // the first packet of a connection, as far as one can see
			b = append(b, make([]byte, 1300-len(b))...)
			b[0] = 0xc0 | b[0]&0x0f
			copy(b[1:], []byte{0, 0, 0, 1, 8})
			b[14], b[15], b[16], b[17] = 0, 0, 0x44, 0xb0 // no other id, no token, 1200 bytes
		case 2:
			b[0] = b[0]&0x3f | 0x40 // a short header
		}
		if _, err := conn.WriteTo(b, to); err == nil { // a full queue is no error of the host's
			sent++
		}
		time.Sleep(200 * time.Microsecond)
	}
	return sent
}

// steady returns what expects, after a storm, that the host of site a is as it was
// before: no more goroutines and no more memory, and few lines in its log. What looked
// like the beginning of a connection takes ten seconds to be given up.
func (d *doors) steady(t *testing.T, line string) func(*testing.T) {
	t.Helper()
	const goroutineSlack, heapSlack = 40, 48 * mib
	dir, begin := d.s.Folder("a"), time.Now()
	goroutines, heap := metric(t, dir, "go_goroutines"), metric(t, dir, "go_memstats_heap_alloc_bytes")
	said := len(d.logged("a", line))
	return func(t *testing.T) {
		t.Helper()
		// A burst for each of the reasons, and then one of each at times.
		if most := 4*4 + 4*int(time.Since(begin)/(10*time.Second)); len(d.logged("a", line))-said > most {
			t.Errorf("%d lines with %q in %s, want %d at most", len(d.logged("a", line))-said, line, time.Since(begin), most)
		}
		var goroutinesNow, heapNow float64
		for deadline := time.Now().Add(sitesPatience); ; time.Sleep(50 * time.Millisecond) {
			goroutinesNow, heapNow = metric(t, dir, "go_goroutines"), metric(t, dir, "go_memstats_heap_alloc_bytes")
			if goroutinesNow <= goroutines+goroutineSlack && heapNow <= heap+heapSlack {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("%v goroutines and %v bytes after the storm, %v and %v before", goroutinesNow, heapNow, goroutines, heap)
			}
		}
		t.Logf("%v goroutines and %.1f MiB after the storm, %v and %.1f before", goroutinesNow, heapNow/mib, goroutines, heap/mib)
	}
}

// removed removes the host of site c, which is not told until it comes back.
func (d *doors) removed(t *testing.T) {
	check(t, d.s.Stop("c"))
	at(t, d.s, "a", "host", "remove", e2e.HostName("c"))
	denied := func() float64 {
		return d.count(t, "a", refusedMetric, "denied") + d.count(t, "b", refusedMetric, "denied")
	}
	scene, before, acked := d.scene(t), denied(), d.acked.Load()
	err := d.s.Start(t.Context(), "c")
	var said string
	code := exitCode(err)
	if err == nil { // it learns of it when it serves
		c := d.s.Host("c")
		select {
		case <-c.Exited():
			code, said = c.ExitCode(), c.Said()
		case <-time.After(sitesPatience):
			t.Fatalf("the removed host goes on")
		}
		check(t, d.s.Kill("c"))
	} else {
		_, said, _ = strings.Cut(err.Error(), "exit status 7: ")
	}
	if code != exitFenced || !oneLineAndHint(said, "removed from the cluster") || !strings.Contains(said, "\nhint: ") {
		t.Errorf("the removed host ended with code %d, want %d, and said:\n%s", code, exitFenced, said)
	}
	if denied() <= before || len(d.logged("a", "reason=denied & was removed"))+len(d.logged("b", "reason=denied & was removed")) == 0 {
		t.Errorf("it is counted %v times, and logged by a:\n%v\nby b:\n%v", denied()-before, d.logged("a", "refused"), d.logged("b", "refused"))
	}
	eventually(t, sitesPatience, "the client writes on", func() bool { return d.acked.Load() > acked+10 })
	if now := d.scene(t); now != scene {
		t.Errorf("its return changed something:\n%s\nbefore:\n%s", now, scene)
	}
}
