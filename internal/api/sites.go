package api

import (
	"context"
	"time"

	"scstore"
)

// Sites is the cluster: what a host of several sites can be asked. A host without a
// cluster answers ErrInvalid, with a hint.
type Sites interface {
	// Cluster describes sites, hosts and groups as this host sees them.
	Cluster(ctx context.Context) (Cluster, error)
	// NewToken makes a token with which one host can join a site, which is made if it is
	// new. Errors: ErrInvalid, ErrNoMajority.
	NewToken(ctx context.Context, req NewToken) (Token, error)
	// RemoveHost takes a host out of the cluster for good. Errors: ErrNotFound; ErrBusy if
	// something exists only there, unless Force.
	RemoveHost(ctx context.Context, name string, o RemoveOptions) (HostRemoval, error)
	// SetPlacement says which sites hold a volume, and how. Errors: ErrNotFound (volume,
	// site), ErrInvalid.
	SetPlacement(ctx context.Context, name string, p Placement) (Placement, error)
	// Placement returns the policy, and how far each site is.
	Placement(ctx context.Context, name string) (Placement, error)
	// Move hands a volume to a host, exactly: the new owner sees the last acknowledged
	// write. progress, in bytes, while data are waited for. Errors: ErrNotFound, ErrBusy,
	// ErrUnreachable, ErrIndeterminate (in doubt; it is decided by itself).
	Move(ctx context.Context, name string, req Move, progress func(done, total int64)) (MoveReport, error)
	// Promote gives a volume to another host without its owner. Errors: ErrBusy if the
	// owner answers (move it), ErrNotFound, ErrNoMajority.
	Promote(ctx context.Context, name string, req Promote) (PromoteReport, error)
}

// Cluster is the cluster in the eyes of one host.
type Cluster struct {
	ID       string  `json:"id"`
	Site     string  `json:"site"` // of the host that was asked
	Host     string  `json:"host"`
	Disk     string  `json:"disk"`
	Listen   string  `json:"listen"`   // UDP, between hosts
	Problem  string  `json:"problem"`  // what is wrong, in a sentence; empty if nothing is
	Sites    []Site  `json:"sites"`    // by name
	Hosts    []Peer  `json:"hosts"`    // by name
	Groups   []Group `json:"groups"`   // by number
	Majority bool    `json:"majority"` // of every group, as this host sees it
}

// Site is a failure domain.
type Site struct {
	Name    string   `json:"name"`
	Hosts   []string `json:"hosts"`
	Voter   string   `json:"voter,omitempty"` // the host that votes for it
	Volumes int      `json:"volumes"`         // written there
}

// Peer is a host of the cluster.
type Peer struct {
	Name      string   `json:"name"`
	Site      string   `json:"site"`
	Disk      string   `json:"disk"`
	State     string   `json:"state"` // joining, active, removed
	Addresses []string `json:"addresses"`
	Here      bool     `json:"here"`      // it is the host that was asked
	Reachable bool     `json:"reachable"` // a connection is open
	RTTMs     float64  `json:"rtt_ms,omitempty"`
	SkewMs    float64  `json:"skew_ms,omitempty"` // how far its clock is ahead
	SentBytes uint64   `json:"sent_bytes"`        // to it, packets with their overhead
	Received  uint64   `json:"received_bytes"`
	LastError string   `json:"last_error,omitempty"`
	Volumes   int      `json:"volumes"` // written there
}

// Group is a group of the log.
type Group struct {
	Number    uint64   `json:"number"`
	Leader    string   `json:"leader,omitempty"` // host; empty if none is known
	Preferred string   `json:"preferred,omitempty"`
	Voters    []string `json:"voters"`
	Applied   uint64   `json:"applied"`
}

// NewToken asks for a token.
type NewToken struct {
	Site  string        `json:"site"`
	Valid time.Duration `json:"valid_ns"` // default an hour
}

// Token lets one host join.
type Token struct {
	Text      string    `json:"token"`
	Site      string    `json:"site"`
	ExpiresAt time.Time `json:"expires_at"`
}

// HostRemoval says what a removal ended, or would end.
type HostRemoval struct {
	Host    string   `json:"host"`
	DryRun  bool     `json:"dry_run"`
	Only    []string `json:"only_there"` // volumes whose newest bytes no other host has
	Records int      `json:"volumes"`    // that it held a copy of
}

// Placement is a volume's policy.
type Placement struct {
	Volume   string     `json:"volume"`
	Sites    []string   `json:"sites"`    // that hold a copy
	Mode     string     `json:"mode"`     // async, lazy
	Failover string     `json:"failover"` // manual
	Copies   []CopyInfo `json:"copies,omitempty"`
}

// CopyInfo is what one host has of a volume.
type CopyInfo struct {
	Host     string           `json:"host"`
	Site     string           `json:"site"`
	Position scstore.Position `json:"position"` // complete there
	Current  bool             `json:"current"`  // that is the newest committed one
	Owner    bool             `json:"owner"`
}

// Where says what a volume's bytes hang on.
type Where struct {
	Owner     string           `json:"owner"` // host that writes; empty for none
	Site      string           `json:"site"`
	Here      string           `json:"here"` // owner, replica, partial, none: the host that was asked
	Phase     string           `json:"phase"`
	Fence     scstore.Fence    `json:"fence"`
	Head      scstore.Position `json:"head"` // the newest committed
	Copies    []CopyInfo       `json:"copies"`
	OnlyBytes int64            `json:"only_bytes"`        // at the owner alone, flushed or not
	OnlyForMs int64            `json:"only_for_ms"`       // 0 if no other site is to have them
	Unknown   string           `json:"unknown,omitempty"` // why what the owner alone has is not known, or all of this may be old
	Tether    *Tether          `json:"tether,omitempty"`
	Branches  []string         `json:"branches,omitempty"` // NAME@diverged-FENCE
	// CanSwitchOff says for each site with a copy whether it can be switched off now
	// without losing anything, and if not, why.
	CanSwitchOff []SwitchOff `json:"can_switch_off,omitempty"`
}

// SwitchOff answers for one site.
type SwitchOff struct {
	Site   string `json:"site"`
	OK     bool   `json:"ok"`
	Reason string `json:"reason,omitempty"`
}

// Tether is what a new owner still lacks.
type Tether struct {
	Source       string `json:"source"` // host that has it
	MissingBytes int64  `json:"missing_bytes"`
	EtaMs        int64  `json:"eta_ms,omitempty"` // 0: not known
}

// Move asks for a planned hand-off.
type Move struct {
	To           string `json:"to"`            // SITE or SITE/HOST
	WaitComplete bool   `json:"wait_complete"` // move the data first
}

// MoveReport says how a hand-off went.
type MoveReport struct {
	Volume       string           `json:"volume"`
	From         string           `json:"from"`
	To           string           `json:"to"`
	Position     scstore.Position `json:"position"` // the last one of the old owner
	Fence        scstore.Fence    `json:"fence"`    // of the new one
	PauseMs      float64          `json:"pause_ms"` // last acknowledgement to the entry's apply, at the source
	RTTMs        float64          `json:"rtt_ms"`
	TotalMs      float64          `json:"total_ms"`
	MissingBytes int64            `json:"missing_bytes"` // not yet at the new owner
	OnlyAt       string           `json:"only_at,omitempty"`
}

// Promote asks for a forced promote.
type Promote struct {
	To     string `json:"to"` // SITE or SITE/HOST
	DryRun bool   `json:"dry_run"`
}

// PromoteReport says what a forced promote did, or would do.
type PromoteReport struct {
	Volume    string           `json:"volume"`
	DryRun    bool             `json:"dry_run"`
	Owner     string           `json:"owner"` // that lost it
	To        string           `json:"to"`
	Position  scstore.Position `json:"position"` // where the history goes on
	Head      scstore.Position `json:"head"`     // the newest committed before
	Fence     scstore.Fence    `json:"fence"`
	Epochs    uint64           `json:"lost_epochs"`  // committed, and at no host that answers
	Bytes     *int64           `json:"lost_bytes"`   // of them; null where no host that answers knows
	Extents   *uint64          `json:"lost_extents"` // the same
	Seconds   *float64         `json:"lost_seconds"` // between the newest commit that is kept and the newest one
	Unknown   string           `json:"unknown"`      // what nobody here can know: the owner's open epoch
	Reachable []string         `json:"reachable"`    // hosts that answered
	Silent    []string         `json:"silent"`       // hosts that did not
}
