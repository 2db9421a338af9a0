package sim

import (
	"fmt"
	"slices"
	"time"

	"scstore"
	"scstore/consensus/meta"
)

// The actions that a world draws from while it is not at rest.
const (
	actMove = iota
	actCrash
	actCut
	actCutAll
	actHeal
	actPromote
	actSnapshot
	actUnsnapshot
	actClone
	actRemove
	actPin
	actUnpin
	actEvict
	actLose
	actions
)

func (w *World) nextPut() put {
	w.puts++
	return put{w.rng.IntN(Blocks), w.puts}
}

// clients is one client a volume: it writes, flushes and reads at whoever
// acknowledges.
func (w *World) clients() {
	if !w.losing {
		return
	}
	w.after(w.between(2*time.Millisecond, 25*time.Millisecond), w.clients)
	id := w.anyVolume()
	for _, h := range w.data() {
		if !h.up {
			continue
		}
		c := h.copyOf(id)
		if !h.acknowledges(c) {
			continue
		}
		switch w.rng.IntN(8) {
		case 0:
			h.flush(c)
		case 1:
			w.read(h, c)
		default:
			h.write(c, w.nextPut())
		}
	}
}

// read reads a block from the owner, who asks for what it lacks.
func (w *World) read(h *host, c *replica) {
	b := w.rng.IntN(Blocks)
	got, ok := c.open.data[b], c.open.missing&(1<<b) == 0
	if !ok {
		for _, from := range w.data() {
			if v := from.copyOf(c.id).complete(c.open.base); v != nil && w.linked(h, from) && w.linked(from, h) {
				got, ok = v.data[b], true
			}
		}
	}
	if want := w.check.line(h, c).acked[b]; ok && got != want {
		w.fail("%s reads %d from block %d of %x, acknowledged was %d", h.disk, got, b, c.id[0], want)
	}
	w.count.Reads++
}

// act lets something happen that is not a client's doing.
func (w *World) act() {
	if !w.losing {
		return
	}
	w.after(w.between(20*time.Millisecond, 250*time.Millisecond), w.act)
	total := 0
	for _, weight := range w.weights {
		total += weight
	}
	n := w.rng.IntN(max(total, 1))
	for a, weight := range w.weights {
		if n -= weight; n < 0 {
			w.do(a)
			return
		}
	}
}

func (w *World) do(action int) {
	h, id := w.anyData(), w.anyVolume()
	switch action {
	case actCrash:
		w.crashSome()
	case actCut:
		from, to := w.rng.IntN(len(w.hosts)), w.rng.IntN(len(w.hosts))
		w.cut[from][to] = from != to
	case actCutAll:
		if w.one(3) {
			w.say("%s is cut off", h.disk)
			for i := range w.cut {
				w.cut[i][h.n], w.cut[h.n][i] = i != h.n, i != h.n
			}
		}
	case actHeal:
		for i := range w.cut {
			clear(w.cut[i])
		}
	case actLose:
		if w.lostHost == nil && w.one(60) {
			w.say("%s is lost for good", h.disk)
			if h.up {
				h.crash()
			}
			h.lost, w.lostHost = true, h
			w.count.Lost++
		}
	default:
		if h.up {
			w.doAt(action, h, h.copyOf(id))
		}
	}
}

// crashSome crashes a host for a while.
func (w *World) crashSome() {
	h := w.hosts[w.rng.IntN(len(w.hosts))]
	doubt := slices.IndexFunc(w.hosts, func(h *host) bool { return h.up && len(h.marks) > 0 })
	if doubt >= 0 {
		h = w.hosts[doubt] // the interesting one
	} else if !w.one(3) {
		return
	}
	if !h.up {
		return
	}
	h.crash()
	w.after(w.between(50*time.Millisecond, 6*time.Second), func() {
		if !h.up && !h.lost {
			h.start()
		}
	})
}

// doAt is an action that a person asks a host for.
func (w *World) doAt(action int, h *host, c *replica) {
	r, ok := h.state.Get(c.id)
	if !ok || r.Life != meta.Live || r.Head == (scstore.Position{}) {
		return
	}
	switch action {
	case actMove:
		w.moveSome(h)
	case actPromote:
		if w.one(4) {
			h.promote(c.id)
		}
	case actSnapshot:
		h.ask("snapshot", meta.Snapshot{ID: c.id, Name: fmt.Sprint("s", w.rng.IntN(4)), Position: r.Head})
		w.count.Snapshots++
	case actUnsnapshot:
		h.ask("unsnapshot", meta.DeleteSnapshot{ID: c.id, Name: fmt.Sprint("s", w.rng.IntN(4))})
	case actClone:
		w.clone(h, c.id)
	case actRemove:
		if len(w.volumes) > 3 && w.one(6) && !r.Base.IsZero() {
			h.ask("remove", meta.Remove{ID: c.id})
		}
	case actPin:
		w.ids++
		h.ask("read", meta.PutPin{ID: c.id, NowMs: w.nowMs(), Pin: meta.Pin{
			ID: meta.PinID{0: 0xff, 1: byte(w.ids >> 8), 2: byte(w.ids)}, Kind: meta.PinRead, Position: r.Head, Disk: h.disk,
			DeadlineMs: w.nowMs() + 1000 + int64(w.rng.IntN(8000)),
		}})
	case actUnpin:
		for _, p := range h.state.Pins(c.id) {
			if p.Kind == meta.PinRead && p.Disk == h.disk {
				h.ask("unread", meta.DropPin{ID: c.id, Pin: p.ID})
			}
		}
	case actEvict:
		h.evict(c)
	default:
		w.fail("no action %d", action)
	}
}

// moveSome moves one or more of the volumes that a host owns.
func (w *World) moveSome(h *host) {
	var volumes []scstore.VolumeID
	for _, id := range w.volumes {
		c := h.copyOf(id)
		if t, ok := h.state.Holder(id); ok && t.Holder == h.disk && h.acknowledges(c) && h.sourceOf(id) == nil && w.one(2) {
			volumes = append(volumes, id)
		}
	}
	if to := w.anyData(); to != h && len(volumes) > 0 {
		h.move(to, volumes)
	}
}

// clone makes a volume of a snapshot, and a host that has the snapshot its owner.
func (w *World) clone(h *host, base scstore.VolumeID) {
	for _, s := range h.state.Snapshots(base) {
		if h.copyOf(base).complete(s.Position) == nil || len(w.volumes) >= 6 {
			continue
		}
		id := w.newVolume()
		h.w.propose(h, meta.Command{Op: meta.CreateVolume{ID: id, SizeBytes: sizeBytes, Base: base, BasePosition: s.Position}})
		h.w.propose(h, meta.Command{Op: meta.OpenFence{ID: id, Holder: h.disk}})
		w.count.Clones++
		return
	}
}
