package api

import (
	"context"
	"fmt"
	"io"
	"net/http"

	"scstore"
)

// Cluster describes sites, hosts and groups.
func (c *Client) Cluster(ctx context.Context) (Cluster, error) {
	return call[Cluster](ctx, c, http.MethodGet, "/v1/cluster", nil)
}

// NewToken makes a token with which one host can join a site.
func (c *Client) NewToken(ctx context.Context, req NewToken) (Token, error) {
	return call[Token](ctx, c, http.MethodPost, "/v1/tokens", req)
}

// RemoveHost takes a host out of the cluster for good.
func (c *Client) RemoveHost(ctx context.Context, name string, o RemoveOptions) (HostRemoval, error) {
	if name == "" {
		return HostRemoval{}, fmt.Errorf("the host's name is empty: %w", scstore.ErrInvalid)
	}
	return call[HostRemoval](ctx, c, http.MethodDelete, "/v1/hosts/"+pathSegment(name)+"?"+o.query(), nil)
}

// SetPlacement says which sites hold a volume or an image, and how.
func (c *Client) SetPlacement(ctx context.Context, name string, p Placement) (Placement, error) {
	path, err := namePath(KindVolume, name)
	if err != nil {
		return Placement{}, err
	}
	return call[Placement](ctx, c, http.MethodPut, path+"/placement", p)
}

// Placement returns the policy of a volume or an image, and how far each site is.
func (c *Client) Placement(ctx context.Context, name string) (Placement, error) {
	path, err := namePath(KindVolume, name)
	if err != nil {
		return Placement{}, err
	}
	return call[Placement](ctx, c, http.MethodGet, path+"/placement", nil)
}

// Move hands a volume to another host. When this returns, the new owner serves it.
// progress, in bytes, may be nil.
func (c *Client) Move(ctx context.Context, name string, req Move, progress func(done, total int64)) (MoveReport, error) {
	path, err := namePath(KindVolume, name)
	if err != nil {
		return MoveReport{}, err
	}
	l, err := c.follow(ctx, http.MethodPost, path+"/move", req, progress)
	if err != nil {
		return MoveReport{}, err
	}
	if l.Move == nil {
		return MoveReport{}, c.broken(ctx, io.ErrUnexpectedEOF)
	}
	return *l.Move, nil
}

// Promote gives a volume to another host without its owner.
func (c *Client) Promote(ctx context.Context, name string, req Promote) (PromoteReport, error) {
	path, err := namePath(KindVolume, name)
	if err != nil {
		return PromoteReport{}, err
	}
	return call[PromoteReport](ctx, c, http.MethodPost, path+"/promote", req)
}
