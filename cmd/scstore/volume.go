package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"scstore"
	"scstore/internal/api"
)

func newVolume(e *environ) *cobra.Command {
	return group("volume", "writable disks",
		newVolumeCreate(e), newList(e, api.KindVolume), newInfo(e, api.KindVolume), newRemove(e, api.KindVolume), newExport(e, api.KindVolume),
		newSnapshot(e), newClone(e), newRollback(e), newMove(e), newPromote(e))
}

func newVolumeCreate(e *environ) *cobra.Command {
	size, from := "", ""
	cmd := &cobra.Command{
		Use:   "create NAME [--size 20G] [--from IMAGE|VOL@SNAP]",
		Short: "make a volume, empty or a clone of an image or a snapshot",
		Long: `Make a volume: empty, or with --from a clone of an image or a snapshot, which
costs no copy.

A clone has the size of what it is based on unless --size asks for more; --size is
a multiple of 4096, its units are powers of 1024. The volume is durable when the
command returns.`,
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
			return e.createVolume(cmd.Context(), req)
		},
	}
	cmd.Flags().StringVar(&size, "size", "", "size of the disk, such as 20G")
	cmd.Flags().StringVar(&from, "from", "", "the image or snapshot to base it on")
	return cmd
}

// createVolume makes a volume and says so.
func (e *environ) createVolume(ctx context.Context, req api.CreateVolume) error {
	return e.withClient(func(c *api.Client) error {
		v, err := c.CreateVolume(ctx, req)
		if err != nil {
			return err
		}
		e.talk("volume %q: %s", v.Name, humanSize(v.SizeBytes))
		return e.print(v, nil)
	})
}

func newSnapshot(e *environ) *cobra.Command {
	return &cobra.Command{
		Use:   "snapshot VOL@SNAP",
		Short: "name a volume's content as it is now",
		Long: `Name a volume's content as it is now. Guests write on meanwhile; what they were
told is written, flushed or not, is in it.

A snapshot costs no copy. What was written since the last one is read once, for its
digest; then it keeps what later writes replace. It can be exported (volume export,
nbd url) and cloned (volume clone); volume info lists the snapshots of a volume, and
volume rm VOL@SNAP removes one.`,
		Args: exactArgs("VOL@SNAP"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return e.withClient(func(c *api.Client) error {
				p := e.progress("snapshot "+args[0], 0)
				v, err := c.CreateSnapshot(cmd.Context(), args[0], p.set)
				p.end()
				if err != nil {
					return err
				}
				e.talk("snapshot %q: %s at position %s", v.Name, humanSize(v.SizeBytes), v.Position)
				return e.print(v, nil)
			})
		},
	}
}

func newClone(e *environ) *cobra.Command {
	return &cobra.Command{
		Use:   "clone VOL@SNAP NEW",
		Short: "make a volume that begins as a snapshot",
		Long: `Make a volume that begins as a snapshot and goes its own way. It costs no copy; the
snapshot stays as long as the clone does. The same as volume create NEW --from.`,
		Args: exactArgs("VOL@SNAP", "NEW"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !strings.Contains(args[0], "@") {
				return scstore.Hint(fmt.Errorf("clone %q: it names no snapshot: %w", args[0], scstore.ErrInvalid),
					"make one first: scstore volume snapshot %s@NAME", args[0])
			}
			return e.createVolume(cmd.Context(), api.CreateVolume{Name: args[1], From: args[0]})
		},
	}
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
	inCluster := slices.ContainsFunc(list, func(v api.Volume) bool { return v.Where != nil })
	owner := func(text string) string { // a column that only a cluster has
		if !inCluster {
			return ""
		}
		return "\t" + text
	}
	fmt.Fprintf(w, "NAME\tSIZE\tDATA\tBASE\tCONNECTIONS%s\n", owner("OWNER"))
	for _, v := range list {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d%s\n", v.Name, humanSize(v.SizeBytes), dataSize(v.DataBytes), orDash(v.Base), v.Connections, owner(ownerOf(v)))
		if v.Where == nil {
			continue
		}
		for _, branch := range v.Where.Branches {
			fmt.Fprintf(w, "%s\t%s\t-\t-\t0%s\n", branch, humanSize(v.SizeBytes), owner("-"))
		}
	}
}

// orDash returns text, or a dash where there is none.
func orDash(text string) string {
	if text == "" {
		return "-"
	}
	return text
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
	if v.Kind != api.KindSnapshot {
		line("data", "%s of its own", dataSize(v.DataBytes))
	}
	if v.Base != "" {
		line("base", "%s", v.Base)
	}
	if len(v.Clones) > 0 {
		line("clones", "%s", strings.Join(v.Clones, ", "))
	}
	for _, snap := range v.Snapshots {
		clones := ""
		if len(snap.Clones) > 0 {
			clones = ", cloned as " + strings.Join(snap.Clones, ", ")
		}
		line("snapshot", "@%s at %s, %s%s", snap.Name, snap.Position, humanSize(snap.SizeBytes), clones)
	}
	line("position", "%s", v.Position)
	if v.Digest != "" {
		line("digest", "%s", v.Digest)
	}
	if v.Where != nil {
		printWhere(line, *v.Where)
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
		Long: fmt.Sprintf(`Remove one %s and its data, for good. A volume's snapshot is VOL@SNAP.

What is in use is not removed: what volumes are based on never, nor a volume that
has snapshots; a disk with open NBD connections only with --force, which closes
them.`, kind),
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
				if r.Volume.Kind == api.KindSnapshot {
					e.talk("%s snapshot %q", verb, r.Volume.Name)
				} else {
					e.talk("%s %s %q: %s of data", verb, kind, r.Volume.Name, dataSize(r.Volume.DataBytes))
				}
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

func newRollback(e *environ) *cobra.Command {
	var o api.RemoveOptions
	cmd := &cobra.Command{
		Use:   "rollback VOL@SNAP",
		Short: "make a volume what it was at a snapshot",
		Long: `Make a volume what it was at a snapshot. What was written since is gone: --dry-run
says how much that is.

It takes the volume's latest snapshot alone; later ones are to be removed before.
Open NBD connections are in the way, unless --force closes them.`,
		Args: exactArgs("VOL@SNAP"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return e.withClient(func(c *api.Client) error {
				p := e.progress("roll back to "+args[0], 0)
				r, err := c.Rollback(cmd.Context(), args[0], o, p.set)
				p.end()
				if err != nil {
					return err
				}
				verb := "rolled back to"
				if r.DryRun {
					verb = "would roll back to"
				}
				e.talk("%s %q: %s were written since", verb, r.Snapshot, humanSize(r.LostBytes))
				return e.print(r, nil)
			})
		},
	}
	cmd.Flags().BoolVar(&o.Force, "force", false, "close open NBD connections first")
	cmd.Flags().BoolVar(&o.DryRun, "dry-run", false, "only say what would be lost")
	return cmd
}
