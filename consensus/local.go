package consensus

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"scstore"
	"scstore/consensus/meta"
	"scstore/fs/block/disk"
)

// The files of a Local. A name with suffix .new is not complete yet.
const (
	stateName   = "state"
	journalName = "journal"
	newSuffix   = ".new"
)

// Bounds of the journal, in bytes.
const (
	DefaultCompactBytes = 4 << 20  // about 8,000 commands; replayed in milliseconds
	MaxJournalBytes     = 64 << 20 // beyond it commands are refused: no snapshot could be written for lack of space
)

// Options says what to open.
type Options struct {
	StoreID scstore.StoreID // seeds every checksum
	FS      disk.FS         // nil means the real folder
	Logger  *slog.Logger    // nil discards
	// CompactBytes is the length of the journal from which on it is replaced by a
	// snapshot; 0 means DefaultCompactBytes. As much is reserved on the disk, so
	// that on a full disk volumes can still be removed.
	CompactBytes int64
}

func (o Options) withDefaults() Options {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.CompactBytes == 0 {
		o.CompactBytes = DefaultCompactBytes
	}
	return o
}

// Validate checks the options. Errors: ErrInvalid.
func (o Options) Validate() error {
	if o.StoreID == (scstore.StoreID{}) {
		return fmt.Errorf("store id is zero: %w", scstore.ErrInvalid)
	}
	if o.CompactBytes < frameBytes || o.CompactBytes > MaxJournalBytes/2 {
		return fmt.Errorf("compact bytes %d, want %d to %d: %w", o.CompactBytes, frameBytes, MaxJournalBytes/2, scstore.ErrInvalid)
	}
	return nil
}

// Local applies commands on one host and keeps them durable.
//
// Concurrency: all methods are safe for concurrent use; commands run one at a time.
type Local struct {
	fs      disk.FS
	options Options

	turn      chan struct{} // holds one token; who takes it may write and change what follows
	journal   disk.File
	end       int64 // bytes of the journal that hold commands
	compactAt int64 // journal length of the next attempt to compact
	fatal     error // sticky: ErrClosed or ErrPoisoned
	buf       []byte

	mu    sync.RWMutex
	state *meta.State
}

// OpenLocal opens the state in the folder dir, or makes it there if the folder is
// empty or missing. Nobody else may have the folder open: package host locks it.
// What it holds afterwards is durable.
//
// Errors: ErrInvalid for the folder of another store; ErrVersion; ErrCorrupt with
// the file and offset, having changed nothing; ErrNoSpace.
func OpenLocal(ctx context.Context, dir string, options Options) (*Local, error) {
	l, err := openLocal(ctx, dir, options.withDefaults())
	if err != nil {
		return nil, fmt.Errorf("open metadata in %q: %w", dir, err)
	}
	return l, nil
}

func openLocal(ctx context.Context, dir string, o Options) (*Local, error) {
	if err := errors.Join(ctx.Err(), o.Validate()); err != nil {
		return nil, err
	}
	if o.FS == nil {
		if err := makeFolder(dir); err != nil {
			return nil, err
		}
		folder, err := disk.OpenDir(dir)
		if err != nil {
			return nil, err
		}
		o.FS = folder
	}
	l := &Local{fs: o.FS, options: o, turn: make(chan struct{}, 1), compactAt: o.CompactBytes}
	if err := l.load(); err != nil {
		if l.journal != nil {
			err = errors.Join(err, l.journal.Close())
		}
		return nil, err
	}
	l.turn <- struct{}{}
	return l, nil
}

// makeFolder makes dir and its missing parents. They are durable when it returns:
// what is answered later must not vanish with its folder.
func makeFolder(dir string) error {
	if _, err := os.Stat(dir); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	parent := filepath.Dir(dir)
	if err := makeFolder(parent); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	folder, err := disk.OpenDir(parent)
	if err != nil {
		return err
	}
	return folder.SyncDir()
}

// load reads the snapshot, then the journal's commands after it.
func (l *Local) load() error {
	names, err := l.fs.List()
	if err != nil {
		return err
	}
	hasState, hasJournal := slices.Contains(names, stateName), slices.Contains(names, journalName)
	switch {
	case !hasState && hasJournal:
		return corrupt(fmt.Errorf("file %q is missing: %w", stateName, scstore.ErrCorrupt))
	case !hasState:
		l.state = meta.New()
		if err := l.writeSnapshot(); err != nil {
			return err
		}
	default:
		b, err := l.readFile(stateName, MaxStateBytes+snapshotHeaderBytes)
		if err != nil {
			return err
		}
		if l.state, err = parseSnapshot(b, l.options.StoreID); err != nil {
			return corrupt(fmt.Errorf("file %q: %w", stateName, err))
		}
	}
	switch {
	case hasJournal:
		return l.replay()
	case l.state.Applied() > 0: // a journal is made right after the first, empty snapshot
		return corrupt(fmt.Errorf("file %q is missing: %w", journalName, scstore.ErrCorrupt))
	}
	return l.newJournal()
}

// replay applies the journal and makes its end fit to be written on.
func (l *Local) replay() error {
	b, err := l.readFile(journalName, MaxJournalBytes+l.options.CompactBytes+maxFrames*frameBytes)
	if err != nil {
		return err
	}
	content, err := parseJournal(b, l.options.StoreID)
	if err != nil {
		return corrupt(fmt.Errorf("file %q: %w", journalName, err))
	}
	if content.base > l.state.Applied() {
		return corrupt(fmt.Errorf("file %q: byte 0: begins after command %d, the snapshot ends at %d: %w",
			journalName, content.base, l.state.Applied(), scstore.ErrCorrupt))
	}
	replayed := 0
	for i, c := range content.commands {
		if content.base+uint64(i) < l.state.Applied() {
			continue // in the snapshot
		}
		l.state.Apply(c)
		replayed++
	}
	if l.journal, err = l.fs.Open(journalName); err != nil {
		return err
	}
	l.end = content.end
	if content.torn {
		l.options.Logger.Info("cut an incomplete command off the journal", "bytes", content.end)
		err = l.cutTail()
	} else {
		err = l.journal.Datasync() // a killed process may have left what no power loss has spared yet
	}
	if err != nil {
		return fmt.Errorf("file %q: %w", journalName, err)
	}
	l.options.Logger.Debug("replayed the journal", "commands", replayed)
	return nil
}

// readFile reads a whole file of at most limit bytes.
func (l *Local) readFile(name string, limit int64) (b []byte, err error) {
	f, err := l.fs.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	if size > limit {
		return nil, corrupt(fmt.Errorf("file %q of %d bytes, want at most %d: %w", name, size, limit, scstore.ErrCorrupt))
	}
	b = make([]byte, size)
	if size == 0 {
		return b, nil
	}
	if _, err := f.ReadAt(b, 0); err != nil {
		return nil, fmt.Errorf("read %q: %w", name, err)
	}
	return b, nil
}

func corrupt(err error) error {
	if !errors.Is(err, scstore.ErrCorrupt) {
		return err
	}
	return scstore.Hint(err, "restore the metadata folder from a backup, or move it away and keep it for analysis")
}

// Propose decides a command: it makes it durable, applies it and returns its
// result, with result.Err() as the error when the state refused it.
//
// Durability: a command that was answered survives power loss. Errors: those of
// meta.Result; ErrInvalid and ErrNoSpace (nothing was applied, nothing will be);
// ErrPoisoned for this and every later command after an I/O error, the outcome of
// this one is known after a restart; ErrClosed; ctx's error while it waits its turn.
//
// step W6
func (l *Local) Propose(ctx context.Context, c meta.Command) (meta.Result, error) {
	if err := c.Validate(); err != nil {
		return meta.Result{}, err
	}
	select {
	case <-l.turn:
		defer func() { l.turn <- struct{}{} }()
	case <-ctx.Done():
		return meta.Result{}, context.Cause(ctx)
	}
	if l.fatal != nil {
		return meta.Result{}, l.fatal
	}
	if err := l.append(c); err != nil {
		return meta.Result{}, fmt.Errorf("write metadata journal: %w", err)
	}
	l.mu.Lock()
	result := l.state.Apply(c)
	l.mu.Unlock()
	if l.end >= l.compactAt {
		l.compact()
	}
	return result, result.Err()
}

// append makes the command durable.
// Precondition: the caller has the turn, and fatal is nil.
func (l *Local) append(c meta.Command) error {
	l.buf = appendCommand(l.buf[:0], l.options.StoreID, l.state.Applied()+1, c.AppendTo(nil))
	if l.end+int64(len(l.buf)) > MaxJournalBytes {
		return scstore.Hint(fmt.Errorf("journal of %d bytes: %w", l.end, scstore.ErrNoSpace), "free space on the disk")
	}
	_, err := l.journal.WriteAt(l.buf, l.end)
	if errors.Is(err, scstore.ErrNoSpace) {
		// Part of the command may be there. It must not be found again (I2).
		if cut := l.cutTail(); cut != nil {
			return l.poison(cut)
		}
		return scstore.Hint(err, "free space on the disk")
	}
	if err == nil {
		err = l.journal.Datasync()
	}
	if err != nil {
		return l.poison(err)
	}
	l.end += int64(len(l.buf))
	return nil
}

// cutTail removes what follows the last whole command, durably, and reserves space
// again as far as there is some.
func (l *Local) cutTail() error {
	if err := l.journal.Truncate(l.end); err != nil {
		return err
	}
	if err := l.reserve(l.journal); err != nil && !errors.Is(err, scstore.ErrNoSpace) {
		return err
	}
	return l.journal.Datasync()
}

func (l *Local) reserve(f disk.File) error {
	return f.Allocate(max(l.end, l.options.CompactBytes) + maxFrames*frameBytes)
}

// poison refuses every later command with ErrPoisoned.
func (l *Local) poison(err error) error {
	l.fatal = scstore.Hint(fmt.Errorf("%w: %w", scstore.ErrPoisoned, err), "restart scstore once the disk is well; what was confirmed is kept")
	return l.fatal
}

// View calls f with the state, which f must neither change nor keep. Commands wait
// meanwhile. It works after an I/O error too, and shows what was confirmed.
func (l *Local) View(f func(*meta.State)) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	f(l.state)
}

// Close waits for the command that is running and closes the files. Closing again
// does nothing. Durability: nothing is pending, ever.
func (l *Local) Close() error {
	<-l.turn
	defer func() { l.turn <- struct{}{} }()
	if errors.Is(l.fatal, scstore.ErrClosed) {
		return nil
	}
	l.fatal = fmt.Errorf("metadata: %w", scstore.ErrClosed)
	return l.journal.Close()
}

// compact replaces the journal by a snapshot. A full disk puts it off; any other
// error poisons, since what is on the disk is not known then. No command waits for
// it to succeed: all are durable in the journal.
// Precondition: the caller has the turn.
func (l *Local) compact() {
	err := l.writeSnapshot()
	if err == nil {
		err = l.newJournal()
	}
	switch {
	case err == nil:
		l.compactAt = l.options.CompactBytes
	case errors.Is(err, scstore.ErrNoSpace):
		l.compactAt = l.end + l.options.CompactBytes/16
		l.options.Logger.Warn("no space to compact the metadata journal", "bytes", l.end, "err", err)
	default:
		_ = l.poison(err)
		l.options.Logger.Error("metadata are poisoned", "err", err)
	}
}

// writeSnapshot makes the present state the durable snapshot.
func (l *Local) writeSnapshot() error {
	f, err := l.replace(stateName, snapshotFile(l.options.StoreID, l.state), nil)
	if err != nil {
		return err
	}
	return f.Close()
}

// newJournal makes an empty journal after the present state. The one before stays
// in use if it fails with ErrNoSpace: its commands are in the snapshot and will be
// passed over.
func (l *Local) newJournal() error {
	end := l.end
	l.end = frameBytes
	f, err := l.replace(journalName, journalHeader(l.options.StoreID, l.state.Applied()), l.reserve)
	if err != nil {
		l.end = end
		return err
	}
	old := l.journal
	l.journal = f
	if old != nil {
		return old.Close()
	}
	return nil
}

// replace makes a file with this content, durable before it takes the name, and
// returns it open. Before the rename nothing has changed.
func (l *Local) replace(name string, content []byte, prepare func(disk.File) error) (f disk.File, err error) {
	temp := name + newSuffix
	if err := l.fs.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if f, err = l.fs.Create(temp); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("replace %q: %w", name, errors.Join(err, f.Close()))
			f = nil
		}
	}()
	if prepare != nil {
		err = prepare(f)
	}
	if err == nil {
		_, err = f.WriteAt(content, 0)
	}
	if err != nil {
		return f, errors.Join(err, l.fs.Remove(temp)) // gives the space back
	}
	if err := f.Datasync(); err != nil {
		return f, err
	}
	if err := l.fs.Rename(temp, name); err != nil {
		return f, err
	}
	return f, l.fs.SyncDir()
}
