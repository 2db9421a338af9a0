package host

import (
	"context"
	"encoding/hex"
	"fmt"
	"time"

	"scstore"
	"scstore/consensus/meta"
	"scstore/internal/cluster"
	"scstore/internal/replica"
	"scstore/propagate"
	"scstore/propagate/quicnet"
)

// replicaLog is the cluster's log as package replica wants it.
type replicaLog struct{ *cluster.Cluster }

var _ replica.Log = replicaLog{}

// Watch begins to deliver a group's events.
func (l replicaLog) Watch(g meta.GroupID) (replica.Watcher, error) {
	w, err := l.Cluster.Watch(g)
	if err != nil {
		return nil, err
	}
	return w, nil
}

// replicaNet is the network as package replica wants it: hosts are named by the disk ids
// of the records.
type replicaNet struct{ net *quicnet.Net }

var _ replica.Net = replicaNet{}

// storeID returns what the network calls a disk. Errors: ErrNotFound for what is none.
func storeID(d meta.DiskID) (id scstore.StoreID, err error) {
	b, err := hex.DecodeString(string(d))
	if err != nil || len(b) != len(id) {
		return id, fmt.Errorf("disk %q: %w", string(d), scstore.ErrNotFound)
	}
	return scstore.StoreID(b), nil
}

// diskID returns what the records call a disk.
func diskID(id scstore.StoreID) meta.DiskID { return meta.DiskID(id.String()) }

// Request asks a host.
func (n replicaNet) Request(ctx context.Context, to meta.DiskID, class quicnet.Class, kind quicnet.Kind, payload []byte) ([]byte, error) {
	id, err := storeID(to)
	if err != nil {
		return nil, err
	}
	return n.net.Request(ctx, id, class, kind, payload)
}

// OpenStream opens a stream to a host.
func (n replicaNet) OpenStream(ctx context.Context, to meta.DiskID, class quicnet.Class, kind quicnet.Kind) (propagate.Stream, error) {
	id, err := storeID(to)
	if err != nil {
		return nil, err
	}
	s, err := n.net.OpenStream(ctx, id, class, kind)
	if err != nil {
		return nil, err
	}
	return s, nil
}

// RTT returns the round trip to a host, 0 if it is not known.
func (n replicaNet) RTT(to meta.DiskID) time.Duration {
	id, err := storeID(to)
	if err != nil {
		return 0
	}
	for _, p := range n.net.Status() {
		if p.Disk == id {
			return p.RTT
		}
	}
	return 0
}

// Answer registers who answers requests of a kind.
func (n replicaNet) Answer(kind quicnet.Kind, f func(ctx context.Context, from meta.DiskID, request []byte) ([]byte, error)) {
	n.net.Answer(kind, func(ctx context.Context, from quicnet.Peer, request []byte) ([]byte, error) {
		return f(ctx, diskID(from.Disk), request)
	})
}

// Handle registers who serves streams of a kind.
func (n replicaNet) Handle(kind quicnet.Kind, f func(ctx context.Context, from meta.DiskID, s propagate.Stream) error) {
	n.net.Handle(kind, func(ctx context.Context, from quicnet.Peer, s *quicnet.Stream) error {
		return f(ctx, diskID(from.Disk), s)
	})
}
