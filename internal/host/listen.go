package host

import (
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"

	"scstore"
	"scstore/internal/api"
)

// dialTimeout is how long a socket file that is in the way gets to answer.
const dialTimeout = time.Second

// listen opens a door. A unix socket gets mode 0600 before it has its name; one
// that nobody listens on any more is replaced. Errors: ErrBusy (in use),
// ErrInvalid.
func listen(a api.Addr) (net.Listener, error) {
	if a.Network != "unix" {
		l, err := net.Listen(a.Network, a.Address)
		switch {
		case errors.Is(err, syscall.EADDRINUSE):
			return nil, scstore.Hint(fmt.Errorf("address %s is in use: %w", a, scstore.ErrBusy), "stop what listens there, or choose another address")
		case err != nil:
			return nil, fmt.Errorf("listen on %s: %v: %w", a, err, scstore.ErrInvalid)
		}
		return l, nil
	}
	if err := checkSocket(a); err != nil {
		return nil, err
	}
	tmp := a.Address + ".new"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("listen on %s: %w", a, err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: tmp})
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %v: %w", a, err, scstore.ErrInvalid)
	}
	l.SetUnlinkOnClose(false) // it would remove the name that it was made under
	if err := errors.Join(os.Chmod(tmp, 0o600), os.Rename(tmp, a.Address)); err != nil {
		return nil, errors.Join(fmt.Errorf("listen on %s: %w", a, err), l.Close())
	}
	return &socketListener{UnixListener: l, path: a.Address}, nil
}

// checkSocket makes sure that nothing that is alive is in the way.
func checkSocket(a api.Addr) error {
	info, err := os.Lstat(a.Address)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("listen on %s: %v: %w", a, err, scstore.ErrInvalid)
	case info.Mode()&os.ModeSocket == 0:
		return scstore.Hint(fmt.Errorf("listen on %s: a file that is no socket is there: %w", a, scstore.ErrExists), "choose another path, or remove the file")
	}
	conn, err := net.DialTimeout("unix", a.Address, dialTimeout)
	if errors.Is(err, syscall.ECONNREFUSED) {
		return nil // nobody listens: left by a process that was killed
	}
	if err == nil {
		_ = conn.Close() // it was only a question
	}
	return scstore.Hint(fmt.Errorf("socket %s is in use: %w", a.Address, scstore.ErrBusy), "stop what listens there, or choose another path")
}

// socketListener removes its file when it is closed.
type socketListener struct {
	*net.UnixListener
	path string
}

// Close closes the socket and removes its file.
func (l *socketListener) Close() error {
	err := l.UnixListener.Close()
	if err == nil {
		_ = os.Remove(l.path) // a file that stays is replaced at the next start
	}
	return err
}
