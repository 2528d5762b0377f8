package clitree_test

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"ucloud-im/internal/cli"
	"ucloud-im/internal/clitree"
)

func load(t *testing.T) *clitree.Command {
	t.Helper()
	root, err := clitree.Load(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return root
}

func TestLoad(t *testing.T) {
	t.Parallel()
	root := load(t)
	list, rest := root.Find([]string{"users", "ls", "Ada#1815"})
	if strings.Join(list.Path, " ") != "users list" || !slices.Equal(rest, []string{"Ada#1815"}) {
		t.Fatalf("found %q with arguments %q", list.Path, rest)
	}
	if list.Text != "list connections" {
		t.Errorf("text is %q", list.Text)
	}
	for typed, value := range map[string]string{"--limit": "int", "--no-header": "", "-o": "string", "--state": "string", "-y": ""} {
		if f, ok := list.Flag(typed); !ok || f.Value != value || f.Text == "" {
			t.Errorf("flag %s is %+v, %v", typed, f, ok)
		}
	}
	if _, ok := list.Flag("--purge"); ok {
		t.Error("users list has no flag --purge")
	}
	if c, rest := root.Find([]string{"users", "lists"}); strings.Join(c.Path, " ") != "users" || len(rest) != 1 {
		t.Errorf("an unknown word leads to %q", c.Path)
	}
}

// TestGroups: what counts as a group refuses to run without a further word.
func TestGroups(t *testing.T) {
	t.Parallel()
	load(t).Walk(func(c *clitree.Command) {
		if len(c.Sub) == 0 || len(c.Path) > 0 && c.Path[0] == "completion" {
			return
		}
		var out, errOut bytes.Buffer
		args := append(slices.Clone(c.Path), "--socket", "/nonexistent/socket")
		code := cli.Run(t.Context(), args, func(string) string { return "" }, strings.NewReader(""), &out, &errOut, cli.Hooks{})
		if group := code == cli.ExitUsage; group == c.Runs() {
			t.Errorf("ucloud %s: exit code %d, and Runs is %v", strings.Join(c.Path, " "), code, c.Runs())
		}
	})
}
