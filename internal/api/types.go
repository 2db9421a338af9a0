package api

import (
	"time"

	"scstore"
)

// Kind says whether a name means a writable disk or a frozen one.
type Kind string

// The kinds.
const (
	KindVolume Kind = "volume" // a writable disk
	KindImage  Kind = "image"  // an immutable volume, that volumes can be based on
	// KindSnapshot is a volume as it was, VOLUME@SNAPSHOT. Calls that name one have
	// KindVolume; only answers have this.
	KindSnapshot Kind = "snapshot"
)

// plural returns the kind's path segment.
func (k Kind) plural() string { return string(k) + "s" }

// Volume describes a volume or an image.
type Volume struct {
	Name        string           `json:"name"`
	Kind        Kind             `json:"kind"`
	ID          scstore.VolumeID `json:"id"`
	SizeBytes   int64            `json:"size_bytes"`             // what a guest sees
	DataBytes   *int64           `json:"data_bytes,omitempty"`   // what it holds of its own, without its base; left out if counting takes long
	Base        string           `json:"base,omitempty"`         // the image or snapshot that it is a clone of
	Clones      []string         `json:"clones,omitempty"`       // the volumes based on it, sorted
	Snapshots   []Snapshot       `json:"snapshots,omitempty"`    // of a volume, sorted by name
	Position    scstore.Position `json:"position"`               // of the last sealed epoch
	Digest      string           `json:"digest,omitempty"`       // of an image's content: the root of its digest tree
	Connections int              `json:"connections"`            // open NBD connections
	DamagedAt   []int64          `json:"damaged_at,omitempty"`   // byte offsets of blocks that cannot be read; at most MaxDamageListed
	CreatedAt   *time.Time       `json:"created_at,omitempty"`   // when the name was made, if that is known
	PaddedBytes int64            `json:"padded_bytes,omitempty"` // zeros that an import added at the end
	Where       *Where           `json:"where,omitempty"`        // in a cluster: who has which of its bytes
}

// Snapshot is a volume's content at a moment, under a name.
type Snapshot struct {
	Name      string           `json:"name"` // without the volume's
	Position  scstore.Position `json:"position"`
	SizeBytes int64            `json:"size_bytes"` // of the volume then
	CreatedAt *time.Time       `json:"created_at,omitempty"`
	Clones    []string         `json:"clones,omitempty"` // the volumes based on it, sorted
}

// MaxDamageListed bounds Volume.DamagedAt.
const MaxDamageListed = 64

// List is the answer to a listing, sorted by name.
type List struct {
	Volumes []Volume `json:"volumes"`
}

// CreateVolume asks for a new volume.
type CreateVolume struct {
	Name      string `json:"name"`
	SizeBytes int64  `json:"size_bytes,omitempty"` // multiple of 4096; 0 with From means the size of From
	From      string `json:"from,omitempty"`       // the image or snapshot to base it on; costs no copy
}

// RemoveOptions says how to remove.
type RemoveOptions struct {
	Force  bool // close open connections first
	DryRun bool // only say what would go
}

// Removal says what a removal removed, or would remove.
type Removal struct {
	Volume      Volume `json:"volume"`
	DryRun      bool   `json:"dry_run"`
	ClosedConns int    `json:"closed_connections"`
}

// Rollback says what a rollback did, or would do.
type Rollback struct {
	Snapshot    string `json:"snapshot"`   // VOLUME@SNAPSHOT
	LostBytes   int64  `json:"lost_bytes"` // in blocks that were written since
	DryRun      bool   `json:"dry_run"`
	ClosedConns int    `json:"closed_connections"`
}

// Status is what a host says about itself.
type Status struct {
	Version   string      `json:"version"`
	PID       int         `json:"pid"`
	StartedAt time.Time   `json:"started_at"`
	Dir       string      `json:"dir"`
	API       string      `json:"api"` // address, unix:/path or host:port
	NBD       string      `json:"nbd"` // address
	Volumes   int         `json:"volumes"`
	Images    int         `json:"images"`
	Conns     int         `json:"nbd_connections"`
	Store     StoreStatus `json:"store"`
	// Cluster is nil on a host that is in none.
	Cluster *ClusterSummary `json:"cluster,omitempty"`
}

// ClusterSummary is the cluster in one line; Sites.Cluster says more.
type ClusterSummary struct {
	Site        string `json:"site"` // of this host
	Host        string `json:"host"` // its name
	HostsActive int    `json:"hosts_active"`
	HostsKnown  int    `json:"hosts_known"` // joining ones included, removed ones not
	Problem     string `json:"problem"`     // what is wrong, in a sentence; empty if nothing is
}

// StoreStatus is the state of the local store, in bytes unless it says otherwise.
type StoreStatus struct {
	DiskTotalBytes int64  `json:"disk_total_bytes"` // of the file system below the folder
	DiskFreeBytes  int64  `json:"disk_free_bytes"`
	LogBytes       int64  `json:"log_bytes"`  // segments, live or not
	LiveBytes      int64  `json:"live_bytes"` // what the volumes need of them
	Segments       int    `json:"segments"`
	Tables         int    `json:"tables"`             // volumes and images that hold data here, unfinished imports included
	DamagedBlocks  int    `json:"damaged_blocks"`     // found unreadable since the start
	Recovery       string `json:"recovery,omitempty"` // what the start found, one line
}

// NBD lists what the block device door serves.
type NBD struct {
	Address string      `json:"address"` // unix:/path or host:port
	Exports []NBDExport `json:"exports"` // sorted by name
}

// NBDExport is one name of the block device door.
type NBDExport struct {
	Name        string `json:"name"`
	Kind        Kind   `json:"kind"`
	SizeBytes   int64  `json:"size_bytes"`
	ReadOnly    bool   `json:"read_only"`
	URL         string `json:"url"`
	Connections int    `json:"connections"`
}

// Severity ranks a finding.
type Severity string

// The severities.
const (
	SeverityInfo    Severity = "info"    // worth knowing
	SeverityWarning Severity = "warning" // will become an error
	SeverityError   Severity = "error"   // something does not work, or bytes are lost
)

// Finding is one thing that doctor found.
type Finding struct {
	Severity Severity `json:"severity"`
	Subject  string   `json:"subject"` // what it is about: a volume's name, a path
	Message  string   `json:"message"`
	Hint     string   `json:"hint,omitempty"`
}

// Report is what doctor found.
type Report struct {
	Online        bool      `json:"online"` // the store was being served
	VerifiedBytes int64     `json:"verified_bytes"`
	Findings      []Finding `json:"findings"`
}

// Worst returns the highest severity among the findings, or "" if there is none.
func (r Report) Worst() Severity {
	worst := Severity("")
	for _, f := range r.Findings {
		switch {
		case f.Severity == SeverityError:
			return SeverityError
		case f.Severity == SeverityWarning, worst == "":
			worst = f.Severity
		}
	}
	return worst
}

// Line is one line of an answer that takes long. The last one has a result or an
// error.
type Line struct {
	DoneBytes  int64       `json:"done_bytes"`
	TotalBytes int64       `json:"total_bytes"`
	Report     *Report     `json:"report,omitempty"` // of doctor
	Volume     *Volume     `json:"volume,omitempty"` // of a snapshot
	Rollback   *Rollback   `json:"rollback,omitempty"`
	Move       *MoveReport `json:"move,omitempty"`
	Error      *Error      `json:"error,omitempty"`
}
