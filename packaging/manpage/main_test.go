package main

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"slices"
	"strconv"
	"strings"
	"testing"

	"ucloud-im/internal/clitree"
)

func TestPage(t *testing.T) {
	t.Parallel()
	root, err := clitree.Load(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var page bytes.Buffer
	if err := write(&page, root); err != nil {
		t.Fatal(err)
	}
	root.Walk(func(c *clitree.Command) {
		name := `.SS "` + escape("ucloud "+strings.Join(c.Path, " "))
		if len(c.Path) > 0 && c.Runs() && !strings.Contains(page.String(), name) {
			t.Errorf("the page lacks ucloud %s", strings.Join(c.Path, " "))
		}
	})
	for line := range strings.Lines(page.String()) {
		// Anything that begins with a dot or a quote and is no request would vanish when the page is shown.
		request, _, _ := strings.Cut(strings.TrimRight(line, "\n"), " ")
		if strings.HasPrefix(line, "'") || strings.HasPrefix(line, ".") &&
			!slices.Contains([]string{`.\"`, ".TH", ".SH", ".SS", ".TP", ".PP", ".B", ".BR", ".I", ".RI", ".br"}, request) {
			t.Errorf("not a request: %q", line)
		}
	}
}

// TestExitCodes: the page lists the codes that package cli has.
func TestExitCodes(t *testing.T) {
	t.Parallel()
	file, err := parser.ParseFile(token.NewFileSet(), "../../internal/cli/exit.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var want, got []int
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if ok && len(spec.Values) == 1 && strings.HasPrefix(spec.Names[0].Name, "Exit") {
			if lit, ok := spec.Values[0].(*ast.BasicLit); ok {
				code, err := strconv.Atoi(lit.Value)
				if err != nil {
					t.Error(err)
				}
				want = append(want, code)
			}
		}
		return true
	})
	for _, e := range exitCodes {
		got = append(got, e.code)
	}
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("the page has the exit codes %v, package cli has %v", got, want)
	}
}
