package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
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
	// recordsBetween is how many records the guest writes between two kills.
	recordsBetween = 25
	// demoTimeout bounds the whole.
	demoTimeout = 5 * time.Minute
)

func main() {
	t := &tour{}
	flag.BoolVar(&t.keep, "keep", false, "keep the folder with the store, the disk and the logs")
	flag.IntVar(&t.kills, "kills", 3, "how often the host is killed")
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
	log    *os.File // the guest's serial line
	began  time.Time
	guest  guest
	server *e2e.Server
	acked  int // records that the guest acknowledged
}

// say prints a line of the timeline.
func (t *tour) say(format string, args ...any) {
	fmt.Printf("%7.2f s  "+format+"\n", append([]any{time.Since(t.began).Seconds()}, args...)...)
}

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
	for _, step := range []func(context.Context) error{t.makeGuest, t.serve, t.importDisk, t.writeAndKill, t.bootAgain, t.stop} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	t.say("nothing was lost: %d records acknowledged, %d kills", t.acked, t.kills+1)
	return nil
}

func (t *tour) makeGuest(ctx context.Context) (err error) {
	if t.guest, err = makeGuest(ctx, t.dir); err != nil {
		return err
	}
	t.say("made a bootable %s disk with Linux %s", diskSize, t.guest.release)
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

// importDisk imports the disk and bases a volume on it.
func (t *tour) importDisk(ctx context.Context) error {
	began := time.Now()
	text, err := t.server.Run(ctx, "--json", "image", "import", t.guest.disk, image)
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
	if _, err := t.server.Run(ctx, "volume", "create", volume, "--from", image); err != nil {
		return err
	}
	t.say("scstore volume create --from: %d ms, nothing copied", time.Since(began).Milliseconds())
	return nil
}

// boot boots the guest from the volume.
func (t *tour) boot(ctx context.Context, mode string) (*machine, error) {
	text, err := t.server.Run(ctx, "--json", "nbd", "url", volume, "--qemu")
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
	if err != nil {
		return nil, errors.Join(fmt.Errorf("boot: %w", err), m.kill())
	}
	t.say("qemu booted Linux %s from the volume in %.1f s", e.rest, e.at.Sub(began).Seconds())
	return m, nil
}

// writeAndKill lets the guest write and kills the host under it.
func (t *tour) writeAndKill(ctx context.Context) (err error) {
	m, err := t.boot(ctx, "write")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.kill()) }()
	first, err := m.wait(ctx, word("ack"))
	if err != nil {
		return err
	}
	for range t.kills {
		target := m.acked + recordsBetween
		if _, err := m.wait(ctx, func(event) bool { return m.acked >= target }); err != nil {
			return err
		}
		if err := t.killOnce(ctx, m); err != nil {
			return err
		}
	}
	target := m.acked + recordsBetween
	last, err := m.wait(ctx, func(event) bool { return m.acked >= target })
	if err != nil {
		return err
	}
	t.say("the guest has acknowledged %d synced records in %.1f s", m.acked, last.at.Sub(first.at).Seconds())
	if _, err := io.WriteString(m.stdin, "stop\n"); err != nil {
		return fmt.Errorf("stop the guest: %w", err)
	}
	found, err := m.kept(ctx)
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
	m, err := t.boot(ctx, "verify")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.kill()) }()
	found, err := m.kept(ctx)
	if err != nil {
		return err
	}
	return t.compare(found, "read by a second boot, after one more kill -9")
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
