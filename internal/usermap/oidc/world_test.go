package oidc

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/observability"
	"ucloud-im/internal/onetime"
	"ucloud-im/internal/scripts"
	"ucloud-im/internal/store"
	"ucloud-im/internal/testkit"
	"ucloud-im/internal/testkit/idp"
	"ucloud-im/internal/testkit/storetest"
	"ucloud-im/internal/usermap"
	"ucloud-im/internal/usermap/consent"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	ada     = ident.UCloudUser("Ada#1815")
	mallory = ident.UCloudUser("Mallory#6660")

	pageURL  = "https://im.example.org/ucloud/demo/integration/login"
	callback = "https://im.example.org/ucloud-oidc"
)

var (
	adaAtIdp = idp.User{Name: "ada", Password: "engine", Subject: "sub-ada", Claims: map[string]any{
		"email": "ada@example.org", "email_verified": true, "profile": "https://example.org/ada",
	}}
	eveAtIdp = idp.User{Name: "eve", Password: "listens", Subject: "sub-eve"}
)

type core struct{}

func (core) ClearConnection(context.Context, ident.UCloudUser) error   { return nil }
func (core) ApproveConnection(context.Context, ident.UCloudUser) error { return nil }

// policy knows two accounts, and one that must not be used.
type policy struct{}

func (policy) Check(_ context.Context, local string) (usermap.Account, error) {
	switch local {
	case "2001":
		return usermap.Account{Name: "ada", UID: 2001}, nil
	case "2002":
		return usermap.Account{Name: "eve", UID: 2002}, nil
	case "33":
		return usermap.Account{}, failure.New(failure.Forbidden, "The account www-data is not allowed")
	}
	return usermap.Account{}, failure.New(failure.NotFound, "There is no account %s", local)
}

// mapper is the program of the site.
type mapper struct {
	mu    sync.Mutex
	uids  map[string]int64 // by subject
	fail  []error          // of the next calls
	asked []scripts.LoginRequest
	keys  []string      // of the calls
	hold  chan struct{} // if set, calls wait for it
}

func (m *mapper) Call(ctx context.Context, c scripts.Call, reply any) error {
	m.mu.Lock()
	q, _ := c.Request.(scripts.LoginRequest)
	m.asked, m.keys = append(m.asked, q), append(m.keys, c.Key)
	hold := m.hold
	var err error
	if len(m.fail) > 0 {
		err, m.fail = m.fail[0], m.fail[1:]
	}
	uid := m.uids[q.Subject]
	m.mu.Unlock()
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if err != nil {
		return err
	}
	return json.Unmarshal([]byte(`{"uid":`+ident.UID(uid).String()+`}`), reply) //nolint:gosec // of the test
}

func (m *mapper) requests() []scripts.LoginRequest {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]scripts.LoginRequest{}, m.asked...)
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

type world struct {
	t       *testing.T
	idp     *idp.Provider
	store   *store.Store
	users   *usermap.Service
	consent *consent.Service
	mapper  *mapper
	m       *Method
	log     *lockedBuffer
	stop    func()
}

func newWorld(t *testing.T, change ...func(*Settings)) *world {
	t.Helper()
	w := &world{t: t, idp: idp.New(t, adaAtIdp, eveAtIdp), store: storetest.SQLite(t), log: &lockedBuffer{}}
	w.mapper = &mapper{uids: map[string]int64{adaAtIdp.Subject: 2001, eveAtIdp.Subject: 2002, "id1": 2001}}
	w.start(w.settings(change...))
	for _, u := range []ident.UCloudUser{ada, mallory} {
		if err := w.store.Update(t.Context(), func(tx *store.Tx) error { return tx.SeeUser(u, time.Now()) }); err != nil {
			t.Fatal(err)
		}
	}
	return w
}

func (w *world) settings(change ...func(*Settings)) Settings {
	s := Settings{
		Issuer: w.idp.Issuer, ClientID: w.idp.ClientID, ClientSecret: observability.Secret(w.idp.ClientSecret), Scopes: []string{"profile", "email"},
		RedirectURI: callback, HTTP: w.idp.Client(), Map: w.mapper,
	}
	for _, c := range change {
		c(&s)
	}
	return s
}

// start is a new process over the same database; the one before it must have ended.
func (w *world) start(s Settings) {
	t := w.t
	t.Helper()
	log := slog.New(slog.NewTextHandler(w.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	var err error
	if w.users, err = usermap.New(t.Context(), usermap.Options{Store: w.store, Core: core{}, Policy: policy{}, Log: log}); err != nil {
		t.Fatal(err)
	}
	w.consent, err = consent.New(consent.Options{
		Store: w.store, Users: w.users, Tokens: onetime.New(w.store, onetime.Options{}), Log: log, PageURL: pageURL, Method: MethodName,
		Lifetime: func() time.Duration { return 7 * 24 * time.Hour },
	})
	if err != nil {
		t.Fatal(err)
	}
	w.m, err = New(Options{
		Consent: w.consent, Log: log, Existing: w.users.Mapping, Patience: testkit.Patience,
		Account: func(ctx context.Context, uid ident.UID) (usermap.Account, error) {
			return w.users.Check(ctx, uid.String())
		},
	}, s)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.consent.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	m := w.m
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- m.Run(ctx) }()
	var once sync.Once
	w.stop = func() {
		once.Do(func() {
			cancel()
			if err := <-ended; err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(w.stop)
}

// begin presses "Connect" and gives the token of the first page.
func (w *world) begin(user ident.UCloudUser) string {
	w.t.Helper()
	to, err := w.users.Begin(w.t.Context(), w.m, user)
	if err != nil {
		w.t.Fatal(err)
	}
	token, ok := strings.CutPrefix(to, pageURL+"?session=")
	if !ok {
		w.t.Fatalf("Core is given %q", to)
	}
	return token
}

// open opens the first page of a fresh login.
func (w *world) open(user ident.UCloudUser) consent.Opened {
	w.t.Helper()
	o, err := w.m.Open(w.t.Context(), w.begin(user))
	if err != nil {
		w.t.Fatal(err)
	}
	return o
}

// query is what the browser brings back after a login.
func (w *world) query(o consent.Opened, name string) string {
	w.t.Helper()
	back := w.idp.Login(w.t, o.URL, name)
	q, ok := strings.CutPrefix(back, callback+"?")
	if !ok {
		w.t.Fatalf("the identity provider sends the browser to %q", back)
	}
	return q
}

// returned brings the answer back.
func (w *world) returned(query, cookie string) error {
	return w.m.Return(w.t.Context(), query, cookie)
}

// view waits for the page of a login to show the outcome of the check.
func (w *world) view(cookie string) consent.View {
	w.t.Helper()
	var v consent.View
	testkit.Eventually(w.t, "the check of the login", func() bool {
		var err error
		if v, err = w.m.View(w.t.Context(), cookie); err != nil {
			w.t.Fatal(err)
		}
		return v.Stage != consent.StageChecking
	})
	return v
}

// login goes through everything up to the question.
func (w *world) login(user ident.UCloudUser, name string) (consent.View, consent.Opened) {
	w.t.Helper()
	o := w.open(user)
	if err := w.returned(w.query(o, name), o.Cookie); err != nil {
		w.t.Fatal(err)
	}
	return w.view(o.Cookie), o
}

func (w *world) mapping(user ident.UCloudUser) (store.Mapping, bool) {
	w.t.Helper()
	m, err := w.users.Mapping(w.t.Context(), user)
	if failure.Is(err, failure.NotFound) {
		return m, false
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return m, true
}

func values(t *testing.T, query string) url.Values {
	t.Helper()
	q, err := url.ParseQuery(query)
	if err != nil {
		t.Fatal(err)
	}
	return q
}

func observabilitySecret(s string) observability.Secret { return observability.Secret(s) }

// independentLogin fills in the form of the provider that others have written, and gives what the browser brings back.
func independentLogin(t *testing.T, p *idp.Independent, address string) string {
	t.Helper()
	var back string
	c := *p.Client()
	c.CheckRedirect = func(r *http.Request, _ []*http.Request) error {
		if strings.HasPrefix(r.URL.String(), callback) {
			back = r.URL.RawQuery
			return http.ErrUseLastResponse
		}
		return nil
	}
	res, err := c.Get(address)
	if err != nil {
		t.Fatal(err)
	}
	page, _ := io.ReadAll(res.Body)
	res.Body.Close()
	id := regexp.MustCompile(`name="id" value="([^"]+)"`).FindSubmatch(page)
	if id == nil {
		t.Fatalf("%s: no form: %s", res.Request.URL, page)
	}
	res, err = c.PostForm(p.Issuer+"/login/username", url.Values{"username": {p.Name}, "password": {p.Password}, "id": {string(id[1])}})
	if err != nil {
		t.Fatal(err)
	}
	page, _ = io.ReadAll(res.Body)
	res.Body.Close()
	if back == "" {
		t.Fatalf("%d %s", res.StatusCode, page)
	}
	return back
}

// lieAboutEmail is a person who claims somebody else's address.
func lieAboutEmail() idp.Lies {
	set := func(m map[string]any) { m["email"], m["email_verified"] = "ada@example.org", false }
	return idp.Lies{Claims: set, UserInfo: set}
}
