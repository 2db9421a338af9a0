package wan

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"

	"scstore"
)

// errStartedOutside is what starting the exec.Cmd within a Cmd by itself says.
var errStartedOutside = errors.New("start a command of a site through wan.Cmd or Network.Start")

// Start starts a command in a site. Its program is looked up, and its files are
// opened, as always; only its network is the site's. It is killed when the network
// is closed or this process ends, however that happens; the caller waits for it. A
// Pdeathsig of its own is kept. What the program starts is not killed with it.
//
// Errors: scstore.ErrNotFound, ErrClosed; as exec.Cmd.Start.
func (n *Network) Start(site string, cmd *exec.Cmd) error {
	i, err := n.site(site)
	if err != nil {
		return err
	}
	if err := n.medium.start(i, cmd); err != nil {
		return fmt.Errorf("start %q in site %q: %w", cmd.Path, site, err)
	}
	return nil
}

// Cmd is an exec.Cmd that is started in a site. The methods that start it are its
// own; the exec.Cmd within refuses to be started by itself.
type Cmd struct {
	*exec.Cmd
	network *Network
	site    string
	err     error // of the search for the program
}

// Command prepares a command to be run in a site; ctx kills it, as in
// exec.CommandContext. Errors are told when it is started.
func (n *Network) Command(ctx context.Context, site, name string, args ...string) *Cmd {
	c := &Cmd{Cmd: exec.CommandContext(ctx, name, args...), network: n, site: site}
	c.err, c.Err = c.Err, errStartedOutside
	return c
}

// Start starts the command in its site: see Network.Start.
func (c *Cmd) Start() error {
	c.Err = c.err
	return c.network.Start(c.site, c.Cmd)
}

// Run starts the command and waits for it. Errors: as Start and exec.Cmd.Wait.
func (c *Cmd) Run() error {
	if err := c.Start(); err != nil {
		return err
	}
	return c.Wait()
}

// Output runs the command and returns what it wrote to standard output.
// Errors: as Run; ErrInvalid if Stdout is set.
func (c *Cmd) Output() ([]byte, error) {
	if c.Stdout != nil {
		return nil, fmt.Errorf("run %q: standard output is set: %w", c.Path, scstore.ErrInvalid)
	}
	var out bytes.Buffer
	c.Stdout = &out
	err := c.Run()
	return out.Bytes(), err
}

// CombinedOutput runs the command and returns what it wrote to standard output and
// standard error. Errors: as Run; ErrInvalid if Stdout or Stderr is set.
func (c *Cmd) CombinedOutput() ([]byte, error) {
	if c.Stdout != nil || c.Stderr != nil {
		return nil, fmt.Errorf("run %q: standard output or error is set: %w", c.Path, scstore.ErrInvalid)
	}
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	err := c.Run()
	return out.Bytes(), err
}
