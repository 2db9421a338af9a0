package host

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/gofrs/flock"

	"scstore"
)

// folderFormat is the version of the folder's layout that this program makes and
// reads.
const folderFormat = 1

// The names in a store's folder.
const (
	lockName     = "LOCK"
	markName     = "store.json"
	segmentsName = "segments"
	indexName    = "index"
	metaName     = "meta"
)

// maxMarkBytes bounds store.json.
const maxMarkBytes = 64 << 10

// mark is the content of store.json.
type mark struct {
	Format    int       `json:"format"`  // folderFormat; a newer one is refused
	ID        string    `json:"id"`      // of the store, 32 hexadecimal digits
	MadeBy    string    `json:"made_by"` // the program's version
	CreatedAt time.Time `json:"created_at"`
}

// folder is a store's folder, locked.
type folder struct {
	path string
	id   scstore.StoreID
	lock *flock.Flock
}

// openFolder locks the folder and makes sure that it is a store, or an empty
// folder, which it makes into one. create also makes the folder itself. Errors:
// ErrBusy (another process uses it), ErrInvalid (it holds something else),
// ErrVersion, ErrNotFound without create.
func openFolder(path string, create bool, version string) (*folder, error) {
	if create {
		if err := os.MkdirAll(path, 0o700); err != nil {
			return nil, fmt.Errorf("make the folder: %v: %w", err, scstore.ErrInvalid)
		}
	}
	// Before LOCK is made: nothing is left in a folder that is not a store.
	made, err := checkFolder(path, create)
	if err != nil {
		return nil, err
	}
	f := &folder{path: path, lock: flock.New(filepath.Join(path, lockName), flock.SetPermissions(0o600))}
	if err := f.takeLock(); err != nil {
		return nil, err
	}
	if !made {
		err = f.writeMark(version)
	}
	if err == nil {
		err = f.readMark()
	}
	if err == nil {
		err = f.makeFolders()
	}
	if err != nil {
		return nil, errors.Join(err, f.close())
	}
	return f, nil
}

// checkFolder reports whether the folder is a store already.
func checkFolder(path string, create bool) (made bool, err error) {
	entries, err := os.ReadDir(path)
	if errors.Is(err, os.ErrNotExist) {
		return false, scstore.Hint(fmt.Errorf("folder %q: %w", path, scstore.ErrNotFound), "name the folder of a store with --dir")
	}
	if err != nil {
		return false, fmt.Errorf("read folder %q: %v: %w", path, err, scstore.ErrInvalid)
	}
	foreign := ""
	for _, e := range entries {
		switch e.Name() {
		case markName:
			return true, nil
		case lockName, markName + ".new", "lost+found": // a first start that was cut off; a mount point
		default:
			foreign = e.Name()
		}
	}
	if foreign != "" {
		return false, scstore.Hint(fmt.Errorf("folder %q is no store and not empty: it holds %q: %w", path, foreign, scstore.ErrInvalid),
			"name an empty folder, or the folder of a store")
	}
	if !create {
		return false, scstore.Hint(fmt.Errorf("folder %q is empty: %w", path, scstore.ErrNotFound), "name the folder of a store with --dir")
	}
	return false, nil
}

// takeLock takes the lock and notes who has it (I1).
func (f *folder) takeLock() error {
	ok, err := f.lock.TryLock()
	if err != nil {
		return fmt.Errorf("lock folder %q: %v: %w", f.path, err, scstore.ErrInvalid)
	}
	if !ok {
		pid, _ := os.ReadFile(f.lock.Path()) // only to be of help
		return scstore.Hint(fmt.Errorf("folder %q is in use by pid %s: %w", f.path, strings.TrimSpace(string(pid)), scstore.ErrBusy),
			"stop that process first; to talk to it, use the other commands with --host unix:%s", filepath.Join(f.path, "api.sock"))
	}
	if err := os.WriteFile(f.lock.Path(), []byte(strconv.Itoa(os.Getpid())+"\n"), 0o600); err != nil {
		return errors.Join(fmt.Errorf("lock folder %q: %w", f.path, err), f.close())
	}
	return nil
}

// readMark reads store.json.
func (f *folder) readMark() error {
	path := filepath.Join(f.path, markName)
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("read %q: %w", path, err)
	}
	if info.Size() > maxMarkBytes {
		return notOurs(path)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read %q: %w", path, err)
	}
	var m mark
	if err := json.Unmarshal(text, &m); err != nil || m.Format < 1 {
		return notOurs(path)
	}
	if m.Format > folderFormat {
		return scstore.Hint(fmt.Errorf("folder %q has format %d, made by scstore %s; this one reads up to %d: %w",
			f.path, m.Format, m.MadeBy, folderFormat, scstore.ErrVersion), "use that version of scstore")
	}
	id, err := hex.DecodeString(m.ID)
	if err != nil || len(id) != len(f.id) {
		return notOurs(path)
	}
	f.id = scstore.StoreID(id)
	return nil
}

// notOurs is the error for a store.json that says nothing.
func notOurs(path string) error {
	return scstore.Hint(fmt.Errorf("read %q: not what scstore wrote: %w", path, scstore.ErrCorrupt), "restore the file from a backup")
}

// writeMark makes the folder a store, durably, with a random id.
func (f *folder) writeMark(version string) error {
	var id scstore.StoreID
	rand.Read(id[:])
	text, err := json.MarshalIndent(mark{Format: folderFormat, ID: id.String(), MadeBy: version, CreatedAt: time.Now().UTC()}, "", "  ")
	if err != nil {
		return fmt.Errorf("encode %s: %w", markName, err)
	}
	path := filepath.Join(f.path, markName)
	tmp, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("make the store: %w", err)
	}
	_, err = tmp.Write(append(text, '\n'))
	if err := errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return fmt.Errorf("make the store: %w", err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("make the store: %w", err)
	}
	return f.sync()
}

// makeFolders makes the folders below, durably.
func (f *folder) makeFolders() error {
	for _, name := range []string{segmentsName, indexName, metaName} {
		if err := os.Mkdir(filepath.Join(f.path, name), 0o700); err != nil && !errors.Is(err, os.ErrExist) {
			return fmt.Errorf("make the store: %w", err)
		}
	}
	return f.sync()
}

// sync makes the names in the folder durable.
func (f *folder) sync() error {
	d, err := os.Open(f.path)
	if err != nil {
		return fmt.Errorf("sync folder %q: %w", f.path, err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("sync folder %q: %w", f.path, err)
	}
	return nil
}

// close gives the folder back.
func (f *folder) close() error {
	if err := f.lock.Close(); err != nil {
		return fmt.Errorf("unlock folder %q: %w", f.path, err)
	}
	return nil
}
