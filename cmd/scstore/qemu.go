package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"scstore"
)

// The limits of qemu-img, which reads files that nobody vouches for.
const (
	probeTimeout     = 30 * time.Second // to say what a file is
	checkTimeout     = 10 * time.Minute // to check the tables of an image
	probeMemoryBytes = 1 << 30          // address space
	copyMemoryBytes  = 4 << 30          // the same, for a conversion
	maxQemuOutput    = 64 << 20         // bytes of an answer
	maxQemuErrors    = 4 << 10          // bytes of complaints that are kept
	qemuStopDelay    = 2 * time.Second  // after the kill, to collect its output
)

// convertible are the formats that are imported; others are rare, and qemu's code
// for them is less tried.
var convertible = []string{formatRaw, "qcow2", "vmdk", "vdi", "vhdx", "vpc"}

// diskImage is what qemu-img says about a file.
type diskImage struct {
	path        string
	Format      string `json:"format"`
	VirtualSize int64  `json:"virtual-size"`
	Backing     string `json:"backing-filename"`
	FullBacking string `json:"full-backing-filename"`
	Encrypted   bool   `json:"encrypted"`
	Specific    struct {
		Data struct {
			DataFile string `json:"data-file"`
			Extents  []struct {
				Filename string `json:"filename"`
			} `json:"extents"`
		} `json:"data"`
	} `json:"format-specific"`
}

// probe finds out what a file is, and refuses what could not be imported whole.
func probe(ctx context.Context, file string, o importOptions) (*diskImage, error) {
	if o.format != "" && !slices.Contains(convertible, o.format) {
		return nil, scstore.Hint(fmt.Errorf("format %q: %w", o.format, scstore.ErrInvalid), "the formats are %s", strings.Join(convertible, ", "))
	}
	path, err := filepath.Abs(file) // begins with a slash: never read as a protocol or an option
	if err != nil {
		return nil, fmt.Errorf("find the file: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	args := []string{"info", "--output=json"}
	if o.format != "" {
		args = append(args, "-f", o.format)
	}
	text, err := qemuImg(ctx, probeMemoryBytes, append(args, path)...)
	if err != nil {
		return nil, err
	}
	image := &diskImage{path: path}
	if err := json.Unmarshal(text, image); err != nil {
		return nil, fmt.Errorf("read the answer of qemu-img: %w", err)
	}
	if image.Format == formatRaw {
		return image, nil
	}
	return image, image.validate(ctx, o)
}

// validate refuses an image that could not be imported whole, or that reaches for
// files that the user has not agreed to.
func (d *diskImage) validate(ctx context.Context, o importOptions) error {
	if !slices.Contains(convertible, d.Format) {
		return scstore.Hint(fmt.Errorf("format %q: %w", d.Format, scstore.ErrInvalid), "convert it first: qemu-img convert -O qcow2 FILE NEW")
	}
	if d.Encrypted {
		return scstore.Hint(fmt.Errorf("it is encrypted: %w", scstore.ErrInvalid), "convert it first, with its secret: qemu-img convert")
	}
	for _, other := range d.others() {
		if _, err := os.Stat(other); errors.Is(err, os.ErrNotExist) {
			return scstore.Hint(fmt.Errorf("it refers to %q, which does not exist: %w", other, scstore.ErrInvalid),
				"bring that file too, or give its new place: qemu-img rebase -u -b NEW FILE")
		}
		if !o.external {
			return scstore.Hint(fmt.Errorf("it refers to %q: %w", other, scstore.ErrInvalid),
				"if you trust who made the file, --allow-external reads both")
		}
	}
	return d.check(ctx)
}

// others returns the other files that the image refers to.
func (d *diskImage) others() []string {
	var list []string
	if d.Backing != "" {
		backing := d.FullBacking
		if backing == "" {
			backing = d.Backing
		}
		list = append(list, backing)
	}
	if f := d.Specific.Data.DataFile; f != "" {
		if !filepath.IsAbs(f) {
			f = filepath.Join(filepath.Dir(d.path), f)
		}
		list = append(list, f)
	}
	for _, x := range d.Specific.Data.Extents {
		if x.Filename != d.path {
			list = append(list, x.Filename)
		}
	}
	return list
}

// check finds an image that was cut off: qemu reads zeros where the file ends.
func (d *diskImage) check(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	if d.Format == "vdi" {
		return d.checkMap(ctx) // its check does not look at the file's end
	}
	_, err := qemuImg(ctx, copyMemoryBytes, "check", "--output=json", "-f", d.Format, d.path)
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		switch exit.ExitCode() {
		case 3, 63: // only space that is not used; a format without a check, which looks when it opens
			return nil
		case 2:
			return damaged()
		}
	}
	return err
}

// checkMap compares where the data should be with the length of the file.
func (d *diskImage) checkMap(ctx context.Context) error {
	info, err := os.Stat(d.path)
	if err != nil {
		return fmt.Errorf("look at the file: %w", err)
	}
	text, err := qemuImg(ctx, copyMemoryBytes, "map", "--output=json", "-f", d.Format, d.path)
	if err != nil {
		return err
	}
	var runs []struct {
		Length int64  `json:"length"`
		Offset *int64 `json:"offset"`
	}
	if err := json.Unmarshal(text, &runs); err != nil {
		return fmt.Errorf("read the answer of qemu-img: %w", err)
	}
	for _, r := range runs {
		if r.Offset != nil && *r.Offset+r.Length > info.Size() {
			return damaged()
		}
	}
	return nil
}

// damaged is the error for an image that does not hold what its tables say.
func damaged() error {
	return scstore.Hint(fmt.Errorf("the image is damaged or was cut off: %w", scstore.ErrInvalid),
		"fetch it again; qemu-img check says more")
}

// qemuImg runs qemu-img and returns its standard output. What it complains about
// is an ErrInvalid: it is about the file.
func qemuImg(ctx context.Context, memoryBytes uint64, args ...string) ([]byte, error) {
	var out bytes.Buffer
	err := runQemuImg(ctx, memoryBytes, &limitedWriter{w: &out, left: maxQemuOutput}, nil, args...)
	return out.Bytes(), err
}

// runQemuImg runs qemu-img with limits. extra are open files that it inherits, as
// descriptors from 3 on.
func runQemuImg(ctx context.Context, memoryBytes uint64, out io.Writer, extra []*os.File, args ...string) error {
	cmd := exec.CommandContext(ctx, "qemu-img", args...)
	var complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = out, &limitedWriter{w: &complaint, left: maxQemuErrors}
	cmd.ExtraFiles = extra
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	cmd.WaitDelay = qemuStopDelay
	err := cmd.Start()
	if errors.Is(err, exec.ErrNotFound) {
		return scstore.Hint(fmt.Errorf("qemu-img is not installed: %w", scstore.ErrNotFound),
			"install it (Debian: apt install qemu-utils), or say --format raw if the file is a plain disk")
	}
	if err != nil {
		return fmt.Errorf("start qemu-img: %w", err)
	}
	limitErr := limitProcess(cmd.Process.Pid, memoryBytes)
	if limitErr != nil {
		_ = cmd.Process.Kill() // Wait says what became of it
	}
	err = cmd.Wait()
	switch {
	case err == nil:
		return nil
	case limitErr != nil:
		return fmt.Errorf("limit qemu-img: %w", limitErr)
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return fmt.Errorf("qemu-img %s took too long: %w", args[0], scstore.ErrInvalid)
	case ctx.Err() != nil:
		return context.Cause(ctx)
	}
	return qemuError(complaint.String(), err)
}

// qemuError makes one line of what qemu-img says.
func qemuError(complaint string, err error) error {
	line := ""
	for l := range strings.Lines(complaint) {
		if rest, ok := strings.CutPrefix(l, "qemu-img: "); ok && line == "" {
			line = strings.TrimSpace(rest)
		}
	}
	if line == "" {
		line = err.Error()
	}
	if strings.Contains(complaint, "Is another process using the image") {
		return scstore.Hint(fmt.Errorf("another process writes to it: %w", scstore.ErrBusy), "stop the VM that uses it, then import it again")
	}
	return scstore.Hint(&toolError{line, err}, "qemu-img info and qemu-img check say more; with --format raw the bytes are taken as they are")
}

// toolError is a complaint of qemu-img about a file.
type toolError struct {
	line string
	err  error
}

// Error returns the complaint.
func (e *toolError) Error() string { return "qemu-img: " + e.line + ": " + scstore.ErrInvalid.Error() }

// Unwrap returns the exit status and the sentinel.
func (e *toolError) Unwrap() []error { return []error{e.err, scstore.ErrInvalid} }

// limitedWriter keeps the first bytes and drops the rest.
type limitedWriter struct {
	w    io.Writer
	left int
}

// Write never fails for what it drops: the writer is a process that must go on.
func (l *limitedWriter) Write(p []byte) (int, error) {
	keep := p[:min(len(p), l.left)]
	l.left -= len(keep)
	if _, err := l.w.Write(keep); err != nil {
		return 0, err
	}
	return len(p), nil
}
