package api

import (
	"context"

	"scstore"
)

// Service is what the server stands on; *host.Host satisfies it. All methods are
// safe for concurrent use, and their errors wrap the sentinels of package scstore.
type Service interface {
	Catalog
	Content
	Health
	Sites
}

// Catalog is the names.
type Catalog interface {
	// List returns what there is of a kind, sorted by name.
	List(ctx context.Context, kind Kind) ([]Volume, error)
	// Get describes one. Errors: ErrNotFound, also if the name is of the other kind.
	Get(ctx context.Context, kind Kind, name string) (Volume, error)
	// CreateVolume makes a volume, durably. Errors: ErrExists, ErrInvalid,
	// ErrNotFound (of From), ErrNoSpace.
	CreateVolume(ctx context.Context, req CreateVolume) (Volume, error)
	// CreateSnapshot names the content of a volume as it is now, VOLUME@SNAPSHOT,
	// durably. progress, in bytes, is called from one goroutine. Errors: ErrNotFound,
	// ErrExists, ErrInvalid.
	CreateSnapshot(ctx context.Context, name string, progress func(done, total int64)) (Volume, error)
	// Rollback makes a volume what it was at VOLUME@SNAPSHOT, durably. progress as for
	// CreateSnapshot. Errors: ErrNotFound, ErrInvalid, ErrBusy (later snapshots,
	// connections).
	Rollback(ctx context.Context, name string, o RemoveOptions, progress func(done, total int64)) (Rollback, error)
	// Remove removes one, or a snapshot, durably. Errors: ErrNotFound, ErrBusy (clones,
	// snapshots, connections).
	Remove(ctx context.Context, kind Kind, name string, o RemoveOptions) (Removal, error)
}

// Content is the bytes.
type Content interface {
	// BeginImport makes room for an image that nobody can see yet. Errors:
	// ErrExists, ErrInvalid (name, size), ErrNoSpace.
	BeginImport(ctx context.Context, name string, sizeBytes int64) (Import, error)
	// OpenSource opens a volume or an image for reading as it is now.
	OpenSource(ctx context.Context, kind Kind, name string) (Source, error)
}

// Import is an image that is being filled. It is used by one goroutine.
type Import interface {
	// WriteAt writes p at off, any alignment, within the size. Errors: ErrNoSpace.
	WriteAt(p []byte, off int64) error
	// Zero makes a range read as zeros; it does so from the start.
	Zero(off, length int64) error
	// Commit freezes the image and gives it its name, durably. Errors: ErrExists.
	Commit(ctx context.Context) (Volume, error)
	// Abort deletes what was written. After Commit succeeded it does nothing.
	Abort() error
}

// Source is the content of a volume. It is used by one goroutine.
type Source interface {
	// Size returns the bytes of the volume.
	Size() int64
	// ReadAt fills p and appends the parts of the request that are holes.
	ReadAt(p []byte, off int64, holes []scstore.Range) ([]scstore.Range, error)
	// Status appends consecutive ranges that cover [off, off+length) exactly.
	Status(off, length int64, dst []scstore.Range) ([]scstore.Range, error)
	// Close gives the source back.
	Close() error
}

// Health is the host.
type Health interface {
	// Status describes the host.
	Status(ctx context.Context) (Status, error)
	// NBD lists the exports of the block device door.
	NBD(ctx context.Context) (NBD, error)
	// Doctor reads and checks everything that is stored. progress, in bytes, is
	// called from one goroutine.
	Doctor(ctx context.Context, progress func(done, total int64)) (Report, error)
}
