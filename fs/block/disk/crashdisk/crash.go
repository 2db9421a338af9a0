package crashdisk

import (
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"slices"

	"scstore"
	"scstore/fs/block/disk"
)

// tornShare is one in how many unsynced pages is left with sectors of two
// versions, and sectorSize the unit in which it is torn.
const (
	tornShare  = 16
	sectorSize = 512
)

// fate is how kind a crash is to what was not synced.
type fate struct {
	keep float64 // share of pages and lengths that reached the platter in their newest version
	torn bool    // whether pages tear
}

// drawFate makes the extremes likely: with an even chance for each page, a crash
// that loses nothing, or everything, or one page alone, would never be seen.
func drawFate(rng *rand.Rand) fate {
	switch rng.IntN(8) {
	case 0:
		return fate{keep: 0}
	case 1:
		return fate{keep: 1}
	default:
		shares := []float64{0.02, 0.2, 0.5, 0.8, 0.98}
		return fate{keep: shares[rng.IntN(len(shares))], torn: true}
	}
}

// Crash returns a folder as a power loss at this moment may leave it. For each
// page changed since the last Datasync of its file it takes the durable content,
// the newest, any version between, or now and then a mixture of two by 512-byte
// sectors; for each file whose length changed any of those lengths; and each
// unsynced change of a name has happened or not, a rename as a whole. The result
// has no hook and no trace, and all of it is durable.
//
// The disk itself goes on as if nothing had happened, so that one run can be
// crashed at each of its operations.
//
// Concurrency: safe at any time; calls that are running are before or after it.
func (d *Disk) Crash(rng *rand.Rand) *Disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := New(Options{Seed: rng.Uint64(), CapacityBytes: d.options.CapacityBytes, ColdShare: d.options.ColdShare})
	f := drawFate(rng)
	names := d.crashNamesLocked(rng, f)
	files := make(map[*inode]*inode, len(names))
	for _, name := range slices.Sorted(maps.Keys(names)) {
		n := names[name]
		if files[n] == nil {
			files[n] = n.crash(rng, f)
			out.used += files[n].spacePages()
		}
		out.names[name] = files[n]
	}
	out.durable = maps.Clone(out.names)
	return out
}

// crashNamesLocked chooses which unsynced changes of names have happened. A change
// that happened takes with it the earlier renames of the same names: else a file
// could vanish from both of its names.
// Precondition: d.mu held.
func (d *Disk) crashNamesLocked(rng *rand.Rand, f fate) map[string]*inode {
	happened := make([]bool, len(d.changes))
	touched := make(map[string]bool)
	for i := len(d.changes) - 1; i >= 0; i-- {
		c := d.changes[i]
		happened[i] = rng.Float64() < f.keep || c.kind == Rename && (touched[c.name] || touched[c.to])
		if happened[i] {
			touched[c.name] = true
			if c.kind == Rename {
				touched[c.to] = true
			}
		}
	}
	names := maps.Clone(d.durable)
	for i, c := range d.changes {
		if !happened[i] {
			continue
		}
		switch c.kind {
		case Create:
			names[c.name] = c.file
		case Rename:
			if names[c.name] == c.file {
				delete(names, c.name)
			}
			names[c.to] = c.file
		default:
			delete(names, c.name)
		}
	}
	return names
}

// crash returns the file as it may be found after a power loss.
func (n *inode) crash(rng *rand.Rand, f fate) *inode {
	out := n.share()
	out.linked = true
	if len(n.sizes) > 0 && rng.Float64() >= f.keep {
		out.size = n.sizes[0]
		if f.keep > 0 {
			out.size = n.sizes[rng.IntN(len(n.sizes))]
		}
	}
	for _, index := range n.dirtyPages() {
		h := n.dirty[index]
		p := n.live(index)
		if rng.Float64() >= f.keep {
			p = h.versions[0]
			if f.keep > 0 && rng.IntN(2) == 0 {
				p = h.versions[rng.IntN(len(h.versions))]
			}
		}
		if f.torn && rng.IntN(tornShare) == 0 {
			other := append([]*page{n.live(index)}, h.versions...)[rng.IntN(len(h.versions)+1)]
			p = tear(p, other, rng.Uint32())
		}
		out.set(index, p)
	}
	out.cut(out.size, out.set)
	out.dropSpace((out.size + disk.PageSize - 1) / disk.PageSize)
	return out
}

// tear returns a page with the sectors of b where mask has a bit, else of a.
func tear(a, b *page, mask uint32) *page {
	if a == b {
		return a
	}
	out := new(page)
	if a != nil {
		*out = *a
	}
	if b == nil {
		b = &zeroPage
	}
	for s := range disk.PageSize / sectorSize {
		if mask&(1<<s) != 0 {
			copy(out[s*sectorSize:(s+1)*sectorSize], b[s*sectorSize:])
		}
	}
	if *out == zeroPage {
		return nil
	}
	return out
}

// Kill returns the folder as a killed process leaves it: every write and change of
// a name is there, and what was not synced is still not, so that a Crash of the
// result may lose it. The disk itself goes on. The result has no hook, no trace
// and no open file.
//
// Concurrency: safe at any time; calls that are running are before or after it.
func (d *Disk) Kill() *Disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	options := d.options
	d.rngMu.Lock()
	options.Seed = d.rng.Uint64()
	d.rngMu.Unlock()
	out := New(options)
	files := make(map[*inode]*inode)
	copied := func(n *inode) *inode {
		if files[n] == nil {
			files[n] = n.kill()
		}
		return files[n]
	}
	for name, n := range d.names {
		out.names[name] = copied(n)
		out.names[name].linked = true
		out.used += out.names[name].spacePages()
	}
	for name, n := range d.durable {
		out.durable[name] = copied(n)
	}
	for _, c := range d.changes {
		c.file = copied(c.file)
		out.changes = append(out.changes, c)
	}
	return out
}

// kill returns a copy with the same unsynced state.
func (n *inode) kill() *inode {
	out := n.share()
	out.sizes = slices.Clone(n.sizes)
	if len(n.dirty) > 0 {
		out.dirty = make(map[int64]*history, len(n.dirty))
		for index, h := range n.dirty {
			out.dirty[index] = &history{versions: slices.Clone(h.versions)}
		}
	}
	return out
}

// FlipBit inverts one bit (0 to 7) of the byte at off of the file name, on the
// platter and in every version of the page: rot that no sync heals.
// Errors: fs.ErrNotExist; scstore.ErrInvalid outside the file.
func (d *Disk) FlipBit(name string, off int64, bit uint) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := d.names[name]
	switch {
	case n == nil:
		return fmt.Errorf("flip a bit of %q: %w", name, fs.ErrNotExist)
	case off < 0, off >= n.size, bit > 7:
		return fmt.Errorf("flip bit %d of byte %d of %q, %d bytes long: %w", bit, off, name, n.size, scstore.ErrInvalid)
	}
	index, in := off/disk.PageSize, int(off%disk.PageSize)
	flip := func(p *page) *page {
		if p == nil {
			p = &zeroPage
		}
		return merge(p, []byte{p[in] ^ 1<<bit}, in)
	}
	n.set(index, flip(n.live(index)))
	if h := n.dirty[index]; h != nil {
		for i, p := range h.versions {
			h.versions[i] = flip(p)
		}
	}
	return nil
}
