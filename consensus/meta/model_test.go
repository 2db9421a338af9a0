package meta_test

import (
	"bytes"
	"flag"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"scstore"
	"scstore/consensus/meta"
)

// model is the state machine written the dumb way: one list, searched from the
// front, nothing derived, and every outcome of every session kept for ever.
type model struct {
	records  []meta.Record
	commits  map[scstore.VolumeID][]meta.CommitEpoch // the latest, as many as a state knows
	outcomes map[meta.CommandID]meta.Result
}

func (m *model) find(match func(meta.Record) bool) *meta.Record {
	if i := slices.IndexFunc(m.records, match); i >= 0 {
		return &m.records[i]
	}
	return nil
}

func (m *model) any(id scstore.VolumeID) *meta.Record {
	return m.find(func(r meta.Record) bool { return r.ID == id })
}

func (m *model) live(id scstore.VolumeID) *meta.Record {
	return m.find(func(r meta.Record) bool { return r.ID == id && r.Life == meta.Live })
}

func (m *model) named(name string) *meta.Record {
	return m.find(func(r meta.Record) bool { return r.Life == meta.Live && r.Name == name })
}

// nameCode compares the name with every other, but for the record that has it.
func (m *model) nameCode(name string, but scstore.VolumeID) meta.Code {
	code := meta.CodeOK
	for _, r := range m.records {
		switch {
		case r.Life != meta.Live || r.ID == but:
		case r.Name == name:
			return meta.CodeNameTaken
		case strings.HasPrefix(r.Name, name+"/"):
			return meta.CodeNameIsFolder
		case strings.HasPrefix(name, r.Name+"/"):
			code = meta.CodeParentIsVolume
		}
	}
	return code
}

func (m *model) apply(c meta.Command) meta.Result {
	if c.Validate() != nil {
		return meta.Result{Code: meta.CodeInvalid}
	}
	if !c.ID.IsZero() {
		if r, ok := m.outcomes[c.ID]; ok {
			return r
		}
	}
	r := m.run(c.Op)
	if !c.ID.IsZero() {
		m.outcomes[c.ID] = r
	}
	return r
}

func (m *model) run(op meta.Op) meta.Result {
	switch o := op.(type) {
	case meta.OpenSession:
		return meta.Result{Code: meta.CodeOK}
	case meta.CreateVolume:
		return m.create(meta.Record{
			ID: o.ID, Kind: meta.KindVolume, Life: meta.Live, Name: o.Name, SizeBytes: o.SizeBytes,
			Base: o.Base, BasePosition: o.BasePosition, CreatedAtMs: o.CreatedAtMs,
		})
	case meta.CreateImage:
		return m.create(meta.Record{
			ID: o.ID, Kind: meta.KindImage, Life: meta.Live, Name: o.Name, SizeBytes: o.SizeBytes,
			Fence: o.Position.Fence, Head: o.Position, Digest: o.Digest, CreatedAtMs: o.CreatedAtMs,
		})
	case meta.Remove:
		return m.remove(o)
	case meta.Forget:
		r := m.any(o.ID)
		if r == nil {
			return meta.Result{Code: meta.CodeNoVolume}
		}
		if r.Life == meta.Live {
			return meta.Result{Code: meta.CodeNotRemoved, ID: o.ID}
		}
		m.records = slices.DeleteFunc(m.records, func(r meta.Record) bool { return r.ID == o.ID })
		delete(m.commits, o.ID)
		return meta.Result{Code: meta.CodeOK, ID: o.ID}
	case meta.Rename:
		r := m.named(o.From)
		if r == nil {
			return meta.Result{Code: meta.CodeNoName}
		}
		code := m.nameCode(o.To, r.ID)
		if code == meta.CodeOK {
			r.Name = o.To
		}
		return meta.Result{Code: code, ID: r.ID}
	}
	return m.runOnVolume(op)
}

func (m *model) create(r meta.Record) meta.Result {
	if m.any(r.ID) != nil {
		return meta.Result{Code: meta.CodeIDTaken}
	}
	if code := m.nameCode(r.Name, scstore.VolumeID{}); code != meta.CodeOK {
		return meta.Result{Code: code}
	}
	if !r.Base.IsZero() {
		base := m.live(r.Base)
		if base == nil || base.Kind != meta.KindImage || base.Head != r.BasePosition || base.SizeBytes > r.SizeBytes {
			return meta.Result{Code: meta.CodeBadBase}
		}
	}
	r.Phase = meta.PhaseNormal
	m.records = append(m.records, r)
	return meta.Result{Code: meta.CodeOK, ID: r.ID, Position: r.Head}
}

func (m *model) remove(o meta.Remove) meta.Result {
	r, missing := m.live(o.ID), meta.CodeNoVolume
	if o.Name != "" {
		r, missing = m.named(o.Name), meta.CodeNoName
	}
	if r == nil {
		return meta.Result{Code: missing}
	}
	if m.find(func(c meta.Record) bool { return c.Base == r.ID }) != nil {
		return meta.Result{Code: meta.CodeInUse, ID: r.ID}
	}
	r.Life, r.Name = meta.Tombstone, ""
	return meta.Result{Code: meta.CodeOK, ID: r.ID}
}

func (m *model) runOnVolume(op meta.Op) meta.Result {
	var id scstore.VolumeID
	switch o := op.(type) {
	case meta.OpenFence:
		id = o.ID
	case meta.CommitEpoch:
		id = o.ID
	case meta.Resize:
		id = o.ID
	}
	r := m.live(id)
	if r == nil {
		return meta.Result{Code: meta.CodeNoVolume}
	}
	if r.Kind == meta.KindImage {
		return meta.Result{Code: meta.CodeImage, ID: id}
	}
	switch o := op.(type) {
	case meta.OpenFence:
		if r.Holder != "" && r.Holder != o.Holder {
			return meta.Result{Code: meta.CodeHeld, ID: id, Fence: r.Fence, Position: r.Head}
		}
		r.Fence, r.Holder = r.Fence+1, o.Holder
		return meta.Result{Code: meta.CodeOK, ID: id, Fence: r.Fence, Position: r.Head}
	case meta.Resize:
		if o.SizeBytes < r.SizeBytes {
			return meta.Result{Code: meta.CodeShrink, ID: id}
		}
		r.SizeBytes = o.SizeBytes
		return meta.Result{Code: meta.CodeOK, ID: id}
	case meta.CommitEpoch:
		code := meta.CodeOK
		next := scstore.Position{Fence: o.Fence, Epoch: o.Epoch}
		again := slices.Contains(m.commits[id], o)
		switch {
		case again:
		case o.Fence < r.Fence:
			code = meta.CodeFenced
		case o.Fence > r.Fence:
			code = meta.CodeNotGranted
		case o.Parent != r.Head || r.Head.Fence == o.Fence && o.Epoch <= r.Head.Epoch:
			code = meta.CodeBadParent
		default:
			r.Parent, r.Head, r.Digest = r.Head, next, o.Digest
			m.commits[id] = append(m.commits[id], o)
			if n := len(m.commits[id]); n > meta.MaxRecent {
				m.commits[id] = m.commits[id][1:]
			}
		}
		return meta.Result{Code: code, ID: id, Fence: r.Fence, Position: r.Head}
	}
	panic("operation that the model does not know")
}

// The pools are small, so that commands meet.
var (
	genID       = rapid.Map(rapid.ByteRange(0, 6), func(n byte) scstore.VolumeID { return map[bool]scstore.VolumeID{false: volumeID(n)}[n == 0] })
	genName     = rapid.SampledFrom([]string{"a", "b", "a/a", "a/b", "a/b/c", "b/b", "ab", "bad@name"})
	genSize     = rapid.Map(rapid.Int64Range(0, 6), func(n int64) int64 { return n * scstore.BlockSize })
	genPosition = rapid.Custom(func(t *rapid.T) scstore.Position {
		return pos(rapid.Uint64Range(0, 3).Draw(t, "fence"), rapid.Uint64Range(0, 3).Draw(t, "epoch"))
	})
	genDigest = rapid.Map(rapid.ByteRange(0, 1), func(n byte) scstore.Digest { return scstore.Digest{n} })
	genTime   = rapid.Int64Range(0, 1<<50)
)

// drawOp draws an operation; m makes commits and clones likely to fit.
func drawOp(t *rapid.T, m *model) meta.Op {
	id := genID.Draw(t, "id")
	switch rapid.IntRange(0, 8).Draw(t, "op") {
	case 0:
		return meta.CreateVolume{ID: id, Name: genName.Draw(t, "name"), SizeBytes: genSize.Draw(t, "size"), CreatedAtMs: genTime.Draw(t, "time")}
	case 1:
		o := meta.CreateVolume{ID: id, Name: genName.Draw(t, "name"), SizeBytes: genSize.Draw(t, "size"), Base: genID.Draw(t, "base"), BasePosition: genPosition.Draw(t, "at")}
		if r := m.find(func(r meta.Record) bool { return r.Kind == meta.KindImage }); r != nil && rapid.Bool().Draw(t, "fits") {
			o.Base, o.BasePosition, o.SizeBytes = r.ID, r.Head, 5*scstore.BlockSize
		}
		return o
	case 2:
		return meta.CreateImage{ID: id, Name: genName.Draw(t, "name"), SizeBytes: genSize.Draw(t, "size"), Position: genPosition.Draw(t, "at"), Digest: genDigest.Draw(t, "digest")}
	case 3:
		if rapid.Bool().Draw(t, "byName") {
			return meta.Remove{Name: genName.Draw(t, "name")}
		}
		return meta.Remove{ID: id}
	case 4:
		return meta.Forget{ID: id}
	case 5:
		return meta.Rename{From: genName.Draw(t, "from"), To: genName.Draw(t, "to")}
	case 6:
		return meta.OpenFence{ID: id, Holder: rapid.SampledFrom([]meta.DiskID{"", "host-a", "host-b"}).Draw(t, "holder")}
	case 7:
		return meta.Resize{ID: id, SizeBytes: genSize.Draw(t, "size")}
	}
	commit := meta.CommitEpoch{ID: id, Fence: scstore.Fence(rapid.Uint64Range(0, 3).Draw(t, "fence")), Parent: genPosition.Draw(t, "parent"), Epoch: scstore.Epoch(rapid.Uint64Range(0, 3).Draw(t, "epoch")), Digest: genDigest.Draw(t, "digest")}
	if r := m.any(id); r != nil && rapid.Bool().Draw(t, "fits") {
		commit.Fence, commit.Parent, commit.Epoch = r.Fence, r.Head, r.Head.Epoch+1
	}
	return commit
}

// TestModel_RandomHistories runs histories with retries against the dumb model;
// at random points the state goes through its encoding, and a second state that
// applies the encoded commands must have the same bytes throughout.
func TestModel_RandomHistories(t *testing.T) {
	if flag.Lookup("rapid.checks").Value.String() == "100" { // rapid's default; a person may ask for another
		if err := flag.Set("rapid.checks", strconv.Itoa(modelChecks)); err != nil {
			t.Fatal(err)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		s, follower := meta.New(), meta.New()
		m := &model{outcomes: map[meta.CommandID]meta.Result{}, commits: map[scstore.VolumeID][]meta.CommitEpoch{}}
		both := func(c meta.Command) meta.Result {
			got := s.Apply(c)
			if c.Op == nil {
				follower.Apply(c)
				return got
			}
			read, rest, err := meta.ParseCommand(c.AppendTo(nil))
			if err != nil || len(rest) != 0 || !reflect.DeepEqual(read, c) {
				t.Fatalf("round trip of %+v: %+v, rest %d, %v", c, read, len(rest), err)
			}
			follower.Apply(read)
			return got
		}
		for n := range byte(2) {
			both(meta.Command{ID: meta.CommandID{Client: clientID(n)}, Op: meta.OpenSession{}})
		}
		var sent []meta.Command
		for step := range rapid.IntRange(1, 120).Draw(t, "steps") {
			c := meta.Command{Op: drawOp(t, m)}
			switch rapid.IntRange(0, 3).Draw(t, "protect") {
			case 0: // unprotected
			case 1:
				if len(sent) > 0 { // a retry within what the session keeps
					c = sent[len(sent)-1-rapid.IntRange(0, min(len(sent), meta.MaxSessionResults)-1).Draw(t, "back")]
				}
			default:
				c.ID = meta.CommandID{Client: clientID(byte(step % 2)), Seq: uint64(step + 1)}
				sent = append(sent, c)
			}
			if want, got := m.apply(c), both(c); !got.Equal(want) {
				t.Fatalf("%+v: got %+v, want %+v", c, got, want)
			}
			if rapid.IntRange(0, 9).Draw(t, "reopen") == 0 {
				again, err := meta.ParseState(s.AppendTo(nil))
				if err != nil {
					t.Fatal(err)
				}
				s = again
			}
			compare(t, s, m)
			if !bytes.Equal(s.AppendTo(nil), follower.AppendTo(nil)) {
				t.Fatal("the follower's bytes differ")
			}
		}
	})
}

func compare(t *rapid.T, s *meta.State, m *model) {
	live, dead := 0, 0
	for _, want := range m.records {
		got, ok := s.Get(want.ID)
		if !ok || got != want {
			t.Fatalf("record: got %+v, want %+v", got, want)
		}
		if want.Life == meta.Tombstone {
			dead++
			continue
		}
		live++
		if named, ok := s.Lookup(want.Name); !ok || named != want {
			t.Fatalf("lookup %q: got %+v, want %+v", want.Name, named, want)
		}
	}
	if l, d := len(s.List("")), len(s.Tombstones()); l != live || d != dead {
		t.Fatalf("got %d live and %d tombstones, want %d and %d", l, d, live, dead)
	}
}
