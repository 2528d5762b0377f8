package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/outbox"
	"ucloud-im/internal/providerapi"
	"ucloud-im/internal/providerapi/apischema"
	"ucloud-im/internal/store"
	"ucloud-im/internal/testkit"
	"ucloud-im/internal/usermap"
	"ucloud-im/internal/usermap/ticket"
)

const (
	provider = "recprov" // the one of the recordings
	base     = "/ucloud/" + provider
	alice    = ident.UCloudUser("Alice#1234")
	recuser  = ident.UCloudUser("recuser")
)

// coreToken stands for a request that Core has signed.
const coreToken = "Bearer core"

type principal struct{}

type verifier struct{}

func (verifier) VerifyCore(h http.Header) (principal, error) {
	if a := h.Values("Authorization"); len(a) == 1 && a[0] == coreToken {
		return principal{}, nil
	}
	return principal{}, failure.New(failure.Unauthenticated, "no token")
}

type core struct{}

func (core) ClearConnection(context.Context, ident.UCloudUser) error   { return nil }
func (core) ApproveConnection(context.Context, ident.UCloudUser) error { return nil }

type policy struct{}

func (policy) Check(context.Context, string) (usermap.Account, error) {
	return usermap.Account{Name: "alice", UID: 2001}, nil
}

type launcher struct {
	mu    sync.Mutex
	woken []ident.UCloudUser
	wake  func(ctx context.Context) error
}

func (l *launcher) Wake(ctx context.Context, u ident.UCloudUser) error {
	l.mu.Lock()
	l.woken = append(l.woken, u)
	wake := l.wake
	l.mu.Unlock()
	if wake == nil {
		return nil
	}
	return wake(ctx)
}

type products struct{}

func (products) Storage() []providerapi.FSSupport {
	return []providerapi.FSSupport{{Product: providerapi.ProductReference{ID: "storage", Category: "storage", Provider: provider}}}
}
func (products) Compute() []providerapi.JobSupport { return nil }

type world struct {
	store       *store.Store
	users       *usermap.Service
	method      *ticket.Method
	launcher    *launcher
	maintenance Maintenance
	branding    *Branding
	h           *Handler
	log         *bytes.Buffer
}

func newWorld(t *testing.T, change ...func(*Options)) *world {
	t.Helper()
	w := &world{launcher: &launcher{}, log: &bytes.Buffer{}}
	log := slog.New(slog.NewTextHandler(w.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	var err error
	w.store, err = store.Open(t.Context(), store.Options{Driver: "sqlite", Path: filepath.Join(testkit.PrivateDir(t), "im.db"), Log: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.store.Close() })
	if w.users, err = usermap.New(t.Context(), usermap.Options{Store: w.store, Core: core{}, Policy: policy{}, Log: log}); err != nil {
		t.Fatal(err)
	}
	if w.method, err = ticket.NewMethod(ticket.Options{
		Store: w.store, Users: w.users, Log: log, PageURL: "https://im.example.org" + PagePath(provider),
	}); err != nil {
		t.Fatal(err)
	}
	o := Options{
		Provider: provider, UCloudPublic: "https://ucloud.example.org", Users: w.users, Method: w.method,
		Launcher: w.launcher, Products: products{}, Tickets: w.method, Log: log,
		Page:        PageOptions{Title: "Example HPC", Contact: "support@hpc.example.org", SelfService: true},
		Maintenance: func() Maintenance { return w.maintenance },
		Branding:    func() *Branding { return w.branding },
	}
	for _, c := range change {
		c(&o)
	}
	if w.h, err = New(verifier{}, o); err != nil {
		t.Fatal(err)
	}
	return w
}

// call makes a request as Core does: with its token and without a content type.
func (w *world) call(method, path, body string, headers ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	r.Header.Set("Authorization", coreToken)
	for i := 0; i+1 < len(headers); i += 2 {
		if headers[i+1] == "" {
			r.Header.Del(headers[i])
			continue
		}
		r.Header.Add(headers[i], headers[i+1])
	}
	rec := httptest.NewRecorder()
	w.h.ServeHTTP(rec, r)
	return rec
}

// checkBody checks a body against the description of the call, or an error against that of errors.
func checkBody(t *testing.T, method, path string, rec *httptest.ResponseRecorder) {
	t.Helper()
	doc := apischema.Provider(t)
	if rec.Code != http.StatusOK {
		doc.Error(t, rec.Body.Bytes())
		return
	}
	id, ok := doc.Find(method, path)
	if !ok {
		t.Errorf("%s %s is not described", method, path)
		return
	}
	doc.Response(t, id, rec.Body.Bytes())
}

func why(t *testing.T, rec *httptest.ResponseRecorder) string {
	t.Helper()
	var b failure.Body
	if err := json.Unmarshal(rec.Body.Bytes(), &b); err != nil {
		t.Fatalf("not an error document: %s", rec.Body)
	}
	if b.StatusCode != rec.Code {
		t.Errorf("status %d in the body of a %d", b.StatusCode, rec.Code)
	}
	return b.Why
}

func (w *world) begin(t *testing.T, user ident.UCloudUser) (tk ticket.Ticket, page string) {
	t.Helper()
	rec := w.call("POST", base+"/integration/connect", `{"username":"`+string(user)+`"}`)
	var resp providerapi.ConnectResponse
	if err := json.Unmarshal(rec.Body.Bytes(), &resp); err != nil || rec.Code != http.StatusOK {
		t.Fatalf("connect: %d %s", rec.Code, rec.Body)
	}
	page, ok := strings.CutPrefix(resp.RedirectTo, "https://im.example.org")
	if !ok {
		t.Fatalf("redirect to %q", resp.RedirectTo)
	}
	_, text, _ := strings.Cut(page, "?ticket=")
	tk, err := ticket.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return tk, page
}

// complete does what `ucloud connect` and the outbox do.
func (w *world) complete(t *testing.T, tk ticket.Ticket, user ident.UCloudUser) {
	t.Helper()
	if _, err := w.method.Complete(t.Context(), ticket.Completion{Ticket: tk, User: user, Local: "alice", By: "alice"}); err != nil {
		t.Fatal(err)
	}
}

// deliver lets the outbox work until the user is connected.
func (w *world) deliver(t *testing.T) {
	t.Helper()
	b := outbox.New(w.store, outbox.Options{})
	w.users.Register(b)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _ = b.Run(ctx) })
	defer wg.Wait()
	defer cancel()
	patience, done := context.WithTimeout(ctx, testkit.Patience)
	defer done()
	if err := w.users.WaitActive(patience, alice); err != nil {
		t.Fatal(err)
	}
}
