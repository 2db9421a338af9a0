package meta

import (
	"fmt"
	"slices"

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

	CodeWrongGroup      Code = 19 // the command belongs to another kind of group
	CodeLinked          Code = 20 // the volume has another name
	CodeHeld            Code = 21 // another disk holds the right to write
	CodeMoving          Code = 22 // a move is under way
	CodeHandedOff       Code = 23 // the hand-off was committed first
	CodeCancelled       Code = 24 // the hand-off was cancelled first
	CodeDropped         Code = 25 // the hand-off was given up first
	CodeNoIntent        Code = 26 // no such hand-off is intended, nor remembered
	CodeBadMove         Code = 27 // it does not fit the intent
	CodeRevoked         Code = 28 // the right to write was revoked
	CodeNotRevoked      Code = 29 // nobody revoked it
	CodeNoFork          Code = 30 // nobody waits for this report
	CodeNoDisk          Code = 31 // the disk was not admitted
	CodeDiskRemoved     Code = 32 // the disk was removed
	CodeStale           Code = 33 // a later report was applied
	CodeUnknownPosition Code = 34 // not in the history that is kept
	CodeLeftOut         Code = 35 // a promote left the position out
	CodeNotKept         Code = 36 // nothing keeps the position alive
	CodeLastCopy        Code = 37 // too few complete copies would remain
	CodeHolder          Code = 38 // the disk writes the volume
	CodeIncomplete      Code = 39 // no complete copy there
	CodeNotPlaced       Code = 40 // the placement does not ask for it
	CodeNoSnapshot      Code = 41 // no such snapshot
	CodeSnapshotTaken   Code = 42 // the snapshot's name is in use
	CodeExpired         Code = 43 // the deadline has passed
	CodeNoToken         Code = 44 // the token is not one of this cluster
	CodeTokenExpired    Code = 45 // the token has expired
	CodeTokenUsed       Code = 46 // another host used it
	CodeStaleBoot       Code = 47 // a later start of this disk is registered
	CodeNoSite          Code = 48 // no such site
	CodeSiteInUse       Code = 49 // the site has hosts
	CodeNoHost          Code = 50 // no such host
	CodeHostTaken       Code = 51 // the host's name or disk is in use
	CodeOtherCluster    Code = 52 // another cluster, or a later incarnation
	CodeRenewed         Code = 53 // the holder's session was renewed
	CodeNotAuto         Code = 54 // only a person may take the volume over

	lastCode = CodeNotAuto
)

// codes maps each code to its text, its sentinel and, where a person can act, a
// hint; index 0 has none.
var codes = [...]struct {
	text     string
	sentinel error
	hint     string
}{
	CodeOK:              {text: "done"},
	CodeInvalid:         {"malformed command", scstore.ErrInvalid, ""},
	CodeNoName:          {"no such name", scstore.ErrNotFound, ""},
	CodeNoVolume:        {"no such volume", scstore.ErrNotFound, ""},
	CodeNameTaken:       {"name in use", scstore.ErrExists, ""},
	CodeNameIsFolder:    {"name is a folder of other names", scstore.ErrExists, ""},
	CodeParentIsVolume:  {"a parent of the name is itself a volume or image", scstore.ErrExists, ""},
	CodeIDTaken:         {"id in use", scstore.ErrExists, ""},
	CodeBadBase:         {"base is not an image or snapshot at that position, or is larger than the volume", scstore.ErrInvalid, ""},
	CodeInUse:           {"other volumes are based on it", scstore.ErrBusy, ""},
	CodeImage:           {"images do not change", scstore.ErrReadOnly, ""},
	CodeFenced:          {"another writer took over", scstore.ErrFenced, ""},
	CodeNotGranted:      {"fence was never granted", scstore.ErrInvalid, ""},
	CodeBadParent:       {"epoch does not follow the head", scstore.ErrInvalid, ""},
	CodeShrink:          {"volumes only grow", scstore.ErrInvalid, ""},
	CodeSessionExpired:  {"session expired, or command too old", scstore.ErrIndeterminate, ""},
	CodeLimit:           {"a limit of the metadata is reached", scstore.ErrNoSpace, ""},
	CodeNotRemoved:      {"not removed", scstore.ErrInvalid, ""},
	CodeWrongGroup:      {"belongs to another group", scstore.ErrInvalid, ""},
	CodeLinked:          {"the volume has another name", scstore.ErrExists, ""},
	CodeHeld:            {"another host holds the right to write", scstore.ErrBusy, "move the volume here with scstore volume move, or promote it if that host is lost"},
	CodeMoving:          {"a move is under way", scstore.ErrBusy, "wait until the move ends, or cancel it"},
	CodeHandedOff:       {"the hand-off was committed first", scstore.ErrFenced, ""},
	CodeCancelled:       {"the hand-off was cancelled", scstore.ErrInvalid, "begin the move anew"},
	CodeDropped:         {"the hand-off was given up", scstore.ErrInvalid, "begin the move anew"},
	CodeNoIntent:        {"no such hand-off", scstore.ErrNotFound, ""},
	CodeBadMove:         {"does not fit the move that was announced", scstore.ErrInvalid, ""},
	CodeRevoked:         {"the right to write was revoked", scstore.ErrFenced, "finish with scstore volume promote"},
	CodeNotRevoked:      {"the right to write was not revoked", scstore.ErrInvalid, ""},
	CodeNoFork:          {"nobody waits for a branch of that fence", scstore.ErrNotFound, ""},
	CodeNoDisk:          {"the disk is not part of the group", scstore.ErrNotFound, ""},
	CodeDiskRemoved:     {"the disk was removed from the cluster", scstore.ErrFenced, "join again with an empty folder"},
	CodeStale:           {"a later report was applied", scstore.ErrBusy, ""},
	CodeUnknownPosition: {"position is not in the history that is kept", scstore.ErrNotFound, ""},
	CodeLeftOut:         {"a promote left that position out", scstore.ErrFenced, ""},
	CodeNotKept:         {"nothing keeps that position alive", scstore.ErrInvalid, ""},
	CodeLastCopy:        {"too few complete copies would remain", scstore.ErrBusy, "wait until other sites have it, or change the placement"},
	CodeHolder:          {"the host writes the volume", scstore.ErrBusy, "move the volume to another host first"},
	CodeIncomplete:      {"no complete copy there yet", scstore.ErrBusy, ""},
	CodeNotPlaced:       {"the placement does not ask for that site", scstore.ErrInvalid, "set it with scstore placement set"},
	CodeNoSnapshot:      {"no such snapshot", scstore.ErrNotFound, ""},
	CodeSnapshotTaken:   {"snapshot name in use", scstore.ErrExists, ""},
	CodeExpired:         {"the deadline has passed", scstore.ErrInvalid, ""},
	CodeNoToken:         {"not a token of this cluster", scstore.ErrInvalid, "make one with scstore host token"},
	CodeTokenExpired:    {"the token has expired", scstore.ErrInvalid, "make another with scstore host token"},
	CodeTokenUsed:       {"the token was used by another host", scstore.ErrInvalid, "make another with scstore host token"},
	CodeStaleBoot:       {"a later start of this disk is registered", scstore.ErrFenced, "this machine was copied or set back: join again with an empty folder"},
	CodeNoSite:          {"no such site", scstore.ErrNotFound, ""},
	CodeSiteInUse:       {"the site has hosts", scstore.ErrBusy, "remove them first with scstore host remove"},
	CodeNoHost:          {"no such host", scstore.ErrNotFound, ""},
	CodeHostTaken:       {"the host's name or disk is in use", scstore.ErrExists, ""},
	CodeOtherCluster:    {"another cluster, or a later incarnation of it", scstore.ErrInvalid, ""},
	CodeRenewed:         {"the holder renewed its session", scstore.ErrBusy, ""},
	CodeNotAuto:         {"the placement leaves failover to a person", scstore.ErrInvalid, "promote it with scstore volume promote"},
}

// String returns the code's text.
func (c Code) String() string {
	if !c.valid() {
		return fmt.Sprintf("code %d", uint8(c))
	}
	return codes[c].text
}

func (c Code) valid() bool { return c >= CodeOK && c <= lastCode }

// Result is a command's outcome, the same for every member and every retry. Fields
// that a command does not speak of are zero.
type Result struct {
	Code     Code
	Outcome  Outcome          // of hand-offs: what was decided, 0 if nothing yet
	ID       scstore.VolumeID // the record that the command touched
	Fence    scstore.Fence    // of that record; OpenFence: the fence granted
	Position scstore.Position // OpenFence, CommitEpoch: the head
	Number   uint64           // a count or number that the command speaks of
	Each     []Result         // Batch, Ack: one for each part, in order
}

// Equal reports whether two results say the same.
func (r Result) Equal(q Result) bool {
	return r.Code == q.Code && r.Outcome == q.Outcome && r.ID == q.ID && r.Fence == q.Fence &&
		r.Position == q.Position && r.Number == q.Number && slices.EqualFunc(r.Each, q.Each, Result.Equal)
}

// Err returns nil for CodeOK, otherwise an error that wraps the code's sentinel,
// with a hint where a person can act. Who proposes the command adds what was asked.
// What became of the parts of a Batch is in Each alone.
func (r Result) Err() error {
	switch {
	case r.Code == CodeOK:
		return nil
	case !r.Code.valid():
		return fmt.Errorf("%s: %w", r.Code, scstore.ErrVersion)
	}
	row := codes[r.Code]
	err := fmt.Errorf("%s: %w", row.text, row.sentinel)
	if row.hint != "" {
		return scstore.Hint(err, "%s", row.hint)
	}
	return err
}
