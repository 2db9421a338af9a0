package meta

import (
	"fmt"
	"slices"
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

// validateSegment checks a name of one part.
func validateSegment(what, name string) error {
	if err := ValidateName(name); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if strings.Contains(name, "/") {
		return fmt.Errorf("%s name %q holds a slash: %w", what, name, scstore.ErrInvalid)
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

// within reports whether name is folder or lies below it; "" holds all.
func within(folder, name string) bool {
	return folder == "" || name == folder || strings.HasPrefix(name, folder+"/")
}

// Entry is a name of the namespace: which volume it names, and the group that the
// volume's record is in.
type Entry struct {
	Name  string
	ID    scstore.VolumeID
	Group GroupID // GroupAll where names and volumes are in one state
}

// Link names a volume, which was made before. Naming it again the same way changes
// nothing. Errors: ErrExists (the name is in use, or the volume has another),
// ErrNotFound where the volumes are in the same state, ErrNoSpace.
type Link struct {
	Name  string
	ID    scstore.VolumeID
	Group GroupID
}

// Unlink takes a volume's name away; removing the record follows (Remove). The id
// keeps a late retry from taking the name of another. Errors: ErrNotFound.
type Unlink struct {
	Name string
	ID   scstore.VolumeID
}

// Rename gives a volume or image another name; no data move, and its group does
// not hear of it. Errors: ErrNotFound, ErrExists.
type Rename struct {
	From, To string
}

func (Link) kind() opKind   { return kindLink }
func (Unlink) kind() opKind { return kindUnlink }
func (Rename) kind() opKind { return kindRename }

func (o Link) validate() error {
	if o.Group == GroupNamespace || o.Group > maxCounter {
		return fmt.Errorf("link a volume of group %d: %w", o.Group, scstore.ErrInvalid)
	}
	return validateAll(ValidateName(o.Name), validateID(o.ID))
}

func (o Unlink) validate() error { return validateAll(ValidateName(o.Name), validateID(o.ID)) }

func (o Rename) validate() error { return validateAll(ValidateName(o.From), ValidateName(o.To)) }

func (o Link) apply(s *State) Result {
	known := s.entries[o.Name]
	v := s.records[o.ID]
	_, named := s.names[o.ID]
	switch {
	case (o.Group == GroupAll) != (s.group == GroupAll):
		return Result{Code: CodeWrongGroup}
	case known != nil && *known == Entry(o):
		return Result{Code: CodeOK, ID: o.ID}
	case s.group == GroupAll && (v == nil || v.Life != Live):
		return Result{Code: CodeNoVolume}
	case named:
		return Result{Code: CodeLinked, ID: o.ID}
	case len(s.entries) >= MaxNames:
		return Result{Code: CodeLimit}
	}
	if code := s.checkName(o.Name); code != CodeOK {
		return Result{Code: code}
	}
	e := Entry(o)
	s.link(&e)
	return Result{Code: CodeOK, ID: o.ID}
}

func (o Unlink) apply(s *State) Result {
	e := s.entries[o.Name]
	if e == nil || e.ID != o.ID {
		return Result{Code: CodeNoName}
	}
	s.unlink(o.Name)
	return Result{Code: CodeOK, ID: o.ID}
}

func (o Rename) apply(s *State) Result {
	e := s.entries[o.From]
	if e == nil {
		return Result{Code: CodeNoName}
	}
	s.unlink(o.From) // "a" may become "a/b"
	code := s.checkName(o.To)
	if code == CodeOK {
		e.Name = o.To
	}
	s.link(e)
	return Result{Code: code, ID: e.ID}
}

// checkName says whether a new entry could take this name (I1, I2).
// Precondition: ValidateName(name) returned nil.
func (s *State) checkName(name string) Code {
	if s.entries[name] != nil {
		return CodeNameTaken
	}
	if s.folders[name] > 0 {
		return CodeNameIsFolder
	}
	for folder := range parents(name) {
		if s.entries[folder] != nil {
			return CodeParentIsVolume
		}
	}
	return CodeOK
}

// link enters a name.
// Precondition: checkName(e.Name) returned CodeOK.
func (s *State) link(e *Entry) {
	s.entries[e.Name] = e
	s.names[e.ID] = e.Name
	for folder := range parents(e.Name) {
		s.folders[folder]++
	}
}

// unlink takes a name out of the namespace.
func (s *State) unlink(name string) {
	delete(s.names, s.entries[name].ID)
	delete(s.entries, name)
	for folder := range parents(name) {
		decrement(s.folders, folder)
	}
}

// Resolve returns what a name names, and its group.
func (s *State) Resolve(name string) (Entry, bool) {
	if e := s.entries[name]; e != nil {
		return *e, true
	}
	return Entry{}, false
}

// Entries returns the names that are folder or lie below it, in order; all for "".
func (s *State) Entries(folder string) []Entry {
	var list []Entry
	for name, e := range s.entries {
		if within(folder, name) {
			list = append(list, *e)
		}
	}
	slices.SortFunc(list, func(a, b Entry) int { return strings.Compare(a.Name, b.Name) })
	return list
}

func (o Link) wire(c *codec) Op {
	text(c, &o.Name, MaxNameBytes)
	c.fixed(o.ID[:])
	number(c, &o.Group)
	return o
}

func (o Unlink) wire(c *codec) Op {
	text(c, &o.Name, MaxNameBytes)
	c.fixed(o.ID[:])
	return o
}

func (o Rename) wire(c *codec) Op {
	text(c, &o.From, MaxNameBytes)
	text(c, &o.To, MaxNameBytes)
	return o
}

func (e *Entry) wire(c *codec) {
	text(c, &e.Name, MaxNameBytes)
	c.fixed(e.ID[:])
	number(c, &e.Group)
}
