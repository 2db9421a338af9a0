package replica

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"scstore"
	"scstore/consensus/meta"
)

// newID draws a volume's id.
func newID() (id scstore.VolumeID) {
	binary.BigEndian.PutUint64(id[:], rand.Uint64())
	binary.BigEndian.PutUint64(id[8:], rand.Uint64())
	return id
}

// create makes a volume at a host, and places it at the sites of hosts, if any are named.
func (w *world) create(at meta.DiskID, size int64, placed ...meta.DiskID) scstore.VolumeID {
	w.t.Helper()
	return w.createOn(at, meta.CreateVolume{ID: newID(), SizeBytes: size, CreatedAtMs: 1}, placed...)
}

func (w *world) createOn(at meta.DiskID, op meta.CreateVolume, placed ...meta.DiskID) scstore.VolumeID {
	w.t.Helper()
	if err := w.hosts[at].set.Create(w.t.Context(), testGroup, op); err != nil {
		w.t.Fatal(err)
	}
	if len(placed) > 0 {
		w.place(op.ID, placed...)
	}
	return op.ID
}

// place has a volume at the sites of hosts.
func (w *world) place(id scstore.VolumeID, hosts ...meta.DiskID) {
	w.t.Helper()
	p := meta.Placement{Mode: meta.ModeAsync, Failover: meta.FailoverManual}
	for _, d := range hosts {
		p.Sites = append(p.Sites, siteOf(d))
	}
	w.must(testGroup, meta.SetPlacement{ID: id, Placement: p})
}

// device opens a volume at a host.
func (h *testHost) device(id scstore.VolumeID) Device {
	h.w.t.Helper()
	d, err := h.set.Open(h.w.t.Context(), id)
	if err != nil {
		h.w.t.Fatalf("open at %s: %v", h.disk, err)
	}
	return d
}

// fill writes random bytes to a volume, whole, and returns them.
func (h *testHost) fill(id scstore.VolumeID, seed uint64) []byte {
	h.w.t.Helper()
	d := h.device(id)
	p := randomBytes(int(d.Size()), seed)
	for off := 0; off < len(p); off += 1 << 20 {
		if err := d.WriteAt(p[off:min(off+1<<20, len(p))], int64(off)); err != nil {
			h.w.t.Fatal(err)
		}
	}
	return p
}

func randomBytes(n int, seed uint64) []byte {
	p := make([]byte, n)
	var key [32]byte
	binary.BigEndian.PutUint64(key[:], seed)
	_, _ = rand.NewChaCha8(key).Read(p)
	return p
}

// read returns a volume's bytes as a host shows them.
func (h *testHost) read(id scstore.VolumeID) []byte {
	h.w.t.Helper()
	d := h.device(id)
	defer d.Release()
	return readDevice(h.w.t, d)
}

func readDevice(t *testing.T, d Device) []byte {
	t.Helper()
	p := make([]byte, d.Size())
	for off := 0; off < len(p); off += 1 << 20 {
		if _, err := d.ReadAt(p[off:min(off+1<<20, len(p))], int64(off), nil); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

// seal ends a volume's epoch at its owner and waits until it is in the history.
func (h *testHost) seal(id scstore.VolumeID) scstore.Position {
	h.w.t.Helper()
	r, _ := h.set.lookup(id)
	p, _, err := r.seal(h.w.t.Context())
	if err != nil {
		h.w.t.Fatal(err)
	}
	h.set.wakeUp()
	h.w.eventually("the epoch is committed", func() bool {
		var rec meta.Record
		h.view(func(st *meta.State) { rec, _ = st.Get(id) })
		return rec.Head.Compare(p.Position) >= 0
	})
	return p.Position
}

// holds reports whether a host has all of a volume at a position.
func (h *testHost) holds(id scstore.VolumeID, at scstore.Position) bool {
	r, ok := h.set.lookup(id)
	if !ok {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.facts.holds(at)
}

// claims reports whether the log knows that a host has a volume at a position.
func (h *testHost) claims(id scstore.VolumeID, at scstore.Position) (yes bool) {
	h.view(func(st *meta.State) {
		for _, d := range st.CompleteHolders(id, at) {
			yes = yes || d == h.disk
		}
	})
	return yes
}
