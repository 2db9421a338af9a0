package scstore_test

import (
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
