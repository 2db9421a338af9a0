package quicnet

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"scstore"
	"scstore/propagate/quicnet/authority"
)

var rewrite = flag.Bool("rewrite", false, "write the golden files anew")

var testClock = time.Date(2026, 11, 1, 12, 0, 0, 5, time.UTC)

func testHello() hello {
	return hello{
		min: 1, max: 1, cluster: authority.ClusterID{0: 0xc1, 15: 1}, incarnation: 3, disk: scstore.StoreID{0: 0xd1, 15: 2},
		boot: 9, clock: testClock, slot: 4, host: "host-2",
	}
}

func testJoinRequest() joinRequest {
	return joinRequest{
		secret: [32]byte{0: 0x5e, 31: 3}, disk: scstore.StoreID{0: 0xd1, 15: 2}, clock: testClock, host: "host-2",
		request: []byte("a certificate request"), payload: []byte("site-a"),
	}
}

func testJoinAnswer() joinAnswer {
	return joinAnswer{incarnation: 3, certificate: []byte("certificate"), authority: []byte("authority"), membership: []byte("members")}
}

func golden(t *testing.T, name string, b []byte) {
	t.Helper()
	path := filepath.Join("testdata", "golden", "v1", name+".hex")
	var text strings.Builder
	for line := range slices.Chunk(b, 32) {
		text.WriteString(hex.EncodeToString(line) + "\n")
	}
	if *rewrite {
		if err := os.WriteFile(path, []byte(text.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if text.String() != string(want) {
		t.Errorf("%s differs; got\n%s", path, text.String())
	}
}

func TestGolden(t *testing.T) {
	golden(t, "hello", testHello().encode())
	golden(t, "header", header{kind: 0x1234, class: ClassRepair, request: true}.appendTo(nil))
	golden(t, "reply", encodeReply([]byte("answer"), nil))
	golden(t, "reply_error", encodeReply(nil, fmt.Errorf("volume a: %w", scstore.ErrFenced)))
	golden(t, "join_request", testJoinRequest().encode())
	golden(t, "join_answer", encodeReply(testJoinAnswer().encode(), nil))
}

func TestParseHello_OfANewerVersionIsReadAsFarAsItIsKnown(t *testing.T) {
	h := testHello()
	h.min, h.max = WireMax+1, WireMax+3
	b := append(h.encode()[4:], "what a later version adds"...)
	got, err := parseHello(b)
	if err != nil || got.min != h.min || got.host != h.host || !got.clock.Equal(h.clock) {
		t.Errorf("got %+v, %v", got, err)
	}
	if _, err := parseHello(append(testHello().encode()[4:], 0)); !errors.Is(err, scstore.ErrInvalid) {
		t.Errorf("bytes behind a hello of this version: got %v", err)
	}
}

func TestReadFrame_TakesMemoryAsBytesArrive(t *testing.T) {
	claim := binary.BigEndian.AppendUint32(nil, MaxFrameBytes)
	if _, err := ReadFrame(bytes.NewReader(append(claim, "short"...)), MaxFrameBytes); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("got %v", err)
	}
	allocated := testing.AllocsPerRun(1, func() {
		b, err := readBody(io.LimitReader(zeros{}, 10), MaxFrameBytes)
		if b != nil || err == nil {
			t.Error("read a body that is not there")
		}
	})
	if allocated > 10 {
		t.Errorf("%v allocations for 10 bytes", allocated)
	}
	if _, err := ReadFrame(bytes.NewReader(binary.BigEndian.AppendUint32(nil, 11)), 10); !errors.Is(err, scstore.ErrInvalid) {
		t.Errorf("a frame over the limit: got %v", err)
	}
	whole := binary.BigEndian.AppendUint32(nil, 200_000)
	whole = append(whole, bytes.Repeat([]byte("0123456789"), 20_000)...)
	got, err := ReadFrame(iotest.HalfReader(bytes.NewReader(whole)), MaxFrameBytes)
	if err != nil || !bytes.Equal(got, whole[4:]) {
		t.Errorf("got %d bytes, %v", len(got), err)
	}
	if _, err := ReadFrame(bytes.NewReader(nil), 10); err != io.EOF {
		t.Errorf("no frame: got %v", err)
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

func TestCode_EverySentinelCrossesTheWire(t *testing.T) {
	seen := map[code]bool{}
	for _, want := range scstore.Sentinels() {
		c := codeOf(fmt.Errorf("wrapped: %w", want))
		if c == codeInternal || seen[c] {
			t.Errorf("%v has code %d", want, c)
		}
		seen[c] = true
		if got := c.sentinel(); got != want {
			t.Errorf("%v comes back as %v", want, got)
		}
		_, remote, err := parseReply(encodeReply(nil, fmt.Errorf("wrapped: %w", want))[4:])
		if err != nil || !errors.Is(remote, want) || !strings.HasPrefix(remote.Error(), "wrapped: ") {
			t.Errorf("%v is answered as %v, %v", want, remote, err)
		}
	}
	if len(codes) != len(scstore.Sentinels()) {
		t.Errorf("%d codes for %d sentinels", len(codes), len(scstore.Sentinels()))
	}
	if _, remote, _ := parseReply(encodeReply(nil, errors.New("disk on fire"))[4:]); !errors.Is(remote, scstore.ErrIndeterminate) {
		t.Errorf("an error of no kind is answered as %v", remote)
	}
}

func TestReasonText_IsShortAndPrintable(t *testing.T) {
	for _, text := range []string{strings.Repeat("é", MaxReasonBytes), "\xff\xfe", strings.Repeat("\xff", 1000)} {
		if got := reasonText(errors.New(text)); len(got) > MaxReasonBytes || strings.ToValidUTF8(got, "") != got {
			t.Errorf("got %d bytes %q", len(got), got)
		}
	}
}

func TestClass_UrgenciesFollowTheOrder(t *testing.T) {
	names := map[string]bool{}
	for c := range classCount {
		if c > 0 && c.Urgency() < (c-1).Urgency() {
			t.Errorf("%s is more urgent than %s", c, c-1)
		}
		if c.String() == "" || names[c.String()] || c.Urgency() < 0 || c.Urgency() > 7 {
			t.Errorf("class %d: %q, urgency %d", uint8(c), c, c.Urgency())
		}
		names[c.String()] = true
	}
	if classCount.Valid() || classCount.String() == "" {
		t.Error("a class that does not exist is valid, or has no text")
	}
}

func FuzzParseHello(f *testing.F) {
	f.Add(testHello().encode()[4:])
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := parseHello(b)
		if err == nil && h.max <= WireMax && !bytes.Equal(h.encode()[4:], b) {
			t.Errorf("%x reads as %+v", b, h)
		}
	})
}

func FuzzParseHeader(f *testing.F) {
	f.Add(header{kind: 7, class: ClassDemand}.appendTo(nil)[4:])
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := parseHeader(b)
		if err == nil && !bytes.Equal(h.appendTo(nil)[4:], b) {
			t.Errorf("%x reads as %+v", b, h)
		}
	})
}

func FuzzParseReply(f *testing.F) {
	f.Add(encodeReply([]byte("answer"), nil)[4:])
	f.Add(encodeReply(nil, scstore.ErrBusy)[4:])
	f.Fuzz(func(t *testing.T, b []byte) {
		answer, remote, err := parseReply(b)
		if err == nil && remote == nil && !bytes.Equal(encodeReply(answer, nil)[4:], b) {
			t.Errorf("%x reads as %x", b, answer)
		}
		if remote != nil && codeOf(remote) == codeInternal {
			t.Errorf("%x reads as %v, which is of no kind", b, remote)
		}
	})
}

func FuzzParseJoinRequest(f *testing.F) {
	f.Add(testJoinRequest().encode()[4:])
	f.Fuzz(func(t *testing.T, b []byte) {
		j, err := parseJoinRequest(b)
		if err == nil && !bytes.Equal(j.encode()[4:], b) {
			t.Errorf("%x reads as %+v", b, j)
		}
	})
}

func FuzzParseJoinAnswer(f *testing.F) {
	f.Add(testJoinAnswer().encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		j, err := parseJoinAnswer(b)
		if err == nil && !bytes.Equal(j.encode(), b) {
			t.Errorf("%x reads as %+v", b, j)
		}
	})
}

func FuzzParseFrame(f *testing.F) {
	f.Add([]byte{0, 0, 0, 2, 1, 2, 3})
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := ReadFrame(bytes.NewReader(b), 1<<10)
		if err == nil && (len(got) > 1<<10 || !bytes.Equal(got, b[4:4+len(got)])) {
			t.Errorf("%x reads as %x", b, got)
		}
	})
}
