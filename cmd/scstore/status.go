package main

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"scstore/internal/api"
)

func newStatus(e *environ) *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "show the state of the host",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return e.withClient(func(c *api.Client) error {
				s, err := c.Status(cmd.Context())
				if err != nil {
					return err
				}
				return e.print(s, func(w io.Writer) { printStatus(w, s) })
			})
		},
	}
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
