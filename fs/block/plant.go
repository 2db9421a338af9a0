package block

// planted is a bug put in on purpose, so that a test can show that the
// crash model catches it. Only tests of this package can set one.
type planted int

const (
	plantNothing planted = iota
	// plantIgnoreIncarnation follows any header that carries the next seq,
	// whichever life of the store wrote it and whatever stood before it.
	plantIgnoreIncarnation
	// plantTrustTail takes the unsynced end of the log for whole.
	plantTrustTail
	// plantAdvanceUnsynced lets Advance return before what it shows is durable.
	plantAdvanceUnsynced
	// plantBlindFill fills without a look at what was written since.
	plantBlindFill
	// plantForgetRollback has replay skip rollbacks.
	plantForgetRollback
)
