package meta_test

import (
	"testing"

	"scstore/consensus/meta"
)

// BenchmarkApply_CommitEpoch is one commit of a volume with two replicas and ten
// snapshots.
func BenchmarkApply_CommitEpoch(b *testing.B) {
	s := meta.NewGroup(meta.FirstVolumes)
	do := func(op meta.Op) {
		if r := s.Apply(meta.Command{Op: op}); r.Code != meta.CodeOK {
			b.Fatalf("%T: %v", op, r.Err())
		}
	}
	do(meta.AdmitDisk{Disk: diskB, Site: siteB})
	do(volume(1, ""))
	do(meta.OpenFence{ID: volumeID(1), Holder: diskA})
	n, parent := uint64(0), pos(0, 0)
	next := func() {
		n++
		do(commit(1, 1, parent, n))
		parent = pos(1, n)
	}
	for i := range 10 {
		next()
		do(meta.Snapshot{ID: volumeID(1), Name: string(rune('a' + i)), Position: parent})
	}
	do(ack(diskB, 1, parent, true))
	for b.Loop() {
		next()
	}
}
