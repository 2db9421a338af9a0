package quicnet

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/quic-go/quic-go"

	"scstore"
	"scstore/propagate/quicnet/authority"
)

// gate is the state of tokens as a cluster would keep it.
type gate struct {
	mu     sync.Mutex
	tokens map[authority.TokenID]time.Time // when they expire
	used   map[authority.TokenID][32]byte  // by which key
	asked  []JoinRequest
}

func newGate() *gate {
	return &gate{tokens: map[authority.TokenID]time.Time{}, used: map[authority.TokenID][32]byte{}}
}

// token makes a token for a host and remembers it.
func (g *gate) token(t *testing.T, a *authority.Authority, expires time.Time, at ...*Net) authority.Token {
	t.Helper()
	var addresses []string
	for _, n := range at {
		addresses = append(addresses, n.Addr().String())
	}
	token, err := authority.NewToken(a, expires, addresses)
	if err != nil {
		t.Fatal(err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.tokens[token.ID()] = expires
	return token
}

func (g *gate) Join(_ context.Context, r JoinRequest) (JoinReply, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.asked = append(g.asked, r)
	expires, known := g.tokens[r.Token]
	if !known {
		return JoinReply{}, fmt.Errorf("no such token: %w", scstore.ErrInvalid)
	}
	if time.Now().After(expires) {
		return JoinReply{}, fmt.Errorf("token has expired: %w", scstore.ErrInvalid)
	}
	if by, used := g.used[r.Token]; used && by != r.Key {
		return JoinReply{}, fmt.Errorf("token was used: %w", scstore.ErrInvalid)
	}
	g.used[r.Token] = r.Key
	return JoinReply{Membership: append([]byte("welcome from "), r.Payload...)}, nil
}

// calls returns what was asked.
func (g *gate) calls() []JoinRequest {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.asked)
}

// spent returns how many tokens were used up.
func (g *gate) spent() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.used)
}

func ask(token authority.Token, dir string, n byte) JoinOptions {
	return JoinOptions{Token: token, Dir: dir, Disk: disk(n), Host: fmt.Sprintf("host-%d", n), Payload: []byte("site-b")}
}

func TestJoin_TokenLetsOneHostIn(t *testing.T) {
	w, g := newWorld(t), newGate()
	a := w.host(t, 1, func(o *Options) { o.Joiner, o.Incarnation = g, 4 })
	token := g.token(t, w.first.Authority(), time.Now().Add(time.Hour), a)
	text, err := authority.ParseToken(token.Encode())
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "keys")
	joined, err := Join(t.Context(), ask(text, dir, 2))
	if err != nil {
		t.Fatal(err)
	}
	if got := joined.Keys.Identity(); got != w.identity(2) || joined.Incarnation != 4 || string(joined.Membership) != "welcome from site-b" || joined.Keys.Authority().HoldsKey() {
		t.Errorf("joined as %v, %+v", got, joined)
	}
	if got := g.calls()[0]; got.Disk != disk(2) || got.Host != "host-2" || got.Token != token.ID() || got.Addr == "" {
		t.Errorf("asked with %+v", got)
	}
	keys, err := authority.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	b := w.host(t, 2, func(o *Options) { o.Keys, o.Incarnation = keys, 4 })
	mustEcho(t, a, 2, ClassRaft)
	mustEcho(t, b, 1, ClassSync)

	// The same token again, from another host, and from the folder that is in already.
	if _, err := Join(t.Context(), ask(token, t.TempDir(), 3)); !errors.Is(err, scstore.ErrInvalid) || !strings.Contains(err.Error(), "used") {
		t.Errorf("second use: %v", err)
	}
	if _, err := Join(t.Context(), ask(token, dir, 2)); !errors.Is(err, scstore.ErrExists) {
		t.Errorf("join twice: %v", err)
	}
	if got := refusals(a, reasonToken); got != 1 {
		t.Errorf("%v refusals for tokens", got)
	}
}

// TestJoin_LostAnswerCanBeAskedForAgain repeats a join whose keys were not kept.
func TestJoin_LostAnswerCanBeAskedForAgain(t *testing.T) {
	w, g := newWorld(t), newGate()
	a := w.host(t, 1, func(o *Options) { o.Joiner = g })
	token := g.token(t, w.first.Authority(), time.Now().Add(time.Hour), a)
	dir := t.TempDir()
	admission, err := authority.NewAdmission(dir, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	r := newRaw(t)
	conn, err := r.dial(a, protocolJoin, nil)
	if err != nil {
		t.Fatal(err)
	}
	request := joinRequest{secret: token.Secret, disk: disk(2), clock: time.Now(), host: "host-2", request: admission.Request()}
	if _, err := r.say(conn, request.encode()); err != nil {
		t.Fatal(err) // and the host crashes before it keeps what it was answered
	}
	if _, err := Join(t.Context(), ask(token, dir, 2)); err != nil {
		t.Errorf("asked again: %v", err)
	}
	if n := len(g.calls()); n != 2 {
		t.Errorf("the cluster was asked %d times", n)
	}
}

// TestJoin_AnswerIsKeptBeforeTheKeysAreInPlace fails to keep it, and asks again.
func TestJoin_AnswerIsKeptBeforeTheKeysAreInPlace(t *testing.T) {
	w, g := newWorld(t), newGate()
	a := w.host(t, 1, func(o *Options) { o.Joiner, o.Incarnation = g, 4 })
	o := ask(g.token(t, w.first.Authority(), time.Now().Add(time.Hour), a), t.TempDir(), 2)
	calls := 0
	o.Keep = func(incarnation uint64, membership []byte) error {
		calls++
		if incarnation != 4 || string(membership) != "welcome from site-b" {
			t.Errorf("incarnation %d, %q", incarnation, membership)
		}
		if _, err := authority.Load(o.Dir); !errors.Is(err, scstore.ErrNotFound) {
			t.Errorf("keys before the answer is kept: %v", err)
		}
		if calls == 1 {
			return scstore.ErrNoSpace
		}
		return nil
	}
	if _, err := Join(t.Context(), o); !errors.Is(err, scstore.ErrNoSpace) {
		t.Errorf("an answer that is not kept: %v", err)
	}
	if _, err := authority.Load(o.Dir); !errors.Is(err, scstore.ErrNotFound) {
		t.Errorf("keys without the answer: %v", err)
	}
	if _, err := Join(t.Context(), o); err != nil || calls != 2 {
		t.Errorf("asked again: %v after %d calls", err, calls)
	}
}

func TestJoin_RefusalsHaveAReasonAndChangeNothing(t *testing.T) {
	w, g := newWorld(t), newGate()
	a := w.host(t, 1, func(o *Options) { o.Joiner = g })
	good := g.token(t, w.first.Authority(), time.Now().Add(time.Hour), a)
	wrong := good
	wrong.Secret[0] ^= 1
	expired := g.token(t, w.first.Authority(), time.Now().Add(-time.Minute), a)
	for _, c := range []struct {
		name   string
		ask    JoinOptions
		reason reason
		want   error
	}{
		{"wrong secret", ask(wrong, t.TempDir(), 2), reasonToken, scstore.ErrInvalid},
		{"expired", ask(expired, t.TempDir(), 2), reasonToken, scstore.ErrInvalid},
		{"the disk of the host that is asked", ask(good, t.TempDir(), 1), reasonSelf, scstore.ErrExists},
	} {
		before := refusals(a, c.reason)
		if _, err := Join(t.Context(), c.ask); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v", c.name, err)
		}
		if got := refusals(a, c.reason) - before; got != 1 {
			t.Errorf("%s: counted %v times", c.name, got)
		}
		if _, err := authority.Load(c.ask.Dir); !errors.Is(err, scstore.ErrNotFound) {
			t.Errorf("%s: the folder holds keys: %v", c.name, err)
		}
	}
	if n := g.spent(); n != 0 {
		t.Errorf("%d tokens were used up", n)
	}
	if _, err := Join(t.Context(), ask(good, t.TempDir(), 2)); err != nil {
		t.Errorf("the good token afterwards: %v", err)
	}
}

// TestJoin_SecretStaysHomeIfTheAuthorityIsAnother points a good token at a host of
// another cluster with the same id.
func TestJoin_SecretStaysHomeIfTheAuthorityIsAnother(t *testing.T) {
	w, g := newWorld(t), newGate()
	a := w.host(t, 1, func(o *Options) { o.Joiner = g })
	trap, trapGate := newWorld(t), newGate()
	b := trap.host(t, 1, func(o *Options) { o.Joiner = trapGate })
	token := g.token(t, w.first.Authority(), time.Now().Add(time.Hour), b)
	if _, err := Join(t.Context(), ask(token, t.TempDir(), 2)); !errors.Is(err, scstore.ErrInvalid) {
		t.Errorf("got %v", err)
	}
	eventually(t, "the trap sees a handshake that is broken off", func() bool { return refusals(b, reasonCertificate) == 1 })
	if len(trapGate.calls()) != 0 || allRefusals(b) != 1 {
		t.Errorf("the trap saw %d requests and %v broken ones", len(trapGate.calls()), allRefusals(b)-1)
	}
	token.Addresses = append(token.Addresses, a.Addr().String())
	if _, err := Join(t.Context(), ask(token, t.TempDir(), 2)); err != nil {
		t.Errorf("through the second address: %v", err)
	}
}

func TestJoin_HostWithoutTheKeySendsOn(t *testing.T) {
	w, g := newWorld(t), newGate()
	a := w.host(t, 1, func(o *Options) { o.Joiner = g })
	b := w.host(t, 2, func(o *Options) { o.Joiner = g })
	token := g.token(t, w.first.Authority(), time.Now().Add(time.Hour), b)
	if _, err := Join(t.Context(), ask(token, t.TempDir(), 3)); !errors.Is(err, scstore.ErrBusy) {
		t.Errorf("a host without the key: %v", err)
	}
	if len(g.calls()) != 0 {
		t.Error("the token was looked at by a host that cannot admit")
	}
	both := token
	both.Addresses = append(both.Addresses, a.Addr().String())
	if _, err := Join(t.Context(), ask(both, t.TempDir(), 3)); err != nil {
		t.Errorf("through the second address: %v", err)
	}
}

func TestAuthority_KeyGoesOnlyToWhoMayHoldIt(t *testing.T) {
	w := newWorld(t)
	w.host(t, 1, func(o *Options) { o.MayHoldKey = func(p Peer) bool { return p.Disk == disk(2) } })
	b, c := w.host(t, 2, nil), w.host(t, 3, nil)
	if err := b.FetchAuthority(t.Context(), disk(1)); err != nil || !b.o.Keys.Authority().HoldsKey() {
		t.Errorf("a voter: %v", err)
	}
	if err := c.FetchAuthority(t.Context(), disk(1)); !errors.Is(err, scstore.ErrReadOnly) || c.o.Keys.Authority().HoldsKey() {
		t.Errorf("no voter: %v", err)
	}
	if err := c.FetchAuthority(t.Context(), disk(2)); !errors.Is(err, scstore.ErrReadOnly) {
		t.Errorf("no voter, from another holder: %v", err)
	}
}

func TestRenew_HolderIssuesForTheIdentityOfTheConnectionOnly(t *testing.T) {
	w := newWorld(t)
	a := w.host(t, 1, nil)
	b := w.host(t, 2, func(o *Options) {
		o.KeyHolders = func() []scstore.StoreID { return []scstore.StoreID{disk(8), disk(1)} } // the first is gone
	})
	before := b.o.Keys.Certificate()
	if err := b.RenewCertificate(t.Context()); err != nil {
		t.Fatal(err)
	}
	after := b.o.Keys.Certificate()
	if string(after.Certificate[0]) == string(before.Certificate[0]) || b.o.Keys.Identity() != w.identity(2) {
		t.Error("the certificate is the old one")
	}
	mustEcho(t, b, 1, ClassAsync) // a new connection, with the new certificate
	mustEcho(t, a, 2, ClassAsync)
	w.remove(2, scstore.ErrFenced)
	if err := b.RenewCertificate(t.Context()); !errors.Is(err, scstore.ErrFenced) {
		t.Errorf("a removed host renews: %v", err)
	}
	if _, err := b.Request(t.Context(), disk(1), ClassRaft, kindRenew, []byte("junk")); err == nil {
		t.Error("junk was signed")
	}
}

// TestJoin_ShowingTheAuthorityIsNotEnough: the authority's certificate is no secret,
// so an impostor can show it beside a certificate of its own.
func TestJoin_ShowingTheAuthorityIsNotEnough(t *testing.T) {
	w, g := newWorld(t), newGate()
	trap := newWorld(t)
	shown := *trap.first.Certificate()
	shown.Certificate = [][]byte{shown.Certificate[0], w.first.Authority().Certificate()}
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	transport := &quic.Transport{Conn: conn}
	defer func() {
		if err := errors.Join(transport.Close(), conn.Close()); err != nil {
			t.Error(err)
		}
	}()
	config := baseTLS(protocolJoin)
	config.Certificates = []tls.Certificate{shown}
	listener, err := transport.Listen(config, &quic.Config{})
	if err != nil {
		t.Fatal(err)
	}
	seen := make(chan error, 1)
	go func() {
		conn, err := listener.Accept(t.Context())
		if err == nil {
			_, err = conn.AcceptStream(t.Context())
		}
		seen <- err
	}()
	token, err := authority.NewToken(w.first.Authority(), time.Now().Add(time.Hour), []string{conn.LocalAddr().String()})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Join(t.Context(), ask(token, t.TempDir(), 2)); !errors.Is(err, scstore.ErrInvalid) {
		t.Errorf("got %v", err)
	}
	if err := listener.Close(); err != nil {
		t.Error(err)
	}
	if err := <-seen; err == nil {
		t.Error("the impostor was sent something")
	}
	if len(g.calls()) != 0 {
		t.Error("somebody joined")
	}
}
