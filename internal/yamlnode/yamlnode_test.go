package yamlnode

import (
	"strings"
	"testing"

	"ucloud-im/internal/failure"
)

func TestParse(t *testing.T) {
	t.Parallel()
	root, err := Parse([]byte("a: 1\nb: |\n  x\n  y\nc: [p, \"q\", 2.5, true]\nd:\n  e: ~\n"), 10)
	if err != nil {
		t.Fatal(err)
	}
	o := root.Object()
	if o.Int("a", 0, 0, 5) != 1 || o.Text("b") != "x\ny\n" || strings.Join(o.Texts("c"), " ") != "p q 2.5 true" || o.Text("missing") != "" {
		t.Errorf("got %+v", root)
	}
	o.Object("d", func(o *Object) {
		if o.Text("e") != "" || o.Line() != 16 {
			t.Errorf("line %d", o.Line())
		}
	})
	if err := o.Err(); err != nil {
		t.Error(err)
	}
	if root, err := Parse([]byte("# only a comment\n"), 1); root != nil || err != nil {
		t.Errorf("got %v, %v", root, err)
	}
}

func TestRefused(t *testing.T) {
	t.Parallel()
	for text, why := range map[string]string{
		"a: &x 1\nb: *x":                "anchors",
		"a: !!str 1":                    "anchors",
		"a: 1\na: 2":                    "Line 2: the key \"a\" is given twice",
		"a: [":                          "not valid YAML",
		"a: " + strings.Repeat("[", 99): "levels of nesting",
		"a\x00b":                        "UTF-8",
		"\xff":                          "UTF-8",
		"a: 1\n---\nb: 2":               "second document",
		strings.Repeat("x", MaxBytes+1): "longer than",
		"- " + strings.Repeat("1,", 9):  "",
	} {
		_, err := Parse([]byte(text), 1)
		if why != "" && (!failure.Is(err, failure.Invalid) || !strings.Contains(failure.Why(err), why)) {
			t.Errorf("%.30q: got %v", text, err)
		}
	}
	root, err := Parse([]byte("a: x\nb: [1]\nc: {}\nunknown: 1\n"), 1)
	if err != nil {
		t.Fatal(err)
	}
	for want, f := range map[string]func(*Object){
		"Line 1: a must be true or false":          func(o *Object) { o.Bool("a", false) },
		"Line 1: a must be a number between":       func(o *Object) { o.Int("a", 0, 0, 1) },
		"Line 2: b must be text":                   func(o *Object) { o.Text("b") },
		"Line 3: c must be a list":                 func(o *Object) { o.Texts("c") },
		"Line 1: a map is expected":                func(o *Object) { o.Object("a", func(*Object) {}) },
		"Line 1: z is missing":                     func(o *Object) { o.Required("z") },
		"Line 4: the key \"unknown\" is not known": func(o *Object) { o.Text("a"); o.Child("b"); o.Child("c") },
	} {
		o := root.Object()
		f(o)
		if err := o.Err(); !strings.HasPrefix(failure.Why(err), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}

func TestSplit(t *testing.T) {
	t.Parallel()
	documents, lines := Split([]byte("a: 1\n---\nb: 2\n--- \nc: |\n  ---x\n"))
	if len(documents) != 3 || string(documents[1]) != "b: 2\n" || lines[1] != 3 || lines[2] != 5 || string(documents[2]) != "c: |\n  ---x\n" {
		t.Errorf("got %q %v", documents, lines)
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"a: 1", "a:\n- b\n- {c: [d]}\n", "? x\n: y", "<<: *a", "a: |\n  b", "a: >-\n b", "&a b", "- - - a", "a: 'b", "\t", "%YAML 1.2\n---\na: 1", "{a: {b: {c: 1}}}"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		root, err := Parse(data, 1)
		if err != nil && !failure.Is(err, failure.Invalid) {
			t.Error(err)
		}
		if root != nil {
			o := root.Object()
			for _, k := range o.Keys() {
				o.JSON(k)
			}
			_ = o.Err()
		}
	})
}
