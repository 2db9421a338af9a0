package bench

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"time"

	"scstore"
)

// Defaults of a kill test.
const (
	DefaultKillRounds   = 10
	DefaultKillSetBytes = 256 << 20
	// killAfterMin and killAfterMax bound the time from the start of a load to the
	// kill, drawn at random.
	killAfterMin = 100 * time.Millisecond
	killAfterMax = 1500 * time.Millisecond
)

// KillOptions says what to kill. Zero values mean the defaults.
type KillOptions struct {
	Dir      string // an existing folder; what is put there is removed
	Binary   string // the scstore program
	Peer     string // a peer instead of scstore: it shows that the test can pass
	Rounds   int
	SetBytes int64 // of the verified load
	Seed     uint64
	Progress func(KillRound) // called after each round; may be nil
}

// KillRound is one kill -9 and what was found after it.
type KillRound struct {
	Round  int          `json:"round"`
	Load   LoadResult   `json:"load"`
	Verify VerifyReport `json:"verify"`
	// RestartSeconds is the time from the start of the new process to the first
	// connection.
	RestartSeconds float64 `json:"restart_seconds"`
}

// KillReport is what a kill test found.
type KillReport struct {
	Target Target      `json:"target"`
	Rounds []KillRound `json:"rounds"`
}

// Kill drives a verified load, kills the server with SIGKILL at a random moment,
// starts it again and checks that no acknowledged write is lost; and again, over
// what it finds.
//
// Errors: ErrCorrupt if something was lost; ErrInvalid for the options; what keeps
// a server from starting.
func Kill(ctx context.Context, o KillOptions) (report KillReport, err error) {
	if o.Rounds == 0 {
		o.Rounds = DefaultKillRounds
	}
	if o.SetBytes == 0 {
		o.SetBytes = DefaultKillSetBytes
	}
	if (o.Binary == "") == (o.Peer == "") {
		return report, fmt.Errorf("choose what to kill: a program or a peer: %w", scstore.ErrInvalid)
	}
	dir, err := os.MkdirTemp(o.Dir, "scstore-kill-")
	if err != nil {
		return report, fmt.Errorf("make a folder for the test: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	runDir, err := os.MkdirTemp("", "scb")
	if err != nil {
		return report, fmt.Errorf("make a folder for the sockets: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(runDir)) }()
	j, err := NewJournal(o.Seed, o.SetBytes/scstore.BlockSize)
	if err != nil {
		return report, err
	}
	start := func() (*target, error) {
		if o.Peer != "" {
			return startPeer(ctx, o.Peer, dir, runDir, o.SetBytes)
		}
		return startStore(ctx, o.Binary, dir, runDir, o.SetBytes)
	}
	t, err := start()
	if err != nil {
		return report, err
	}
	report.Target = t.Target
	defer func() { err = errors.Join(err, t.proc.kill()) }()
	rng := rand.New(rand.NewPCG(o.Seed, 9))
	for n := range o.Rounds {
		round := KillRound{Round: n + 1}
		if round.Load, err = loadAndKill(ctx, t, j, rng); err != nil {
			return report, err
		}
		began := time.Now()
		next, err := start()
		if err != nil {
			return report, err
		}
		t = next
		round.RestartSeconds = time.Since(began).Seconds()
		if round.Verify, err = Verify(ctx, VerifyOptions{URL: t.url, Journal: j}); err != nil {
			return report, err
		}
		report.Rounds = append(report.Rounds, round)
		if o.Progress != nil {
			o.Progress(round)
		}
		if err := round.Verify.AfterKill(); err != nil {
			return report, fmt.Errorf("round %d: %w", round.Round, err)
		}
	}
	return report, nil
}

// loadAndKill drives a load until the server is killed under it.
func loadAndKill(ctx context.Context, t *target, j *Journal, rng *rand.Rand) (LoadResult, error) {
	after := killAfterMin + time.Duration(rng.Int64N(int64(killAfterMax-killAfterMin)))
	seed := rng.Uint64()
	killed := make(chan error, 1)
	timer := time.AfterFunc(after, func() { killed <- t.proc.kill() })
	defer timer.Stop()
	result, err := Load(ctx, LoadOptions{
		URL: t.url, Connections: 1, QueueDepth: 32, ReadPercent: 20, ZeroPercent: 10, FlushEvery: 200,
		Duration: 10 * killAfterMax, Seed: seed, Journal: j,
	})
	switch {
	case ctx.Err() != nil:
		return result, errors.Join(ctx.Err(), stopped(timer, killed))
	case err == nil:
		return result, errors.Join(fmt.Errorf("load %s: ended before the kill: %w", t.Name, scstore.ErrBusy), stopped(timer, killed))
	case errors.Is(err, scstore.ErrCorrupt):
		return result, errors.Join(err, stopped(timer, killed))
	case timer.Stop():
		return result, fmt.Errorf("load %s: failed before the kill: %w", t.Name, err)
	}
	return result, <-killed
}

// stopped makes sure that the kill will not come, or has been.
func stopped(timer *time.Timer, killed <-chan error) error {
	if timer.Stop() {
		return nil
	}
	return <-killed
}
