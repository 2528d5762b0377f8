package jobrender

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/providerapi"
)

// corpus are values that would do something if they were not data; what they do is to make a file.
var corpus = []string{
	"'; touch pwned #", `"; touch pwned #`, "$(touch pwned)", "`touch pwned`", "${IFS}touch${IFS}pwned", "\ntouch pwned\n", "\r\ntouch pwned\r\n",
	"\n#SBATCH --account=other\n", "#SBATCH --partition=other", "\n#!/bin/sh\n", "&& touch pwned", "| touch pwned", "> pwned", "\\", "\\'; touch pwned #", "'\"'\"'; touch pwned #",
	"{{ 1 / 0 }}", "{% include '/etc/passwd' %}", "{# x", "{- systemLoad -}", "' ~ ('touch pwned' | safe) ~ '", "{{ 'touch pwned' | safe }}", "%j %u %%", "$HOME ~ * ? [a-z]", "!!", "-rf", "--account=other",
	"", " ", "a b", "\t", "\x01\x1b[31m", "æøå 日本 🚀", "\u2028", "\ufeff", "\xff\xfe", strings.Repeat("x'$(touch pwned)", 2000),
}

// echo is a job whose program is printf: it writes each argument, ended by NUL. The values go through every kind of parameter that
// holds text, as arguments and through a template.
type echo struct {
	job  *providerapi.Job
	want []string
}

func jsonText(t tb, s string) []byte {
	// What is no UTF-8 does not come through JSON as it was.
	return jsonOf(t, strings.ToValidUTF8(s, "\ufffd"))
}

// newEcho makes the job for a value. template chooses the form.
func newEcho(t tb, value string, template bool) *echo {
	received := strings.ToValidUTF8(value, "\ufffd")
	job := newJob(
		part{Type: "word", Word: "printf"}, part{Type: "word", Word: `%s\0`},
		part{Type: "word", Word: value},
		part{Type: "var", VariableNames: []string{"text", "area", "option", "optionByName", "file", "peer", "network", "ingress", "flag"}},
		part{Type: "var", VariableNames: []string{"text"}, PrefixVariable: "--x=", IsPrefixVariablePartOfArg: true},
		part{Type: "bool_flag", VariableName: "flag", Flag: value},
		part{Type: "env", Variable: "FROM_TEXT"}, part{Type: "env", Variable: "FROM_WORD"},
	)
	e := &echo{job: job}
	if template {
		job.Status.ResolvedApplication.Invocation.Invocation = []part{{Type: "jinja", Template: `{% set block %}{{ text }}{% endset %}{% macro m(x) %}{{ x }}{% endmacro %}
printf '%s\0' {{ text }} {{ area }} {{ option }} {{ optionByName }} {{ file }} {{ peer }} {{ network }} {{ ingress }} \
  {{ text | option("--x=") }} {{ text | option("--x", false) }} {{ text | option("-o") }} {{ flag | flag(text) }} {{ [text, area] }} {{ block }} {{ m(text) }} {{ "a" ~ text }} {{ ternary(flag, text, "") }} \
  {{ ("--y=" | safe) ~ text }} {{ [text, text] | join(",") }} {{ _injected_modules }} "$FROM_TEXT" "$FROM_WORD"
`}}
	}
	declare(
		job,
		decl{Type: "text", Name: "text", Title: value, Description: value}, decl{Type: "textarea", Name: "area"},
		decl{Type: "enumeration", Name: "option", Options: []providerapi.EnumerationOption{{Name: "other", Value: "x"}, {Name: "x", Value: value}}},
		decl{Type: "enumeration", Name: "optionByName", Options: []providerapi.EnumerationOption{{Name: "by name", Value: value}}},
		decl{Type: "input_file", Name: "file"}, decl{Type: "peer", Name: "peer"}, decl{Type: "network_ip", Name: "network"}, decl{Type: "ingress", Name: "ingress"},
		decl{Type: "boolean", Name: "flag", TrueValue: value},
	)
	job.Specification.Name = value
	job.Specification.Labels = map[string]string{value: value}
	job.Status.ResolvedApplication.Metadata.Title = value
	job.Status.ResolvedApplication.Invocation.Environment = map[string]part{"FROM_TEXT": {Type: "var", VariableNames: []string{"text"}}, "FROM_WORD": {Type: "word", Word: value}}
	job.Specification.Parameters = map[string]val{
		"text": {Type: "text", Value: jsonText(t, value)}, "area": {Type: "text", Value: jsonText(t, value)}, "option": {Type: "text", Value: jsonText(t, value)}, "optionByName": {Type: "text", Value: jsonText(t, "by name")},
		"file": {Type: "file", Path: value}, "peer": {Type: "peer", Hostname: value}, "network": {Type: "network", ID: value}, "ingress": {Type: "ingress", ID: value}, "flag": {Type: "boolean", Value: []byte("true")},
		value: {Type: "text", Value: jsonText(t, value)}, // unknown names are dropped
	}
	isFlag := value
	if isFlag == "" {
		isFlag = "true" // without a word of its own a boolean is written so
	}
	// What comes through JSON, and what comes as it is.
	e.want = []string{value, received, received, received, value, value, value, value, value, isFlag, "--x=" + received, value, received, value}
	if value == "x" || value == "other" { // the names of the options
		e.want[3] = map[string]string{"x": value, "other": "x"}[value]
	}
	if template {
		e.want = []string{
			received, received, e.want[3], value, value, value, value, value, "--x=" + received, "--x" + received, "-o", received, received, received, received, received, received, "a" + received, received,
			"--y=" + received, received + "," + received,
		}
		if !strings.ContainsFunc(value, func(r rune) bool {
			return r < ' ' || r == 0x7f || 0x80 <= r && r < 0xa0 || r == '\u2028' || r == '\u2029' || r == '\ufffd'
		}) {
			job.Specification.Parameters["_injected_modules"] = val{Type: "modules", Modules: []string{value, value}}
			e.want = append(e.want, value, value)
		}
		e.want = append(e.want, received, value)
	}
	return e
}

// check runs the job's script with a real bash.
func (e *echo) check(t tb, dir string) {
	t.Helper()
	s, err := Render(context.Background(), e.job, Site{}, grant(dir), plainPaths)
	if err != nil {
		t.Fatalf("%q: %v", e.want[0], err)
	}
	got := strings.Split(run(t, dir, s.Text), "\x00")
	got = got[:len(got)-1]
	if len(got) != len(e.want) {
		t.Fatalf("%q: %d arguments, want %d:\n%q", e.want[0], len(got), len(e.want), got)
	}
	for i := range got {
		if got[i] != e.want[i] {
			t.Errorf("argument %d: got %q, want %q", i, got[i], e.want[i])
		}
	}
}

// TestHostile: what the program receives is what the user typed, for each value of the corpus through each kind of parameter.
func TestHostile(t *testing.T) {
	t.Parallel()
	for i, value := range corpus {
		for _, template := range []bool{false, true} {
			t.Run(fmt.Sprint(i, template), func(t *testing.T) {
				t.Parallel()
				newEcho(t, value, template).check(t, t.TempDir())
			})
		}
	}
}

// TestReceivedEqualsTyped is the same for values that rapid makes up.
func TestReceivedEqualsTyped(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		value := rapid.OneOf(
			rapid.String(), rapid.SampledFrom(corpus), rapid.StringOfN(rapid.RuneFrom([]rune("'\"\\$`;\n\r#!{}() ~*&|<>\t%-=x")), 0, 60, -1),
			rapid.Map(rapid.SliceOf(rapid.Byte()), func(b []byte) string { return string(b) }),
		).Draw(t, "value")
		value = strings.ReplaceAll(value, "\x00", "")
		newEcho(t, value, rapid.Bool().Draw(t, "template")).check(t, dir)
	})
}

// TestHostileNumbers: a number is a number or nothing.
func TestHostileNumbers(t *testing.T) {
	t.Parallel()
	for _, value := range []string{`1; touch pwned`, `"$(touch pwned)"`, `$(touch pwned)`, `1e`, `0x10`, `[1]`, `{"a":1}`, `NaN`, `Infinity`, `1e999`, `--1`, `1_000`, strings.Repeat("9", 500)} {
		for _, kind := range []string{"integer", "floating_point"} {
			job := newJob(part{Type: "word", Word: "echo"}, part{Type: "var", VariableNames: []string{"n"}})
			declare(job, decl{Type: kind, Name: "n"})
			job.Specification.Parameters["n"] = val{Type: kind, Value: []byte(value)}
			if _, err := Render(context.Background(), job, Site{}, grant("/x"), nil); !failure.Is(err, failure.Invalid) {
				t.Errorf("%s %s: %v", kind, value, err)
			}
		}
	}
	for value, want := range map[string]string{"1000000": "1000000", "1e6": "1000000", "-5": "-5", "9223372036854775808": "9223372036854775808", "1.0": "1", "1E+2": "100"} {
		job := newJob(part{Type: "jinja", Template: "echo {{ n }}"})
		declare(job, decl{Type: "integer", Name: "n"})
		job.Specification.Parameters["n"] = val{Type: "integer", Value: []byte(value)}
		s, err := Render(context.Background(), job, Site{}, grant("/x"), nil)
		if err != nil || !strings.HasSuffix(string(s.Text), "\necho "+want+"\n") {
			t.Errorf("%s: %v\n%s", value, err, s.Text)
		}
	}
}

// TestHostileNames: names of applications, machines, accounts and folders stand in directives and exports.
func TestHostileNames(t *testing.T) {
	t.Parallel()
	for i, value := range corpus {
		job := newJob(part{Type: "word", Word: "printf"}, part{Type: "word", Word: `%s\0`}, part{Type: "env", Variable: "UCLOUD_APPLICATION_NAME"}, part{Type: "env", Variable: "UCLOUD_MACHINE_NAME"})
		job.Status.ResolvedApplication.Metadata.Name, job.Status.ResolvedApplication.Metadata.Version = value, value
		dir := t.TempDir()
		g := grant(dir)
		g.Machine.Name, g.Machine.CPUModel = value, value
		s, err := Render(context.Background(), job, Site{}, g, nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := run(t, dir, s.Text); got != value+"\x00"+value+"\x00" {
			t.Errorf("%d: got %q", i, got)
		}
		for _, field := range []*string{&g.Account, &g.Partition, &g.QoS, &g.Constraint, &g.Comment, &g.Folder, &job.ID} {
			old := *field
			*field = value
			s, err := Render(context.Background(), job, Site{}, g, nil)
			*field = old
			if err != nil {
				if !failure.Is(err, failure.Invalid) {
					t.Error(err)
				}
				continue
			}
			directives, _, ok := strings.Cut(string(s.Text), "\n\n:")
			if !ok || strings.Contains(directives, "\n#SBATCH --account=other") || strings.Contains(directives, "\n#SBATCH --partition=other") || strings.Count(directives, "--account=") > 1+strings.Count(value, "--account=") {
				t.Errorf("%q:\n%s", value, directives)
			}
		}
	}
}

// TestNoFileRead makes sure that a template reaches no file by any name.
func TestNoFileRead(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "secret"), []byte("seen"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, statement := range []string{"include", "import", "from", "extends"} {
		s, err := Render(context.Background(), gromacs(t, fmt.Sprintf("{%% %s %q %%}", statement, filepath.Join(dir, "secret"))), Site{}, grant(dir), plainPaths)
		if err == nil {
			t.Errorf("%s was accepted:\n%s", statement, s.Text)
		}
	}
}

func FuzzRender(f *testing.F) {
	for _, s := range corpus {
		f.Add("echo {{ text }} {{ text | option(\"--x\") }}", s)
	}
	f.Add("{% for c in text %}{{ loop.index }}{{ c }}{% endfor %}", "abc")
	f.Add("{{ sbatch(text, text) }}x", "time")
	f.Add("{- loadApplication(\"gromacs\", \"1\") -}{{ appVersion }}", "")
	f.Fuzz(func(t *testing.T, template, value string) {
		job := newJob(part{Type: "jinja", Template: template})
		declare(job, decl{Type: "text", Name: "text"})
		job.Specification.Parameters["text"] = val{Type: "text", Value: jsonText(t, value)}
		s, err := Render(context.Background(), job, alder(), grant("/x"), nil)
		if err != nil {
			if !failure.Is(err, failure.Invalid) {
				t.Error(err)
			}
			return
		}
		// Whatever the template does, the directives that are the provider's are there once.
		directives, _, _ := strings.Cut(string(s.Text), "\n\n:")
		for _, line := range []string{"#SBATCH --account=hpc_proj_cpu\n", "#SBATCH --partition=normal\n", "#SBATCH --comment=ucloud:alder:512\n"} {
			if strings.Count(directives+"\n", line) != 1 {
				t.Errorf("%s:\n%s", line, directives)
			}
		}
		for line := range strings.Lines(directives) {
			if !strings.HasPrefix(line, "#") {
				t.Errorf("a line is no directive: %q", line)
			}
		}
	})
}

// TestPortFile: the file with the port is a new one, also if others have put a link in its place, which leads to a file of the user.
func TestPortFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	theirs, port := filepath.Join(dir, "precious"), filepath.Join(dir, PortFile)
	if err := errors.Join(os.WriteFile(theirs, []byte("kept"), 0o600), os.Symlink(theirs, port)); err != nil {
		t.Fatal(err)
	}
	job := builtin(t, "batch-script")
	job.Specification.Parameters["commands"] = val{Type: "text", Value: jsonOf(t, "true")}
	g := grant(dir)
	g.Port = 23817
	for range 2 { // the second time is that of a job that is requeued
		run(t, dir, rendered(t, job, g).Text)
		kept, err := os.ReadFile(theirs)
		if err != nil || string(kept) != "kept" {
			t.Errorf("the file at the end of the link: %q, %v", kept, err)
		}
		info, err := os.Lstat(port)
		if err != nil || !info.Mode().IsRegular() {
			t.Fatalf("%v, %v", info, err)
		}
		if got, err := os.ReadFile(port); err != nil || string(got) != "23817\n" {
			t.Errorf("got %q, %v", got, err)
		}
	}
}
