package nbd

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strings"

	"scstore"
)

// Address is where an export is: what an NBD URI says.
type Address struct {
	Network string // "unix" or "tcp"
	Addr    string // socket path or host:port
	Export  string // name; "" is the default export
}

// ParseURL reads an NBD URI: nbd+unix:///NAME?socket=PATH or nbd://HOST[:PORT]/NAME.
// Errors: ErrInvalid.
//
// Source: doc/uri.md of the NetworkBlockDevice project.
func ParseURL(s string) (Address, error) {
	u, err := url.Parse(s)
	if err != nil {
		return Address{}, fmt.Errorf("parse nbd url %q: %w", s, scstore.ErrInvalid)
	}
	a := Address{Export: strings.TrimPrefix(u.Path, "/")}
	if len(a.Export) > MaxNameBytes {
		return Address{}, fmt.Errorf("parse nbd url: export name of %d bytes: %w", len(a.Export), scstore.ErrInvalid)
	}
	switch u.Scheme {
	case "nbd+unix":
		a.Network, a.Addr = "unix", u.Query().Get("socket")
		if a.Addr == "" {
			return Address{}, scstore.Hint(fmt.Errorf("parse nbd url %q: no socket: %w", s, scstore.ErrInvalid),
				"write nbd+unix:///NAME?socket=PATH")
		}
	case "nbd":
		_, notIP := netip.ParseAddr(u.Hostname())
		if u.Hostname() == "" || (notIP != nil && strings.ContainsAny(u.Hostname(), ":[]%/?#@ ")) {
			return Address{}, scstore.Hint(fmt.Errorf("parse nbd url %q: no host: %w", s, scstore.ErrInvalid),
				"write nbd://HOST:PORT/NAME")
		}
		port := u.Port()
		if port == "" {
			port = DefaultPort
		}
		a.Network, a.Addr = "tcp", net.JoinHostPort(u.Hostname(), port)
	default:
		return Address{}, scstore.Hint(fmt.Errorf("parse nbd url %q: scheme %q: %w", s, u.Scheme, scstore.ErrInvalid),
			"use nbd:// or nbd+unix://")
	}
	return a, nil
}

// String returns the address as an NBD URI that ParseURL reads.
func (a Address) String() string {
	u := url.URL{Scheme: "nbd", Host: a.Addr, Path: "/" + a.Export}
	if a.Network == "unix" {
		u.Scheme, u.Host = "nbd+unix", ""
		u.RawQuery = url.Values{"socket": {a.Addr}}.Encode()
		return "nbd+unix://" + u.EscapedPath() + "?" + u.RawQuery
	}
	return u.String()
}
