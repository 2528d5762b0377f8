package scripts

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"go.uber.org/goleak"

	"ucloud-im/internal/testkit"
)

// childEnv makes the test binary a program of its own, for tests of binaries without a "#!" line.
const childEnv = "SCRIPTS_TEST_CHILD"

func TestMain(m *testing.M) {
	switch os.Getenv(childEnv) {
	case "echo":
		in, _ := io.ReadAll(os.Stdin)
		fmt.Print(string(in))
		os.Exit(0)
	case "describe":
		exe, _ := os.Readlink("/proc/self/exe")
		_ = json.NewEncoder(os.Stdout).Encode(map[string]any{"exe": exe, "args": os.Args})
		os.Exit(0)
	case "call": // a service that is killed while a script runs
		playService()
	}
	goleak.VerifyTestMain(m)
}

// records keeps what is written down.
type records struct {
	mu      sync.Mutex
	entries []Entry
}

func (r *records) RecordScript(_ context.Context, e Entry) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.entries = append(r.entries, e)
}

// last is the newest entry.
func (r *records) last(t *testing.T) Entry {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.entries) == 0 {
		t.Fatal("nothing was written down")
	}
	return r.entries[len(r.entries)-1]
}

func (r *records) count() int { r.mu.Lock(); defer r.mu.Unlock(); return len(r.entries) }

// site is a runner with a directory of programs.
type site struct {
	*Runner
	dir   string // of programs, writable by us alone
	spool string
	log   *records
}

func newSite(t *testing.T, change func(*Options)) *site {
	t.Helper()
	s := &site{dir: testkit.PrivateDir(t), spool: testkit.PrivateDir(t), log: &records{}}
	// go test makes its directories with a permissive umask in mind.
	for d := filepath.Dir(s.dir); d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	o := Options{Provider: "prov", Spool: s.spool, Home: "/nonexistent", Redact: []string{"password", "secret"}, Record: s.log, Temporary: true}
	if change != nil {
		change(&o)
	}
	var err error
	if s.Runner, err = New(o); err != nil {
		t.Fatal(err)
	}
	if err := s.Open(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if left, _ := os.ReadDir(s.spool); len(left) > 0 {
			t.Errorf("request files are left: %v", left)
		}
	})
	return s
}

// script writes a Bash program.
func (s *site) script(t *testing.T, name, body string) string {
	t.Helper()
	path := filepath.Join(s.dir, name)
	writeProgram(t, path, "#!/bin/bash\n"+body+"\n")
	return path
}

// writeProgram writes an executable file. Nothing may be forked meanwhile: a child that another test starts would have
// the file open for writing for a moment, and the kernel executes no such file.
func writeProgram(t *testing.T, path, content string) {
	t.Helper()
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	if err := os.WriteFile(path, []byte(content), 0o700); err != nil {
		t.Fatal(err)
	}
}

// hook makes a hook of a Bash program.
func (s *site) hook(t *testing.T, name, body string, change func(*HookOptions)) *Hook {
	t.Helper()
	o := HookOptions{Name: name, Path: s.script(t, strings.ReplaceAll(t.Name(), "/", "-")+name, body), Timeout: testkit.Patience}
	if change != nil {
		change(&o)
	}
	h, err := s.Hook(o)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func (s *site) spooled(t *testing.T) int {
	t.Helper()
	names, err := os.ReadDir(s.spool)
	if err != nil {
		t.Fatal(err)
	}
	return len(names)
}

// alive tells whether a process exists and is no zombie.
func alive(pid int) bool {
	info, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(info), ") ")
	return !strings.HasPrefix(rest, "Z") && !strings.HasPrefix(rest, "X")
}
