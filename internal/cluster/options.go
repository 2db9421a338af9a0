package cluster

import (
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"scstore"
	"scstore/consensus"
	"scstore/consensus/meta"
	"scstore/propagate/quicnet"
	"scstore/propagate/quicnet/authority"
)

// Limits and times.
const (
	VolumeGroups     = 4       // of a cluster, numbered from meta.FirstVolumes
	MaxVoters        = 7       // of a group
	DefaultListen    = ":7400" // UDP, between hosts
	DefaultTokenTime = time.Hour
	MaxTokenTime     = 30 * 24 * time.Hour

	managePeriod = time.Second            // between two looks at what is to be done
	settlePeriod = 10 * time.Second       // between two looks at a group's members though nothing changed
	tendPeriod   = 5 * time.Second        // between two looks at leaders and deadlines
	retryPause   = 100 * time.Millisecond // before a command is proposed again
	proposeTry   = 5 * time.Second        // for an answer, before that
	actTimeout   = 10 * time.Second       // of one act of a manager
	helloTimeout = 3 * time.Second        // of a question that is no more than that
	joinPatience = 5 * time.Second        // for a leader, before a host that asks to join is sent elsewhere
	readPatience = 30 * time.Second       // for a leader, when a person asks
	removeTime   = 3 * time.Minute        // of a removal
)

// The kinds of requests.
const (
	KindLead  quicnet.Kind = 8 // asks a voter to have a disk lead a group
	KindHello quicnet.Kind = 9 // asks for nothing: whether one may ask
)

// The names in a store's folder.
const (
	placeName = "cluster.json"
	keysName  = "keys"
	raftName  = "raft"
)

// Options says which host to open.
type Options struct {
	Dir    string          // the store's folder
	Disk   scstore.StoreID // the store's id
	Site   meta.SiteID     // required for a new cluster; else what cluster.json or the token says, or the same
	Host   string          // name; default what cluster.json says, or the machine's
	Listen string          // UDP host:port between hosts; default what cluster.json says, or DefaultListen
	Join   string          // a token's text; empty: begin a new cluster, or go on with the one in Dir
	Conn   net.PacketConn  // what to send and receive on, closed by Close, or by an Open that fails; nil: a socket on Listen

	Logger     *slog.Logger // nil discards
	Registerer prometheus.Registerer

	tune func(*consensus.ClusterOptions) // by tests
}

func (o Options) withDefaults() (Options, error) {
	dir, err := filepath.Abs(o.Dir)
	if err != nil || o.Dir == "" {
		return o, fmt.Errorf("folder %q: %w", o.Dir, scstore.ErrInvalid)
	}
	o.Dir = dir
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.tune == nil {
		o.tune = func(*consensus.ClusterOptions) {}
	}
	return o, nil
}

// validate checks what does not depend on the folder. Errors: ErrInvalid.
func (o Options) validate() error {
	if o.Disk == (scstore.StoreID{}) {
		return fmt.Errorf("disk id is zero: %w", scstore.ErrInvalid)
	}
	if o.Site != "" {
		if err := checkSite(o.Site); err != nil {
			return err
		}
	}
	if o.Host != "" {
		id := authority.Identity{Cluster: authority.ClusterID{1}, Disk: o.Disk, Host: o.Host}
		if err := id.Validate(); err != nil {
			return err
		}
	}
	if o.Listen != "" {
		if _, port, err := net.SplitHostPort(o.Listen); err != nil || port == "" {
			return scstore.Hint(fmt.Errorf("listen on %q: want host:port: %w", o.Listen, scstore.ErrInvalid), "say, for example, --listen %s", DefaultListen)
		}
	}
	return nil
}

// checkSite checks a site's name. Errors: ErrInvalid.
func checkSite(site meta.SiteID) error {
	if err := (meta.Command{Op: meta.RemoveSite{Name: site}}).Validate(); err != nil {
		return scstore.Hint(err, "name a site in one word, such as fra1")
	}
	return nil
}

// machineName is the machine's name as far as it can be a host's.
func machineName() string {
	name, err := os.Hostname()
	if err != nil {
		return "host"
	}
	name, _, _ = strings.Cut(name, ".")
	name = strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_' {
			return r
		}
		return -1
	}, name)
	name = strings.TrimLeft(name, "-_")
	if name == "" {
		return "host"
	}
	return name[:min(len(name), authority.MaxHostBytes)]
}

// groupIDs returns all groups, rising.
func groupIDs() []meta.GroupID {
	return append([]meta.GroupID{meta.GroupNamespace}, VolumeGroupIDs()...)
}

// VolumeGroupIDs returns the volume groups, rising.
func VolumeGroupIDs() []meta.GroupID {
	var list []meta.GroupID
	for n := range meta.GroupID(VolumeGroups) {
		list = append(list, meta.FirstVolumes+n)
	}
	return list
}
