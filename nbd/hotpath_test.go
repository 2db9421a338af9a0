package nbd_test

import (
	"io"
	"net"
	"testing"
	"time"

	"scstore/nbd/nbdtest"
)

// burst is a batch of requests and the length of their replies.
type burst struct {
	name       string
	send       []byte
	replyBytes int
}

func bursts() []burst {
	const n = 32
	read, write := burst{name: "read"}, burst{name: "write"}
	for i := range uint64(n) {
		read.send = append(read.send, requestBytes(0, tRead, i, i*8192, 4096)...)
		read.replyBytes += 20 + 8 + 4096
		write.send = append(append(write.send, requestBytes(0, tWrite, i, i*8192, 4096)...), random(4096, i)...)
		write.replyBytes += 16
	}
	return []burst{read, write}
}

func playBurst(t testing.TB, nc net.Conn, b burst, reply []byte) {
	if _, err := nc.Write(b.send); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(nc, reply); err != nil {
		t.Fatal(err)
	}
}

func hotConn(t testing.TB) net.Conn {
	e, d := memory(t, mib, nbdtest.Hooks{})
	if err := d.WriteAt(random(mib, 1), 0); err != nil {
		t.Fatal(err)
	}
	nc, err := net.Dial("unix", e.socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = nc.Close() })
	if err := nc.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	r := (&raw{nc: nc}).begin(true, false)
	if r.err != nil {
		t.Fatal(r.err)
	}
	return nc
}

func TestServer_TheHotPathDoesNotAllocate(t *testing.T) {
	for _, b := range bursts() {
		nc := hotConn(t)
		reply := make([]byte, b.replyBytes)
		playBurst(t, nc, b, reply)
		if got := testing.AllocsPerRun(500, func() { playBurst(t, nc, b, reply) }); got >= 1 {
			t.Errorf("%s: %.1f allocations for a burst of 32", b.name, got)
		}
	}
}

func BenchmarkServer(b *testing.B) {
	for _, burst := range bursts() {
		b.Run(burst.name+"-4k-qd32", func(b *testing.B) {
			nc := hotConn(b)
			if err := nc.SetDeadline(time.Time{}); err != nil {
				b.Fatal(err)
			}
			reply := make([]byte, burst.replyBytes)
			b.SetBytes(32 * 4096)
			b.ReportAllocs()
			for b.Loop() {
				playBurst(b, nc, burst, reply)
			}
		})
	}
}
