package replica

import (
	"bytes"
	"encoding/binary"
	"maps"

	"scstore"
	"scstore/consensus/meta"
)

// create makes a volume at a host, placed at some.
func (w *moveWorld) create(id scstore.VolumeID, at *moveHost, placed ...*moveHost) {
	w.t.Helper()
	op := meta.CreateVolume{ID: id, SizeBytes: moveBlocks * scstore.BlockSize, CreatedAtMs: 1}
	if err := at.set.Create(w.t.Context(), moveGroup, op); err != nil {
		w.t.Fatal(err)
	}
	if len(placed) > 0 {
		p := meta.Placement{Mode: meta.ModeAsync, Failover: meta.FailoverManual}
		for _, h := range placed {
			p.Sites = append(p.Sites, h.site)
		}
		w.must(at.Propose(w.t.Context(), moveGroup, meta.SetPlacement{ID: id, Placement: p}))
	}
}

// contentFactor keeps the words of blocks with different numbers apart.
const contentFactor = 1_000_003

// content is what a block with a number holds.
func content(n uint64) []byte {
	b := make([]byte, scstore.BlockSize)
	if n != 0 {
		for i := 0; i < len(b); i += 8 {
			binary.BigEndian.PutUint64(b[i:], n*contentFactor+uint64(i))
		}
	}
	return b
}

// put writes numbers to blocks through a door.
func (h *moveHost) put(id scstore.VolumeID, blocks map[uint64]uint64) error {
	d, err := h.set.Open(h.w.t.Context(), id)
	if err != nil {
		return err
	}
	defer d.Release()
	for at, n := range blocks {
		if err := d.WriteAt(content(n), int64(at)*scstore.BlockSize); err != nil {
			return err
		}
	}
	return d.Flush(h.w.t.Context())
}

// write is put that has to succeed.
func (h *moveHost) write(id scstore.VolumeID, blocks map[uint64]uint64) {
	h.w.t.Helper()
	if err := h.put(id, blocks); err != nil {
		h.w.t.Fatalf("write at %s: %v", h.site, err)
	}
}

// commits has the owner seal what was written, and waits until that is in the history.
func (w *moveWorld) commits(owner *moveHost, id scstore.VolumeID) {
	w.t.Helper()
	r, _ := owner.set.lookup(id)
	sealed, _, err := r.seal(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	w.eventually("the epoch is not committed", func() bool { _, head := owner.copyAt(id, owner.disk); return head == sealed.Position })
}

// shows compares a volume with what is expected of some blocks.
func (h *moveHost) shows(id scstore.VolumeID, blocks map[uint64]uint64) {
	h.w.t.Helper()
	d, err := h.set.Open(h.w.t.Context(), id)
	if err != nil {
		h.w.t.Fatalf("open at %s: %v", h.site, err)
	}
	defer d.Release()
	h.same(d, blocks)
}

func (h *moveHost) same(d Device, blocks map[uint64]uint64) {
	h.w.t.Helper()
	got := make([]byte, scstore.BlockSize)
	for at, n := range blocks {
		if _, err := d.ReadAt(got, int64(at)*scstore.BlockSize, nil); err != nil {
			h.w.t.Fatalf("read block %d at %s: %v", at, h.site, err)
		}
		if !bytes.Equal(got, content(n)) {
			h.w.t.Errorf("block %d at %s does not hold %d", at, h.site, n)
		}
	}
}

// owner returns what a host's state says of a volume's right.
func (h *moveHost) tenure(id scstore.VolumeID) (t meta.Tenure) {
	_ = h.View(moveGroup, func(st *meta.State) { t, _ = st.Holder(id) })
	return t
}

// copyAt returns where a disk has a complete copy, by the log.
func (h *moveHost) copyAt(id scstore.VolumeID, disk meta.DiskID) (at, head scstore.Position) {
	_ = h.View(moveGroup, func(st *meta.State) {
		rec, _ := st.Get(id)
		head = rec.Head
		for _, r := range st.Replicas(id) {
			if r.Disk == disk {
				at = r.Complete
			}
		}
	})
	return at, head
}

// merged returns what is there after all of these writes.
func merged(list ...map[uint64]uint64) map[uint64]uint64 {
	all := map[uint64]uint64{}
	for _, m := range list {
		maps.Copy(all, m)
	}
	return all
}
