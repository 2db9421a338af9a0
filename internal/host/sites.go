package host

import (
	"context"
	"fmt"

	"scstore"
	"scstore/internal/api"
)

// noCluster says that a host is alone.
func noCluster() error {
	return scstore.Hint(fmt.Errorf("this host is in no cluster: %w", scstore.ErrInvalid),
		"begin one on a new folder: scstore serve --dir DIR --site NAME --listen HOST:PORT")
}

// Cluster describes the cluster.
func (h *Host) Cluster(context.Context) (api.Cluster, error) { return api.Cluster{}, noCluster() }

// NewToken makes a join token.
func (h *Host) NewToken(context.Context, api.NewToken) (api.Token, error) {
	return api.Token{}, noCluster()
}

// RemoveHost removes a host.
func (h *Host) RemoveHost(context.Context, string, api.RemoveOptions) (api.HostRemoval, error) {
	return api.HostRemoval{}, noCluster()
}

// SetPlacement sets a policy.
func (h *Host) SetPlacement(context.Context, string, api.Placement) (api.Placement, error) {
	return api.Placement{}, noCluster()
}

// Placement returns a policy.
func (h *Host) Placement(context.Context, string) (api.Placement, error) {
	return api.Placement{}, noCluster()
}

// Move hands a volume to a host.
func (h *Host) Move(context.Context, string, api.Move, func(done, total int64)) (api.MoveReport, error) {
	return api.MoveReport{}, noCluster()
}

// Promote gives a volume to another host.
func (h *Host) Promote(context.Context, string, api.Promote) (api.PromoteReport, error) {
	return api.PromoteReport{}, noCluster()
}
