package meta

import (
	"encoding/hex"
	"fmt"

	"scstore"
)

// maxCounter bounds fences, epochs and other counters, so that adding to one never
// wraps.
const maxCounter = 1<<63 - 1

// ClientID names a proposer's session. It is drawn at random.
type ClientID [16]byte

// String returns the id as 32 hexadecimal digits.
func (c ClientID) String() string { return hex.EncodeToString(c[:]) }

// CommandID makes a command safe to retry: within its session it is applied once,
// and a retry gets the first result. The zero id asks for no such protection: it is
// for a proposer that learns each outcome for certain, and for operations that say
// that they may be applied again.
type CommandID struct {
	Client ClientID
	Seq    uint64 // from 1, rising; a few may be in flight at once
}

// IsZero reports whether the command is not protected against retries.
func (c CommandID) IsZero() bool { return c == CommandID{} }

// Command is one entry of the log.
type Command struct {
	ID CommandID
	Op Op
}

// Op is what a command does: one of the types of this package that say so, by
// value.
type Op interface {
	kind() opKind
	validate() error     // what can be said without a state; errors: ErrInvalid
	apply(*State) Result // precondition: validate returned nil, the scope fits
	wire(*codec) Op      // walks the body's fields; returns the operation that was read
}

// opKind numbers the operations on the wire and on disk: never renumber.
type opKind uint8

const (
	kindOpenSession    opKind = 1
	kindCreateVolume   opKind = 2
	kindCreateImage    opKind = 3
	kindRemove         opKind = 4
	kindForget         opKind = 5
	kindRename         opKind = 6
	kindOpenFence      opKind = 7
	kindCommitEpoch    opKind = 8
	kindResize         opKind = 9
	kindBatch          opKind = 10
	kindExpire         opKind = 11
	kindSetCluster     opKind = 12
	kindSetSite        opKind = 13
	kindRemoveSite     opKind = 14
	kindAddHost        opKind = 15
	kindUpdateHost     opKind = 16
	kindBoot           opKind = 17
	kindAddToken       opKind = 18
	kindUseToken       opKind = 19
	kindAllocReplica   opKind = 20
	kindFreeReplica    opKind = 21
	kindRemoveDisk     opKind = 22
	kindAdmitDisk      opKind = 23
	kindLink           opKind = 24
	kindUnlink         opKind = 25
	kindAck            opKind = 26
	kindComplete       opKind = 27
	kindRelease        opKind = 28
	kindSetPlacement   opKind = 29
	kindLeaveInSync    opKind = 30
	kindJoinInSync     opKind = 31
	kindPutPin         opKind = 32
	kindDropPin        opKind = 33
	kindIntent         opKind = 34
	kindDropIntent     opKind = 35
	kindHandOff        opKind = 36
	kindCancel         opKind = 37
	kindRevoke         opKind = 38
	kindPromote        opKind = 39
	kindRegisterBranch opKind = 40
	kindReportNoBranch opKind = 41
	kindSnapshot       opKind = 42
	kindDeleteSnapshot opKind = 43
	kindAddRef         opKind = 44
	kindDropRef        opKind = 45
	kindRollback       opKind = 46
	kindRenew          opKind = 47
	kindTakeOver       opKind = 48
)

// ops says of each kind what it is: its zero value, the states that it belongs to,
// and whether it may be part of a Batch, which asks that applying it twice does no
// harm. Kinds without a row are unknown.
var ops = [...]struct {
	zero  Op
	scope scope
	batch bool
}{
	kindOpenSession:    {zero: OpenSession{}},
	kindCreateVolume:   {CreateVolume{}, scopeVolumes, false},
	kindCreateImage:    {CreateImage{}, scopeVolumes, false},
	kindRemove:         {Remove{}, scopeVolumes, false},
	kindForget:         {Forget{}, scopeVolumes, false},
	kindRename:         {Rename{}, scopeNames, false},
	kindOpenFence:      {OpenFence{}, scopeVolumes, false},
	kindCommitEpoch:    {CommitEpoch{}, scopeVolumes, true},
	kindResize:         {Resize{}, scopeVolumes, true},
	kindBatch:          {Batch{}, scopeVolumes, false},
	kindExpire:         {Expire{}, scopeAny, false},
	kindSetCluster:     {SetCluster{}, scopeNames, false},
	kindSetSite:        {SetSite{}, scopeNames, false},
	kindRemoveSite:     {RemoveSite{}, scopeNames, false},
	kindAddHost:        {AddHost{}, scopeNames, false},
	kindUpdateHost:     {UpdateHost{}, scopeNames, false},
	kindBoot:           {Boot{}, scopeNames, false},
	kindAddToken:       {AddToken{}, scopeNames, false},
	kindUseToken:       {UseToken{}, scopeNames, false},
	kindAllocReplica:   {AllocReplica{}, scopeNames, false},
	kindFreeReplica:    {FreeReplica{}, scopeNames, false},
	kindRemoveDisk:     {RemoveDisk{}, scopeAny, false},
	kindAdmitDisk:      {AdmitDisk{}, scopeVolumes, false},
	kindLink:           {Link{}, scopeNames, false},
	kindUnlink:         {Unlink{}, scopeNames, false},
	kindAck:            {Ack{}, scopeVolumes, true},
	kindComplete:       {Complete{}, scopeVolumes, true},
	kindRelease:        {Release{}, scopeVolumes, true},
	kindSetPlacement:   {SetPlacement{}, scopeVolumes, false},
	kindLeaveInSync:    {LeaveInSync{}, scopeVolumes, true},
	kindJoinInSync:     {JoinInSync{}, scopeVolumes, true},
	kindPutPin:         {PutPin{}, scopeVolumes, true},
	kindDropPin:        {DropPin{}, scopeVolumes, true},
	kindIntent:         {Intent{}, scopeVolumes, false},
	kindDropIntent:     {DropIntent{}, scopeVolumes, false},
	kindHandOff:        {HandOff{}, scopeVolumes, false},
	kindCancel:         {Cancel{}, scopeVolumes, false},
	kindRevoke:         {Revoke{}, scopeVolumes, false},
	kindPromote:        {Promote{}, scopeVolumes, false},
	kindRegisterBranch: {RegisterBranch{}, scopeVolumes, false},
	kindReportNoBranch: {ReportNoBranch{}, scopeVolumes, true},
	kindSnapshot:       {Snapshot{}, scopeVolumes, true},
	kindDeleteSnapshot: {DeleteSnapshot{}, scopeVolumes, false},
	kindAddRef:         {AddRef{}, scopeVolumes, false},
	kindDropRef:        {DropRef{}, scopeVolumes, false},
	kindRollback:       {Rollback{}, scopeVolumes, true},
	kindRenew:          {Renew{}, scopeVolumes, true},
	kindTakeOver:       {TakeOver{}, scopeVolumes, false},
}

// newOp returns the zero operation of a kind, nil for an unknown one.
func newOp(k opKind) Op {
	if int(k) >= len(ops) {
		return nil
	}
	return ops[k].zero
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
	switch c.Op.(type) {
	case Batch, Ack:
		if named {
			return fmt.Errorf("a batch or a report in a session: sessions keep one result a command: %w", scstore.ErrInvalid)
		}
	}
	if err := c.Op.validate(); err != nil {
		return err
	}
	if n := c.bodyBytes(); n > MaxCommandBytes-commandHeaderBytes {
		return fmt.Errorf("command of %d bytes, want at most %d: %w", commandHeaderBytes+n, MaxCommandBytes, scstore.ErrInvalid)
	}
	return nil
}

// OpenSession starts the session of the command id's client, whose Seq is 0. A
// session that is open stays as it is. A client whose session expired reads back
// what became of its commands and opens another session, under a new id.
type OpenSession struct{}

func (OpenSession) kind() opKind { return kindOpenSession }

func (OpenSession) validate() error { return nil }

func (OpenSession) apply(*State) Result { return Result{Code: CodeOK} }

func (o OpenSession) wire(*codec) Op { return o }

func validateID(id scstore.VolumeID) error {
	if id.IsZero() {
		return fmt.Errorf("volume id is zero: %w", scstore.ErrInvalid)
	}
	return nil
}

// validateFence checks a fence that was granted; the first is 1.
func validateFence(f scstore.Fence) error {
	if f == 0 || f >= maxCounter {
		return fmt.Errorf("fence %d is out of range: %w", f, scstore.ErrInvalid)
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

// validateTime checks a proposer's clock, in milliseconds since 1970.
func validateTime(ms int64) error {
	if ms < 0 {
		return fmt.Errorf("time %d ms before 1970: %w", -ms, scstore.ErrInvalid)
	}
	return nil
}

// validateAll returns the first error.
func validateAll(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
