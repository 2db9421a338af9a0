package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"scstore"
	"scstore/internal/api"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// open opens a host in dir; its doors are not served.
func open(t *testing.T, dir string) *Host {
	t.Helper()
	h, err := Open(t.Context(), Options{Dir: dir, Version: "test"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return h
}

// importImage makes an image of one block.
func importImage(h *Host, name string) error {
	i, err := h.BeginImport(context.Background(), name, scstore.BlockSize)
	if err != nil {
		return err
	}
	if err := i.WriteAt([]byte(name), 0); err != nil {
		return errors.Join(err, i.Abort())
	}
	if _, err := i.Commit(context.Background()); err != nil {
		return errors.Join(err, i.Abort())
	}
	return nil
}

func TestHost_NamesAndDataAgreeWhateverRaces(t *testing.T) {
	dir := t.TempDir()
	h := open(t, dir)
	ctx := t.Context()
	var done [4]atomic.Int64
	actors := []func() error{
		func() error { return importImage(h, "image") },
		func() error {
			_, err := h.CreateVolume(ctx, api.CreateVolume{Name: "clone", From: "image"})
			return err
		},
		func() error {
			x, err := exports{h}.Open(ctx, "clone")
			if err != nil {
				return err
			}
			err = x.Device.WriteAt(make([]byte, 100), 7)
			return errors.Join(err, x.Close())
		},
		func() error {
			// Not before somebody had a chance to use the clone.
			used := done[2].Load()
			for until := time.Now().Add(50 * time.Millisecond); done[2].Load() == used && time.Now().Before(until); {
				runtime.Gosched()
			}
			_, err := h.Remove(ctx, api.KindVolume, "clone", api.RemoveOptions{})
			_, imageErr := h.Remove(ctx, api.KindImage, "image", api.RemoveOptions{})
			if err == nil || imageErr == nil {
				return nil
			}
			return errors.Join(err, imageErr)
		},
	}
	var wg sync.WaitGroup
	stop := time.Now().Add(2 * time.Second)
	for i, act := range actors {
		for range 2 {
			wg.Go(func() {
				for time.Now().Before(stop) || done[i].Load() == 0 && time.Now().Before(stop.Add(20*time.Second)) {
					switch err := act(); {
					case err == nil:
						done[i].Add(1)
					case errors.Is(err, scstore.ErrExists), errors.Is(err, scstore.ErrNotFound), errors.Is(err, scstore.ErrBusy):
					case errors.Is(err, scstore.ErrInvalid): // the image was replaced by another of its name
					default:
						t.Errorf("actor %d: %v", i, err)
						return
					}
				}
			})
		}
	}
	wg.Wait()
	for i := range done {
		if done[i].Load() == 0 {
			t.Errorf("actor %d did nothing", i)
		}
	}
	all, err := h.names.entries()
	if err != nil {
		t.Fatal(err)
	}
	if got, want := h.blocks.Stats().Volumes, len(all); got != want {
		t.Errorf("%d tables for %d names", got, want)
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	report, err := Check(ctx, Options{Dir: dir, Version: "test"}, false, func(int64, int64) {})
	if err != nil || report.Worst() == api.SeverityError {
		t.Errorf("got %+v, %v", report, err)
	}
}

func TestOpen_FirstStartThatWasCutOffIsNoObstacle(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{lockName, markName + ".new"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("12"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	open(t, dir)
}

func TestOpen_UnnamedTablesAndTombstonesAreSwept(t *testing.T) {
	dir := t.TempDir()
	h := open(t, dir)
	if err := importImage(h, "kept"); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		if _, err := h.BeginImport(t.Context(), fmt.Sprint("lost", i), 1<<20); err != nil {
			t.Fatal(err)
		}
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	h = open(t, dir)
	if got := h.blocks.Stats().Volumes; got != 1 {
		t.Errorf("%d tables, want 1", got)
	}
	if _, err := h.Get(t.Context(), api.KindImage, "kept"); err != nil {
		t.Error(err)
	}
}

// TestOpen_MarksOfSnapshotsAndTheirNamesAgree has a crash come between the mark of a
// snapshot and its name, and a name whose mark is gone.
func TestOpen_MarksOfSnapshotsAndTheirNamesAgree(t *testing.T) {
	dir := t.TempDir()
	h := open(t, dir)
	if _, err := h.CreateVolume(t.Context(), api.CreateVolume{Name: "v", SizeBytes: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	snap, err := h.CreateSnapshot(t.Context(), "v@kept", nil)
	if err != nil {
		t.Fatal(err)
	}
	table, err := h.blocks.Table(snap.ID)
	if err != nil {
		t.Fatal(err)
	}
	unnamed := snapshotTag(scstore.Position{Fence: 9, Epoch: 9})
	if err := table.Mark(unnamed); err != nil {
		t.Fatal(err)
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	h = open(t, dir)
	if table, err = h.blocks.Table(snap.ID); err != nil {
		t.Fatal(err)
	}
	if table.Marked(unnamed) || !table.Marked(snapshotTag(snap.Position)) {
		t.Errorf("marks after the restart: %v", table.Marks())
	}
	if err := table.Unmark(snapshotTag(snap.Position)); err != nil {
		t.Fatal(err)
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), Options{Dir: dir, Version: "test"}); !errors.Is(err, scstore.ErrCorrupt) {
		t.Errorf("open without a snapshot's data: %v, want ErrCorrupt", err)
	}
}

func TestSource_IsTheVolumeAtOneMoment(t *testing.T) {
	h := open(t, t.TempDir())
	if _, err := h.CreateVolume(t.Context(), api.CreateVolume{Name: "v", SizeBytes: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	x, err := exports{h}.Open(t.Context(), "v")
	if err != nil {
		t.Fatal(err)
	}
	write := func(s string) {
		if err := x.Device.WriteAt([]byte(s), 4090); err != nil {
			t.Fatal(err)
		}
	}
	write("before the view")
	src, err := h.OpenSource(t.Context(), api.KindVolume, "v")
	if err != nil {
		t.Fatal(err)
	}
	write("after it, again")
	p := make([]byte, 15)
	if _, err := src.ReadAt(p, 4090, nil); err != nil || string(p) != "before the view" {
		t.Errorf("got %q, %v", p, err)
	}
	if err := x.Close(); err != nil {
		t.Error(err)
	}
	if _, err := h.Remove(t.Context(), api.KindVolume, "v", api.RemoveOptions{Force: true}); !errors.Is(err, scstore.ErrBusy) {
		t.Errorf("remove while it is exported: got %v, want busy", err)
	}
	if err := src.Close(); err != nil {
		t.Error(err)
	}
	if _, err := h.Remove(t.Context(), api.KindVolume, "v", api.RemoveOptions{}); err != nil {
		t.Error(err)
	}
}

func TestOpen_DataWithoutANameAreNotDeleted(t *testing.T) {
	dir := t.TempDir()
	shut := func(h *Host) {
		t.Helper()
		if err := h.Close(); err != nil {
			t.Fatal(err)
		}
	}
	h := open(t, dir)
	if err := importImage(h, "old"); err != nil {
		t.Fatal(err)
	}
	shut(h)
	before := filepath.Join(t.TempDir(), "meta")
	if err := os.CopyFS(before, os.DirFS(filepath.Join(dir, metaName))); err != nil {
		t.Fatal(err)
	}

	// What a crash leaves of an import goes at the next start, and what is finished stays.
	h = open(t, dir)
	i, err := h.BeginImport(t.Context(), "half", scstore.BlockSize)
	if err == nil {
		err = i.WriteAt([]byte("half"), 0)
	}
	if err == nil {
		err = importImage(h, "new")
	}
	if err != nil {
		t.Fatal(err)
	}
	shut(h)
	h = open(t, dir)
	if got := len(h.blocks.Tables()); got != 2 {
		t.Errorf("%d tables after a restart, want those of two images", got)
	}
	shut(h)

	// The names of an earlier moment do not know "new".
	names := filepath.Join(dir, metaName)
	now := filepath.Join(t.TempDir(), "now")
	if err := errors.Join(os.CopyFS(now, os.DirFS(names)), os.RemoveAll(names), os.CopyFS(names, os.DirFS(before))); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), Options{Dir: dir, Version: "test"}); !errors.Is(err, scstore.ErrCorrupt) {
		t.Errorf("a store with older names opens: %v", err)
	}
	if err := errors.Join(os.RemoveAll(names), os.CopyFS(names, os.DirFS(now))); err != nil {
		t.Fatal(err)
	}
	h = open(t, dir)
	if _, err := h.Get(t.Context(), api.KindImage, "new"); err != nil {
		t.Errorf("after the names were put back: %v", err)
	}
}
