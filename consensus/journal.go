package consensus

import (
	"fmt"

	"scstore"
	"scstore/consensus/meta"
)

// journalContent is what a journal says.
type journalContent struct {
	base     uint64
	commands []meta.Command // numbers base+1, base+2, ...
	end      int64          // bytes up to the end of the last whole command
	torn     bool           // what follows end is not all zeros
}

// parseJournal reads a whole journal. The remains of one incomplete command at the
// end are left out (I4); everything else that does not fit is an error that names
// the offset. Errors: ErrInvalid for a journal of another store, ErrVersion,
// ErrCorrupt.
func parseJournal(b []byte, store scstore.StoreID) (journalContent, error) {
	base, err := parseJournalHeader(b, store)
	if err != nil {
		return journalContent{}, fmt.Errorf("byte 0: %w", err)
	}
	c := journalContent{base: base, end: frameBytes}
	var command []byte
	index, off := 0, frameBytes
	for ; off+frameBytes <= len(b) && !isZero(b[off:][:frameBytes]); off += frameBytes {
		f, err := c.parseNext(b[off:], store)
		if err != nil {
			return journalContent{}, fmt.Errorf("byte %d: %w", off, err)
		}
		if f.index != index {
			return journalContent{}, fmt.Errorf("byte %d: frame %d of a command, want %d: %w", off, f.index, index, scstore.ErrCorrupt)
		}
		command = append(command, f.payload...)
		index++
		if !f.last {
			continue
		}
		if err := c.add(command); err != nil {
			return journalContent{}, fmt.Errorf("byte %d: %w", off, err)
		}
		command, index = command[:0], 0
		c.end = int64(off + frameBytes)
	}
	// A frame of the incomplete command may have reached the disk before one that
	// precedes it; anything else after the end is rot.
	for ; off+frameBytes <= len(b); off += frameBytes {
		if isZero(b[off:][:frameBytes]) {
			continue
		}
		if _, err := c.parseNext(b[off:], store); err != nil {
			return journalContent{}, fmt.Errorf("byte %d: %w", off, err)
		}
	}
	c.torn = !isZero(b[c.end:])
	return c, nil
}

func parseJournalHeader(b []byte, store scstore.StoreID) (base uint64, err error) {
	if len(b) < frameBytes {
		return 0, fmt.Errorf("journal of %d bytes: %w", len(b), scstore.ErrCorrupt)
	}
	owner := scstore.StoreID(b[frameHeaderBytes:])
	f, _, err := parseFrame(b, owner)
	if err != nil {
		return 0, err
	}
	if f.kind != frameHeader || !f.last || f.index != 0 || len(f.payload) != len(owner) {
		return 0, fmt.Errorf("no journal header: %w", scstore.ErrCorrupt)
	}
	if owner != store {
		return 0, fmt.Errorf("belongs to store %v, not to %v: %w", owner, store, scstore.ErrInvalid)
	}
	return f.number, nil
}

// parseNext reads a frame that must belong to the command after the last one.
func (c *journalContent) parseNext(b []byte, store scstore.StoreID) (frame, error) {
	f, _, err := parseFrame(b, store)
	if err != nil {
		return frame{}, err
	}
	if want := c.base + uint64(len(c.commands)) + 1; f.kind != frameCommand || f.number != want {
		return frame{}, fmt.Errorf("frame of command %d, want %d: %w", f.number, want, scstore.ErrCorrupt)
	}
	return f, nil
}

func (c *journalContent) add(encoded []byte) error {
	command, rest, err := meta.ParseCommand(encoded)
	if err != nil {
		return err
	}
	if len(rest) > 0 {
		return fmt.Errorf("%d bytes after a command: %w", len(rest), scstore.ErrCorrupt)
	}
	c.commands = append(c.commands, command)
	return nil
}
