package attack

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Verdict is what came of a test without its control.
type Verdict string

// Verdicts. Only Noticed is as it should be.
const (
	Noticed Verdict = "noticed"            // the test failed
	Missed  Verdict = "NOT NOTICED"        // the test passed: it proves nothing
	Skipped Verdict = "skipped"            // the test cannot run here
	Hung    Verdict = "hung"               // no answer within Runner.Timeout
	Broken  Verdict = "broken directive"   // without the control the code does not compile
	Unfit   Verdict = "fails with control" // the test fails as it is, so its failure means nothing
)

// Result is one attack's verdict.
type Result struct {
	Attack  Attack
	Verdict Verdict
	Took    time.Duration
	Detail  string // output, where the verdict is not Noticed
}

// Runner runs tests with and without their controls. The working tree is not touched.
type Runner struct {
	Root     string        // of the repository, absolute
	Timeout  time.Duration // of one test
	Baseline bool          // first run each test as it is, and demand that it passes
	passed   map[string]Verdict
}

// removeAll removes a directory in which a compiler that was told to stop may still write.
func removeAll(dir string) (err error) {
	for range 50 {
		if err = os.RemoveAll(dir); err == nil {
			return nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	return err
}

// Try removes the attack's control and runs its test.
func (r *Runner) Try(ctx context.Context, a Attack) (res Result, err error) {
	began := time.Now()
	res.Attack = a
	defer func() { res.Took = time.Since(began) }()
	dir, err := os.MkdirTemp("", "imc-")
	if err != nil {
		return res, err
	}
	defer func() { err = errors.Join(err, removeAll(dir)) }()
	// Tests start programs as other accounts, which look for their files below TMPDIR. Names are short: sockets lie there.
	if err := os.Chmod(dir, 0o755); err != nil {
		return res, err
	}
	// Some tests need a home whose parents nobody else may write to, as homes are.
	above, err := os.UserHomeDir()
	if err != nil {
		return res, err
	}
	home, err := os.MkdirTemp(above, ".imc-")
	if err != nil {
		return res, err
	}
	defer func() { err = errors.Join(err, removeAll(home)) }()
	if r.Baseline {
		key := a.Package + " " + a.Test + " " + a.Run
		verdict, known := r.passed[key]
		if !known {
			verdict, res.Detail, err = r.test(ctx, a, filepath.Join(dir, "a"), home, nil)
			if err != nil {
				return res, err
			}
			if r.passed == nil {
				r.passed = map[string]Verdict{}
			}
			r.passed[key] = verdict
		}
		switch verdict {
		case Missed: // it passed
		case Noticed:
			res.Verdict = Unfit
			return res, nil
		default:
			res.Verdict = verdict
			return res, nil
		}
	}
	files, err := a.Apply(r.Root)
	if err != nil {
		res.Verdict, res.Detail = Broken, err.Error()
		return res, nil
	}
	res.Verdict, res.Detail, err = r.test(ctx, a, filepath.Join(dir, "b"), home, files)
	return res, err
}

// test runs the attack's test in a directory of its own. With files, they take the place of those in the tree: also for
// the programs that the test builds.
func (r *Runner) test(ctx context.Context, a Attack, dir, home string, files map[string]string) (Verdict, string, error) {
	env, overlay, err := r.environment(dir, home, files)
	if err != nil {
		return "", "", err
	}
	// What the removal breaks must be told from what it makes fail.
	packages := []string{}
	for name := range files {
		if p := "./" + filepath.Dir(name); strings.HasSuffix(name, ".go") && !slices.Contains(packages, p) {
			packages = append(packages, p)
		}
	}
	if len(packages) > 0 {
		if out, err := r.command(ctx, env, r.Root, "go", append([]string{"build", "-o", os.DevNull}, packages...)...); err != nil {
			return Broken, out, nil
		}
	}
	binary := filepath.Join(dir, "bin", "test")
	build := []string{"test", "-c", "-vet=off", "-o", binary, "-tags", strings.Join(a.Tags, ",")}
	if out, err := r.command(ctx, env, r.Root, "go", append(build, "./"+a.Package)...); err != nil {
		return Broken, out, nil
	}
	ctx, cancel := context.WithTimeout(ctx, r.Timeout+30*time.Second)
	defer cancel()
	out, err := r.command(ctx, append(env, overlay), filepath.Join(r.Root, a.Package), binary,
		"-test.v", "-test.count=1", "-test.run", a.pattern(), "-test.timeout", r.Timeout.String())
	return judge(out, err, a.Test), tail(out), nil
}

// environment makes the directories and the environment of a run, and the setting that shows the go command the files.
func (r *Runner) environment(dir, home string, files map[string]string) (env []string, overlay string, err error) {
	env = os.Environ()
	flags, cache, mod := "", "", ""
	for name, into := range map[string]*string{"GOFLAGS": &flags, "GOCACHE": &cache, "GOMODCACHE": &mod} {
		out, err := exec.Command("go", "env", name).Output()
		if err != nil {
			return nil, "", fmt.Errorf("go env %s: %w", name, err)
		}
		*into = strings.TrimSpace(string(out))
	}
	replace := map[string]string{}
	for _, sub := range []string{"bin", "t", "files"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return nil, "", err
		}
	}
	if err := os.Chmod(filepath.Join(dir, "t"), os.ModeSticky|0o777); err != nil {
		return nil, "", err
	}
	for name, text := range files {
		path := filepath.Join(dir, "files", strings.ReplaceAll(name, "/", "_"))
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			return nil, "", err
		}
		replace[filepath.Join(r.Root, name)] = path
	}
	doc, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return nil, "", err
	}
	name := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(name, doc, 0o644); err != nil {
		return nil, "", err
	}
	overlay = strings.TrimSpace("GOFLAGS=" + flags + " -overlay=" + name)
	env = append(env, "GOCACHE="+cache, "GOMODCACHE="+mod, "HOME="+home, "TMPDIR="+filepath.Join(dir, "t"), overlay)
	return env, overlay, nil
}

// command runs a program with a group of its own, and ends the group with it.
func (r *Runner) command(ctx context.Context, env []string, dir, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	var out bytes.Buffer
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = dir, env, &out, &out
	ownGroup(cmd)
	err := cmd.Run()
	return out.String(), err
}

// pattern selects the test, and only the subtest where there is one.
func (a *Attack) pattern() string {
	parts := []string{a.Test}
	if a.Run != "" {
		parts = append(parts, strings.Split(a.Run, "/")...)
	}
	for i, p := range parts {
		parts[i] = "^" + regexp.QuoteMeta(strings.ReplaceAll(p, " ", "_")) + "$"
	}
	return strings.Join(parts, "/")
}

var skippedLine = regexp.MustCompile(`(?m)^\s*--- SKIP: `)

// judge reads what a test binary said. Missed means that the test passed.
func judge(out string, err error, test string) Verdict {
	failed := err != nil
	ran := strings.Contains(out, "=== RUN   "+test+"\n")
	switch {
	case failed && strings.Contains(out, "panic: test timed out"):
		return Hung
	case failed && ran:
		return Noticed
	case failed:
		return Unfit
	case !ran || skippedLine.MatchString(out) || strings.Contains(out, "testing: warning: no tests to run"):
		return Skipped
	}
	return Missed
}

// tail gives the end of an output.
func tail(out string) string {
	const most = 6000
	if len(out) > most {
		return "..." + out[len(out)-most:]
	}
	return out
}
