package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"scstore"
)

// Kind says what part a target plays.
type Kind string

// The kinds of targets.
const (
	KindStore Kind = "store" // scstore itself
	KindPeer  Kind = "peer"  // what it is compared with
	KindLimit Kind = "limit" // a bare loop over memory
)

// The names of the targets.
const (
	StoreName = "scstore"
	BareName  = "bare"
)

// exportName is the export's name at every server.
const exportName = "bench"

// peer is a server of a raw file that others make.
type peer struct {
	name    string
	program string // whose version is asked
	argv    func(file, socket string) []string
}

func qemuNBD(aio string) func(file, socket string) []string {
	return func(file, socket string) []string {
		return []string{
			"qemu-nbd", "--format=raw", "--persistent", "--shared=16", "--socket=" + socket, "--export-name=" + exportName,
			"--cache=writeback", "--aio=" + aio, "--discard=unmap", file,
		}
	}
}

// peers returns the known peers, each with its best flags: buffered, as the store
// is, and with io_uring, which reads two to three times as fast as threads here.
func peers() []peer {
	return []peer{
		{"qemu-nbd", "qemu-nbd", qemuNBD("io_uring")},
		{"qemu-nbd-threads", "qemu-nbd", qemuNBD("threads")},
		{"nbdkit", "nbdkit", func(file, socket string) []string {
			return []string{"nbdkit", "--foreground", "--threads=16", "--unix=" + socket, "file", "file=" + file}
		}},
		{"qemu-storage-daemon", "qemu-storage-daemon", func(file, socket string) []string {
			return []string{
				"qemu-storage-daemon",
				"--blockdev", "driver=file,node-name=file,filename=" + qemuEscape(file) + ",cache.direct=off,aio=io_uring,discard=unmap",
				"--blockdev", "driver=raw,node-name=disk,file=file",
				"--nbd-server", "addr.type=unix,addr.path=" + qemuEscape(socket) + ",max-connections=16",
				"--export", "type=nbd,id=export,node-name=disk,name=" + exportName + ",writable=on",
			}
		}},
	}
}

// qemuEscape doubles commas, which end a value in qemu's options.
func qemuEscape(s string) string { return strings.ReplaceAll(s, ",", ",,") }

// DefaultPeers returns the names of the peers that a run takes if it names none.
func DefaultPeers() []string { return []string{"qemu-nbd", "nbdkit", "qemu-storage-daemon"} }

// KnownPeers returns the names of all peers.
func KnownPeers() []string {
	var names []string
	for _, p := range peers() {
		names = append(names, p.name)
	}
	return names
}

// Target is a server that a run measured.
type Target struct {
	Name    string   `json:"name"`
	Kind    Kind     `json:"kind"`
	Version string   `json:"version"`
	Command []string `json:"command"`
}

// target is a running server.
type target struct {
	Target
	url  string
	proc *process // nil for a bare loop in this process
	stop func() error
}

// usage returns what the server has taken so far.
func (t *target) usage() use {
	if t.proc == nil {
		return use{}
	}
	return t.proc.usage()
}

// answers reports whether an export can be opened.
func answers(url string) func(context.Context) error {
	return func(ctx context.Context) error {
		c, err := dial(ctx, url, 1)
		if err != nil {
			return err
		}
		return c.Close()
	}
}

func unixURL(socket string) string { return "nbd+unix:///" + exportName + "?socket=" + socket }

// startPeer starts the named peer over a file of sizeBytes in dir, which is made
// if it is missing. Sockets are put in runDir, whose name is short.
func startPeer(ctx context.Context, name, dir, runDir string, sizeBytes int64) (*target, error) {
	for _, p := range peers() {
		if p.name != name {
			continue
		}
		file := filepath.Join(dir, name+".raw")
		f, err := os.OpenFile(file, os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			return nil, fmt.Errorf("make the disk of %s: %w", name, err)
		}
		if err := errors.Join(f.Truncate(sizeBytes), f.Close()); err != nil {
			return nil, fmt.Errorf("make the disk of %s: %w", name, err)
		}
		socket := filepath.Join(runDir, name+".sock")
		// A server that was killed leaves its socket, and some refuse to start over it.
		if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("remove an old socket: %w", err)
		}
		t := &target{Target: Target{Name: name, Kind: KindPeer, Command: p.argv(file, socket)}, url: unixURL(socket)}
		if t.Version, err = firstLine(ctx, p.program, "--version"); err != nil {
			return nil, scstore.Hint(err, "install %s, or leave it out", p.program)
		}
		if t.proc, err = startProcess(ctx, t.Command, answers(t.url)); err != nil {
			return nil, err
		}
		t.stop = t.proc.stop
		return t, nil
	}
	return nil, fmt.Errorf("start the peer %q: want one of %s: %w", name, strings.Join(KnownPeers(), ", "), scstore.ErrInvalid)
}

func firstLine(ctx context.Context, argv ...string) (string, error) {
	text, err := output(ctx, argv...)
	line, _, _ := strings.Cut(text, "\n")
	return line, err
}

// startStore starts scstore in dir/scstore and makes the volume if it is missing.
func startStore(ctx context.Context, binary, dir, runDir string, sizeBytes int64) (*target, error) {
	apiAddr := "unix:" + filepath.Join(runDir, "api.sock")
	client := func(ctx context.Context, args ...string) (string, error) {
		return output(ctx, append([]string{binary, "--host", apiAddr}, args...)...)
	}
	t := &target{Target: Target{Name: StoreName, Kind: KindStore}}
	t.Command = []string{
		binary, "serve", "--dir", filepath.Join(dir, StoreName),
		"--api", apiAddr, "--nbd", "unix:" + filepath.Join(runDir, "nbd.sock"),
	}
	var err error
	if t.Version, err = firstLine(ctx, binary, "version"); err != nil {
		return nil, err
	}
	t.proc, err = startProcess(ctx, t.Command, func(ctx context.Context) error {
		_, err := client(ctx, "volume", "ls")
		return err
	})
	if err != nil {
		return nil, err
	}
	t.stop = t.proc.stop
	t.url, err = client(ctx, "nbd", "url", exportName)
	if err != nil {
		if _, err = client(ctx, "volume", "create", exportName, "--size", strconv.FormatInt(sizeBytes, 10)); err == nil {
			t.url, err = client(ctx, "nbd", "url", exportName)
		}
	}
	if err != nil {
		return nil, errors.Join(err, t.stop())
	}
	return t, nil
}

// startBare starts the bare loop: as a child if there is a command for it, else in
// this process, where it shares the scheduler with the load.
func startBare(ctx context.Context, command []string, runDir string, sizeBytes int64) (*target, error) {
	socket := filepath.Join(runDir, "bare.sock")
	t := &target{Target: Target{Name: BareName, Kind: KindLimit, Version: "memory"}, url: unixURL(socket)}
	if len(command) > 0 {
		t.Command = append(append([]string(nil), command...), socket, strconv.FormatInt(sizeBytes, 10))
		var err error
		if t.proc, err = startProcess(ctx, t.Command, answers(t.url)); err != nil {
			return nil, err
		}
		t.stop = t.proc.stop
		return t, nil
	}
	t.Command = []string{"(in this process)"}
	l, err := net.Listen("unix", socket)
	if err != nil {
		return nil, fmt.Errorf("start the bare loop: %w", err)
	}
	serveCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var wg sync.WaitGroup
	var served error
	wg.Go(func() { served = ServeBare(serveCtx, l, sizeBytes) })
	t.stop = func() error {
		cancel()
		wg.Wait()
		return served
	}
	return t, nil
}

// fill writes all of the export once, in order, and flushes, so that no target
// gains or loses by blocks that were never written.
func fill(ctx context.Context, t *target, sizeBytes int64, seed uint64) (time.Duration, error) {
	const step = 1 << 20
	start := time.Now()
	_, err := Load(ctx, LoadOptions{
		URL: t.url, BlockBytes: step, Sequential: true, QueueDepth: 8, Ops: sizeBytes / step, Seed: seed,
	})
	if err != nil {
		return 0, fmt.Errorf("fill %s: %w", t.Name, err)
	}
	return time.Since(start), nil
}
