package static

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/store"
	"ucloud-im/internal/testkit"
	"ucloud-im/internal/usermap"
	"ucloud-im/internal/usermap/assigned"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("database/sql.(*DB).connectionOpener"))
}

func TestParse(t *testing.T) {
	t.Parallel()
	got, err := parse([]byte("# accounts\nNinaHolm#2207: nholm\n\"Ærø: Person#1\": aero\nMary Ünal#0001: 'mary'\n"))
	if err != nil || len(got) != 3 || got["NinaHolm#2207"] != "nholm" || got["Ærø: Person#1"] != "aero" || got["Mary Ünal#0001"] != "mary" {
		t.Errorf("%v, %v", got, err)
	}
	for text, want := range map[string]string{
		"A#1: a\nB#1: b\nA#1: c\n": "line 3",
		"A#1: a\nB#1: a\n":         "line 2: the local account a belongs to the user on line 1",
		"A#1: 2001\n":              "line 1: \"2001\" cannot be the name of a local account",
		"A#1: -x\n":                "line 1",
		"A#1:\n  b: c\n":           "cannot be the name",
		"A#1: \"a\\nb\"\n":         "cannot be the name",
		"- A#1\n":                  "line 1: lines of the form",
		"A#1: *x\n":                "Line 1",
		"A#1: a\n---\nB#1: b\n":    "Line",
		"\"\": a\n":                "line 1: \"\" cannot be a UCloud user name",
		"A#1: a: b\n":              "Line 1",
		"":                         "nothing in the file",
		"# nobody\n":               "nothing in the file",
	} {
		if got, err := parse([]byte(text)); err == nil || !strings.Contains(strings.ToLower(err.Error()), strings.ToLower(want)) {
			t.Errorf("%q: %v, %v, want %q", text, got, err, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("NinaHolm#2207: nholm\n\"Ærø: Person#1\": aero\n"))
	f.Add([]byte("A#1: a\nB#1: a\n"))
	f.Add([]byte("{A#1: a, B#1: [b]}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := parse(data)
		if err != nil {
			return
		}
		locals := map[string]bool{}
		for user, local := range got {
			if user == "" || local == "" || locals[local] || len(user)+len(local) > 2*len(data)+2 {
				t.Errorf("%q gives %v", data, got)
			}
			locals[local] = true
		}
	})
}

type core struct{}

func (core) ClearConnection(context.Context, ident.UCloudUser) error   { return nil }
func (core) ApproveConnection(context.Context, ident.UCloudUser) error { return nil }

// anybody allows all accounts but "outsider".
type anybody struct{}

func (anybody) Check(_ context.Context, nameOrUID string) (usermap.Account, error) {
	for i, name := range []string{"nholm", "mary", "bob"} {
		uid := ident.UID(2001 + i) //nolint:gosec // small
		if nameOrUID == name || nameOrUID == uid.String() {
			return usermap.Account{Name: name, UID: uid}, nil
		}
	}
	return usermap.Account{}, failure.New(failure.Forbidden, "%s is not a member of users", nameOrUID)
}

type world struct {
	path  string
	file  *File
	users *usermap.Service
	ended []string
}

func newWorld(t *testing.T, text string) *world {
	t.Helper()
	dir, log := testkit.PrivateDir(t), slog.New(slog.DiscardHandler)
	for d := filepath.Dir(dir); d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	st, err := store.Open(t.Context(), store.Options{Driver: "sqlite", Path: filepath.Join(dir, "im.db"), Log: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = st.Close() })
	w := &world{path: filepath.Join(dir, "accounts.yml")}
	w.users, err = usermap.New(t.Context(), usermap.Options{
		Store: st, Core: core{}, Policy: anybody{}, Log: log,
		OnInactive: func(_ context.Context, u ident.UCloudUser, uid ident.UID, why string) {
			w.ended = append(w.ended, fmt.Sprintf("%s %d %s", u, uid, why))
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	w.write(t, text, time.Minute)
	w.file, err = New(w.path, Options{Users: w.users, Account: w.users.Check, Log: log, Temporary: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, u := range []ident.UCloudUser{"Nina#1", "Mary#1", "Bob#1"} {
		if err := st.Update(t.Context(), func(tx *store.Tx) error { return tx.SeeUser(u, time.Now()) }); err != nil {
			t.Fatal(err)
		}
	}
	return w
}

// write puts a new file in place that was written some time ago.
func (w *world) write(t *testing.T, text string, ago time.Duration) {
	t.Helper()
	at := time.Now().Add(-ago)
	if err := os.WriteFile(w.path+".new", []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(w.path+".new", at, at); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(w.path+".new", w.path); err != nil {
		t.Fatal(err)
	}
}

func (w *world) look(t *testing.T, user ident.UCloudUser) string {
	t.Helper()
	a, err := w.file.Look(t.Context(), assigned.Query{User: user})
	if err != nil {
		return failure.Why(err)
	}
	return a.Name
}

func (w *world) link(t *testing.T, user ident.UCloudUser) {
	t.Helper()
	a, err := w.file.Look(t.Context(), assigned.Query{User: user})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.users.Link(t.Context(), usermap.Link{User: user, Local: a.UID.String(), Method: MethodName, NoApprove: true}); err != nil {
		t.Fatal(err)
	}
}

func (w *world) state(t *testing.T, user ident.UCloudUser) string {
	t.Helper()
	m, err := w.users.Mapping(t.Context(), user)
	if failure.Is(err, failure.NotFound) {
		return "none"
	}
	if err != nil {
		t.Fatal(err)
	}
	return m.LocalName + " " + string(m.State)
}

func TestLook(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "Nina#1: nholm\nMary#1: outsider\n")
	for user, want := range map[ident.UCloudUser]string{
		"Nina#1": "nholm", "Mary#1": "Your account at this provider cannot be used", "Bob#1": "There is no account for you",
	} {
		if got := w.look(t, user); !strings.HasPrefix(got, want) {
			t.Errorf("%s: %s", user, got)
		}
	}
	w.write(t, "Bob#1: bob\n", 0) // at once, however often the file is looked at
	if got := w.look(t, "Bob#1"); got != "bob" {
		t.Errorf("after a change: %s", got)
	}
}

// Who is taken out of the file is disconnected.
//
//attack:actor malicious identity
//attack:does Goes on working after the operators have taken the user out of the file.
//attack:control A connection from the file ends when the file does not have it any more.
//attack:remove internal/usermap/static/static.go: if m.Method != MethodName || t[m.User] == m.LocalName { => if m.Method == MethodName || t[m.User] == m.LocalName {
func TestChanges(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "Nina#1: nholm\nMary#1: mary\n")
	w.link(t, "Nina#1")
	w.link(t, "Mary#1")
	if _, err := w.users.Link(t.Context(), usermap.Link{User: "Bob#1", Local: "bob", Method: "operator", NoApprove: true}); err != nil {
		t.Fatal(err)
	}
	apply := func(want ...string) {
		t.Helper()
		if err := w.file.apply(t.Context()); err != nil {
			t.Fatal(err)
		}
		got := []string{w.state(t, "Nina#1"), w.state(t, "Mary#1"), w.state(t, "Bob#1")}
		if strings.Join(got, ", ") != strings.Join(want, ", ") {
			t.Errorf("got %q, want %q; ended %q", got, want, w.ended)
		}
	}
	apply("nholm active", "mary active", "bob active")
	w.write(t, "", 0) // an editor has begun to write
	apply("nholm active", "mary active", "bob active")
	w.write(t, "", time.Minute) // and its disk was full
	apply("nholm active", "mary active", "bob active")
	w.write(t, "Nina#1: nholm\nMary#1 mary\n", time.Minute) // and the operator has made a mistake
	apply("nholm active", "mary active", "bob active")
	if n, err := w.file.Problem(); err == nil || !strings.Contains(err.Error(), w.path) || !strings.Contains(strings.ToLower(err.Error()), "line ") {
		t.Errorf("%d users, %v", n, err)
	}
	if err := os.Remove(w.path); err != nil {
		t.Fatal(err)
	}
	apply("nholm active", "mary active", "bob active")
	w.write(t, "Mary#1: mary\n", time.Minute)
	apply("nholm expired", "mary active", "bob active")
	apply("nholm expired", "mary active", "bob active")
	if len(w.ended) != 1 {
		t.Errorf("ended %q", w.ended)
	}
	w.write(t, "Nina#1: nholm\nMary#1: bob\n", time.Minute) // bob is taken, which Mary is told when she connects
	apply("nholm expired", "none", "bob active")
	w.link(t, "Nina#1") // the account was kept for her
	apply("nholm active", "none", "bob active")
}

// A file whose time lies ahead counts all the same, once it has been left alone.
//
//attack:actor malicious identity
//attack:does Goes on working after having been taken out of a file with accounts whose time lies years ahead.
//attack:control A file counts once it has been left alone for a moment, whatever its time says.
//attack:remove internal/usermap/static/static.go: >= settle || time.Since(f.since) >= settle) => >= settle)
func TestFileFromTheFuture(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "Nina#1: nholm\n")
	w.link(t, "Nina#1")
	w.write(t, "{}\n", -1000*time.Hour)
	if err := w.file.apply(t.Context()); err != nil || w.state(t, "Nina#1") != "nholm active" {
		t.Fatalf("at once: %s, %v", w.state(t, "Nina#1"), err)
	}
	w.file.mu.Lock()
	w.file.since = time.Now().Add(-settle)
	w.file.mu.Unlock()
	if err := w.file.apply(t.Context()); err != nil || w.state(t, "Nina#1") != "nholm expired" {
		t.Errorf("later: %s, %v", w.state(t, "Nina#1"), err)
	}
}

func TestRunAndSet(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "Nina#1: nholm\n")
	w.link(t, "Nina#1")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.file.Run(ctx) }()
	w.write(t, "{}\n", time.Minute)
	testkit.Eventually(t, "the user is disconnected", func() bool { return w.state(t, "Nina#1") == "nholm expired" })
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	other := w.path + "2"
	if err := w.file.Check(other); err == nil {
		t.Error("a file that is not there is in order")
	}
	if err := os.WriteFile(other, []byte("Nina#1: mary\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := w.file.Check(other); err != nil {
		t.Error(err)
	}
	if err := w.file.Set(t.Context(), other); err != nil {
		t.Fatal(err)
	}
	if got := w.look(t, "Nina#1"); got != "mary" {
		t.Errorf("after a reload: %s", got)
	}
}

// The file decides who has which account, so nobody else may write it.
//
//attack:actor local user
//attack:does Adds a line to the file with accounts, because somebody has made it writable after the start.
//attack:control The file is checked by its descriptor at every reading; one that others can write to is not read.
//attack:remove internal/trustpath/trustpath.go: if kind == unix.S_IFLNK || st.Mode&0o022 == 0 || sticky { => if kind != unix.S_IFDIR || st.Mode&0o022 == 0 || sticky {
//attack:run writable
//attack:actor local user
//attack:does Puts a file of their own in the place of the one with accounts.
//attack:control The file must belong to root or to the service account.
//attack:remove internal/trustpath/trustpath.go: if st.Uid != 0 && int(st.Uid) != r.Account { => if st.Uid == 1 {
//attack:run of somebody else
//attack:actor local user
//attack:does Exchanges the file with accounts, because a directory above it is writable for everybody.
//attack:control Every directory above the file is held to the same rules.
//attack:remove internal/trustpath/trustpath.go: if kind == unix.S_IFLNK || st.Mode&0o022 == 0 || sticky { => if kind != unix.S_IFREG || st.Mode&0o022 == 0 || sticky {
//attack:run in an open directory
//attack:actor local user
//attack:does Exchanges a directory to which a link on the way to the file with accounts leads, because the one above it is writable for everybody.
//attack:control Links are followed one by one, and what they lead to is held to the same rules from the root.
//attack:remove internal/trustpath/trustpath.go: if why := r.Why(&st); why != "" {\n\t\t\treturn nil, &Untrusted{at, why} => if why := r.Why(&st); why != "" && links == 0 {\n\t\t\treturn nil, &Untrusted{at, why}
//attack:run behind a link
func TestFileOfOthers(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(t *testing.T, w *world){
		"writable": func(t *testing.T, w *world) {
			t.Helper()
			chmod(t, w.path, 0o666)
		},
		"group writable": func(t *testing.T, w *world) {
			t.Helper()
			chmod(t, w.path, 0o664)
		},
		"of somebody else": func(t *testing.T, w *world) {
			t.Helper()
			testkit.Require(t, testkit.Root)
			if err := os.Chown(w.path, 12345, 12345); err != nil {
				t.Fatal(err)
			}
		},
		"in an open directory": func(t *testing.T, w *world) {
			t.Helper()
			chmod(t, filepath.Dir(w.path), 0o777)
		},
		"behind a link": func(t *testing.T, w *world) {
			t.Helper()
			dir := filepath.Dir(w.path)
			open := dir + "-open"
			if err := errors.Join(os.Mkdir(open, 0o700), os.Chmod(open, 0o777), os.Rename(dir, open+"/x"), os.Symlink(open+"/x", dir)); err != nil {
				t.Fatal(err)
			}
		},
		"a link": func(t *testing.T, w *world) {
			t.Helper()
			if err := os.Rename(w.path, w.path+".real"); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(w.path+".real", w.path); err != nil {
				t.Fatal(err)
			}
		},
		"a pipe": func(t *testing.T, w *world) {
			t.Helper()
			if err := os.Remove(w.path); err != nil {
				t.Fatal(err)
			}
			mkfifo(t, w.path)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, "Nina#1: nholm\n")
			w.link(t, "Nina#1")
			w.write(t, "Nina#1: nholm\nBob#1: bob\n", time.Minute)
			spoil(t, w)
			if got := w.look(t, "Bob#1"); !strings.HasPrefix(got, "There is no account") {
				t.Errorf("the file was believed: %s", got)
			}
			if _, err := w.file.Problem(); err == nil {
				t.Error("nobody is told")
			}
			if _, err := New(w.path, w.file.o); err == nil {
				t.Error("a server starts with it")
			}
			if got := w.state(t, "Nina#1"); got != "nholm active" {
				t.Errorf("mapping %s", got)
			}
		})
	}
}

func chmod(t *testing.T, path string, mode os.FileMode) {
	t.Helper()
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}
