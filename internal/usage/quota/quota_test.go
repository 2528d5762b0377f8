package quota

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"ucloud-im/internal/driveplan"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/scripts"
	"ucloud-im/internal/store"
	"ucloud-im/internal/testkit"
	"ucloud-im/internal/testkit/storetest"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("database/sql.(*DB).connectionOpener"))
}

var (
	alice = ident.Owner{User: "Alice#1"}
	reef  = ident.Owner{Project: "5b1c0a7e"}
)

type discard struct{}

func (discard) RecordScript(context.Context, scripts.Entry) {}

// world is a worker with Bash hooks. The hooks append what they are asked to a journal, and answer as the file "answer"
// says.
type world struct {
	t       *testing.T
	db      *store.Store
	dir     string
	runner  *scripts.Runner
	updated *scripts.Hook
	removed *scripts.Hook
	*Worker

	mu         sync.Mutex
	applied    []ident.Owner
	unknown    bool // owners are not known on this machine
	recommends int
}

func newWorld(t *testing.T, db *store.Store, retry scripts.Retry) *world {
	t.Helper()
	w := &world{t: t, db: db, dir: testkit.PrivateDir(t)}
	for d := filepath.Dir(w.dir); d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	var err error
	w.runner, err = scripts.New(scripts.Options{Provider: "hpc", Spool: filepath.Join(w.dir, "spool"), Record: discard{}, Temporary: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.runner.Open(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.runner.Close() })
	w.answer("exit 0")
	hook := func(name string) *scripts.Hook {
		path := filepath.Join(w.dir, name)
		w.program(path, `#!/bin/bash
(cat "$1"; echo) >> `+w.dir+`/journal
. `+w.dir+`/answer
`)
		h, err := w.runner.Hook(scripts.HookOptions{Name: name, Path: path, Retry: retry})
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	w.updated, w.removed = hook(scripts.HookQuotaUpdated), hook(scripts.HookDriveRemoved)
	w.restart()
	return w
}

func (w *world) program(path, text string) {
	w.t.Helper()
	syscall.ForkLock.RLock() // a forked child must not have it open for writing
	defer syscall.ForkLock.RUnlock()
	if err := os.WriteFile(path+".new", []byte(text), 0o700); err != nil {
		w.t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		w.t.Fatal(err)
	}
}

// answer says what the hooks do from now on.
func (w *world) answer(bash string) { w.program(filepath.Join(w.dir, "answer"), bash+"\n") }

func (w *world) categories() []Category {
	return []Category{{Name: "disk", UnitBytes: 1e9, Updated: w.updated, Removed: w.removed}}
}

// restart makes a worker as a new process would.
func (w *world) restart() {
	w.t.Helper()
	worker, err := New(Options{
		Store: w.db, Categories: w.categories(), Recommend: w.recommend,
		Applied: func(owners ...ident.Owner) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.applied = append(w.applied, owners...)
		},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.Worker = worker
}

func (w *world) recommend(_ context.Context, d store.Drive) (driveplan.Recommendation, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.recommends++
	if w.unknown {
		return driveplan.Recommendation{}, errors.New("no account")
	}
	if d.Locator == "old" {
		return driveplan.Recommendation{}, driveplan.ErrNoLocator
	}
	return driveplan.Recommendation{Owner: "alice", Group: "users", Mode: 0o2770, Vars: driveplan.Vars{driveplan.VarUID: "20119", driveplan.VarLocalUsername: "alice"}}, nil
}

// allocate does what an event does.
func (w *world) allocate(owner ident.Owner, quota int64, locked bool) {
	w.t.Helper()
	w.update(func(tx *store.Tx) error {
		_, err := tx.PutWallet(store.Wallet{Owner: owner, Category: "disk", CombinedQuota: quota, Locked: locked, LastUpdate: time.Now()})
		return err
	})
	w.Changed(owner)
}

func (w *world) drive(owner ident.Owner, path, locator string, state store.DriveState) store.Drive {
	w.t.Helper()
	d := store.Drive{
		ProviderGeneratedID: driveplan.GeneratedID("hpc", owner, path), Owner: owner, Category: "disk", Product: "disk", Locator: locator,
		Title: "T", Path: path, State: state,
	}
	w.update(func(tx *store.Tx) error { return tx.PutDrive(d) })
	return d
}

func (w *world) update(f func(tx *store.Tx) error) {
	w.t.Helper()
	if err := w.db.Update(w.t.Context(), f); err != nil {
		w.t.Fatal(err)
	}
}

// asked is what the hooks have been asked.
type asked struct {
	scripts.QuotaRequest
	Meta struct {
		Hook    string `json:"hook"`
		Attempt int    `json:"attempt"`
		Reason  string `json:"reason"`
	} `json:"_meta"`
}

func (w *world) journal() (all []asked) {
	w.t.Helper()
	text, err := os.ReadFile(filepath.Join(w.dir, "journal"))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		w.t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		var a asked
		if !strings.HasSuffix(line, "\n") {
			return all // being written
		}
		if err := json.Unmarshal([]byte(line), &a); err != nil {
			w.t.Fatal(err)
		}
		all = append(all, a)
	}
	return all
}

// lookOnce looks at an owner, as Run would.
func (w *world) lookOnce(owner ident.Owner) time.Time {
	w.t.Helper()
	return w.look(w.t.Context(), owner)
}

func (w *world) quota(d store.Drive) (q store.DriveQuota) {
	w.t.Helper()
	err := w.db.View(w.t.Context(), func(tx *store.Tx) (err error) { q, err = tx.DriveQuota(d.ProviderGeneratedID); return err })
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		w.t.Fatal(err)
	}
	return q
}

// TestQuotaFollowsTheWallet goes through the life of an allocation on both engines.
func TestQuotaFollowsTheWallet(t *testing.T) {
	t.Parallel()
	storetest.Stores(t, func(t *testing.T, db *store.Store) {
		w := newWorld(t, db, scripts.Retry{})
		d := w.drive(alice, "/home/alice", "home", store.DriveDesired)
		w.update(func(tx *store.Tx) error {
			return tx.PutDriveUsage(store.DriveUsage{ProviderGeneratedID: d.ProviderGeneratedID, Bytes: 7, MeasuredAt: time.Now()})
		})
		if w.lookOnce(alice); len(w.journal()) != 0 {
			t.Fatal("a hook was called before Core has said anything")
		}
		if why, err := w.Ready(t.Context(), d); err != nil || why == "" {
			t.Errorf("ready: %q, %v", why, err)
		}
		w.allocate(alice, 50, false)
		for range 3 {
			if next := w.lookOnce(alice); !next.IsZero() {
				t.Errorf("looks again at %v", next)
			}
			w.restart()
		}
		calls := w.journal()
		if len(calls) != 1 {
			t.Fatalf("%+v", calls)
		}
		var want asked
		want.Meta.Hook, want.Meta.Attempt, want.Meta.Reason = scripts.HookQuotaUpdated, 1, "first time"
		uid, used := ident.UID(20119), int64(7)
		want.QuotaRequest = scripts.QuotaRequest{
			Drive: scripts.DriveDescription{
				Title: "T", LocatorName: "home", CategoryName: "disk", FilePath: "/home/alice", RecommendedOwnerName: "alice",
				RecommendedGroupName: "users", RecommendedPermissions: "2770",
			},
			QuotaUpdate: scripts.QuotaUpdate{CombinedQuotaInBytes: 50e9},
			Owner:       scripts.Workspace{Type: "user", UCloudUsername: "Alice#1", UID: &uid, LocalUsername: "alice"}, FirstTime: true, UsageInBytes: &used,
		}
		a, _ := json.Marshal(want)
		b, _ := json.Marshal(calls[0])
		if string(a) != string(b) {
			t.Errorf("asked\n%s, want\n%s", b, a)
		}
		if why, err := w.Ready(t.Context(), d); err != nil || why != "" {
			t.Errorf("ready: %q, %v", why, err)
		}
		d.State = store.DriveRegistered
		w.update(func(tx *store.Tx) error { return tx.PutDrive(d) })
		for i, tc := range []struct {
			quota  int64
			locked bool
			want   []string // hooks
		}{
			{50, true, []string{scripts.HookQuotaUpdated}},
			{50, true, nil},
			{60, false, []string{scripts.HookQuotaUpdated}},
			{0, true, []string{scripts.HookQuotaUpdated, scripts.HookDriveRemoved}},
			{0, false, nil}, // nothing is nothing, locked or not
			{1 << 62, false, []string{scripts.HookQuotaUpdated}},
			{0, true, []string{scripts.HookQuotaUpdated, scripts.HookDriveRemoved}},
		} {
			before := len(w.journal())
			w.allocate(alice, tc.quota, tc.locked)
			w.lookOnce(alice)
			w.restart()
			w.lookOnce(alice)
			var hooks []string
			for _, c := range w.journal()[before:] {
				hooks = append(hooks, c.Meta.Hook)
				if c.Meta.Hook == scripts.HookQuotaUpdated && (c.QuotaUpdate.Locked != (tc.locked || tc.quota == 0) || c.FirstTime) {
					t.Errorf("step %d: %+v", i, c)
				}
				if tc.quota == 1<<62 && c.QuotaUpdate.CombinedQuotaInBytes != 1<<63-1 {
					t.Errorf("%d bytes", c.QuotaUpdate.CombinedQuotaInBytes)
				}
			}
			if !slices.Equal(hooks, tc.want) {
				t.Errorf("step %d: %v, want %v", i, hooks, tc.want)
			}
			q := w.quota(d)
			if q.Removed != (tc.quota == 0) {
				t.Errorf("step %d: %+v", i, q)
			}
			why, err := w.Ready(t.Context(), d)
			if (why == "") != (tc.quota > 0) || err != nil {
				t.Errorf("step %d: ready %q, %v", i, why, err)
			}
		}
	})
}

// TestFailuresAreRepeated with the newest data, for ever or until the hook says that it makes no sense.
func TestFailuresAreRepeated(t *testing.T) {
	t.Parallel()
	w := newWorld(t, storetest.SQLite(t), scripts.Retry{Initial: time.Hour})
	d := w.drive(reef, "/work/reef", "work", store.DriveDesired)
	w.answer("echo away >&2; exit 1")
	w.allocate(reef, 1, false)
	next := w.lookOnce(reef)
	if until := time.Until(next); until < 50*time.Minute || until > time.Hour {
		t.Errorf("next at %v", next)
	}
	w.restart()
	if again := w.lookOnce(reef); !again.Equal(next.Truncate(time.Millisecond)) || len(w.journal()) != 1 {
		t.Errorf("%v, %v: a restart makes impatient", again, next)
	}
	if q := w.quota(d); q.Attempts != 1 || !strings.Contains(q.LastError, "away") || q.Applied != "" {
		t.Errorf("%+v", q)
	}
	if s, err := w.Status(t.Context()); err != nil || s.Failing != 1 || s.Parked != 0 || !strings.Contains(s.Error, "away") {
		t.Errorf("%+v, %v", s, err)
	}
	why, _ := w.Ready(t.Context(), d)
	if !strings.Contains(why, "away") {
		t.Error(why)
	}
	w.allocate(reef, 2, false) // newer data wait for nothing
	w.answer("exit 78")
	if next := w.lookOnce(reef); !next.IsZero() {
		t.Errorf("a permanent failure is repeated at %v", next)
	}
	w.lookOnce(reef)
	if calls := w.journal(); len(calls) != 2 || calls[1].Meta.Attempt != 1 || calls[1].QuotaUpdate.CombinedQuotaInBytes != 2e9 {
		t.Fatalf("%+v", calls)
	}
	if s, err := w.Status(t.Context()); err != nil || s.Parked != 1 {
		t.Errorf("%+v, %v", s, err)
	}
	// A reload or a start is a reason to try once more.
	if err := w.SetCategories(w.categories()); err != nil {
		t.Fatal(err)
	}
	w.lookOnce(reef)
	w.lookOnce(reef)
	w.restart()
	w.lookOnce(reef)
	w.lookOnce(reef)
	if calls := w.journal(); len(calls) != 4 || calls[3].Meta.Attempt != 3 {
		t.Fatalf("%+v", calls)
	}
	w.restart()
	w.answer(`echo '{"retryAfterSeconds": 120}'; exit 75`)
	if next := w.lookOnce(reef); time.Until(next) < time.Minute || time.Until(next) > 2*time.Minute {
		t.Errorf("next at %v", next)
	}
}

func TestSeveralDrivesOfAnOwner(t *testing.T) {
	t.Parallel()
	w := newWorld(t, storetest.SQLite(t), scripts.Retry{})
	w.drive(alice, "/home/alice", "home", store.DriveRegistered)
	w.drive(alice, "/archive/alice", "old", store.DriveRegistered) // its locator is not configured any more
	w.drive(alice, "/odd/alice", "home", store.DriveFailed)
	w.drive(reef, "/work/reef", "work", store.DriveRegistered)
	w.allocate(alice, 3, false)
	w.lookOnce(alice)
	calls := w.journal()
	if len(calls) != 2 {
		t.Fatalf("%+v", calls)
	}
	for _, c := range calls {
		if !slices.Equal(c.QuotaUpdate.SharedBetween, []string{"/archive/alice", "/home/alice"}) {
			t.Errorf("%+v", c.QuotaUpdate)
		}
		if (c.Drive.RecommendedOwnerName == "") != (c.Drive.FilePath == "/archive/alice") {
			t.Errorf("%+v", c.Drive)
		}
	}
	// A lock is passed on although the owner is not connected at the moment.
	w.mu.Lock()
	w.unknown = true
	w.mu.Unlock()
	w.allocate(alice, 3, true)
	w.lookOnce(alice)
	if calls := w.journal(); len(calls) != 4 || !calls[3].QuotaUpdate.Locked {
		t.Errorf("%+v", calls)
	}
	// A directory that is yet to be made needs its owner.
	w.drive(reef, "/work/reef2", "work", store.DriveDesired)
	w.allocate(reef, 3, true)
	if next := w.lookOnce(reef); next.IsZero() || len(w.journal()) != 4 {
		t.Errorf("%v, %+v", next, w.journal())
	}
}

// TestRun drives the worker as the server does.
func TestRun(t *testing.T) {
	t.Parallel()
	storetest.Stores(t, func(t *testing.T, db *store.Store) {
		w := newWorld(t, db, scripts.Retry{Initial: time.Millisecond, Max: 20 * time.Millisecond})
		w.answer("exit 1")
		w.drive(alice, "/home/alice", "home", store.DriveDesired)
		d := w.drive(reef, "/work/reef", "work", store.DriveDesired)
		w.allocate(alice, 1, false)
		w.allocate(reef, 1, false)
		w.restart() // forgets who is due: everybody is
		run := func() (stop func()) {
			ctx, cancel := context.WithCancel(context.Background())
			done := make(chan struct{})
			go func() { defer close(done); _ = w.Run(ctx) }()
			stop = sync.OnceFunc(func() { cancel(); <-done })
			t.Cleanup(stop)
			return stop
		}
		stop := run()
		testkit.Eventually(t, "several attempts", func() bool { return len(w.journal()) >= 6 })
		stop()
		if q := w.quota(d); q.Attempts == 0 || q.Applied != "" {
			t.Errorf("%+v", q)
		}
		w.restart()
		w.answer("exit 0")
		run()
		testkit.Eventually(t, "both are applied", func() bool {
			w.mu.Lock()
			defer w.mu.Unlock()
			return slices.Contains(w.applied, alice) && slices.Contains(w.applied, reef)
		})
		w.allocate(reef, 1, true)
		testkit.Eventually(t, "the lock is applied", func() bool { return w.quota(d).Locked })
	})
}

// TestEndWhileAHookRuns: the call is made again at the next start.
func TestEndWhileAHookRuns(t *testing.T) {
	t.Parallel()
	w := newWorld(t, storetest.SQLite(t), scripts.Retry{})
	d := w.drive(alice, "/home/alice", "home", store.DriveDesired)
	w.allocate(alice, 1, false)
	w.answer("sleep 1000")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = w.Run(ctx) }()
	testkit.Eventually(t, "the hook runs", func() bool { return len(w.journal()) == 1 })
	cancel()
	<-done
	if q := w.quota(d); q.Attempts != 0 || q.Applied != "" {
		t.Errorf("%+v", q)
	}
	w.answer("exit 0")
	w.restart()
	w.lookOnce(alice)
	if calls := w.journal(); len(calls) != 2 || !calls[1].FirstTime || w.quota(d).Applied == "" {
		t.Errorf("%+v", calls)
	}
}

// TestAgain: an operator can have the hook called when nothing is new, and when it waits for one.
func TestAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t, storetest.SQLite(t), scripts.Retry{})
	d := w.drive(reef, "/work/reef", "work", store.DriveDesired)
	w.allocate(reef, 1, false)
	w.lookOnce(reef)
	w.lookOnce(reef)
	if n := len(w.journal()); n != 1 {
		t.Fatalf("%d calls", n)
	}
	w.Again(reef)
	w.lookOnce(reef)
	w.lookOnce(reef) // once only
	if n := len(w.journal()); n != 2 {
		t.Errorf("%d calls after Again", n)
	}
	w.answer("exit 78")
	w.allocate(reef, 2, false)
	w.lookOnce(reef)
	w.lookOnce(reef)
	w.answer("exit 0")
	w.Again(reef)
	w.lookOnce(reef)
	if q := w.quota(d); len(w.journal()) != 4 || q.Bytes != 2e9 || q.Attempts != 0 {
		t.Errorf("%d calls, %+v", len(w.journal()), q)
	}
}
