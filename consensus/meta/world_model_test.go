package meta_test

import (
	"maps"
	"slices"

	"scstore"
	"scstore/consensus/meta"
)

// twin is a group of volumes written the dumb way: sets and maps, searched whole,
// and the parent of every position that was ever committed.
type twin struct {
	clock    int64
	volumes  map[scstore.VolumeID]*twinVolume
	reported map[meta.DiskID]uint64
	moves    map[meta.HandOffID]meta.Move
	decided  map[meta.HandOffID]meta.Outcome
	branches map[scstore.VolumeID]meta.RegisterBranch
}

type twinPoint struct {
	parent scstore.Position
	digest scstore.Digest
	left   bool // by a promote
}

type twinFork struct {
	owner   meta.DiskID
	at      scstore.Position
	waiting bool
}

type twinVolume struct {
	parents map[scstore.Position]scstore.Position // of every position, for ever
	points  map[scstore.Position]twinPoint        // those that are known
	head    scstore.Position
	fence   scstore.Fence
	holder  meta.DiskID
	revoked bool
	move    meta.HandOffID
	start   map[scstore.Fence]scstore.Position
	holds   map[meta.DiskID]map[scstore.Position]bool
	partial map[meta.DiskID]scstore.Position
	snaps   map[string]scstore.Position
	pins    map[meta.PinID]meta.Pin
	tethers []scstore.Position
	forks   map[scstore.Fence]*twinFork
	refs    []scstore.Position
}

var zero scstore.Position

func newTwin() *twin {
	return &twin{
		volumes: map[scstore.VolumeID]*twinVolume{}, reported: map[meta.DiskID]uint64{}, moves: map[meta.HandOffID]meta.Move{},
		decided: map[meta.HandOffID]meta.Outcome{}, branches: map[scstore.VolumeID]meta.RegisterBranch{},
	}
}

func newTwinVolume() *twinVolume {
	return &twinVolume{
		parents: map[scstore.Position]scstore.Position{}, points: map[scstore.Position]twinPoint{}, start: map[scstore.Fence]scstore.Position{},
		holds: map[meta.DiskID]map[scstore.Position]bool{}, partial: map[meta.DiskID]scstore.Position{}, snaps: map[string]scstore.Position{},
		pins: map[meta.PinID]meta.Pin{}, forks: map[scstore.Fence]*twinFork{},
	}
}

// roots returns how many reasons of each kind keep each position.
func (v *twinVolume) roots() map[meta.RootKind][]scstore.Position {
	r := map[meta.RootKind][]scstore.Position{}
	add := func(kind meta.RootKind, at scstore.Position) {
		if at != zero {
			r[kind] = append(r[kind], at)
		}
	}
	add(meta.RootHead, v.head)
	for _, at := range v.snaps {
		add(meta.RootSnapshot, at)
	}
	for _, p := range v.pins {
		add(map[meta.PinKind]meta.RootKind{meta.PinRead: meta.RootRead, meta.PinJump: meta.RootJump}[p.Kind], p.Position)
	}
	for _, at := range v.tethers {
		add(meta.RootTether, at)
	}
	for _, at := range v.refs {
		add(meta.RootClone, at)
	}
	for _, f := range v.forks {
		if f.waiting {
			add(meta.RootFork, f.at)
		}
	}
	for _, list := range r {
		slices.SortFunc(list, scstore.Position.Compare)
	}
	return r
}

func (v *twinVolume) kept(at scstore.Position) bool {
	for _, list := range v.roots() {
		if slices.Contains(list, at) {
			return true
		}
	}
	return false
}

// newest returns the newest position of the history that a disk holds.
func (v *twinVolume) newest(d meta.DiskID) (best scstore.Position) {
	for at := range v.holds[d] {
		if p, known := v.points[at]; known && !p.left && at.Compare(best) > 0 {
			best = at
		}
	}
	return best
}

func (v *twinVolume) hold(d meta.DiskID, at scstore.Position) {
	if v.holds[d] == nil {
		v.holds[d] = map[scstore.Position]bool{}
	}
	v.holds[d][at] = true
	if v.partial[d].Compare(at) <= 0 {
		delete(v.partial, d)
	}
}

// forget drops what nothing refers to.
func (v *twinVolume) forget() {
	for d, list := range v.holds {
		newest := v.newest(d)
		maps.DeleteFunc(list, func(at scstore.Position, _ bool) bool { return at != newest && !v.kept(at) })
	}
	var history []scstore.Position
	for at, p := range v.points {
		if !p.left {
			history = append(history, at)
		}
	}
	slices.SortFunc(history, scstore.Position.Compare)
	history = history[max(0, len(history)-meta.MaxRecent):]
	maps.DeleteFunc(v.points, func(at scstore.Position, _ twinPoint) bool {
		for _, list := range v.holds {
			if list[at] {
				return false
			}
		}
		for _, partial := range v.partial {
			if partial == at {
				return false
			}
		}
		return !v.kept(at) && !slices.Contains(history, at)
	})
}

func (v *twinVolume) fenceCode(f scstore.Fence) meta.Code {
	switch {
	case f < v.fence:
		return meta.CodeFenced
	case f > v.fence:
		return meta.CodeNotGranted
	case v.revoked:
		return meta.CodeRevoked
	}
	return meta.CodeOK
}

func (v *twinVolume) add(at, parent scstore.Position, digest scstore.Digest) {
	if v.head == zero || v.holds[v.holder][v.head] {
		v.hold(v.holder, at)
	} else {
		v.partial[v.holder] = at
	}
	v.points[at] = twinPoint{parent: parent, digest: digest}
	v.parents[at] = parent
	v.head = at
}

func (v *twinVolume) grant(d meta.DiskID) {
	v.fence++
	v.holder = d
	v.start[v.fence] = v.head
}

func (v *twinVolume) tether(d meta.DiskID) {
	if v.head == zero || v.holds[d][v.head] {
		v.tethers = nil
		return
	}
	if !slices.Contains(v.tethers, v.head) {
		v.tethers = append(v.tethers, v.head)
	}
	v.partial[d] = v.head
}

// ancestor walks from q back.
func (v *twinVolume) ancestor(p, q scstore.Position) bool {
	for q != p && q != zero {
		q = v.parents[q]
	}
	return q == p
}

func (w *twin) decide(h meta.HandOffID, outcome meta.Outcome) {
	for _, id := range w.moves[h].Volumes {
		w.volumes[id].move = meta.HandOffID{}
	}
	delete(w.moves, h)
	w.decided[h] = outcome
}

// apply returns the code and outcome that the operation must have.
func (w *twin) apply(op meta.Op) (meta.Code, meta.Outcome) {
	code, outcome := w.run(op)
	for _, v := range w.volumes {
		v.forget()
	}
	return code, outcome
}

func (w *twin) run(op meta.Op) (meta.Code, meta.Outcome) {
	switch o := op.(type) {
	case meta.Intent:
		return w.intent(o)
	case meta.DropIntent:
		return w.end(o.ID, meta.OutcomeDropped, func(meta.Move) meta.Code { return meta.CodeOK })
	case meta.Cancel:
		return w.end(o.ID, meta.OutcomeCancelled, func(m meta.Move) meta.Code {
			for _, id := range m.Volumes {
				w.volumes[id].grant(m.From)
			}
			return meta.CodeOK
		})
	case meta.HandOff:
		return w.end(o.ID, meta.OutcomeHandedOff, func(m meta.Move) meta.Code { return w.handOff(m, o) })
	case meta.Expire:
		w.clock = max(w.clock, o.NowMs)
		for h, m := range w.moves {
			if m.DeadlineMs <= w.clock {
				w.decide(h, meta.OutcomeDropped)
			}
		}
		for _, v := range w.volumes {
			maps.DeleteFunc(v.pins, func(_ meta.PinID, p meta.Pin) bool { return p.DeadlineMs <= w.clock })
		}
		return meta.CodeOK, 0
	case meta.Ack:
		return w.ack(o.Disk, o.Seq, o.Items[0]), 0
	case meta.Release:
		return w.release(o), 0
	case meta.RegisterBranch:
		return w.register(o), 0
	}
	return w.onVolume(op), 0
}

// end decides a move, if it is open and do agrees.
func (w *twin) end(h meta.HandOffID, outcome meta.Outcome, do func(meta.Move) meta.Code) (meta.Code, meta.Outcome) {
	m, open := w.moves[h]
	code := meta.CodeNoIntent
	if open {
		if code = do(m); code == meta.CodeOK {
			w.decide(h, outcome)
		}
	}
	decided, known := w.decided[h]
	switch {
	case !known:
		return code, 0
	case decided == outcome:
		return meta.CodeOK, decided
	}
	return lost(decided), decided
}

// lost is the code for who wanted another outcome.
func lost(o meta.Outcome) meta.Code {
	return map[meta.Outcome]meta.Code{
		meta.OutcomeHandedOff: meta.CodeHandedOff, meta.OutcomeCancelled: meta.CodeCancelled, meta.OutcomeDropped: meta.CodeDropped,
	}[o]
}

func (w *twin) intent(o meta.Intent) (meta.Code, meta.Outcome) {
	w.clock = max(w.clock, o.NowMs)
	if decided, known := w.decided[o.ID]; known {
		return lost(decided), decided
	}
	if m, open := w.moves[o.ID]; open {
		if m.From != o.From || m.To != o.To || !slices.Equal(m.Volumes, o.Volumes) {
			return meta.CodeIDTaken, 0
		}
		m.DeadlineMs = max(m.DeadlineMs, o.DeadlineMs)
		w.moves[o.ID] = m
		return meta.CodeOK, 0
	}
	if o.DeadlineMs <= w.clock {
		return meta.CodeExpired, 0
	}
	for _, id := range o.Volumes {
		switch v := w.volumes[id]; {
		case v.revoked:
			return meta.CodeRevoked, 0
		case !v.move.IsZero():
			return meta.CodeMoving, 0
		case v.holder != o.From:
			return meta.CodeHeld, 0
		}
	}
	for _, id := range o.Volumes {
		w.volumes[id].move = o.ID
	}
	w.moves[o.ID] = o.Move
	return meta.CodeOK, 0
}

func (w *twin) handOff(m meta.Move, o meta.HandOff) meta.Code {
	if o.To != m.To || len(o.Volumes) != len(m.Volumes) {
		return meta.CodeBadMove
	}
	for i, h := range o.Volumes {
		if h.ID != m.Volumes[i] {
			return meta.CodeBadMove
		}
		v := w.volumes[h.ID]
		if code := v.fenceCode(h.Fence); code != meta.CodeOK {
			return code
		}
		same := h.Final == v.head && v.points[v.head] == twinPoint{parent: h.Parent, digest: h.Digest}
		next := h.Parent == v.head && h.Final.Fence == h.Fence && h.Final.Compare(v.head) > 0
		if !same && !next {
			return meta.CodeBadParent
		}
	}
	for _, h := range o.Volumes {
		v := w.volumes[h.ID]
		if h.Final != v.head {
			v.add(h.Final, h.Parent, h.Digest)
		}
		v.grant(o.To)
		v.tether(o.To)
	}
	return meta.CodeOK
}

func (w *twin) report(d meta.DiskID, seq uint64) bool {
	if seq <= w.reported[d] {
		return false
	}
	w.reported[d] = seq
	return true
}

func (w *twin) ack(d meta.DiskID, seq uint64, item meta.AckItem) meta.Code {
	if !w.report(d, seq) {
		return meta.CodeStale
	}
	v := w.volumes[item.ID]
	p, known := v.points[item.Position]
	switch {
	case !known:
		return meta.CodeUnknownPosition
	case p.left && (!item.Complete || !v.kept(item.Position)):
		return meta.CodeLeftOut
	case !item.Complete:
		if item.Position.Compare(v.newest(d)) > 0 {
			v.partial[d] = item.Position
		}
		return meta.CodeOK
	}
	v.hold(d, item.Position)
	if n := len(v.tethers); n > 0 && d == v.holder && !p.left && item.Position.Compare(v.tethers[n-1]) >= 0 {
		v.tethers = nil
		v.hold(d, v.head)
	}
	return meta.CodeOK
}

func (w *twin) release(o meta.Release) meta.Code {
	if !w.report(o.Disk, o.Seq) {
		return meta.CodeStale
	}
	v := w.volumes[o.ID]
	if v.partial[o.Disk] == o.Position && o.Disk != v.holder {
		delete(v.partial, o.Disk)
	}
	if !v.holds[o.Disk][o.Position] {
		return meta.CodeOK
	}
	if v.holder == o.Disk && o.Position == v.head {
		return meta.CodeHolder
	}
	others := 0
	for d, list := range v.holds {
		if d != o.Disk && list[o.Position] {
			others++
		}
	}
	if others == 0 && v.kept(o.Position) {
		return meta.CodeLastCopy
	}
	delete(v.holds[o.Disk], o.Position)
	return meta.CodeOK
}

func (w *twin) register(o meta.RegisterBranch) meta.Code {
	if known, ok := w.branches[o.Branch]; ok {
		if known.ID == o.ID && known.Fork == o.Fork && known.Head == o.Head && known.Digest == o.Digest {
			return meta.CodeOK
		}
		return meta.CodeIDTaken
	}
	v := w.volumes[o.ID]
	f := v.forks[o.Fence]
	if f == nil || !f.waiting || f.owner != o.Disk || f.at != o.Fork || v.revoked && o.Fence == v.fence-1 {
		return meta.CodeNoFork
	}
	f.waiting = false
	v.refs = append(v.refs, o.Fork)
	w.branches[o.Branch] = o
	return meta.CodeOK
}

func (w *twin) onVolume(op meta.Op) meta.Code {
	switch o := op.(type) {
	case meta.CommitEpoch:
		return w.volumes[o.ID].commit(o)
	case meta.OpenFence:
		v := w.volumes[o.ID]
		switch {
		case v.revoked:
			return meta.CodeRevoked
		case v.holder != "" && v.holder != o.Holder:
			return meta.CodeHeld
		case !v.move.IsZero():
			return meta.CodeMoving
		}
		v.grant(o.Holder)
	case meta.Snapshot:
		v := w.volumes[o.ID]
		at, taken := v.snaps[o.Name]
		switch {
		case taken && at == o.Position:
		case taken:
			return meta.CodeSnapshotTaken
		case !v.move.IsZero():
			return meta.CodeMoving
		case !v.kept(o.Position):
			return meta.CodeNotKept
		case v.points[o.Position].left:
			return meta.CodeLeftOut
		case !v.held(o.Position):
			return meta.CodeIncomplete
		}
		v.snaps[o.Name] = o.Position
	case meta.DeleteSnapshot:
		v := w.volumes[o.ID]
		at, known := v.snaps[o.Name]
		switch {
		case !known:
			return meta.CodeNoSnapshot
		case slices.Contains(v.refs, at):
			return meta.CodeInUse
		}
		delete(v.snaps, o.Name)
	case meta.PutPin:
		w.clock = max(w.clock, o.NowMs)
		return w.volumes[o.ID].pin(o.Pin, w.clock)
	case meta.DropPin:
		delete(w.volumes[o.ID].pins, o.Pin)
	case meta.Revoke:
		return w.revoke(w.volumes[o.ID], o.Fence)
	case meta.Promote:
		return w.volumes[o.ID].promote(o)
	case meta.ReportNoBranch:
		v := w.volumes[o.ID]
		if f := v.forks[o.Fence]; f != nil && f.waiting && f.owner == o.Disk {
			if v.revoked && o.Fence == v.fence-1 {
				return meta.CodeNoFork
			}
			f.waiting = false
		}
	default:
		panic("operation that the model does not know")
	}
	return meta.CodeOK
}

func (v *twinVolume) commit(o meta.CommitEpoch) meta.Code {
	at := scstore.Position{Fence: o.Fence, Epoch: o.Epoch}
	if p, known := v.points[at]; known && p == (twinPoint{parent: o.Parent, digest: o.Digest}) {
		return meta.CodeOK
	}
	if code := v.fenceCode(o.Fence); code != meta.CodeOK {
		return code
	}
	if o.Parent != v.head || at.Compare(v.head) <= 0 {
		return meta.CodeBadParent
	}
	v.add(at, o.Parent, o.Digest)
	return meta.CodeOK
}

func (v *twinVolume) pin(p meta.Pin, clock int64) meta.Code {
	if p.DeadlineMs <= clock {
		return meta.CodeExpired
	}
	if known, ok := v.pins[p.ID]; ok {
		if known.Kind != p.Kind || known.Position != p.Position || known.Disk != p.Disk {
			return meta.CodeIDTaken
		}
		p.DeadlineMs = max(p.DeadlineMs, known.DeadlineMs)
	} else if !v.kept(p.Position) {
		return meta.CodeNotKept
	} else if !v.held(p.Position) {
		return meta.CodeIncomplete
	}
	v.pins[p.ID] = p
	return meta.CodeOK
}

// held reports whether a disk holds all of the volume at a position.
func (v *twinVolume) held(at scstore.Position) bool {
	for _, list := range v.holds {
		if list[at] {
			return true
		}
	}
	return false
}

func (w *twin) revoke(v *twinVolume, f scstore.Fence) meta.Code {
	switch {
	case v.revoked && v.fence == f+1:
		return meta.CodeOK
	case f != v.fence:
		return v.fenceCode(f)
	case v.revoked:
		return meta.CodeRevoked
	}
	if !v.move.IsZero() {
		w.decide(v.move, meta.OutcomeDropped)
	}
	if v.holder != "" {
		v.forks[f] = &twinFork{owner: v.holder, at: v.head, waiting: true}
	}
	v.grant("")
	v.revoked = true
	return meta.CodeOK
}

func (v *twinVolume) promote(o meta.Promote) meta.Code {
	if !v.revoked && v.fence == o.Fence && v.holder == o.Holder && v.start[o.Fence] == o.Position {
		return meta.CodeOK
	}
	switch code := v.fenceCode(o.Fence); code {
	case meta.CodeOK:
		return meta.CodeNotRevoked
	case meta.CodeRevoked:
	default:
		return code
	}
	if o.Position != zero || v.head != zero {
		p, known := v.points[o.Position]
		switch {
		case !known:
			return meta.CodeUnknownPosition
		case p.left:
			return meta.CodeLeftOut
		case !v.held(o.Position):
			return meta.CodeIncomplete
		}
	}
	for at, p := range v.points {
		if !p.left && at.Compare(o.Position) > 0 {
			p.left = true
			v.points[at] = p
		}
	}
	maps.DeleteFunc(v.pins, func(_ meta.PinID, p meta.Pin) bool {
		return p.Kind == meta.PinJump && p.Position.Compare(o.Position) > 0
	})
	maps.DeleteFunc(v.partial, func(_ meta.DiskID, at scstore.Position) bool { return at.Compare(o.Position) > 0 })
	if f := v.forks[o.Fence-1]; f != nil {
		f.at = o.Position
	}
	v.head, v.holder, v.revoked, v.tethers = o.Position, o.Holder, false, nil
	v.start[o.Fence] = o.Position
	v.tether(o.Holder)
	return meta.CodeOK
}
