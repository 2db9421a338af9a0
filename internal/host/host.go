package host

import (
	"context"
	"crypto/rand"
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

	folder *folder
	blocks *block.Store
	meta   *consensus.Local

	apiListener, nbdListener net.Listener // closed by whoever serves them
	nbd                      *nbd.Server
	api                      *api.Server

	// catalog is held while names and tables change together: a name is looked at,
	// a table is made or deleted, a command is proposed. Not while data moves.
	catalog sync.Mutex

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
	if err := h.openStores(ctx, false); err != nil {
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

// openStores opens the log and the names, and removes what a crash left (I2).
// rebuild makes the index of the log anew.
func (h *Host) openStores(ctx context.Context, rebuild bool) error {
	segments, err := disk.OpenDir(filepath.Join(h.o.Dir, segmentsName))
	if err != nil {
		return err
	}
	h.meta, err = consensus.OpenLocal(ctx, filepath.Join(h.o.Dir, metaName), consensus.Options{StoreID: h.folder.id, Logger: h.log})
	if errors.Is(err, scstore.ErrInvalid) {
		return scstore.Hint(err, "put back the files that belong together; nothing was changed")
	}
	if err != nil {
		return err
	}
	h.blocks, err = block.Open(ctx, block.Options{
		FS: segments, IndexDir: filepath.Join(h.o.Dir, indexName), StoreID: h.folder.id,
		Logger: h.log, Registerer: h.registry, MapMemoryBytes: h.o.MapMemoryBytes, Rebuild: rebuild,
	})
	if err != nil {
		return err
	}
	return h.reconcile(ctx)
}

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
		errs = append(errs, h.closeVolumes(ctx))
		if h.blocks != nil {
			errs = append(errs, h.blocks.Close())
		}
		if h.meta != nil {
			errs = append(errs, h.meta.Close())
		}
		errs = append(errs, h.folder.close())
		h.closeErr = errors.Join(errs...)
	})
	return h.closeErr
}

// reconcile makes tables and names agree again after a crash (I2).
func (h *Host) reconcile(ctx context.Context) error {
	var applied uint64
	named := map[scstore.VolumeID]bool{}
	var tombstones []meta.Record
	h.meta.View(func(s *meta.State) {
		applied = s.Applied()
		for _, r := range s.Records() { // a branch has no name of its own
			named[r.ID] = true
		}
		tombstones = s.Tombstones()
	})
	tables := h.blocks.Tables()
	if applied == 0 {
		if len(tables) > 0 {
			return scstore.Hint(fmt.Errorf("folder %q holds %d volumes, but their names are gone: %w", h.o.Dir, len(tables), scstore.ErrCorrupt),
				"restore %s from a backup; nothing was changed", filepath.Join(h.o.Dir, metaName))
		}
		// From here on the names are never empty, so that losing them shows.
		var client meta.ClientID
		rand.Read(client[:])
		_, err := h.meta.Propose(ctx, meta.Command{ID: meta.CommandID{Client: client}, Op: meta.OpenSession{}})
		if err != nil {
			return fmt.Errorf("make the store: %w", err)
		}
	}
	removed := map[scstore.VolumeID]bool{}
	for _, r := range tombstones {
		removed[r.ID] = true
	}
	if err := h.checkUnnamed(ctx, tables, named, removed); err != nil {
		return err
	}
	if err := h.deleteTables(tables, named); err != nil {
		return err
	}
	for _, r := range tombstones {
		if _, err := h.meta.Propose(ctx, meta.Command{Op: meta.Forget{ID: r.ID}}); err != nil {
			return fmt.Errorf("forget removed volume %s: %w", r.ID, err)
		}
	}
	return h.sweepMarks()
}

// checkUnnamed refuses a store that holds data without a name which no crash leaves:
// names of an earlier moment were put back, and what was made since would be deleted.
// An unfinished import has its mark; a volume that has no name yet holds nothing.
func (h *Host) checkUnnamed(ctx context.Context, tables []block.TableInfo, named, removed map[scstore.VolumeID]bool) error {
	lost := 0
	for _, info := range tables {
		t, err := h.blocks.Table(info.ID)
		if err != nil {
			return err
		}
		if named[info.ID] {
			if t.Marked(unfinished) { // the crash came after the name
				err = t.Unmark(unfinished)
			}
			if err != nil {
				return fmt.Errorf("finish the import of %s: %w", info.ID, err)
			}
			continue
		}
		if removed[info.ID] || t.Marked(unfinished) {
			continue
		}
		written, err := t.Changed(ctx, scstore.Tag{}, scstore.Tag{}, 0, 1)
		if err != nil {
			return fmt.Errorf("look into volume %s, which has no name: %w", info.ID, err)
		}
		if len(written) > 0 {
			lost++
		}
	}
	if lost > 0 {
		return scstore.Hint(fmt.Errorf("folder %q holds data of %d volumes that %s does not know: it is older than %s: %w",
			h.o.Dir, lost, metaName, segmentsName, scstore.ErrCorrupt), "put back files of the same moment; nothing was changed")
	}
	return nil
}

// deleteTables deletes the tables that have no name, clones before their bases.
func (h *Host) deleteTables(tables []block.TableInfo, named map[scstore.VolumeID]bool) error {
	var left []scstore.VolumeID
	for _, t := range tables {
		if !named[t.ID] {
			left = append(left, t.ID)
		}
	}
	for len(left) > 0 {
		var busy []scstore.VolumeID
		for _, id := range left {
			err := h.blocks.Delete(id)
			switch {
			case errors.Is(err, scstore.ErrBusy):
				busy = append(busy, id)
			case err != nil:
				return fmt.Errorf("delete volume %s, which has no name: %w", id, err)
			default:
				h.log.Info("deleted what an unfinished command left", "volume", id.String())
			}
		}
		if len(busy) == len(left) {
			return fmt.Errorf("delete %d volumes without a name: %w", len(busy), scstore.ErrBusy)
		}
		left = busy
	}
	return nil
}
