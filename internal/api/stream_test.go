package api

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"scstore"
)

// stream returns a whole stream of two parts.
func stream(t testing.TB) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := NewStreamWriter(&b, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Data([]byte("hello"), 4096); err != nil {
		t.Fatal(err)
	}
	if err := w.Zero(8192, 4096); err != nil {
		t.Fatal(err)
	}
	if err := w.End(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// readAll reads a stream and returns its parts.
func readAll(b []byte) (frames []Frame, err error) {
	r, err := NewStreamReader(bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	for {
		f, err := r.Next()
		if errors.Is(err, io.EOF) {
			return frames, nil
		}
		if err != nil {
			return frames, err
		}
		f.Data = bytes.Clone(f.Data)
		frames = append(frames, f)
	}
}

func TestStream_WholeStreamComesBack(t *testing.T) {
	frames, err := readAll(stream(t))
	if err != nil || len(frames) != 2 {
		t.Fatalf("got %v, %v", frames, err)
	}
	if string(frames[0].Data) != "hello" || frames[0].Offset != 4096 || frames[1].Data != nil || frames[1].Length != 4096 {
		t.Errorf("got %+v", frames)
	}
}

func TestStream_EveryCutIsAnError(t *testing.T) {
	whole := stream(t)
	for n := range whole {
		if _, err := readAll(whole[:n]); !errors.Is(err, scstore.ErrCorrupt) {
			t.Errorf("cut at %d of %d: got %v", n, len(whole), err)
		}
	}
	if _, err := readAll(append(bytes.Clone(whole), 0)); !errors.Is(err, scstore.ErrInvalid) {
		t.Errorf("a byte more: got %v", err)
	}
}

func TestStream_EveryFlippedBitIsAnError(t *testing.T) {
	whole := stream(t)
	for i := range len(whole) * 8 {
		b := bytes.Clone(whole)
		b[i/8] ^= 1 << (i % 8)
		if _, err := readAll(b); err == nil {
			t.Errorf("bit %d flipped: no error", i)
		}
	}
}

func TestStream_AbortIsTheSendersError(t *testing.T) {
	var b bytes.Buffer
	w, err := NewStreamWriter(&b, 4096)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Abort(scstore.Hint(scstore.ErrUnreachable, "wait")); err != nil {
		t.Fatal(err)
	}
	_, err = readAll(b.Bytes())
	if hint, ok := errors.AsType[*scstore.HintError](err); !errors.Is(err, scstore.ErrUnreachable) || !ok || hint.Hint != "wait" {
		t.Errorf("got %v", err)
	}
}

func TestStream_LimitsAreChecked(t *testing.T) {
	for _, h := range []FrameHeader{
		{Kind: 0}, {Kind: FrameAbort + 1}, {Kind: FrameData}, {Kind: FrameZero},
		{Kind: FrameData, Length: MaxFrameData + 1}, {Kind: FrameZero, Length: MaxFrameZero + 1},
		{Kind: FrameData, Length: 1, Offset: scstore.MaxVolumeBytes + 1}, {Kind: FrameData, Length: 1, Offset: 1 << 63},
		{Kind: FrameBegin, Length: 1}, {Kind: FrameAbort, Length: MaxFrameData + 1},
	} {
		if _, _, err := ParseFrameHeader(h.AppendTo(nil)); !errors.Is(err, scstore.ErrInvalid) {
			t.Errorf("%+v: got %v", h, err)
		}
	}
	begin := FrameHeader{Kind: FrameBegin, Offset: scstore.MaxVolumeBytes + 1}.AppendTo(nil)
	if _, err := readAll(begin); !errors.Is(err, scstore.ErrInvalid) {
		t.Errorf("a volume beyond the largest: got %v", err)
	}
	over := FrameHeader{Kind: FrameBegin, Offset: 4096}.AppendTo(nil)
	over = FrameHeader{Kind: FrameZero, Offset: 4096, Length: 1}.AppendTo(over)
	if _, err := readAll(over); !errors.Is(err, scstore.ErrInvalid) {
		t.Errorf("a part beyond the volume: got %v", err)
	}
}

func FuzzParseFrameHeader(f *testing.F) {
	whole := stream(f)
	f.Add(whole[:FrameHeaderSize])
	f.Add(whole[FrameHeaderSize : 2*FrameHeaderSize])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		h, rest, err := ParseFrameHeader(b)
		if err != nil {
			return
		}
		again := h.AppendTo(nil)
		if !bytes.Equal(append(again, rest...), b) {
			t.Errorf("%+v encodes differently", h)
		}
	})
}

func FuzzParseStream(f *testing.F) {
	f.Add(stream(f))
	f.Fuzz(func(t *testing.T, b []byte) {
		frames, err := readAll(b)
		for _, fr := range frames {
			if fr.Offset < 0 || fr.Length <= 0 || fr.Offset+fr.Length > scstore.MaxVolumeBytes {
				t.Errorf("%+v is out of bounds (%v)", fr, err)
			}
		}
	})
}
