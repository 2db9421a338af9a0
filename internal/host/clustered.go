package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"scstore"
	"scstore/consensus/meta"
	"scstore/internal/cluster"
	"scstore/internal/replica"
)

// replicasName is the folder of what this host must not forget of its volumes.
const replicasName = "replicas"

// catchUp is how long a start waits to learn what the cluster has decided meanwhile. Without
// a majority it serves what it knew.
const (
	catchUp    = 3 * time.Second
	catchUpTry = time.Second
)

// Leaders change: a call that meets none tries again for a while.
const (
	patience       = 10 * time.Second
	patiencePeriod = 100 * time.Millisecond
	decideTimeout  = 40 * time.Second // of one decision; then it may be made or not
)

// clustered is a host of a cluster: names are in the namespace's group, records in those
// of the volumes, and this host has replicas of some.
type clustered struct {
	h        *Host
	log      *cluster.Cluster
	replicas *replica.Set  // nil until it is open
	forwards chan struct{} // a token for each call of another host
	lost     losses

	mu   sync.Mutex
	life context.Context // of what runs in the background; nil before Open has ended
	stop context.CancelFunc
	done sync.WaitGroup // Add only with mu held and life not over
}

var (
	_ agreement = (*clustered)(nil)
	_ opener    = (*clustered)(nil)
)

// member reports whether this host is one of a cluster, or is asked to become one. Errors:
// ErrInvalid for a store that holds the volumes of a host alone.
func (h *Host) member() (bool, error) {
	exists, err := cluster.Exists(h.o.Dir)
	if err != nil || exists {
		return exists, err
	}
	return h.o.Site != "" || h.o.Listen != "" || h.o.Join != "" || h.o.Name != "", nil
}

// refuseVolumes makes sure that a store that is to begin or join a cluster holds nothing
// of a host alone.
func (h *Host) refuseVolumes(ctx context.Context) error {
	volumes := len(h.blocks.Tables())
	files, err := os.ReadDir(filepath.Join(h.o.Dir, metaName))
	if err != nil {
		return fmt.Errorf("look for volumes: %w", err)
	}
	if len(files) > 0 {
		state, err := h.openMeta(ctx)
		if err != nil {
			return err
		}
		state.View(func(s *meta.State) { volumes = max(volumes, len(s.Records())) })
		if err := state.Close(); err != nil {
			return err
		}
	}
	if volumes == 0 {
		return nil
	}
	return scstore.Hint(fmt.Errorf("folder %q holds %d volumes of a host that is in no cluster: %w", h.o.Dir, volumes, scstore.ErrInvalid),
		"begin or join with an empty folder, and bring the volumes over with scstore volume export and scstore image import")
}

// openCluster opens this host's place in the cluster and its replicas, and lets the other
// hosts in.
func (h *Host) openCluster(ctx context.Context) error {
	exists, err := cluster.Exists(h.o.Dir)
	if err == nil && !exists {
		err = h.refuseVolumes(ctx)
	}
	if err != nil {
		return err
	}
	log, err := cluster.Open(ctx, cluster.Options{
		Dir: h.o.Dir, Disk: h.folder.id, Site: meta.SiteID(h.o.Site), Host: h.o.Name, Listen: h.o.Listen, Join: h.o.Join,
		Logger: h.log, Registerer: h.registry,
	})
	if err != nil {
		return err
	}
	c := &clustered{h: h, log: log, forwards: make(chan struct{}, MaxForwards), lost: losses{since: map[meta.GroupID]time.Time{}}}
	h.cluster, h.names, h.volumes = c, c, c
	c.replicas, err = replica.Open(ctx, replica.Options{
		Disk: log.Disk(), Site: log.Site(), Boot: log.Boot(), Dir: filepath.Join(h.o.Dir, replicasName), Groups: cluster.VolumeGroupIDs(),
		Blocks: h.blocks, Log: replicaLog{log}, Net: replicaNet{log.Net()}, HostName: log.HostName, Logger: h.log, Registerer: h.registry,
	})
	if err != nil {
		return err
	}
	log.Net().Handle(KindForward, c.serveForward)
	if err := log.Start(ctx); err != nil {
		return err
	}
	if err := c.replicas.Start(); err != nil {
		return err
	}
	c.catchUp(ctx)
	c.life, c.stop = context.WithCancel(context.Background())
	c.background(c.clean)
	return nil
}

// catchUp waits until this host has applied what the cluster has decided so far.
func (c *clustered) catchUp(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, catchUp)
	defer cancel()
	for _, g := range append([]meta.GroupID{meta.GroupNamespace}, cluster.VolumeGroupIDs()...) {
		read := func() error {
			try, cancel := context.WithTimeout(ctx, catchUpTry) // one that met no leader may be lost
			defer cancel()
			err := c.log.Read(try, g, func(*meta.State) {})
			if errors.Is(err, context.DeadlineExceeded) {
				err = fmt.Errorf("%v: %w", err, scstore.ErrNoMajority)
			}
			return err
		}
		if err := patiently(ctx, read); err != nil {
			c.h.log.Warn("serving what was known at the last stop", "group", uint64(g), "err", err)
			return
		}
	}
}

// failed returns a channel that is closed when the host must not go on in its cluster.
func (h *Host) failed() <-chan struct{} {
	if h.cluster == nil {
		return nil
	}
	return h.cluster.log.Failed()
}

// failure says why.
func (c *clustered) failure() error { return c.log.Failure() }

// closeVolumes makes what this host writes durable and closes it.
func (c *clustered) closeVolumes(context.Context) error {
	if c.life != nil {
		c.mu.Lock()
		c.stop()
		c.mu.Unlock()
		c.done.Wait()
	}
	if c.replicas == nil {
		return nil
	}
	return c.replicas.Close()
}

// close leaves the network and closes the log.
func (c *clustered) close() error { return c.log.Close() }

// exclude keeps nobody out: who comes first is for the log to say.
func (c *clustered) exclude() (end func()) { return func() {} }

// resolve returns what a name names.
func (c *clustered) resolve(name string) (e entry, ok bool, err error) {
	var named meta.Entry
	if err := c.view(meta.GroupNamespace, func(s *meta.State) { named, ok = s.Resolve(name) }); err != nil || !ok {
		return entry{}, false, err
	}
	found := false
	if err := c.view(named.Group, func(s *meta.State) { e, found = entryOf(s, named.Group, named.ID, name) }); err != nil {
		return entry{}, false, err
	}
	if !found {
		err := fmt.Errorf("its record is not here yet, or not any more: %w", scstore.ErrBusy)
		return entry{}, true, scstore.Hint(err, "try again in a moment")
	}
	return e, true, nil
}

// entries returns all that have a name and whose record is here.
func (c *clustered) entries() ([]entry, error) {
	names := map[meta.GroupID]map[scstore.VolumeID]string{}
	err := c.view(meta.GroupNamespace, func(s *meta.State) {
		for _, e := range s.Entries("") {
			if names[e.Group] == nil {
				names[e.Group] = map[scstore.VolumeID]string{}
			}
			names[e.Group][e.ID] = e.Name
		}
	})
	var all []entry
	for g, list := range names {
		err = errors.Join(err, c.view(g, func(s *meta.State) { all = append(all, collect(s, g, list)...) }))
	}
	return byName(all), err
}

// view calls f with a group's state as this host has applied it.
func (c *clustered) view(g meta.GroupID, f func(*meta.State)) error { return c.log.View(g, f) }

// propose decides an operation. While a group has no leader for a moment it tries again.
func (c *clustered) propose(ctx context.Context, g meta.GroupID, op meta.Op) (result meta.Result, err error) {
	ctx, cancel := context.WithTimeout(ctx, decideTimeout)
	defer cancel()
	decided := false
	again := patiently(ctx, func() error {
		result, err = c.log.Propose(ctx, g, op)
		if decided = result.Code != 0; decided {
			return nil
		}
		return err
	})
	switch {
	case decided:
		return result, err
	case errors.Is(again, context.DeadlineExceeded) && !errors.Is(again, scstore.ErrIndeterminate): // nothing was sent
		again = fmt.Errorf("%v: %w", again, scstore.ErrNoMajority)
	}
	return result, again
}

// patiently calls f until it succeeds, or fails with what will not be gone in a moment, or
// patience ends.
func patiently(ctx context.Context, f func() error) error {
	again := time.NewTicker(patiencePeriod)
	defer again.Stop()
	for until := time.Now().Add(patience); ; {
		err := f()
		passes := errors.Is(err, scstore.ErrNoMajority) || errors.Is(err, scstore.ErrBusy) || errors.Is(err, scstore.ErrUnreachable)
		if !passes || time.Now().After(until) {
			return err
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			return err
		}
	}
}

// hosts returns the hosts of the cluster, by disk.
func (c *clustered) hosts() (list []meta.Host, err error) {
	err = c.view(meta.GroupNamespace, func(s *meta.State) { list = s.Hosts() })
	return list, err
}

// hostName returns what people call the host with a disk.
func (c *clustered) hostName(d meta.DiskID) string {
	name := string(d)
	// Without its name it is shown by its disk.
	_ = c.view(meta.GroupNamespace, func(s *meta.State) {
		if h, ok := s.Host(d); ok {
			name = h.Name
		}
	})
	return name
}
