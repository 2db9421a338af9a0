package nbd

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"reflect"
	"testing"

	"scstore"
)

func FuzzParseRequest(f *testing.F) {
	f.Add(request{flags: 1, cmd: CmdWrite, handle: 2, offset: 3, length: 4}.appendTo(nil))
	f.Add([]byte("short"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parseRequest(b)
		if err != nil {
			if !errors.Is(err, scstore.ErrInvalid) {
				t.Errorf("error %v is not ErrInvalid", err)
			}
			return
		}
		if got := r.appendTo(nil); !bytes.Equal(got, b[:requestBytes]) {
			t.Errorf("%+v encodes to %x, was parsed from %x", r, got, b[:requestBytes])
		}
	})
}

func FuzzParseInfoRequest(f *testing.F) {
	f.Add(infoRequest{name: "disk", types: []uint16{0, 1, 2, 3}}.appendTo(nil))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parseInfoRequest(b)
		if err != nil {
			return
		}
		if len(r.name) > MaxNameBytes || len(r.types) > MaxInfoRequests {
			t.Errorf("name of %d bytes and %d types passed the limits", len(r.name), len(r.types))
		}
		if got := r.appendTo(nil); !bytes.Equal(got, b) {
			t.Errorf("%+v encodes to %x, was parsed from %x", r, got, b)
		}
	})
}

func FuzzParseContextRequest(f *testing.F) {
	f.Add(contextRequest{name: "disk", queries: []string{"base:allocation", ""}}.appendTo(nil))
	f.Add([]byte{0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parseContextRequest(b)
		if err != nil {
			return
		}
		if len(r.name) > MaxNameBytes || len(r.queries) > MaxContextQueries {
			t.Errorf("name of %d bytes and %d queries passed the limits", len(r.name), len(r.queries))
		}
		if got := r.appendTo(nil); !bytes.Equal(got, b) {
			t.Errorf("%+v encodes to %x, was parsed from %x", r, got, b)
		}
	})
}

func FuzzParseStatusChunk(f *testing.F) {
	f.Add([]byte{0, 0, 0, 1, 0, 0, 16, 0, 0, 0, 0, 3})
	f.Fuzz(func(t *testing.T, b []byte) {
		_, ranges, err := parseStatusChunk(b, 100, nil)
		if err != nil {
			return
		}
		off := int64(100)
		for _, r := range ranges {
			if r.Offset != off || r.Length <= 0 {
				t.Fatalf("range %+v, want one at %d", r, off)
			}
			off += r.Length
		}
	})
}

func FuzzParseURL(f *testing.F) {
	f.Add("nbd+unix:///prod/web1?socket=/run/s")
	f.Add("nbd://[::1]:10809/x")
	f.Fuzz(func(t *testing.T, s string) {
		a, err := ParseURL(s)
		if err != nil {
			return
		}
		if again, err := ParseURL(a.String()); err != nil || !reflect.DeepEqual(again, a) {
			t.Errorf("%q is %+v, its url %q is %+v, %v", s, a, a.String(), again, err)
		}
	})
}

// FuzzParseReplies feeds the client's decoder: whatever a server sends, every
// request is completed at most once, and a read that succeeded was filled wholly.
func FuzzParseReplies(f *testing.F) {
	var b []byte
	b = appendChunk(b, 0, chunkHole, 0, 12)
	b = be.AppendUint32(be.AppendUint64(b, 5096), 4)
	b = appendChunk(b, chunkFlagDone, chunkData, 0, 12)
	b = append(be.AppendUint64(b, 5100), "data"...)
	b = appendSimple(b, 1, 0)
	b = appendChunk(b, chunkFlagDone, chunkStatus, 2, 12)
	b = append(b, 0, 0, 0, 7, 0, 0, 0, 5, 0, 0, 0, 3)
	f.Add(b, true)
	f.Add(appendError(appendError(nil, 0, EIO, "no"), 2, EINVAL, ""), true)
	f.Add(append(appendSimple(nil, 0, 0), "abcdefgh"...), false)
	f.Fuzz(func(t *testing.T, b []byte, structured bool) {
		inFlight := map[uint64]*Request{
			0: {Cmd: CmdRead, Offset: 5096, Data: make([]byte, 8)},
			1: {Cmd: CmdWrite, Offset: 0, Data: make([]byte, 8)},
			2: {Cmd: CmdBlockStatus, Offset: 10, Length: 5},
		}
		d := replyDecoder{
			br: bufio.NewReader(bytes.NewReader(b)), structured: structured, contextID: 7,
			lookup: func(h uint64) *Request { return inFlight[h] },
			finished: func(r *Request, err error) {
				for h, have := range inFlight {
					if have == r {
						delete(inFlight, h)
						if err == nil && r.Cmd == CmdRead && structured && r.reply.next != len(r.Data) {
							t.Errorf("read succeeded with %d of %d bytes", r.reply.next, len(r.Data))
						}
						return
					}
				}
				t.Error("a request was completed twice")
			},
		}
		for range len(b) + 1 {
			if err := d.next(); err != nil {
				return
			}
		}
		t.Error("the decoder makes no progress")
	})
}

// bytesConn is what the client's handshake speaks to in a fuzz test.
type bytesConn struct{ io.Writer }

func (bytesConn) RemoteAddr() net.Addr { return &net.UnixAddr{} }

// FuzzParseHandshake feeds the client's handshake.
func FuzzParseHandshake(f *testing.F) {
	hello := append(be.AppendUint64(be.AppendUint64(nil, magicServer), magicOption), 0, 3)
	b := appendOptReply(bytes.Clone(hello), optStructuredReply, repAck, nil)
	b = appendOptReply(b, optSetMetaContext, repMetaContext, append([]byte{0, 0, 0, 1}, contextAllocation...))
	b = appendOptReply(b, optSetMetaContext, repAck, nil)
	b = appendOptReply(b, optGo, repInfo, []byte{0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 5})
	b = appendOptReply(b, optGo, repInfo, []byte{0, 3, 0, 0, 0, 1, 0, 0, 16, 0, 2, 0, 0, 0})
	b = appendOptReply(b, optGo, repAck, nil)
	f.Add(b)
	f.Add(appendOptReply(appendOptReply(hello, optList, repServer, []byte{0, 0, 0, 1, 'x', 'y'}), optList, repAck, nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		h := clientHandshake{nc: bytesConn{io.Discard}, br: bufio.NewReader(bytes.NewReader(b))}
		if info, err := h.open("x", true); err == nil && (info.size < 0 || info.blockMin == 0 || info.blockMax > MaxPayload) {
			t.Errorf("accepted %+v", info)
		}
		h.br = bufio.NewReader(bytes.NewReader(b))
		_, _ = h.list()
	})
}
