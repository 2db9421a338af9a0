package host

import (
	"context"
	"fmt"

	"scstore"
	"scstore/internal/api"
	"scstore/nbd"
)

// exports is what the NBD door serves: every volume for writing, every image for
// reading.
type exports struct{ h *Host }

var _ nbd.Exports = exports{}

// List returns all names.
func (e exports) List(context.Context) ([]nbd.ExportInfo, error) {
	all := e.h.records()
	list := make([]nbd.ExportInfo, len(all))
	for i, r := range all {
		list[i] = nbd.ExportInfo{Name: r.Name, Description: string(kindOf(r.Kind))}
	}
	return list, nil
}

// Open opens a name for one connection. All connections of a name share one open
// volume (I3), so that a flush on one covers what was acknowledged on any.
func (e exports) Open(ctx context.Context, name string) (nbd.Export, error) {
	r, err := e.h.lookup("", name)
	if err != nil {
		return nbd.Export{}, fmt.Errorf("open export: %w", err)
	}
	u, err := e.h.use(ctx, r, true)
	if err != nil {
		return nbd.Export{}, fmt.Errorf("open export %q: %w", name, err)
	}
	return nbd.Export{
		Device: u.v, Name: r.Name, Description: string(kindOf(r.Kind)), MultiConn: true,
		Revoked: u.revoked, Close: u.release,
	}, nil
}

// NBD lists the exports with their URLs.
func (h *Host) NBD(context.Context) (api.NBD, error) {
	out := api.NBD{Address: h.o.nbdAddr.String(), Exports: []api.NBDExport{}}
	for _, r := range h.records() {
		kind := kindOf(r.Kind)
		addr := nbd.Address{Network: h.o.nbdAddr.Network, Addr: h.o.nbdAddr.Address, Export: r.Name}
		out.Exports = append(out.Exports, api.NBDExport{
			Name: r.Name, Kind: kind, SizeBytes: r.SizeBytes, ReadOnly: kind == api.KindImage,
			URL: addr.String(), Connections: h.connections(r.ID),
		})
	}
	return out, nil
}

// connections returns the open NBD connections of a volume.
func (h *Host) connections(id scstore.VolumeID) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	if s := h.slots[id]; s != nil {
		return s.conns
	}
	return 0
}
