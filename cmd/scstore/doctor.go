package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"scstore/internal/api"
	"scstore/internal/host"
)

func newDoctor(e *environ) *cobra.Command {
	dir, rebuild := "", false
	cmd := &cobra.Command{
		Use:   "doctor [--dir DIR [--rebuild-index]]",
		Short: "find out what is wrong with a host",
		Long: `Find out what is wrong with a host: read and check all that it stores, its
sockets, its space, its versions. The host goes on serving meanwhile.

With --dir, examine a folder that no host serves. --rebuild-index first makes the
index anew from the log, for when the index is damaged or lost.

Exit code 20 means that there is at least one error among the findings.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if rebuild && dir == "" {
				return usageError(cmd, "--rebuild-index wants --dir: the host must not be running")
			}
			report, err := e.examine(cmd.Context(), dir, rebuild)
			if err != nil {
				return err
			}
			if report.Findings == nil {
				report.Findings = []api.Finding{}
			}
			if err := e.print(report, func(w io.Writer) { printReport(w, report) }); err != nil {
				return err
			}
			if report.Worst() == api.SeverityError {
				return errFindings
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "", "examine this folder, which no host serves")
	cmd.Flags().BoolVar(&rebuild, "rebuild-index", false, "make the index anew from the log first")
	return cmd
}

// examine asks the host, or looks at the folder itself.
func (e *environ) examine(ctx context.Context, dir string, rebuild bool) (api.Report, error) {
	var p *progress
	show := func(done, total int64) {
		if p == nil {
			p = e.progress("doctor", total)
		}
		p.set(done, total)
	}
	defer func() {
		if p != nil {
			p.end()
		}
	}()
	if dir != "" {
		return host.Check(ctx, host.Options{Dir: dir, Version: build().version()}, rebuild, show)
	}
	var report api.Report
	err := e.withClient(func(c *api.Client) error {
		status, err := c.Status(ctx)
		if err != nil {
			return err
		}
		if report, err = c.Doctor(ctx, show); err != nil {
			return err
		}
		if mine := build().version(); status.Version != mine {
			report.Findings = append(report.Findings, api.Finding{
				Severity: api.SeverityWarning, Subject: c.Addr().String(),
				Message: fmt.Sprintf("the host runs version %s, this program is %s", status.Version, mine),
				Hint:    "use the same version, or restart the host",
			})
		}
		return nil
	})
	return report, err
}

func printReport(w io.Writer, r api.Report) {
	fmt.Fprintf(w, "checked %s, %d findings\n", humanSize(r.VerifiedBytes), len(r.Findings))
	for _, f := range r.Findings {
		fmt.Fprintf(w, "%s: %s: %s\n", f.Severity, f.Subject, oneLine(f.Message))
		if f.Hint != "" {
			fmt.Fprintf(w, "  hint: %s\n", oneLine(f.Hint))
		}
	}
}
