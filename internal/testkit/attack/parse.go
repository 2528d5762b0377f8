package attack

import (
	"errors"
	"fmt"
	"go/ast"
	"go/build/constraint"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

const prefix = "//attack:"

// Load reads the attacks of all tests below root, whatever their build tags, in the order of the table. The error names
// everything that is wrong with them.
func Load(root string) ([]Attack, error) {
	var out []Attack
	var wrong []error
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := d.Name()
		if d.IsDir() {
			if path != root && (strings.HasPrefix(name, ".") || name == "testdata" || name == "node_modules") {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(name, "_test.go") {
			return nil
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		attacks, bad := parseFile(root, rel)
		out = append(out, attacks...)
		wrong = append(wrong, bad...)
		return nil
	})
	if err != nil {
		return nil, err
	}
	sortForPeople(out)
	return out, errors.Join(wrong...)
}

// parseFile reads one file with tests.
func parseFile(root, name string) (attacks []Attack, wrong []error) {
	src, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		return nil, []error{err}
	}
	if !strings.Contains(string(src), prefix) {
		return nil, nil
	}
	files := token.NewFileSet()
	file, err := parser.ParseFile(files, name, src, parser.ParseComments)
	if err != nil {
		return nil, []error{err}
	}
	owners := map[*ast.CommentGroup]string{} // the tests' doc comments
	for _, decl := range file.Decls {
		f, ok := decl.(*ast.FuncDecl)
		if ok && f.Doc != nil && f.Recv == nil && (strings.HasPrefix(f.Name.Name, "Test") || strings.HasPrefix(f.Name.Name, "Fuzz")) {
			owners[f.Doc] = f.Name.Name
		}
	}
	tags := tagsOf(file)
	for _, group := range file.Comments {
		number := 0
		var open *Attack
		finish := func() {
			if open == nil {
				return
			}
			for _, err := range open.problems(root) {
				wrong = append(wrong, fmt.Errorf("%s:%d: %w", name, open.Line, err))
			}
			attacks = append(attacks, *open)
		}
		for _, c := range group.List {
			rest, ours := strings.CutPrefix(c.Text, prefix)
			if !ours {
				continue
			}
			line := files.Position(c.Pos()).Line
			fail := func(err error) { wrong = append(wrong, fmt.Errorf("%s:%d: %w", name, line, err)) }
			test, known := owners[group]
			if !known {
				fail(errors.New("a directive stands right above a test and nowhere else"))
				continue
			}
			key, value, _ := strings.Cut(rest, " ")
			if key == "actor" {
				finish()
				number++
				open = &Attack{
					Actor: value, Test: test, Package: filepath.Dir(name), File: name, Line: line, Tags: tags, Number: number,
				}
				continue
			}
			if open == nil {
				fail(errors.New("an attack begins with //attack:actor"))
				continue
			}
			if err := open.set(key, value); err != nil {
				fail(fmt.Errorf("%s%s: %w", prefix, key, err))
			}
		}
		finish()
	}
	return attacks, wrong
}

// set takes one directive.
func (a *Attack) set(key, value string) error {
	field := map[string]*string{"does": &a.Does, "control": &a.Control, "run": &a.Run}[key]
	switch {
	case key == "remove":
		r, err := parseRemoval(value)
		a.Removes = append(a.Removes, r)
		return err
	case field == nil:
		return errors.New("there is no such directive")
	case *field != "":
		return errors.New("stands twice in one attack")
	}
	*field = value
	return nil
}

// problems checks a whole attack.
func (a *Attack) problems(root string) (wrong []error) {
	add := func(format string, args ...any) { wrong = append(wrong, fmt.Errorf(format, args...)) }
	if !slices.Contains(actors, a.Actor) {
		add("actor %q is none of: %s", a.Actor, strings.Join(actors, ", "))
	}
	if err := sentence(a.Does); err != nil {
		add("//attack:does %w", err)
	}
	if err := sentence(a.Control); err != nil {
		add("//attack:control %w", err)
	}
	if len(a.Removes) == 0 {
		add("nothing says how to remove the control")
	}
	if _, err := a.Apply(root); err != nil {
		wrong = append(wrong, err)
	}
	return wrong
}

// Apply gives the files without the control, by their names.
func (a *Attack) Apply(root string) (map[string]string, error) {
	out := map[string]string{}
	for _, r := range a.Removes {
		if r.File == "" {
			continue // was reported when it was read
		}
		if strings.HasSuffix(r.File, "_test.go") || !filepath.IsLocal(r.File) {
			return nil, fmt.Errorf("%s holds no control of the programs", r.File)
		}
		text, seen := out[r.File]
		if !seen {
			data, err := os.ReadFile(filepath.Join(root, r.File))
			if err != nil {
				return nil, err
			}
			text = string(data)
		}
		if n := strings.Count(text, r.Old); n != 1 {
			return nil, fmt.Errorf("%s has %d times, not once: %s", r.File, n, r.Old)
		}
		out[r.File] = strings.Replace(text, r.Old, r.New, 1)
	}
	return out, nil
}

// tagsOf gives the build tags that a file asks for.
func tagsOf(file *ast.File) []string {
	var out []string
	for _, group := range file.Comments {
		if group.Pos() > file.Package {
			break
		}
		for _, c := range group.List {
			expr, err := constraint.Parse(c.Text)
			if err != nil {
				continue
			}
			expr.Eval(func(tag string) bool {
				if tag != "linux" && !slices.Contains(out, tag) {
					out = append(out, tag)
				}
				return true
			})
		}
	}
	return out
}
