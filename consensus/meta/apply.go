package meta

import (
	"scstore"
	"scstore/internal/invariant"
)

// Apply runs one command and returns its outcome, which depends on the state and
// the command alone. A refused command changes no record.
//
// step W7 (CommitEpoch)
func (s *State) Apply(c Command) Result {
	s.applied++
	result := s.applyOnce(c)
	if invariant.Enabled {
		err := s.verify()
		invariant.Check(err == nil, "state after %+v: %v", c, err)
	}
	return result
}

// applyOnce runs the command unless its session has run it before (I7).
func (s *State) applyOnce(c Command) Result {
	if c.Validate() != nil {
		return Result{Code: CodeInvalid}
	}
	if _, opens := c.Op.(OpenSession); opens {
		s.openSession(c.ID.Client)
		return Result{Code: CodeOK}
	}
	if c.ID.IsZero() {
		return c.Op.apply(s)
	}
	ses := s.sessions[c.ID.Client]
	if ses == nil {
		return Result{Code: CodeSessionExpired}
	}
	ses.lastUsed = s.applied
	if result, known := ses.result(c.ID.Seq); known {
		return result
	}
	result := c.Op.apply(s)
	ses.record(c.ID.Seq, result)
	return result
}

func (OpenSession) apply(*State) Result { return Result{Code: CodeOK} }

func (o CreateVolume) apply(s *State) Result {
	if code := s.checkNew(o.ID, o.Name); code != CodeOK {
		return Result{Code: code}
	}
	if !o.Base.IsZero() {
		if code := s.checkBase(o.Base, o.BasePosition, o.SizeBytes); code != CodeOK {
			return Result{Code: code}
		}
	}
	s.insert(&Record{
		ID: o.ID, Kind: KindVolume, Life: Live, Name: o.Name, SizeBytes: o.SizeBytes,
		Base: o.Base, BasePosition: o.BasePosition, CreatedAtMs: o.CreatedAtMs,
	})
	return Result{Code: CodeOK, ID: o.ID}
}

func (o CreateImage) apply(s *State) Result {
	if code := s.checkNew(o.ID, o.Name); code != CodeOK {
		return Result{Code: code}
	}
	s.insert(&Record{
		ID: o.ID, Kind: KindImage, Life: Live, Name: o.Name, SizeBytes: o.SizeBytes,
		Fence: o.Position.Fence, Head: o.Position, Digest: o.Digest, CreatedAtMs: o.CreatedAtMs,
	})
	return Result{Code: CodeOK, ID: o.ID, Position: o.Position}
}

func (s *State) checkNew(id scstore.VolumeID, name string) Code {
	if s.records[id] != nil {
		return CodeIDTaken
	}
	if len(s.records) >= MaxRecords {
		return CodeLimit
	}
	return s.checkName(name)
}

func (o Remove) apply(s *State) Result {
	id, missing := o.ID, CodeNoVolume
	if o.Name != "" {
		id, missing = s.names[o.Name], CodeNoName
	}
	r := s.live(id)
	if r == nil {
		return Result{Code: missing}
	}
	if s.clones[id] > 0 {
		return Result{Code: CodeInUse, ID: id}
	}
	s.unlink(r)
	r.Name, r.Life = "", Tombstone
	return Result{Code: CodeOK, ID: id}
}

func (o Forget) apply(s *State) Result {
	r := s.records[o.ID]
	switch {
	case r == nil:
		return Result{Code: CodeNoVolume}
	case r.Life != Tombstone:
		return Result{Code: CodeNotRemoved, ID: o.ID}
	}
	invariant.Check(s.clones[o.ID] == 0, "forget %v: %d records are based on it", o.ID, s.clones[o.ID])
	delete(s.records, o.ID)
	if !r.Base.IsZero() {
		decrement(s.clones, r.Base)
	}
	return Result{Code: CodeOK, ID: o.ID}
}

func (o Rename) apply(s *State) Result {
	id, ok := s.names[o.From]
	if !ok {
		return Result{Code: CodeNoName}
	}
	r := s.records[id]
	s.unlink(r) // "a" may become "a/b"
	code := s.checkName(o.To)
	if code == CodeOK {
		r.Name = o.To
	}
	s.link(r)
	return Result{Code: code, ID: id}
}

func (o OpenFence) apply(s *State) Result {
	r := s.live(o.ID)
	switch {
	case r == nil:
		return Result{Code: CodeNoVolume}
	case r.Kind == KindImage:
		return Result{Code: CodeImage, ID: o.ID}
	case r.Fence >= maxCounter:
		return Result{Code: CodeLimit, ID: o.ID}
	}
	r.Fence++
	r.Holder = o.Holder
	return Result{Code: CodeOK, ID: o.ID, Fence: r.Fence, Position: r.Head}
}

func (o CommitEpoch) apply(s *State) Result {
	r := s.live(o.ID)
	if r == nil {
		return Result{Code: CodeNoVolume}
	}
	next := scstore.Position{Fence: o.Fence, Epoch: o.Epoch}
	switch {
	case r.Kind == KindImage:
		return Result{Code: CodeImage, ID: o.ID}
	case o.Fence < r.Fence:
		return Result{Code: CodeFenced, ID: o.ID, Fence: r.Fence, Position: r.Head}
	case o.Fence > r.Fence:
		return Result{Code: CodeNotGranted, ID: o.ID, Fence: r.Fence, Position: r.Head}
	case r.Head == next && r.Parent == o.Parent && r.Digest == o.Digest:
		return Result{Code: CodeOK, ID: o.ID, Fence: r.Fence, Position: r.Head}
	case o.Parent != r.Head || next.Compare(r.Head) <= 0:
		return Result{Code: CodeBadParent, ID: o.ID, Fence: r.Fence, Position: r.Head}
	}
	r.Parent, r.Head, r.Digest = r.Head, next, o.Digest
	return Result{Code: CodeOK, ID: o.ID, Fence: r.Fence, Position: r.Head}
}

func (o Resize) apply(s *State) Result {
	r := s.live(o.ID)
	switch {
	case r == nil:
		return Result{Code: CodeNoVolume}
	case r.Kind == KindImage:
		return Result{Code: CodeImage, ID: o.ID}
	case o.SizeBytes < r.SizeBytes:
		return Result{Code: CodeShrink, ID: o.ID}
	}
	r.SizeBytes = o.SizeBytes
	return Result{Code: CodeOK, ID: o.ID}
}
