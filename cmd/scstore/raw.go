package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"scstore"
	"scstore/internal/api"
)

// formatRaw is qemu-img's name for a plain disk.
const formatRaw = "raw"

// copyBytes is how much of a file is read at once, in bytes.
const copyBytes = api.MaxFrameData

// zeroBlock is what a hole reads as.
var zeroBlock [scstore.BlockSize]byte

// openSource opens what is to be imported.
func (e *environ) openSource(ctx context.Context, file string, o importOptions) (*source, error) {
	if file == "-" {
		return e.openStdin(o)
	}
	if o.size != "" {
		return nil, scstore.Hint(fmt.Errorf("--size with a file: %w", errUsage), "--size is for standard input")
	}
	f, err := os.Open(file)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil, scstore.Hint(fmt.Errorf("no such file: %w", scstore.ErrNotFound), "check the path; the file is read by this command, not by the host")
	case err != nil:
		return nil, fmt.Errorf("%v: %w", errors.Unwrap(err), scstore.ErrInvalid)
	}
	src, err := e.openFile(ctx, f, o)
	if err != nil {
		_ = f.Close() // it was only read
	}
	return src, err
}

// openFile decides how a file is read.
func (e *environ) openFile(ctx context.Context, f *os.File, o importOptions) (*source, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("look at the file: %w", err)
	}
	if mode := info.Mode(); !mode.IsRegular() && mode&os.ModeDevice == 0 || mode&os.ModeCharDevice != 0 {
		return nil, scstore.Hint(fmt.Errorf("it is a %s: %w", fileKind(mode), scstore.ErrInvalid), "name a disk image, a block device, or - for standard input")
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, fmt.Errorf("find the size: %w", err)
	}
	if size == 0 {
		_, err := checkSize(0)
		return nil, err
	}
	if o.format != formatRaw {
		image, err := probe(ctx, f.Name(), o)
		if err != nil {
			return nil, err
		}
		if image.Format != formatRaw {
			return image.source(f), nil
		}
		if err := refusePacked(f); err != nil {
			return nil, err
		}
	}
	return &source{
		name: f.Name(), sizeBytes: size, close: f.Close,
		fill: func(ctx context.Context, out *api.StreamWriter, at func(int64)) error {
			return copyFile(ctx, f, size, out, at)
		},
	}, nil
}

// fileKind names what is no file.
func fileKind(m os.FileMode) string {
	switch {
	case m.IsDir():
		return "directory"
	case m&os.ModeNamedPipe != 0:
		return "pipe"
	case m&os.ModeSocket != 0:
		return "socket"
	}
	return "special file"
}

// packed is what a compressed file begins with, and the tool that unpacks it.
var packed = []struct{ magic, tool string }{
	{"\x1f\x8b", "zcat"}, {"\xfd7zXZ\x00", "xzcat"}, {"\x28\xb5\x2f\xfd", "zstdcat"}, {"BZh", "bzcat"}, {"\x04\x22\x4d\x18", "lz4cat"},
}

// refusePacked refuses a file that is compressed: as a disk it is of no use.
func refusePacked(f *os.File) error {
	head := make([]byte, 8)
	if _, err := f.ReadAt(head, 0); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("read: %w", err)
	}
	for _, p := range packed {
		if bytes.HasPrefix(head, []byte(p.magic)) {
			return scstore.Hint(fmt.Errorf("it is compressed: %w", scstore.ErrInvalid),
				"unpack it first: %s FILE > DISK; or say --format raw if it is a disk all the same", p.tool)
		}
	}
	return nil
}

// copyFile writes the data of a raw file and leaves out its holes and zeros.
func copyFile(ctx context.Context, f *os.File, size int64, out *api.StreamWriter, at func(int64)) error {
	before, err := f.Stat()
	if err != nil {
		return fmt.Errorf("look at the file: %w", err)
	}
	buf := make([]byte, copyBytes)
	for off := int64(0); off < size; {
		data, hole, err := nextData(f, off, size)
		if err != nil {
			return fmt.Errorf("find the holes of %q: %w", f.Name(), err)
		}
		// Whole blocks, so that zeros are found in whole blocks.
		for off = data &^ (scstore.BlockSize - 1); off < hole; {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			p := buf[:min(int64(len(buf)), size-off)]
			if _, err := f.ReadAt(p, off); errors.Is(err, io.EOF) {
				return changed(f)
			} else if err != nil {
				return fmt.Errorf("read: %w", err)
			}
			if err := writeData(out, p, off); err != nil {
				return err
			}
			off += int64(len(p))
			at(off)
		}
	}
	after, err := f.Stat()
	if err != nil {
		return fmt.Errorf("look at the file: %w", err)
	}
	if after.Size() != before.Size() || !after.ModTime().Equal(before.ModTime()) {
		return changed(f)
	}
	return nil
}

// changed is the error for a file that did not keep still.
func changed(f *os.File) error {
	return scstore.Hint(fmt.Errorf("import %q: it changed while it was read: %w", f.Name(), scstore.ErrBusy),
		"stop what writes to it, then import it again")
}

// writeData writes p without its blocks of zeros. off is a multiple of the block
// size.
func writeData(out *api.StreamWriter, p []byte, off int64) error {
	start := 0 // of the run of data that ends at i
	for i := 0; i < len(p); i += scstore.BlockSize {
		end := min(i+scstore.BlockSize, len(p))
		if !bytes.Equal(p[i:end], zeroBlock[:end-i]) {
			continue
		}
		if err := out.Data(p[start:i], off+int64(start)); err != nil {
			return err
		}
		start = end
	}
	if start >= len(p) {
		return nil
	}
	return out.Data(p[start:], off+int64(start))
}

// openStdin opens standard input as a raw disk.
func (e *environ) openStdin(o importOptions) (*source, error) {
	if o.format != "" && o.format != formatRaw {
		return nil, scstore.Hint(fmt.Errorf("format %s from standard input: %w", o.format, scstore.ErrInvalid),
			"only raw bytes can be read as they come: give the file's name")
	}
	src := &source{name: "standard input", close: func() error { return nil }}
	src.fill = func(ctx context.Context, out *api.StreamWriter, at func(int64)) error {
		return copyStream(ctx, e.stdin, src.sizeBytes, out, at)
	}
	if o.size != "" {
		n, err := parseSize("--size", o.size)
		src.sizeBytes = n
		return src, err
	}
	if f, ok := e.stdin.(*os.File); ok {
		if info, err := f.Stat(); err == nil && info.Mode().IsRegular() {
			at, err := f.Seek(0, io.SeekCurrent)
			src.sizeBytes = info.Size() - at
			return src, err
		}
	}
	return nil, scstore.Hint(fmt.Errorf("the size of what the pipe brings is not known: %w", scstore.ErrInvalid),
		"say it with --size, exactly; or write it to a file first")
}

// copyStream writes exactly size bytes of a stream.
func copyStream(ctx context.Context, in io.Reader, size int64, out *api.StreamWriter, at func(int64)) error {
	buf := make([]byte, copyBytes)
	for off := int64(0); off < size; {
		p := buf[:min(int64(len(buf)), size-off)]
		n, err := readFull(ctx, in, p)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return scstore.Hint(fmt.Errorf("import: standard input ended after %d of %d bytes: %w", off+int64(n), size, scstore.ErrInvalid),
				"--size is the exact size; if it is right, what feeds the pipe has failed")
		case err != nil:
			return fmt.Errorf("read standard input: %w", err)
		}
		if err := writeData(out, p, off); err != nil {
			return err
		}
		off += int64(n)
		at(off)
	}
	if n, _ := readFull(ctx, in, buf[:1]); n > 0 {
		return scstore.Hint(fmt.Errorf("import: standard input brings more than %d bytes: %w", size, scstore.ErrInvalid), "--size is the exact size")
	}
	return ctx.Err()
}

// readFull is io.ReadFull that ends with ctx. A read of a terminal or a pipe that
// nobody writes to cannot be ended; its goroutine stays until the process ends.
func readFull(ctx context.Context, in io.Reader, p []byte) (int, error) {
	type result struct {
		n   int
		err error
	}
	done := make(chan result, 1)
	go func() {
		n, err := io.ReadFull(in, p)
		done <- result{n, err}
	}()
	select {
	case r := <-done:
		return r.n, r.err
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
}
