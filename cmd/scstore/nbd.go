package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"scstore"
	"scstore/internal/api"
)

// reconnectDelay is for how long, in seconds, qemu holds the guest's requests
// while the host is away, before it fails them.
const reconnectDelay = 300

func newNBD(e *environ) *cobra.Command {
	return group("nbd", "the block device door", newNBDList(e), newNBDURL(e))
}

func newNBDList(e *environ) *cobra.Command {
	return &cobra.Command{
		Use:   "ls",
		Short: "list what is served over NBD",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return e.withClient(func(c *api.Client) error {
				n, err := c.NBD(cmd.Context())
				if err != nil {
					return err
				}
				return e.print(n, func(w io.Writer) {
					fmt.Fprintln(w, "NAME\tSIZE\tACCESS\tCONNECTIONS\tURL")
					for _, x := range n.Exports {
						fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\n", x.Name, humanSize(x.SizeBytes), access(x), x.Connections, x.URL)
					}
				})
			})
		},
	}
}

func access(x api.NBDExport) string {
	if x.ReadOnly {
		return "read"
	}
	return "read, write"
}

func newNBDURL(e *environ) *cobra.Command {
	qemu := false
	cmd := &cobra.Command{
		Use:   "url NAME",
		Short: "print the NBD URL of a volume or an image",
		Long: `Print the NBD URL of a volume or an image, for qemu-img, nbdcopy, nbdinfo,
fio and others. With --qemu, print the options that attach it to a VM:

  qemu-system-x86_64 ... $(scstore nbd url NAME --qemu)`,
		Args: exactArgs("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return e.withClient(func(c *api.Client) error {
				n, err := c.NBD(cmd.Context())
				if err != nil {
					return err
				}
				for _, x := range n.Exports {
					if x.Name == args[0] {
						return e.printURL(n, x, qemu)
					}
				}
				return scstore.Hint(fmt.Errorf("export %q: %w", args[0], scstore.ErrNotFound), "list the names with scstore nbd ls")
			})
		},
	}
	cmd.Flags().BoolVar(&qemu, "qemu", false, "print the -blockdev and -device options of qemu instead")
	return cmd
}

func (e *environ) printURL(n api.NBD, x api.NBDExport, qemu bool) error {
	if !qemu {
		return e.print(x, func(w io.Writer) { fmt.Fprintln(w, x.URL) })
	}
	options, err := qemuOptions(n.Address, x)
	if err != nil {
		return err
	}
	return e.print(struct {
		Options []string `json:"options"`
	}{options}, func(w io.Writer) { fmt.Fprintln(w, strings.Join(quoteAll(options), " ")) })
}

// qemuOptions returns the arguments that attach an export to a VM of qemu.
func qemuOptions(address string, x api.NBDExport) ([]string, error) {
	addr, err := api.ParseAddr(address)
	if err != nil {
		return nil, err
	}
	server := "server.type=unix,server.path=" + qemuEscape(addr.Address)
	if addr.Network == "tcp" {
		i := strings.LastIndexByte(addr.Address, ':')
		host := strings.Trim(addr.Address[:i], "[]")
		server = "server.type=inet,server.host=" + qemuEscape(host) + ",server.port=" + addr.Address[i+1:]
	}
	node := nodeName(x.Name)
	blockdev := fmt.Sprintf("driver=nbd,node-name=%s,%s,export=%s,reconnect-delay=%d,discard=unmap",
		node, server, qemuEscape(x.Name), reconnectDelay)
	if x.ReadOnly {
		blockdev += ",read-only=on"
	}
	return []string{"-blockdev", blockdev, "-device", "virtio-blk-pci,drive=" + node}, nil
}

// maxNodeName is the longest name that qemu takes for a node of its block layer.
const maxNodeName = 31

// nodeName makes a name of letters, digits and dashes, the part at the end being
// what tells disks apart.
func nodeName(name string) string {
	clean := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' {
			return r
		}
		return '-'
	}, name)
	return "scs-" + clean[max(0, len(clean)-(maxNodeName-4)):]
}

// qemuEscape doubles commas, which end a value in qemu's options.
func qemuEscape(s string) string { return strings.ReplaceAll(s, ",", ",,") }

// quoteAll quotes what a shell would take apart.
func quoteAll(args []string) []string {
	out := make([]string, len(args))
	for i, a := range args {
		out[i] = a
		if strings.Trim(a, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_=,./:") != "" {
			out[i] = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
		}
	}
	return out
}
