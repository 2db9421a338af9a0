package e2e_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"scstore"
	"scstore/e2e"
	"scstore/nbd"
)

// exitNoSpace is the documented exit code of a host that ends because its disk was
// filled.
const exitNoSpace = 12

// smallDisk mounts an ext4 of its own and returns its folder. Only root can.
func smallDisk(t *testing.T, size string) string {
	t.Helper()
	dir := t.TempDir()
	file, mountPoint := filepath.Join(dir, "fs"), filepath.Join(dir, "m")
	tool(t, "truncate", "-s", size, file)
	tool(t, "mkfs.ext4", "-q", "-m", "0", "-F", file)
	check(t, os.Mkdir(mountPoint, 0o700))
	tool(t, "mount", "-o", "loop", file, mountPoint)
	t.Cleanup(func() { // the test's context has ended
		_, err := e2e.Output(context.WithoutCancel(t.Context()), "umount", mountPoint)
		check(t, err)
	})
	return mountPoint
}

// chunkBytes is the unit in which a filled volume is written and compared.
const chunkBytes = mib

// filled is a volume of which the test knows every byte.
type filled struct {
	t       *testing.T
	c       *nbd.Client
	version []uint64 // of each chunk; 0: zeros
	next    uint64
}

func dial(t testing.TB, url string) *nbd.Client {
	t.Helper()
	c, err := nbd.Dial(t.Context(), url, nbd.DialOptions{})
	check(t, err)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// write writes a chunk anew. After an error its content is unknown until a write
// succeeds: some of its blocks may be new.
func (f *filled) write(chunk int) error {
	f.next++
	err := f.c.WriteAt(f.t.Context(), random(chunkBytes, f.next), int64(chunk)*chunkBytes, 0)
	if err == nil {
		f.version[chunk] = f.next
	}
	return err
}

// mixed marks a chunk of which a write failed; its blocks are old or new.
const mixed = ^uint64(0)

// writeUntilFull writes chunks one after the other and returns how many could be
// written, once the host says that there is no space.
func (f *filled) writeUntilFull(from int) (chunks int) {
	f.t.Helper()
	for chunk := from; chunk < len(f.version); chunk++ {
		switch err := f.write(chunk); {
		case errors.Is(err, scstore.ErrNoSpace):
			f.version[chunk] = mixed
			return chunk - from
		case err != nil:
			f.t.Fatalf("write chunk %d: %v, want ENOSPC", chunk, err)
		}
	}
	f.t.Fatal("the volume is full before the disk is")
	return 0
}

// compare reads everything.
func (f *filled) compare() {
	f.t.Helper()
	got := make([]byte, chunkBytes)
	for chunk, version := range f.version {
		if err := f.c.ReadAt(f.t.Context(), got, int64(chunk)*chunkBytes); err != nil {
			f.t.Fatalf("read chunk %d: %v", chunk, err)
		}
		want := make([]byte, chunkBytes)
		switch version {
		case mixed:
			continue
		case 0:
		default:
			want = random(chunkBytes, version)
		}
		if !bytes.Equal(got, want) {
			f.t.Fatalf("chunk %d differs from what was acknowledged", chunk)
		}
	}
}

func TestFull_DiscardsMakeRoomWithoutARestart(t *testing.T) {
	dir := filepath.Join(smallDisk(t, "640M"), "store")
	s := serve(t, dir)
	run(t, s, "volume", "create", "disk", "--size", "1G")
	f := &filled{t: t, c: dial(t, s.URL("disk")), version: make([]uint64, 1024)}
	n := f.writeUntilFull(0)
	if n < 300 {
		t.Errorf("only %d MiB could be written to a disk of 640 MiB", n)
	}
	check(t, f.c.Flush(t.Context()))
	f.compare()
	if err := f.write(0); err == nil { // may fit into what is left of a segment
		t.Log("a rewrite still fits")
	} else if !errors.Is(err, scstore.ErrNoSpace) {
		t.Fatalf("write to a full disk: %v, want ENOSPC", err)
	} else {
		f.version[0] = mixed
	}
	t.Logf("full after %d MiB", n)

	for round := range 3 {
		// Every second chunk: no segment is free of itself, all have to be cleaned.
		discarded := 0
		for chunk := round % 2; chunk < n; chunk += 2 {
			check(t, f.c.Trim(t.Context(), int64(chunk)*chunkBytes, chunkBytes, 0))
			f.version[chunk] = 0
			discarded++
		}
		check(t, f.c.Flush(t.Context()))
		began, written := time.Now(), 0
		for chunk := round % 2; chunk < n && written < discarded*3/4; chunk += 2 {
			if err := f.write(chunk); err != nil { // the write waits for the cleaner, not the guest
				t.Fatalf("round %d: after %d MiB of %d discarded: %v", round, written, discarded, err)
			}
			written++
		}
		t.Logf("round %d: %d MiB discarded, %d MiB written again in %s", round, discarded, written, time.Since(began).Round(time.Millisecond))
	}
	f.compare()
	check(t, f.c.Flush(t.Context()))
	check(t, s.Stop())
	s = serve(t, dir)
	f.c = dial(t, s.URL("disk"))
	f.compare()
	run(t, s, "volume", "rm", "disk", "--force")
	check(t, s.Stop())
}

func TestFull_OverwritingNeedsNoSpaceOfItsOwn(t *testing.T) {
	s := serve(t, filepath.Join(smallDisk(t, "640M"), "store"))
	run(t, s, "volume", "create", "disk", "--size", "128M")
	f := &filled{t: t, c: dial(t, s.URL("disk")), version: make([]uint64, 128)}
	rng := rand.New(rand.NewPCG(31, 1))
	for n := range 1200 { // MiB, on a disk of 640
		if err := f.write(rng.IntN(len(f.version))); err != nil {
			t.Fatalf("overwrite after %d MiB: %v", n, err)
		}
		if n%50 == 0 {
			check(t, f.c.Flush(t.Context()))
		}
	}
	f.compare()
	check(t, s.Stop())
}

func TestFull_AnotherProgramTakesTheLastByte(t *testing.T) {
	f, dir, ballast, s := filledFromOutside(t, 2*mib)
	select {
	case <-s.Exited():
	case <-time.After(10 * time.Second):
		t.Fatal("the host goes on without space for its index")
	}
	if code := s.ExitCode(); code != exitNoSpace || !oneLineAndHint(s.Said(), "no space left") {
		t.Errorf("the host ended with code %d, want %d:\n%s", code, exitNoSpace, s.Said())
	}
	startWithSpace(t, f, dir, ballast)
}

func TestFull_AnotherProgramTakesTheReserve(t *testing.T) {
	f, dir, ballast, s := filledFromOutside(t, 56*mib)
	f.compare()
	check(t, s.Kill())
	again, err := e2e.Serve(t.Context(), program, dir)
	if err == nil {
		check(t, again.Kill())
	}
	if code := exitCode(err); code != exitNoSpace {
		t.Errorf("start without room for the index: code %d, want %d: %v", code, exitNoSpace, err)
	}
	startWithSpace(t, f, dir, ballast)
}

// filledFromOutside fills the disk below a host with a file of somebody else's, up
// to leave bytes, and has a client write on until there is no space.
func filledFromOutside(t *testing.T, leave int) (f *filled, dir, ballast string, s *e2e.Server) {
	t.Helper()
	mountPoint := smallDisk(t, "640M")
	dir, ballast = filepath.Join(mountPoint, "store"), filepath.Join(mountPoint, "ballast")
	s = serve(t, dir)
	run(t, s, "volume", "create", "disk", "--size", "1G")
	f = &filled{t: t, c: dial(t, s.URL("disk")), version: make([]uint64, 1024)}
	for chunk := range 100 {
		check(t, f.write(chunk))
	}
	check(t, f.c.Flush(t.Context()))
	free, err := strconv.Atoi(strings.TrimSpace(tool(t, "stat", "-f", "-c", "%a", mountPoint))) // blocks of 4 KiB
	check(t, err)
	tool(t, "fallocate", "-l", strconv.Itoa(free*4*kib-leave), ballast)
	t.Logf("%d MiB written to a disk that another program filled", f.goOn(100))
	return f, dir, ballast, s
}

// startWithSpace frees the space and expects everything to be as it was.
func startWithSpace(t *testing.T, f *filled, dir, ballast string) {
	t.Helper()
	check(t, os.Remove(ballast))
	s := serve(t, dir)
	f.c = dial(t, s.URL("disk"))
	f.compare()
	check(t, f.write(300))
	check(t, f.c.Flush(t.Context()))
	f.compare()
	check(t, s.Stop())
	if out, err := toolError(t, program, "doctor", "--dir", dir); err != nil {
		t.Errorf("doctor: %v\n%s", err, out)
	}
}

// goOn writes on until there is no space or the host has ended, and returns how
// many chunks it could write.
func (f *filled) goOn(from int) int {
	f.t.Helper()
	for chunk := from; chunk < len(f.version); chunk++ {
		err := f.write(chunk)
		if err == nil {
			continue
		}
		f.version[chunk] = mixed
		if !errors.Is(err, scstore.ErrNoSpace) && !errors.Is(err, scstore.ErrUnreachable) && !errors.Is(err, scstore.ErrClosed) {
			f.t.Fatalf("write to a disk that another program filled: %v", err)
		}
		// A guest flushes next, whatever the host then says.
		ctx, cancel := context.WithTimeout(f.t.Context(), 10*time.Second)
		defer cancel()
		if err := f.c.Flush(ctx); err != nil {
			f.t.Logf("flush: %v", err)
		}
		return chunk - from
	}
	f.t.Fatal("the volume is full before the disk is")
	return 0
}
