package meta

import (
	"fmt"

	"scstore"
)

// Code says how a command ended. Codes are stored and sent: never renumber.
type Code uint8

// The codes.
const (
	CodeOK             Code = 1
	CodeInvalid        Code = 2  // the command itself is malformed
	CodeNoName         Code = 3  // the name names nothing
	CodeNoVolume       Code = 4  // the id names nothing, or something removed
	CodeNameTaken      Code = 5  // the name is in use
	CodeNameIsFolder   Code = 6  // other names lie below the name
	CodeParentIsVolume Code = 7  // a folder of the name is itself a volume or image
	CodeIDTaken        Code = 8  // the id is in use, or was and is not forgotten yet
	CodeBadBase        Code = 9  // the base is not a live image at that position, or is larger
	CodeInUse          Code = 10 // other records are based on it
	CodeImage          Code = 11 // images do not change
	CodeFenced         Code = 12 // a higher fence was granted
	CodeNotGranted     Code = 13 // the fence was never granted
	CodeBadParent      Code = 14 // the parent is not the head, or the epoch does not follow it
	CodeShrink         Code = 15 // volumes only grow
	CodeSessionExpired Code = 16 // the session is gone, or the sequence number too old to tell
	CodeLimit          Code = 17 // the state is full
	CodeNotRemoved     Code = 18 // only a removed record can be forgotten
)

// codes maps each code to its text and its sentinel; index 0 and unknown codes
// have none.
var codes = [...]struct {
	text     string
	sentinel error
}{
	CodeOK:             {text: "done"},
	CodeInvalid:        {"malformed command", scstore.ErrInvalid},
	CodeNoName:         {"no such name", scstore.ErrNotFound},
	CodeNoVolume:       {"no such volume", scstore.ErrNotFound},
	CodeNameTaken:      {"name in use", scstore.ErrExists},
	CodeNameIsFolder:   {"name is a folder of other names", scstore.ErrExists},
	CodeParentIsVolume: {"a parent of the name is itself a volume or image", scstore.ErrExists},
	CodeIDTaken:        {"id in use", scstore.ErrExists},
	CodeBadBase:        {"base is not an image at that position, or is larger than the volume", scstore.ErrInvalid},
	CodeInUse:          {"other volumes are based on it", scstore.ErrBusy},
	CodeImage:          {"images do not change", scstore.ErrReadOnly},
	CodeFenced:         {"another writer took over", scstore.ErrFenced},
	CodeNotGranted:     {"fence was never granted", scstore.ErrInvalid},
	CodeBadParent:      {"epoch does not follow the head", scstore.ErrInvalid},
	CodeShrink:         {"volumes only grow", scstore.ErrInvalid},
	CodeSessionExpired: {"session expired, or command too old", scstore.ErrIndeterminate},
	CodeLimit:          {"too many volumes", scstore.ErrNoSpace},
	CodeNotRemoved:     {"not removed", scstore.ErrInvalid},
}

// String returns the code's text.
func (c Code) String() string {
	if !c.valid() {
		return fmt.Sprintf("code %d", uint8(c))
	}
	return codes[c].text
}

func (c Code) valid() bool { return c >= CodeOK && int(c) < len(codes) }

// Result is a command's outcome, the same for every member and every retry. Fields
// that a command does not speak of are zero.
type Result struct {
	Code     Code
	ID       scstore.VolumeID // the record that the command touched
	Fence    scstore.Fence    // OpenFence: the fence granted
	Position scstore.Position // OpenFence, CommitEpoch: the head
}

// Err returns nil for CodeOK, otherwise an error that wraps the code's sentinel.
// Who proposes the command adds what was asked.
func (r Result) Err() error {
	switch {
	case r.Code == CodeOK:
		return nil
	case !r.Code.valid():
		return fmt.Errorf("%s: %w", r.Code, scstore.ErrVersion)
	}
	return fmt.Errorf("%s: %w", codes[r.Code].text, codes[r.Code].sentinel)
}
