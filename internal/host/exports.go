package host

import (
	"context"
	"fmt"

	"scstore/internal/api"
	"scstore/nbd"
)

// exports is what the NBD door serves: every volume for writing, every image and
// snapshot for reading.
type exports struct{ h *Host }

var _ nbd.Exports = exports{}

// List returns all names.
func (e exports) List(context.Context) ([]nbd.ExportInfo, error) {
	var list []nbd.ExportInfo
	for _, r := range e.h.places() {
		list = append(list, nbd.ExportInfo{Name: r.name(), Description: string(r.kind())})
	}
	return list, nil
}

// Open opens a name for one connection. All connections of a name share one open
// volume (I3), so that a flush on one covers what was acknowledged on any.
func (e exports) Open(ctx context.Context, name string) (nbd.Export, error) {
	r, err := e.h.find("", name)
	if err != nil {
		return nbd.Export{}, fmt.Errorf("open export: %w", err)
	}
	u, err := e.h.use(ctx, r, true)
	if err != nil {
		return nbd.Export{}, fmt.Errorf("open export %q: %w", name, err)
	}
	return nbd.Export{
		Device: u.v, Name: r.name(), Description: string(r.kind()), MultiConn: true,
		Revoked: u.revoked, Close: u.release,
	}, nil
}

// NBD lists the exports with their URLs.
func (h *Host) NBD(context.Context) (api.NBD, error) {
	out := api.NBD{Address: h.o.nbdAddr.String(), Exports: []api.NBDExport{}}
	for _, r := range h.places() {
		addr := nbd.Address{Network: h.o.nbdAddr.Network, Addr: h.o.nbdAddr.Address, Export: r.name()}
		size := r.SizeBytes
		if r.snap != nil {
			size = r.snap.SizeBytes
		}
		out.Exports = append(out.Exports, api.NBDExport{
			Name: r.name(), Kind: r.kind(), SizeBytes: size, ReadOnly: r.readOnly(),
			URL: addr.String(), Connections: h.connections(r.key()),
		})
	}
	return out, nil
}

// places returns all that can be exported: names in order, each followed by its
// snapshots.
func (h *Host) places() (list []place) {
	for _, r := range h.records() {
		list = append(list, place{Record: r})
		for _, s := range h.snapshots(r.ID) {
			list = append(list, place{r, &s})
		}
	}
	return list
}

// connections returns the open NBD connections of a slot.
func (h *Host) connections(id slotKey) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	if s := h.slots[id]; s != nil {
		return s.conns
	}
	return 0
}
