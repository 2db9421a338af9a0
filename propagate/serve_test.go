package propagate_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"scstore"
	"scstore/propagate"
	"scstore/propagate/codec"
	"scstore/propagate/wire"
)

// slowStream is a stream with one request, whose writes take a while.
type slowStream struct {
	request, answer bytes.Buffer
	delay           time.Duration
}

func (s *slowStream) Read(p []byte) (int, error) { return s.request.Read(p) }

func (s *slowStream) Write(p []byte) (int, error) {
	time.Sleep(s.delay)
	return s.answer.Write(p)
}

func (s *slowStream) CloseWrite() error { return nil }
func (s *slowStream) Close() error      { return nil }

// slowReader is a content that takes a while to be read.
type slowReader struct {
	content
	delay time.Duration
}

func (r *slowReader) ReadBlocks(first scstore.BlockIndex, p []byte) ([]scstore.Extent, error) {
	time.Sleep(r.delay)
	return r.content.ReadBlocks(first, p)
}

func TestServe_LearnsWhatAnswersWaitFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		text := make([]byte, propagate.SpanBlocks*blockSize)
		rng := rand.New(rand.NewPCG(1, 1))
		for i := range len(text) / 8 { // of 4096 words
			binary.BigEndian.PutUint64(text[i*8:], rand.New(rand.NewPCG(rng.Uint64N(4096), 2)).Uint64())
		}
		disk := &slowReader{content: content{bytes: text}}
		m := wire.BlocksRequest{Volume: scstore.VolumeID{1}, Position: scstore.Position{Fence: 1, Epoch: 1}, Extents: []scstore.Extent{{Count: propagate.SpanBlocks}}}
		lib := &oneVolume{disk}
		var link propagate.Link
		// answer returns the codec of an answer's first run, and checks that all of it comes.
		answer := func(diskDelay, linkDelay time.Duration) codec.Codec {
			t.Helper()
			disk.delay = diskDelay
			s := &slowStream{delay: linkDelay}
			s.request.Write(m.AppendTo(nil))
			if err := propagate.Serve(t.Context(), s, lib, &link); err != nil {
				t.Fatal(err)
			}
			return firstCodec(t, &s.answer, text)
		}
		for i, c := range []struct {
			disk, link time.Duration
			want       codec.Codec // by what the answers before it have shown
			slow       bool
		}{
			{time.Millisecond, time.Millisecond, codec.LZ4, false},
			{time.Millisecond, 10 * time.Millisecond, codec.LZ4, true},
			{time.Millisecond, 3 * time.Millisecond, codec.Zstd, true},
			{10 * time.Millisecond, time.Millisecond, codec.Zstd, false},
			{time.Millisecond, time.Millisecond, codec.LZ4, false},
		} {
			if got := answer(c.disk, c.link); got != c.want || link.Slow() != c.slow {
				t.Errorf("answer %d: got %s and then slow %v, want %s and %v", i, got, link.Slow(), c.want, c.slow)
			}
		}
	})
}

// oneVolume is a host with one position of a volume.
type oneVolume struct{ at propagate.Reader }

func (l *oneVolume) Offer(context.Context, wire.ManifestRequest) (propagate.Offer, func(), error) {
	return propagate.Offer{}, nil, scstore.ErrNotFound
}

func (l *oneVolume) Open(context.Context, scstore.VolumeID, scstore.Position) (propagate.Reader, func(), error) {
	return l.at, func() {}, nil
}

// firstCodec reads an answer, compares it and returns the codec of its first run.
func firstCodec(t *testing.T, answer *bytes.Buffer, want []byte) (first codec.Codec) {
	t.Helper()
	got := make([]byte, len(want))
	for {
		kind, body, err := wire.ReadFrame(answer, nil)
		if err != nil {
			t.Fatal(err)
		}
		if kind == wire.KindEnd {
			break
		}
		m, err := wire.ParseRun(body)
		if err != nil {
			t.Fatal(err)
		}
		at := m.First.Offset()
		if err := codec.Decode(m.Codec, m.Payload, nil, got[at:at+int64(m.Blocks)*blockSize]); err != nil {
			t.Fatal(err)
		}
		if first == 0 {
			first = m.Codec
		}
	}
	if !bytes.Equal(got, want) {
		t.Error("the answer is not the content")
	}
	return first
}
