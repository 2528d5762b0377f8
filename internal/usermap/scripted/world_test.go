package scripted_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/onetime"
	"ucloud-im/internal/scripts"
	"ucloud-im/internal/store"
	"ucloud-im/internal/testkit"
	"ucloud-im/internal/usermap"
	"ucloud-im/internal/usermap/assigned"
	"ucloud-im/internal/usermap/consent"
	"ucloud-im/internal/usermap/scripted"
)

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		childMain()
		return
	}
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("database/sql.(*DB).connectionOpener"))
}

const (
	nina = ident.UCloudUser("NinaHolm#2207")
	mary = ident.UCloudUser("Mary#0001")
)

type core struct{}

func (core) ClearConnection(context.Context, ident.UCloudUser) error   { return nil }
func (core) ApproveConnection(context.Context, ident.UCloudUser) error { return nil }

// somePolicy knows the accounts 2001 to 2004, of which the last is not allowed.
type somePolicy struct{}

func (somePolicy) Check(_ context.Context, nameOrUID string) (usermap.Account, error) {
	for i, name := range []string{"nholm", "mary", "bob", "outsider"} {
		uid := ident.UID(2001 + i) //nolint:gosec // small
		if nameOrUID != name && nameOrUID != uid.String() {
			continue
		}
		if name == "outsider" {
			return usermap.Account{}, failure.New(failure.Forbidden, "%s is not a member of users", name)
		}
		return usermap.Account{Name: name, UID: uid}, nil
	}
	return usermap.Account{}, failure.New(failure.NotFound, "There is no local account %q", nameOrUID)
}

// records counts the calls of scripts.
type records struct {
	mu      sync.Mutex
	entries []scripts.Entry
}

func (r *records) RecordScript(_ context.Context, e scripts.Entry) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.entries = append(r.entries, e)
}

func (r *records) all() []scripts.Entry {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]scripts.Entry{}, r.entries...)
}

// world is the method with everything around it.
type world struct {
	dir    string
	store  *store.Store
	users  *usermap.Service
	method *assigned.Method
	runner *scripts.Runner
	log    *records
	hook   atomic.Pointer[scripts.Hook]
	stop   func()
}

// open makes the parts over a directory, as a process does when it starts.
func open(ctx context.Context, dir string, policy usermap.Policy) (*world, error) {
	log := slog.New(slog.DiscardHandler)
	w := &world{dir: dir, log: &records{}}
	var err error
	if w.store, err = store.Open(ctx, store.Options{Driver: "sqlite", Path: filepath.Join(dir, "im.db"), Log: log}); err != nil {
		return nil, err
	}
	if w.users, err = usermap.New(ctx, usermap.Options{Store: w.store, Core: core{}, Policy: policy, Log: log}); err != nil {
		return nil, err
	}
	c, err := consent.New(consent.Options{
		Store: w.store, Users: w.users, Tokens: onetime.New(w.store, onetime.Options{}), Log: log, Method: scripted.MethodName,
		PageURL: "https://im.example.org/login",
	})
	if err != nil {
		return nil, err
	}
	if err := c.Recover(ctx); err != nil {
		return nil, err
	}
	w.runner, err = scripts.New(scripts.Options{Provider: "hpc", Spool: filepath.Join(dir, "spool"), Record: w.log, Temporary: true})
	if err != nil {
		return nil, err
	}
	if err := w.runner.Open(); err != nil {
		return nil, err
	}
	hook, err := w.runner.Hook(scripts.HookOptions{Name: scripts.HookUserConnected, Path: filepath.Join(dir, "connect"), Timeout: testkit.Patience})
	if err != nil {
		return nil, err
	}
	w.hook.Store(hook)
	look, err := scripted.New(scripted.Options{
		Hook: w.hook.Load, Group: func() string { return "users" }, Suggest: scripted.FirstInitialLastName,
		Account: func(ctx context.Context, uid ident.UID) (usermap.Account, error) {
			return w.users.Check(ctx, uid.String())
		},
	})
	if err != nil {
		return nil, err
	}
	w.method, err = assigned.New(assigned.Options{
		Store: w.store, Users: w.users, Consent: c, Look: look, Log: log, Method: scripted.MethodName, Next: "/consent",
	})
	return w, err
}

func newDir(t *testing.T) string {
	t.Helper()
	dir := testkit.PrivateDir(t)
	for d := filepath.Dir(dir); d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// newWorld is a world whose script is the given Bash program.
func newWorld(t *testing.T, policy usermap.Policy, script string) *world {
	t.Helper()
	dir := newDir(t)
	writeScript(t, dir, script)
	w, err := open(t.Context(), dir, policy)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.runner.Close(); err != nil {
			t.Error(err)
		}
		if err := w.store.Close(); err != nil {
			t.Error(err)
		}
	})
	w.run(t)
	return w
}

// run has accounts looked for until the returned function is called.
func (w *world) run(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = w.method.Run(ctx) })
	w.stop = sync.OnceFunc(func() { cancel(); wg.Wait() })
	t.Cleanup(w.stop)
}

// writeScript writes the script. Nothing may be forked meanwhile, or the child has it open for writing.
func writeScript(t *testing.T, dir, body string) {
	t.Helper()
	path := filepath.Join(dir, "connect")
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	if err := os.WriteFile(path+".new", []byte("#!/bin/bash\n"+body+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// connect presses "Connect" and opens the page in a new browser, of which it gives the cookie.
func (w *world) connect(t *testing.T, user ident.UCloudUser) string {
	t.Helper()
	begun := time.Now()
	to, err := w.users.Begin(t.Context(), w.method, user)
	if err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begun); took > 5*time.Second {
		t.Errorf("Core waits %v", took)
	}
	u, err := url.Parse(to)
	if err != nil || !strings.HasPrefix(to, "https://im.example.org/login?session=") {
		t.Fatalf("redirect to %q, %v", to, err)
	}
	opened, err := w.method.Open(t.Context(), u.Query().Get("session"))
	if err != nil || opened.URL != "/consent" {
		t.Fatalf("%+v, %v", opened.URL, err)
	}
	return opened.Cookie
}

// page waits until the browser is shown something else than that its account is looked for.
func (w *world) page(t *testing.T, cookie string) (v consent.View) {
	t.Helper()
	testkit.Eventually(t, "the account is looked for", func() bool {
		var err error
		if v, err = w.method.View(t.Context(), cookie); err != nil {
			t.Fatal(err)
		}
		return v.Stage != consent.StageChecking
	})
	return v
}

func (w *world) mapping(t *testing.T, user ident.UCloudUser) string {
	t.Helper()
	m, err := w.users.Mapping(t.Context(), user)
	if failure.Is(err, failure.NotFound) {
		return "none"
	}
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%s %d %s %s", m.LocalName, m.UID, m.State, m.Method)
}

// link connects a user with an account by other means.
func (w *world) link(t *testing.T, user ident.UCloudUser, local string) {
	t.Helper()
	if err := w.store.Update(t.Context(), func(tx *store.Tx) error { return tx.SeeUser(user, time.Now()) }); err != nil {
		t.Fatal(err)
	}
	if _, err := w.users.Link(t.Context(), usermap.Link{User: user, Local: local, Method: "test", NoApprove: true}); err != nil {
		t.Fatal(err)
	}
}
