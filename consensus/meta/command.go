package meta

import (
	"encoding/hex"
	"fmt"

	"scstore"
)

// MaxHolderBytes is the longest holder, in bytes.
const MaxHolderBytes = 255

// maxCounter bounds fences and epochs, so that adding to one never wraps.
const maxCounter = 1<<63 - 1

// ClientID names a proposer's session. It is drawn at random.
type ClientID [16]byte

// String returns the id as 32 hexadecimal digits.
func (c ClientID) String() string { return hex.EncodeToString(c[:]) }

// CommandID makes a command safe to retry: within its session it is applied once,
// and a retry gets the first result. The zero id asks for no such protection: it is
// for a proposer that learns each outcome for certain.
type CommandID struct {
	Client ClientID
	Seq    uint64 // from 1, rising; a few may be in flight at once
}

// IsZero reports whether the command is not protected against retries.
func (c CommandID) IsZero() bool { return c == CommandID{} }

// Command is one entry of the log. Commands are comparable.
type Command struct {
	ID CommandID
	Op Op
}

// Op is what a command does: one of the types of this package that say so, by
// value.
type Op interface {
	kind() opKind
	validate() error            // what can be said without a state; errors: ErrInvalid
	apply(*State) Result        // precondition: validate returned nil
	appendBody(b []byte) []byte // wire.go
	parseBody(r *reader) (o Op) // wire.go; errors are left in r
}

// opKind numbers the operations on the wire and on disk: never renumber.
type opKind uint8

const (
	kindOpenSession  opKind = 1
	kindCreateVolume opKind = 2
	kindCreateImage  opKind = 3
	kindRemove       opKind = 4
	kindForget       opKind = 5
	kindRename       opKind = 6
	kindOpenFence    opKind = 7
	kindCommitEpoch  opKind = 8
	kindResize       opKind = 9
)

// newOp returns the zero operation of a kind, nil for an unknown one.
func newOp(k opKind) Op {
	switch k {
	case kindOpenSession:
		return OpenSession{}
	case kindCreateVolume:
		return CreateVolume{}
	case kindCreateImage:
		return CreateImage{}
	case kindRemove:
		return Remove{}
	case kindForget:
		return Forget{}
	case kindRename:
		return Rename{}
	case kindOpenFence:
		return OpenFence{}
	case kindCommitEpoch:
		return CommitEpoch{}
	case kindResize:
		return Resize{}
	}
	return nil
}

// Validate checks what can be known of a command without a state. Apply refuses
// what fails here with CodeInvalid; calling it first gives a person the reason.
// Errors: ErrInvalid.
func (c Command) Validate() error {
	if c.Op == nil {
		return fmt.Errorf("command without an operation: %w", scstore.ErrInvalid)
	}
	_, opens := c.Op.(OpenSession)
	named := c.ID.Client != ClientID{}
	switch {
	case opens && (!named || c.ID.Seq != 0):
		return fmt.Errorf("open session with command id %s.%d, want a client and number 0: %w", c.ID.Client, c.ID.Seq, scstore.ErrInvalid)
	case !opens && named != (c.ID.Seq != 0):
		return fmt.Errorf("command id %s.%d, want both parts or none: %w", c.ID.Client, c.ID.Seq, scstore.ErrInvalid)
	}
	return c.Op.validate()
}

// OpenSession starts the session of the command id's client, whose Seq is 0. A
// session that is open stays as it is. A client whose session expired reads back
// what became of its commands and opens another session, under a new id.
type OpenSession struct{}

// CreateVolume makes a volume and names it. Errors: ErrExists, ErrInvalid (base),
// ErrNoSpace.
type CreateVolume struct {
	ID           scstore.VolumeID
	Name         string
	SizeBytes    int64            // multiple of scstore.BlockSize, at least the base's size
	Base         scstore.VolumeID // an image; zero for none
	BasePosition scstore.Position // the image's position; zero without a base
	CreatedAtMs  int64            // proposer's clock, milliseconds since 1970
}

// CreateImage records an image whose data are complete and durable. Errors:
// ErrExists, ErrNoSpace.
type CreateImage struct {
	ID          scstore.VolumeID
	Name        string
	SizeBytes   int64
	Position    scstore.Position // where the image is frozen
	Digest      scstore.Digest   // of the whole content (fs/volume, digest tree)
	CreatedAtMs int64
}

// Remove takes a volume or image out of the namespace and leaves a tombstone,
// found by name or by id: exactly one of them is set. Errors: ErrNotFound, ErrBusy
// while another record is based on it.
type Remove struct {
	ID   scstore.VolumeID
	Name string
}

// Forget drops a tombstone, once its data are gone everywhere. Errors:
// ErrNotFound, ErrInvalid if the record is live.
type Forget struct {
	ID scstore.VolumeID
}

// Rename gives a volume or image another name; no data move. Errors: ErrNotFound,
// ErrExists.
type Rename struct {
	From, To string
}

// OpenFence takes the right to write a volume: it raises the fence by one and
// names the holder. The result holds the fence granted and the head to go on
// from. Errors: ErrNotFound, ErrReadOnly for an image.
type OpenFence struct {
	ID     scstore.VolumeID
	Holder string // the host's disk id
}

// CommitEpoch makes a sealed epoch the volume's head. Committing the head again
// as it is changes nothing. Errors: ErrNotFound, ErrReadOnly, ErrFenced, ErrInvalid
// if the parent is not the head.
type CommitEpoch struct {
	ID     scstore.VolumeID
	Fence  scstore.Fence    // of the writer that sealed it
	Parent scstore.Position // the head that it follows
	Epoch  scstore.Epoch
	Digest scstore.Digest // of the epoch's manifest
}

// Resize grows a volume; its present size changes nothing. Errors: ErrNotFound,
// ErrReadOnly, ErrInvalid for a smaller size.
type Resize struct {
	ID        scstore.VolumeID
	SizeBytes int64
}

func (OpenSession) kind() opKind  { return kindOpenSession }
func (CreateVolume) kind() opKind { return kindCreateVolume }
func (CreateImage) kind() opKind  { return kindCreateImage }
func (Remove) kind() opKind       { return kindRemove }
func (Forget) kind() opKind       { return kindForget }
func (Rename) kind() opKind       { return kindRename }
func (OpenFence) kind() opKind    { return kindOpenFence }
func (CommitEpoch) kind() opKind  { return kindCommitEpoch }
func (Resize) kind() opKind       { return kindResize }

func (OpenSession) validate() error { return nil }

func (o CreateVolume) validate() error {
	if err := validateNew(o.ID, o.Name, o.SizeBytes, o.CreatedAtMs); err != nil {
		return err
	}
	if o.Base.IsZero() && o.BasePosition != (scstore.Position{}) {
		return fmt.Errorf("base position %v without a base: %w", o.BasePosition, scstore.ErrInvalid)
	}
	return nil
}

func (o CreateImage) validate() error {
	if err := validateNew(o.ID, o.Name, o.SizeBytes, o.CreatedAtMs); err != nil {
		return err
	}
	return validatePosition(o.Position)
}

func (o Remove) validate() error {
	if o.ID.IsZero() == (o.Name == "") {
		return fmt.Errorf("remove wants a name or an id, and not both: %w", scstore.ErrInvalid)
	}
	if o.Name != "" {
		return ValidateName(o.Name)
	}
	return nil
}

func (o Forget) validate() error { return validateID(o.ID) }

func (o Rename) validate() error {
	if err := ValidateName(o.From); err != nil {
		return err
	}
	return ValidateName(o.To)
}

func (o OpenFence) validate() error {
	if o.Holder == "" || len(o.Holder) > MaxHolderBytes {
		return fmt.Errorf("holder of %d bytes, want 1 to %d: %w", len(o.Holder), MaxHolderBytes, scstore.ErrInvalid)
	}
	return validateID(o.ID)
}

func (o CommitEpoch) validate() error {
	if o.Fence == 0 {
		return fmt.Errorf("commit without a fence: %w", scstore.ErrInvalid)
	}
	if err := validatePosition(scstore.Position{Fence: o.Fence, Epoch: o.Epoch}); err != nil {
		return err
	}
	return validateID(o.ID)
}

func (o Resize) validate() error {
	if err := validateID(o.ID); err != nil {
		return err
	}
	return validateSize(o.SizeBytes)
}

func validateNew(id scstore.VolumeID, name string, sizeBytes, createdAtMs int64) error {
	if err := validateID(id); err != nil {
		return err
	}
	if err := ValidateName(name); err != nil {
		return err
	}
	if createdAtMs < 0 {
		return fmt.Errorf("created %d ms before 1970: %w", -createdAtMs, scstore.ErrInvalid)
	}
	return validateSize(sizeBytes)
}

func validateID(id scstore.VolumeID) error {
	if id.IsZero() {
		return fmt.Errorf("volume id is zero: %w", scstore.ErrInvalid)
	}
	return nil
}

func validateSize(sizeBytes int64) error {
	switch {
	case sizeBytes <= 0 || sizeBytes > scstore.MaxVolumeBytes:
		return fmt.Errorf("size of %d bytes, want 1 to %d: %w", sizeBytes, int64(scstore.MaxVolumeBytes), scstore.ErrInvalid)
	case sizeBytes%scstore.BlockSize != 0:
		return fmt.Errorf("size of %d bytes is not a multiple of %d: %w", sizeBytes, scstore.BlockSize, scstore.ErrInvalid)
	}
	return nil
}

// validatePosition checks the position of an epoch that exists; epochs begin at 1.
func validatePosition(p scstore.Position) error {
	if p.Epoch == 0 || p.Epoch > maxCounter || p.Fence > maxCounter {
		return fmt.Errorf("position %v is out of range: %w", p, scstore.ErrInvalid)
	}
	return nil
}
