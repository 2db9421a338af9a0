package propagate

import (
	"testing"

	"scstore"
)

func TestCoarsen_NamesEveryBlockOfTheList(t *testing.T) {
	var list []scstore.Extent
	for i := range 1000 {
		list = append(list, scstore.Extent{First: scstore.BlockIndex(i*i + i*2), Count: 1 + uint64(i%2)})
	}
	for _, limit := range []int{1, 7, 500, 999, 1000} {
		got := coarsen(list, limit)
		if len(got) > limit {
			t.Errorf("%d extents, want at most %d", len(got), limit)
		}
		at := 0
		for _, e := range list {
			for at < len(got) && got[at].End() < e.End() {
				at++
			}
			if at == len(got) || got[at].First > e.First {
				t.Fatalf("limit %d: extent %+v is not named", limit, e)
			}
		}
		for i := 1; i < len(got); i++ {
			if got[i].First <= got[i-1].End() {
				t.Fatalf("limit %d: extents %d and %d touch", limit, i-1, i)
			}
		}
	}
}
