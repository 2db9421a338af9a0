//go:build soak

package e2e_test

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"scstore"
	"scstore/e2e"
	"scstore/internal/api"
	"scstore/sim/wan"
)

// These tests measure what goes over a wide-area network, beside what other programs
// make of the same network, and print tables. They fail where content is wrong or a
// transfer starts over, whatever the figures are.
const (
	wanRTT      = 50 * time.Millisecond
	wanRate     = 200e6 // bit/s
	wanRounds   = 3
	wanPatience = 5 * time.Minute
	// wanPoll is the time between two looks at how far a copy is.
	wanPoll = 40 * time.Millisecond
	// goodputBytes is what is sent to find the goodput.
	goodputBytes = 256 * mib
	// cutBytes is what is sent over a link that is cut cuts times for cutTime; one cut
	// lasts until connections are given up.
	cutBytes    = 1 << 30
	cuts        = 10
	cutTime     = time.Second
	longCut     = 5 // the number of that one
	longCutTime = 25 * time.Second
	// received counts at a host what came for its copies: data and manifests.
	received = "scstore_replica_received_bytes_total"
)

// figures are measurements by name, in the order in which they came first.
type figures struct {
	names  []string
	values map[string][]float64
}

func (f *figures) add(name string, v float64) {
	if f.values == nil {
		f.values = map[string][]float64{}
	}
	if f.values[name] == nil {
		f.names = append(f.names, name)
	}
	f.values[name] = append(f.values[name], v)
}

func (f *figures) took(name string, d time.Duration) { f.add(name+", s", d.Seconds()) }

// String is a table: median, then all rounds.
func (f *figures) String() string {
	var b strings.Builder
	for _, name := range f.names {
		sorted := slices.Sorted(slices.Values(f.values[name]))
		fmt.Fprintf(&b, "%-64s %9.3f  of", name, sorted[len(sorted)/2])
		for _, v := range f.values[name] {
			fmt.Fprintf(&b, " %.3f", v)
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// wanHeading says what was measured on.
func wanHeading(peers *peerSites) string {
	return fmt.Sprintf("RTT %s, %.0f Mbit/s, MTU %d, queue of one bandwidth-delay product; TCP of the peers: %s; page cache warm; median, then the rounds",
		wanRTT, wanRate/1e6, wan.MTU, peers.congestion())
}

// waitCopy waits until the site b holds all that the site a's host has of a volume. It
// asks the host itself: a process for each question would take the processor from what is
// measured. each is called between the questions.
func waitCopy(t *testing.T, s *e2e.Sites, name string, each func()) {
	t.Helper()
	client := api.NewClient(api.Addr{Network: "unix", Address: filepath.Join(s.Folder("a"), "api.sock")})
	defer client.Close()
	ctx, cancel := context.WithTimeout(t.Context(), wanPatience)
	defer cancel()
	for {
		v, err := client.Get(ctx, api.KindVolume, name)
		if err == nil && v.Where != nil && v.Where.OnlyBytes == 0 && slices.ContainsFunc(v.Where.Copies, func(c api.CopyInfo) bool { return c.Site == "b" && c.Current }) {
			return
		}
		if ctx.Err() != nil {
			t.Fatalf("volume %q is not at the site b after %s: %+v, %v", name, wanPatience, v.Where, err)
		}
		each()
		time.Sleep(wanPoll)
	}
}

// copyBytes returns the bytes that came to the site b for its copies.
func copyBytes(t *testing.T, s *e2e.Sites) float64 {
	t.Helper()
	return metric(t, s.Folder("b"), received)
}

// writeFrom writes blocks of a raw file to a volume at the site a.
func writeFrom(t *testing.T, s *e2e.Sites, volume, file string, list []scstore.Extent) {
	t.Helper()
	f, err := os.Open(file)
	check(t, err)
	defer func() { check(t, f.Close()) }()
	to := dial(t, s.Host("a").URL(volume))
	p := make([]byte, mib)
	for _, e := range list {
		for off, end := e.First.Offset(), e.End().Offset(); off < end; {
			part := p[:min(int64(len(p)), end-off)]
			_, err := f.ReadAt(part, off)
			check(t, err)
			check(t, to.WriteAt(t.Context(), part, off, 0))
			off += int64(len(part))
		}
	}
	check(t, to.Flush(t.Context()))
	check(t, to.Close())
}

// TestWAN_ADiskAtAnotherSite brings a disk to another site, and then its next version.
func TestWAN_ADiskAtAnotherSite(t *testing.T) {
	disk := newWANDisk(t, t.TempDir())
	peers := startPeers(t, 0)
	var f figures
	for round := range wanRounds {
		t.Run(fmt.Sprintf("round %d", round+1), func(t *testing.T) { copyOurs(t, disk, &f) })
		copyPeers(peers, disk, &f, round == 0)
		t.Logf("round %d:\n%s", round+1, &f)
	}
	t.Logf("%d rounds; %s\n4 GiB, %d MiB of data in %d extents, %.1f MB in LZ4; %.1f MiB changed in %d extents (%d MiB by aligned MiB), %.1f MB in LZ4\n%s",
		wanRounds, wanHeading(peers), blockCount(disk.data)*scstore.BlockSize/mib, len(disk.data), float64(disk.dataLZ4)/1e6,
		float64(blockCount(disk.changed)*scstore.BlockSize)/mib, len(disk.changed), mibCount(disk.changed), float64(disk.changedLZ4)/1e6, &f)
}

// copyPeers has the peers do it. What is slow has one round.
func copyPeers(p *peerSites, disk wanDisk, f *figures, slow bool) {
	if slow {
		f.took("cold copy, nbdcopy from nbdkit", p.nbdcopy(disk.v1))
		p.forget()
		f.took("cold copy, qemu-img from qemu-nbd", p.qemuImg(disk.v1))
		p.forget()
		f.took("cold copy, rsync -W -S -z (lz4)", p.rsync(disk.v1))
		p.forget()
	}
	f.took("cold copy, zstd -3 -T2 over TCP", p.zstd(disk.v1))
	f.took("next version, rsync --inplace -z (lz4)", p.rsyncDelta(disk.v2))
	p.forget()
}

// copyOurs has a volume at the site a copied to the site b, then changed while the link
// is cut, then changed back while it is not.
func copyOurs(t *testing.T, disk wanDisk, f *figures) {
	s := startSites(t, wanRTT, wanRate)
	at(t, s, "a", "image", "import", disk.v1, "base")
	at(t, s, "a", "volume", "create", "disk", "--from", "base")
	writeFrom(t, s, "disk", disk.v1, []scstore.Extent{{First: 0, Count: 1}}) // what is placed is what was written
	same := func(file string) {
		t.Helper()
		tool(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", file, s.Host("b").URL("disk"))
	}
	// bring measures how long it takes from now until b has everything, and the bytes.
	bring := func(what string, lz4 int64, start func()) {
		payload, packets := copyBytes(t, s), s.Bytes("a", "b")
		begin := time.Now()
		start()
		first := time.Duration(0)
		waitCopy(t, s, "disk", func() {
			if first == 0 && copyBytes(t, s) > payload {
				first = time.Since(begin)
			}
		})
		f.took("scstore: "+what, time.Since(begin))
		f.took("scstore: "+what+", of that until the first byte came", first)
		payload = copyBytes(t, s) - payload
		f.add("scstore: "+what+", data and manifests / LZ4", payload/float64(lz4))
		f.add("scstore: "+what+", IP packets / data and manifests", float64(s.Bytes("a", "b")-packets)/payload)
	}
	bring("cold copy", disk.dataLZ4, func() { at(t, s, "a", "placement", "set", "disk", "--replicas", "b") })
	same(disk.v1)

	check(t, s.Cut("b"))
	writeFrom(t, s, "disk", disk.v2, disk.changed)
	waitSealed(t, s, "disk")
	bring("next version, from the end of a cut", disk.changedLZ4, func() { check(t, s.Heal("b")) })
	same(disk.v2)

	begin := time.Now()
	writeFrom(t, s, "disk", disk.v1, disk.changed)
	flushed := time.Now()
	waitCopy(t, s, "disk", func() {})
	f.took("scstore: back to the first version, from its first write", time.Since(begin))
	f.took("scstore: back to the first version, from its flush", time.Since(flushed))
	same(disk.v1)
	t.Logf("so far:\n%s", f)
}

// waitSealed waits until what was written to a volume is in the history: its head has
// not moved for longer than an epoch stays open.
func waitSealed(t *testing.T, s *e2e.Sites, name string) {
	t.Helper()
	var head scstore.Position
	since := time.Now()
	waitVolume(t, s, "a", name, func(w api.Where) bool {
		if w.Head != head {
			head, since = w.Head, time.Now()
		}
		return time.Since(since) > 3*time.Second
	})
}

// TestWAN_Goodput sends what can't be compressed, as iperf3 does.
func TestWAN_Goodput(t *testing.T) {
	var f figures
	var peers *peerSites
	for _, loss := range []float64{0, 0.001} {
		s := openSites(t, e2e.SitesOptions{Binary: program, RTT: wanRTT, BitsPerSecond: wanRate, Loss: loss})
		peers = startPeers(t, loss)
		name := func(what string) string { return fmt.Sprintf("%.1f %% loss: %s, Mbit/s", loss*100, what) }
		for round := range wanRounds {
			whole, steady := sendRandom(t, s, fmt.Sprintf("disk%d", round))
			f.add(name("scstore, from the placement on"), whole/1e6)
			f.add(name("scstore, between a tenth and nine tenths"), steady/1e6)
			for _, congestion := range []string{"bbr", "cubic"} {
				f.add(name("iperf3, TCP "+congestion), peers.iperf(congestion)/1e6)
			}
		}
		for _, site := range s.Names() {
			check(t, s.Stop(site))
		}
	}
	t.Logf("%d MiB, iperf3 for %d s, %d rounds; %s\n%s", goodputBytes/mib, iperfSeconds, wanRounds, wanHeading(peers), &f)
}

// sendRandom has a volume full of random bytes copied to the site b and returns how fast
// they came, in bit/s: all of them, and those in the middle.
func sendRandom(t *testing.T, s *e2e.Sites, name string) (whole, steady float64) {
	t.Helper()
	fillRandom(t, s, name, goodputBytes)
	type sample struct {
		at    time.Duration
		bytes uint64 // of packets
	}
	var samples []sample
	before, packets, begin := copyBytes(t, s), s.Bytes("a", "b"), time.Now()
	look := func() { samples = append(samples, sample{time.Since(begin), s.Bytes("a", "b") - packets}) }
	at(t, s, "a", "placement", "set", name, "--replicas", "b")
	waitCopy(t, s, name, look)
	look()
	end := samples[len(samples)-1]
	reached := func(share float64) sample {
		i, _ := slices.BinarySearchFunc(samples, uint64(float64(end.bytes)*share), func(s sample, n uint64) int { return cmp.Compare(s.bytes, n) })
		return samples[i]
	}
	from, to := reached(0.1), reached(0.9)
	if from.at == to.at {
		t.Fatalf("%d looks at %d MiB are too few", len(samples), goodputBytes/mib)
	}
	useful := (copyBytes(t, s) - before) / float64(end.bytes) // of a packet
	return goodputBytes * 8 / end.at.Seconds(), float64(to.bytes-from.bytes) * useful * 8 / (to.at - from.at).Seconds()
}

// fillRandom makes a volume at the site a, full of random bytes.
func fillRandom(t *testing.T, s *e2e.Sites, name string, size int) {
	t.Helper()
	at(t, s, "a", "volume", "create", name, "--size", fmt.Sprint(size))
	to := dial(t, s.Host("a").URL(name))
	for off := 0; off < size; off += mib {
		check(t, to.WriteAt(t.Context(), random(mib, uint64(off)), int64(off), 0))
	}
	check(t, to.Flush(t.Context()))
	check(t, to.Close())
}

// TestWAN_ALinkIsCutTenTimes sends a volume over a link that is not cut, and one over a
// link that is.
func TestWAN_ALinkIsCutTenTimes(t *testing.T) {
	s := startSites(t, wanRTT, wanRate)
	type sent struct {
		took                      time.Duration
		payload, packets, arrived float64
	}
	send := func(name string, disturb func(arrived uint64)) (r sent) {
		fillRandom(t, s, name, cutBytes)
		payload, packets, arrived := copyBytes(t, s), s.SentBytes("a", "b"), s.Bytes("a", "b")
		begin := time.Now()
		at(t, s, "a", "placement", "set", name, "--replicas", "b")
		waitCopy(t, s, name, func() { disturb(s.Bytes("a", "b") - arrived) })
		r.took, r.payload = time.Since(begin), copyBytes(t, s)-payload
		r.packets, r.arrived = float64(s.SentBytes("a", "b")-packets), float64(s.Bytes("a", "b")-arrived)
		tool(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", s.Host("a").URL(name), s.Host("b").URL(name))
		return r
	}
	whole := send("whole", func(uint64) {})
	done := 0
	cut := send("cut", func(arrived uint64) {
		if done == cuts || arrived < cutBytes*uint64(done+1)/(cuts+1) {
			return
		}
		done++
		check(t, s.Cut("b"))
		if done == longCut {
			time.Sleep(longCutTime)
		} else {
			time.Sleep(cutTime)
		}
		check(t, s.Heal("b"))
	})
	if done != cuts {
		t.Fatalf("the link was cut %d times, want %d", done, cuts)
	}
	down := (cuts-1)*cutTime + longCutTime
	for what, r := range map[string]sent{"not cut": whole, "cut": cut} {
		t.Logf("1 GiB, %-7s %6.1f s; MiB: %.1f data and manifests came, %.1f of IP packets were sent, %.1f arrived", what, r.took.Seconds(), r.payload/mib, r.packets/mib, r.arrived/mib)
	}
	t.Logf("RTT %s, %.0f Mbit/s; %d cuts, %s in all: %.1f MiB came twice, %.1f MiB were sent twice, %.1f s longer than the cuts", wanRTT, wanRate/1e6, cuts, down,
		(cut.payload-whole.payload)/mib, (cut.packets-whole.packets)/mib, (cut.took - whole.took - down).Seconds())
	if cut.payload > whole.payload*5/4 {
		t.Errorf("%.0f MiB came where %.0f do without cuts: the transfer starts over", cut.payload/mib, whole.payload/mib)
	}
}
