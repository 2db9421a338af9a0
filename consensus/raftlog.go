package consensus

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/lni/dragonboat/v4/logger"
)

// The library's loggers belong to the process and can be set once; so what they
// write goes to the logger of the Cluster that was opened last. This is the only
// state that the package keeps outside of its values.
var (
	raftLogOnce sync.Once
	raftLogSink atomic.Pointer[slog.Logger]
)

func setRaftLogger(l *slog.Logger) {
	raftLogSink.Store(l)
	raftLogOnce.Do(func() {
		logger.SetLoggerFactory(func(pkg string) logger.ILogger { return raftLogger{part: pkg} })
	})
}

// raftLogger turns the library's messages into records. Its infos and warnings are
// debug here: they speak of its inner life, such as an election at each start.
type raftLogger struct{ part string }

func (raftLogger) SetLevel(logger.LogLevel) {}

func (l raftLogger) log(level slog.Level, format string, args []any) {
	sink := raftLogSink.Load()
	if sink == nil || !sink.Enabled(context.Background(), level) {
		return
	}
	sink.Log(context.Background(), level, "raft", "part", l.part, "text", fmt.Sprintf(format, args...))
}

func (l raftLogger) Debugf(format string, args ...any) { l.log(slog.LevelDebug, format, args) }

func (l raftLogger) Infof(format string, args ...any) { l.log(slog.LevelDebug, format, args) }

func (l raftLogger) Warningf(format string, args ...any) { l.log(slog.LevelDebug, format, args) }

func (l raftLogger) Errorf(format string, args ...any) { l.log(slog.LevelError, format, args) }

// Panicf ends the process, as the library expects: it calls this when going on
// could break the log. The value is an error: while a log is opened the library keeps
// any other to itself (newHost).
func (l raftLogger) Panicf(format string, args ...any) {
	l.log(slog.LevelError, format, args)
	panic(fmt.Errorf("raft %s: %s", l.part, fmt.Sprintf(format, args...)))
}
