package quicnet

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/quic-go/quic-go"
)

// knock is a connection that somebody begins to make. One that ends in the handshake
// never reaches accept, so it is counted when its context ends.
type knock struct{ stop func() bool }

type knockKey struct{}

// knocked is called by the QUIC library for the first packet of a connection.
func (n *Net) knocked(ctx context.Context, client *quic.ClientInfo) (context.Context, error) {
	k := new(knock)
	ctx = context.WithValue(ctx, knockKey{}, k)
	k.stop = context.AfterFunc(ctx, func() { n.brokenOff(client.RemoteAddr, context.Cause(ctx)) })
	return ctx, nil
}

// heard reports whether the connection with this context is still to be counted if it
// is refused: false if it ended before. From now on it is not counted when it ends.
func heard(ctx context.Context) bool {
	k, ok := ctx.Value(knockKey{}).(*knock)
	return !ok || k.stop()
}

// brokenOff records a connection that ended in the handshake.
func (n *Net) brokenOff(addr net.Addr, cause error) {
	if n.ctx.Err() != nil {
		return
	}
	r := reasonHandshake
	var transport *quic.TransportError
	switch {
	case timedOut(cause):
		r = reasonTimeout
	case errors.As(cause, &transport) && transport.Remote && aboutCertificate(transport.ErrorCode):
		r = reasonCertificate // it does not accept this host's
	}
	n.door.refused(addr, refuse(r, fmt.Errorf("no handshake: %w", translate(cause))))
}

// The alerts of TLS (RFC 8446, section 6) that are about a certificate, as QUIC has
// them (RFC 9001, section 4.8).
const (
	alertBadCertificate quic.TransportErrorCode = 0x100 + 42
	alertUnknownCA      quic.TransportErrorCode = 0x100 + 48
)

// aboutCertificate reports whether a handshake ended because of a certificate:
// revoked, expired and unknown ones are between the two.
func aboutCertificate(c quic.TransportErrorCode) bool {
	return c >= alertBadCertificate && c <= alertUnknownCA
}
