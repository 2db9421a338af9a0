package api_test

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"testing"
	"time"

	"scstore"
	"scstore/internal/api"
)

var _ api.Service = (*memory)(nil)

func (m *memory) Cluster(context.Context) (api.Cluster, error) {
	return api.Cluster{ID: "c1", Site: "ams", Host: "a", Sites: []api.Site{{Name: "ams", Hosts: []string{"a"}}}, Majority: true}, m.fail
}

func (m *memory) NewToken(_ context.Context, req api.NewToken) (api.Token, error) {
	return api.Token{Text: "scj-" + req.Site, Site: req.Site, ExpiresAt: time.Unix(0, int64(req.Valid)).UTC()}, m.fail
}

func (m *memory) RemoveHost(_ context.Context, name string, o api.RemoveOptions) (api.HostRemoval, error) {
	out := api.HostRemoval{Host: name, DryRun: o.DryRun, Records: 2}
	if o.Force {
		out.Only = []string{"web1"}
	}
	return out, m.fail
}

func (m *memory) SetPlacement(_ context.Context, name string, p api.Placement) (api.Placement, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	p.Volume = name
	m.placed = p
	return p, m.fail
}

func (m *memory) Placement(_ context.Context, name string) (api.Placement, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.placed.Volume != name {
		return api.Placement{}, fmt.Errorf("volume %q: %w", name, scstore.ErrNotFound)
	}
	return m.placed, m.fail
}

func (m *memory) Move(_ context.Context, name string, req api.Move, progress func(done, total int64)) (api.MoveReport, error) {
	progress(1, 2)
	out := api.MoveReport{Volume: name, To: req.To, Fence: 7, Position: scstore.Position{Fence: 6, Epoch: 9}}
	if req.WaitComplete {
		out.MissingBytes = 1
	}
	return out, m.fail
}

func (m *memory) Promote(_ context.Context, name string, req api.Promote) (api.PromoteReport, error) {
	lost := int64(4096)
	return api.PromoteReport{Volume: name, To: req.To, DryRun: req.DryRun, Bytes: &lost, Silent: []string{"a"}}, m.fail
}

func TestSites_EveryCallReachesTheServiceAndItsAnswerTheClient(t *testing.T) {
	c, _ := serve(t, newMemory())
	ctx := t.Context()
	const name = "prod/web1"
	check := func(what string, got, want any, err error) {
		t.Helper()
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %+v, %v, want %+v", what, got, err, want)
		}
	}
	cluster, err := c.Cluster(ctx)
	check("cluster", cluster, api.Cluster{ID: "c1", Site: "ams", Host: "a", Sites: []api.Site{{Name: "ams", Hosts: []string{"a"}}}, Majority: true}, err)

	token, err := c.NewToken(ctx, api.NewToken{Site: "fra", Valid: time.Hour})
	check("token", token, api.Token{Text: "scj-fra", Site: "fra", ExpiresAt: time.Unix(3600, 0).UTC()}, err)

	removal, err := c.RemoveHost(ctx, "a/b", api.RemoveOptions{Force: true, DryRun: true})
	check("remove host", removal, api.HostRemoval{Host: "a/b", DryRun: true, Only: []string{"web1"}, Records: 2}, err)

	want := api.Placement{Volume: name, Sites: []string{"ams", "fra"}, Mode: "async", Failover: "manual"}
	placed, err := c.SetPlacement(ctx, name, api.Placement{Sites: want.Sites, Mode: "async", Failover: "manual"})
	check("set placement", placed, want, err)
	placed, err = c.Placement(ctx, name)
	check("placement", placed, want, err)

	var done, total int64
	moved, err := c.Move(ctx, name, api.Move{To: "fra/b", WaitComplete: true}, func(d, n int64) { done, total = d, n })
	check("move", moved, api.MoveReport{Volume: name, To: "fra/b", Fence: 7, Position: scstore.Position{Fence: 6, Epoch: 9}, MissingBytes: 1}, err)
	if done != 1 || total != 2 {
		t.Errorf("move: progress %d of %d, want 1 of 2", done, total)
	}

	lost := int64(4096)
	promoted, err := c.Promote(ctx, name, api.Promote{To: "fra", DryRun: true})
	check("promote", promoted, api.PromoteReport{Volume: name, To: "fra", DryRun: true, Bytes: &lost, Silent: []string{"a"}}, err)
}

func TestSites_ErrorsOfEveryCallComeThroughWithTheirHints(t *testing.T) {
	m := newMemory()
	c, _ := serve(t, m)
	ctx := t.Context()
	m.placed.Volume = "v"
	m.fail = scstore.Hint(fmt.Errorf("group 2: %w", scstore.ErrNoMajority), "start more hosts")
	for what, call := range map[string]func() error{
		"cluster":       func() error { _, err := c.Cluster(ctx); return err },
		"token":         func() error { _, err := c.NewToken(ctx, api.NewToken{Site: "s"}); return err },
		"remove host":   func() error { _, err := c.RemoveHost(ctx, "h", api.RemoveOptions{}); return err },
		"set placement": func() error { _, err := c.SetPlacement(ctx, "v", api.Placement{}); return err },
		"placement":     func() error { _, err := c.Placement(ctx, "v"); return err },
		"move":          func() error { _, err := c.Move(ctx, "v", api.Move{To: "s"}, nil); return err },
		"promote":       func() error { _, err := c.Promote(ctx, "v", api.Promote{To: "s"}); return err },
	} {
		err := call()
		hint, ok := errors.AsType[*scstore.HintError](err)
		if !errors.Is(err, scstore.ErrNoMajority) || !ok || hint.Hint != "start more hosts" {
			t.Errorf("%s: got %v", what, err)
		}
	}
	for what, err := range map[string]error{
		"remove host": func() error { _, err := c.RemoveHost(ctx, "", api.RemoveOptions{}); return err }(),
		"move":        func() error { _, err := c.Move(ctx, "", api.Move{}, nil); return err }(),
	} {
		if !errors.Is(err, scstore.ErrInvalid) {
			t.Errorf("%s without a name: got %v", what, err)
		}
	}
}
