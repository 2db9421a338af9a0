package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"scstore"
	"scstore/internal/api"
)

// exported is what an export says with --json.
type exported struct {
	Name      string   `json:"name"`
	Kind      api.Kind `json:"kind"`
	File      string   `json:"file"`
	SizeBytes int64    `json:"size_bytes"`
	DataBytes int64    `json:"data_bytes"` // written; the rest are holes
}

func newExport(e *environ, kind api.Kind) *cobra.Command {
	force := false
	note := "An image never changes."
	if kind == api.KindVolume {
		note = "What is exported is\nthe volume at one moment, as a guest that loses power would leave it; it may be\nwritten to meanwhile."
	}
	cmd := &cobra.Command{
		Use:   "export NAME FILE",
		Short: fmt.Sprintf("write the bytes of one %s to a raw file", kind),
		Long: fmt.Sprintf(`Write the bytes of one %s to a raw file, with holes where there are zeros.
FILE may be "-": raw bytes to standard output. %s

The file appears under its name only once it is whole and on the disk.`, kind, note),
		Args: exactArgs("NAME", "FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return e.export(cmd.Context(), kind, args[0], args[1], force)
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "replace FILE if it exists")
	return cmd
}

// export writes one volume or image.
func (e *environ) export(ctx context.Context, kind api.Kind, name, file string, force bool) error {
	if file == "-" {
		return e.exportStdout(ctx, kind, name)
	}
	if err := checkTarget(file, force); err != nil {
		return fmt.Errorf("export to %q: %w", file, err)
	}
	out := exported{Name: name, Kind: kind, File: file}
	err := e.withClient(func(c *api.Client) error {
		// The volume is asked for first: a name that is wrong makes no file.
		if _, err := c.Get(ctx, kind, name); err != nil {
			return err
		}
		tmp, err := os.CreateTemp(filepath.Dir(file), ".scstore-*.partial")
		if err != nil {
			return fmt.Errorf("export to %q: %v: %w", file, errors.Unwrap(err), scstore.ErrInvalid)
		}
		defer func() {
			_ = tmp.Close()           // the error that matters came from Sync
			_ = os.Remove(tmp.Name()) // gone already, if all went well
		}()
		if err := e.fetch(ctx, c, &out, tmp); err != nil {
			return err
		}
		return publishFile(tmp, file, force)
	})
	if err != nil {
		return err
	}
	e.talk("%s %q is in %s: %s, %s of data", kind, name, file, humanSize(out.SizeBytes), humanSize(out.DataBytes))
	return e.print(out, nil)
}

// fetch writes the bytes into a new file.
func (e *environ) fetch(ctx context.Context, c *api.Client, out *exported, to *os.File) error {
	var p *progress
	err := c.Export(ctx, out.Kind, out.Name,
		func(size int64) error {
			out.SizeBytes = size
			p = e.progress("export "+out.Name, size)
			return fileError(to.Truncate(size))
		},
		func(f api.Frame) error {
			_, err := to.WriteAt(f.Data, f.Offset)
			out.DataBytes += f.Length
			p.at(f.Offset + f.Length)
			return fileError(err)
		})
	if p != nil {
		p.end()
	}
	if err != nil {
		return err
	}
	return fileError(to.Sync())
}

// fileError says whose disk it was.
func fileError(err error) error {
	if err == nil {
		return nil
	}
	if isNoSpace(err) {
		return scstore.Hint(fmt.Errorf("write the file: %w", scstore.ErrNoSpace), "free space where FILE is, or choose another place")
	}
	return fmt.Errorf("write the file: %w", err)
}

// checkTarget refuses early what publishFile would refuse at the end.
func checkTarget(file string, force bool) error {
	info, err := os.Lstat(file)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("%v: %w", errors.Unwrap(err), scstore.ErrInvalid)
	case info.IsDir():
		return scstore.Hint(fmt.Errorf("it is a directory: %w", scstore.ErrInvalid), "name the file to write")
	case !info.Mode().IsRegular():
		return scstore.Hint(fmt.Errorf("it is no regular file: %w", scstore.ErrInvalid), "write to standard output, and from there: scstore ... export NAME - | dd of=%s bs=1M", file)
	case !force:
		return scstore.Hint(fmt.Errorf("the file: %w", scstore.ErrExists), "choose another name, or replace it with --force")
	}
	return nil
}

// publishFile gives a whole file its name, and makes the name durable.
func publishFile(tmp *os.File, file string, force bool) error {
	if err := tmp.Chmod(0o666 &^ umask()); err != nil {
		return fmt.Errorf("export to %q: %w", file, err)
	}
	place := os.Rename
	if !force {
		place = os.Link // fails if the name is taken
	}
	switch err := place(tmp.Name(), file); {
	case errors.Is(err, os.ErrExist):
		return fmt.Errorf("export to %q: the file: %w", file, scstore.ErrExists)
	case err != nil && !force:
		// A file system without links: the check again, then the name.
		if err := checkTarget(file, false); err != nil {
			return fmt.Errorf("export to %q: %w", file, err)
		}
		if err := os.Rename(tmp.Name(), file); err != nil {
			return fmt.Errorf("export to %q: %w", file, err)
		}
	case err != nil:
		return fmt.Errorf("export to %q: %w", file, err)
	}
	dir, err := os.Open(filepath.Dir(file))
	if err != nil {
		return fmt.Errorf("export to %q: %w", file, err)
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// exportStdout writes raw bytes, zeros included.
func (e *environ) exportStdout(ctx context.Context, kind api.Kind, name string) error {
	if f, ok := e.stdout.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		return scstore.Hint(fmt.Errorf("export: standard output is a terminal: %w", scstore.ErrInvalid), "name a file, or pipe the bytes somewhere")
	}
	if e.json {
		return scstore.Hint(fmt.Errorf("export to standard output with --json: %w", errUsage), "standard output can hold one of them")
	}
	return e.withClient(func(c *api.Client) error {
		w := bufio.NewWriterSize(e.stdout, copyBytes)
		var p *progress
		at, size := int64(0), int64(0)
		err := c.Export(ctx, kind, name,
			func(n int64) error { size, p = n, e.progress("export "+name, n); return nil },
			func(f api.Frame) error {
				if f.Data == nil {
					return nil
				}
				if f.Offset < at {
					return fmt.Errorf("export %q: its parts are out of order: %w", name, scstore.ErrCorrupt)
				}
				if err := writeZeros(w, f.Offset-at); err != nil {
					return err
				}
				at = f.Offset + f.Length
				p.at(at)
				_, err := w.Write(f.Data)
				return err
			})
		if p != nil {
			p.end()
		}
		if err != nil {
			return err
		}
		if err := writeZeros(w, size-at); err != nil {
			return err
		}
		return w.Flush()
	})
}

// writeZeros writes n zeros.
func writeZeros(w io.Writer, n int64) error {
	for n > 0 {
		part := min(n, int64(len(zeroBlock)))
		if _, err := w.Write(zeroBlock[:part]); err != nil {
			return err
		}
		n -= part
	}
	return nil
}
