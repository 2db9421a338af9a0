package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"scstore"
)

// Machine is what the figures were measured on. What could not be found out is
// empty.
type Machine struct {
	CPU         string `json:"cpu"`
	CPUs        int    `json:"cpus"`
	MemoryBytes uint64 `json:"memory_bytes"`
	Kernel      string `json:"kernel"`
	Go          string `json:"go"`
	LoadAverage string `json:"load_average"` // when the run began
	Dir         string `json:"dir"`
	FileSystem  string `json:"file_system"` // type and options
	Device      string `json:"device"`
	WriteCache  string `json:"write_cache"` // of the device: "write back" or "write through"
	Rotational  bool   `json:"rotational"`
	FreeBytes   uint64 `json:"free_bytes"`
	Fio         string `json:"fio,omitempty"`
}

// machine looks at this machine and the file system of dir.
func machine(dir string) (Machine, error) {
	m := Machine{CPUs: runtime.NumCPU(), Go: runtime.Version(), Dir: dir}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return m, fmt.Errorf("name the kernel: %w", err)
	}
	m.Kernel = unix.ByteSliceToString(uts.Release[:])
	m.CPU = field("/proc/cpuinfo", "model name")
	kib, _, _ := strings.Cut(field("/proc/meminfo", "MemTotal"), " ")
	m.MemoryBytes, _ = strconv.ParseUint(kib, 10, 64)
	m.MemoryBytes <<= 10
	m.LoadAverage = strings.Join(strings.Fields(text("/proc/loadavg"))[:3], " ")
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return m, fmt.Errorf("look at %q: %w", dir, err)
	}
	m.FreeBytes = st.Bavail * uint64(st.Bsize)
	m.FileSystem, m.Device = mountOf(dir)
	if sys, err := sysBlock(dir); err == nil {
		queue := filepath.Join(sys, "queue")
		if _, err := os.Stat(queue); err != nil { // a partition has its disk's
			queue = filepath.Join(sys, "..", "queue")
		}
		m.WriteCache = strings.TrimSpace(text(filepath.Join(queue, "write_cache")))
		m.Rotational = strings.TrimSpace(text(filepath.Join(queue, "rotational"))) == "1"
	}
	return m, nil
}

func text(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return string(b)
}

// field returns the value of the first line "key : value".
func field(path, key string) string {
	for line := range strings.Lines(text(path)) {
		if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == key {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

// mountOf returns the file system and the source of the mount that dir is on.
func mountOf(dir string) (fileSystem, source string) {
	dev, err := deviceOf(dir)
	if err != nil {
		return "", ""
	}
	for line := range strings.Lines(text("/proc/self/mountinfo")) {
		before, after, ok := strings.Cut(line, " - ")
		b, a := strings.Fields(before), strings.Fields(after)
		if ok && len(b) > 5 && len(a) > 2 && b[2] == dev {
			return a[0] + " (" + a[2] + ")", a[1]
		}
	}
	return "", ""
}

// deviceOf returns the device number of dir's file system as "major:minor".
func deviceOf(dir string) (string, error) {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return "", fmt.Errorf("look at %q: %w", dir, err)
	}
	return fmt.Sprintf("%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev)), nil
}

// sysBlock returns the folder of /sys that describes dir's block device.
func sysBlock(dir string) (string, error) {
	dev, err := deviceOf(dir)
	if err != nil {
		return "", err
	}
	path, err := filepath.EvalSymlinks("/sys/dev/block/" + dev)
	if err != nil {
		return "", fmt.Errorf("find the device of %q: %w: %w", dir, scstore.ErrNotFound, err)
	}
	return path, nil
}

// deviceFlushes returns how many flushes dir's block device has completed since it
// came up, or -1. Everything on that device counts, not only the server.
func deviceFlushes(dir string) int64 {
	sys, err := sysBlock(dir)
	if err != nil {
		return -1
	}
	fields := strings.Fields(text(filepath.Join(sys, "stat")))
	if len(fields) < 17 {
		return -1
	}
	n, err := strconv.ParseInt(fields[15], 10, 64)
	if err != nil {
		return -1
	}
	return n
}
