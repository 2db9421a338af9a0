package quicnet

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"time"

	"github.com/quic-go/quic-go"

	"scstore"
	"scstore/propagate/quicnet/authority"
)

// joinLinger is how long an answer may take to arrive.
const joinLinger = 5 * time.Second

// serveJoin answers a host that asks to join.
func (n *Net) serveJoin(conn *quic.Conn) {
	select {
	case n.joins <- struct{}{}:
		defer func() { <-n.joins }()
	default:
		n.turnAway(conn, refuse(reasonLimit, fmt.Errorf("%d hosts are joining: %w", MaxJoins, scstore.ErrBusy)))
		return
	}
	ctx, cancel := context.WithTimeout(n.ctx, JoinTimeout)
	defer cancel()
	s, err := conn.AcceptStream(ctx)
	if err == nil {
		err = s.SetDeadline(time.Now().Add(JoinTimeout))
	}
	if err != nil {
		n.turnAway(conn, notInTime(translate(err), "no join request"))
		return
	}
	answer, err := n.join(ctx, s, conn.RemoteAddr())
	if err != nil {
		n.door.refused(conn.RemoteAddr(), err)
	}
	if _, err := s.Write(encodeReply(answer, err)); err != nil {
		n.log.Debug("join answer not sent", "peer", conn.RemoteAddr().String(), "err", translate(err))
	}
	_ = s.Close() // a joiner that is gone asks again
	linger := time.NewTimer(joinLinger)
	defer linger.Stop()
	select { // the joiner closes the connection once it has the answer
	case <-conn.Context().Done():
	case <-linger.C:
	case <-ctx.Done():
	}
	_ = conn.CloseWithError(quic.ApplicationErrorCode(codeNone), "done") // given up
}

// join decides about one request.
func (n *Net) join(ctx context.Context, s *quic.Stream, addr net.Addr) ([]byte, error) {
	b, err := ReadFrame(s, maxJoinRequestBytes)
	if err != nil {
		return nil, translate(err)
	}
	r, err := parseJoinRequest(b)
	if errors.Is(err, scstore.ErrVersion) {
		return nil, refuse(reasonVersion, err)
	}
	if err != nil {
		return nil, refuse(reasonMalformed, err)
	}
	own := n.o.Keys.Identity()
	id := authority.Identity{Cluster: own.Cluster, Disk: r.disk, Host: r.host}
	if err := id.Validate(); err != nil {
		return nil, refuse(reasonJoin, err)
	}
	key, err := authority.RequestID(r.request)
	if err != nil {
		return nil, refuse(reasonJoin, err)
	}
	if n.o.Joiner == nil || !n.o.Keys.Authority().HoldsKey() {
		return nil, refuse(reasonJoin, fmt.Errorf("%s cannot let hosts join: %w", own.Host, scstore.ErrBusy))
	}
	if id.Disk == own.Disk {
		return nil, refuse(reasonSelf, fmt.Errorf("disk id %s is %s's own: one is a copy of the other: %w", id.Disk, own.Host, scstore.ErrExists))
	}
	request := JoinRequest{
		Token: authority.SecretID(r.secret), Key: key, Disk: r.disk, Host: r.host, Payload: r.payload, Addr: addr.String(),
	}
	reply, err := n.o.Joiner.Join(ctx, request)
	if err != nil {
		return nil, &refusal{reason: joinReason(err), err: err, host: r.host}
	}
	if len(reply.Membership) > MaxMembershipBytes {
		return nil, fmt.Errorf("membership of %d bytes, more than %d: %w", len(reply.Membership), MaxMembershipBytes, scstore.ErrInvalid)
	}
	a := n.o.Keys.Authority()
	der, err := a.Issue(r.request, id, time.Now(), n.o.Lifetime)
	if err != nil {
		return nil, fmt.Errorf("admit %s: %w", r.host, err)
	}
	n.log.Info("host admitted", "peer", r.host, "disk", r.disk.String(), "addr", addr.String(), "token", fmt.Sprintf("%.8s", request.Token))
	answer := joinAnswer{incarnation: n.o.Incarnation, certificate: der, authority: a.Certificate(), membership: reply.Membership}
	return answer.encode(), nil
}

// joinReason returns the reason for which a Joiner refuses.
func joinReason(err error) reason {
	switch {
	case errors.Is(err, scstore.ErrExists):
		return reasonName
	case errors.Is(err, scstore.ErrFenced):
		return reasonDenied
	case errors.Is(err, scstore.ErrVersion):
		return reasonVersion
	case errors.Is(err, scstore.ErrInvalid):
		return reasonToken
	}
	return reasonJoin
}

// JoinOptions says who joins what.
type JoinOptions struct {
	Token   authority.Token
	Dir     string // folder for the keys
	Disk    scstore.StoreID
	Host    string
	Payload []byte         // what the cluster is told: site, addresses; at most MaxJoinPayloadBytes
	Conn    net.PacketConn // what to send on; nil: any UDP port. It stays open
	// Keep, if not nil, is called with what the cluster answered before the keys are put
	// in place: what it keeps durably is there whenever they are. Its error ends the join.
	Keep   func(incarnation uint64, membership []byte) error
	Logger *slog.Logger // nil discards
}

// Joined is a host that was let in.
type Joined struct {
	Keys        *authority.Keys
	Incarnation uint64
	Membership  []byte // JoinReply's
}

// Join asks the hosts that the token names, one after another, to be let in. Before
// the secret leaves this host, the other end has proved that it is of the cluster
// whose authority's fingerprint is in the token. A join that was interrupted can be
// repeated with the same token on the same folder and disk.
//
// Durability: the keys are on stable storage when Join returns. Errors: ErrInvalid
// for a token that was used or has expired, or a cluster that is not the token's;
// ErrExists if the folder is of a host already, or the name is taken; ErrUnreachable.
func Join(ctx context.Context, o JoinOptions) (Joined, error) {
	id := authority.Identity{Cluster: o.Token.Cluster, Disk: o.Disk, Host: o.Host}
	if err := id.Validate(); err != nil {
		return Joined{}, fmt.Errorf("join: %w", err)
	}
	if len(o.Payload) > MaxJoinPayloadBytes {
		return Joined{}, fmt.Errorf("join with %d bytes, more than %d: %w", len(o.Payload), MaxJoinPayloadBytes, scstore.ErrInvalid)
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if now := time.Now(); now.After(o.Token.Expires) {
		o.Logger.Warn("token has expired by this host's clock", "expires", o.Token.Expires, "now", now)
	}
	admission, err := authority.NewAdmission(o.Dir, time.Now())
	if err != nil {
		return Joined{}, fmt.Errorf("join: %w", err)
	}
	conn := o.Conn
	if conn == nil {
		if conn, err = new(net.ListenConfig).ListenPacket(ctx, "udp", ":0"); err != nil {
			return Joined{}, fmt.Errorf("join: open a UDP port: %w", err)
		}
		defer conn.Close()
	}
	transport := &quic.Transport{Conn: conn}
	defer transport.Close()
	request := joinRequest{secret: o.Token.Secret, disk: o.Disk, clock: time.Now(), host: o.Host, request: admission.Request(), payload: o.Payload}
	var failed []error
	for _, address := range o.Token.Addresses {
		joined, err := joinThrough(ctx, transport, address, o, request, admission)
		if err == nil {
			return joined, nil
		}
		err = fmt.Errorf("join through %s: %w", address, err)
		if final(err) {
			return Joined{}, err
		}
		o.Logger.Info("join: next address", "err", err)
		failed = append(failed, err)
	}
	return Joined{}, all(failed)
}

// final reports whether another host would answer the same.
func final(err error) bool {
	var remote *RemoteError
	return errors.As(err, &remote) && !slices.ContainsFunc([]error{scstore.ErrBusy, scstore.ErrUnreachable, scstore.ErrIndeterminate, scstore.ErrClosed},
		func(transient error) bool { return errors.Is(err, transient) })
}

// joinThrough asks one host.
func joinThrough(ctx context.Context, t *quic.Transport, address string, o JoinOptions, r joinRequest, admission *authority.Admission) (Joined, error) {
	token := o.Token
	ctx, cancel := context.WithTimeout(ctx, HandshakeTimeout+JoinTimeout)
	defer cancel()
	addr, err := resolveUDP(ctx, address)
	if err != nil {
		return Joined{}, err
	}
	config := baseTLS(protocolJoin)
	config.InsecureSkipVerify = true // VerifyConnection pins the authority
	config.VerifyConnection = func(state tls.ConnectionState) error {
		_, err := pinned(token, state.PeerCertificates)
		return err
	}
	conn, err := t.Dial(ctx, addr, config, &quic.Config{
		HandshakeIdleTimeout: HandshakeTimeout, MaxIdleTimeout: IdleTimeout, KeepAlivePeriod: KeepAlive, MaxIncomingStreams: -1, MaxIncomingUniStreams: -1,
	})
	if err != nil {
		return Joined{}, notSent(translate(err))
	}
	defer func() { _ = conn.CloseWithError(quic.ApplicationErrorCode(codeNone), "done") }() // done with it
	from, err := pinned(token, conn.ConnectionState().TLS.PeerCertificates)
	if err != nil {
		return Joined{}, err
	}
	b, err := askToJoin(ctx, conn, r)
	if err != nil {
		return Joined{}, notSent(translate(err))
	}
	body, remote, err := parseReply(b)
	if err = errors.Join(err, remote); err != nil {
		return Joined{}, err
	}
	answer, err := parseJoinAnswer(body)
	if err != nil {
		return Joined{}, err
	}
	membership := slices.Clone(answer.membership)
	if o.Keep != nil {
		if err := o.Keep(answer.incarnation, membership); err != nil {
			return Joined{}, err
		}
	}
	keys, err := admission.Install(from, authority.Identity{Cluster: token.Cluster, Disk: r.disk, Host: r.host}, answer.certificate, time.Now())
	if err != nil {
		return Joined{}, err
	}
	return Joined{Keys: keys, Incarnation: answer.incarnation, Membership: membership}, nil
}

// askToJoin sends the request and returns the reply's frame.
func askToJoin(ctx context.Context, conn *quic.Conn, r joinRequest) ([]byte, error) {
	s, err := conn.OpenStreamSync(ctx)
	if err != nil {
		return nil, err
	}
	defer s.CancelRead(0)
	defer context.AfterFunc(ctx, func() { cancelStream(s, scstore.ErrClosed) })()
	if _, err := s.Write(r.encode()); err != nil {
		return nil, err
	}
	_ = s.Close() // a host that was quick may have closed it
	return ReadFrame(s, MaxFrameBytes)
}

// pinned returns the authority that the token names, if the other end showed its
// certificate and one of its own that it signed.
func pinned(token authority.Token, chain []*x509.Certificate) (*authority.Authority, error) {
	for _, cert := range chain {
		if sha256.Sum256(cert.Raw) != token.Authority {
			continue
		}
		a, err := authority.Parse(cert.Raw)
		if err != nil {
			return nil, err
		}
		if a.Cluster() != token.Cluster {
			return nil, fmt.Errorf("authority of cluster %s, the token is of %s: %w", a.Cluster(), token.Cluster, scstore.ErrInvalid)
		}
		_, err = a.Verify(chain[0].Raw, time.Now())
		return a, err
	}
	return nil, scstore.Hint(fmt.Errorf("who answers does not show the authority that the token names: %w", scstore.ErrInvalid),
		"make a token at a host of the cluster that is to be joined, and check the address in it")
}
