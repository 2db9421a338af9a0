package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"scstore/internal/api"
)

func newPlacement(e *environ) *cobra.Command {
	return group("placement", "which sites hold a volume", newPlacementSet(e), newPlacementGet(e))
}

func newPlacementSet(e *environ) *cobra.Command {
	p := api.Placement{}
	cmd := &cobra.Command{
		Use:   "set VOL --replicas SITE,... [--mode async|lazy] [--failover manual]",
		Short: "say which sites hold copies of a volume",
		Long: `Say which sites hold copies of a volume, beside the one that writes it. The command
returns when that is agreed on; the copies follow. scstore placement get shows how far
they are.

  async  a copy follows the owner, a second or so behind it
  lazy   a copy knows what is newest, and fetches a block when it is read

--failover manual: nobody takes over by itself when the owner is gone; scstore volume
promote does. To end the copies at other sites, name that of the owner alone.`,
		Args: exactArgs("VOL"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(p.Sites) == 0 {
				return usageError(cmd, "--replicas SITE,... is needed")
			}
			return e.withClient(func(c *api.Client) error {
				set, err := c.SetPlacement(cmd.Context(), args[0], p)
				if err != nil {
					return err
				}
				e.talk("placement of %q: %s", args[0], placementText(set))
				return e.print(set, nil)
			})
		},
	}
	cmd.Flags().StringSliceVar(&p.Sites, "replicas", nil, "the sites that hold copies, with commas between them")
	cmd.Flags().StringVar(&p.Mode, "mode", "async", "how copies follow: async, lazy")
	cmd.Flags().StringVar(&p.Failover, "failover", "manual", "who takes over when the owner is gone: manual")
	return cmd
}

func newPlacementGet(e *environ) *cobra.Command {
	return &cobra.Command{
		Use:   "get VOL",
		Short: "show which sites hold copies of a volume, and how far they are",
		Args:  exactArgs("VOL"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return e.withClient(func(c *api.Client) error {
				p, err := c.Placement(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				e.talk("placement of %q: %s", args[0], placementText(p))
				return e.print(p, func(w io.Writer) {
					fmt.Fprintln(w, "HOST\tSITE\tPOSITION\tSTATE")
					for _, c := range p.Copies {
						state := strings.TrimPrefix(copyState(c), ", ")
						if state == "" {
							state = "behind"
						}
						fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", c.Host, c.Site, c.Position, state)
					}
				})
			})
		},
	}
}

// placementText is a policy in a line.
func placementText(p api.Placement) string {
	if len(p.Sites) == 0 {
		return "no copies but the owner's"
	}
	return fmt.Sprintf("copies at %s, %s, failover %s", strings.Join(p.Sites, ", "), p.Mode, p.Failover)
}
