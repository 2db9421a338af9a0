package nbd

import (
	"context"
	"log/slog"
	"testing"
	"time"
)

// lines counts what is logged, and what it says was left out.
type lines struct {
	slog.Handler
	shown, skipped int64
}

func (l *lines) Enabled(context.Context, slog.Level) bool { return true }

func (l *lines) Handle(_ context.Context, r slog.Record) error {
	l.shown++
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == "unlogged" {
			l.skipped += a.Value.Int64()
		}
		return true
	})
	return nil
}

func TestWarn_BoundsWhatStrangersCanLog(t *testing.T) {
	const calls = 100_000
	l := &lines{}
	s := NewServer(Options{})
	began := time.Now()
	for range calls {
		s.warn(slog.New(l), "nbd handshake ended")
	}
	most := warningBurst + int64(time.Since(began)/time.Second) + 1
	if l.shown < warningBurst || l.shown > most {
		t.Errorf("%d lines, want %d to %d", l.shown, warningBurst, most)
	}
	if sum := l.shown + l.skipped + s.unlogged.Load(); sum != calls {
		t.Errorf("%d warnings accounted for, want %d", sum, calls)
	}
}
