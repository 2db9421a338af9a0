package nbd_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The protocol's numbers are written out once more here: these tests check the
// bytes, so they share nothing with the package.
const (
	tExportName, tAbort, tList, tStartTLS, tInfo, tGo, tStructured, tListMeta, tSetMeta = 1, 2, 3, 5, 6, 7, 8, 9, 10
	tRead, tWrite, tDisc, tFlush, tTrim, tCache, tZero, tStatus                         = 0, 1, 2, 3, 4, 5, 6, 7
	tFUA, tNoHole, tDF, tReqOne, tFast                                                  = 1, 2, 4, 8, 16
)

var be = binary.BigEndian

// raw is a connection that is driven byte by byte. After the first error every
// step does nothing and out tells of it.
type raw struct {
	nc     net.Conn
	out    []string
	err    error
	handle uint64
}

func (r *raw) say(format string, args ...any) { r.out = append(r.out, fmt.Sprintf(format, args...)) }

// fail ends the script; the way a connection is closed makes no difference.
func (r *raw) fail(err error) {
	if r.err != nil {
		return
	}
	r.err = err
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		r.say("closed")
	case errors.Is(err, os.ErrDeadlineExceeded):
		r.say("timeout")
	default:
		r.say("error %v", err)
	}
}

func (r *raw) send(b []byte) {
	if r.err != nil {
		return
	}
	// A server that hangs up may do so while we still write: what counts is
	// what it sent before, so go on to read.
	_, _ = r.nc.Write(b)
}

func (r *raw) read(n int) []byte {
	b := make([]byte, n)
	if r.err == nil {
		if _, err := io.ReadFull(r.nc, b); err != nil {
			r.fail(err)
		}
	}
	return b
}

// closed expects the server to hang up.
func (r *raw) closed() {
	if r.err != nil {
		return
	}
	if n, err := r.nc.Read(make([]byte, 1)); n != 0 {
		r.say("more bytes")
	} else {
		r.fail(err)
	}
}

// greet reads the greeting and answers with flags.
func (r *raw) greet(flags uint32) *raw {
	if b := r.read(18); r.err == nil && !bytes.Equal(b, []byte("NBDMAGICIHAVEOPT\x00\x03")) {
		r.say("greeting %q", b)
	}
	r.send(be.AppendUint32(nil, flags))
	return r
}

func optionBytes(option uint32, data []byte) []byte {
	b := be.AppendUint32([]byte("IHAVEOPT"), option)
	return append(be.AppendUint32(b, uint32(len(data))), data...)
}

// reply reads one reply to an option.
func (r *raw) reply(option uint32) (kind uint32, data []byte) {
	b := r.read(20)
	if r.err != nil {
		return 0, nil
	}
	if be.Uint64(b) != 0x3e889045565a9 || be.Uint32(b[8:]) != option {
		r.fail(fmt.Errorf("reply head %x", b))
		return 0, nil
	}
	kind = be.Uint32(b[12:])
	return kind, r.read(int(be.Uint32(b[16:])))
}

var kindNames = map[uint32]string{
	1: "ack", 2: "server", 3: "info", 4: "context",
	1<<31 | 1: "unsup", 1<<31 | 2: "policy", 1<<31 | 3: "invalid", 1<<31 | 6: "unknown", 1<<31 | 7: "shutdown", 1<<31 | 9: "too big",
}

// option sends an option and says the kinds of its replies up to the final one;
// show adds the data of those that are not errors.
func (r *raw) option(option uint32, data []byte, show bool) *raw {
	r.send(optionBytes(option, data))
	for r.err == nil {
		kind, data := r.reply(option)
		if r.err != nil {
			break
		}
		word := kindNames[kind]
		if show && len(data) > 0 && kind < 1<<31 {
			word = fmt.Sprintf("%s %q", word, data)
		}
		r.say("%s", word)
		if kind == 1 || kind >= 1<<31 {
			break
		}
	}
	return r
}

func str(s string) []byte { return append(be.AppendUint32(nil, uint32(len(s))), s...) }

func infoData(name string, types ...uint16) []byte {
	b := be.AppendUint16(str(name), uint16(len(types)))
	for _, t := range types {
		b = be.AppendUint16(b, t)
	}
	return b
}

func metaData(name string, queries ...string) []byte {
	b := be.AppendUint32(str(name), uint32(len(queries)))
	for _, q := range queries {
		b = append(b, str(q)...)
	}
	return b
}

// begin goes to the transmission phase in the way that modern clients do.
func (r *raw) begin(structured, meta bool) *raw {
	r.greet(3)
	if structured {
		r.option(tStructured, nil, false)
	}
	if meta {
		r.option(tSetMeta, metaData("disk", "base:allocation"), false)
	}
	r.option(tGo, infoData("disk"), false)
	r.out = nil
	return r
}

func requestBytes(flags, cmd uint16, handle, offset uint64, length uint32) []byte {
	b := be.AppendUint32(nil, 0x25609513)
	b = be.AppendUint16(b, flags)
	b = be.AppendUint16(b, cmd)
	b = be.AppendUint64(b, handle)
	b = be.AppendUint64(b, offset)
	return be.AppendUint32(b, length)
}

// answer reads one whole reply to a request and describes it: "ok", "error N",
// and the data of reads by length and the count of bytes that are not zero.
func (r *raw) answer(handle uint64, readLength int) string {
	data := make([]byte, readLength)
	content := false
	for r.err == nil {
		magic := be.Uint32(r.read(4))
		if r.err != nil {
			break
		}
		switch magic {
		case 0x67446698:
			b := r.read(12)
			e, h := be.Uint32(b), be.Uint64(b[4:])
			if r.err != nil {
				return ""
			}
			if h != handle {
				return fmt.Sprintf("handle %#x", h)
			}
			if e != 0 {
				return fmt.Sprintf("error %d", e)
			}
			if readLength > 0 {
				return describeData(r.read(readLength))
			}
			return "ok"
		case 0x668e33ef:
			b := r.read(16)
			flags, kind, h, n := be.Uint16(b), be.Uint16(b[2:]), be.Uint64(b[4:]), int(be.Uint32(b[12:]))
			payload := r.read(n)
			if r.err != nil {
				return ""
			}
			if h != handle {
				return fmt.Sprintf("handle %#x", h)
			}
			switch {
			case kind&(1<<15) != 0:
				return fmt.Sprintf("error %d", be.Uint32(payload))
			case kind == 1:
				copy(data[be.Uint64(payload)%uint64(readLength):], payload[8:])
				content = true
			case kind == 2:
				content = true
			case kind == 5:
				return describeStatus(payload[4:])
			}
			if flags&1 != 0 {
				if content {
					return describeData(data)
				}
				return "ok"
			}
		default:
			r.fail(fmt.Errorf("reply magic %#x", magic))
		}
	}
	return ""
}

func describeData(b []byte) string {
	return fmt.Sprintf("data %d/%d", len(b)-bytes.Count(b, []byte{0}), len(b))
}

func describeStatus(b []byte) string {
	var words []string
	for ; len(b) >= 8; b = b[8:] {
		words = append(words, fmt.Sprintf("%d:%d", be.Uint32(b), be.Uint32(b[4:])))
	}
	return "status " + strings.Join(words, " ")
}

// cmd sends one request and says its reply.
func (r *raw) cmd(flags, cmd uint16, offset uint64, length uint32, payload []byte) *raw {
	r.handle += 0x0102030405060708
	r.send(append(requestBytes(flags, cmd, r.handle, offset, length), payload...))
	want := 0
	if cmd == tRead {
		want = int(length)
	}
	if s := r.answer(r.handle, want); s != "" {
		r.say("%s", s)
	}
	return r
}

func (r *raw) write(flags uint16, offset uint64, payload []byte) *raw {
	return r.cmd(flags, tWrite, offset, uint32(len(payload)), payload)
}

// run plays a script on a fresh connection and returns what it said.
func run(t testing.TB, dial func() (net.Conn, error), script func(r *raw)) string {
	t.Helper()
	nc, err := dial()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = nc.Close() }()
	if err := nc.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	r := &raw{nc: nc}
	script(r)
	return strings.Join(r.out, ", ")
}
