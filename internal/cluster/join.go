package cluster

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"scstore"
	"scstore/consensus/meta"
	"scstore/propagate/quicnet"
	"scstore/propagate/quicnet/authority"
)

// joinFormat is the version of what a joining host and the cluster say to each other.
const joinFormat = 1

// maxToldHosts bounds the hosts that a joining one is told: enough to find the cluster,
// whose state says the rest.
const maxToldHosts = 512

// ask is what a host that wants to join says of itself, in JSON.
type ask struct {
	Format    int         `json:"format"`
	Site      meta.SiteID `json:"site,omitempty"` // empty: the token's
	Addresses []string    `json:"addresses"`
	// Port is where it listens on all of its addresses; empty if Addresses are all there
	// are.
	Port string `json:"port,omitempty"`
}

// membership is what it is answered, in JSON.
type membership struct {
	Format int          `json:"format"`
	Site   meta.SiteID  `json:"site"`
	Seen   string       `json:"seen,omitempty"` // the IP address that it asked from
	Known  known        `json:"known"`
	Groups []groupFacts `json:"groups"` // with its replica ids
}

// parseAsk reads what a host says that wants to join. Errors: ErrInvalid, ErrVersion.
func parseAsk(b []byte) (ask, error) {
	var a ask
	if err := parseJoin(b, &a, func() int { return a.Format }); err != nil {
		return ask{}, err
	}
	if a.Site != "" {
		if err := checkSite(a.Site); err != nil {
			return ask{}, err
		}
	}
	if len(a.Addresses) == 0 || len(a.Addresses) >= meta.MaxAddresses {
		return ask{}, fmt.Errorf("%d addresses, want 1 to %d: %w", len(a.Addresses), meta.MaxAddresses-1, scstore.ErrInvalid)
	}
	for _, address := range a.Addresses {
		if host, port, err := net.SplitHostPort(address); err != nil || host == "" || port == "" || len(address) > meta.MaxAddressBytes {
			return ask{}, fmt.Errorf("address %.80q, want host:port: %w", address, scstore.ErrInvalid)
		}
	}
	if len(a.Port) > 5 {
		return ask{}, fmt.Errorf("port %.80q: %w", a.Port, scstore.ErrInvalid)
	}
	return a, nil
}

// parseMembership reads what the cluster answers. Errors: ErrInvalid, ErrVersion.
func parseMembership(b []byte) (membership, error) {
	var m membership
	if err := parseJoin(b, &m, func() int { return m.Format }); err != nil {
		return membership{}, err
	}
	if err := checkSite(m.Site); err != nil {
		return membership{}, err
	}
	if !slices.EqualFunc(m.Groups, groupIDs(), func(f groupFacts, g meta.GroupID) bool { return f.Group == g && f.Replica > 0 }) || len(m.Known.Hosts) == 0 {
		return membership{}, fmt.Errorf("not the hosts and groups of a cluster: %w", scstore.ErrInvalid)
	}
	return m, nil
}

// parseJoin reads what the other end said.
func parseJoin(b []byte, into any, format func() int) error {
	err := json.Unmarshal(b, into)
	switch {
	case format() > joinFormat:
		return fmt.Errorf("join of format %d, this host knows up to %d: %w", format(), joinFormat, scstore.ErrVersion)
	case err != nil || format() < 1:
		return fmt.Errorf("not a join: %w", scstore.ErrInvalid)
	}
	return nil
}

// join asks the hosts that the token names to be let in, and keeps what they answer.
func (c *Cluster) join(ctx context.Context, token authority.Token, conn net.PacketConn, listen string) (*authority.Keys, error) {
	old := c.file.get()
	host := cmp.Or(c.o.Host, old.Host, machineName())
	a := ask{Format: joinFormat, Site: cmp.Or(c.o.Site, old.Site), Addresses: addresses(listen, conn.LocalAddr(), "")}
	if anyHost(listen) {
		_, a.Port, _ = net.SplitHostPort(conn.LocalAddr().String())
	}
	payload, err := json.Marshal(a)
	if err != nil {
		return nil, fmt.Errorf("encode a join: %w", err)
	}
	c.log.Info("joining", "cluster", token.Cluster.String(), "host", host, "through", token.Addresses)
	joined, err := quicnet.Join(ctx, quicnet.JoinOptions{
		Token: token, Dir: c.keysDir(), Disk: c.o.Disk, Host: host, Payload: payload, Conn: conn, Logger: c.log,
		Keep: func(incarnation uint64, b []byte) error { return c.keepMembership(token, host, listen, incarnation, b) },
	})
	switch {
	case errors.Is(err, scstore.ErrUnreachable):
		return nil, scstore.Hint(err, "see that the addresses in the token can be reached from here over UDP, or make a token at another host")
	case errors.Is(err, scstore.ErrInvalid):
		return nil, scstore.Hint(err, "make another token at a host of the cluster with scstore host token")
	case errors.Is(err, scstore.ErrExists):
		return nil, scstore.Hint(err, "give this host another name: scstore serve --name NAME")
	case errors.Is(err, scstore.ErrFenced):
		return nil, scstore.Hint(err, "join again with an empty folder")
	case err != nil:
		return nil, err
	}
	return joined.Keys, nil
}

// keepMembership writes down what the cluster answered, before the keys are there (I1).
func (c *Cluster) keepMembership(token authority.Token, host, listen string, incarnation uint64, b []byte) error {
	m, err := parseMembership(b)
	if err != nil {
		return err
	}
	old := c.file.get()
	if old.Format > 0 && !slices.EqualFunc(old.Groups, m.Groups, func(a, b groupFacts) bool { return a.Replica == b.Replica }) {
		return scstore.Hint(fmt.Errorf("the cluster gave this disk other replica ids than it has: %w", scstore.ErrFenced), "join again with an empty folder")
	}
	for i := range m.Groups {
		m.Groups[i].NonVoting, m.Groups[i].Alone = true, false
	}
	return c.file.change(func(p *place) {
		next := place{
			Stage: stageJoining, Cluster: id(token.Cluster), Incarnation: incarnation, Disk: id(c.o.Disk), Site: m.Site, Host: host,
			Listen: listen, Seen: m.Seen, Boot: p.Boot, Groups: m.Groups, Known: m.Known,
		}
		if p.Stage == stageMember { // its certificate had expired
			next.Stage, next.Groups, next.Known = p.Stage, p.Groups, p.Known
		}
		*p = next
	})
}

// joiner lets hosts join; see quicnet.Joiner.
type joiner struct{ c *Cluster }

// Join enters a host into the namespace, if its token is good (I6).
func (j joiner) Join(ctx context.Context, r quicnet.JoinRequest) (quicnet.JoinReply, error) {
	b, err := j.c.admit(ctx, r)
	if transient(err) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		err = fmt.Errorf("%v: %w", err, scstore.ErrBusy) // the host tries elsewhere
	}
	return quicnet.JoinReply{Membership: b}, err
}

func (c *Cluster) admit(ctx context.Context, r quicnet.JoinRequest) ([]byte, error) {
	a, err := parseAsk(r.Payload)
	if err != nil {
		return nil, err
	}
	seen := ""
	if from, err := netip.ParseAddrPort(r.Addr); err == nil && a.Port != "" {
		seen = from.Addr().Unmap().String()
		a.Addresses = compact(append(a.Addresses, net.JoinHostPort(seen, a.Port)))
	}
	site, renewed, err := c.checkJoin(ctx, r, a)
	if err != nil {
		return nil, err
	}
	disk := meta.DiskID(r.Disk.String())
	ops := []meta.Op{
		meta.UseToken{Hash: meta.TokenHash(r.Token), Disk: disk, NowMs: time.Now().UnixMilli()},
		meta.AddHost{Disk: disk, Name: r.Host, Site: site, Fingerprint: r.Key, Addresses: a.Addresses},
	}
	if renewed {
		ops = append(ops, meta.UpdateHost{Disk: disk, Fingerprint: r.Key, Addresses: a.Addresses})
	}
	for _, op := range ops {
		if _, err := c.firmly(ctx, meta.GroupNamespace, op); err != nil {
			return nil, err
		}
	}
	m := membership{Format: joinFormat, Site: site, Seen: seen}
	for _, g := range groupIDs() {
		result, err := c.firmly(ctx, meta.GroupNamespace, meta.AllocReplica{Group: g, Disk: disk})
		if err != nil {
			return nil, err
		}
		m.Groups = append(m.Groups, groupFacts{Group: g, Replica: result.Number})
	}
	if err := c.refresh(); err != nil {
		return nil, err
	}
	m.Known = c.view.Load().told()
	return json.Marshal(m)
}

// checkJoin looks at a request before anything is changed, so that a refusal costs
// nothing. renewed says that a host that is known has a new key for a new token.
func (c *Cluster) checkJoin(ctx context.Context, r quicnet.JoinRequest, a ask) (site meta.SiteID, renewed bool, err error) {
	disk, now := meta.DiskID(r.Disk.String()), time.Now().UnixMilli()
	var tokens []meta.Token
	v := &view{}
	if err := c.readFirmly(ctx, joinPatience, meta.GroupNamespace, func(s *meta.State) {
		tokens = s.Tokens()
		v.read(s)
		now = max(now, s.ClockMs())
	}); err != nil {
		return "", false, err
	}
	i := slices.IndexFunc(tokens, func(t meta.Token) bool { return t.Hash == meta.TokenHash(r.Token) })
	if i < 0 {
		return "", false, meta.Result{Code: meta.CodeNoToken}.Err()
	}
	token := tokens[i]
	known, isKnown := v.hosts[disk]
	same, nameTaken := v.byName(r.Host)
	switch {
	case token.UsedBy != "" && token.UsedBy != disk:
		return "", false, meta.Result{Code: meta.CodeTokenUsed}.Err()
	case token.UsedBy == "" && token.ExpiresAtMs <= now:
		return "", false, meta.Result{Code: meta.CodeTokenExpired}.Err()
	case isKnown && known.State == meta.HostRemoved:
		return "", false, meta.Result{Code: meta.CodeDiskRemoved}.Err()
	case a.Site != "" && a.Site != token.Site:
		return "", false, fmt.Errorf("the token is for site %q, not for %q: %w", token.Site, a.Site, scstore.ErrInvalid)
	case nameTaken && same.Disk != disk && same.State != meta.HostRemoved:
		return "", false, fmt.Errorf("a host of site %q has the name %q: %w", same.Site, r.Host, scstore.ErrExists)
	case isKnown && (known.Name != r.Host || known.Site != token.Site):
		return "", false, fmt.Errorf("this disk is host %q of site %q: %w", known.Name, known.Site, scstore.ErrExists)
	case isKnown && token.UsedBy == disk && known.Fingerprint != r.Key:
		return "", false, fmt.Errorf("the token was used by this disk with another key: %w", scstore.ErrInvalid)
	}
	return token.Site, isKnown && token.UsedBy == "", nil
}

// told is what a joining host is told of the others: the voters first, those that were
// removed not.
func (v *view) told() known {
	k := known{Applied: v.applied}
	hosts := v.bySeniority()
	slices.SortStableFunc(hosts, func(a, b meta.Host) int { return cmp.Compare(rank(v, a), rank(v, b)) })
	for _, h := range hosts[:min(len(hosts), maxToldHosts)] {
		k.Hosts = append(k.Hosts, knownOf(h))
	}
	return k
}

func rank(v *view, h meta.Host) int {
	if v.votes(h.Disk) {
		return 0
	}
	return 1
}
