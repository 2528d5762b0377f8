package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// Whatever an operator does to a good file by careless editing, the result is a configuration or a list of errors, never
// a crash, and what is accepted can be printed and loaded again.
func TestCarelessEditing(t *testing.T) {
	t.Parallel()
	var good []string
	for _, name := range []string{"birch", "cedar", "elm"} {
		data, err := os.ReadFile(filepath.Join("testdata/examples", name, "config.yml"))
		if err != nil {
			t.Fatal(err)
		}
		good = append(good, string(data))
	}
	pieces := []string{
		"", " ", "  ", "-", "- ", ":", "{", "}", "[", "]", "null", "~", "true", "-1", "0", "1e9", "\"", "'", "#", "&a ", "*a", "<<: ", "|", ">",
		"!x ", "---\n", "...", "\t", "#{uid}", "#{", "yes", "99999999999999999999", "/", "https://", "Ⓐ", "services", "type", "7d", "1GiB",
	}
	dir := t.TempDir()
	rapid.Check(t, func(rt *rapid.T) {
		lines := strings.Split(rapid.SampledFrom(good).Draw(rt, "file"), "\n")
		for range rapid.IntRange(1, 6).Draw(rt, "edits") {
			at := rapid.IntRange(0, len(lines)-1).Draw(rt, "line")
			switch rapid.IntRange(0, 4).Draw(rt, "edit") {
			case 0:
				lines = append(lines[:at:at], lines[at+1:]...)
			case 1:
				lines = append(lines[:at+1:at+1], lines[at:]...)
			case 2:
				lines[at] = rapid.SampledFrom(pieces).Draw(rt, "piece") + lines[at]
			case 3:
				col := rapid.IntRange(0, len(lines[at])).Draw(rt, "column")
				lines[at] = lines[at][:col] + rapid.SampledFrom(pieces).Draw(rt, "piece") + lines[at][min(col+rapid.IntRange(0, 4).Draw(rt, "cut"), len(lines[at])):]
			case 4:
				key, _, _ := strings.Cut(lines[at], ":")
				lines[at] = key + ": " + rapid.SampledFrom(pieces).Draw(rt, "piece")
			}
			if len(lines) == 0 {
				lines = []string{""}
			}
		}
		write(t, filepath.Join(dir, "config.yml"), strings.Join(lines, "\n"), 0o600)
		c, problems := Load(dir, Options{Role: RoleGateway, Getenv: noEnv})
		if (c == nil) != problems.HasErrors() {
			rt.Fatalf("configuration %v with %v", c != nil, problems)
		}
		_ = report(problems)
		if c != nil {
			printAndReload(t, c)
		}
	})
}
