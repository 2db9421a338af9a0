package host

import (
	"fmt"
	"log/slog"
	"path/filepath"
	"time"

	"scstore"
	"scstore/internal/api"
)

// The limits of a host.
const (
	// closeGrace is how long requests of the API get to end by themselves when the
	// host stops.
	closeGrace = 3 * time.Second
	// closeTimeout bounds the whole of Close, but for I/O that the kernel does not
	// return from.
	closeTimeout = 60 * time.Second
	// drainTimeout is how long a forced removal waits for connections to end.
	drainTimeout = 15 * time.Second
)

// Options says how a host runs. The zero value of a field but Dir is its default.
type Options struct {
	Dir            string // the store's folder; made if it does not exist
	API            string // address of the API; default unix:DIR/api.sock
	NBD            string // address of the NBD door; default unix:DIR/nbd.sock
	Insecure       bool   // allow addresses that anybody who reaches them can use
	MapMemoryBytes int64  // cap of the extent map in memory; default fs/block's
	Version        string // of this program

	// What follows makes the host one of a cluster; with none of it a new store is a
	// host alone. A store that is in a cluster needs none of it.
	Site   string // failure domain; required to begin a cluster
	Name   string // of the host; default the machine's
	Listen string // UDP host:port between hosts; default cluster.DefaultListen
	Join   string // a token's text; empty: begin a cluster
	Logger *slog.Logger

	apiAddr, nbdAddr api.Addr
}

// withDefaults fills in what is not set.
func (o Options) withDefaults() (Options, error) {
	if o.Dir == "" {
		return o, fmt.Errorf("no folder: %w", scstore.ErrInvalid)
	}
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return o, fmt.Errorf("find the folder %q: %w", o.Dir, err)
	}
	o.Dir = dir
	if o.API == "" {
		o.API = "unix:" + filepath.Join(dir, "api.sock")
	}
	if o.NBD == "" {
		o.NBD = "unix:" + filepath.Join(dir, "nbd.sock")
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o, nil
}

// validate checks the options. Errors: ErrInvalid.
func (o *Options) validate() error {
	for _, door := range []struct {
		flag, text string
		addr       *api.Addr
	}{{"--api", o.API, &o.apiAddr}, {"--nbd", o.NBD, &o.nbdAddr}} {
		addr, err := api.ParseAddr(door.text)
		if err != nil {
			return fmt.Errorf("%s: %w", door.flag, err)
		}
		if addr.Network != "unix" && !o.Insecure {
			return scstore.Hint(fmt.Errorf("%s %s is open to everybody who reaches it: %w", door.flag, addr, scstore.ErrInvalid),
				"use a unix socket, or say --insecure if the network keeps strangers out")
		}
		*door.addr = addr
	}
	if o.apiAddr == o.nbdAddr {
		return fmt.Errorf("--api and --nbd are both %s: %w", o.apiAddr, scstore.ErrInvalid)
	}
	return nil
}
