package api_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	"scstore"
	"scstore/internal/api"
)

// memory is a Service over maps: enough of one to see what crosses the interface.
// If fail is set, every method returns it.
type memory struct {
	mu      sync.Mutex
	volumes map[string]api.Volume
	content map[string][]byte
	aborted int
	begun   int
	fail    error
	failAt  int64         // a write at or beyond this offset fails with ErrNoSpace, if it is not 0
	began   chan struct{} // gets a token for each import that begins, if it is not nil
	placed  api.Placement // what SetPlacement was told
	block   chan struct{} // Doctor waits for it or for its context, if it is not nil
}

func newMemory() *memory {
	return &memory{volumes: map[string]api.Volume{}, content: map[string][]byte{}}
}

func (m *memory) List(_ context.Context, kind api.Kind) ([]api.Volume, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []api.Volume
	for _, v := range m.volumes {
		if v.Kind == kind {
			out = append(out, v)
		}
	}
	slices.SortFunc(out, func(a, b api.Volume) int { return strings.Compare(a.Name, b.Name) })
	return out, m.fail
}

func (m *memory) Get(_ context.Context, kind api.Kind, name string) (api.Volume, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	v, ok := m.volumes[name]
	if !ok || v.Kind != kind {
		return v, fmt.Errorf("%s %q: %w", kind, name, scstore.ErrNotFound)
	}
	return v, m.fail
}

func (m *memory) CreateVolume(_ context.Context, req api.CreateVolume) (api.Volume, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail != nil {
		return api.Volume{}, m.fail
	}
	v := api.Volume{Name: req.Name, Kind: api.KindVolume, ID: scstore.VolumeID{1}, SizeBytes: req.SizeBytes, Base: req.From}
	m.volumes[req.Name] = v
	m.content[req.Name] = make([]byte, req.SizeBytes)
	return v, nil
}

func (m *memory) CreateSnapshot(_ context.Context, name string, progress func(done, total int64)) (api.Volume, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail != nil {
		return api.Volume{}, m.fail
	}
	progress(1, 2)
	v := m.volumes[strings.Split(name, "@")[0]]
	v.Name, v.Kind = name, api.KindSnapshot
	return v, nil
}

func (m *memory) Rollback(_ context.Context, name string, o api.RemoveOptions, progress func(done, total int64)) (api.Rollback, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	progress(1, 2)
	return api.Rollback{Snapshot: name, LostBytes: 4096, DryRun: o.DryRun}, m.fail
}

func (m *memory) Remove(ctx context.Context, kind api.Kind, name string, o api.RemoveOptions) (api.Removal, error) {
	v, err := m.Get(ctx, kind, name)
	if err != nil {
		return api.Removal{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if !o.DryRun {
		delete(m.volumes, name)
	}
	closed := 0
	if o.Force {
		closed = 3
	}
	return api.Removal{Volume: v, DryRun: o.DryRun, ClosedConns: closed}, nil
}

func (m *memory) BeginImport(_ context.Context, name string, size int64) (api.Import, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail != nil {
		return nil, m.fail
	}
	m.begun++
	if m.began != nil {
		m.began <- struct{}{}
	}
	return &memoryImport{m: m, name: name, data: make([]byte, size)}, nil
}

type memoryImport struct {
	m    *memory
	name string
	data []byte
}

func (i *memoryImport) WriteAt(p []byte, off int64) error {
	if i.m.failAt > 0 && off >= i.m.failAt {
		return fmt.Errorf("write at %d: %w", off, scstore.ErrNoSpace)
	}
	copy(i.data[off:], p)
	return nil
}

func (i *memoryImport) Zero(off, length int64) error {
	clear(i.data[off : off+length])
	return nil
}

func (i *memoryImport) Commit(context.Context) (api.Volume, error) {
	i.m.mu.Lock()
	defer i.m.mu.Unlock()
	v := api.Volume{Name: i.name, Kind: api.KindImage, SizeBytes: int64(len(i.data))}
	i.m.volumes[i.name], i.m.content[i.name] = v, i.data
	return v, nil
}

func (i *memoryImport) Abort() error {
	i.m.mu.Lock()
	defer i.m.mu.Unlock()
	i.m.aborted++
	return nil
}

func (m *memory) OpenSource(ctx context.Context, kind api.Kind, name string) (api.Source, error) {
	if _, err := m.Get(ctx, kind, name); err != nil {
		return nil, err
	}
	return &memorySource{m.content[name], m.failAt}, nil
}

type memorySource struct {
	data   []byte
	failAt int64
}

func (s *memorySource) Size() int64 { return int64(len(s.data)) }

func (s *memorySource) ReadAt(p []byte, off int64, holes []scstore.Range) ([]scstore.Range, error) {
	if s.failAt > 0 && off+int64(len(p)) > s.failAt {
		return holes, scstore.Hint(fmt.Errorf("read at %d: %w", off, scstore.ErrCorrupt), "repair it")
	}
	copy(p, s.data[off:])
	ranges, err := s.Status(off, int64(len(p)), nil)
	for _, r := range ranges {
		if r.State == scstore.RangeHole {
			holes = append(holes, r)
		}
	}
	return holes, err
}

func (s *memorySource) Status(off, length int64, dst []scstore.Range) ([]scstore.Range, error) {
	for at := off; at < off+length; at += scstore.BlockSize {
		end := min(at+scstore.BlockSize, off+length)
		state := scstore.RangeHole
		if strings.Trim(string(s.data[at:end]), "\x00") != "" {
			state = scstore.RangeData
		}
		if n := len(dst); n > 0 && dst[n-1].State == state {
			dst[n-1].Length += end - at
			continue
		}
		dst = append(dst, scstore.Range{Offset: at, Length: end - at, State: state})
	}
	return dst, nil
}

func (s *memorySource) Close() error { return nil }

func (m *memory) Status(context.Context) (api.Status, error) {
	return api.Status{Version: "test", Volumes: len(m.volumes)}, m.fail
}

func (m *memory) NBD(context.Context) (api.NBD, error) {
	return api.NBD{Address: "unix:/x", Exports: []api.NBDExport{}}, m.fail
}

func (m *memory) Doctor(ctx context.Context, progress func(done, total int64)) (api.Report, error) {
	if m.block != nil {
		select {
		case <-m.block:
		case <-ctx.Done():
			return api.Report{}, context.Cause(ctx)
		}
	}
	progress(1, 2)
	return api.Report{VerifiedBytes: 2, Findings: []api.Finding{{Severity: api.SeverityWarning, Message: "m"}}}, m.fail
}
