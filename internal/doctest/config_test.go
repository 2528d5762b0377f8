package doctest

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"ucloud-im/internal/config"
)

// TestConfigurations loads all configurations that the pages show, and the example, with the rules that need no machine.
func TestConfigurations(t *testing.T) {
	t.Parallel()
	example := map[string]string{}
	for _, name := range []string{"config.yml", "server.yml"} {
		data, err := os.ReadFile(filepath.Join(root, "examples/config", name))
		if err != nil {
			t.Fatal(err)
		}
		example[name] = string(data)
	}
	accepted(t, "examples/config", example)
	seen := 0
	for _, p := range pages(t) {
		files := map[string]string{}
		for name, text := range example {
			files[name] = text
		}
		for _, b := range p.blocks {
			if b.kind != "yaml" {
				continue
			}
			seen++
			comment, _, _ := strings.Cut(b.text, "\n")
			switch comment {
			case "# config.yml", "# server.yml":
				name := strings.TrimPrefix(comment, "# ")
				files[name] = b.text
			case "# secrets.yml": // stands before the excerpt that needs it
				files["secrets.yml"] = b.text
				continue
			case "# config.yml, excerpt":
				files["config.yml"] = replaceSections(example["config.yml"], b.text)
			default:
				t.Errorf("%s:%d: the block begins with %q and not with the name of its file", p.name, b.line, comment)
				continue
			}
			// The login of a database is shown before or after the excerpt that needs it, so each file is tried alone.
			if strings.Contains(files["server.yml"], "\ndatabase:") != strings.Contains(files["config.yml"], "type: postgres") {
				continue
			}
			if !strings.Contains(files["config.yml"], "type: OIDC") {
				delete(files, "secrets.yml")
			}
			accepted(t, p.name, files)
		}
	}
	if seen < 4 {
		t.Errorf("only %d configurations found", seen)
	}
}

// accepted loads files and fails for every problem.
func accepted(t *testing.T, where string, files map[string]string) {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c, problems := config.Load(dir, config.Options{Role: config.RoleCheck, Getenv: func(string) string { return "" }})
	if c != nil {
		problems = c.Warnings
	}
	for _, p := range problems {
		t.Errorf("%s: %s", where, p)
	}
}

// replaceSections replaces the sections at the left edge of base by those of excerpt.
func replaceSections(base, excerpt string) string {
	heading := regexp.MustCompile(`^([A-Za-z]+):`)
	var names []string
	for line := range strings.Lines(excerpt) {
		if m := heading.FindStringSubmatch(line); m != nil {
			names = append(names, m[1])
		}
	}
	var out strings.Builder
	keep := true
	for line := range strings.Lines(base) {
		if m := heading.FindStringSubmatch(line); m != nil {
			keep = !slices.Contains(names, m[1])
		}
		if keep {
			out.WriteString(line)
		}
	}
	return out.String() + excerpt
}

// TestKeysExist: configuration keys in the text are in the reference.
func TestKeysExist(t *testing.T) {
	t.Parallel()
	reference := config.Reference()
	key := regexp.MustCompile("^`([a-zA-Z.<>\\[\\]]+)`$")
	var known []string
	for line := range strings.Lines(reference) {
		cells := strings.Split(line, " | ")
		if m := key.FindStringSubmatch(strings.TrimPrefix(cells[0], "| ")); m != nil {
			known = append(known, m[1])
		}
	}
	if len(known) < 200 {
		t.Fatalf("only %d keys in the reference", len(known))
	}
	// Names of Go code look alike, but have a capital letter behind the dot.
	sections := regexp.MustCompile(`^(provider|gateway|internal|metrics|health|profiler|ipc|logs|audit|database|retention|cli|development|userInstances|terminal|files|tasks|transfers|scripts|hooks|services)(\.[a-z][a-zA-Z]*)+$`)
	// So do the names of calls, which stand in intents.
	calls := regexp.MustCompile(`^files\.(browse|retrieve|search|streamingSearch|move|copy|trash|emptyTrash|delete|transfer|create[A-Z][a-z]+|collections\.[a-zA-Z]+)$|^tasks\.pauseOrCancel$`)
	fileName := regexp.MustCompile(`\.(go|yml|md|conf|service|sock|db|log|json)$`)
	seen := 0
	for _, p := range pages(t) {
		if p.name == "docs/configuration.md" {
			continue
		}
		for _, span := range p.spans() {
			if !sections.MatchString(span) || fileName.MatchString(span) || calls.MatchString(span) {
				continue
			}
			seen++
			if !slices.ContainsFunc(known, func(k string) bool { return k == span || strings.HasPrefix(k, span+".") }) {
				t.Errorf("%s names the key %s, which does not exist", p.name, span)
			}
		}
	}
	if seen < 20 {
		t.Errorf("only %d keys found", seen)
	}
}
