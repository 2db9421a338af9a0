package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"scstore"
)

const (
	startTimeout = 60 * time.Second // until a server answers
	stopTimeout  = 60 * time.Second // from SIGTERM to SIGKILL
	pollInterval = 10 * time.Millisecond
	maxErrorText = 8 << 10 // of what a process said, kept for its error
	// clockTicks is the unit of processor time in /proc, 100 a second on Linux.
	clockTicks = 100
)

// process is a child that serves, in a process group of its own so that an
// interrupt of the benchmark does not end it before its files are gone.
type process struct {
	cmd    *exec.Cmd
	said   tailBuffer
	exited chan struct{}
	err    error // of Wait; read after exited
}

// tailBuffer keeps the last of what is written to it.
type tailBuffer struct {
	mu sync.Mutex
	b  []byte
}

func (t *tailBuffer) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p...)
	if extra := len(t.b) - maxErrorText; extra > 0 {
		t.b = append(t.b[:0], t.b[extra:]...)
	}
	return len(p), nil
}

func (t *tailBuffer) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(string(t.b))
}

// startProcess starts argv and waits until ready returns nil.
func startProcess(ctx context.Context, argv []string, ready func(context.Context) error) (*process, error) {
	p := &process{cmd: exec.Command(argv[0], argv[1:]...), exited: make(chan struct{})}
	p.cmd.Stderr = &p.said
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", argv[0], err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.exited)
	}()
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		err := ready(ctx)
		if err == nil {
			return p, nil
		}
		select {
		case <-p.exited:
			return nil, fmt.Errorf("start %s: ended with %w: %s", argv[0], cmpErr(p.err), p.said.String())
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("start %s: does not answer: %w: %s", argv[0], err, p.said.String()), p.kill())
		case <-time.After(pollInterval):
		}
	}
}

// cmpErr names the end without an error.
func cmpErr(err error) error {
	if err == nil {
		return errors.New("exit status 0")
	}
	return err
}

// stop asks the process to end and kills it if it does not.
func (p *process) stop() error {
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop %s: %w", p.cmd.Path, err)
	}
	select {
	case <-p.exited:
		return nil
	case <-time.After(stopTimeout):
		return errors.Join(fmt.Errorf("stop %s: still there after %s: %w", p.cmd.Path, stopTimeout, scstore.ErrBusy), p.kill())
	}
}

// kill ends the process at once and waits until it has ended.
func (p *process) kill() error {
	err := p.cmd.Process.Kill()
	<-p.exited
	if err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill %s: %w", p.cmd.Path, err)
	}
	return nil
}

// use is what a process has taken so far.
type use struct {
	cpuSeconds float64
	rssBytes   int64
}

// usage reads /proc; a process that has ended took nothing.
func (p *process) usage() use {
	dir := fmt.Sprintf("/proc/%d/", p.cmd.Process.Pid)
	stat, err := os.ReadFile(dir + "stat")
	if err != nil {
		return use{}
	}
	_, rest, _ := bytes.Cut(stat, []byte(") ")) // the name may hold anything
	fields := strings.Fields(string(rest))
	if len(fields) < 22 {
		return use{}
	}
	number := func(i int) int64 { n, _ := strconv.ParseInt(fields[i], 10, 64); return n }
	return use{
		cpuSeconds: float64(number(11)+number(12)) / clockTicks,
		rssBytes:   number(21) * int64(os.Getpagesize()),
	}
}

// output runs a command to its end and returns what it printed, trimmed.
func output(ctx context.Context, argv ...string) (string, error) {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("run %s: %w: %s", strings.Join(argv, " "), err, strings.TrimSpace(stderr.String()))
	}
	return strings.TrimSpace(stdout.String()), nil
}
