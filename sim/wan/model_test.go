package wan

import (
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"scstore"
)

const ms = time.Millisecond

func testModel(link Link) *model[int] { return newModel[int](link, rand.New(rand.NewPCG(1, 2))) }

// arrival is a packet that came out of a model.
type arrival struct {
	id int
	at time.Duration
}

// arrivals lets virtual time pass up to and including until, from one moment that
// next names to the next one.
func arrivals(t rapid.TB, m *model[int], until time.Duration) (list []arrival) {
	t.Helper()
	idle := time.Duration(-1)
	for {
		due, ok := m.next()
		if !ok || due > until {
			return list
		}
		took := false
		for {
			id, ok := m.take(due)
			if !ok {
				break
			}
			took = true
			list = append(list, arrival{id, due})
		}
		if !took {
			if due <= idle {
				t.Fatalf("next says %s again, and nothing is there", due)
			}
			idle = due
		}
	}
}

// checkStats compares, after checking that every packet was counted once (I1).
func checkStats(t rapid.TB, got, want Stats) {
	t.Helper()
	checkSum(t, got)
	if got != want {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func checkSum(t rapid.TB, s Stats) {
	t.Helper()
	if sum := s.Delivered + s.Refused + s.Lost + s.Overflowed + s.Cut + s.InFlight; sum != s.Sent {
		t.Errorf("%d sent, %d accounted for: %+v", s.Sent, sum, s)
	}
}

func checkArrivals(t testing.TB, got, want []arrival) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
}

func TestModel_DelayIsAddedToTheTimeOfSending(t *testing.T) {
	m := testModel(Link{Delay: 40 * ms})
	for i, at := range []time.Duration{0, 0, 3 * ms} {
		if !m.send(at, 1500, i) {
			t.Fatalf("packet %d was dropped", i)
		}
	}
	checkArrivals(t, arrivals(t, m, 43*ms-1), []arrival{{0, 40 * ms}, {1, 40 * ms}})
	checkArrivals(t, arrivals(t, m, time.Second), []arrival{{2, 43 * ms}})
	checkStats(t, m.stats, Stats{Sent: 3, SentBytes: 4500, Delivered: 3, DeliveredBytes: 4500})
}

func TestModel_RateSpacesPackets(t *testing.T) {
	m := testModel(Link{Delay: 40 * ms, BitsPerSecond: Mbit, QueueBytes: 1 << 20}) // 1250 bytes in 10 ms
	m.send(0, 1250, 0)
	m.send(0, 2500, 1)
	m.send(35*ms, 1250, 2) // 5 ms after the transmitter became idle
	checkArrivals(t, arrivals(t, m, time.Second), []arrival{{0, 50 * ms}, {1, 70 * ms}, {2, 85 * ms}})
}

func TestModel_QueueDropsItsTail(t *testing.T) {
	m := testModel(Link{BitsPerSecond: 8000, QueueBytes: 3000}) // 1000 bytes a second
	for i := range 5 {
		if got, want := m.send(0, 1000, i), i < 3; got != want {
			t.Errorf("packet %d: carried is %v, want %v", i, got, want)
		}
	}
	if m.send(time.Second-1, 1000, 5) {
		t.Error("a packet was taken before there was room")
	}
	if !m.send(time.Second, 1000, 6) {
		t.Error("no packet was taken when there was room")
	}
	want := []arrival{{0, time.Second}, {1, 2 * time.Second}, {2, 3 * time.Second}, {6, 4 * time.Second}}
	checkArrivals(t, arrivals(t, m, time.Minute), want)
	checkStats(t, m.stats, Stats{Sent: 7, SentBytes: 7000, Delivered: 4, DeliveredBytes: 4000, Overflowed: 3})
}

func TestModel_AnIdleLinkTakesOnePacketOfAnySize(t *testing.T) {
	m := testModel(Link{BitsPerSecond: Mbit, QueueBytes: 100})
	if !m.send(0, 1500, 0) {
		t.Error("an idle link refused a packet that is longer than its queue")
	}
	if m.send(0, 1, 1) {
		t.Error("a full link took a packet")
	}
}

func TestModel_TheDefaultQueueIsOneRoundTrip(t *testing.T) {
	for _, c := range []struct {
		link Link
		want int64
	}{
		{RTT(80 * ms).WithRate(100 * Mbit), 1_000_000},
		{RTT(80 * ms).WithRate(Mbit), MinDefaultQueueBytes},
		{RTT(2 * time.Minute).WithRate(1000 * Gbit), MaxQueueBytes},
		{Link{QueueBytes: 7, BitsPerSecond: Gbit}, 7},
	} {
		if got := c.link.queueBytes(); got != c.want {
			t.Errorf("%+v: queue of %d bytes, want %d", c.link, got, c.want)
		}
	}
}

func TestModel_LossHasItsShareAndIsTheSameForASeed(t *testing.T) {
	const packets = 100_000
	run := func(seed uint64) (lost []int) {
		m := newModel[int](Link{Loss: 0.01}, rand.New(rand.NewPCG(seed, 0)))
		for i := range packets {
			now := time.Duration(i) * ms
			if !m.send(now, 100, i) {
				lost = append(lost, i)
			}
			m.take(now)
		}
		checkStats(t, m.stats, Stats{
			Sent: packets, SentBytes: packets * 100, Lost: uint64(len(lost)),
			Delivered: packets - uint64(len(lost)), DeliveredBytes: 100 * (packets - uint64(len(lost))),
		})
		return lost
	}
	one := run(1)
	if n := len(one); n < 850 || n > 1150 { // five standard deviations; the seed is fixed
		t.Errorf("%d of %d packets were lost, want about 1 %%", n, packets)
	}
	if !slices.Equal(one, run(1)) {
		t.Error("the same seed lost other packets")
	}
	if slices.Equal(one, run(2)) {
		t.Error("another seed lost the same packets")
	}
}

func TestModel_ALostPacketTakesItsPartOfTheRate(t *testing.T) {
	m := testModel(Link{BitsPerSecond: 8000, QueueBytes: 1 << 20, Loss: 1})
	if m.send(0, 1000, 0) {
		t.Fatal("a link that loses everything carried a packet")
	}
	m.set(0, Link{BitsPerSecond: 8000, QueueBytes: 1 << 20})
	m.send(0, 1000, 1)
	checkArrivals(t, arrivals(t, m, time.Minute), []arrival{{1, 2 * time.Second}})
}

func TestModel_JitterStaysInItsBoundsAndReorders(t *testing.T) {
	const packets = 1000
	m := testModel(Link{Delay: 10 * ms, Jitter: 5 * ms})
	var all []arrival
	for i := range packets {
		all = append(all, arrivals(t, m, time.Duration(i)*ms)...)
		m.send(time.Duration(i)*ms, 100, i)
	}
	reordered, last := 0, -1
	for _, a := range append(all, arrivals(t, m, time.Hour)...) {
		if took := a.at - time.Duration(a.id)*ms; took < 10*ms || took > 15*ms {
			t.Errorf("packet %d took %s", a.id, took)
		}
		if a.id < last {
			reordered++
		}
		last = a.id
	}
	if reordered == 0 || m.stats.Delivered != packets {
		t.Errorf("%d of %d packets arrived, %d were overtaken", m.stats.Delivered, packets, reordered)
	}
}

func TestModel_AShorterDelayOvertakesNothing(t *testing.T) {
	m := testModel(Link{Delay: 100 * ms})
	m.send(0, 100, 0)
	m.set(10*ms, Link{Delay: ms})
	m.send(10*ms, 100, 1)
	checkArrivals(t, arrivals(t, m, 200*ms), []arrival{{0, 100 * ms}, {1, 100 * ms}})
	m.send(200*ms, 100, 2)
	checkArrivals(t, arrivals(t, m, time.Second), []arrival{{2, 201 * ms}})
}

func TestModel_ANewRateHoldsForWhatIsQueued(t *testing.T) {
	link := Link{BitsPerSecond: 8000, QueueBytes: 4000, Delay: 100 * ms}
	m := testModel(link)
	for i := range 4 {
		m.send(0, 1000, i) // one a second
	}
	fast := link
	fast.BitsPerSecond = 80_000 // ten a second; the second one begins again
	m.set(1500*ms, fast)
	want := []arrival{{0, 1100 * ms}, {1, 1700 * ms}, {2, 1800 * ms}, {3, 1900 * ms}}
	checkArrivals(t, arrivals(t, m, time.Minute), want)

	m = testModel(link)
	m.send(0, 1000, 0)
	m.set(500*ms, Link{})
	checkArrivals(t, arrivals(t, m, time.Minute), []arrival{{0, 500 * ms}})
}

func TestModel_ALinkThatIsDownLosesWhatIsOnIt(t *testing.T) {
	link := Link{Delay: 10 * time.Second, BitsPerSecond: 8000, QueueBytes: 1 << 20}
	m := testModel(link)
	for i := range 3 {
		m.send(0, 1000, i)
	}
	down := link
	down.Down = true
	m.set(1050*ms, down) // the first is on the wire, the second is being sent
	if m.send(1060*ms, 1000, 3) {
		t.Error("a link that is down took a packet")
	}
	if got := arrivals(t, m, time.Hour); got != nil {
		t.Errorf("a link that is down delivered %v", got)
	}
	checkStats(t, m.stats, Stats{Sent: 4, SentBytes: 4000, Cut: 4})
	link.Delay = ms
	m.set(2*time.Second, link)
	m.send(2*time.Second, 1000, 4)
	checkArrivals(t, arrivals(t, m, time.Hour), []arrival{{4, 3001 * ms}})
}

func TestModel_PacketsInFlightAreBounded(t *testing.T) {
	m := testModel(Link{Delay: time.Second})
	for i := range MaxFlight + 10 {
		if got, want := m.send(0, 40, i), i < MaxFlight; got != want {
			t.Fatalf("packet %d: carried is %v, want %v", i, got, want)
		}
	}
	if got := len(arrivals(t, m, time.Second)); got != MaxFlight {
		t.Errorf("%d packets arrived, want %d", got, MaxFlight)
	}
	checkStats(t, m.stats, Stats{
		Sent: MaxFlight + 10, SentBytes: 40 * (MaxFlight + 10), Delivered: MaxFlight, DeliveredBytes: 40 * MaxFlight, Overflowed: 10,
	})
}

func TestModel_ARefusedPacketIsNotDelivered(t *testing.T) {
	m := testModel(Link{})
	m.send(0, 100, 0)
	m.send(0, 200, 1)
	arrivals(t, m, 0)
	m.refuse(200)
	checkStats(t, m.stats, Stats{Sent: 2, SentBytes: 300, Delivered: 1, DeliveredBytes: 100, Refused: 1})
}

func drawLink(t *rapid.T) Link {
	link := Link{
		Delay:         time.Duration(rapid.Int64Range(0, int64(50*ms)).Draw(t, "delay")),
		BitsPerSecond: rapid.SampledFrom([]int64{0, 64 * Kbit, Mbit, 7 * Mbit, Gbit}).Draw(t, "rate"),
		QueueBytes:    rapid.SampledFrom([]int64{0, 1, 1500, 9000, 100_000}).Draw(t, "queue"),
		Loss:          rapid.SampledFrom([]float64{0, 0, 0.1, 1}).Draw(t, "loss"),
		Jitter:        time.Duration(rapid.SampledFrom([]int64{0, 0, 1, int64(20 * ms)}).Draw(t, "jitter")),
	}
	return link
}

// dumb is what a link does, found by looking at everything that was sent before.
type dumb struct {
	link Link
	all  []dumbPacket
}

type dumbPacket struct {
	at, sent time.Duration
	size     int
	carried  bool // in the queue
	lost     bool
}

func (d *dumb) send(at time.Duration, size int) *dumbPacket {
	p := dumbPacket{at: at, sent: at, size: size, carried: true}
	waiting := 0
	for _, before := range d.all {
		if before.carried && before.sent > at {
			waiting += before.size
			p.sent = max(p.sent, before.sent)
		}
	}
	if waiting > 0 && int64(waiting+size) > d.link.queueBytes() {
		p.carried = false
	}
	if d.link.BitsPerSecond > 0 {
		seconds := float64(size) * 8 / float64(d.link.BitsPerSecond)
		p.sent += time.Duration(math.Ceil(seconds*1e9 - 1e-3))
	}
	d.all = append(d.all, p)
	return &d.all[len(d.all)-1]
}

func TestModel_AgreesWithADumbOne(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		link := drawLink(t)
		m := newModel[int](link, rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0)))
		d := &dumb{link: link}
		now, got := time.Duration(0), []arrival(nil)
		for id := range rapid.IntRange(1, 60).Draw(t, "packets") {
			now += time.Duration(rapid.Int64Range(0, int64(3*ms)).Draw(t, "gap"))
			got = append(got, arrivals(t, m, now)...)
			size := rapid.IntRange(1, 2000).Draw(t, "size")
			p := d.send(now, size)
			carried := m.send(now, size, id)
			if carried && !p.carried {
				t.Fatalf("packet %d was taken into a full queue", id)
			}
			p.lost = p.carried && !carried
			if p.lost && link.Loss == 0 {
				t.Fatalf("packet %d was dropped, and there was room", id)
			}
			checkSum(t, m.stats)
		}
		got = append(got, arrivals(t, m, math.MaxInt64)...)
		seen := map[int]bool{}
		for i, a := range got {
			p := d.all[a.id]
			early := p.sent + link.Delay
			if seen[a.id] || !p.carried || p.lost || a.at < early || a.at > early+link.Jitter {
				t.Errorf("packet %+v arrived at %s", p, a.at)
			}
			if i > 0 && (a.at < got[i-1].at || link.Jitter == 0 && a.id < got[i-1].id) {
				t.Errorf("packet %d arrived after packet %d", a.id, got[i-1].id)
			}
			seen[a.id] = true
		}
		for id, p := range d.all {
			if p.carried && !p.lost && !seen[id] {
				t.Errorf("packet %d never arrived", id)
			}
		}
		if m.stats.InFlight != 0 {
			t.Errorf("%+v are left", m.stats)
		}
	})
}

func TestModel_ChangesKeepCountsAndOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		draw := func() Link {
			link := drawLink(t)
			link.Jitter = 0
			link.Down = rapid.IntRange(0, 3).Draw(t, "down") == 0
			return link
		}
		m := newModel[int](draw(), rand.New(rand.NewPCG(1, 0)))
		now, last, sent := time.Duration(0), -1, 0
		take := func(until time.Duration) {
			for _, a := range arrivals(t, m, until) {
				if a.id <= last {
					t.Fatalf("packet %d arrived after packet %d", a.id, last)
				}
				if m.link.Down {
					t.Fatalf("packet %d came over a link that is down", a.id)
				}
				last = a.id
			}
			checkSum(t, m.stats)
		}
		for range rapid.IntRange(1, 80).Draw(t, "steps") {
			now += time.Duration(rapid.Int64Range(0, int64(5*ms)).Draw(t, "gap"))
			take(now)
			if rapid.IntRange(0, 9).Draw(t, "what") == 0 {
				m.set(now, draw())
			} else {
				m.send(now, rapid.IntRange(1, 2000).Draw(t, "size"), sent)
				sent++
			}
		}
		take(math.MaxInt64)
		if m.stats.InFlight != 0 || m.stats.Sent != uint64(sent) {
			t.Errorf("%d were sent: %+v", sent, m.stats)
		}
	})
}

func TestLink_NonsenseIsRefused(t *testing.T) {
	for _, link := range []Link{
		{Delay: -1}, {Delay: MaxDelay + 1}, {Jitter: -1}, {Jitter: MaxDelay + 1}, {BitsPerSecond: -1}, {BitsPerSecond: MaxBitsPerSecond + 1},
		{QueueBytes: -1}, {QueueBytes: MaxQueueBytes + 1}, {Loss: -0.1}, {Loss: 1.1}, {Loss: math.NaN()},
	} {
		if err := link.Validate(); !errors.Is(err, scstore.ErrInvalid) {
			t.Errorf("%+v: got %v, want %v", link, err, scstore.ErrInvalid)
		}
	}
	if err := RTT(80 * ms).WithRate(200 * Mbit).WithLoss(0.001).Validate(); err != nil {
		t.Error(err)
	}
}
