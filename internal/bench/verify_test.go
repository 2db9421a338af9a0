package bench

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"scstore"
)

const testBlocks = 1024

func testJournal(t testing.TB) *Journal {
	t.Helper()
	j, err := NewJournal(7, testBlocks)
	check(t, err)
	return j
}

func verified(url string, j *Journal, seed uint64) LoadOptions {
	return LoadOptions{
		URL: url, Connections: 2, QueueDepth: 16, ReadPercent: 20, ZeroPercent: 10, FlushEvery: 50,
		Ops: 4000, Seed: seed, Journal: j,
	}
}

func mustVerify(t testing.TB, url string, j *Journal) VerifyReport {
	t.Helper()
	r, err := Verify(t.Context(), VerifyOptions{URL: url, Journal: j})
	check(t, err)
	if r.Blocks != testBlocks {
		t.Fatalf("checked %d blocks, want %d", r.Blocks, testBlocks)
	}
	return r
}

func TestVerify_FlushedWritesSurviveRepeatedPowerLoss(t *testing.T) {
	dev := newVolatile(testBlocks * scstore.BlockSize)
	j := testJournal(t)
	lost := int64(0)
	for round := range 6 {
		url, kill := serve(t, int64(len(dev.live)), dev)
		dev.failAfter = 500 + 300*round
		result, err := Load(t.Context(), verified(url, j, uint64(round)))
		if !errors.Is(err, scstore.ErrUnreachable) {
			t.Fatalf("round %d: the load over a dying server ended with %v", round, err)
		}
		if result.Writes == 0 || result.Reads == 0 || result.Flushes == 0 {
			t.Fatalf("round %d did %+v", round, result)
		}
		kill()
		dev.powerLoss()
		url, kill = serve(t, int64(len(dev.live)), dev)
		r := mustVerify(t, url, j)
		check(t, r.AfterPowerLoss())
		lost += r.LostAcknowledged
		kill()
	}
	if lost == 0 {
		t.Error("six power losses lost no acknowledged block: the test proves nothing")
	}
}

func TestVerify_AcknowledgedWritesSurviveAKill(t *testing.T) {
	dev := newVolatile(testBlocks * scstore.BlockSize)
	j := testJournal(t)
	for round := range 4 {
		url, kill := serve(t, int64(len(dev.live)), dev)
		dev.writes, dev.failAfter = 0, 700
		if _, err := Load(t.Context(), verified(url, j, uint64(round))); !errors.Is(err, scstore.ErrUnreachable) {
			t.Fatal(err)
		}
		kill()
		url, kill = serve(t, int64(len(dev.live)), dev)
		check(t, mustVerify(t, url, j).AfterKill())
		kill()
	}
}

// TestVerify_CatchesPlantedLosses breaks one thing at a time and wants it found.
func TestVerify_CatchesPlantedLosses(t *testing.T) {
	// victim returns a block that was written, flushed and is no zero block.
	victim := func(v *volatile) int64 {
		for b := range int64(testBlocks) {
			if s, err := ParseStamp(v.live[b*scstore.BlockSize : (b+1)*scstore.BlockSize]); err == nil && s.Generation > 1 {
				return b
			}
		}
		t.Fatal("no block was written twice")
		return 0
	}
	block := func(v *volatile, b int64) []byte { return v.live[b*scstore.BlockSize : (b+1)*scstore.BlockSize] }
	tests := []struct {
		name  string
		plant func(v *volatile, b int64)
		want  LossKind
	}{
		{"an older generation", func(v *volatile, b int64) {
			s, err := ParseStamp(block(v, b))
			check(t, err)
			s.Generation--
			copy(block(v, b), s.AppendTo(nil))
		}, LossFlushed},
		{"zeros", func(v *volatile, b int64) { clear(block(v, b)) }, LossFlushed},
		{"another block", func(v *volatile, b int64) { copy(block(v, b), Stamp{7, 1 << 20, 1}.AppendTo(nil)) }, LossDamaged},
		{"another load", func(v *volatile, b int64) { copy(block(v, b), Stamp{8, scstore.BlockIndex(b), 1}.AppendTo(nil)) }, LossDamaged},
		{"the future", func(v *volatile, b int64) {
			copy(block(v, b), Stamp{7, scstore.BlockIndex(b), 1 << 20}.AppendTo(nil))
		}, LossDamaged},
		{"a torn block", func(v *volatile, b int64) {
			s, err := ParseStamp(block(v, b))
			check(t, err)
			s.Generation--
			copy(block(v, b)[2048:], s.AppendTo(nil)[2048:])
		}, LossDamaged},
		{"one bit", func(v *volatile, b int64) { block(v, b)[4095] ^= 1 }, LossDamaged},
		{"half a block of zeros", func(v *volatile, b int64) { clear(block(v, b)[:2048]) }, LossDamaged},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dev := newVolatile(testBlocks * scstore.BlockSize)
			j := testJournal(t)
			url, _ := serve(t, int64(len(dev.live)), dev)
			o := verified(url, j, 3)
			o.ZeroPercent = 0
			_, err := Load(t.Context(), o)
			check(t, err)
			check(t, mustVerify(t, url, j).AfterKill())
			b := victim(dev)
			tt.plant(dev, b)
			r := mustVerify(t, url, j)
			if len(r.Losses) != 1 || r.Losses[0].Kind != tt.want || int64(r.Losses[0].Block) != b {
				t.Errorf("losses %v, want block %d %s", r.Losses, b, tt.want)
			}
			if !errors.Is(r.AfterPowerLoss(), scstore.ErrCorrupt) || !errors.Is(r.AfterKill(), scstore.ErrCorrupt) {
				t.Error("the report passes")
			}
		})
	}
}

func TestVerify_CatchesAFlushThatLies(t *testing.T) {
	dev := newVolatile(testBlocks * scstore.BlockSize)
	dev.keepFlush = func(b int64) bool { return b%100 != 42 }
	j := testJournal(t)
	url, _ := serve(t, int64(len(dev.live)), dev)
	_, err := Load(t.Context(), verified(url, j, 1))
	check(t, err)
	dev.powerLoss()
	r := mustVerify(t, url, j)
	if r.LostFlushed == 0 || r.LostFlushed > 11 {
		t.Errorf("%d flushed blocks lost, want those of 10 or 11", r.LostFlushed)
	}
	for _, l := range r.Losses {
		if l.Block%100 != 42 {
			t.Errorf("blames %s", l)
		}
	}
}

func TestLoad_CatchesAStaleReadWhileItRuns(t *testing.T) {
	dev := newVolatile(testBlocks * scstore.BlockSize)
	j := testJournal(t)
	url, _ := serve(t, int64(len(dev.live)), dev)
	o := verified(url, j, 1)
	_, err := Load(t.Context(), o)
	check(t, err)
	dev.mu.Lock()
	clear(dev.live)
	dev.mu.Unlock()
	if _, err := Load(t.Context(), o); !errors.Is(err, scstore.ErrCorrupt) {
		t.Errorf("load over an emptied device: %v, want %v", err, scstore.ErrCorrupt)
	}
}

func TestJournal_FlushCoversWhatCameBeforeIt(t *testing.T) {
	j := testJournal(t)
	write := func(b int64) {
		t.Helper()
		if !j.beginWrite(b, 1, false) {
			t.Fatalf("block %d is busy", b)
		}
	}
	ack := func(b int64) { check(t, j.endWrite(b, 1)) }
	write(1)
	write(2)
	if j.beginWrite(2, 2, false) {
		t.Error("two writes to one block in flight")
	}
	ack(1)
	first := j.beginFlush()
	ack(2)
	second := j.beginFlush()
	write(1)
	ack(1)
	j.endFlush(second)
	j.endFlush(first)
	if j.flushed[1] != 1 || j.flushed[2] != 1 || j.acked[1] != 2 {
		t.Errorf("flushed %v, acknowledged %v", j.flushed[:3], j.acked[:3])
	}
	j.endFlush(j.beginFlush())
	if j.flushed[1] != 2 || j.Flushes() != 3 {
		t.Errorf("flushed %v after %d flushes", j.flushed[:3], j.Flushes())
	}
}

func TestJournal_SurvivesItsFile(t *testing.T) {
	dev := newVolatile(testBlocks * scstore.BlockSize)
	j := testJournal(t)
	url, _ := serve(t, int64(len(dev.live)), dev)
	_, err := Load(t.Context(), verified(url, j, 1))
	check(t, err)
	var file bytes.Buffer
	check(t, j.Save(&file))
	saved := file.Bytes()
	again, err := ReadJournal(bytes.NewReader(saved))
	check(t, err)
	check(t, mustVerify(t, url, again).AfterKill())
	clear(dev.live[:100*scstore.BlockSize])
	if again, err = ReadJournal(bytes.NewReader(saved)); err != nil || mustVerify(t, url, again).LostFlushed == 0 {
		t.Errorf("the journal read back misses a loss, %v", err)
	}
	for _, bad := range [][]byte{nil, saved[:len(saved)/2], []byte("no journal")} {
		if _, err := ReadJournal(bytes.NewReader(bad)); !errors.Is(err, scstore.ErrInvalid) {
			t.Errorf("read %d bytes of a journal: %v", len(bad), err)
		}
	}
	// Over the same export the load goes on where the journal ended.
	_, err = Load(t.Context(), verified(url, testJournalOf(t, url, saved), 2))
	check(t, err)
}

// testJournalOf reads a journal and brings it up to what the export holds.
func testJournalOf(t testing.TB, url string, saved []byte) *Journal {
	t.Helper()
	j, err := ReadJournal(bytes.NewReader(saved))
	check(t, err)
	mustVerify(t, url, j)
	return j
}

func FuzzParseStamp(f *testing.F) {
	f.Add(Stamp{1, 2, 3}.AppendTo(nil))
	f.Add(make([]byte, scstore.BlockSize))
	f.Add([]byte(stampMagic))
	f.Fuzz(func(t *testing.T, p []byte) {
		s, err := ParseStamp(p)
		if err != nil {
			if !errors.Is(err, scstore.ErrInvalid) && !errors.Is(err, scstore.ErrCorrupt) {
				t.Error(err)
			}
			return
		}
		if got := s.AppendTo(nil); !bytes.Equal(got, p) {
			t.Errorf("%+v gives other bytes than it came from", s)
		}
	})
}

func FuzzReadJournal(f *testing.F) {
	j, err := NewJournal(1, 3)
	check(f, err)
	var b bytes.Buffer
	check(f, j.Save(&b))
	f.Add(b.Bytes())
	f.Fuzz(func(t *testing.T, p []byte) {
		j, err := ReadJournal(bytes.NewReader(p))
		if err != nil {
			return
		}
		var b bytes.Buffer
		check(t, j.Save(&b))
		if again, err := ReadJournal(&b); err != nil || again.BlockCount() != j.BlockCount() {
			t.Errorf("saved and read again: %v", err)
		}
	})
}

func TestLatency_OfKnownTimes(t *testing.T) {
	s := newStats()
	for i := range 1000 {
		record(s.read, time.Duration(i+1)*time.Microsecond)
	}
	record(s.write, 0)
	record(s.write, time.Hour)
	other := newStats()
	record(other.read, 5*time.Second)
	s.merge(other)
	r := latencyOf(s.read)
	within := func(name string, got, want float64) {
		t.Helper()
		if got < want*0.99 || got > want*1.01 {
			t.Errorf("%s = %v µs, want about %v", name, got, want)
		}
	}
	if r.Count != 1001 {
		t.Errorf("count %d, want 1001", r.Count)
	}
	within("mean", r.Mean, (500_500+5e6)/1001)
	within("p50", r.P50, 501)
	within("p90", r.P90, 901)
	within("p99", r.P99, 991)
	within("max", r.Max, 5e6)
	if w := latencyOf(s.write); w.Count != 2 || w.Max < 599e6 {
		t.Errorf("latencies off the scale: %+v", w)
	}
}
