package nbd_test

import (
	"bytes"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"scstore/nbd"
	"scstore/nbd/nbdtest"
)

const diskBytes = mib

// conformanceCase is a script and what a server says to it. qemu and nbdkit are
// what those say where the protocol leaves the choice; "" is the same as want, and
// "-" that the case has no meaning there.
type conformanceCase struct {
	name         string
	script       func(r *raw)
	want         string
	qemu, nbdkit string
}

var handshakeCases = []conformanceCase{
	{"unknown client flags", func(r *raw) { r.greet(7).closed() }, "closed", "", ""},
	{"wrong option magic", func(r *raw) { r.greet(3).send(bytes.Repeat([]byte("x"), 16)); r.closed() }, "closed", "", ""},
	{"unknown option and go on", func(r *raw) {
		r.greet(3).option(0x1234, []byte("some data"), false).option(tAbort, nil, false)
	}, "unsup, ack", "", ""},
	{"list", func(r *raw) { r.greet(3).option(tList, nil, true) }, `server "\x00\x00\x00\x04diskvolume disk", ack`, "", `server "\x00\x00\x00\x00", ack`},
	{"list with data", func(r *raw) { r.greet(3).option(tList, []byte("x"), false) }, "invalid", "", ""},
	{"starttls without tls", func(r *raw) { r.greet(3).option(tStartTLS, nil, false) }, "policy", "", ""},
	{"starttls with data", func(r *raw) { r.greet(3).option(tStartTLS, []byte("x"), false) }, "invalid", "", ""},
	{"abort", func(r *raw) { r.greet(3).option(tAbort, nil, false).closed() }, "ack, closed", "", ""},
	{"structured", func(r *raw) { r.greet(3).option(tStructured, nil, false) }, "ack", "", ""},
	{"structured with data", func(r *raw) { r.greet(3).option(tStructured, []byte("x"), false) }, "invalid", "", ""},
	{"info of an unknown export", func(r *raw) { r.greet(3).option(tInfo, infoData("none"), false) }, "unknown", "", "-"},
	{"go to an unknown export and go on", func(r *raw) {
		r.greet(3).option(tGo, infoData("none"), false).option(tAbort, nil, false)
	}, "unknown, ack", "", "-"},
	{"info without data", func(r *raw) { r.greet(3).option(tInfo, nil, false) }, "invalid", "", ""},
	{"info name beyond the data", func(r *raw) { r.greet(3).option(tInfo, []byte("\x00\x00\x00\x09disk\x00\x00"), false) }, "invalid", "", ""},
	{"info types beyond the data", func(r *raw) { r.greet(3).option(tInfo, append(str("disk"), 0, 2, 0, 0), false) }, "invalid", "", ""},
	{"info with trailing bytes", func(r *raw) { r.greet(3).option(tInfo, append(infoData("disk", 1), 0), false) }, "invalid", "", ""},
	{"info name too long", func(r *raw) {
		r.greet(3).option(tInfo, infoData(string(make([]byte, 4097))), false).option(tAbort, nil, false)
	}, "too big, ack", "invalid, ack", "invalid, ack"},
	{"info with everything", func(r *raw) { r.greet(3).option(tInfo, infoData("disk", 0, 1, 2, 3, 3, 77), true) },
		`info "\x00\x00\x00\x00\x00\x00\x00\x10\x00\x00\rm", info "\x00\x03\x00\x00\x00\x01\x00\x00\x10\x00\x02\x00\x00\x00", info "\x00\x01disk", info "\x00\x02volume disk", ack`, "-", "-"},
	{"go", func(r *raw) { r.greet(3).option(tStructured, nil, false).option(tGo, infoData("disk"), true) },
		`ack, info "\x00\x00\x00\x00\x00\x00\x00\x10\x00\x00\r\xed", info "\x00\x03\x00\x00\x00\x01\x00\x00\x10\x00\x02\x00\x00\x00", ack`, "-", "-"},
	{"export name without zeroes", func(r *raw) {
		r.greet(3).send(optionBytes(tExportName, []byte("disk")))
		if b := r.read(10); r.err == nil {
			r.say("size %d", be.Uint64(b))
		}
		r.cmd(0, tRead, 0, 512, nil)
	}, "size 1048576, data 0/512", "", ""},
	{"export name with zeroes", func(r *raw) {
		r.greet(1).send(optionBytes(tExportName, []byte("disk")))
		if b := r.read(134); r.err == nil {
			r.say("size %d, zeroes %v", be.Uint64(b), bytes.Equal(b[10:], make([]byte, 124)))
		}
		r.cmd(0, tRead, 0, 512, nil)
	}, "size 1048576, zeroes true, data 0/512", "", ""},
	{"export name unknown", func(r *raw) { r.greet(3).send(optionBytes(tExportName, []byte("none"))); r.closed() }, "closed", "", "-"},
	{"plain newstyle client", func(r *raw) {
		r.greet(0).send(optionBytes(tExportName, []byte("disk")))
		r.read(134)
		r.cmd(0, tRead, 0, 512, nil)
	}, "data 0/512", "", ""},
	{"oversize option is skipped", func(r *raw) {
		r.greet(3).option(0x1234, make([]byte, 70000), false).option(tAbort, nil, false)
	}, "too big, ack", "unsup, ack", "unsup, ack"},
	{"huge option ends it", func(r *raw) {
		r.greet(3).send(append([]byte("IHAVEOPT"), 0, 0, 0, 3, 255, 255, 255, 255))
		r.closed()
	}, "closed", "-", ""},
}

var contextCases = []conformanceCase{
	{"contexts without structured replies", func(r *raw) { r.greet(3).option(tSetMeta, metaData("disk", "base:allocation"), false) }, "invalid", "", ""},
	{"list all", func(r *raw) {
		r.greet(3).option(tStructured, nil, false).option(tListMeta, metaData("disk"), true)
	}, `ack, context "\x00\x00\x00\x00base:allocation", ack`, "", ""},
	{"list by wildcard", func(r *raw) {
		r.greet(3).option(tStructured, nil, false).option(tListMeta, metaData("disk", "base:"), false)
	}, "ack, context, ack", "", ""},
	{"list by name and unknown", func(r *raw) {
		r.greet(3).option(tStructured, nil, false).option(tListMeta, metaData("disk", "x:y", "base:allocation", "base:other", ""), false)
	}, "ack, context, ack", "", ""},
	{"set knows no wildcard", func(r *raw) {
		r.greet(3).option(tStructured, nil, false).option(tSetMeta, metaData("disk", "base:"), false)
	}, "ack, ack", "", ""},
	{"set nothing", func(r *raw) {
		r.greet(3).option(tStructured, nil, false).option(tSetMeta, metaData("disk"), false)
	}, "ack, ack", "", ""},
	{"set twice replaces", func(r *raw) {
		r.greet(3).option(tStructured, nil, false).option(tSetMeta, metaData("disk", "base:allocation"), false).
			option(tSetMeta, metaData("disk"), false).option(tGo, infoData("disk"), false)
		r.out = nil
		r.cmd(0, tStatus, 0, 512, nil)
	}, "error 22", "", ""},
	{"set of an unknown export", func(r *raw) {
		r.greet(3).option(tStructured, nil, false).option(tSetMeta, metaData("none", "base:allocation"), false)
	}, "ack, unknown", "", "-"},
	{"set with trailing bytes", func(r *raw) {
		r.greet(3).option(tStructured, nil, false).option(tSetMeta, append(metaData("disk", "base:allocation"), 1), false)
	}, "ack, invalid", "ack, context, ack", "ack, context, ack"},
	{"set with queries beyond the data", func(r *raw) {
		r.greet(3).option(tStructured, nil, false).option(tSetMeta, be.AppendUint32(str("disk"), 2), false)
	}, "ack, invalid", "", ""},
	{"set with too many queries", func(r *raw) {
		r.greet(3).option(tStructured, nil, false).option(tSetMeta, be.AppendUint32(str("disk"), 1<<31), false)
	}, "ack, too big", "ack, invalid", "ack, invalid"},
}

var commandCases = []conformanceCase{
	{"write and read back", func(r *raw) {
		r.begin(false, false).write(0, 1000, bytes.Repeat([]byte{7}, 3000)).cmd(0, tRead, 0, 5000, nil).cmd(0, tFlush, 0, 0, nil)
	}, "ok, data 3000/5000, ok", "", ""},
	{"structured read back", func(r *raw) {
		r.begin(true, false).write(tFUA, 1000, bytes.Repeat([]byte{7}, 3000)).cmd(0, tRead, 0, 100000, nil).cmd(tDF, tRead, 0, 60000, nil)
	}, "ok, data 3000/100000, data 3000/60000", "", ""},
	{"every flag FUA", func(r *raw) {
		r.begin(true, true).write(tFUA, 0, make([]byte, 512)).cmd(tFUA, tZero, 0, 512, nil).cmd(tFUA, tTrim, 0, 512, nil)
	}, "ok, ok, ok", "", ""},
	{"FUA where it means nothing", func(r *raw) {
		r.begin(true, true).cmd(tFUA, tRead, 700000, 512, nil).cmd(tFUA, tFlush, 0, 0, nil).cmd(tFUA, tCache, 0, 512, nil).cmd(tFUA|tReqOne, tStatus, 700000, 512, nil)
	}, "data 0/512, ok, ok, status 512:3", "-", "-"},
	{"zeroes", func(r *raw) {
		r.begin(true, false).write(0, 40000, bytes.Repeat([]byte{1}, 20000)).cmd(0, tZero, 41000, 9000, nil).
			cmd(tNoHole, tZero, 55000, 1000, nil).cmd(0, tRead, 40000, 20000, nil)
	}, "ok, ok, ok, data 10000/20000", "", ""},
	{"fast zeroes", func(r *raw) {
		r.begin(true, false).write(0, 73728, bytes.Repeat([]byte{1}, 8192)).cmd(tFast|tNoHole, tZero, 73728, 4096, nil).cmd(0, tRead, 73728, 8192, nil)
	}, "ok, ok, data 4096/8192", "-", ""},
	{"read beyond the end", func(r *raw) {
		r.begin(true, false).cmd(0, tRead, diskBytes-100, 101, nil).cmd(0, tRead, diskBytes, 1, nil).cmd(0, tRead, 1<<64-1, 1, nil).cmd(0, tRead, 1<<63, 4096, nil).cmd(0, tRead, diskBytes-100, 100, nil)
	}, "error 22, error 22, error 22, error 22, data 0/100", "", ""},
	{"simple read beyond the end", func(r *raw) {
		r.begin(false, false).cmd(0, tRead, diskBytes-100, 101, nil).cmd(0, tRead, 100000, 10, nil)
	}, "error 22, data 0/10", "", ""},
	{"write beyond the end", func(r *raw) {
		r.begin(true, false).write(0, diskBytes-100, make([]byte, 101)).write(0, 1<<64-1, make([]byte, 5000)).write(0, diskBytes-100, make([]byte, 100))
	}, "error 28, error 28, ok", "error 22, error 22, ok", ""},
	{"large write beyond the end", func(r *raw) {
		r.begin(true, false).write(0, diskBytes-100, make([]byte, 2*mib)).cmd(0, tRead, diskBytes-512, 512, nil)
	}, "error 28, data 0/512", "error 22, data 0/512", ""},
	{"zero and trim beyond the end", func(r *raw) {
		r.begin(true, false).cmd(0, tZero, diskBytes-100, 101, nil).cmd(0, tTrim, diskBytes-100, 101, nil).cmd(0, tZero, 0, 1<<32-1, nil).cmd(0, tFlush, 0, 0, nil)
	}, "error 28, error 22, error 28, ok", "error 22, error 22, error 22, ok", ""},
	{"unknown command", func(r *raw) {
		r.begin(true, false).cmd(0, 99, 0, 0, nil).cmd(0, tFlush, 0, 0, nil)
	}, "error 22, ok", "", ""},
	{"unknown flags", func(r *raw) {
		r.begin(true, false).cmd(1<<9, tRead, 0, 512, nil).cmd(1<<9, tFlush, 0, 0, nil).write(1<<9, 0, make([]byte, 512)).cmd(0, tFlush, 0, 0, nil)
	}, "error 22, error 22, error 22, ok", "", ""},
	{"flags of other commands", func(r *raw) {
		r.begin(true, true).write(tNoHole, 0, make([]byte, 300000)).cmd(tReqOne, tRead, 0, 512, nil).cmd(tFast, tTrim, 0, 512, nil).cmd(0, tFlush, 0, 0, nil)
	}, "error 22, error 22, error 22, ok", "", ""},
	{"DF without structured replies", func(r *raw) {
		r.begin(false, false).cmd(tDF, tRead, 0, 512, nil).cmd(0, tFlush, 0, 0, nil)
	}, "error 22, ok", "", ""},
	{"read longer than the maximum", func(r *raw) {
		r.begin(true, false).cmd(0, tRead, 0, 32*mib+1, nil).cmd(0, tFlush, 0, 0, nil)
	}, "error 22, ok", "", ""},
	{"status of a hole, of data, and by one", func(r *raw) {
		r.begin(true, true).write(0, 524288, bytes.Repeat([]byte{1}, 65536)).cmd(0, tStatus, 524288-4096, 65536+8192, nil).cmd(tReqOne, tStatus, 524288-4096, 65536, nil)
	}, "ok, status 4096:3 65536:0 4096:3, status 4096:3", "-", "-"},
	{"status without a context", func(r *raw) {
		r.begin(true, false).cmd(0, tStatus, 0, 512, nil).cmd(0, tFlush, 0, 0, nil)
	}, "error 22, ok", "", ""},
	{"status beyond the end and of nothing", func(r *raw) {
		r.begin(true, true).cmd(0, tStatus, diskBytes-512, 513, nil).cmd(0, tStatus, 0, 0, nil).cmd(0, tFlush, 0, 0, nil)
	}, "error 22, error 22, ok", "", ""},
	{"cache", func(r *raw) {
		r.begin(true, false).cmd(0, tCache, 0, diskBytes, nil).cmd(0, tCache, 0, diskBytes+1, nil)
	}, "ok, error 22", "", ""},
	{"empty requests", func(r *raw) {
		r.begin(true, false).cmd(0, tRead, 0, 0, nil).write(0, 0, nil).cmd(0, tZero, 0, 0, nil).cmd(0, tTrim, diskBytes, 0, nil)
	}, "ok, ok, ok, ok", "-", "-"},
	{"disconnect", func(r *raw) { r.begin(true, false).send(requestBytes(0, tDisc, 1, 0, 0)); r.closed() }, "closed", "", ""},
	{"wrong request magic", func(r *raw) { r.begin(true, false).send(make([]byte, 28)); r.closed() }, "closed", "more bytes", ""},
	{"oversize write ends it", func(r *raw) {
		r.begin(true, false).send(requestBytes(0, tWrite, 1, 0, 1<<31))
		r.closed()
	}, "closed", "more bytes", "-"},
	{"disconnect answers what came before", func(r *raw) {
		r.begin(true, false).send(append(append(requestBytes(0, tWrite, 5, 900000, 512), make([]byte, 512)...), requestBytes(0, tDisc, 1, 0, 0)...))
		r.say("%s", r.answer(5, 0))
		r.closed()
	}, "ok, closed", "-", ""},
}

// peerServer is a server that the cases run against.
type peerServer struct {
	name string
	dial func() (net.Conn, error)
	want func(c conformanceCase) string
}

// startOracle runs a server command that listens on a unix socket; it is killed
// when the test ends.
func startOracle(t testing.TB, socket string, command string, args ...string) func() (net.Conn, error) {
	t.Helper()
	path, err := exec.LookPath(command)
	if err != nil {
		t.Fatalf("%s is needed by this test: %v", command, err)
	}
	cmd := exec.Command(path, args...)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // killed: its state is of no interest
	})
	dial := func() (net.Conn, error) { return net.Dial("unix", socket) }
	for start := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		nc, err := dial()
		if err == nil {
			_ = nc.Close()
			return dial
		}
		if time.Since(start) > 15*time.Second {
			t.Fatalf("%s does not listen: %v", command, err)
		}
	}
}

func or(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

func TestConformance_RawBytesAgainstOursAndTheOracles(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "disk.raw")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, diskBytes); err != nil {
		t.Fatal(err)
	}
	e := serve(t, map[string]nbd.Device{"disk": nbdtest.NewMemDevice(diskBytes, false, nbdtest.Hooks{})}, nbd.Options{})
	qemuSocket, nbdkitSocket := filepath.Join(dir, "q"), filepath.Join(dir, "n")
	peers := []peerServer{
		{"ours", func() (net.Conn, error) { return net.Dial("unix", e.socket) }, func(c conformanceCase) string { return c.want }},
		{"qemu-nbd", startOracle(t, qemuSocket, "qemu-nbd", "-t", "-e", "8", "-k", qemuSocket, "-x", "disk", "-D", "volume disk", "--discard=unmap", "-f", "raw", file),
			func(c conformanceCase) string { return or(c.qemu, c.want) }},
		{"nbdkit", startOracle(t, nbdkitSocket, "nbdkit", "-f", "-U", nbdkitSocket, "memory", "1M"),
			func(c conformanceCase) string { return or(c.nbdkit, c.want) }},
	}
	for _, p := range peers {
		for _, group := range [][]conformanceCase{handshakeCases, contextCases, commandCases} {
			for _, c := range group {
				want := p.want(c)
				if want == "-" {
					continue // the protocol leaves it open, or the server can not do it
				}
				t.Run(p.name+"/"+c.name, func(t *testing.T) {
					if got := run(t, p.dial, c.script); got != want {
						t.Errorf("got  %s\nwant %s", got, want)
					}
				})
			}
		}
	}
}
