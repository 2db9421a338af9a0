package meta_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	"scstore"
	"scstore/consensus/meta"
)

// chaos draws any operation at all, most of them such that they nearly fit. Nothing
// is expected of a result; a state that was reached must keep the invariants and be
// read back, whatever was asked.
type chaos struct {
	pick func(n int) int
	s    *meta.State
	peer *meta.State // another group
	now  int64
	n    int
}

func (c *chaos) id() scstore.VolumeID { return volumeID(byte(1 + c.pick(6))) }

func (c *chaos) disk() meta.DiskID {
	return []meta.DiskID{diskA, diskB, diskC, "disk-d", "disk-e"}[c.pick(5)]
}

func (c *chaos) site() meta.SiteID { return []meta.SiteID{siteA, siteB, siteC}[c.pick(3)] }

func (c *chaos) fresh() byte {
	c.n++
	return byte(c.n)
}

func (c *chaos) group() meta.GroupID { return []meta.GroupID{0, 2, 3}[c.pick(3)] }

// at returns a position that the record knows, or its head.
func (c *chaos) at(id scstore.VolumeID) scstore.Position {
	if points := c.s.History(id); len(points) > 0 && c.pick(2) == 0 {
		return points[c.pick(len(points))].Position
	}
	r, _ := c.s.Get(id)
	return r.Head
}

func (c *chaos) seq() uint64 {
	c.n++
	return uint64(c.n)
}

func (c *chaos) op() meta.Op {
	id := c.id()
	r, _ := c.s.Get(id)
	fence := max(1, r.Fence-scstore.Fence(min(c.pick(6)/5, int(r.Fence))))
	epoch := scstore.Epoch(1)
	if r.Head.Fence == fence {
		epoch = r.Head.Epoch + 1
	}
	switch c.pick(9) {
	case 0:
		return c.life(id)
	case 1:
		return c.cluster(id)
	case 2, 3:
		return c.replica(id, fence)
	case 4:
		return c.move(id)
	case 5:
		return c.loss(id, r)
	case 6:
		return c.keep(id, fence, epoch)
	case 7:
		if r.Holder == "" {
			return meta.OpenFence{ID: id, Holder: c.disk()}
		}
	}
	return meta.CommitEpoch{ID: id, Fence: fence, Parent: r.Head, Epoch: epoch, Digest: scstore.Digest{c.fresh()}}
}

func (c *chaos) life(id scstore.VolumeID) meta.Op {
	switch c.pick(9) {
	case 0:
		return meta.CreateImage{ID: id, SizeBytes: scstore.BlockSize, Position: pos(0, 1)}
	case 1, 2:
		base := c.id()
		return meta.CreateVolume{ID: id, SizeBytes: 8 * scstore.BlockSize, Base: base, BasePosition: c.at(base)}
	case 3:
		return meta.Remove{ID: id}
	case 4:
		return meta.Forget{ID: id}
	case 5:
		return meta.Link{Name: "n" + string('a'+rune(c.pick(4))), ID: id, Group: c.group()}
	case 6:
		return meta.Rename{From: "n" + string('a'+rune(c.pick(4))), To: []string{"na", "na/b", "nc"}[c.pick(3)]}
	}
	return meta.CreateVolume{ID: id, Name: []string{"", "", "na", "nb/x"}[c.pick(4)], SizeBytes: 8 * scstore.BlockSize}
}

func (c *chaos) cluster(id scstore.VolumeID) meta.Op {
	switch c.pick(12) {
	case 0:
		return meta.RemoveDisk{Disk: c.disk()}
	case 1, 2:
		return meta.AdmitDisk{Disk: c.disk(), Site: c.site()}
	case 3:
		return meta.SetSite{Site: meta.Site{Name: c.site(), Voters: []meta.DiskID{c.disk()}[:c.pick(2)]}}
	case 4:
		return addHost(c.disk(), "h"+string('a'+rune(c.pick(4))), c.site())
	case 5:
		return meta.RemoveSite{Name: c.site()}
	case 6:
		return meta.AllocReplica{Group: 2, Disk: c.disk()}
	case 7:
		return meta.Renew{Disk: c.disk(), N: c.seq()}
	case 8:
		c.now += int64(c.pick(5_000))
		return meta.Expire{NowMs: c.now}
	case 9:
		return meta.AddToken{Hash: meta.TokenHash{byte(c.pick(3))}, Site: c.site(), ExpiresAtMs: c.now + 1_000, NowMs: c.now}
	case 10:
		return meta.UseToken{Hash: meta.TokenHash{byte(c.pick(3))}, Disk: c.disk(), NowMs: c.now}
	}
	return meta.Resize{ID: id, SizeBytes: int64(8+c.pick(4)) * scstore.BlockSize}
}

func (c *chaos) replica(id scstore.VolumeID, fence scstore.Fence) meta.Op {
	at := c.at(id)
	switch c.pick(8) {
	case 0:
		return meta.Release{Disk: c.disk(), Seq: c.seq(), ID: id, Position: at}
	case 1:
		sites := [][]meta.SiteID{nil, {siteA}, {siteA, siteB}, {siteA, siteB, siteC}}[c.pick(4)]
		return meta.SetPlacement{ID: id, Placement: meta.Placement{Sites: sites, Mode: meta.ModeLazy + meta.Mode(c.pick(3)), Failover: meta.FailoverManual + meta.Failover(c.pick(2))}}
	case 2:
		return meta.JoinInSync{ID: id, Fence: fence, Site: c.site()}
	case 3:
		return meta.LeaveInSync{ID: id, Fence: fence, Site: c.site()}
	case 4:
		return meta.Complete{Disk: c.disk(), Seq: c.seq(), ID: id, Position: at}
	}
	return meta.Ack{Disk: c.disk(), Seq: c.seq(), Items: []meta.AckItem{{ID: id, Position: at, Complete: c.pick(3) > 0}}}
}

func (c *chaos) move(id scstore.VolumeID) meta.Op {
	if c.pick(3) > 0 {
		return c.regroup(id)
	}
	moves := c.s.Moves()
	if len(moves) == 0 || c.pick(3) == 0 {
		r, _ := c.s.Get(id)
		o := meta.Intent{Move: meta.Move{ID: moveID(c.fresh()), From: r.Holder, To: c.disk(), Volumes: []scstore.VolumeID{id}, DeadlineMs: c.now + 4_000}, NowMs: c.now}
		return o
	}
	m := moves[c.pick(len(moves))]
	switch c.pick(5) {
	case 0:
		return meta.Cancel{ID: m.ID}
	case 1:
		return meta.DropIntent{ID: m.ID}
	}
	o := meta.HandOff{ID: m.ID, To: m.To}
	for _, id := range m.Volumes {
		r, _ := c.s.Get(id)
		h := meta.Handed{ID: id, Fence: r.Fence, Parent: r.Parent, Final: r.Head, Digest: r.Digest}
		if c.pick(2) == 0 {
			h.Parent, h.Final = r.Head, scstore.Position{Fence: r.Fence, Epoch: r.Head.Epoch + 1}
		}
		o.Volumes = append(o.Volumes, h)
	}
	return o
}

// regroup sends a record to the peer and back, and stops anywhere.
func (c *chaos) regroup(id scstore.VolumeID) meta.Op {
	n := uint64(1 + c.pick(2))
	if record, ok := c.peer.Export(id); ok && c.pick(2) == 0 {
		return meta.Import{From: c.peer.Group(), N: n, Record: record}
	}
	switch c.pick(9) {
	case 0:
		return meta.Unfreeze{ID: id, N: n}
	case 1, 5:
		return meta.Forward{ID: id, N: n}
	case 2, 6, 7:
		return meta.Activate{ID: id, N: n}
	case 3:
		return meta.DropImport{ID: id, N: n}
	case 4:
		return meta.DropForward{ID: id}
	}
	return meta.Freeze{ID: id, To: 5 - max(2, c.s.Group()), N: n}
}

func (c *chaos) loss(id scstore.VolumeID, r meta.Record) meta.Op {
	if r.Phase == meta.PhaseRevoked && c.pick(2) == 0 {
		return meta.Promote{ID: id, Fence: r.Fence, Position: c.at(id), Holder: c.disk()}
	}
	forks := c.s.Forks(id)
	switch {
	case len(forks) > 0 && c.pick(2) == 0:
		f := forks[c.pick(len(forks))]
		if c.pick(3) == 0 {
			return meta.ReportNoBranch{ID: id, Fence: f.Fence, Disk: f.Owner}
		}
		return meta.RegisterBranch{
			ID: id, Branch: volumeID(byte(1 + c.pick(12))), Fence: f.Fence, Fork: f.Position, Head: scstore.Position{Fence: f.Fence, Epoch: f.Position.Epoch + 1}, Disk: f.Owner,
		}
	case c.pick(4) == 0:
		return meta.TakeOver{ID: id, Fence: max(1, r.Fence), N: max(1, c.s.Session(r.Holder))}
	}
	return meta.Revoke{ID: id, Fence: max(1, r.Fence)}
}

func (c *chaos) keep(id scstore.VolumeID, fence scstore.Fence, epoch scstore.Epoch) meta.Op {
	name := string('s' + rune(c.pick(3)))
	at := c.at(id)
	switch c.pick(7) {
	case 0, 1:
		return meta.Snapshot{ID: id, Name: name, Position: at}
	case 2:
		return meta.DeleteSnapshot{ID: id, Name: name}
	case 3:
		return meta.AddRef{Base: id, Ref: meta.Ref{Clone: c.id(), Position: at, Group: c.group()}}
	case 4:
		return meta.DropRef{Base: id, Clone: c.id()}
	case 5:
		r, _ := c.s.Get(id)
		return meta.Rollback{ID: id, Snapshot: name, Fence: fence, Parent: r.Head, Epoch: epoch, Digest: scstore.Digest{c.fresh()}}
	}
	c.now += 10
	return meta.PutPin{ID: id, NowMs: c.now, Pin: meta.Pin{ID: meta.PinID{byte(1 + c.pick(3))}, Kind: meta.PinRead + meta.PinKind(c.pick(2)), Position: at, Disk: c.disk(), DeadlineMs: c.now + int64(c.pick(3_000))}}
}

// TestChaos_EveryStateKeepsTheInvariantsAndIsReadBack runs two groups, or one state
// for everything.
func TestChaos_EveryStateKeepsTheInvariantsAndIsReadBack(t *testing.T) {
	applied := map[string]int{}
	for seed := range uint64(modelChecks / 2) {
		c := &chaos{pick: rand.New(rand.NewPCG(seed, 11)).IntN, now: 1_000}
		c.s, c.peer = meta.NewGroup(2), meta.NewGroup(3)
		if c.pick(2) == 0 {
			c.s, c.peer = meta.New(), meta.NewGroup(2)
		}
		for step := range 250 {
			op := c.op()
			r := c.s.Apply(meta.Command{Op: op})
			if r.Code == meta.CodeOK {
				applied[fmt.Sprintf("%T", op)]++
			}
			if err := c.s.Verify(); err != nil {
				t.Fatalf("seed %d, step %d, after %T%+v, %v: %v", seed, step, op, op, r.Code, err)
			}
			if c.pick(10) == 0 {
				c.s, c.peer = c.peer, c.s
			}
		}
		for _, s := range []*meta.State{c.s, c.peer} {
			b := s.AppendTo(nil)
			again, err := meta.ParseState(b)
			if err != nil || !bytes.Equal(again.AppendTo(nil), b) {
				t.Fatalf("seed %d: read back: %v", seed, err)
			}
		}
	}
	for _, op := range []meta.Op{
		meta.CreateImage{}, meta.CreateVolume{}, meta.Remove{}, meta.Forget{}, meta.CommitEpoch{}, meta.RemoveDisk{}, meta.Ack{}, meta.Complete{}, meta.Release{}, meta.SetPlacement{},
		meta.JoinInSync{}, meta.Snapshot{}, meta.AddRef{}, meta.DropRef{}, meta.Rollback{}, meta.PutPin{}, meta.Intent{}, meta.HandOff{}, meta.Cancel{}, meta.Revoke{}, meta.Promote{},
		meta.RegisterBranch{}, meta.Freeze{}, meta.Import{}, meta.Forward{}, meta.Activate{}, meta.AddHost{}, meta.Link{},
	} {
		if applied[fmt.Sprintf("%T", op)] == 0 {
			t.Errorf("no history applied %T", op)
		}
	}
}
