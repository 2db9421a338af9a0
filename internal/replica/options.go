package replica

import (
	"context"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"scstore/consensus"
	"scstore/consensus/meta"
	"scstore/fs/block"
	"scstore/propagate"
	"scstore/propagate/quicnet"
)

// The kinds of what goes between the hosts' replicas.
const (
	KindVolumes quicnet.Kind = 16 // streams: propagate.Serve
	KindPrepare quicnet.Kind = 17 // a hand-off's PREPARE; the answer is READY
	KindRelease quicnet.Kind = 18 // a hand-off's RELEASE
	KindHolds   quicnet.Kind = 19 // who promotes asks what is held, once the revoke was applied
	KindAlive   quicnet.Kind = 20 // does the owner answer, and what does it have that nobody else has
)

// Log is the cluster's log, by groups; see package consensus for what the errors mean.
type Log interface {
	Propose(ctx context.Context, g meta.GroupID, op meta.Op) (meta.Result, error)
	ProposeSoon(ctx context.Context, g meta.GroupID, op meta.Op) (meta.Result, error)
	View(g meta.GroupID, f func(*meta.State)) error
	Read(ctx context.Context, g meta.GroupID, f func(*meta.State)) error
	Watch(g meta.GroupID) (Watcher, error)
	// Lead makes one of the disks lead the group, if none of them does.
	Lead(ctx context.Context, g meta.GroupID, disks ...meta.DiskID) error
}

// Watcher delivers what this host applied.
type Watcher interface {
	Next(ctx context.Context) (consensus.Event, error)
	Close()
}

// Net is the network between hosts; see package quicnet for what the errors mean.
type Net interface {
	Request(ctx context.Context, to meta.DiskID, class quicnet.Class, kind quicnet.Kind, payload []byte) ([]byte, error)
	OpenStream(ctx context.Context, to meta.DiskID, class quicnet.Class, kind quicnet.Kind) (propagate.Stream, error)
	RTT(to meta.DiskID) time.Duration // 0 if it is not known
	// Answer and Handle register before the network is started.
	Answer(kind quicnet.Kind, f func(ctx context.Context, from meta.DiskID, request []byte) ([]byte, error))
	Handle(kind quicnet.Kind, f func(ctx context.Context, from meta.DiskID, s propagate.Stream) error)
}

// Options says what to stand on. All but the last four are required.
type Options struct {
	Disk   meta.DiskID
	Site   meta.SiteID
	Boot   uint64 // number of this start
	Dir    string // for the facts; made if it is not there
	Groups []meta.GroupID
	Blocks *block.Store
	Log    Log
	Net    Net

	HostName     func(meta.DiskID) string // what people call the host with a disk, for messages; nil: the disk. Nothing waits in it
	SealInterval time.Duration            // between two epochs that replicas wait for; default DefaultSealInterval
	Logger       *slog.Logger             // nil discards
	Registerer   prometheus.Registerer
}

// DefaultSealInterval is how long an epoch stays open while replicas wait for it.
const DefaultSealInterval = time.Second
