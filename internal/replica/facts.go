package replica

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"scstore"
	"scstore/consensus/meta"
)

// factsFormat is the version of the files, maxFactsBytes the longest that is read.
const (
	factsFormat   = 1
	maxFactsBytes = 1 << 20
	factsSuffix   = ".json"
)

// Facts is what this host must not forget of a volume: one file each, in JSON, written
// whole (a new file, synced, renamed, the folder synced).
type Facts struct {
	Format    int              `json:"format"` // factsFormat; a newer one is refused
	ID        scstore.VolumeID `json:"id"`
	Group     meta.GroupID     `json:"group"`
	SizeBytes int64            `json:"size_bytes"`

	Base         scstore.VolumeID `json:"base"` // zero: none
	BasePosition scstore.Position `json:"base_position"`
	Creating     bool             `json:"creating,omitempty"` // made here, and not known to be wanted

	Floor scstore.Fence    `json:"floor"` // data under it or a lower fence are refused
	Fence scstore.Fence    `json:"fence"` // under which this host writes; 0: it does not
	Head  scstore.Position `json:"head"`  // the last one sealed, or where Fence begins

	Pending []Point            `json:"pending,omitempty"` // sealed, not known to be in the history
	Holds   []scstore.Position `json:"holds,omitempty"`   // complete here, rising
	Partial scstore.Position   `json:"partial"`           // at which what is missing here is shown; zero: nothing is missing
	Jump    *JumpFacts         `json:"jump,omitempty"`    // what is staged above the mark of Jump.From

	Draining *Draining  `json:"draining,omitempty"` // a hand-off from this host that may have left
	Left     []Leftover `json:"left,omitempty"`     // what was written under fences that were lost to a promote
}

// Point is a sealed epoch.
type Point struct {
	Position scstore.Position `json:"position"`
	Parent   scstore.Position `json:"parent"`
	Digest   scstore.Digest   `json:"digest"`
	Complete bool             `json:"complete"` // no block was missing here when it was sealed
}

// JumpFacts says what a table's head holds above a mark.
type JumpFacts struct {
	From scstore.Position `json:"from"`          // zero: the table's beginning
	To   scstore.Position `json:"to"`            // zero: of no position; it has to go
	Map  bool             `json:"map,omitempty"` // the mark of To will show remote blocks
}

// Draining is the mark of a hand-off whose RELEASE or entry may have left this host.
type Draining struct {
	ID      meta.HandOffID     `json:"id"`
	To      meta.DiskID        `json:"to"`
	Volumes []scstore.VolumeID `json:"volumes"` // all of the hand-off, rising
	Final   Point              `json:"final"`   // of this volume
	Fence   scstore.Fence      `json:"fence"`   // that it was sealed under, or went on from
}

// Leftover is what an owner wrote under a fence that it lost to a forced promote: it is
// kept behind the mark of Head until it is a branch.
type Leftover struct {
	Fence  scstore.Fence    `json:"fence"`
	Head   scstore.Position `json:"head"`
	Branch scstore.VolumeID `json:"branch"` // that it becomes
}

// holds reports whether the position is complete here.
func (f *Facts) holds(at scstore.Position) bool {
	_, found := slices.BinarySearchFunc(f.Holds, at, scstore.Position.Compare)
	return found
}

// hold enters a position that is complete here.
func (f *Facts) hold(at scstore.Position) {
	if i, found := slices.BinarySearchFunc(f.Holds, at, scstore.Position.Compare); !found {
		f.Holds = slices.Insert(f.Holds, i, at)
	}
}

// drop takes a position out.
func (f *Facts) drop(at scstore.Position) {
	if i, found := slices.BinarySearchFunc(f.Holds, at, scstore.Position.Compare); found {
		f.Holds = slices.Delete(f.Holds, i, i+1)
	}
}

// parseFacts reads a file. Errors: ErrVersion, ErrCorrupt.
func parseFacts(b []byte) (Facts, error) {
	var f Facts
	var format struct {
		Format int `json:"format"`
	}
	if err := json.Unmarshal(b, &format); err != nil {
		return f, fmt.Errorf("%v: %w", err, scstore.ErrCorrupt)
	}
	if format.Format > factsFormat {
		return f, scstore.Hint(fmt.Errorf("format %d: %w", format.Format, scstore.ErrVersion), "use the scstore that wrote it, or a newer one")
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&f); err != nil {
		return f, fmt.Errorf("%v: %w", err, scstore.ErrCorrupt)
	}
	return f, f.check()
}

// check refuses what this package never writes. Errors: ErrCorrupt.
func (f *Facts) check() error {
	rising := slices.IsSortedFunc(f.Holds, scstore.Position.Compare)
	switch {
	case f.Format != factsFormat, f.ID.IsZero(), f.SizeBytes < 0 || f.SizeBytes > scstore.MaxVolumeBytes || f.SizeBytes%scstore.BlockSize != 0:
		return fmt.Errorf("format %d, volume %s of %d bytes: %w", f.Format, f.ID, f.SizeBytes, scstore.ErrCorrupt)
	case !rising, f.Fence != 0 && f.Head.Fence > f.Fence:
		return fmt.Errorf("volume %s: fence %d, head %s, holds %v: %w", f.ID, f.Fence, f.Head, f.Holds, scstore.ErrCorrupt)
	}
	return nil
}

// readFacts reads all files of the folder, which it makes if it is missing.
func readFacts(dir string) ([]Facts, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("replicas: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("replicas: %w", err)
	}
	var all []Facts
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), factsSuffix) { // of a write that did not end
			if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
				return nil, fmt.Errorf("replicas: %w", err)
			}
			continue
		}
		f, err := readFile(filepath.Join(dir, e.Name()))
		if err == nil && e.Name() != f.ID.String()+factsSuffix {
			err = fmt.Errorf("it is of volume %s: %w", f.ID, scstore.ErrCorrupt)
		}
		if err != nil {
			return nil, scstore.Hint(fmt.Errorf("replicas: %s: %w", e.Name(), err),
				"restore the file from a backup, or move it away: then this host fetches the volume anew")
		}
		all = append(all, f)
	}
	return all, nil
}

func readFile(path string) (Facts, error) {
	file, err := os.Open(path)
	if err != nil {
		return Facts{}, err
	}
	defer file.Close()
	b, err := io.ReadAll(io.LimitReader(file, maxFactsBytes))
	if err != nil {
		return Facts{}, err
	}
	return parseFacts(b)
}

// writeFacts replaces the file of a volume: durable when it returns.
func writeFacts(dir string, f Facts) error {
	f.Format = factsFormat
	b, err := json.Marshal(f)
	if err != nil {
		return err
	}
	path := filepath.Join(dir, f.ID.String()+factsSuffix)
	file, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = file.Write(b)
	if err == nil {
		err = file.Sync()
	}
	if err = errors.Join(err, file.Close()); err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		return err
	}
	return syncDir(dir)
}

// removeFacts forgets a volume.
func removeFacts(dir string, id scstore.VolumeID) error {
	if err := os.Remove(filepath.Join(dir, id.String()+factsSuffix)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
