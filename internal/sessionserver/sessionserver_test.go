package sessionserver

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/ipc"
	"ucloud-im/internal/ipcapi"
	"ucloud-im/internal/onetime"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/store"
	"ucloud-im/internal/testkit/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const ada = ident.UCloudUser("Ada#1")

// world is a server behind a real socket, and a client of it.
type world struct {
	t      *testing.T
	store  *store.Store
	tokens *onetime.Tokens
	client *ipc.Client
	user   atomic.Pointer[ident.UCloudUser] // whom the caller is mapped to; empty: nobody
	now    atomic.Int64
}

func newWorld(t *testing.T, s *store.Store, maxPerUser int) *world {
	t.Helper()
	w := &world{t: t, store: s}
	w.now.Store(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC).UnixMilli())
	w.be(ada)
	clock := func() time.Time { return time.UnixMilli(w.now.Load()) }
	w.tokens = onetime.New(s, onetime.Options{MaxPerUser: maxPerUser, Now: clock})
	log := slog.New(slog.DiscardHandler)
	srv := ipc.NewServer(ipc.ServerOptions{
		Log: log, RequestsPerSecond: 1_000_000,
		Authorize: func(context.Context, ipc.Peer) (ipc.Grant, error) {
			u := *w.user.Load()
			return ipc.Grant{User: u, Mapped: u != ""}, nil
		},
	})
	New(Options{Store: s, Tokens: w.tokens, Log: log}).Register(srv)
	dir, err := os.MkdirTemp("", "imt-ses")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "s")
	l, err := ipc.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ctx, l) }()
	w.client, err = ipc.Dial(ctx, path, ipc.DialOptions{ServerUID: func(ident.UID) bool { return true }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		w.client.Close()
		cancel()
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
	return w
}

func (w *world) be(u ident.UCloudUser) { w.user.Store(&u) }

func item(path string) ipcapi.SessionItem {
	return ipcapi.SessionItem{Drive: "7", Owner: ident.Owner{Project: "p1"}, Category: "storage", Object: path, Data: []byte("mine")}
}

func (w *world) create(purpose string, items ...ipcapi.SessionItem) ([]string, error) {
	r, err := ipc.Invoke(w.t.Context(), w.client, ipcapi.SessionCreate, ipcapi.SessionCreation{Purpose: purpose, Items: items})
	return r.Tokens, err
}

func (w *world) one(purpose string) string {
	w.t.Helper()
	tokens, err := w.create(purpose, item("/7/a"))
	if err != nil {
		w.t.Fatal(err)
	}
	return tokens[0]
}

func (w *world) consume(purpose, token string) (ipcapi.Session, error) {
	return ipc.Invoke(w.t.Context(), w.client, ipcapi.SessionConsume, ipcapi.SessionRef{Purpose: purpose, Token: token})
}

func (w *world) peek(purpose, token string) (ipcapi.Session, error) {
	return ipc.Invoke(w.t.Context(), w.client, ipcapi.SessionPeek, ipcapi.SessionRef{Purpose: purpose, Token: token})
}

func (w *world) touch(n ipcapi.SessionNote) error {
	_, err := ipc.Invoke(w.t.Context(), w.client, ipcapi.SessionTouch, n)
	return err
}

func (w *world) update(f func(*store.Tx) error) {
	w.t.Helper()
	if err := w.store.Update(w.t.Context(), f); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) want(what string, err error, kind failure.Kind) {
	w.t.Helper()
	if !failure.Is(err, kind) {
		w.t.Errorf("%s: %v, want kind %d", what, err, kind)
	}
}

func TestLife(t *testing.T) {
	t.Parallel()
	storetest.Stores(t, func(t *testing.T, s *store.Store) {
		w := newWorld(t, s, 0)
		tokens, err := w.create(ipcapi.PurposeUpload, item("/7/a"), item("/7/b"))
		if err != nil || len(tokens) != 2 || tokens[0] == tokens[1] || len(tokens[0]) < 43 {
			t.Fatal(tokens, err)
		}
		got, err := w.consume(ipcapi.PurposeUpload, tokens[1])
		if err != nil || got.Object != "/7/b" || string(got.Data) != "mine" || got.Note != nil {
			t.Fatalf("%+v, %v", got, err)
		}
		if err := w.touch(ipcapi.SessionNote{Purpose: ipcapi.PurposeUpload, Token: tokens[1], Note: []byte("half")}); err != nil {
			t.Fatal(err)
		}
		if err := w.touch(ipcapi.SessionNote{Purpose: ipcapi.PurposeUpload, Token: tokens[1]}); err != nil {
			t.Fatal(err)
		}
		if got, err := w.peek(ipcapi.PurposeUpload, tokens[1]); err != nil || string(got.Note) != "half" || string(got.Data) != "mine" {
			t.Errorf("%+v, %v", got, err)
		}
		// The gateway's question, which has the hash only.
		open := func(token string) bool {
			ok, err := w.tokens.Open(t.Context(), onetime.Hash(token), ada, ipcapi.SessionPurposes()...)
			return ok && err == nil
		}
		if !open(tokens[0]) || open("x") {
			t.Error("the gateway would not learn of the token")
		}
		for range 2 { // ending it twice is ending it
			if _, err := ipc.Invoke(t.Context(), w.client, ipcapi.SessionClose, ipcapi.SessionRef{Purpose: ipcapi.PurposeUpload, Token: tokens[0]}); err != nil {
				t.Error(err)
			}
		}
		_, err = w.consume(ipcapi.PurposeUpload, tokens[0])
		w.want("closed", err, failure.NotFound)

		// An upload may rest for a day, and lives for a week at most; a transfer may rest for a month.
		transfer, download := w.one(ipcapi.PurposeTransfer), w.one(ipcapi.PurposeDownload)
		w.now.Add(59 * time.Minute.Milliseconds())
		if _, err := w.consume(ipcapi.PurposeDownload, download); err != nil {
			t.Error(err)
		}
		unused := w.one(ipcapi.PurposeDownload)
		w.now.Add(61 * time.Minute.Milliseconds())
		_, err = w.consume(ipcapi.PurposeDownload, unused)
		w.want("download that was not begun within an hour", err, failure.NotFound)
		if _, err := w.consume(ipcapi.PurposeDownload, download); err != nil {
			t.Error(err)
		}
		w.now.Add(25 * time.Hour.Milliseconds())
		_, err = w.consume(ipcapi.PurposeUpload, tokens[1])
		w.want("idle for a day", err, failure.NotFound)
		if _, err := w.consume(ipcapi.PurposeTransfer, transfer); err != nil {
			t.Error(err)
		}
	})
}

//attack:actor compromised instance
//attack:does Uses the session of another account, whose link it has seen.
//attack:control A session is used by the account that made it.
//attack:remove internal/sessionserver/sessionserver.go: if rec.UID != r.Peer.UID() {\n\t\treturn record{} => if rec.UID == 1<<31 {\n\t\treturn record{}
func TestBoundToAccount(t *testing.T) {
	t.Parallel()
	w := newWorld(t, storetest.SQLite(t), 0)
	token := w.one(ipcapi.PurposeUpload)
	all := func(what string, kind failure.Kind, purpose, token string) {
		t.Helper()
		_, err := w.consume(purpose, token)
		w.want(what+": consume", err, kind)
		_, err = w.peek(purpose, token)
		w.want(what+": peek", err, kind)
		w.want(what+": touch", w.touch(ipcapi.SessionNote{Purpose: purpose, Token: token}), kind)
		w.want(what+": note", w.touch(ipcapi.SessionNote{Purpose: purpose, Token: token, Note: []byte("x")}), kind)
	}
	all("other purpose", failure.NotFound, ipcapi.PurposeDownload, token)
	all("unknown purpose", failure.Invalid, "terminal", token)
	all("unknown token", failure.NotFound, ipcapi.PurposeUpload, strings.Repeat("x", 43))
	w.be("Bob#2")
	all("other user", failure.NotFound, ipcapi.PurposeUpload, token)
	if _, err := ipc.Invoke(t.Context(), w.client, ipcapi.SessionClose, ipcapi.SessionRef{Purpose: ipcapi.PurposeUpload, Token: token}); err != nil {
		t.Error(err)
	}
	w.be("") // the mapping is gone
	all("no user", failure.Forbidden, ipcapi.PurposeUpload, token)
	w.be(ada)
	if _, err := w.consume(ipcapi.PurposeUpload, token); err != nil {
		t.Errorf("somebody else has ended it: %v", err)
	}
	// The same user under another account, after having connected again.
	data, _ := json.Marshal(record{UID: ident.UID(os.Getuid()) + 1, Drive: "7", Data: []byte("x")})
	foreign, err := w.tokens.Issue(t.Context(), onetime.Spec{Purpose: ipcapi.PurposeUpload, User: ada, Object: "/7/a", Limits: onetime.UploadLimits, Data: data})
	if err != nil {
		t.Fatal(err)
	}
	all("other account", failure.NotFound, ipcapi.PurposeUpload, foreign)
}

// TestRechecked: a session does not outlive the right to use the drive.
//
//attack:actor local user
//attack:does Goes on uploading with an old link after leaving the project.
//attack:control Membership is checked again each time a session is used.
//attack:remove internal/sessionserver/sessionserver.go: case err == nil && !slices.ContainsFunc([]providerapi.ProjectMember(p.Document.Status.Members), func(m providerapi.ProjectMember) bool { return m.Username == user }): => case err == nil && !slices.ContainsFunc([]providerapi.ProjectMember(p.Document.Status.Members), func(m providerapi.ProjectMember) bool { return true }):
func TestRechecked(t *testing.T) {
	t.Parallel()
	s := storetest.SQLite(t)
	w := newWorld(t, s, 0)
	drive := store.Drive{ProviderGeneratedID: "pg7", ID: "7", Owner: ident.Owner{Project: "p1"}, Category: "storage", Product: "storage", Path: "/x", State: store.DriveRegistered, UpdatedAt: time.Now()}
	put := func(change func(*store.Drive)) {
		d := drive
		change(&d)
		w.update(func(tx *store.Tx) error { return tx.PutDrive(d) })
	}
	at := time.Now()
	members := func(names ...ident.UCloudUser) {
		at = at.Add(time.Second)
		p := providerapi.Project{ID: "p1"}
		for _, n := range names {
			p.Status.Members = append(p.Status.Members, providerapi.ProjectMember{Username: n, Role: "USER"})
		}
		w.update(func(tx *store.Tx) error {
			_, _, err := tx.PutProject(store.Project{ID: "p1", ModifiedAt: at, Document: p})
			return err
		})
	}
	lock := func(locked bool) {
		at = at.Add(time.Second)
		w.update(func(tx *store.Tx) error {
			_, err := tx.PutWallet(store.Wallet{Owner: ident.Owner{Project: "p1"}, Category: "storage", Locked: locked, LastUpdate: at})
			return err
		})
	}
	put(func(*store.Drive) {})
	members(ada)
	lock(false)
	up, down := w.one(ipcapi.PurposeUpload), w.one(ipcapi.PurposeDownload)
	for _, tc := range []struct {
		name       string
		break_     func()
		mend       func()
		write      failure.Kind
		reads      bool
		readFailed failure.Kind
	}{
		{"read-only drive", func() { put(func(d *store.Drive) { d.ReadOnly = true }) }, func() { put(func(*store.Drive) {}) }, failure.Forbidden, true, 0},
		{"locked workspace", func() { lock(true) }, func() { lock(false) }, failure.PaymentRequired, true, 0},
		{"not a member", func() { members("Bob#2") }, func() { members("Bob#2", ada) }, failure.Forbidden, false, failure.Forbidden},
		{"no such drive", func() { w.update(func(tx *store.Tx) error { return tx.DeleteDrive("pg7") }) }, func() { put(func(*store.Drive) {}) }, failure.NotFound, false, failure.NotFound},
	} {
		tc.break_()
		_, err := w.consume(ipcapi.PurposeUpload, up)
		w.want(tc.name, err, tc.write)
		w.want(tc.name+", while it is open", w.touch(ipcapi.SessionNote{Purpose: ipcapi.PurposeUpload, Token: up}), tc.write)
		if tc.name != "no such drive" { // one that we have never known may be of an earlier installation
			_, err = w.create(ipcapi.PurposeUpload, item("/7/x"))
			w.want(tc.name+", new session", err, tc.write)
		}
		if _, err = w.consume(ipcapi.PurposeDownload, down); tc.reads != (err == nil) || err != nil && !failure.Is(err, tc.readFailed) {
			t.Errorf("%s: reading: %v", tc.name, err)
		}
		// What has happened is noted all the same.
		if err := w.touch(ipcapi.SessionNote{Purpose: ipcapi.PurposeUpload, Token: up, Note: []byte("n")}); err != nil {
			t.Errorf("%s: note: %v", tc.name, err)
		}
		tc.mend()
		if _, err := w.consume(ipcapi.PurposeUpload, up); err != nil {
			t.Errorf("after %s: %v", tc.name, err)
		}
	}
}

// TestDoneMakesRoom: a browser makes a session for each file that is dropped on it, and never ends one.
func TestDoneMakesRoom(t *testing.T) {
	t.Parallel()
	w := newWorld(t, storetest.SQLite(t), 10)
	var tokens []string
	for range 10 {
		tokens = append(tokens, w.one(ipcapi.PurposeUpload))
		w.now.Add(1)
	}
	_, err := w.create(ipcapi.PurposeUpload, item("/7/x"))
	w.want("the eleventh", err, failure.TooMany)
	if _, err := w.create(ipcapi.PurposeDownload, item("/7/x")); err != nil {
		t.Errorf("another purpose: %v", err)
	}
	w.be("Bob#2")
	if _, err := w.create(ipcapi.PurposeUpload, item("/7/x")); err != nil {
		t.Errorf("another user: %v", err)
	}
	w.be(ada)
	for _, i := range []int{3, 5} {
		if err := w.touch(ipcapi.SessionNote{Purpose: ipcapi.PurposeUpload, Token: tokens[i], Done: true}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.consume(ipcapi.PurposeUpload, tokens[3]); err != nil {
		t.Errorf("done, and not needed for room yet: %v", err)
	}
	if _, err := w.create(ipcapi.PurposeUpload, item("/7/x")); err != nil {
		t.Error(err)
	}
	for i, token := range tokens {
		_, err := w.peek(ipcapi.PurposeUpload, token)
		if gone := i == 3 || i == 5; gone != (err != nil) {
			t.Errorf("session %d: %v", i, err)
		}
	}
}

// TestDownloadsMakeRoom: who downloads one file after the other does not run into the bound.
func TestDownloadsMakeRoom(t *testing.T) {
	t.Parallel()
	w := newWorld(t, storetest.SQLite(t), 10)
	var tokens []string
	for i := range 10 {
		tokens = append(tokens, w.one(ipcapi.PurposeDownload))
		if i != 4 { // this one is a link that nobody has clicked yet
			if _, err := w.consume(ipcapi.PurposeDownload, tokens[i]); err != nil {
				t.Fatal(err)
			}
		}
		w.now.Add(time.Minute.Milliseconds())
	}
	w.now.Add(6 * time.Minute.Milliseconds())
	if _, err := w.consume(ipcapi.PurposeDownload, tokens[1]); err != nil { // still in use
		t.Fatal(err)
	}
	if _, err := w.create(ipcapi.PurposeDownload, item("/7/x")); err != nil {
		t.Fatal(err)
	}
	for i, token := range tokens {
		_, err := w.peek(ipcapi.PurposeDownload, token)
		if gone := i < 6 && i != 1 && i != 4; gone != (err != nil) {
			t.Errorf("session %d: %v", i, err)
		}
	}
}

// TestWills: what an instance leaves is given to the next one of the same account, once.
func TestWills(t *testing.T) {
	t.Parallel()
	w := newWorld(t, storetest.SQLite(t), 100)
	wills := func() (texts []string) {
		t.Helper()
		r, err := ipc.Invoke(t.Context(), w.client, ipcapi.SessionWills, ipcapi.SessionWillsOf{Purpose: ipcapi.PurposeUpload})
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range r.Wills {
			texts = append(texts, string(b))
		}
		return texts
	}
	if got := wills(); got != nil {
		t.Errorf("from nothing: %q", got)
	}
	leave := func(token, will string) {
		t.Helper()
		if err := w.touch(ipcapi.SessionNote{Purpose: ipcapi.PurposeUpload, Token: token, Will: []byte(will)}); err != nil {
			t.Fatal(err)
		}
	}
	a := w.one(ipcapi.PurposeUpload)
	w.now.Add(1)
	b := w.one(ipcapi.PurposeUpload)
	w.now.Add(1)
	c := w.one(ipcapi.PurposeUpload)
	leave(a, "first")
	leave(a, "a")
	leave(b, "b")
	leave(c, "c")
	if err := w.touch(ipcapi.SessionNote{Purpose: ipcapi.PurposeUpload, Token: b, NoWill: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.consume(ipcapi.PurposeUpload, a); err != nil {
		t.Error(err)
	}
	w.be("Bob#2")
	if got := wills(); got != nil {
		t.Errorf("of somebody else: %q", got)
	}
	w.be(ada)
	if got := wills(); !slices.Equal(got, []string{"a", "c"}) {
		t.Errorf("got %q", got)
	}
	if got := wills(); got != nil {
		t.Errorf("the second time: %q", got)
	}
	err := w.touch(ipcapi.SessionNote{Purpose: ipcapi.PurposeUpload, Token: a, Will: make([]byte, ipcapi.MaxSessionWill+1)})
	w.want("a will that is too long", err, failure.Invalid)
	for range ipcapi.MaxWills + 3 {
		leave(w.one(ipcapi.PurposeUpload), "x")
	}
	if first, second := len(wills()), len(wills()); first != ipcapi.MaxWills || second != 3 {
		t.Errorf("%d and %d", first, second)
	}
}

func TestBounds(t *testing.T) {
	t.Parallel()
	w := newWorld(t, storetest.SQLite(t), 1000)
	big := item("/7/a")
	big.Data = bytes.Repeat([]byte{'x'}, ipcapi.MaxSessionData+1)
	many := make([]ipcapi.SessionItem, ipcapi.MaxSessionItems+1)
	for i := range many {
		many[i] = item(fmt.Sprint("/7/", i))
	}
	for name, items := range map[string][]ipcapi.SessionItem{
		"none": nil, "too many": many, "too large": {big}, "no drive": {{Object: "/7/a"}}, "no object": {{Drive: "7"}},
		"one of two is bad": {item("/7/a"), {}},
	} {
		_, err := w.create(ipcapi.PurposeUpload, items...)
		w.want(name, err, failure.Invalid)
	}
	if n := func() (n int) {
		w.update(func(tx *store.Tx) (err error) {
			n, err = tx.CountTokens(ada, ipcapi.PurposeUpload, time.UnixMilli(0))
			return
		})
		return n
	}(); n != 0 {
		t.Errorf("%d sessions were stored", n)
	}
	if tokens, err := w.create(ipcapi.PurposeUpload, many[1:]...); err != nil || len(tokens) != ipcapi.MaxSessionItems {
		t.Error(err)
	}
	err := w.touch(ipcapi.SessionNote{Purpose: ipcapi.PurposeUpload, Token: w.one(ipcapi.PurposeUpload), Note: make([]byte, ipcapi.MaxSessionNote+1)})
	w.want("long note", err, failure.Invalid)
}

// TestOnlyHashes: what the database holds does not open a session.
func TestOnlyHashes(t *testing.T) {
	t.Parallel()
	o := storetest.SQLiteOptions(t)
	w := newWorld(t, storetest.Open(t, o), 0)
	token := w.one(ipcapi.PurposeUpload)
	if err := w.touch(ipcapi.SessionNote{Purpose: ipcapi.PurposeUpload, Token: token, Note: []byte("a note to be found")}); err != nil {
		t.Fatal(err)
	}
	files, _ := filepath.Glob(o.Path + "*")
	found := false
	for _, f := range files {
		raw, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		hash := onetime.Hash(token)
		found = found || bytes.Contains(raw, hash[:])
		if bytes.Contains(raw, []byte(token)) {
			t.Errorf("%s holds the token", f)
		}
	}
	if !found {
		t.Error("the test looks in the wrong place")
	}
}
