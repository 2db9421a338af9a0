// Package disk is the file interface that fs/block stands on, so that the same
// store runs on a real folder, on a simulated disk that crashes, and on one that
// fails on purpose.
//
// The contract is what the store may rely on after a power loss:
//
//   - bytes written with WriteAt are durable only after Datasync returned nil;
//     before that each 4096-byte page may hold its old or its new content,
//     independently of every other page and of the order of the writes;
//   - a created, renamed or removed name is durable only after SyncDir returned
//     nil; before that each such change may be there or not, on its own;
//   - a failed Datasync may have dropped any page written since the last good
//     one, and says so once: no caller retries it. Reads from then on show what
//     the device has.
//
// A store's folder is flat: names hold no separator except for sub-folders that
// are given whole to a library (badger's), which this interface does not cover.
package disk

import "io"

// PageSize is the unit in which unsynced writes reach the disk, in bytes.
const PageSize = 4096

// FS is one folder. All methods are safe for concurrent use.
type FS interface {
	// Create makes the file name, which must not exist, and opens it for
	// reading and writing. Errors: fs.ErrExist, scstore.ErrNoSpace.
	Create(name string) (File, error)
	// Open opens an existing file for reading and writing.
	// Errors: fs.ErrNotExist.
	Open(name string) (File, error)
	// Rename replaces newName by oldName atomically; durable after SyncDir.
	Rename(oldName, newName string) error
	// Remove unlinks a file; durable after SyncDir. Space returns once no File
	// of it is open. Errors: fs.ErrNotExist.
	Remove(name string) error
	// List returns the names of the folder's regular files, sorted.
	List() ([]string, error)
	// SyncDir makes all earlier name changes durable.
	SyncDir() error
	// Usage returns the folder's file system as statfs sees it now, in bytes.
	Usage() (Usage, error)
}

// Usage is the space of a file system, in bytes.
type Usage struct {
	TotalBytes uint64
	FreeBytes  uint64 // what an unprivileged writer could still take
}

// File is one open file. ReadAt and WriteAt may run concurrently; Datasync covers
// every WriteAt that returned before it was called.
type File interface {
	io.ReaderAt // short reads only at the end of the file, with io.EOF
	// WriteAt writes all of p or returns an error; a full disk is
	// scstore.ErrNoSpace. It may write past the end and so extend the file.
	WriteAt(p []byte, off int64) (int, error)
	// WriteVec writes the buffers one after another at off, as WriteAt would
	// their concatenation, in one system call where the platform can.
	WriteVec(bufs [][]byte, off int64) error
	// ReadNowAt reads like ReadAt but only what needs no wait for the device:
	// ok is false when some of p is not in memory; p is then undefined.
	ReadNowAt(p []byte, off int64) (ok bool, err error)
	// Allocate reserves length bytes from the start of the file, extending it,
	// so that later writes within them cannot run out of space.
	Allocate(length int64) error
	// Truncate sets the file's length.
	Truncate(length int64) error
	// Datasync makes the file's data, and the length needed to read it, durable.
	Datasync() error
	// WriteBack starts writing the range to the device without waiting for the
	// write to end. A busy device can still hold the call for hundreds of
	// milliseconds, so no lock that a request needs is held over it. It is a hint
	// and never a durability point.
	WriteBack(off, length int64) error
	// Size returns the file's length in bytes.
	Size() (int64, error)
	io.Closer
}
