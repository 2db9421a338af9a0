package nbdtest

import (
	"bytes"
	"context"
	"math/rand/v2"
	"testing"

	"scstore"
)

// Device is nbd.Device; the suite checks what the door relies on.
type Device interface {
	Size() int64
	ReadOnly() bool
	ReadAt(p []byte, off int64, holes []scstore.Range) ([]scstore.Range, error)
	ReadNowAt(p []byte, off int64, holes []scstore.Range) (h []scstore.Range, ok bool, err error)
	WriteAt(p []byte, off int64) error
	Zero(off, length int64, keep bool) error
	Discard(off, length int64) error
	Publish() error
	Flush(ctx context.Context) error
	Status(off, length int64, dst []scstore.Range) ([]scstore.Range, error)
}

// suite is one run of TestDevice: the device, and what its bytes must be.
type suite struct {
	t     testing.TB
	d     Device
	model []byte
	rng   *rand.Rand
}

// TestDevice runs the suite that every device behind the door must pass. open
// makes a fresh writable device of sizeBytes, all holes; the suite does not close it.
func TestDevice(t *testing.T, open func(t testing.TB, sizeBytes int64) Device) {
	const size = 4 << 20
	for name, f := range map[string]func(s *suite){
		"fresh device is one hole":             (*suite).fresh,
		"random operations match a model":      (*suite).random,
		"discard touches only whole blocks":    (*suite).discard,
		"zeroes of any alignment":              (*suite).zero,
		"a device does not keep what is given": (*suite).ownership,
	} {
		t.Run(name, func(t *testing.T) {
			f(&suite{t: t, d: open(t, size), model: make([]byte, size), rng: rand.New(rand.NewPCG(1, 2))})
		})
	}
}

func (s *suite) ok(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *suite) write(off, n int) {
	s.t.Helper()
	for i := range n {
		s.model[off+i] = byte(s.rng.Uint32()) | 1
	}
	s.ok(s.d.WriteAt(s.model[off:off+n], int64(off)))
}

// check compares [off, off+n) with the model, by both ways to read.
func (s *suite) check(off, n int) {
	s.t.Helper()
	for _, now := range []bool{true, false} {
		p := bytes.Repeat([]byte{0xaa}, n)
		var holes []scstore.Range
		var err error
		ok := false
		if now {
			holes, ok, err = s.d.ReadNowAt(p, int64(off), nil)
		}
		if !ok && err == nil {
			holes, err = s.d.ReadAt(p, int64(off), nil)
		}
		s.ok(err)
		if !bytes.Equal(p, s.model[off:off+n]) {
			s.t.Fatalf("%d bytes at %d differ from the model", n, off)
		}
		end := int64(off)
		for _, h := range holes {
			if h.State != scstore.RangeHole || h.Length <= 0 || h.Offset < end || h.Offset+h.Length > int64(off+n) {
				s.t.Fatalf("read of %d at %d: hole %+v after %d", n, off, h, end)
			}
			end = h.Offset + h.Length
			if len(bytes.Trim(s.model[h.Offset:end], "\x00")) != 0 {
				s.t.Fatalf("hole %+v where there is data", h)
			}
		}
	}
}

// status checks that the answer covers the range, and names data as data.
func (s *suite) status(off, n int64) []scstore.Range {
	s.t.Helper()
	ranges, err := s.d.Status(off, n, nil)
	s.ok(err)
	end := off
	for _, r := range ranges {
		if r.Offset != end || r.Length <= 0 {
			s.t.Fatalf("status of %d at %d: range %+v, want one at %d", n, off, r, end)
		}
		end += r.Length
		if r.State == scstore.RangeHole && len(bytes.Trim(s.model[r.Offset:end], "\x00")) != 0 {
			s.t.Fatalf("status: hole %+v where there is data", r)
		}
	}
	if end != off+n {
		s.t.Fatalf("status of %d at %d ends at %d", n, off, end)
	}
	return ranges
}

func (s *suite) fresh() {
	if s.d.Size() != int64(len(s.model)) || s.d.ReadOnly() {
		s.t.Fatalf("size %d, read-only %v", s.d.Size(), s.d.ReadOnly())
	}
	s.check(0, len(s.model))
	holes := int64(0)
	for _, r := range s.status(0, s.d.Size()) {
		if r.State == scstore.RangeHole {
			holes += r.Length
		}
	}
	if holes != s.d.Size() {
		s.t.Errorf("%d bytes of holes, want %d", holes, s.d.Size())
	}
}

func (s *suite) random() {
	for i := range 800 {
		off := s.rng.IntN(len(s.model))
		n := 1 + s.rng.IntN(9000)
		if i%2 == 0 {
			off, n = off/scstore.BlockSize*scstore.BlockSize, scstore.BlockSize*(1+s.rng.IntN(40))
		}
		n = min(n, len(s.model)-off)
		switch s.rng.IntN(6) {
		case 0, 1:
			s.write(off, n)
		case 2:
			s.ok(s.d.Zero(int64(off), int64(n), s.rng.IntN(2) == 0))
			clear(s.model[off : off+n])
		case 3:
			s.ok(s.d.Discard(int64(off), int64(n)))
			s.discarded(off, n)
		case 4:
			s.status(int64(off), int64(n))
		default:
			s.check(off, n)
		}
		if i%50 == 0 {
			s.ok(s.d.Publish())
		}
		if i%200 == 0 {
			s.ok(s.d.Flush(context.Background()))
		}
	}
	s.check(0, len(s.model))
	s.status(0, s.d.Size())
}

// discarded adopts what a discard left: each whole block is zeroes, the ragged
// ends are untouched.
func (s *suite) discarded(off, n int) {
	const b = scstore.BlockSize
	if first, end := (off+b-1)/b*b, (off+n)/b*b; end > first {
		clear(s.model[first:end])
	}
}

func (s *suite) discard() {
	s.write(0, 10*scstore.BlockSize)
	s.ok(s.d.Discard(100, 4*scstore.BlockSize))
	s.discarded(100, 4*scstore.BlockSize)
	s.check(0, 12*scstore.BlockSize)
	s.ok(s.d.Discard(5*scstore.BlockSize+1, 100)) // no whole block
	s.check(0, 12*scstore.BlockSize)
	s.ok(s.d.Discard(0, s.d.Size()))
	clear(s.model)
	s.fresh()
}

func (s *suite) zero() {
	s.write(0, 64*scstore.BlockSize)
	for i := range 60 {
		off, n := i*scstore.BlockSize+s.rng.IntN(5000), 1+s.rng.IntN(5000)
		s.ok(s.d.Zero(int64(off), int64(n), i%2 == 0))
		clear(s.model[off : off+n])
	}
	s.check(0, 70*scstore.BlockSize)
	s.ok(s.d.Zero(0, s.d.Size(), false))
	clear(s.model)
	s.check(0, len(s.model))
}

func (s *suite) ownership() {
	p := bytes.Repeat([]byte{7}, 3*scstore.BlockSize)
	s.ok(s.d.WriteAt(p, 100))
	copy(s.model[100:], p)
	clear(p)
	s.check(0, 5*scstore.BlockSize)
}
