package doctest

import (
	"bytes"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"ucloud-im/internal/auth"
	"ucloud-im/internal/cli"
	"ucloud-im/internal/clitree"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/packaging"
)

// prompt is what a command in a session begins with.
var prompt = regexp.MustCompile(`^(?:[a-z]*\$|#) (.*)$`)

// command is one command of a session.
type command struct {
	page   string
	line   int
	text   string
	output []string
}

// sessions gives the commands of all console blocks.
func sessions(t *testing.T) []command {
	t.Helper()
	var out []command
	for _, p := range pages(t) {
		for _, b := range p.blocks {
			if b.kind != "console" {
				continue
			}
			first := true
			number := b.line
			for line := range strings.Lines(b.text) {
				number++
				line = strings.TrimRight(line, "\n")
				// A comment in shown output begins like root's prompt; "# Made by" is such a line.
				if m := prompt.FindStringSubmatch(line); m != nil && !strings.HasPrefix(line, "# Made by ") {
					out = append(out, command{page: p.name, line: number, text: m[1]})
					first = false
					continue
				}
				if first {
					t.Errorf("%s:%d: the session does not begin with a command", p.name, number)
					first = false
					continue
				}
				last := &out[len(out)-1]
				last.output = append(last.output, line)
			}
		}
	}
	if len(out) < 20 {
		t.Fatalf("only %d commands found", len(out))
	}
	return out
}

// words splits a command line of ours: quotes hold words together, a comment ends it.
func words(line string) []string {
	var out []string
	for _, m := range regexp.MustCompile(`"[^"]*"|\S+`).FindAllString(line, -1) {
		if m == "#" || m == "&&" || m == "|" {
			break
		}
		out = append(out, strings.Trim(m, `"`))
	}
	return out
}

// checkCommand checks that a command of ucloud exists with its flags and can take its arguments.
func checkCommand(t *testing.T, tree *clitree.Command, where, line string) {
	t.Helper()
	all := words(line)[1:]
	var plain []string
	flags := all[:0:0]
	c, _ := tree.Find(slices.DeleteFunc(slices.Clone(all), func(w string) bool { return strings.HasPrefix(w, "-") }))
	for i := 0; i < len(all); i++ {
		if !strings.HasPrefix(all[i], "-") {
			plain = append(plain, all[i])
			continue
		}
		name, _, joined := strings.Cut(all[i], "=")
		flags = append(flags, name)
		if f, ok := c.Flag(name); ok && f.Value != "" && !joined {
			i++
		}
	}
	c, rest := tree.Find(plain)
	for _, f := range flags {
		if _, ok := c.Flag(f); !ok && f != "--help" && f != "--version" {
			t.Errorf("%s: %q: ucloud %s has no flag %s", where, line, strings.Join(c.Path, " "), f)
		}
	}
	if len(plain) == 0 {
		return
	}
	if len(c.Path) == 0 || len(rest) > 0 && len(c.Sub) > 0 {
		t.Errorf("%s: %q: there is no such command", where, line)
	}
}

// TestCommandsExist checks all commands of ucloud in sessions and in the text.
func TestCommandsExist(t *testing.T) {
	t.Parallel()
	tree, err := clitree.Load(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range sessions(t) {
		if strings.HasPrefix(c.text, "ucloud ") {
			checkCommand(t, tree, c.page, c.text)
		}
	}
	for _, p := range pages(t) {
		for _, span := range p.spans() {
			if strings.HasPrefix(span, "ucloud ") && span != "ucloud ..." {
				checkCommand(t, tree, p.name, span)
			}
		}
	}
	data, err := os.ReadFile(root + "/internal/integration/page.html")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(data), "ucloud connect") {
		t.Error("the page with the ticket does not show the command")
	}
}

// TestCheckCommand: the check finds what is wrong.
func TestCheckCommand(t *testing.T) {
	t.Parallel()
	tree, err := clitree.Load(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for line, wrong := range map[string]bool{
		"ucloud users list --state broken -o wide": false,
		"ucloud gateway dump --routes":             false,
		"ucloud gateway":                           false,
		"ucloud connect TICKET ada":                false,
		"ucloud --socket /x status":                false,
		"ucloud users":                             false,
		"ucloud users lost":                        true,
		"ucloud user list":                         true,
		"ucloud users list --purge":                true,
		"ucloud database backup":                   true,
	} {
		probe := &testing.T{}
		checkCommand(probe, tree, "", line)
		if probe.Failed() != wrong {
			t.Errorf("%q: failed is %v", line, probe.Failed())
		}
	}
}

// needsNoServer are the commands that are executed. Those with --apply change the machine.
func needsNoServer(args []string) bool {
	text := strings.Join(args, " ") + " "
	for _, prefix := range []string{"config check --static ", "config schema ", "setup ", "schema ", "completion ", "--version ", "--help "} {
		if strings.HasPrefix(text, prefix) {
			return !slices.Contains(args, "--apply")
		}
	}
	return slices.Contains(args, "--help")
}

// TestSessions executes what can be executed and compares with what is shown.
func TestSessions(t *testing.T) {
	all := sessions(t)
	t.Chdir(root)
	executed := 0
	hooks := cli.Hooks{
		Version: ipcapi.VersionInfo{Version: "1.0.0"}, Units: packaging.Units(),
		ParseKeys: func(b []byte) error { _, err := auth.ParsePublicKeys(b); return err },
	}
	for _, c := range all {
		args, isOurs := strings.CutPrefix(c.text, "ucloud ")
		if !isOurs || !needsNoServer(words("ucloud " + args)[1:]) {
			continue
		}
		executed++
		var out, errOut bytes.Buffer
		code := cli.Run(t.Context(), words(c.text)[1:], func(string) string { return "" }, strings.NewReader(""), &out, &errOut, hooks)
		if code != cli.ExitOK {
			t.Errorf("%s:%d: %s: exit code %d\n%s%s", c.page, c.line, c.text, code, out.String(), errOut.String())
		}
		if missing := lacks(out.String(), c.output); missing != "" {
			t.Errorf("%s:%d: %s does not print %q\n%s", c.page, c.line, c.text, missing, out.String())
		}
	}
	if executed < 3 {
		t.Errorf("only %d commands executed", executed)
	}
}

// lacks gives the first line of want that is not in got, in order.
func lacks(got string, want []string) string {
	lines := strings.Split(got, "\n")
	for _, w := range want {
		if w == "..." {
			continue
		}
		i := slices.Index(lines, w)
		if i < 0 {
			return w
		}
		lines = lines[i+1:]
	}
	return ""
}

// TestMakeTargets: what the pages tell to make can be made.
func TestMakeTargets(t *testing.T) {
	t.Parallel()
	makefile, err := os.ReadFile(root + "/Makefile")
	if err != nil {
		t.Fatal(err)
	}
	target := regexp.MustCompile(`(?:^|\s)make ([a-z][a-z0-9-]*)`)
	check := func(where, text string) {
		m := target.FindStringSubmatch(text)
		if m != nil && !regexp.MustCompile(`(?m)^`+m[1]+`:`).Match(makefile) {
			t.Errorf("%s: there is no target %s", where, m[1])
		}
	}
	for _, c := range sessions(t) {
		check(c.page, c.text)
	}
	for _, p := range pages(t) {
		for _, span := range p.spans() {
			check(p.name, span)
		}
	}
}
