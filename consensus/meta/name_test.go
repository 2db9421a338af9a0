package meta_test

import (
	"errors"
	"strings"
	"testing"

	"scstore"
	"scstore/consensus/meta"
)

func TestValidateName(t *testing.T) {
	good := []string{
		"a", "prod/web1", "a/b/c", "été/世界", "a b", "...", ".hidden", "a.", "a//"[:1],
		strings.Repeat("s", meta.MaxSegmentBytes),
		strings.Repeat("s/", meta.MaxNameBytes/2-1) + "ss",
	}
	for _, name := range good {
		if err := meta.ValidateName(name); err != nil {
			t.Errorf("ValidateName(%q) = %v, want nil", name, err)
		}
	}
	bad := []string{
		"", "/", "/a", "a/", "a//b", ".", "..", "a/..", "./a", "a/./b", "a@b", "@", "a\x00b", "a\nb", "a\x7f", "a\u0085b", "\xff", "a/\xc3",
		strings.Repeat("s", meta.MaxSegmentBytes+1),
		strings.Repeat("s/", meta.MaxNameBytes/2) + "s",
	}
	for _, name := range bad {
		if err := meta.ValidateName(name); !errors.Is(err, scstore.ErrInvalid) {
			t.Errorf("ValidateName(%q) = %v, want ErrInvalid", name, err)
		}
	}
}
