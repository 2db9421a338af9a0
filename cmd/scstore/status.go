package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"scstore"
	"scstore/internal/api"
)

// state is what status prints: the host, and the cluster if it is in one.
type state struct {
	api.Status
	Cluster *api.Cluster `json:"cluster,omitempty"`
}

func newStatus(e *environ) *cobra.Command {
	wait, watch, timeout := false, false, defaultWait
	cmd := &cobra.Command{
		Use:   "status [--wait [--timeout 1m] | --watch]",
		Short: "show the state of the host and its cluster",
		Long: `Show the state of the host, and of the cluster in its eyes if it is in one.

--wait waits first until the host answers, has been admitted to its cluster, and sees
a leader and a majority in every group; then everything that needs the others can be
done. If that is not so in time, the exit code is that of what is in the way: 10, the
host does not answer; 17, too few hosts do; 8, it is being admitted.

--watch shows the state every second until it is stopped; where the output is no
terminal, a line each time.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case wait && watch:
				return usageError(cmd, "--wait and --watch exclude each other")
			case cmd.Flags().Changed("timeout") && !wait:
				return usageError(cmd, "--timeout wants --wait")
			}
			return e.withClient(func(c *api.Client) error {
				switch {
				case watch:
					return e.watch(cmd.Context(), c)
				case wait:
					return e.waitReady(cmd.Context(), c, timeout)
				}
				s, err := getState(cmd.Context(), c)
				if err != nil {
					return err
				}
				return e.printState(s)
			})
		},
	}
	cmd.Flags().BoolVar(&wait, "wait", false, "wait until the host and its cluster can be used")
	cmd.Flags().BoolVar(&watch, "watch", false, "show it every second")
	cmd.Flags().DurationVar(&timeout, "timeout", defaultWait, "how long --wait waits")
	return cmd
}

// getState asks a host for its state.
func getState(ctx context.Context, c *api.Client) (state, error) {
	s, err := c.Status(ctx)
	if err != nil {
		return state{}, err
	}
	cluster, err := c.Cluster(ctx)
	if errors.Is(err, scstore.ErrInvalid) { // it is in none
		return state{Status: s}, nil
	}
	if err != nil {
		return state{}, err
	}
	return state{Status: s, Cluster: &cluster}, nil
}

// printState is the answer of status.
func (e *environ) printState(s state) error {
	return e.print(s, func(w io.Writer) {
		printStatus(w, s.Status)
		if s.Cluster != nil {
			printCluster(w, *s.Cluster)
		}
	})
}

func printStatus(w io.Writer, s api.Status) {
	line := func(key, format string, args ...any) { fmt.Fprintf(w, key+"\t"+format+"\n", args...) }
	line("version", "%s", s.Version)
	line("running", "pid %d for %s", s.PID, time.Since(s.StartedAt).Round(time.Second))
	line("folder", "%s", s.Dir)
	line("api", "%s", s.API)
	line("nbd", "%s (%d connections)", s.NBD, s.Conns)
	line("names", "%d volumes, %d images", s.Volumes, s.Images)
	line("disk", "%s free of %s", humanSize(s.Store.DiskFreeBytes), humanSize(s.Store.DiskTotalBytes))
	line("log", "%s in %d segments, %s live", humanSize(s.Store.LogBytes), s.Store.Segments, humanSize(s.Store.LiveBytes))
	if s.Store.Recovery != "" {
		line("last start", "%s", s.Store.Recovery)
	}
	if s.Store.DamagedBlocks > 0 {
		line("damage", "%d blocks cannot be read: see scstore doctor", s.Store.DamagedBlocks)
	}
}

func printCluster(w io.Writer, c api.Cluster) {
	line := func(key, format string, args ...any) { fmt.Fprintf(w, key+"\t"+format+"\n", args...) }
	line("cluster", "%s, %d sites, %d hosts", c.ID, len(c.Sites), len(c.Hosts))
	line("site", "%s, as host %s", c.Site, c.Host)
	line("listen", "%s, UDP", c.Listen)
	majority := "yes, in every group"
	if !c.Majority {
		majority = "no: volumes can be read and written where they are, nothing else can be changed"
	}
	line("majority", "%s", majority)
	for _, g := range c.Groups {
		line(fmt.Sprintf("group %d", g.Number), "led by %s, voters %s", orDash(g.Leader), orDash(strings.Join(g.Voters, ", ")))
	}
	for _, h := range c.Hosts {
		if h.Here {
			continue
		}
		how := "unreachable"
		switch {
		case h.Reachable && h.RTTMs > 0:
			how = fmt.Sprintf("reachable, round trip %.1f ms", h.RTTMs)
		case h.Reachable:
			how = "reachable"
		case h.LastError != "":
			how += ": " + oneLine(h.LastError)
		}
		line("host "+h.Name, "site %s, %s, %s", h.Site, h.State, how)
	}
	if c.Problem != "" {
		line("problem", "%s", oneLine(c.Problem))
	}
}
