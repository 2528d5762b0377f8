package testkit

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// recorder notes how a test ended. As in a real test, Skip and Fatal end the goroutine.
type recorder struct {
	testing.TB
	skipped, failed string
}

func (*recorder) Helper() {}
func (r *recorder) Skip(args ...any) {
	r.skipped, _ = args[0].(string)
	runtime.Goexit()
}

func (r *recorder) Fatal(args ...any) {
	r.failed, _ = args[0].(string)
	runtime.Goexit()
}
func (r *recorder) Errorf(string, ...any) { r.failed = "errorf" }

func record(f func(t testing.TB)) *recorder {
	r := &recorder{}
	done := make(chan struct{})
	go func() { defer close(done); f(r) }()
	<-done
	return r
}

func TestRequire(t *testing.T) {
	absent := Requirement{Name: "a unicorn", Missing: func() error { return errors.New("none found") }}
	present := Requirement{Name: "air", Missing: func() error { return nil }}

	t.Setenv("CI", "")
	r := record(func(t testing.TB) { Require(t, present, absent) })
	if !strings.Contains(r.skipped, "a unicorn: none found") || r.failed != "" {
		t.Errorf("outside CI: %+v", r)
	}
	t.Setenv("CI", "true")
	r = record(func(t testing.TB) { Require(t, present, absent) })
	if !strings.Contains(r.failed, "a unicorn") || r.skipped != "" {
		t.Errorf("in CI: %+v", r)
	}
	r = record(func(t testing.TB) { Require(t, present) })
	if r.failed != "" || r.skipped != "" {
		t.Errorf("with everything there: %+v", r)
	}
}

func TestComponent(t *testing.T) {
	t.Parallel()
	if err := Component("sh").Missing(); err != nil {
		t.Error(err)
	}
	if err := Component("sh", "no-such-program").Missing(); err == nil {
		t.Error("a program that does not exist was found")
	}
}

func TestGolden(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := os.MkdirAll("testdata", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join("testdata", "a.txt"), []byte("one\ntwo\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for got, same := range map[string]bool{"one\ntwo\n": true, "one\ntwo": false, "one\ntwo\n\n": false, "": false} {
		r := record(func(t testing.TB) { Golden(t, "a.txt", []byte(got)) })
		if (r.failed == "") != same {
			t.Errorf("%q: failed = %q", got, r.failed)
		}
	}
}
