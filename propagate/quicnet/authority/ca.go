package authority

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"strings"
	"time"

	"scstore"
)

// Times of certificates.
const (
	DefaultLifetime = 30 * 24 * time.Hour       // of a host's certificate
	MinLifetime     = 10 * time.Minute          // below it a renewal may come too late
	MaxLifetime     = 366 * 24 * time.Hour      // of a host's certificate
	Backdate        = time.Hour                 // how much earlier than now a certificate begins: clocks differ
	caLifetime      = 25 * 365 * 24 * time.Hour // of the authority's own
)

// Limits of what is parsed, in bytes.
const (
	MaxCertificateBytes = 4 << 10
	MaxRequestBytes     = 4 << 10
)

// Fingerprint is the SHA-256 digest of an authority's certificate.
type Fingerprint [sha256.Size]byte

// String returns the fingerprint as hexadecimal digits.
func (f Fingerprint) String() string { return hex.EncodeToString(f[:]) }

// Authority is a cluster's certificate authority: its certificate and, on the hosts
// that may admit others, its key. Authorities are immutable.
type Authority struct {
	cluster ClusterID
	cert    *x509.Certificate
	key     *ecdsa.PrivateKey // nil where it is not held
}

// New makes the authority of a new cluster, with its key. ECDSA on P-256, as all
// keys here. Errors: ErrInvalid.
func New(cluster ClusterID, now time.Time) (*Authority, error) {
	if cluster == (ClusterID{}) {
		return nil, fmt.Errorf("make an authority: cluster id is zero: %w", scstore.ErrInvalid)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make an authority: %w", err)
	}
	name, err := uri(clusterURI(cluster))
	if err != nil {
		return nil, err
	}
	template, err := certificate(now, now.Add(caLifetime), "scstore cluster "+cluster.String(), name)
	if err != nil {
		return nil, err
	}
	template.IsCA, template.MaxPathLenZero = true, true
	template.KeyUsage = x509.KeyUsageCertSign
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("make an authority: %w", err)
	}
	a, err := Parse(der)
	if err != nil {
		return nil, err
	}
	return a.WithKey(key)
}

// Parse reads an authority's certificate; the result holds no key. Errors:
// ErrInvalid.
func Parse(der []byte) (*Authority, error) {
	cert, err := parseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("read the authority's certificate: %w", err)
	}
	malformed := fmt.Errorf("not the certificate of a cluster's authority: %w", scstore.ErrInvalid)
	if !cert.IsCA || !cert.BasicConstraintsValid || cert.KeyUsage != x509.KeyUsageCertSign || len(cert.URIs) != 1 {
		return nil, malformed
	}
	if err := cert.CheckSignatureFrom(cert); err != nil {
		return nil, fmt.Errorf("authority is not signed by itself: %w", scstore.ErrInvalid)
	}
	text, ok := strings.CutPrefix(cert.URIs[0].String(), identityScheme+"://")
	a := &Authority{cert: cert}
	if !ok || !parseHex(a.cluster[:], text) || a.cluster == (ClusterID{}) {
		return nil, malformed
	}
	return a, nil
}

// WithKey returns the authority with its key. Errors: ErrInvalid if the key is
// another one's.
func (a *Authority) WithKey(key *ecdsa.PrivateKey) (*Authority, error) {
	if public, ok := a.cert.PublicKey.(*ecdsa.PublicKey); !ok || !public.Equal(key.Public()) {
		return nil, fmt.Errorf("the key is not the authority's: %w", scstore.ErrInvalid)
	}
	return &Authority{cluster: a.cluster, cert: a.cert, key: key}, nil
}

// Cluster returns the cluster that the authority is of.
func (a *Authority) Cluster() ClusterID { return a.cluster }

// HoldsKey reports whether the authority can issue certificates here.
func (a *Authority) HoldsKey() bool { return a.key != nil }

// Certificate returns the authority's certificate in DER form. The caller must not
// change it.
func (a *Authority) Certificate() []byte { return a.cert.Raw }

// Fingerprint returns the digest that tokens carry.
func (a *Authority) Fingerprint() Fingerprint { return sha256.Sum256(a.cert.Raw) }

// Key returns the key in PKCS 8 form. Errors: ErrNotFound if it is not held here.
func (a *Authority) Key() ([]byte, error) {
	if a.key == nil {
		return nil, errNoKey()
	}
	return x509.MarshalPKCS8PrivateKey(a.key)
}

// errNoKey says that this host cannot sign.
func errNoKey() error {
	return scstore.Hint(fmt.Errorf("this host does not hold the authority's key: %w", scstore.ErrNotFound), "ask a voter of the cluster")
}

// Issue signs a certificate for the identity over the request's key, valid from an
// hour before now for lifetime after it. Of the request only the key is used; what
// it says about itself is not. Errors: ErrInvalid; ErrNotFound if the key is not
// held here.
func (a *Authority) Issue(request []byte, id Identity, now time.Time, lifetime time.Duration) ([]byte, error) {
	if a.key == nil {
		return nil, errNoKey()
	}
	if id.Cluster != a.cluster {
		return nil, fmt.Errorf("issue for %q: it is of cluster %s, not %s: %w", id.Host, id.Cluster, a.cluster, scstore.ErrInvalid)
	}
	if err := id.Validate(); err != nil {
		return nil, err
	}
	if lifetime < MinLifetime || lifetime > MaxLifetime {
		return nil, fmt.Errorf("lifetime %v, want %v to %v: %w", lifetime, MinLifetime, MaxLifetime, scstore.ErrInvalid)
	}
	public, err := ParseRequest(request)
	if err != nil {
		return nil, err
	}
	name, err := uri(id.String())
	if err != nil {
		return nil, err
	}
	end := now.Add(lifetime)
	if end.After(a.cert.NotAfter) {
		end = a.cert.NotAfter
	}
	template, err := certificate(now, end, id.Host, name)
	if err != nil {
		return nil, err
	}
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, public, a.key)
	if err != nil {
		return nil, fmt.Errorf("issue for %q: %w", id.Host, err)
	}
	if got, err := a.Verify(der, now); err != nil || got != id {
		return nil, fmt.Errorf("issue for %q: the certificate reads %q, %v: %w", id.Host, got, err, scstore.ErrInvalid)
	}
	return der, nil
}

// Verify checks a host's certificate against the authority at the time now and
// returns the identity in it. Errors: ErrInvalid; errors.As finds the x509 error
// where there is one.
func (a *Authority) Verify(der []byte, now time.Time) (Identity, error) {
	cert, err := parseCertificate(der)
	if err != nil {
		return Identity{}, err
	}
	roots := x509.NewCertPool()
	roots.AddCert(a.cert)
	if _, err := cert.Verify(x509.VerifyOptions{
		Roots: roots, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}); err != nil {
		wrapped := fmt.Errorf("verify a certificate: %w: %w", err, scstore.ErrInvalid)
		if untimely := (x509.CertificateInvalidError{}); errors.As(err, &untimely) && untimely.Reason == x509.Expired {
			return Identity{}, scstore.Hint(wrapped, "compare the clocks of the two hosts; a host that was off until its certificate ended joins again with a new token")
		}
		return Identity{}, wrapped
	}
	if cert.IsCA || len(cert.URIs) != 1 || len(cert.DNSNames)+len(cert.IPAddresses)+len(cert.EmailAddresses) != 0 {
		return Identity{}, fmt.Errorf("certificate %q is not a host's: %w", cert.Subject.CommonName, scstore.ErrInvalid)
	}
	id, err := ParseIdentity(cert.URIs[0].String())
	if err != nil {
		return Identity{}, err
	}
	if id.Cluster != a.cluster {
		return Identity{}, fmt.Errorf("certificate of %q is of cluster %s, not %s: %w", id.Host, id.Cluster, a.cluster, scstore.ErrInvalid)
	}
	return id, nil
}

// ParseRequest reads a certificate request, checks that whoever made it holds its
// key, and returns that key. Errors: ErrInvalid.
func ParseRequest(der []byte) (*ecdsa.PublicKey, error) {
	if len(der) > MaxRequestBytes {
		return nil, fmt.Errorf("certificate request of %d bytes, more than %d: %w", len(der), MaxRequestBytes, scstore.ErrInvalid)
	}
	request, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, fmt.Errorf("read a certificate request: %v: %w", err, scstore.ErrInvalid)
	}
	if err := request.CheckSignature(); err != nil {
		return nil, fmt.Errorf("check a certificate request: %v: %w", err, scstore.ErrInvalid)
	}
	public, ok := request.PublicKey.(*ecdsa.PublicKey)
	if !ok || public.Curve != elliptic.P256() {
		return nil, fmt.Errorf("certificate request without a P-256 key: %w", scstore.ErrInvalid)
	}
	return public, nil
}

// newRequest returns a request over the key.
func newRequest(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, fmt.Errorf("make a certificate request: %w", err)
	}
	return der, nil
}

// certificate returns what all certificates here have in common.
func certificate(now, end time.Time, name string, id *url.URL) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("draw a serial number: %w", err)
	}
	return &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name}, URIs: []*url.URL{id},
		NotBefore: now.Add(-Backdate), NotAfter: end, BasicConstraintsValid: true,
	}, nil
}

func clusterURI(cluster ClusterID) string { return identityScheme + "://" + cluster.String() }

func parseCertificate(der []byte) (*x509.Certificate, error) {
	if len(der) > MaxCertificateBytes {
		return nil, fmt.Errorf("certificate of %d bytes, more than %d: %w", len(der), MaxCertificateBytes, scstore.ErrInvalid)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("read a certificate: %v: %w", err, scstore.ErrInvalid)
	}
	return cert, nil
}
