package scstore_test

import (
	"errors"
	"testing"

	"scstore"
)

func TestTag_KeepsItsPosition(t *testing.T) {
	p := scstore.Position{Fence: 1 << 63, Epoch: 258}
	tag := scstore.PositionTag(scstore.TagServed, p)
	if got := tag.Position(); got != p {
		t.Errorf("position: got %s, want %s", got, p)
	}
	if got, want := tag.String(), "3:80000000000000000000000000000102"; got != want {
		t.Errorf("tag: got %s, want %s", got, want)
	}
	if tag.IsZero() || !(scstore.Tag{}).IsZero() || tag == scstore.PositionTag(scstore.TagSealed, p) {
		t.Error("tags of different kinds are the same, or none is one")
	}
}

func TestText_IDsAndDigestsAreReadBack(t *testing.T) {
	digest, id := scstore.Digest{1, 31: 2}, scstore.VolumeID{3, 15: 4}
	var d scstore.Digest
	var v scstore.VolumeID
	a, _ := digest.MarshalText()
	b, _ := id.MarshalText()
	if err := errors.Join(d.UnmarshalText(a), v.UnmarshalText(b)); err != nil || d != digest || v != id {
		t.Errorf("got %s, %s, %v", d, v, err)
	}
	for _, text := range []string{"", "zz", string(a[1:]), "x" + string(a[1:])} {
		if err := d.UnmarshalText([]byte(text)); !errors.Is(err, scstore.ErrInvalid) {
			t.Errorf("digest %q: got %v", text, err)
		}
		if err := v.UnmarshalText([]byte(text)); !errors.Is(err, scstore.ErrInvalid) {
			t.Errorf("id %q: got %v", text, err)
		}
	}
}
