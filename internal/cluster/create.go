package cluster

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"time"

	"scstore"
	"scstore/consensus/meta"
	"scstore/propagate/quicnet/authority"
)

// enter returns this host's keys: those that are there, or, as far as it is not done yet,
// those of a new cluster or of the one that the token is of. The file exists afterwards.
func (c *Cluster) enter(ctx context.Context, token *authority.Token, conn net.PacketConn, listen string) (*authority.Keys, error) {
	keys, err := authority.Load(c.keysDir())
	if err != nil && !errors.Is(err, scstore.ErrNotFound) {
		return nil, err
	}
	if !c.file.exists() {
		switch {
		case err == nil:
			return nil, scstore.Hint(fmt.Errorf("this host's keys are here and %s is not: %w", placeName, scstore.ErrCorrupt), "restore the file from a backup")
		case token == nil:
			if err := c.found(listen); err != nil {
				return nil, err
			}
		}
	}
	p := c.file.get()
	switch {
	case err == nil && (p.Stage != stageMember || token == nil || time.Now().Before(keys.Certificate().Leaf.NotAfter)):
		return keys, c.checkKeys(keys)
	case p.Stage == stageNew:
		return c.makeKeys()
	case token != nil:
		return c.join(ctx, *token, conn, listen)
	}
	if p.Stage == stageMember {
		return nil, scstore.Hint(fmt.Errorf("this host's keys are gone: %w", scstore.ErrCorrupt), "restore %s from a backup, or join again with --join TOKEN", c.keysDir())
	}
	return nil, scstore.Hint(fmt.Errorf("this host was about to join cluster %s and has no keys yet: %w", meta.ClusterID(p.Cluster), scstore.ErrInvalid),
		"start it again with the same --join TOKEN")
}

func (c *Cluster) keysDir() string { return filepath.Join(c.o.Dir, keysName) }

// identity is who this host is by the file.
func (c *Cluster) identity() authority.Identity {
	p := c.file.get()
	return authority.Identity{Cluster: authority.ClusterID(p.Cluster), Disk: c.o.Disk, Host: p.Host}
}

// checkKeys refuses the keys of another host.
func (c *Cluster) checkKeys(keys *authority.Keys) error {
	if got, want := keys.Identity(), c.identity(); got != want {
		return scstore.Hint(fmt.Errorf("the keys are those of %s, this is %s: %w", got, want, scstore.ErrInvalid),
			"put back the files that belong together; nothing was changed")
	}
	return nil
}

// found draws a new cluster, in which this host is alone.
func (c *Cluster) found(listen string) error {
	var cluster id
	rand.Read(cluster[:])
	host := cmp.Or(c.o.Host, machineName())
	var groups []groupFacts
	for _, g := range groupIDs() {
		groups = append(groups, groupFacts{Group: g, Replica: 1, Alone: true})
	}
	c.log.Info("a new cluster begins", "cluster", meta.ClusterID(cluster).String(), "site", string(c.o.Site), "host", host)
	return c.file.change(func(p *place) {
		*p = place{
			Stage: stageNew, Cluster: cluster, Incarnation: 1, Disk: id(c.o.Disk), Site: c.o.Site, Host: host, Listen: listen, Groups: groups,
		}
	})
}

// makeKeys makes the new cluster's authority; what an interrupted start left is begun
// anew.
func (c *Cluster) makeKeys() (*authority.Keys, error) {
	keys, err := authority.Create(c.keysDir(), c.identity(), time.Now())
	if err != nil {
		return nil, fmt.Errorf("make the cluster's keys: %w", err)
	}
	return keys, nil
}

// fingerprint names this host's certificate.
func (c *Cluster) fingerprint() meta.Fingerprint {
	return sha256.Sum256(c.keys.Certificate().Leaf.Raw)
}

// establish enters a new cluster into the state: what it is, its first site and host,
// and their place in the groups. Every step may be repeated.
func (c *Cluster) establish(ctx context.Context) error {
	p := c.file.get()
	ops := []meta.Op{
		meta.SetCluster{Cluster: meta.Cluster{ID: meta.ClusterID(p.Cluster), Incarnation: p.Incarnation}},
		meta.SetSite{Site: meta.Site{Name: p.Site}},
		meta.AddHost{Disk: c.disk, Name: p.Host, Site: p.Site, Fingerprint: c.fingerprint(), Addresses: c.advertise},
		meta.Boot{Disk: c.disk, N: p.Boot.N, Nonce: p.Boot.Nonce},
	}
	for _, op := range ops {
		if _, err := c.firmly(ctx, meta.GroupNamespace, op); err != nil {
			return err
		}
	}
	for _, f := range p.Groups {
		r, err := c.firmly(ctx, meta.GroupNamespace, meta.AllocReplica{Group: f.Group, Disk: c.disk})
		if err != nil {
			return err
		}
		if r.Number != f.Replica {
			return fmt.Errorf("replica id %d in group %d, want %d: %w", r.Number, f.Group, f.Replica, scstore.ErrCorrupt)
		}
	}
	return c.activate(ctx)
}

// activate lets this host hold volumes, and says that it does. Its site votes by it if
// nobody else is there.
func (c *Cluster) activate(ctx context.Context) error {
	site := c.Site()
	for _, g := range VolumeGroupIDs() {
		if _, err := c.firmly(ctx, g, meta.AdmitDisk{Disk: c.disk, Site: site}); err != nil {
			return err
		}
	}
	if err := c.updateHost(ctx, true); err != nil {
		return err
	}
	if c.file.get().Stage == stageNew {
		_, err := c.firmly(ctx, meta.GroupNamespace, meta.SetSite{Site: meta.Site{Name: site, Voters: []meta.DiskID{c.disk}}})
		return err
	}
	return nil
}

// updateHost enters this host's addresses and certificate.
func (c *Cluster) updateHost(ctx context.Context, active bool) error {
	_, err := c.firmly(ctx, meta.GroupNamespace, meta.UpdateHost{Disk: c.disk, Active: active, Fingerprint: c.fingerprint(), Addresses: c.advertise})
	return err
}
