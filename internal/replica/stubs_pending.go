package replica

import (
	"context"

	"scstore"
	"scstore/consensus/meta"
)

// What the other half of the package has; this file goes when it comes.

type (
	source struct{}
	target struct{}
	moving struct{}
	moves  struct{ cancel context.CancelFunc }
)

func (s *Set) reviewMoves(meta.GroupID, *meta.State)                {}
func (r *Replica) reviewForks(*meta.State, meta.Tenure)             {}
func (r *Replica) lost(_ *meta.State, t meta.Tenure)                { r.endTenure(scstore.ErrFenced) }
func (s *Set) tickForks()                                           {}
func (s *Set) resumeMoves() error                                   { return nil }
func (s *Set) closeMoves()                                          {}
func (r *Replica) keptByMoves() []scstore.Position                  { return nil }
func (r *Replica) ownBlind(fence scstore.Fence, _ scstore.Position) {}

func startOf(st *meta.State, id scstore.VolumeID, f scstore.Fence) scstore.Position {
	for _, g := range st.Grants(id) {
		if g.Fence == f {
			return g.Start
		}
	}
	return scstore.Position{}
}
