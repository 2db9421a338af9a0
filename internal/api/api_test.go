package api_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"scstore"
	"scstore/internal/api"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve serves m on a unix socket until the test ends.
func serve(t *testing.T, m *memory) (*api.Client, *api.Server) {
	t.Helper()
	addr, err := api.ParseAddr("unix:" + filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen(addr.Network, addr.Address)
	if err != nil {
		t.Fatal(err)
	}
	s := api.NewServer(api.Options{Service: m})
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	c := api.NewClient(addr)
	t.Cleanup(func() {
		c.Close()
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if err := s.Close(ctx); err != nil {
			t.Errorf("Close: %v", err)
		}
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return c, s
}

func TestClient_EverySentinelComesOutAsItself(t *testing.T) {
	m := newMemory()
	c, _ := serve(t, m)
	for _, sentinel := range scstore.Sentinels() {
		m.fail = scstore.Hint(fmt.Errorf("do a thing: %w", sentinel), "do another thing")
		_, err := c.Status(t.Context())
		if !errors.Is(err, sentinel) {
			t.Errorf("%v came out as %v", sentinel, err)
		}
		for _, other := range scstore.Sentinels() {
			if other != sentinel && errors.Is(err, other) {
				t.Errorf("%v came out as %v too", sentinel, other)
			}
		}
		if got, want := err.Error(), m.fail.Error(); got != want {
			t.Errorf("message: got %q, want %q", got, want)
		}
		hint, ok := errors.AsType[*scstore.HintError](err)
		if !ok || hint.Hint != "do another thing" {
			t.Errorf("%v: the hint is lost", sentinel)
		}
		if e, _ := api.NewError(sentinel); e.Code == api.CodeInternal {
			t.Errorf("%v has no code", sentinel)
		}
	}
	m.fail = errors.New("a bug")
	if _, err := c.Status(t.Context()); err == nil || err.Error() != "a bug" {
		t.Errorf("got %v, want the error without a sentinel", err)
	}
}

func TestClient_NamesWithAnyCharactersReachTheService(t *testing.T) {
	c, _ := serve(t, newMemory())
	for _, name := range []string{"a", "prod/web1", "..", ".", "a/../b", "ä ö%2F?x=y#z", "/v1/status", "data"} {
		if _, err := c.CreateVolume(t.Context(), api.CreateVolume{Name: name, SizeBytes: 4096}); err != nil {
			t.Fatal(err)
		}
		v, err := c.Get(t.Context(), api.KindVolume, name)
		if err != nil || v.Name != name {
			t.Errorf("get %q: got %q, %v", name, v.Name, err)
		}
		if err := c.Export(t.Context(), api.KindVolume, name, func(int64) error { return nil }, func(api.Frame) error { return nil }); err != nil {
			t.Errorf("export %q: %v", name, err)
		}
		r, err := c.Remove(t.Context(), api.KindVolume, name, api.RemoveOptions{Force: true})
		if err != nil || r.Volume.Name != name || r.ClosedConns != 3 {
			t.Errorf("remove %q: got %+v, %v", name, r, err)
		}
		if _, err := c.Get(t.Context(), api.KindVolume, name); !errors.Is(err, scstore.ErrNotFound) {
			t.Errorf("get %q after its removal: %v", name, err)
		}
	}
	if _, err := c.Get(t.Context(), api.KindVolume, ""); !errors.Is(err, scstore.ErrInvalid) {
		t.Errorf("an empty name: got %v", err)
	}
}

func TestClient_RemoveWithDryRunKeepsTheVolume(t *testing.T) {
	m := newMemory()
	c, _ := serve(t, m)
	m.volumes["v"] = api.Volume{Name: "v", Kind: api.KindVolume}
	r, err := c.Remove(t.Context(), api.KindVolume, "v", api.RemoveOptions{DryRun: true})
	if err != nil || !r.DryRun || r.ClosedConns != 0 {
		t.Fatalf("got %+v, %v", r, err)
	}
	if l, err := c.List(t.Context(), api.KindVolume); err != nil || len(l) != 1 {
		t.Fatalf("got %v, %v", l, err)
	}
	if l, err := c.List(t.Context(), api.KindImage); err != nil || len(l) != 0 {
		t.Fatalf("got %v, %v", l, err)
	}
}

func TestClient_WithoutAHostIsUnreachableWithAHint(t *testing.T) {
	c := api.NewClient(api.Addr{Network: "unix", Address: filepath.Join(t.TempDir(), "none")})
	defer c.Close()
	_, err := c.Status(t.Context())
	if _, ok := errors.AsType[*scstore.HintError](err); !ok || !errors.Is(err, scstore.ErrUnreachable) {
		t.Errorf("got %v", err)
	}
	_, err = c.ImportImage(t.Context(), "i", 4096, func(_ context.Context, w *api.StreamWriter) error { return w.Data(make([]byte, 4096), 0) })
	if !errors.Is(err, scstore.ErrUnreachable) {
		t.Errorf("import: got %v", err)
	}
}

// pattern returns n bytes with holes of whole blocks in them.
func pattern(n int) []byte {
	rng := rand.New(rand.NewPCG(1, 2))
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(rng.Uint32()) | 1
	}
	for b := 0; b+scstore.BlockSize <= n; b += scstore.BlockSize {
		if rng.IntN(3) == 0 {
			clear(p[b : b+scstore.BlockSize])
		}
	}
	return p
}

// importBytes imports p in one call of Data.
func importBytes(ctx context.Context, c *api.Client, name string, p []byte) (api.Volume, error) {
	return c.ImportImage(ctx, name, int64(len(p)), func(_ context.Context, w *api.StreamWriter) error { return w.Data(p, 0) })
}

func TestImportExport_ContentIsTheSameAndHolesStayHoles(t *testing.T) {
	m := newMemory()
	c, _ := serve(t, m)
	want := pattern(5<<20 + 3*4096)
	if v, err := importBytes(t.Context(), c, "i", want); err != nil || v.SizeBytes != int64(len(want)) {
		t.Fatalf("import: %+v, %v", v, err)
	}
	var got []byte
	sent := int64(0)
	err := c.Export(t.Context(), api.KindImage, "i",
		func(size int64) error { got = make([]byte, size); return nil },
		func(f api.Frame) error { sent += f.Length; copy(got[f.Offset:], f.Data); return nil })
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("export: %v, same %v", err, bytes.Equal(got, want))
	}
	if sent == 0 || sent > int64(len(want))*3/4 {
		t.Errorf("sent %d of %d bytes: the holes were sent", sent, len(want))
	}
	if m.aborted != 0 {
		t.Errorf("%d aborts", m.aborted)
	}
}

func TestImport_FailureOnEitherSideAborts(t *testing.T) {
	p := pattern(8 << 20)
	boom := errors.New("the file broke")
	for name, test := range map[string]struct {
		failAt int64
		fill   func(cancel context.CancelFunc, w *api.StreamWriter) error
		want   error
	}{
		"host has no space": {1 << 20, func(_ context.CancelFunc, w *api.StreamWriter) error { return w.Data(p, 0) }, scstore.ErrNoSpace},
		"source fails": {0, func(_ context.CancelFunc, w *api.StreamWriter) error {
			if err := w.Data(p[:3<<20], 0); err != nil {
				return err
			}
			return boom
		}, boom},
		"cancelled": {0, func(cancel context.CancelFunc, w *api.StreamWriter) error {
			cancel()
			return w.Data(p, 0)
		}, context.Canceled},
		"beyond the size": {0, func(_ context.CancelFunc, w *api.StreamWriter) error { return w.Data(p, 4096) }, scstore.ErrInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMemory()
			m.failAt = test.failAt
			c, _ := serve(t, m)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			_, err := c.ImportImage(ctx, "i", int64(len(p)), func(_ context.Context, w *api.StreamWriter) error { return test.fill(cancel, w) })
			if !errors.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
			// The answer came after the abort.
			m.mu.Lock()
			defer m.mu.Unlock()
			if m.begun != 1 || m.aborted != 1 || len(m.volumes) != 0 {
				t.Errorf("begun %d, aborted %d, volumes %d", m.begun, m.aborted, len(m.volumes))
			}
		})
	}
}

func TestImport_RefusedAtTheBeginningNeedsNoWholeStream(t *testing.T) {
	m := newMemory()
	m.fail = fmt.Errorf("image %q: %w", "i", scstore.ErrExists)
	c, _ := serve(t, m)
	p := pattern(1 << 20)
	_, err := c.ImportImage(t.Context(), "i", 1<<40, func(_ context.Context, w *api.StreamWriter) error {
		for off := int64(0); off < 1<<40; off += int64(len(p)) {
			if err := w.Data(p, off); err != nil {
				return err
			}
		}
		return nil
	})
	if !errors.Is(err, scstore.ErrExists) {
		t.Errorf("got %v", err)
	}
}

func TestImport_AnswerEndsASourceThatWaits(t *testing.T) {
	m := newMemory()
	m.failAt = 1
	c, _ := serve(t, m)
	_, err := c.ImportImage(t.Context(), "i", 1<<20, func(ctx context.Context, w *api.StreamWriter) error {
		if err := w.Data(make([]byte, 512<<10), 4096); err != nil {
			return err
		}
		<-ctx.Done() // as a pipe that brings nothing
		return context.Cause(ctx)
	})
	if !errors.Is(err, scstore.ErrNoSpace) {
		t.Errorf("got %v", err)
	}
}

func TestImport_LostClientAborts(t *testing.T) {
	m := newMemory()
	m.began = make(chan struct{}, 1)
	c, s := serve(t, m)
	conn, err := net.Dial(c.Addr().Network, c.Addr().Address)
	if err != nil {
		t.Fatal(err)
	}
	var body bytes.Buffer
	w, err := api.NewStreamWriter(&body, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Zero(0, 4096); err != nil {
		t.Fatal(err)
	}
	if err := w.End(); err != nil {
		t.Fatal(err)
	}
	// The whole stream but its last byte, then nothing: as after kill -9.
	fmt.Fprintf(conn, "PUT /v1/images/i/data HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n", body.Len())
	if _, err := conn.Write(body.Bytes()[:body.Len()-1]); err != nil {
		t.Fatal(err)
	}
	<-m.began
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(t.Context()); err != nil { // returns after the handler
		t.Fatal(err)
	}
	if m.aborted != 1 || len(m.volumes) != 0 {
		t.Errorf("aborted %d, volumes %d", m.aborted, len(m.volumes))
	}
}

func TestServer_CloseEndsRequestsThatRunAndRefusesNewOnes(t *testing.T) {
	m := newMemory()
	m.block, m.began = make(chan struct{}), make(chan struct{}, 1)
	c, s := serve(t, m)
	ended := make(chan error, 2)
	go func() { _, err := c.Doctor(t.Context(), nil); ended <- err }()
	go func() {
		_, err := c.ImportImage(t.Context(), "i", 1<<30, func(_ context.Context, w *api.StreamWriter) error {
			for {
				if err := w.Data(make([]byte, 4096), 0); err != nil {
					return err
				}
			}
		})
		ended <- err
	}()
	<-m.began
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := s.Close(ctx); err != nil {
		t.Fatal(err)
	}
	if m.aborted != 1 {
		t.Errorf("aborted %d imports, want 1", m.aborted)
	}
	for range 2 {
		if err := <-ended; err == nil {
			t.Error("a request that was cut off has no error")
		}
	}
	if _, err := c.Status(t.Context()); err == nil {
		t.Error("a closed server answers")
	}
}

func TestExport_FailureInTheMiddleIsAnErrorNotAShortFile(t *testing.T) {
	m := newMemory()
	c, _ := serve(t, m)
	if _, err := importBytes(t.Context(), c, "i", pattern(4<<20)); err != nil {
		t.Fatal(err)
	}
	m.failAt = 3 << 20
	parts := 0
	err := c.Export(t.Context(), api.KindImage, "i", func(int64) error { return nil }, func(api.Frame) error { parts++; return nil })
	if hint, ok := errors.AsType[*scstore.HintError](err); !errors.Is(err, scstore.ErrCorrupt) || !ok || hint.Hint != "repair it" {
		t.Errorf("got %v", err)
	}
	if parts == 0 {
		t.Error("nothing came before the error")
	}
}

func TestStreams_MoreThanTheLimitAreBusy(t *testing.T) {
	m := newMemory()
	m.began = make(chan struct{}, api.MaxStreams)
	c, _ := serve(t, m)
	release := make(chan struct{})
	ended := make(chan error, api.MaxStreams)
	for i := range api.MaxStreams {
		go func() {
			_, err := c.ImportImage(t.Context(), fmt.Sprint(i), 1<<20, func(_ context.Context, w *api.StreamWriter) error {
				if err := w.Data(make([]byte, 256<<10), 0); err != nil {
					return err
				}
				<-release
				return nil
			})
			ended <- err
		}()
	}
	for range api.MaxStreams {
		<-m.began
	}
	if _, err := importBytes(t.Context(), c, "one more", make([]byte, 4096)); !errors.Is(err, scstore.ErrBusy) {
		t.Errorf("got %v, want busy", err)
	}
	if _, err := c.Status(t.Context()); err != nil {
		t.Errorf("other requests go on: %v", err)
	}
	close(release)
	for range api.MaxStreams {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}

func TestServer_BadRequestsGetJSONErrors(t *testing.T) {
	c, _ := serve(t, newMemory())
	hc := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, c.Addr().Network, c.Addr().Address)
	}}}
	defer hc.CloseIdleConnections()
	for _, test := range []struct {
		method, path, body string
		status             int
		code               string
	}{
		{"GET", "/v2/status", "", 404, "not_found"},
		{"PATCH", "/v1/volumes/x", "", 404, "not_found"},
		{"POST", "/v1/volumes", "{", 400, "invalid"},
		{"POST", "/v1/volumes", `{"nam":"x"}`, 400, "invalid"},
		{"POST", "/v1/volumes", `{"name":"x"}{}`, 400, "invalid"},
		{"POST", "/v1/volumes", `{"name":"` + strings.Repeat("x", api.MaxRequestBytes) + `"}`, 400, "invalid"},
		{"POST", "/v1/tokens", `{"sight":"x"}`, 400, "invalid"},
		{"POST", "/v1/volumes/x/move", `{"to":1}`, 400, "invalid"},
		{"POST", "/v1/volumes/x/promote", "", 400, "invalid"},
		{"PUT", "/v1/volumes/x/placement", "[]", 400, "invalid"},
		{"PUT", "/v1/images/x/data", "", 500, "corrupt"},
		{"PUT", "/v1/images/x/data", strings.Repeat("x", 100), 500, "corrupt"},
	} {
		req, err := http.NewRequestWithContext(t.Context(), test.method, "http://x"+test.path, strings.NewReader(test.body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := hc.Do(req)
		if err != nil {
			t.Fatalf("%s %s: %v", test.method, test.path, err)
		}
		text, err := io.ReadAll(resp.Body)
		err = errors.Join(err, resp.Body.Close())
		if err != nil || resp.StatusCode != test.status || !strings.Contains(string(text), `"code":"`+test.code+`"`) {
			t.Errorf("%s %s: got %d %s %v, want %d %s", test.method, test.path, resp.StatusCode, text, err, test.status, test.code)
		}
	}
}

func TestDoctor_ReportAndProgressComeThrough(t *testing.T) {
	c, _ := serve(t, newMemory())
	var done, total int64
	r, err := c.Doctor(t.Context(), func(d, n int64) { done, total = d, n })
	if err != nil || r.VerifiedBytes != 2 || r.Worst() != api.SeverityWarning || done != 1 || total != 2 {
		t.Errorf("got %+v, %v, progress %d of %d", r, err, done, total)
	}
}

func TestParseAddr(t *testing.T) {
	for in, want := range map[string]string{"unix:/a/b": "unix:/a/b", "localhost:80": "localhost:80", "[::1]:1": "[::1]:1"} {
		if a, err := api.ParseAddr(in); err != nil || a.String() != want {
			t.Errorf("%q: got %v, %v", in, a, err)
		}
	}
	for _, in := range []string{"", "unix:", "/a/b", "host", "unix:/" + strings.Repeat("x", api.MaxSocketPath)} {
		if _, err := api.ParseAddr(in); !errors.Is(err, scstore.ErrInvalid) {
			t.Errorf("%q: got %v", in, err)
		}
	}
}
