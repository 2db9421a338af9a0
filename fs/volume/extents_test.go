package volume

import (
	"math/rand/v2"
	"testing"

	"scstore"
)

func TestExtentSet_CoversWithinItsLimit(t *testing.T) {
	for seed := range uint64(200) {
		rng := rand.New(rand.NewPCG(seed, 1))
		set := extentSet{blocks: 100_000 + rng.Uint64N(1000), grain: 1, limit: 1 + rng.IntN(20)}
		var in []scstore.Extent
		for at := rng.Uint64N(100); at < set.blocks; at += 2 + rng.Uint64N(3000) {
			e := scstore.Extent{First: scstore.BlockIndex(at), Count: 1 + rng.Uint64N(min(40, set.blocks-at))}
			in, at = append(in, e), uint64(e.End())
			set.add(e)
		}
		if len(set.list) > set.limit {
			t.Fatalf("seed %d: %d extents, limit %d", seed, len(set.list), set.limit)
		}
		for i, e := range set.list {
			if e.Count == 0 || uint64(e.End()) > set.blocks || i > 0 && set.list[i-1].End() >= e.First {
				t.Fatalf("seed %d: extent %d of %+v", seed, i, set.list)
			}
		}
		next := 0
		for _, e := range in {
			for next < len(set.list) && set.list[next].End() < e.End() {
				next++
			}
			if next == len(set.list) || set.list[next].Clamp(e) != e {
				t.Fatalf("seed %d: %+v is not covered by %+v", seed, e, set.list)
			}
		}
	}
}
