package block

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"

	"scstore"
	"scstore/fs/block/disk"
)

// The superblock is the file "store", one page, replaced whole at each open:
//
//	0   4  checksum of the page (pageSum)
//	4   4  magic "SCst"
//	8   2  version: 2 since there are marks, remote blocks and rollbacks
//	12  4  slots in a segment
//	16 16  store id
//	32  8  incarnation: one more at each open, durable before the first append
const (
	superName  = "store"
	superTemp  = "store.new"
	superMagic = "SCst"

	// superVersion is raised with whatever an older scstore could not read, in any of
	// the store's files: it stands here so that nothing is read before it is refused.
	superVersion = 2
)

type superblock struct {
	id          scstore.StoreID
	slots       int
	incarnation uint64
	version     uint16
}

func (b superblock) encode() []byte {
	page := make([]byte, scstore.BlockSize)
	copy(page[4:], superMagic)
	binary.BigEndian.PutUint16(page[8:], b.version)
	binary.BigEndian.PutUint32(page[12:], uint32(b.slots))
	copy(page[16:], b.id[:])
	binary.BigEndian.PutUint64(page[32:], b.incarnation)
	binary.BigEndian.PutUint32(page, pageSum(b.id, page))
	return page
}

// parseSuperblock reads what encode wrote. Errors: ErrCorrupt, ErrVersion.
func parseSuperblock(page []byte) (superblock, error) {
	var b superblock
	if len(page) != scstore.BlockSize || string(page[4:8]) != superMagic {
		return b, fmt.Errorf("superblock: no magic: %w", scstore.ErrCorrupt)
	}
	copy(b.id[:], page[16:])
	if b.version = binary.BigEndian.Uint16(page[8:]); b.version > superVersion {
		return b, scstore.Hint(fmt.Errorf("superblock: format version %d, this scstore knows %d: %w", b.version, superVersion, scstore.ErrVersion),
			"use the newer scstore that made this store")
	}
	if binary.BigEndian.Uint32(page) != pageSum(b.id, page) {
		return b, fmt.Errorf("superblock: checksum: %w", scstore.ErrCorrupt)
	}
	b.slots = int(binary.BigEndian.Uint32(page[12:]))
	b.incarnation = binary.BigEndian.Uint64(page[32:])
	if b.slots < minSlots || b.slots > maxSlots {
		return b, fmt.Errorf("superblock: segments of %d slots: %w", b.slots, scstore.ErrCorrupt)
	}
	return b, nil
}

// openSuperblock reads the superblock, or makes one in a folder without segments,
// and makes the next incarnation durable. A store with another id than id is not
// touched; a zero id is any, and drawn for a new store.
func openSuperblock(dir disk.FS, id scstore.StoreID, slots int) (superblock, error) {
	b, err := readSuperblock(dir)
	if errors.Is(err, fs.ErrNotExist) {
		names, err := dir.List()
		if err != nil {
			return b, fmt.Errorf("open store: %w", err)
		}
		for _, name := range names {
			if _, ok := parseSegmentName(name); ok {
				return b, fmt.Errorf("open store: segments without a superblock: %w", scstore.ErrCorrupt)
			}
		}
		b = superblock{slots: slots, id: id}
		if id == (scstore.StoreID{}) {
			rand.Read(b.id[:])
		}
	} else if err != nil {
		return b, err
	}
	if id != (scstore.StoreID{}) && b.id != id {
		return b, scstore.Hint(fmt.Errorf("open store: the segments are those of store %s, not of %s: %w", b.id, id, scstore.ErrInvalid),
			"put back the files that belong together; nothing was changed")
	}
	b.incarnation++
	b.version = superVersion
	return b, writeSuperblock(dir, b)
}

func readSuperblock(dir disk.FS) (b superblock, err error) {
	f, err := dir.Open(superName)
	if err != nil {
		return b, fmt.Errorf("open superblock: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	page := make([]byte, scstore.BlockSize)
	if err := readFull(f, page, 0); err != nil {
		return b, fmt.Errorf("read superblock: %w", err)
	}
	return parseSuperblock(page)
}

func writeSuperblock(dir disk.FS, b superblock) error {
	if err := dir.Remove(superTemp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("write superblock: %w", err)
	}
	f, err := dir.Create(superTemp)
	if err != nil {
		return fmt.Errorf("write superblock: %w", err)
	}
	_, err = f.WriteAt(b.encode(), 0)
	if err == nil {
		err = f.Datasync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = dir.Rename(superTemp, superName)
	}
	if err == nil {
		err = dir.SyncDir()
	}
	if err != nil {
		return fmt.Errorf("write superblock: %w", err)
	}
	return nil
}
