package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"

	"scstore/e2e"
)

const (
	// diskSize is the size of the guest's disk.
	diskSize = "1G"
	// kernelCache is where the unpacked kernel package stays between runs, below the
	// folder that the demo runs in.
	kernelCache = "build/demo-kernel"
	// kernelPackage depends on the newest kernel that has what a virtual machine
	// needs and little else.
	kernelPackage = "linux-image-cloud-amd64"
	// busybox is every program of the guest, linked statically.
	busybox = "/bin/busybox"
)

// firstInit is the init of the initramfs: it loads the driver of the disk and goes
// over to it.
const firstInit = `#!/bin/sh
mount -t devtmpfs dev /dev
for module in /modules/*; do insmod "$module"; done
until [ -b /dev/vda ]; do sleep 0.1; done
mount -t ext4 /dev/vda /disk && exec switch_root /disk /sbin/init
echo "@error no disk"; exec poweroff -f
`

// diskInit is the init on the disk. What begins with @ is for the demo, which has
// the guest's serial line; "demo" comes from the kernel's command line.
const diskInit = `#!/bin/sh
mount -t devtmpfs dev /dev; mount -t proc proc /proc; mount -t tmpfs run /run
exec </dev/ttyS0 >/dev/ttyS0 2>&1
stty -echo # what is typed is not part of what is said
count() { awk '$0 != "record " NR { exit } { good = NR } END { print good + 0 }' /records; }
echo "@booted $(uname -r)"
[ -e /records ] || : >/records
n=$(count)
echo "@found $n"
if [ "$demo" = write ]; then
	(read -r anything; : >/run/stop) </dev/ttyS0 &
	until [ -e /run/stop ]; do
		n=$((n + 1))
		if ! { echo "record $n" >>/records && sync /records; }; then echo "@error record $n"; break; fi
		echo "@ack $n"
	done
fi
echo 3 >/proc/sys/vm/drop_caches # what is read now comes from the store
echo "@kept $(count)"
mount -o remount,ro / && echo "@done"
exec poweroff -f
`

// guest is what QEMU boots.
type guest struct {
	kernel, initramfs string
	disk              string // a raw image
	release           string // of the kernel
}

// makeGuest makes a guest in dir.
func makeGuest(ctx context.Context, dir string) (guest, error) {
	root, err := kernelRoot(ctx)
	if err != nil {
		return guest{}, fmt.Errorf("fetch the kernel: %w", err)
	}
	kernels, err := filepath.Glob(filepath.Join(root, "boot/vmlinuz-*"))
	if err != nil || len(kernels) != 1 {
		return guest{}, fmt.Errorf("find the kernel in %s: %d found (remove that folder to fetch it again)", root, len(kernels))
	}
	g := guest{kernel: kernels[0], initramfs: filepath.Join(dir, "initramfs"), disk: filepath.Join(dir, "disk.raw")}
	g.release = strings.TrimPrefix(filepath.Base(g.kernel), "vmlinuz-")
	if err := g.makeInitramfs(ctx, root, filepath.Join(dir, "initramfs.d")); err != nil {
		return guest{}, fmt.Errorf("make the initramfs: %w", err)
	}
	if err := g.makeDisk(ctx, root, filepath.Join(dir, "disk.d")); err != nil {
		return guest{}, fmt.Errorf("make the disk: %w", err)
	}
	return g, nil
}

// kernelRoot returns the folder of the unpacked kernel package, which it fetches
// the first time. The folder gets its name when it is complete.
func kernelRoot(ctx context.Context) (string, error) {
	if _, err := os.Stat(kernelCache); !errors.Is(err, fs.ErrNotExist) {
		return kernelCache, err
	}
	depends := func() (string, error) { return e2e.Output(ctx, "apt-cache", "depends", kernelPackage) }
	text, err := depends()
	if err != nil || text == "" { // the lists of packages are missing
		if _, err := e2e.Output(ctx, "apt-get", "update", "-q"); err != nil {
			return "", err
		}
		if text, err = depends(); err != nil {
			return "", err
		}
	}
	name := regexp.MustCompile(`linux-image-[0-9]\S+`).FindString(text)
	if name == "" {
		return "", fmt.Errorf("%s depends on no kernel: %s", kernelPackage, text)
	}
	tmp := kernelCache + ".new"
	if err := errors.Join(os.RemoveAll(tmp), os.MkdirAll(tmp, 0o755)); err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, "apt-get", "download", "-q", name)
	cmd.Dir = tmp
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("download %s: %w: %s", name, err, bytes.TrimSpace(out))
	}
	packages, err := filepath.Glob(filepath.Join(tmp, "*.deb"))
	if err != nil || len(packages) != 1 {
		return "", fmt.Errorf("download %s: %d files", name, len(packages))
	}
	for _, argv := range [][]string{
		{"dpkg", "-x", packages[0], tmp},
		{"depmod", "-b", tmp, strings.TrimSuffix(strings.TrimPrefix(name, "linux-image-"), "-unsigned")},
		{"rm", packages[0]},
		{"mv", tmp, kernelCache},
	} {
		if _, err := e2e.Output(ctx, argv...); err != nil {
			return "", err
		}
	}
	return kernelCache, nil
}

// makeInitramfs packs busybox, the modules of the disk and firstInit.
func (g guest) makeInitramfs(ctx context.Context, root, dir string) error {
	if err := makeTree(ctx, dir, "init", firstInit, "modules", "disk"); err != nil {
		return err
	}
	list, err := e2e.Output(ctx, "modprobe", "-d", root, "-S", g.release, "--show-depends", "-a", "virtio_pci", "virtio_blk")
	if err != nil {
		return err
	}
	for i, line := range strings.Split(strings.TrimSpace(list), "\n") {
		module := strings.Fields(line) // insmod PATH
		if len(module) < 2 || module[0] != "insmod" {
			continue // builtin
		}
		if err := copyFile(filepath.Join(dir, "modules", fmt.Sprintf("%02d.ko", i)), module[1]); err != nil {
			return err
		}
	}
	var names bytes.Buffer
	err = filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, path)
		fmt.Fprintln(&names, name)
		return err
	})
	if err != nil {
		return err
	}
	file, err := os.Create(g.initramfs)
	if err != nil {
		return err
	}
	packed, err := gzip.NewWriterLevel(file, gzip.BestSpeed)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "cpio", "--create", "--format=newc", "--quiet")
	cmd.Dir, cmd.Stdin, cmd.Stdout, cmd.Stderr = dir, &names, packed, os.Stderr
	return errors.Join(cmd.Run(), packed.Close(), file.Close())
}

// makeDisk makes the root file system: busybox, the kernel package and diskInit.
func (g guest) makeDisk(ctx context.Context, root, dir string) error {
	if err := makeTree(ctx, dir, "sbin/init", diskInit); err != nil {
		return err
	}
	for _, argv := range [][]string{
		{"cp", "-a", filepath.Join(root, "boot"), filepath.Join(root, "lib"), dir},
		{"mke2fs", "-q", "-t", "ext4", "-L", "demo", "-d", dir, g.disk, diskSize},
		{"rm", "-r", dir},
	} {
		if _, err := e2e.Output(ctx, argv...); err != nil {
			return err
		}
	}
	return nil
}

// makeTree makes a root folder with busybox under all its names, an init, and
// empty folders.
func makeTree(ctx context.Context, dir, init, script string, folders ...string) error {
	for _, folder := range append(folders, "bin", "sbin", "dev", "proc", "run") {
		if err := os.MkdirAll(filepath.Join(dir, folder), 0o755); err != nil {
			return err
		}
	}
	if err := copyFile(filepath.Join(dir, "bin/busybox"), busybox); err != nil {
		return err
	}
	applets, err := e2e.Output(ctx, busybox, "--list")
	if err != nil {
		return err
	}
	for applet := range strings.FieldsSeq(applets) {
		if applet == "busybox" || applet == "init" {
			continue
		}
		if err := os.Symlink("busybox", filepath.Join(dir, "bin", applet)); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(dir, init), []byte(script), 0o755)
}

// copyFile copies a file that can be executed.
func copyFile(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	if err != nil {
		return errors.Join(err, in.Close())
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close(), in.Close())
}
