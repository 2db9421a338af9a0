package disk

import (
	"fmt"
	"strings"

	"scstore"
)

// MaxNameBytes is the longest file name of a store's folder, in bytes.
const MaxNameBytes = 255

// CheckName reports whether name can name a file of a folder: one path element
// that is neither empty nor a dot name. Every FS applies it, so that a name taken
// from damaged bytes cannot leave the folder. Errors: scstore.ErrInvalid.
func CheckName(name string) error {
	switch {
	case name == "", name == ".", name == "..":
		return fmt.Errorf("check file name %q: %w", name, scstore.ErrInvalid)
	case len(name) > MaxNameBytes:
		return fmt.Errorf("check file name %.32q: longer than %d bytes: %w", name, MaxNameBytes, scstore.ErrInvalid)
	case strings.ContainsAny(name, "/\x00"):
		return fmt.Errorf("check file name %q: holds a separator: %w", name, scstore.ErrInvalid)
	}
	return nil
}
