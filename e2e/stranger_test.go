package e2e_test

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/quic-go/quic-go"

	"scstore/e2e"
	"scstore/propagate/quicnet"
	"scstore/propagate/quicnet/authority"
)

const (
	// peerProtocol is the protocol between hosts, as TLS names it.
	peerProtocol = "scstore/1"
	// bulkSlot is the place in the pool of the connections that a stranger makes.
	bulkSlot = 8
)

// stranger is what is at the other end of a connection with a host: it has the keys
// of a host's folder, looks at nobody's certificate, and says what a test has it say.
// Its formats are those of package quicnet, written anew.
type stranger struct {
	transport   *quic.Transport
	keys        *authority.Keys
	incarnation uint64
	boot        uint64
}

// newStranger takes the keys in a folder, whose host does not run, to a UDP port of a
// site; 0 is any.
func newStranger(t testing.TB, s *e2e.Sites, site string, port uint16, folder string) *stranger {
	t.Helper()
	keys, err := authority.Load(filepath.Join(folder, "keys"))
	check(t, err)
	text, err := os.ReadFile(filepath.Join(folder, "cluster.json"))
	check(t, err)
	var place struct {
		Incarnation uint64
		Boot        struct{ N uint64 }
	}
	check(t, json.Unmarshal(text, &place))
	conn, err := s.ListenPacket(t.Context(), site, port)
	check(t, err)
	x := &stranger{transport: &quic.Transport{Conn: conn}, keys: keys, incarnation: place.Incarnation, boot: place.Boot.N}
	t.Cleanup(func() { check(t, errors.Join(x.transport.Close(), conn.Close())) })
	return x
}

// tls is the configuration of either end.
func (x *stranger) tls() *tls.Config {
	return &tls.Config{
		Certificates: []tls.Certificate{*x.keys.Certificate()}, NextProtos: []string{peerProtocol}, MinVersion: tls.VersionTLS13,
		InsecureSkipVerify: true, ClientAuth: tls.RequireAnyClientCert, // tests look at what the other end does
	}
}

// claim is what a host says of itself first.
type claim struct {
	authority.Identity
	version uint16
	slot    uint8
}

// honest is what the stranger's keys say.
func (x *stranger) honest() claim {
	return claim{Identity: x.keys.Identity(), version: quicnet.WireMax, slot: bulkSlot}
}

// hello returns the frame of a claim.
func (x *stranger) hello(c claim) []byte {
	b := append(make([]byte, 4), "SCHI"...)
	b = binary.BigEndian.AppendUint16(b, c.version)
	b = binary.BigEndian.AppendUint16(b, c.version)
	b = append(b, c.Cluster[:]...)
	b = binary.BigEndian.AppendUint64(b, x.incarnation)
	b = append(b, c.Disk[:]...)
	b = binary.BigEndian.AppendUint64(b, x.boot)
	b = binary.BigEndian.AppendUint64(b, uint64(time.Now().UnixNano()))
	b = append(append(b, c.slot, byte(len(c.Host))), c.Host...)
	binary.BigEndian.PutUint32(b, uint32(len(b)-4))
	return b
}

// dial connects to a host and says hello. The error is what the host closed the
// connection with.
func (x *stranger) dial(ctx context.Context, address string, c claim) (*quic.Conn, error) {
	addr, err := net.ResolveUDPAddr("udp", address)
	if err != nil {
		return nil, err
	}
	conn, err := x.transport.Dial(ctx, addr, x.tls(), &quic.Config{MaxIncomingStreams: 100})
	if err != nil {
		return nil, err
	}
	if _, err := say(ctx, conn, x.hello(c)); err != nil {
		return nil, errors.Join(err, conn.CloseWithError(0, ""))
	}
	return conn, nil
}

// say sends bytes on a new stream, ends it, and returns the frame that comes back.
func say(ctx context.Context, conn *quic.Conn, b []byte) ([]byte, error) {
	s, err := conn.OpenStreamSync(ctx)
	if err != nil {
		return nil, err
	}
	defer s.CancelRead(0)
	if err := s.SetDeadline(time.Now().Add(sitesPatience)); err != nil {
		return nil, err
	}
	if _, err := s.Write(b); err != nil {
		return nil, err
	}
	_ = s.Close() // a host that was quick may have closed it
	return quicnet.ReadFrame(s, quicnet.MaxFrameBytes)
}

// streamHeader returns the frame that begins a stream.
func streamHeader(kind quicnet.Kind, request bool) []byte {
	b := binary.BigEndian.AppendUint16([]byte{0, 0, 0, 4}, uint16(kind))
	b = append(b, byte(quicnet.ClassRaft), 0)
	if request {
		b[len(b)-1] = 1
	}
	return b
}

// closedWith returns the reason that the other end closed a connection for.
func closedWith(err error) string {
	if closed, ok := errors.AsType[*quic.ApplicationError](err); ok && closed.Remote {
		return closed.ErrorMessage
	}
	if closed, ok := errors.AsType[*quic.TransportError](err); ok && closed.Remote {
		return closed.Error()
	}
	return ""
}

// answer accepts one connection from an address, answers its hello with a claim, and
// returns what the other end closes it with.
func (x *stranger) answer(ctx context.Context, from string, c claim) error {
	listener, err := x.transport.Listen(x.tls(), &quic.Config{})
	if err != nil {
		return err
	}
	defer func() { _ = listener.Close() }() // nobody else is let in
	for {
		conn, err := listener.Accept(ctx)
		if err != nil {
			return err
		}
		if conn.RemoteAddr().String() == from {
			return x.answerOn(ctx, conn, c)
		}
		_ = conn.CloseWithError(0, "somebody else") // given up
	}
}

func (x *stranger) answerOn(ctx context.Context, conn *quic.Conn, c claim) error {
	s, err := conn.AcceptStream(ctx)
	if err != nil {
		return err
	}
	if _, err := quicnet.ReadFrame(s, quicnet.MaxFrameBytes); err != nil {
		return err
	}
	if _, err := s.Write(x.hello(c)); err != nil {
		return err
	}
	select {
	case <-conn.Context().Done():
		return context.Cause(conn.Context())
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
