package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"scstore"
	"scstore/internal/api"
)

// defaultTokenValid is how long a token is good unless one says otherwise.
const defaultTokenValid = time.Hour

func newSite(e *environ) *cobra.Command {
	return group("site", "places that fail together", newSiteList(e))
}

func newSiteList(e *environ) *cobra.Command {
	return &cobra.Command{
		Use:   "ls",
		Short: "list the sites of the cluster",
		Long: `List the sites of the cluster. One host of each site votes; VOLUMES is how many are
written at the site now.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return e.withCluster(cmd.Context(), func(c api.Cluster) error {
				return e.print(struct {
					Sites []api.Site `json:"sites"`
				}{c.Sites}, func(w io.Writer) {
					fmt.Fprintln(w, "NAME\tHOSTS\tVOTER\tVOLUMES")
					for _, s := range c.Sites {
						fmt.Fprintf(w, "%s\t%s\t%s\t%d\n", s.Name, orDash(strings.Join(s.Hosts, ", ")), orDash(s.Voter), s.Volumes)
					}
				})
			})
		},
	}
}

func newHost(e *environ) *cobra.Command {
	return group("host", "machines of the cluster", newHostList(e), newHostToken(e), newHostRemove(e))
}

func newHostList(e *environ) *cobra.Command {
	return &cobra.Command{
		Use:   "ls",
		Short: "list the hosts of the cluster",
		Long: `List the hosts of the cluster, as the host sees them that is asked. RTT, SENT and
RECEIVED are of its connection to each one.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return e.withCluster(cmd.Context(), func(c api.Cluster) error {
				return e.print(struct {
					Hosts []api.Peer `json:"hosts"`
				}{c.Hosts}, func(w io.Writer) { printHosts(w, c.Hosts) })
			})
		},
	}
}

func printHosts(w io.Writer, hosts []api.Peer) {
	fmt.Fprintln(w, "NAME\tSITE\tSTATE\tADDRESS\tREACHABLE\tRTT\tSENT\tRECEIVED\tVOLUMES")
	for _, h := range hosts {
		reachable, rtt, sent, received := "no", "-", humanSize(int64(h.SentBytes)), humanSize(int64(h.Received))
		if h.Reachable {
			reachable = "yes"
		}
		if h.RTTMs > 0 {
			rtt = fmt.Sprintf("%.1f ms", h.RTTMs)
		}
		if h.Here {
			reachable, rtt, sent, received = "here", "-", "-", "-"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%d\n",
			h.Name, h.Site, h.State, orDash(strings.Join(h.Addresses, ", ")), reachable, rtt, sent, received, h.Volumes)
	}
}

func newHostToken(e *environ) *cobra.Command {
	req := api.NewToken{}
	cmd := &cobra.Command{
		Use:   "token [--site SITE] [--valid 1h]",
		Short: "make a token with which one host can join",
		Long: `Make a token with which one host can join the cluster, once, until it expires, and
print it. A site that is new is made. Keep the token secret until it is used:

  scstore host token --site b > token
  scstore serve --dir DIR --site b --listen HOST:PORT --join @token   # on the new host`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if req.Valid <= 0 {
				return usageError(cmd, fmt.Sprintf("--valid %s: want a time such as 1h", req.Valid))
			}
			return e.withClient(func(c *api.Client) error {
				if req.Site == "" {
					here, err := c.Cluster(cmd.Context())
					if err != nil {
						return err
					}
					req.Site = here.Site
				}
				t, err := c.NewToken(cmd.Context(), req)
				if err != nil {
					return err
				}
				e.talk("token for one host of site %q, until %s", t.Site, t.ExpiresAt.Local().Format(time.RFC3339))
				return e.print(t, func(w io.Writer) { fmt.Fprintln(w, t.Text) })
			})
		},
	}
	cmd.Flags().StringVar(&req.Site, "site", "", "the new host's site (default: that of the host that is asked)")
	cmd.Flags().DurationVar(&req.Valid, "valid", defaultTokenValid, "how long it can be used")
	return cmd
}

func newHostRemove(e *environ) *cobra.Command {
	var o api.RemoveOptions
	cmd := &cobra.Command{
		Use:   "remove NAME",
		Short: "take a host out of the cluster for good",
		Long: `Take a host out of the cluster for good: it no longer counts for a majority, its
certificate is refused, and its copies are forgotten. It cannot come back; its machine
can, with an empty folder and a new token. For a host that only was stopped, do nothing:
it catches up by itself when it is started.

If the newest bytes of a volume are at that host alone, it is not removed: move or
promote the volume first, or say --force, which gives those bytes up.`,
		Args: exactArgs("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return e.withClient(func(c *api.Client) error {
				r, err := c.RemoveHost(cmd.Context(), args[0], o)
				if err != nil {
					return err
				}
				verb := "removed"
				if r.DryRun {
					verb = "would remove"
				}
				e.talk("%s host %q, which held copies of %d volumes", verb, r.Host, r.Records)
				if len(r.Only) > 0 {
					e.talk("newest bytes at that host alone: %s", strings.Join(r.Only, ", "))
				}
				return e.print(r, nil)
			})
		},
	}
	cmd.Flags().BoolVar(&o.Force, "force", false, "give up what exists only there")
	cmd.Flags().BoolVar(&o.DryRun, "dry-run", false, "only say what would be lost")
	return cmd
}

// withCluster runs f with the cluster as the host sees it.
func (e *environ) withCluster(ctx context.Context, f func(c api.Cluster) error) error {
	return e.withClient(func(client *api.Client) error {
		c, err := client.Cluster(ctx)
		if err != nil {
			return err
		}
		return f(c)
	})
}

// parseTo checks SITE or SITE/HOST. Errors: ErrInvalid.
func parseTo(cmd *cobra.Command, to string) error {
	if to == "" {
		return usageError(cmd, "--to SITE[/HOST] is needed")
	}
	site, host, named := strings.Cut(to, "/")
	if site == "" || named && host == "" || strings.Contains(host, "/") {
		return scstore.Hint(fmt.Errorf("--to %q: %w", to, scstore.ErrInvalid), "write SITE or SITE/HOST; scstore host ls lists them")
	}
	return nil
}
