package usage

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"ucloud-im/internal/ident"
	"ucloud-im/internal/scripts"
	"ucloud-im/internal/store"
	"ucloud-im/internal/testkit"
)

func at(path string) []store.Drive {
	return []store.Drive{{ProviderGeneratedID: "id", Path: path, Owner: alice, Locator: "home", Category: "disk"}}
}

// TestStatFS: a drive that is a file system of its own is asked for; of any other the answer would be about everybody's.
func TestStatFS(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	sub := filepath.Join(dir, "sub")
	if err := os.Mkdir(sub, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := (StatFS{}).Measure(t.Context(), at(sub)); !errors.Is(err, ErrNeedsScan) {
		t.Error(err)
	}
	if m, err := (StatFS{Always: true}).Measure(t.Context(), at(sub)); err != nil || m["id"].Bytes <= 0 || m["id"].Method != MethodStatFS {
		t.Errorf("%+v, %v", m, err)
	}
	if err := os.Symlink(sub, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{filepath.Join(dir, "missing"), filepath.Join(dir, "link")} {
		if m, err := (StatFS{Always: true}).Measure(t.Context(), at(path)); err == nil {
			t.Errorf("%s: %+v", path, m)
		}
	}
	testkit.Require(t, testkit.Root)
	testkit.Mount(t, "tmpfs", sub, "tmpfs", 0, "size=4m,mode=0700")
	if err := os.WriteFile(filepath.Join(sub, "x"), make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	m, err := (StatFS{}).Measure(t.Context(), at(sub))
	if err != nil || m["id"].Bytes != 1<<20 || m["id"].Files < 1 || m["id"].Files > 3 {
		t.Errorf("%+v, %v", m, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := (StatFS{}).Measure(ctx, at(sub)); err != nil && !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

type discard struct{}

func (discard) RecordScript(context.Context, scripts.Entry) {}

// hook makes a Bash hook for usage.
func hook(t *testing.T, body string) *scripts.Hook {
	t.Helper()
	dir := testkit.PrivateDir(t)
	for d := filepath.Dir(dir); d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	r, err := scripts.New(scripts.Options{Provider: "hpc", Spool: filepath.Join(dir, "spool"), Record: discard{}, Temporary: true})
	if err == nil {
		err = r.Open()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	path := filepath.Join(dir, "hook")
	syscall.ForkLock.RLock() // a forked child must not have it open for writing
	err = os.WriteFile(path, []byte("#!/bin/bash\n"+body), 0o700)
	syscall.ForkLock.RUnlock()
	if err != nil {
		t.Fatal(err)
	}
	h, err := r.Hook(scripts.HookOptions{Name: scripts.HookUsage, Path: path})
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func TestScripted(t *testing.T) {
	t.Parallel()
	drives := append(at("/a"), store.Drive{ProviderGeneratedID: "b", Path: "/b", Owner: reef}, store.Drive{ProviderGeneratedID: "c", Path: "/c", Owner: reef})

	one := Scripted{Hook: hook(t, `jq -c '{usageInBytes: (.filePath | length), usageInFiles: 3, measuredAt: "2020-01-02T03:04:05Z", message: .owner.ucloudUsername}' "$1"`)}
	m, err := one.Measure(t.Context(), drives[:1])
	if want := (Measurement{Bytes: 2, Files: 3, At: time.Date(2020, 1, 2, 3, 4, 5, 0, time.UTC), Method: MethodScript}); err != nil || m["id"] != want || one.Batch() != 1 {
		t.Errorf("%+v, %v", m, err)
	}

	many := Scripted{Many: true, Hook: hook(t, `jq -c '{drives: [.drives[] | select(.filePath != "/b") | {filePath, usageInBytes: (.owner.gid // 0)}]}' "$1"`)}
	many.Owner = func(_ context.Context, d store.Drive) scripts.Workspace {
		w, gid := scripts.WorkspaceOf(d.Owner), ident.GID(77)
		w.GID = &gid
		return w
	}
	m, err = many.Measure(t.Context(), drives)
	if err == nil || len(m) != 2 || m["c"].Bytes != 77 || many.Batch() != 500 {
		t.Errorf("%+v, %v", m, err)
	}
	if _, missing := m["b"]; missing {
		t.Error("a drive that is not in the reply was measured")
	}

	for name, body := range map[string]string{
		"future": `echo '{"usageInBytes": 5, "measuredAt": "2999-01-01T00:00:00Z"}'`, "now": `echo '{"usageInBytes": 5}'`,
	} {
		m, err := Scripted{Hook: hook(t, body)}.Measure(t.Context(), drives[:1])
		if err != nil || !m["id"].At.IsZero() {
			t.Errorf("%s: %+v, %v", name, m, err)
		}
	}
	for name, body := range map[string]string{"fails": "exit 1", "empty": "", "negative": `echo '{"usageInBytes": -5}'`} {
		for _, s := range []Scripted{{Hook: hook(t, body)}, {Hook: hook(t, body), Many: true}} {
			if m, err := s.Measure(t.Context(), drives[:1]); err == nil || len(m) != 0 || !strings.Contains(err.Error(), scripts.HookUsage) {
				t.Errorf("%s: %+v, %v", name, m, err)
			}
		}
	}
}
