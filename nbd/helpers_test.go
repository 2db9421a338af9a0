package nbd_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"scstore"
	"scstore/nbd"
	"scstore/nbd/nbdtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	kib = 1 << 10
	mib = 1 << 20
)

// exports serves devices by name, and counts how many are open.
type exports struct {
	devices map[string]nbd.Device
	open    atomic.Int64
	err     error // what Open answers, if set
	gate    *nbd.Gate
}

func (e *exports) List(context.Context) ([]nbd.ExportInfo, error) {
	var list []nbd.ExportInfo
	for name := range e.devices {
		list = append(list, nbd.ExportInfo{Name: name, Description: describe(name)})
	}
	slices.SortFunc(list, func(a, b nbd.ExportInfo) int { return strings.Compare(a.Name, b.Name) })
	return list, nil
}

func describe(name string) string { return "volume " + name }

func (e *exports) Open(_ context.Context, name string) (nbd.Export, error) {
	if e.err != nil {
		return nbd.Export{}, e.err
	}
	d, ok := e.devices[name]
	if !ok {
		return nbd.Export{}, fmt.Errorf("export %q: %w", name, scstore.ErrNotFound)
	}
	e.open.Add(1)
	return nbd.Export{Device: d, Name: name, Description: describe(name), MultiConn: true, Gate: e.gate, Close: func() error {
		e.open.Add(-1)
		return nil
	}}, nil
}

// env is a running server on a unix socket.
type env struct {
	exports *exports
	server  *nbd.Server
	socket  string
	cancel  context.CancelFunc
	served  chan error
}

// serve starts a server for the test; it must end without an error.
func serve(t testing.TB, devices map[string]nbd.Device, o nbd.Options) *env {
	t.Helper()
	e := &env{exports: &exports{devices: devices}, served: make(chan error, 1)}
	o.Exports = e.exports
	e.server = nbd.NewServer(o)
	e.socket = filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", e.socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	e.cancel = cancel
	go func() { e.served <- e.server.Serve(ctx, l) }()
	t.Cleanup(func() {
		e.stop(t)
		if n := e.exports.open.Load(); n != 0 {
			t.Errorf("%d exports left open", n)
		}
	})
	return e
}

// stop ends the server and reports what Serve returned.
func (e *env) stop(t testing.TB) {
	t.Helper()
	e.cancel()
	select {
	case err := <-e.served:
		if err != nil {
			t.Errorf("Serve returned %v", err)
		}
		e.served <- nil // for the next stop
	case <-time.After(30 * time.Second):
		t.Error("Serve did not return")
	}
}

func (e *env) url(name string) string {
	return nbd.Address{Network: "unix", Addr: e.socket, Export: name}.String()
}

func (e *env) dial(t testing.TB, name string, o nbd.DialOptions) *nbd.Client {
	t.Helper()
	c, err := nbd.Dial(t.Context(), e.url(name), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Errorf("close client: %v", err)
		}
	})
	return c
}

// memory serves one device of sizeBytes under the name "disk".
func memory(t testing.TB, sizeBytes int64, hooks nbdtest.Hooks) (*env, *nbdtest.MemDevice) {
	t.Helper()
	d := nbdtest.NewMemDevice(sizeBytes, false, hooks)
	return serve(t, map[string]nbd.Device{"disk": d}, nbd.Options{}), d
}

func wantIs(t testing.TB, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("got error %v, want %v", err, want)
	}
}
