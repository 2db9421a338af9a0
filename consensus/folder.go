package consensus

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/lni/vfs"

	"scstore"
)

const (
	memberName = "member"
	// libraryFlagName is where the library notes address, host name, deployment and
	// shard counts of a folder.
	libraryFlagName = "dragonboat.ds"
	maxSmallBytes   = 8192
)

// refuseSettingsFiles reports files that change the library's constants. It reads
// them from the current folder before main begins: neither a change of folder nor
// anything else that this program does comes early enough, so their presence is an
// error. A process has one current folder and this one never changes it.
func refuseSettingsFiles() error {
	for _, name := range []string{"dragonboat-soft-settings.json", "dragonboat-hard-settings.json"} {
		if _, err := os.Lstat(name); err == nil {
			err := fmt.Errorf("file %q in the current folder changes the raft log's constants: %w", name, scstore.ErrInvalid)
			return scstore.Hint(err, "remove it, or start scstore in another folder")
		}
	}
	return nil
}

// claimFolder checks that the folder is this member's, or makes it so.
func claimFolder(under vfs.FS, dir string, want member) error {
	names, err := under.List(dir)
	if err != nil {
		return err
	}
	found := map[string]bool{}
	for _, name := range names {
		found[name] = true
	}
	switch {
	case !found[memberName] && found[libraryFlagName]:
		return corrupt(fmt.Errorf("file %q is missing: %w", memberName, scstore.ErrCorrupt))
	case !found[memberName]:
		return writeMember(under, dir, want)
	}
	b, err := readSmall(under, under.PathJoin(dir, memberName))
	if err != nil {
		return err
	}
	got, err := parseMember(b)
	if err != nil {
		return corrupt(fmt.Errorf("file %q: %w", memberName, err))
	}
	if got != want {
		return fmt.Errorf("belongs to disk %v of cluster %v, not to %v of %v: %w", got.disk, got.cluster, want.disk, want.cluster, scstore.ErrInvalid)
	}
	return adoptLog(under, dir, names)
}

// adoptLog undoes that the library pins a folder to the name of its host: it keeps
// its data in a folder of that name and notes the name in a file. Here the disk id and
// the cluster id decide, which were verified; so the folder takes the name of today,
// and the note goes, of which a new one is made. What else it holds to are constants
// of this package. (Snapshots go on saying where they were: place.go.)
func adoptLog(under vfs.FS, dir string, names []string) error {
	hostname, err := os.Hostname()
	if err != nil {
		return err
	}
	var former []string
	for _, name := range names {
		info, err := under.Stat(under.PathJoin(dir, name))
		if err != nil {
			return err
		}
		if info.IsDir() {
			former = append(former, name)
		}
	}
	if len(former) > 1 {
		return corrupt(fmt.Errorf("folders %q, want one: %w", former, scstore.ErrCorrupt))
	}
	if len(former) == 1 && former[0] != hostname {
		if err := under.Rename(under.PathJoin(dir, former[0]), under.PathJoin(dir, hostname)); err != nil {
			return err
		}
	}
	if err := under.Remove(under.PathJoin(dir, libraryFlagName)); err != nil && !isMissing(err) {
		return err
	}
	return syncFolder(under, dir)
}

func writeMember(under vfs.FS, dir string, m member) error {
	if err := writeSmall(under, under.PathJoin(dir, memberName), m.encode()); err != nil {
		return err
	}
	return syncFolder(under, dir)
}

// makeFolderIn is makeFolder on another file system.
func makeFolderIn(under vfs.FS, dir string) error {
	if err := under.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for above := under.PathDir(dir); ; above = under.PathDir(above) {
		if err := syncFolder(under, above); err != nil {
			return err
		}
		if above == under.PathDir(above) {
			return nil
		}
	}
}

func syncFolder(under vfs.FS, dir string) error {
	f, err := under.OpenDir(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

func readSmall(under vfs.FS, name string) ([]byte, error) {
	f, err := under.Open(name)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(f, maxSmallBytes))
	return b, errors.Join(err, f.Close())
}

func isMissing(err error) bool { return errors.Is(err, fs.ErrNotExist) }
