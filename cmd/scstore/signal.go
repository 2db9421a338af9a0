package main

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"syscall"
)

// The causes of a context that a signal ended.
var (
	errInterrupted = errors.New("interrupted")
	errTerminated  = errors.New("terminated")
)

// interruptible returns a context that the first SIGINT or SIGTERM cancels, with
// the cause above. The second one ends the process at once.
func interruptible(parent context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(parent)
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	done := make(chan struct{})
	go func() {
		for first := true; ; first = false {
			select {
			case <-done:
				return
			case s := <-signals:
				cause := errInterrupted
				if s == syscall.SIGTERM {
					cause = errTerminated
				}
				if !first {
					os.Exit(exitCode(cause))
				}
				cancel(cause)
			}
		}
	}()
	return ctx, func() {
		signal.Stop(signals)
		close(done)
		cancel(nil)
	}
}
