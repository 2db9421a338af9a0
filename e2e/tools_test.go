package e2e_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"scstore/e2e"
)

// imported serves a host with an image made from a file, and a clone of it.
func imported(t *testing.T) (s *e2e.Server, file string, content []byte) {
	t.Helper()
	file = filepath.Join(t.TempDir(), "disk.raw")
	content = diskFile(t, file, 64*mib)
	s = serve(t, t.TempDir())
	run(t, s, "image", "import", file, "base")
	run(t, s, "volume", "create", "clone", "--from", "base")
	return s, file, content
}

func TestTools_QemuImg(t *testing.T) {
	s, file, content := imported(t)
	clone := s.URL("clone")
	var info struct {
		VirtualSize int `json:"virtual-size"`
	}
	check(t, json.Unmarshal([]byte(tool(t, "qemu-img", "info", "--output=json", clone)), &info))
	if info.VirtualSize != len(content) {
		t.Errorf("info: %d bytes, want %d", info.VirtualSize, len(content))
	}
	if got, want := dataRanges(t, clone), dataRanges(t, file); got != want {
		t.Errorf("map of the clone: %s\nmap of the file: %s", got, want)
	}
	tool(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", file, clone)
	qcow2 := filepath.Join(t.TempDir(), "copy.qcow2")
	tool(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", clone, qcow2)
	tool(t, "qemu-img", "compare", "-f", "raw", "-F", "qcow2", file, qcow2)

	// And back: over the clone, then as an image.
	changed := filepath.Join(t.TempDir(), "changed.qcow2")
	tool(t, "qemu-img", "create", "-q", "-f", "qcow2", changed, "64M")
	tool(t, "qemu-io", "-f", "qcow2", "-c", "write -P 0x11 5M 3M", "-c", "write -P 0x22 63M 1M", changed)
	tool(t, "qemu-img", "convert", "-n", "-W", "-m", "8", "-f", "qcow2", "-O", "raw", changed, clone)
	tool(t, "qemu-img", "compare", "-f", "qcow2", "-F", "raw", changed, clone)
	if _, err := toolError(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", file, clone); exitCode(err) != 1 {
		t.Errorf("compare of different disks: %v, want exit code 1", err)
	}
	tool(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", file, s.URL("base"))
	run(t, s, "image", "import", changed, "changed")
	tool(t, "qemu-img", "compare", "-f", "qcow2", "-F", "raw", changed, s.URL("changed"))
	out := filepath.Join(t.TempDir(), "out.qcow2")
	run(t, s, "volume", "export", "clone", out)
	tool(t, "qemu-img", "compare", changed, out)
	check(t, s.Stop())
}

// dataRanges returns what qemu-img map takes for data.
func dataRanges(t testing.TB, disk string) string {
	t.Helper()
	var extents []struct {
		Start, Length int64
		Data          bool
	}
	check(t, json.Unmarshal([]byte(tool(t, "qemu-img", "map", "--output=json", "-f", "raw", disk)), &extents))
	var out strings.Builder
	for _, x := range extents {
		if x.Data {
			fmt.Fprintf(&out, "%d+%d ", x.Start, x.Length)
		}
	}
	if out.Len() == 0 {
		t.Errorf("%s holds no data", disk)
	}
	return out.String()
}

func TestTools_Nbdcopy(t *testing.T) {
	s, file, content := imported(t)
	run(t, s, "volume", "create", "copy", "--size", "64M")
	tool(t, "nbdcopy", "--connections=4", "--flush", file, s.URL("copy"))
	check(t, s.Kill())
	s = serve(t, storeOf(s))
	back := filepath.Join(t.TempDir(), "back.raw")
	tool(t, "nbdcopy", "--connections=4", s.URL("copy"), back)
	got, err := os.ReadFile(back)
	check(t, err)
	if !bytes.Equal(got, content) {
		t.Error("what nbdcopy copied out differs from what it copied in")
	}
	if got, want := dataRanges(t, s.URL("copy")), dataRanges(t, file); got != want {
		t.Errorf("the copy is not sparse as the file is: %s, want %s", got, want)
	}
	run(t, s, "volume", "create", "second", "--size", "64M")
	tool(t, "nbdcopy", "--connections=4", s.URL("copy"), s.URL("second"))
	tool(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", file, s.URL("second"))
	check(t, s.Stop())
}

// storeOf returns the folder of a host.
func storeOf(s *e2e.Server) string { return filepath.Dir(s.Socket()) }

func TestTools_Nbdinfo(t *testing.T) {
	s, _, content := imported(t)
	var info struct {
		Exports []map[string]any
	}
	for export, readOnly := range map[string]bool{"clone": false, "base": true} {
		check(t, json.Unmarshal([]byte(tool(t, "nbdinfo", "--json", s.URL(export))), &info))
		for key, want := range map[string]any{
			"export-name": export, "export-size": float64(len(content)), "is_read_only": readOnly, "can_multi_conn": true,
			"can_flush": true, "can_cache": true, "can_df": true,
		} {
			if got := info.Exports[0][key]; got != want {
				t.Errorf("%s of %s: got %v, want %v", key, export, got, want)
			}
		}
	}
	check(t, json.Unmarshal([]byte(tool(t, "nbdinfo", "--list", "--json", s.URL(""))), &info))
	if len(info.Exports) != 2 {
		t.Errorf("list: %v", info.Exports)
	}
	var extents []struct {
		Offset, Length int
		Type           int
	}
	check(t, json.Unmarshal([]byte(tool(t, "nbdinfo", "--json", "--map", s.URL("clone"))), &extents))
	at := 0
	for _, x := range extents {
		zero := len(bytes.Trim(content[x.Offset:x.Offset+x.Length], "\x00")) == 0
		if x.Offset != at || zero != (x.Type&2 != 0) {
			t.Errorf("extent %+v, zeros in the file: %v", x, zero)
		}
		at += x.Length
	}
	if at != len(content) {
		t.Errorf("the map ends at %d, want %d", at, len(content))
	}
	check(t, s.Stop())
}

func TestTools_QemuIO(t *testing.T) {
	s, _, _ := imported(t)
	io := func(export string, commands ...string) {
		t.Helper()
		argv := []string{"qemu-io", "-f", "raw", "-d", "unmap"}
		if export == "base" {
			argv = append(argv, "-r")
		}
		for _, c := range commands {
			argv = append(argv, "-c", c)
		}
		if out := tool(t, append(argv, s.URL(export))...); strings.Contains(out, "failed") || strings.Contains(out, "error") {
			t.Errorf("%q: %s", commands, out)
		}
	}
	io("clone", "write -f -P 0x5a 4k 64k", "read -P 0x5a 4k 64k", "read -P 0 0 4k")
	io("clone", "write -z 8k 8k", "read -P 0 8k 8k", "read -P 0x5a 16k 4k", "write -z -u 24k 8k", "read -P 0 24k 8k")
	io("clone", "write -P 7 1000 3333", "read -P 7 1000 3333", "read -P 0 0 1000", "discard 64k 4k", "read -P 0 64k 4k", "flush")
	io("clone", "aio_write -P 9 40M 1M", "aio_write -P 8 41M 2M", "aio_flush", "read -P 9 40M 1M", "read -P 8 41M 2M", "flush")
	check(t, s.Kill())
	s = serve(t, storeOf(s))
	io("clone", "read -P 7 1000 3333", "read -P 0 8k 8k", "read -P 0x5a 32k 32k", "read -P 0 64k 4k", "read -P 9 40M 1M", "read -P 8 41M 2M")
	io("base", "read -P 0 0 64k")
	if _, err := toolError(t, "qemu-io", "-f", "raw", "-c", "write 0 4k", s.URL("base")); err == nil {
		t.Error("an image could be written to")
	}
	check(t, s.Stop())
}

func TestTools_Nbdsh(t *testing.T) {
	s, _, _ := imported(t)
	script := `
import nbd
def connect(name):
    h = nbd.NBD()
    h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    h.connect_uri("nbd+unix:///%s?socket=` + s.Socket() + `" % name)
    return h
h, other = connect("clone"), connect("clone")
assert h.can_multi_conn()
h.pwrite(b"x" * 10000, 5000, nbd.CMD_FLAG_FUA)
assert other.pread(10000, 5000) == bytearray(b"x" * 10000)
h.zero(4096, 8192, nbd.CMD_FLAG_FAST_ZERO)
assert other.pread(4096, 8192) == bytearray(4096)
h.trim(1 << 20, 4 << 20)
assert other.pread(1 << 20, 4 << 20) == bytearray(1 << 20)
other.flush()
seen = []
h.block_status(1 << 20, 4 << 20, lambda ctx, off, entries, err: seen.append((ctx, off, list(entries))))
assert seen == [("base:allocation", 4 << 20, [1 << 20, 3])], seen
base = connect("base")
assert base.is_read_only()
base.set_strict_mode(0)
for f, want in ((lambda: base.pwrite(b"1", 0), "EPERM"), (lambda: h.pread(1, 1 << 30), "EINVAL")):
    h.set_strict_mode(0)
    try:
        f()
        assert False, "no error"
    except nbd.Error as ex:
        assert ex.errno == want, (ex.errno, want)
try:
    connect("nothing")
    assert False, "connected to nothing"
except nbd.Error:
    pass
for c in (h, other, base):
    c.shutdown()
print("done")
`
	// libnbd's module belongs to the system's own python.
	if got := tool(t, "/usr/bin/python3", "-c", script); got != "done\n" {
		t.Errorf("got %q", got)
	}
	if got := tool(t, "env", "PATH=/usr/bin:/bin", "nbdsh", "-u", s.URL("clone"), "-c", "print(h.get_size())"); got != fmt.Sprintln(64*mib) {
		t.Errorf("nbdsh: %q", got)
	}
	check(t, s.Stop())
}

func TestTools_Nbdfuse(t *testing.T) {
	s, _, content := imported(t)
	dir := t.TempDir()
	mounted := filepath.Join(dir, "disk")
	if _, err := exec.LookPath("nbdfuse"); err != nil {
		t.Fatalf("nbdfuse is needed by this test: %v", err)
	}
	cmd := exec.Command("nbdfuse", mounted, s.URL("clone"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	check(t, os.WriteFile(mounted, nil, 0o600))
	check(t, cmd.Start())
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() { _ = exec.Command("fusermount3", "-u", "-z", "-q", mounted).Run() }) // unmounted before, if all went well
	// Only children touch the mount, so that a hang of it never is one of the test.
	eventually(t, 10*time.Second, "mounted", func() bool {
		out, err := toolError(t, "stat", "-c", "%s", mounted)
		return err == nil && strings.TrimSpace(out) == fmt.Sprint(len(content))
	})
	file := filepath.Join(t.TempDir(), "want.raw")
	check(t, os.WriteFile(file, content, 0o600))
	tool(t, "cmp", file, mounted)
	tool(t, "dd", "if=/dev/urandom", "of="+file, "bs=64k", "seek=33", "count=20", "conv=notrunc", "status=none")
	tool(t, "dd", "if="+file, "of="+mounted, "bs=64k", "seek=33", "skip=33", "count=20", "conv=notrunc,fsync", "status=none")
	tool(t, "fusermount3", "-u", mounted)
	select {
	case err := <-ended:
		check(t, err)
	case <-time.After(20 * time.Second):
		t.Fatal("nbdfuse goes on after the unmount")
	}
	check(t, s.Kill())
	s = serve(t, storeOf(s))
	tool(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", file, s.URL("clone"))
	check(t, s.Stop())
}

func TestTools_FioVerifies(t *testing.T) {
	s, _, _ := imported(t)
	for _, job := range [][]string{
		{"--bs=4k", "--iodepth=32", "--rw=randwrite"},
		{"--bs=3k", "--iodepth=16", "--rw=write"},
		{"--bs=16k", "--iodepth=16", "--rw=randrw"},
		{"--bs=1m", "--iodepth=4", "--rw=write"},
	} {
		argv := []string{"fio", "--name=v", "--ioengine=nbd", "--uri=" + s.URL("clone"), "--size=48m", "--verify=crc32c", "--do_verify=1",
			"--verify_fatal=1", "--randseed=7", "--end_fsync=1", "--aux-path=" + t.TempDir(), "--output-format=json"}
		out := tool(t, slices.Concat(argv, job)...)
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
		check(t, json.Unmarshal([]byte(out[max(strings.IndexByte(out, '{'), 0):]), &result)) // fio talks before it
		if j := result.Jobs[0]; j.Error != 0 || j.Read.TotalIOs == 0 || j.Write.TotalIOs == 0 {
			t.Errorf("%v: %+v", job, j)
		}
	}
	check(t, s.Stop())
}
