package config

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
)

var update = flag.Bool("update", false, "write golden files")

// Each archive in testdata/problems holds the files of a configuration and, as "want", the report that they give.
func TestProblems(t *testing.T) {
	t.Parallel()
	archives, err := filepath.Glob("testdata/problems/*.txtar")
	if err != nil || len(archives) < 40 {
		t.Fatalf("found %d archives: %v", len(archives), err)
	}
	for _, name := range archives {
		t.Run(strings.TrimSuffix(filepath.Base(name), ".txtar"), func(t *testing.T) {
			t.Parallel()
			archive, err := txtar.ParseFile(name)
			if err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			want, wantAt := "", -1
			for i, f := range archive.Files {
				if f.Name == "want" {
					want, wantAt = string(f.Data), i
					continue
				}
				write(t, filepath.Join(dir, f.Name), string(f.Data), 0o600)
			}
			role := RoleCheck
			if strings.HasPrefix(string(archive.Comment), "role: gateway") {
				role = RoleGateway
			}
			c, problems := Load(dir, Options{Role: role, Getenv: noEnv})
			if (c == nil) != problems.HasErrors() {
				t.Errorf("configuration %v, errors %v", c != nil, problems.HasErrors())
			}
			var got bytes.Buffer
			if err := problems.WriteText(&got, false); err != nil {
				t.Fatal(err)
			}
			text := strings.ReplaceAll(got.String(), dir, "DIR")
			// Archives keep the secrets hunter2 and hunter3; no report shows them.
			if strings.Contains(text, "hunter") {
				t.Errorf("a secret is in the report:\n%s", text)
			}
			if *update {
				archive.Files[wantAt].Data = []byte(text)
				if err := os.WriteFile(name, txtar.Format(archive), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if diff := cmp.Diff(want, text); diff != "" {
				t.Errorf("report (-want +got):\n%s", diff)
			}
		})
	}
}

func write(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil { // whatever the umask is
		t.Fatal(err)
	}
}
