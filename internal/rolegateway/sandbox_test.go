package rolegateway

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"ucloud-im/internal/sandbox"
	"ucloud-im/internal/testkit"
)

// TestSandboxRules: what is left of the gateway's rights is what it needs, and not what lies beside it.
//
//attack:actor internet
//attack:does Has taken the gateway over by a bug, and writes to the database, which lies in the state directory.
//attack:control The gateway may write to a directory of its own in it, and to nothing else.
//attack:remove internal/rolegateway/sandbox.go: return filepath.Join(c.Gateway.StateDirectory.String(), "gateway") => return filepath.Join(c.Gateway.StateDirectory.String())
func TestSandboxRules(t *testing.T) {
	if asService(t) {
		return
	}
	s := newSite(t)
	elsewhere := t.TempDir()
	if err := os.WriteFile(filepath.Join(elsewhere, "key"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(elsewhere, "key"), filepath.Join(s.dir, "linked")); err != nil {
		t.Fatal(err)
	}
	c, problems := load(s.dir)
	if c == nil {
		t.Fatal(problems)
	}
	program := filepath.Join(t.TempDir(), "bin", "ucloud")
	got := map[string]sandbox.Access{}
	for _, r := range sandboxRules(c, Options{ConfigDir: s.dir, Program: program}) {
		got[r.Path] |= r.Access
	}
	for path, want := range map[string]sandbox.Access{
		s.dir:                                  sandbox.Read,
		elsewhere:                              sandbox.Read, // of the link
		filepath.Join(s.dir, "state"):          0,
		filepath.Join(s.dir, "state/gateway"):  sandbox.Read | sandbox.Write,
		filepath.Join(s.dir, "run"):            0,
		filepath.Dir(program):                  sandbox.Execute,
		"/etc":                                 0,
		"/etc/resolv.conf":                     sandbox.Read,
		filepath.Join(s.dir, "state/gateway/"): sandbox.Read | sandbox.Write,
	} {
		if got[filepath.Clean(path)] != want {
			t.Errorf("%s: %s, want %s", path, got[path], want)
		}
	}
	for path, access := range got {
		if access&sandbox.Write != 0 && path != filepath.Join(s.dir, "state/gateway") && path != os.DevNull {
			t.Errorf("%s may be written to", path)
		}
		if access&sandbox.Execute != 0 && path != filepath.Dir(program) {
			t.Errorf("what is in %s may be run", path)
		}
	}
}

// TestLinkDir: a certificate that is a link into a directory with the date in its name can be read after it was renewed.
func TestLinkDir(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{
		os.Mkdir(filepath.Join(dir, "..2026"), 0o700), os.WriteFile(filepath.Join(dir, "..2026", "crt"), nil, 0o600),
		os.Symlink("..2026", filepath.Join(dir, "..data")), os.Symlink("..data/crt", filepath.Join(dir, "crt")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for path, want := range map[string]string{
		filepath.Join(dir, "crt"): dir, filepath.Join(dir, "..2026", "crt"): "", filepath.Join(dir, "missing"): "", "/proc/self": "/proc",
	} {
		if got := linkDir(path); got != want {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}
}

// TestSandboxModes: without a sandbox auto goes on and says so, and require does not.
//
//attack:actor internet
//attack:does Takes a gateway over on a machine whose kernel has no Landlock, which nobody has noticed.
//attack:control With gateway.sandbox: require the gateway does not start without its sandbox.
//attack:remove internal/rolegateway/sandbox.go: if mode == "require" { => if mode == "never" {
func TestSandboxModes(t *testing.T) {
	if asService(t) {
		return
	}
	testkit.Require(t, testkit.Requirement{Name: "a kernel with Landlock", Missing: func() error { _, err := sandbox.ABI(); return err }})
	s := newSite(t)
	for _, tc := range []struct {
		mode    string
		allowed bool
		refused bool
		text    string
	}{
		{"off", true, false, "off"},
		{"require", false, false, "off"}, // a test, or another program, that runs a gateway among other things
		{"auto", true, false, "none: "},
		{"require", true, true, ""},
	} {
		s.writeConfig("  sandbox: " + tc.mode + "\n")
		c, problems := load(s.dir)
		if c == nil {
			t.Fatal(problems)
		}
		// A program that does not exist: beginning anew fails, after one thread has given its rights up.
		p := &process{config: c, log: slog.New(slog.DiscardHandler), o: Options{ConfigDir: s.dir, Sandbox: tc.allowed, Program: filepath.Join(s.dir, "missing")}}
		err := p.enterSandbox()
		if (err != nil) != tc.refused || !strings.HasPrefix(p.sandbox, tc.text) {
			t.Errorf("%s, %t: %q, %v", tc.mode, tc.allowed, p.sandbox, err)
		}
		if err := sandbox.Inside(); !errors.Is(err, sandbox.ErrOutside) {
			t.Fatalf("%s: the test is restricted: %v", tc.mode, err)
		}
	}
}

// TestRouteFileMoves: an upgrade from a version without a sandbox keeps the routes, and leaves no keys behind.
func TestRouteFileMoves(t *testing.T) {
	if asService(t) {
		return
	}
	s := newSite(t)
	c, problems := load(s.dir)
	if c == nil {
		t.Fatal(problems)
	}
	p := &process{config: c, log: slog.New(slog.DiscardHandler)}
	earlier := filepath.Join(s.dir, "state", "gateway-routes.json")
	for _, text := range []string{"first", "second"} { // the second stands for what an old process wrote in the end
		if err := os.WriteFile(earlier, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := p.enterSandbox(); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(p.routeFile()); err != nil || string(got) != "first" {
			t.Errorf("after %s: %q, %v", text, got, err)
		}
		if _, err := os.Lstat(earlier); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("after %s: the earlier file: %v", text, err)
		}
	}
}

// TestExplain: who is denied a file by the sandbox learns that a restart helps, and an upgrade does not.
func TestExplain(t *testing.T) {
	denied := &fs.PathError{Op: "open", Path: "/srv/tls/key.pem", Err: syscall.EACCES}
	for _, tc := range []struct {
		confined bool
		err      error
		helped   bool
	}{{true, denied, true}, {false, denied, false}, {true, fs.ErrNotExist, false}} {
		p := &process{confined: tc.confined}
		if err := p.explain(tc.err); !errors.Is(err, tc.err) || strings.Contains(err.Error(), "systemctl restart ucloud-gateway") != tc.helped {
			t.Errorf("%+v: %v", tc, err)
		}
	}
}
