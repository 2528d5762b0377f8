package softwarefile

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"ucloud-im/internal/failure"
)

const gromacs = `name: gromacs
configurations:
  - versions: ["2021.5", "2023.1-cuda"]
    load: |
      module load GROMACS/{{ appVersion }}
    unload: ""
    srun: { command: srun, flags: ["--mpi=pmix"] }
    readme: "Site notes"
`

// TestLoad: a bad document costs that document only, and is named with its line.
func TestLoad(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(name, text string) {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil { //nolint:gosec // a test's directory
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("a.yml", gromacs+"---\nname: bad\nconfigurations: 1\n---\nname: openmpi\nconfigurations: [{versions: [5], load: module load OpenMPI}]\n---\n")
	write("deep/er/b.YAML", "name: gromacs\nconfigurations: [{versions: [1]}]\n")
	write("ignored.txt", "name: [")
	write("c.yml", "name: template\nconfigurations:\n- versions: [1]\n  load: '{% if %}'\n")
	if err := os.Symlink("/dev/zero", filepath.Join(dir, "z.yml")); err != nil {
		t.Fatal(err)
	}
	list, problems := Load(dir)
	if len(list) != 2 || list[0].Name != "gromacs" || list[1].Name != "openmpi" || list[1].Configurations[0].Versions[0] != "5" {
		t.Fatalf("got %+v", list)
	}
	if c := list[0].Configurations[0]; c.Load != "module load GROMACS/{{ appVersion }}\n" || c.Srun.Flags[0] != "--mpi=pmix" || c.Readme != "Site notes" || c.Versions[1] != "2023.1-cuda" {
		t.Errorf("got %+v", c)
	}
	var all []string
	for _, p := range problems {
		all = append(all, strings.TrimPrefix(p.String(), dir+"/"))
	}
	got := strings.Join(all, "\n")
	for _, want := range []string{
		"a.yml: Line 11: configurations must be a list", "c.yml: Line 3: load: ", `deep/er/b.YAML: the application "gromacs" is defined twice`, "z.yml: is not a file",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("lacks %s:\n%s", want, got)
		}
	}
	if len(problems) != 4 {
		t.Errorf("got\n%s", got)
	}
	if list, problems := Load(filepath.Join(dir, "nowhere")); len(list)+len(problems) != 0 {
		t.Errorf("got %v %v", list, problems)
	}
}

func TestRefused(t *testing.T) {
	t.Parallel()
	for text, why := range map[string]string{
		"configurations: []":                   "name is missing",
		"name: x":                              "configurations is missing",
		"name: x\nconfigurations: [{load: y}]": "versions must have",
		"name: \"x\\ny\"\nconfigurations: [{versions: [1]}]":                            "cannot be a name",
		"name: x\nconfigurations: [{versions: [\" 1\"]}]":                               "cannot be a name",
		"name: x\nother: 1\nconfigurations: [{versions: [1]}]":                          `"other" is not known`,
		"name: x\nconfigurations: [{versions: [1], srun: {flags: [\"a\\nb\"]}}]":        "line break",
		"name: x\nconfigurations: [{versions: [1], load: \"{% include 'y' %}\"}]":       "there is no statement",
		"name: x\nconfigurations: [{versions: [1], load: " + strings.Repeat("y", 70000): "",
	} {
		if _, _, err := Parse([]byte(text), 1); !failure.Is(err, failure.Invalid) || !strings.Contains(failure.Why(err), why) {
			t.Errorf("%.60s: got %v", text, err)
		}
	}
}

func TestModules(t *testing.T) {
	t.Parallel()
	list, err := ParseModules([]byte(`[{"package":"GCC","url":"https://gcc.example","description":"A compiler. With more.","versions":[
		{"full":"GCC/11","help":"","parent":[["a","b"]]},{"full":"GCC/11","parent":[["c"]]},{"full":"GCC/12","help":"Newer"}]}]`))
	if err != nil || len(list) != 2 {
		t.Fatalf("got %v, %v", list, err)
	}
	if m := list[0]; m.Name != "GCC/11" || m.ShortDescription != "A compiler." || m.DocumentationURL != "https://gcc.example" || len(m.DependsOn) != 2 || m.DependsOn[1][0] != "c" {
		t.Errorf("got %+v", m)
	}
	if m := list[1]; m.Description != "Newer" || m.DependsOn == nil {
		t.Errorf("got %+v", m)
	}
	if s := firstSentence(strings.Repeat("æ", 100)); len(s) > shortLength || !strings.HasSuffix(s, "æ…") {
		t.Errorf("got %s", s)
	}
	for _, bad := range []string{"", "{}", `[{"versions":[{"full":"a\nb"}]}]`, `[{"versions":[{"full":""}]}]`} {
		if _, err := ParseModules([]byte(bad)); !failure.Is(err, failure.Invalid) {
			t.Errorf("%q: got %v", bad, err)
		}
	}
	if _, err := LoadModules("/nowhere"); !failure.Is(err, failure.Invalid) {
		t.Errorf("got %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(gromacs))
	f.Add([]byte("name: x\nconfigurations: [{versions: [1], load: '{{ x | y }}'}]"))
	f.Add([]byte("name: {a: b}\nconfigurations: [1, [2], {versions: {a: 1}}]"))
	f.Fuzz(func(t *testing.T, data []byte) {
		a, ok, err := Parse(data, 1)
		if err != nil && !failure.Is(err, failure.Invalid) {
			t.Error(err)
		}
		if err == nil && ok && (a.Name == "" || len(a.Configurations) == 0) {
			t.Errorf("accepted %+v", a)
		}
	})
}
