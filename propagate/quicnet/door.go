package quicnet

import (
	"context"
	"fmt"
	"net"
	"time"

	"github.com/quic-go/quic-go"

	"scstore"
	"scstore/propagate/quicnet/authority"
)

// reason is why a connection was refused: the label under which it is counted.
type reason string

const (
	reasonCertificate reason = "certificate" // of another authority, expired, or none, at either end
	reasonHandshake   reason = "handshake"   // broken off before either end had proved anything
	reasonCluster     reason = "cluster"     // of another cluster
	reasonIncarnation reason = "incarnation" // from before or after a recovery
	reasonVersion     reason = "version"     // speaks no wire version that is spoken here
	reasonIdentity    reason = "identity"    // claims what its certificate does not say
	reasonSelf        reason = "self"        // a copy of this host
	reasonDenied      reason = "denied"      // removed, or started from an old copy
	reasonMalformed   reason = "malformed"   // bytes that mean nothing
	reasonTimeout     reason = "timeout"     // said too little in time
	reasonLimit       reason = "limit"       // too many at once
	reasonToken       reason = "token"       // a join with a token that is not good
	reasonName        reason = "name"        // a join under the name, or with the disk, of another host
	reasonJoin        reason = "join"        // a join that is not possible here, or asks for the impossible
	reasonKind        reason = "kind"        // a stream that nobody here serves
	reasonCorrupt     reason = "corrupt"     // a stream whose bytes, or those it asks for, fail their checks
)

// reasons lists those of connections, for the counters.
var reasons = []reason{
	reasonCertificate, reasonHandshake, reasonCluster, reasonIncarnation, reasonVersion, reasonIdentity, reasonSelf, reasonDenied,
	reasonMalformed, reasonTimeout, reasonLimit, reasonToken, reasonName, reasonJoin,
}

// streamReasons lists those of streams.
var streamReasons = []reason{reasonKind, reasonMalformed, reasonCorrupt, reasonVersion, reasonTimeout, reasonLimit}

// refusal is an error at the door.
type refusal struct {
	reason reason
	err    error
	host   string // that asks to join, as it calls itself
	stream bool   // of a stream, not of a connection
}

func refuse(r reason, err error) error { return &refusal{reason: r, err: err} }

func refuseStream(r reason, err error) error { return &refusal{reason: r, err: err, stream: true} }

// Error returns the cause's text.
func (r *refusal) Error() string { return r.err.Error() }

// Unwrap returns the cause.
func (r *refusal) Unwrap() error { return r.err }

// hello returns what this host says of itself first.
func (n *Net) hello(slot int) hello {
	id := n.o.Keys.Identity()
	return hello{
		min: n.wireMin, max: n.wireMax, cluster: id.Cluster, incarnation: n.o.Incarnation, disk: id.Disk,
		boot: n.o.Boot, clock: time.Now(), slot: uint8(slot), host: id.Host,
	}
}

// check compares a hello with what the certificate proved and with what this host
// is.
func (n *Net) check(h hello, id authority.Identity, addr net.Addr) (Peer, error) {
	own := n.o.Keys.Identity()
	switch {
	case h.min > n.wireMax:
		return Peer{}, refuse(reasonVersion, fmt.Errorf("%s speaks wire versions %d to %d, %s at most %d: %w", id.Host, h.min, h.max, own.Host, n.wireMax, scstore.ErrVersion))
	case h.max < n.wireMin:
		return Peer{}, refuse(reasonVersion, fmt.Errorf("%s speaks wire versions %d to %d, %s at least %d: %w", id.Host, h.min, h.max, own.Host, n.wireMin, scstore.ErrVersion))
	case h.cluster != own.Cluster:
		return Peer{}, refuse(reasonCluster, fmt.Errorf("%s is of cluster %s, %s of %s: %w", id.Host, h.cluster, own.Host, own.Cluster, scstore.ErrInvalid))
	case h.incarnation != n.o.Incarnation:
		return Peer{}, refuse(reasonIncarnation, fmt.Errorf("%s is of incarnation %d of the cluster, %s of %d: %w",
			id.Host, h.incarnation, own.Host, n.o.Incarnation, scstore.ErrFenced))
	case h.disk != id.Disk || h.host != id.Host:
		return Peer{}, refuse(reasonIdentity, fmt.Errorf("%s with disk %s says that it is %q with disk %s: %w", id.Host, id.Disk, h.host, h.disk, scstore.ErrInvalid))
	case h.disk == own.Disk:
		return Peer{}, refuse(reasonSelf, fmt.Errorf("%s has the disk id of %s: one is a copy of the other: %w", addr, own.Host, scstore.ErrInvalid))
	case int(h.slot) > MaxBulk:
		return Peer{}, refuse(reasonMalformed, fmt.Errorf("slot %d of at most %d: %w", h.slot, MaxBulk, scstore.ErrInvalid))
	}
	p := Peer{Disk: id.Disk, Host: id.Host, Boot: h.boot, Version: min(h.max, n.wireMax), Addr: addr.String()}
	if err := n.o.Allowed(p); err != nil {
		return Peer{}, refuse(reasonDenied, err)
	}
	return p, nil
}

// meet reads the other end's hello from the control stream and checks it.
func (n *Net) meet(s *quic.Stream, conn *quic.Conn) (Peer, hello, error) {
	b, err := ReadFrame(s, maxHelloBytes)
	if err != nil {
		return Peer{}, hello{}, err
	}
	h, err := parseHello(b)
	if err != nil {
		return Peer{}, hello{}, refuse(reasonMalformed, err)
	}
	id, err := n.verify(conn.ConnectionState().TLS)
	if err != nil {
		return Peer{}, hello{}, refuse(reasonCertificate, err)
	}
	p, err := n.check(h, id, conn.RemoteAddr())
	if err != nil {
		return Peer{}, hello{}, err
	}
	skew := time.Until(h.clock.Add(conn.ConnectionStats().SmoothedRTT / 2))
	n.metrics.skewed(p, skew)
	n.o.Skew(p, skew)
	return p, h, nil
}

// greet introduces this host on a connection that it dialed.
func (n *Net) greet(ctx context.Context, conn *quic.Conn, slot int) (Peer, error) {
	s, err := conn.OpenStreamSync(ctx)
	if err != nil {
		return Peer{}, translate(err)
	}
	defer s.CancelRead(0)
	if err := s.SetDeadline(time.Now().Add(HelloTimeout)); err != nil {
		return Peer{}, translate(err)
	}
	if _, err := s.Write(n.hello(slot).encode()); err != nil {
		return Peer{}, translate(err)
	}
	_ = s.Close() // a peer that was quick may have closed it
	p, h, err := n.meet(s, conn)
	if err != nil {
		return Peer{}, translate(err)
	}
	if int(h.slot) != slot {
		return Peer{}, refuse(reasonMalformed, fmt.Errorf("%s answers for slot %d, dialed was %d: %w", p.Host, h.slot, slot, scstore.ErrInvalid))
	}
	return p, nil
}

// welcome answers on a connection that a peer dialed.
func (n *Net) welcome(ctx context.Context, conn *quic.Conn) (Peer, int, error) {
	ctx, cancel := context.WithTimeout(ctx, HelloTimeout)
	defer cancel()
	s, err := conn.AcceptStream(ctx)
	if err != nil {
		return Peer{}, 0, notInTime(translate(err), "no hello")
	}
	defer s.CancelRead(0)
	if err := s.SetDeadline(time.Now().Add(HelloTimeout)); err != nil {
		return Peer{}, 0, translate(err)
	}
	p, h, err := n.meet(s, conn)
	if err != nil {
		return Peer{}, 0, notInTime(translate(err), "half a hello")
	}
	if _, err := s.Write(n.hello(int(h.slot)).encode()); err != nil {
		return Peer{}, 0, translate(err)
	}
	_ = s.Close() // the peer, that has what it waits for, may have closed it
	return p, int(h.slot), nil
}

// notInTime names what did not come in time.
func notInTime(err error, what string) error {
	if timedOut(err) {
		return refuse(reasonTimeout, fmt.Errorf("%s within %v: %w", what, HelloTimeout, scstore.ErrUnreachable))
	}
	return err
}

// turnAway closes a connection for a reason that the other end is told.
func turnAway(conn *quic.Conn, err error) {
	_ = conn.CloseWithError(quic.ApplicationErrorCode(codeOf(err)), reasonText(err)) // the connection is given up
}
