package scstore_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
)

const module = "scstore"

// layers is the dependency table of ARCHITECTURE.md: each package and the packages
// of this module that it may import outside of tests; "*" means all. A package
// that is missing here fails the test, so that a new one is placed on purpose.
var layers = map[string][]string{
	".":                           {},
	"internal/invariant":          {},
	"internal/failpoint":          {},
	"fs/block/disk":               {".", "internal/invariant"},
	"fs/block/disk/crashdisk":     {".", "fs/block/disk"},
	"fs/block/disk/disktest":      {".", "fs/block/disk"},
	"fs/block":                    {".", "fs/block/disk", "internal/invariant"},
	"fs/volume":                   {".", "internal/invariant"},
	"consensus/meta":              {".", "internal/invariant"},
	"consensus/handoff":           {"."},
	"consensus":                   {".", "consensus/meta", "fs/block/disk", "internal/invariant"},
	"nbd":                         {".", "internal/invariant"},
	"propagate":                   {".", "propagate/codec", "propagate/wire"},
	"propagate/codec":             {"."},
	"propagate/wire":              {".", "propagate/codec"},
	"nbd/nbdtest":                 {".", "nbd"},
	"internal/api":                {".", "internal/invariant"},
	"internal/bench":              {".", "nbd"},
	"internal/cluster":            {".", "consensus", "consensus/meta", "propagate/quicnet", "propagate/quicnet/authority", "propagate/quicnet/raftnet"},
	"internal/host":               {"*"},
	"e2e":                         {"*"},
	"e2e/demo":                    {"e2e"},
	"sim/wan":                     {"."},
	"cmd/scstore":                 {".", "internal/api", "internal/bench", "internal/host", "nbd"},
	"propagate/quicnet/authority": {"."},
	"propagate/quicnet":           {".", "internal/invariant", "propagate/quicnet/authority"},
	"propagate/quicnet/raftnet":   {".", "propagate/quicnet", "propagate/quicnet/authority"},
	"consensus/consensustest":     {".", "consensus"},
	"internal/replica":            {".", "consensus", "consensus/handoff", "consensus/meta", "fs/block", "fs/volume", "internal/failpoint", "internal/invariant", "nbd", "propagate", "propagate/codec", "propagate/quicnet", "propagate/wire"},
	"sim":                         {".", "consensus/handoff", "consensus/meta", "fs/volume", "propagate", "propagate/codec", "propagate/wire"},
}

// libraries names the packages that may import each library outside of tests; "*"
// means all of them. A library has one owner unless it is plumbing.
var libraries = map[string][]string{
	"github.com/HdrHistogram/hdrhistogram-go": {"internal/bench"},
	"github.com/coreos/go-systemd":            {"internal/host"},
	"github.com/dgraph-io/badger":             {"fs/block"},
	"github.com/docker/go-units":              {"cmd/scstore"},
	"github.com/gofrs/flock":                  {"internal/host"},
	"github.com/pierrec/lz4":                  {"propagate/codec"},
	"github.com/hashicorp/golang-lru":         {"fs/volume"},
	"github.com/klauspost/compress":           {"propagate/codec"},
	"github.com/lni/dragonboat":               {"consensus", "consensus/consensustest", "propagate/quicnet/raftnet"},
	"github.com/prometheus/client_golang":     {"consensus", "fs/block", "fs/volume", "internal/api", "internal/cluster", "internal/host", "internal/replica", "nbd", "propagate/quicnet", "propagate/quicnet/raftnet"},
	"github.com/quic-go/quic-go":              {"propagate/quicnet"},
	"google.golang.org/protobuf":              {"propagate/quicnet/raftnet"},
	"github.com/lni/vfs":                      {"consensus"},
	"github.com/schollz/progressbar":          {"cmd/scstore"},
	"github.com/spf13/cobra":                  {"cmd/scstore"},
	"github.com/tidwall/btree":                {"fs/block", "fs/volume"},
	"github.com/vishvananda/netlink":          {"sim/wan"},
	"golang.org/x/sync":                       {"*"},
	"golang.org/x/sys":                        {"*"}, // files named *_linux.go only
	"golang.org/x/term":                       {"cmd/scstore"},
	"golang.org/x/time":                       {"fs/block", "nbd", "propagate/quicnet", "propagate/quicnet/raftnet"},
}

func TestLayers_ImportsPointInward(t *testing.T) {
	for _, f := range goFiles(t) {
		allowed, placed := layers[f.pkg]
		if !placed {
			t.Errorf("%s: package %s is not in the layer table; place it there and in ARCHITECTURE.md", f.path, f.pkg)
			continue
		}
		if f.test {
			continue
		}
		for _, imported := range f.imports {
			if pkg, inside := ours(imported); inside {
				if !slices.Contains(allowed, pkg) && !slices.Contains(allowed, "*") {
					t.Errorf("%s imports %s, which its layer does not allow", f.path, pkg)
				}
			} else if owners, listed := owners(imported); !listed {
				t.Errorf("%s imports %s, which is not in the table of libraries", f.path, imported)
			} else if !slices.Contains(owners, f.pkg) && !slices.Contains(owners, "*") {
				t.Errorf("%s imports %s; only %v may", f.path, imported, owners)
			}
		}
	}
}

func TestLayers_EveryPackageOfTheTableExists(t *testing.T) {
	found := map[string]bool{}
	for _, f := range goFiles(t) {
		found[f.pkg] = true
	}
	for pkg, allowed := range layers {
		if !found[pkg] {
			t.Errorf("%s: in the layer table, but there is no such package", pkg)
		}
		for _, a := range allowed {
			if _, placed := layers[a]; a != "*" && !placed {
				t.Errorf("%s may import %s, which is not in the table", pkg, a)
			}
		}
	}
}

// TestLayers_ArchitecturePrintsTheSameTables compares the rows of the section
// Layers of ARCHITECTURE.md with the tables above.
func TestLayers_ArchitecturePrintsTheSameTables(t *testing.T) {
	var want []string
	for _, table := range []map[string][]string{layers, libraries} {
		for _, name := range slices.Sorted(maps.Keys(table)) {
			want = append(want, fmt.Sprintf("| `%s` | %s |", name, cell(table[name])))
		}
	}
	got := slices.DeleteFunc(strings.Split(section(t, "ARCHITECTURE.md", "Layers"), "\n"), func(line string) bool {
		return !strings.HasPrefix(line, "| `")
	})
	if !slices.Equal(got, want) {
		t.Errorf("ARCHITECTURE.md, Layers: the rows must be\n%s", strings.Join(want, "\n"))
	}
}

func cell(names []string) string {
	switch {
	case len(names) == 0:
		return "nothing"
	case slices.Equal(names, []string{"*"}):
		return "all"
	}
	return "`" + strings.Join(names, "`, `") + "`"
}

// ours returns the package's folder if the import path is of this module.
func ours(path string) (pkg string, inside bool) {
	if path == module {
		return ".", true
	}
	return strings.CutPrefix(path, module+"/")
}

// owners returns who may import the path, for the standard library all.
func owners(path string) (list []string, listed bool) {
	if first, _, _ := strings.Cut(path, "/"); !strings.Contains(first, ".") {
		return []string{"*"}, true
	}
	for library, list := range libraries {
		if path == library || strings.HasPrefix(path, library+"/") {
			return list, true
		}
	}
	return nil, false
}
