package meta

import (
	"encoding/binary"
	"fmt"

	"scstore"
)

// MaxBatchOps is the most operations of one Batch.
const MaxBatchOps = 1024

// Batch is many operations in one entry: what a host proposes every few tens of
// milliseconds for its volumes of a group. Each is applied on its own, in order,
// and has its own result in Result.Each; one that is refused does not keep the
// others back. Only operations that may be applied twice can be part of a batch, so
// that it needs no session: who does not know its outcome proposes it again.
type Batch struct {
	Ops []Op
}

func (Batch) kind() opKind { return kindBatch }

func (o Batch) validate() error {
	if len(o.Ops) == 0 || len(o.Ops) > MaxBatchOps {
		return fmt.Errorf("batch of %d operations, want 1 to %d: %w", len(o.Ops), MaxBatchOps, scstore.ErrInvalid)
	}
	for i, op := range o.Ops {
		if op == nil || !ops[op.kind()].batch {
			return fmt.Errorf("operation %d of a batch, %T, can't be part of one: %w", i, op, scstore.ErrInvalid)
		}
		if err := op.validate(); err != nil {
			return fmt.Errorf("operation %d of a batch: %w", i, err)
		}
	}
	return nil
}

func (o Batch) apply(s *State) Result {
	each := make([]Result, len(o.Ops))
	for i, op := range o.Ops {
		each[i] = op.apply(s)
	}
	return Result{Code: CodeOK, Each: each}
}

func (o Batch) wire(c *codec) Op {
	list(c, &o.Ops, MaxBatchOps, func(c *codec, op *Op) {
		var kind opKind
		if c.mode != reading {
			kind = (*op).kind()
		}
		octet(c, &kind)
		if c.mode != reading {
			(*op).wire(c)
			return
		}
		zero := newOp(kind)
		switch {
		case c.failed:
		case zero == nil:
			c.failed, c.newer = true, true
		case !ops[kind].batch:
			c.failed = true
		default:
			*op = zero.wire(c)
		}
	})
	return o
}

// bodyBytes returns the encoded length of the command without its header.
func (c Command) bodyBytes() int {
	count := codec{mode: counting}
	c.Op.wire(&count)
	return count.count
}

// appendBody appends the operation's fields.
func (c Command) appendBody(b []byte) []byte {
	w := codec{mode: writing, b: b}
	c.Op.wire(&w)
	return w.b
}

// AppendTo appends the result's encoding to b: how a member hands it to the
// proposer.
func (r Result) AppendTo(b []byte) []byte {
	b = append(b, resultMagic[:]...)
	b = append(b, resultVersion, 0, 0, 0)
	start := len(b)
	b = binary.BigEndian.AppendUint32(b, 0)
	w := codec{mode: writing, b: b}
	wireResult(&w, &r, 2)
	binary.BigEndian.PutUint32(w.b[start:], uint32(len(w.b)-start-4))
	return w.b
}

// ParseResult reads one result from the start of b and returns the rest. Errors:
// ErrVersion, ErrCorrupt.
func ParseResult(b []byte) (Result, []byte, error) {
	if len(b) < resultHeaderBytes || [4]byte(b) != resultMagic {
		return Result{}, nil, fmt.Errorf("parse result: no header: %w", scstore.ErrCorrupt)
	}
	if b[4] != resultVersion {
		return Result{}, nil, fmt.Errorf("parse result: version %d, want %d: %w", b[4], resultVersion, scstore.ErrVersion)
	}
	length := binary.BigEndian.Uint32(b[8:])
	if b[5] != 0 || b[6] != 0 || b[7] != 0 || int64(length) > int64(len(b)-resultHeaderBytes) {
		return Result{}, nil, fmt.Errorf("parse result: bad header: %w", scstore.ErrCorrupt)
	}
	c := codec{mode: reading, b: b[resultHeaderBytes:][:length]}
	var r Result
	wireResult(&c, &r, 2)
	switch {
	case c.newer:
		return Result{}, nil, fmt.Errorf("parse result: code or outcome of a newer release: %w", scstore.ErrVersion)
	case c.failed || len(c.b) > 0:
		return Result{}, nil, fmt.Errorf("parse result: bad body: %w", scstore.ErrCorrupt)
	}
	return r, b[resultHeaderBytes+int(length):], nil
}

// wireResult walks a result and the results in it, depth levels deep: a batch of
// reports has two.
func wireResult(c *codec, r *Result, depth int) {
	wireOutcome(c, r)
	if depth == 0 {
		c.zeros(2)
		return
	}
	list(c, &r.Each, max(MaxBatchOps, MaxAcks), func(c *codec, each *Result) { wireResult(c, each, depth-1) })
}

// wireOutcome walks the fields of a result that every command has.
func wireOutcome(c *codec, r *Result) {
	octet(c, &r.Code)
	octet(c, &r.Outcome)
	c.fixed(r.ID[:])
	number(c, &r.Fence)
	c.position(&r.Position)
	number(c, &r.Number)
	if c.mode == reading && !c.failed && (!r.Code.valid() || r.Outcome > OutcomeDropped) {
		c.failed, c.newer = true, true
	}
}
