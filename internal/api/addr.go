package api

import (
	"fmt"
	"net"
	"path/filepath"
	"strings"

	"scstore"
)

// Addr is where a door listens: a unix socket or host:port.
type Addr struct {
	Network string // "unix" or "tcp"
	Address string // an absolute path, or host:port
}

// MaxSocketPath is the longest path of a unix socket in bytes: Linux's sockaddr_un
// takes 107, and a host makes its sockets under a name that is 4 longer.
const MaxSocketPath = 103

// ParseAddr reads unix:/path or host:port; a relative path is taken from the
// working folder. Errors: ErrInvalid.
func ParseAddr(s string) (Addr, error) {
	if path, ok := strings.CutPrefix(s, "unix:"); ok {
		if path == "" {
			return Addr{}, fmt.Errorf("address %q has no path: %w", s, scstore.ErrInvalid)
		}
		abs, err := filepath.Abs(path)
		if err != nil {
			return Addr{}, fmt.Errorf("address %q: %w", s, err)
		}
		if len(abs) > MaxSocketPath {
			return Addr{}, scstore.Hint(
				fmt.Errorf("socket path of %d bytes, at most %d are possible: %w", len(abs), MaxSocketPath, scstore.ErrInvalid),
				"choose a shorter folder, or put the sockets elsewhere with --api and --nbd")
		}
		return Addr{Network: "unix", Address: abs}, nil
	}
	if _, _, err := net.SplitHostPort(s); err != nil {
		return Addr{}, scstore.Hint(fmt.Errorf("address %q: %w", s, scstore.ErrInvalid), "write unix:/path or host:port")
	}
	return Addr{Network: "tcp", Address: s}, nil
}

// String returns what ParseAddr reads.
func (a Addr) String() string {
	if a.Network == "unix" {
		return "unix:" + a.Address
	}
	return a.Address
}
