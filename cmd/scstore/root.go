package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"scstore"
	"scstore/internal/api"
)

// defaultDir is the folder of a store when none is named.
const defaultDir = "/var/lib/scstore"

// apiSocket is the name of the API's socket in the folder of a store.
const apiSocket = "api.sock"

// environ is what a command gets from outside, so that a test can be outside.
type environ struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	getenv         func(string) string

	// The global flags.
	host  string
	json  bool
	quiet bool
}

// run runs one command line and returns the exit code.
func run(ctx context.Context, args []string, e *environ) int {
	root := newRoot(e)
	root.SetArgs(args)
	root.SetIn(e.stdin)
	root.SetOut(e.stdout)
	root.SetErr(e.stderr)
	err := root.ExecuteContext(ctx)
	if err != nil {
		if ctx.Err() != nil && errors.Is(err, context.Canceled) {
			err = context.Cause(ctx)
		}
		e.printError(err)
	}
	return exitCode(err)
}

// newRoot returns the tree of commands.
func newRoot(e *environ) *cobra.Command {
	root := &cobra.Command{
		Use:   "scstore",
		Short: "a store for VM disks",
		Long: `scstore keeps VM disks and serves them as block devices over NBD.

  scstore serve --dir DIR            run a store; needs no configuration
  scstore image import FILE NAME     bring in a disk image
  scstore volume create NAME --from IMAGE
  scstore nbd url NAME               what to give to qemu, nbdcopy, nbd-client

  scstore serve --site SITE --listen HOST:PORT [--join TOKEN]
                                     the same in several sites
  scstore volume move NAME --to SITE let another site write it, from now on

A client command finds its host by --host, else by SCSTORE_API, else at
unix:` + filepath.Join(defaultDir, apiSocket) + `.

` + exitHelp(),
		Args:              noArgs,
		RunE:              func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		SilenceErrors:     true,
		SilenceUsage:      true,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: false},
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return usageError(cmd, err.Error()) })
	f := root.PersistentFlags()
	f.StringVar(&e.host, "host", "", "the host's API, unix:/path or host:port (env SCSTORE_API)")
	f.BoolVar(&e.json, "json", false, "print results and errors as JSON")
	f.BoolVarP(&e.quiet, "quiet", "q", false, "no talk on standard error but errors")
	root.AddCommand(
		newServe(e), newStatus(e), newDoctor(e),
		newImage(e), newVolume(e), newNBD(e), newSite(e), newHost(e), newPlacement(e),
		newBench(e), newBareLoop(), newVersion(e),
	)
	return root
}

// group returns a command that only holds others.
func group(use, short string, children ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{
		Use: use, Short: short,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError(cmd, fmt.Sprintf("unknown command %q for %q", args[0], cmd.CommandPath()))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(children...)
	return cmd
}

// usageError is a mistake in the command line.
func usageError(cmd *cobra.Command, message string) error {
	message, _, _ = strings.Cut(message, "\n")
	return scstore.Hint(fmt.Errorf("%s: %w", message, errUsage), "see %s --help", cmd.CommandPath())
}

// noArgs refuses arguments.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError(cmd, fmt.Sprintf("unknown command or argument %q", args[0]))
	}
	return nil
}

// exactArgs asks for arguments, by name.
func exactArgs(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != len(names) {
			return usageError(cmd, fmt.Sprintf("%s wants %s: got %d arguments", cmd.CommandPath(), strings.Join(names, " "), len(args)))
		}
		return nil
	}
}

// client returns a client of the host that the user means.
func (e *environ) client() (*api.Client, error) {
	text := e.host
	if text == "" {
		text = e.getenv("SCSTORE_API")
	}
	if text == "" {
		text = "unix:" + filepath.Join(defaultDir, apiSocket)
	}
	addr, err := api.ParseAddr(text)
	if err != nil {
		return nil, err
	}
	return api.NewClient(addr), nil
}

// withClient runs f with a client.
func (e *environ) withClient(f func(c *api.Client) error) error {
	c, err := e.client()
	if err != nil {
		return err
	}
	defer c.Close()
	return f(c)
}

// talk says something to the person.
func (e *environ) talk(format string, args ...any) {
	if !e.quiet && !e.json {
		fmt.Fprintf(e.stderr, "scstore: "+format+"\n", args...)
	}
}

// printError says why the command failed.
func (e *environ) printError(err error) {
	wire, _ := api.NewError(err)
	wire.Message = oneLine(wire.Message)
	if e.json {
		out := struct {
			Error    api.Error `json:"error"`
			ExitCode int       `json:"exit_code"`
		}{wire, exitCode(err)}
		_ = json.NewEncoder(e.stderr).Encode(out) // there is nowhere left to say so
		return
	}
	fmt.Fprintf(e.stderr, "scstore: %s\n", wire.Message)
	if wire.Hint != "" {
		fmt.Fprintf(e.stderr, "hint: %s\n", oneLine(wire.Hint))
	}
}

// oneLine makes text fit a line.
func oneLine(text string) string { return strings.Join(strings.Fields(text), " ") }

// print writes the result: v as JSON, or what table writes.
func (e *environ) print(v any, table func(w io.Writer)) error {
	if e.json {
		out := json.NewEncoder(e.stdout)
		out.SetIndent("", "  ")
		if err := out.Encode(v); err != nil {
			return fmt.Errorf("print the result: %w", err)
		}
		return nil
	}
	if table == nil {
		return nil
	}
	w := tabwriter.NewWriter(e.stdout, 0, 0, 2, ' ', 0)
	table(w)
	if err := w.Flush(); err != nil {
		return fmt.Errorf("print the result: %w", err)
	}
	return nil
}
