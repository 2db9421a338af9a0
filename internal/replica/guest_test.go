package replica

import (
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"slices"
	"time"

	"scstore"
	"scstore/fs/volume"
)

const (
	guestBlocks = 64 // that guests use of a volume
	guestStride = moveBlocks / guestBlocks
)

// picture is the number that each of the guests' blocks shows.
type picture [guestBlocks]uint64

// unread stands for a block that could not be read, because it is at another host.
const unread = ^uint64(0)

// guest uses a volume at one host: it writes whenever the host lets it, and looks otherwise.
type guest struct {
	h   *moveHost
	l   *ledger
	rng *rand.Rand
}

// run goes on until ctx ends.
func (g *guest) run(ctx context.Context) {
	for ctx.Err() == nil {
		pause(ctx, time.Duration(20+g.rng.IntN(400))*time.Millisecond)
		g.turn(ctx)
	}
}

// turn is one use of the volume. It waits for no other host.
func (g *guest) turn(ctx context.Context) {
	_, leave, up := g.h.enter()
	if !up {
		return
	}
	defer leave()
	door, err := g.h.set.Open(ctx, vol)
	if err != nil {
		return
	}
	defer door.Release()
	d := door.(*device)
	v := d.v.Load()
	switch {
	case v == nil: // held, for a hand-off
	case d.ReadOnly():
		g.l.showed(g.h, d.at, g.look(v))
	default:
		g.write(ctx, d, v)
	}
}

// write writes some blocks, and tells the ledger what was acknowledged.
func (g *guest) write(ctx context.Context, d *device, v *volume.Volume) {
	if g.l.isNew(g.h, v.Fence()) {
		g.l.began(v.Fence(), g.look(v))
	}
	for range 1 + g.rng.IntN(4) {
		p := written{block: g.rng.IntN(guestBlocks), number: g.l.next()}
		err := d.WriteAt(content(p.number), int64(p.block*guestStride)*scstore.BlockSize)
		if err == nil {
			err = d.Publish()
		}
		// A door answers within the gate: who is bound to nothing, or anew, might not have.
		now := d.v.Load()
		p.sure = err == nil && now == v
		g.l.wrote(v.Fence(), p)
		if now != v && now != nil {
			g.l.isNew(g.h, now.Fence())
			g.l.wrote(now.Fence(), p)
		}
		if !p.sure {
			return
		}
	}
	if g.rng.IntN(4) == 0 {
		_ = d.Flush(ctx) // a fence that is lost shows in the next turn
	}
}

// look reads all blocks that the guests use, as far as they are here.
func (g *guest) look(v *volume.Volume) (shown picture) { return look(g.h, v) }

func look(h *moveHost, v *volume.Volume) (shown picture) {
	p := make([]byte, scstore.BlockSize)
	for i := range shown {
		_, err := v.ReadAt(p, int64(i*guestStride)*scstore.BlockSize, nil)
		var missing *volume.MissingError
		switch {
		case err == nil:
			shown[i] = h.numberOf(p)
		case errors.As(err, &missing) || errors.Is(err, scstore.ErrClosed):
			shown[i] = unread
		default:
			h.w.t.Errorf("%s can't read block %d: %v", h.site, i, err)
		}
	}
	return shown
}

// numberOf returns the number that a block's content was made of.
func (h *moveHost) numberOf(p []byte) uint64 {
	n := binary.BigEndian.Uint64(p) / contentFactor
	if !slices.Equal(p, content(n)) {
		h.w.t.Errorf("%s shows a block that nobody has written: it begins with %x", h.site, p[:16])
	}
	return n
}
