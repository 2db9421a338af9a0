package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"scstore/e2e"
)

// stepTimeout bounds each wait for the guest.
const stepTimeout = 60 * time.Second

// maxEvents is how many lines of the guest may wait to be looked at; a guest that
// prints more waits.
const maxEvents = 4096

// event is one line that begins with @ on the guest's serial line.
type event struct {
	at   time.Time
	word string // booted, found, ack, kept, done, error
	rest string
}

// machine is a running QEMU.
type machine struct {
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	events chan event // closed when QEMU has ended
	found  int        // records that it found when it booted
	acked  int        // the highest number that it printed, or found
	err    error      // how QEMU ended
}

// boot starts QEMU, which emulates the processor, so that any machine can run it.
// The options of the disk are those that "scstore nbd url --qemu" prints.
func boot(g guest, diskOptions []string, mode string, log io.Writer) (*machine, error) {
	argv := append([]string{
		"-accel", "tcg,thread=multi", "-M", "pc", "-cpu", "qemu64", "-m", "256",
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio",
		"-kernel", g.kernel, "-initrd", g.initramfs,
		"-append", "console=ttyS0 quiet panic=-1 demo=" + mode,
	}, diskOptions...)
	m := &machine{cmd: exec.Command("qemu-system-x86_64", argv...), events: make(chan event, maxEvents)}
	m.cmd.SysProcAttr = e2e.ChildAttributes()
	m.cmd.Stderr = log
	stdin, err := m.cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("start qemu: %w", err)
	}
	stdout, err := m.cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("start qemu: %w", err)
	}
	m.stdin = stdin
	if err := m.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start qemu: %w", err)
	}
	go m.listen(io.TeeReader(stdout, log))
	return m, nil
}

// listen passes on what the guest prints until QEMU ends.
func (m *machine) listen(serial io.Reader) {
	lines := bufio.NewScanner(serial)
	for lines.Scan() {
		if text, ok := strings.CutPrefix(strings.TrimSpace(lines.Text()), "@"); ok {
			word, rest, _ := strings.Cut(text, " ")
			m.events <- event{at: time.Now(), word: word, rest: rest}
		}
	}
	m.err = m.cmd.Wait()
	close(m.events)
}

// wait returns the next event that is wanted. It notes every number that the guest
// acknowledges. An error that the guest prints, and its end, are errors.
func (m *machine) wait(ctx context.Context, wanted func(event) bool) (event, error) {
	timer := time.NewTimer(stepTimeout)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return event{}, context.Cause(ctx)
		case <-timer.C:
			return event{}, fmt.Errorf("the guest says nothing new for %s; the last record was %d", stepTimeout, m.acked)
		case e, open := <-m.events:
			switch {
			case !open:
				return event{}, errors.Join(errors.New("the guest is gone"), m.err)
			case e.word == "error":
				return event{}, fmt.Errorf("the guest got an error: %s", e.rest)
			case e.word == "found":
				n, err := strconv.Atoi(e.rest)
				if err != nil {
					return event{}, fmt.Errorf("the guest found %q records", e.rest)
				}
				m.found, m.acked = n, n
			case e.word == "ack":
				n, err := strconv.Atoi(e.rest)
				if err != nil || n != m.acked+1 {
					return event{}, fmt.Errorf("the guest acknowledged %q after %d", e.rest, m.acked)
				}
				m.acked = n
			}
			if wanted(e) {
				return e, nil
			}
		}
	}
}

// word returns what waits for a word.
func word(w string) func(event) bool { return func(e event) bool { return e.word == w } }

// writeMore waits until the guest has acknowledged recordsBetween more records.
func (m *machine) writeMore(ctx context.Context) (event, error) {
	target := m.acked + recordsBetween
	return m.wait(ctx, func(event) bool { return m.acked >= target })
}

// finish tells a guest that writes to stop, and returns how many records it then
// finds, as kept does.
func (m *machine) finish(ctx context.Context) (int, error) {
	if _, err := io.WriteString(m.stdin, "stop\n"); err != nil {
		return 0, fmt.Errorf("stop the guest: %w", err)
	}
	return m.kept(ctx)
}

// kept waits until the guest has read all records and is off, and returns how many
// it found, from the first, without a gap.
func (m *machine) kept(ctx context.Context) (int, error) {
	e, err := m.wait(ctx, word("kept"))
	if err != nil {
		return 0, err
	}
	n, err := strconv.Atoi(e.rest)
	if err != nil {
		return 0, fmt.Errorf("the guest found %q records", e.rest)
	}
	if _, err := m.wait(ctx, word("done")); err != nil {
		return 0, err
	}
	for range m.events {
		return 0, errors.New("the guest spoke after it was done")
	}
	return n, m.err
}

// kill ends QEMU if it still runs. Idempotent.
func (m *machine) kill() error {
	err := m.cmd.Process.Kill()
	for range m.events { // until it has ended
	}
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}
