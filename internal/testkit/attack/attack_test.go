package attack

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write the table of docs/security.md")

const root = "../../.."

// TestDirectives: what the tests of the repository say about attacks can be followed, and the table is what they say.
func TestDirectives(t *testing.T) {
	t.Parallel()
	attacks, err := Load(root)
	if err != nil {
		t.Fatal(err)
	}
	if len(attacks) == 0 {
		t.Fatal("no attack found")
	}
	have, want, err := refresh(root, attacks)
	if err != nil {
		t.Fatal(err)
	}
	if have == want {
		return
	}
	if *update {
		if err := os.WriteFile(filepath.Join(root, page), []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	t.Error("the table of docs/security.md is stale: run go test ./internal/testkit/attack -update")
}

// write makes a small repository.
func write(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

const guard = `package door

// Open says whether the door opens.
func Open(key string) bool {
	if key != "right" {
		return false
	}
	return true
}
`

// test gives a file with one test and its directives.
func test(directives, body string) string {
	return "package door\n\nimport \"testing\"\n\n// TestDoor is about a door.\n//\n" + directives + "func TestDoor(t *testing.T) {\n" + body + "\n}\n"
}

const good = "//attack:actor local user\n//attack:does Opens the door with another key.\n//attack:control The door knows its key.\n"

// TestWrongDirectives: each kind of mistake is named, with its place.
func TestWrongDirectives(t *testing.T) {
	t.Parallel()
	remove := "//attack:remove door/door.go: if key != \"right\" { => if false {\n"
	for name, tc := range map[string]struct{ file, want string }{
		"correct":       {test(good+remove, ""), ""},
		"two":           {test(good+remove+good+remove, ""), ""},
		"several lines": {test(good+`//attack:remove door/door.go: {\n\t\treturn false\n\t} => {\n\t}`+"\n", ""), ""},
		"no actor":      {test("//attack:does It.\n", ""), "an attack begins with"},
		"unknown actor": {test("//attack:actor nobody\n//attack:does A.\n//attack:control B.\n"+remove, ""), `actor "nobody" is none of`},
		"no sentence":   {test("//attack:actor internet\n//attack:does A.\n//attack:control B\n"+remove, ""), "does not end with a dot"},
		"small letter":  {test("//attack:actor internet\n//attack:does a.\n//attack:control B.\n"+remove, ""), "capital letter"},
		"twice":         {test(good+"//attack:control B.\n"+remove, ""), "stands twice"},
		"unknown":       {test(good+"//attack:removes x\n"+remove, ""), "there is no such directive"},
		"no removal":    {test(good, ""), "nothing says how to remove"},
		"no arrow":      {test(good+"//attack:remove door/door.go: x\n", ""), "is not FILE: OLD => NEW"},
		"no file":       {test(good+"//attack:remove door/window.go: x => y\n", ""), "no such file"},
		"outside":       {test(good+"//attack:remove ../door.go: x => y\n", ""), "holds no control"},
		"of a test":     {test(good+"//attack:remove door/door_test.go: x => y\n", ""), "holds no control"},
		"not there":     {test(good+"//attack:remove door/door.go: window => y\n", ""), "0 times, not once"},
		"too often":     {test(good+"//attack:remove door/door.go: return => y\n", ""), "2 times, not once"},
		"no test":       {strings.ReplaceAll(test(good+remove, ""), "func TestDoor", "func helper"), "above a test and nowhere else"},
		"in the middle": {test("", good), "above a test and nowhere else"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := write(t, map[string]string{"door/door.go": guard, "door/door_test.go": tc.file})
			_, err := Load(dir)
			if tc.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), "door/door_test.go:") {
				t.Errorf("got %v, want %q with its place", err, tc.want)
			}
		})
	}
}

// TestTable: attacks stand with their actor, in the actors' order, and cannot break the table.
func TestTable(t *testing.T) {
	t.Parallel()
	remove := "//attack:remove door/door.go: if key != \"right\" { => if false {\n"
	dir := write(t, map[string]string{
		"door/door.go": guard,
		"door/door_test.go": test("//attack:actor malicious job\n//attack:does A | <b>.\n//attack:control B.\n"+remove+"//attack:run x y\n"+
			"//attack:actor internet\n//attack:does C.\n//attack:control D.\n"+remove, ""),
		"docs/security.md": "Head\n" + begin + "old\n" + end + "Tail\n",
	})
	attacks, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	_, got, err := refresh(dir, attacks)
	if err != nil {
		t.Fatal(err)
	}
	want := "Head\n" + begin + `
2 attacks.

### Somebody on the internet

| Attack | Control | Test |
|---|---|---|
| C. | D. | [door.TestDoor](../door/door_test.go) |

### A job that works against the provider or its neighbours

| Attack | Control | Test |
|---|---|---|
| A \| &lt;b>. | B. | [door.TestDoor/x y](../door/door_test.go) |

` + end + "Tail\n"
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if attacks[0].ID() != "door.TestDoor#2" || attacks[1].ID() != "door.TestDoor" {
		t.Errorf("ids %s and %s", attacks[0].ID(), attacks[1].ID())
	}
}

// TestRunner tries the tool itself on a module of its own: a test that notices, and each way of not being a proof.
func TestRunner(t *testing.T) {
	t.Parallel()
	remove := "//attack:remove door/door.go: if key != \"right\" { => if false {\n"
	check := "\tif Open(\"wrong\") {\n\t\tt.Error(\"open\")\n\t}"
	for name, tc := range map[string]struct {
		file string
		want Verdict
	}{
		"noticed": {test(good+remove, check), Noticed},
		"missed":  {test(good+remove, "\tOpen(\"wrong\")"), Missed},
		"broken":  {test(good+"//attack:remove door/door.go: if key != \"right\" { => if keys {\n", check), Broken},
		"skipped": {test(good+remove, "\tt.Skip(\"not here\")"), Skipped},
		"unfit":   {test(good+remove, "\tt.Error(\"always\")"), Unfit},
		"hung":    {test(good+remove, "\tfor Open(\"wrong\") {\n\t}"), Hung},
		// Tagged, in a subtest, and the program under test is built by the test itself, as the end-to-end tests do.
		"tagged": {"//go:build e2e\n\npackage door\n\nimport (\n\t\"os/exec\"\n\t\"testing\"\n)\n\n" + good + remove + "//attack:run with a program\n" +
			"func TestDoor(t *testing.T) {\n\tt.Run(\"with a program\", func(t *testing.T) {\n" +
			"\t\tif out, _ := exec.Command(\"go\", \"run\", \"door.example/program\").CombinedOutput(); string(out) != \"false\" {\n\t\t\tt.Errorf(\"%s\", out)\n\t\t}\n\t})\n" +
			"\tt.Run(\"other\", func(t *testing.T) { t.Error(\"is not to be run\") })\n}\n", Noticed},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := write(t, map[string]string{
				"go.mod": "module door.example\n\ngo 1.26\n", "door/door.go": guard, "door/door_test.go": tc.file,
				"program/main.go": "package main\n\nimport (\n\t\"fmt\"\n\n\t\"door.example/door\"\n)\n\nfunc main() { fmt.Print(door.Open(\"wrong\")) }\n",
			})
			attacks, err := Load(dir)
			if err != nil {
				t.Fatal(err)
			}
			timeout := time.Minute
			if tc.want == Hung {
				timeout = 2 * time.Second
			}
			r := Runner{Root: dir, Timeout: timeout, Baseline: true}
			res, err := r.Try(t.Context(), attacks[0])
			if err != nil {
				t.Fatal(err)
			}
			if res.Verdict != tc.want {
				t.Errorf("%s, want %s:\n%s", res.Verdict, tc.want, res.Detail)
			}
			if text, err := os.ReadFile(filepath.Join(dir, "door/door.go")); err != nil || string(text) != guard {
				t.Errorf("the tree was changed: %s, %v", text, err)
			}
		})
	}
}
