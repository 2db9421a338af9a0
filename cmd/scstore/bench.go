package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"scstore"
	"scstore/internal/bench"
)

// bareLoopName is the hidden command that bench starts as the limit to compare
// with.
const bareLoopName = "bench-bare-loop"

func newBench(e *environ) *cobra.Command {
	o := bench.Options{}
	kill, workingSet := false, ""
	cmd := &cobra.Command{
		Use:   "bench [--dir DIR] [--quick]",
		Short: "measure scstore beside its peers on this machine",
		Long: `Measure scstore beside qemu-nbd, nbdkit and qemu-storage-daemon: the same loads,
on the same file system, in turns. What is put into DIR is removed at the end.

With --kill, kill a host (SIGKILL) under load again and again instead, and check
that no acknowledged write is lost.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			self, err := os.Executable()
			if err != nil {
				return fmt.Errorf("find this program: %w", err)
			}
			o.Binary, o.BareCommand = self, []string{self, bareLoopName}
			if workingSet != "" {
				if o.WorkingSetBytes, err = parseSize("--working-set", workingSet); err != nil {
					return err
				}
			}
			if o.Dir == "" {
				if o.Dir, err = os.MkdirTemp("", "scstore-bench-"); err != nil {
					return fmt.Errorf("make a folder: %w", err)
				}
				defer func() { _ = os.RemoveAll(o.Dir) }()
			}
			if kill {
				return e.benchKill(cmd.Context(), o)
			}
			return e.bench(cmd.Context(), o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.Dir, "dir", "", "an existing folder on the file system to measure (default: a temporary one)")
	f.BoolVar(&o.Quick, "quick", false, "a look of a few minutes, not figures to publish")
	f.BoolVar(&kill, "kill", false, "kill a host under load and check what it kept")
	f.IntVar(&o.Rounds, "rounds", 0, "how often each load runs, or how many kills (default: 5, or 10)")
	f.StringSliceVar(&o.Peers, "peer", nil, "compare with these alone: "+strings.Join(bench.KnownPeers(), ", "))
	f.StringSliceVar(&o.Metrics, "metric", nil, "measure these alone: "+strings.Join(bench.MetricNames(), ", "))
	f.StringVar(&workingSet, "working-set", "", "size of what is written (default 8G, with --quick 1G)")
	f.DurationVar(&o.WriteTime, "write-time", 0, "length of the random writes (default 1m, with --quick 5s)")
	f.BoolVar(&o.NoFio, "no-fio", false, "leave fio's own figures out, which stand beside those of our load")
	f.Uint64Var(&o.Seed, "seed", 0, "seed of what is random")
	return cmd
}

// bench runs the measurements.
func (e *environ) bench(ctx context.Context, o bench.Options) error {
	o.Progress = func(p bench.Progress) {
		left := ""
		if p.Done > 0 {
			left = fmt.Sprintf(", about %s left", p.Remain.Round(time.Second))
		}
		e.talk("bench: %d of %d: %s%s", p.Done, p.Total, p.Step, left)
	}
	report, err := bench.Run(ctx, o)
	switch {
	case len(report.Rows) == 0: // nothing was measured before it
	case e.json:
		err = errors.Join(err, e.print(report, nil))
	default:
		err = errors.Join(err, report.WriteText(e.stdout))
	}
	return err
}

// benchKill runs the kills.
func (e *environ) benchKill(ctx context.Context, o bench.Options) error {
	report, err := bench.Kill(ctx, bench.KillOptions{
		Dir: o.Dir, Binary: o.Binary, Rounds: o.Rounds, SetBytes: o.WorkingSetBytes, Seed: o.Seed,
		Progress: func(r bench.KillRound) { e.talk("bench: kill %d: back after %.2f s", r.Round, r.RestartSeconds) },
	})
	if err != nil {
		return err
	}
	return e.print(report, func(w io.Writer) { fmt.Fprintf(w, "%d kills, nothing acknowledged was lost\n", len(report.Rounds)) })
}

// newBareLoop is what bench compares with: a server without a store. It is a
// command because it must not share a process with the load.
func newBareLoop() *cobra.Command {
	return &cobra.Command{
		Use: bareLoopName + " SOCKET BYTES", Short: "serve memory over NBD", Hidden: true,
		Args: exactArgs("SOCKET", "BYTES"),
		RunE: func(cmd *cobra.Command, args []string) error {
			size, err := strconv.ParseInt(args[1], 10, 64)
			if err != nil {
				return fmt.Errorf("size %q: %w", args[1], scstore.ErrInvalid)
			}
			l, err := net.Listen("unix", args[0])
			if err != nil {
				return fmt.Errorf("listen: %w", err)
			}
			return bench.ServeBare(cmd.Context(), l, size)
		},
	}
}
