package propagate_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"

	"scstore"
	"scstore/propagate"
	"scstore/propagate/wire"
)

const (
	blockSize = scstore.BlockSize
	spanBytes = propagate.SpanBlocks * blockSize
)

// content is a volume's bytes as a Reader, without some of its blocks.
type content struct {
	bytes  []byte
	absent map[scstore.BlockIndex]bool
}

func (c *content) ReadBlocks(first scstore.BlockIndex, p []byte) (absent []scstore.Extent, err error) {
	for i := range len(p) / blockSize {
		b := first + scstore.BlockIndex(i)
		if int(b)*blockSize >= len(c.bytes) || c.absent[b] {
			if n := len(absent); n > 0 && absent[n-1].End() == b {
				absent[n-1].Count++
			} else {
				absent = append(absent, scstore.Extent{First: b, Count: 1})
			}
			continue
		}
		copy(p[i*blockSize:(i+1)*blockSize], c.bytes[int(b)*blockSize:])
	}
	return absent, nil
}

func (c *content) WriteBlocks(first scstore.BlockIndex, p []byte) error {
	copy(c.bytes[first.Offset():], p)
	return nil
}

func (c *content) ZeroBlocks(e scstore.Extent) error {
	clear(c.bytes[e.First.Offset():e.End().Offset()])
	return nil
}

func spanDigest(volume []byte, number uint64) scstore.Digest {
	from := int(number) * spanBytes
	return sha256.Sum256(volume[from:min(from+spanBytes, len(volume))])
}

func root(sizeBytes int64, spans []propagate.SpanDigest) scstore.Digest {
	h := sha256.New()
	h.Write(binary.BigEndian.AppendUint64(nil, uint64(sizeBytes)))
	for _, s := range spans {
		h.Write(binary.BigEndian.AppendUint64(nil, s.Number))
		h.Write(s.Digest[:])
	}
	return scstore.Digest(h.Sum(nil))
}

// change returns a later version of a volume, and its manifest as frames.
func change(rng *rand.Rand, old []byte, request wire.ManifestRequest, changes int) (next, frames []byte) {
	next = bytes.Clone(old)
	changed := map[scstore.BlockIndex]bool{}
	blocks := len(old) / blockSize
	for range changes {
		first := rng.IntN(blocks)
		count := min(1+rng.IntN(40), blocks-first)
		kind := rng.IntN(4)
		for b := first; b < first+count; b++ {
			changed[scstore.BlockIndex(b)] = true
			p := next[b*blockSize : (b+1)*blockSize]
			switch kind {
			case 0:
				clear(p)
			case 1:
				p[rng.IntN(len(p))]++
			case 2: // written with what was there
			default:
				for i := range p {
					p[i] = byte(rng.Uint32())
				}
			}
		}
	}
	var list []scstore.Extent
	for b := range scstore.BlockIndex(blocks) {
		if !changed[b] {
			continue
		}
		if n := len(list); n > 0 && list[n-1].End() == b {
			list[n-1].Count++
		} else {
			list = append(list, scstore.Extent{First: b, Count: 1})
		}
	}
	return next, offer(request, next, list)
}

// offer returns the frames of a manifest.
func offer(request wire.ManifestRequest, next []byte, changed []scstore.Extent) []byte {
	var b bytes.Buffer
	digest := func(number uint64) (scstore.Digest, error) { return spanDigest(next, number), nil }
	o := propagate.Offer{Request: request, SizeBytes: int64(len(next)), Changed: changed, Digest: digest, Root: root}
	if _, err := o.Write(&b); err != nil {
		panic(err) // a buffer takes everything
	}
	return b.Bytes()
}

// newJump begins a jump of a volume of the length.
func newJump(t interface{ Fatal(...any) }, length int, o propagate.JumpOptions) *propagate.Jump {
	o.Volume[0], o.Root = 1, root
	o.From, o.To = scstore.Position{Fence: 1, Epoch: 2}, scstore.Position{Fence: 1, Epoch: 9}
	spans := (length + spanBytes - 1) / spanBytes
	o.Window = scstore.Extent{Count: uint64(spans) * propagate.SpanBlocks}
	j, err := propagate.NewJump(o)
	if err != nil {
		t.Fatal(err)
	}
	return j
}

// world is one jump with its sources.
type world struct {
	rng     *rand.Rand
	next    []byte
	jump    *propagate.Jump
	stage   *content
	recv    *propagate.Receiver
	sources []*content
	bases   []propagate.Reader // that a source believes the receiver to have
	answers int
}

// step makes one request, answers it, whole or cut short, and verifies what it
// completes. It reports whether anything happened.
func (w *world) step(source int, cut bool) (bool, error) {
	id, m, ok := w.jump.Next(source)
	if ok {
		var b bytes.Buffer
		var a propagate.Answerer
		base := w.bases[source]
		if m.Base == (scstore.Position{}) {
			base = nil
		}
		if _, err := a.Answer(&b, m, w.sources[source], base); err != nil {
			return true, err
		}
		w.answers++
		frames := b.Bytes()
		if cut {
			frames = frames[:w.rng.IntN(len(frames))]
		}
		if err := w.recv.Blocks(id, bytes.NewReader(frames)); err != nil && !cut {
			return true, err
		}
	}
	for {
		number, found := w.jump.Verify()
		if !found {
			return ok, nil
		}
		ok = true
		if err := w.jump.Verified(number, spanDigest(w.stage.bytes, number)); err != nil {
			return true, err
		}
	}
}

// run steps until the jump is done or stuck.
func (w *world) run(cuts int) error {
	for idle := 0; !w.jump.Done(); {
		if w.jump.Stuck(len(w.sources)) {
			return errStuck
		}
		happened, err := w.step(w.rng.IntN(len(w.sources)), w.rng.IntN(100) < cuts)
		if err != nil {
			return err
		}
		if idle++; happened {
			idle = 0
		}
		if idle > 1000 || w.answers > 20000 {
			return fmt.Errorf("no end: %+v", w.jump.Progress())
		}
	}
	return nil
}

var errStuck = errors.New("stuck")

func TestJump_EndsWithTheNewContentOrSaysWhy(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
		old := make([]byte, rapid.IntRange(1, 4*propagate.SpanBlocks).Draw(t, "blocks")*blockSize)
		for i := range len(old) / 64 {
			old[i*64] = byte(rng.Uint32())
		}
		w := &world{rng: rng, stage: &content{bytes: bytes.Clone(old)}}
		o := propagate.JumpOptions{RequestBlocks: rapid.IntRange(1, 600).Draw(t, "request"), InFlightBlocks: rapid.IntRange(1, 2000).Draw(t, "in flight")}
		w.jump = newJump(t, len(old), o)
		var frames []byte
		w.next, frames = change(rng, old, w.jump.ManifestRequest(), rapid.IntRange(0, 30).Draw(t, "changes"))
		w.recv = &propagate.Receiver{Jump: w.jump, Stage: w.stage, Base: &content{bytes: bytes.Clone(old)}}
		if err := w.recv.Manifest(bytes.NewReader(frames)); err != nil {
			t.Fatal(err)
		}
		lost := map[scstore.BlockIndex]int{}
		for range rapid.IntRange(1, 4).Draw(t, "sources") {
			s := &content{bytes: w.next, absent: map[scstore.BlockIndex]bool{}}
			for range rapid.IntRange(0, 3).Draw(t, "absent") * 20 {
				s.absent[scstore.BlockIndex(rng.IntN(len(old)/blockSize))] = true
			}
			for b := range s.absent {
				lost[b]++
			}
			base := []byte(nil)
			switch rapid.IntRange(0, 2).Draw(t, "base") {
			case 0:
				base = old
			case 1: // another history: every delta against it must be refused
				base = bytes.Clone(old)
				for i := range len(base) / blockSize {
					base[i*blockSize+9]++
				}
			}
			w.sources = append(w.sources, s)
			if base == nil {
				w.bases = append(w.bases, nil)
			} else {
				w.bases = append(w.bases, &content{bytes: base})
			}
		}
		if rapid.Bool().Draw(t, "staged before") { // by an attempt that was broken off
			e := scstore.Extent{Count: uint64(rng.IntN(len(old)/blockSize + 1))}
			copy(w.stage.bytes[:e.Count*blockSize], w.next)
			w.jump.Have([]scstore.Extent{e})
		}
		nowhere := false
		for _, e := range w.jump.Missing() {
			for b := e.First; b < e.End(); b++ {
				nowhere = nowhere || lost[b] == len(w.sources)
			}
		}
		err := w.run(rapid.IntRange(0, 60).Draw(t, "cuts"))
		switch {
		case err == nil && !bytes.Equal(w.stage.bytes, w.next):
			t.Fatal("done, and the content is not the new one")
		case errors.Is(err, errStuck) != nowhere:
			t.Fatalf("got %v; blocks that no source has: %v", err, nowhere)
		case err != nil && !errors.Is(err, errStuck):
			t.Fatal(err)
		}
	})
}

func TestJump_FetchesAgainWhatFailsToVerify(t *testing.T) {
	for name, c := range map[string]struct {
		rot  func(base, source, stage *content) // before the jump
		want error
	}{
		"a base that rotted at the receiver": {func(base, _, _ *content) { base.bytes[100*blockSize+8]++ }, nil},
		"an unchanged block that rotted":     {func(_, _, stage *content) { stage.bytes[3*blockSize]++ }, nil},
		"a source whose bytes are wrong":     {func(_, source, _ *content) { source.bytes[100*blockSize]++ }, scstore.ErrCorrupt},
	} {
		t.Run(name, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(1, 2))
			old := make([]byte, spanBytes)
			for i := range old {
				old[i] = byte(rng.Uint32())
			}
			j := newJump(t, len(old), propagate.JumpOptions{})
			next := bytes.Clone(old)
			next[100*blockSize+5]++
			frames := offer(j.ManifestRequest(), next, []scstore.Extent{{First: 100, Count: 1}})
			base, source, stage := &content{bytes: bytes.Clone(old)}, &content{bytes: bytes.Clone(next)}, &content{bytes: bytes.Clone(old)}
			c.rot(base, source, stage)
			w := &world{
				rng: rng, next: next, jump: j, stage: stage, sources: []*content{source}, bases: []propagate.Reader{&content{bytes: old}},
				recv: &propagate.Receiver{Jump: j, Stage: stage, Base: base},
			}
			if err := w.recv.Manifest(bytes.NewReader(frames)); err != nil {
				t.Fatal(err)
			}
			err := w.run(0)
			if !errors.Is(err, c.want) || (err == nil) != bytes.Equal(stage.bytes, next) {
				t.Errorf("ended with %v after %+v", err, j.Progress())
			}
			if p := j.Progress(); p.Again == 0 {
				t.Errorf("nothing was fetched again: %+v", p)
			}
		})
	}
}

// TestReceiver_SurvivesHostileFrames feeds frames that were changed at random: any
// error will do, but nothing is staged that was not asked for, and no panic.
func TestReceiver_SurvivesHostileFrames(t *testing.T) {
	rng := rand.New(rand.NewPCG(4, 4))
	for range 3000 {
		old := make([]byte, (1+rng.IntN(600))*blockSize)
		j := newJump(t, len(old), propagate.JumpOptions{})
		next, frames := change(rng, old, j.ManifestRequest(), 5)
		stage := &content{bytes: bytes.Clone(old)}
		v := &propagate.Receiver{Jump: j, Stage: stage, Base: &content{bytes: old}}
		hurt := func(p []byte) []byte {
			for range rng.IntN(3) {
				p[rng.IntN(len(p))] ^= byte(1 << rng.IntN(8))
			}
			return p
		}
		if v.Manifest(bytes.NewReader(hurt(frames))) != nil {
			continue
		}
		for range 20 {
			id, m, ok := j.Next(0)
			if !ok {
				break
			}
			var b bytes.Buffer
			var a propagate.Answerer
			if _, err := a.Answer(&b, m, &content{bytes: next}, &content{bytes: old}); err != nil {
				t.Fatal(err)
			}
			_ = v.Blocks(id, bytes.NewReader(hurt(b.Bytes())))
			if n, ok := j.Verify(); ok && j.Verified(n, spanDigest(stage.bytes, n)) != nil {
				break
			}
		}
		if j.Done() && !bytes.Equal(stage.bytes, next) {
			t.Fatal("done, and the content is not the new one")
		}
	}
}

func TestNewJump_RefusesBadOptions(t *testing.T) {
	good := propagate.JumpOptions{Volume: scstore.VolumeID{1}, To: scstore.Position{Fence: 1, Epoch: 1}, Window: scstore.Extent{Count: 256}, Root: root}
	for name, change := range map[string]func(*propagate.JumpOptions){
		"no volume":        func(o *propagate.JumpOptions) { o.Volume = scstore.VolumeID{} },
		"nowhere to go":    func(o *propagate.JumpOptions) { o.From = o.To },
		"no root":          func(o *propagate.JumpOptions) { o.Root = nil },
		"no window":        func(o *propagate.JumpOptions) { o.Window.Count = 0 },
		"half a span":      func(o *propagate.JumpOptions) { o.Window.First = 7 },
		"window too large": func(o *propagate.JumpOptions) { o.Window.Count = wire.MaxWindowBlocks + 1 },
		"in flight":        func(o *propagate.JumpOptions) { o.InFlightBlocks = propagate.MaxInFlightBlocks + 1 },
	} {
		o := good
		change(&o)
		if _, err := propagate.NewJump(o); !errors.Is(err, scstore.ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", name, err)
		}
	}
	if _, err := propagate.NewJump(good); err != nil {
		t.Error(err)
	}
}
