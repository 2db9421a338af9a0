package e2e_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"scstore"
	"scstore/e2e"
)

const (
	kib = 1 << 10
	mib = 1 << 20
	// maxLogged is how many lines of a host a failed test shows.
	maxLogged = 30
)

// program is the program, built once.
var program string

func TestMain(m *testing.M) { os.Exit(buildAndRun(m)) }

func buildAndRun(m *testing.M) int {
	dir, err := os.MkdirTemp("", "scstore-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	program = filepath.Join(dir, "scstore")
	if err := build(program); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// build builds the program.
func build(path string, flags ...string) error {
	cmd := exec.Command("go", append(append([]string{"build"}, flags...), "-o", path, "scstore/cmd/scstore")...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build the program: %w\n%s", err, out)
	}
	return nil
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// serve starts a host in dir, and kills it at the end of the test if it still runs.
func serve(t testing.TB, dir string) *e2e.Server {
	t.Helper()
	s, err := e2e.Serve(t.Context(), program, dir)
	check(t, err)
	t.Cleanup(func() {
		check(t, s.Kill())
		if t.Failed() {
			lines := strings.Split(s.Said(), "\n")
			t.Logf("pid %d said:\n%s", s.PID(), strings.Join(lines[max(0, len(lines)-maxLogged):], "\n"))
		}
	})
	return s
}

// run runs a client command that must succeed.
func run(t testing.TB, s *e2e.Server, args ...string) string {
	t.Helper()
	out, err := s.Run(t.Context(), args...)
	check(t, err)
	return out
}

// tool runs another program that must succeed. Where it is missing, the test fails
// and names it.
func tool(t testing.TB, argv ...string) string {
	t.Helper()
	out, err := toolError(t, argv...)
	check(t, err)
	return out
}

func toolError(t testing.TB, argv ...string) (string, error) {
	t.Helper()
	if _, err := exec.LookPath(argv[0]); err != nil {
		t.Fatalf("%s is needed by this test; scripts/install-tools installs it: %v", argv[0], err)
	}
	return e2e.Output(t.Context(), argv...)
}

// random returns n random bytes.
func random(n int, seed uint64) []byte {
	var key [32]byte
	copy(key[:], strconv.FormatUint(seed, 10))
	p := make([]byte, n)
	_, _ = rand.NewChaCha8(key).Read(p) // never fails
	return p
}

// diskFile writes a raw file with data, zeros and holes, and returns its bytes.
func diskFile(t testing.TB, path string, sizeBytes int) []byte {
	t.Helper()
	content := make([]byte, sizeBytes)
	for off := 64 * kib; off < sizeBytes; off += mib {
		copy(content[off:min(off+200*kib, sizeBytes)], random(200*kib, uint64(off)))
	}
	f, err := os.Create(path)
	check(t, err)
	check(t, f.Truncate(int64(sizeBytes)))
	for off := 0; off < sizeBytes; off += scstore.BlockSize {
		if p := content[off : off+scstore.BlockSize]; len(bytes.Trim(p, "\x00")) > 0 {
			_, err := f.WriteAt(p, int64(off))
			check(t, err)
		}
	}
	check(t, f.Close())
	return content
}

// metric asks the host for one of its figures.
func metric(t testing.TB, dir, name string) float64 {
	t.Helper()
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(dir, "api.sock"))
	}}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://host/metrics", http.NoBody)
	check(t, err)
	resp, err := transport.RoundTrip(req)
	check(t, err)
	defer func() { _ = resp.Body.Close() }()
	var text bytes.Buffer
	_, err = text.ReadFrom(resp.Body)
	check(t, err)
	m := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(name) + ` (\S+)$`).FindStringSubmatch(text.String())
	if m == nil {
		t.Fatalf("/metrics has no %s", name)
	}
	v, err := strconv.ParseFloat(m[1], 64)
	check(t, err)
	return v
}

// eventually waits until ok is true.
func eventually(t testing.TB, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(limit); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not after %s: %s", limit, what)
		}
	}
}

// exitCode returns the exit code of a program that failed, or -1.
func exitCode(err error) int {
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return exit.ExitCode()
	}
	return -1
}

// oneLineAndHint reports whether the last lines are one "scstore:" line about want
// and perhaps a hint.
func oneLineAndHint(said, want string) bool {
	lines := strings.Split(said, "\n")
	if n := len(lines); n > 1 && strings.HasPrefix(lines[n-1], "hint: ") {
		lines = lines[:n-1]
	}
	last := lines[len(lines)-1]
	return strings.HasPrefix(last, "scstore: ") && strings.Contains(last, want)
}
