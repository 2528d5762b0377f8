// Package testkit holds what the tests of all packages share: the rule for tests that need something special, golden
// files, waiting for a condition, and children that are killed. Databases for tests are in the package storetest below it.
//
// It imports the standard library only, so that every package's tests can use it.
package testkit

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Requirement is something that a test needs of the machine it runs on.
type Requirement struct {
	Name    string       // for the reason shown
	Missing func() error // nil when it is there
}

// Require skips the test when a requirement is missing. With CI=true in the environment it fails the test instead:
// there everything is installed, and a test that silently no longer runs would protect nothing.
func Require(t testing.TB, needs ...Requirement) {
	t.Helper()
	var missing []string
	for _, r := range needs {
		if err := r.Missing(); err != nil {
			missing = append(missing, fmt.Sprintf("%s: %v", r.Name, err))
		}
	}
	if missing == nil {
		return
	}
	reason := "this test needs " + strings.Join(missing, "; ")
	if inCI() {
		t.Fatal(reason)
	}
	t.Skip(reason)
}

func inCI() bool {
	switch strings.ToLower(os.Getenv("CI")) {
	case "true", "1":
		return true
	}
	return false
}

// Root is the requirement to run as root: to create accounts, or to become one of them.
var Root = Requirement{Name: "root", Missing: func() error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("runs as uid %d", os.Geteuid())
	}
	return nil
}}

// Mount mounts a file system (mount(2)) until the test ends. Where that is not possible a requirement is missing.
func Mount(t testing.TB, what, where, kind string, flags uintptr, options string) {
	t.Helper()
	err := syscall.Mount(what, where, kind, flags, options)
	Require(t, Requirement{Name: "mounting " + what, Missing: func() error { return err }})
	t.Cleanup(func() {
		if err := syscall.Unmount(where, syscall.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", where, err)
		}
	})
}

// Component is the requirement that programs are installed, each found by [Program].
func Component(names ...string) Requirement {
	return Requirement{Name: strings.Join(names, ", "), Missing: func() error {
		var errs []error
		for _, n := range names {
			_, err := Program(n)
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	}}
}

// Program finds a program in PATH, in the system directories that PATH of an ordinary account lacks, or among
// Debian's PostgreSQL versions, of which the newest counts.
func Program(name string) (string, error) {
	if p, err := exec.LookPath(name); err == nil {
		return filepath.Abs(p)
	}
	candidates := []string{"/usr/local/sbin/" + name, "/usr/sbin/" + name, "/sbin/" + name}
	versions, _ := filepath.Glob("/usr/lib/postgresql/*/bin/" + name) // the pattern is well-formed
	for i := range versions {
		candidates = append(candidates, versions[len(versions)-1-i])
	}
	for _, p := range candidates {
		if st, err := os.Stat(p); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			return p, nil
		}
	}
	return "", fmt.Errorf("%s is not installed", name)
}

var update = flag.Bool("update", false, "write golden files instead of comparing with them")

// Golden compares got with the file testdata/name, or writes that file when the test runs with -update.
func Golden(t testing.TB, name string, got []byte) {
	t.Helper()
	file := filepath.Join("testdata", filepath.FromSlash(name))
	if *update {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatalf("%v (run the test with -update to create it)", err)
	}
	if d := firstDifference(want, got); d != "" {
		t.Errorf("%s differs (run the test with -update if that is right):\n%s", file, d)
	}
}

// firstDifference describes the first line in which two texts differ; it is empty if they are the same.
func firstDifference(want, got []byte) string {
	if bytes.Equal(want, got) {
		return ""
	}
	w, g := bytes.SplitAfter(want, []byte("\n")), bytes.SplitAfter(got, []byte("\n"))
	for i := range max(len(w), len(g)) {
		var a, b []byte
		if i < len(w) {
			a = w[i]
		}
		if i < len(g) {
			b = g[i]
		}
		if !bytes.Equal(a, b) {
			return fmt.Sprintf("line %d\nwant: %q\ngot:  %q", i+1, a, b)
		}
	}
	return ""
}

// Patience is how long tests wait for something that should happen at once: long, because machines that run tests are
// busy, and a test that passes never waits for it.
const Patience = 60 * time.Second

// Eventually waits until cond is true, and fails the test after [Patience]. what says what is waited for. Use it only
// where there is nothing to wait on, such as a process or a file of somebody else.
func Eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(Patience)
	for pause := time.Millisecond; !cond(); pause = min(2*pause, 100*time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v for: %s", Patience, what)
		}
		time.Sleep(pause)
	}
}

// PrivateDir is a new directory with mode 0700, removed at the end of the test. [testing.T.TempDir] may be readable for
// others.
func PrivateDir(t testing.TB) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "private")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}
