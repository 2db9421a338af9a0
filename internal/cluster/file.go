package cluster

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"scstore"
	"scstore/consensus"
	"scstore/consensus/meta"
)

// placeFormat is the version of cluster.json that this program writes and reads.
const placeFormat = 1

// maxPlaceBytes bounds cluster.json.
const maxPlaceBytes = 16 << 20

// stage says how far this host came.
type stage string

const (
	stageNew     stage = "new"     // it makes a cluster: the log may be begun
	stageJoining stage = "joining" // it was let into one: the log may be joined
	stageMember  stage = "member"  // it has its log
)

// place is the content of cluster.json.
type place struct {
	Format      int          `json:"format"` // placeFormat; a newer one is refused
	Stage       stage        `json:"stage"`
	Cluster     id           `json:"cluster"`
	Incarnation uint64       `json:"incarnation"`
	Disk        id           `json:"disk"`
	Site        meta.SiteID  `json:"site"`
	Host        string       `json:"host"`
	Listen      string       `json:"listen"`
	Advertise   []string     `json:"advertise,omitempty"` // where others find this host, the likeliest first
	Seen        string       `json:"seen,omitempty"`      // the IP address that it joined from, as others saw it
	Boot        bootFacts    `json:"boot"`
	Groups      []groupFacts `json:"groups"` // all, rising
	Known       known        `json:"known"`
}

// bootFacts is the start that was last begun; see meta.Boot.
type bootFacts struct {
	N     uint64 `json:"n"`
	Nonce id     `json:"nonce"`
}

// groupFacts is this host's place in a group; see consensus.Group.
type groupFacts struct {
	Group     meta.GroupID `json:"group"`
	Replica   uint64       `json:"replica"`
	NonVoting bool         `json:"non_voting,omitempty"` // it came without a vote, even if it has one now
	Alone     bool         `json:"alone,omitempty"`      // nobody else votes
}

// known is what this host knew of the others when it last wrote it down: where a
// restart finds them.
type known struct {
	Applied uint64      `json:"applied"` // of the namespace's state then
	Hosts   []knownHost `json:"hosts,omitempty"`
}

// knownHost is another host, or this one.
type knownHost struct {
	Disk      meta.DiskID `json:"disk"`
	Name      string      `json:"name"`
	Site      meta.SiteID `json:"site"`
	Joining   bool        `json:"joining,omitempty"`
	Removed   bool        `json:"removed,omitempty"`
	Boots     uint64      `json:"boots,omitempty"`
	Addresses []string    `json:"addresses,omitempty"`
}

// id is 16 bytes that are written as 32 hexadecimal digits.
type id [16]byte

// MarshalText encodes the id, for JSON.
func (i id) MarshalText() ([]byte, error) { return []byte(hex.EncodeToString(i[:])), nil }

// UnmarshalText reads what MarshalText wrote. Errors: ErrInvalid.
func (i *id) UnmarshalText(text []byte) error {
	d, err := consensus.ParseDiskID(string(text))
	*i = id(d)
	return err
}

// Exists reports whether the folder's store is part of a cluster, or was on its way
// into one.
func Exists(dir string) (bool, error) {
	_, err := os.Stat(filepath.Join(dir, placeName))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look for %s: %w", placeName, err)
	}
	return true, nil
}

// parsePlace reads cluster.json. Errors: ErrVersion, ErrCorrupt.
func parsePlace(text []byte) (place, error) {
	var p place
	if err := json.Unmarshal(text, &p); err != nil {
		var head struct{ Format int }
		if json.Unmarshal(text, &head) == nil && head.Format > placeFormat {
			p.Format = head.Format
		} else {
			return place{}, fmt.Errorf("not what scstore wrote: %v: %w", err, scstore.ErrCorrupt)
		}
	}
	if p.Format > placeFormat {
		err := fmt.Errorf("format %d, this program reads up to %d: %w", p.Format, placeFormat, scstore.ErrVersion)
		return place{}, scstore.Hint(err, "start the version of scstore that the other hosts run")
	}
	if what := p.fault(); what != "" {
		return place{}, fmt.Errorf("%s: %w", what, scstore.ErrCorrupt)
	}
	return p, nil
}

// fault says what is wrong with what was read, empty for nothing.
func (p *place) fault() string {
	switch {
	case p.Format < 1:
		return "no format"
	case p.Stage != stageNew && p.Stage != stageJoining && p.Stage != stageMember:
		return fmt.Sprintf("unknown stage %q", p.Stage)
	case p.Cluster == (id{}) || p.Disk == (id{}) || p.Incarnation == 0:
		return "no cluster or disk"
	case checkSite(p.Site) != nil || p.Host == "" || p.Listen == "":
		return "no site, host or address"
	}
	if !slices.EqualFunc(p.Groups, groupIDs(), func(f groupFacts, g meta.GroupID) bool { return f.Group == g && f.Replica > 0 }) {
		return "not the groups of a cluster"
	}
	return ""
}

// encode returns the file's text.
func (p *place) encode() ([]byte, error) {
	text, err := json.MarshalIndent(p, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", placeName, err)
	}
	return append(text, '\n'), nil
}

// placeFile is cluster.json. It is replaced whole.
type placeFile struct {
	path string

	mu  sync.Mutex
	now place // Format 0 while there is no file
}

// openPlace reads the file if there is one. Errors: ErrVersion, ErrCorrupt.
func openPlace(dir string) (*placeFile, error) {
	f := &placeFile{path: filepath.Join(dir, placeName)}
	file, err := os.Open(f.path)
	if errors.Is(err, fs.ErrNotExist) {
		return f, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", placeName, err)
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, maxPlaceBytes+1))
	if err == nil && len(text) > maxPlaceBytes {
		err = fmt.Errorf("more than %d bytes: %w", maxPlaceBytes, scstore.ErrCorrupt)
	}
	if err == nil {
		f.now, err = parsePlace(text)
	}
	if err != nil {
		return nil, fmt.Errorf("read %q: %w", f.path, err)
	}
	return f, nil
}

// get returns what the file says. Its lists must not be changed.
func (f *placeFile) get() place {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.now
}

// exists reports whether there is a file.
func (f *placeFile) exists() bool { return f.get().Format > 0 }

// change replaces the file by what edit makes of it. edit must not change the lists
// that it finds, but put others in their place.
//
// Durability: it is on stable storage when change returns.
func (f *placeFile) change(edit func(*place)) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	next := f.now
	edit(&next)
	next.Format = placeFormat
	text, err := next.encode()
	if err != nil {
		return err
	}
	if err := replaceFile(f.path, text); err != nil {
		return fmt.Errorf("write %q: %w", f.path, err)
	}
	f.now = next
	return nil
}

// setAlone notes whether this host is a group's only voter. It is not written where
// nothing changes.
func (f *placeFile) setAlone(g meta.GroupID, alone bool) error {
	groups := slices.Clone(f.get().Groups)
	i := slices.IndexFunc(groups, func(facts groupFacts) bool { return facts.Group == g })
	if i < 0 || groups[i].NonVoting || groups[i].Alone == alone { // a late voter elects itself at leisure
		return nil
	}
	return f.change(func(p *place) {
		p.Groups = slices.Clone(p.Groups)
		p.Groups[i].Alone = alone
	})
}

// replaceFile puts a new file in the place of the old one.
func replaceFile(path string, text []byte) error {
	aside := path + ".new"
	file, err := os.OpenFile(aside, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = file.Write(text)
	if err == nil {
		err = file.Sync()
	}
	if err := errors.Join(err, file.Close()); err != nil {
		return err
	}
	if err := os.Rename(aside, path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
