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
	places, err := e.h.places()
	if err != nil {
		return nil, fmt.Errorf("list exports: %w", err)
	}
	for _, p := range places {
		list = append(list, nbd.ExportInfo{Name: p.name(), Description: string(p.kind())})
	}
	return list, nil
}

// Open opens a name for one connection. All connections of a name share one open
// volume (I3), so that a flush on one covers what was acknowledged on any.
func (e exports) Open(ctx context.Context, name string) (nbd.Export, error) {
	p, err := e.h.find("", name)
	if err != nil {
		return nbd.Export{}, fmt.Errorf("open export: %w", err)
	}
	u, err := e.h.volumes.open(ctx, p, true)
	if err != nil {
		return nbd.Export{}, fmt.Errorf("open export %q: %w", name, err)
	}
	return nbd.Export{
		Device: u.device, Name: p.name(), Description: string(p.kind()),
		// A volume that another host writes is seen at one position by a connection, and
		// at a later one by the next.
		MultiConn: p.readOnly() || !u.device.ReadOnly(),
		Revoked:   u.revoked, Gate: u.gate, Close: u.release,
	}, nil
}

// NBD lists the exports with their URLs.
func (h *Host) NBD(context.Context) (api.NBD, error) {
	out := api.NBD{Address: h.o.nbdAddr.String(), Exports: []api.NBDExport{}}
	places, err := h.places()
	if err != nil {
		return out, fmt.Errorf("list exports: %w", err)
	}
	for _, p := range places {
		addr := nbd.Address{Network: h.o.nbdAddr.Network, Addr: h.o.nbdAddr.Address, Export: p.name()}
		out.Exports = append(out.Exports, api.NBDExport{
			Name: p.name(), Kind: p.kind(), SizeBytes: p.sizeBytes(), ReadOnly: p.readOnly() || h.ownedElsewhere(p),
			URL: addr.String(), Connections: h.connections(p.key()),
		})
	}
	return out, nil
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
