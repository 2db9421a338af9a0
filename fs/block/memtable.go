package block

import (
	"cmp"
	"slices"

	"github.com/tidwall/btree"
)

// layerKey names one table's writes of one generation.
type layerKey struct {
	table, gen uint32
}

// run of blocks in a layer, keyed by its first block.
type memValue struct {
	count uint64
	loc   loc
}

// layer maps blocks to locations; its runs never overlap.
type layer struct {
	btree.Map[uint64, memValue]
}

// memtable holds the map's changes since the last checkpoint. Guarded by
// Store.mapMu; a frozen one (Store.frozen) is only read.
type memtable struct {
	layers map[layerKey]*layer
	gens   map[uint32][]uint32 // table → its generations here, newest first
}

func newMemtable() *memtable {
	return &memtable{layers: map[layerKey]*layer{}, gens: map[uint32][]uint32{}}
}

func (m *memtable) layer(table, gen uint32) *layer {
	key := layerKey{table, gen}
	l := m.layers[key]
	if l == nil {
		l = new(layer)
		m.layers[key] = l
		gens := append(m.gens[table], gen)
		slices.SortFunc(gens, func(a, b uint32) int { return cmp.Compare(b, a) })
		m.gens[table] = gens
	}
	return l
}

// put maps the entry's blocks, over whatever the same generation had there. Each
// run of slots that this makes dead is passed to dead.
func (m *memtable) put(e entry, dead func(loc, uint64)) {
	l := m.layer(e.table, e.gen)
	l.cut(e.first, e.end(), dead)
	if key, v, ok := l.before(e.first); ok && key+v.count == e.first && v.loc.follows(v.count, e.loc) &&
		v.count+e.count <= maxEntryBlocks {
		l.Set(key, memValue{v.count + e.count, v.loc})
		return
	}
	for e.count > maxEntryBlocks {
		l.Set(e.first, memValue{maxEntryBlocks, e.loc})
		e = e.clip(e.first+maxEntryBlocks, e.end())
	}
	l.Set(e.first, memValue{e.count, e.loc})
}

// before returns the last run that starts at or before block.
func (l *layer) before(block uint64) (first uint64, v memValue, ok bool) {
	l.Descend(block, func(key uint64, value memValue) bool {
		first, v, ok = key, value, true
		return false
	})
	return first, v, ok
}

// cut unmaps [first, end).
func (l *layer) cut(first, end uint64, dead func(loc, uint64)) {
	key, v, ok := l.before(first)
	if ok && key < first && key+v.count > first {
		stop := min(key+v.count, end)
		l.Set(key, memValue{first - key, v.loc})
		dead(v.loc.plus(first-key), stop-first)
		if key+v.count > end {
			l.Set(end, memValue{key + v.count - end, v.loc.plus(end - key)})
			return
		}
	}
	var gone []uint64
	var tail memValue
	l.Ascend(first, func(key uint64, v memValue) bool {
		if key >= end {
			return false
		}
		gone = append(gone, key)
		n := v.count
		if key+n > end {
			n = end - key
			tail = memValue{v.count - n, v.loc.plus(n)}
		}
		dead(v.loc, n)
		return true
	})
	for _, key := range gone {
		l.Delete(key)
	}
	if tail.count > 0 {
		l.Set(end, tail)
	}
}

// scan calls fn for each run of [first, end), clipped to it, in order.
func (l *layer) scan(first, end uint64, fn func(first, count uint64, at loc) bool) {
	if key, v, ok := l.before(first); ok && key < first && key+v.count > first {
		if !fn(first, min(key+v.count, end)-first, v.loc.plus(first-key)) {
			return
		}
	}
	l.Ascend(first, func(key uint64, v memValue) bool {
		return key < end && fn(key, min(key+v.count, end)-key, v.loc)
	})
}

// drop forgets a table.
func (m *memtable) drop(table uint32, dead func(loc, uint64)) {
	for _, gen := range m.gens[table] {
		key := layerKey{table, gen}
		m.layers[key].Scan(func(_ uint64, v memValue) bool {
			dead(v.loc, v.count)
			return true
		})
		delete(m.layers, key)
	}
	delete(m.gens, table)
}

// runs returns how many runs of blocks the memtable holds.
func (m *memtable) runs() int {
	n := 0
	for _, l := range m.layers {
		n += l.Len()
	}
	return n
}

// sources returns one cursor a layer, in table order, for the merge.
func (m *memtable) sources() []cursor {
	keys := make([]layerKey, 0, len(m.layers))
	for key := range m.layers {
		keys = append(keys, key)
	}
	slices.SortFunc(keys, func(a, b layerKey) int {
		return cmp.Or(cmp.Compare(a.gen, b.gen), cmp.Compare(a.table, b.table))
	})
	// Layers of one generation never share a table, so one cursor walks them all.
	var out []cursor
	for len(keys) > 0 {
		n := 1
		for n < len(keys) && keys[n].gen == keys[0].gen {
			n++
		}
		out = append(out, &memCursor{m: m, keys: keys[:n]})
		keys = keys[n:]
	}
	return out
}
