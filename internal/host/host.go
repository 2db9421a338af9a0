package host

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"

	"scstore"
	"scstore/consensus"
	"scstore/consensus/meta"
	"scstore/fs/block"
	"scstore/fs/block/disk"
	"scstore/internal/api"
	"scstore/nbd"
)

// Host is one running store. Safe for concurrent use.
type Host struct {
	o        Options
	log      *slog.Logger
	started  time.Time
	registry *prometheus.Registry

	folder  *folder
	blocks  *block.Store
	names   agreement  // nil if the store is only examined
	volumes opener     // the same
	cluster *clustered // nil on a host that is in no cluster; else it is both of those

	apiListener, nbdListener net.Listener // closed by whoever serves them
	nbd                      *nbd.Server
	api                      *api.Server

	mu    sync.Mutex // guards slots
	slots map[slotKey]*slot

	closeOnce sync.Once
	closeErr  error
}

// Open opens the store in o.Dir, making one if the folder is empty, and its doors.
// Nothing is served before Serve; who connects before waits. Errors: ErrBusy (the
// folder or an address is in use), ErrVersion, ErrInvalid, ErrCorrupt, ErrNoSpace.
func Open(ctx context.Context, o Options) (*Host, error) {
	o, err := o.withDefaults()
	if err == nil {
		err = o.validate()
	}
	if err != nil {
		return nil, fmt.Errorf("open host: %w", err)
	}
	h := newHost(o)
	if h.folder, err = openFolder(o.Dir, true, o.Version); err != nil {
		return nil, err
	}
	// The doors come before the stores: what is wrong with them shows at once.
	if err := h.openDoors(); err != nil {
		return nil, errors.Join(err, h.Close())
	}
	if err := h.openStores(ctx); err != nil {
		return nil, errors.Join(err, h.Close())
	}
	h.nbd = nbd.NewServer(nbd.Options{Exports: exports{h}, Logger: h.log, Registerer: h.registry})
	h.api = api.NewServer(api.Options{Service: h, Gatherer: h.registry, Logger: h.log})
	return h, nil
}

// newHost returns a host that has nothing open.
func newHost(o Options) *Host {
	h := &Host{o: o, log: o.Logger, started: time.Now(), registry: prometheus.NewRegistry(), slots: map[slotKey]*slot{}}
	h.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return h
}

// openDoors opens the listeners.
func (h *Host) openDoors() (err error) {
	if h.apiListener, err = listen(h.o.apiAddr); err != nil {
		return err
	}
	h.nbdListener, err = listen(h.o.nbdAddr)
	return err
}

// openStores opens the names and the log, of a host alone or of one of a cluster.
func (h *Host) openStores(ctx context.Context) error {
	member, err := h.member()
	if err != nil {
		return err
	}
	if !member {
		return h.openLocal(ctx, false)
	}
	if err := h.openBlocks(ctx, false); err != nil {
		return err
	}
	return h.openCluster(ctx)
}

// openLocal opens the names and the log of a host alone, and removes what a crash left
// (I2). rebuild makes the index of the log anew.
func (h *Host) openLocal(ctx context.Context, rebuild bool) error {
	state, err := h.openMeta(ctx)
	if err != nil {
		return err
	}
	l := &local{h: h, meta: state}
	h.names, h.volumes = l, l
	if err := h.openBlocks(ctx, rebuild); err != nil {
		return err
	}
	return l.reconcile(ctx)
}

// openMeta opens the names of a host alone.
func (h *Host) openMeta(ctx context.Context) (*consensus.Local, error) {
	state, err := consensus.OpenLocal(ctx, filepath.Join(h.o.Dir, metaName), consensus.Options{StoreID: h.folder.id, Logger: h.log})
	if errors.Is(err, scstore.ErrInvalid) {
		return nil, scstore.Hint(err, "put back the files that belong together; nothing was changed")
	}
	return state, err
}

// openBlocks opens the log.
func (h *Host) openBlocks(ctx context.Context, rebuild bool) error {
	segments, err := disk.OpenDir(filepath.Join(h.o.Dir, segmentsName))
	if err != nil {
		return err
	}
	h.blocks, err = block.Open(ctx, block.Options{
		FS: segments, IndexDir: filepath.Join(h.o.Dir, indexName), StoreID: h.folder.id,
		Logger: h.log, Registerer: h.registry, MapMemoryBytes: h.o.MapMemoryBytes, Rebuild: rebuild,
	})
	return err
}

// disk is what this host's store is called in the records.
func (h *Host) disk() meta.DiskID { return meta.DiskID(h.folder.id.String()) }

// Addrs returns where the doors are.
func (h *Host) Addrs() (apiAddr, nbdAddr api.Addr) { return h.o.apiAddr, h.o.nbdAddr }

// Dir returns the folder's absolute path.
func (h *Host) Dir() string { return h.o.Dir }

// Serve serves until ctx ends, which is a clean end, or until the store cannot go
// on; then it returns why. It tells systemd, if that started the process, when it
// serves and when it stops (sd_notify). Close comes after it in every case.
func (h *Host) Serve(ctx context.Context) error {
	h.notify(daemon.SdNotifyReady)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return h.nbd.Serve(context.WithoutCancel(ctx), h.nbdListener) })
	g.Go(func() error { return h.api.Serve(h.apiListener) })
	g.Go(func() error {
		var fatal error
		select {
		case <-ctx.Done():
		case fatal = <-h.blocks.Fatal():
		case <-h.failed():
			fatal = h.cluster.failure()
		}
		h.notify(daemon.SdNotifyStopping)
		return errors.Join(fatal, h.closeDoors())
	})
	if err := g.Wait(); err != nil && !errors.Is(err, scstore.ErrClosed) {
		return fmt.Errorf("serve: %w", err)
	}
	return nil
}

// notify tells systemd.
func (h *Host) notify(state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		h.log.Warn("systemd was not told", "err", err)
	}
}

// closeDoors ends connections and requests, the guests' first: a removal that
// waits for them goes on.
func (h *Host) closeDoors() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeGrace)
	defer cancel()
	return errors.Join(h.nbd.Close(), h.api.Close(ctx))
}

// Close ends the doors, flushes and closes the volumes, and closes the stores (I4).
// Idempotent; returns the first errors.
func (h *Host) Close() error {
	h.closeOnce.Do(func() {
		ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
		defer cancel()
		var errs []error
		if h.nbd != nil {
			errs = append(errs, h.closeDoors())
		}
		for _, l := range []net.Listener{h.apiListener, h.nbdListener} {
			if l != nil {
				_ = l.Close() // closed before, if it was served
			}
		}
		if h.volumes != nil {
			errs = append(errs, h.volumes.closeVolumes(ctx))
		}
		if h.names != nil {
			errs = append(errs, h.names.close()) // before what its handlers read from
		}
		if h.blocks != nil {
			errs = append(errs, h.blocks.Close())
		}
		errs = append(errs, h.folder.close())
		h.closeErr = errors.Join(errs...)
	})
	return h.closeErr
}
