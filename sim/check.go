package sim

import (
	"bytes"
	"slices"

	"scstore"
	"scstore/consensus/meta"
)

// spot is a position of a volume.
type spot struct {
	id scstore.VolumeID
	at scstore.Position
}

// tenure is a fence of a volume.
type tenure struct {
	id    scstore.VolumeID
	fence scstore.Fence
}

// line is what a client knows that writes under one fence.
type line struct {
	acked    content
	flushed  content
	writes   []put // acknowledged since
	total    int   // writes in all, those of flushed included
	owner    *host // who serves under the fence, nil for nobody yet
	closed   bool  // the next fence was granted by hand-off or cancel
	revoked  bool
	fork     scstore.Position // where a forced promote left it
	promoted bool             // fork is known
	kept     bool             // the owner's disk has it: it was served, or goes on from what was
}

// checker follows the log, and what hosts do, and compares with what was promised.
type checker struct {
	w        *World
	ref      *meta.State // has applied the whole log
	last     map[scstore.VolumeID]meta.Record
	truth    map[spot]content
	lines    map[tenure]*line
	history  map[scstore.VolumeID][]scstore.Position
	promises map[*host]map[scstore.VolumeID]scstore.Fence
	pins     []readPin
	removed  bool // the disk that is lost is out of the group
}

type readPin struct {
	id         meta.PinID
	spot       spot
	deadlineMs int64
}

func newChecker(w *World) *checker {
	return &checker{
		w: w, ref: w.newState(), last: map[scstore.VolumeID]meta.Record{}, truth: map[spot]content{}, lines: map[tenure]*line{},
		history: map[scstore.VolumeID][]scstore.Position{}, promises: map[*host]map[scstore.VolumeID]scstore.Fence{},
	}
}

// at returns what a volume holds at a position.
func (k *checker) at(id scstore.VolumeID, at scstore.Position) content {
	if at != (scstore.Position{}) {
		return k.truth[spot{id, at}]
	}
	if r, ok := k.ref.Get(id); ok && !r.Base.IsZero() {
		return k.truth[spot{r.Base, r.BasePosition}]
	}
	return content{}
}

// whole returns an image with what it lacks.
func (k *checker) whole(id scstore.VolumeID, m image) content {
	m.fill(m.base, k.at(id, m.base))
	return m.data
}

// committed follows the log by one entry.
func (k *checker) committed(c meta.Command) {
	r := k.ref.Apply(c)
	k.w.say("log %d: %T%+v: %s", len(k.w.log.entries), c.Op, c.Op, r.Code)
	if r.Code == meta.CodeOK {
		k.pinned(c.Op)
	}
	for _, id := range k.w.volumes {
		now, ok := k.ref.Get(id)
		if !ok || now.Life != meta.Live {
			continue
		}
		if last := k.last[id]; now.Head != last.Head || now.Fence != last.Fence || now.Holder != last.Holder {
			k.moved(c.Op, last, now)
		}
		k.last[id] = now
	}
}

// moved checks one volume's step: one history, and each grant where the one before it
// ends.
func (k *checker) moved(op meta.Op, last, now meta.Record) {
	id := now.ID
	promote, promoted := op.(meta.Promote)
	history := k.history[id]
	switch {
	case now.Head == last.Head:
	case promoted && promote.ID == id:
		i := slices.Index(history, now.Head)
		if i < 0 && now.Head != (scstore.Position{}) {
			k.w.fail("%x goes on from %s, which is not in its history", id[0], now.Head)
		}
		k.history[id] = history[:i+1]
	default:
		k.extended(last, now)
	}
	if promoted && promote.ID == id {
		k.promoted(promote, now, history)
		return
	}
	if now.Fence == last.Fence {
		return
	}
	grants := k.ref.Grants(id)
	if g := grants[len(grants)-1]; now.Fence != last.Fence+1 || g.Fence != now.Fence || g.Start != now.Head {
		k.w.fail("%x: fence %d after %d begins at %s, the history ends at %s", id[0], now.Fence, last.Fence, g.Start, now.Head)
	}
	k.granted(op, tenure{id, last.Fence}, tenure{id, now.Fence}, now)
}

// extended follows the history from one head to another.
func (k *checker) extended(last, now meta.Record) {
	at := last.Head
	for _, p := range k.ref.History(now.ID) {
		if p.Line != 0 || p.Position.Compare(at) <= 0 {
			continue
		}
		if p.Parent != at {
			k.w.fail("%x: %s follows %s, and says %s", now.ID[0], p.Position, at, p.Parent)
		}
		if _, ok := k.truth[spot{now.ID, p.Position}]; !ok {
			k.w.fail("%x@%s was committed before it was sealed", now.ID[0], p.Position)
		}
		at = p.Position
		k.history[now.ID] = append(k.history[now.ID], at)
	}
	if at != now.Head {
		k.w.fail("%x went from %s to %s", now.ID[0], last.Head, now.Head)
	}
}

// granted begins what a client knows under the next fence.
func (k *checker) granted(op meta.Op, old, next tenure, now meta.Record) {
	before := k.lines[old]
	begin := k.at(next.id, now.Head)
	switch op.(type) {
	case meta.HandOff:
		before.closed = true
		k.w.count.HandedOff++
		if begin != before.acked {
			k.w.fail("%x was handed off at %s with %v, acknowledged were %v", next.id[0], now.Head, begin, before.acked)
		}
		k.lines[next] = &line{acked: begin, flushed: begin}
	case meta.Cancel:
		before.closed = true
		k.w.count.Cancelled++
		k.lines[next] = &line{acked: before.acked, flushed: before.acked, kept: true}
	case meta.OpenFence:
		k.lines[next] = &line{acked: begin, flushed: begin}
	case meta.Revoke:
		before.revoked = true
	default:
		k.w.fail("%T grants a fence", op)
	}
}

// promoted checks the loss report.
func (k *checker) promoted(o meta.Promote, now meta.Record, history []scstore.Position) {
	k.w.count.Promotes++
	lost := uint64(len(history) - len(k.history[now.ID]))
	if o.Loss.Epochs != lost {
		k.w.fail("promote of %x to %s reports %d lost epochs, there are %d", now.ID[0], now.Head, o.Loss.Epochs, lost)
	}
	if lost > 0 {
		k.w.count.PromotesWithLoss++
	}
	begin := k.at(now.ID, now.Head)
	k.lines[tenure{now.ID, now.Fence}] = &line{acked: begin, flushed: begin}
	if old := k.lines[tenure{now.ID, now.Fence - 1}]; old != nil {
		old.fork, old.promoted = now.Head, true
	}
}

// pinned follows the pins of readers that were confirmed.
func (k *checker) pinned(op meta.Op) {
	switch o := op.(type) {
	case meta.PutPin:
		if o.Pin.Kind == meta.PinRead {
			k.pins = append(k.pins, readPin{o.Pin.ID, spot{o.ID, o.Pin.Position}, o.Pin.DeadlineMs})
		}
	case meta.RemoveDisk:
		k.removed = true
	case meta.DropPin:
		k.pins = slices.DeleteFunc(k.pins, func(p readPin) bool { return p.id == o.Pin })
	case meta.Remove:
		k.pins = slices.DeleteFunc(k.pins, func(p readPin) bool { return p.spot.id == o.ID })
	}
	k.pins = slices.DeleteFunc(k.pins, func(p readPin) bool { return p.deadlineMs <= k.ref.ClockMs() })
}

// line returns what the client of a replica's writer knows.
func (k *checker) line(h *host, c *replica) *line {
	l := k.lines[tenure{c.id, c.fence}]
	if l == nil {
		k.w.fail("%s serves %x under %d, which was never granted", h.disk, c.id[0], c.fence)
		return &line{}
	}
	return l
}

// adopted checks what a host begins with: the last acknowledged write.
func (k *checker) adopted(h *host, c *replica) {
	l := k.line(h, c)
	if l.owner != nil && l.owner != h {
		k.w.fail("%s and %s own %x under %d", h.disk, l.owner.disk, c.id[0], c.fence)
	}
	l.owner, l.kept = h, true
	if got := k.whole(c.id, c.open); got != l.acked {
		k.w.fail("%s owns %x under %d with %v, acknowledged were %v", h.disk, c.id[0], c.fence, got, l.acked)
	}
}

// acknowledged enters a write, and checks that the host may answer it.
func (k *checker) acknowledged(h *host, c *replica, p put) {
	l := k.line(h, c)
	if l.closed {
		k.w.fail("%s acknowledges a write of %x under %d after the next fence was granted", h.disk, c.id[0], c.fence)
	}
	if l.revoked {
		k.w.count.SplitWrites++
	}
	k.keepsPromise(h, tenure{c.id, c.fence})
	l.acked[p.block] = p.number
	l.writes = append(l.writes, p)
	l.total++
	k.w.count.Writes++
}

func (k *checker) keepsPromise(h *host, under tenure) {
	if under.fence <= k.promises[h][under.id] {
		k.w.fail("%s answers for %x under %d and has promised not to", h.disk, under.id[0], under.fence)
	}
}

// promised notes that a host said that it refuses data.
func (k *checker) promised(h *host, id scstore.VolumeID, f scstore.Fence) {
	if k.promises[h] == nil {
		k.promises[h] = map[scstore.VolumeID]scstore.Fence{}
	}
	k.promises[h][id] = max(k.promises[h][id], f)
}

func (k *checker) writes(c *replica) int {
	if l := k.lines[tenure{c.id, c.fence}]; l != nil {
		return l.total
	}
	return 0
}

// flushed says that a FLUSH was answered which covers so many writes.
func (k *checker) flushed(h *host, under tenure, writes int) {
	l := k.lines[under]
	k.keepsPromise(h, under)
	k.w.count.Flushes++
	for len(l.writes) > 0 && l.total-len(l.writes) < writes {
		l.flushed[l.writes[0].block] = l.writes[0].number
		l.writes = l.writes[1:]
	}
}

// crashed checks what a disk kept: all that was flushed, and a prefix of the rest.
func (k *checker) crashed(h *host, c *replica) {
	if c.fence == 0 {
		return
	}
	l := k.line(h, c)
	got, want := k.whole(c.id, c.synced), l.flushed
	for n := 0; ; n++ {
		if got == want {
			if l.closed && n < len(l.writes) {
				break
			}
			l.acked, l.total = got, l.total-len(l.writes)+n
			l.writes = l.writes[:n]
			return
		}
		if n == len(l.writes) {
			break
		}
		want[l.writes[n].block] = l.writes[n].number
	}
	if got == l.acked {
		return
	}
	k.w.fail("%s keeps %v of %x through a crash, flushed were %v, acknowledged %v", h.disk, got, c.id[0], l.flushed, l.acked)
}

// sealed enters what a position names, and checks that it names one content only.
func (k *checker) sealed(h *host, c *replica, v version) {
	at, got := spot{c.id, v.at}, k.whole(c.id, v.image)
	if known, ok := k.truth[at]; ok && known != got {
		k.w.fail("%x@%s is %v and %v", c.id[0], v.at, known, got)
	}
	k.truth[at] = got
	if l := k.line(h, c); got != l.acked {
		k.w.fail("%s seals %x@%s with %v, acknowledged were %v", h.disk, c.id[0], v.at, got, l.acked)
	}
}

// surrendered checks that nothing of a lost fence is left behind.
func (k *checker) surrendered(h *host, c *replica) {
	if l, got := k.line(h, c), k.whole(c.id, c.open); got != l.acked {
		k.w.fail("%s keeps %v of %x under the lost fence %d, acknowledged were %v", h.disk, got, c.id[0], c.fence, l.acked)
	}
}

// replica checks that what a disk has at a position is the volume at that position.
func (k *checker) replica(h *host, c *replica) {
	for _, v := range c.versions {
		if got, want := k.whole(c.id, v.image), k.at(c.id, v.at); got != want {
			k.w.fail("%s shows %v as %x@%s, which is %v", h.disk, got, c.id[0], v.at, want)
		}
	}
}

// owners checks that one host at a time acknowledges, but for owners that a forced
// promote cut off.
func (k *checker) owners() {
	for _, id := range k.w.volumes {
		var first *replica
		for _, h := range k.w.data() {
			c := h.copyOf(id)
			if !h.acknowledges(c) {
				continue
			}
			if first == nil {
				first = c
				continue
			}
			low := min(first.fence, c.fence)
			if l := k.lines[tenure{id, low}]; first.fence == c.fence || l == nil || !l.revoked {
				k.w.fail("two hosts acknowledge writes of %x, under %d and %d", id[0], first.fence, c.fence)
			}
			k.w.count.SplitSteps++
		}
	}
}

// disks checks what disks hold against what the log says, and that no root has become
// unreadable.
func (k *checker) disks() {
	for _, id := range k.w.volumes {
		for _, h := range k.w.data() {
			k.replica(h, h.copyOf(id))
		}
		for _, r := range k.ref.Replicas(id) {
			h := k.w.hostOf(r.Disk)
			for _, at := range r.Holds {
				if !h.lost && h.copyOf(id).complete(at) == nil {
					k.w.fail("%s is said to hold %x@%s", h.disk, id[0], at)
				}
			}
		}
		for _, r := range k.ref.Roots(id) {
			k.readable(spot{id, r.Position}, r.Kind.String())
		}
	}
	for _, p := range k.pins {
		k.readable(p.spot, "confirmed pin")
	}
}

// readable checks that a position can be read from the disks that are left. If one was
// lost for good, what it alone had is lost.
func (k *checker) readable(at spot, why string) {
	if k.w.lostHost == nil && !k.held(at, 8) {
		k.w.fail("nobody has %x@%s any more (%s)", at.id[0], at.at, why)
	}
}

func (k *checker) held(at spot, depth int) bool {
	if at.at == (scstore.Position{}) {
		return true
	}
	return depth > 0 && slices.ContainsFunc(k.w.data(), func(h *host) bool {
		v := h.copyOf(at.id).version(at.at)
		return !h.lost && v != nil && (v.missing == 0 || v.base != at.at && k.held(spot{at.id, v.base}, depth-1))
	})
}

// ended checks what has to be true once all is quiet.
func (k *checker) ended() {
	k.disks()
	want := k.ref.AppendTo(nil)
	for _, h := range k.w.hosts {
		if !h.lost && !bytes.Equal(h.state.AppendTo(nil), want) {
			k.w.fail("%s has applied the same log and has another state", h.disk)
		}
	}
	for at, l := range k.lines {
		if l.revoked && l.promoted && l.kept {
			k.branched(at, l)
		}
	}
}

// branched checks that what was written under a lost fence was kept.
func (k *checker) branched(at tenure, l *line) {
	if r, ok := k.ref.Get(at.id); !ok || r.Life != meta.Live || l.acked == k.at(at.id, l.fork) {
		return
	}
	if l.owner != nil && l.owner.lost || l.owner == nil && k.w.lostHost != nil {
		return
	}
	for _, h := range k.w.data() {
		for _, b := range h.copyOf(at.id).branches {
			if r, ok := k.ref.Get(b.id); ok && r.Kind == meta.KindBranch && k.whole(at.id, b.image) == l.acked {
				k.w.count.Branches++
				return
			}
		}
	}
	k.w.fail("%v of %x, acknowledged under the lost fence %d, is in no branch", l.acked, at.id[0], at.fence)
}
