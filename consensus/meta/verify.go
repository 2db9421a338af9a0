package meta

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"strings"

	"scstore"
)

// corruptf returns an error that wraps ErrCorrupt.
func corruptf(format string, args ...any) error {
	return fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), scstore.ErrCorrupt)
}

// verify checks the whole state; it costs as much as writing it.
func (s *State) verify() error {
	if s.group > maxCounter || s.applied > maxCounter || s.clockMs < 0 {
		return corruptf("group %d, %d commands applied, clock %d ms", s.group, s.applied, s.clockMs)
	}
	names := len(s.sites) + len(s.hosts) + len(s.tokens) + len(s.members) + len(s.entries)
	volumes := len(s.disks) + len(s.moves) + len(s.decided) + len(s.records)
	if !s.group.takes(scopeNames) && (names > 0 || s.cluster != Cluster{}) || !s.group.takes(scopeVolumes) && volumes > 0 {
		return corruptf("group %d with facts of another kind of group", s.group)
	}
	total := 0
	for id, v := range s.records {
		if err := s.checkRecord(v); err != nil {
			return fmt.Errorf("%v: %w", id, err)
		}
		c := codec{mode: counting}
		v.wire(&c)
		if c.count != v.encoded {
			return corruptf("%v: length %d, counted as %d", id, c.count, v.encoded)
		}
		total += c.count
	}
	if total != s.bytes {
		return corruptf("records of %d bytes, counted as %d", total, s.bytes)
	}
	for id, d := range s.disks {
		if id.validate() != nil || d.RemovedAt > s.applied || d.RemovedAt == 0 && d.Site.validate() != nil || d.Seq > maxCounter || d.Renewal > maxCounter {
			return corruptf("disk %q", id)
		}
	}
	return validateAll(s.checkMoves(), s.checkNames(), s.checkCluster(), s.checkSessions())
}

// checkRecord says what is wrong with a record.
func (s *State) checkRecord(v *volume) error {
	switch {
	case v.ID.IsZero() || v.Name != "" || v.Phase != 0:
		return corruptf("id, name or phase")
	case v.Kind < KindVolume || v.Kind > KindBranch:
		return corruptf("%v", v.Kind)
	case v.Life < Live || v.Life > Trash || v.Life == Trash && v.Kind != KindBranch:
		return corruptf("%v with life %d", v.Kind, v.Life)
	case validateSize(v.SizeBytes) != nil || v.CreatedAtMs < 0 || v.DeltaBytes < 0:
		return corruptf("size or time out of range")
	case v.Fence >= maxCounter || v.Head.Epoch > maxCounter || v.Head.Fence > v.Fence:
		return corruptf("fence %d, head %v", v.Fence, v.Head)
	case v.Head == scstore.Position{} && v.Parent != v.Head, v.Head != scstore.Position{} && v.Parent.Compare(v.Head) >= 0:
		return corruptf("head %v with parent %v", v.Head, v.Parent)
	case v.Kind != KindVolume && !v.immutable():
		return corruptf("%v with a volume's fields", v.Kind)
	case v.Life == Tombstone && len(v.snapshots)+len(v.pins)+len(v.tethers)+len(v.inSync) > 0:
		return corruptf("tombstone with roots")
	}
	return validateAll(s.checkBaseOf(v), v.checkPoints(), v.checkGrants(), s.checkReplicas(v), v.checkRoots(), s.checkRefs(v), s.checkForks(v), v.checkPlacement())
}

// immutable reports whether the record has nothing that only a volume has (I6).
func (v *volume) immutable() bool {
	if v.Head.Epoch == 0 || v.Holder != "" || v.revoked || !v.intent.IsZero() || len(v.points) != 1 ||
		len(v.grants)+len(v.inSync)+len(v.snapshots)+len(v.tethers)+len(v.forks) > 0 {
		return false
	}
	if v.Kind == KindImage {
		return v.Fence == v.Head.Fence && v.Base.IsZero() && v.DeltaBytes == 0
	}
	return !v.Base.IsZero() && v.BasePosition.Compare(v.Head) < 0 && v.Parent == v.BasePosition
}

// checkBaseOf checks what a record is based on (I3).
func (s *State) checkBaseOf(v *volume) error {
	if v.Base.IsZero() {
		if v.BasePosition != (scstore.Position{}) {
			return corruptf("base position without a base")
		}
		return nil
	}
	base := s.records[v.Base]
	if base == nil {
		if s.group == GroupAll || v.Kind == KindBranch {
			return corruptf("base %v is not there", v.Base)
		}
		return nil
	}
	ref := base.ref(v.ID)
	switch {
	case ref == nil || ref.Position != v.BasePosition:
		return corruptf("base %v does not refer to it at %v", v.Base, v.BasePosition)
	case v.Kind == KindBranch:
		return nil
	}
	size, ok := base.cloneable(v.BasePosition)
	if !ok || base.Life == Tombstone || size > v.SizeBytes {
		return corruptf("base %v at %v is no image or snapshot, or larger", v.Base, v.BasePosition)
	}
	return nil
}

// checkPoints checks the history that is kept (I5).
func (v *volume) checkPoints() error {
	var last, head, left scstore.Position
	var newest *Point
	for i := range v.points {
		p := &v.points[i]
		switch {
		case p.Position.Epoch == 0 || p.Position.Epoch > maxCounter || i > 0 && p.Position.Compare(last) <= 0:
			return corruptf("position %v after %v", p.Position, last)
		case p.Parent.Compare(p.Position) >= 0 || p.Content.Compare(p.Position) >= 0:
			return corruptf("position %v with parent %v, content of %v", p.Position, p.Parent, p.Content)
		case p.Line == 0 && p.Parent.Compare(head) < 0:
			return corruptf("position %v follows %v, not %v", p.Position, p.Parent, head)
		}
		last = p.Position
		if p.Line == 0 {
			head, newest = p.Position, p
			continue
		}
		left = p.Position
		fork, _ := find(v.forks, p.Line, compareFork)
		if p.Line >= v.Fence || fork == nil || p.Position.Compare(fork.Position) <= 0 {
			return corruptf("position %v left with fence %d, without a fork before it", left, p.Line)
		}
	}
	switch {
	case head != v.Head:
		return corruptf("head %v, history ends at %v", v.Head, head)
	case newest != nil && (newest.Parent != v.Parent || newest.Digest != v.Digest):
		return corruptf("head %v differs from the history's end", v.Head)
	}
	return nil
}

// checkGrants checks that each fence begins where the one before it ends (I4).
func (v *volume) checkGrants() error {
	if v.Fence == 0 && (v.Holder != "" || len(v.grants) > 0) {
		return corruptf("holder %q without a fence", v.Holder)
	}
	if v.revoked && (v.Holder != "" || len(v.grants) == 0) {
		return corruptf("revoked, and held by %q", v.Holder)
	}
	for i, g := range v.grants {
		if i > 0 && g.Fence != v.grants[i-1].Fence+1 {
			return corruptf("fence %d granted after %d", g.Fence, v.grants[i-1].Fence)
		}
		for _, p := range v.points {
			if p.Line == 0 && (p.Position.Fence < g.Fence) != (p.Position.Compare(g.Start) <= 0) {
				return corruptf("position %v, but fence %d was granted at %v", p.Position, g.Fence, g.Start)
			}
		}
	}
	if n := len(v.grants); n > 0 && (v.grants[n-1].Fence != v.Fence || v.grants[n-1].Holder != v.Holder) {
		return corruptf("fence %d of %q, last granted %d to %q", v.Fence, v.Holder, v.grants[n-1].Fence, v.grants[n-1].Holder)
	}
	return nil
}

// checkReplicas checks what disks hold (I8, I9).
func (s *State) checkReplicas(v *volume) error {
	if !rising(v.replicas, func(a, b replica) int { return cmp.Compare(a.Disk, b.Disk) }) || len(v.replicas) > MaxReplicas {
		return corruptf("replicas are not in order")
	}
	for i := range v.replicas {
		r := &v.replicas[i]
		if r.Disk == "" || s.removed(r.Disk) || !rising(r.Holds, comparePositions) {
			return corruptf("replica of disk %q", r.Disk)
		}
		for _, at := range r.Holds {
			if v.point(at) == nil || at != v.newest(r) && !v.isRoot(at) {
				return corruptf("disk %q holds %v, which is not kept", r.Disk, at)
			}
		}
		if r.Partial != (scstore.Position{}) && v.point(r.Partial) == nil {
			return corruptf("disk %q is partial at %v, which is not kept", r.Disk, r.Partial)
		}
	}
	if v.Life == Live && v.Holder != "" && !s.removed(v.Holder) && v.Head != (scstore.Position{}) && len(v.tethers) == 0 && !v.completeAt(v.Holder, v.Head) {
		return corruptf("holder %q lacks data, and no hand-off keeps them", v.Holder)
	}
	return nil
}

// checkRoots checks that what is to be kept alive is in the history (I8).
func (v *volume) checkRoots() error {
	for _, at := range v.rootPositions() {
		if v.point(at) == nil {
			return corruptf("root %v is not in the history", at)
		}
	}
	if !rising(v.snapshots, func(a, b Snap) int { return strings.Compare(a.Name, b.Name) }) || len(v.snapshots) > MaxSnapshots {
		return corruptf("snapshots are not in order")
	}
	for _, snap := range v.snapshots {
		if validateSnapshot(snap.Name) != nil || snap.Position.Epoch == 0 || validateSize(snap.SizeBytes) != nil || snap.SizeBytes > v.SizeBytes || snap.CreatedAtMs < 0 {
			return corruptf("snapshot %q", snap.Name)
		}
	}
	if !rising(v.pins, func(a, b Pin) int { return bytes.Compare(a.ID[:], b.ID[:]) }) || len(v.pins) > MaxPins {
		return corruptf("pins are not in order")
	}
	for _, p := range v.pins {
		if p.ID == (PinID{}) || p.Kind != PinRead && p.Kind != PinJump || p.Position.Epoch == 0 || p.Disk == "" || p.DeadlineMs < 0 {
			return corruptf("pin %x", p.ID)
		}
	}
	for _, at := range v.tethers {
		if p := v.point(at); p == nil || p.Line != 0 {
			return corruptf("hand-off's position %v is not in the history", at)
		}
	}
	if !rising(v.tethers, comparePositions) || len(v.tethers) > MaxTethers {
		return corruptf("hand-offs' positions are not in order")
	}
	return nil
}

// checkRefs checks the references of clones (I3).
func (s *State) checkRefs(v *volume) error {
	if !rising(v.refs, func(a, b Ref) int { return bytes.Compare(a.Clone[:], b.Clone[:]) }) || len(v.refs) > MaxRefs {
		return corruptf("references are not in order")
	}
	for _, r := range v.refs {
		clone := s.records[r.Clone]
		branch := clone != nil && clone.Kind == KindBranch
		zero := r.Position == scstore.Position{}
		switch {
		case r.Clone.IsZero() || r.Clone == v.ID || r.AddedAtMs < 0 || r.Group == GroupNamespace || r.Group > maxCounter || zero && !branch:
			return corruptf("reference of %v", r.Clone)
		case clone != nil && clone.Base == v.ID && clone.BasePosition != r.Position:
			return corruptf("reference of %v at %v, which is based on %v", r.Clone, r.Position, clone.BasePosition)
		case v.Life == Tombstone && !branch:
			return corruptf("tombstone is the base of %v", r.Clone)
		}
		if _, ok := v.cloneable(r.Position); !ok && !branch {
			return corruptf("reference of %v at %v, which is no snapshot", r.Clone, r.Position)
		}
	}
	return nil
}

// checkForks checks where revoked fences left the history (I10).
func (s *State) checkForks(v *volume) error {
	if !rising(v.forks, func(a, b Fork) int { return cmp.Compare(a.Fence, b.Fence) }) || len(v.forks) > MaxForks {
		return corruptf("forks are not in order")
	}
	for _, f := range v.forks {
		switch {
		case f.Fence == 0 || f.Fence >= v.Fence || f.Left.Compare(f.Position) < 0 || f.Loss.validate() != nil:
			return corruptf("fork of fence %d at %v, left %v", f.Fence, f.Position, f.Left)
		case f.Waiting && (f.Owner == "" || s.removed(f.Owner)):
			return corruptf("fork of fence %d waits for disk %q", f.Fence, f.Owner)
		}
	}
	return nil
}

// checkPlacement checks the policy and the in-sync set.
func (v *volume) checkPlacement() error {
	p := v.placement
	if none := len(p.Sites) == 0 && p.Mode == 0 && p.Failover == 0 && p.MaxLagMs == 0; !none && p.validate() != nil {
		return corruptf("placement %+v", p)
	}
	if len(v.inSync) > 0 && p.Mode != ModeSync || !rising(v.inSync, compareSite) {
		return corruptf("in-sync set %v of mode %d", v.inSync, p.Mode)
	}
	for _, site := range v.inSync {
		if !slices.Contains(p.Sites, site) {
			return corruptf("site %q is in sync and not placed", site)
		}
	}
	return nil
}

// checkMoves checks the hand-offs: a volume is in at most one, and one that was
// decided is intended no more (I11).
func (s *State) checkMoves() error {
	for id, v := range s.records {
		if v.intent.IsZero() {
			continue
		}
		m := s.moves[v.intent]
		if m == nil || m.From != v.Holder || v.Life != Live || !slices.Contains(m.Volumes, id) {
			return corruptf("%v: no such move %v", id, v.intent)
		}
	}
	for h, m := range s.moves {
		if m.validate() != nil || s.decided[h] != nil || s.disks[m.To] == nil || s.removed(m.To) || s.removed(m.From) {
			return corruptf("move %v", h)
		}
		for _, id := range m.Volumes {
			if v := s.records[id]; v == nil || v.intent != h {
				return corruptf("move %v of %v, which does not know of it", h, id)
			}
		}
	}
	for h, d := range s.decided {
		if h.IsZero() || d.Outcome < OutcomeHandedOff || d.Outcome > OutcomeDropped || d.At > s.applied || d.From == "" || d.To == "" ||
			!rising(d.Volumes, func(a, b MovedVolume) int { return bytes.Compare(a.ID[:], b.ID[:]) }) {
			return corruptf("decision %v", h)
		}
	}
	return nil
}
