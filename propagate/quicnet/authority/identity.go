package authority

import (
	"encoding/hex"
	"fmt"
	"net/url"
	"strings"

	"scstore"
)

// MaxHostBytes bounds a host's name, in bytes.
const MaxHostBytes = 64

// identityScheme begins the URI of an identity and of an authority.
const identityScheme = "scstore"

// ClusterID names a cluster for its whole life. It is drawn at random when the
// cluster is made, so that hosts of two clusters never talk by mistake.
type ClusterID [16]byte

// String returns the id as 32 hexadecimal digits.
func (c ClusterID) String() string { return hex.EncodeToString(c[:]) }

// Identity is what a host's certificate says, and all that is believed of a peer.
type Identity struct {
	Cluster ClusterID
	Disk    scstore.StoreID // names the host's disk; a new disk is a new identity
	Host    string          // for people; unique in the cluster by whoever admits hosts
}

// String returns the identity as the URI that a certificate carries:
// scstore://CLUSTER/DISK/HOST with both ids in lower-case hexadecimal.
func (i Identity) String() string {
	return identityScheme + "://" + i.Cluster.String() + "/" + i.Disk.String() + "/" + i.Host
}

// Validate checks that the identity can be written into a certificate: no id is
// zero and the host's name has 1 to MaxHostBytes letters, digits, '.', '-' and '_',
// beginning with a letter or digit. Errors: ErrInvalid.
func (i Identity) Validate() error {
	if i.Cluster == (ClusterID{}) {
		return fmt.Errorf("identity %q: cluster id is zero: %w", i.Host, scstore.ErrInvalid)
	}
	if i.Disk == (scstore.StoreID{}) {
		return fmt.Errorf("identity %q: disk id is zero: %w", i.Host, scstore.ErrInvalid)
	}
	if i.Host == "" || len(i.Host) > MaxHostBytes {
		return fmt.Errorf("host name of %d bytes, want 1 to %d: %w", len(i.Host), MaxHostBytes, scstore.ErrInvalid)
	}
	for at, c := range []byte(i.Host) {
		alphanumeric := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !alphanumeric && (at == 0 || c != '.' && c != '-' && c != '_') {
			return scstore.Hint(fmt.Errorf("host name %q: character %d is not allowed: %w", i.Host, at+1, scstore.ErrInvalid),
				"use letters, digits, '.', '-' and '_', beginning with a letter or digit")
		}
	}
	return nil
}

// ParseIdentity reads what Identity.String wrote. Errors: ErrInvalid.
func ParseIdentity(text string) (Identity, error) {
	malformed := fmt.Errorf("identity %.160q: want %s://CLUSTER/DISK/HOST: %w", text, identityScheme, scstore.ErrInvalid)
	rest, ok := strings.CutPrefix(text, identityScheme+"://")
	if !ok {
		return Identity{}, malformed
	}
	parts := strings.Split(rest, "/")
	if len(parts) != 3 {
		return Identity{}, malformed
	}
	i := Identity{Host: parts[2]}
	if !parseHex(i.Cluster[:], parts[0]) || !parseHex(i.Disk[:], parts[1]) {
		return Identity{}, malformed
	}
	if err := i.Validate(); err != nil {
		return Identity{}, err
	}
	return i, nil
}

// ParseDisk reads a disk id as StoreID.String writes it. Errors: ErrInvalid.
func ParseDisk(text string) (scstore.StoreID, error) {
	var d scstore.StoreID
	if !parseHex(d[:], text) || d == (scstore.StoreID{}) {
		return scstore.StoreID{}, fmt.Errorf("disk id %.64q: want %d lower-case hexadecimal digits: %w", text, 2*len(d), scstore.ErrInvalid)
	}
	return d, nil
}

// parseHex fills dst from lower-case digits, exactly as many as it needs.
func parseHex(dst []byte, text string) bool {
	if len(text) != hex.EncodedLen(len(dst)) || text != strings.ToLower(text) {
		return false
	}
	_, err := hex.Decode(dst, []byte(text))
	return err == nil
}

// uri returns the text as the URL that a certificate holds. The text is one that
// this package wrote, so it parses.
func uri(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	if err != nil {
		return nil, fmt.Errorf("write %q into a certificate: %w", text, err)
	}
	return u, nil
}
