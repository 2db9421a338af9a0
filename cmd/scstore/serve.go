package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"

	"github.com/spf13/cobra"

	"scstore"
	"scstore/internal/host"
)

func newServe(e *environ) *cobra.Command {
	o := host.Options{}
	mapMemory := ""
	cmd := &cobra.Command{
		Use:   "serve --dir DIR",
		Short: "run the store in a folder",
		Long: `Run the store in a folder, which is made if it does not exist. Nothing needs to
be configured. The command says "ready" on standard error, and tells systemd so,
once it serves. SIGTERM or SIGINT stops it cleanly; a second one at once, which
loses nothing that was flushed either.

The sockets have mode 0600: who may use them is who may use the store.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if mapMemory != "" {
				n, err := parseSize("--map-memory", mapMemory)
				if err != nil {
					return err
				}
				o.MapMemoryBytes = n
			}
			o.Version = build().version()
			o.Logger = e.logger()
			return e.serve(cmd.Context(), o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.Dir, "dir", defaultDir, "the store's folder")
	f.StringVar(&o.API, "api", "", "address of the API (default unix:DIR/api.sock)")
	f.StringVar(&o.NBD, "nbd", "", "address of the NBD door (default unix:DIR/nbd.sock)")
	f.BoolVar(&o.Insecure, "insecure", false, "allow host:port addresses, open to everybody who reaches them")
	f.StringVar(&mapMemory, "map-memory", "", "memory for the extent map (default 32M)")
	return cmd
}

// logger returns the log of a host: lines on standard error.
func (e *environ) logger() *slog.Logger {
	level := slog.LevelInfo
	if e.quiet {
		level = slog.LevelWarn
	}
	o := &slog.HandlerOptions{Level: level}
	if e.json {
		return slog.New(slog.NewJSONHandler(e.stderr, o))
	}
	return slog.New(slog.NewTextHandler(e.stderr, o))
}

// serveGCPercent has a host collect garbage earlier than usual: most of its heap
// are pages of the map, without pointers, so a collection is cheap and memory is
// what it saves.
const serveGCPercent = 40

// serve runs a host until ctx ends. A signal is the normal end.
func (e *environ) serve(ctx context.Context, o host.Options) error {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(serveGCPercent)
	}
	h, err := host.Open(ctx, o)
	if err != nil {
		return err
	}
	apiAddr, nbdAddr := h.Addrs()
	e.talk("folder %s", h.Dir())
	e.talk("api    %s", apiAddr)
	e.talk("nbd    %s", nbdAddr)
	if o.Insecure {
		e.talk("insecure: addresses that are no unix sockets are open to everybody who reaches them")
	}
	e.talk("ready")
	stop := context.AfterFunc(ctx, func() {
		e.talk("stopping: %v; a second signal stops at once", context.Cause(ctx))
	})
	defer stop()
	err = h.Serve(ctx)
	if closeErr := h.Close(); err == nil {
		err = closeErr
	}
	if err != nil && !errors.Is(err, scstore.ErrClosed) {
		return fmt.Errorf("serve %s: %w", h.Dir(), err)
	}
	e.talk("stopped")
	return nil
}
