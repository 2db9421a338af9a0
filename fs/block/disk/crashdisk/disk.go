package crashdisk

import (
	"errors"
	"io/fs"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"

	"scstore/fs/block/disk"
)

// DefaultCapacityBytes is the size of a Disk when Options names none.
const DefaultCapacityBytes = 1 << 40

// MaxFileBytes is the longest file. It bounds the tables of a sparse one.
const MaxFileBytes = 64 << 30

// Options says what disk to make. The zero value is a healthy disk of
// DefaultCapacityBytes with seed 0.
type Options struct {
	Seed          uint64  // of everything that happens by chance before a crash
	CapacityBytes int64   // 0 means DefaultCapacityBytes; rounded down to pages
	ColdShare     float64 // of the calls of ReadNowAt, how many say that they would wait: 0 to 1
}

// Disk is a folder in memory on a disk of its own.
//
// Concurrency: all methods, and those of its files, are safe for concurrent use.
type Disk struct {
	ops atomic.Uint64

	rngMu sync.Mutex
	rng   *rand.Rand

	mu      sync.RWMutex
	options Options
	used    int64 // pages that take space
	names   map[string]*inode
	durable map[string]*inode // names as of the last SyncDir
	changes []change          // since then, in order
	hook    func(Op) error
	tracing bool
	trace   []string
}

// change is one unsynced change of a name.
type change struct {
	kind Kind // Create, Rename or Remove
	name string
	to   string
	file *inode
}

var (
	_ disk.FS   = (*Disk)(nil)
	_ disk.File = (*file)(nil)
)

// New returns an empty disk.
func New(o Options) *Disk {
	if o.CapacityBytes == 0 {
		o.CapacityBytes = DefaultCapacityBytes
	}
	return &Disk{
		rng:     rand.New(rand.NewPCG(o.Seed, 0x5c57a7e)),
		options: o,
		names:   make(map[string]*inode),
		durable: make(map[string]*inode),
	}
}

// intN draws from the disk's own chance.
func (d *Disk) intN(n int) int {
	d.rngMu.Lock()
	defer d.rngMu.Unlock()
	return d.rng.IntN(n)
}

// chance is true with probability p.
func (d *Disk) chance(p float64) bool {
	if p <= 0 {
		return false
	}
	d.rngMu.Lock()
	defer d.rngMu.Unlock()
	return d.rng.Float64() < p
}

// Create makes the file name and opens it.
func (d *Disk) Create(name string) (disk.File, error) {
	if err := disk.CheckName(name); err != nil {
		return nil, err
	}
	op := Op{Kind: Create, Name: name}
	err := d.begin(op)
	d.mu.Lock()
	defer d.mu.Unlock()
	if err == nil && d.names[name] != nil {
		err = opError(op, fs.ErrExist)
	}
	d.noteLocked(op, err)
	if err != nil {
		return nil, err
	}
	n := &inode{linked: true, opens: 1}
	d.names[name] = n
	d.changes = append(d.changes, change{kind: Create, name: name, file: n})
	return &file{disk: d, name: name, inode: n}, nil
}

// Open opens an existing file.
func (d *Disk) Open(name string) (disk.File, error) {
	if err := disk.CheckName(name); err != nil {
		return nil, err
	}
	op := Op{Kind: Open, Name: name}
	if err := d.begin(op); err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	n := d.names[name]
	if n == nil {
		return nil, opError(op, fs.ErrNotExist)
	}
	n.opens++
	return &file{disk: d, name: name, inode: n}, nil
}

// Rename replaces newName by oldName.
func (d *Disk) Rename(oldName, newName string) error {
	if err := errors.Join(disk.CheckName(oldName), disk.CheckName(newName)); err != nil {
		return err
	}
	op := Op{Kind: Rename, Name: oldName, To: newName}
	err := d.begin(op)
	d.mu.Lock()
	defer d.mu.Unlock()
	n := d.names[oldName]
	if err == nil && n == nil {
		err = opError(op, fs.ErrNotExist)
	}
	d.noteLocked(op, err)
	if err != nil || oldName == newName {
		return err
	}
	if replaced := d.names[newName]; replaced != nil {
		d.unlinkLocked(replaced)
	}
	delete(d.names, oldName)
	d.names[newName] = n
	d.changes = append(d.changes, change{kind: Rename, name: oldName, to: newName, file: n})
	return nil
}

// Remove unlinks a file.
func (d *Disk) Remove(name string) error {
	if err := disk.CheckName(name); err != nil {
		return err
	}
	op := Op{Kind: Remove, Name: name}
	err := d.begin(op)
	d.mu.Lock()
	defer d.mu.Unlock()
	n := d.names[name]
	if err == nil && n == nil {
		err = opError(op, fs.ErrNotExist)
	}
	d.noteLocked(op, err)
	if err != nil {
		return err
	}
	delete(d.names, name)
	d.unlinkLocked(n)
	d.changes = append(d.changes, change{kind: Remove, name: name, file: n})
	return nil
}

// Precondition: d.mu held.
func (d *Disk) unlinkLocked(n *inode) {
	n.linked = false
	d.releaseLocked(n)
}

// releaseLocked gives back the space of a file that nothing leads to any more. Its
// content stays as long as a crash could bring the name back.
// Precondition: d.mu held.
func (d *Disk) releaseLocked(n *inode) {
	if !n.linked && n.opens == 0 {
		d.used -= n.dropSpace(0)
	}
}

// List returns the names, sorted.
func (d *Disk) List() ([]string, error) {
	if err := d.begin(Op{Kind: List}); err != nil {
		return nil, err
	}
	d.mu.RLock()
	defer d.mu.RUnlock()
	return slices.Sorted(maps.Keys(d.names)), nil
}

// SyncDir makes all earlier changes of names durable. A failed one leaves them as
// they were: each there or not after a crash.
func (d *Disk) SyncDir() error {
	op := Op{Kind: SyncDir}
	err := d.begin(op)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.noteLocked(op, err)
	if err == nil {
		d.durable = maps.Clone(d.names)
		d.changes = nil
	}
	return err
}

// Usage returns the capacity and what is left of it.
func (d *Disk) Usage() (disk.Usage, error) {
	if err := d.begin(Op{Kind: Usage}); err != nil {
		return disk.Usage{}, err
	}
	d.mu.RLock()
	defer d.mu.RUnlock()
	return disk.Usage{
		TotalBytes: uint64(d.options.CapacityBytes),
		FreeBytes:  uint64(d.freePagesLocked()) * disk.PageSize,
	}, nil
}

// SetCapacity changes the size of the disk, in bytes; a disk smaller than what it
// holds is full.
func (d *Disk) SetCapacity(bytes int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.options.CapacityBytes = bytes
}

func (d *Disk) freePagesLocked() int64 {
	return max(d.options.CapacityBytes/disk.PageSize-d.used, 0)
}
