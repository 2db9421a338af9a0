package consensus_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"scstore"
	"scstore/consensus"
	"scstore/consensus/meta"
	"scstore/fs/block/disk"
	"scstore/fs/block/disk/crashdisk"
)

var store = scstore.StoreID{0: 0x5c, 15: 1}

const frameBytes = 512 // of the journal's format

func openOn(t testing.TB, fs disk.FS) (*consensus.Local, error) {
	t.Helper()
	return consensus.OpenLocal(t.Context(), "on a test disk", consensus.Options{StoreID: store, FS: fs, CompactBytes: 64 << 10})
}

func mustOpen(t testing.TB, fs disk.FS) *consensus.Local {
	t.Helper()
	l, err := openOn(t, fs)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// bytesOf returns the state's encoding.
func bytesOf(l *consensus.Local) (b string) {
	l.View(func(s *meta.State) { b = string(s.AppendTo(nil)) })
	return b
}

// create is the n-th command of a history; some take several frames.
func create(n int) meta.Command {
	name := fmt.Sprintf("v%d", n)
	if n%3 == 0 {
		name += strings.Repeat("/"+strings.Repeat("x", 200), 1+n%4)
	}
	id := scstore.VolumeID{0: 1, 14: byte(n >> 8), 15: byte(n)}
	return meta.Command{Op: meta.CreateVolume{ID: id, Name: name, SizeBytes: scstore.BlockSize}}
}

func propose(t testing.TB, l *consensus.Local, c meta.Command) {
	t.Helper()
	if _, err := l.Propose(context.Background(), c); err != nil {
		t.Fatalf("propose %+v: %v", c, err)
	}
}

// prefixes returns the encodings of the state after 0, 1, ... n commands.
func prefixes(n int) []string {
	s := meta.New()
	list := []string{string(s.AppendTo(nil))}
	for i := range n {
		s.Apply(create(i))
		list = append(list, string(s.AppendTo(nil)))
	}
	return list
}

func readFile(t testing.TB, fs disk.FS, name string) []byte {
	t.Helper()
	f, err := fs.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, size)
	if _, err := f.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	return b
}

// diskWith returns a disk with just these files.
func diskWith(t testing.TB, files map[string][]byte) *crashdisk.Disk {
	t.Helper()
	d := crashdisk.New(crashdisk.Options{})
	for name, b := range files {
		f, err := d.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		if len(b) > 0 {
			if _, err := f.WriteAt(b, 0); err != nil {
				t.Fatal(err)
			}
		}
		if err := errors.Join(f.Datasync(), f.Close()); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.SyncDir(); err != nil {
		t.Fatal(err)
	}
	return d
}

func TestLocal_KeepsItsStateInARealFolder(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "deep", "meta")
	o := consensus.Options{StoreID: store}
	l, err := consensus.OpenLocal(t.Context(), dir, o)
	if err != nil {
		t.Fatal(err)
	}
	for n := range 10 {
		propose(t, l, create(n))
	}
	result, err := l.Propose(t.Context(), create(3))
	if !errors.Is(err, scstore.ErrExists) || result.Code != meta.CodeIDTaken {
		t.Errorf("the same again: %+v, %v", result, err)
	}
	want := bytesOf(l)
	if err := errors.Join(l.Close(), l.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Propose(t.Context(), create(11)); !errors.Is(err, scstore.ErrClosed) {
		t.Errorf("propose after Close: %v, want ErrClosed", err)
	}
	l, err = consensus.OpenLocal(t.Context(), dir, o)
	if err != nil {
		t.Fatal(err)
	}
	if bytesOf(l) != want {
		t.Error("another state after reopening")
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 2 {
		t.Errorf("files: %v, %v", entries, err)
	}
}

func TestLocal_RefusesWhatItCannotOpen(t *testing.T) {
	d := crashdisk.New(crashdisk.Options{})
	l := mustOpen(t, d)
	propose(t, l, create(1))
	state, journal := readFile(t, d, "state"), readFile(t, d, "journal")

	if _, err := consensus.OpenLocal(t.Context(), "x", consensus.Options{FS: d}); !errors.Is(err, scstore.ErrInvalid) {
		t.Errorf("without store id: %v", err)
	}
	other := consensus.Options{FS: d, StoreID: scstore.StoreID{1}}
	if _, err := consensus.OpenLocal(t.Context(), "x", other); !errors.Is(err, scstore.ErrInvalid) || !strings.Contains(err.Error(), "belongs to store 5c") {
		t.Errorf("another store's folder: %v", err)
	}
	if _, err := openOn(t, diskWith(t, map[string][]byte{"journal": journal})); !errors.Is(err, scstore.ErrCorrupt) {
		t.Errorf("without state: %v", err)
	}
	// The empty state alone is what a crash leaves between the first two files.
	if _, err := openOn(t, diskWith(t, map[string][]byte{"state": state})); err != nil {
		t.Errorf("with the empty state alone: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := consensus.OpenLocal(ctx, "x", consensus.Options{FS: d, StoreID: store}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestLocal_InvalidCommandIsRefusedWithItsReason(t *testing.T) {
	d := crashdisk.New(crashdisk.Options{})
	l := mustOpen(t, d)
	before := d.Ops()
	_, err := l.Propose(t.Context(), meta.Command{Op: meta.Remove{Name: "a//b"}})
	if !errors.Is(err, scstore.ErrInvalid) || !strings.Contains(err.Error(), "slash") {
		t.Errorf("got %v", err)
	}
	if d.Ops() != before {
		t.Error("an invalid command reached the disk")
	}
}

func TestLocal_ConcurrentProposersAllMakeProgress(t *testing.T) {
	d := crashdisk.New(crashdisk.Options{})
	l, err := consensus.OpenLocal(t.Context(), "x", consensus.Options{StoreID: store, FS: d, CompactBytes: 16 * frameBytes})
	if err != nil {
		t.Fatal(err)
	}
	const actors, each = 8, 40
	var wg sync.WaitGroup
	var views atomic.Int64
	stop := make(chan struct{})
	viewer := make(chan struct{})
	go func() {
		defer close(viewer)
		for {
			select {
			case <-stop:
				return
			default:
				l.View(func(s *meta.State) { views.Add(int64(min(1, len(s.List(""))))) })
			}
		}
	}()
	for a := range actors {
		wg.Go(func() {
			for i := range each {
				propose(t, l, create(a*each+i))
			}
		})
	}
	wg.Wait()
	close(stop)
	<-viewer
	if views.Load() == 0 {
		t.Error("no view saw a volume while commands ran")
	}
	want := bytesOf(l)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	again := mustOpen(t, d)
	again.View(func(s *meta.State) {
		if got := len(s.List("")); got != actors*each {
			t.Errorf("%d volumes, want %d", got, actors*each)
		}
	})
	if bytesOf(again) != want {
		t.Error("another state after reopening")
	}
}

func TestLocal_WaitingProposerHeedsItsContext(t *testing.T) {
	d := crashdisk.New(crashdisk.Options{})
	l := mustOpen(t, d)
	syncing, release := make(chan struct{}), make(chan struct{})
	d.Fail(func(op crashdisk.Op) error {
		if op.Kind == crashdisk.Sync {
			close(syncing)
			<-release
			d.Fail(nil)
		}
		return nil
	})
	done := make(chan error, 1)
	go func() {
		_, err := l.Propose(context.Background(), create(1))
		done <- err
	}()
	<-syncing
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := l.Propose(ctx, create(2)); !errors.Is(err, context.Canceled) {
		t.Errorf("second proposer: %v", err)
	}
	close(release)
	if err := <-done; err != nil {
		t.Errorf("first proposer: %v", err)
	}
}

// TestLocal_FileOperations is the order of the calls that make it durable.
func TestLocal_FileOperations(t *testing.T) {
	d := crashdisk.New(crashdisk.Options{})
	d.Trace()
	l, err := consensus.OpenLocal(t.Context(), "x", consensus.Options{StoreID: store, FS: d, CompactBytes: 2 * frameBytes})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"create state.new", "write state.new 0 120", "sync state.new", "rename state.new state", "syncdir",
		"create journal.new", "allocate journal.new 138752", "write journal.new 0 512", "sync journal.new", "rename journal.new journal", "syncdir",
	}
	check := func(what string) {
		t.Helper()
		got := slices.DeleteFunc(d.TakeTrace(), func(line string) bool { return strings.HasPrefix(line, "remove ") })
		if !slices.Equal(got, want) {
			t.Errorf("%s:\ngot  %q\nwant %q", what, got, want)
		}
	}
	check("first open")
	propose(t, l, create(1))
	want = append([]string{"write journal.new 512 512", "sync journal.new", "create state.new", "write state.new 0 345"}, want[2:]...)
	check("a command that compacts")
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	mustOpen(t, d)
	want = []string{"sync journal"}
	check("open again")
}
