package meta

// Verify checks the invariants, whatever the build tags.
func (s *State) Verify() error { return s.verify() }

// LastCode is the highest code.
const LastCode = lastCode

// NewOp returns the zero operation of a kind, nil for an unknown one.
func NewOp(kind uint8) Op { return newOp(opKind(kind)) }
