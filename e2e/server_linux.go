package e2e

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"scstore"
)

const (
	// startTimeout is how long a host gets until it is ready.
	startTimeout = 60 * time.Second
	// stopTimeout is how long it gets from SIGTERM to its end; its own bound is 60 s.
	stopTimeout = 70 * time.Second
	// maxSaidBytes is how much of what a host says is kept.
	maxSaidBytes = 64 << 10
	// readyLine is what "scstore serve" says once it serves.
	readyLine = "scstore: ready"
)

// Server is one run of "scstore serve". Safe for concurrent use.
type Server struct {
	binary, dir string
	cmd         *exec.Cmd
	readyAfter  time.Duration
	exited      chan struct{}

	mu   sync.Mutex
	said []byte // on standard error, the last maxSaidBytes
}

// Serve starts a host in dir and returns when it says that it is ready. The caller
// ends it with Stop or Kill.
//
// Errors: *exec.ExitError, with what the host said, if it ended instead;
// ErrUnreachable if it is not ready after a minute.
func Serve(ctx context.Context, binary, dir string, args ...string) (*Server, error) {
	return serve(ctx, (*exec.Cmd).Start, binary, dir, args...)
}

// serve is Serve with another way to start a process.
func serve(ctx context.Context, start func(*exec.Cmd) error, binary, dir string, args ...string) (*Server, error) {
	s := &Server{binary: binary, dir: dir, exited: make(chan struct{})}
	s.cmd = exec.Command(binary, append([]string{"serve", "--dir", dir}, args...)...)
	s.cmd.SysProcAttr = ChildAttributes()
	stderr, err := s.cmd.StderrPipe()
	if err != nil {
		return nil, fmt.Errorf("start a host in %s: %w", dir, err)
	}
	began := time.Now()
	if err := start(s.cmd); err != nil {
		return nil, fmt.Errorf("start a host in %s: %w", dir, err)
	}
	ready := make(chan time.Duration, 1)
	go s.listen(stderr, began, ready)
	timer := time.NewTimer(startTimeout)
	defer timer.Stop()
	select {
	case s.readyAfter = <-ready:
		return s, nil
	case <-s.exited:
		return nil, fmt.Errorf("start a host in %s: %w: %s", dir, s.exitError(), s.Said())
	case <-ctx.Done():
		return nil, errors.Join(context.Cause(ctx), s.Kill())
	case <-timer.C:
		return nil, errors.Join(fmt.Errorf("start a host in %s: not ready after %s: %w: %s", dir, startTimeout, scstore.ErrUnreachable, s.Said()), s.Kill())
	}
}

// ChildAttributes makes a child end with its parent (I1) and keeps the keyboard's
// interrupts from it, which are for the parent to handle.
func ChildAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

// listen keeps what the host says until it ends.
func (s *Server) listen(stderr io.Reader, began time.Time, ready chan<- time.Duration) {
	lines := bufio.NewScanner(stderr)
	for lines.Scan() {
		if lines.Text() == readyLine {
			ready <- time.Since(began)
		}
		s.mu.Lock()
		s.said = append(append(s.said, lines.Bytes()...), '\n')
		if extra := len(s.said) - maxSaidBytes; extra > 0 {
			s.said = append(s.said[:0], s.said[extra:]...)
		}
		s.mu.Unlock()
	}
	_ = s.cmd.Wait() // its result is in ProcessState
	close(s.exited)
}

// exitError says how the host ended. It has ended.
func (s *Server) exitError() error {
	if s.cmd.ProcessState.Success() {
		return fmt.Errorf("it ended by itself: %w", scstore.ErrClosed)
	}
	return &exec.ExitError{ProcessState: s.cmd.ProcessState}
}

// ReadyAfter returns the time from the start of the process to its ready line.
func (s *Server) ReadyAfter() time.Duration { return s.readyAfter }

// PID returns the process id.
func (s *Server) PID() int { return s.cmd.Process.Pid }

// Said returns what the host said on standard error, the end of it.
func (s *Server) Said() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.TrimSpace(string(s.said))
}

// Exited is closed when the process has ended; then ExitCode is known.
func (s *Server) Exited() <-chan struct{} { return s.exited }

// ExitCode returns the code the host ended with, -1 if a signal ended it. It has
// ended.
func (s *Server) ExitCode() int { return s.cmd.ProcessState.ExitCode() }

// Kill ends the host with SIGKILL and returns when it is gone. Idempotent.
func (s *Server) Kill() error {
	if err := s.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill the host in %s: %w", s.dir, err)
	}
	<-s.exited
	return nil
}

// Stop asks the host to end and waits. Errors: what it said if it did not end
// cleanly.
func (s *Server) Stop() error {
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop the host in %s: %w", s.dir, err)
	}
	select {
	case <-s.exited:
	case <-time.After(stopTimeout):
		return errors.Join(fmt.Errorf("stop the host in %s: still there after %s: %w", s.dir, stopTimeout, scstore.ErrBusy), s.Kill())
	}
	if code := s.ExitCode(); code != 0 {
		return fmt.Errorf("stop the host in %s: %w: %s", s.dir, s.exitError(), s.Said())
	}
	return nil
}

// Run runs a client command against the host and returns its standard output.
// Errors: *exec.ExitError, with what the command said.
func (s *Server) Run(ctx context.Context, args ...string) (string, error) {
	return Output(ctx, append([]string{s.binary, "--host", "unix:" + filepath.Join(s.dir, "api.sock")}, args...)...)
}

// URL returns the NBD URL of an export.
func (s *Server) URL(export string) string {
	return "nbd+unix:///" + export + "?socket=" + url.QueryEscape(s.Socket())
}

// Socket returns the path of the NBD socket.
func (s *Server) Socket() string { return filepath.Join(s.dir, "nbd.sock") }

// Output runs a program to its end and returns its standard output. Errors:
// *exec.ExitError, with what the program said.
func Output(ctx context.Context, argv ...string) (string, error) {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.SysProcAttr = ChildAttributes()
	cmd.WaitDelay = time.Second
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		said := strings.TrimSpace(stderr.String() + "\n" + stdout.String())
		return stdout.String(), fmt.Errorf("run %s: %w: %s", strings.Join(argv, " "), err, said[:min(len(said), maxSaidBytes)])
	}
	return stdout.String(), nil
}
