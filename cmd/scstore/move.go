package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"scstore/internal/api"
)

func newMove(e *environ) *cobra.Command {
	req := api.Move{}
	cmd := &cobra.Command{
		Use:   "move VOL --to SITE[/HOST]",
		Short: "let another host write a volume, exactly from where it is",
		Long: `Let another host write a volume from now on: a planned hand-off. The new owner sees
the last write that the old one acknowledged. Writes pause for one and a half round
trips, however large the volume is and however much of it is not there yet: blocks that
are missing at the new owner are fetched when they are read, and all of them in the
background. Until then they exist only where they were; the report, and scstore volume
info, say how much that is. With --wait-complete the data move first, the right after.

Connections to the old owner end; clients go on at the new owner's door. Only a
migration opens that one before: its writes wait there until the hand-off.

Both owners and a majority of the sites must answer. If the old owner is gone, there is
scstore volume promote. Exit code 9 means that the connection broke in the middle of
it: it is decided by itself, exactly once; scstore volume info shows how.`,
		Args: exactArgs("VOL"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := parseTo(cmd, req.To); err != nil {
				return err
			}
			return e.withClient(func(c *api.Client) error {
				p := e.progress("move "+args[0], 0)
				r, err := c.Move(cmd.Context(), args[0], req, p.set)
				p.end()
				if err != nil {
					return err
				}
				e.talk("volume %q: %s writes it now", r.Volume, r.To)
				return e.print(r, func(w io.Writer) { printMove(w, r) })
			})
		},
	}
	cmd.Flags().StringVar(&req.To, "to", "", "the new owner's site, or one host of it as SITE/HOST")
	cmd.Flags().BoolVar(&req.WaitComplete, "wait-complete", false, "move the data first")
	return cmd
}

func printMove(w io.Writer, r api.MoveReport) {
	line := func(key, format string, args ...any) { fmt.Fprintf(w, key+"\t"+format+"\n", args...) }
	line("from", "%s", r.From)
	line("to", "%s, fence %d", r.To, r.Fence)
	line("position", "%s", r.Position)
	line("pause", "%s", pauseText(r.PauseMs))
	line("round trip", "%s", pauseText(r.RTTMs))
	line("in all", "%s", pauseText(r.TotalMs))
	if r.MissingBytes == 0 {
		line("missing", "nothing")
		return
	}
	line("missing", "%s", humanSize(r.MissingBytes))
	if r.OnlyAt != "" {
		line("only at", "%s, until it is fetched", r.OnlyAt)
	}
}

func newPromote(e *environ) *cobra.Command {
	req := api.Promote{}
	cmd := &cobra.Command{
		Use:   "promote VOL --to SITE[/HOST] [--dry-run]",
		Short: "let another host write a volume whose owner is gone",
		Long: `Let another host write a volume whose owner is gone: a forced promote. The history
goes on from the newest position that the hosts that answer can complete. What the
owner acknowledged beyond it is left out, and the report says how much that is; what
nobody who answers can know, it says as well. Look first with --dry-run.

If the owner answers, nothing is done: move the volume instead (scstore volume move).
When the owner comes back it stops writing at once, and all that it has and the history
does not is kept as NAME@diverged-FENCE, to be read, exported or compared.`,
		Args: exactArgs("VOL"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := parseTo(cmd, req.To); err != nil {
				return err
			}
			return e.withClient(func(c *api.Client) error {
				r, err := c.Promote(cmd.Context(), args[0], req)
				if err != nil {
					return err
				}
				if r.DryRun {
					e.talk("volume %q: %s would write it; nothing was changed", r.Volume, r.To)
				} else {
					e.talk("volume %q: %s writes it now", r.Volume, r.To)
				}
				return e.print(r, func(w io.Writer) { printPromote(w, r) })
			})
		},
	}
	cmd.Flags().StringVar(&req.To, "to", "", "the new owner's site, or one host of it as SITE/HOST")
	cmd.Flags().BoolVar(&req.DryRun, "dry-run", false, "only say what would be lost")
	return cmd
}

func printPromote(w io.Writer, r api.PromoteReport) {
	line := func(key, format string, args ...any) { fmt.Fprintf(w, key+"\t"+format+"\n", args...) }
	line("owner before", "%s", orDash(r.Owner))
	line("to", "%s, fence %d", r.To, r.Fence)
	line("goes on from", "%s, the newest committed was %s", r.Position, r.Head)
	line("left out", "%s", lossText(r))
	if r.Unknown != "" {
		line("not known", "%s", r.Unknown)
	}
	line("answered", "%s", orDash(strings.Join(r.Reachable, ", ")))
	line("silent", "%s", orDash(strings.Join(r.Silent, ", ")))
}

// lossText is the loss of a promote in a line.
func lossText(r api.PromoteReport) string {
	if r.Epochs == 0 {
		return "no committed epoch"
	}
	text := fmt.Sprintf("%d committed epochs", r.Epochs)
	if r.Bytes != nil {
		text += ", " + humanSize(*r.Bytes)
	} else {
		text += ", nobody who answers knows of how many bytes"
	}
	if r.Extents != nil {
		text += fmt.Sprintf(" in %d extents", *r.Extents)
	}
	if r.Seconds != nil {
		text += fmt.Sprintf(", %.1f s", *r.Seconds)
	}
	return text
}
