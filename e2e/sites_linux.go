package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"scstore"
	"scstore/internal/api"
	"scstore/sim/wan"
)

const (
	// HostPort is the UDP port of every site's host; each is alone in its namespace.
	HostPort = 7400
	// askInterval is the time between two looks at what is waited for.
	askInterval = 50 * time.Millisecond
	// exitNoMajority is the exit code of a command for which too few hosts answer.
	exitNoMajority = 17
	// apiSocket is the API's socket in the folder of a store.
	apiSocket = "api.sock"
)

// SitesOptions says what to start.
type SitesOptions struct {
	Binary string   // the program
	Dir    string   // an existing folder; the store of a site is in Dir/SITE
	Names  []string // of the sites; the first one begins the cluster
	// RTT, BitsPerSecond and Loss are those between any two sites; 0 bits are no limit.
	RTT           time.Duration
	BitsPerSecond int64
	Loss          float64 // the probability that a packet is lost
	// Env returns what a site's host finds in its environment beside what this process
	// has; nil adds nothing.
	Env func(site string) []string
}

// Sites is a cluster on one machine: sites with a wide-area network between them,
// each a network namespace with one host, SITE1. File systems are shared, so the
// sockets of every host can be used from everywhere. It needs root.
//
// It is used by one goroutine, but for Cut, Heal, those of a link, SetLinks, Bytes,
// SentBytes, Run and what is made of it, which are safe for concurrent use with each other.
type Sites struct {
	o       SitesOptions
	network *wan.Network
	hosts   map[string]*Server // those that run
}

// OpenSites opens the network, starts a host at each site and joins them. It returns
// when every one can be used. The caller closes it.
func OpenSites(ctx context.Context, o SitesOptions) (*Sites, error) {
	link := wan.RTT(o.RTT).WithLoss(o.Loss)
	if o.BitsPerSecond > 0 {
		link = link.WithRate(o.BitsPerSecond)
	}
	network, err := wan.Open(ctx, wan.Options{Sites: o.Names, Link: link, Seed: 1})
	if err != nil {
		return nil, err
	}
	s := &Sites{o: o, network: network, hosts: map[string]*Server{}}
	for i, site := range o.Names {
		if err := s.join(ctx, site, i == 0); err != nil {
			return nil, errors.Join(err, s.Close())
		}
	}
	for _, site := range o.Names {
		if err := s.WaitReady(ctx, site); err != nil {
			return nil, errors.Join(err, s.Close())
		}
	}
	return s, nil
}

// join starts a site's host for the first time: it begins the cluster, or joins it
// with a token of the first one.
func (s *Sites) join(ctx context.Context, site string, begins bool) error {
	if begins {
		if err := s.Start(ctx, site); err != nil {
			return err
		}
		return s.WaitReady(ctx, site)
	}
	token, err := s.Run(ctx, s.o.Names[0], "host", "token", "--site", site)
	if err != nil {
		return err
	}
	file := filepath.Join(s.o.Dir, site+".token")
	if err := os.WriteFile(file, []byte(token), 0o600); err != nil {
		return fmt.Errorf("keep the token: %w", err)
	}
	return s.Start(ctx, site, "--join", "@"+file)
}

// Start starts a site's host, and returns when it serves. Errors: as Serve; ErrBusy
// if it runs.
func (s *Sites) Start(ctx context.Context, site string, more ...string) error {
	if s.hosts[site] != nil {
		return fmt.Errorf("start the host of site %q: it runs: %w", site, scstore.ErrBusy)
	}
	args := append([]string{"--site", site, "--name", HostName(site), "--listen", s.Addr(site, HostPort)}, more...)
	host, err := s.Serve(ctx, site, s.Folder(site), args...)
	if err != nil {
		return err
	}
	s.hosts[site] = host
	return nil
}

// Serve starts another host at a site, in a folder of its own. The caller ends it.
// Errors: as the function Serve; ErrNotFound for the site.
func (s *Sites) Serve(ctx context.Context, site, dir string, args ...string) (*Server, error) {
	start := func(cmd *exec.Cmd) error {
		if s.o.Env != nil {
			cmd.Env = append(os.Environ(), s.o.Env(site)...)
		}
		return s.network.Start(site, cmd)
	}
	return serve(ctx, start, s.o.Binary, dir, args...)
}

// Addr returns a port at a site's address, as host:port; empty for a site that is
// none.
func (s *Sites) Addr(site string, port uint16) string {
	addrs := s.network.Addrs(site)
	if len(addrs) == 0 {
		return ""
	}
	return netip.AddrPortFrom(addrs[0], port).String()
}

// ListenPacket opens a UDP socket at a site; port 0 is any. The caller closes it.
func (s *Sites) ListenPacket(ctx context.Context, site string, port uint16) (net.PacketConn, error) {
	return s.network.ListenPacket(ctx, site, "udp", s.Addr(site, port))
}

// HostName returns the name of a site's host.
func HostName(site string) string { return site + "1" }

// Folder returns the folder of a site's store.
func (s *Sites) Folder(site string) string { return filepath.Join(s.o.Dir, site) }

// Names returns the sites, as they were given.
func (s *Sites) Names() []string { return slices.Clone(s.o.Names) }

// Host returns the host of a site; nil if it does not run.
func (s *Sites) Host(site string) *Server { return s.hosts[site] }

// Stop stops a site's host. Errors: as Server.Stop.
func (s *Sites) Stop(site string) error { return s.end(site, (*Server).Stop) }

// Kill ends a site's host with SIGKILL.
func (s *Sites) Kill(site string) error { return s.end(site, (*Server).Kill) }

func (s *Sites) end(site string, how func(*Server) error) error {
	host := s.hosts[site]
	if host == nil {
		return nil
	}
	delete(s.hosts, site)
	return how(host)
}

// Cut cuts a site from all others: what is under way is lost too.
func (s *Sites) Cut(site string) error { return s.others(site, s.network.Partition) }

// Heal ends a cut.
func (s *Sites) Heal(site string) error { return s.others(site, s.network.Heal) }

// CutLink cuts two sites from each other: each still reaches the others.
func (s *Sites) CutLink(a, b string) error { return s.network.Partition(a, b) }

// HealLink ends a cut of two sites from each other.
func (s *Sites) HealLink(a, b string) error { return s.network.Heal(a, b) }

func (s *Sites) others(site string, f func(a, b string) error) error {
	var errs []error
	for _, other := range s.o.Names {
		if other != site {
			errs = append(errs, f(site, other))
		}
	}
	return errors.Join(errs...)
}

// SetLinks changes all links while they run: the round trip and the rate between any two
// sites; 0 bits are no limit.
func (s *Sites) SetLinks(rtt time.Duration, bitsPerSecond int64) error {
	var errs []error
	for _, from := range s.o.Names {
		errs = append(errs, s.others(from, func(from, to string) error {
			link, err := s.network.Link(from, to)
			if err != nil {
				return err
			}
			link.Delay = rtt / 2
			return s.network.SetLink(from, to, link.WithRate(bitsPerSecond))
		}))
	}
	return errors.Join(errs...)
}

// Bytes returns how many bytes have arrived at one site from another one, in IP
// packets.
func (s *Sites) Bytes(from, to string) uint64 { return s.network.Stats(from, to).DeliveredBytes }

// SentBytes returns how many bytes one site has sent to another one, in IP packets,
// whether or not they arrived.
func (s *Sites) SentBytes(from, to string) uint64 { return s.network.Stats(from, to).SentBytes }

// AllBytes returns how many bytes have arrived anywhere.
func (s *Sites) AllBytes() uint64 {
	sum := uint64(0)
	for _, from := range s.o.Names {
		for _, to := range s.o.Names {
			sum += s.Bytes(from, to)
		}
	}
	return sum
}

// Client returns a client of a site's host. The caller closes it.
func (s *Sites) Client(site string) *api.Client {
	return api.NewClient(api.Addr{Network: "unix", Address: filepath.Join(s.Folder(site), apiSocket)})
}

// Run runs a client command against the host of a site and returns its standard
// output. Errors: *exec.ExitError, with what the command said.
func (s *Sites) Run(ctx context.Context, site string, args ...string) (string, error) {
	return Output(ctx, append([]string{s.o.Binary, "--host", "unix:" + filepath.Join(s.Folder(site), apiSocket)}, args...)...)
}

// decode is Run with --json.
func decode[T any](ctx context.Context, s *Sites, site string, args ...string) (T, error) {
	var v T
	text, err := s.Run(ctx, site, append([]string{"--json"}, args...)...)
	if err != nil {
		return v, err
	}
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		return v, fmt.Errorf("read the answer of %v: %w", args, err)
	}
	return v, nil
}

// WaitReady waits until a site's host and its cluster can be used.
func (s *Sites) WaitReady(ctx context.Context, site string) error {
	_, err := s.Run(ctx, site, "status", "--wait")
	return err
}

// Cluster asks the host of a site about the cluster.
func (s *Sites) Cluster(ctx context.Context, site string) (api.Cluster, error) {
	state, err := decode[struct {
		Cluster *api.Cluster `json:"cluster"`
	}](ctx, s, site, "status")
	switch {
	case err != nil:
		return api.Cluster{}, err
	case state.Cluster == nil:
		return api.Cluster{}, fmt.Errorf("status at site %q: the answer does not describe a cluster: %w", site, scstore.ErrInvalid)
	}
	return *state.Cluster, nil
}

// Volume asks the host of a site about a volume.
func (s *Sites) Volume(ctx context.Context, site, name string) (api.Volume, error) {
	v, err := decode[api.Volume](ctx, s, site, "volume", "info", name)
	if err == nil && v.Where == nil {
		err = fmt.Errorf("volume %q: the answer does not say where it is: %w", name, scstore.ErrInvalid)
	}
	return v, err
}

// Move hands a volume to another site, by the host of its owner's site.
func (s *Sites) Move(ctx context.Context, site, name, to string, flags ...string) (api.MoveReport, error) {
	return decode[api.MoveReport](ctx, s, site, append([]string{"volume", "move", name, "--to", to}, flags...)...)
}

// Promote gives a volume to a site without its owner, by that site's host. As a person
// would, it tries again while the sites that are left choose a leader.
func (s *Sites) Promote(ctx context.Context, name, to string, flags ...string) (api.PromoteReport, error) {
	args := append([]string{"volume", "promote", name, "--to", to}, flags...)
	for {
		r, err := decode[api.PromoteReport](ctx, s, to, args...)
		if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != exitNoMajority {
			return r, err
		}
		select {
		case <-ctx.Done():
			return r, errors.Join(context.Cause(ctx), err)
		case <-time.After(askInterval):
		}
	}
}

// WaitVolume waits until what the host of a site says of a volume is as wanted.
// Errors: what it said last, when ctx ends.
func (s *Sites) WaitVolume(ctx context.Context, site, name string, wanted func(api.Where) bool) (api.Where, error) {
	for {
		v, err := s.Volume(ctx, site, name)
		if err == nil && wanted(*v.Where) {
			return *v.Where, nil
		}
		select {
		case <-ctx.Done():
			state := "nothing"
			if v.Where != nil {
				state = fmt.Sprintf("%+v", *v.Where)
			}
			return api.Where{}, errors.Join(fmt.Errorf("wait for volume %q at site %q, which says %s: %w", name, site, state, context.Cause(ctx)), err)
		case <-time.After(askInterval):
		}
	}
}

// WaitBranch waits until the host of a site lists a branch of a volume, and returns the
// newest one's name.
func (s *Sites) WaitBranch(ctx context.Context, site, name string) (string, error) {
	w, err := s.WaitVolume(ctx, site, name, func(w api.Where) bool { return len(w.Branches) > 0 })
	if err != nil {
		return "", err
	}
	return w.Branches[len(w.Branches)-1], nil
}

// WaitCurrent waits until a volume is complete at its owner, whose site is asked, and
// until the sites hold all that the owner has. Nobody may be writing.
func (s *Sites) WaitCurrent(ctx context.Context, owner, name string, sites ...string) error {
	_, err := s.WaitVolume(ctx, owner, name, func(w api.Where) bool {
		for _, site := range sites {
			if !slices.ContainsFunc(w.Copies, func(c api.CopyInfo) bool { return c.Site == site && c.Current }) {
				return false
			}
		}
		return w.Tether == nil && (len(sites) == 0 || w.OnlyBytes == 0)
	})
	return err
}

// Close kills the hosts and ends the network.
func (s *Sites) Close() error {
	var errs []error
	for _, site := range s.o.Names {
		errs = append(errs, s.Kill(site))
	}
	return errors.Join(append(errs, s.network.Close())...)
}
