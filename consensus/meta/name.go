package meta

import (
	"fmt"
	"strings"
	"unicode/utf8"

	"scstore"
)

// Limits of names, in bytes.
const (
	MaxNameBytes    = 1024 // a whole name
	MaxSegmentBytes = 255  // the part between two slashes, as in a file system
)

// ValidateName checks a name of the namespace, such as "prod/web1": at most
// MaxNameBytes of valid UTF-8, segments of 1 to MaxSegmentBytes between slashes,
// none of them "." or "..", no control character, and no '@', which separates a
// volume from its snapshot. Errors: ErrInvalid.
func ValidateName(name string) error {
	if name == "" {
		return fmt.Errorf("name is empty: %w", scstore.ErrInvalid)
	}
	if len(name) > MaxNameBytes {
		return fmt.Errorf("name of %d bytes is longer than %d: %w", len(name), MaxNameBytes, scstore.ErrInvalid)
	}
	if !utf8.ValidString(name) {
		return fmt.Errorf("name %q is not valid UTF-8: %w", name, scstore.ErrInvalid)
	}
	for _, r := range name {
		if r == '@' || isControl(r) {
			return fmt.Errorf("name %q holds %q: %w", name, r, scstore.ErrInvalid)
		}
	}
	for segment := range strings.SplitSeq(name, "/") {
		switch {
		case segment == "":
			return fmt.Errorf("name %q has an empty part (a slash too many): %w", name, scstore.ErrInvalid)
		case segment == ".", segment == "..":
			return fmt.Errorf("name %q holds the part %q: %w", name, segment, scstore.ErrInvalid)
		case len(segment) > MaxSegmentBytes:
			return fmt.Errorf("name %q has a part longer than %d bytes: %w", name, MaxSegmentBytes, scstore.ErrInvalid)
		}
	}
	return nil
}

// isControl reports whether r is a control character. The ranges are spelled out
// because members built with different Unicode tables must agree.
func isControl(r rune) bool { return r < 0x20 || 0x7f <= r && r < 0xa0 }

// parents yields the folders of a name, the innermost first: "a/b", then "a" for
// "a/b/c".
func parents(name string) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		for i := strings.LastIndexByte(name, '/'); i > 0; i = strings.LastIndexByte(name[:i], '/') {
			if !yield(name[:i]) {
				return
			}
		}
	}
}
