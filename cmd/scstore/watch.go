package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/term"

	"scstore"
	"scstore/internal/api"
)

const (
	// defaultWait is how long status --wait waits.
	defaultWait = time.Minute
	// waitInterval is the time between two questions of it.
	waitInterval = 100 * time.Millisecond
	// watchInterval is the time between two answers of status --watch.
	watchInterval = time.Second
	// clearScreen begins the picture anew on a terminal.
	clearScreen = "\x1b[H\x1b[2J"
)

// activeState is what a host is once it has been admitted.
const activeState = "active"

// waitReady waits until the host can be used, and prints its state.
func (e *environ) waitReady(ctx context.Context, c *api.Client, timeout time.Duration) error {
	limit, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	last, said := fmt.Errorf("no answer: %w", scstore.ErrUnreachable), ""
	for {
		s, err := getState(limit, c)
		if err == nil {
			err = notReady(s)
		}
		switch {
		case err == nil:
			return e.printState(s)
		case errors.Is(err, context.DeadlineExceeded): // in the middle of a question
		case !passes(err):
			return err
		default:
			last = err
			if text := oneLine(err.Error()); text != said {
				e.talk("wait: %s", text)
				said = text
			}
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-limit.Done():
			return tooLate(last, timeout)
		case <-time.After(waitInterval):
		}
	}
}

// passes reports whether an error may be gone at the next question.
func passes(err error) bool {
	for _, e := range []error{scstore.ErrUnreachable, scstore.ErrNoMajority, scstore.ErrBusy, scstore.ErrClosed} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// tooLate says what was in the way when the time was over.
func tooLate(err error, timeout time.Duration) error {
	err = fmt.Errorf("not ready after %s: %w", timeout, err)
	if _, advised := errors.AsType[*scstore.HintError](err); advised {
		return err
	}
	return scstore.Hint(err, "look with scstore status, and at what the host logs")
}

// notReady says what of a state is in the way of using the host. Errors:
// ErrNoMajority, ErrBusy.
func notReady(s state) error {
	c := s.Cluster
	if c == nil {
		return nil
	}
	if !c.Majority {
		return fmt.Errorf("too few hosts of the cluster answer: %w", scstore.ErrNoMajority)
	}
	for _, g := range c.Groups {
		if g.Leader == "" {
			return fmt.Errorf("group %d has no leader: %w", g.Number, scstore.ErrNoMajority)
		}
	}
	for _, h := range c.Hosts {
		if h.Here && h.State != activeState {
			return fmt.Errorf("host %q is %s: %w", h.Name, h.State, scstore.ErrBusy)
		}
	}
	if c.Problem != "" {
		return fmt.Errorf("%s: %w", c.Problem, scstore.ErrBusy)
	}
	return nil
}

// watch shows the state every second until ctx ends. A host that does not answer is
// shown as such.
func (e *environ) watch(ctx context.Context, c *api.Client) error {
	f, ok := e.stdout.(*os.File)
	picture := ok && !e.json && term.IsTerminal(int(f.Fd()))
	ticker := time.NewTicker(watchInterval)
	defer ticker.Stop()
	for {
		s, err := getState(ctx, c)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := e.show(s, err, picture); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-ticker.C:
		}
	}
}

// show shows a state once, or why there is none.
func (e *environ) show(s state, problem error, picture bool) error {
	now := time.Now()
	var err error
	switch {
	case e.json && problem != nil:
		wire, _ := api.NewError(problem)
		err = json.NewEncoder(e.stdout).Encode(struct {
			Error api.Error `json:"error"`
		}{wire})
	case e.json:
		err = json.NewEncoder(e.stdout).Encode(s)
	case picture && problem == nil:
		if _, err = fmt.Fprintf(e.stdout, "%s%s\n", clearScreen, now.Format(time.TimeOnly)); err == nil {
			return e.printState(s)
		}
	case picture:
		_, err = fmt.Fprintf(e.stdout, "%s%s\n%s\n", clearScreen, now.Format(time.TimeOnly), oneLine(problem.Error()))
	case problem != nil:
		_, err = fmt.Fprintf(e.stdout, "%s %s\n", now.Format(time.RFC3339), oneLine(problem.Error()))
	default:
		_, err = fmt.Fprintf(e.stdout, "%s %s\n", now.Format(time.RFC3339), stateLine(s))
	}
	if err != nil {
		return fmt.Errorf("print the state: %w", err)
	}
	return nil
}

// stateLine is a state in a line.
func stateLine(s state) string {
	text := fmt.Sprintf("%d volumes, %d images, %d connections, %s free", s.Volumes, s.Images, s.Conns, humanSize(s.Store.DiskFreeBytes))
	if s.Cluster == nil {
		return text
	}
	active, reachable := 0, 0
	for _, h := range s.Cluster.Hosts {
		if h.State == activeState {
			active++
			if h.Here || h.Reachable {
				reachable++
			}
		}
	}
	majority := "majority"
	if !s.Cluster.Majority {
		majority = "NO majority"
	}
	text += fmt.Sprintf(", %d of %d hosts reachable, %s", reachable, active, majority)
	if s.Cluster.Problem != "" {
		text += ", " + oneLine(s.Cluster.Problem)
	}
	return text
}
