package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"

	"golang.org/x/sync/errgroup"

	"scstore"
	"scstore/internal/api"
	"scstore/nbd"
)

// importExport is the name under which qemu-img finds the image that it fills.
const importExport = "import"

// source returns the image as a source. f is the file itself, kept open so that
// its name keeps meaning something.
func (d *diskImage) source(f *os.File) *source {
	return &source{
		name: d.path, sizeBytes: d.VirtualSize, close: f.Close,
		fill: func(ctx context.Context, out *api.StreamWriter, at func(int64)) error {
			return d.convert(ctx, out, at)
		},
	}
}

// convert makes qemu-img write the image, as a raw disk, to an NBD server of our
// own, which writes what it gets into the stream. So no copy of the disk is made
// on the way, and only what is not zero travels.
func (d *diskImage) convert(ctx context.Context, out *api.StreamWriter, at func(int64)) error {
	here, there, err := connPair()
	if err != nil {
		return err
	}
	padded, err := checkSize(d.VirtualSize)
	if err != nil {
		return errors.Join(err, here.Close(), there.Close())
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	sink := &streamDevice{out: out, sizeBytes: padded, failed: cancel}
	server := nbd.NewServer(nbd.Options{Exports: sink})
	var g errgroup.Group
	g.Go(func() error { return server.Serve(context.WithoutCancel(ctx), newOneListener(here)) })
	err = runQemuImg(ctx, copyMemoryBytes, &percentWriter{total: d.VirtualSize, at: at}, []*os.File{there},
		"convert", "-p", "-n", "--target-is-zero", "-f", d.Format, d.path,
		"--target-image-opts", "driver=raw,file.driver=nbd,file.server.type=fd,file.server.str=3,file.export="+importExport)
	closeErr := errors.Join(there.Close(), server.Close(), g.Wait())
	switch {
	case sink.error() != nil:
		return sink.error() // the cause of whatever qemu-img says
	case err != nil:
		return err
	case errors.Is(closeErr, scstore.ErrClosed), errors.Is(closeErr, net.ErrClosed):
		return nil
	}
	return closeErr
}

// oneListener is a listener with one connection.
type oneListener struct {
	conn chan net.Conn
	addr net.Addr
	once sync.Once
	done chan struct{}
}

func newOneListener(c net.Conn) *oneListener {
	l := &oneListener{conn: make(chan net.Conn, 1), addr: c.LocalAddr(), done: make(chan struct{})}
	l.conn <- c
	return l
}

// Accept returns the connection, and the next time waits for Close.
func (l *oneListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conn:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

// Close ends Accept.
func (l *oneListener) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

// Addr returns where the connection is.
func (l *oneListener) Addr() net.Addr { return l.addr }

// streamDevice is a disk that can only be written: writes go into the stream of
// an import. It is also the one export of its server.
type streamDevice struct {
	sizeBytes int64
	failed    context.CancelCauseFunc // called with the first error

	mu  sync.Mutex // orders writes
	out *api.StreamWriter
	err error
}

// List returns nothing: the one client knows the name.
func (d *streamDevice) List(context.Context) ([]nbd.ExportInfo, error) { return nil, nil }

// Open returns the device.
func (d *streamDevice) Open(_ context.Context, name string) (nbd.Export, error) {
	if name != importExport {
		return nbd.Export{}, fmt.Errorf("export %q: %w", name, scstore.ErrNotFound)
	}
	return nbd.Export{Device: d, Name: name, Close: func() error { return nil }}, nil
}

// Size returns the size of the image in bytes.
func (d *streamDevice) Size() int64 { return d.sizeBytes }

// ReadOnly returns false.
func (d *streamDevice) ReadOnly() bool { return false }

// errNoReads is the answer to reads.
var errNoReads = fmt.Errorf("read what is being imported: %w", scstore.ErrInvalid)

// ReadAt fails: nothing is kept here.
func (d *streamDevice) ReadAt(_ []byte, _ int64, holes []scstore.Range) ([]scstore.Range, error) {
	return holes, errNoReads
}

// ReadNowAt fails as ReadAt does.
func (d *streamDevice) ReadNowAt(_ []byte, _ int64, holes []scstore.Range) ([]scstore.Range, bool, error) {
	return holes, false, errNoReads
}

// WriteAt writes a part of the disk.
func (d *streamDevice) WriteAt(p []byte, off int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if bytes.Equal(p, zeroBlock[:min(len(p), len(zeroBlock))]) {
		return d.note(d.out.Zero(off, int64(len(p))))
	}
	return d.note(d.out.Data(p, off))
}

// Zero writes zeros.
func (d *streamDevice) Zero(off, length int64, _ bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.note(d.out.Zero(off, length))
}

// Discard does nothing, which a discard may.
func (d *streamDevice) Discard(int64, int64) error { return nil }

// Publish does nothing: the import is durable when it is committed.
func (d *streamDevice) Publish() error { return nil }

// Flush does nothing, as Publish.
func (d *streamDevice) Flush(context.Context) error { return nil }

// Status says that all of it is data, which is never wrong.
func (d *streamDevice) Status(off, length int64, dst []scstore.Range) ([]scstore.Range, error) {
	return append(dst, scstore.Range{Offset: off, Length: length, State: scstore.RangeData}), nil
}

// note keeps the first error. Precondition: mu is held.
func (d *streamDevice) note(err error) error {
	if err != nil && d.err == nil {
		d.err = err
		d.failed(err)
	}
	return err
}

// error returns the first error of a write.
func (d *streamDevice) error() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.err
}

// percentWriter reads the progress that qemu-img convert -p prints:
// "    (12.34/100%)" and a carriage return, again and again.
type percentWriter struct {
	total int64
	at    func(int64)
	rest  []byte
}

// Write reports the last figure in p.
func (w *percentWriter) Write(p []byte) (int, error) {
	w.rest = append(w.rest, p...)
	for {
		line, rest, ok := bytes.Cut(w.rest, []byte{'\r'})
		if !ok {
			break
		}
		w.rest = rest
		var percent float64
		if _, err := fmt.Sscanf(string(bytes.TrimSpace(line)), "(%f/100%%)", &percent); err == nil {
			w.at(int64(percent / 100 * float64(w.total)))
		}
	}
	w.rest = w.rest[:min(len(w.rest), 64)]
	return len(p), nil
}
