package nbd_test

import (
	"context"
	"net"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"scstore/nbd"
	"scstore/nbd/nbdtest"
)

// revocable serves one device, all of whose connections can be ended.
type revocable struct {
	device  nbd.Device
	revoked context.Context
	open    atomic.Int64
}

func (r *revocable) List(context.Context) ([]nbd.ExportInfo, error) { return nil, nil }

func (r *revocable) Open(_ context.Context, name string) (nbd.Export, error) {
	r.open.Add(1)
	return nbd.Export{Device: r.device, Name: name, Revoked: r.revoked, Close: func() error { r.open.Add(-1); return nil }}, nil
}

func TestServer_RevokedExportEndsItsConnectionsOnly(t *testing.T) {
	ctx, revoke := context.WithCancel(t.Context())
	defer revoke()
	r := &revocable{device: nbdtest.NewMemDevice(mib, false, nbdtest.Hooks{}), revoked: ctx}
	server := nbd.NewServer(nbd.Options{Exports: r})
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(context.Background(), l) }()
	url := nbd.Address{Network: "unix", Addr: path, Export: "disk"}.String()

	idle, err := nbd.Dial(t.Context(), url, nbd.DialOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close()
	if err := idle.WriteAt(t.Context(), []byte("x"), 0, 0); err != nil {
		t.Fatal(err)
	}
	revoke()
	for deadline := time.Now().Add(10 * time.Second); r.open.Load() > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the connection is still open")
		}
	}
	if err := idle.WriteAt(t.Context(), []byte("x"), 0, 0); err == nil {
		t.Error("a revoked connection still writes")
	}
	// The server goes on, for exports that are not revoked.
	r.revoked = nil
	again, err := nbd.Dial(t.Context(), url, nbd.DialOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := again.WriteAt(t.Context(), []byte("x"), 0, 0); err != nil {
		t.Error(err)
	}
	if err := again.Close(); err != nil {
		t.Error(err)
	}
	if err := server.Close(); err != nil {
		t.Error(err)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
}
