package authority

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"time"

	"scstore"
)

// Keys is what one host knows of who is who: the authority, its own identity,
// certificate and key, and the folder in which they are kept.
type Keys struct {
	folder folder
	id     Identity
	reset  [32]byte

	mu        sync.RWMutex // guards everything that follows; file I/O happens under it, at most once in days
	authority *Authority
	host      *tls.Certificate
}

// Create makes a new cluster's authority and this host's certificate in the folder,
// which is made if it is not there.
//
// Durability: all of it is on stable storage when Create returns. Errors: ErrExists
// if the folder holds a host's certificate already; ErrInvalid.
func Create(dir string, id Identity, now time.Time) (*Keys, error) {
	if err := id.Validate(); err != nil {
		return nil, err
	}
	f, err := newFolder(dir, now)
	if err != nil {
		return nil, err
	}
	a, err := New(id.Cluster, now)
	if err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a host key: %w", err)
	}
	request, err := newRequest(key)
	if err != nil {
		return nil, err
	}
	der, err := a.Issue(request, id, now, DefaultLifetime)
	if err != nil {
		return nil, err
	}
	if err := f.saveAuthorityKey(a); err != nil {
		return nil, err
	}
	return install(f, a, key, der)
}

// Admission is what a host that asks to join holds until it is let in: a key that
// it made, and the request for a certificate over it.
type Admission struct {
	folder  folder
	key     *ecdsa.PrivateKey
	request []byte
}

// NewAdmission makes the key of a host that is to join, or finds the one that an
// interrupted join left, so that the same host asks again with the same key. A host
// whose certificate has expired, because it was off for long, joins again.
//
// Durability: the key is on stable storage. Errors: ErrExists if the folder holds a
// host's certificate that is good at the time now; ErrInvalid if others can read a
// key.
func NewAdmission(dir string, now time.Time) (*Admission, error) {
	f, err := newFolder(dir, now)
	if err != nil {
		return nil, err
	}
	key, err := f.loadKey(joinKeyFile)
	switch {
	case errors.Is(err, scstore.ErrNotFound):
		if key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
			return nil, fmt.Errorf("make a host key: %w", err)
		}
		if err := f.saveKey(joinKeyFile, key); err != nil {
			return nil, err
		}
	case err != nil:
		return nil, err
	}
	request, err := newRequest(key)
	if err != nil {
		return nil, err
	}
	return &Admission{folder: f, key: key, request: request}, nil
}

// Request returns the certificate request in DER form.
func (a *Admission) Request() []byte { return a.request }

// Install keeps what the cluster answered: the authority that the token pinned and
// the certificate for this host.
//
// Durability: all of it is on stable storage when Install returns, and the next
// start is Load. Errors: ErrInvalid if the certificate is not of this authority,
// identity and key.
func (a *Admission) Install(from *Authority, id Identity, der []byte, now time.Time) (*Keys, error) {
	got, err := from.Verify(der, now)
	if err != nil {
		return nil, err
	}
	if got != id {
		return nil, fmt.Errorf("certificate is for %q, want %q: %w", got, id, scstore.ErrInvalid)
	}
	k, err := install(a.folder, from, a.key, der)
	if err != nil {
		return nil, err
	}
	return k, a.folder.remove(joinKeyFile)
}

// install writes the authority's certificate, the reset key and, last, the host's
// certificate: a folder that has it is whole.
func install(f folder, a *Authority, key *ecdsa.PrivateKey, der []byte) (*Keys, error) {
	if err := f.saveAuthority(a); err != nil {
		return nil, err
	}
	var reset [32]byte
	if _, err := rand.Read(reset[:]); err != nil {
		return nil, fmt.Errorf("draw a reset key: %w", err)
	}
	if err := f.saveReset(reset); err != nil {
		return nil, err
	}
	if err := f.saveHost(key, der); err != nil {
		return nil, err
	}
	return Load(f.dir)
}

// Load reads the keys of a host that is in a cluster. An expired certificate is
// loaded: it can no longer prove anything, but the host can say so. Errors:
// ErrNotFound if the host is in no cluster; ErrInvalid if a file is malformed or a
// secret can be read by others.
func Load(dir string) (*Keys, error) {
	f := folder{dir: dir}
	a, err := f.loadAuthority()
	if err != nil {
		return nil, err
	}
	key, der, err := f.loadHost()
	if err != nil {
		return nil, err
	}
	leaf, err := parseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("load %s: %w", f.path(hostFile), err)
	}
	at := leaf.NotBefore // a time within its own: whether it expired is for others to judge
	if a.cert.NotBefore.After(at) {
		at = a.cert.NotBefore
	}
	id, err := a.Verify(der, at)
	if err != nil {
		return nil, fmt.Errorf("load %s: %w", f.path(hostFile), err)
	}
	k := &Keys{folder: f, id: id, authority: a}
	if k.host, err = pair(a, key, der); err != nil {
		return nil, fmt.Errorf("load %s: %w", f.path(hostFile), err)
	}
	if k.reset, err = f.loadReset(); err != nil {
		return nil, err
	}
	return k, nil
}

// pair returns the certificate with its key in the form that TLS takes, the
// authority's behind it, by which a joiner finds what its token pinned.
func pair(a *Authority, key *ecdsa.PrivateKey, der []byte) (*tls.Certificate, error) {
	leaf, err := parseCertificate(der)
	if err != nil {
		return nil, err
	}
	if public, ok := leaf.PublicKey.(*ecdsa.PublicKey); !ok || !public.Equal(key.Public()) {
		return nil, fmt.Errorf("certificate is for another key: %w", scstore.ErrInvalid)
	}
	return &tls.Certificate{Certificate: [][]byte{der, a.Certificate()}, PrivateKey: key, Leaf: leaf}, nil
}

// Identity returns who this host is.
func (k *Keys) Identity() Identity { return k.id }

// ResetKey returns the secret from which stateless resets are made (RFC 9000 10.3),
// by which peers notice at once that this host was restarted.
func (k *Keys) ResetKey() [32]byte { return k.reset }

// Authority returns the cluster's authority, with its key if this host holds it.
func (k *Keys) Authority() *Authority {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return k.authority
}

// Certificate returns the host's certificate and key. The caller must not change
// what it returns.
func (k *Keys) Certificate() *tls.Certificate {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return k.host
}

// RenewAt returns when the certificate is at half of its life.
func (k *Keys) RenewAt() time.Time {
	leaf := k.Certificate().Leaf
	begin := leaf.NotBefore.Add(Backdate)
	return begin.Add(leaf.NotAfter.Sub(begin) / 2)
}

// HoldKey keeps the authority's key, as Authority.Key returned it on another host.
//
// Durability: it is on stable storage when HoldKey returns. Errors: ErrInvalid if
// it is not this authority's.
func (k *Keys) HoldKey(pkcs8 []byte) error {
	parsed, err := x509.ParsePKCS8PrivateKey(pkcs8)
	if err != nil {
		return fmt.Errorf("read the authority's key: %v: %w", err, scstore.ErrInvalid)
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok {
		return fmt.Errorf("the authority's key is no ECDSA key: %w", scstore.ErrInvalid)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	a, err := k.authority.WithKey(key)
	if err != nil {
		return err
	}
	if err := k.folder.saveAuthorityKey(a); err != nil {
		return err
	}
	k.authority = a
	return nil
}

// Renewal is a fresh key that waits for its certificate.
type Renewal struct {
	keys    *Keys
	key     *ecdsa.PrivateKey
	request []byte
}

// Renew begins a renewal: the certificate that answers Request goes to Complete.
func (k *Keys) Renew() (*Renewal, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a host key: %w", err)
	}
	request, err := newRequest(key)
	if err != nil {
		return nil, err
	}
	return &Renewal{keys: k, key: key, request: request}, nil
}

// Request returns the certificate request in DER form.
func (r *Renewal) Request() []byte { return r.request }

// Complete puts the new certificate in force; connections that are open keep the
// old one.
//
// Durability: it is on stable storage when Complete returns. Errors: ErrInvalid if
// it is not this host's, or not valid now; the old one stays in force then.
func (r *Renewal) Complete(der []byte, now time.Time) error {
	r.keys.mu.Lock()
	defer r.keys.mu.Unlock()
	id, err := r.keys.authority.Verify(der, now)
	if err != nil {
		return err
	}
	if id != r.keys.id {
		return fmt.Errorf("renewed certificate is for %q, want %q: %w", id, r.keys.id, scstore.ErrInvalid)
	}
	next, err := pair(r.keys.authority, r.key, der)
	if err != nil {
		return err
	}
	if err := r.keys.folder.saveHost(r.key, der); err != nil {
		return err
	}
	r.keys.host = next
	return nil
}

// RequestID returns the digest of a request's key. It is the same for every request
// that one host makes to join, so a join whose answer was lost can be told from a
// second use of the token. Errors: ErrInvalid.
func RequestID(der []byte) ([sha256.Size]byte, error) {
	public, err := ParseRequest(der)
	if err != nil {
		return [sha256.Size]byte{}, err
	}
	b, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return [sha256.Size]byte{}, fmt.Errorf("encode a public key: %w", err)
	}
	return sha256.Sum256(b), nil
}

// notFound translates a file that is not there.
func notFound(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%v: %w", err, scstore.ErrNotFound)
	}
	return err
}
