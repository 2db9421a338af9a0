package authority

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"net"
	"strings"
	"time"

	"scstore"
)

// A token's text is TokenPrefix and then, in unpadded base64url, version 1 of these
// bytes. Integers are big-endian.
//
//	 0   1  version, 1
//	 1  16  cluster id
//	17  32  SHA-256 digest of the authority's certificate
//	49  32  secret
//	81   8  end of its validity, seconds since 1970
//	89   1  number of addresses, 1 to MaxTokenAddresses
//	90      each address: 1 byte of length, then "host:port"
//	 n   4  CRC-32C of all before, so that a slip of the pen is told from a refusal
const (
	TokenPrefix       = "scstore-join-"
	MaxTokenAddresses = 16
	MaxTokenText      = 4 << 10 // bytes of the text
	maxAddressBytes   = 255     // a DNS name and a port fit
	tokenVersion      = 1
	tokenHeadBytes    = 90
	tokenSumBytes     = 4
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// TokenID is what the cluster remembers of a token: a digest of its secret, from
// which the secret cannot be found.
type TokenID [sha256.Size]byte

// String returns the id as hexadecimal digits.
func (t TokenID) String() string { return hex.EncodeToString(t[:]) }

// Token lets one new host join. Whoever has its text can join until it is used or
// expires; the text also says which authority to trust, so it must come to the new
// host by a way that nobody else can write to.
type Token struct {
	Cluster   ClusterID
	Authority Fingerprint
	Secret    [32]byte
	Expires   time.Time // whole seconds
	Addresses []string  // host:port of hosts to join through, 1 to MaxTokenAddresses
}

// NewToken draws a token. Errors: ErrInvalid.
func NewToken(a *Authority, expires time.Time, addresses []string) (Token, error) {
	t := Token{Cluster: a.Cluster(), Authority: a.Fingerprint(), Expires: expires.Truncate(time.Second).UTC(), Addresses: addresses}
	if _, err := rand.Read(t.Secret[:]); err != nil {
		return Token{}, fmt.Errorf("draw a secret: %w", err)
	}
	if err := t.validate(); err != nil {
		return Token{}, err
	}
	return t, nil
}

// SecretID returns the id of the token with this secret.
func SecretID(secret [32]byte) TokenID {
	return sha256.Sum256(append([]byte("scstore join token\x00"), secret[:]...))
}

// ID returns what the cluster knows the token by.
func (t Token) ID() TokenID { return SecretID(t.Secret) }

// String names the token without its secret.
func (t Token) String() string {
	return fmt.Sprintf("token %.8s of cluster %s, valid until %s", t.ID(), t.Cluster, t.Expires.UTC().Format(time.RFC3339))
}

// GoString is String, so that no format verb prints the secret.
func (t Token) GoString() string { return t.String() }

// Encode returns the token as one printable word with its secret.
func (t Token) Encode() string {
	b := make([]byte, 0, 256)
	b = append(b, tokenVersion)
	b = append(b, t.Cluster[:]...)
	b = append(b, t.Authority[:]...)
	b = append(b, t.Secret[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(t.Expires.Unix()))
	b = append(b, byte(len(t.Addresses)))
	for _, address := range t.Addresses {
		b = append(append(b, byte(len(address))), address...)
	}
	b = binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
	return TokenPrefix + base64.RawURLEncoding.EncodeToString(b)
}

// ParseToken reads what Encode wrote; blanks around it are ignored. It does not
// look at the time. Errors: ErrInvalid; ErrVersion.
func ParseToken(text string) (Token, error) {
	malformed := scstore.Hint(fmt.Errorf("the token is incomplete or mistyped: %w", scstore.ErrInvalid), "copy the whole word that `scstore host token` printed")
	text = strings.TrimSpace(text)
	body, ok := strings.CutPrefix(text, TokenPrefix)
	if !ok || len(text) > MaxTokenText {
		return Token{}, malformed
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(body)
	if err != nil || strings.ContainsAny(body, "\r\n") || len(b) < tokenHeadBytes+tokenSumBytes {
		return Token{}, malformed
	}
	sum := binary.BigEndian.Uint32(b[len(b)-tokenSumBytes:])
	if b = b[:len(b)-tokenSumBytes]; crc32.Checksum(b, castagnoli) != sum {
		return Token{}, malformed
	}
	if b[0] != tokenVersion {
		return Token{}, fmt.Errorf("token of version %d, want %d: %w", b[0], tokenVersion, scstore.ErrVersion)
	}
	t := Token{
		Cluster: ClusterID(b[1:17]), Authority: Fingerprint(b[17:49]), Secret: [32]byte(b[49:81]),
		Expires: time.Unix(int64(binary.BigEndian.Uint64(b[81:89])), 0).UTC(),
	}
	count, rest := int(b[89]), b[tokenHeadBytes:]
	for range count {
		if len(rest) == 0 || len(rest) <= int(rest[0]) {
			return Token{}, malformed
		}
		var address []byte
		address, rest = rest[1:1+int(rest[0])], rest[1+int(rest[0]):]
		t.Addresses = append(t.Addresses, string(bytes.Clone(address)))
	}
	if len(rest) != 0 || t.validate() != nil {
		return Token{}, malformed
	}
	return t, nil
}

func (t Token) validate() error {
	if t.Cluster == (ClusterID{}) || t.Secret == ([32]byte{}) || t.Authority == (Fingerprint{}) {
		return fmt.Errorf("token without cluster, authority or secret: %w", scstore.ErrInvalid)
	}
	if n := len(t.Addresses); n == 0 || n > MaxTokenAddresses {
		return fmt.Errorf("token with %d addresses, want 1 to %d: %w", n, MaxTokenAddresses, scstore.ErrInvalid)
	}
	for _, address := range t.Addresses {
		host, port, err := net.SplitHostPort(address)
		if err != nil || host == "" || port == "" || len(address) > maxAddressBytes {
			return fmt.Errorf("address %.80q: want host:port: %w", address, scstore.ErrInvalid)
		}
	}
	return nil
}
