package meta_test

import (
	"bytes"
	"testing"

	"scstore"
	"scstore/consensus/meta"
)

func volumeID(n byte) scstore.VolumeID { return scstore.VolumeID{0: 0xc0, 15: n} }

func clientID(n byte) meta.ClientID { return meta.ClientID{0: 0xee, 15: n} }

func pos(fence, epoch uint64) scstore.Position {
	return scstore.Position{Fence: scstore.Fence(fence), Epoch: scstore.Epoch(epoch)}
}

// apply runs an unprotected command and wants this code.
func apply(t *testing.T, s *meta.State, op meta.Op, want meta.Code) meta.Result {
	t.Helper()
	got := s.Apply(meta.Command{Op: op})
	if got.Code != want {
		t.Fatalf("%T%+v: got %q, want %q", op, op, got.Code, want)
	}
	return got
}

// reopen returns the state after a round trip through its encoding.
func reopen(t testing.TB, s *meta.State) *meta.State {
	t.Helper()
	b := s.AppendTo(nil)
	again, err := meta.ParseState(b)
	if err != nil {
		t.Fatalf("parse a state that was written: %v", err)
	}
	if !bytes.Equal(again.AppendTo(nil), b) {
		t.Fatal("a state that was read back has other bytes")
	}
	return again
}

func volume(n byte, name string) meta.CreateVolume {
	return meta.CreateVolume{ID: volumeID(n), Name: name, SizeBytes: 8 * scstore.BlockSize, CreatedAtMs: 1_800_000_000_000}
}

func image(n byte, name string) meta.CreateImage {
	return meta.CreateImage{
		ID: volumeID(n), Name: name, SizeBytes: 4 * scstore.BlockSize, Position: pos(0, 1),
		Digest: scstore.Digest{1, 2, 3}, CreatedAtMs: 1_800_000_000_001,
	}
}

func clone(n byte, name string, base meta.CreateImage) meta.CreateVolume {
	v := volume(n, name)
	v.Base, v.BasePosition = base.ID, base.Position
	return v
}
