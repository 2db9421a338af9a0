package quicnet

import (
	"crypto/tls"
	"fmt"
	"slices"
	"time"

	"github.com/quic-go/quic-go"

	"scstore"
	"scstore/propagate/quicnet/authority"
)

// The ALPN protocols.
const (
	protocolPeer = "scstore/1"
	protocolJoin = "scstore-join/1"
)

// serverName is sent instead of a name: peers are known by disk id, which is nobody
// else's business before the handshake is encrypted.
const serverName = "scstore"

// baseTLS is what every handshake here has in common: TLS 1.3, and a full handshake
// each time, so that a certificate is always looked at.
func baseTLS(protocol string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{protocol}, ServerName: serverName, SessionTicketsDisabled: true,
	}
}

// serverTLS accepts peers, who prove who they are, and hosts that ask to join, who
// have nothing to prove it with and get no further than the join.
func (n *Net) serverTLS() *tls.Config {
	config := baseTLS(protocolPeer)
	config.GetCertificate = n.certificate
	config.ClientAuth = tls.RequireAnyClientCert
	config.GetConfigForClient = func(client *tls.ClientHelloInfo) (*tls.Config, error) {
		if slices.Equal(client.SupportedProtos, []string{protocolJoin}) {
			join := baseTLS(protocolJoin)
			join.GetCertificate = n.certificate
			return join, nil
		}
		addr := client.Conn.RemoteAddr()
		peer := baseTLS(protocolPeer)
		peer.GetCertificate = n.certificate
		peer.ClientAuth = tls.RequireAnyClientCert
		peer.VerifyConnection = func(state tls.ConnectionState) error {
			_, err := n.verify(state)
			if err != nil && heard(client.Context()) {
				n.door.refused(addr, refuse(reasonCertificate, err))
			}
			return err
		}
		return peer, nil
	}
	return config
}

// certificate returns this host's certificate of the moment to the TLS library, which
// knows certificates that cannot be had.
func (n *Net) certificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return n.o.Keys.Certificate(), nil
}

// clientTLS dials the host with this disk id and nobody else. Verification is
// VerifyConnection's alone: names and public authorities have no meaning here.
func (n *Net) clientTLS(disk scstore.StoreID) *tls.Config {
	config := baseTLS(protocolPeer)
	config.InsecureSkipVerify = true // VerifyConnection checks more than the name
	config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return n.o.Keys.Certificate(), nil }
	config.VerifyConnection = func(state tls.ConnectionState) error {
		id, err := n.verify(state)
		if err != nil {
			return refuse(reasonCertificate, err)
		}
		if id.Disk != disk {
			return refuse(reasonIdentity, fmt.Errorf("dialed disk %s, but %s with disk %s answers: %w", disk, id.Host, id.Disk, scstore.ErrInvalid))
		}
		return nil
	}
	return config
}

// verify returns who is at the other end of a handshake.
func (n *Net) verify(state tls.ConnectionState) (authority.Identity, error) {
	if len(state.PeerCertificates) == 0 {
		return authority.Identity{}, fmt.Errorf("no certificate: %w", scstore.ErrInvalid)
	}
	return n.o.Keys.Authority().Verify(state.PeerCertificates[0].Raw, time.Now())
}

// quicConfig is the configuration of both ends. Only the end that dialed keeps a
// connection alive.
func (n *Net) quicConfig(dialing bool) *quic.Config {
	c := &quic.Config{
		HandshakeIdleTimeout:           HandshakeTimeout,
		MaxIdleTimeout:                 IdleTimeout,
		InitialStreamReceiveWindow:     initialStreamWindowBytes,
		MaxStreamReceiveWindow:         MaxStreamWindowBytes,
		InitialConnectionReceiveWindow: initialConnWindowBytes,
		MaxConnectionReceiveWindow:     MaxConnWindowBytes,
		AllowConnectionWindowIncrease:  n.windows.allow,
		MaxIncomingStreams:             MaxStreamsPerConn,
		MaxIncomingUniStreams:          -1,
	}
	if dialing {
		c.KeepAlivePeriod = KeepAlive
	}
	return c
}
