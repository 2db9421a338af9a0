package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"

	"scstore"
	"scstore/internal/host"
)

func newServe(e *environ) *cobra.Command {
	o := host.Options{}
	mapMemory, join := "", ""
	cmd := &cobra.Command{
		Use:   "serve --dir DIR [--site SITE [--listen HOST:PORT] [--join TOKEN]]",
		Short: "run the store in a folder",
		Long: `Run the store in a folder, which is made if it does not exist. Nothing needs to
be configured. The command says "ready" on standard error, and tells systemd so,
once it serves. SIGTERM or SIGINT stops it cleanly; a second one at once, which
loses nothing that was flushed either.

The sockets have mode 0600: who may use them is who may use the store.

With --site, the host belongs to a cluster: several sites that agree on who writes
a volume and which bytes are its newest. The first host begins the cluster; every
other one joins it with a token, which a host of the cluster makes (scstore host
token). The hosts talk to each other over UDP at --listen, which the others must be
able to reach, encrypted and with certificates of the cluster's own.

A token admits one host once, so it is a secret until then. Give it as @FILE or in
SCSTORE_JOIN_TOKEN: the command line can be read by everybody on the machine. Where
the host is in the cluster already, the flags need not be repeated.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if mapMemory != "" {
				n, err := parseSize("--map-memory", mapMemory)
				if err != nil {
					return err
				}
				o.MapMemoryBytes = n
			}
			token, err := e.joinToken(join)
			if err != nil {
				return err
			}
			o.Join = token
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
	f.StringVar(&o.Site, "site", "", "the site that this host is at; makes it a host of a cluster")
	f.StringVar(&o.Name, "name", "", "this host's name in the cluster (default: the machine's)")
	f.StringVar(&o.Listen, "listen", "", "UDP address for the other hosts, host:port (default :7400)")
	f.StringVar(&join, "join", "", "token of the cluster to join, or @FILE (env SCSTORE_JOIN_TOKEN)")
	f.StringVar(&mapMemory, "map-memory", "", "memory for the extent map (default 32M)")
	return cmd
}

// maxTokenFileBytes bounds the file of a token; a token is much shorter.
const maxTokenFileBytes = 64 << 10

// joinToken returns the text of the token that --join, or else the environment,
// names: the text itself, or @FILE. Empty if neither is given. Errors: ErrNotFound,
// ErrInvalid, which do not repeat the text.
func (e *environ) joinToken(flag string) (string, error) {
	text := flag
	if text == "" {
		text = e.getenv("SCSTORE_JOIN_TOKEN")
	}
	name, isFile := strings.CutPrefix(text, "@")
	if !isFile {
		return strings.TrimSpace(text), nil
	}
	f, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return "", scstore.Hint(fmt.Errorf("read the token: file %q: %w", name, scstore.ErrNotFound),
			"make a token on a host of the cluster: scstore host token > FILE")
	}
	if err != nil {
		return "", fmt.Errorf("read the token: %w", err)
	}
	defer func() { _ = f.Close() }() // it was only read
	b, err := io.ReadAll(io.LimitReader(f, maxTokenFileBytes+1))
	if err != nil {
		return "", fmt.Errorf("read the token: %w", err)
	}
	token := strings.TrimSpace(string(b))
	if len(b) > maxTokenFileBytes || token == "" {
		return "", scstore.Hint(fmt.Errorf("read the token: file %q holds no token: %w", name, scstore.ErrInvalid),
			"make one on a host of the cluster: scstore host token > FILE")
	}
	return token, nil
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
	if c, err := h.Cluster(ctx); err == nil { // an error: it is in none
		e.talk("site   %s, as host %s", c.Site, c.Host)
		e.talk("listen %s, UDP, for the other hosts", c.Listen)
	}
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
