package main

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"
)

// talkInterval is the time between two lines of progress where there is no
// terminal to draw on.
const talkInterval = 3 * time.Second

// progress shows how far a long command is, with its rate and the time left. Safe
// for concurrent use.
type progress struct {
	mu    sync.Mutex
	bar   *progressbar.ProgressBar // on a terminal
	out   io.Writer                // elsewhere; nil is silent
	label string
	total int64
	done  int64
	start time.Time
	last  time.Time
	ended bool
}

// progress starts one for a command that handles total bytes.
func (e *environ) progress(label string, total int64) *progress {
	now := time.Now()
	p := &progress{label: label, total: total, start: now, last: now}
	if e.quiet || e.json {
		return p
	}
	if f, ok := e.stderr.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		p.bar = progressbar.NewOptions64(total,
			progressbar.OptionSetWriter(f),
			progressbar.OptionSetDescription(label),
			progressbar.OptionShowBytes(true),
			progressbar.OptionUseIECUnits(true),
			progressbar.OptionSetPredictTime(true),
			progressbar.OptionThrottle(100*time.Millisecond),
			progressbar.OptionClearOnFinish(),
			progressbar.OptionFullWidth(),
		)
		return p
	}
	p.out = e.stderr
	return p
}

// at says that the first n bytes are done.
func (p *progress) at(n int64) { p.set(n, p.total) }

// set says that n of total bytes are done.
func (p *progress) set(n, total int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n <= p.done || p.ended {
		return
	}
	p.done = n
	if p.bar != nil {
		if total != p.total {
			p.bar.ChangeMax64(total)
		}
		_ = p.bar.Set64(min(n, total)) // only drawing
	}
	p.total = total
	if now := time.Now(); p.out != nil && now.Sub(p.last) >= talkInterval {
		p.last = now
		p.line(now)
	}
}

// line prints one line. Precondition: mu is held.
func (p *progress) line(now time.Time) {
	rate := float64(p.done) / now.Sub(p.start).Seconds()
	left := time.Duration(float64(p.total-p.done) / rate * float64(time.Second)).Round(time.Second)
	fmt.Fprintf(p.out, "scstore: %s: %s of %s, %s/s, %s left\n", p.label, humanSize(p.done), humanSize(p.total), humanSize(int64(rate)), left)
}

// end removes the bar. Nothing is shown afterwards.
func (p *progress) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended = true
	if p.bar != nil {
		_ = p.bar.Clear() // only drawing
	}
}
