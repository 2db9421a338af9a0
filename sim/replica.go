package sim

import (
	"bytes"
	"io"
	"slices"
	"time"

	"scstore"
	"scstore/consensus/meta"
	"scstore/propagate"
	"scstore/propagate/wire"
)

const (
	jumpPatience = 2 * time.Second // without progress a jump is given up
	pinLease     = 20 * time.Second
)

// jump is a replica on its way to another position.
type jump struct {
	to, from scstore.Position
	core     *propagate.Jump
	base     propagate.Reader
	ready    bool // the manifest is here
	asking   bool
	moved    time.Duration // when it last got on
}

// staged is what jumps have brought and no replica shows: it is on disk, and of use to
// the next attempt of the same jump.
type staged struct {
	to, from scstore.Position
	stage
}

// release is an eviction that was asked for.
type release struct {
	id  scstore.VolumeID
	at  scstore.Position
	seq uint64
	ask time.Duration
}

// reported is what a report says.
type reported struct {
	seq uint64
	id  scstore.VolumeID
	at  scstore.Position
}

// newest returns the newest complete version that is part of the history, as far as
// this host knows it; it is what a replica shows.
func (h *host) newest(c *replica) *version {
	history := h.state.History(c.id)
	for i := range slices.Backward(c.versions) {
		v := &c.versions[i]
		if v.missing == 0 && slices.ContainsFunc(history, func(p meta.Point) bool { return p.Position == v.at && p.Line == 0 }) {
			return v
		}
	}
	return nil
}

// claims returns what the applied state says that this disk holds.
func (h *host) claims(id scstore.VolumeID) meta.Replica {
	for _, r := range h.state.Replicas(id) {
		if r.Disk == h.disk {
			return r
		}
	}
	return meta.Replica{}
}

// prune drops versions that nothing needs: no root shows them, this disk is not said to
// hold them nor may come to be said so by a report on its way, and they are not on their
// way into the history. After a restart nothing is dropped until a report of this start
// is applied: the state may be older than what was acted on before.
func (h *host) prune(c *replica) {
	if len(c.versions) < 2 || h.state.Reported(h.disk)>>32 != h.boot {
		return
	}
	need := []scstore.Position{c.head}
	if h.w.o.Bug != BugDroppedRoot {
		for _, r := range h.state.Roots(c.id) {
			need = append(need, r.Position)
		}
	}
	mine := h.claims(c.id)
	need = append(append(need, mine.Partial), mine.Holds...)
	if h.w.o.Bug == BugDroppedRoot {
		need = []scstore.Position{c.head}
	}
	if newest := h.newest(c); newest != nil {
		need = append(need, newest.at)
	}
	for _, p := range c.pending {
		need = append(need, p.Position)
	}
	latest := h.state.Reported(h.disk)
	h.reported = slices.DeleteFunc(h.reported, func(r reported) bool { return r.seq <= latest })
	for _, r := range h.reported {
		if r.id == c.id {
			need = append(need, r.at)
		}
	}
	for _, m := range h.marks {
		for _, f := range m.finals {
			need = append(need, f.Position)
		}
	}
	if c.jump != nil {
		need = append(need, c.jump.from, c.jump.to)
	}
	if h.release != nil && h.release.id == c.id {
		need = append(need, h.release.at)
	}
	head, _ := h.state.Get(c.id)
	c.versions = slices.DeleteFunc(c.versions, func(v version) bool {
		return !slices.Contains(need, v.at) && (v.at.Compare(head.Head) <= 0 || c.fence == 0 || v.at.Fence < c.fence)
	})
}

// report says what this disk holds and the log does not know of.
func (h *host) report() {
	if h.release != nil {
		if h.w.now-h.release.ask < 3*time.Second {
			return
		}
		h.release = nil // the next report overtakes it
	}
	if at, ok := h.asked["report"]; ok && h.w.now-at < askInterval {
		return
	}
	var items []meta.AckItem
	for _, c := range h.copies {
		if _, ok := h.state.Holder(c.id); ok {
			items = append(items, h.unreported(c)...)
		}
	}
	if len(items) == 0 && h.state.Reported(h.disk)>>32 == h.boot {
		return
	}
	seq := h.nextReport()
	var op meta.Op = meta.Ack{Disk: h.disk, Seq: seq, Items: items}
	if len(items) == 1 && h.w.one(2) {
		op = meta.Complete{Disk: h.disk, Seq: seq, ID: items[0].ID, Position: items[0].Position}
	}
	for _, item := range items {
		h.reported = append(h.reported, reported{seq, item.ID, item.Position})
	}
	h.ask("report", op)
}

// unreported returns what this disk holds of a volume and is not said to.
func (h *host) unreported(c *replica) (items []meta.AckItem) {
	mine := h.claims(c.id)
	history, newest := h.state.History(c.id), h.newest(c)
	for _, v := range c.versions {
		known := slices.ContainsFunc(history, func(p meta.Point) bool { return p.Position == v.at })
		worth := newest != nil && newest.at == v.at || h.isRoot(c.id, v.at)
		if v.missing == 0 && known && worth && !slices.Contains(mine.Holds, v.at) {
			items = append(items, meta.AckItem{ID: c.id, Position: v.at, Complete: true})
		}
	}
	return items
}

func (h *host) isRoot(id scstore.VolumeID, at scstore.Position) bool {
	return slices.ContainsFunc(h.state.Roots(id), func(r meta.Root) bool { return r.Position == at })
}

func (h *host) nextReport() uint64 {
	h.reports++
	return h.boot<<32 | h.reports
}

// evict asks to drop a version.
func (h *host) evict(c *replica) {
	mine := h.claims(c.id)
	if len(mine.Holds) == 0 || h.release != nil || c.fence != 0 || c.jump != nil {
		return
	}
	at := mine.Holds[h.w.rng.IntN(len(mine.Holds))]
	h.release = &release{id: c.id, at: at, seq: h.nextReport(), ask: h.w.now}
	h.w.say("%s asks to release %x@%s", h.disk, c.id[0], at)
	h.w.propose(h, meta.Command{Op: meta.Release{Disk: h.disk, Seq: h.release.seq, ID: c.id, Position: at}})
	if h.w.o.Bug == BugReleaseEarly {
		c.drop(at)
	}
}

// released drops what the log allowed to, unless this host has reported since: it then
// says again that it holds it.
func (h *host) released(o meta.Release, r meta.Result) {
	if h.release == nil || h.release.seq != o.Seq {
		return
	}
	h.release = nil
	if r.Code == meta.CodeOK && o.Seq == h.boot<<32|h.reports {
		h.w.say("%s releases %x@%s", h.disk, o.ID[0], o.Position)
		h.w.count.Releases++
		h.copyOf(o.ID).drop(o.Position)
	}
}

func (c *replica) drop(at scstore.Position) {
	c.versions = slices.DeleteFunc(c.versions, func(v version) bool { return v.at == at })
}

// wants returns where a replica has to go, zero if it is there.
func (h *host) wants(c *replica) scstore.Position {
	r, ok := h.state.Get(c.id)
	if !ok || r.Life != meta.Live || r.Head == (scstore.Position{}) {
		return scstore.Position{}
	}
	for _, v := range c.versions { // what is here in part; if nobody has its base any more, that holds up nothing else
		if v.missing != 0 && h.isRoot(c.id, v.base) && h.w.one(2) {
			return v.base
		}
	}
	if c.fence != 0 {
		return scstore.Position{}
	}
	p, _ := h.state.PlacementOf(c.id)
	if !slices.Contains(p.Sites, h.site) || p.Mode == meta.ModeLazy || c.complete(r.Head) != nil {
		return scstore.Position{}
	}
	mine := meta.PinID{0: c.id[0], 1: byte(h.n + 1), 2: byte(r.Head.Fence), 3: byte(r.Head.Epoch >> 8), 4: byte(r.Head.Epoch)}
	var pinned scstore.Position
	for _, pin := range h.state.Pins(c.id) {
		if pin.Kind != meta.PinJump || pin.Disk != h.disk {
			continue
		}
		if c.complete(pin.Position) != nil {
			h.ask("unpin"+c.id.String(), meta.DropPin{ID: c.id, Pin: pin.ID})
			continue
		}
		pinned = pin.Position
	}
	if pinned != (scstore.Position{}) {
		return pinned
	}
	h.ask("pin"+c.id.String(), meta.PutPin{ID: c.id, NowMs: h.w.nowMs(), Pin: meta.Pin{
		ID: mine, Kind: meta.PinJump, Position: r.Head, Disk: h.disk, DeadlineMs: h.w.nowMs() + pinLease.Milliseconds(),
	}})
	return scstore.Position{}
}

// tickJump begins, goes on with or gives up a jump.
func (h *host) tickJump(c *replica) {
	if j := c.jump; j != nil {
		history := h.state.History(c.id)
		known := slices.ContainsFunc(history, func(p meta.Point) bool { return p.Position == j.to })
		if !known || h.w.now-j.moved > jumpPatience || j.from != (scstore.Position{}) && c.complete(j.from) == nil {
			h.w.count.JumpsInterrupted++
			c.jump = nil
		} else if !j.asking {
			h.askSource(c, j)
		}
		return
	}
	to := h.wants(c)
	if to == (scstore.Position{}) {
		return
	}
	if c.complete(to) != nil { // the base of another version
		h.install(c, *c.complete(to))
		return
	}
	from := scstore.Position{}
	if newest := h.newest(c); newest != nil && newest.at.Compare(to) < 0 {
		from = newest.at
	}
	core, err := propagate.NewJump(propagate.JumpOptions{
		Volume: c.id, From: from, To: to, Window: scstore.Extent{Count: sizeBlocks}, Root: root, RequestBlocks: 1 + h.w.rng.IntN(4),
	})
	if err != nil {
		h.w.fail("%s jumps: %v", h.disk, err)
		return
	}
	if c.staged == nil || c.staged.to != to || c.staged.from != from {
		c.staged = &staged{to: to, from: from}
		if from != (scstore.Position{}) {
			c.staged.content = c.complete(from).data
		}
		if h.w.o.Bug == BugHalfJump && from != (scstore.Position{}) {
			c.staged.wrong = func(half content) {
				if v := c.version(from); v != nil {
					v.data = half
				}
			}
		}
	}
	j := &jump{to: to, from: from, core: core, moved: h.w.now}
	if from != (scstore.Position{}) {
		base := c.complete(from).data
		j.base = &base
	}
	c.jump = j
	h.w.count.Jumps++
	h.askSource(c, j)
}

// askSource asks some host that has the position for the manifest, or for blocks.
func (h *host) askSource(c *replica, j *jump) {
	n := h.w.rng.IntN(len(h.w.hosts))
	from := h.w.hosts[n]
	if from == h || from.witness {
		return
	}
	if !j.ready {
		request := j.core.ManifestRequest().AppendTo(nil)
		h.exchange(from, j, request, func(r io.Reader) {
			if err := h.receiver(c, j).Manifest(r); err != nil {
				c.jump = nil
				return
			}
			j.ready = true
			j.core.Have(c.staged.staged())
			h.verify(c, j)
		})
		return
	}
	id, m, ok := j.core.Next(n)
	if !ok {
		return
	}
	h.exchange(from, j, m.AppendTo(nil), func(r io.Reader) {
		if err := h.receiver(c, j).Blocks(id, r); err == nil {
			j.moved = h.w.now
		}
		h.verify(c, j)
	})
	h.after(800*time.Millisecond, func() { j.core.Close(id, false) })
}

// receiver takes an answer; its memory is shared by all jumps of a world.
func (h *host) receiver(c *replica, j *jump) *propagate.Receiver {
	v := h.w.receiver
	v.Jump, v.Stage, v.Base = j.core, &c.staged.stage, j.base
	return v
}

// exchange sends a request and has the answer read, unless the jump has ended.
func (h *host) exchange(from *host, j *jump, request []byte, answer func(io.Reader)) {
	j.asking = true
	h.after(800*time.Millisecond, func() { j.asking = false })
	boot := h.boot
	h.w.send(h, from, func() {
		reply := from.answer(request)
		if h.w.losing && h.w.one(8) { // the stream is cut
			reply = reply[:h.w.rng.IntN(len(reply)+1)]
		}
		h.w.send(from, h, func() {
			c := h.copyOf(j.volume())
			if h.boot == boot && c.jump == j {
				j.asking = false
				answer(bytes.NewReader(reply))
			}
		})
	})
}

func (j *jump) volume() scstore.VolumeID { return j.core.ManifestRequest().Volume }

// answer is the sender's side of a jump: nothing if it can't.
func (h *host) answer(request []byte) []byte {
	kind, body, err := wire.ReadFrame(bytes.NewReader(request), nil)
	if err != nil {
		h.w.fail("%s reads a request: %v", h.disk, err)
		return nil
	}
	var out bytes.Buffer
	switch kind {
	case wire.KindManifestRequest:
		m, err := wire.ParseManifestRequest(body)
		v := h.copyOf(m.Volume).complete(m.To)
		if err != nil || v == nil {
			return nil
		}
		o := propagate.Offer{Request: m, SizeBytes: sizeBytes, Changed: all(), Root: root}
		o.Digest = func(number uint64) (scstore.Digest, error) { return v.data.span(number), nil }
		if m.From == (scstore.Position{}) {
			o.Changed = changed(content{}, v.data)
		} else if old := h.copyOf(m.Volume).complete(m.From); old != nil {
			o.Changed = changed(old.data, v.data)
		}
		if _, err := o.Write(&out); err != nil {
			h.w.fail("%s offers: %v", h.disk, err)
		}
	case wire.KindBlocksRequest:
		m, err := wire.ParseBlocksRequest(body)
		v := h.copyOf(m.Volume).complete(m.Position)
		if err != nil || v == nil {
			return nil
		}
		var base propagate.Reader
		if old := h.copyOf(m.Volume).complete(m.Base); old != nil {
			base = &old.data
		}
		if _, err := h.w.answerer.Answer(&out, m, &v.data, base); err != nil {
			h.w.fail("%s answers: %v", h.disk, err)
		}
	default:
		h.w.fail("%s gets a frame of kind %d", h.disk, kind)
	}
	return out.Bytes()
}

// verify reads back what is staged, and installs it once all is there.
func (h *host) verify(c *replica, j *jump) {
	for {
		number, ok := j.core.Verify()
		if !ok {
			break
		}
		if err := j.core.Verified(number, c.staged.span(number)); err != nil {
			h.w.say("%s: %v", h.disk, err)
			c.jump, c.staged = nil, nil
			return
		}
	}
	if !j.core.Done() {
		h.askSource(c, j)
		return
	}
	h.after(h.w.between(0, 20*time.Millisecond), func() {
		if c.jump == j {
			c.jump = nil
			h.w.count.JumpsDone++
			v := version{at: j.to, image: image{data: c.staged.content}}
			c.staged = nil
			h.w.say("%s has %x@%s", h.disk, c.id[0], v.at)
			h.install(c, v)
		}
	})
}

// install makes a version part of the replica, all at once.
func (h *host) install(c *replica, v version) {
	c.keep(v)
	c.open.fill(v.at, v.data)
	c.synced.fill(v.at, v.data)
	for i := range c.versions {
		c.versions[i].fill(v.at, v.data)
	}
	for i := range c.left {
		c.left[i].fill(v.at, v.data)
	}
	for i := range c.branches {
		c.branches[i].fill(v.at, v.data)
	}
	h.w.check.replica(h, c)
	h.prune(c)
}
