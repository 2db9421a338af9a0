package meta

import (
	"cmp"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"scstore"
)

// Limits of the facts about a cluster.
const (
	MaxSites        = 256
	MaxSiteVoters   = 8
	MaxHosts        = 4096 // removed ones included; beyond it the one removed longest ago is forgotten
	MaxAddresses    = 16   // of a host
	MaxAddressBytes = 255
	MaxTokens       = 1024
	MaxGroups       = 256
	MaxMembers      = 64 // of a group
)

// ClusterID names a cluster for its whole life. It is drawn at random.
type ClusterID [16]byte

// String returns the id as 32 hexadecimal digits.
func (c ClusterID) String() string { return hex.EncodeToString(c[:]) }

// Cluster is what binds hosts together. Incarnation rises when a majority was lost
// and the cluster goes on without it: members of an earlier one are refused.
type Cluster struct {
	ID          ClusterID
	Incarnation uint64 // from 1
}

// Site is a failure domain and the disks that vote for it.
type Site struct {
	Name   SiteID
	Voters []DiskID // rising
}

// HostState says where a host stands in the cluster.
type HostState uint8

// The states of a host; stored, never renumber.
const (
	HostJoining HostState = 1 // known, not a member of groups yet
	HostActive  HostState = 2
	HostRemoved HostState = 3 // its disk id never comes back
)

// Fingerprint is the SHA-256 of a host's certificate.
type Fingerprint [32]byte

// Host is a machine of the cluster.
type Host struct {
	Disk        DiskID
	Name        string // one segment
	Site        SiteID
	State       HostState
	Witness     bool // votes, and holds no volumes
	Fingerprint Fingerprint
	Addresses   []string // "host:port", the preferred first
	Boots       uint64   // number of its latest registered start
	BootNonce   [16]byte // drawn at that start
	RemovedAt   uint64   // State.Applied then; 0 before
}

// TokenHash is the SHA-256 of a join token; the token itself is never stored.
type TokenHash [32]byte

// Token admits one host to a site, once, until it expires.
type Token struct {
	Hash        TokenHash
	Site        SiteID
	ExpiresAtMs int64
	UsedBy      DiskID // empty before
}

// members are the Raft replica ids of one group. An id is never given twice.
type members struct {
	Group GroupID
	Last  uint64
	List  []Member // rising by disk
}

// Member is a disk's place in a group.
type Member struct {
	Disk    DiskID
	Replica uint64 // Raft's replica id, from 1
}

// SetCluster names the cluster, or raises its incarnation. The same again changes
// nothing. Errors: ErrInvalid for another cluster or a lower incarnation.
type SetCluster struct{ Cluster }

// SetSite makes a site or sets its voters, which are hosts of it. Errors:
// ErrNotFound (a voter), ErrNoSpace.
type SetSite struct{ Site }

// RemoveSite removes a site without hosts; one that is not there is no error.
// Errors: ErrBusy.
type RemoveSite struct{ Name SiteID }

// AddHost makes a host known, in state joining. In a cluster of one it admits the
// disk too (AdmitDisk). The same disk again changes nothing. Errors: ErrNotFound
// (the site), ErrExists (the name, or the disk under another name), ErrInvalid for
// a disk that was removed, ErrNoSpace.
type AddHost struct {
	Disk        DiskID
	Name        string
	Site        SiteID
	Witness     bool
	Fingerprint Fingerprint
	Addresses   []string
}

// UpdateHost sets a host's addresses and certificate, and makes it active if that
// is asked. Errors: ErrNotFound, ErrFenced for a disk that was removed.
type UpdateHost struct {
	Disk        DiskID
	Active      bool
	Fingerprint Fingerprint
	Addresses   []string
}

// Boot registers the start of a host. N is one more than at its last start; Nonce
// is drawn at each start, so that a proposal may be repeated but a machine that was
// copied, or restored from a snapshot, is found out: it must not vote twice.
// Errors: ErrNotFound, ErrFenced for an N that another start has registered,
// ErrFenced for a disk that was removed.
type Boot struct {
	Disk  DiskID
	N     uint64
	Nonce [16]byte
}

// AddToken makes a join token. Errors: ErrNotFound (the site), ErrExists, ErrInvalid
// if it has expired, ErrNoSpace.
type AddToken struct {
	Hash        TokenHash
	Site        SiteID
	ExpiresAtMs int64
	NowMs       int64
}

// UseToken uses up a join token for a disk; the same disk may ask again. Errors:
// ErrInvalid, with codes of their own for a token that is unknown, has expired or
// was used by another disk.
type UseToken struct {
	Hash  TokenHash
	Disk  DiskID
	NowMs int64
}

// AllocReplica gives a disk a place in a group. Result.Number is the Raft replica
// id, the same again while the disk has it. Errors: ErrNotFound (no such host),
// ErrFenced for a disk that was removed, ErrNoSpace.
type AllocReplica struct {
	Group GroupID
	Disk  DiskID
}

// FreeReplica ends a disk's place in a group; its id is never given again.
type FreeReplica struct {
	Group GroupID
	Disk  DiskID
}

func (SetCluster) kind() opKind   { return kindSetCluster }
func (SetSite) kind() opKind      { return kindSetSite }
func (RemoveSite) kind() opKind   { return kindRemoveSite }
func (AddHost) kind() opKind      { return kindAddHost }
func (UpdateHost) kind() opKind   { return kindUpdateHost }
func (Boot) kind() opKind         { return kindBoot }
func (AddToken) kind() opKind     { return kindAddToken }
func (UseToken) kind() opKind     { return kindUseToken }
func (AllocReplica) kind() opKind { return kindAllocReplica }
func (FreeReplica) kind() opKind  { return kindFreeReplica }

func (o SetCluster) validate() error {
	if o.ID == (ClusterID{}) || o.Incarnation == 0 || o.Incarnation > maxCounter {
		return fmt.Errorf("cluster %s, incarnation %d: %w", o.ID, o.Incarnation, scstore.ErrInvalid)
	}
	return nil
}

func (o SetSite) validate() error {
	if len(o.Voters) > MaxSiteVoters {
		return fmt.Errorf("%d voters, want at most %d: %w", len(o.Voters), MaxSiteVoters, scstore.ErrInvalid)
	}
	for _, d := range o.Voters {
		if err := d.validate(); err != nil {
			return err
		}
	}
	return validateAll(o.Name.validate(), validateRising("voters", o.Voters))
}

func (o RemoveSite) validate() error { return o.Name.validate() }

func (o AddHost) validate() error {
	return validateAll(o.Disk.validate(), validateSegment("host", o.Name), o.Site.validate(), validateAddresses(o.Addresses))
}

func (o UpdateHost) validate() error {
	return validateAll(o.Disk.validate(), validateAddresses(o.Addresses))
}

func validateAddresses(list []string) error {
	if len(list) > MaxAddresses {
		return fmt.Errorf("%d addresses, want at most %d: %w", len(list), MaxAddresses, scstore.ErrInvalid)
	}
	for _, a := range list {
		if a == "" || len(a) > MaxAddressBytes || strings.ContainsFunc(a, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
			return fmt.Errorf("address %q: %w", a, scstore.ErrInvalid)
		}
	}
	return nil
}

func (o Boot) validate() error {
	if o.N == 0 || o.N > maxCounter {
		return fmt.Errorf("start number %d: %w", o.N, scstore.ErrInvalid)
	}
	return o.Disk.validate()
}

func (o AddToken) validate() error {
	return validateAll(o.Site.validate(), validateTime(o.ExpiresAtMs), validateTime(o.NowMs))
}

func (o UseToken) validate() error { return validateAll(o.Disk.validate(), validateTime(o.NowMs)) }

func (o AllocReplica) validate() error { return validateMember(o.Group, o.Disk) }

func (o FreeReplica) validate() error { return validateMember(o.Group, o.Disk) }

func validateMember(g GroupID, d DiskID) error {
	if g == GroupAll || g > maxCounter {
		return fmt.Errorf("group %d has no members: %w", g, scstore.ErrInvalid)
	}
	return d.validate()
}

func (o SetCluster) apply(s *State) Result {
	if s.cluster != (Cluster{}) && (s.cluster.ID != o.ID || s.cluster.Incarnation > o.Incarnation) {
		return Result{Code: CodeOtherCluster, Number: s.cluster.Incarnation}
	}
	s.cluster = o.Cluster
	return Result{Code: CodeOK, Number: o.Incarnation}
}

func (o SetSite) apply(s *State) Result {
	for _, d := range o.Voters {
		if h := s.hosts[d]; h == nil || h.Site != o.Name || h.State == HostRemoved {
			return Result{Code: CodeNoHost}
		}
	}
	if s.sites[o.Name] == nil && len(s.sites) >= MaxSites {
		return Result{Code: CodeLimit}
	}
	s.sites[o.Name] = &Site{Name: o.Name, Voters: slices.Clone(o.Voters)}
	return Result{Code: CodeOK}
}

func (o RemoveSite) apply(s *State) Result {
	for _, h := range s.hosts {
		if h.Site == o.Name && h.State != HostRemoved {
			return Result{Code: CodeSiteInUse}
		}
	}
	delete(s.sites, o.Name)
	return Result{Code: CodeOK}
}

func (o AddHost) apply(s *State) Result {
	known := s.hosts[o.Disk]
	switch {
	case s.removed(o.Disk) || known != nil && known.State == HostRemoved:
		return Result{Code: CodeDiskRemoved}
	case s.sites[o.Site] == nil:
		return Result{Code: CodeNoSite}
	case known != nil && (known.Name != o.Name || known.Site != o.Site):
		return Result{Code: CodeHostTaken}
	}
	for _, h := range s.hosts {
		if h.Name == o.Name && h.Disk != o.Disk && h.State != HostRemoved {
			return Result{Code: CodeHostTaken}
		}
	}
	if known == nil {
		if !s.makeRoomForHost() {
			return Result{Code: CodeLimit}
		}
		if s.group == GroupAll {
			if r := (AdmitDisk{Disk: o.Disk, Site: o.Site}).apply(s); r.Code != CodeOK {
				return r
			}
		}
		s.hosts[o.Disk] = &Host{
			Disk: o.Disk, Name: o.Name, Site: o.Site, State: HostJoining, Witness: o.Witness,
			Fingerprint: o.Fingerprint, Addresses: slices.Clone(o.Addresses),
		}
	}
	return Result{Code: CodeOK}
}

// makeRoomForHost forgets the host that was removed longest ago, if it must.
func (s *State) makeRoomForHost() bool {
	if len(s.hosts) < MaxHosts {
		return true
	}
	var oldest *Host
	for _, h := range s.hosts {
		if h.State == HostRemoved && (oldest == nil || cmp.Or(cmp.Compare(h.RemovedAt, oldest.RemovedAt), cmp.Compare(h.Disk, oldest.Disk)) < 0) {
			oldest = h
		}
	}
	if oldest == nil {
		return false
	}
	delete(s.hosts, oldest.Disk)
	return true
}

// present returns a host that was not removed.
func (s *State) present(d DiskID) (*Host, Code) {
	h := s.hosts[d]
	switch {
	case h == nil:
		return nil, CodeNoHost
	case h.State == HostRemoved:
		return nil, CodeDiskRemoved
	}
	return h, CodeOK
}

func (o UpdateHost) apply(s *State) Result {
	h, code := s.present(o.Disk)
	if h == nil {
		return Result{Code: code}
	}
	h.Fingerprint, h.Addresses = o.Fingerprint, slices.Clone(o.Addresses)
	if o.Active {
		h.State = HostActive
	}
	return Result{Code: CodeOK}
}

func (o Boot) apply(s *State) Result {
	h, code := s.present(o.Disk)
	switch {
	case h == nil:
		return Result{Code: code}
	case o.N == h.Boots && o.Nonce == h.BootNonce:
		return Result{Code: CodeOK, Number: h.Boots}
	case o.N <= h.Boots:
		return Result{Code: CodeStaleBoot, Number: h.Boots}
	}
	h.Boots, h.BootNonce = o.N, o.Nonce
	return Result{Code: CodeOK, Number: o.N}
}

func (o AddToken) apply(s *State) Result {
	s.tick(o.NowMs)
	known := s.tokens[o.Hash]
	switch {
	case known != nil && known.Site == o.Site && known.ExpiresAtMs == o.ExpiresAtMs:
		return Result{Code: CodeOK}
	case known != nil:
		return Result{Code: CodeIDTaken}
	case s.sites[o.Site] == nil:
		return Result{Code: CodeNoSite}
	case o.ExpiresAtMs <= s.clockMs:
		return Result{Code: CodeTokenExpired}
	case len(s.tokens) >= MaxTokens:
		return Result{Code: CodeLimit}
	}
	s.tokens[o.Hash] = &Token{Hash: o.Hash, Site: o.Site, ExpiresAtMs: o.ExpiresAtMs}
	return Result{Code: CodeOK}
}

func (o UseToken) apply(s *State) Result {
	s.tick(o.NowMs)
	t := s.tokens[o.Hash]
	switch {
	case t == nil:
		return Result{Code: CodeNoToken}
	case t.UsedBy == o.Disk:
		return Result{Code: CodeOK}
	case t.UsedBy != "":
		return Result{Code: CodeTokenUsed}
	case t.ExpiresAtMs <= s.clockMs:
		return Result{Code: CodeTokenExpired}
	}
	t.UsedBy = o.Disk
	return Result{Code: CodeOK}
}

func compareMember(m Member, d DiskID) int { return cmp.Compare(m.Disk, d) }

func (o AllocReplica) apply(s *State) Result {
	if h, code := s.present(o.Disk); h == nil {
		return Result{Code: code}
	}
	g := s.members[o.Group]
	if g == nil {
		if len(s.members) >= MaxGroups {
			return Result{Code: CodeLimit}
		}
		g = &members{Group: o.Group}
		s.members[o.Group] = g
	}
	m, i := find(g.List, o.Disk, compareMember)
	switch {
	case m != nil:
		return Result{Code: CodeOK, Number: m.Replica}
	case len(g.List) >= MaxMembers || g.Last >= maxCounter:
		return Result{Code: CodeLimit}
	}
	g.Last++
	g.List = slices.Insert(g.List, i, Member{Disk: o.Disk, Replica: g.Last})
	return Result{Code: CodeOK, Number: g.Last}
}

func (o FreeReplica) apply(s *State) Result {
	if g := s.members[o.Group]; g != nil {
		g.free(o.Disk)
	}
	return Result{Code: CodeOK}
}

func (g *members) free(d DiskID) {
	if m, i := find(g.List, d, compareMember); m != nil {
		g.List = slices.Delete(g.List, i, i+1)
	}
}

// removeHost takes a disk out of the facts about the cluster.
func (s *State) removeHost(d DiskID) {
	if h := s.hosts[d]; h != nil && h.State != HostRemoved {
		h.State, h.RemovedAt = HostRemoved, s.applied
	}
	for _, g := range s.members {
		g.free(d)
	}
	for _, site := range s.sites {
		site.Voters = slices.DeleteFunc(site.Voters, func(v DiskID) bool { return v == d })
	}
}

// Cluster returns the cluster's id and incarnation, zero before SetCluster.
func (s *State) Cluster() Cluster { return s.cluster }

// Sites returns the sites by name.
func (s *State) Sites() []Site {
	var list []Site
	for _, name := range sortedBy(s.sites, compareSite) {
		site := *s.sites[name]
		site.Voters = slices.Clone(site.Voters)
		list = append(list, site)
	}
	return list
}

// Hosts returns the hosts by disk id, removed ones included.
func (s *State) Hosts() []Host {
	var list []Host
	for _, d := range sortedBy(s.hosts, cmp.Compare[DiskID]) {
		h, _ := s.Host(d)
		list = append(list, h)
	}
	return list
}

// Host returns the host with this disk.
func (s *State) Host(d DiskID) (Host, bool) {
	h := s.hosts[d]
	if h == nil {
		return Host{}, false
	}
	host := *h
	host.Addresses = slices.Clone(h.Addresses)
	return host, true
}

// Members returns a group's members by disk id.
func (s *State) Members(g GroupID) []Member {
	if m := s.members[g]; m != nil {
		return slices.Clone(m.List)
	}
	return nil
}

// Tokens returns the join tokens that were not expired away, by hash.
func (s *State) Tokens() []Token {
	var list []Token
	for _, h := range sortedBy(s.tokens, compareHashes) {
		list = append(list, *s.tokens[h])
	}
	return list
}
