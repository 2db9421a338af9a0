package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"scstore"
	"scstore/internal/api"
)

func newImage(e *environ) *cobra.Command {
	return group("image", "frozen disks that volumes are based on",
		newImport(e), newExport(e, api.KindImage), newList(e, api.KindImage), newInfo(e, api.KindImage), newRemove(e, api.KindImage))
}

// importOptions are the flags of an import.
type importOptions struct {
	format   string
	size     string
	external bool
}

func newImport(e *environ) *cobra.Command {
	var o importOptions
	cmd := &cobra.Command{
		Use:   "import FILE NAME",
		Short: "make an image from a file",
		Long: `Make an image from a file: raw, or a format that qemu-img reads (qcow2, vmdk,
vdi, vhdx, vpc), which is converted on the way, without a temporary copy.
FILE may be "-": raw bytes from standard input, with --size if it is a pipe.

Zeros take no space. The image is durable when the command returns; if it fails
or is broken off, nothing is left of it.

A file that refers to other files (a backing file, an extent beside it) is read
only with --allow-external: whoever made the file chose what it refers to.`,
		Args: exactArgs("FILE", "NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return e.importImage(cmd.Context(), args[0], args[1], o)
		},
	}
	cmd.Flags().StringVar(&o.format, "format", "", "format of FILE; found out by default")
	cmd.Flags().StringVar(&o.size, "size", "", "exact size of what standard input brings")
	cmd.Flags().BoolVar(&o.external, "allow-external", false, "also read the other files that FILE refers to")
	return cmd
}

// source is a disk to import.
type source struct {
	name      string
	sizeBytes int64 // as the file has it, a multiple of sectorSize
	// fill writes what is not zero, and reports how far it is, in bytes.
	fill  func(ctx context.Context, out *api.StreamWriter, at func(int64)) error
	close func() error
}

// sectorSize is the unit of a disk's size, in bytes.
const sectorSize = 512

// importImage imports one file.
func (e *environ) importImage(ctx context.Context, file, name string, o importOptions) error {
	src, err := e.openSource(ctx, file, o)
	if err != nil {
		return fmt.Errorf("import %q: %w", file, err)
	}
	defer func() {
		_ = src.close() // it was only read
	}()
	padded, err := checkSize(src.sizeBytes)
	if err != nil {
		return fmt.Errorf("import %q: %w", file, err)
	}
	if n := padded - src.sizeBytes; n > 0 {
		e.talk("import %q: %d bytes, padded by %d zeros to a multiple of %d", file, src.sizeBytes, n, scstore.BlockSize)
	}
	return e.withClient(func(c *api.Client) error {
		p := e.progress("import "+name, src.sizeBytes)
		v, err := c.ImportImage(ctx, name, padded, func(ctx context.Context, out *api.StreamWriter) error {
			return src.fill(ctx, out, p.at)
		})
		p.end()
		if err != nil {
			return err
		}
		v.PaddedBytes = padded - src.sizeBytes
		e.talk("image %q: %s, %s of data", v.Name, humanSize(v.SizeBytes), dataSize(v.DataBytes))
		return e.print(v, nil)
	})
}

// checkSize returns the size of the image for a disk of n bytes.
func checkSize(n int64) (int64, error) {
	switch {
	case n == 0:
		return 0, scstore.Hint(fmt.Errorf("it is empty: %w", scstore.ErrInvalid), "name a disk image")
	case n < 0 || n > scstore.MaxVolumeBytes:
		return 0, scstore.Hint(fmt.Errorf("a disk of %d bytes: %w", n, scstore.ErrInvalid),
			"the largest disk has %d bytes (%s)", int64(scstore.MaxVolumeBytes), humanSize(scstore.MaxVolumeBytes))
	case n%sectorSize != 0:
		return 0, scstore.Hint(fmt.Errorf("%d bytes is not a multiple of %d, so it is no disk image: %w", n, sectorSize, scstore.ErrInvalid),
			"look at the file; if it was cut off, fetch it again, if its end is only missing zeros, truncate -s %%%d adds them", sectorSize)
	}
	return (n + scstore.BlockSize - 1) / scstore.BlockSize * scstore.BlockSize, nil
}
