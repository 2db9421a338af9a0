package block

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"

	"scstore"
)

// index is the one thing that has to change atomically: which checkpoint is in
// force, and what it says of the segments' use. It lives in badger and can be
// thrown away: Options.Rebuild finds the newest checkpoint in the segments.
type index struct {
	db *badger.DB
}

// rootKey is the key of the checkpoint in force; its value is
//
//	checkpoint (8), places of its pages (4 + 16 each), checksum (4)
var rootKey = []byte("root")

const (
	// indexMemtableBytes is badger's; it maps twice that at open. The index is one key.
	indexMemtableBytes = 1 << 20
	maxMemtableBytes   = 8 << 20 // of earlier releases
	// indexValueBytes is what badger takes as a value within the table; it must be less
	// than a seventh of the memtable.
	indexValueBytes = 64 << 10
	// indexOpenBytes must be free before badger is opened: on a full disk it dies
	// of SIGBUS, which no Go program survives.
	indexOpenBytes = 2*indexMemtableBytes + 64<<20
)

func openIndex(dir string) (*index, error) {
	memtable, err := memtableBytes(dir)
	if err != nil {
		return nil, fmt.Errorf("open index: %w", err)
	}
	return openIndexWith(dir, memtable)
}

// memtableBytes returns how large badger's memtable has to be: those that an earlier
// release left in the folder are read again, and badger dies of one that is too large.
func memtableBytes(dir string) (int64, error) {
	paths, err := filepath.Glob(filepath.Join(dir, "*.mem"))
	if err != nil {
		return 0, err
	}
	most := int64(indexMemtableBytes)
	for _, path := range paths {
		info, err := os.Stat(path)
		if err != nil {
			return 0, err
		}
		most = max(most, min(info.Size()/2, maxMemtableBytes)) // the file is twice as large
	}
	return most, nil
}

func openIndexWith(dir string, memtable int64) (*index, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open index: %w", err)
	}
	o := badger.DefaultOptions(dir).WithLogger(nil).WithSyncWrites(true).WithCompression(options.None).
		WithDetectConflicts(false).WithNumVersionsToKeep(1).WithMemTableSize(memtable).WithValueThreshold(indexValueBytes).
		WithNumMemtables(2).WithNumCompactors(2).WithBlockCacheSize(0).WithIndexCacheSize(4 << 20).
		WithMetricsEnabled(false).WithValueLogFileSize(4 << 20).
		WithChecksumVerificationMode(options.OnTableAndBlockRead)
	db, err := badger.Open(o)
	if err != nil {
		return nil, scstore.Hint(fmt.Errorf("open index %s: %w: %w", dir, err, scstore.ErrCorrupt),
			"run scstore doctor --rebuild-index: it is rebuilt from the segments, and no data is lost")
	}
	return &index{db}, nil
}

// renewIndex throws the index away and makes an empty one.
func renewIndex(dir string) (*index, error) {
	if err := os.RemoveAll(dir); err != nil {
		return nil, fmt.Errorf("rebuild index: %w", err)
	}
	return openIndex(dir)
}

// rootPointer names a checkpoint's pages.
type rootPointer struct {
	checkpoint uint64
	places     []pageExtent
}

func (p rootPointer) encode() []byte {
	b := appendPlaces(binary.BigEndian.AppendUint64(nil, p.checkpoint), p.places)
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// parseRootPointer reads what encode wrote. Errors: ErrCorrupt.
func parseRootPointer(b []byte) (rootPointer, error) {
	bad := fmt.Errorf("index entry of %d bytes: %w", len(b), scstore.ErrCorrupt)
	if len(b) < 4 || binary.BigEndian.Uint32(b[len(b)-4:]) != crc32.Checksum(b[:len(b)-4], castagnoli) {
		return rootPointer{}, bad
	}
	d := &reader{b: b[:len(b)-4]}
	p := rootPointer{checkpoint: d.u64(), places: d.places()}
	if d.short || len(d.b) != 0 || len(p.places) == 0 {
		return rootPointer{}, bad
	}
	return p, nil
}

// root returns the checkpoint in force; ErrNotFound in a new index.
func (x *index) root() (rootPointer, error) {
	var p rootPointer
	err := x.db.View(func(tx *badger.Txn) error {
		item, err := tx.Get(rootKey)
		if err != nil {
			return err
		}
		return item.Value(func(b []byte) error {
			p, err = parseRootPointer(b)
			return err
		})
	})
	switch {
	case errors.Is(err, badger.ErrKeyNotFound):
		return p, fmt.Errorf("read index: no checkpoint: %w", scstore.ErrNotFound)
	case err != nil:
		return p, scstore.Hint(fmt.Errorf("read index: %w: %w", err, scstore.ErrCorrupt),
			"run scstore doctor --rebuild-index: it is rebuilt from the segments, and no data is lost")
	}
	return p, nil
}

// commit makes p the checkpoint in force; durable when it returns nil.
func (x *index) commit(p rootPointer) error {
	err := x.db.Update(func(tx *badger.Txn) error { return tx.Set(rootKey, p.encode()) })
	if err != nil {
		return fmt.Errorf("commit checkpoint %d: %w", p.checkpoint, err)
	}
	return nil
}

func (x *index) close() error {
	if err := x.db.Close(); err != nil {
		return fmt.Errorf("close index: %w", err)
	}
	return nil
}
