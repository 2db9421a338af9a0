package main

import (
	"fmt"
	"io"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// commit is the revision, set by the linker (Makefile).
var commit string

// buildInfo says what this binary is.
type buildInfo struct {
	Version  string `json:"version"` // of the module, or (devel)
	Revision string `json:"revision,omitempty"`
	Modified bool   `json:"modified,omitempty"` // the work tree was not clean
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

// build reads what the linker left.
func build() buildInfo {
	b := buildInfo{Version: "(devel)", Revision: commit, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return b
	}
	if info.Main.Version != "" {
		b.Version = info.Main.Version
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			b.Revision = s.Value
		case "vcs.modified":
			b.Modified = s.Value == "true"
		}
	}
	return b
}

// version is the version for people and for comparing: that of the module, else the
// revision.
func (b buildInfo) version() string {
	if b.Version == "(devel)" && b.Revision != "" {
		return b.Version + "-" + b.Revision[:min(len(b.Revision), 12)]
	}
	return b.Version
}

func newVersion(e *environ) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "print the version of this program",
		Args:  noArgs,
		RunE: func(*cobra.Command, []string) error {
			b := build()
			return e.print(b, func(w io.Writer) {
				fmt.Fprintf(w, "scstore %s %s %s\n", b.version(), b.Go, b.Platform)
			})
		},
	}
}
