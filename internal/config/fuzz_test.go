package config

import (
	"bytes"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/txtar"
)

// FuzzLoad feeds any text to the loader as each of the three files. It never panics, gives either a configuration or
// errors, reports the same twice, and what it accepts can be printed and loaded again.
func FuzzLoad(f *testing.F) {
	archives, _ := filepath.Glob("testdata/problems/*.txtar")
	for _, name := range archives {
		a, err := txtar.ParseFile(name)
		if err != nil {
			f.Fatal(err)
		}
		for _, file := range a.Files {
			if file.Name != "want" {
				f.Add(file.Data, uint8(max(slices.Index(documents, strings.TrimSuffix(file.Name, ".yml")), 0)))
			}
		}
	}
	for _, s := range []string{
		"- - - - - -", "a: &a [*a, *a]", "{{{{", "? ? ?", "a: !!binary x", "%YAML 1.2\n---\na: b", "a: |\n  x\n b", "\xff\xfe", "a: \"\\x", "<<: {}", "&a a: *a",
	} {
		f.Add([]byte(s), uint8(0))
	}
	f.Fuzz(func(t *testing.T, data []byte, which uint8) {
		if len(data) > 64<<10 {
			return
		}
		doc := documents[int(which)%len(documents)]
		dir := t.TempDir()
		files := map[string]string{"config": minimal, "server": "version: 1\nrefreshToken: x\n"}
		files[doc] = string(data)
		for name, text := range files {
			write(t, filepath.Join(dir, name+".yml"), text, 0o600)
		}
		c, problems := Load(dir, Options{Role: RoleCheck, Getenv: noEnv})
		if (c == nil) != problems.HasErrors() {
			t.Fatalf("%s: configuration %v with %v", doc, c, problems)
		}
		_, again := Load(dir, Options{Role: RoleCheck, Getenv: noEnv})
		if report(problems) != report(again) {
			t.Fatalf("%s: two runs differ:\n%s\n%s", doc, report(problems), report(again))
		}
		if c != nil && doc == "config" {
			printAndReload(t, c)
		}
	})
}

var documents = []string{"config", "server", "secrets"}

func report(ps Problems) string {
	var b bytes.Buffer
	_ = ps.WriteText(&b, false)
	return b.String()
}

// printAndReload prints the effective configuration and loads what was printed.
func printAndReload(t *testing.T, c *Config) {
	t.Helper()
	text := c.String()
	config, _, _ := strings.Cut(text, "\nserver:\n")
	dir := t.TempDir()
	write(t, filepath.Join(dir, "config.yml"), config+"\n", 0o600)
	back, problems := Load(dir, Options{Role: RoleGateway, Getenv: noEnv})
	if back == nil {
		t.Fatalf("the printed configuration is refused:\n%s\n%s", report(problems), config)
	}
	if got, _, _ := strings.Cut(back.String()+"\n", "\nserver:\n"); strings.TrimSpace(got) != strings.TrimSpace(config) {
		t.Fatalf("printed, loaded and printed again differs:\n%s\n---\n%s", config, got)
	}
}

// Files that are meant to exhaust the parser are refused quickly.
func TestBounds(t *testing.T) {
	t.Parallel()
	laughs := "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
	for i := 1; i < 12; i++ {
		prev, cur := string(rune('0'+(i-1)%10)), string(rune('0'+i%10))
		laughs += "b" + strings.Repeat("b", i) + ": &a" + cur + " [" + strings.TrimSuffix(strings.Repeat("*a"+prev+", ", 10), ", ") + "]\n"
	}
	deep := ""
	for i := range 400 {
		deep += strings.Repeat(" ", i) + "a:\n"
	}
	for name, text := range map[string]string{
		"aliases of aliases": laughs,
		"brackets":           "a: " + strings.Repeat("[", 200_000),
		"dashes":             strings.Repeat("- ", 200_000),
		"questions":          strings.Repeat("? ", 100_000),
		"indentation":        deep,
		"too large":          "a: " + strings.Repeat("x", maxFileBytes),
		"NUL":                "a: \x00",
		"not UTF-8":          "a: \xff",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			start := time.Now()
			c, problems := loadText(t, text)
			if c != nil || !problems.HasErrors() {
				t.Error("accepted")
			}
			if d := time.Since(start); d > 30*time.Second {
				t.Errorf("took %v", d)
			}
		})
	}
}
