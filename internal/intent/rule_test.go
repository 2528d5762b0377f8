package intent

import (
	"go/ast"
	"go/parser"
	gotoken "go/token"
	"slices"
	"strconv"
	"testing"
)

func TestRuleMustSaySomething(t *testing.T) {
	for _, tc := range []struct {
		rule Rule
		ok   bool
	}{
		{Rule{}, false},
		{Rule{Calls: []string{"files.browse"}}, true},
		{Rule{Exempt: "has a token of its own"}, true},
		{Rule{Calls: []string{"files.browse"}, Exempt: "why"}, false},
		{Rule{Calls: []string{""}}, false},
	} {
		if err := tc.rule.Check(); (err == nil) != tc.ok {
			t.Errorf("%+v: %v", tc.rule, err)
		}
	}
}

// TestReasonsAreComplete: a reason that is missing there would be reported as "other".
func TestReasonsAreComplete(t *testing.T) {
	file, err := parser.ParseFile(gotoken.NewFileSet(), "intent.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, decl := range file.Decls {
		group, ok := decl.(*ast.GenDecl)
		if !ok || group.Tok != gotoken.CONST {
			continue
		}
		for _, spec := range group.Specs {
			v := spec.(*ast.ValueSpec)
			if typ, ok := v.Type.(*ast.Ident); !ok || typ.Name != "Reason" {
				continue
			}
			word, err := strconv.Unquote(v.Values[0].(*ast.BasicLit).Value)
			if err != nil {
				t.Fatal(err)
			}
			if n++; !slices.Contains(Reasons(), Reason(word)) {
				t.Errorf("Reasons lacks %s, %q", v.Names[0].Name, word)
			}
		}
	}
	if n == 0 || n != len(Reasons()) {
		t.Errorf("%d constants, %d reasons", n, len(Reasons()))
	}
}
