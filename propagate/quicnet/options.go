package quicnet

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"scstore"
	"scstore/propagate/quicnet/authority"
)

// Limits and times. Each limit is of one host.
const (
	DefaultBulk       = 8   // connections of a pool: one alone starves on a long path with loss
	MaxBulk           = 32  // connections of a pool at most: a lossy path gets more than the default
	MaxPeers          = 256 // hosts that are talked to
	MaxHandshakes     = 64  // connections that have not yet said who they are
	MaxJoins          = 8   // hosts that ask to join at once
	MaxStreamsPerConn = 256 // streams that a peer may have open on one connection
	MaxStreamsPerPeer = 512 // streams that a peer may have open on all of its connections

	// MaxRequestBytesPerPeer bounds the requests of one peer that are held in memory.
	MaxRequestBytesPerPeer = 64 << 20
	// MaxStreamWindowBytes lets one stream fill 1 Gbit/s at 300 ms.
	MaxStreamWindowBytes = 40 << 20
	// MaxConnWindowBytes lets a stream stall without stopping the others.
	MaxConnWindowBytes = 64 << 20
	// MaxWindowBytes bounds what all peers together may have under way to this host
	// beyond the first windows of their connections.
	MaxWindowBytes = 512 << 20

	initialStreamWindowBytes = 2 << 20
	initialConnWindowBytes   = 4 << 20

	HandshakeTimeout = 5 * time.Second  // of the TLS handshake with one address
	HelloTimeout     = 10 * time.Second // from the handshake to the end of the hello
	HeaderTimeout    = 10 * time.Second // from a stream's first byte to the end of its header
	PayloadTimeout   = 2 * time.Minute  // for the payload of a request to arrive
	JoinTimeout      = 30 * time.Second // from the handshake to the answer to a join
	KeepAlive        = 5 * time.Second  // between signs of life on a quiet connection
	IdleTimeout      = 20 * time.Second // without any sign of life a connection is gone
	BulkIdle         = time.Minute      // a connection of the pool without streams is closed
	CloseTimeout     = 10 * time.Second // within which Close returns
	minBackoff       = 100 * time.Millisecond
	maxBackoff       = 5 * time.Second
	sweepPeriod      = 5 * time.Second // between two looks for idle connections
)

// Peer is a host at the other end of a connection, as its certificate and its hello
// proved it.
type Peer struct {
	Disk    scstore.StoreID
	Host    string
	Boot    uint64 // number of the peer's start, by which a copy of an old one is told
	Version uint16 // wire version that both speak
	Addr    string // where it is now
}

// JoinRequest is what a new host asks with. The token was not looked up yet.
type JoinRequest struct {
	Token   authority.TokenID
	Key     [32]byte // digest of the host's key: the same when a lost answer is asked for again
	Disk    scstore.StoreID
	Host    string
	Payload []byte // what the host says to the cluster: its site, its addresses
	Addr    string // where it asks from
}

// JoinReply lets a new host in.
type JoinReply struct {
	Membership []byte // what the host needs to know, at most MaxMembershipBytes
}

// Joiner decides about hosts that ask to join. It is called by many goroutines.
type Joiner interface {
	// Join marks the token as used by this key and disk, and the host as a member, in
	// one step that all hosts agree on. The same key and disk may ask again. Errors:
	// ErrInvalid for a token that is unknown, expired or used by another; ErrExists
	// for a name or disk that is taken; ErrFenced for a disk that was removed; ErrBusy
	// to have the host try elsewhere.
	Join(ctx context.Context, request JoinRequest) (JoinReply, error)
}

// Options says what to open.
type Options struct {
	Keys        *authority.Keys
	Conn        net.PacketConn // what to send and receive on; nil: a UDP socket on Listen
	Listen      string         // host:port
	Incarnation uint64         // of the cluster; raised by a recovery from a lost majority
	Boot        uint64         // number of this start

	// Resolve returns where a host is, as host:port, the likeliest first. Errors:
	// ErrNotFound for a host that is none.
	Resolve func(ctx context.Context, disk scstore.StoreID) ([]string, error)
	// Allowed says whether a host may talk to this one; nil: every host of the cluster
	// may. Its error is told to the peer.
	Allowed func(Peer) error
	// Joiner lets hosts join; nil: nobody joins through this host.
	Joiner Joiner
	// MayHoldKey says whether a host may have the authority's key; nil: none may.
	MayHoldKey func(Peer) bool
	// KeyHolders returns hosts that can renew a certificate; nil: none.
	KeyHolders func() []scstore.StoreID
	// Skew is told how far ahead of this one a peer's clock is; nil: nobody is.
	Skew func(Peer, time.Duration)

	Bulk           int           // connections of the pool of each peer; 0 means DefaultBulk
	BandwidthBytes int64         // cap of the bulk classes to each peer, bytes per second; 0 means none
	Lifetime       time.Duration // of certificates issued here; 0 means authority.DefaultLifetime
	Logger         *slog.Logger  // nil discards
	Registerer     prometheus.Registerer
}

func (o Options) withDefaults() Options {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Bulk == 0 {
		o.Bulk = DefaultBulk
	}
	if o.Lifetime == 0 {
		o.Lifetime = authority.DefaultLifetime
	}
	if o.Allowed == nil {
		o.Allowed = func(Peer) error { return nil }
	}
	if o.MayHoldKey == nil {
		o.MayHoldKey = func(Peer) bool { return false }
	}
	if o.KeyHolders == nil {
		o.KeyHolders = func() []scstore.StoreID { return nil }
	}
	if o.Skew == nil {
		o.Skew = func(Peer, time.Duration) {}
	}
	return o
}

// Validate checks the options. Errors: ErrInvalid.
func (o Options) Validate() error {
	switch {
	case o.Keys == nil:
		return fmt.Errorf("no keys: %w", scstore.ErrInvalid)
	case o.Resolve == nil:
		return fmt.Errorf("no way to find peers: %w", scstore.ErrInvalid)
	case o.Conn == nil && o.Listen == "":
		return fmt.Errorf("no address to listen on: %w", scstore.ErrInvalid)
	case o.Bulk < 1 || o.Bulk > MaxBulk:
		return fmt.Errorf("%d connections to a peer, want 1 to %d: %w", o.Bulk, MaxBulk, scstore.ErrInvalid)
	case o.BandwidthBytes < 0 || o.BandwidthBytes > 0 && o.BandwidthBytes < minBandwidthBytes:
		return fmt.Errorf("bandwidth of %d bytes a second, want 0 or at least %d: %w", o.BandwidthBytes, minBandwidthBytes, scstore.ErrInvalid)
	case o.Lifetime < authority.MinLifetime || o.Lifetime > authority.MaxLifetime:
		return fmt.Errorf("lifetime of certificates %v, want %v to %v: %w", o.Lifetime, authority.MinLifetime, authority.MaxLifetime, scstore.ErrInvalid)
	}
	return nil
}
