package signingkeys

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"ucloud-im/internal/failure"
	"ucloud-im/internal/ident"
	"ucloud-im/internal/onetime"
	"ucloud-im/internal/signkey"
	"ucloud-im/internal/store"
	"ucloud-im/internal/testkit"
	"ucloud-im/internal/usermap"
	"ucloud-im/internal/usermap/ticket"
)

const (
	alice = ident.UCloudUser("Alice#1234")
	mary  = ident.UCloudUser("Mary#0001")
)

func TestMain(m *testing.M) {
	if dir, ok := testkit.Child(); ok {
		crashChild(dir)
	}
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("database/sql.(*DB).connectionOpener"))
}

type core struct{}

func (core) ClearConnection(context.Context, ident.UCloudUser) error   { return nil }
func (core) ApproveConnection(context.Context, ident.UCloudUser) error { return nil }

type policy struct{}

func (policy) Check(_ context.Context, local string) (usermap.Account, error) {
	for name, uid := range map[string]ident.UID{"alice": 2001, "bob": 2002} {
		if local == name || local == uid.String() {
			return usermap.Account{Name: name, UID: uid}, nil
		}
	}
	return usermap.Account{}, failure.New(failure.Forbidden, "%s is not allowed", local)
}

// world is a server's part that connects users, with tickets behind the upload of keys.
type world struct {
	mu      sync.Mutex
	now     time.Time
	changed []ident.UCloudUser
	most    int
	log     bytes.Buffer

	store   *store.Store
	keys    *Service
	users   *usermap.Service
	tickets *ticket.Method
	method  *Method
}

func (w *world) Now() time.Time { w.mu.Lock(); defer w.mu.Unlock(); return w.now }

func (w *world) add(d time.Duration) { w.mu.Lock(); defer w.mu.Unlock(); w.now = w.now.Add(d) }

// changes are the users whose keys have changed since the last call.
func (w *world) changes() []ident.UCloudUser {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := w.changed
	w.changed = nil
	return out
}

// Write is the log's.
func (w *world) Write(p []byte) (int, error) { w.mu.Lock(); defer w.mu.Unlock(); return w.log.Write(p) }

func (w *world) logged() string { w.mu.Lock(); defer w.mu.Unlock(); return w.log.String() }

func newWorld(ctx context.Context, s *store.Store, hook func(step string)) (*world, error) {
	w := &world{now: time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC), most: 3, store: s}
	log := slog.New(slog.NewTextHandler(w, nil))
	var err error
	if w.keys, err = New(Options{
		Store: s, Tokens: onetime.New(s, onetime.Options{Now: w.Now}), Log: log, Now: w.Now, Pending: time.Hour + time.Minute,
		MaxPerUser: func() int { return w.most }, Lifetime: func() time.Duration { return 24 * time.Hour },
		Changed: func(u ident.UCloudUser) { w.mu.Lock(); defer w.mu.Unlock(); w.changed = append(w.changed, u) },
	}); err != nil {
		return nil, err
	}
	if w.users, err = usermap.New(ctx, usermap.Options{
		Store: s, Core: core{}, Policy: policy{}, Log: log, Now: w.Now,
		ActivateKey: func(tx *store.Tx, user ident.UCloudUser, key string, a usermap.Account, proof string) error {
			err := w.keys.Activate(tx, user, key, a.UID, proof)
			hook("activated")
			return err
		},
		Ended: func(tx *store.Tx, was store.Mapping, cause usermap.Cause) error {
			return w.keys.EndOf(tx, was.User, string(cause))
		},
	}); err != nil {
		return nil, err
	}
	if w.tickets, err = ticket.NewMethod(ticket.Options{
		Store: s, Users: w.users, Log: log, PageURL: "https://im.example.org/page", Lifetime: time.Hour, SelfService: true, Now: w.Now,
	}); err != nil {
		return nil, err
	}
	w.method = &Method{Keys: w.keys, Next: w.tickets, URL: "https://im.example.org/redirect", Wanted: func(u ident.UCloudUser) bool { return u != "Off#1" }}
	return w, nil
}

func testWorld(t *testing.T, s *store.Store) *world {
	t.Helper()
	w, err := newWorld(t.Context(), s, func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// newKey makes a key of a browser.
func newKey() signkey.Key {
	public, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		panic(err)
	}
	k, err := signkey.FromPublic(public)
	if err != nil {
		panic(err)
	}
	return k
}

// session is what Core and the browser get to see when the user presses "Connect".
func (w *world) session(ctx context.Context, u ident.UCloudUser) (string, error) {
	to, err := w.users.Begin(ctx, w.method, u)
	if err != nil {
		return "", err
	}
	parsed, err := url.Parse(to)
	if err != nil {
		return "", err
	}
	text := parsed.Query().Get("session")
	if text == "" {
		return "", fmt.Errorf("no session in %q", to)
	}
	return text, nil
}

func (w *world) begin(t *testing.T, u ident.UCloudUser) string {
	t.Helper()
	text, err := w.session(t.Context(), u)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// upload sends a key and gives the ticket that follows.
func (w *world) upload(t *testing.T, session string, k signkey.Key) ticket.Ticket {
	t.Helper()
	to, err := w.method.Receive(t.Context(), session, k.PEM())
	if err != nil {
		t.Fatal(err)
	}
	return ticketIn(t, to)
}

func ticketIn(t *testing.T, address string) ticket.Ticket {
	t.Helper()
	_, text, _ := strings.Cut(address, "?ticket=")
	tk, err := ticket.Parse(text)
	if err != nil {
		t.Fatalf("%q: %v", address, err)
	}
	return tk
}

func (w *world) complete(tk ticket.Ticket, u ident.UCloudUser, local, fingerprint string) error {
	_, err := w.tickets.Complete(context.Background(), ticket.Completion{Ticket: tk, User: u, Local: local, By: "test", KeyFingerprint: fingerprint})
	return err
}

// connect goes the whole way with a new key.
func (w *world) connect(t *testing.T, u ident.UCloudUser, local string) signkey.Key {
	t.Helper()
	k := newKey()
	w.connectWith(t, u, local, k)
	return k
}

func (w *world) connectWith(t *testing.T, u ident.UCloudUser, local string, k signkey.Key) {
	t.Helper()
	if err := w.complete(w.upload(t, w.begin(t, u), k), u, local, k.Fingerprint()); err != nil {
		t.Fatal(err)
	}
}

// active are the fingerprints with which requests of the user verify.
func (w *world) active(t *testing.T, u ident.UCloudUser, uid ident.UID) []string {
	t.Helper()
	keys, err := w.keys.Keys(t.Context(), u, uid)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, k := range keys {
		out = append(out, k.Fingerprint)
	}
	return out
}

// of are all keys of the user on record.
func (w *world) of(t *testing.T, u ident.UCloudUser) []store.SigningKey {
	t.Helper()
	keys, err := w.keys.Of(t.Context(), u)
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

func wantKind(t *testing.T, what string, err error, kind failure.Kind) {
	t.Helper()
	if err == nil || failure.KindOf(err) != kind {
		t.Errorf("%s: %v, want an error of kind %v", what, err, kind)
	}
}
