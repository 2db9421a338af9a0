package nbd_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"scstore/nbd"
	"scstore/nbd/nbdtest"
)

// These tests drive the server with the real clients. A missing tool fails them.

// tool runs a command and returns its standard output.
func tool(t testing.TB, name string, args ...string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("%s is needed by this test: %v", name, err)
	}
	cmd := exec.CommandContext(t.Context(), path, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	cmd.Dir = t.TempDir() // where some leave state files
	// nbdsh wants the python that libnbd's module belongs to: the system's own.
	cmd.Env = append(os.Environ(), "PATH=/usr/bin:/bin:"+os.Getenv("PATH"))
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %q: %v\n%s%s", name, args, err, out.String(), errs.String())
	}
	return out.String()
}

// sparseFile writes a raw file with data, zeroes and holes, and returns its bytes.
func sparseFile(t testing.TB, path string, sizeBytes int) []byte {
	t.Helper()
	content := make([]byte, sizeBytes)
	for off := 64 * kib; off < sizeBytes; off += mib {
		copy(content[off:min(off+200*kib, sizeBytes)], random(200*kib, uint64(off)))
	}
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if err := f.Truncate(int64(sizeBytes)); err != nil {
		t.Fatal(err)
	}
	for off := 0; off < sizeBytes; off += 4096 {
		if p := content[off:min(off+4096, sizeBytes)]; len(bytes.Trim(p, "\x00")) > 0 {
			if _, err := f.WriteAt(p, int64(off)); err != nil {
				t.Fatal(err)
			}
		}
	}
	return content
}

func deviceBytes(t testing.TB, d *nbdtest.MemDevice) []byte {
	t.Helper()
	b := make([]byte, d.Size())
	if _, err := d.ReadAt(b, 0, nil); err != nil {
		t.Fatal(err)
	}
	return b
}

func holeBytes(t testing.TB, d *nbdtest.MemDevice) (n int64) {
	t.Helper()
	ranges, err := d.Status(0, d.Size(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range ranges {
		n += r.Length * int64(r.State)
	}
	return n
}

func TestInterop_NbdinfoSeesAFirstClassServer(t *testing.T) {
	e, d := memory(t, 8*mib, nbdtest.Hooks{})
	if err := d.WriteAt(random(mib, 1), mib); err != nil {
		t.Fatal(err)
	}
	var info struct {
		Protocol string `json:"protocol"`
		Exports  []map[string]any
	}
	if err := json.Unmarshal([]byte(tool(t, "nbdinfo", "--json", e.url("disk"))), &info); err != nil {
		t.Fatal(err)
	}
	if info.Protocol != "newstyle-fixed" || len(info.Exports) != 1 {
		t.Fatalf("nbdinfo says %+v", info)
	}
	for key, want := range map[string]any{
		"export-name": "disk", "description": "volume disk", "export-size": 8.0 * mib, "is_read_only": false, "is_rotational": false,
		"can_cache": true, "can_df": true, "can_fast_zero": true, "can_flush": true, "can_fua": true, "can_multi_conn": true,
		"can_trim": true, "can_zero": true, "block_size_minimum": 1.0, "block_size_preferred": 4096.0, "block_size_maximum": 32.0 * mib,
		"contexts": "[base:allocation]",
	} {
		got := info.Exports[0][key]
		if list, ok := got.([]any); ok {
			got = fmt.Sprint(list)
		}
		if got != want {
			t.Errorf("%s: got %v, want %v", key, got, want)
		}
	}
	var extents []struct{ Offset, Length, Type int64 }
	if err := json.Unmarshal([]byte(tool(t, "nbdinfo", "--json", "--map", e.url("disk"))), &extents); err != nil {
		t.Fatal(err)
	}
	if got, want := fmt.Sprint(extents), fmt.Sprintf("[{0 %d 3} {%d %d 0} {%d %d 3}]", mib, mib, mib, 2*mib, 6*mib); got != want {
		t.Errorf("map %s, want %s", got, want)
	}
}

func TestInterop_NbdinfoListsExports(t *testing.T) {
	devices := map[string]nbd.Device{}
	for _, name := range []string{"a", "b/c", "d e"} {
		devices[name] = nbdtest.NewMemDevice(mib, name == "a", nbdtest.Hooks{})
	}
	e := serve(t, devices, nbd.Options{})
	var info struct {
		Exports []struct {
			Name        string `json:"export-name"`
			Description string
			ReadOnly    bool `json:"is_read_only"`
		}
	}
	if err := json.Unmarshal([]byte(tool(t, "nbdinfo", "--list", "--json", e.url(""))), &info); err != nil {
		t.Fatal(err)
	}
	if got, want := fmt.Sprint(info.Exports), "[{a volume a true} {b/c volume b/c false} {d e volume d e false}]"; got != want {
		t.Errorf("list %s, want %s", got, want)
	}
}

func TestInterop_NbdcopyBothWaysOverFourConnections(t *testing.T) {
	const size = 64 * mib
	e, d := memory(t, size, nbdtest.Hooks{})
	dir := t.TempDir()
	in, out := filepath.Join(dir, "in"), filepath.Join(dir, "out")
	content := sparseFile(t, in, size)
	tool(t, "nbdcopy", "--connections=4", "--flush", in, e.url("disk"))
	if !bytes.Equal(deviceBytes(t, d), content) {
		t.Error("the device differs from the file")
	}
	if holes := holeBytes(t, d); holes < size/2 {
		t.Errorf("%d bytes of holes: the copy was not sparse", holes)
	}
	if d.Flushes.Load() == 0 {
		t.Error("no flush arrived")
	}
	tool(t, "nbdcopy", "--connections=4", e.url("disk"), out)
	if got, err := os.ReadFile(out); err != nil || !bytes.Equal(got, content) {
		t.Errorf("the file differs from the device: %v", err)
	}
}

func TestInterop_NbdshDrivesEveryCommand(t *testing.T) {
	e, d := memory(t, 8*mib, nbdtest.Hooks{})
	script := `
import nbd
h = nbd.NBD()
h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
h.connect_uri("` + e.url("disk") + `")
assert h.get_size() == 8 << 20
assert h.get_structured_replies_negotiated()
h.pwrite(b"x" * 10000, 5000, nbd.CMD_FLAG_FUA)
assert h.pread(10000, 5000) == bytearray(b"x" * 10000)
h.zero(4096, 8192, nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_NO_HOLE)
assert h.pread(4096, 8192) == bytearray(4096)
h.trim(4096, 4096)
h.cache(1 << 20, 0)
h.flush()
seen = []
h.block_status(65536, 0, lambda ctx, off, entries, err: seen.append((ctx, off, list(entries))))
assert seen == [("base:allocation", 0, [12288, 3, 4096, 0, 49152, 3])], seen
chunks = []
buf = h.pread_structured(16384, 8192, lambda b, off, status, err: chunks.append((off, len(b), status)))
assert sorted(chunks) == [(8192, 4096, nbd.READ_HOLE), (12288, 4096, nbd.READ_DATA), (16384, 8192, nbd.READ_HOLE)], chunks
one = []
h.pread_structured(16384, 8192, lambda b, off, status, err: one.append((off, len(b), status)), nbd.CMD_FLAG_DF)
assert one == [(8192, 16384, nbd.READ_DATA)], one
h.set_strict_mode(0)
for f, want in ((lambda: h.pread(1, 8 << 20), "EINVAL"), (lambda: h.pwrite(b"1", 8 << 20), "ENOSPC"),
                (lambda: h.trim(1, 8 << 20), "EINVAL"), (lambda: h.zero(2, (8 << 20) - 1), "ENOSPC")):
    try:
        f()
        assert False, "no error"
    except nbd.Error as ex:
        assert ex.errno == want, (ex.errno, want)
h.shutdown()
print("done")
`
	if got := tool(t, "/usr/bin/python3", "-c", script); got != "done\n" {
		t.Errorf("got %q", got)
	}
	if d.Flushes.Load() < 2 {
		t.Errorf("%d flushes of the device, want at least one for FUA and one for flush", d.Flushes.Load())
	}
	if got := tool(t, "nbdsh", "-u", e.url("disk"), "-c", "print(h.get_size())"); got != fmt.Sprintln(8*mib) {
		t.Errorf("nbdsh says %q", got)
	}
}

func TestInterop_QemuImg(t *testing.T) {
	const size = 32 * mib
	e, d := memory(t, size, nbdtest.Hooks{})
	dir := t.TempDir()
	raw, qcow := filepath.Join(dir, "a.raw"), filepath.Join(dir, "b.qcow2")
	content := sparseFile(t, raw, size)
	tool(t, "qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", "-W", "-m", "8", raw, e.url("disk"))
	if !bytes.Equal(deviceBytes(t, d), content) {
		t.Error("the device differs from the file")
	}
	tool(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", raw, e.url("disk"))
	tool(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", e.url("disk"), qcow)
	tool(t, "qemu-img", "compare", "-f", "qcow2", "-F", "raw", qcow, raw)
	var info struct {
		VirtualSize int64 `json:"virtual-size"`
	}
	if err := json.Unmarshal([]byte(tool(t, "qemu-img", "info", "--output=json", e.url("disk"))), &info); err != nil || info.VirtualSize != size {
		t.Errorf("info says %+v, %v", info, err)
	}
	var extents []struct {
		Start, Length int64
		Data, Zero    bool
	}
	if err := json.Unmarshal([]byte(tool(t, "qemu-img", "map", "--output=json", "-f", "raw", e.url("disk"))), &extents); err != nil {
		t.Fatal(err)
	}
	var data int64
	for _, x := range extents {
		if x.Data {
			data += x.Length
		} else if !x.Zero {
			t.Errorf("extent %+v", x)
		}
	}
	if want := size - holeBytes(t, d); data != want {
		t.Errorf("map has %d bytes of data, want %d", data, want)
	}
	if out := tool(t, "qemu-img", "bench", "-f", "raw", "-t", "none", "-c", "2000", "-d", "32", "-s", "4096", "-w", "--flush-interval=100", e.url("disk")); !strings.Contains(out, "Run completed") {
		t.Errorf("bench says %q", out)
	}
}

func TestInterop_QemuIO(t *testing.T) {
	e, d := memory(t, 8*mib, nbdtest.Hooks{})
	io := func(commands ...string) string {
		args := []string{"-f", "raw", "-d", "unmap"}
		for _, c := range commands {
			args = append(args, "-c", c)
		}
		out := tool(t, "qemu-io", append(args, e.url("disk"))...)
		if strings.Contains(out, "failed") {
			t.Errorf("%q: %s", commands, out)
		}
		return out
	}
	before := d.Flushes.Load()
	io("write -f -P 0x5a 4k 64k")
	if d.Flushes.Load() == before {
		t.Error("write -f was not flushed")
	}
	io("read -P 0x5a 4k 64k", "read -P 0 0 4k", "read -P 0 68k 4k")
	io("write -z 8k 8k", "read -P 0 8k 8k", "read -P 0x5a 16k 4k")
	io("write -z -u 24k 8k", "read -P 0 24k 8k")
	io("write -z -n 40k 4k", "read -P 0 40k 4k")
	io("write -P 7 1000 3333", "read -P 7 1000 3333", "flush")
	io("discard 32k 4k", "read -P 0 32k 4k")
	io("aio_write -P 9 1M 1M", "aio_write -P 8 2M 2M", "aio_flush", "read -P 9 1M 1M", "read -P 8 2M 2M", "flush")
	if out := io("map"); !strings.Contains(out, "allocated") {
		t.Errorf("map says %q", out)
	}
	if holes := holeBytes(t, d); holes < 4*mib {
		t.Errorf("%d bytes of holes", holes)
	}
}

func TestInterop_FioVerifies(t *testing.T) {
	e, d := memory(t, 64*mib, nbdtest.Hooks{ReadNow: func(off int64, _ int) bool { return off/4096%5 != 0 }})
	for _, job := range [][]string{
		{"--bs=4k", "--iodepth=32", "--rw=randwrite"},
		{"--bs=3k", "--iodepth=16", "--rw=write"},
		{"--bs=16k", "--iodepth=16", "--rw=randrw"},
		{"--bs=1m", "--iodepth=4", "--rw=write"},
	} {
		out := tool(t, "fio", slices.Concat([]string{"--name=v", "--ioengine=nbd", "--uri=" + e.url("disk"), "--size=48m", "--verify=crc32c", "--do_verify=1",
			"--verify_fatal=1", "--randseed=7", "--output-format=json"}, job)...)
		var result struct {
			Jobs []struct {
				Error int
				Read  struct {
					TotalIOs int64 `json:"total_ios"`
				}
				Write struct {
					TotalIOs int64 `json:"total_ios"`
				}
			}
		}
		out = out[strings.IndexByte(out, '{'):] // fio talks before it
		if err := json.Unmarshal([]byte(out), &result); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		if j := result.Jobs[0]; j.Error != 0 || j.Read.TotalIOs == 0 || j.Write.TotalIOs == 0 {
			t.Errorf("%v: %+v", job, j)
		}
	}
	if d.Writes.Load() == 0 {
		t.Error("no writes arrived")
	}
}
