package consensus

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"github.com/lni/dragonboat/v4"
	"github.com/lni/dragonboat/v4/config"
	"github.com/lni/dragonboat/v4/raftio"
	"github.com/lni/vfs"

	"scstore"
)

// The library records the absolute path of each snapshot that it writes, opens it
// there when it sends it to a member that lags, and ends the process if it is not
// there. So after a folder was moved, or its host renamed, each group takes a new
// snapshot before this host sends one. The file place-GROUP says where the group's
// newest snapshot lies; what it says is only compared, and whatever else is found
// there costs a snapshot.

// place is what the file says once the snapshots of a group lie where they should.
func (c *Cluster) place() ([]byte, error) {
	hostname, err := os.Hostname()
	return []byte(hostname + "\n" + c.dir + "\n"), err
}

func (c *Cluster) placeFile(id GroupID) string {
	return c.under.PathJoin(c.dir, fmt.Sprintf("place-%d", id))
}

// isPlaced reports whether the group's newest snapshot lies where it says.
func (c *Cluster) isPlaced(id GroupID) (bool, error) {
	want, err := c.place()
	if err != nil {
		return false, err
	}
	got, err := readSmall(c.under, c.placeFile(id))
	if isMissing(err) {
		return false, nil
	}
	return string(got) == string(want), err
}

func (c *Cluster) setPlaced(id GroupID) error {
	want, err := c.place()
	if err != nil {
		return err
	}
	return errors.Join(writeSmall(c.under, c.placeFile(id), want), syncFolder(c.under, c.dir))
}

// refresh takes a snapshot of a group that was moved, once there is something to
// take: the first entry of a leader at the latest.
func (c *Cluster) refresh(g *group) {
	if g.placed.Load() || time.Now().Before(g.nextRefresh) {
		return
	}
	g.nextRefresh = time.Now().Add(c.options.PreferInterval)
	err := c.snapshot(c.ctx, g)
	if err == nil {
		err = c.setPlaced(g.id)
	}
	if err != nil {
		c.logger.Debug("cannot take a snapshot of a group that was moved", "group", g.id, "err", err)
		return
	}
	g.placed.Store(true)
}

// snapshot takes a snapshot of a group. Errors: ErrBusy if nothing was applied since
// the last one, or it cannot be taken now.
func (c *Cluster) snapshot(ctx context.Context, g *group) error {
	bounded, cancel := c.bounded(ctx)
	defer cancel()
	option := dragonboat.SnapshotOption{OverrideCompactionOverhead: true, CompactionOverhead: uint64(c.options.TrailingEntries)}
	var request *dragonboat.RequestState
	if err := c.call(func(host *dragonboat.NodeHost) (err error) {
		request, err = host.RequestSnapshot(uint64(g.id), option, c.timeLeft(bounded))
		return err
	}); err != nil {
		return err
	}
	select {
	case r := <-request.AppliedC():
		request.Release()
		if !r.Completed() {
			return fmt.Errorf("no snapshot: %w", scstore.ErrBusy)
		}
		return nil
	case <-bounded.Done():
		return c.waited(ctx, scstore.ErrBusy)
	}
}

// allPlaced reports whether snapshots may be sent.
func (c *Cluster) allPlaced() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, g := range c.groups {
		if !g.placed.Load() {
			return false
		}
	}
	return true
}

var errNotPlaced = fmt.Errorf("the folder was moved: no snapshot to send yet: %w", scstore.ErrBusy)

// gate is a transport that sends no snapshot while a group's may be misplaced. The
// library tries again.
type gate struct {
	config.TransportFactory
	open *atomic.Pointer[Cluster]
}

func (t gate) Create(o config.NodeHostConfig, messages raftio.MessageHandler, chunks raftio.ChunkHandler) raftio.ITransport {
	return gatedTransport{ITransport: t.TransportFactory.Create(o, messages, chunks), open: t.open}
}

type gatedTransport struct {
	raftio.ITransport
	open *atomic.Pointer[Cluster]
}

func (t gatedTransport) GetSnapshotConnection(ctx context.Context, target string) (raftio.ISnapshotConnection, error) {
	if c := t.open.Load(); c == nil || !c.allPlaced() {
		return nil, errNotPlaced
	}
	return t.ITransport.GetSnapshotConnection(ctx, target)
}

// writeSmall replaces a file's content; its name is durable once the folder is synced.
func writeSmall(under vfs.FS, name string, content []byte) error {
	f, err := under.Create(name + newSuffix)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	return under.Rename(name+newSuffix, name)
}
