package scstore_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// Limits of the source, tests excepted.
const (
	maxFileLines     = 600
	maxFunctionLines = 70
)

// goFile is a source file of the module, whatever its build tags say.
type goFile struct {
	path    string // from the root, with slashes
	pkg     string // its folder, "." for the root
	test    bool
	imports []string
	text    string
	lines   func(token.Pos) int
	syntax  *ast.File
}

// goFiles parses the module's source. The tools' module is not part of it.
func goFiles(t *testing.T) []goFile {
	t.Helper()
	var files []goFile
	set := token.NewFileSet()
	err := filepath.WalkDir(".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name = filepath.ToSlash(name)
		if entry.IsDir() {
			base := entry.Name()
			if name != "." && strings.HasPrefix(base, ".") || base == "testdata" || name == "internal/tools" || name == "bin" || name == "build" {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(name, ".go") {
			return nil
		}
		text, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		syntax, err := parser.ParseFile(set, name, text, parser.ParseComments)
		if err != nil {
			return err
		}
		f := goFile{
			path: name, pkg: path.Dir(name), test: strings.HasSuffix(name, "_test.go"), text: string(text), syntax: syntax,
			lines: func(p token.Pos) int { return set.Position(p).Line },
		}
		for _, spec := range syntax.Imports {
			imported, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			f.imports = append(f.imports, imported)
		}
		files = append(files, f)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 10 {
		t.Fatalf("only %d Go files found", len(files))
	}
	return files
}

// section returns the part of a document below the heading "## ... title".
func section(t *testing.T, file, title string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for part := range strings.SplitSeq("\n"+string(b), "\n## ") {
		heading, body, _ := strings.Cut(part, "\n")
		if strings.TrimLeft(heading, "0123456789. ") == title {
			return body
		}
	}
	t.Fatalf("%s has no section %q", file, title)
	return ""
}

func TestHouse_EveryPackageHasExactlyOneComment(t *testing.T) {
	where := map[string][]string{}
	for _, f := range goFiles(t) {
		if f.test {
			continue
		}
		where[f.pkg] = append(where[f.pkg], []string{}...)
		if f.syntax.Doc != nil {
			where[f.pkg] = append(where[f.pkg], f.path)
			want := "Package " + f.syntax.Name.Name + " "
			if f.syntax.Name.Name == "main" {
				want = "Command "
			}
			if first := f.syntax.Doc.Text(); !strings.HasPrefix(first, want) {
				t.Errorf("%s: the package comment begins %.40q, want %q", f.path, first, want)
			}
		}
	}
	for pkg, files := range where {
		if len(files) != 1 {
			t.Errorf("package %s has %d package comments: %v", pkg, len(files), files)
		}
	}
}

func TestHouse_FilesAndFunctionsAreShort(t *testing.T) {
	for _, f := range goFiles(t) {
		if f.test {
			continue
		}
		if n := strings.Count(f.text, "\n"); n > maxFileLines {
			t.Errorf("%s has %d lines, more than %d: two subjects in one room?", f.path, n, maxFileLines)
		}
		for _, decl := range f.syntax.Decls {
			if fn, ok := decl.(*ast.FuncDecl); ok {
				if n := f.lines(fn.End()) - f.lines(fn.Pos()) + 1; n > maxFunctionLines {
					t.Errorf("%s: %s has %d lines, more than %d", f.path, fn.Name.Name, n, maxFunctionLines)
				}
			}
		}
	}
}

func TestHouse_SystemCallsAndUnsafeStayInTheirFiles(t *testing.T) {
	for _, f := range goFiles(t) {
		stem := strings.TrimSuffix(strings.TrimSuffix(f.path, ".go"), "_test")
		for _, imported := range f.imports {
			switch {
			case imported == "unsafe" && !strings.HasSuffix(stem, "_unsafe"):
				t.Errorf("%s imports unsafe; only files named *_unsafe.go may", f.path)
			case imported == "C":
				t.Errorf("%s uses cgo", f.path)
			case imported == "golang.org/x/sys/unix" && !strings.HasSuffix(stem, "_linux") && !strings.HasSuffix(stem, "_unsafe"):
				t.Errorf("%s imports %s; only files named *_linux.go may", f.path, imported)
			}
		}
	}
}

func TestHouse_NoTestIsSkipped(t *testing.T) {
	for _, f := range goFiles(t) {
		ast.Inspect(f.syntax, func(n ast.Node) bool {
			if sel, ok := n.(*ast.SelectorExpr); ok && f.test && slices.Contains([]string{"Skip", "Skipf", "SkipNow"}, sel.Sel.Name) {
				t.Errorf("%s:%d skips a test; a missing tool fails it by name", f.path, f.lines(n.Pos()))
			}
			return true
		})
	}
}

var folderCell = regexp.MustCompile("(?m)^\\| `([^`]+)` \\|")

func TestHouse_CodeMapNamesEveryPackageAndExistingFoldersOnly(t *testing.T) {
	named := map[string]bool{}
	for _, m := range folderCell.FindAllStringSubmatch(section(t, "ARCHITECTURE.md", "Code map"), -1) {
		folder := strings.TrimSuffix(m[1], "/")
		named[folder] = true
		if _, err := os.Stat(folder); err != nil {
			t.Errorf("the code map names %s: %v", folder, err)
		}
	}
	for _, f := range goFiles(t) {
		if !named[f.pkg] {
			t.Errorf("the code map does not name %s", f.pkg)
			named[f.pkg] = true
		}
	}
	for pkg := range layers {
		if !named[pkg] {
			t.Errorf("the code map does not name %s", pkg)
		}
	}
}

var (
	stepRow  = regexp.MustCompile(`(?m)^\| ([WR][0-9]) \|.*\| (here|later) \|$`)
	stepWord = regexp.MustCompile(`\bsteps?\b`)
	stepMark = regexp.MustCompile(`\b[WR][1-9]\b`)
)

// TestHouse_StepsAreTheSameInCodeAndArchitecture: the steps of the write and the
// read path that ARCHITECTURE.md says are here are those that comments with the
// word "step" name.
func TestHouse_StepsAreTheSameInCodeAndArchitecture(t *testing.T) {
	here, all := map[string]bool{}, map[string]bool{}
	for _, m := range stepRow.FindAllStringSubmatch(section(t, "ARCHITECTURE.md", "One write, one read"), -1) {
		all[m[1]] = true
		if m[2] == "here" {
			here[m[1]] = true
		}
	}
	for step := range strings.FieldsSeq("W1 W2 W3 W4 W5 W6 W7 W8 W9 R1 R2 R3 R4 R5 R6") {
		if !all[step] {
			t.Errorf("ARCHITECTURE.md has no row for step %s", step)
		}
		delete(all, step)
	}
	for step := range all {
		t.Errorf("ARCHITECTURE.md has a row for an unknown step %s", step)
	}
	code := map[string]bool{}
	for _, f := range goFiles(t) {
		if f.test {
			continue
		}
		for _, group := range f.syntax.Comments {
			if !stepWord.MatchString(group.Text()) {
				continue
			}
			for _, mark := range stepMark.FindAllString(group.Text(), -1) {
				code[mark] = true
				if !here[mark] {
					t.Errorf("%s names step %s, which ARCHITECTURE.md does not say is here", f.path, mark)
				}
			}
		}
	}
	if got, want := slices.Sorted(maps.Keys(code)), slices.Sorted(maps.Keys(here)); !slices.Equal(got, want) {
		t.Errorf("steps named in code: %v, said to be here by ARCHITECTURE.md: %v", got, want)
	}
}

// TestHouse_FailPointsAreForcedByTestsAndNotShipped: the build tag is known to one
// package, the program is built without it, and each point is met by a test of real
// processes.
func TestHouse_FailPointsAreForcedByTestsAndNotShipped(t *testing.T) {
	makefile, err := os.ReadFile("Makefile")
	if err != nil {
		t.Fatal(err)
	}
	build := regexp.MustCompile(`(?m)^build:.*\n((?:\t.*\n)+)`).FindStringSubmatch(string(makefile))
	if build == nil || strings.Contains(build[1], "-tags") {
		t.Errorf("make build does not build the program, or with tags: %q", build)
	}
	var tests strings.Builder
	points := map[string]string{}
	for _, f := range goFiles(t) {
		if f.pkg == "e2e" && f.test {
			tests.WriteString(f.text)
		}
		if f.pkg != "internal/failpoint" && regexp.MustCompile(`(?m)^//go:build .*\bfailpoints\b`).MatchString(f.text) {
			t.Errorf("%s depends on the build tag of the fail points", f.path)
		}
		for _, m := range regexp.MustCompile(`failpoint\.Hit\(("[^"]+")\)`).FindAllStringSubmatch(f.text, -1) {
			if !f.test {
				points[m[1]] = f.path
			}
		}
	}
	if len(points) == 0 {
		t.Error("there is no fail point")
	}
	for point, file := range points {
		if !strings.Contains(tests.String(), point) {
			t.Errorf("%s has the fail point %s, which no test of e2e forces", file, point)
		}
		if !strings.Contains(section(t, "ARCHITECTURE.md", "Testing strategy"), strings.Trim(point, `"`)) {
			t.Errorf("ARCHITECTURE.md does not say where the fail point %s is", point)
		}
	}
}

func TestHouse_CommandsOfTheReadmeAreMakeTargets(t *testing.T) {
	makefile, err := os.ReadFile("Makefile")
	if err != nil {
		t.Fatal(err)
	}
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, target := range []string{"demo", "test"} {
		if !strings.Contains(string(readme), "make "+target) {
			t.Errorf("README.md does not say \"make %s\"", target)
		}
	}
	for _, doc := range []string{"README.md", "CONTRIBUTING.md", "ARCHITECTURE.md", "docs/operations.md", "docs/sites.md"} {
		b, err := os.ReadFile(doc)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile("(?m)(?:`|^ +|^\\$ )make ([a-z0-9-]+)").FindAllStringSubmatch(string(b), -1) {
			if !regexp.MustCompile(`(?m)^` + m[1] + `:`).Match(makefile) {
				t.Errorf("%s says \"make %s\", which is no target", doc, m[1])
			}
		}
	}
}
