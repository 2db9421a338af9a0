package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"scstore/e2e"
)

const (
	image  = "images/demo"
	volume = "demo"
	// recordsBetween is how many records the guest writes between two events.
	recordsBetween = 25
	// demoTimeout bounds the whole.
	demoTimeout = 5 * time.Minute
)

func main() {
	t := &tour{}
	flag.BoolVar(&t.keep, "keep", false, "keep the folder with the stores, the disk and the logs")
	flag.IntVar(&t.kills, "kills", 1, "how often the single host is killed under the guest")
	flag.StringVar(&t.binary, "scstore", "bin/scstore", "the program")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, demoTimeout)
	defer cancel()
	if err := t.run(ctx); err != nil {
		fmt.Fprintf(os.Stderr, "demo: FAILED: %v\n", err)
		os.Exit(1)
	}
}

// tour is one run of the demo.
type tour struct {
	binary string
	keep   bool
	kills  int

	dir    string
	log    *os.File // the guests' serial lines
	began  time.Time
	guest  guest
	server *e2e.Server // of the first act
	sites  *e2e.Sites  // of the second
	acked  int         // records that the guest acknowledged
}

// say prints a line of the timeline.
func (t *tour) say(format string, args ...any) {
	fmt.Printf("%7.2f s  "+format+"\n", append([]any{time.Since(t.began).Seconds()}, args...)...)
}

// act prints a heading.
func (t *tour) act(title string) { fmt.Printf("\n%s\n", title) }

// run is the whole tour.
func (t *tour) run(ctx context.Context) (err error) {
	t.began = time.Now()
	if t.dir, err = os.MkdirTemp("", "scstore-demo-"); err != nil {
		return err
	}
	defer func() {
		if t.server != nil {
			err = errors.Join(err, t.server.Kill())
		}
		if t.sites != nil {
			err = errors.Join(err, t.sites.Close())
		}
		if t.keep {
			fmt.Printf("kept %s\n", t.dir)
			return
		}
		err = errors.Join(err, os.RemoveAll(t.dir))
	}()
	if t.log, err = os.Create(filepath.Join(t.dir, "guest.log")); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, t.log.Close()) }()
	for _, step := range []func(context.Context) error{t.makeGuest, t.oneHost, t.threeSites} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (t *tour) makeGuest(ctx context.Context) (err error) {
	if t.guest, err = makeGuest(ctx, t.dir); err != nil {
		return err
	}
	t.say("made a bootable %s disk with Linux %s", diskSize, t.guest.release)
	return nil
}

// oneHost is the first act: a host that is killed under its guest.
func (t *tour) oneHost(ctx context.Context) error {
	t.act("One host")
	for _, step := range []func(context.Context) error{t.serve, t.importDisk, t.writeAndKill, t.bootAgain, t.stop} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	t.say("nothing was lost: %d records acknowledged, %d kills", t.acked, t.kills+1)
	return nil
}

func (t *tour) serve(ctx context.Context) (err error) {
	t.server, err = e2e.Serve(ctx, t.binary, filepath.Join(t.dir, "store"))
	if err != nil {
		return err
	}
	t.say("scstore serve: ready after %d ms", t.server.ReadyAfter().Milliseconds())
	return nil
}

// runner runs a client command against some host.
type runner func(ctx context.Context, args ...string) (string, error)

func (t *tour) importDisk(ctx context.Context) error { return t.importAt(ctx, t.server.Run) }

// importAt imports the disk and bases a volume on it.
func (t *tour) importAt(ctx context.Context, run runner) error {
	began := time.Now()
	text, err := run(ctx, "--json", "image", "import", t.guest.disk, image)
	if err != nil {
		return err
	}
	var made struct {
		SizeBytes int64 `json:"size_bytes"`
		DataBytes int64 `json:"data_bytes"`
	}
	if err := json.Unmarshal([]byte(text), &made); err != nil {
		return fmt.Errorf("read the answer of import: %w", err)
	}
	t.say("scstore image import: %d MiB of data in a disk of %d MiB, durable after %d ms", made.DataBytes>>20, made.SizeBytes>>20, time.Since(began).Milliseconds())
	began = time.Now()
	if _, err := run(ctx, "volume", "create", volume, "--from", image); err != nil {
		return err
	}
	t.say("scstore volume create --from: %d ms, nothing copied", time.Since(began).Milliseconds())
	return nil
}

// boot boots the guest from a volume of a host.
func (t *tour) boot(ctx context.Context, run runner, name, mode string) (*machine, error) {
	text, err := run(ctx, "--json", "nbd", "url", name, "--qemu")
	if err != nil {
		return nil, err
	}
	var url struct {
		Options []string `json:"options"`
	}
	if err := json.Unmarshal([]byte(text), &url); err != nil {
		return nil, fmt.Errorf("read the answer of nbd url: %w", err)
	}
	began := time.Now()
	m, err := boot(t.guest, url.Options, mode, t.log)
	if err != nil {
		return nil, err
	}
	e, err := m.wait(ctx, word("booted"))
	if err == nil {
		_, err = m.wait(ctx, word("found"))
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("boot: %w", err), m.kill())
	}
	t.say("qemu booted Linux %s from the volume in %.1f s", e.rest, e.at.Sub(began).Seconds())
	return m, nil
}

// writeAndKill lets the guest write and kills the host under it.
func (t *tour) writeAndKill(ctx context.Context) (err error) {
	m, err := t.boot(ctx, t.server.Run, volume, "write")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.kill()) }()
	first, err := m.wait(ctx, word("ack"))
	if err != nil {
		return err
	}
	for range t.kills {
		if _, err := m.writeMore(ctx); err != nil {
			return err
		}
		if err := t.killOnce(ctx, m); err != nil {
			return err
		}
	}
	last, err := m.writeMore(ctx)
	if err != nil {
		return err
	}
	t.say("the guest has acknowledged %d synced records in %.1f s", m.acked, last.at.Sub(first.at).Seconds())
	found, err := m.finish(ctx)
	t.acked = m.acked
	if err != nil {
		return err
	}
	return t.compare(found, "read back without its cache")
}

// killOnce kills the host, starts it again and waits until the guest goes on.
func (t *tour) killOnce(ctx context.Context, m *machine) error {
	killed := time.Now()
	if err := t.server.Kill(); err != nil {
		return err
	}
	var err error
	if t.server, err = e2e.Serve(ctx, t.binary, filepath.Join(t.dir, "store")); err != nil {
		return err
	}
	ready := time.Now()
	before := m.acked
	next, err := m.wait(ctx, func(e event) bool {
		if e.word == "ack" && e.at.Before(ready) {
			before = m.acked // printed before the kill, read after it
		}
		return e.word == "ack" && !e.at.Before(ready)
	})
	if err != nil {
		return fmt.Errorf("after kill -9: %w", err)
	}
	t.say("kill -9 after record %d: serving again after %d ms, the guest's next record after %d ms",
		before, ready.Sub(killed).Milliseconds(), next.at.Sub(killed).Milliseconds())
	return nil
}

// bootAgain kills the host once more and boots the guest anew.
func (t *tour) bootAgain(ctx context.Context) (err error) {
	if err := t.server.Kill(); err != nil {
		return err
	}
	if err := t.serve(ctx); err != nil {
		return err
	}
	return t.bootAndCompare(ctx, t.server.Run, volume, "read by a second boot, after one more kill -9")
}

// bootAndCompare boots the guest only to look for the records.
func (t *tour) bootAndCompare(ctx context.Context, run runner, name, how string) (err error) {
	m, err := t.boot(ctx, run, name, "verify")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.kill()) }()
	found, err := m.kept(ctx)
	if err != nil {
		return err
	}
	return t.compare(found, how)
}

// compare compares what was found with what the guest acknowledged.
func (t *tour) compare(found int, how string) error {
	if found < t.acked {
		return fmt.Errorf("LOST: the guest acknowledged %d records, but only %d can be %s", t.acked, found, how)
	}
	t.say("all %d records %s", found, how)
	return nil
}

func (t *tour) stop(context.Context) error {
	began := time.Now()
	err := t.server.Stop()
	t.server = nil
	if err == nil {
		t.say("scstore serve stopped by SIGTERM in %d ms", time.Since(began).Milliseconds())
	}
	return err
}
