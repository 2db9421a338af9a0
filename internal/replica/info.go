package replica

import (
	"fmt"
	"slices"
	"time"

	"scstore"
	"scstore/consensus/meta"
	"scstore/fs/volume"
)

// Role is what a host is to a volume.
type Role string

// The roles.
const (
	RoleOwner   Role = "owner"   // it writes
	RoleTarget  Role = "target"  // it is being handed the volume
	RoleReplica Role = "replica" // it has a complete copy
	RolePartial Role = "partial" // it knows where the bytes are, and has some
	RoleNone    Role = "none"
)

// Info says what a volume's bytes hang on, as this host sees it.
type Info struct {
	Role   Role
	Owner  meta.DiskID // empty for nobody
	Fence  scstore.Fence
	Phase  meta.Phase
	Head   scstore.Position // the newest committed
	Here   scstore.Position // the newest complete position here
	Copies []Copy
	// What is at the owner alone, as far as this host knows: exactly at the owner.
	OnlyBytes int64
	OnlyFor   time.Duration
	Unsealed  int64 // bytes that were written here since the last seal
	Pending   int   // epochs sealed here that are not committed
	Tether    *Tether
	Jump      *Jumping
	Branches  []scstore.VolumeID
}

// Copy is what one host has of a volume.
type Copy struct {
	Disk     meta.DiskID
	Site     meta.SiteID
	Position scstore.Position // complete there
	Partial  scstore.Position // whose map is there, zero for none
	Current  bool             // Position is the newest committed one
	Owner    bool
}

// Tether is what this host still lacks of a volume that it writes.
type Tether struct {
	Source       meta.DiskID // that has it; empty if nobody does
	MissingBytes int64
	ETA          time.Duration // 0: not known
}

// Jumping is a copy on its way to another position.
type Jumping struct {
	To             scstore.Position
	Blocks, Staged uint64 // as far as manifests have come
}

// Info describes a volume. Errors: ErrNotFound.
func (s *Set) Info(id scstore.VolumeID) (Info, error) {
	g, err := s.groupOf(id)
	if err != nil {
		return Info{}, fmt.Errorf("volume info: %w", err)
	}
	var out Info
	var history []meta.Point
	var holders []meta.DiskID
	ok := false
	r := s.replica(id)
	r.mu.Lock()
	partial := r.facts.Partial
	r.mu.Unlock()
	err = s.o.Log.View(g, func(st *meta.State) {
		rec, found := st.Get(id)
		t, live := st.Holder(id)
		if ok = found && live; !ok {
			return
		}
		out = Info{Owner: t.Holder, Fence: t.Fence, Phase: t.Phase, Head: rec.Head}
		history = st.History(id)
		for _, m := range st.Replicas(id) {
			out.Copies = append(out.Copies, Copy{
				Disk: m.Disk, Site: m.Site, Position: m.Complete, Partial: m.Partial, Current: m.Complete == rec.Head, Owner: m.Disk == t.Holder,
			})
		}
		for _, b := range st.Branches(id) {
			out.Branches = append(out.Branches, b.ID)
		}
		holders = s.holders(st, id, partial)
	})
	if err == nil && !ok {
		err = fmt.Errorf("volume %s: %w", id, scstore.ErrNotFound)
	}
	if err != nil {
		return Info{}, fmt.Errorf("volume info: %w", err)
	}
	s.describe(r, &out, history, holders)
	return out, nil
}

// describe adds what this host alone knows.
func (s *Set) describe(r *Replica, out *Info, history []meta.Point, holders []meta.DiskID) {
	missing := s.complete(r)
	r.mu.Lock()
	defer r.mu.Unlock()
	out.Here = r.newestOf(history)
	out.Pending = len(r.facts.Pending)
	switch {
	case r.facts.Fence != 0:
		out.Role = RoleOwner
	case r.target != nil:
		out.Role = RoleTarget
	case out.Here != scstore.Position{}:
		out.Role = RoleReplica
	case r.table != nil:
		out.Role = RolePartial
	default:
		out.Role = RoleNone
	}
	if j := r.jump; j != nil {
		out.Jump = &Jumping{To: j.to, Blocks: j.progress.Blocks, Staged: j.progress.Staged}
	}
	if missing > 0 {
		out.Tether = &Tether{MissingBytes: missing}
		if len(holders) > 0 {
			out.Tether.Source = holders[0]
		}
		if f := r.fill; f != nil && f.filled > 0 {
			rate := float64(f.filled) / (s.now() - f.begun).Seconds() // blocks a second
			out.Tether.ETA = time.Duration(float64(missing/scstore.BlockSize) / rate * float64(time.Second))
		}
	}
	if out.Role != RoleOwner {
		return
	}
	if r.device != nil {
		out.Unsealed = r.device.written.Load()
	}
	out.OnlyBytes = r.onlyBytes(*out)
	if r.exposed != 0 {
		out.OnlyFor = s.now() - r.exposed
	}
}

// onlyBytes returns how many bytes are at this owner alone: what was written after the
// newest position that another host has. mu is held.
func (r *Replica) onlyBytes(in Info) int64 {
	if r.table == nil {
		return 0
	}
	var other scstore.Position
	for _, c := range in.Copies {
		if !c.Owner && c.Position.Compare(other) > 0 {
			other = c.Position
		}
	}
	var tag scstore.Tag
	if other != (scstore.Position{}) {
		if tag = sealedTag(other); !r.table.Marked(tag) {
			return in.Unsealed // the other is ahead of a crash of ours, or far behind: nothing better is known
		}
	}
	list, err := volume.Changed(r.set.ctx, r.table, tag, scstore.Tag{}, blocksOf(r.table))
	if err != nil {
		return in.Unsealed
	}
	remote, err := remoteIn(r.set.ctx, r.table, blocksOf(r.table))
	if err != nil {
		return in.Unsealed
	}
	return int64(countBlocks(subtract(list, remote))) * scstore.BlockSize
}

// onlySince returns since when there are writes that are known to be here alone, although
// other sites are to have them; 0 if there are none. mu is held.
func (r *Replica) onlySince(st *meta.State) time.Duration {
	p, _ := st.PlacementOf(r.id)
	if r.facts.Fence == 0 || r.device == nil || !slices.ContainsFunc(p.Sites, func(site meta.SiteID) bool { return site != r.set.o.Site }) {
		return 0
	}
	var other scstore.Position
	for _, m := range st.Replicas(r.id) {
		if m.Disk != r.set.o.Disk && m.Complete.Compare(other) > 0 {
			other = m.Complete
		}
	}
	for _, x := range r.stamps {
		if x.at.Compare(other) > 0 {
			return max(x.first, 1)
		}
	}
	if r.device.written.Load() > 0 {
		return max(time.Duration(r.device.first.Load()), 1)
	}
	return 0
}

// lag is the longest time that writes have been here alone, in seconds.
func (s *Set) lag() float64 {
	oldest := time.Duration(0)
	for _, r := range s.all() {
		r.mu.Lock()
		if r.exposed != 0 && (oldest == 0 || r.exposed < oldest) {
			oldest = r.exposed
		}
		r.mu.Unlock()
	}
	if oldest == 0 {
		return 0
	}
	return (s.now() - oldest).Seconds()
}
