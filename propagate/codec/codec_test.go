package codec_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"scstore"
	"scstore/propagate/codec"
)

// text fills p with what compresses.
func text(p []byte, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 1))
	words := []string{"root:x:0:0", "the quick brown fox ", "\x7fELF\x02\x01\x01", "0000000000000000", "/usr/lib/x86_64-linux-gnu/"}
	for len(p) > 0 {
		p = p[copy(p, words[rng.IntN(len(words))]):]
	}
}

func random(p []byte, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 2))
	for i := range p {
		p[i] = byte(rng.Uint32())
	}
}

func TestEncode_ChoosesTheSmallestForm(t *testing.T) {
	const n = codec.MaxRunBytes
	noise, words, other, near := make([]byte, n), make([]byte, n), make([]byte, n), make([]byte, n)
	random(noise, 1)
	text(words, 1)
	random(other, 2)
	copy(near, noise)
	random(near[5*scstore.BlockSize:5*scstore.BlockSize+512], 3)
	for name, c := range map[string]struct {
		run, base []byte
		want      codec.Codec
		most      int
	}{
		"zeros":                        {make([]byte, n), noise, codec.Hole, 0},
		"what the receiver has":        {noise, noise, codec.Same, 0},
		"noise":                        {noise, nil, codec.Raw, n},
		"noise, unrelated base":        {noise, other, codec.Raw, n},
		"text":                         {words, nil, codec.LZ4, n / 2},
		"text, unrelated base":         {words, other, codec.LZ4, n / 2},
		"noise with one new sector":    {near, noise, codec.DeltaLZ4, 512 + 512},
		"text over noise, no relation": {words, noise, codec.LZ4, n / 2},
	} {
		t.Run(name, func(t *testing.T) {
			var e codec.Encoder
			got, payload := e.Encode(c.run, c.base)
			if got != c.want || len(payload) > c.most {
				t.Errorf("got %s of %d bytes, want %s of at most %d", got, len(payload), c.want, c.most)
			}
			fast := len(payload)
			e.Slow = true
			got, payload = e.Encode(c.run, c.base)
			if want := slow(c.want); got != want || len(payload) > fast {
				t.Errorf("for a slow link: got %s of %d bytes, want %s of at most %d", got, len(payload), want, fast)
			}
		})
	}
}

// slow returns the codec that takes another one's place on a slow link.
func slow(c codec.Codec) codec.Codec {
	switch c {
	case codec.LZ4:
		return codec.Zstd
	case codec.DeltaLZ4:
		return codec.DeltaZstd
	}
	return c
}

func TestRoundTrip(t *testing.T) {
	var e codec.Encoder // one for all: no state may leak from a run to the next
	rapid.Check(t, func(t *rapid.T) {
		blocks := rapid.IntRange(1, codec.MaxRunBlocks).Draw(t, "blocks")
		run := make([]byte, blocks*scstore.BlockSize)
		switch rapid.IntRange(0, 2).Draw(t, "content") {
		case 1:
			text(run, rapid.Uint64().Draw(t, "seed"))
		case 2:
			random(run, rapid.Uint64().Draw(t, "seed"))
		}
		var base []byte
		if rapid.Bool().Draw(t, "has base") {
			base = bytes.Clone(run)
			for range rapid.IntRange(0, 64).Draw(t, "changes") {
				base[rapid.IntRange(0, len(base)-1).Draw(t, "at")] ^= 1
			}
		}
		e.Slow = rapid.Bool().Draw(t, "slow link")
		c, payload := e.Encode(run, base)
		if len(payload) > len(run) {
			t.Fatalf("%s of %d bytes for a run of %d", c, len(payload), len(run))
		}
		if base == nil && c.NeedsBase() {
			t.Fatalf("%s without a base", c)
		}
		got := make([]byte, len(run))
		if err := codec.Decode(c, payload, base, got); err != nil || !bytes.Equal(got, run) {
			t.Fatalf("%s: got other bytes back: %v", c, err)
		}
		if base != nil { // in place: the base's memory becomes the run
			if err := codec.Decode(c, payload, base, base); err != nil || !bytes.Equal(base, run) {
				t.Fatalf("%s in place: got other bytes back: %v", c, err)
			}
		}
	})
}

func TestDecode_RefusesWhatIsNoForm(t *testing.T) {
	run, block := make([]byte, 2*scstore.BlockSize), make([]byte, scstore.BlockSize)
	var e codec.Encoder
	_, short := e.Encode(bytes.Repeat([]byte("x"), scstore.BlockSize), nil)
	short = bytes.Clone(short)
	e.Slow = true
	_, packed := e.Encode(bytes.Repeat([]byte("x"), scstore.BlockSize), nil)
	packed = bytes.Clone(packed)
	_, long := e.Encode(bytes.Repeat([]byte("x"), 3*scstore.BlockSize), nil)
	for name, c := range map[string]struct {
		codec         codec.Codec
		payload, base []byte
		want          error
	}{
		"raw, too short":          {codec.Raw, block, nil, scstore.ErrCorrupt},
		"lz4, too short":          {codec.LZ4, short, nil, scstore.ErrCorrupt},
		"lz4, noise":              {codec.LZ4, []byte{0xff, 0xff, 0xff}, nil, scstore.ErrCorrupt},
		"lz4, nothing":            {codec.LZ4, nil, nil, scstore.ErrCorrupt},
		"zstd, too short":         {codec.Zstd, packed, nil, scstore.ErrCorrupt},
		"zstd, too long":          {codec.Zstd, long, nil, scstore.ErrCorrupt},
		"zstd, noise":             {codec.Zstd, []byte{0xff, 0xff, 0xff, 0xff, 0xff}, nil, scstore.ErrCorrupt},
		"zstd, nothing":           {codec.Zstd, nil, nil, scstore.ErrCorrupt},
		"zstd delta without base": {codec.DeltaZstd, packed, nil, scstore.ErrInvalid},
		"delta without base":      {codec.DeltaLZ4, short, nil, scstore.ErrInvalid},
		"delta, base too short":   {codec.DeltaLZ4, short, block, scstore.ErrInvalid},
		"same without base":       {codec.Same, nil, nil, scstore.ErrInvalid},
		"hole with bytes":         {codec.Hole, short, nil, scstore.ErrCorrupt},
		"same with bytes":         {codec.Same, short, run, scstore.ErrCorrupt},
		"codec 0":                 {0, nil, nil, scstore.ErrVersion},
		"codec of a newer format": {99, nil, nil, scstore.ErrVersion},
	} {
		t.Run(name, func(t *testing.T) {
			if err := codec.Decode(c.codec, c.payload, c.base, run); !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
		})
	}
}

func FuzzDecode(f *testing.F) {
	var e codec.Encoder
	words, base := make([]byte, 3*scstore.BlockSize), make([]byte, 3*scstore.BlockSize)
	text(words, 1)
	random(base, 1)
	for _, b := range [][]byte{nil, base, words} {
		for _, e.Slow = range []bool{false, true} {
			c, payload := e.Encode(words, b)
			f.Add(uint8(c), payload, 3)
		}
	}
	f.Fuzz(func(t *testing.T, c uint8, payload []byte, blocks int) {
		if blocks < 1 || blocks > codec.MaxRunBlocks {
			return
		}
		size := blocks * scstore.BlockSize
		memory := make([]byte, size+64)
		for i := range memory[size:] {
			memory[size+i] = 0xa5
		}
		base := make([]byte, size)
		_ = codec.Decode(codec.Codec(c), payload, base, memory[:size:size])
		for _, b := range memory[size:] {
			if b != 0xa5 {
				t.Fatal("a byte beyond the run was written")
			}
		}
	})
}

func BenchmarkEncode(b *testing.B) {
	run, base := make([]byte, codec.MaxRunBytes), make([]byte, codec.MaxRunBytes)
	text(run, 1)
	copy(base, run)
	random(base[:4096], 1)
	for name, against := range map[string][]byte{"plain": nil, "delta": base, "slow plain": nil, "slow delta": base} {
		b.Run(name, func(b *testing.B) {
			e := codec.Encoder{Slow: strings.HasPrefix(name, "slow")}
			b.SetBytes(int64(len(run)))
			for b.Loop() {
				e.Encode(run, against)
			}
		})
	}
}
