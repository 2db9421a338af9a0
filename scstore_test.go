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

func TestDigest_TextIsReadBack(t *testing.T) {
	want := scstore.Digest{1, 2, 31: 0xff}
	text, err := want.MarshalText()
	if err != nil {
		t.Fatal(err)
	}
	var got scstore.Digest
	if err := got.UnmarshalText(text); err != nil || got != want {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
	for _, bad := range []string{"", "01", string(text[1:]) + "g"} {
		if err := got.UnmarshalText([]byte(bad)); !errors.Is(err, scstore.ErrInvalid) {
			t.Errorf("%q: got %v, want ErrInvalid", bad, err)
		}
	}
}
