package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"scstore/internal/api"
)

func newVolume(e *environ) *cobra.Command {
	return group("volume", "writable disks",
		newVolumeCreate(e), newList(e, api.KindVolume), newInfo(e, api.KindVolume), newRemove(e, api.KindVolume), newExport(e, api.KindVolume))
}

func newVolumeCreate(e *environ) *cobra.Command {
	size, from := "", ""
	cmd := &cobra.Command{
		Use:   "create NAME [--size 20G] [--from IMAGE]",
		Short: "make a volume, empty or a clone of an image",
		Long: `Make a volume: empty, or with --from a clone of an image, which costs no copy.

A clone has its image's size unless --size asks for more; --size is a multiple
of 4096, its units are powers of 1024. The volume is durable when the command
returns.`,
		Args: exactArgs("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			req := api.CreateVolume{Name: args[0], From: from}
			if size == "" && from == "" {
				return usageError(cmd, "either --size or --from is needed")
			}
			if size != "" {
				n, err := parseSize("--size", size)
				if err != nil {
					return err
				}
				req.SizeBytes = n
			}
			return e.withClient(func(c *api.Client) error {
				v, err := c.CreateVolume(cmd.Context(), req)
				if err != nil {
					return err
				}
				e.talk("volume %q: %s", v.Name, humanSize(v.SizeBytes))
				return e.print(v, nil)
			})
		},
	}
	cmd.Flags().StringVar(&size, "size", "", "size of the disk, such as 20G")
	cmd.Flags().StringVar(&from, "from", "", "the image to base it on")
	return cmd
}

func newList(e *environ, kind api.Kind) *cobra.Command {
	return &cobra.Command{
		Use:   "ls",
		Short: fmt.Sprintf("list the %ss", kind),
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return e.withClient(func(c *api.Client) error {
				list, err := c.List(cmd.Context(), kind)
				if err != nil {
					return err
				}
				return e.print(api.List{Volumes: list}, func(w io.Writer) { printList(w, kind, list) })
			})
		},
	}
}

func printList(w io.Writer, kind api.Kind, list []api.Volume) {
	if kind == api.KindImage {
		fmt.Fprintln(w, "NAME\tSIZE\tDATA\tCLONES")
		for _, v := range list {
			fmt.Fprintf(w, "%s\t%s\t%s\t%d\n", v.Name, humanSize(v.SizeBytes), dataSize(v.DataBytes), len(v.Clones))
		}
		return
	}
	fmt.Fprintln(w, "NAME\tSIZE\tDATA\tBASE\tCONNECTIONS")
	for _, v := range list {
		base := v.Base
		if base == "" {
			base = "-"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\n", v.Name, humanSize(v.SizeBytes), dataSize(v.DataBytes), base, v.Connections)
	}
}

func newInfo(e *environ, kind api.Kind) *cobra.Command {
	return &cobra.Command{
		Use:   "info NAME",
		Short: fmt.Sprintf("describe one %s", kind),
		Args:  exactArgs("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return e.withClient(func(c *api.Client) error {
				v, err := c.Get(cmd.Context(), kind, args[0])
				if err != nil {
					return err
				}
				return e.print(v, func(w io.Writer) { printInfo(w, v) })
			})
		},
	}
}

func printInfo(w io.Writer, v api.Volume) {
	line := func(key, format string, args ...any) { fmt.Fprintf(w, key+"\t"+format+"\n", args...) }
	line("name", "%s", v.Name)
	line("kind", "%s", v.Kind)
	line("id", "%s", v.ID)
	line("size", "%s (%d bytes)", humanSize(v.SizeBytes), v.SizeBytes)
	line("data", "%s of its own", dataSize(v.DataBytes))
	if v.Base != "" {
		line("base", "%s", v.Base)
	}
	if len(v.Clones) > 0 {
		line("clones", "%s", strings.Join(v.Clones, ", "))
	}
	line("position", "%s", v.Position)
	if v.Digest != "" {
		line("digest", "%s", v.Digest)
	}
	line("connections", "%d", v.Connections)
	if v.CreatedAt != nil {
		line("created", "%s", v.CreatedAt.Local().Format(time.RFC3339))
	}
	if n := len(v.DamagedAt); n > 0 {
		line("damage", "%d blocks cannot be read, the first at byte %d", n, v.DamagedAt[0])
	}
}

func newRemove(e *environ, kind api.Kind) *cobra.Command {
	var o api.RemoveOptions
	cmd := &cobra.Command{
		Use:   "rm NAME",
		Short: fmt.Sprintf("remove one %s", kind),
		Long: fmt.Sprintf(`Remove one %s and its data, for good.

What is in use is not removed: an image that volumes are based on never, a disk
with open NBD connections only with --force, which closes them.`, kind),
		Args: exactArgs("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return e.withClient(func(c *api.Client) error {
				r, err := c.Remove(cmd.Context(), kind, args[0], o)
				if err != nil {
					return err
				}
				verb := "removed"
				if r.DryRun {
					verb = "would remove"
				}
				e.talk("%s %s %q: %s of data", verb, kind, r.Volume.Name, dataSize(r.Volume.DataBytes))
				if r.ClosedConns > 0 {
					e.talk("NBD connections closed: %d", r.ClosedConns)
				}
				return e.print(r, nil)
			})
		},
	}
	cmd.Flags().BoolVar(&o.Force, "force", false, "close open NBD connections first")
	cmd.Flags().BoolVar(&o.DryRun, "dry-run", false, "only say what would be removed")
	return cmd
}
