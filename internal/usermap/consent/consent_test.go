package consent

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/onetime"
	"ucloud-im/internal/store"
	"ucloud-im/internal/testkit/storetest"
	"ucloud-im/internal/usermap"
)

const (
	ada     = ident.UCloudUser("Ada#1815")
	mallory = ident.UCloudUser("Mallory#6660")
	pageURL = "https://im.example.org/ucloud/demo/integration/login"
	issuer  = "https://idp.example.org"
)

type core struct{}

func (core) ClearConnection(context.Context, ident.UCloudUser) error   { return nil }
func (core) ApproveConnection(context.Context, ident.UCloudUser) error { return nil }

// policy is the accounts by uid; the name of one may change.
type policy map[string]usermap.Account

func (p policy) Check(_ context.Context, local string) (usermap.Account, error) {
	if a, ok := p[local]; ok {
		return a, nil
	}
	return usermap.Account{}, failure.New(failure.NotFound, "There is no account %s", local)
}

var (
	adaLocal = usermap.Account{Name: "ada", UID: 2001}
	eveLocal = usermap.Account{Name: "eve", UID: 2002}
)

type world struct {
	t      *testing.T
	dir    string
	store  *store.Store
	policy policy
	users  *usermap.Service
	now    time.Time
	s      *Service
}

func newWorld(t *testing.T) *world {
	t.Helper()
	o := storetest.SQLiteOptions(t)
	w := &world{t: t, dir: filepath.Dir(o.Path), store: storetest.Open(t, o), now: time.UnixMilli(1_760_000_000_000).UTC()}
	w.policy = policy{"2001": adaLocal, "2002": eveLocal}
	w.restart()
	for _, u := range []ident.UCloudUser{ada, mallory} {
		w.update(func(tx *store.Tx) error { return tx.SeeUser(u, w.now) })
	}
	return w
}

// restart is a new process over the same database.
func (w *world) restart() {
	w.t.Helper()
	now := func() time.Time { return w.now }
	var err error
	if w.users, err = usermap.New(w.t.Context(), usermap.Options{
		Store: w.store, Core: core{}, Policy: w.policy, Log: slog.New(slog.DiscardHandler), Now: now,
	}); err != nil {
		w.t.Fatal(err)
	}
	w.s, err = New(Options{
		Store: w.store, Users: w.users, Tokens: onetime.New(w.store, onetime.Options{Now: now}), Log: slog.New(slog.DiscardHandler), PageURL: pageURL,
		Method: "test", MaxTotal: 8, Now: now, Lifetime: func() time.Duration { return time.Hour },
		Fingerprint: func(_ context.Context, _ ident.UCloudUser, key string) (string, error) { return "SHA256:" + key, nil },
	})
	if err != nil {
		w.t.Fatal(err)
	}
	if err := w.s.Recover(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) update(f func(tx *store.Tx) error) {
	w.t.Helper()
	if err := w.store.Update(w.t.Context(), f); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) begin(a usermap.Attempt) string {
	w.t.Helper()
	to, err := w.s.Begin(w.t.Context(), a)
	if err != nil {
		w.t.Fatal(err)
	}
	session, ok := strings.CutPrefix(to, pageURL+"?session=")
	if !ok {
		w.t.Fatalf("%q", to)
	}
	return session
}

func (w *world) started(user ident.UCloudUser) Started {
	w.t.Helper()
	st, err := w.s.Start(w.t.Context(), w.begin(usermap.Attempt{User: user}))
	if err != nil {
		w.t.Fatal(err)
	}
	return st
}

func (w *world) claimed(st Started) *Pending {
	w.t.Helper()
	p, err := w.s.Claim(w.t.Context(), st.State, st.Cookie)
	if err != nil {
		w.t.Fatal(err)
	}
	return p
}

// proved is a login that waits for consent.
func (w *world) proved(user ident.UCloudUser, subject string, a usermap.Account) (Started, error) {
	w.t.Helper()
	st := w.started(user)
	return st, w.s.Prove(w.t.Context(), w.claimed(st), Proof{Issuer: issuer, Subject: subject, Account: a})
}

func (w *world) view(cookie string) View {
	w.t.Helper()
	v, err := w.s.View(w.t.Context(), cookie)
	if err != nil {
		w.t.Fatal(err)
	}
	return v
}

// connected goes all the way.
func (w *world) connected(user ident.UCloudUser, subject string, a usermap.Account) View {
	w.t.Helper()
	st, err := w.proved(user, subject, a)
	if err != nil {
		w.t.Fatal(err)
	}
	if err := w.s.Decide(w.t.Context(), st.Cookie, w.view(st.Cookie).Form, true); err != nil {
		w.t.Fatal(err)
	}
	return w.view(st.Cookie)
}

func (w *world) mapped(user ident.UCloudUser) bool {
	w.t.Helper()
	_, err := w.users.Mapping(w.t.Context(), user)
	if err != nil && !failure.Is(err, failure.NotFound) {
		w.t.Fatal(err)
	}
	return err == nil
}

func TestFirstPageOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	session := w.begin(usermap.Attempt{User: ada})
	if err := w.s.Usable(t.Context(), session); err != nil {
		t.Fatal(err)
	}
	first, err := w.s.Start(t.Context(), session)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.s.Start(t.Context(), session); !failure.Is(err, failure.NotFound) {
		t.Errorf("a second time: %v", err)
	}
	second := w.started(ada)
	for _, pair := range [][2]string{
		{first.Cookie, second.Cookie},
		{first.State, second.State},
		{first.Nonce, second.Nonce},
		{first.Verifier, second.Verifier},
		{first.Cookie, first.State},
		{first.Nonce, first.Verifier},
		{first.Cookie, first.Nonce},
	} {
		if len(pair[0]) != 43 || pair[0] == pair[1] {
			t.Errorf("secrets %q and %q", pair[0], pair[1])
		}
	}
	w.now = w.now.Add(loginLife)
	late := w.begin(usermap.Attempt{User: ada})
	w.now = w.now.Add(loginLife)
	if _, err := w.s.Start(t.Context(), late); !failure.Is(err, failure.NotFound) {
		t.Errorf("too late: %v", err)
	}
	if _, err := w.s.Claim(t.Context(), first.State, first.Cookie); !failure.Is(err, failure.NotFound) {
		t.Errorf("back too late: %v", err)
	}
}

// TestStateOfAnotherBrowser is login CSRF: the answer for a login of one browser is brought by another.
//
//attack:actor malicious identity
//attack:does Starts a login, logs in, and has a victim's browser bring back the answer (login CSRF).
//attack:control The answer of the identity provider counts only with the cookie of the browser that started the login.
//attack:remove internal/usermap/consent/consent.go: if !hmac.Equal(presented[:], rec.CookieHash[:]) { => if _ = presented; false {
func TestStateOfAnotherBrowser(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	attacker, victim := w.started(mallory), w.started(ada)
	for _, cookie := range []string{victim.Cookie, "", attacker.State, strings.ToLower(attacker.Cookie)} {
		if _, err := w.s.Claim(t.Context(), attacker.State, cookie); !failure.Is(err, failure.Forbidden) {
			t.Errorf("with the cookie %q: %v", cookie, err)
		}
	}
	// That has used nothing up.
	w.claimed(attacker)
	w.claimed(victim)
	for _, state := range []string{"", "x", attacker.Cookie, newSecret(), strings.Repeat("s", 4000)} {
		if _, err := w.s.Claim(t.Context(), state, attacker.Cookie); !failure.Is(err, failure.NotFound) {
			t.Errorf("the state %q: %v", state, err)
		}
	}
}

// TestClaimOnce brings the same answer twice.
//
//attack:actor malicious identity
//attack:does Replays an answer of the identity provider from the history of the browser.
//attack:control A state counts once.
//attack:remove internal/usermap/consent/consent.go: if rec.Stage != store.LoginStarted { => if false {
//attack:remove internal/usermap/consent/consent.go: return tx.MoveLogin(rec, store.LoginStarted) => return nil
func TestClaimOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	st := w.started(ada)
	p := w.claimed(st)
	if p.User() != ada || p.Nonce != st.Nonce || p.Verifier != st.Verifier || !p.StartedAt().Equal(w.now) {
		t.Errorf("%+v", p)
	}
	if _, err := w.s.Claim(t.Context(), st.State, st.Cookie); !errors.Is(err, ErrClaimed) {
		t.Errorf("a second time: %v", err)
	}
}

// TestDatabaseHoldsNoSecret looks for the secrets of a login in the files of the database.
func TestDatabaseHoldsNoSecret(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	session := w.begin(usermap.Attempt{User: ada})
	st, err := w.s.Start(t.Context(), session)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.s.Prove(t.Context(), w.claimed(st), Proof{Issuer: issuer, Subject: "findable", Account: adaLocal}); err != nil {
		t.Fatal(err)
	}
	secrets := []string{session, st.Cookie, st.State, st.Nonce, st.Verifier, w.view(st.Cookie).Form}
	found := false
	err = filepath.WalkDir(w.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		found = found || bytes.Contains(data, []byte("findable"))
		for n, s := range secrets {
			if bytes.Contains(data, []byte(s)) {
				t.Errorf("secret %d is in %s", n, path)
			}
		}
		return err
	})
	if err != nil || !found {
		t.Fatalf("the database was not looked at: %v", err)
	}
}

// TestConsentNeedsTheForm tries to connect without the page that asks.
//
//attack:actor internet
//attack:does Has the victim's browser send the answer of the consent form, without the page (CSRF).
//attack:control The answer counts only with the secret of the form, which only the page of this browser shows.
//attack:remove internal/usermap/consent/decide.go: if !hmac.Equal([]byte(form), []byte(derive("form", cookie, rec.Salt))) { => if hmac.Equal(nil, []byte("x")) {
func TestConsentNeedsTheForm(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	st, err := w.proved(ada, "sub-ada", adaLocal)
	if err != nil {
		t.Fatal(err)
	}
	other, err := w.proved(mallory, "sub-eve", eveLocal)
	if err != nil {
		t.Fatal(err)
	}
	v := w.view(st.Cookie)
	if v.Stage != StageAsk || v.User != ada || v.LocalName != "ada" || v.Fingerprint != "" {
		t.Fatalf("%+v", v)
	}
	for _, form := range []string{"", st.Cookie, st.State, st.Nonce, w.view(other.Cookie).Form} {
		if err := w.s.Decide(t.Context(), st.Cookie, form, true); !failure.Is(err, failure.Forbidden) {
			t.Errorf("the form %q: %v", form, err)
		}
	}
	for _, cookie := range []string{"", st.State, newSecret()} {
		if err := w.s.Decide(t.Context(), cookie, v.Form, true); !failure.Is(err, failure.NotFound) {
			t.Errorf("the cookie %q: %v", cookie, err)
		}
	}
	if w.mapped(ada) || w.mapped(mallory) {
		t.Fatal("connected")
	}
	// Cancelled is final.
	if err := w.s.Decide(t.Context(), st.Cookie, v.Form, false); err != nil {
		t.Fatal(err)
	}
	if err := w.s.Decide(t.Context(), st.Cookie, v.Form, true); err != nil {
		t.Fatal(err)
	}
	if got := w.view(st.Cookie); got.Stage != StageCancelled || w.mapped(ada) {
		t.Errorf("%+v", got)
	}
	// A question that nobody answers ends by time.
	w.now = w.now.Add(consentLife)
	if err := w.s.Decide(t.Context(), other.Cookie, v.Form, true); !failure.Is(err, failure.NotFound) {
		t.Errorf("too late: %v", err)
	}
}

// TestNotBeforeProof decides about a login that has not been proved.
func TestNotBeforeProof(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	st := w.started(ada)
	p := w.claimed(st)
	form := derive("form", st.Cookie, p.rec.Salt)
	if err := w.s.Decide(t.Context(), st.Cookie, form, true); err != nil || w.mapped(ada) {
		t.Errorf("%v, connected %v", err, w.mapped(ada))
	}
	w.s.Fail(t.Context(), p, failure.New(failure.Forbidden, "No account"))
	if v := w.view(st.Cookie); v.Stage != StageFailed || v.Message != "No account" {
		t.Errorf("%+v", v)
	}
	if err := w.s.Prove(t.Context(), p, Proof{Issuer: issuer, Subject: "s", Account: adaLocal}); err == nil {
		t.Error("a failed login was proved")
	}
}

// TestIdentities connects persons and users in all combinations.
//
//attack:actor malicious identity
//attack:does Connects one person's login with a second UCloud user.
//attack:control One identity belongs to one UCloud user.
//attack:remove internal/usermap/consent/decide.go: if mapped {\n\t\t\treturn nil, failure.New(failure.Conflict, "You have logged in as somebody who is connected with another UCloud user, %q. "+ => if mapped && false {\n\t\t\treturn nil, failure.New(failure.Conflict, "You have logged in as somebody who is connected with another UCloud user, %q. "+
//attack:actor malicious identity
//attack:does Takes over a connected UCloud user with another person's login that leads to the same account.
//attack:control A connected user comes back with the same identity only.
//attack:remove internal/usermap/consent/decide.go: if mapped {\n\t\t\treturn nil, failure.New(failure.Conflict, "The UCloud user %q was connected by another person's login than yours. "+ => if mapped && false {\n\t\t\treturn nil, failure.New(failure.Conflict, "The UCloud user %q was connected by another person's login than yours. "+
func TestIdentities(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.s.o.MaxTotal = 100
	if v := w.connected(ada, "sub-ada", adaLocal); v.Stage != StageConnecting {
		t.Fatalf("%+v", v)
	}
	refused := func(name string, user ident.UCloudUser, subject string, a usermap.Account, says string) {
		t.Helper()
		_, err := w.proved(user, subject, a)
		if !failure.Is(err, failure.Conflict) || !strings.Contains(failure.Why(err), says) {
			t.Errorf("%s: %v", name, err)
		}
	}
	refused("her login for another user", mallory, "sub-ada", eveLocal, "connected with another UCloud user")
	refused("another login for her", ada, "sub-eve", adaLocal, "another person's login")
	refused("another account for her", ada, "sub-ada", eveLocal, "connected with the account ada")
	// Her account with another login and another user: the mapping knows whose it is.
	if v := w.connected(mallory, "sub-eve", adaLocal); v.Stage != StageFailed || !strings.Contains(v.Message, "is connected to the UCloud user") {
		t.Errorf("%+v", v)
	}
	// She herself comes back, with the account that she had, also when her connection has ended.
	if err := w.users.Unlinked(t.Context(), ada); err != nil {
		t.Fatal(err)
	}
	refused("after the end of the connection", mallory, "sub-ada", eveLocal, "connected with another UCloud user")
	if v := w.connected(ada, "sub-ada", adaLocal); v.Stage != StageConnecting {
		t.Errorf("%+v", v)
	}
	// An operator has removed her: everything is free again.
	if err := w.users.Remove(t.Context(), ada, nil, false, "test", false); err != nil {
		t.Fatal(err)
	}
	if v := w.connected(mallory, "sub-ada", adaLocal); v.Stage != StageConnecting {
		t.Errorf("%+v", v)
	}
	if v := w.connected(ada, "sub-eve", eveLocal); v.Stage != StageConnecting {
		t.Errorf("%+v", v)
	}
}

// TestAccountChanges renames the account between the question and the answer.
//
//attack:actor local user
//attack:does Gets a recycled uid while its former owner looks at the question for consent.
//attack:control What is connected is the account that was shown.
//attack:remove internal/usermap/consent/decide.go: if a.UID != rec.UID || a.Name != rec.LocalName { => if false {
func TestAccountChanges(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	st, err := w.proved(ada, "sub-ada", adaLocal)
	if err != nil {
		t.Fatal(err)
	}
	w.policy["2001"] = usermap.Account{Name: "somebody", UID: 2001}
	if err := w.s.Decide(t.Context(), st.Cookie, w.view(st.Cookie).Form, true); err != nil {
		t.Fatal(err)
	}
	if v := w.view(st.Cookie); v.Stage != StageFailed || w.mapped(ada) {
		t.Errorf("%+v", v)
	}
}

// TestKey shows the fingerprint of a key that came with the login; nothing makes it usable before consent.
func TestKey(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	st, err := w.s.Start(t.Context(), w.begin(usermap.Attempt{User: ada, Key: "key-1"}))
	if err != nil {
		t.Fatal(err)
	}
	if err := w.s.Prove(t.Context(), w.claimed(st), Proof{Issuer: issuer, Subject: "sub-ada", Account: adaLocal}); err != nil {
		t.Fatal(err)
	}
	if v := w.view(st.Cookie); v.Fingerprint != "SHA256:key-1" {
		t.Errorf("%+v", v)
	}
	w.s.o.Fingerprint = nil
	if _, err := w.s.Begin(t.Context(), usermap.Attempt{User: ada, Key: "key-1"}); err == nil {
		t.Error("a key that cannot be shown was taken along")
	}
}

func TestBounds(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	// First pages: a new one replaces those before it.
	old := w.begin(usermap.Attempt{User: ada})
	for range maxPerUser {
		w.begin(usermap.Attempt{User: ada})
	}
	if err := w.s.Usable(t.Context(), old); !failure.Is(err, failure.NotFound) {
		t.Errorf("the oldest page can be opened: %v", err)
	}
	// Logins: the oldest of the same user goes.
	others := w.started(mallory)
	first := w.started(ada)
	for range maxPerUser {
		w.now = w.now.Add(time.Second)
		w.started(ada)
	}
	if _, err := w.s.Claim(t.Context(), first.State, first.Cookie); !failure.Is(err, failure.NotFound) {
		t.Errorf("the oldest login of the user: %v", err)
	}
	w.claimed(others)
	// In total: 8 in this test, of which 6 are there. What is over makes room.
	w.started(mallory)
	w.started(mallory)
	third := w.begin(usermap.Attempt{User: mallory})
	if _, err := w.s.Start(t.Context(), third); !failure.Is(err, failure.TooMany) {
		t.Errorf("one too many: %v", err)
	}
	if err := w.s.Usable(t.Context(), third); err != nil {
		t.Errorf("a page that could not be opened was used up: %v", err)
	}
	w.now = w.now.Add(loginLife - time.Second)
	if _, err := w.s.Start(t.Context(), third); err != nil {
		t.Errorf("after the others have ended: %v", err)
	}
	w.now = w.now.Add(shownLife)
	if _, err := w.s.Purge(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.update(func(tx *store.Tx) error {
		n, err := tx.CountLogins()
		if n != 0 {
			t.Errorf("%d logins are left", n)
		}
		return err
	})
}

// TestCrash ends the process between the steps.
func TestCrash(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	// Before the first page, and before the answer: nothing is lost.
	session := w.begin(usermap.Attempt{User: ada})
	w.restart()
	st, err := w.s.Start(t.Context(), session)
	if err != nil {
		t.Fatal(err)
	}
	w.restart()
	p := w.claimed(st)
	if p.Verifier != st.Verifier || p.Nonce != st.Nonce {
		t.Error("the secrets of the login are others after a restart")
	}
	// While the answer is checked: the page says so, and the login has to be begun again.
	w.restart()
	if v := w.view(st.Cookie); v.Stage != StageFailed || !strings.Contains(v.Message, "restarted") {
		t.Errorf("%+v", v)
	}
	if _, err := w.s.Claim(t.Context(), st.State, st.Cookie); !errors.Is(err, ErrClaimed) {
		t.Errorf("%v", err)
	}
	// While the question is shown: it is still there.
	st, err = w.proved(ada, "sub-ada", adaLocal)
	if err != nil {
		t.Fatal(err)
	}
	w.restart()
	// In the transaction of the answer: nothing has happened, and the answer can be given again.
	broken := errors.New("killed")
	dying := w.policy
	w.s.o.Users, err = usermap.New(t.Context(), usermap.Options{
		Store: w.store, Core: core{}, Policy: dying, Log: slog.New(slog.DiscardHandler),
		ActivateKey: func(*store.Tx, ident.UCloudUser, string, usermap.Account, string) error { return broken },
	})
	if err != nil {
		t.Fatal(err)
	}
	w.update(func(tx *store.Tx) error { return tx.DeleteLogin(hash("state", st.State)) })
	st, err = w.s.Start(t.Context(), w.begin(usermap.Attempt{User: ada, Key: "key-1"}))
	if err != nil {
		t.Fatal(err)
	}
	if err := w.s.Prove(t.Context(), w.claimed(st), Proof{Issuer: issuer, Subject: "sub-ada", Account: adaLocal}); err != nil {
		t.Fatal(err)
	}
	form := w.view(st.Cookie).Form
	if err := w.s.Decide(t.Context(), st.Cookie, form, true); !errors.Is(err, broken) {
		t.Fatalf("%v", err)
	}
	w.restart()
	if v := w.view(st.Cookie); v.Stage != StageAsk || w.mapped(ada) {
		t.Fatalf("%+v", v)
	}
	w.update(func(tx *store.Tx) error {
		if _, err := tx.IdentityOfUser(ada); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("the identity is kept: %v", err)
		}
		return nil
	})
	// After it: package usermap repairs what is left to do.
	st, err = w.proved(ada, "sub-ada", adaLocal)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.s.Decide(t.Context(), st.Cookie, w.view(st.Cookie).Form, true); err != nil {
		t.Fatal(err)
	}
	w.restart()
	if err := w.users.Repair(t.Context()); err != nil {
		t.Fatal(err)
	}
	if v := w.view(st.Cookie); v.Stage != StageConnecting {
		t.Errorf("%+v", v)
	}
	w.update(func(tx *store.Tx) error {
		entries, err := tx.OutboxAll()
		if len(entries) != 1 || entries[0].Kind != usermap.KindApprove {
			t.Errorf("deliveries %+v", entries)
		}
		return err
	})
}

// TestStrangersDoNotWait: what anybody can send does not need the one writer of the database, so that it can neither hold it
// nor pile up in front of it.
//
//attack:actor internet
//attack:does Calls the pages of a login with made-up states and links, as fast as it can, to keep those who write from writing.
//attack:control What is not known is found out by reading alone.
//attack:remove internal/usermap/consent/consent.go: if errors.Is(err, store.ErrNotFound) {\n\t\treturn nil, errUnknownState => if errors.Is(err, store.ErrNotFound) {\n\t\terr = nil
func TestStrangersDoNotWait(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	began, release, done := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	go func() {
		done <- w.store.Update(context.Background(), func(*store.Tx) error {
			close(began)
			<-release
			return nil
		})
	}()
	<-began
	if _, err := w.s.Claim(t.Context(), newSecret(), newSecret()); !errors.Is(err, errUnknownState) {
		t.Errorf("claim: %v", err)
	}
	if _, err := w.s.Start(t.Context(), newSecret()); !failure.Is(err, failure.NotFound) {
		t.Errorf("start: %v", err)
	}
	close(release)
	if err := <-done; err != nil {
		t.Error(err)
	}
}
