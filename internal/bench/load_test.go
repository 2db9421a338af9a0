package bench

import (
	"context"
	"errors"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"scstore"
)

func TestLoad_DoesWhatItIsTold(t *testing.T) {
	dev := newVolatile(64 << 20)
	url, _ := serve(t, 64<<20, dev)
	tests := []struct {
		name string
		o    LoadOptions
		want LoadResult
	}{
		{"writes and flushes", LoadOptions{Ops: 1000, FlushEvery: 32, QueueDepth: 32}, LoadResult{Writes: 1000, Flushes: 31 + 1}},
		{"with barriers", LoadOptions{Ops: 1000, FlushEvery: 32, QueueDepth: 8, FlushBarrier: true}, LoadResult{Writes: 1000, Flushes: 31 + 1}},
		{"no final flush", LoadOptions{Ops: 100, QueueDepth: 1, NoFinalFlush: true}, LoadResult{Writes: 100}},
		{"reads need no flush", LoadOptions{Ops: 500, ReadPercent: 100}, LoadResult{Reads: 500}},
		{"large and sequential", LoadOptions{Ops: 200, BlockBytes: 1 << 20, Sequential: true, QueueDepth: 4}, LoadResult{Writes: 200, Flushes: 1}},
		{"three connections", LoadOptions{Ops: 900, Connections: 3, QueueDepth: 4}, LoadResult{Writes: 900, Flushes: 3}},
		{"zeroes", LoadOptions{Ops: 300, ZeroPercent: 100}, LoadResult{Writes: 300, Flushes: 1}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.o.URL = url
			before := dev.flushes
			got, err := Load(t.Context(), tt.o)
			check(t, err)
			if got.Reads != tt.want.Reads || got.Writes != tt.want.Writes || got.Flushes != tt.want.Flushes {
				t.Errorf("%d reads, %d writes, %d flushes; want %d, %d, %d", got.Reads, got.Writes, got.Flushes,
					tt.want.Reads, tt.want.Writes, tt.want.Flushes)
			}
			if seen := int64(dev.flushes - before); seen != got.Flushes {
				t.Errorf("counted %d flushes, the server saw %d", got.Flushes, seen)
			}
			if got.Seconds <= 0 || got.OpsPerSecond <= 0 || got.Read.Count != got.Reads || got.Write.Count != got.Writes {
				t.Errorf("result %+v", got)
			}
		})
	}
}

func TestLoad_MixAndWorkingSet(t *testing.T) {
	dev := newVolatile(64 << 20)
	url, _ := serve(t, 64<<20, dev)
	got, err := Load(t.Context(), LoadOptions{URL: url, Ops: 4000, ReadPercent: 70, OffsetBytes: 2 << 20, WorkingSetBytes: 1 << 20, Seed: 5})
	check(t, err)
	if got.Reads < 2600 || got.Reads > 3000 {
		t.Errorf("%d of 4000 were reads, want about 2800", got.Reads)
	}
	written := 0
	for b := range int64(len(dev.live) / scstore.BlockSize) {
		switch block := dev.live[b*scstore.BlockSize : (b+1)*scstore.BlockSize]; {
		case isZero(block):
		case b >= 512 && b < 768:
			written++
		default:
			t.Fatalf("block %d is outside the working set and was written", b)
		}
	}
	if written < 230 {
		t.Errorf("1200 random writes reached %d of 256 blocks", written)
	}
}

func TestLoad_EndsInTime(t *testing.T) {
	url, _ := serve(t, 1<<20, newVolatile(1<<20))
	got, err := Load(t.Context(), LoadOptions{URL: url, Duration: 200 * time.Millisecond})
	check(t, err)
	if got.Seconds < 0.2 || got.Writes == 0 {
		t.Errorf("%+v", got)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := Load(ctx, LoadOptions{URL: url, Duration: time.Hour}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("cancelled load: %v", err)
	}
}

func TestLoad_RefusesBadOptions(t *testing.T) {
	url, _ := serve(t, 1<<20, newVolatile(1<<20))
	small, err := NewJournal(1, 8)
	check(t, err)
	for name, o := range map[string]LoadOptions{
		"no address":         {},
		"a strange address":  {URL: "http://x"},
		"block size":         {URL: url, BlockBytes: 1000},
		"depth":              {URL: url, QueueDepth: MaxQueueDepth + 1},
		"connections":        {URL: url, Connections: -1},
		"mix":                {URL: url, ReadPercent: 101},
		"memory":             {URL: url, QueueDepth: 1024, BlockBytes: 32 << 20},
		"block over export":  {URL: url, BlockBytes: 2 << 20, QueueDepth: 1},
		"unaligned stamp":    {URL: url, BlockBytes: 512, Journal: small},
		"too few to verify":  {URL: url, Journal: small},
		"negative duration":  {URL: url, Duration: -1},
		"negative flushes":   {URL: url, FlushEvery: -1},
		"an odd offset":      {URL: url, OffsetBytes: 100},
		"offset over export": {URL: url, OffsetBytes: 1 << 20},
		"share of zeroes":    {URL: url, ZeroPercent: -1},
		"negative work set ": {URL: url, WorkingSetBytes: -1},
	} {
		if _, err := Load(t.Context(), o); !errors.Is(err, scstore.ErrInvalid) {
			t.Errorf("%s: %v, want %v", name, err, scstore.ErrInvalid)
		}
	}
	if _, err := Load(t.Context(), LoadOptions{URL: "nbd+unix:///x?socket=/nowhere"}); !errors.Is(err, scstore.ErrUnreachable) {
		t.Errorf("nobody there: %v", err)
	}
}

func TestLoad_OverNbdkit(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "nbd.sock")
	cmd := exec.CommandContext(t.Context(), "nbdkit", "-f", "-U", socket, "memory", "64M")
	check(t, cmd.Start())
	defer func() {
		check(t, cmd.Process.Kill())
		_ = cmd.Wait() // killed: its status is the signal
	}()
	url := "nbd+unix:///?socket=" + socket
	deadline := time.Now().Add(10 * time.Second)
	j, err := NewJournal(3, 16<<10)
	check(t, err)
	for {
		got, err := Load(t.Context(), LoadOptions{URL: url, Ops: 20_000, ReadPercent: 30, ZeroPercent: 10, FlushEvery: 100, Journal: j, Connections: 2})
		if errors.Is(err, scstore.ErrUnreachable) && time.Now().Before(deadline) && got.Writes == 0 {
			time.Sleep(10 * time.Millisecond)
			continue
		}
		check(t, err)
		if got.Reads+got.Writes != 20_000 || got.Flushes < 100 {
			t.Errorf("did %+v", got)
		}
		break
	}
	r, err := Verify(t.Context(), VerifyOptions{URL: url, Journal: j})
	check(t, err)
	check(t, r.AfterKill())
	if r.Written == 0 {
		t.Error("nothing was written")
	}
}
