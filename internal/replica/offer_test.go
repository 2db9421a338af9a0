package replica

import (
	"bytes"
	"context"
	"testing"

	"scstore"
	"scstore/fs/block"
	"scstore/fs/volume"
	"scstore/propagate/wire"
)

// checkDigests fails unless an offer of a volume names the digests of these bytes.
func (h *testHost) checkDigests(id scstore.VolumeID, at scstore.Position, data []byte) {
	h.w.t.Helper()
	m := wire.ManifestRequest{Volume: id, To: at, Window: scstore.Extent{Count: uint64(len(data)) / testBlock}}
	o, release, err := library{h.set}.Offer(context.Background(), m)
	if err != nil {
		h.w.t.Fatal(err)
	}
	defer release()
	const size = volume.SpanBlocks * testBlock
	for n := range len(data) / size {
		if d, err := o.Digest(uint64(n)); err != nil || d != volume.SpanDigest(data[n*size:(n+1)*size]) {
			h.w.t.Fatalf("span %d: %s, %v: not the digest of what is there", n, d, err)
		}
	}
}

// TestSet_OffersHaveTheDigestsThatSealsMade shows that an owner is not read and hashed again
// for what its seals have hashed, by an owner whose seals have hashed something else.
func TestSet_OffersHaveTheDigestsThatSealsMade(t *testing.T) {
	w := newWorld(t, "A")
	a := w.hosts["A"]
	id := w.create("A", testSize)
	data := a.fill(id, 1)
	at := a.seal(id)
	a.checkDigests(id, at, data)

	table, err := a.blocks.Create(block.CreateOptions{ID: newID(), SizeBytes: testSize})
	if err != nil {
		t.Fatal(err)
	}
	other, err := volume.Open(volume.Options{ID: table.ID(), Table: tagged{table}, Fence: at.Fence, Head: scstore.Position{Fence: at.Fence, Epoch: at.Epoch - 1}})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	otherData := randomBytes(testSize, 2)
	if err := other.WriteAt(otherData, 0); err != nil {
		t.Fatal(err)
	}
	if m, err := other.Seal(t.Context(), nil); err != nil || m.Position != at {
		t.Fatalf("sealed %s, %v, want %s", m.Position, err, at)
	}
	r, _ := a.set.lookup(id)
	swap := func(v *volume.Volume) *volume.Volume {
		r.mu.Lock()
		defer r.mu.Unlock()
		old := r.v
		r.v = v
		return old
	}
	mine := swap(other)
	a.checkDigests(id, at, otherData)
	swap(mine)
	a.restart() // and nothing is remembered
	a.checkDigests(id, at, data)
}

// TestSet_JumpGoesThroughAllWindows copies a volume of which each of three manifests is about
// a part, over a link that is cut on the way.
func TestSet_JumpGoesThroughAllWindows(t *testing.T) {
	const size, part = 2 << 30, 2 << 20
	w := newWorld(t, "A", "B")
	a, b := w.hosts["A"], w.hosts["B"]
	w.cut("A", "B")
	id := w.create("A", size, "A", "B")
	offsets := []int64{0, 256<<20 - part/2, 700 << 20, 1280<<20 - part, size - part}
	for i, off := range offsets {
		if err := a.device(id).WriteAt(randomBytes(part, uint64(i)), off); err != nil {
			t.Fatal(err)
		}
	}
	at := a.seal(id)
	total := int64(len(offsets) * part)
	w.heal("A", "B")
	w.limit("A", "B", total/2)
	w.eventually("the link is cut in the middle of the jump", func() bool { return w.isCut("A", "B") })
	w.heal("A", "B")
	w.eventually("B is complete", func() bool { return b.claims(id, at) })
	d := b.device(id)
	defer d.Release()
	for i, off := range offsets {
		p := make([]byte, part)
		if _, err := d.ReadAt(p, off, nil); err != nil || !bytes.Equal(p, randomBytes(part, uint64(i))) {
			t.Errorf("the copy differs at %d, or can't be read: %v", off, err)
		}
	}
	if n := w.sent("A", "B"); n > total*14/10 {
		t.Errorf("%d bytes went for %d: what was staged was fetched again", n, total)
	}
}
